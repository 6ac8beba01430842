package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// Ensure implements compute.Driver.
func (d *Driver) Ensure(ctx context.Context, want compute.Guest) (compute.Observation, error) {
	return d.ensure(ctx, want, false)
}

// ensure is Ensure that may leave the guest its copy.
func (d *Driver) ensure(ctx context.Context, want compute.Guest, copied bool) (compute.Observation, error) {
	began := time.Now()
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, err
	}
	g := d.guest(want.ID)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.began, g.forked, g.answered = began, time.Time{}, time.Time{}

	trouble := d.unmet(want)
	if g.rec.outlived(want) {
		d.log.InfoContext(ctx, "taking away what is left of a guest that was elsewhere since", "guest", want.ID)
		if err := g.removeAll(ctx); err != nil {
			return compute.Observation{}, err
		}
	}
	if g.rec != nil && !g.rec.Removing && g.rec.Copy != nil {
		if l := g.rec.Launch; copied && l != nil && l.Ferry {
			if err := g.cut(ctx, ""); err != nil {
				return compute.Observation{}, err
			}
		} else if !copied {
			if err := g.endCopy(ctx); err != nil {
				return compute.Observation{}, err
			}
		}
	}
	if g.rec != nil && g.rec.Way != nil {
		if trouble, err := g.endWay(ctx); err != nil || trouble != "" {
			return compute.Observation{Power: compute.Crashed, Trouble: trouble, Isolating: d.accel == accelKVM}, err
		}
	}
	if g.rec == nil || g.rec.Removing {
		if trouble != "" {
			d.forget(g)
			return compute.Observation{Power: compute.Crashed, Trouble: trouble, Isolating: d.accel == accelKVM}, nil
		}
		if err := g.unrecorded(); err != nil {
			return compute.Observation{}, err
		}
		if err := g.create(ctx, want, nil); err != nil {
			d.forget(g)
			return compute.Observation{}, err
		}
	}
	if trouble == "" {
		var err error
		if trouble, err = g.mine(ctx, want); errors.Is(err, errClaimed) {
			return g.lose(ctx)
		} else if err != nil {
			return compute.Observation{}, err
		}
	}
	busy := false
	if trouble == "" {
		var err error
		if busy, trouble, err = g.converge(ctx, want); err != nil {
			return compute.Observation{}, err
		}
	} else {
		var err error
		if g.seen, err = g.look(ctx); err != nil {
			return compute.Observation{}, err
		}
	}
	o := g.observe(g.seen)
	o.Busy = o.Busy || busy
	if trouble != "" {
		o.Trouble = trouble
	}
	return o, nil
}

// unrecorded makes sure that what lies in the directory of a guest without a record is nobody's: its
// disks may be all that its owner has. A removal that was begun takes the record away last.
func (g *guest) unrecorded() error {
	if g.rec != nil && g.rec.Removing {
		return nil
	}
	if _, err := readRecord(g.dir); err != nil {
		return err
	}
	disks, err := filepath.Glob(filepath.Join(g.dir, "disk-*"))
	if err != nil {
		return err
	}
	for _, path := range disks {
		if !strings.HasSuffix(path, ".new") {
			return fmt.Errorf("guest %s has lost its record, and still has %s", g.id, path)
		}
	}
	return nil
}

// create makes the directory and the record of a new guest, or of one that comes from another host.
func (g *guest) create(ctx context.Context, want compute.Guest, from *way) error {
	if err := g.removeAll(ctx); err != nil { // what a broken-off Remove, or create, left
		return err
	}
	uid, err := g.driver.freeUID(g)
	if err != nil {
		return err
	}
	rec := &record{UID: uid, Epoch: want.Epoch, Storage: want.Storage, HardBoots: want.HardBoots, SoftBoots: want.SoftBoots, Rebuilds: want.Rebuilds, Way: from}
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return err
	}
	g.driver.step("directory made")
	if err := rec.write(g.dir); err != nil {
		return err
	}
	g.rec, g.claimedAt = rec, time.Time{}
	g.driver.step("guest recorded")
	return nil
}

// converge goes on as long as there is a next step that takes no waiting.
func (g *guest) converge(ctx context.Context, want compute.Guest) (busy bool, trouble string, err error) {
	for time.Since(g.began) < patience+answerTime {
		if err := ctx.Err(); err != nil {
			return false, "", fmt.Errorf("guest %s: %w", g.id, err)
		}
		p, trouble, err := g.step(ctx, want)
		if err != nil || p == settled {
			return false, trouble, err
		}
		if p == waiting {
			return true, trouble, nil
		}
	}
	g.driver.notify(g.id)
	return true, "", nil
}
