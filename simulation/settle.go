package simulation

import (
	"errors"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/operation"
)

// prompt is how long an operation may take once nothing goes wrong any more, whatever its deadline. A machine that has died is
// missed after host.Expect, and what waits for it fails 30 seconds later; a guest that does not listen is cut off after a minute.
const prompt = 80 * time.Second

// settle stops the faults and waits until everything is at rest, in bounded simulated time.
func (w *world) settle() error {
	const bound = 30 * time.Minute
	w.calm = true
	if err := w.mindControl(); err != nil {
		return err
	}
	for _, n := range w.nodes {
		n.cutUntil, n.failUntil, n.slowUntil, n.offUntil = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	}
	w.heal()
	if err := w.leaveNobodyAtTheDoor(); err != nil {
		return err
	}
	from := w.clock
	for w.clock.Sub(from) < bound {
		if err := w.enableAll(from); err != nil {
			return err
		}
		busy := true
		for busy {
			busy = w.work()
			for _, n := range w.nodes {
				busy = n.step() || busy
			}
		}
		if err := w.checkPrompt(from); err != nil {
			return err
		}
		waits := w.restless()
		if waits == "" {
			w.result.Settled = w.clock.Sub(from)
			return errors.Join(w.checkSafety(), w.checkReality())
		}
		w.result.For = waits
		w.clock = w.nextMoment()
		w.bark()
		if err := w.checkNoneTwice(); err != nil {
			return err
		}
	}
	return fmt.Errorf("not at rest after %v: %s", bound, w.restless())
}

// nextMoment is when something is next due, a second from now at the latest.
func (w *world) nextMoment() time.Time {
	next := w.clock.Add(time.Second)
	consider := func(at time.Time, ok bool) {
		if ok && at.After(w.clock) && at.Before(next) {
			next = at
		}
	}
	consider(w.control.reconciler.Due())
	for _, a := range w.alarms {
		consider(a.at, true)
	}
	for _, n := range w.nodes {
		if n.answers() {
			consider(n.agent.Due())
		}
	}
	return next
}

// checkPrompt is that nothing that was asked for waits for its deadline.
func (w *world) checkPrompt(calm time.Time) error {
	for o := range operation.Table().Peek(w.control.state.Latest(), "deadline", state.Range{}) {
		since := calm
		if o.CreatedAt.After(since) {
			since = o.CreatedAt
		}
		if took := w.clock.Sub(since); took > prompt {
			return fmt.Errorf("%s of %s %s goes on for %v without a fault, and would end by its deadline only; it waits for %q",
				o.Verb, o.TargetKind, o.TargetID, took.Round(time.Second), o.WaitingFor)
		}
	}
	return nil
}
