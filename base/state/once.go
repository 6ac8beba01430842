package state

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A Receipt remembers the outcome of a request that carried an idempotency key, so
// that the same request again has one effect and the same answer.
type Receipt struct {
	resource.Meta

	Scope   string // whose key it is: keys of different callers never meet
	Key     string
	Step    int    // a request may make several transactions
	Hash    string // of the request: the same key must not come with another one
	Outcome json.RawMessage
}

var receipts = NewTable[Receipt]("receipt",
	Unique("key", func(r *Receipt) Key { return KeyOf(r.Scope, r.Key, r.Step) }),
	Index("age", func(r *Receipt) Key { return KeyOf(r.CreatedAt) }),
	Index("scope", func(r *Receipt) Key { return KeyOf(r.Scope, r.CreatedAt) }),
	Tally("scope-size", func(r *Receipt) (Key, Amounts) { return KeyOf(r.Scope), Amounts{int64(len(r.Outcome))} }),
)

// What is remembered for one caller; beyond it the oldest is forgotten.
const (
	keepReceipts     = 2000
	keepReceiptBytes = 4 << 20
)

// Once identifies a request that may come again.
type Once struct {
	Scope, Key, Hash string
	step             atomic.Int32
}

type onceKey struct{}

// WithOnce returns a context in which each Do happens once for all contexts with the same scope and key.
func WithOnce(ctx context.Context, o *Once) context.Context {
	return context.WithValue(ctx, onceKey{}, o)
}

// Do is Update for a function with a result. In a context with an idempotency key
// the result is stored in the same transaction, and given again when the request comes again.
func Do[T any](ctx context.Context, s *State, fn func(*Tx) (T, error)) (T, error) {
	var result T
	once, _ := ctx.Value(onceKey{}).(*Once)
	if once == nil {
		err := s.Update(ctx, func(tx *Tx) (err error) {
			result, err = fn(tx)
			return err
		})
		return orNothing(result, err)
	}
	step := int(once.step.Add(1))
	err := s.Update(ctx, func(tx *Tx) error {
		if r, again := receipts.Lookup(tx, "key", KeyOf(once.Scope, once.Key, step)); again {
			if r.Hash != once.Hash {
				return fault.Errorf(fault.Conflict, "This idempotency key was used for a different request.").WithCode("idempotency-mismatch")
			}
			return json.Unmarshal(r.Outcome, &result)
		}
		var err error
		if result, err = fn(tx); err != nil {
			return err
		}
		outcome, err := json.Marshal(result)
		if err != nil {
			return fmt.Errorf("encode the outcome: %w", err)
		}
		if err := makeRoom(tx, once.Scope, int64(len(outcome))); err != nil {
			return err
		}
		return receipts.Put(tx, &Receipt{Meta: resource.Meta{ID: tx.NewID()}, Scope: once.Scope,
			Key: once.Key, Step: step, Hash: once.Hash, Outcome: outcome})
	})
	return orNothing(result, err)
}

// makeRoom forgets the oldest receipts of a scope, until one more of a size has its place. A
// caller can thus shorten its own memory, and nobody else's.
func makeRoom(tx *Tx, scope string, bytes int64) error {
	count, sums := receipts.Sum(tx, "scope-size", KeyOf(scope))
	have := sums[0]
	var old []resource.ID
	for r := range receipts.Peek(tx, "scope", Range{Prefix: KeyOf(scope)}) {
		if count < keepReceipts && have+bytes <= keepReceiptBytes {
			break
		}
		old = append(old, r.ID)
		count--
		have -= int64(len(r.Outcome))
	}
	for _, id := range old {
		if err := receipts.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// orNothing keeps a result that was not stored from looking like one that was.
func orNothing[T any](result T, err error) (T, error) {
	if err != nil {
		var nothing T
		return nothing, err
	}
	return result, nil
}

// Forget drops the receipts of requests made before a time, at most max of them, and says how many.
func Forget(ctx context.Context, s *State, before time.Time, max int) (int, error) {
	n := 0
	err := s.Update(ctx, func(tx *Tx) error {
		var old []resource.ID
		for r := range receipts.Each(tx, "age", "") {
			if !r.CreatedAt.Before(before) || len(old) == max {
				break
			}
			old = append(old, r.ID)
		}
		n = len(old)
		for _, id := range old {
			if err := receipts.Delete(tx, id); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}
