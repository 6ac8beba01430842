package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/trace"
	"github.com/unkai-cloud/unkai/core/compute"
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
	// Halt makes a thing rest that nobody wants, and destroys nothing. It says when it wants to come
	// again to go on (0: the thing rests). A fault of kind NotFound: there is nothing worth keeping.
	// nil: things of this kind hold nothing of anybody's, and are removed at once.
	Halt func(ctx context.Context, id resource.ID) (again time.Duration, err error)
	// Present lists what the machine holds, wanted or not.
	Present func(ctx context.Context) ([]resource.ID, error)
}

// KeepHeld is how long a thing is kept that a controller does not want, but has not ordered away
// either: it may have lost its memory, and the thing be all that somebody has.
const KeepHeld = 7 * 24 * time.Hour

// An Agent is one host's loop.
type Agent struct {
	// Lease is renewed as long as a session lasts; nil: nothing here needs one.
	Lease *Lease

	handlers []Handler
	store    Store // nil: nothing is kept over a restart

	saving sync.Mutex // held, before mu, from when it is known what is to be kept until it is; disks are slow

	mu        sync.Mutex
	wants     map[host.Key]json.RawMessage // guarded by mu
	requests  map[host.Key]string          // for which a thing is taken up, until a step of it ends well; guarded by mu
	removing  map[host.Key]bool            // to be taken away; guarded by mu
	held      map[host.Key]Held            // wanted by nobody, and kept; guarded by mu
	mark      host.Mark                    // of the newest state that was taken in; guarded by mu
	queue     reconcile.Queue[host.Key]    // guarded by mu
	confirmed bool                         // a controller has told everything since the start; guarded by mu
	current   bool                         // a controller has told everything in the present session; guarded by mu
	arrival   int                          // of the newest full delivery; guarded by mu
	outbox    []host.Key                   // to be reported, each once; guarded by mu
	seen      map[host.Key]json.RawMessage // what is in the outbox; guarded by mu
	told      map[host.Key]json.RawMessage // what the controller has; guarded by mu
	wake      chan struct{}
	report    chan struct{}

	inSession atomic.Bool
}

// Told reports whether a controller has told everything that it wants, in a session that goes on.
func (a *Agent) Told() bool { return a.inSession.Load() }

// New makes an agent that begins with what its store remembers. Handlers come in the
// order in which things build on each other.
func New(store Store, now time.Time, handlers ...Handler) (*Agent, error) {
	a := &Agent{handlers: handlers, store: store, wants: map[host.Key]json.RawMessage{}, requests: map[host.Key]string{}, removing: map[host.Key]bool{},
		held: map[host.Key]Held{}, seen: map[host.Key]json.RawMessage{}, told: map[host.Key]json.RawMessage{},
		wake: make(chan struct{}, 1), report: make(chan struct{}, 1)}
	if store == nil {
		return a, nil
	}
	kept, err := store.Load()
	if err != nil {
		return nil, fmt.Errorf("load what was wanted: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, item := range kept.Items {
		a.wants[item.Key] = item.Body
	}
	maps.Copy(a.held, kept.Held)
	a.mark = kept.Mark
	a.all(now)
	return a, nil
}

// all makes everything due. The caller holds mu.
func (a *Agent) all(now time.Time) {
	for _, key := range a.keys() {
		a.queue.Add(key, now)
	}
}

// keys are of what is wanted, in the handlers' order, and before it of what is held. The caller holds mu.
func (a *Agent) keys() []host.Key {
	held, wanted := slices.Collect(maps.Keys(a.held)), slices.Collect(maps.Keys(a.wants))
	a.sort(held)
	a.sort(wanted)
	return append(held, wanted...)
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

// holds reports whether things of a kind are held rather than removed when nobody names them.
func (a *Agent) holds(kind string) bool {
	n := a.rank(kind)
	return n >= 0 && a.handlers[n].Halt != nil
}

// Mark tells which state the agent took in last.
func (a *Agent) Mark() host.Mark {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mark
}

// Deliver takes in what a controller wants. It is on disk when Deliver returns. What a full
// delivery does not name is held, or removed if it is nobody's. One of an older state than was
// taken in before is refused: its controller has forgotten what it had ordered.
func (a *Agent) Deliver(d host.Delivery, now time.Time) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	mark, c := a.mark, a.changeOf(d, now)
	a.mu.Unlock()
	if d.Full && d.Mark.Before(mark) {
		return fmt.Errorf("the controller's state is at %v, older than %v, which this host has taken in: "+
			"was a backup restored? `unkai controller restored` says so to the hosts", d.Mark, mark)
	}
	if a.store != nil && (len(c.Items) > 0 || len(c.Held) > 0 || c.Mark != (host.Mark{})) {
		if err := a.store.Save(c); err != nil {
			return fmt.Errorf("keep what is wanted: %w", err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, item := range d.Items {
		if item.Request != "" {
			a.requests[item.Key] = item.Request
		}
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
	for _, item := range c.Items { // and what a full delivery does not name
		if item.Body == nil {
			delete(a.wants, item.Key)
			if !a.holds(item.Kind) {
				a.removing[item.Key] = true
			}
		}
	}
	a.hold(c.Held)
	if a.mark.Before(d.Mark) {
		a.mark = d.Mark
	}
	if d.Full {
		a.confirmed, a.current, a.arrival = true, true, d.Arrival
		clear(a.told)
		gone := slices.Collect(maps.Keys(a.removing))
		a.sort(gone)
		slices.Reverse(gone)
		for _, key := range gone {
			a.queue.Add(key, now)
		}
		a.all(now)
	}
	a.poke()
	return nil
}

// changeOf is what a delivery changes of what is kept. The caller holds mu.
func (a *Agent) changeOf(d host.Delivery, now time.Time) Change {
	c := Change{Held: map[host.Key]*Held{}}
	if a.mark.Before(d.Mark) {
		c.Mark = d.Mark
	}
	named := map[host.Key]bool{}
	for _, item := range d.Items {
		named[item.Key] = true
		was, wanted := a.wants[item.Key]
		if wanted != (item.Body != nil) || !bytes.Equal(was, item.Body) {
			c.Items = append(c.Items, item)
		}
		if _, held := a.held[item.Key]; held && item.Body != nil {
			c.Held[item.Key] = nil
		}
	}
	if !d.Full {
		return c
	}
	for key, body := range a.wants {
		if named[key] {
			continue
		}
		c.Items = append(c.Items, host.Item{Key: key})
		if a.holds(key.Kind) {
			c.Held[key] = &Held{Since: now, Body: body}
		}
	}
	return c
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

// Begin takes in that a session with a controller begins: what it wants is not known before its first delivery.
func (a *Agent) Begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = false
}

// Current reports whether a controller has told everything in the present session: only then is it known what is
// this host's, and the lease asked for.
func (a *Agent) Current() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// Arrival is which of this host's arrivals what is wanted was told after.
func (a *Agent) Arrival() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.arrival
}

// leasedGuests lists the guests that are run under the lease, in order.
func (a *Agent) leasedGuests() []resource.ID {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []resource.ID
	for key, body := range a.wants {
		if key.Kind == "guest" && bytes.Contains(body, []byte(`"Leased":true`)) { // one too many does no harm
			ids = append(ids, key.ID)
		}
	}
	slices.SortFunc(ids, func(x, y resource.ID) int { return bytes.Compare(x[:], y[:]) })
	return ids
}

// ToRun are the guests that this host is to have running, as far as it has been told; those whose wishes it cannot read are among them.
func (a *Agent) ToRun() (all []resource.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, body := range a.wants {
		var want compute.Guest
		if key.Kind == "guest" && (json.Unmarshal(body, &want) != nil || want.Power == compute.On || want.Power == compute.Paused) {
			all = append(all, key.ID)
		}
	}
	return all
}

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
	held, isHeld := a.held[key]
	request := a.requests[key]
	delete(a.requests, key)
	a.mu.Unlock()
	if !ok {
		return false
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
		a.tell(key, host.Gone)
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

// spellings are room for reports: most say again what the controller knows.
var spellings = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// observed reports what was seen of a thing.
func (a *Agent) observed(ctx context.Context, key host.Key, seen any) {
	room := spellings.Get().(*bytes.Buffer)
	defer spellings.Put(room)
	room.Reset()
	if err := json.NewEncoder(room).Encode(seen); err != nil {
		slog.ErrorContext(ctx, "could not encode a report", "kind", key.Kind, "id", key.ID, "err", err)
		return
	}
	a.tell(key, bytes.TrimSuffix(room.Bytes(), []byte{'\n'}))
}

// tell puts a report into the outbox unless the controller knows it. The text is copied.
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
	a.seen[key] = bytes.Clone(seen)
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
