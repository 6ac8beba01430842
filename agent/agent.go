package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// A Handler makes one kind of thing real. Calls for one thing never overlap.
type Handler struct {
	Kind string
	// Ensure takes a thing nearer to what is wanted and says what it saw (nil: nothing to
	// report) and when it wants to come again (0: when something changes). What it saw is
	// reported even with an error.
	Ensure func(ctx context.Context, id resource.ID, body json.RawMessage) (seen any, again time.Duration, err error)
	// Remove takes away everything of a thing; nil if there is nothing.
	Remove func(ctx context.Context, id resource.ID) error
	// Present lists what the machine holds, wanted or not.
	Present func(ctx context.Context) ([]resource.ID, error)
}

// An Agent is one host's loop.
type Agent struct {
	handlers []Handler
	store    Store // nil: nothing is kept over a restart

	mu        sync.Mutex
	wants     map[host.Key]json.RawMessage // guarded by mu
	removing  map[host.Key]bool            // to be taken away; guarded by mu
	queue     reconcile.Queue[host.Key]    // guarded by mu
	confirmed bool                         // a controller has told everything since the start; guarded by mu
	outbox    []host.Key                   // to be reported, each once; guarded by mu
	seen      map[host.Key]json.RawMessage // what is in the outbox; guarded by mu
	told      map[host.Key]json.RawMessage // what the controller has; guarded by mu
	wake      chan struct{}
	report    chan struct{}
}

// New makes an agent that begins with what its store remembers. Handlers come in the
// order in which things build on each other.
func New(store Store, now time.Time, handlers ...Handler) (*Agent, error) {
	a := &Agent{handlers: handlers, store: store, wants: map[host.Key]json.RawMessage{}, removing: map[host.Key]bool{},
		seen: map[host.Key]json.RawMessage{}, told: map[host.Key]json.RawMessage{},
		wake: make(chan struct{}, 1), report: make(chan struct{}, 1)}
	if store == nil {
		return a, nil
	}
	items, err := store.Load()
	if err != nil {
		return nil, fmt.Errorf("load what was wanted: %w", err)
	}
	for _, item := range items {
		a.wants[item.Key] = item.Body
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all(now)
	return a, nil
}

// all makes every wanted thing due, in the handlers' order. The caller holds mu.
func (a *Agent) all(now time.Time) {
	keys := make([]host.Key, 0, len(a.wants))
	for key := range a.wants {
		keys = append(keys, key)
	}
	a.sort(keys)
	for _, key := range keys {
		a.queue.Add(key, now)
	}
}

// sort puts keys into the handlers' order, then that of their IDs.
func (a *Agent) sort(keys []host.Key) {
	slices.SortFunc(keys, func(x, y host.Key) int {
		if x.Kind != y.Kind {
			return a.rank(x.Kind) - a.rank(y.Kind)
		}
		return bytes.Compare(x.ID[:], y.ID[:])
	})
}

func (a *Agent) rank(kind string) int {
	return slices.IndexFunc(a.handlers, func(h Handler) bool { return h.Kind == kind })
}

// Deliver takes in what a controller wants. It is on disk when Deliver returns.
func (a *Agent) Deliver(d host.Delivery, now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.store != nil {
		if err := a.store.Save(d, a.wants); err != nil {
			return fmt.Errorf("keep what is wanted: %w", err)
		}
	}
	named := map[host.Key]bool{}
	for _, item := range d.Items {
		named[item.Key] = true
		if item.Body == nil {
			delete(a.wants, item.Key)
			a.removing[item.Key] = true
		} else {
			a.wants[item.Key] = item.Body
			delete(a.removing, item.Key)
		}
		if !d.Full {
			a.queue.Add(item.Key, now)
		}
	}
	if d.Full {
		a.confirmed = true
		clear(a.told)
		for key := range a.wants {
			if !named[key] {
				delete(a.wants, key)
				a.removing[key] = true
			}
		}
		a.all(now)
		gone := make([]host.Key, 0, len(a.removing))
		for key := range a.removing {
			gone = append(gone, key)
		}
		a.sort(gone)
		slices.Reverse(gone)
		for _, key := range gone {
			a.queue.Add(key, now)
		}
	}
	a.poke()
	return nil
}

// Resync makes everything due, and looks for what the machine holds and nobody wants; the latter
// only after a controller has told everything, for a lost disk must not end guests.
func (a *Agent) Resync(ctx context.Context, now time.Time) error {
	a.mu.Lock()
	a.all(now)
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
		a.mu.Lock()
		for _, id := range present {
			key := host.Key{Kind: h.Kind, ID: id}
			if _, wanted := a.wants[key]; !wanted && !a.removing[key] {
				slog.InfoContext(ctx, "taking away what nobody wants", "kind", key.Kind, "id", key.ID)
				a.removing[key] = true
				a.queue.Add(key, now)
			}
		}
		a.mu.Unlock()
	}
	a.poke()
	return nil
}

// Touch makes a thing due: something about it changed by itself.
func (a *Agent) Touch(key host.Key, now time.Time) {
	a.mu.Lock()
	if _, wanted := a.wants[key]; wanted {
		a.queue.Add(key, now)
	}
	a.mu.Unlock()
	a.poke()
}

func (a *Agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Want is what is wanted of a thing; false if nothing is.
func (a *Agent) Want(key host.Key) (json.RawMessage, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, ok := a.wants[key]
	return body, ok
}

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
	a.mu.Unlock()
	if !ok {
		return false
	}
	n := a.rank(key.Kind)
	if n < 0 || !wanted && !removing {
		a.done(key, now, 0, nil)
		return true
	}
	if removing && !wanted {
		a.remove(ctx, a.handlers[n], key, now)
		return true
	}
	seen, again, err := ensure(ctx, a.handlers[n], key.ID, body)
	if err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "could not make a thing real", "kind", key.Kind, "id", key.ID, "err", err)
	}
	if seen != nil {
		if text, err := json.Marshal(seen); err != nil {
			slog.ErrorContext(ctx, "could not encode a report", "kind", key.Kind, "id", key.ID, "err", err)
		} else {
			a.tell(key, text)
		}
	}
	a.done(key, now, again, err)
	return true
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
	if err != nil {
		slog.WarnContext(ctx, "could not take a thing away", "kind", key.Kind, "id", key.ID, "err", err)
		a.done(key, now, 0, err)
		return
	}
	a.mu.Lock()
	_, back := a.wants[key]
	delete(a.removing, key)
	a.mu.Unlock()
	if !back {
		a.tell(key, host.Gone)
	}
	a.done(key, now, 0, nil)
}

func (a *Agent) done(key host.Key, now func() time.Time, again time.Duration, err error) {
	a.mu.Lock()
	a.queue.Done(key, now(), again, err != nil)
	a.mu.Unlock()
}

// tell puts a report into the outbox unless the controller knows it.
func (a *Agent) tell(key host.Key, seen json.RawMessage) {
	a.mu.Lock()
	_, waiting := a.seen[key]
	if !waiting && bytes.Equal(a.told[key], seen) {
		a.mu.Unlock()
		return
	}
	if !waiting {
		a.outbox = append(a.outbox, key)
	}
	a.seen[key] = seen
	a.mu.Unlock()
	select {
	case a.report <- struct{}{}:
	default:
	}
}

// Reports takes up to max reports out of the outbox. Give them to Sent once the controller has
// them, or to Unsent if it could not be reached.
func (a *Agent) Reports(max int) []host.Observation {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(max, len(a.outbox))
	var reports []host.Observation
	for _, key := range a.outbox[:n] {
		reports = append(reports, host.Observation{Key: key, Seen: a.seen[key]})
		delete(a.seen, key)
	}
	a.outbox = slices.Delete(a.outbox, 0, n)
	return reports
}

// Sent remembers what the controller knows now.
func (a *Agent) Sent(reports []host.Observation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range reports {
		if bytes.Equal(r.Seen, host.Gone) {
			delete(a.told, r.Key)
		} else {
			a.told[r.Key] = r.Seen
		}
	}
}

// Unsent puts reports back, unless newer ones wait.
func (a *Agent) Unsent(reports []host.Observation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range reports {
		if _, newer := a.seen[r.Key]; !newer {
			a.seen[r.Key] = r.Seen
			a.outbox = append(a.outbox, r.Key)
		}
	}
}
