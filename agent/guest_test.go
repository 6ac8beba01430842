package agent

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// stubborn is a driver of guests that never does what is wished.
type stubborn struct{ seen compute.Observation }

func (s *stubborn) Ensure(context.Context, compute.Guest) (compute.Observation, error) {
	return s.seen, nil
}
func (s *stubborn) Remove(context.Context, resource.ID) error       { return nil }
func (s *stubborn) Halt(context.Context, resource.ID) (bool, error) { return false, nil }
func (s *stubborn) Present(context.Context) ([]resource.ID, error)  { return nil, nil }
func (s *stubborn) Capabilities(context.Context) (compute.Capabilities, error) {
	return compute.Capabilities{}, nil
}
func (s *stubborn) Observe(context.Context, resource.ID) (compute.Observation, error) {
	return compute.Observation{}, fault.Missing("guest", "x")
}

// told gives what an agent reports of its one guest; nil for no report.
func (r *rig) told(t *testing.T) *compute.Seen {
	t.Helper()
	r.run(t)
	reports := r.Reports(10)
	r.Sent(reports)
	if len(reports) == 0 {
		return nil
	}
	seen := new(compute.Seen)
	if err := json.Unmarshal(reports[0].Seen, seen); err != nil || len(reports) > 1 {
		t.Fatalf("%+v, %v", reports, err)
	}
	return seen
}

func (r *rig) wish(t *testing.T, g compute.Guest, full bool) {
	t.Helper()
	body, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Deliver(host.Delivery{Full: full, Items: []host.Item{{Key: host.Key{Kind: "guest", ID: g.ID}, Body: body}}}, r.now); err != nil {
		t.Fatal(err)
	}
}

func guestRig(t *testing.T, g *Guests) *rig {
	t.Helper()
	r := &rig{now: time.Unix(1e9, 0)}
	var err error
	if r.Agent, err = New(nil, r.now, g.Handler()); err != nil {
		t.Fatal(err)
	}
	return r
}

// A wish that fails as the one before did is answered all the same, once.
func TestEachWishIsAnswered(t *testing.T) {
	r := guestRig(t, &Guests{Driver: &stubborn{compute.Observation{Power: compute.On, Trouble: "It does not stop."}}})
	g := compute.Guest{ID: guestID, Power: compute.Off, Wish: 7}
	r.wish(t, g, true)
	if seen := r.told(t); seen == nil || seen.Wish != 7 || seen.Trouble == "" {
		t.Fatalf("reported: %+v", seen)
	}
	for range 3 {
		r.now = r.now.Add(time.Minute)
		if err := r.Resync(t.Context(), r.now); err != nil {
			t.Fatal(err)
		}
		if seen := r.told(t); seen != nil {
			t.Fatalf("no news, but reported: %+v", seen)
		}
	}
	g.Wish++
	r.wish(t, g, false)
	if seen := r.told(t); seen == nil || seen.Wish != 8 || seen.Trouble == "" {
		t.Fatalf("reported of the new wish: %+v", seen)
	}
	r.wish(t, g, false)
	if seen := r.told(t); seen != nil {
		t.Fatalf("the same wish again was reported: %+v", seen)
	}
}

func TestAGuestThatWaitsSaysForWhichWish(t *testing.T) {
	r := guestRig(t, &Guests{Driver: new(stubborn), Taps: new(Taps)})
	r.wish(t, compute.Guest{ID: guestID, Power: compute.On, Wish: 3, NICs: []compute.NIC{{PortID: netID}}}, true)
	if seen := r.told(t); seen == nil || seen.Wish != 3 || !seen.Busy || seen.Power != compute.Off {
		t.Fatalf("reported: %+v", seen)
	}
}
