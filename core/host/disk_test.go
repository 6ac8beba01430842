package host

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
)

func TestHowMuchRoomIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		was  Room
		free []int // one after the other
		want Room  // after the last
	}{
		"plenty":                           {Enough, []int{100}, Enough},
		"a little more than little":        {Enough, []int{11}, Enough},
		"little":                           {Enough, []int{10}, Low},
		"hardly any at once":               {Enough, []int{3}, Critical},
		"none":                             {Low, []int{0}, Critical},
		"little, and some is taken away":   {Low, []int{15}, Low},
		"little, and much is taken away":   {Low, []int{16}, Enough},
		"hardly any, and a bit more":       {Critical, []int{5}, Critical},
		"hardly any, and more":             {Critical, []int{6}, Low},
		"hardly any, and much more":        {Critical, []int{15}, Low},
		"hardly any, and plenty":           {Critical, []int{16}, Enough},
		"to and fro where little begins":   {Enough, []int{10, 11, 10, 11, 14, 9}, Low},
		"to and fro where little ends":     {Low, []int{16, 15, 16, 11}, Enough},
		"to and fro where it is critical":  {Low, []int{4, 3, 4, 5, 4}, Critical},
		"to and fro where that is no more": {Critical, []int{6, 5, 4, 6}, Low},
	} {
		got := c.was
		for _, free := range c.free {
			got = got.After(free)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestFreePart(t *testing.T) {
	for _, c := range []struct {
		free, size uint64
		want       int
	}{{0, 0, 100}, {0, 1000, 0}, {99, 1000, 9}, {100, 1000, 10}, {1000, 1000, 100}, {3, 50, 6}, {1 << 62, 1 << 63, 50}, {2000, 1000, 100}} {
		if got := FreePart(c.free, c.size); got != c.want {
			t.Errorf("%d of %d: %d %%, want %d", c.free, c.size, got, c.want)
		}
	}
}

func TestWhatAHostSaysOfItsDisks(t *testing.T) {
	h, c, id := rig(t, 0)
	arrive := func(hello Hello) {
		t.Helper()
		hello.Name = "h"
		if err := Arrive(t.Context(), h.State, id, hello); err != nil {
			t.Fatal(err)
		}
	}
	say := func(text string) error {
		return h.State.Update(t.Context(), func(tx *state.Tx) error { return disks().Observe(tx, id, id, json.RawMessage(text)) })
	}
	// tell says it a minute later, and gives whether anything was written.
	tell := func(own, shared int) bool {
		t.Helper()
		c.now = c.now.Add(time.Minute)
		text, err := json.Marshal(Free{own, shared})
		if err != nil {
			t.Fatal(err)
		}
		before := h.State.Latest().Revision()
		if err := say(string(text)); err != nil {
			t.Fatal(err)
		}
		return h.State.Latest().Revision() != before
	}
	want := func(when string, own, shared Room) *Host {
		t.Helper()
		m, ok := Find(h.State.Latest(), id)
		if !ok || m.Disk.Room != own || m.SharedDisk.Room != shared || m.Disk.Since.IsZero() != (own == Enough) || m.SharedDisk.Since.IsZero() != (shared == Enough) {
			t.Errorf("%s it is %+v and %+v", when, m.Disk, m.SharedDisk)
		}
		return m
	}
	shares := Hello{Version: "v2", Capacity: Capacity{Storage: "nas"}}
	arrive(shares)
	if tell(80, 90) {
		t.Error("that enough is left is written")
	}
	if tell(10, 90); want("filling", Low, Enough).Disk.Words() == "" {
		t.Error("it has no words")
	}
	since := want("filling", Low, Enough).Disk.Since
	for free := 4; free <= 15; free++ {
		if tell(free, 50) {
			t.Errorf("with %d %% free it is written again", free)
		}
	}
	tell(2, 50)
	if m := want("full", Critical, Enough); !m.Disk.Since.After(since) {
		t.Errorf("it is %+v, as before", m.Disk)
	}
	arrive(shares)
	want("in another session", Critical, Enough)
	tell(50, 9)
	want("when the storage fills", Enough, Low)
	for _, bad := range []string{`{"Own": -1, "Shared": 100}`, `{"Own": 50, "Shared": 101}`, `"full"`} {
		if err := say(bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	want("after nonsense", Enough, Low)

	tell(2, 9)
	arrive(Hello{Version: "v2"})
	want("without a shared storage", Critical, Enough)
	tell(2, 0)
	want("without a shared storage, and late", Critical, Enough)
	arrive(Hello{Version: "v1"}) // which may be one that never says that there is room again
	want("as another release", Enough, Enough)
	arrive(shares)
	tell(2, 2)
	if err := Lose(t.Context(), h.State, id); err != nil {
		t.Fatal(err)
	}
	want("lost", Enough, Enough)
	tell(2, 2)
	want("lost, and late", Enough, Enough)
}
