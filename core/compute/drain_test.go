package compute_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// together makes servers on the first host.
func (k *keeper) together(n int) []resource.ID {
	k.t.Helper()
	made, err := k.Compute.Create(operatorOf(k.Cloud), k.Plain(compute.Launch{Max: n, Host: k.Hosts[0].Name}))
	k.Must(err)
	k.Settle()
	return made.Servers
}

// operatorOf is a context in which the cloud's user asks who is an operator, too.
func operatorOf(c *cloudtest.Cloud) context.Context {
	return identity.As(c.Ctx, &identity.Actor{UserID: c.User.UserID, ProjectID: c.Project, Roles: []string{"admin", "member", "reader"}})
}

func (k *keeper) drainOf(h *cloudtest.Host) *operation.Operation {
	return operation.Of(k.State.Latest(), h.ID)[0]
}

func TestMaintenanceEmptiesAHost(t *testing.T) {
	k := newKeeper(t, 3)
	ids := k.together(6)
	h := k.Hosts[0]
	k.Must(k.Compute.Do(k.Ctx, ids[0], compute.Stopping))
	k.Must(k.Compute.Do(k.Ctx, ids[1], compute.Pausing))
	k.Settle()
	before := k.State.Latest().Revision()
	plan, err := k.Compute.PlanRetirement(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	if k.State.Latest().Revision() != before {
		t.Fatal("a plan changed something")
	}
	if len(plan) != 6 || plan[0].Way != compute.GoesCold || plan[1].Way != compute.GoesLive || plan[5].To == "" || plan[5].To == h.Name {
		t.Fatalf("planned is %+v", plan)
	}
	op, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{Reason: "new memory", AtOnce: 2})
	k.Must(err)
	if m := k.hostOf(h); !m.Maintenance || !m.Disabled || m.DisabledReason != "new memory" || m.Drain.OperationID != op.ID {
		t.Fatalf("it is %+v", m)
	}
	if _, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second time answers %v", err)
	}
	most := 0
	for range 40 {
		k.Must(k.work.Pump(k.Clock))
		for k.work.Do(k.Admin, k.now) {
		}
		moving := 0
		for _, id := range ids {
			if k.Server(id).Move != nil {
				moving++
			}
		}
		most = max(most, moving)
		k.Settle()
		k.Clock = k.Clock.Add(time.Second)
	}
	if most != 2 {
		t.Errorf("%d were on their way at once", most)
	}
	for n, id := range ids {
		s := k.Server(id)
		want := map[int]compute.Stage{0: compute.Stopped, 1: compute.Frozen}[n]
		if want == "" {
			want = compute.Running
		}
		if s.HostID == h.ID || s.Stage() != want {
			t.Errorf("server %d is %s on %s", n, s.Stage(), s.HostID)
		}
	}
	if op := k.drainOf(h); op.Outcome != operation.Succeeded || op.Percent != 100 {
		t.Errorf("the operation is %+v", op)
	}
	if m := k.hostOf(h); m.Drain == nil || !m.Drain.Over() || len(m.Drain.Left) != 0 {
		t.Errorf("it is %+v", m.Drain)
	}
	if n := loadOf(k.Cloud, h); n != 0 {
		t.Errorf("%d MiB are taken there", n)
	}
	k.Must(k.hosts.SetDisabled(k.Admin, h.ID, false, ""))
	if m := k.hostOf(h); m.Maintenance || m.Disabled || m.Drain != nil {
		t.Errorf("enabled it is %+v", m)
	}
	k.pass(time.Second)
}

func TestWhatCannotLeaveIsSaid(t *testing.T) {
	for name, stop := range map[string]bool{"and runs on": false, "or stopped": true} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, 2)
			ids := k.together(3)
			h := k.Hosts[0]
			k.Must(k.Compute.Do(k.Ctx, ids[0], compute.Suspending))
			k.Settle()
			k.Must(k.hosts.SetDisabled(k.Admin, k.Hosts[1].ID, true, ""))
			plan, err := k.Compute.PlanRetirement(k.Admin, h.ID, compute.Retirement{Stop: stop})
			k.Must(err)
			way := map[bool]compute.Way{false: compute.Stays, true: compute.IsStopped}[stop]
			if plan[0].Way != compute.Stays || !strings.Contains(plan[0].Why, "suspended") || plan[1].Way != way || !strings.Contains(plan[1].Why, "No valid host") {
				t.Fatalf("planned is %+v", plan)
			}
			_, err = k.Compute.Retire(k.Admin, h.ID, compute.Retirement{Stop: stop})
			k.Must(err)
			k.pass(time.Minute)
			m := k.hostOf(h)
			if !m.Drain.Over() || len(m.Drain.Left) != 3 || m.Drain.Left[0].Why == "" {
				t.Fatalf("it is %+v", m.Drain)
			}
			op := k.drainOf(h)
			if stop {
				if op.Outcome != operation.Succeeded || k.Server(ids[1]).Stage() != compute.Stopped {
					t.Errorf("the operation is %+v", op)
				}
			} else if op.Outcome != operation.Failed || !strings.Contains(op.Message, "2 of them run") || k.Server(ids[1]).Stage() != compute.Running {
				t.Errorf("the operation is %+v", op)
			}
		})
	}
}

func TestMaintenanceCanBeCancelled(t *testing.T) {
	k := newKeeper(t, 2)
	k.together(4)
	h := k.Hosts[0]
	k.Hosts[1].Lazy = true
	op, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{AtOnce: 1})
	k.Must(err)
	k.pass(5 * time.Second)
	if _, err := k.Ops.Cancel(k.Ctx, op.ID); err == nil {
		t.Fatal("a tenant may")
	}
	_, err = k.Ops.Cancel(k.Admin, op.ID)
	k.Must(err)
	k.Hosts[1].Lazy = false
	if m := k.hostOf(h); m.Maintenance || !m.Disabled || m.Drain != nil {
		t.Errorf("it is %+v", m)
	}
	k.pass(time.Minute)
	if op := k.drainOf(h); op.Outcome != operation.Cancelled {
		t.Errorf("the operation is %+v", op)
	}
}

func TestAMoveThatFailedIsSaid(t *testing.T) {
	k := newKeeper(t, 2)
	k.together(1)
	h := k.Hosts[0]
	k.Hosts[1].Receives = &compute.Transit{Trouble: "The disk is full."}
	_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	k.pass(time.Minute)
	if m := k.hostOf(h); len(m.Drain.Left) != 1 || !strings.Contains(m.Drain.Left[0].Why, "The disk is full.") {
		t.Errorf("it is %+v", m.Drain)
	}
	if op := k.drainOf(h); op.Outcome != operation.Failed {
		t.Errorf("the operation is %+v", op)
	}
}

func TestMaintenanceOfAHostThatIsLostEnds(t *testing.T) {
	k := newKeeper(t, 2)
	k.together(1)
	h := k.Hosts[0]
	k.Lose(h)
	_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	k.pass(5 * time.Second)
	if op := k.drainOf(h); op.Outcome != operation.Running || !strings.Contains(op.WaitingFor, "cannot be heard") {
		t.Errorf("the operation is %+v", op)
	}
	k.Expire()
	if m := k.hostOf(h); !m.Drain.Over() || len(m.Drain.Left) != 1 {
		t.Errorf("it is %+v", m.Drain)
	}
	if op := k.drainOf(h); op.Outcome != operation.Failed {
		t.Errorf("the operation is %+v", op)
	}
}
