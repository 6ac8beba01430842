package alert

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

const (
	keepResolved = 30 * 24 * time.Hour
	mostKept     = 2000 // resolved ones
	firstRetry   = 10 * time.Second
	lastRetry    = time.Hour
	sendWithin   = 30 * time.Second
	rewordEvery  = time.Minute // at most: each time is a change of the state
)

// A Keeper raises, resolves and tells.
type Keeper struct {
	State   *state.State
	Facts   func() Facts
	Senders map[string]Sender // by the kind of target
	Cloud   string            // its name in notices
}

// Run looks, and tells, again and again until ctx ends. While another controller leads, that one does.
func (k *Keeper) Run(ctx context.Context, every time.Duration) {
	var wg sync.WaitGroup
	for _, work := range []func(context.Context) error{k.Look, k.Tell} { // a target that is slow to answer keeps nobody from looking
		wg.Go(func() { k.repeat(ctx, every, work) })
	}
	wg.Wait()
}

func (k *Keeper) repeat(ctx context.Context, every time.Duration, work func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if k.State.Leads() {
			if err := work(ctx); err != nil && ctx.Err() == nil {
				slog.WarnContext(ctx, "alerts were not all seen to; the next round tries again", "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Look raises what began to hold, resolves what does no more, and has what holds on say how it is now. What is as it was writes nothing.
func (k *Keeper) Look(ctx context.Context) error {
	if !alerts.Usable(k.State.Latest()) {
		return nil // the release before may take back over, and has none
	}
	facts := k.Facts()
	if !differs(k.State.Latest(), facts) {
		return nil
	}
	return k.State.Update(ctx, func(tx *state.Tx) error {
		found := look(tx, facts)
		for _, f := range found {
			if err := f.keep(tx, facts.Now); err != nil {
				return err
			}
		}
		for _, a := range Opened(tx) {
			if slices.ContainsFunc(found, a.is) || facts.unknown(tx, a) {
				continue
			}
			a.Resolved = tx.Now()
			for i := range a.Told {
				a.Told[i].Next, a.Told[i].Failures = time.Time{}, 0 // that it is over is news; and what it was may have kept us from the target
			}
			if err := alerts.Put(tx, a); err != nil {
				return err
			}
		}
		return forget(tx)
	})
}

func (a *Alert) is(f finding) bool { return a.Name == f.rule && a.Subject == f.subject }

// differs reports whether there is something to write, on a view: the writer is not held up by what is no news.
func differs(tx *state.Tx, facts Facts) bool {
	found := look(tx, facts)
	for _, f := range found {
		if a, is := alerts.Lookup(tx, "open", state.KeyOf(f.rule, f.subject)); !is || a.outdated(f, facts.Now) {
			return true
		}
	}
	for _, a := range Opened(tx) {
		if !slices.ContainsFunc(found, a.is) && !facts.unknown(tx, a) {
			return true
		}
	}
	for a := range alerts.Peek(tx, "resolved", state.Range{}) {
		return facts.Now.Sub(a.Resolved) > keepResolved || len(alerts.IDs(tx, "resolved", "")) > mostKept
	}
	return false
}

// keep writes an alert that began to hold. Of one that holds already it is written how it is now, and nobody is told of that.
func (f finding) keep(tx *state.Tx, now time.Time) error {
	a, open := alerts.Lookup(tx, "open", state.KeyOf(f.rule, f.subject))
	switch {
	case !open:
		a = &Alert{Meta: resource.Meta{ID: tx.NewID(), Name: f.rule}, Subject: f.subject, Text: f.text, Severity: f.severity}
	case a.outdated(f, now):
		a.Text, a.Worded = f.text, now
	default:
		return nil
	}
	return alerts.Put(tx, a)
}

// outdated reports whether an alert is to say something else from now on. A figure may change at every look.
func (a *Alert) outdated(f finding, now time.Time) bool {
	since := a.CreatedAt
	if a.Worded.After(since) {
		since = a.Worded
	}
	return a.Text != f.text && now.Sub(since) >= rewordEvery
}

// forget drops alerts that were resolved long ago.
func forget(tx *state.Tx) error {
	ids := alerts.IDs(tx, "resolved", "") // the oldest first
	for n, id := range ids {
		a, ok := alerts.PeekOne(tx, id)
		if !ok || len(ids)-n <= mostKept && tx.Now().Sub(a.Resolved) <= keepResolved {
			break
		}
		if err := alerts.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// A due notice is one that a target has not been told.
type due struct {
	alert  *Alert
	target *Target
	notice Notice
}

// Tell tells every target what it has not been told, one after the other, and what failed later again.
func (k *Keeper) Tell(ctx context.Context) error {
	var failures []error
	failed := map[resource.ID]bool{} // targets: what else they are due waits for the next round
	for _, d := range k.due(k.State.Latest(), k.State.Now()) {
		if ctx.Err() != nil {
			break
		}
		if failed[d.target.ID] {
			continue
		}
		err := k.send(ctx, d.target, d.notice)
		if err != nil {
			failed[d.target.ID] = true
			slog.WarnContext(ctx, "an alert was not told; it is tried again", "target", d.target.Name, "alert", d.alert.Name, "subject", d.alert.Subject, "err", err)
		}
		failures = append(failures, k.told(ctx, d, err))
	}
	return errors.Join(failures...)
}

func (k *Keeper) due(tx *state.Tx, now time.Time) []due {
	var all []due
	to := Targets(tx)
	if len(to) == 0 {
		return nil
	}
	for a := range alerts.All(tx) {
		for _, t := range to {
			told := a.told(t.ID)
			if now.Before(told.Next) || told.Resolved || a.Open() && told.Raised || !told.Raised && !a.isNewsTo(t, now) {
				continue
			}
			all = append(all, due{a, t, k.notice(a, told.Raised)})
		}
	}
	return all
}

func (a *Alert) told(target resource.ID) Told {
	for _, t := range a.Told {
		if t.TargetID == target {
			return t
		}
	}
	return Told{TargetID: target}
}

// newsFor is how long an alert that is over is told to a target that did not take it while it held.
const newsFor = 24 * time.Hour

// isNewsTo reports whether a target that has not heard of an alert is to be: while it holds, and also when it is over, if the target was there
// to be told and could not be. First that it was raised, then that it was resolved.
func (a *Alert) isNewsTo(t *Target, now time.Time) bool {
	return a.Open() || !t.CreatedAt.After(a.CreatedAt) && now.Sub(a.Resolved) < newsFor
}

// notice is what a target is to be told next of an alert.
func (k *Keeper) notice(a *Alert, raised bool) Notice {
	n := Notice{ID: a.ID, Event: "raised", Rule: a.Name, Subject: a.Subject, Text: a.Text, Severity: a.Severity, Raised: a.CreatedAt, Cloud: k.Cloud}
	if raised && !a.Open() {
		n.Event, n.Resolved = "resolved", a.Resolved
	}
	return n
}

func (k *Keeper) send(ctx context.Context, t *Target, n Notice) error {
	return send(ctx, k.Senders, t, n)
}

func send(ctx context.Context, senders map[string]Sender, t *Target, n Notice) error {
	sender := senders[t.Kind]
	if sender == nil {
		return fault.Errorf(fault.Invalid, "Nothing here can tell a target of kind %s.", t.Kind)
	}
	ctx, cancel := context.WithTimeout(ctx, sendWithin)
	defer cancel()
	return sender.Send(ctx, t, n)
}

// told records what became of a notice.
func (k *Keeper) told(ctx context.Context, d due, failed error) error {
	return k.State.Update(ctx, func(tx *state.Tx) error {
		a, ok := alerts.Find(tx, d.alert.ID)
		if !ok {
			return nil
		}
		t := a.told(d.target.ID)
		if failed != nil {
			t.Failures++
			t.Next = tx.Now().Add(min(firstRetry<<min(t.Failures-1, 10), lastRetry))
			t.Trouble = failed.Error()
		} else {
			t = Told{TargetID: t.TargetID, Raised: true, Resolved: d.notice.Event == "resolved"}
		}
		a.Told = slices.DeleteFunc(a.Told, func(was Told) bool { return was.TargetID == t.TargetID || !targets.Has(tx, was.TargetID) })
		a.Told = append(a.Told, t)
		return alerts.Put(tx, a)
	})
}

// Test tells one target that it is one, now, and says what came of it.
func (k *Keeper) Test(ctx context.Context, name string) error {
	t, err := Named(k.State.Latest(), name)
	if err != nil {
		return err
	}
	now := k.State.Now()
	return k.send(ctx, t, Notice{ID: resource.NewID(now, nil), Event: "test", Rule: "test", Text: "An operator asked whether this arrives. Nothing is wrong.",
		Severity: Warning, Raised: now, Cloud: k.Cloud})
}
