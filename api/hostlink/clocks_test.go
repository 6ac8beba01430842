package hostlink

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
)

// A heldHost asks for its lease again and again, and its clock is off.
type heldHost struct {
	*peer
	arrival int
	off     time.Duration
	last    host.LeaseAnswer
	got     time.Time
}

func (h *heldHost) ask(change ...func(*host.LeaseRequest)) {
	h.r.t.Helper()
	q := host.LeaseRequest{Arrival: h.arrival, Answered: h.last.Clock}
	if !h.got.IsZero() {
		q.Held = time.Since(h.got)
	}
	q.Clock = time.Now().Add(h.off)
	for _, c := range change {
		c(&q)
	}
	h.last = host.LeaseAnswer{}
	if err := json.Unmarshal(h.post("lease", q).must(200), &h.last); err != nil {
		h.r.t.Fatal(err)
	}
	h.got = time.Now()
}

// is waits until this is what is written down of the host's clock, in the state of the one that leads.
func (h *heldHost) is(when string, leads *rig, by time.Duration) {
	h.r.t.Helper()
	var got time.Duration
	for range 100 {
		m, _ := host.Find(leads.State.Latest(), h.id)
		if got = m.Clock.By; got == by {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.r.t.Errorf("%s its clock is off by %v, want %v", when, got, by)
}

func TestTheClockOfAHostIsComparedWithItsControllers(t *testing.T) {
	r := newRig(t)
	p, s := r.host()
	h := &heldHost{peer: p, arrival: s.delivery().Arrival, off: -time.Minute}
	h.ask()
	if h.last.Clock.IsZero() {
		t.Fatal("the controller does not say what its clock shows")
	}
	revision := r.State.Latest().Revision()
	h.ask(func(q *host.LeaseRequest) { q.Clock = time.Time{} }) // of the release before
	h.ask(func(q *host.LeaseRequest) { q.Answered = q.Answered.Add(-time.Second) })
	h.ask(func(q *host.LeaseRequest) { q.Held += time.Minute })
	h.off = 0
	for range 3 {
		h.ask()
	}
	time.Sleep(50 * time.Millisecond)
	if h.is("when nobody has compared it", r, 0); r.State.Latest().Revision() != revision {
		t.Error("something is written of a clock that is right, or not known")
	}
	h.off = -time.Minute
	h.ask()
	h.is("a minute behind", r, -30*time.Second)
	revision = r.State.Latest().Revision()
	for range 5 {
		h.ask()
	}
	time.Sleep(50 * time.Millisecond)
	if r.State.Latest().Revision() != revision {
		t.Error("what is known is written again")
	}
	h.off = 2 * time.Hour
	h.ask()
	h.is("two hours ahead", r, time.Hour)

	// In a session with another controller the comparison begins anew, and it is written down where that can be done.
	f, _, _ := newFollower(t, r)
	f.server.Clock = func() time.Time { return time.Now().Add(2 * time.Hour) }
	h.peer = p.at(f)
	h.arrival = h.connect("node-1").delivery().Arrival
	h.ask()
	h.ask()
	h.is("with one whose clock is off, too", r, 0)
	h.off = 0
	h.ask()
	h.is("beside that one", r, -time.Hour)
}
