package qemu

import (
	"context"
	"os"
	"path/filepath"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// Present implements compute.Driver.
func (d *Driver) Present(ctx context.Context) ([]resource.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.present()
}

func (d *Driver) present() ([]resource.ID, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, "guests"))
	if err != nil {
		return nil, err
	}
	var ids []resource.ID
	for _, e := range entries {
		if id, err := resource.ParseID(e.Name()); err == nil && e.Name() == id.String() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Running are the guests that have a process that lives.
func (d *Driver) Running(ctx context.Context) (all []resource.ID, err error) {
	ids, err := d.present()
	for _, id := range ids {
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		g, err := d.known(id)
		if err != nil {
			continue
		}
		if g.proc != nil && g.proc.alive() {
			all = append(all, id)
		}
		g.mu.Unlock()
	}
	return all, err
}

// Observe implements compute.Driver. A guest that the host does not hold is a
// fault of kind NotFound.
func (d *Driver) Observe(ctx context.Context, id resource.ID) (compute.Observation, error) {
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, err
	}
	g, err := d.known(id)
	if err != nil {
		return compute.Observation{}, err
	}
	defer g.mu.Unlock()
	now, err := g.look(ctx)
	if err != nil {
		return compute.Observation{}, err
	}
	return g.observe(now), nil
}

// observe says what there is, of a process that is doing as look said.
func (g *guest) observe(now state) compute.Observation {
	r := g.rec
	o := compute.Observation{
		HardBoots: r.HardBoots, SoftBoots: r.SoftBoots, Rebuilds: r.Rebuilds,
		Isolating: g.driver.accel == accelKVM, OursMs: r.OursMs, StartMs: r.StartMs,
	}
	if now != gone {
		o.StartedAt = r.Launch.StartedAt
		o.Isolating = r.Launch.Shape.Accel == accelKVM
		o.Busy = r.Stop != nil || r.Saving || !r.Launch.Up
	}
	switch now {
	case gone:
		o.Power, o.Trouble = endings[g.end()].power, endings[g.end()].trouble
		if r.Saved != nil && o.Power == compute.Off {
			o.Power = compute.Suspended
		}
	case running, asleep:
		o.Power = compute.On
	case shutDown:
		o.Power = compute.Off
	case broken, panicked:
		o.Power, o.Trouble = compute.Crashed, endings[byCrash].trouble
	case storageErr:
		o.Power, o.Trouble = compute.Paused, "The guest is held because its disk could not be written: the host's storage is full or fails."
	case starting, incoming:
		o.Power = compute.Off
		if r.Saved != nil {
			o.Power = compute.Suspended
		}
	default:
		o.Power = compute.Paused
		if !r.Launch.Up && r.Stop == nil {
			o.Power = compute.Off
		}
	}
	return o
}

// end is how the recorded process came to its end, if that has not been written
// down yet. It is "" if that was our doing.
func (g *guest) end() ending {
	l := g.rec.Launch
	switch {
	case l == nil || l.PID == 0 || l.Ferry || g.rec.Ended != "" || g.rec.Saved != nil && (l.Up || l.Boot != bootID()):
		return g.rec.Ended
	case l.Boot != bootID():
		return byHost
	case l.Up:
		return byCrash
	case l.Incoming && g.rec.Saved != nil:
		return unsound
	case l.Incoming:
		return byCrash
	default:
		return refused
	}
}

// endings is how an ending looks to the owner.
var endings = map[ending]struct {
	power   compute.Power
	trouble string
}{
	"":      {compute.Off, ""},
	byGuest: {compute.Off, ""},
	byHost:  {compute.Off, ""},
	byCrash: {compute.Crashed, "The guest's virtual machine ended unexpectedly. Start or reboot the guest to run it again."},
	refused: {compute.Crashed, "The host's hypervisor could not start the guest. Start or reboot the guest to try again."},
	unsound: {compute.Crashed, "The guest's saved memory could not be loaded. Reboot the guest to start it without."},
}
