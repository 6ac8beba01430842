package operation

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// An Expirer gives the way out of an operation that was not done by its deadline: it settles
// the target, in the same transaction. The operation itself is then ended as Failed, unless
// the Expirer moved its deadline or ended it.
type Expirer func(tx *state.Tx, o *Operation) error

// Reaper ends operations at their deadlines and forgets old ones.
type Reaper struct {
	State *state.State
	Now   func() time.Time
	// Expirers by target kind. An operation on any other kind is simply ended.
	Expirers map[string]Expirer
	Keep     time.Duration // how long ended operations are kept; 30 days when 0
}

// Task is the reaper's work, one step for each running operation.
func (r *Reaper) Task() reconcile.Task {
	return reconcile.Task{
		Name: "operation-reaper",
		Step: r.step,
		All:  func(tx *state.Tx) []resource.ID { return operations.IDs(tx, "deadline", "") },
		Touched: func(e state.Event) []resource.ID {
			if o, ok := e.After.(*Operation); ok && o.Outcome == Running {
				return []resource.ID{e.ID}
			}
			return nil
		},
	}
}

func (r *Reaper) step(ctx context.Context, id resource.ID) (reconcile.Next, error) {
	o, ok := operations.Find(r.State.Latest(), id)
	if !ok || o.Outcome != Running {
		return reconcile.Next{}, nil
	}
	if wait := o.Deadline.Sub(r.Now()); wait > 0 {
		return reconcile.Next{After: wait}, nil
	}
	err := r.State.Update(ctx, func(tx *state.Tx) error {
		o, ok := operations.Find(tx, id)
		if !ok || o.Outcome != Running || o.Deadline.After(tx.Now()) {
			return nil
		}
		if expire := r.Expirers[o.TargetKind]; expire != nil {
			if err := expire(tx, o); err != nil {
				return err
			}
			if o, ok = operations.Find(tx, id); !ok || o.Deadline.After(tx.Now()) {
				return nil
			}
		}
		return End(tx, o, Failed, "It was not done in the time it is given.")
	})
	return reconcile.Next{After: time.Second}, err
}

// Forget drops ended operations that are older than Keep, at most max of them, and says how many.
func (r *Reaper) Forget(ctx context.Context, max int) (int, error) {
	keep := r.Keep
	if keep == 0 {
		keep = 30 * 24 * time.Hour
	}
	n := 0
	err := r.State.Update(ctx, func(tx *state.Tx) error {
		var old []resource.ID
		for o := range operations.Each(tx, "ended", "") {
			if tx.Now().Sub(o.EndedAt) < keep || len(old) == max {
				break
			}
			old = append(old, o.ID)
		}
		n = len(old)
		for _, id := range old {
			if err := operations.Delete(tx, id); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}
