package simulation

import (
	"fmt"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A blow is something that befalls a cloud in the middle of a move. from and to are the two hosts.
type blow struct {
	do     func(w *world, from, to *node) error
	reboot bool // a guest may have been started again for it
}

var blows = map[string]blow{
	"the old host's agent crashes": {do: func(_ *world, from, _ *node) error { from.restart(); return nil }},
	"the new host's agent crashes": {do: func(_ *world, _, to *node) error { to.restart(); return nil }},
	"the controller crashes":       {do: func(w *world, _, _ *node) error { return w.startControl() }},
	"the old host is cut off":      {do: func(w *world, from, _ *node) error { cut(w, from); return nil }},
	"the new host is cut off":      {do: func(w *world, _, to *node) error { cut(w, to); return nil }},
	"the old host loses power": {do: func(_ *world, from, _ *node) error {
		from.machine.Reboot()
		from.restart()
		return nil
	}, reboot: true},
	"the new host loses power": {do: func(_ *world, _, to *node) error {
		to.machine.Reboot()
		to.restart()
		return nil
	}, reboot: true},
	"the new host is replaced by another machine": {do: func(_ *world, _, to *node) error { to.replace(); return nil }, reboot: true},
	"the move is cancelled":                       {do: func(w *world, _, _ *node) error { return giveUp(w) }},
	"the move is cancelled while the new host is cut off": {do: func(w *world, _, to *node) error {
		cut(w, to)
		return giveUp(w)
	}},
	"the move is cancelled while the old host is cut off": {do: func(w *world, from, _ *node) error {
		cut(w, from)
		return giveUp(w)
	}},
}

// giveUp cancels the move that is under way, if one is.
func giveUp(w *world) error {
	for _, id := range w.client.projects[0].order {
		s, _ := compute.Servers().PeekOne(w.control.state.Latest(), id)
		if s.Move == nil {
			continue // it is over, or has not begun
		}
		if _, err := w.control.operations.Cancel(identity.Internal(w.ctx), s.OperationID); err != nil {
			return err
		}
	}
	return nil
}

// cut lets a host be unheard for long enough that the cloud counts it as lost.
func cut(w *world, n *node) {
	n.drop()
	n.cutUntil = w.clock.Add(time.Minute)
}

// TestAMoveSurvivesABlowAtAnyMoment: whatever befalls whom after whichever step, in the end the guest runs once, nothing of it is left
// elsewhere, and it was not started again unless a machine was.
func TestAMoveSurvivesABlowAtAnyMoment(t *testing.T) {
	for name, b := range blows {
		for way, ask := range map[string]func(*world, resource.ID) error{
			"live": func(w *world, id resource.ID) error {
				return w.control.compute.LiveMigrate(identity.Internal(w.ctx), id, "")
			},
			"cold": func(w *world, id resource.ID) error {
				return w.control.compute.Migrate(identity.Internal(w.ctx), id, "")
			},
		} {
			t.Run(way+": "+name, func(t *testing.T) {
				moved, stayed := 0, 0
				for at := 0; ; at++ {
					m, over := moveWithBlow(t, at, ask, b, way == "live")
					if m {
						moved++
					} else {
						stayed++
					}
					if over || t.Failed() {
						break
					}
				}
				t.Logf("it moved %d times and stayed %d times", moved, stayed)
				if moved+stayed < 10 || moved == 0 {
					t.Errorf("it moved %d times and stayed %d times, which proves little", moved, stayed)
				}
			})
		}
	}
}

// moveWithBlow runs one move with a blow after so many steps. over: the move had ended before it.
func moveWithBlow(t *testing.T, at int, ask func(*world, resource.ID) error, b blow, live bool) (moved, over bool) {
	t.Helper()
	w, err := newWorld(t.Context(), Options{Seed: 1, Hosts: 2})
	if err != nil {
		t.Fatal(err)
	}
	w.calm = true
	if err := w.settle(); err != nil { // the hosts arrive
		t.Fatal(err)
	}
	p := w.client.projects[0]
	for len(p.order) == 0 {
		if what, err := w.client.create(p, "42"); err != nil {
			t.Fatal(what, err)
		}
	}
	if err := w.settle(); err != nil {
		t.Fatal(err)
	}
	id := p.order[0]
	// The guest of an owner who wants it elsewhere when its host is lost is cut off with its host, and rightly started again.
	if _, err := w.control.compute.SetKeep(p.ctx, id, func(k *compute.Keep) { k.Elsewhere = false }); err != nil {
		t.Fatal(err)
	}
	if err := w.settle(); err != nil {
		t.Fatal(err)
	}
	server := func() *compute.Server {
		s, _ := compute.Servers().PeekOne(w.control.state.Latest(), id)
		return s
	}
	was := server()
	from, to := w.nodes[0], w.nodes[1]
	if was.HostID != from.id {
		from, to = to, from
	}
	if err := ask(w, id); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < at && !over; {
		for _, did := range []func() bool{func() bool { return w.control.work(w) }, from.step, to.step} {
			if n < at && did() {
				n++
			}
			if err := w.checkNoneTwice(); err != nil {
				t.Fatalf("after %d steps: %v", n, err)
			}
		}
		over = server().Task == ""
		w.clock = w.clock.Add(50 * time.Millisecond)
	}
	if err := b.do(w, from, to); err != nil {
		t.Fatalf("after %d steps: %v", at, err)
	}
	settled, struck := fmt.Sprintf("after %d steps", at), w.clock
	for end := w.clock.Add(20 * time.Minute); w.clock.Before(end); w.clock = w.nextMoment() {
		for busy := true; busy; {
			busy = w.control.work(w)
			for _, n := range w.nodes {
				busy = n.step() || busy
				if err := w.checkNoneTwice(); err != nil {
					t.Fatalf("%s: %v", settled, err)
				}
			}
		}
		if w.restless() == "" {
			break
		}
	}
	if err := w.settle(); err != nil {
		t.Fatalf("%s: %v", settled, err)
	}
	if took := w.clock.Sub(struck); took > 5*time.Minute {
		t.Errorf("%s it was at rest only %v later", settled, took)
	}
	s := server()
	moved = s.HostID == to.id
	if s.Power != compute.On || s.Seen.Power != compute.On {
		t.Errorf("%s it came to be %s, and was to be %s", settled, s.Seen.Power, s.Power)
	}
	if live && !b.reboot && !s.Seen.StartedAt.Equal(was.Seen.StartedAt) {
		t.Errorf("%s its guest was started again", settled)
	}
	return moved, over
}
