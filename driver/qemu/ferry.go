package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// leaveCold takes a guest one step on that is off, or is to be first.
func (g *guest) leaveCold(ctx context.Context, want compute.Guest) (progress, string, error) {
	if l := g.rec.Launch; l == nil || !l.Ferry {
		if g.rec.Way.Begun {
			return settled, "The agent of the guest's host was restarted on the way.", nil
		}
		p, trouble, err := g.step(ctx, want)
		if p != settled || trouble != "" || err != nil {
			return p, trouble, err
		}
		if g.rec.Launch != nil {
			return waiting, "", nil
		}
		return g.ferry(ctx)
	}
	now, err := g.settle(ctx)
	switch {
	case now == starting:
		return waiting, "", g.bringUp(ctx)
	case now == gone || err != nil:
		g.refusal(g.driver.log)
		return settled, brokenWay, err
	}
	if p, trouble, err := g.carry(ctx, want); p != settled || trouble != "" || err != nil {
		return p, trouble, err
	}
	if ended, trouble, err := g.endMirrors(ctx); err != nil || trouble != "" || !ended {
		return soon(), trouble, err
	}
	conn, trouble, err := g.driver.hails(ctx, want.Leave.Where, 2*peerTime, hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forEnd})
	if trouble != "" || err != nil {
		return settled, g.turnedAway(ctx, trouble, err), nil
	}
	conn.Close()
	if err := g.cut(ctx, ""); err != nil {
		return settled, "", err
	}
	g.rec.Way.Done = true
	return settled, "", g.write("departure recorded")
}

// ferry has a process hold the guest's disks that is no machine, once nobody else holds them.
func (g *guest) ferry(ctx context.Context) (progress, string, error) {
	if trouble, err := g.occupied(); trouble != "" || err != nil {
		g.comeAgain(time.Second)
		return waiting, "", err
	}
	return again, "", g.launch(ctx, &launch{Boot: bootID(), Ferry: true}, g.ferryLine)
}

// ferryLine tells QEMU to hold a guest's disks and be no machine.
func (g *guest) ferryLine() (in inmate, c *cargo, err error) {
	c = &cargo{}
	d := g.driver
	in = inmate{uid: g.rec.UID}
	var failures []error
	add := func(f *os.File, err error) int {
		n, err := c.add(f, err)
		failures = append(failures, err)
		return n
	}
	args := []string{d.binary, "-uuid", g.id.String(), "-name", "guest=" + g.id.String(), "-machine", "none", "-nodefaults", "-no-user-config",
		"-display", "none", "-S", "-msg", "timestamp=on", "-sandbox", sandbox}
	add(os.OpenFile(os.DevNull, os.O_RDWR, 0))
	complaints := add(os.OpenFile(filepath.Join(g.dir, stderrFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600))
	if errors.Join(failures...) == nil {
		c.files = append(c.files, dup(c.files[complaints], &failures))
	}
	for _, monitor := range []string{monitorSocket, adminSocket} {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", monitor, add(listen(g.dir, monitor))), "-mon", "chardev="+monitor+",mode=control")
	}
	for _, dev := range g.rec.Devices {
		if dev.Kind != "disk" {
			continue
		}
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", add(g.openDisk(dev.file(g.disks()), os.O_RDWR)), diskSet(dev.Slot)))
		if dev.Image.Path != "" {
			args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", add(os.OpenFile(dev.Image.Path, os.O_RDONLY, 0)), backingSet(dev.Slot)))
		}
		for _, node := range dev.blockdevs() {
			args = append(args, "-blockdev", text(node))
		}
	}
	in.argv, in.files = args, c.files
	if err := errors.Join(failures...); err != nil {
		c.close()
		return in, nil, err
	}
	return in, c, nil
}
