package host

import (
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
)

func TestAMuteHostIsNotLostAndSpeaksAgain(t *testing.T) {
	h, c, id := rig(t, 0)
	look := func() *Host {
		t.Helper()
		m, ok := Find(h.State.Latest(), id)
		if !ok {
			t.Fatal("the host is gone")
		}
		return m
	}
	fall := func(mute bool) {
		t.Helper()
		if err := h.State.Update(t.Context(), func(tx *state.Tx) error { return Mute(tx, id, mute) }); err != nil {
			t.Fatal(err)
		}
	}
	fall(true)
	if m := look(); !m.Up() || m.Mute.IsZero() {
		t.Errorf("%+v", m)
	}
	since := look().Mute
	c.now = c.now.Add(time.Second)
	fall(true)
	if !look().Mute.Equal(since) {
		t.Error("it fell mute twice")
	}
	fall(false)
	if !look().Mute.IsZero() {
		t.Error("still mute")
	}
	fall(true)
	if err := Arrive(t.Context(), h.State, id, Hello{Name: "h"}); err != nil {
		t.Fatal(err)
	}
	if !look().Mute.IsZero() {
		t.Error("one that begins a session is mute")
	}
	fall(true)
	if err := Lose(t.Context(), h.State, id); err != nil {
		t.Fatal(err)
	}
	if m := look(); m.Up() || !m.Mute.IsZero() {
		t.Errorf("lost it is %+v", m)
	}
	if fall(true); !look().Mute.IsZero() {
		t.Error("one that is lost fell mute")
	}
}
