package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// A Lease is a host's right to run guests that may be started elsewhere; see host.LeaseTime.
type Lease struct {
	// Watchdog resets the machine when nobody pets it. With one, guests that are run under the lease are cut off when it is over.
	// nil: they run on then, and are only not started.
	Watchdog Watchdog
	// Clock is one that nobody sets and that never stands still; BootClock when nil.
	Clock func() time.Time
	// Wall is the machine's clock, which the controller compares with its own; time.Now when nil.
	Wall func() time.Time

	file string // outlives the agent, not the machine's boot; "" for none

	mu    sync.Mutex
	until time.Time // guarded by mu
	over  bool      // seen to be over, and acted on; guarded by mu
	armed bool      // guarded by mu

	answered time.Time // the controller's clock, as its last answer said; guarded by mu
	since    time.Time // when that came, on the lease's clock; guarded by mu
}

// A Watchdog resets the machine when it is armed and was not petted for WatchdogTime.
type Watchdog interface {
	Arm() error    // arms it, or pets it if it is armed
	Disarm() error // lets it rest; one that cannot rest is petted
}

const (
	// WatchdogTime and cutWithin together are well within host.LeaseMargin.
	WatchdogTime = 30 * time.Second
	// cutWithin is how long guests may take to be gone after the lease is over, before the watchdog is left alone.
	cutWithin  = 15 * time.Second
	guardEvery = time.Second
	askWithin  = 5 * time.Second
)

// BootClock is the time since the machine's boot, sleep included, as a time.
func BootClock() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every kernel that we run on has it
	}
	return time.Unix(ts.Unix())
}

type keptLease struct {
	Boot  string
	Until time.Time
}

// OpenLease takes up what an earlier agent was granted since the machine's boot.
func OpenLease(file string, w Watchdog) (*Lease, error) {
	l := &Lease{Watchdog: w, file: file}
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	var kept keptLease
	if json.Unmarshal(text, &kept) == nil && kept.Boot == boot() { // what is damaged is none
		l.until = kept.Until
	}
	return l, nil
}

// boot tells one run of the machine from another.
func boot() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (l *Lease) now() time.Time {
	if l.Clock == nil {
		return BootClock()
	}
	return l.Clock()
}

// Holds reports whether guests may be started under the lease.
func (l *Lease) Holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now().Before(l.until)
}

// Asks is when the host asks for the lease: it counts from then.
func (l *Lease) Asks() time.Time { return l.now() }

// request asks for the lease, at a moment that Asks gave. That the machine's clock is read after it is all that may have come between: it counts as being under way.
func (l *Lease) request(arrival int, asked time.Time) host.LeaseRequest {
	wall := time.Now
	if l.Wall != nil {
		wall = l.Wall
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	q := host.LeaseRequest{Arrival: arrival, Clock: wall()}
	if !l.answered.IsZero() {
		q.Answered, q.Held = l.answered, asked.Sub(l.since)
	}
	return q
}

// Granted takes in that it was.
func (l *Lease) Granted(asked time.Time, a host.LeaseAnswer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = asked.Add(a.For)
	l.answered, l.since = a.Clock, l.now()
	if l.file == "" {
		return nil
	}
	text, err := json.Marshal(keptLease{boot(), l.until})
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.file+".new", text, 0o600); err != nil { // not synced: a machine that boots anew has no lease
		return fmt.Errorf("keep the lease: %w", err)
	}
	return os.Rename(l.file+".new", l.file)
}

// overSince is for how long the lease has been over; negative while it is not.
func (l *Lease) overSince() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now().Sub(l.until)
}

// turned reports whether the lease ended, or was granted anew, since the last call.
func (l *Lease) turned() bool {
	over := !l.Holds()
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.over
	l.over = over
	return was != over
}

// arm makes sure that the watchdog is armed, if there is one.
func (l *Lease) arm() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Watchdog == nil || l.armed {
		return nil
	}
	if err := l.Watchdog.Arm(); err != nil {
		return fmt.Errorf("arm the watchdog, without which no guest is run that may be started elsewhere: %w", err)
	}
	l.armed = true
	return nil
}

// tend pets the watchdog, or lets it rest while there is nothing that it could be for.
func (l *Lease) tend(needed, pet bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.Watchdog == nil:
		return nil
	case !needed:
		l.armed = false
		return l.Watchdog.Disarm()
	case needed && pet:
		l.armed = true
		return l.Watchdog.Arm()
	}
	return nil
}

// keepLease renews the lease until ctx ends, whenever a controller has told in the present session what is this host's.
func (a *Agent) keepLease(ctx context.Context, link Leaser) {
	for failures := 0; ctx.Err() == nil; {
		if !a.Current() {
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		err := a.renewLease(ctx, link)
		if err == nil {
			failures = 0
			sleep(ctx, host.RenewEvery)
			continue
		}
		if failures++; failures == 1 && ctx.Err() == nil {
			slog.WarnContext(ctx, "the host's lease was not renewed; it is tried again", "err", err)
		}
		sleep(ctx, time.Second)
	}
}

func (a *Agent) renewLease(ctx context.Context, link Leaser) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	asked := a.Lease.Asks()
	answer, err := link.Lease(ctx, a.Lease.request(a.Arrival(), asked))
	if err != nil {
		return err
	}
	return a.Lease.Granted(asked, answer)
}

// Guard has guests looked at when the lease ended or began, and tends the watchdog. It is to be called every second.
func (g *Guests) Guard(ctx context.Context, a *Agent) error {
	if g.Lease == nil {
		return nil
	}
	leased := a.leasedGuests()
	if g.Lease.turned() {
		if !g.Lease.Holds() && len(leased) > 0 {
			slog.WarnContext(ctx, "the host's lease is over", "guests", len(leased), "cut off", g.Lease.Watchdog != nil)
		}
		for _, id := range leased {
			a.Touch(host.Key{Kind: "guest", ID: id}, time.Time{}) // before all else
		}
	}
	needed := len(leased) > 0
	return g.Lease.tend(needed, g.Lease.overSince() < cutWithin || g.noneRuns(ctx, leased))
}

// noneRuns reports whether it is sure that none of these runs.
func (g *Guests) noneRuns(ctx context.Context, ids []resource.ID) bool {
	for _, id := range ids {
		if runs, err := g.runs(ctx, id); err != nil || runs {
			return false
		}
	}
	return true
}

// underLease decides about a guest that is run under the lease alone. mine: the lease says nothing against what is wanted.
func (g *Guests) underLease(ctx context.Context, want *compute.Guest) (mine bool, report any, again time.Duration, err error) {
	if !want.Leased || g.Lease == nil {
		return true, nil, 0, nil
	}
	if err := g.Lease.arm(); err != nil {
		return false, nil, 0, err
	}
	if g.Lease.Holds() || want.Power != compute.On && want.Power != compute.Paused {
		return true, nil, 0, nil
	}
	runs, err := g.runs(ctx, want.ID)
	switch {
	case err != nil:
		return false, nil, 0, err
	case runs && g.Lease.Watchdog == nil:
		return true, nil, 0, nil // nobody takes an end of the lease for the guest's
	case runs:
		off := *want
		off.Power, off.GraceSeconds, off.Leave, off.Arrive = compute.Off, 0, nil, nil
		if _, err := g.Driver.Ensure(ctx, off); err != nil {
			return false, nil, 0, fmt.Errorf("cut off a guest, for the lease is over: %w", err)
		}
	}
	seen, err := g.seen(ctx, want.ID)
	if err != nil {
		return false, nil, 0, err
	}
	seen.Busy, seen.Trouble = true, "" // it waits
	return false, compute.Seen{Observation: seen, Wish: want.Wish}, guardEvery, nil
}
