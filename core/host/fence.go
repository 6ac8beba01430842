package host

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Fencing is what makes sure that a lost host runs nothing any more.
type Fencing struct {
	Driver string `json:",omitempty"` // "exec", "redfish", …; "" for none

	Program string `json:",omitempty"` // of exec: its name among the controller's fence programs

	URL         string `json:",omitempty"` // of redfish: the system's, as https://bmc/redfish/v1/Systems/1
	Username    string `json:",omitempty"`
	Password    string `json:",omitempty" secret:"true"`
	Fingerprint string `json:",omitempty"` // SHA-256 of the certificate that it shows, in hex; "" for one that a known authority signed

	// Found out.
	Trouble  string    `json:",omitempty"` // why it failed the last time
	Failures int       `json:",omitempty"` // in a row, of the present loss
	TriedAt  time.Time `json:",omitzero"`
}

// Fenced is how a host is known to be dead.
type Fenced struct {
	At     time.Time
	How    string      // the driver's name; ByLease or ByWord
	UserID resource.ID // of who said so
}

// What makes a host known to be dead, besides a driver.
const (
	ByLease = "lease" // it is over, and a watchdog has seen to that
	ByWord  = "word"  // an operator says so
)

// A Fencer makes sure that a machine runs nothing any more. It may be called again and again, and by two controllers.
type Fencer interface {
	// Off returns nil once the machine is surely off, or has surely been off since the call began.
	Off(ctx context.Context, h *Host) error
}

var programs = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

var fingerprints = regexp.MustCompile(`^([0-9a-f]{64})?$`)

func (f *Fencing) check() error {
	switch f.Driver {
	case "":
		if *f != (Fencing{}) {
			return fault.InvalidField("driver", "must be exec or redfish")
		}
	case "exec":
		if !programs.MatchString(f.Program) {
			return fault.InvalidField("program", "must name a program by 1 to 63 letters, digits, dashes or underscores")
		}
	case "redfish":
		at, err := url.Parse(f.URL)
		if err != nil || at.Scheme != "https" || at.Hostname() == "" || at.User != nil || at.RawQuery != "" || at.Fragment != "" {
			return fault.InvalidField("url", "must be a system's address, such as https://bmc.example.org/redfish/v1/Systems/1")
		}
		if !fingerprints.MatchString(f.Fingerprint) {
			return fault.InvalidField("fingerprint", "must be a SHA-256 fingerprint: 64 digits of lower-case hex")
		}
	default:
		return fault.InvalidField("driver", "must be exec or redfish")
	}
	return nil
}

// SetFencing says how a host is fenced.
func (s *Service) SetFencing(ctx context.Context, id resource.ID, f Fencing) (*Host, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Host, error) {
		h, err := hostFor(ctx, tx, id)
		if err != nil {
			return nil, err
		}
		if err := f.check(); err != nil {
			return nil, err
		}
		h.Fencing = f
		return h, hosts.Put(tx, h)
	})
}

func hostFor(ctx context.Context, tx *state.Tx, id resource.ID) (*Host, error) {
	h, ok := hosts.Find(tx, id)
	if !ok {
		return nil, fault.Missing("host", id)
	}
	return h, identity.Allow(ctx, "host.update", h.Meta)
}

// Vouch is an operator's word that a lost host runs nothing any more, not even what its lease says nothing of. Nobody checks it: if it is wrong,
// guests run twice.
func (s *Service) Vouch(ctx context.Context, id resource.ID) (*Host, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Host, error) {
		h, err := hostFor(ctx, tx, id)
		switch {
		case err != nil:
			return nil, err
		case h.Up():
			return nil, fault.Errorf(fault.Conflict, "Host %s can be heard: it is not dead.", h.Name).WithCode("host-up")
		case h.Dead() && h.Fenced.How != ByLease:
			return h, nil
		}
		return h, h.bury(tx, ByWord, identity.ActorOf(ctx).UserID)
	})
}

func (h *Host) bury(tx *state.Tx, how string, by resource.ID) error {
	h.Fenced = Fenced{At: tx.Now(), How: how, UserID: by}
	if how != ByLease { // else the switch is asked still
		h.Fencing.Trouble, h.Fencing.Failures = "", 0
	}
	return hosts.Put(tx, h)
}

// A Fence sees to it that lost hosts are known to be dead, where somebody waits for that.
type Fence struct {
	State   *state.State
	Now     func() time.Time // a clock that nobody sets, as time.Now's
	Fencers map[string]Fencer
	// Confirm makes sure that no other controller knows more; nil: there is none.
	Confirm func(context.Context) error
	// Awaited reports whether something on the host is to be started elsewhere.
	Awaited func(tx *state.Tx, host resource.ID) bool
	// Missed reports whether a host that cannot be heard is, or may be off on purpose.
	Missed func(tx *state.Tx, h *Host) bool
}

const (
	// fenceAfter is how long after a host was lost it is fenced at the earliest: it may come back, and if we are cut off
	// ourselves others follow it.
	fenceAfter = Expect
	offWithin  = 2 * time.Minute
)

// Task is the fence's work, one step for each host.
func (f *Fence) Task() reconcile.Task {
	watches := &stopwatches{now: f.Now, began: map[resource.ID]loss{}}
	return reconcile.Task{
		Name: "host-fence",
		All:  func(tx *state.Tx) []resource.ID { return hosts.IDs(tx, "name", "") },
		Touched: func(e state.Event) []resource.ID {
			if h, ok := e.After.(*Host); ok && !h.Up() {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) { return f.step(ctx, id, watches) },
	}
}

func (f *Fence) step(ctx context.Context, id resource.ID, watches *stopwatches) (reconcile.Next, error) {
	tx := f.State.Latest()
	h, ok := hosts.Find(tx, id)
	if !ok || h.Up() || h.Dead() && !f.mayKnowMore(h) {
		watches.forget(id)
		return reconcile.Next{}, nil
	}
	lost := watches.since(id, h.Lost)
	again := reconcile.Next{After: 5 * time.Second}
	if lost < fenceAfter {
		return reconcile.Next{After: fenceAfter - lost}, nil
	}
	if _, _, storm := Storm(tx, f.Missed); storm || !f.Missed(tx, h) || !f.Awaited(tx, id) {
		return again, nil
	}
	if fencer := f.Fencers[h.Fencing.Driver]; fencer != nil && f.State.Now().Sub(h.Fencing.TriedAt) >= fenceBackoff(h.Fencing.Failures) {
		// Who was deposed and does not know it must not switch off a host that has come back since.
		if f.Confirm != nil {
			if err := f.Confirm(ctx); err != nil {
				return again, fmt.Errorf("make sure that host %s is lost: %w", h.Name, err)
			}
		}
		if now, ok := hosts.PeekOne(f.State.Latest(), id); !ok || !now.Lost.Equal(h.Lost) {
			return again, nil
		}
		err := off(ctx, fencer, h)
		return again, f.tried(ctx, h, err)
	}
	if !h.Dead() && KeepingOf(tx).Leases && h.Watchdog && lost >= LeaseTime+LeaseMargin {
		return again, f.stillLost(ctx, h, func(tx *state.Tx, h *Host) error { return h.bury(tx, ByLease, resource.ID{}) })
	}
	return again, nil
}

// mayKnowMore reports whether a dead host's switch is to be asked all the same: its lease says nothing of what is not run under that, for which
// servers may wait.
func (f *Fence) mayKnowMore(h *Host) bool {
	return h.Fenced.How == ByLease && f.Fencers[h.Fencing.Driver] != nil
}

func fenceBackoff(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	return min(10*time.Second<<min(failures-1, 10), 10*time.Minute)
}

func off(ctx context.Context, fencer Fencer, h *Host) error {
	ctx, cancel := context.WithTimeout(ctx, offWithin)
	defer cancel()
	return fencer.Off(ctx, h)
}

// tried records what came of fencing a host.
func (f *Fence) tried(ctx context.Context, h *Host, failed error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.stillLost(ctx, h, func(tx *state.Tx, h *Host) error {
		h.Fencing.TriedAt = tx.Now()
		if failed == nil {
			return h.bury(tx, h.Fencing.Driver, resource.ID{})
		}
		h.Fencing.Failures++
		h.Fencing.Trouble = failed.Error()
		if len(h.Fencing.Trouble) > 500 {
			h.Fencing.Trouble = h.Fencing.Trouble[:500]
		}
		return hosts.Put(tx, h)
	})
}

// stillLost changes a host if it is as lost as it was: one that has been back may have been lost anew, with guests running.
func (f *Fence) stillLost(ctx context.Context, was *Host, change func(*state.Tx, *Host) error) error {
	err := f.State.Update(ctx, func(tx *state.Tx) error {
		h, ok := hosts.Find(tx, was.ID)
		if !ok || h.Fenced != was.Fenced || !h.Lost.Equal(was.Lost) || h.Fencing.Driver != was.Fencing.Driver {
			return errOtherwise
		}
		return change(tx, h)
	})
	if errors.Is(err, errOtherwise) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("record what became of host %s: %w", was.Name, err)
	}
	return nil
}

var errOtherwise = errors.New("it is otherwise now")

// stopwatches measure how long hosts are lost, from when this process saw it first: the state's own time follows a clock that
// somebody may set.
type stopwatches struct {
	now func() time.Time

	mu    sync.Mutex
	began map[resource.ID]loss // guarded by mu
}

type loss struct {
	lost  time.Time // by the state: another one is another loss
	since time.Time // by our clock
}

func (w *stopwatches) since(id resource.ID, lost time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.began[id]
	if !ok || !l.lost.Equal(lost) {
		l = loss{lost, w.now()}
		w.began[id] = l
	}
	return w.now().Sub(l.since)
}

func (w *stopwatches) forget(id resource.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.began, id)
}
