package qemu

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// A progress says how a call goes on after one step.
type progress int

const (
	again   progress = iota // at once: there is more to do
	waiting                 // something goes on by itself
	settled                 // nothing more can be done now
)

// step takes the guest one step nearer to the wish. trouble is what keeps it
// from being as wished, though the guest itself is all right.
func (g *guest) step(ctx context.Context, want compute.Guest) (p progress, trouble string, err error) {
	now, lookErr := g.settle(ctx)
	g.seen = now
	if lookErr != nil && now == gone {
		return settled, "", lookErr
	}
	switch r := g.rec; {
	case want.Rebuilds > r.Rebuilds:
		return again, "", g.rebuild(ctx, want)
	case want.HardBoots > r.HardBoots:
		return again, "", g.powerCycle(ctx, want)
	case now == deaf && want.Power != compute.Off:
		return settled, "", lookErr
	case now == starting:
		if want.Power == compute.Off {
			return again, "", g.cut(ctx, "")
		}
		if time.Since(g.began) > patience {
			return waiting, "", nil
		}
		return again, "", g.bringUp(ctx)
	case want.SoftBoots > r.SoftBoots || r.Stop != nil && r.Stop.Reboot:
		return g.softBoot(ctx, want, now)
	case now == shutDown && (want.Power == compute.Off || r.Stop != nil):
		// We asked for it; if the owner has changed his mind, it starts again.
		return again, "", g.cut(ctx, "")
	case now == shutDown:
		return again, "", g.cut(ctx, byGuest)
	case now == broken || now == panicked:
		return again, "", g.cut(ctx, byCrash)
	}
	switch want.Power {
	case compute.On:
		return g.toOn(ctx, want, now)
	case compute.Off:
		return g.toOff(ctx, want, now)
	case compute.Paused:
		return g.toPaused(ctx, want, now)
	default:
		return g.toSuspended(ctx, want, now)
	}
}

func (g *guest) toOn(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	switch now {
	case gone:
		return g.comeBack(ctx, want)
	case incoming:
		return waiting, "", nil
	case saved, finishing:
		return g.keepOrDropMemory(ctx)
	case storageErr:
		return settled, "", g.ask(ctx, "cont", nil, nil) // there may be room again
	case prelaunch, paused:
		if g.rec.Saving {
			return g.keepOrDropMemory(ctx)
		}
		return again, "", g.run(ctx, want)
	}
	if g.rec.Saving || g.rec.Saved != nil {
		if err := g.dropMemory("memory running again"); err != nil {
			return settled, "", err
		}
	}
	if !g.rec.Launch.Up {
		return again, "", g.up()
	}
	if g.rec.Stop != nil { // the guest was asked to stop and is wanted again, but may yet do it
		if left := time.Until(g.rec.Stop.Deadline); left > 0 {
			g.comeAgain(left)
			return waiting, "", nil
		}
		g.rec.Stop = nil
		if err := g.write("stop forgotten"); err != nil {
			return settled, "", err
		}
	}
	return g.devices(ctx, want)
}

// comeBack starts a guest that has no process, unless it ended by itself.
func (g *guest) comeBack(ctx context.Context, want compute.Guest) (progress, string, error) {
	switch {
	case g.rec.Ended == byHost && !want.StayOff:
		g.rec.Ended = ""
	case g.rec.Ended != "":
		return settled, "", nil
	}
	if trouble, err := g.occupied(); trouble != "" || err != nil {
		g.comeAgain(time.Second)
		return waiting, trouble, err
	}
	return again, "", g.start(ctx, want)
}

// run lets the processors go on, or go for the first time.
func (g *guest) run(ctx context.Context, want compute.Guest) error {
	if g.rec.Saved != nil {
		// From here on the saved memory is older than the disks.
		if err := g.dropMemory("saved memory used up"); err != nil {
			return err
		}
	}
	if !g.rec.Launch.Up {
		if err := g.grow(ctx, want); err != nil {
			return err
		}
	}
	if err := g.ask(ctx, "cont", nil, nil); err != nil {
		return err
	}
	g.driver.step("processors running")
	g.rec.Launch.Inert = false
	if g.rec.Launch.Up {
		return nil
	}
	return g.up()
}

// up notes that a start is complete, and how long it took.
func (g *guest) up() error {
	g.rec.Launch.Up = true
	g.rec.OursMs, g.rec.StartMs = 0, 0
	if !g.forked.IsZero() && !g.answered.IsZero() { // else an agent before us began it
		total, theirs := time.Since(g.began), g.answered.Sub(g.forked)
		g.rec.StartMs = float64(total.Microseconds()) / 1000
		g.rec.OursMs = float64((total - theirs).Microseconds()) / 1000
	}
	return g.write("start complete")
}

func (g *guest) toOff(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	r := g.rec
	if now == gone {
		if r.Ended != "" || r.Saved != nil {
			r.Ended = ""
			return again, "", g.dropMemory("off")
		}
		if !r.fits(want) {
			return settled, "", g.prepare(ctx, want)
		}
		return settled, "", nil
	}
	if now != running || r.Stop == nil && want.GraceSeconds <= 0 {
		return again, "", g.cut(ctx, "")
	}
	if r.Stop == nil {
		r.Stop = &stop{Deadline: time.Now().Add(time.Duration(want.GraceSeconds) * time.Second).UTC()}
		if err := g.write("stop announced"); err != nil {
			return settled, "", err
		}
	}
	if err := g.press(ctx); err != nil {
		return settled, "", err
	}
	if !time.Now().Before(r.Stop.Deadline) {
		return again, "", g.cut(ctx, "")
	}
	g.comeAgain(time.Until(r.Stop.Deadline))
	return waiting, "", nil
}

func (g *guest) toPaused(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	switch now {
	case gone:
		return g.comeBack(ctx, want)
	case incoming:
		return waiting, "", nil
	case saved, finishing:
		if now == saved && !g.rec.Saving && g.rec.Saved == nil {
			return settled, "", nil // its memory went to another host, and it stayed
		}
		return g.keepOrDropMemory(ctx)
	case running, asleep:
		if !g.rec.Launch.Up {
			return again, "", g.up()
		}
		return again, "", g.ask(ctx, "stop", nil, nil)
	}
	if g.rec.Saving {
		return g.keepOrDropMemory(ctx)
	}
	if g.rec.Saved != nil {
		if err := g.dropMemory("saved memory used up"); err != nil {
			return settled, "", err
		}
	}
	if !g.rec.Launch.Up {
		if err := g.grow(ctx, want); err != nil {
			return settled, "", err
		}
		return again, "", g.up()
	}
	if err := g.takeUp(ctx); err != nil {
		return settled, "", err
	}
	return g.devices(ctx, want)
}
