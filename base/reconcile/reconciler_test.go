package reconcile_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

type thing struct{ resource.Meta }

var things = state.NewTable[thing]("test-reconciled")

// Steps that take long are taken by as many workers as there are.
func TestSlowStepsAreTakenAtTheSameTime(t *testing.T) {
	const workers = 4
	s, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var begun atomic.Int32
	hang := make(chan struct{})
	r := reconcile.New(s, time.Now(), reconcile.Task{
		Name: "slow",
		Step: func(context.Context, resource.ID) (reconcile.Next, error) {
			begun.Add(1)
			<-hang
			return reconcile.Next{}, nil
		},
		Touched: func(e state.Event) []resource.ID { return []resource.ID{e.ID} },
		All:     func(*state.Tx) []resource.ID { return nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx, workers) }()
	time.Sleep(20 * time.Millisecond) // all of them wait
	err = s.Update(ctx, func(tx *state.Tx) error {
		for range workers {
			if err := things.Put(tx, &thing{resource.Meta{ID: tx.NewID()}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); begun.Load() < workers && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := begun.Load(); n < workers {
		t.Errorf("%d of %d workers took a step", n, workers)
	}
	close(hang)
	cancel()
	<-ended
}
