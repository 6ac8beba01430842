package compute_test

import (
	"context"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// cancels are what can be asked of a server that stands so, and taken back.
var cancels = map[compute.Task]struct {
	first []compute.Task
	stage compute.Stage
	power compute.Power
}{
	compute.Stopping:      {nil, compute.Running, compute.On},
	compute.SoftRebooting: {nil, compute.Running, compute.On},
	compute.HardRebooting: {nil, compute.Running, compute.On},
	compute.Pausing:       {nil, compute.Running, compute.On},
	compute.Suspending:    {nil, compute.Running, compute.On},
	compute.Starting:      {[]compute.Task{compute.Stopping}, compute.Stopped, compute.Off},
	compute.Unpausing:     {[]compute.Task{compute.Pausing}, compute.Frozen, compute.Paused},
	compute.Resuming:      {[]compute.Task{compute.Suspending}, compute.Asleep, compute.Suspended},
}

func TestCancelTakesTheWishBack(t *testing.T) {
	for task, test := range cancels {
		for when, early := range map[string]bool{"before the host acts": true, "after the host acted": false} {
			t.Run(string(task)+" "+when, func(t *testing.T) {
				c, id := running(t, 1)
				for _, first := range test.first {
					c.Must(c.Compute.Do(c.Ctx, id, first))
					c.Settle()
				}
				h := c.Hosts[0]
				before := h.Seen[id]
				c.Must(c.Compute.Do(c.Ctx, id, task))
				op := lastOperation(c, id)
				h.Mute = true
				if !early {
					c.Settle() // it does it, and its report does not arrive
				}
				for range 2 { // twice is once
					got, err := c.Ops.Cancel(c.Ctx, op.ID)
					c.Must(err)
					if got.Outcome != operation.Cancelled || got.EndedAt.IsZero() {
						t.Fatalf("the operation is %+v", got)
					}
				}
				if srv := c.Server(id); srv.Standing() != (compute.Standing{Stage: test.stage}) || srv.Power != test.power {
					t.Fatalf("the server is %v, and to be %s", srv.Standing(), srv.Power)
				}
				h.Mute = false
				c.Settle()
				srv := c.Server(id)
				if srv.Standing() != (compute.Standing{Stage: test.stage}) || srv.Seen.Power != test.power || h.Seen[id].Power != test.power {
					t.Fatalf("in the end the server is %v, and its guest %+v", srv.Standing(), h.Seen[id])
				}
				if early && h.Seen[id].StartedAt != before.StartedAt {
					t.Fatal("the guest was started anew for something that was cancelled")
				}
				c.Must(c.Compute.Do(c.Ctx, id, task)) // and it can be asked for again
				c.Settle()
				if op := lastOperation(c, id); op.Outcome != operation.Succeeded {
					t.Fatalf("asked for again it is %+v", op)
				}
			})
		}
	}
}

// A report on what was cancelled does not end what is asked for next.
func TestALateReportAnswersOnlyItsOwnWish(t *testing.T) {
	c, id := running(t, 1)
	h := c.Hosts[0]
	c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping))
	h.Lazy = true
	c.Settle()
	stop := c.Server(id).Wish
	_, err := c.Ops.Cancel(c.Ctx, lastOperation(c, id).ID)
	c.Must(err)
	c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping))
	for _, late := range []compute.Observation{{Power: compute.Off}, {Power: compute.On, Trouble: "It does not stop."}} {
		c.Report(h, id, compute.Seen{Observation: late, Wish: stop})
		if srv := c.Server(id); srv.Task != compute.Stopping {
			t.Fatalf("with %+v it counts as done: %v", late, srv.Standing())
		}
	}
	c.Report(h, id, compute.Seen{Observation: compute.Observation{Power: compute.On, Trouble: "It does not stop."}, Wish: c.Server(id).Wish})
	if op := lastOperation(c, id); op.Outcome != operation.Failed || op.Message != "It does not stop." {
		t.Fatalf("the operation is %+v", op)
	}
}

func TestCancelledCreateGoes(t *testing.T) {
	for name, lost := range map[string]bool{"from its host": false, "when its host cannot be heard": true} {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t, 1)
			h := c.Hosts[0]
			id := c.Launch(compute.Launch{})[0]
			create := lastOperation(c, id)
			if lost {
				c.Lose(h)
			}
			got, err := c.Ops.Cancel(c.Ctx, create.ID)
			c.Must(err)
			if got.Outcome != operation.Cancelled || got.Verb != "create" {
				t.Fatalf("the create is %+v", got)
			}
			if op := operation.Active(c.State.Latest(), id); op == nil || op.Verb != "delete" {
				t.Fatalf("under way is %+v", op)
			}
			c.Settle()
			if lost {
				c.Expire()
				c.Return(h)
				c.Settle()
			}
			if c.Server(id) != nil || len(h.Guests) != 0 {
				t.Fatal("something of it is left")
			}
			if n := len(network.PortsOf(c.State.Latest(), id)); n != 0 {
				t.Fatalf("%d ports are left", n)
			}
		})
	}
}

func TestWhatCannotBeCancelled(t *testing.T) {
	refused := func(t *testing.T, c *cloudtest.Cloud, ctx context.Context, op *operation.Operation, kind fault.Kind, code string) {
		t.Helper()
		before := c.State.Latest().Revision()
		_, err := c.Ops.Cancel(ctx, op.ID)
		if f := fault.From(err); f == nil || f.Kind != kind || code != "" && f.Code != code {
			t.Fatalf("to cancel %s answers %v", op.Verb, err)
		}
		if c.State.Latest().Revision() != before {
			t.Fatal("something was written")
		}
	}
	const final, ended = "operation-not-cancellable", "operation-ended"
	for name, ask := range map[string]func(c *cloudtest.Cloud, s *compute.Server) error{
		"rebuild": func(c *cloudtest.Cloud, s *compute.Server) error {
			_, err := c.Compute.Rebuild(c.Ctx, s.ID, compute.Rebuild{ImageID: c.Image})
			return err
		},
		"resize": func(c *cloudtest.Cloud, s *compute.Server) error { return c.Compute.Reshape(c.Ctx, s.ID, "84", nil) },
		"delete": func(c *cloudtest.Cloud, s *compute.Server) error { return c.Compute.Delete(c.Ctx, s.ID) },
	} {
		t.Run(name, func(t *testing.T) {
			c, id := running(t, 1)
			c.Hosts[0].Lazy = true
			c.Must(ask(c, c.Server(id)))
			refused(t, c, c.Ctx, operation.Active(c.State.Latest(), id), fault.Conflict, final)
		})
	}
	c, id := running(t, 1)
	refused(t, c, c.Ctx, lastOperation(c, id), fault.Conflict, ended)
	c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping))
	op := lastOperation(c, id)
	refused(t, c, c.OtherCtx, op, fault.NotFound, "")
	reader := c.Member(c.Project)
	reader.Roles = []string{"reader"}
	refused(t, c, identity.As(context.Background(), reader), op, fault.Forbidden, "")
	c.Must(c.Compute.LockServer(c.Ctx, id, ""))
	refused(t, c, c.Ctx, op, fault.Conflict, "server-locked")
	other := *c.Ops
	other.Cancellers = nil
	if _, err := other.Cancel(c.Ctx, op.ID); fault.From(err) == nil || fault.From(err).Code != final {
		t.Fatalf("of a kind that nobody cancels it answers %v", err)
	}
	_, err := c.Ops.Cancel(c.Admin, op.ID) // a lock does not keep an operator from it
	c.Must(err)
}

func TestPlannedCancel(t *testing.T) {
	c, id := running(t, 1)
	c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping))
	plan := new(state.Plan)
	got, err := c.Ops.Cancel(state.WithPlan(c.Ctx, plan), lastOperation(c, id).ID)
	if err != nil || got.Outcome != operation.Cancelled || len(plan.Changes()) != 2 {
		t.Errorf("the plan is %+v, %v, with %d changes", got, err, len(plan.Changes()))
	}
	if c.Server(id).Task != compute.Stopping {
		t.Error("the plan was carried out")
	}
}

// A server that never ran is not left as one that is being built by nobody.
func TestRebootOfWhatNeverRan(t *testing.T) {
	for name, end := range map[string]func(*cloudtest.Cloud, *operation.Operation){
		"fails": func(c *cloudtest.Cloud, _ *operation.Operation) { c.Expire() },
		"is cancelled": func(c *cloudtest.Cloud, op *operation.Operation) {
			_, err := c.Ops.Cancel(c.Ctx, op.ID)
			c.Must(err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t, 1)
			c.Hosts[0].Trouble = "the image is damaged"
			id := c.Launch(compute.Launch{})[0]
			c.Settle()
			c.Hosts[0].Lazy = true
			c.Must(c.Compute.Do(c.Ctx, id, compute.HardRebooting))
			end(c, lastOperation(c, id))
			if srv := c.Server(id); srv.Standing() != (compute.Standing{Stage: compute.Failed}) || srv.Failure.Message == "" {
				t.Fatalf("it is %v", srv.Standing())
			}
		})
	}
}

// A guest that ends by itself ends what is under way with its server, at once.
func TestGuestEndsMeanwhile(t *testing.T) {
	for task, test := range map[compute.Task]struct {
		first []compute.Task
		want  operation.Outcome
	}{
		compute.Pausing:       {nil, operation.Failed},
		compute.Suspending:    {nil, operation.Failed},
		compute.Unpausing:     {[]compute.Task{compute.Pausing}, operation.Failed},
		compute.Resuming:      {[]compute.Task{compute.Suspending}, operation.Failed},
		compute.Stopping:      {nil, operation.Succeeded},
		compute.SoftRebooting: {nil, operation.Succeeded}, // it did boot
		compute.HardRebooting: {nil, operation.Succeeded},
		compute.Starting:      {[]compute.Task{compute.Stopping}, operation.Succeeded},
		compute.Rebuilding:    {nil, operation.Succeeded},
	} {
		t.Run(string(task), func(t *testing.T) {
			c, id := running(t, 1)
			for _, first := range test.first {
				c.Must(c.Compute.Do(c.Ctx, id, first))
				c.Settle()
			}
			if task == compute.Rebuilding {
				_, err := c.Compute.Rebuild(c.Ctx, id, compute.Rebuild{ImageID: c.Image})
				c.Must(err)
			} else {
				c.Must(c.Compute.Do(c.Ctx, id, task))
			}
			srv := c.Server(id)
			off := compute.Observation{Power: compute.Off, HardBoots: srv.HardBoots, SoftBoots: srv.SoftBoots, Rebuilds: srv.Rebuilds}
			busy := off
			busy.Busy = true
			c.Report(c.Hosts[0], id, compute.Seen{Observation: busy, Wish: srv.Wish})
			if task != compute.Stopping && c.Server(id).Task != task {
				t.Fatal("its host still works on it, and it counts as ended")
			}
			c.Report(c.Hosts[0], id, compute.Seen{Observation: off, Wish: srv.Wish})
			srv = c.Server(id)
			if srv.Standing() != (compute.Standing{Stage: compute.Stopped}) || srv.Power != compute.Off {
				t.Fatalf("the server is %v, and to be %s", srv.Standing(), srv.Power)
			}
			op := lastOperation(c, id)
			if op.Outcome != test.want || test.want == operation.Failed && op.Message != "The guest ended by itself." {
				t.Fatalf("the operation is %+v", op)
			}
		})
	}
	t.Run("create", func(t *testing.T) {
		c := cloudtest.New(t, 1)
		id := c.Launch(compute.Launch{})[0]
		c.Report(c.Hosts[0], id, compute.Seen{Observation: compute.Observation{Power: compute.Off}, Wish: c.Server(id).Wish})
		srv := c.Server(id)
		if srv.Standing() != (compute.Standing{Stage: compute.Stopped}) || srv.LaunchedAt.IsZero() || lastOperation(c, id).Outcome != operation.Succeeded {
			t.Fatalf("a guest that ran and switched itself off is %v", srv.Standing())
		}
	})
}
