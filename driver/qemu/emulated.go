package qemu

import (
	"context"
	"errors"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
)

// Which pages a running guest has written, QEMU only knows for certain under KVM. An emulated processor looks up whether a page is still to be
// marked as written, and writes a moment later; while another thread takes the marks away in between, as each new round of a migration does, the
// mark of that write is lost, and with it all that the guest writes in that page from then on. The guest then runs on at its target with
// a few of its pages out of date, and sooner or later falls over (docs/decisions/moves.md). So marks are only taken away while the
// processors of an emulated guest stand still.

// courseOf is how the memory of a guest may go that is run so, by a QEMU of this major version.
func courseOf(accel string, major int) compute.Course {
	switch {
	case accel == accelKVM:
		return compute.Rounds
	case major < 8:
		return compute.OneRound
	default:
		// It takes the marks away once more before it stops the processors, however short the pause that it is allowed.
		return compute.NoRound
	}
}

// course is that of this guest. Its process is asked, which may be older than the program on the disk.
func (g *guest) course(ctx context.Context) (compute.Course, error) {
	var version struct {
		QEMU struct{ Major int }
	}
	if err := g.ask(ctx, "query-version", nil, &version); err != nil {
		return "", err
	}
	return g.driver.courseOf(g.rec.Launch.Shape.Accel, version.QEMU.Major), nil
}

// A pause is for how long we have the processors of a guest stand still.
type pause struct {
	since time.Time     // it began; zero: they run
	stood time.Duration // those before
}

func (p *pause) on() bool { return !p.since.IsZero() }

func (p *pause) end() {
	if p.on() {
		p.stood, p.since = p.stood+time.Since(p.since), time.Time{}
	}
}

// total is how long they stood, with what QEMU says of the last time unless that was ours.
func (p *pause) total(theirs time.Duration) time.Duration {
	if p.on() {
		return p.stood + time.Since(p.since)
	}
	return p.stood + theirs
}

// halt has the processors stand still for a move, which ran until now. That is written down before: whoever gives the move up, an agent after
// this one too, has them go on.
func (g *guest) halt(ctx context.Context) error {
	if !g.rec.Way.Halted {
		g.rec.Way.Halted = true
		if err := g.write("halt announced"); err != nil {
			return err
		}
	}
	if err := g.ask(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if g.trip != nil && !g.trip.pause.on() {
		g.trip.pause.since = time.Now()
	}
	g.driver.step("processors halted")
	return nil
}

// goOn lets them run again, if we had them stand still.
func (g *guest) goOn(ctx context.Context) error {
	if g.trip == nil || !g.trip.pause.on() {
		return nil
	}
	err := g.ask(ctx, "cont", nil, nil)
	var refusal *qmp.Error
	if errors.As(err, &refusal) { // it had little to send, and is past that
		return nil
	}
	if err != nil {
		return err
	}
	g.trip.pause.end()
	g.driver.step("processors go on")
	return nil
}
