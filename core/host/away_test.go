package host

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
)

func TestAHostIsAwayFromItsStorageUntilItSaysOtherwise(t *testing.T) {
	h, c, id := rig(t, 0)
	arrive := func(hello Hello) {
		t.Helper()
		hello.Name = "h"
		if err := Arrive(t.Context(), h.State, id, hello); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, since time.Time, why string) {
		t.Helper()
		if m, ok := Find(h.State.Latest(), id); !ok || !m.Away.Since.Equal(since) || m.Away.Why != why {
			t.Errorf("%s it is %+v", when, m.Away)
		}
	}
	say := func(why string) error {
		seen, err := json.Marshal(why)
		if err != nil {
			t.Fatal(err)
		}
		return h.State.Update(t.Context(), func(tx *state.Tx) error { return storage().Observe(tx, id, id, seen) })
	}
	tell := func(why string) {
		t.Helper()
		c.now = c.now.Add(time.Minute)
		if err := say(why); err != nil {
			t.Fatal(err)
		}
	}
	shares := Hello{Version: "v2", Capacity: Capacity{Storage: "nas"}}
	never := time.Time{}
	tell("it does not answer")
	want("without a storage that is shared", never, "")
	arrive(shares)
	tell("it does not answer")
	m, _ := Find(h.State.Latest(), id)
	since := m.Away.Since
	if since.IsZero() {
		t.Fatalf("it is %+v", m.Away)
	}
	tell("stale file handle")
	want("when it fails otherwise", since, "stale file handle")
	arrive(shares)
	want("in another session", since, "stale file handle")
	for _, bad := range []string{"a\nb", strings.Repeat("x", 300)} {
		if err := say(bad); err == nil {
			t.Errorf("%.10q is taken", bad)
		}
	}
	tell("")
	want("when it is back", never, "")

	tell("it does not answer")
	arrive(Hello{Version: "v1", Capacity: shares.Capacity}) // which may be one that never says that it is back
	want("as another release", never, "")
	tell("it does not answer")
	arrive(Hello{Version: "v1"})
	want("without a shared storage", never, "")
	arrive(shares)
	tell("it does not answer")
	if err := Lose(t.Context(), h.State, id); err != nil {
		t.Fatal(err)
	}
	want("lost", never, "")
	tell("it does not answer")
	want("lost, and late", never, "")
}
