package simulation

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/operation"
)

// TestStartOvertakesStop: a guest switches itself off, and its owner starts it before the host is
// told that it was to be off. For the host the power that is wished has then never changed.
func TestStartOvertakesStop(t *testing.T) {
	w, err := newWorld(t.Context(), Options{Seed: 1, Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, n := w.client.projects[0], w.nodes[0]
	for len(p.order) == 0 {
		if err := w.settle(); err != nil { // the host arrives
			t.Fatal(err)
		}
		if what, err := w.client.create(p, "42"); err != nil {
			t.Fatal(what, err)
		}
	}
	if err := w.settle(); err != nil {
		t.Fatal(err)
	}
	id := p.order[0]
	n.machine.ShutDown(id)
	server := func() *compute.Server {
		s, _ := compute.Servers().PeekOne(w.control.state.Latest(), id)
		return s
	}
	for server().Seen.Power != compute.Off {
		if !n.step() {
			t.Fatal("the host is at rest and has not reported it")
		}
	}
	if err := w.control.compute.Do(p.ctx, id, compute.Starting); err != nil {
		t.Fatal(err)
	}
	if err := w.settle(); err != nil {
		t.Fatal(err)
	}
	if s := server(); s.Stage() != compute.Running || s.Task != "" {
		t.Errorf("the server is %s", s.Stage())
	}
	for o := range operation.Table().Peek(w.control.state.Latest(), "", state.Range{}) {
		if o.TargetID == id && o.Outcome != operation.Succeeded {
			t.Errorf("%s ended as %s: %s", o.Verb, o.Outcome, o.Message)
		}
	}
}
