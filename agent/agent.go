package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
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

// An Agent is one host's loop.
type Agent struct {
	// Lease is renewed as long as a session lasts; nil: nothing here needs one.
	Lease *Lease
	// Word is given with the first full delivery, and until then guests are not started; nil: nothing here waits for it.
	Word *Word

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
	roster    roster                       // guarded by mu
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
