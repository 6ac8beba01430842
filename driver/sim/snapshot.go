package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// copying is a copy of a guest's root disk, as far as it is.
type copying struct {
	number int
	until  time.Time
	took   time.Duration
}

// sector is what the size of a disk is counted in.
const sector = 512

// Disk is what a copy of a simulated guest's root disk holds: whose it is, and which of its snapshots.
func Disk(guest resource.ID, number int) []byte {
	b := make([]byte, sector)
	copy(b, fmt.Sprintf("the disk of simulated guest %s, snapshot %d", guest, number))
	return b
}

// Snapshot copies a guest's root disk once the guest is as wished.
func (d *Guests) Snapshot(ctx context.Context, want compute.Guest) (compute.Observation, compute.Copy, error) {
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, compute.Copy{}, err
	}
	m := d.m
	if err := m.fault("guest.snapshot", want.ID); err != nil {
		return compute.Observation{}, compute.Copy{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.guests[want.ID]
	if g == nil || g.way != nil && g.way.incoming {
		return compute.Observation{Power: compute.Off}, compute.Copy{Trouble: "The guest is not on its host."}, nil
	}
	m.settle(want.ID, g)
	trouble, lost := m.stillOurs(g, &want)
	if lost {
		return m.observe(g), compute.Copy{Trouble: trouble}, nil
	}
	if trouble == "" {
		trouble = m.converge(g, &want)
	}
	seen := m.observe(g)
	if trouble != "" {
		seen.Trouble = trouble
	}
	if c := g.copy; c == nil || c.number != want.Snapshot.Number {
		if seen.Busy || seen.Trouble != "" || g.power != want.Power {
			return seen, compute.Copy{}, nil
		}
		took := m.takes("copy")
		if m.CopyMiBps > 0 && len(want.Disks) > 0 {
			took += time.Duration(want.Disks[0].SizeMiB) * time.Second / time.Duration(m.CopyMiBps)
		}
		g.copy = &copying{number: want.Snapshot.Number, took: took, until: m.now().Add(took)}
	}
	if left := g.copy.until.Sub(m.now()); left > 0 {
		return seen, compute.Copy{Percent: int(100 * (g.copy.took - left) / g.copy.took)}, nil
	}
	if err := m.fault("guest.copy", want.ID); err != nil {
		g.copy = nil
		return seen, compute.Copy{Trouble: "The guest's disk could not be copied: the host's storage is full or fails."}, nil
	}
	body := Disk(want.ID, want.Snapshot.Number)
	return seen, compute.Copy{Done: true, Percent: 100, Bytes: int64(len(body)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }}, nil
}
