package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/trace"
	"github.com/unkai-cloud/unkai/core/host"
)

// Due is when the next step is due; false if nothing waits.
func (a *Agent) Due() (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.queue.Next()
}

// Step runs one due step; false if none is due.
func (a *Agent) Step(ctx context.Context, now func() time.Time) bool {
	a.mu.Lock()
	key, ok := a.queue.Take(now())
	body, wanted := a.wants[key]
	removing := a.removing[key]
	held, isHeld := a.held[key]
	request := a.requests[key]
	delete(a.requests, key)
	next, more := a.queue.Next()
	early := a.Word != nil && a.Word.awaited() // here: what was taken up before the word does not count because it is given meanwhile
	a.mu.Unlock()
	if !ok {
		return false
	}
	if early {
		ctx = context.WithValue(ctx, unheard{}, true)
	}
	if more && !next.After(now()) {
		a.poke() // another worker, before this step: it may take long
	}
	if request != "" {
		ctx = state.WithCause(ctx, state.Cause{RequestID: request})
		var span *trace.Span
		ctx, span = trace.Within(ctx, request, key.Kind, time.Now())
		defer func() {
			span.Note("thing", key.ID.String())
			span.End()
		}()
	}
	n := a.rank(key.Kind)
	switch {
	case n >= 0 && wanted:
		a.ensure(ctx, a.handlers[n], key, body, now)
	case n >= 0 && (removing || isHeld && now().Sub(held.Since) >= KeepHeld):
		a.remove(ctx, a.handlers[n], key, now)
	case n >= 0 && isHeld:
		a.halt(ctx, a.handlers[n], key, held, now)
	default:
		a.done(ctx, key, now, 0, nil)
	}
	return true
}

func (a *Agent) ensure(ctx context.Context, h Handler, key host.Key, body json.RawMessage, now func() time.Time) {
	seen, again, err := ensure(ctx, h, key.ID, body)
	count(h.Kind, err)
	if err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "could not make a thing real", "kind", key.Kind, "id", key.ID, "err", err)
	} else if err == nil {
		slog.DebugContext(ctx, "took a step", "kind", key.Kind, "id", key.ID, "again", again)
	}
	if seen != nil {
		a.observed(ctx, key, seen)
	}
	a.done(ctx, key, now, again, err)
}

func ensure(ctx context.Context, h Handler, id resource.ID, body json.RawMessage) (seen any, again time.Duration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return h.Ensure(ctx, id, body)
}

func (a *Agent) remove(ctx context.Context, h Handler, key host.Key, now func() time.Time) {
	err := h.Remove(ctx, key.ID)
	count(h.Kind, err)
	if err != nil {
		slog.WarnContext(ctx, "could not take a thing away", "kind", key.Kind, "id", key.ID, "err", err)
		a.done(ctx, key, now, 0, err)
		return
	}
	back, err := a.forget(key)
	if err != nil {
		slog.WarnContext(ctx, "could not forget what was held", "kind", key.Kind, "id", key.ID, "err", err)
		a.done(ctx, key, now, 0, err)
		return
	}
	if !back {
		a.tell(key, host.Gone, false)
	}
	a.done(ctx, key, now, 0, nil)
}

// forget takes in that a thing is gone, and tells whether it is wanted again.
func (a *Agent) forget(key host.Key) (back bool, err error) {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	_, held := a.held[key]
	a.mu.Unlock()
	if held && a.store != nil {
		if err := a.store.Save(Change{Held: map[host.Key]*Held{key: nil}}); err != nil {
			return false, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, back = a.wants[key]
	delete(a.held, key)
	delete(a.removing, key)
	return back, nil
}

func (a *Agent) done(ctx context.Context, key host.Key, now func() time.Time, again time.Duration, err error) {
	again = spread(key.ID, again)
	a.mu.Lock()
	a.queue.Done(key, now(), again, err != nil)
	// What goes on soon goes on for the same request, unless a newer one has come.
	if request := state.CauseOf(ctx).RequestID; request != "" && a.requests[key] == "" && (err != nil || again > 0 && again < lookAgain) {
		a.requests[key] = request
	}
	a.mu.Unlock()
}

// lookAgain is from when on a step that comes again only looks whether all is as it was.
const lookAgain = 5 * time.Second

// spread shortens a long wait by up to a half, more or less for each thing: hundreds that were
// made together are not to be looked at together for ever, and take a host's processors, or a simulation's, at once.
func spread(id resource.ID, wait time.Duration) time.Duration {
	if wait < 5*time.Second {
		return wait
	}
	return wait - part(id, wait/2)
}

// part is a part of a span of time, another one for each thing.
func part(id resource.ID, span time.Duration) time.Duration {
	return span / 256 * time.Duration(id[15])
}
