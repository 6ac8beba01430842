package simulation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/network"
)

// A follower is a controller that does not lead. Hosts have their sessions with it as with the one that does.
type follower struct {
	w     *world
	name  string
	state *state.State
	hub   *host.Hub

	alone    time.Time // until then it cannot reach most of the others, and confirms nothing
	mute     time.Time // until then it confirms, and what it says does not reach the one that leads
	dazed    time.Time // until then it answers, and takes notice of nothing by itself
	reportAt time.Time
}

// follow gives the cloud its other controllers: two, but to every third seed none.
func (w *world) follow() error {
	if w.Seed%3 == 0 {
		return nil
	}
	for n := range 2 {
		st, err := state.OpenFollower(w.ctx, w.engine, state.Options{Now: w.now, Random: w, History: 4096, Level: w.level()})
		if err != nil {
			return fmt.Errorf("open a follower's state: %w", err)
		}
		f := &follower{w: w, name: fmt.Sprintf("follower-%d", n), state: st}
		f.hub = host.NewHub(st, slices.Concat(network.New(st).Sources(), compute.New(st, compute.Config{}).Sources(), host.Sources())...)
		f.hub.Now, f.hub.After = w.now, w.after
		f.hub.Confirm = func(context.Context) error { return f.confirm() }
		w.followers = append(w.followers, f)
	}
	return nil
}

// catchUp takes in what was committed.
func (f *follower) catchUp() error {
	ctx, cancel := context.WithCancel(f.w.ctx)
	cancel() // nobody waits for what comes
	if err := f.state.Follow(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// confirm has it show whatever was acknowledged.
func (f *follower) confirm() error {
	if f.w.clock.Before(f.alone) {
		return errors.New("simulated: most of the others cannot be reached")
	}
	return f.catchUp()
}

// work does what it does by itself; false if there was nothing.
func (f *follower) work() bool {
	w := f.w
	if w.clock.Before(f.dazed) || w.clock.Before(f.alone) {
		return false
	}
	before := f.state.Latest().Revision()
	if err := f.catchUp(); err != nil {
		panic(err) // an engine in memory does not fail to be read
	}
	if err := f.hub.Pump(); err != nil {
		w.trace("%s: hub: %v", f.name, err)
	}
	if !w.clock.Before(f.reportAt) {
		f.reportAt = w.clock.Add(host.ReportEvery)
		f.report()
	}
	return f.state.Latest().Revision() != before
}

// report tells the one that leads which hosts are heard here. It may be late, overtaken or lost.
func (f *follower) report() {
	w, seen := f.w, f.hub.Here()
	if w.clock.Before(f.mute) || !w.calm && w.chance(50) {
		return
	}
	if w.calm || w.chance(700) {
		w.control.hub.HeardBy(f.name, seen)
		return
	}
	w.after(time.Duration(w.rng.IntN(10_000))*time.Millisecond, func() { w.control.hub.HeardBy(f.name, seen) })
}

// letGo is what it does when it has been alone for a while, if it notices.
func (f *follower) letGo() {
	if f.w.clock.Before(f.alone) && !f.w.clock.Before(f.dazed) {
		f.hub.EndAll()
	}
}

// arrive has a host begin a session here; nil: it is turned away.
func (f *follower) arrive(n *node, hello host.Hello) *host.Session {
	w := f.w
	if f.confirm() != nil {
		return nil
	}
	if !host.Expected(f.state.Latest(), n.id, hello) {
		if w.clock.Before(f.mute) {
			if !w.calm && w.chance(30) {
				// Nobody waits for it any more, and the one that leads takes it in all the same.
				w.fault("arrival passed on late")
				w.after(time.Duration(w.rng.IntN(400))*time.Second, func() {
					if err := w.control.authority.Arrive(w.ctx, n.id, hello); err != nil {
						w.trace("%s: a late arrival: %v", n.name, err)
					}
				})
			}
			return nil
		}
		if w.control.authority.Arrive(w.ctx, n.id, hello) != nil || f.confirm() != nil {
			return nil
		}
	}
	s := f.hub.Connect(n.id)
	if h, ok := host.Table().PeekOne(f.state.Latest(), n.id); !ok || !h.Up() {
		s.Close()
		return nil
	}
	return s
}

// disturb lets something go wrong with a controller that follows.
func (w *world) disturb() error {
	if len(w.followers) == 0 {
		return nil
	}
	f := w.followers[w.rng.IntN(len(w.followers))]
	long := w.clock.Add(time.Duration(1+w.rng.IntN(400)) * time.Second)
	switch w.rng.IntN(3) {
	case 0:
		w.fault("follower is alone")
		f.alone = long
		w.after(5*time.Second, f.letGo)
	case 1:
		w.fault("follower does not reach the leader")
		f.mute = long
	case 2:
		w.fault("follower stands still")
		f.dazed = long
	}
	if w.chance(300) {
		return w.pass(time.Duration(w.rng.IntN(300)) * time.Second)
	}
	return nil
}

// heal ends what is wrong with the controllers that follow.
func (w *world) heal() {
	for _, f := range w.followers {
		f.alone, f.mute, f.dazed = time.Time{}, time.Time{}, time.Time{}
	}
}

// turn has a host go to any controller the next time; nil is the one that leads.
func (n *node) turn() {
	n.at = nil
	if k := n.w.rng.IntN(len(n.w.followers) + 1); k > 0 {
		n.at = n.w.followers[k-1]
	}
}

// hub is of the controller that the host asks now.
func (n *node) hub() *host.Hub {
	if n.at == nil {
		return n.w.control.hub
	}
	return n.at.hub
}
