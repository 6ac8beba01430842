package host

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

func report(t *testing.T, h *Hub, host, id resource.ID, seen any) {
	t.Helper()
	text, ok := seen.(json.RawMessage)
	if !ok {
		var err error
		if text, err = json.Marshal(seen); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Observe(t.Context(), host, []Observation{{Key{"thing", id}, text}}); err != nil {
		t.Fatal(err)
	}
	if err := h.Pump(); err != nil {
		t.Fatal(err)
	}
}

func left(h *Hub) []Leftover {
	var all []Leftover
	for l := range leftovers.Range(h.State.Latest(), "thing", state.Range{}) {
		all = append(all, *l)
	}
	return all
}

func TestAnOrderStandsUntilTheThingIsGone(t *testing.T) {
	h, c, id := rig(t, 0)
	gone := c.id()
	if err := h.State.Update(t.Context(), func(tx *state.Tx) error { return Discard(tx, id, "thing", gone) }); err != nil {
		t.Fatal(err)
	}
	if err := h.Pump(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it comes back, and comes back again
		s := h.Connect(id)
		<-s.Wake()
		d, err := s.Poll()
		if err != nil || !d.Full || len(d.Items) != 1 || d.Items[0].ID != gone || d.Items[0].Body != nil {
			t.Fatalf("the host is told %+v, %v", d, err)
		}
	}
	report(t, h, id, gone, 1) // a report that crossed the order
	if len(left(h)) != 1 {
		t.Error("the order was forgotten")
	}
	report(t, h, id, gone, Gone)
	if l := left(h); len(l) != 0 {
		t.Errorf("left over: %+v", l)
	}
}

func TestWhatAHostHoldsIsKnownAndCanBeOrderedAway(t *testing.T) {
	h, c, id := rig(t, 0)
	s := h.Connect(id)
	expect(t, s, "full")
	held, wanted := c.id(), c.id()
	since := c.now.UTC()
	for range 2 {
		report(t, h, id, held, HeldReport{&Holding{since, since.Add(time.Hour)}})
		report(t, h, id, wanted, HeldReport{&Holding{since, since.Add(time.Hour)}})
	}
	l := left(h)
	if len(l) != 2 || l[0].Ordered || !l[0].Until.Equal(since.Add(time.Hour)) {
		t.Fatalf("left over: %+v", l)
	}
	// One is wanted after all.
	put(t, h, thing{Meta: resource.Meta{ID: wanted}, HostID: id, Size: 1})
	expect(t, s, "1")
	report(t, h, id, wanted, 1)
	if l = left(h); len(l) != 1 || l[0].ThingID != held {
		t.Fatalf("left over: %+v", l)
	}
	service := &Service{State: h.State}
	ctx := identity.Internal(t.Context())
	if err := service.Discard(ctx, id, wanted); !fault.Is(err, fault.NotFound) {
		t.Errorf("a thing that is wanted was ordered away: %v", err)
	}
	if err := service.Discard(t.Context(), id, held); err == nil {
		t.Error("nobody in particular may order things away")
	}
	if err := service.Discard(ctx, id, held); err != nil {
		t.Fatal(err)
	}
	if err := h.Pump(); err != nil {
		t.Fatal(err)
	}
	expect(t, s, "take away")
	report(t, h, id, held, Gone)
	if l := left(h); len(l) != 0 {
		t.Errorf("left over: %+v", l)
	}
}

func TestAHostThatKnowsBetterIsTurnedAway(t *testing.T) {
	h, _, id := rig(t, 0)
	now := MarkOf(h.State.Latest())
	hello := Hello{Name: "h", Mark: Mark{Revision: now.Revision + 10}}
	for range 2 {
		if err := Arrive(t.Context(), h.State, id, hello); !fault.Is(err, fault.Conflict) {
			t.Fatalf("it is welcome: %v", err)
		}
	}
	if m, _ := Find(h.State.Latest(), id); m.Ahead != hello.Mark {
		t.Errorf("the operator cannot see it: %+v", m)
	}
	if err := Restored(identity.Internal(t.Context()), h.State); err != nil {
		t.Fatal(err)
	}
	if err := Arrive(t.Context(), h.State, id, hello); err != nil {
		t.Fatalf("in a new era: %v", err)
	}
	if m, _ := Find(h.State.Latest(), id); m.Ahead != (Mark{}) {
		t.Errorf("still ahead: %+v", m)
	}
	marks := []Mark{{}, {0, 1}, {0, 9}, {1, 0}, {1, 3}}
	if !slices.IsSortedFunc(marks, func(a, b Mark) int {
		if a.Before(b) {
			return -1
		}
		return 1
	}) {
		t.Errorf("out of order: %v", marks)
	}
}
