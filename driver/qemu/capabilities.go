package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

// Name is the driver's, as hosts say it.
const Name = "qemu"

// A Promise is what an operator may expect of guests on this host.
type Promise struct {
	Confined string // how tightly
	Loose    bool   // only if that is allowed
	Moves    bool   // the hypervisor is new enough to send guests to other hosts
	Version  string // of it
}

// Examine finds out, for an operator, what to expect of this host. The error is why guests cannot be confined more tightly.
func Examine(ctx context.Context) (Promise, error) {
	nothing := Promise{Confined: "nothing", Loose: true}
	binary, err := exec.LookPath(programs[runtime.GOARCH])
	if err != nil {
		return nothing, err
	}
	dir, err := os.MkdirTemp("", "unkai-jail")
	if err != nil {
		return nothing, err
	}
	defer os.Remove(dir)
	var h *hypervisor
	j, err := findJail(dir, func(j *jail) (err error) {
		h, err = probe(ctx, binary, j, firstUID)
		return err
	})
	if j == nil {
		return nothing, err
	}
	return Promise{Confined: j.String(), Loose: j.loose(), Moves: h.moves, Version: h.version}, err
}

// programs are QEMU's names, by Go's word for the architecture.
var programs = map[string]string{"amd64": "qemu-system-x86_64"}

// Capabilities implements compute.Driver.
func (d *Driver) Capabilities(ctx context.Context) (compute.Capabilities, error) {
	if err := ctx.Err(); err != nil {
		return compute.Capabilities{}, err
	}
	var memory unix.Sysinfo_t
	if err := unix.Sysinfo(&memory); err != nil {
		return compute.Capabilities{}, fmt.Errorf("ask for the host's memory: %w", err)
	}
	storage := ""
	gib, err := 0, error(nil)
	if d.storage == nil {
		gib, err = room(d.dir)
	} else {
		storage = d.storage.id
		var away error
		if gib, away = d.gauge.read(ctx, func() (int, error) { return room(d.storage.dir) }); ctx.Err() != nil {
			err = ctx.Err()
		} else if away != nil {
			d.log.WarnContext(ctx, "the shared storage cannot be looked at; what it has room for is as it was last", "dir", d.storage.dir, "error", away)
		}
	}
	if err != nil {
		return compute.Capabilities{}, err
	}
	return compute.Capabilities{
		Driver:    Name,
		Version:   d.hypervisor.version,
		VCPUs:     runtime.NumCPU(),
		MemoryMiB: int(memory.Totalram * uint64(memory.Unit) / mib),
		DiskGiB:   gib,
		Isolating: d.accel == accelKVM,
		Arch:      map[string]string{"amd64": "x86_64"}[runtime.GOARCH],
		CPUModel:  cpuModel(),
		MaxVCPUs:  d.hypervisor.machines["q35"].maxVCPUs,
		Snapshots: "qcow2",
		Moves:     d.where() != "" && d.hypervisor.moves,
		Where:     d.where(),
		Storage:   storage,
	}, nil
}
