package agent

import (
	"context"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// carrier is a driver whose guests move as it is told.
type carrier struct {
	stubborn
	transit  compute.Transit
	received []compute.Guest
	sent     []compute.Guest
}

func (c *carrier) Receive(_ context.Context, want compute.Guest) (compute.Transit, error) {
	c.received = append(c.received, want)
	return c.transit, nil
}

func (c *carrier) Send(_ context.Context, want compute.Guest) (compute.Observation, compute.Transit, error) {
	c.sent = append(c.sent, want)
	return c.seen, c.transit, nil
}

// A guest that arrives is taken in once its taps are here, and asked after until it has arrived.
func TestAGuestThatArrives(t *testing.T) {
	d := &carrier{transit: compute.Transit{Where: "here"}}
	taps := new(Taps)
	r := guestRig(t, &Guests{Driver: d, Taps: taps})
	g := compute.Guest{ID: guestID, Power: compute.On, Wish: 3, NICs: []compute.NIC{{PortID: netID}}, Arrive: &compute.Arrive{Move: 5, Live: true}}
	r.wish(t, g, true)
	if seen := r.told(t); seen == nil || !seen.Busy || seen.Transit != (compute.Transit{Move: 5}) || len(d.received) > 0 {
		t.Fatalf("without its taps it is reported as %+v", seen)
	}
	taps.set(netID, compute.Tap{Name: "tap"})
	r.now = r.now.Add(whileUnwired)
	seen := r.told(t)
	if seen == nil || seen.Wish != 3 || !seen.Busy || seen.Power != compute.Off || seen.Transit != (compute.Transit{Move: 5, Where: "here"}) {
		t.Fatalf("reported: %+v", seen)
	}
	d.transit.Done = true
	r.now = r.now.Add(whileMoving)
	if seen := r.told(t); seen == nil || seen.Busy || !seen.Transit.Done {
		t.Fatalf("once it has arrived it is reported as %+v", seen)
	}
	r.now = r.now.Add(time.Second)
	if r.told(t); len(d.received) != 2 {
		t.Errorf("it was asked after %d times", len(d.received))
	}
	if got := d.received[0].NICs[0].Tap.Name; got != "tap" {
		t.Errorf("its tap is %q", got)
	}
	taps.drop(netID)
	g.Arrive, g.Wish = nil, 4 // it is ours
	r.wish(t, g, false)
	if seen := r.told(t); seen == nil || seen.Wish != 4 || !seen.Busy || seen.Transit != (compute.Transit{}) {
		t.Errorf("without its network it is reported as %+v", seen)
	}
}

func TestAGuestThatLeaves(t *testing.T) {
	d := &carrier{stubborn: stubborn{compute.Observation{Power: compute.On}}, transit: compute.Transit{Memory: compute.Progress{Total: 2, Sent: 1, Left: 1}}}
	r := guestRig(t, &Guests{Driver: d, Taps: new(Taps)})
	g := compute.Guest{ID: guestID, Power: compute.On, Wish: 3, Leave: &compute.Leave{Move: 5, Where: "there", Live: true}}
	r.wish(t, g, true)
	if seen := r.told(t); seen == nil || seen.Power != compute.On || seen.Transit.Move != 5 || seen.Transit.Memory.Sent != 1 {
		t.Fatalf("reported: %+v", seen)
	}
	d.seen.Power, d.transit.Done = compute.Paused, true
	r.now = r.now.Add(whileMoving)
	if seen := r.told(t); seen == nil || seen.Power != compute.Paused || !seen.Transit.Done || len(d.sent) != 2 {
		t.Fatalf("once it was sent it is reported as %+v", seen)
	}
}

// A host whose driver knows nothing of moves says so.
func TestGuestsOfAPlainDriverDoNotMove(t *testing.T) {
	r := guestRig(t, &Guests{Driver: new(stubborn)})
	r.wish(t, compute.Guest{ID: guestID, Arrive: &compute.Arrive{Move: 5}}, true)
	if seen := r.told(t); seen == nil || seen.Transit.Trouble == "" || seen.Transit.Move != 5 {
		t.Errorf("reported: %+v", seen)
	}
}
