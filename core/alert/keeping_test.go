package alert

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

func TestAlertsOfWhatKeepsGuestsAlive(t *testing.T) {
	r := newRig(t)
	hosts := map[string]*host.Host{}
	put := func(what any) {
		t.Helper()
		if err := r.State.Update(r.ctx, func(tx *state.Tx) error {
			switch o := what.(type) {
			case *host.Host:
				if o.ID.IsZero() {
					o.ID = tx.NewID()
				}
				return host.Table().Put(tx, o)
			case *compute.Server:
				if o.ID.IsZero() {
					o.ID = tx.NewID()
				}
				return compute.Servers().Put(tx, o)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want ...string) { // in whatever order
		t.Helper()
		if got := slices.Sorted(slices.Values(r.round(time.Second))); !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	for n := range 4 {
		h := &host.Host{Meta: resource.Meta{Name: fmt.Sprint("h", n)}}
		put(h)
		hosts[h.Name] = h
	}
	s := Service{State: r.State}
	if err := s.Add(r.ctx, hook("ops")); err != nil {
		t.Fatal(err)
	}
	h0, h1 := hosts["h0"], hosts["h1"]
	h0.Lost, h0.Fencing = r.clock, host.Fencing{Driver: "exec", Program: "x", Trouble: "no route"}
	put(h0)
	want("ops: raised fencing-failed h0", "ops: raised host-lost h0")
	h1.Lost = r.clock
	put(h1)
	want("ops: raised host-lost h1", "ops: raised storm")
	h0.Fenced, h0.Fencing.Trouble = host.Fenced{At: r.clock, How: "exec"}, ""
	put(h0)
	want("ops: resolved fencing-failed h0", "ops: resolved storm")
	srv := &compute.Server{HostID: h0.ID, Power: compute.On, LaunchedAt: r.clock, Keep: compute.Keep{Elsewhere: true}, Stranded: &compute.Stranded{Since: r.clock, Why: "no room"}}
	put(srv)
	want("ops: raised restart-pending")
	srv.Stranded = nil
	put(srv)
	want("ops: resolved restart-pending")
	h2 := hosts["h2"]
	h2.Maintenance, h2.Disabled, h2.Drain = true, true, &host.Drain{Drained: r.clock}
	put(h2)
	want("ops: raised host-drained h2")
	// Emptied, it may be off on purpose; not while something runs there, nor while it is being emptied.
	h2.Lost = r.clock
	put(h2)
	want()
	stays := &compute.Server{HostID: h2.ID, Power: compute.On, LaunchedAt: r.clock}
	put(stays)
	want("ops: raised host-lost h2", "ops: raised storm")
	stays.Power = compute.Off
	put(stays)
	want("ops: resolved host-lost h2", "ops: resolved storm")
	h2.Drain.Drained = time.Time{}
	put(h2)
	want("ops: raised host-lost h2", "ops: raised storm", "ops: resolved host-drained h2")
}
