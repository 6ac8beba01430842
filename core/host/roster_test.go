package host

import (
	"context"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

func TestHostsAreToldWhichHostsThereAre(t *testing.T) {
	st, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	now, later := time.Now(), []func(){}
	hub := NewHub(st, Sources()...)
	hub.Now, hub.After = func() time.Time { return now }, func(_ time.Duration, f func()) { later = append(later, f) }
	arrive := func(name, address string) resource.ID {
		t.Helper()
		id := resource.NewID(time.Now(), nil)
		hello := Hello{Name: name}
		if address != "" {
			hello.Address = netip.MustParseAddr(address)
		}
		if err := Arrive(t.Context(), st, id, hello); err != nil {
			t.Fatal(err)
		}
		return id
	}
	change := func(what func(tx *state.Tx) error) {
		t.Helper()
		if err := st.Update(context.Background(), what); err != nil {
			t.Fatal(err)
		}
	}
	var s *Session
	told := func() Roster {
		t.Helper()
		if err := hub.Pump(); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
		for _, f := range later {
			f()
		}
		later = nil
		d, err := s.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if d == nil || len(d.Items) == 0 {
			return nil
		}
		var r Roster
		if err := json.Unmarshal(d.Items[0].Body, &r); err != nil || d.Items[0].Key != RosterKey {
			t.Fatalf("it is told %v %s: %v", d.Items[0].Key, d.Items[0].Body, err)
		}
		return r
	}

	here, there, simulated := arrive("here", "192.0.2.1"), arrive("there", "192.0.2.2"), arrive("simulated", "")
	s = hub.Connect(simulated)
	if r := told(); r != nil {
		t.Errorf("one that nobody reaches is told %v", r)
	}
	s = hub.Connect(here)
	if r := told(); len(r) != 3 {
		t.Errorf("at first it is told %v", r)
	}
	if third := arrive("third", "192.0.2.3"); told()[third] != 0 || len(later) > 0 {
		t.Error("it is not told of one that came")
	}
	change(func(tx *state.Tx) error { return Mute(tx, there, true) })
	if r := told(); r != nil {
		t.Errorf("for what is none of its business it is told %v", r)
	}
	change(func(tx *state.Tx) error {
		h, _ := hosts.Find(tx, there)
		h.Machine++
		return hosts.Put(tx, h)
	})
	if r := told(); r[there] != 1 || len(r) != 4 {
		t.Errorf("after another machine has joined as a host it is told %v", r)
	}
	change(func(tx *state.Tx) error { return Remove(tx, there) })
	if r := told(); len(r) != 3 {
		t.Errorf("after a host was removed it is told %v", r)
	} else if _, ok := r[there]; ok {
		t.Error("the one that was removed is among them")
	}
}
