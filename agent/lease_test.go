package agent

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/driver/sim"
)

// A fakeDog is a watchdog that counts.
type fakeDog struct {
	armed bool
	pets  int
	fails error
}

func (d *fakeDog) Arm() error {
	if d.fails != nil {
		return d.fails
	}
	d.armed = true
	d.pets++
	return nil
}

func (d *fakeDog) Disarm() error {
	d.armed = false
	return nil
}

// A leased host is a machine whose guest runs under the lease alone.
type leasedHost struct {
	t       *testing.T
	clock   time.Time
	dog     *fakeDog
	machine *sim.Machine
	guests  *Guests
	agent   *Agent
	want    compute.Guest
}

func newLeasedHost(t *testing.T, dog *fakeDog) *leasedHost {
	t.Helper()
	h := &leasedHost{t: t, clock: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), dog: dog,
		machine: sim.New(compute.Capabilities{VCPUs: 4, MemoryMiB: 4096, MaxVCPUs: 4})}
	h.machine.Now = h.now
	lease := &Lease{Clock: h.now}
	if dog != nil {
		lease.Watchdog = dog
	}
	h.guests = &Guests{Driver: h.machine.Guests(), Lease: lease}
	h.want = compute.Guest{ID: resource.NewID(h.clock, nil), VCPUs: 1, MemoryMiB: 128, Power: compute.On, Leased: true, Wish: 1,
		Disks: []compute.Disk{{Name: "root", SizeMiB: 10}}}
	a, err := New(nil, h.clock, h.guests.Handler())
	if err != nil {
		t.Fatal(err)
	}
	a.Lease, h.agent = lease, a
	h.deliver()
	return h
}

func (h *leasedHost) now() time.Time { return h.clock }

func (h *leasedHost) deliver() {
	h.t.Helper()
	body, err := json.Marshal(h.want)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.agent.Deliver(host.Delivery{Full: true, Items: []host.Item{{Key: host.Key{Kind: "guest", ID: h.want.ID}, Body: body}}}, h.clock); err != nil {
		h.t.Fatal(err)
	}
}

// pass lets time go by, and tells whether the guest runs then.
func (h *leasedHost) pass(d time.Duration) bool {
	h.t.Helper()
	for until := h.clock.Add(d); ; h.clock = h.clock.Add(time.Second) {
		if err := h.guests.Guard(h.t.Context(), h.agent); err != nil {
			h.t.Fatal(err)
		}
		for h.agent.Step(h.t.Context(), h.now) {
		}
		if !h.clock.Before(until) {
			return len(h.machine.Running()) == 1
		}
	}
}

func (h *leasedHost) grant() {
	h.t.Helper()
	if err := h.agent.Lease.Granted(h.agent.Lease.Asks(), host.LeaseAnswer{For: host.LeaseTime}); err != nil {
		h.t.Fatal(err)
	}
}

// seen is what was reported last.
func (h *leasedHost) seen() compute.Seen {
	h.t.Helper()
	var s compute.Seen
	for _, r := range h.agent.Reports(10) {
		if err := json.Unmarshal(r.Seen, &s); err != nil {
			h.t.Fatal(err)
		}
	}
	return s
}

func TestAGuestUnderLease(t *testing.T) {
	h := newLeasedHost(t, new(fakeDog))
	if h.pass(5 * time.Second) {
		t.Fatal("it runs, and nobody has granted a lease")
	}
	if s := h.seen(); s.Power != compute.Off || !s.Busy || s.Wish != 1 {
		t.Errorf("told is %+v", s)
	}
	if !h.dog.armed {
		t.Error("the watchdog is not armed")
	}
	h.grant()
	if !h.pass(2 * time.Second) {
		t.Fatal("it does not run under the lease")
	}
	if !h.pass(host.LeaseTime - 5*time.Second) {
		t.Fatal("it is cut off under the lease")
	}
	if h.pass(5 * time.Second) {
		t.Fatal("it runs on when the lease is over")
	}
	if s := h.seen(); s.Power != compute.Off || !s.Busy {
		t.Errorf("told is %+v, which is taken for an end by itself", s)
	}
	pets := h.dog.pets
	h.pass(time.Hour)
	if h.dog.pets == pets {
		t.Error("nothing runs, and the watchdog is left to reset the machine")
	}
	h.grant()
	if !h.pass(2 * time.Second) {
		t.Error("it does not run again under a new lease")
	}
	h.want.Leased = false
	h.deliver()
	if !h.pass(host.LeaseTime * 2) {
		t.Error("it needs no lease any more, and was cut off")
	}
	if h.dog.armed {
		t.Error("the watchdog is armed for nothing")
	}
}

func TestWhatCannotBeCutOffIsLeftToTheWatchdog(t *testing.T) {
	h := newLeasedHost(t, new(fakeDog))
	h.grant()
	h.pass(2 * time.Second)
	h.machine.Fault = func(call string, _ resource.ID) error { return errors.New("it hangs") }
	h.pass(host.LeaseTime + cutWithin)
	pets := h.dog.pets
	h.pass(time.Minute)
	if h.dog.pets != pets || !h.dog.armed {
		t.Error("the watchdog is petted, though nobody knows whether the guest runs")
	}
}

func TestWithoutAWatchdogGuestsRunOn(t *testing.T) {
	h := newLeasedHost(t, nil)
	if h.pass(5 * time.Second) {
		t.Fatal("it was started without a lease")
	}
	h.grant()
	if !h.pass(10 * host.LeaseTime) {
		t.Error("it was cut off, and nobody would start it elsewhere")
	}
}

func TestAGuestIsNotRunWithoutItsWatchdog(t *testing.T) {
	h := newLeasedHost(t, &fakeDog{fails: errors.New("no such device")})
	h.grant()
	body, _ := json.Marshal(h.want)
	if _, _, err := h.guests.ensure(t.Context(), h.want.ID, body); err == nil || len(h.machine.Running()) != 0 {
		t.Errorf("it runs; %v", err)
	}
}

func TestALeaseOutlivesItsAgent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lease.json")
	l, err := OpenLease(file, nil)
	if err != nil || l.Holds() {
		t.Fatal("a new one holds", err)
	}
	if err := l.Granted(l.Asks(), host.LeaseAnswer{For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if l, err = OpenLease(file, nil); err != nil || !l.Holds() {
		t.Error("it is lost with the agent", err)
	}
	text, _ := json.Marshal(keptLease{"another boot", BootClock().Add(time.Hour)})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err = OpenLease(file, nil); err != nil || l.Holds() {
		t.Error("it outlives the machine's boot", err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err = OpenLease(file, nil); err != nil || l.Holds() {
		t.Error("a damaged one holds", err)
	}
}

// leaser grants leases, and takes its time.
type leaser struct {
	h     *leasedHost
	takes time.Duration
}

func (l leaser) Lease(context.Context, host.LeaseRequest) (host.LeaseAnswer, error) {
	l.h.clock = l.h.clock.Add(l.takes)
	return host.LeaseAnswer{For: host.LeaseTime}, nil
}

func TestALeaseCountsFromBeforeItWasAskedFor(t *testing.T) {
	h := newLeasedHost(t, nil)
	asked := h.clock
	if err := h.agent.renewLease(t.Context(), leaser{h, 20 * time.Second}); err != nil {
		t.Fatal(err)
	}
	h.clock = asked.Add(host.LeaseTime)
	if h.agent.Lease.Holds() {
		t.Error("it counts from the answer")
	}
}

func TestNoLeaseIsAskedForBeforeAControllerHasToldEverything(t *testing.T) {
	h := newLeasedHost(t, nil)
	h.agent.Begin()
	if h.agent.Current() {
		t.Error("a session has begun, and what it tells is known already")
	}
	h.deliver()
	if !h.agent.Current() {
		t.Error("it was told everything")
	}
}

// asker notes how it is asked, and says what its clock shows.
type asker struct {
	h     *leasedHost
	asked []host.LeaseRequest
	clock time.Time
	fails error
}

func (a *asker) Lease(_ context.Context, q host.LeaseRequest) (host.LeaseAnswer, error) {
	a.asked = append(a.asked, q)
	a.h.clock = a.h.clock.Add(time.Second)
	return host.LeaseAnswer{For: host.LeaseTime, Clock: a.clock}, a.fails
}

// Whoever asks for its lease says what its clock shows, what the controller's showed in the answer before, and how long it has had that.
func TestWhoAsksForALeaseSaysWhatItsClockShows(t *testing.T) {
	h := newLeasedHost(t, nil)
	wall := time.Date(2029, 6, 1, 0, 0, 0, 0, time.UTC)
	h.agent.Lease.Wall = func() time.Time { return wall }
	a := &asker{h: h, clock: time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)}
	ask := func(pass time.Duration) host.LeaseRequest {
		t.Helper()
		h.clock = h.clock.Add(pass)
		if err := h.agent.renewLease(t.Context(), a); !errors.Is(err, a.fails) {
			t.Fatal(err)
		}
		return a.asked[len(a.asked)-1]
	}
	if q := ask(0); !q.Clock.Equal(wall) || !q.Answered.IsZero() || q.Held != 0 {
		t.Errorf("at first it says %+v", q)
	}
	first := a.clock
	a.clock, a.fails = first.Add(4*time.Second), errors.New("no majority")
	if q := ask(4 * time.Second); !q.Answered.Equal(first) || q.Held != 4*time.Second {
		t.Errorf("then it says %+v", q)
	}
	if q := ask(time.Second); !q.Answered.Equal(first) || q.Held != 6*time.Second {
		t.Errorf("after an answer that did not come it says %+v", q)
	}
	a.clock, a.fails = time.Time{}, nil
	ask(time.Second)
	if q := ask(time.Second); !q.Answered.IsZero() || q.Held != 0 {
		t.Errorf("after one of a release that does not say its time it says %+v", q)
	}
}
