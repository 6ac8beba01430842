package host

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Liveness marks hosts as lost that could not be heard for as long as Expect. When a
// host was last heard is no state: a new controller gives every host that long again.
func (h *Hub) Liveness(now func() time.Time) reconcile.Task {
	silent := map[resource.ID]time.Time{} // since when; steps for one host never overlap, but those of two may
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
			connected := h.audible(id, now())
			if !ok || connected {
				delete(silent, id)
			}
			since, was := silent[id]
			if ok && !connected && !was {
				since = now()
				if s := h.sessions[id]; s != nil {
					since = s.heard
				}
				silent[id] = since
			}
			h.mu.Unlock()
			switch {
			case !ok:
				return reconcile.Next{}, nil
			case connected || !known.Up():
				return reconcile.Next{After: Expect / 3}, nil
			case now().Sub(since) >= Expect:
				err := Lose(ctx, h.State, id)
				h.endSession(id) // it says hello again, if it is there
				return reconcile.Next{After: Expect / 3}, err
			}
			return reconcile.Next{After: Expect - now().Sub(since)}, nil
		},
	}
}
