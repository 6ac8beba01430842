package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// newBootedHost is a host that knows a guest from before its machine's boot.
func newBootedHost(t *testing.T, after time.Duration) *leasedHost {
	t.Helper()
	h := newLeasedHost(t, nil)
	h.want.Leased = false
	h.deliver() // before the boot: there is no word that it could give
	word := &Word{After: after, Clock: h.now}
	h.guests.Word, h.agent.Word = word, word
	return h
}

func TestAfterABootGuestsWaitForAControllersWord(t *testing.T) {
	h := newBootedHost(t, 5*time.Minute)
	if h.pass(4 * time.Minute) {
		t.Fatal("a guest runs, and no controller has told that it is still this host's")
	}
	if seen := h.seen(); !seen.Busy || seen.Power != compute.Off || seen.Trouble != "" {
		t.Fatalf("it says of the guest that waits: %+v", seen)
	}
	h.deliver()
	if !h.pass(10 * time.Second) {
		t.Fatal("it was told, and the guest does not run")
	}
}

func TestAfterABootGuestsRunWithoutAControllerInTheEnd(t *testing.T) {
	for _, c := range []struct {
		after, at time.Duration
		runs      bool
	}{
		{0, 10 * time.Second, true},
		{5 * time.Minute, 5*time.Minute + 10*time.Second, true},
		{-1, 24 * time.Hour, false},
	} {
		if h := newBootedHost(t, c.after); h.pass(c.at) != c.runs {
			t.Errorf("waiting for %v, after %v: runs %v, want %v", c.after, c.at, !c.runs, c.runs)
		}
	}
}

func TestWhatRunsWaitsForNoWord(t *testing.T) { // as where an agent of the release before has started it
	h := newLeasedHost(t, nil)
	h.want.Leased = false
	h.deliver()
	if !h.pass(10 * time.Second) {
		t.Fatal("the guest does not run")
	}
	h.guests.Word = &Word{After: -1, Clock: h.now}
	if !h.pass(time.Minute) {
		t.Error("it was cut off")
	}
}

func TestAWordOutlivesItsAgentAndNotTheBoot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "told-in-boot")
	open := func() *Word {
		t.Helper()
		w, err := OpenWord(file, -1)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := open()
	if !w.awaited(t.Context()) {
		t.Fatal("it was never given, and nothing waits for it")
	}
	if err := w.Give(); err != nil {
		t.Fatal(err)
	}
	if w.awaited(t.Context()) || open().awaited(t.Context()) {
		t.Fatal("it was given in this boot, and is waited for")
	}
	if err := os.WriteFile(file, []byte("0b6d0f62-8f07-4b2b-9f7e-1b1a9a2d9d33\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !open().awaited(t.Context()) {
		t.Fatal("it was given in another boot, and is not waited for")
	}
}
