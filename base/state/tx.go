package state

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A Tx is a view of all tables at one moment. Inside Update it can also be written,
// and sees its own writes. It belongs to one goroutine and ends with the function it was given to;
// one from View may be kept as long as its snapshot is wanted.
type Tx struct {
	tables   []*tableData
	head     Head
	now      time.Time
	revision int64
	cause    Cause
	writable bool
	random   io.Reader
	last     *resource.ID // the newest that NewID made; nil in a view
	changes  []change
	first    int // the level, while the state is new
}

type change struct {
	def           *tableDef
	id            resource.ID
	before, after resource.Object
	value         []byte // after, spelled for the engine, and
	version       int    // in which version; see spell
}

// spell merges the changes and spells what they leave. A failure is the author's alone, so it is
// found here and not when a group is stored.
func (tx *Tx) spell() error {
	tx.changes = merge(tx.changes)
	if len(tx.changes) > maxChanges {
		return tooLarge()
	}
	level := LevelOf(tx)
	for i := range tx.changes {
		c := &tx.changes[i]
		if c.after == nil {
			continue
		}
		var err error
		if c.value, c.version, err = c.def.spell(c.after, level); err != nil {
			return fmt.Errorf("encode %s %s: %w", c.def.kind, c.id, err)
		}
	}
	return nil
}

// made is how many bytes of objects the transaction adds that were not there before.
func (tx *Tx) made() (bytes int64) {
	for _, c := range tx.changes {
		if c.before == nil {
			bytes += int64(len(c.value))
		}
	}
	return bytes
}

// Now is the transaction's time: the only clock that code inside Update may read. It never
// goes backwards from one transaction to the next.
func (tx *Tx) Now() time.Time { return tx.now }

// Revision is that of this transaction, or in a view that of the newest one it shows.
func (tx *Tx) Revision() int64 { return tx.revision }

// Cause is who asked for this transaction.
func (tx *Tx) Cause() Cause { return tx.cause }

// NewID makes an ID from the transaction's time and randomness. It sorts after every ID that
// this state's transactions made before.
func (tx *Tx) NewID() resource.ID {
	if tx.last == nil {
		return resource.NewID(tx.now, tx.random)
	}
	*tx.last = resource.NextID(*tx.last, tx.now, tx.random)
	return *tx.last
}

// Random fills b from the transaction's source, for choices that nobody must be
// able to foresee but that are no secrets: secrets are made outside and passed in.
func (tx *Tx) Random(b []byte) {
	if _, err := io.ReadFull(tx.random, b); err != nil {
		panic("state: random source failed: " + err.Error())
	}
}

func (tx *Tx) write(def *tableDef, id resource.ID, after resource.Object) error {
	if !tx.writable {
		return fmt.Errorf("state: write of a %s in a view", def.kind)
	}
	data := tx.tables[def.slot]
	tx.begins()
	if after != nil {
		if err := tx.allowed(def, after); err != nil {
			return err
		}
		if err := data.conflict(def, id, after); err != nil {
			return err
		}
	}
	was, _ := data.rows.Get(row{id: id})
	data.apply(def, id, was.obj, after)
	tx.changes = append(tx.changes, change{def: def, id: id, before: was.obj, after: after})
	return nil
}

// undo takes back what the transaction wrote since its first n changes, newest first.
func (tx *Tx) undo(n int) {
	for i := len(tx.changes) - 1; i >= n; i-- {
		c := tx.changes[i]
		tx.tables[c.def.slot].apply(c.def, c.id, c.after, c.before)
	}
	tx.changes = tx.changes[:n]
}

// Try runs a part of a transaction. When it fails, what that part wrote is taken
// back and the error is returned; the transaction itself goes on.
func (tx *Tx) Try(part func() error) error {
	n := len(tx.changes)
	err := part()
	if err != nil {
		tx.undo(n)
	}
	return err
}

type joinKey struct{}

// Join returns a context in which Updates and Views are parts of a transaction, for a request that
// asks for several changes which happen all or not at all. It, and Views in it, end with the function that tx was given to. An
// idempotency key counts for the transaction as a whole: use Do for it.
func Join(ctx context.Context, tx *Tx) context.Context {
	return WithOnce(context.WithValue(ctx, joinKey{}, tx), nil)
}

func joined(ctx context.Context) *Tx {
	tx, _ := ctx.Value(joinKey{}).(*Tx)
	return tx
}
