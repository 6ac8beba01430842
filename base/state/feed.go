package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

	bytes int // what keeping it may cost
}

// eventBytes estimates what an event keeps in memory, from the spelling of what it made: the object, which
// is larger than its spelling, and the event itself. What was there before is some earlier event's.
func eventBytes(value []byte) int { return 192 + 2*len(value) }

// feed keeps the newest changes, for watchers and for as-of reads.
type feed struct {
	keep      int
	keepBytes int

	mu      sync.Mutex
	events  []Event       // oldest first; guarded by mu
	bytes   int           // of all events; guarded by mu
	floor   Head          // all changes after this moment are kept; its time may be unknown; guarded by mu
	head    int64         // guarded by mu
	changed chan struct{} // closed and replaced at each append; guarded by mu

	restored chan struct{} // closed when what the engine remembers of before is here, or will not be
}

func newFeed(keep, keepBytes int, head Head) *feed {
	return &feed{keep: keep, keepBytes: keepBytes, floor: head, head: head.Revision, changed: make(chan struct{}), restored: make(chan struct{})}
}

// restoreAtLeast is how many transactions are read back at a start even when the feed keeps
// few; when it keeps many, as many as a quarter of its changes, for each has to be decoded.
const restoreAtLeast = 1024

// restoreFirst is how many transactions are read first, then those before, twice as many each time until there are enough: nobody knows before
// how large they are, and an engine may hold all that it was asked for in memory.
const restoreFirst = 16

// restore fills the feed with what the engine still remembers, the newest first, so that a watch can be resumed over a restart. It may run
// while changes are appended, and again after an error: it goes on where it was. An error that is damage would come again.
func (f *feed) restore(ctx context.Context, engine Engine, now *snapshot) error {
	head := now.head.Revision
	enough := max(f.keep/4, min(f.keep, restoreAtLeast))
	least := max(0, head-int64(enough))
	for n := restoreFirst; ; n *= 2 {
		until, changes, bytes := f.before(head)
		if until <= least || changes >= enough || bytes >= f.keepBytes/4 {
			return nil
		}
		since := max(least, until-int64(n))
		h := history{feed: &feed{keep: f.keep, keepBytes: f.keepBytes, floor: Head{Revision: since}}, now: now, until: until, newest: map[row2]resource.Object{}}
		done := errors.New("caught up")
		err := engine.Watch(ctx, since, func(b Batch) error {
			if err := h.add(b, since); err != nil {
				return damage{err}
			}
			if b.Head().Revision >= until {
				return done
			}
			return nil
		})
		switch {
		case errors.Is(err, ErrCompacted):
			return nil // what was read before is kept
		case !errors.Is(err, done):
			return fmt.Errorf("read the history: %w", err)
		}
		if !f.prepend(h.feed, until) || h.feed.floor.Revision != since {
			return nil // it keeps no more
		}
	}
}

// damage is an error of what was read, not of reading it.
type damage struct{ error }

func (d damage) Unwrap() error { return d.error }

// before is how far back the feed goes, and how many changes it has, and bytes of them, up to a revision.
func (f *feed) before(head int64) (floor int64, changes, bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.Revision > head {
			break
		}
		changes++
		bytes += e.bytes
	}
	return f.floor.Revision, changes, bytes
}

// restoreAll is restore until it is done, however often the engine has to be asked again: a controller may well begin while none leads. It gives
// up when ctx ends, and what is damaged.
func (f *feed) restoreAll(ctx context.Context, engine Engine, now *snapshot) {
	defer close(f.restored)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := f.restore(ctx, engine, now)
		if err == nil || ctx.Err() != nil {
			return
		}
		if errors.As(err, new(damage)) { // the state is whole without it
			slog.WarnContext(ctx, "the history of before this start is not there: watches cannot be resumed, and it cannot be looked at", "err", err)
			return
		}
		slog.WarnContext(ctx, "the history of before this start could not be read yet", "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// prepend adds what came before the feed's oldest change, up to a revision; false if it begins elsewhere by now.
func (f *feed) prepend(before *feed, until int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.floor.Revision != until {
		return false
	}
	f.events, f.bytes, f.floor = append(before.events, f.events...), f.bytes+before.bytes, before.floor
	return true
}

// Restored waits until what came after a revision is there, or all that the engine remembers of before this start was read: see
// Options.LateHistory.
func (s *State) Restored(ctx context.Context, since int64) error {
	if floor, _, _ := s.feed.before(0); since >= floor {
		return nil
	}
	select {
	case <-s.feed.restored:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// history turns watched batches into events. An object that the tables, or another
// event, have already is not decoded again but shared, as among live events.
type history struct {
	feed   *feed // nobody else's yet
	now    *snapshot
	until  int64                    // what comes after this revision is there already
	newest map[row2]resource.Object // as the events so far left it; nil: deleted
}

func (h *history) add(b Batch, since int64) error {
	if b.Base >= h.until {
		return nil
	}
	records := make([]Record, 0, len(b.Earlier)+len(b.Records))
	records = append(append(records, b.Earlier...), b.Records...)
	sort.SliceStable(records, func(i, j int) bool { return records[i].Tx < records[j].Tx })
	before := map[row2]Record{} // the records that know what was there before the batch
	for _, r := range b.Records {
		if def := defOf(r.Kind); def != nil {
			before[row2{def.slot, r.ID}] = r
		}
	}
	for _, r := range records {
		def := defOf(r.Kind)
		if def == nil {
			return fmt.Errorf("the history has objects of unknown kind %q", r.Kind)
		}
		tx := b.Txs[r.Tx]
		at := row2{def.slot, r.ID}
		was, known := h.newest[at]
		if from := before[at]; !known && from.Before != nil {
			var err error
			if was, err = decodeRecord(Record{Kind: r.Kind, ID: r.ID, Version: from.BeforeVersion, Value: from.Before}); err != nil {
				return err
			}
		}
		is, err := h.object(def, r, tx.Revision)
		if err != nil {
			return err
		}
		h.newest[at] = is
		if tx.Revision > since && tx.Revision <= h.until {
			h.feed.add(Event{tx.Revision, tx.Time, tx.Cause, r.Kind, r.ID, was, is, eventBytes(r.Value)})
		}
	}
	h.feed.trim()
	return nil
}

// object gives what a record of a revision made; nil if it deleted.
func (h *history) object(def *tableDef, r Record, revision int64) (resource.Object, error) {
	if r.Value == nil {
		return nil, nil
	}
	if now, ok := h.now.tables[def.slot].rows.Get(row{id: r.ID}); ok && now.obj.GetMeta().Revision == revision {
		return now.obj, nil
	}
	return decodeRecord(r)
}

// append adds the transactions' changes. It calls publish in between, so that nobody finds
// an event of what cannot be read yet, nor reads what has no event yet.
func (f *feed) append(txs []*Tx, publish func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tx := range txs {
		for _, c := range tx.changes {
			f.add(Event{tx.revision, tx.now, tx.cause, c.def.kind, c.id, c.before, c.after, eventBytes(c.value)})
		}
		f.head = tx.revision
	}
	f.trim()
	publish()
	close(f.changed)
	f.changed = make(chan struct{})
}

// extend is append for another writer's events, which reach as far as head.
func (f *feed) extend(events []Event, head Head, publish func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		f.add(e)
	}
	f.head = head.Revision
	f.trim()
	publish()
	close(f.changed)
	f.changed = make(chan struct{})
}

// reset forgets everything before head.
func (f *feed) reset(head Head, publish func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events, f.bytes, f.floor, f.head = nil, 0, head, head.Revision
	publish()
	close(f.changed)
	f.changed = make(chan struct{})
}

// add appends one event. The caller holds mu, or nobody else knows the feed yet.
func (f *feed) add(e Event) {
	if e.begins() {
		return
	}
	f.events = append(f.events, e)
	f.bytes += e.bytes
}

// trim forgets the oldest changes once there are a quarter too many, or they are a quarter too large, in
// whole transactions. The caller holds mu, or nobody else knows the feed yet.
func (f *feed) trim() {
	if len(f.events) <= f.keep+f.keep/4 && f.bytes <= f.keepBytes+f.keepBytes/4 {
		return
	}
	cut := 0
	for cut < len(f.events) && (len(f.events)-cut > f.keep || f.bytes > f.keepBytes || f.events[cut].Revision == f.floor.Revision) {
		f.floor = Head{f.events[cut].Revision, f.events[cut].Time}
		f.bytes -= f.events[cut].bytes
		cut++
	}
	kept := make([]Event, len(f.events)-cut, f.keep+f.keep/2)
	copy(kept, f.events[cut:])
	f.events = kept
}

// after gives up to atMost events above a revision, and a channel that is closed when there are more.
func (f *feed) after(since int64, atMost int) ([]Event, int64, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if since < f.floor.Revision {
		return nil, since, nil, ErrCompacted
	}
	from := sort.Search(len(f.events), func(i int) bool { return f.events[i].Revision > since })
	to := min(len(f.events), from+atMost)
	for to > from && to < len(f.events) && f.events[to].Revision == f.events[to-1].Revision {
		to++ // never cut a transaction in two
	}
	events := f.events[from:to:to]
	at := max(since, f.head)
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
// was listed, and nothing is missed or seen twice. Soon after a start an older one may seem to come too late: see Restored.
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

// past is what a context with WithAsOf carries: the moment, and the state of then once it was asked for. A
// request reads it as often as it likes and pays once.
type past struct {
	moment
	once chan struct{} // holds one token: who takes it builds the view
	tx   *Tx           // nil until it was built; whoever holds the token may look
}

func withPast(ctx context.Context, m moment) context.Context {
	p := &past{moment: m, once: make(chan struct{}, 1)}
	p.once <- struct{}{}
	return context.WithValue(ctx, asOfKey{}, p)
}

// WithAsOf returns a context in which View shows the state as of a revision.
func WithAsOf(ctx context.Context, revision int64) context.Context {
	return withPast(ctx, moment{revision: revision})
}

// WithAsOfTime returns a context in which View shows the state as of a time.
func WithAsOfTime(ctx context.Context, at time.Time) context.Context {
	return withPast(ctx, moment{time: at})
}

func asOf(ctx context.Context) *past {
	p, _ := ctx.Value(asOfKey{}).(*past)
	return p
}

// pastViews is how many views of the past are built at once: each undoes up to all of the history.
const pastViews = 2

// viewPast gives the state as of the moment that ctx asks for.
func (s *State) viewPast(ctx context.Context, p *past) (*Tx, error) {
	select {
	case <-p.once:
		defer func() { p.once <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.tx == nil {
		select {
		case s.building <- struct{}{}:
			defer func() { <-s.building }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		var err error
		if p.tx, err = s.viewAt(ctx, p.moment); err != nil {
			return nil, err
		}
	}
	view := *p.tx
	return &view, nil
}

// A Past is the state of an earlier moment, which can be moved on through the changes that came then. To go through a
// long history with it costs what one view of the past costs, and not one for each step. It belongs to one goroutine.
type Past struct {
	tx  *Tx
	own []bool // by slot: the table is no one else's
	s   *State
}

// Past gives the state right after a revision. Errors as of a View with WithAsOf.
func (s *State) Past(ctx context.Context, revision int64) (*Past, error) {
	select {
	case s.building <- struct{}{}:
		defer func() { <-s.building }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	tx, err := s.viewAt(ctx, moment{revision: revision})
	if err != nil {
		return nil, err
	}
	return &Past{tx: tx, own: make([]bool, len(tx.tables)), s: s}, nil
}

// View is the state that the Past is at. It is good until the Past moves on.
func (p *Past) View() *Tx { return p.tx }

// Redo moves on through all events that come next.
func (p *Past) Redo(events []Event) {
	for _, e := range events {
		def := defOf(e.Kind)
		if !p.own[def.slot] {
			p.own[def.slot] = true
			p.s.forkMu.Lock()
			p.tx.tables[def.slot] = p.tx.tables[def.slot].fork()
			p.s.forkMu.Unlock()
		}
		p.tx.tables[def.slot].apply(def, e.ID, e.Before, e.After)
		p.tx.head = Head{e.Revision, e.Time}
		p.tx.now, p.tx.revision = e.Time, e.Revision
	}
}

// viewAt forks the newest snapshot and undoes what came after the moment.
func (s *State) viewAt(ctx context.Context, m moment) (*Tx, error) {
	if err := s.Restored(ctx, m.revision); err != nil {
		return nil, err
	}
	s.feed.mu.Lock()
	now := s.published.Load() // the events reach exactly as far
	undo, head, err := s.feed.since(m, now.head)
	s.feed.mu.Unlock()
	if err != nil {
		return nil, err
	}
	tx := &Tx{tables: s.fork(now, undo), head: head, now: head.Time, revision: head.Revision}
	for i := len(undo) - 1; i >= 0; i-- {
		if i%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
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

// since gives the events after a moment, and where the state stood then. The caller holds mu.
func (f *feed) since(m moment, head Head) ([]Event, Head, error) {
	gone := fault.Errorf(fault.Gone, "The state of that time is no longer kept.")
	if m.time.IsZero() && m.revision > head.Revision {
		return nil, head, fault.Errorf(fault.Invalid, "Revision %d is in the future; the newest is %d.", m.revision, head.Revision)
	}
	from := sort.Search(len(f.events), func(i int) bool {
		if m.time.IsZero() {
			return f.events[i].Revision > m.revision
		}
		return f.events[i].Time.After(m.time)
	})
	was := f.floor
	if from > 0 {
		was = Head{f.events[from-1].Revision, f.events[from-1].Time}
	}
	switch {
	case m.time.IsZero() && m.revision < f.floor.Revision:
		return nil, head, gone
	case m.time.IsZero():
		was.Revision = m.revision
	case from == 0 && f.floor.Revision > 0 && (f.floor.Time.IsZero() || m.time.Before(f.floor.Time)):
		return nil, head, gone
	}
	if from == len(f.events) && !m.time.IsZero() {
		was = head
	}
	return f.events[from:], was, nil
}
