package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
)

// How a guest changes hosts whose disks both reach where they are. Only its memory goes, if it has any. The new host's hypervisor
// opens the disks and neither reads nor locks them before its processors are to run ("late-block-activate"); the old one's has let
// go of them when it has sent the last of the memory, and takes them again only if it runs on. Neither has a claim to rise before
// that: the new host claims the disks when the guest is given to it, and the old one's claim stands until then.

// lacks is why a guest whose disks are on a storage cannot be here.
func (d *Driver) lacks(storage string) (trouble string) {
	if storage != "" && (d.storage == nil || d.storage.id != storage) {
		return notHere
	}
	return ""
}

// leaveColdKept takes a guest one step on that is off, or is to be first, and leaves its disks where they are.
func (g *guest) leaveColdKept(ctx context.Context, want compute.Guest) (progress, string, error) {
	if g.trip == nil && g.rec.Way.Begun {
		return settled, "The agent of the guest's host was restarted on the way.", nil
	}
	if p, trouble, err := g.step(ctx, want); p != settled || trouble != "" || err != nil {
		return p, trouble, err
	}
	if g.rec.Launch != nil {
		return waiting, "", nil
	}
	if p, trouble, err := g.carry(ctx, want); p != settled || trouble != "" || err != nil {
		return p, trouble, err
	}
	conn, trouble, err := g.driver.hails(ctx, want.Leave.Where, 2*peerTime, hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forEnd})
	if trouble != "" || err != nil {
		return settled, g.turnedAway(ctx, trouble, err), nil
	}
	conn.Close()
	g.rec.Way.Done = true
	return settled, "", g.write("departure recorded")
}

// findDisks makes sure that the other host's disks are those that this one reaches, not another copy of them.
func (g *guest) findDisks(ctx context.Context, proof string) (trouble string, err error) {
	s := g.driver.storage
	if s == nil || s.id != g.rec.Storage {
		return notHere, nil
	}
	found, err := s.finds(ctx, g.id, proof)
	switch {
	case err != nil:
		return "", err
	case !found:
		return "The two hosts do not see the same disks, though their storage has the same name. Is one of them a copy?", nil
	}
	for i := range g.rec.Devices {
		dev := &g.rec.Devices[i]
		if dev.Kind != "disk" {
			continue
		}
		f, err := g.openDisk(dev.file(g.disks()), os.O_RDWR)
		if errors.Is(err, fs.ErrNotExist) {
			return "A disk of the guest is not on the storage on which it should be.", nil
		}
		if err != nil {
			return "", err
		}
		f.Close()
		dev.Made = true
	}
	return "", nil
}

// takeUp has a guest's hypervisor take up disks that it has only opened when the guest came. It does so by itself when the processors are to
// run; but one whose guest stays paused cannot let go again of what it never took up, as saving or sending the memory has it do. Only an export
// makes QEMU do that before 10.0.
func (g *guest) takeUp(ctx context.Context) error {
	if !g.rec.Launch.Inert {
		return nil
	}
	stop := func() error {
		err := g.ask(ctx, "nbd-server-stop", nil, nil)
		var refusal *qmp.Error
		if errors.As(err, &refusal) { // it is not running
			return nil
		}
		return err
	}
	if err := stop(); err != nil { // an agent before us may have got as far as that
		return err
	}
	if err := g.export(ctx, false); err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	g.rec.Launch.Inert = false
	return g.write("disks taken up")
}

// arrivedKept is the end of the way of a guest that is off.
func (g *guest) arrivedKept() error {
	g.rec.Way.Done = true
	err := g.write("arrival recorded")
	g.driver.notify(g.id)
	return err
}
