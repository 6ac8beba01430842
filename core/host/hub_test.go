package host

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A thing is a host's, as a domain would have it.
type thing struct {
	resource.Meta
	HostID resource.ID
	Size   int
	Doomed bool
}

var things = state.NewTable[thing]("hub-test-thing", state.Index("host", func(t *thing) state.Key { return state.KeyOf(t.HostID) }))

type clock struct {
	now   time.Time
	later []func()
}

func rig(t *testing.T, every time.Duration) (*Hub, *clock, resource.ID) {
	t.Helper()
	st, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{now: time.Unix(1e9, 0)}
	h := NewHub(st, Source{Kind: "thing", Every: every,
		All: func(tx *state.Tx, id resource.ID) []resource.ID { return things.IDs(tx, "host", state.KeyOf(id)) },
		Want: func(tx *state.Tx, host, id resource.ID) (any, bool) {
			th, ok := things.Find(tx, id)
			switch {
			case !ok || th.HostID != host:
				return nil, false
			case th.Doomed:
				return nil, true
			}
			return th.Size, true
		},
		Touched: func(_ *state.Tx, e state.Event) []Ref {
			if e.Kind != "hub-test-thing" {
				return nil
			}
			var refs []Ref
			for _, o := range []resource.Object{e.Before, e.After} {
				if th, ok := o.(*thing); ok {
					refs = append(refs, Ref{th.HostID, e.ID})
				}
			}
			return refs
		}})
	h.Now, h.After = func() time.Time { return c.now }, func(_ time.Duration, f func()) { c.later = append(c.later, f) }
	id := resource.NewID(c.now, nil)
	if err := Arrive(t.Context(), st, id, Hello{Name: "h"}); err != nil {
		t.Fatal(err)
	}
	return h, c, id
}

func put(t *testing.T, h *Hub, th thing) {
	t.Helper()
	if err := h.State.Update(context.Background(), func(tx *state.Tx) error { return things.Put(tx, &th) }); err != nil {
		t.Fatal(err)
	}
	if err := h.Pump(); err != nil {
		t.Fatal(err)
	}
}

// poll gives what is sent now: "full" for a full delivery, the body, "take away", or nothing.
func poll(t *testing.T, s *Session) string {
	t.Helper()
	select {
	case <-s.Wake():
	default:
		return "asleep"
	}
	d, err := s.Poll()
	switch {
	case err != nil:
		t.Fatal(err)
	case d == nil:
		return "nothing"
	case d.Full:
		return "full"
	case d.Items[0].Body == nil:
		return "take away"
	}
	return string(d.Items[0].Body)
}

func expect(t *testing.T, s *Session, want string) {
	t.Helper()
	if got := poll(t, s); got != want {
		t.Errorf("the host is sent %q, not %q", got, want)
	}
}

func TestAHostIsToldWhatChanges(t *testing.T) {
	h, c, id := rig(t, 0)
	s := h.Connect(id)
	expect(t, s, "full")
	th := thing{Meta: resource.Meta{ID: resource.NewID(c.now, nil)}, HostID: id, Size: 1}
	put(t, h, th)
	expect(t, s, "1")
	put(t, h, th)
	expect(t, s, "nothing")
	th.Size = 2
	put(t, h, th)
	th.Size = 3
	put(t, h, th)
	expect(t, s, "3")
	th.Doomed = true
	put(t, h, th)
	expect(t, s, "take away")
	expect(t, s, "asleep")
}

func TestAHostThatNeverHadItIsToldToTakeItAway(t *testing.T) {
	h, c, id := rig(t, 0)
	s := h.Connect(id)
	expect(t, s, "full")
	put(t, h, thing{Meta: resource.Meta{ID: resource.NewID(c.now, nil)}, HostID: id, Doomed: true})
	expect(t, s, "take away")
}

func TestOtherHostsThingsAreNotSent(t *testing.T) {
	h, c, id := rig(t, 0)
	s := h.Connect(id)
	expect(t, s, "full")
	put(t, h, thing{Meta: resource.Meta{ID: resource.NewID(c.now, nil)}, HostID: resource.NewID(c.now, nil), Size: 1})
	expect(t, s, "asleep")
}

func TestPace(t *testing.T) {
	h, c, id := rig(t, time.Second)
	s := h.Connect(id)
	expect(t, s, "full")
	th := thing{Meta: resource.Meta{ID: resource.NewID(c.now, nil)}, HostID: id, Size: 1}
	put(t, h, th)
	expect(t, s, "1")
	th.Size = 2
	put(t, h, th)
	expect(t, s, "nothing")
	for th.Size = 3; th.Size < 9; th.Size++ { // what is put off wakes nobody
		put(t, h, th)
		expect(t, s, "asleep")
	}
	if len(c.later) != 1 {
		t.Fatalf("%d alarms were set", len(c.later))
	}
	c.now = c.now.Add(time.Second)
	c.later[0]()
	expect(t, s, "8")
}

func TestANewSessionEndsTheOldOneAndStartsOver(t *testing.T) {
	h, c, id := rig(t, 0)
	first := h.Connect(id)
	put(t, h, thing{Meta: resource.Meta{ID: resource.NewID(c.now, nil)}, HostID: id, Size: 1})
	second := h.Connect(id)
	select {
	case <-first.Over():
	default:
		t.Error("the old session goes on")
	}
	<-second.Wake()
	d, err := second.Poll()
	if err != nil || !d.Full || len(d.Items) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	second.Close()
	if h.Connected(id) {
		t.Error("a closed session counts as connected")
	}
}

func TestAReportOfAnUnknownHostIsRefused(t *testing.T) {
	h, c, _ := rig(t, 0)
	if err := h.Observe(t.Context(), resource.NewID(c.now, nil), []Observation{{Key: Key{"thing", c.id()}, Seen: json.RawMessage(`{}`)}}); err == nil {
		t.Error("it was taken in")
	}
}

func (c *clock) id() resource.ID { return resource.NewID(c.now, nil) }

func TestSilentHostsAreLostAndFoundAgain(t *testing.T) {
	h, c, id := rig(t, 0)
	up := liveness(t, h, id)
	lost := func() bool { return !up() }
	if lost() {
		t.Error("lost at once")
	}
	c.now = c.now.Add(Expect - time.Second)
	if lost() {
		t.Error("lost too soon")
	}
	c.now = c.now.Add(2 * time.Second)
	if !lost() {
		t.Error("not lost")
	}
	if err := Arrive(t.Context(), h.State, id, Hello{Name: "h"}); err != nil {
		t.Fatal(err)
	}
	h.Connect(id)
	if lost() {
		t.Error("still lost")
	}
}

// TestHostsThatOthersHear: a host that another controller hears is not lost, for as long as that says so.
func TestHostsThatOthersHear(t *testing.T) {
	h, c, id := rig(t, 0)
	up := liveness(t, h, id)
	there := []Sighting{{Host: id, Session: true}}
	for range 20 {
		h.HeardBy("https://two", there)
		if c.now = c.now.Add(ReportEvery); !up() {
			t.Fatal("lost, though another controller hears it")
		}
	}
	if got := h.Elsewhere(id); len(got) != 1 || got[0] != "https://two" {
		t.Errorf("its session is with %v", got)
	}
	h.HeardBy("https://two", nil) // its session there has ended
	up()
	c.now = c.now.Add(Expect / 2)
	h.HeardBy("https://three", there)
	if !up() {
		t.Error("lost on its way to another controller")
	}
	c.now = c.now.Add(presentFor + time.Second) // which says nothing more
	if !up() || len(h.Elsewhere(id)) != 0 {
		t.Error("what a silent controller said last counts for ever, or too short")
	}
	if c.now = c.now.Add(Expect - presentFor - 2*time.Second); !up() {
		t.Error("lost too soon")
	}
	if c.now = c.now.Add(time.Second); up() {
		t.Error("not lost with the controller that heard it")
	}
	if err := Arrive(t.Context(), h.State, id, Hello{Name: "h"}); err != nil {
		t.Fatal(err)
	}
	s := h.Connect(id)
	if got := h.Here(); len(got) != 1 || got[0] != (Sighting{Host: id, Session: true}) {
		t.Errorf("here are %v", got)
	}
	<-h.Moved()
	s.Close()
	c.now = c.now.Add(time.Second)
	if got := h.Here(); len(got) != 1 || got[0] != (Sighting{Host: id, Ago: time.Second}) {
		t.Errorf("of who has gone a moment ago it says %v", got)
	}
	<-h.Moved()
	if c.now = c.now.Add(Expect); len(h.Here()) != 0 {
		t.Error("who has long gone is here")
	}
}

// A host that renews its lease is heard when it does, wherever its session is and wherever it asks. When it was heard counts, not when
// somebody said so.
func TestWhoIsSilentEverywhereIsLost(t *testing.T) {
	for name, where := range map[string]struct{ session, asks bool }{ // with the one that leads?
		"all with the one that leads":           {true, true},
		"all with another":                      {false, false},
		"the session with another, leases here": {false, true},
		"the session here, leases with another": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			leads, c, id := rig(t, 0)
			follows := NewHub(leads.State)
			follows.Now = leads.Now
			up := liveness(t, leads, id)
			at := func(here bool) *Hub {
				if here {
					return leads
				}
				return follows
			}
			at(where.session).Connect(id).Renews()
			tick := func() { // a report each second
				c.now = c.now.Add(time.Second)
				leads.HeardBy("https://two", follows.Here())
			}
			for n := range 100 {
				if n%4 == 0 {
					if _, err := at(where.asks).Renew(t.Context(), id, 1); err != nil {
						t.Fatal(err)
					}
				}
				if tick(); !up() {
					t.Fatal("it was heard, and is lost")
				}
			}
			if _, err := at(where.asks).Renew(t.Context(), id, 1); err != nil {
				t.Fatal(err)
			}
			for range Expect/time.Second - 1 {
				if tick(); !up() {
					t.Fatal("lost too soon")
				}
			}
			if tick(); up() {
				t.Error("silent everywhere, and not lost")
			}
		})
	}
}

// Reports of which hosts are heard may overtake each other: what is known stays known.
func TestReportsOvertakeEachOther(t *testing.T) {
	h, c, id := rig(t, 0)
	up := liveness(t, h, id)
	c.now = c.now.Add(Expect - time.Second)
	h.HeardBy("https://two", []Sighting{{Host: id, Ago: time.Second}})
	h.HeardBy("https://two", []Sighting{{Host: id, Ago: 9 * time.Second}}) // it was sent before
	if c.now = c.now.Add(10 * time.Second); !up() {
		t.Error("lost, though it was heard 11 seconds ago")
	}
}

// liveness looks whether a host counts as lost.
func liveness(t *testing.T, h *Hub, id resource.ID) (up func() bool) {
	task := h.Liveness(h.Now)
	return func() bool {
		t.Helper()
		if _, err := task.Step(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		m, ok := Find(h.State.Latest(), id)
		if !ok {
			t.Fatal("the host is gone")
		}
		return m.Up()
	}
}

// TestExpected: only what says nothing new of itself is told what is wanted without the one that leads.
func TestExpected(t *testing.T) {
	h, c, id := rig(t, 0)
	hello := Hello{Name: "h"}
	tx := h.State.Latest()
	newer := MarkOf(tx)
	newer.Revision++
	for name, test := range map[string]struct {
		id    resource.ID
		hello Hello
		want  bool
	}{
		"as it was":           {id, hello, true},
		"a stranger":          {resource.NewID(c.now, nil), hello, false},
		"with more memory":    {id, Hello{Name: "h", Capacity: Capacity{MemoryMiB: 1}}, false},
		"of a newer state":    {id, Hello{Name: "h", Mark: newer}, false},
		"with another uplink": {id, Hello{Name: "h", Physical: []string{"x"}}, false},
	} {
		if got := Expected(tx, test.id, test.hello); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if err := Lose(t.Context(), h.State, id); err != nil {
		t.Fatal(err)
	}
	if Expected(h.State.Latest(), id, hello) {
		t.Error("one that was lost is no news")
	}
}

func TestWhatIsToBeTakenAwayIsSoOnTheOtherSide(t *testing.T) {
	text, err := json.Marshal(Message{Delivery: &Delivery{Items: []Item{{Key: Key{"thing", resource.NewID(time.Now(), nil)}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var read Message
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	if body := read.Delivery.Items[0].Body; body != nil {
		t.Errorf("%s became %q", text, body)
	}
}

func TestARemovedHostIsCutOff(t *testing.T) {
	h, _, id := rig(t, 0)
	s := h.Connect(id)
	expect(t, s, "full")
	if err := h.State.Update(t.Context(), func(tx *state.Tx) error { return Remove(tx, id) }); err != nil {
		t.Fatal(err)
	}
	if err := h.Pump(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Over():
	default:
		t.Error("its session goes on")
	}
	if err := h.State.Update(t.Context(), func(tx *state.Tx) error { return Remove(tx, id) }); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
}
