package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// Resync makes everything due within resyncEvery, each thing at a moment of its own: a host's guests are not to be looked at all in
// one. And it looks for what the machine holds and nobody wants, but only after a controller has told
// everything, for a lost disk must not end guests.
func (a *Agent) Resync(ctx context.Context, now time.Time) error {
	a.mu.Lock()
	for _, key := range a.keys() {
		a.queue.Add(key, now.Add(part(key.ID, resyncEvery)))
	}
	confirmed := a.confirmed
	a.mu.Unlock()
	a.poke()
	if !confirmed {
		return nil
	}
	for _, h := range slices.Backward(a.handlers) {
		present, err := h.Present(ctx)
		if err != nil {
			return fmt.Errorf("list what there is of %s: %w", h.Kind, err)
		}
		if err := a.found(ctx, h, present, now); err != nil {
			return err
		}
	}
	a.poke()
	return nil
}

// found takes in what there is of one kind.
func (a *Agent) found(ctx context.Context, h Handler, present []resource.ID, now time.Time) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	strays := map[host.Key]*Held{}
	a.mu.Lock()
	for _, id := range present {
		key := host.Key{Kind: h.Kind, ID: id}
		_, wanted := a.wants[key]
		_, held := a.held[key]
		switch {
		case wanted || held || a.removing[key]:
		case h.Halt != nil:
			strays[key] = &Held{Since: now}
		default:
			slog.InfoContext(ctx, "taking away what nobody wants", "kind", key.Kind, "id", key.ID)
			a.removing[key] = true
			a.queue.Add(key, now)
		}
	}
	a.mu.Unlock()
	if len(strays) == 0 {
		return nil
	}
	if a.store != nil {
		if err := a.store.Save(Change{Held: strays}); err != nil {
			return fmt.Errorf("keep what is held: %w", err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hold(strays)
	for key := range strays {
		a.queue.Add(key, now)
	}
	return nil
}
