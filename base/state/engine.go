package state

import (
	"context"
	"errors"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// An Engine makes committed batches durable. It stores bytes and knows no table.
// Every engine passes enginetest.Test.
type Engine interface {
	// Lead makes the caller the one writer and answers its term, higher than every
	// term before. Whoever led before is fenced: its Commits fail with ErrFenced.
	Lead(ctx context.Context) (term int64, err error)
	// Load gives every record as of one moment, in any order, and that moment.
	Load(ctx context.Context, each func(Record) error) (Head, error)
	// Head is how far the newest committed batch has come; the zero Head if there is none.
	Head(ctx context.Context) (Head, error)
	// Commit makes the batch durable, all of it or nothing. Batch.Base must be the
	// present head's revision, or it fails with ErrFenced too. An error means that nothing
	// was stored and never will be, except ErrUncertain, after which only a new Load tells.
	Commit(ctx context.Context, b Batch) error
	// Watch gives the committed batches with a revision above since, oldest first,
	// and goes on with those that follow until ctx ends or each fails, whose error it
	// returns. Their Records come with what was there before; one that deleted what was
	// not there is left out. ErrCompacted: that far back is no longer kept.
	Watch(ctx context.Context, since int64, each func(Batch) error) error
	Close() error
}

// A Bounded engine knows how much it may hold.
type Bounded interface{ Room() Room }

// A Room says how full an engine is, in bytes. Above Quota users make nothing new; the Reserve beyond
// it is for what makes room again.
type Room struct{ Used, Quota, Reserve int64 } // a Quota of 0 is not known

var (
	ErrFenced    = errors.New("state: another writer leads now")
	ErrUncertain = errors.New("state: the outcome of a commit is not known")
	ErrCompacted = errors.New("state: history that old is no longer kept")
	ErrTooLarge  = errors.New("state: the transaction is too large for the engine")
)

// A Head is how far the state has come.
type Head struct {
	Revision int64
	Time     time.Time // of the newest transaction; a new one is never earlier
}

// A Record is one stored object.
type Record struct {
	Kind    string
	ID      resource.ID
	Version int    // of the kind's schema
	Value   []byte // JSON; nil in a Batch: the object is deleted
	// What was there before, in a Batch given by Watch; nil if nothing was, or if
	// it is not kept.
	Before        []byte
	BeforeVersion int
	Tx            int // which of Batch.Txs wrote it (last)
}

// A Batch is one or more transactions that become durable together.
type Batch struct {
	Term    int64
	Base    int64 // the revision that it follows
	Txs     []TxInfo
	Records []Record // at most one for each object
	// What later transactions of the same batch replaced, of each object oldest first: it is
	// history from the start, and only Watch gives it again. Before is never set here.
	Earlier []Record
}

// Head is where the state stands after the batch.
func (b Batch) Head() Head {
	last := b.Txs[len(b.Txs)-1]
	return Head{last.Revision, last.Time}
}

// A TxInfo says of one transaction what is not in its objects.
type TxInfo struct {
	Revision int64
	Time     time.Time
	Cause    Cause
}

// A Cause is who asked for a change, for the audit trail. Whoever accepts a
// request puts it into the context.
type Cause struct {
	UserID    resource.ID `json:",omitzero"`
	ProjectID resource.ID `json:",omitzero"`
	RequestID string      `json:",omitempty"`
	Via       string      `json:",omitempty"` // the dialect, or the reconciler
}

type causeKey struct{}

// WithCause returns a context whose Updates are recorded as caused by c.
func WithCause(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

// CauseOf is the cause that the context carries.
func CauseOf(ctx context.Context) Cause {
	c, _ := ctx.Value(causeKey{}).(Cause)
	return c
}
