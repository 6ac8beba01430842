package compute_test

import (
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/operation"
)

// refusedForMaintenance is the fault for what cannot be while a host is in maintenance.
func refusedForMaintenance(err error) bool {
	f := fault.From(err)
	return f != nil && f.Kind == fault.Conflict && f.Code == "host-in-maintenance"
}

// Whatever owners do with their servers, all of them leave, and those that are kept busy hold up no others.
func TestAHostIsEmptiedWhoeverIsBusyOnIt(t *testing.T) {
	k := newKeeper(t, 3)
	ids := k.together(6)
	h := k.Hosts[0]
	h.Slow = map[resource.ID]bool{ids[0]: true, ids[1]: true} // each reboot takes until its deadline
	again := func() (refused bool) {
		for _, id := range ids[:2] {
			refused = refusedForMaintenance(k.Compute.Do(k.Ctx, id, compute.HardRebooting)) || refused
		}
		return refused
	}
	again()
	_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	k.pass(time.Second)
	if again() {
		t.Error("what owners ask for was refused while others could leave")
	}
	k.pass(30 * time.Second)
	refused := again()
	for n, id := range ids {
		if left := k.Server(id).HostID != h.ID; left != (n > 1) {
			t.Errorf("server %d has left: %v", n, left)
		}
	}
	if d := k.hostOf(h).Drain; !refused || len(d.Next) != 2 {
		t.Fatalf("next are %v, and what else is asked of them is refused: %v", d.Next, refused)
	}
	k.Must(k.Compute.Delete(k.Ctx, ids[1]))
	k.Clock = k.Clock.Add(6 * time.Minute)
	k.Reap() // what was under way ends by its deadline
	h.Slow = nil
	k.pass(20 * time.Second)
	if srv := k.Server(ids[0]); srv.HostID == h.ID || srv.Stage() != compute.Running {
		t.Errorf("the one that was kept busy is %s on %s", srv.Stage(), srv.HostID)
	}
	if op := k.drainOf(h); op.Outcome != operation.Succeeded {
		t.Errorf("the operation is %+v", op)
	}
}

// It ends half an hour after it was last busy with a server, and takes what it waited for when that is possible at last.
func TestWhatWasNotMovedInTimeLeavesLater(t *testing.T) {
	k := newKeeper(t, 2)
	id := k.together(1)[0]
	h := k.Hosts[0]
	h.Copies = &compute.Copying{}
	_, err := k.Compute.CreateImage(k.Ctx, id, compute.ImageWanted{Name: "copy"})
	k.Must(err)
	_, err = k.Compute.Retire(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	for percent := range 8 { // it comes further, slowly
		k.pass(5 * time.Second)
		k.Clock = k.Clock.Add(5 * time.Minute)
		k.Report(h, id, compute.Seen{Observation: h.Seen[id], Wish: h.Guests[id].Wish,
			Copy: compute.Copying{Number: k.Server(id).Snapshot.Number, Percent: percent + 1}})
		k.Reap()
	}
	if op := k.drainOf(h); op.Outcome != operation.Failed || k.Server(id).Task != compute.Imaging {
		t.Fatalf("the operation is %+v", op)
	}
	h.Copies = nil
	k.Report(h, id, compute.Seen{Observation: h.Seen[id], Wish: h.Guests[id].Wish, Copy: compute.Copying{Number: k.Server(id).Snapshot.Number, Trouble: "No."}})
	k.pass(30 * time.Second)
	if d := k.hostOf(h).Drain; k.Server(id).HostID == h.ID || len(d.Left) != 0 {
		t.Errorf("it is on %s, and said to be left: %v", k.Server(id).HostID, d.Left)
	}
}

// An operator works on a host whose guests were stopped for it: none of them runs there before he has done.
func TestWhatWasStoppedForMaintenanceStaysOff(t *testing.T) {
	k := newKeeper(t, 2)
	ids := k.together(3)
	h := k.Hosts[0]
	k.Must(k.Compute.Do(k.Ctx, ids[1], compute.Suspending))
	k.Must(k.Compute.Do(k.Ctx, ids[2], compute.Pausing))
	k.Settle()
	k.Must(k.hosts.SetDisabled(k.Admin, k.Hosts[1].ID, true, ""))
	_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{Stop: true})
	k.Must(err)
	k.pass(time.Minute)
	if op := k.drainOf(h); op.Outcome != operation.Succeeded {
		t.Fatalf("the operation is %+v", op)
	}
	for name, ask := range map[string]func() error{
		"start":                    func() error { return k.Compute.Do(k.Ctx, ids[0], compute.Starting) },
		"reboot":                   func() error { return k.Compute.Do(k.Ctx, ids[0], compute.HardRebooting) },
		"start by an operator":     func() error { return k.Compute.Do(operatorOf(k.Cloud), ids[0], compute.Starting) },
		"resume":                   func() error { return k.Compute.Do(k.Ctx, ids[1], compute.Resuming) },
		"start of what was paused": func() error { return k.Compute.Do(k.Ctx, ids[2], compute.Starting) },
	} {
		if err := ask(); !refusedForMaintenance(err) {
			t.Errorf("%s answers %v", name, err)
		}
	}
	before := k.Server(ids[0])
	if _, err := k.Compute.Rebuild(k.Ctx, ids[0], compute.Rebuild{ImageID: k.Image}); err != nil {
		t.Errorf("what stays off cannot be rebuilt: %v", err)
	}
	k.pass(time.Minute)
	for _, id := range ids {
		if srv := k.Server(id); srv.HostID != h.ID || srv.Seen.Power == compute.On || srv.Seen.Power == compute.Paused {
			t.Errorf("it is %s", srv.Seen.Power)
		}
	}
	if k.Server(ids[0]).HardBoots != before.HardBoots {
		t.Error("what was refused changed something")
	}
	k.Must(k.hosts.SetDisabled(k.Admin, h.ID, false, ""))
	k.Must(k.Compute.Do(k.Ctx, ids[0], compute.Starting))
	k.pass(time.Second)
	if k.Server(ids[0]).Seen.Power != compute.On {
		t.Error("the maintenance is over, and it does not start")
	}
}

// Nobody takes back what is done for an operator but operators.
func TestAnOwnerDoesNotCancelMaintenance(t *testing.T) {
	k := newKeeper(t, 1)
	id := k.together(1)[0]
	h := k.Hosts[0]
	h.Slow = map[resource.ID]bool{id: true}
	_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{Stop: true})
	k.Must(err)
	k.pass(4 * time.Second)
	stop := lastOperation(k.Cloud, id)
	if stop.Verb != string(compute.Stopping) || stop.Outcome != operation.Running {
		t.Fatalf("under way is %+v", stop)
	}
	if _, err := k.Ops.Cancel(k.Ctx, stop.ID); !fault.Is(err, fault.Forbidden) {
		t.Errorf("the owner may: %v", err)
	}
	_, err = k.Ops.Cancel(k.Admin, stop.ID)
	k.Must(err)
	k.pass(time.Minute)
	if op := k.drainOf(h); op.Outcome != operation.Failed || len(k.hostOf(h).Drain.Left) != 1 {
		t.Errorf("what an operator has cancelled is tried again: %+v", op)
	}
}

// What its owner has not confirmed is stopped like any other, and leaves when he has.
func TestWhatIsUnconfirmedInMaintenance(t *testing.T) {
	for name, stop := range map[string]bool{"stopped": true, "let run": false} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, 3)
			id := k.together(2)[0]
			h := k.Hosts[0]
			k.Must(k.Compute.Reshape(k.Ctx, id, "84", nil))
			k.Settle()
			_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{Stop: stop})
			k.Must(err)
			k.pass(time.Minute)
			srv := k.Server(id)
			if off := srv.Seen.Power == compute.Off; srv.HostID != h.ID || srv.Stage() != compute.Unsettled || off != stop {
				t.Fatalf("it is %s, %s", srv.Stage(), srv.Seen.Power)
			}
			if op := k.drainOf(h); stop != (op.Outcome == operation.Succeeded) {
				t.Fatalf("the operation is %+v", op)
			}
			k.Must(k.Compute.Confirm(k.Ctx, id))
			k.pass(time.Minute)
			if srv := k.Server(id); srv.HostID == h.ID || srv.Task != "" || srv.Before != nil || (srv.Seen.Power == compute.Off) != stop {
				t.Errorf("confirmed, it is %v on %s: %v", srv.Standing(), srv.HostID, k.hostOf(h).Drain.Left)
			}
			if left := k.hostOf(h).Drain.Left; len(left) != 0 {
				t.Errorf("said to be left is %v", left)
			}
		})
	}
}

// A resize does not keep a server on a host that is emptied.
func TestAResizeInMaintenanceGoesElsewhere(t *testing.T) {
	k := newKeeper(t, 2)
	id := k.together(1)[0]
	h := k.Hosts[0]
	k.Hosts[1].Lazy = true
	_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	k.Must(k.Compute.Reshape(k.Ctx, id, "84", nil))
	if m := k.Server(id).Move; m == nil || m.To != k.Hosts[1].ID {
		t.Fatalf("it is on its way as %+v", m)
	}
	_, err = k.Ops.Cancel(k.Ctx, k.Server(id).OperationID) // and that is not why it would stay
	k.Must(err)
	k.Hosts[1].Lazy = false
	k.pass(time.Minute)
	if srv := k.Server(id); srv.HostID == h.ID || srv.Shape.MemoryMiB != 128 {
		t.Errorf("it is on %s: %v", srv.HostID, k.hostOf(h).Drain.Left)
	}
}

// The way back does not lead to a host that takes nothing.
func TestRevertWhenItsHostTakesNothing(t *testing.T) {
	for name, close := range map[string]func(k *keeper) error{
		"disabled": func(k *keeper) error { return k.hosts.SetDisabled(k.Admin, k.Hosts[0].ID, true, "broken fan") },
		"in maintenance": func(k *keeper) error {
			_, err := k.Compute.Retire(k.Admin, k.Hosts[0].ID, compute.Retirement{})
			return err
		},
	} {
		t.Run("resized, "+name, func(t *testing.T) {
			k, id := resizedElsewhere(t)
			k.Must(close(k))
			k.Must(k.Compute.Revert(k.Ctx, id))
			k.Settle()
			srv := k.Server(id)
			if srv.HostID != k.Hosts[1].ID || srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.Shape.MemoryMiB != 128 || srv.Before != nil {
				t.Errorf("it is %v with %d MiB on %s", srv.Standing(), srv.Shape.MemoryMiB, srv.HostID)
			}
			if got := migrationOf(k.Cloud, id).State; got != compute.Reverted {
				t.Errorf("recorded is %s", got)
			}
			clean(t, k.Cloud, id)
		})
		t.Run("moved, "+name, func(t *testing.T) {
			k := newKeeper(t, 2)
			id := k.together(1)[0]
			k.Must(k.Compute.Migrate(operatorOf(k.Cloud), id, k.Hosts[1].Name))
			k.Settle()
			k.Must(close(k))
			if err := k.Compute.Revert(k.Ctx, id); !fault.Is(err, fault.Conflict) {
				t.Errorf("it answers %v", err)
			}
			if srv := k.Server(id); srv.Stage() != compute.Unsettled || srv.HostID != k.Hosts[1].ID {
				t.Errorf("it is %v on %s", srv.Standing(), srv.HostID)
			}
		})
	}
}

// resizedElsewhere makes a server that its resize has taken from the first host to the second, and that is not confirmed.
func resizedElsewhere(t *testing.T) (*keeper, resource.ID) {
	k := newKeeper(t, 2)
	most(k.Cloud)
	_, err := k.Compute.Create(operatorOf(k.Cloud), k.Plain(compute.Launch{Flavor: "most", Host: k.Hosts[0].Name}))
	k.Must(err)
	id := k.together(1)[0]
	k.Must(k.Compute.Reshape(k.Ctx, id, "most", nil))
	k.Settle()
	if k.Server(id).HostID != k.Hosts[1].ID {
		t.Fatal("it did not move")
	}
	return k, id
}

// A host that dies while it is being emptied is lost as any other: it is fenced, and what is to run elsewhere does; and its emptying ends.
func TestAHostDiesWhileItIsEmptied(t *testing.T) {
	k := newKeeper(t, 4)
	k.fenced("exec")
	h := k.Hosts[0]
	kept := launchOn(k.Cloud, compute.Launch{Hints: map[string]string{"unkai_restart_elsewhere": "true"}}, h)
	plain := launchOn(k.Cloud, compute.Launch{}, h)
	k.Settle()
	h.Sends = &compute.Transit{} // for ever
	_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	k.pass(5 * time.Second)
	if srv := k.Server(kept); srv.Task != compute.LiveMigrating {
		t.Fatalf("it is not about to leave: %v", srv.Standing())
	}
	k.Lose(h)
	if !compute.Missed(k.State.Latest(), k.hostOf(h)) {
		t.Error("nobody misses it")
	}
	k.pass(time.Minute)
	if len(k.off) != 1 || !k.hostOf(h).Dead() {
		t.Fatalf("switched off are %v, and it is known as %+v", k.off, k.hostOf(h).Fenced)
	}
	if srv := k.Server(kept); srv.HostID == h.ID || srv.Stage() != compute.Running || srv.Task != "" {
		t.Errorf("what was to be restarted elsewhere is %v on %s", srv.Standing(), srv.HostID)
	}
	op, d := k.drainOf(h), k.hostOf(h).Drain
	if op.Outcome != operation.Failed || d == nil || !d.Over() || len(d.Left) != 1 || d.Left[0].ID != plain {
		t.Fatalf("its emptying is %+v, and what stayed %+v", op, d)
	}
	h.Sends = nil
	k.Return(h)
	k.pass(time.Minute)
	if srv := k.Server(plain); srv.HostID != h.ID || srv.Stage() != compute.Running { // its move has failed, and is not tried again
		t.Errorf("what stayed is %v on %s", srv.Standing(), srv.HostID)
	}
	if srv := k.Server(kept); srv.HostID == h.ID || srv.Seen.Power != compute.On {
		t.Errorf("what had gone is %v on %s", srv.Standing(), srv.HostID)
	}
}

// What was emptied may be off on purpose: nobody switches it off once more, and it makes no storm.
func TestAnEmptiedHostIsNotMissed(t *testing.T) {
	k := newKeeper(t, 4)
	k.fenced("exec")
	stays := launchOn(k.Cloud, compute.Launch{Hints: map[string]string{"unkai_restart_elsewhere": "true"}}, k.Hosts[0])
	k.Settle()
	for n, h := range k.Hosts[:3] {
		h.Sends = &compute.Transit{Trouble: "no"}
		_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{Stop: n == 1})
		k.Must(err)
		k.pass(time.Minute)
		if op := k.drainOf(h); op.Outcome == operation.Running {
			t.Fatalf("emptying it is %+v", op)
		}
	}
	for _, h := range k.Hosts[1:3] {
		k.Lose(h)
	}
	k.pass(time.Minute)
	if _, _, storm := compute.Storm(k.State.Latest()); storm || len(k.off) != 0 {
		t.Fatalf("storm: %v, switched off: %v", storm, k.off)
	}
	// But what stayed, and runs, is.
	k.Lose(k.Hosts[0])
	k.pass(time.Minute)
	if srv := k.Server(stays); srv.HostID != k.Hosts[3].ID || srv.Stage() != compute.Running || len(k.off) != 1 {
		t.Errorf("what stayed on a host in maintenance is %v on %s; switched off: %v", srv.Standing(), srv.HostID, k.off)
	}
}
