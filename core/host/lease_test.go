package host

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

func TestALeaseIsGrantedToWhoIsNotLost(t *testing.T) {
	h, c, id := rig(t, 0)
	if _, err := h.Renew(t.Context(), resource.NewID(c.now, nil), 1); !fault.Is(err, fault.Conflict) {
		t.Errorf("to a stranger it answers %v", err)
	}
	if a, err := h.Renew(t.Context(), id, 1); err != nil || a.For != LeaseTime {
		t.Errorf("it answers %v, %v", a, err)
	}
	h.Confirm = func(context.Context) error { return errors.New("no majority") }
	if _, err := h.Renew(t.Context(), id, 1); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a majority it answers %v", err)
	}
	h.Confirm = nil
	if err := Lose(t.Context(), h.State, id); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Renew(t.Context(), id, 1); !fault.Is(err, fault.Conflict) {
		t.Errorf("to one that is lost it answers %v", err)
	}
}

// What is written into a line that is cut is not missed for a quarter of an hour: whoever renews its lease is lost when it does not.
func TestASessionAloneIsNoSignOfLife(t *testing.T) {
	h, c, id := rig(t, 0)
	s := h.Connect(id)
	s.Renews()
	up := liveness(t, h, id)
	h.Confirm = func(context.Context) error { return errors.New("no majority") }
	for range 10 {
		c.now = c.now.Add(10 * time.Second)
		if _, err := h.Renew(t.Context(), id, 1); err == nil {
			t.Fatal("granted without a majority")
		}
		if !up() {
			t.Fatal("it was heard, though it was refused")
		}
	}
	c.now = c.now.Add(Expect + time.Second)
	if up() {
		t.Error("it was not heard, and is not lost")
	}
	if err := h.Pump(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Over():
	default:
		t.Error("its session goes on, and it never says hello again")
	}
}

// What a host was told before it was lost does not give it a lease afterwards: its guests may be elsewhere by then. That holds also
// where the session is that was not ended yet, and where a word of the host's arrival comes late.
func TestALeaseIsOfOneArrival(t *testing.T) {
	h, _, id := rig(t, 0)
	follows := NewHub(h.State)
	s := follows.Connect(id)
	s.Renews()
	d, err := s.Poll()
	if err != nil || d == nil || d.Arrival != 1 {
		t.Fatalf("it is told %+v, %v", d, err)
	}
	if _, err := follows.Renew(t.Context(), id, d.Arrival); err != nil {
		t.Fatal(err)
	}
	if err := Lose(t.Context(), h.State, id); err != nil {
		t.Fatal(err)
	}
	late, err := follows.Connect(id).Poll() // derived while the host is lost
	if err != nil {
		t.Fatal(err)
	}
	if err := Arrive(t.Context(), h.State, id, Hello{Name: "h"}); err != nil { // not this session's
		t.Fatal(err)
	}
	for _, arrival := range []int{d.Arrival, late.Arrival, 0, 3} {
		if _, err := follows.Renew(t.Context(), id, arrival); !fault.Is(err, fault.Conflict) {
			t.Errorf("after its loss, with what it was told after arrival %d: %v", arrival, err)
		}
	}
	s = follows.Connect(id)
	if d, err = s.Poll(); err != nil || d.Arrival != 2 {
		t.Fatalf("it is told %+v, %v", d, err)
	}
	if _, err := follows.Renew(t.Context(), id, d.Arrival); err != nil {
		t.Error(err)
	}
	// One that says again what is known has not arrived anew.
	if err := Arrive(t.Context(), h.State, id, Hello{Name: "h", Version: "2"}); err != nil {
		t.Fatal(err)
	}
	if _, err := follows.Renew(t.Context(), id, d.Arrival); err != nil {
		t.Error(err)
	}
}

func TestFencingIsChecked(t *testing.T) {
	h, _, id := rig(t, 0)
	s, admin := &Service{State: h.State}, identity.Internal(t.Context())
	for name, f := range map[string]Fencing{
		"no driver, and something for one": {Program: "x"},
		"an unknown driver":                {Driver: "axe"},
		"a program elsewhere":              {Driver: "exec", Program: "../../bin/sh"},
		"a program with an argument":       {Driver: "exec", Program: "sh -c"},
		"no address":                       {Driver: "redfish"},
		"an address without TLS":           {Driver: "redfish", URL: "http://bmc/redfish/v1/Systems/1"},
		"a password in the address":        {Driver: "redfish", URL: "https://a:b@bmc/redfish/v1/Systems/1"},
		"a fingerprint that is none":       {Driver: "redfish", URL: "https://bmc/x", Fingerprint: "AA:BB"},
	} {
		if _, err := s.SetFencing(admin, id, f); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.SetFencing(admin, id, Fencing{Driver: "exec", Program: "ipmi-1"}); err != nil {
		t.Error(err)
	}
}

// The same order a second time in one session: the thing came to the host again in between, and the host was not told of that.
func TestAnOrderIsGivenAgain(t *testing.T) {
	h, c, id := rig(t, 0)
	s := h.Connect(id)
	if _, err := s.Poll(); err != nil {
		t.Fatal(err)
	}
	stray := resource.NewID(c.now, nil)
	for n := range 2 {
		if err := h.State.Update(t.Context(), func(tx *state.Tx) error { return Discard(tx, id, "thing", stray) }); err != nil {
			t.Fatal(err)
		}
		if err := h.Pump(); err != nil {
			t.Fatal(err)
		}
		d, err := s.Poll()
		if err != nil || d == nil || len(d.Items) != 1 || d.Items[0].ID != stray || d.Items[0].Body != nil {
			t.Fatalf("order %d: told is %+v, %v", n+1, d, err)
		}
		if err := h.Observe(t.Context(), id, []Observation{{Key: Key{"thing", stray}, Seen: Gone}}); err != nil {
			t.Fatal(err)
		}
		if Leftovers().Len(h.State.Latest()) != 0 {
			t.Fatal("it is still ordered away")
		}
	}
}
