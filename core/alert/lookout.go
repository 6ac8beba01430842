package alert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/durable"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// NoLeader is the rule of which each controller judges by itself, for there is nobody else to.
const NoLeader = "no-leader"

const (
	leaderlessFor = time.Minute      // far longer than any change of who leads takes
	ledFor        = 10 * time.Second // before it is over
	blinkAtMost   = 30 * time.Second // a longer time without a look says nothing about what was meanwhile
)

// A Lookout is one controller that looks whether any leads, and tells the targets when for too long none has: by itself, for a Keeper
// needs a leader to raise anything. Whom it tells, and what it has told, is in a file of this controller's, so that one that
// is started while no other is there tells it, too, and nobody is told twice.
type Lookout struct {
	Controller string            // its name
	Cloud      string            // as a Keeper's
	Senders    map[string]Sender // by the kind of target

	file string

	mu     sync.Mutex
	led    func(context.Context) error // see Ask; guarded by mu
	state  *state.State                // guarded by mu
	since  time.Time                   // no leader was seen since; zero while there is one; guarded by mu
	back   time.Time                   // one is seen since; zero while there is none; guarded by mu
	looked time.Time                   // guarded by mu
	kept   keptOutages                 // guarded by mu
}

// A keptOutages is what outlives the process.
type keptOutages struct {
	Targets []Target // as last known
	Outages []outage // those of which somebody has still to be told, the oldest first
}

// An outage is a time in which no controller led.
type outage struct {
	ID       resource.ID
	Since    time.Time
	Raised   time.Time
	Resolved time.Time `json:",omitzero"`
	Text     string
	Told     []Told
}

// OpenLookout takes up what an earlier process of this controller knew.
func OpenLookout(file string) (*Lookout, error) {
	l := &Lookout{file: file}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &l.kept); err != nil { // nothing else hangs on it
		slog.Warn("could not read who is to be told that no controller leads; that is known again as soon as one does", "file", file, "err", err)
		l.kept = keptOutages{}
	}
	return l, nil
}

// Ask has it ask led from now on, which reports why no controller leads as far as this one can see. Before it knows whom to ask it judges nothing.
func (l *Lookout) Ask(led func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.led = led
}

// Learn has it take its targets from this state from now on.
func (l *Lookout) Learn(s *state.State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
}

// Run looks, and tells, until ctx ends.
func (l *Lookout) Run(ctx context.Context, every time.Duration) {
	var wg sync.WaitGroup
	for _, work := range []func(context.Context) error{l.look, l.tell} { // a target that is slow to answer keeps nobody from looking
		wg.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for failing := false; ctx.Err() == nil; {
				err := work(ctx)
				if err != nil && !failing && ctx.Err() == nil {
					slog.WarnContext(ctx, "whether a controller leads was not all seen to; it is tried again", "err", err)
				}
				failing = err != nil
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
}

// Leaderless is for how long this controller has seen none that leads; 0 while it does.
func (l *Lookout) Leaderless() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() {
		return 0
	}
	return time.Since(l.since)
}

// Opened is the alert that holds now; nil if there is none.
func (l *Lookout) Opened() *Alert {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open()
	if o == nil {
		return nil
	}
	return &Alert{Meta: resource.Meta{ID: o.ID, Name: NoLeader, CreatedAt: o.Raised}, Subject: l.Controller, Text: o.Text, Severity: Critical, Told: slices.Clone(o.Told)}
}

// open is the outage that goes on; nil if there is none. mu is held.
func (l *Lookout) open() *outage {
	if n := len(l.kept.Outages); n > 0 && l.kept.Outages[n-1].Resolved.IsZero() {
		return &l.kept.Outages[n-1]
	}
	return nil
}

func (l *Lookout) look(ctx context.Context) error {
	l.mu.Lock()
	led := l.led
	l.mu.Unlock()
	if led == nil {
		return nil
	}
	why := led(ctx)
	if ctx.Err() != nil {
		return nil // this controller is being ended: it says nothing about others
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.looked) > blinkAtMost { // the first time, or the machine stood still
		l.since, l.back = time.Time{}, time.Time{}
	}
	l.looked = now
	news := l.learn()
	switch o := l.open(); {
	case why == nil:
		l.since = time.Time{}
		if l.back.IsZero() {
			l.back = now
		}
		if o != nil && now.Sub(l.back) >= ledFor {
			o.Resolved, news = now.UTC(), true
			for i := range o.Told {
				o.Told[i].Next, o.Told[i].Failures = time.Time{}, 0 // what kept the controllers from each other may have kept us from the targets
			}
			slog.InfoContext(ctx, "a controller leads again", "since", o.Since)
		}
	default:
		l.back = time.Time{}
		if l.since.IsZero() {
			l.since = now
		}
		if o == nil && now.Sub(l.since) >= leaderlessFor {
			news = true
			var told []Told // nothing yet
			for _, t := range l.kept.Targets {
				told = append(told, Told{TargetID: t.ID})
			}
			l.kept.Outages = append(l.kept.Outages, outage{ID: resource.NewID(now, nil), Since: l.since.UTC(), Raised: now.UTC(), Told: told,
				Text: fmt.Sprintf("The controller %s has seen no controller that leads since %s: nothing can be changed, and what it shows may be old. Guests run on. "+
					"Most of the controllers have to run and reach each other: see unkai status on each of them.", l.Controller, l.since.UTC().Format(time.RFC3339))})
			slog.ErrorContext(ctx, "no controller leads", "since", l.since, "err", why)
		}
	}
	if !news {
		return nil
	}
	return l.save()
}

// learn takes in who is to be told, and reports whether that is news. mu is held.
func (l *Lookout) learn() bool {
	if l.state == nil {
		return false
	}
	tx := l.state.Latest()
	if tx.Revision() == 0 {
		return false // it has not come yet
	}
	var now []Target
	for _, t := range Targets(tx) {
		now = append(now, *t)
	}
	if slices.EqualFunc(now, l.kept.Targets, func(a, b Target) bool { return a.ID == b.ID && a.Revision == b.Revision }) {
		return false
	}
	l.kept.Targets = now
	return true
}

// save has what is to outlive the process on disk. mu is held.
func (l *Lookout) save() error {
	text, err := json.MarshalIndent(l.kept, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(l.file, text, 0o600) // a target's secret is in it
}

// A telling is one notice to one target.
type telling struct {
	target Target
	notice Notice
}

// due is what is to be told now; what nobody waits for any more is forgotten.
func (l *Lookout) due(now time.Time) (all []telling, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.kept.Outages)
	l.kept.Outages = slices.DeleteFunc(l.kept.Outages, func(o outage) bool {
		return !o.Resolved.IsZero() && !slices.ContainsFunc(l.kept.Targets, func(t Target) bool { return o.isNewsTo(&t, now) })
	})
	if len(l.kept.Outages) != before {
		err = l.save()
	}
	for _, o := range l.kept.Outages {
		for _, t := range l.kept.Targets {
			told := o.told(t.ID)
			if now.Before(told.Next) || !o.isNewsTo(&t, now) || told.Raised && o.Resolved.IsZero() {
				continue
			}
			n := Notice{ID: o.ID, Event: "raised", Rule: NoLeader, Subject: l.Controller, Text: o.Text, Severity: Critical, Raised: o.Raised, Cloud: l.Cloud}
			if told.Raised {
				n.Event, n.Resolved = "resolved", o.Resolved
			}
			all = append(all, telling{t, n})
		}
	}
	return all, err
}

// isNewsTo reports whether a target waits for something of an outage, as of an Alert's: while it goes on, and for a day after, that it began and then that
// it is over, if the target was known when it began, or has heard of that.
func (o *outage) isNewsTo(t *Target, now time.Time) bool {
	known := slices.IndexFunc(o.Told, func(told Told) bool { return told.TargetID == t.ID })
	return o.Resolved.IsZero() || known >= 0 && !o.Told[known].Resolved && now.Sub(o.Resolved) < newsFor
}

func (o *outage) told(target resource.ID) Told { return (&Alert{Told: o.Told}).told(target) }

// tell tells everybody at once: who does not answer, as behind the network that failed, holds up nobody.
func (l *Lookout) tell(ctx context.Context) error {
	all, err := l.due(time.Now())
	failures := make([]error, len(all))
	var wg sync.WaitGroup
	for i, t := range all {
		wg.Go(func() {
			failed := send(ctx, l.Senders, &t.target, t.notice)
			if ctx.Err() != nil && failed != nil {
				return
			}
			if failed != nil {
				slog.WarnContext(ctx, "an alert was not told; it is tried again", "target", t.target.Name, "alert", NoLeader, "err", failed)
			}
			failures[i] = l.toldOf(t, failed, time.Now())
		})
	}
	wg.Wait()
	return errors.Join(append(failures, err)...)
}

// toldOf records what became of a notice.
func (l *Lookout) toldOf(is telling, failed error, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.kept.Outages {
		o := &l.kept.Outages[i]
		if o.ID != is.notice.ID {
			continue
		}
		t := o.told(is.target.ID)
		if failed != nil {
			t.Failures++
			t.Next, t.Trouble = now.UTC().Add(min(firstRetry<<min(t.Failures-1, 10), lastRetry)), failed.Error()
		} else {
			t = Told{TargetID: t.TargetID, Raised: true, Resolved: is.notice.Event == "resolved"}
		}
		o.Told = append(slices.DeleteFunc(o.Told, func(was Told) bool { return was.TargetID == t.TargetID }), t)
	}
	return l.save()
}
