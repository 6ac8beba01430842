package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A place is what many hosts have part in, each as long as somebody of its is there.
type place struct {
	resource.Meta
	Text string
}

type visitor struct {
	resource.Meta
	HostID, PlaceID resource.ID
}

var (
	places   = state.NewTable[place]("hub-test-place")
	visitors = state.NewTable[visitor]("hub-test-visitor",
		state.Index("host", func(v *visitor) state.Key { return state.KeyOf(v.HostID, v.PlaceID) }),
		state.Index("place", func(v *visitor) state.Key { return state.KeyOf(v.PlaceID) }))
)

// placeSource tells each host of its visitors' places what is written there, and how many are there in all.
func placeSource(every time.Duration) Source {
	return Source{Kind: "place", Every: every,
		All: func(tx *state.Tx, h resource.ID) []resource.ID {
			var ids []resource.ID
			for v := range visitors.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h)}) {
				ids = append(ids, v.PlaceID)
			}
			return ids
		},
		Want: func(tx *state.Tx, h, id resource.ID) (any, bool) {
			p, ok := places.PeekOne(tx, id)
			if !ok || len(visitors.IDs(tx, "host", state.KeyOf(h, id))) == 0 {
				return nil, false
			}
			return json.RawMessage(fmt.Sprintf(`"%s, %d"`, p.Text, len(visitors.IDs(tx, "place", state.KeyOf(id))))), true
		},
		Touched: func(_ *state.Tx, e state.Event) []Ref {
			var refs []Ref
			for _, v := range visitorsOf(e) {
				refs = append(refs, Ref{v.HostID, v.PlaceID})
			}
			return refs
		},
		Shared: func(_ *state.Tx, e state.Event) []resource.ID {
			if e.Kind == "hub-test-place" {
				return []resource.ID{e.ID}
			}
			var ids []resource.ID
			for _, v := range visitorsOf(e) {
				ids = append(ids, v.PlaceID)
			}
			return ids
		}}
}

func visitorsOf(e state.Event) (all []*visitor) {
	for _, o := range []resource.Object{e.Before, e.After} {
		if v, ok := o.(*visitor); ok {
			all = append(all, v)
		}
	}
	return all
}

func TestOnlyThoseWhoHaveItHearOfIt(t *testing.T) {
	h, c, id := rig(t, 0)
	h.Sources = append(h.Sources, placeSource(time.Second))
	other := resource.NewID(c.now, nil)
	if err := Arrive(t.Context(), h.State, other, Hello{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	p := place{Meta: resource.Meta{ID: c.id()}, Text: "a"}
	v := visitor{Meta: resource.Meta{ID: c.id()}, HostID: id, PlaceID: p.ID}
	write := func(write func(*state.Tx) error) {
		t.Helper()
		if err := h.State.Update(t.Context(), write); err != nil {
			t.Fatal(err)
		}
		if err := h.Pump(); err != nil {
			t.Fatal(err)
		}
	}
	say := func(text string) {
		t.Helper()
		p.Text = text
		write(func(tx *state.Tx) error { return places.Put(tx, &p) })
		c.now = c.now.Add(time.Minute)
	}
	s, o := h.Connect(id), h.Connect(other)
	say("a") // who has not been told anything yet may have it
	expect(t, s, "full")
	expect(t, o, "full")
	for _, waits := range []*Session{s, o} {
		if len(waits.Wake()) > 0 {
			expect(t, waits, "nothing")
		}
	}
	say("b")
	expect(t, s, "asleep")
	write(func(tx *state.Tx) error { return visitors.Put(tx, &v) })
	expect(t, s, `"b, 1"`)
	c.now = c.now.Add(time.Minute)
	say("c")
	expect(t, s, `"c, 1"`)
	expect(t, o, "asleep")
	c.now = c.now.Add(time.Minute)
	v.HostID = other
	write(func(tx *state.Tx) error { return visitors.Put(tx, &v) })
	expect(t, s, "take away")
	expect(t, o, `"c, 1"`)
	c.now = c.now.Add(time.Minute)
	say("d")
	expect(t, s, "asleep")
	expect(t, o, `"d, 1"`)
	again := h.Connect(other)
	o.Close()
	expect(t, again, "full")
	say("e")
	expect(t, again, `"e, 1"`)
	again.Close()
	s.Close()
	if len(h.holders)+len(h.fresh)+len(h.sessions) > 0 {
		t.Errorf("of closed sessions are left %v, %v, %v", h.holders, h.fresh, h.sessions)
	}
}

// TestNobodyMissesAnything: while visitors come and go, places change and hosts connect anew, each of them knows in the end
// what it is to know, and nothing else.
func TestNobodyMissesAnything(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			ctx, cancel := context.WithCancel(t.Context())
			st, err := state.Open(ctx, state.NewMemory(0), state.Options{History: 40}) // a hub that lags starts over
			if err != nil {
				t.Fatal(err)
			}
			h := NewHub(st, placeSource([]time.Duration{0, time.Millisecond, 101 * time.Millisecond}[r.IntN(3)]))
			var wg sync.WaitGroup
			wg.Go(func() { h.Run(ctx) })
			var ids, rooms []resource.ID
			for n := range 6 {
				id := resource.NewID(time.Now(), nil)
				ids = append(ids, id)
				if err := Arrive(ctx, st, id, Hello{Name: fmt.Sprint(n)}); err != nil {
					t.Fatal(err)
				}
			}
			told := make([]map[Key]string, len(ids))
			for n, id := range ids {
				seed := r.Uint64()
				wg.Go(func() { told[n] = attend(ctx, h, id, rand.New(rand.NewPCG(seed, 2))) })
			}
			write := func(write func(*state.Tx) error) {
				if err := st.Update(ctx, write); err != nil {
					t.Error(err)
				}
			}
			for range 4 {
				id := resource.NewID(time.Now(), nil)
				rooms = append(rooms, id)
				write(func(tx *state.Tx) error { return places.Put(tx, &place{Meta: resource.Meta{ID: id}}) })
			}
			guests := make([]visitor, 8)
			for i := range guests {
				guests[i].ID = resource.NewID(time.Now(), nil)
			}
			for range 300 {
				switch i := r.IntN(len(guests)); r.IntN(4) {
				case 0:
					write(func(tx *state.Tx) error {
						return places.Put(tx, &place{Meta: resource.Meta{ID: rooms[r.IntN(len(rooms))]}, Text: fmt.Sprint(r.IntN(1000))})
					})
				case 1:
					write(func(tx *state.Tx) error {
						if !visitors.Has(tx, guests[i].ID) {
							return nil
						}
						return visitors.Delete(tx, guests[i].ID)
					})
				default:
					v := guests[i]
					v.HostID, v.PlaceID = ids[r.IntN(len(ids))], rooms[r.IntN(len(rooms))]
					write(func(tx *state.Tx) error { return visitors.Put(tx, &v) })
				}
				if r.IntN(3) == 0 {
					time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
				}
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			cancel()
			wg.Wait()
			tx := st.Latest()
			for n, id := range ids {
				want := map[Key]string{}
				for _, room := range h.Sources[0].All(tx, id) {
					body, err := h.Sources[0].body(tx, id, room)
					if err != nil {
						t.Error(err)
					}
					want[Key{"place", room}] = string(body)
				}
				if fmt.Sprint(told[n]) != fmt.Sprint(want) {
					t.Errorf("seed %d: host %d knows %v, and is to know %v", seed, n, told[n], want)
				}
			}
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// attend is a host that connects again now and then for a while. It gives what it knows in the end.
func attend(ctx context.Context, h *Hub, id resource.ID, r *rand.Rand) map[Key]string {
	knows := map[Key]string{}
	until := time.Now().Add(3 * time.Second)
	for {
		s := h.Connect(id)
		within, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(500))*time.Millisecond)
		if time.Now().After(until) {
			within = ctx
		}
		for {
			d, err := s.Next(within)
			if err != nil {
				cancel()
				s.Close()
				if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
					return knows
				}
				break
			}
			if d.Full {
				clear(knows)
			}
			for _, item := range d.Items {
				if item.Body == nil {
					delete(knows, item.Key)
				} else {
					knows[item.Key] = string(item.Body)
				}
			}
		}
	}
}
