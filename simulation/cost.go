package simulation

import (
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// A Cost is what a fault comes to.
type Cost struct {
	Elsewhere       bool // whether servers were to be restarted elsewhere
	Hosts, Affected int
	Dead            time.Duration // until all of the hosts were known to be
	Restarted       int
	Last            time.Duration  // until the last of them ran
	NoRoom          map[string]int // servers by the placement's reason
	Storm           bool           // so many hosts that nothing is restarted by itself
}

const (
	quiet   = 5 * time.Minute // nothing that goes on waits for as long without a change
	longest = 7 * 24 * time.Hour
)

// fail ends some hosts for ever, and waits until nothing more is done about it.
func (t *trial) fail() (*Cost, error) {
	ids, err := t.named(t.Fault)
	if err != nil {
		return nil, err
	}
	c := &Cost{Elsewhere: t.Elsewhere, Hosts: len(ids), NoRoom: map[string]int{}}
	if err := t.hub.Pump(); err != nil {
		return nil, err
	}
	for _, h := range t.hosts {
		if !slices.Contains(ids, h) {
			t.hub.Connect(h)
		}
	}
	var left []resource.ID
	for _, h := range ids {
		left = append(left, compute.Servers().IDs(t.state.Latest(), "host", state.KeyOf(h))...)
	}
	c.Affected = len(left)
	now := func() time.Time { return t.clock }
	fence := &host.Fence{State: t.state, Now: now, Awaited: compute.Awaited, Missed: compute.Missed}
	tasks := []reconcile.Task{t.hub.Liveness(now), fence.Task()}
	for _, task := range t.compute.Reconcilers() {
		if task.Name == "compute-rescue" {
			tasks = append(tasks, task)
		}
	}
	r := reconcile.New(t.state, t.clock, tasks...)
	began, changed, revision := t.clock, t.clock, t.state.Latest().Revision()
	due := map[resource.ID]time.Time{}
	// land has the hosts report the guests that have started by now. It gives the moment of the next, if that is before another.
	land := func(next time.Time) (_ time.Time, err error) {
		left = slices.DeleteFunc(left, func(id resource.ID) bool {
			srv, _ := compute.Servers().PeekOne(t.state.Latest(), id)
			if srv.Task != compute.Evacuating || err != nil {
				return false
			}
			at, known := due[id]
			if !known {
				at = t.clock.Add(t.Boot)
				due[id] = at
			}
			if at.After(t.clock) {
				if at.Before(next) {
					next = at
				}
				return false
			}
			if err = t.run(srv.HostID, []resource.ID{id}); err != nil {
				return false
			}
			c.Restarted, c.Last = c.Restarted+1, t.clock.Sub(began)
			return true
		})
		return next, err
	}
	for len(left) > 0 && t.clock.Sub(changed) < quiet && t.clock.Sub(began) < longest {
		if err := t.ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := land(t.clock); err != nil { // before anybody looks how many are under way
			return nil, err
		}
		for again := true; again; {
			if err := r.Pump(t.clock); err != nil {
				return nil, err
			}
			again = r.Do(t.ctx, now)
		}
		next := t.clock.Add(5 * time.Second)
		if at, ok := r.Due(); ok && at.After(t.clock) && at.Before(next) {
			next = at
		}
		if next, err = land(next); err != nil {
			return nil, err
		}
		if c.Dead == 0 && t.allDead(ids) {
			c.Dead = t.clock.Sub(began)
		}
		if now := t.state.Latest().Revision(); now != revision {
			revision, changed = now, t.clock
		}
		t.clock = next
	}
	tx := t.state.Latest()
	_, _, c.Storm = compute.Storm(tx)
	for _, id := range left {
		why := "It is not restarted by itself."
		if srv, _ := compute.Servers().PeekOne(tx, id); srv.Stranded != nil {
			why = srv.Stranded.Why
		}
		c.NoRoom[why]++
	}
	return c, nil
}

func (t *trial) allDead(ids []resource.ID) bool {
	return !slices.ContainsFunc(ids, func(id resource.ID) bool {
		h, ok := host.Table().PeekOne(t.state.Latest(), id)
		return !ok || !h.Dead()
	})
}
