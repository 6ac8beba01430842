package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// Remove implements compute.Driver.
func (d *Driver) Remove(ctx context.Context, id resource.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g := d.guest(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nudge != nil {
		g.nudge.Stop()
	}
	if err := g.removeAll(ctx); err != nil {
		return fmt.Errorf("remove guest %s: %w", id, err)
	}
	d.forget(g)
	return nil
}

// removeAll ends the guest and leaves nothing of it. The record goes last but
// for its directory, so that whatever is left can be found.
func (g *guest) removeAll(ctx context.Context) error {
	d := g.driver
	if _, err := os.Lstat(g.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	g.cutWay()
	if g.rec != nil {
		g.rec.Removing = true
		if err := g.write("removal announced"); err != nil {
			return err
		}
		g.hangUp()
		if g.proc != nil && g.proc.alive() {
			if err := g.proc.kill(); err != nil {
				return err
			}
		}
		g.release()
	}
	if g.rec == nil || g.rec.Launch != nil && g.rec.Launch.PID == 0 {
		if err := g.killStrays(ctx); err != nil {
			return err
		}
	}
	d.step("process removed")
	if err := d.cgroups.remove(g.id.String()); err != nil {
		return err
	}
	d.step("control groups removed")
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == recordFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(g.dir, e.Name())); err != nil {
			return err
		}
		d.step("file removed")
	}
	if err := remove(filepath.Join(g.dir, recordFile)); err != nil {
		return err
	}
	g.rec = nil
	d.step("record removed")
	if err := os.Remove(g.dir); err != nil {
		return err
	}
	d.step("directory removed")
	return nil
}

// haltGrace is how many seconds a guest that nobody wants may take to stop.
const haltGrace = 30

// Halt implements compute.Driver.
func (d *Driver) Halt(ctx context.Context, id resource.ID) (busy bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	g := d.guest(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rec == nil || g.rec.Removing {
		if err := g.unrecorded(); err != nil {
			return false, err
		}
		d.forget(g)
		return false, fault.Missing("guest", id)
	}
	if w := g.rec.Way; w != nil && w.Incoming && !w.Done {
		return false, fault.Missing("guest", id) // what has come of it is worth nothing
	}
	if lost, err := g.lost(ctx); lost || err != nil {
		if err == nil {
			_, err = g.lose(ctx)
		}
		return false, err
	}
	for {
		// Not a wish like others: of one that names no disks, a guest that is off would have none.
		now, lookErr := g.settle(ctx)
		g.seen = now
		if now == gone {
			return false, lookErr
		}
		p, _, err := g.toOff(ctx, compute.Guest{ID: id, Power: compute.Off, GraceSeconds: haltGrace}, now)
		if err != nil || p == waiting {
			return true, err
		}
	}
}

// remove is os.Remove for what may be gone already.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
