package state

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Records gives every object of the moment that tx shows, as an engine is to store it, in the order of kinds and
// then of IDs: all that is needed to make the same state on another engine. It ends with the first error.
func Records(tx *Tx) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		level := LevelOf(tx)
		for _, def := range byKind() {
			going := true
			tx.tables[def.slot].rows.Scan(func(r row) bool {
				value, version, err := def.spell(r.obj, level)
				if err != nil {
					err = fmt.Errorf("encode %s %s: %w", def.kind, r.id, err)
				}
				going = yield(Record{Kind: def.kind, ID: r.id, Version: version, Value: value}, err) && err == nil
				return going
			})
			if !going {
				return
			}
		}
	}
}

// Kinds gives how many objects there are of each kind, in the order of kinds.
func Kinds(tx *Tx) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, def := range byKind() {
			if !yield(def.kind, tx.tables[def.slot].rows.Len()) {
				return
			}
		}
	}
}

func byKind() []*tableDef {
	defs := slices.Clone(tableDefs())
	slices.SortFunc(defs, func(a, b *tableDef) int { return strings.Compare(a.kind, b.kind) })
	return defs
}

// A Forgetful engine can let go of its history at once.
type Forgetful interface {
	Forget(ctx context.Context) error
}

// A Restorer stores records that another state had at one moment into an engine that is empty, in as many
// batches as they take. All of them have the revision and the time of that moment, so that whoever knew it finds the same; of what
// led to it nothing is known. Before Done nobody else may use the engine: what is there is a part.
type Restorer struct {
	engine  Engine
	head    Head
	term    int64
	base    int64
	pending []Record
	bytes   int
}

// What a Restorer commits at once.
const (
	restoreRecords = 4096
	restoreBytes   = 4 << 20
)

// NewRestorer begins with an empty engine.
func NewRestorer(ctx context.Context, engine Engine, head Head) (*Restorer, error) {
	if head.Revision <= 0 {
		return nil, fmt.Errorf("a state at revision %d cannot be restored", head.Revision)
	}
	term, err := engine.Lead(ctx)
	if err != nil {
		return nil, fmt.Errorf("become the writer: %w", err)
	}
	was, err := engine.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("find how far the state has come: %w", err)
	}
	if was.Revision != 0 {
		return nil, fmt.Errorf("the engine is not empty: it holds a state at revision %d", was.Revision)
	}
	return &Restorer{engine: engine, head: head, term: term}, nil
}

// Add stores one record, now or with those that follow. One that this release cannot read is refused.
func (r *Restorer) Add(ctx context.Context, rec Record) error {
	if _, err := decodeRecord(rec); err != nil {
		return err
	}
	r.pending = append(r.pending, Record{Kind: rec.Kind, ID: rec.ID, Version: rec.Version, Value: rec.Value})
	r.bytes += len(rec.Value)
	if len(r.pending) < restoreRecords && r.bytes < restoreBytes {
		return nil
	}
	return r.flush(ctx)
}

func (r *Restorer) flush(ctx context.Context) error {
	if len(r.pending) == 0 {
		return nil
	}
	err := r.engine.Commit(ctx, Batch{Term: r.term, Base: r.base, Records: r.pending,
		Txs: []TxInfo{{Revision: r.head.Revision, Time: r.head.Time, Cause: Cause{Via: "restore"}}}})
	if err != nil {
		return fmt.Errorf("store %d records: %w", len(r.pending), err)
	}
	r.base, r.pending, r.bytes = r.head.Revision, nil, 0
	return nil
}

// Done stores what is left, and has the engine forget how it came to be.
func (r *Restorer) Done(ctx context.Context) error {
	if err := r.flush(ctx); err != nil {
		return err
	}
	if r.base == 0 {
		return fmt.Errorf("there was nothing to restore")
	}
	f, ok := r.engine.(Forgetful)
	if !ok {
		return fmt.Errorf("%T cannot forget its history, which a restored state must not have", r.engine)
	}
	if err := f.Forget(ctx); err != nil {
		return fmt.Errorf("forget how the state was restored: %w", err)
	}
	return nil
}
