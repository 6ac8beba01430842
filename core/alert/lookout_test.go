package alert

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
)

// A hill is one on which a lookout stands: what it sees, and who hears it.
type hill struct {
	*Lookout
	t    *testing.T
	file string
	end  func()

	mu    sync.Mutex
	led   error         // guarded by mu
	slow  time.Duration // that it takes to see; guarded by mu
	fails error         // guarded by mu
	heard []string      // guarded by mu
}

// stand begins a process of the controller.
func (h *hill) stand() {
	h.t.Helper()
	l, err := OpenLookout(h.file)
	if err != nil {
		h.t.Fatal(err)
	}
	l.Controller, l.Cloud, l.Senders = "p1", "here", map[string]Sender{"webhook": h}
	l.Ask(func(context.Context) error {
		h.mu.Lock()
		led, slow := h.led, h.slow
		h.mu.Unlock()
		time.Sleep(slow)
		return led
	})
	h.Lookout = l
	ctx, cancel := context.WithCancel(h.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx, 5*time.Second) })
	h.end = func() {
		cancel()
		wg.Wait()
	}
}

func (h *hill) Send(_ context.Context, t *Target, n Notice) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails != nil {
		return h.fails
	}
	h.heard = append(h.heard, t.Name+" "+n.Event+" "+n.Rule+" "+n.Subject)
	return nil
}

func (h *hill) sees(led error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.led = led
}

func (h *hill) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails = err
}

// want passes some time, and says what is to be heard in it.
func (h *hill) want(pass time.Duration, want ...string) {
	h.t.Helper()
	time.Sleep(pass)
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	slices.Sort(h.heard)
	if !slices.Equal(h.heard, want) {
		h.t.Errorf("within %v is heard %q, want %q", pass, h.heard, want)
	}
	h.heard = nil
}

// newHill has a lookout that knows who is to be told: it has learned that of a state.
func newHill(t *testing.T) *hill {
	r := newRig(t)
	r.add(hook("ops"))
	r.add(hook("night"))
	h := &hill{t: t, file: filepath.Join(t.TempDir(), "no-leader.json")}
	h.stand()
	h.Learn(r.State)
	h.want(time.Minute)
	return h
}

var errNoneLeads = errors.New("no member is known to lead")

const (
	nightRaised, opsRaised     = "night raised no-leader p1", "ops raised no-leader p1"
	nightResolved, opsResolved = "night resolved no-leader p1", "ops resolved no-leader p1"
)

func TestThatNobodyLeadsIsToldOnceAndSoIsItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHill(t)
		h.sees(errNoneLeads)
		h.want(50 * time.Second)
		if h.Opened() != nil || h.Leaderless() < 40*time.Second {
			t.Errorf("after 50 s there is %+v, for %v", h.Opened(), h.Leaderless())
		}
		h.want(30*time.Second, nightRaised, opsRaised)
		if a := h.Opened(); a == nil || a.Severity != Critical || a.Subject != "p1" {
			t.Errorf("there is %+v", a)
		}
		h.want(time.Hour)
		h.sees(nil)
		h.want(8 * time.Second) // it may be gone again at once
		h.sees(errNoneLeads)
		h.want(10 * time.Minute)
		h.sees(nil)
		h.want(time.Minute, nightResolved, opsResolved)
		if h.Opened() != nil || h.Leaderless() != 0 || len(h.kept.Outages) != 0 {
			t.Errorf("when it is over there is %+v, for %v, and kept is %+v", h.Opened(), h.Leaderless(), h.kept.Outages)
		}
		h.want(48 * time.Hour)
		h.sees(errNoneLeads)
		h.want(2*time.Minute, nightRaised, opsRaised)
		h.end()
	})
}

func TestWhatIsNoOutageIsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHill(t)
		for range 20 { // the lead goes from one to the next, again and again
			h.sees(errNoneLeads)
			h.want(30 * time.Second)
			h.sees(nil)
			h.want(6 * time.Second)
		}
		h.sees(errNoneLeads)
		h.want(50 * time.Second)
		h.end() // stopped in order, and upgraded: what was before says nothing
		time.Sleep(time.Hour)
		h.stand()
		h.want(30 * time.Second)
		h.sees(nil)
		h.want(time.Minute)

		h.mu.Lock()
		h.led, h.slow = errNoneLeads, 5*time.Minute // the machine stands still while it looks
		h.mu.Unlock()
		h.want(6 * time.Minute)
		h.mu.Lock()
		h.led, h.slow = nil, 0
		h.mu.Unlock()
		h.want(10 * time.Minute)
		h.end()
	})
}

func TestAnOutageOutlivesTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHill(t)
		h.sees(errNoneLeads)
		h.want(2*time.Minute, nightRaised, opsRaised)
		h.end()
		h.stand() // without a state, and then with one that has still to come: it waits for the others
		h.want(time.Hour)
		empty, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
		if err != nil {
			t.Fatal(err)
		}
		h.Learn(empty)
		h.want(time.Minute)
		h.sees(nil)
		h.want(time.Minute, nightResolved, opsResolved)
		h.end()

		h.stand() // it alone comes back after a power failure
		h.sees(errNoneLeads)
		h.want(2*time.Minute, nightRaised, opsRaised)
		h.end()
		if info, err := os.Stat(h.file); err != nil || info.Mode() != 0o600 {
			t.Errorf("secrets are kept as %v, %v", info.Mode(), err)
		}
		if err := os.WriteFile(h.file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.stand() // and knows nobody
		h.want(time.Hour)
		h.end()
	})
}

func TestAnOutageIsShownWhereNobodyIsToBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hill{t: t, file: filepath.Join(t.TempDir(), "no-leader.json")}
		h.stand()
		h.Learn(newRig(t).State)
		h.sees(errNoneLeads)
		h.want(2 * time.Minute)
		first := h.Opened()
		for range 60 {
			h.want(time.Minute)
			if a := h.Opened(); first == nil || a == nil || a.ID != first.ID {
				t.Fatalf("first is shown %+v, then %+v", first, a)
			}
		}
		h.sees(nil)
		h.want(time.Minute)
		if a := h.Opened(); a != nil || len(h.kept.Outages) != 0 {
			t.Errorf("a controller leads again, and shown is %+v, kept %+v", a, h.kept.Outages)
		}
		h.end()
	})
}

func TestWhoDoesNotAnswerIsToldOfAnOutageLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHill(t)
		h.fail(errors.New("the network is down"))
		h.sees(errNoneLeads)
		h.want(10 * time.Minute)
		if a := h.Opened(); a == nil || len(a.Told) != 2 || a.Told[0].Trouble != "the network is down" {
			t.Errorf("there is %+v", a)
		}
		h.fail(nil)
		h.want(time.Hour, nightRaised, opsRaised)
		h.fail(errors.New("the network is down"))
		h.sees(nil)
		h.want(time.Minute)
		h.sees(errNoneLeads) // another outage, before they heard of the end of the first
		h.want(5 * time.Minute)
		h.fail(nil)
		h.want(time.Hour, nightRaised, nightResolved, opsRaised, opsResolved)

		// What was over before anybody could hear of it is told, as long as it is news.
		h.sees(nil)
		h.want(time.Minute, nightResolved, opsResolved)
		for _, c := range []struct {
			silent time.Duration
			heard  []string
		}{
			{time.Minute, []string{nightRaised, nightResolved, opsRaised, opsResolved}},
			{25 * time.Hour, nil},
		} {
			h.fail(errors.New("the network is down"))
			h.sees(errNoneLeads)
			h.want(5 * time.Hour)
			h.sees(nil)
			h.want(c.silent)
			h.fail(nil)
			h.want(2*time.Minute, c.heard...) // and not as late as is tried again while the outage lasts
			h.want(24 * time.Hour)
		}
		if len(h.kept.Outages) != 0 {
			t.Errorf("kept is %+v", h.kept.Outages)
		}
		h.end()
	})
}
