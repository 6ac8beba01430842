package state

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// An Event is one change of one object. Before and After are shared with every other
// reader: look, do not touch.
type Event struct {
	Revision int64
	Time     time.Time
	Cause    Cause
	Kind     string
	ID       resource.ID
	Before   resource.Object // nil: it was made
	After    resource.Object // nil: it was deleted
}

// feed keeps the newest changes, for watchers and for as-of reads.
type feed struct {
	keep int

	mu      sync.Mutex
	events  []Event       // oldest first; guarded by mu
	floor   int64         // changes above this revision are all kept; guarded by mu
	head    int64         // guarded by mu
	changed chan struct{} // closed and replaced at each append; guarded by mu
}

func newFeed(keep int, head int64) *feed {
	return &feed{keep: keep, floor: head, head: head, changed: make(chan struct{})}
}

// restore fills the feed with what the engine still remembers, so that a watch
// can be resumed over a restart.
func (f *feed) restore(ctx context.Context, engine Engine, head Head) error {
	if head.Revision == 0 {
		return nil
	}
	done := errors.New("caught up")
	for since := max(0, head.Revision-int64(f.keep)); ; {
		f.events, f.floor = nil, since
		err := engine.Watch(ctx, since, func(b Batch) error {
			events, err := eventsOf(b)
			if err != nil {
				return err
			}
			for _, e := range events {
				if e.Revision > since && e.Revision <= head.Revision {
					f.events = append(f.events, e)
				}
			}
			if b.Head().Revision >= head.Revision {
				return done
			}
			return nil
		})
		switch {
		case errors.Is(err, done):
			f.trim()
			return nil
		case errors.Is(err, ErrCompacted):
			// Keep half of what was hoped for; in the end nothing, which is no error.
			since += max(1, (head.Revision-since)/2)
			if since >= head.Revision {
				f.events, f.floor = nil, head.Revision
				return nil
			}
		default:
			return fmt.Errorf("read the history: %w", err)
		}
	}
}

// eventsOf gives the changes of a watched batch, oldest first.
func eventsOf(b Batch) ([]Event, error) {
	events := make([]Event, 0, len(b.Records)+len(b.Earlier))
	type version struct {
		version int
		value   []byte
	}
	now := map[row2]version{} // of the objects that Earlier has, as the next change finds them
	add := func(r Record) error {
		def := defOf(r.Kind)
		if def == nil {
			return fmt.Errorf("the history has objects of unknown kind %q", r.Kind)
		}
		at := row2{def.slot, r.ID}
		before, ok := now[at]
		if !ok {
			before = version{r.BeforeVersion, r.Before}
		}
		e, err := eventOf(b.Txs[r.Tx], def, r, before.version, before.value)
		if err != nil {
			return err
		}
		now[at] = version{r.Version, r.Value}
		events = append(events, e)
		return nil
	}
	// What was there before the batch stands in an object's record.
	if len(b.Earlier) > 0 {
		for _, r := range b.Records {
			if def := defOf(r.Kind); def != nil {
				now[row2{def.slot, r.ID}] = version{r.BeforeVersion, r.Before}
			}
		}
	}
	for _, r := range b.Earlier {
		if err := add(r); err != nil {
			return nil, err
		}
	}
	for _, r := range b.Records {
		if err := add(r); err != nil {
			return nil, err
		}
	}
	sort.SliceStable(events, func(i, j int) bool { return events[i].Revision < events[j].Revision })
	return events, nil
}

func eventOf(tx TxInfo, def *tableDef, r Record, beforeVersion int, before []byte) (Event, error) {
	e := Event{Revision: tx.Revision, Time: tx.Time, Cause: tx.Cause, Kind: r.Kind, ID: r.ID}
	var err error
	if before != nil {
		if e.Before, err = def.decode(beforeVersion, before); err != nil {
			return e, fmt.Errorf("decode %s %s: %w", r.Kind, r.ID, err)
		}
	}
	if r.Value != nil {
		if e.After, err = def.decode(r.Version, r.Value); err != nil {
			return e, fmt.Errorf("decode %s %s: %w", r.Kind, r.ID, err)
		}
	}
	return e, nil
}

func (f *feed) append(txs []*Tx) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tx := range txs {
		for _, c := range merge(tx.changes) {
			f.events = append(f.events, Event{tx.revision, tx.now, tx.cause, c.def.kind, c.id, c.before, c.after})
		}
		f.head = tx.revision
	}
	f.trim()
	close(f.changed)
	f.changed = make(chan struct{})
}

// trim forgets the oldest changes once there are a quarter too many, in whole
// transactions. The caller holds mu, or nobody else knows the feed yet.
func (f *feed) trim() {
	if len(f.events) <= f.keep+f.keep/4 {
		return
	}
	cut := len(f.events) - f.keep
	f.floor = f.events[cut-1].Revision
	for cut < len(f.events) && f.events[cut].Revision == f.floor {
		cut++
	}
	kept := make([]Event, len(f.events)-cut, f.keep+f.keep/2)
	copy(kept, f.events[cut:])
	f.events = kept
}

// after gives up to max events above a revision, and a channel that is closed when there are more.
func (f *feed) after(since int64, max int) ([]Event, int64, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if since < f.floor {
		return nil, since, nil, ErrCompacted
	}
	from := sort.Search(len(f.events), func(i int) bool { return f.events[i].Revision > since })
	to := min(len(f.events), from+max)
	for to > from && to < len(f.events) && f.events[to].Revision == f.events[to-1].Revision {
		to++ // never cut a transaction in two
	}
	events := f.events[from:to:to]
	at := f.head
	if to < len(f.events) {
		at = f.events[to-1].Revision
	}
	return events, at, f.changed, nil
}

// A Watcher follows the changes from some revision on. It belongs to one goroutine.
type Watcher struct {
	feed *feed
	at   int64
}

// Watch follows every change with a revision above since. Use Tx.Revision of the view that
// was listed, and nothing is missed or seen twice.
func (s *State) Watch(since int64) *Watcher { return &Watcher{s.feed, since} }

// Poll gives the changes since the last call, at once, whole transactions at a time; none
// if there are none. ErrCompacted: the watcher was too slow, or came too late: list again.
func (w *Watcher) Poll() ([]Event, error) {
	events, at, _, err := w.feed.after(w.at, 1024)
	if err == nil {
		w.at = at
	}
	return events, err
}

// Next is Poll that waits until there is something.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	for {
		events, at, changed, err := w.feed.after(w.at, 1024)
		if err != nil {
			return nil, err
		}
		w.at = at
		if len(events) > 0 {
			return events, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Revision is how far the watcher has come.
func (w *Watcher) Revision() int64 { return w.at }

type asOfKey struct{}

type moment struct {
	revision int64
	time     time.Time
}

// WithAsOf returns a context in which View shows the state as of a revision.
func WithAsOf(ctx context.Context, revision int64) context.Context {
	return context.WithValue(ctx, asOfKey{}, moment{revision: revision})
}

// WithAsOfTime returns a context in which View shows the state as of a time.
func WithAsOfTime(ctx context.Context, at time.Time) context.Context {
	return context.WithValue(ctx, asOfKey{}, moment{time: at})
}

func asOf(ctx context.Context) (moment, bool) {
	m, ok := ctx.Value(asOfKey{}).(moment)
	return m, ok
}

// viewAt forks the newest snapshot and undoes what came after the moment.
func (s *State) viewAt(m moment) (*Tx, error) {
	now := s.published.Load()
	undo, head, err := s.feed.since(m, now.head)
	if err != nil {
		return nil, err
	}
	tx := &Tx{tables: s.fork(now, undo), head: head, now: head.Time, revision: head.Revision}
	for i := len(undo) - 1; i >= 0; i-- {
		e := undo[i]
		def := defOf(e.Kind)
		tx.tables[def.slot].apply(def, e.ID, e.After, e.Before)
	}
	return tx, nil
}

// fork copies the tables that the events touch.
func (s *State) fork(at *snapshot, touched []Event) []*tableData {
	tables := make([]*tableData, len(at.tables))
	copy(tables, at.tables)
	s.forkMu.Lock()
	defer s.forkMu.Unlock()
	done := map[string]bool{}
	for _, e := range touched {
		if !done[e.Kind] {
			done[e.Kind] = true
			slot := defOf(e.Kind).slot
			tables[slot] = tables[slot].fork()
		}
	}
	return tables
}

// since gives the events after a moment and not after head.
func (f *feed) since(m moment, head Head) ([]Event, Head, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gone := fault.Errorf(fault.Gone, "The state of that time is no longer kept.")
	after := func(e Event) bool { return e.Revision > m.revision }
	if !m.time.IsZero() {
		after = func(e Event) bool { return e.Time.After(m.time) }
		if len(f.events) == 0 && m.time.Before(head.Time) || len(f.events) > 0 && m.time.Before(f.events[0].Time) && f.floor > 0 {
			return nil, head, gone
		}
	} else if m.revision < f.floor {
		return nil, head, gone
	} else if m.revision > head.Revision {
		return nil, head, fault.Errorf(fault.Invalid, "Revision %d is in the future; the newest is %d.", m.revision, head.Revision)
	}
	from := sort.Search(len(f.events), func(i int) bool { return after(f.events[i]) })
	to := sort.Search(len(f.events), func(i int) bool { return f.events[i].Revision > head.Revision })
	if from >= to {
		return nil, head, nil
	}
	was := Head{Revision: f.events[from].Revision - 1, Time: f.events[from].Time}
	if from > 0 {
		was.Time = f.events[from-1].Time
	}
	return f.events[from:to:to], was, nil
}
