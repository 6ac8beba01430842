package state

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// State is every table of one control plane. Its methods may be called from any
// number of goroutines.
type State struct {
	engine Engine
	term   int64
	now    func() time.Time
	random io.Reader
	feed   *feed

	published atomic.Pointer[snapshot]
	forkMu    sync.Mutex // held while a published tree is forked: that touches it

	mu      sync.Mutex
	queue   []*request // guarded by mu
	leading bool       // some caller of Update is the writer; guarded by mu
	broken  error      // set for good when the outcome of a commit is unknown; guarded by mu

	live *snapshot // the writer's: the newest tables, committed or about to be
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
}

// Limits of one group of transactions: past them the next one waits for the next group.
const (
	groupChanges = 4096
	groupTxs     = 512
	maxChanges   = 32768 // of one transaction: an engine stores this many and a group at once
	commitWithin = 15 * time.Second
)

// Open loads everything from the engine and becomes its writer.
func Open(ctx context.Context, engine Engine, o Options) (*State, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = bufio.NewReaderSize(rand.Reader, 4096)
	}
	if o.History == 0 {
		o.History = 1 << 16
	}
	term, err := engine.Lead(ctx)
	if err != nil {
		return nil, fmt.Errorf("become the writer: %w", err)
	}
	s := &State{engine: engine, term: term, now: o.Now, random: o.Random}
	if err := s.load(ctx, o.History); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *State) load(ctx context.Context, history int) error {
	defs := tableDefs()
	tables := make([]*tableData, len(defs))
	for i, def := range defs {
		tables[i] = newTableData(def)
	}
	head, err := s.engine.Load(ctx, func(r Record) error {
		def := defOf(r.Kind)
		if def == nil {
			return fmt.Errorf("stored objects of kind %q are of a newer release", r.Kind)
		}
		obj, err := def.decode(r.Version, r.Value)
		if err != nil {
			return fmt.Errorf("decode %s %s: %w", r.Kind, r.ID, err)
		}
		tables[def.slot].apply(def, r.ID, nil, obj)
		return nil
	})
	if err != nil {
		return fmt.Errorf("load the state: %w", err)
	}
	s.live = &snapshot{head, tables}
	s.publish(nil)
	s.feed = newFeed(history, head.Revision)
	return s.feed.restore(ctx, s.engine, head)
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
// context asks for with WithPlan, WithAsOf or WithAsOfTime.
func (s *State) View(ctx context.Context) (*Tx, error) {
	if p := planOf(ctx); p != nil {
		return p.view(s), nil
	}
	if at, ok := asOf(ctx); ok {
		return s.viewAt(at)
	}
	return s.Latest(), nil
}

// Latest is View for whoever serves no request: reconcilers, the auditor.
func (s *State) Latest() *Tx {
	p := s.published.Load()
	return &Tx{tables: p.tables, head: p.head, now: p.head.Time, revision: p.head.Revision}
}

type request struct {
	ctx  context.Context
	fn   func(*Tx) error
	done chan answer
	err  error
}

// answer tells a waiting caller its outcome, or that it is to be the writer now.
type answer struct {
	err  error
	lead bool
}

// Update runs fn as one transaction and returns when its effect is durable and visible, or
// with fn's error and no effect. fn must be pure but for the Tx; it runs once. Update
// must not be called from inside fn.
//
// Callers that come together share one commit of the engine: the first becomes the
// writer, runs what has queued up, and hands over. A cancelled context stops a transaction
// only before it has begun.
func (s *State) Update(ctx context.Context, fn func(*Tx) error) error {
	if p := planOf(ctx); p != nil {
		return p.update(s, ctx, fn)
	}
	if _, ok := asOf(ctx); ok {
		return fault.Errorf(fault.Invalid, "The past cannot be changed: leave the as-of header out.")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{ctx: ctx, fn: fn, done: make(chan answer, 1)}
	s.mu.Lock()
	if s.broken != nil {
		s.mu.Unlock()
		return unavailable()
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

	s.run(group)

	s.mu.Lock()
	if len(s.queue) > 0 {
		s.queue[0].done <- answer{lead: true}
	} else {
		s.leading = false
	}
	s.mu.Unlock()
	for _, member := range group {
		if member != r {
			member.done <- answer{err: member.err}
		}
	}
	return r.err
}

func unavailable() error {
	return fault.Errorf(fault.Unavailable, "The control plane cannot store changes now. Try again soon.")
}

func tooLarge() error {
	return fault.Errorf(fault.TooLarge, "The request changes too many things at once.")
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
		var members []*request
		changes := 0
		for len(group) > 0 && changes < groupChanges {
			r := group[0]
			group = group[1:]
			tx := s.begin(r.ctx)
			if r.err = protect(tx, r.fn); r.err != nil {
				tx.undo(0)
				continue
			}
			if len(tx.changes) > maxChanges {
				tx.undo(0)
				r.err = tooLarge()
				continue
			}
			if len(tx.changes) == 0 {
				continue
			}
			s.live.head = Head{tx.revision, tx.now}
			txs, members = append(txs, tx), append(members, r)
			changes += len(tx.changes)
		}
		if len(txs) == 0 {
			continue
		}
		if err := s.commit(txs); err != nil {
			for _, r := range members {
				r.err = err
			}
		}
	}
}

// begin makes a transaction on the live tables. Only the writer calls it.
func (s *State) begin(ctx context.Context) *Tx {
	now := s.now().UTC()
	if now.Before(s.live.head.Time) {
		now = s.live.head.Time
	}
	return &Tx{
		tables: s.live.tables, head: s.live.head, now: now, revision: s.live.head.Revision + 1,
		cause: CauseOf(ctx), writable: true, random: s.random,
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

// commit makes the transactions durable, then visible. When it fails, all of them
// are undone.
func (s *State) commit(txs []*Tx) error {
	base := txs[0].revision - 1
	batch, err := makeBatch(s.term, base, txs)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), commitWithin)
		err = s.engine.Commit(ctx, batch)
		cancel()
	}
	if err != nil {
		for i := len(txs) - 1; i >= 0; i-- {
			txs[i].undo(0)
		}
		s.live.head = s.published.Load().head
		if errors.Is(err, ErrTooLarge) && len(txs) == 1 {
			return tooLarge()
		}
		slog.Error("commit failed", "err", err)
		if errors.Is(err, ErrUncertain) || errors.Is(err, ErrFenced) {
			s.mu.Lock()
			s.broken = err
			s.mu.Unlock()
		}
		return unavailable()
	}
	dirty := map[int]bool{}
	for _, tx := range txs {
		for _, c := range tx.changes {
			dirty[c.def.slot] = true
		}
	}
	s.publish(dirty)
	s.feed.append(txs)
	return nil
}

// Broken says why no more changes are accepted: another writer leads, or the outcome of a
// commit is unknown. The process must open the state anew. nil while all is well.
func (s *State) Broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
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
func makeBatch(term, base int64, txs []*Tx) (Batch, error) {
	b := Batch{Term: term, Base: base}
	type place struct {
		record int  // in b.Records
		isNew  bool // there was no such object before the batch
	}
	places := map[row2]place{}
	for i, tx := range txs {
		b.Txs = append(b.Txs, TxInfo{Revision: tx.revision, Time: tx.now, Cause: tx.cause})
		for _, c := range merge(tx.changes) {
			r, err := recordOf(c, i)
			if err != nil {
				return b, err
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
		slices.SortStableFunc(b.Earlier, func(a, b Record) int { return a.Tx - b.Tx })
	}
	return b, nil
}

func recordOf(c change, tx int) (Record, error) {
	r := Record{Kind: c.def.kind, ID: c.id, Tx: tx}
	if c.after == nil {
		return r, nil
	}
	r.Version = c.def.version
	var err error
	if r.Value, err = encode(c.after); err != nil {
		return r, fmt.Errorf("encode %s %s: %w", c.def.kind, c.id, err)
	}
	return r, nil
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

// Close lets the engine go. No Update may be running.
func (s *State) Close() error { return s.engine.Close() }
