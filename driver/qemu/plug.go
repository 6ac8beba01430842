package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
)

// How often a guest is asked again to let a device go, and after how long its
// owner is told that it does not.
const (
	askAgain   = 5 * time.Second
	releaseMax = 20 * time.Second
)

// devices attaches and detaches, while the machine is in memory.
func (g *guest) devices(ctx context.Context, want compute.Guest) (progress, string, error) {
	r := g.rec
	plugged, err := g.plugged(ctx)
	if err != nil {
		return settled, "", err
	}
	leaving := false
	for _, dev := range r.Devices {
		if dev.wanted(want) {
			continue
		}
		if plugged[dev.id()] {
			leaving = true
			if err := g.unplug(ctx, r.find(dev.Kind, dev.Name)); err != nil {
				return settled, "", err
			}
			continue
		}
		err := g.discard(ctx, dev)
		if errors.Is(err, errInUse) {
			g.comeAgain(50 * time.Millisecond)
			return waiting, "", nil
		}
		return again, "", err
	}
	for _, w := range want.Disks {
		if dev := r.disk(w.Name); dev == nil || !plugged[dev.id()] {
			if trouble := r.Launch.Shape.cannotPlug(w.Bus, r, dev); trouble != "" {
				return settled, trouble, nil
			}
			return again, "", g.attachDisk(ctx, w)
		}
	}
	for _, n := range want.NICs {
		dev := r.find("nic", n.PortID.String())
		if dev != nil && !dev.matches(n) {
			continue // the one before has to go first
		}
		if dev == nil || !plugged[dev.id()] {
			if trouble := r.Launch.Shape.cannotPlug("", r, dev); trouble != "" {
				return settled, trouble, nil
			}
			return again, "", g.attachNIC(ctx, n)
		}
	}
	if err := g.grow(ctx, want); err != nil {
		return settled, "", err
	}
	if !leaving {
		return settled, "", nil
	}
	g.comeAgain(askAgain)
	for _, dev := range r.Devices {
		if !dev.Leaving.IsZero() && time.Since(dev.Leaving) > releaseMax {
			return settled, fmt.Sprintf("The guest does not let go of its %s %s. It will be gone after a reboot.", kinds[dev.Kind], dev.Name), nil
		}
	}
	return waiting, "", nil
}

var kinds = map[string]string{"disk": "disk", "nic": "network port"}

// plugged asks which devices the machine has.
func (g *guest) plugged(ctx context.Context) (map[string]bool, error) {
	var devices []struct{ Name string }
	if err := g.ask(ctx, "qom-list", object{"path": "/machine/peripheral"}, &devices); err != nil {
		return nil, err
	}
	plugged := map[string]bool{}
	for _, d := range devices {
		plugged[d.Name] = true
	}
	return plugged, nil
}

// cannotPlug is why a device cannot come while the machine is in memory, in
// words for the owner. dev is nil if it has no slot yet.
func (s shape) cannotPlug(bus string, r *record, dev *device) string {
	switch slots := s.Ports; {
	case bus == "ide":
		return "An IDE disk can only be attached while the guest is off."
	case bus == "scsi" && !s.SCSI:
		return "The guest has no SCSI controller yet; it gets one when it is stopped and started."
	case s.pc() && (dev == nil && r.freeSlot() >= maxPortsPC):
		return "The guest has no room for more devices."
	case !s.pc() && (dev == nil && r.freeSlot() >= slots || dev != nil && dev.Slot >= slots):
		return "The guest has no room for more devices until it is stopped and started."
	}
	return ""
}

// unplug asks the guest to let a device go, which takes its cooperation.
func (g *guest) unplug(ctx context.Context, dev *device) error {
	if dev.Leaving.IsZero() {
		dev.Leaving = time.Now().UTC()
		if err := g.write("unplug announced"); err != nil {
			return err
		}
	} else if time.Since(g.askedLast) < askAgain {
		return nil
	}
	g.askedLast = time.Now()
	err := g.ask(ctx, "device_del", object{"id": dev.id()}, nil)
	var refusal *qmp.Error
	if errors.As(err, &refusal) { // it is being unplugged already, or has just gone
		return nil
	}
	g.driver.step("guest asked to let a device go")
	return err
}

// discard takes away what stands behind a device that is gone, and its disk.
func (g *guest) discard(ctx context.Context, dev device) error {
	if err := g.unback(ctx, dev); err != nil {
		return err
	}
	g.driver.step("device's backend gone")
	if dev.Kind == "disk" {
		if err := g.removeDisks(ctx, dev.file(g.disks())); err != nil {
			return err
		}
	}
	g.rec.forget(dev)
	if err := g.write("device forgotten"); err != nil || dev.Kind != "disk" {
		return err
	}
	return g.noteDisks(ctx, g.rec.Rebuilds)
}

func (r *record) forget(gone device) {
	kept := r.Devices[:0:0]
	for _, d := range r.Devices {
		if d.Kind != gone.Kind || d.Name != gone.Name {
			kept = append(kept, d)
		}
	}
	r.Devices = kept
}

// unback removes a device's backend from QEMU, as far as there is one.
func (g *guest) unback(ctx context.Context, dev device) error {
	type command struct {
		name string
		args object
	}
	commands := []command{{"netdev_del", object{"id": dev.netdev()}}}
	if dev.Kind == "disk" {
		commands = nil
		for _, node := range dev.nodes() {
			commands = append(commands, command{"blockdev-del", object{"node-name": node}})
		}
		commands = append(commands, command{"remove-fd", object{"fdset-id": diskSet(dev.Slot)}}, command{"remove-fd", object{"fdset-id": backingSet(dev.Slot)}})
	}
	for _, c := range commands {
		err := g.ask(ctx, c.name, c.args, nil)
		var refusal *qmp.Error
		switch {
		case err == nil:
		case !errors.As(err, &refusal):
			return err
		case strings.Contains(refusal.Desc, "not found"), strings.Contains(refusal.Desc, "Failed to find"):
			// It was not there, or is not any more.
		case strings.HasSuffix(refusal.Desc, "is in use"):
			return errInUse
		default:
			return err
		}
	}
	return nil
}

// errInUse is the answer while a device that is gone for its guest is not yet
// gone for QEMU.
var errInUse = errors.New("a device's backend is still in use")

// attachDisk makes a disk if need be, and plugs it.
func (g *guest) attachDisk(ctx context.Context, w compute.Disk) error {
	dev := g.rec.newOr(g.rec.disk(w.Name), "disk", w.Name)
	if err := dev.plan(w); err != nil {
		g.rec.forget(*dev)
		return err
	}
	dev.Leaving = time.Time{}
	if err := g.write("disk planned"); err != nil {
		return err
	}
	if err := g.makeDisk(ctx, dev); err != nil {
		return err
	}
	if err := errors.Join(g.write("disk made"), g.noteDisks(ctx, g.rec.Rebuilds)); err != nil {
		return err
	}
	if err := g.unback(ctx, *dev); err != nil { // what an earlier attempt left
		return err
	}
	f, err := g.openDisk(dev.file(g.disks()), os.O_RDWR)
	if err := g.pass(ctx, diskSet(dev.Slot), f, err); err != nil {
		return err
	}
	if dev.Image.Path != "" {
		f, err := os.Open(dev.Image.Path)
		if err := g.pass(ctx, backingSet(dev.Slot), f, err); err != nil {
			return err
		}
	}
	for _, node := range dev.blockdevs() {
		if err := g.ask(ctx, "blockdev-add", node, nil); err != nil {
			return err
		}
	}
	g.driver.step("disk's backend made")
	if err := g.ask(ctx, "device_add", dev.frontend(g.rec.Launch.Shape, 0), nil); err != nil {
		return err
	}
	g.driver.step("disk plugged")
	return nil
}

// pass hands QEMU a file, if it could be opened, to open by the number of a set.
func (g *guest) pass(ctx context.Context, set int, f *os.File, err error) error {
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return g.monitor.ExecuteWithFile(ctx, f, "add-fd", object{"fdset-id": set}, nil)
}

// attachNIC opens a tap and plugs a card onto it.
func (g *guest) attachNIC(ctx context.Context, n compute.NIC) error {
	dev := g.rec.newOr(g.rec.find("nic", n.PortID.String()), "nic", n.PortID.String())
	dev.takeNIC(n)
	dev.Leaving = time.Time{}
	if err := g.write("card planned"); err != nil {
		return err
	}
	if err := g.unback(ctx, *dev); err != nil { // what an earlier attempt left, which has the tap
		return err
	}
	tap, err := openTap(n.Tap)
	if err != nil {
		return fmt.Errorf("guest %s: network port %s: %w", g.id, n.PortID, err)
	}
	defer tap.Close()
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := g.monitor.ExecuteWithFile(limited, tap, "getfd", object{"fdname": dev.netdev()}, nil); err != nil {
		return err
	}
	if err := g.ask(ctx, "netdev_add", object{"type": "tap", "id": dev.netdev(), "fd": dev.netdev()}, nil); err != nil {
		return err
	}
	g.driver.step("card's backend made")
	if err := g.ask(ctx, "device_add", dev.frontend(g.rec.Launch.Shape, 0), nil); err != nil {
		return err
	}
	g.driver.step("card plugged")
	return nil
}

// grow enlarges disks that are wished larger than they are.
func (g *guest) grow(ctx context.Context, want compute.Guest) error {
	for _, w := range want.Disks {
		dev := g.rec.disk(w.Name)
		if dev == nil || int64(w.SizeMiB)*mib <= dev.Bytes {
			continue
		}
		if err := g.ask(ctx, "block_resize", object{"node-name": dev.node(), "size": int64(w.SizeMiB) * mib}, nil); err != nil {
			return err
		}
		g.driver.step("disk grown")
		dev.Bytes = int64(w.SizeMiB) * mib
		if err := g.write("size recorded"); err != nil {
			return err
		}
	}
	return nil
}
