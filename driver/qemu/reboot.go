package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// powerCycle does a hard reboot's first half. The second is that the guest is wished on.
func (g *guest) powerCycle(ctx context.Context, want compute.Guest) error {
	if err := g.cut(ctx, ""); err != nil {
		return err
	}
	if want.Power != compute.Suspended {
		if err := g.dropMemory("memory lost by reboot"); err != nil {
			return err
		}
	}
	g.rec.HardBoots, g.rec.SoftBoots = want.HardBoots, max(g.rec.SoftBoots, want.SoftBoots)
	return g.write("power-cycled")
}

// softBoot has the guest's operating system stop, and starts it anew in the
// same process; or power-cycles it when it does not listen.
func (g *guest) softBoot(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	r := g.rec
	carriedOut := func() error {
		r.Stop, r.SoftBoots = nil, max(r.SoftBoots, want.SoftBoots)
		return g.write("soft boot carried out")
	}
	switch {
	case want.Power != compute.On:
		return again, "", carriedOut() // its processors are about to be stopped, or have been
	case now == gone, now != running && r.Stop == nil:
		if err := g.cut(ctx, ""); err != nil {
			return settled, "", err
		}
		return again, "", carriedOut()
	case r.Stop == nil || !r.Stop.Reboot:
		r.Stop = &stop{Reboot: true, Deadline: time.Now().Add(time.Duration(want.GraceSeconds) * time.Second).UTC()}
		return again, "", g.write("reboot announced")
	case r.Stop.Resetting && now == running:
		return again, "", carriedOut()
	case r.Stop.Resetting && now == prelaunch:
		return again, "", g.ask(ctx, "cont", nil, nil)
	case now == shutDown:
		if !r.Stop.Resetting {
			r.Stop.Resetting = true
			if err := g.write("reset announced"); err != nil {
				return settled, "", err
			}
		}
		return again, "", g.reset(ctx)
	case !time.Now().Before(r.Stop.Deadline):
		if err := g.cut(ctx, ""); err != nil {
			return settled, "", err
		}
		return again, "", carriedOut()
	case now == running:
		if err := g.press(ctx); err != nil {
			return settled, "", err
		}
	}
	g.comeAgain(time.Until(r.Stop.Deadline))
	return waiting, "", nil
}

// press presses the guest's power button, unless this driver has done so for
// the present stop. A second time, after another agent, does no harm.
func (g *guest) press(ctx context.Context) error {
	if g.pressed == g.rec.Stop {
		return nil
	}
	if err := g.ask(ctx, "system_powerdown", nil, nil); err != nil {
		return err
	}
	g.pressed = g.rec.Stop
	g.driver.step("guest asked to stop")
	return nil
}

// reset makes a machine that has shut down ready to run again. QEMU answers
// before it has done so.
func (g *guest) reset(ctx context.Context) error {
	if err := g.ask(ctx, "system_reset", nil, nil); err != nil {
		return err
	}
	g.driver.step("machine reset")
	for until := time.Now().Add(answerTime); time.Now().Before(until); time.Sleep(2 * time.Millisecond) {
		now, err := g.look(ctx)
		if err != nil || now != shutDown {
			return err
		}
	}
	return fmt.Errorf("guest %s: the machine is not reset", g.id)
}
