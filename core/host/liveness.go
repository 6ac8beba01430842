package host

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Liveness marks hosts as lost that no controller has heard for as long as Expect. When a
// host was last heard is no state: a controller that leads anew gives every host that long again.
func (h *Hub) Liveness(now func() time.Time) reconcile.Task {
	began := map[resource.ID]time.Time{} // since when we listen; steps for one host never overlap, but those of two may: guarded by h.mu
	return reconcile.Task{
		Name: "host-liveness",
		All:  func(tx *state.Tx) []resource.ID { return hosts.IDs(tx, "name", "") },
		Touched: func(e state.Event) []resource.ID {
			if _, ok := e.After.(*Host); ok && e.Before == nil {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			known, ok := hosts.Find(h.State.Latest(), id)
			h.mu.Lock()
			now := now()
			switch _, was := began[id]; {
			case !ok:
				delete(began, id)
			case !was || !known.Up():
				began[id] = now
			}
			since := began[id]
			if heard := h.heardAt(id, now); heard.After(since) {
				since = heard
			}
			h.mu.Unlock()
			switch {
			case !ok:
				return reconcile.Next{}, nil
			case !known.Up():
				return reconcile.Next{After: Expect / 3}, nil
			case now.Sub(since) >= Expect:
				return reconcile.Next{After: Expect / 3}, Lose(ctx, h.State, id)
			}
			return reconcile.Next{After: Expect - now.Sub(since)}, nil
		},
	}
}
