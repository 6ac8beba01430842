package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// newBootedHost is a host that knows a guest from before its machine's boot.
func newBootedHost(t *testing.T, after time.Duration) *leasedHost {
	t.Helper()
	h := newLeasedHost(t, nil)
	h.want.Leased = false
	h.deliver() // before the boot: there is no word that it could give
	h.agent.Word = &Word{After: after, Clock: h.now}
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
	h.agent.Word = &Word{After: -1, Clock: h.now}
	if !h.pass(time.Minute) {
		t.Error("it was cut off")
	}
}

// What was wanted before the word does not count because it is given while a step goes on: the guest may be another host's since.
func TestTheWordIsAboutWhatComesWithIt(t *testing.T) {
	h := newBootedHost(t, -1)
	was := h.agent.handlers[0].Ensure
	h.agent.handlers[0].Ensure = func(ctx context.Context, id resource.ID, body json.RawMessage) (any, time.Duration, error) {
		if err := h.agent.Deliver(host.Delivery{Full: true}, h.clock); err != nil { // it was evacuated
			t.Error(err)
		}
		return was(ctx, id, body)
	}
	h.agent.Touch(host.Key{Kind: "guest", ID: h.want.ID}, h.clock)
	if !h.agent.Step(t.Context(), h.now) {
		t.Fatal("nothing was done")
	}
	if len(h.machine.Running()) != 0 {
		t.Error("what is another host's now was started in the moment when that was told")
	}
}

func TestAWordOutlivesItsAgentAndNotTheBoot(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "told-in-boot")
	clock := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	open := func() *Word {
		t.Helper()
		w, err := OpenWord(file, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		w.Clock = func() time.Time { return w.since.Add(clock.Sub(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))) }
		return w
	}
	if err := os.Mkdir(file+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if w := open(); !w.awaited() { // where nothing can be kept
		t.Fatal("nothing waits for it")
	}
	if err := os.Remove(file + ".new"); err != nil {
		t.Fatal(err)
	}
	w := open()
	if !w.awaited() {
		t.Fatal("it was never given, and nothing waits for it")
	}
	clock = clock.Add(59 * time.Minute)
	if !open().awaited() { // an agent that does not live long
		t.Fatal("nothing waits for it before the time is over")
	}
	clock = clock.Add(time.Minute)
	if open().awaited() {
		t.Fatal("an agent that starts again and again makes guests wait for ever")
	}
	clock = clock.Add(-time.Hour)
	w = open()
	w.give()
	if err := os.Mkdir(file+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if w.keep() == nil {
		t.Fatal("it cannot be kept, and nobody says so")
	}
	if !open().awaited() {
		t.Fatal("it was not kept, and counts as given")
	}
	if err := os.Remove(file + ".new"); err != nil {
		t.Fatal(err)
	}
	if err := w.keep(); err != nil { // with the next delivery
		t.Fatal(err)
	}
	if w.awaited() || open().awaited() {
		t.Fatal("it was given in this boot, and is waited for")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(text, []byte(boot()), []byte("0b6d0f62-8f07-4b2b-9f7e-1b1a9a2d9d33"), 1)
	if err := os.WriteFile(file, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if !open().awaited() {
		t.Fatal("it was given in another boot, and is not waited for")
	}
}
