package state

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
)

// State is every table of one control plane. Its methods may be called from any
// number of goroutines.
type State struct {
	engine Engine
	clock  clock
	random io.Reader
	feed   *feed
	first  int // the level that the state begins at, if it is new

	published atomic.Pointer[snapshot]
	forkMu    sync.Mutex // held while a published tree is forked: that touches it

	mu       sync.Mutex
	queue    []*request    // guarded by mu
	leading  bool          // some caller of Update is the writer; guarded by mu
	broken   error         // set for good when nothing more can be stored; guarded by mu
	term     int64         // of this writer; 0: another leads, or none; guarded by mu
	retiring bool          // it leads, and takes in no more; guarded by mu
	quiet    sync.Cond     // with mu: told when leading becomes false
	deposed  chan struct{} // closed while term is 0; guarded by mu

	stopped chan struct{} // closed when broken is set

	confirming confirming
	restoring  sync.WaitGroup // see LateHistory
	unread     func()         // ends it

	building chan struct{} // one place for each view of the past that may be built at once

	role   sync.Mutex  // held while the role changes, and while this state follows
	stays  bool        // it stays when it is deposed, and can follow
	live   *snapshot   // the writer's, or the follower's: the newest tables, committed or about to be
	lastID resource.ID // the writer's: the newest that a transaction made
}

// snapshot is all tables at one revision.
type snapshot struct {
	head   Head
	tables []*tableData
}

// Options of Open. The zero value suits production.
type Options struct {
	Now     func() time.Time // the clock; time.Now when nil
	Random  io.Reader        // for IDs; crypto/rand when nil
	History int              // how many changes are kept for Watch and as-of reads; 65,536 when 0
	// How many bytes these may take, about; 64 MiB when 0. A few clients that write large objects
	// again and again shorten the history, and no more.
	HistoryBytes int
	// LateHistory has a start not wait until the history of before was read: watches that are resumed, and whoever looks at the past, do.
	LateHistory bool
	// Level is what a state begins at that is new: this release's newest when 0. At 1 it begins as the first release's would.
	Level int
}

// Limits of one group of transactions: past them the next one waits for the next group.
const (
	groupChanges = 1024
	groupTxs     = 512
	maxChanges   = 32768 // of one transaction: an engine stores this many and a group at once
	commitWithin = 15 * time.Second
)

// Open loads everything from the engine and becomes its writer. When another takes that over, the State ends: see Broken.
func Open(ctx context.Context, engine Engine, o Options) (*State, error) {
	s, err := openState(ctx, engine, o)
	if err != nil {
		return nil, err
	}
	if err := s.Lead(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// OpenFollower loads everything from the engine, and does not lead. Follow keeps it up to date, Lead makes it the writer; when
// another takes that over, it can follow again.
func OpenFollower(ctx context.Context, engine Engine, o Options) (*State, error) {
	s, err := openState(ctx, engine, o)
	if err == nil {
		s.stays = true
	}
	return s, err
}

func openState(ctx context.Context, engine Engine, o Options) (*State, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = bufio.NewReaderSize(rand.Reader, 4096)
	}
	if o.History == 0 {
		o.History = 1 << 16
	}
	if o.Level == 0 {
		o.Level = release.Own.Newest
	}
	if o.HistoryBytes == 0 {
		o.HistoryBytes = 64 << 20
	}
	s := &State{
		engine: engine, clock: clock{wall: o.Now}, random: o.Random, first: o.Level, stopped: make(chan struct{}),
		deposed: make(chan struct{}), building: make(chan struct{}, pastViews), unread: func() {},
	}
	s.quiet.L = &s.mu
	close(s.deposed)
	if err := s.load(ctx, o); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *State) load(ctx context.Context, o Options) error {
	l := newLoader()
	head, err := s.engine.Load(ctx, l.add)
	tables, failed := l.finish()
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("load the state: %w", err)
	}
	if err := mayRead(tables, head, s.first); err != nil {
		return err
	}
	s.live = &snapshot{head, tables}
	s.publish(nil)
	s.feed = newFeed(o.History, o.HistoryBytes, head)
	if !o.LateHistory {
		defer close(s.feed.restored)
		return s.feed.restore(ctx, s.engine, s.live)
	}
	ctx, s.unread = context.WithCancel(context.WithoutCancel(ctx))
	now := s.published.Load() // what is live changes
	s.restoring.Go(func() { s.feed.restoreAll(ctx, s.engine, now) })
	return nil
}

func tableDefs() []*tableDef {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	return registry.tables
}

func defOf(kind string) *tableDef {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	return registry.kinds[kind]
}

// View is a read-only transaction on the newest published snapshot; or on what the
// context asks for with WithPlan, WithAsOf, WithAsOfTime or Join.
func (s *State) View(ctx context.Context) (*Tx, error) {
	if tx := joined(ctx); tx != nil {
		view := *tx
		view.writable, view.changes = false, nil
		return &view, nil
	}
	if p := planOf(ctx); p != nil {
		return p.view(s), nil
	}
	if p := asOf(ctx); p != nil {
		return s.viewPast(ctx, p)
	}
	return s.Latest(), nil
}

// Latest is View for whoever serves no request: reconcilers, the auditor.
func (s *State) Latest() *Tx {
	p := s.published.Load()
	return &Tx{tables: p.tables, head: p.head, now: p.head.Time, revision: p.head.Revision, first: s.first}
}

type request struct {
	ctx  context.Context
	fn   func(*Tx) error
	done chan answer
	err  error
	// How many transactions of its group must be stored for its outcome to be true.
	needs int
}

// answer tells a waiting caller its outcome, or that it is to be the writer now.
type answer struct {
	err  error
	lead bool
}

// Update runs fn as one transaction and returns when its effect is durable and visible, or
// with fn's error and no effect. fn must be pure but for the Tx; it runs once. Update
// must not be called from inside fn, but in a context from Join.
//
// Callers that come together share one commit of the engine: the first becomes the
// writer, runs what has queued up, and hands over. A cancelled context stops a transaction
// only before it has begun.
func (s *State) Update(ctx context.Context, fn func(*Tx) error) error {
	if tx := joined(ctx); tx != nil {
		return tx.Try(func() error { return fn(tx) })
	}
	if p := planOf(ctx); p != nil {
		return p.update(s, ctx, fn)
	}
	if asOf(ctx) != nil {
		return fault.Errorf(fault.Invalid, "The past cannot be changed: leave the as-of header out.")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{ctx: ctx, fn: fn, done: make(chan answer, 1)}
	s.mu.Lock()
	if s.broken != nil || s.term == 0 || s.retiring {
		broken := s.broken != nil
		s.mu.Unlock()
		if broken {
			return unavailable()
		}
		writesOf(ctx).refuse()
		return NotLeading()
	}
	s.queue = append(s.queue, r)
	if s.leading {
		s.mu.Unlock()
		a := <-r.done
		if !a.lead {
			return a.err
		}
		s.mu.Lock()
	}
	s.leading = true
	group := s.take()
	s.mu.Unlock()

	finished := false
	defer func() {
		if !finished {
			s.abandon(r, group)
		}
	}()
	s.run(group)
	finished = true

	s.mu.Lock()
	if len(s.queue) > 0 {
		s.queue[0].done <- answer{lead: true}
	} else {
		s.leading = false
		s.quiet.Broadcast()
	}
	s.mu.Unlock()
	for _, member := range group {
		if member != r {
			member.done <- answer{err: member.err}
		}
	}
	return r.err
}

// abandon answers everybody when a transaction ended the writer's goroutine, as t.Fatal
// does: what it left in the live tables is not known, so no more is accepted.
func (s *State) abandon(writer *request, group []*request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop(errors.New("a transaction ended the goroutine that it ran on"))
	for _, r := range append(group, s.queue...) {
		if r != writer {
			r.done <- answer{err: unavailable()}
		}
	}
	s.queue, s.leading = nil, false
	s.quiet.Broadcast()
}

func unavailable() error {
	return fault.Errorf(fault.Unavailable, "The control plane cannot store changes now. Try again soon.")
}

func tooLarge() error {
	return fault.Errorf(fault.TooLarge, "The request changes too many things at once.")
}

func full() error {
	return fault.Errorf(fault.Unavailable, "The control plane's store is full: nothing can be made until something is deleted, or the operator gives it more room.").
		WithCode("store-full")
}

// smallBytes is what a request may add when the store is full, so that what makes room, a
// delete and its operation, still goes through.
const smallBytes = 4096

// Room says how full the engine is; the zero Room when it does not know.
func (s *State) Room() Room {
	if b, ok := s.engine.(Bounded); ok {
		return b.Room()
	}
	return Room{}
}

// mayMake is how many bytes of new objects a user's transaction may add now. The control plane's own work
// is not bound by it: it ends what was begun.
func (s *State) mayMake() int64 {
	r := s.Room()
	switch {
	case r.Quota == 0 || r.Used < r.Quota:
		return math.MaxInt64
	case r.Used < r.Quota+r.Reserve/2:
		return smallBytes
	}
	return 0
}

// take removes the next group from the queue. The caller holds mu.
func (s *State) take() []*request {
	n := min(len(s.queue), groupTxs)
	group := make([]*request, n)
	copy(group, s.queue)
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	return group
}

// run carries out a group, in as few commits as the limits allow.
func (s *State) run(group []*request) {
	for len(group) > 0 {
		var txs []*Tx
		var ran, writers []*request // writers[i] asked for txs[i]
		changes, most := 0, s.mayMake()
		for len(group) > 0 && changes < groupChanges {
			r := group[0]
			group = group[1:]
			if r.err = r.ctx.Err(); r.err != nil {
				continue
			}
			tx := s.begin(r.ctx)
			if r.err = protect(tx, r.fn); r.err == nil {
				r.err = tx.spell()
			}
			if r.err == nil && !tx.cause.UserID.IsZero() && tx.made() > most {
				r.err = full()
			}
			if r.err != nil {
				tx.undo(0)
			}
			ran = append(ran, r)
			if len(tx.changes) > 0 {
				s.live.head = Head{tx.revision, tx.now}
				txs, writers = append(txs, tx), append(writers, r)
				changes += len(tx.changes)
			}
			r.needs = len(txs)
		}
		if len(txs) == 0 {
			continue
		}
		stored, err := s.commit(txs)
		for _, r := range ran {
			// One that changed nothing, or was refused, has still seen what those before it wrote.
			if r.needs <= stored {
				continue
			}
			if r.err = unavailable(); errors.Is(err, errGaveUp) { // surely nothing is stored
				r.err = NotLeading()
				writesOf(r.ctx).refuse()
			}
		}
		for _, r := range writers[:stored] {
			if w := writesOf(r.ctx); w != nil {
				w.stored.Store(true)
			}
		}
		if err != nil && !errors.Is(err, errGaveUp) {
			writers[stored].err = err
		}
	}
}

// Now is the clock by which stored times are to be judged: the one they were made by. It never goes back.
func (s *State) Now() time.Time { return s.clock.now(s.published.Load().head.Time) }

// begin makes a transaction on the live tables. Only the writer calls it.
func (s *State) begin(ctx context.Context) *Tx {
	return &Tx{
		tables: s.live.tables, head: s.live.head, now: s.clock.now(s.live.head.Time), revision: s.live.head.Revision + 1,
		cause: CauseOf(ctx), writable: true, random: s.random, last: &s.lastID, first: s.first,
	}
}

// protect turns a panic in fn into an error, so that a mistake in one verb cannot
// stop the writer.
func protect(tx *Tx, fn func(*Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("a transaction panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("state: a transaction panicked: %v", p)
		}
	}()
	return fn(tx)
}

// commit makes the transactions durable, then visible. It gives how many of them it
// stored; when that is not all, the others are undone and the error says why.
func (s *State) commit(txs []*Tx) (int, error) {
	stored, err := s.store(txs)
	for i := len(txs) - 1; i >= stored; i-- {
		txs[i].undo(0)
	}
	if stored == 0 {
		s.live.head = s.published.Load().head
	} else {
		last := txs[stored-1]
		s.live.head = Head{last.revision, last.now}
		s.show(txs[:stored])
	}
	return stored, err
}

// errGaveUp: this State led when a transaction was accepted, and did not when its turn came.
var errGaveUp = errors.New("state: leads no more")

// store hands transactions to the engine, in halves when all at once are too large for it.
func (s *State) store(txs []*Tx) (int, error) {
	s.mu.Lock()
	term, broken := s.term, s.broken != nil
	s.mu.Unlock()
	if broken {
		return 0, unavailable()
	}
	if term == 0 {
		return 0, errGaveUp
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitWithin)
	began := time.Now()
	err := s.engine.Commit(ctx, makeBatch(term, txs[0].revision-1, txs))
	measure(began, len(txs), err)
	cancel()
	switch {
	case err == nil:
		return len(txs), nil
	case errors.Is(err, ErrTooLarge) && len(txs) > 1:
		half := len(txs) / 2
		if n, err := s.store(txs[:half]); err != nil {
			return n, err
		}
		n, err := s.store(txs[half:])
		return half + n, err
	case errors.Is(err, ErrTooLarge):
		return 0, tooLarge()
	}
	slog.Error("commit failed", "err", err)
	if errors.Is(err, ErrUncertain) || errors.Is(err, ErrFenced) {
		s.mu.Lock()
		if s.stays {
			s.depose()
		} else {
			s.stop(err)
		}
		s.mu.Unlock()
	}
	return 0, unavailable()
}

// show makes stored transactions visible to readers and watchers.
func (s *State) show(txs []*Tx) {
	dirty := map[int]bool{}
	for _, tx := range txs {
		for _, c := range tx.changes {
			dirty[c.def.slot] = true
		}
	}
	s.feed.append(txs, func() { s.publish(dirty) })
}

// Broken says why no more changes are accepted: another writer leads, or the outcome of a
// commit is unknown. The process must open the state anew. nil while all is well.
func (s *State) Broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// Stopped is closed when Broken is no longer nil.
func (s *State) Stopped() <-chan struct{} { return s.stopped }

// stop accepts no more changes. The caller holds mu.
func (s *State) stop(why error) {
	if s.broken == nil {
		s.broken = why
		close(s.stopped)
	}
}

// publish shows the live tables to readers. dirty names the tables that changed
// since the last time; nil means all.
func (s *State) publish(dirty map[int]bool) {
	next := &snapshot{head: s.live.head, tables: make([]*tableData, len(s.live.tables))}
	if dirty != nil {
		copy(next.tables, s.published.Load().tables)
	}
	for i, live := range s.live.tables {
		if dirty == nil || dirty[i] {
			next.tables[i] = live.fork()
		}
	}
	s.published.Store(next)
}

// makeBatch spells the transactions for the engine. Of an object that several of them
// wrote, the last state is a record; the others go into Earlier.
func makeBatch(term, base int64, txs []*Tx) Batch {
	b := Batch{Term: term, Base: base}
	type place struct {
		record int  // in b.Records
		isNew  bool // there was no such object before the batch
	}
	places := map[row2]place{}
	for i, tx := range txs {
		b.Txs = append(b.Txs, TxInfo{Revision: tx.revision, Time: tx.now, Cause: tx.cause})
		for _, c := range tx.changes {
			r := Record{Kind: c.def.kind, ID: c.id, Tx: i, Value: c.value}
			if r.Value != nil {
				r.Version = c.version
			}
			at := row2{c.def.slot, c.id}
			if was, again := places[at]; again {
				b.Earlier = append(b.Earlier, b.Records[was.record])
				b.Records[was.record] = r
				continue
			}
			places[at] = place{len(b.Records), c.before == nil}
			b.Records = append(b.Records, r)
		}
	}
	if len(b.Earlier) > 0 {
		// An object that was made and deleted within the batch is history alone.
		kept := b.Records[:0]
		for _, r := range b.Records {
			if r.Value == nil && places[row2{defOf(r.Kind).slot, r.ID}].isNew {
				b.Earlier = append(b.Earlier, r)
			} else {
				kept = append(kept, r)
			}
		}
		b.Records = kept
	}
	return b
}

// merge makes one change of all those of the same object, at the place of the first, and
// leaves out an object that was both made and deleted.
func merge(changes []change) []change {
	if len(changes) < 2 {
		return changes
	}
	at := make(map[row2]int, len(changes))
	merged := make([]change, 0, len(changes))
	for _, c := range changes {
		key := row2{c.def.slot, c.id}
		if n, again := at[key]; again {
			merged[n].after = c.after
			continue
		}
		at[key] = len(merged)
		merged = append(merged, c)
	}
	return slices.DeleteFunc(merged, func(c change) bool { return c.before == nil && c.after == nil })
}

// row2 names an object in any table.
type row2 struct {
	slot int
	id   resource.ID
}

// Close lets the engine go. No Update or Follow may be running.
func (s *State) Close() error {
	s.unread()
	err := s.engine.Close()
	s.confirming.running.Wait()
	s.restoring.Wait()
	return err
}
