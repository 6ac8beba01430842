package state

import (
	"context"
	"errors"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
)

// Several verbs, each of which thinks that it has a transaction of its own, are one: all of them or none,
// once for an idempotency key, and nothing at all in a plan.
func TestJoin(t *testing.T) {
	s, err := Open(t.Context(), NewMemory(0), Options{})
	if err != nil {
		t.Fatal(err)
	}
	verb := func(ctx context.Context, name string) error {
		_, err := Do(ctx, s, func(tx *Tx) (string, error) {
			return name, things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: name}})
		})
		return err
	}
	refused := errors.New("refused")
	both := func(ctx context.Context, end error) error {
		_, err := Do(ctx, s, func(tx *Tx) (int, error) {
			ctx := Join(ctx, tx)
			if err := verb(ctx, "a"); err != nil {
				return 0, err
			}
			view, err := s.View(ctx)
			if err != nil {
				return 0, err
			}
			if things.Len(view) != things.Len(tx) || things.Len(view) != things.Len(s.Latest())+1 {
				t.Errorf("a view in the transaction has %d things, the transaction %d", things.Len(view), things.Len(tx))
			}
			if err := things.Put(view, &thing{Meta: resource.Meta{ID: tx.NewID()}}); err == nil {
				t.Error("a view was written to")
			}
			// One part that fails is taken back alone when the others go on without it.
			if err := s.Update(ctx, func(tx *Tx) error {
				if err := things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: "c"}}); err != nil {
					return err
				}
				return refused
			}); !errors.Is(err, refused) {
				t.Error(err)
			}
			if err := verb(ctx, "b"); err != nil {
				return 0, err
			}
			return 0, end
		})
		return err
	}
	has := func(n, receiptsToo int) {
		t.Helper()
		if got := things.Len(s.Latest()); got != n {
			t.Errorf("%d things, want %d", got, n)
		}
		if got := receipts.Len(s.Latest()); got != receiptsToo {
			t.Errorf("%d receipts, want %d", got, receiptsToo)
		}
	}
	before := s.Latest().Revision()
	if err := both(t.Context(), refused); !errors.Is(err, refused) {
		t.Error(err)
	}
	has(0, 0)
	if err := both(WithPlan(t.Context(), new(Plan)), nil); err != nil {
		t.Error(err)
	}
	has(0, 0)
	for range 2 {
		if err := both(WithOnce(t.Context(), &Once{Scope: "s", Key: "k", Hash: "h"}), nil); err != nil {
			t.Error(err)
		}
		has(2, 1)
	}
	if got := s.Latest().Revision(); got != before+1 {
		t.Errorf("%d transactions, want 1", got-before)
	}
}
