package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// rebuild throws the root disk away and makes it anew from the wished image.
func (g *guest) rebuild(ctx context.Context, want compute.Guest) error {
	if err := g.cut(ctx, ""); err != nil {
		return err
	}
	if err := g.dropMemory("memory lost by rebuild"); err != nil {
		return err
	}
	if trouble, err := g.occupied(); trouble != "" || err != nil {
		return errors.Join(err, fmt.Errorf("guest %s is not rebuilt: %s", g.id, trouble))
	}
	root := g.rec.disk(want.Disks[0].Name)
	if root == nil && g.rec.Storage != "" { // on another host it has one, perhaps
		root = g.rec.newOr(nil, "disk", want.Disks[0].Name)
	}
	if root != nil {
		files := []string{firmwareFile}
		for _, root.Format = range []string{"raw", "qcow2"} {
			files = append(files, root.file(""))
		}
		if err := g.removeDisks(ctx, files...); err != nil {
			return err
		}
		g.driver.step("root disk thrown away")
		root.Made = false
		if err := root.plan(want.Disks[0]); err != nil {
			return err
		}
		if err := g.makeDisk(ctx, root); err != nil {
			return err
		}
		g.driver.step("root disk made anew")
	}
	r := g.rec
	if err := g.noteDisks(ctx, want.Rebuilds); err != nil {
		return err
	}
	r.Rebuilds, r.HardBoots, r.SoftBoots = want.Rebuilds, max(r.HardBoots, want.HardBoots), max(r.SoftBoots, want.SoftBoots)
	return g.write("rebuilt")
}

// prepare makes the guest's devices as wished, while there is no machine.
func (g *guest) prepare(ctx context.Context, want compute.Guest) error {
	r := g.rec
	kept := r.Devices[:0:0]
	for _, dev := range r.Devices {
		if dev.wanted(want) {
			dev.Leaving = time.Time{}
			kept = append(kept, dev)
		} else if dev.Kind == "disk" {
			if err := g.removeDisks(ctx, dev.file(g.disks())); err != nil {
				return err
			}
		}
	}
	r.Devices = kept
	planned := make([]device, 0, len(want.Disks)+len(want.NICs))
	for _, w := range want.Disks {
		dev := r.newOr(r.disk(w.Name), "disk", w.Name)
		if err := dev.plan(w); err != nil {
			return err
		}
		planned = append(planned, *dev)
	}
	for _, n := range want.NICs {
		dev := r.newOr(r.find("nic", n.PortID.String()), "nic", n.PortID.String())
		dev.takeNIC(n)
		planned = append(planned, *dev)
	}
	r.Devices = planned // in the order of the wish: the root disk first
	if err := g.write("disks planned"); err != nil {
		return err
	}
	for i := range r.Devices {
		if r.Devices[i].Kind == "disk" {
			if err := g.makeDisk(ctx, &r.Devices[i]); err != nil {
				return err
			}
			g.driver.step("disk made")
		}
	}
	if err := g.noteDisks(ctx, r.Rebuilds); err != nil {
		return err
	}
	if want.Kernel != nil {
		if err := g.copyKernel(want); err != nil {
			return err
		}
	}
	if want.UEFI {
		return g.makeVariables(ctx)
	}
	return nil
}

func (g *guest) copyKernel(want compute.Guest) error {
	r := g.rec
	err := copyImage(want.Kernel, filepath.Join(g.dir, kernelFile), r.UID, &r.Kernel)
	if err == nil && want.Initrd != nil {
		err = copyImage(want.Initrd, filepath.Join(g.dir, initrdFile), r.UID, &r.Initrd)
	}
	return err
}

// fits tells whether the devices that are there are the wished ones.
func (r *record) fits(want compute.Guest) bool {
	for _, dev := range r.Devices {
		if !dev.wanted(want) || dev.Kind == "disk" && !dev.Made {
			return false
		}
	}
	return len(r.Devices) == len(want.Disks)+len(want.NICs)
}

// newOr gives the device that is there, or adds one in a slot of its own.
func (r *record) newOr(dev *device, kind, name string) *device {
	if dev == nil {
		r.Devices = append(r.Devices, device{Kind: kind, Name: name, Slot: r.freeSlot()})
		dev = &r.Devices[len(r.Devices)-1]
	}
	return dev
}

// refreshTaps learns where the taps are of cards that saved memory knows.
func (g *guest) refreshTaps(want compute.Guest) {
	for i := range g.rec.Devices {
		dev := &g.rec.Devices[i]
		if dev.Kind != "nic" {
			continue
		}
		dev.Tap = compute.Tap{}
		for _, n := range want.NICs {
			if n.PortID.String() == dev.Name && dev.matches(n) {
				dev.Tap = n.Tap
			}
		}
	}
}
