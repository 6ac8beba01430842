package state

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A State leads, and is then the one writer, or it follows: it takes in what another process commits, and has its reads,
// watches and history a moment later. Its role changes in place, so that whoever holds it need not know.

// NotLeading is the fault of an Update where another controller leads.
func NotLeading() error {
	return fault.Errorf(fault.Unavailable, "This controller does not lead now. Try again soon.").WithCode("not-leading")
}

// Leads reports whether this State is the writer, as far as it knows.
func (s *State) Leads() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term != 0
}

// Deposed is closed when this State no longer leads. It is closed already if it does not lead.
func (s *State) Deposed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deposed
}

// Follow takes in what the writer commits, until ctx ends or something fails; then its error says what. It is for a State that
// does not lead, and leaves it as it was at some revision, so that it can be called again.
func (s *State) Follow(ctx context.Context) error {
	s.role.Lock()
	defer s.role.Unlock()
	if err := s.settled(); err != nil {
		return err
	}
	err := s.engine.Watch(ctx, s.live.head.Revision, s.takeIn)
	if errors.Is(err, ErrCompacted) {
		// Too far behind: begin anew. Watchers are told so.
		if err := s.reload(ctx); err != nil {
			return err
		}
		err = s.engine.Watch(ctx, s.live.head.Revision, s.takeIn)
	}
	return err
}

// settled waits until the transactions of a leadership that is over have ended: the tables are not theirs any more then.
func (s *State) settled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.leading {
		s.quiet.Wait()
	}
	switch {
	case s.broken != nil:
		return s.broken
	case s.term != 0:
		return errors.New("this state leads")
	}
	return nil
}

var errCaughtUp = errors.New("caught up")

// Lead makes this State the writer: it fences whoever led before, and takes in all that they committed. It waits for
// a Follow to end: end that first.
func (s *State) Lead(ctx context.Context) error {
	s.role.Lock()
	defer s.role.Unlock()
	if s.Leads() {
		return nil
	}
	if err := s.settled(); err != nil {
		return err
	}
	term, err := s.engine.Lead(ctx)
	if err != nil {
		return fmt.Errorf("become the writer: %w", err)
	}
	head, err := s.engine.Head(ctx) // nobody moves it any more
	if err != nil {
		return fmt.Errorf("find how far the state has come: %w", err)
	}
	if head.Revision > s.live.head.Revision {
		err := s.engine.Watch(ctx, s.live.head.Revision, func(b Batch) error {
			if err := s.takeIn(b); err != nil {
				return err
			}
			if s.live.head.Revision >= head.Revision {
				return errCaughtUp
			}
			return nil
		})
		if errors.Is(err, ErrCompacted) {
			err = s.reload(ctx)
		}
		if err != nil && !errors.Is(err, errCaughtUp) {
			return fmt.Errorf("catch up: %w", err)
		}
	}
	// IDs of this writer come after those of the ones before, whatever they counted up within a millisecond.
	s.clock.now(s.live.head.Time.Add(time.Millisecond))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return unavailable()
	}
	s.term, s.deposed = term, make(chan struct{})
	return nil
}

// Retire stops accepting changes and returns when those that were accepted are stored: then another is to lead. Until it does, or for
// good if it never will, this State does not; Lead makes it lead again.
func (s *State) Retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == 0 {
		return
	}
	s.retiring = true
	for s.leading {
		s.quiet.Wait()
	}
	s.retiring = false
	s.depose()
}

// Resign ends a leadership that is lost: what is not stored yet is refused.
func (s *State) Resign() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.depose()
}

// depose ends the leadership. The caller holds mu.
func (s *State) depose() {
	if s.term != 0 {
		s.term = 0
		close(s.deposed)
	}
}

// reload begins anew from what the engine has.
func (s *State) reload(ctx context.Context) error {
	l := newLoader()
	head, err := s.engine.Load(ctx, l.add)
	tables, failed := l.finish()
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("load the state: %w", err)
	}
	if err := s.keepTo(mayRead(tables, head, s.first)); err != nil {
		return err
	}
	s.live = &snapshot{head, tables}
	s.feed.reset(head, func() { s.publish(nil) })
	return nil
}

// keepTo ends the State for good with an error: what others write it will never be able to read.
func (s *State) keepTo(err error) error {
	if err != nil {
		s.mu.Lock()
		s.stop(err)
		s.mu.Unlock()
	}
	return err
}

// takeIn applies another writer's batch to the tables, and shows it.
func (s *State) takeIn(b Batch) error {
	if b.Base != s.live.head.Revision {
		return fmt.Errorf("a batch follows revision %d, and this state is at %d", b.Base, s.live.head.Revision)
	}
	records := make([]Record, 0, len(b.Earlier)+len(b.Records))
	records = append(append(records, b.Earlier...), b.Records...)
	sort.SliceStable(records, func(i, j int) bool { return records[i].Tx < records[j].Tx })
	objects := make([]resource.Object, len(records))
	for i, r := range records { // before anything is touched
		if defOf(r.Kind) == nil {
			return s.keepTo(fmt.Errorf("%w: the writer is of a newer release, and makes objects of kind %q", ErrLevel, r.Kind))
		}
		if r.Value == nil {
			continue
		}
		var err error
		if objects[i], err = decodeRecord(r); err != nil {
			return err
		}
		if l, ok := objects[i].(*levelRecord); ok {
			if err := release.Own.At(l.Level); err != nil {
				return s.keepTo(fmt.Errorf("%w: %w", ErrLevel, err))
			}
		}
	}
	events := make([]Event, 0, len(records))
	dirty := map[int]bool{}
	for i, r := range records {
		def, tx := defOf(r.Kind), b.Txs[r.Tx]
		data := s.live.tables[def.slot]
		was, _ := data.rows.Get(row{id: r.ID})
		if was.obj == nil && objects[i] == nil {
			continue // made and deleted within the batch
		}
		data.apply(def, r.ID, was.obj, objects[i])
		dirty[def.slot] = true
		events = append(events, Event{tx.Revision, tx.Time, tx.Cause, r.Kind, r.ID, was.obj, objects[i], eventBytes(r.Value)})
	}
	s.live.head = b.Head()
	s.feed.extend(events, s.live.head, func() { s.publish(dirty) })
	return nil
}

// confirming asks the engine how far the state has come, once for everybody who wants to know at the same time.
type confirming struct {
	mu      sync.Mutex
	waiting *confirmation // has not been asked yet; guarded by mu
	running sync.WaitGroup
	asking  bool // guarded by mu
}

type confirmation struct {
	done chan struct{} // closed when the others are set
	head Head
	err  error
}

// confirmWithin is how long the engine may take to say how far the state has come.
const confirmWithin = 2 * time.Second

// Confirm waits until this State shows whatever any controller has acknowledged before the call: a read after it is as
// good as one from the writer. An error means that it cannot be known now, as when most controllers cannot be reached; what is read then
// may be old.
func (s *State) Confirm(ctx context.Context) error {
	c := &s.confirming
	c.mu.Lock()
	r := c.waiting
	if r == nil {
		r = &confirmation{done: make(chan struct{})}
		c.waiting = r
		if !c.asking {
			c.asking = true
			c.running.Go(s.confirmAll)
		}
	}
	c.mu.Unlock()
	select {
	case <-r.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.err != nil {
		return r.err
	}
	ctx, cancel := context.WithTimeout(ctx, confirmWithin) // who does not follow any more says so
	defer cancel()
	return s.Reached(ctx, r.head.Revision)
}

// confirmAll answers everybody who waits, and those who come meanwhile.
func (s *State) confirmAll() {
	c := &s.confirming
	for {
		c.mu.Lock()
		r := c.waiting
		c.waiting, c.asking = nil, r != nil
		c.mu.Unlock()
		if r == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), confirmWithin)
		r.head, r.err = s.engine.Head(ctx)
		cancel()
		close(r.done)
	}
}

// Reached waits until the State has come as far as a revision.
func (s *State) Reached(ctx context.Context, revision int64) error {
	for {
		s.feed.mu.Lock()
		at, changed := s.feed.head, s.feed.changed
		s.feed.mu.Unlock()
		if at >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type writesKey struct{}

// Writes is what became of the Updates in a context: whether one was refused because another controller leads, and whether
// one was stored. What was refused, and nothing else, has done nothing, and can be asked of the one that leads.
type Writes struct{ refused, stored atomic.Bool }

// Refused reports whether an Update was refused because another controller leads.
func (w *Writes) Refused() bool { return w.refused.Load() }

// Stored reports whether an Update changed something.
func (w *Writes) Stored() bool { return w.stored.Load() }

// refuse notes that one was. A nil Writes notes nothing.
func (w *Writes) refuse() {
	if w != nil {
		w.refused.Store(true)
	}
}

// NoteWrites returns a context that remembers what became of Updates in it.
func NoteWrites(ctx context.Context) (context.Context, *Writes) {
	w := new(Writes)
	return context.WithValue(ctx, writesKey{}, w), w
}

func writesOf(ctx context.Context) *Writes {
	w, _ := ctx.Value(writesKey{}).(*Writes)
	return w
}
