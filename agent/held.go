package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/host"
)

// KeepHeld is how long a thing is kept that a controller does not want, but has not ordered away
// either: it may have lost its memory, and the thing be all that somebody has.
const KeepHeld = 7 * 24 * time.Hour

// holds reports whether things of a kind are held rather than removed when nobody names them.
func (a *Agent) holds(kind string) bool {
	n := a.rank(kind)
	return n >= 0 && a.handlers[n].Halt != nil
}

// hold takes over what is held from now on, and what is not any more. The caller holds mu.
func (a *Agent) hold(held map[host.Key]*Held) {
	for key, h := range held {
		if h == nil {
			delete(a.held, key)
			continue
		}
		slog.Warn("keeping what the controller does not know", "kind", key.Kind, "id", key.ID, "for", KeepHeld)
		a.held[key] = *h
	}
}

// halt makes a thing rest that is held, and tells the controller about it.
func (a *Agent) halt(ctx context.Context, h Handler, key host.Key, held Held, now func() time.Time) {
	again, err := h.Halt(ctx, key.ID)
	if fault.Is(err, fault.NotFound) {
		a.remove(ctx, h, key, now)
		return
	}
	if err != nil {
		slog.WarnContext(ctx, "could not halt a thing that nobody wants", "kind", key.Kind, "id", key.ID, "err", err)
		a.done(ctx, key, now, 0, err)
		return
	}
	until := held.Since.Add(KeepHeld)
	a.observed(ctx, key, host.HeldReport{Held: &host.Holding{Since: held.Since, Until: until}})
	if again == 0 {
		again = max(until.Sub(now()), time.Millisecond)
	}
	a.done(ctx, key, now, again, nil)
}
