package compute_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// away is longer than anything waits for a host that cannot be heard.
const away = 35 * time.Second

// started makes servers that run, on a cloud with so many hosts.
func started(t *testing.T, hosts int) (*keeper, resource.ID) {
	t.Helper()
	k := newKeeper(t, hosts)
	id := k.Launch(compute.Launch{})[0]
	k.Settle()
	return k, id
}

// What a lost host would have to do fails long before its deadline, and says why; what was asked for stays the wish.
func TestNothingWaitsForALostHost(t *testing.T) {
	for task, wish := range map[compute.Task]compute.Power{compute.Stopping: compute.Off, compute.SoftRebooting: compute.On,
		compute.HardRebooting: compute.On, compute.Pausing: compute.Paused, compute.Suspending: compute.Suspended} {
		t.Run(string(task), func(t *testing.T) {
			k, id := started(t, 1)
			k.Lose(k.Hosts[0])
			k.Must(k.Compute.Do(k.Ctx, id, task))
			k.pass(20 * time.Second)
			if k.Server(id).Task != task {
				t.Fatal("it did not wait for a host that may be back in a moment")
			}
			k.pass(away)
			srv, op := k.Server(id), lastOperation(k.Cloud, id)
			if srv.Task != "" || srv.Power != wish || op.Outcome != operation.Failed || !strings.Contains(op.Message, "cannot be heard since 20") {
				t.Fatalf("it is %v and to be %s after %+v", srv.Standing(), srv.Power, op)
			}
			k.Return(k.Hosts[0])
			k.Settle()
			if srv := k.Server(id); srv.Task != "" || srv.Power != wish || srv.Seen.Power != wish || srv.Seen.HardBoots != srv.HardBoots || srv.Seen.SoftBoots != srv.SoftBoots {
				t.Fatalf("when its host is back it is %+v", srv)
			}
		})
	}
}

// An owner can keep a server off on a host that fails: it is not fenced for that, and the server is not made anew elsewhere.
func TestAStopOutlivesALostHost(t *testing.T) {
	for _, task := range []compute.Task{compute.Stopping, compute.Suspending} {
		t.Run(string(task), func(t *testing.T) {
			k := newKeeper(t, 2)
			k.fenced("exec")
			id := k.kept(1)[0]
			on := k.HostOf(id)
			on.Silent = true
			k.Must(k.Compute.Do(k.Ctx, id, task))
			k.Lose(on)
			k.pass(2 * time.Minute)
			if srv := k.Server(id); len(k.off) != 0 || srv.HostID != on.ID || srv.Task != "" {
				t.Fatalf("switched off are %v, and the server is %+v", k.off, srv)
			}
			k.Return(on)
			k.Settle()
			if got := k.Server(id).Seen.Power; got != map[compute.Task]compute.Power{compute.Stopping: compute.Off, compute.Suspending: compute.Suspended}[task] {
				t.Fatalf("when its host is back it is %s", got)
			}
		})
	}
}

// What is seen in the midst of something is nobody's wish.
func TestTheMidstIsNoWish(t *testing.T) {
	for task, midst := range map[compute.Task]compute.Observation{
		compute.HardRebooting: {Power: compute.Off, Busy: true, HardBoots: 1},
		compute.SoftRebooting: {Power: compute.Off, Busy: true},
		compute.Suspending:    {Power: compute.Paused, Busy: true},
	} {
		t.Run(string(task), func(t *testing.T) {
			k, id := started(t, 1)
			on := k.Hosts[0]
			on.Lazy = true
			k.Must(k.Compute.Do(k.Ctx, id, task))
			wish := k.Server(id).Power
			k.Report(on, id, compute.Seen{Observation: midst, Wish: k.Server(id).Wish})
			k.Lose(on)
			k.pass(away)
			if srv := k.Server(id); srv.Task != "" || srv.Power != wish {
				t.Fatalf("it is to be %s", srv.Power)
			}
			on.Lazy = false
			k.Return(on)
			k.Settle()
			if srv := k.Server(id); srv.Seen.Power != wish {
				t.Fatalf("when its host is back it is %s", srv.Seen.Power)
			}
		})
	}
}

// A guest that switched itself off is started for a higher count only: that stays with the wish.
func TestAStartOutlivesALostHost(t *testing.T) {
	k, id := started(t, 1)
	k.Tell(k.Hosts[0], id, compute.Observation{Power: compute.Off})
	k.Lose(k.Hosts[0])
	k.Must(k.Compute.Do(k.Ctx, id, compute.Starting))
	k.pass(away)
	if srv := k.Server(id); srv.Task != "" || srv.Power != compute.On || srv.HardBoots != 1 {
		t.Fatalf("it is %+v", srv)
	}
	k.Return(k.Hosts[0])
	k.Settle()
	if srv := k.Server(id); srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.Seen.HardBoots != 1 {
		t.Fatalf("it is %+v", srv)
	}
}

// A host that is back in time does what was asked for.
func TestAHostThatIsSoonBackIsWaitedFor(t *testing.T) {
	k, id := started(t, 1)
	k.Lose(k.Hosts[0])
	k.Must(k.Compute.Do(k.Ctx, id, compute.Stopping))
	k.pass(20 * time.Second)
	k.Return(k.Hosts[0])
	k.pass(away)
	if got := k.Server(id).Standing(); got != (compute.Standing{Stage: compute.Stopped}) {
		t.Fatalf("it is %v", got)
	}
}

// When so many hosts are lost that it is rather the controllers that are cut off, everything waits, and hosts are given time anew when
// that is over. A host that is known to be dead is not waited for.
func TestPatienceWaitsInAStorm(t *testing.T) {
	k, id := started(t, 5)
	gone := k.Launch(compute.Launch{Apart: []resource.ID{k.HostOf(id).ID}})[0]
	k.Settle()
	on, other := k.HostOf(id), k.HostOf(gone)
	var third *cloudtest.Host
	for _, h := range k.Hosts {
		if h != on && h != other {
			third = h
		}
	}
	for _, h := range []*cloudtest.Host{on, other, third} {
		k.Lose(h)
	}
	k.Must(k.Compute.Do(k.Ctx, id, compute.Stopping))
	k.Must(k.Compute.Delete(k.Ctx, gone))
	k.pass(3 * time.Minute)
	if srv := k.Server(id); srv.Task != compute.Stopping || k.Server(gone) == nil {
		t.Fatalf("in a storm it is %v, and the other %+v", srv.Standing(), k.Server(gone))
	}
	_, err := k.hosts.Vouch(k.Admin, other.ID)
	k.Must(err)
	k.pass(time.Second)
	if k.Server(gone) != nil || k.Server(id).Task != compute.Stopping {
		t.Fatal("a host that is dead is waited for, or another is not")
	}
	k.Return(third)
	k.pass(20 * time.Second)
	if k.Server(id).Task != compute.Stopping {
		t.Fatal("when the storm is over a host has no time to come back")
	}
	k.pass(away)
	if srv := k.Server(id); srv.Task != "" || lastOperation(k.Cloud, id).Outcome != operation.Failed {
		t.Fatalf("after the storm it is %v", srv.Standing())
	}
}

// A controller that leads anew gives lost hosts time to be heard: nobody was there who would have heard them.
func TestWhoLeadsAnewHasPatience(t *testing.T) {
	k, id := started(t, 1)
	k.Lose(k.Hosts[0])
	k.Must(k.Compute.Do(k.Ctx, id, compute.Stopping))
	k.pass(time.Second)
	k.Clock = k.Clock.Add(3 * time.Minute)
	k.work = reconcile.New(k.State, k.Clock, slices.DeleteFunc(k.Compute.Reconcilers(), func(task reconcile.Task) bool {
		return task.Name == "compute-end" // the test's project is nowhere
	})...)
	k.pass(20 * time.Second)
	if k.Server(id).Task != compute.Stopping {
		t.Fatal("the time without any controller counts as the host's silence")
	}
	k.pass(away)
	if k.Server(id).Task != "" {
		t.Fatal("it waits on")
	}
}

// What failed because the host was lost is whole when the host is back and has done it.
func TestWhatALostHostOwesHeals(t *testing.T) {
	t.Run("create", func(t *testing.T) {
		k := newKeeper(t, 1)
		k.Hosts[0].Lazy = true
		id := k.Launch(compute.Launch{})[0]
		k.Lose(k.Hosts[0])
		k.pass(away)
		if srv := k.Server(id); srv.Stage() != compute.Failed || srv.Task != "" || !strings.Contains(srv.Failure.Message, "cannot be heard") {
			t.Fatalf("it is %v: %+v", srv.Standing(), srv.Failure)
		}
		k.Hosts[0].Lazy = false
		k.Return(k.Hosts[0])
		k.Settle()
		if got := k.Server(id).Standing(); got != (compute.Standing{Stage: compute.Running}) {
			t.Fatalf("it is %v", got)
		}
	})
	t.Run("rebuild", func(t *testing.T) {
		k, id := started(t, 1)
		k.Lose(k.Hosts[0])
		_, err := k.Compute.Rebuild(k.Ctx, id, compute.Rebuild{ImageID: k.Image})
		k.Must(err)
		k.pass(away)
		if srv := k.Server(id); srv.Stage() != compute.Failed || srv.Power != compute.On {
			t.Fatalf("it is %v", srv.Standing())
		}
		k.Return(k.Hosts[0])
		k.Settle()
		if srv := k.Server(id); srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.Seen.Rebuilds != 1 {
			t.Fatalf("it is %+v", srv)
		}
	})
}

// A new shape that the host did not learn of is taken back.
func TestResizeOnALostHostIsTakenBack(t *testing.T) {
	k, id := started(t, 1)
	before := k.Server(id).Shape
	k.Hosts[0].Lazy = true
	k.Must(k.Compute.Reshape(k.Ctx, id, "84", nil))
	k.Lose(k.Hosts[0])
	k.pass(away)
	if srv := k.Server(id); !reflect.DeepEqual(srv.Shape, before) || srv.Before != nil || srv.Task != "" || srv.Power != compute.On {
		t.Fatalf("it is %+v", srv)
	}
}

// Whatever became of a guest whose change of shape was lost: in the end it was power-cycled into the shape that is recorded.
func TestALostHostRunsTheShapeThatIsRecorded(t *testing.T) {
	for name, end := range map[string]func(k *keeper, id resource.ID){
		"patience": func(k *keeper, _ resource.ID) { k.pass(away) },
		"deadline": func(k *keeper, _ resource.ID) { k.Expire() },
		"reset":    func(k *keeper, id resource.ID) { k.Must(k.Compute.Reset(k.Admin, id, false)) },
	} {
		t.Run("resize, "+name, func(t *testing.T) {
			k, id := started(t, 1)
			on := k.Hosts[0]
			on.Mute = true // it does it, and cannot say so
			k.Must(k.Compute.Reshape(k.Ctx, id, "84", nil))
			k.Settle()
			if on.Guests[id].MemoryMiB != 256 {
				t.Fatal("the host has not done it")
			}
			k.Lose(on)
			end(k, id)
			k.endsInShape(on, id, 128, on.Seen[id].HardBoots+1)
			if got := migrationOf(k.Cloud, id).State; got == compute.Moved {
				t.Fatalf("the migration is %s", got)
			}
		})
		t.Run("revert, "+name, func(t *testing.T) {
			k, id := started(t, 1)
			on := k.Hosts[0]
			k.Must(k.Compute.Reshape(k.Ctx, id, "84", nil))
			k.Settle()
			k.Lose(on)
			k.Must(k.Compute.Revert(k.Ctx, id))
			end(k, id)
			k.endsInShape(on, id, 128, 2)
			if got := migrationOf(k.Cloud, id).State; got == compute.Reverted || got == compute.Moved {
				t.Fatalf("the migration is %s", got)
			}
		})
	}
}

// endsInShape has a host come back, and makes sure of what it then runs.
func (k *keeper) endsInShape(on *cloudtest.Host, id resource.ID, memory, boots int) {
	k.t.Helper()
	on.Mute = false
	k.Return(on)
	k.Settle()
	srv, guest, seen := k.Server(id), on.Guests[id], on.Seen[id]
	if srv.Shape.MemoryMiB != memory || guest.MemoryMiB != memory || seen.HardBoots < boots || srv.Standing() != (compute.Standing{Stage: compute.Running}) {
		k.t.Fatalf("it is %v with %d MiB, and its guest %+v, seen as %+v", srv.Standing(), srv.Shape.MemoryMiB, guest, seen)
	}
}

// A move stays where it is when either of its hosts is lost.
func TestMoveOfALostHostIsGivenUp(t *testing.T) {
	for name, lost := range map[string]func(k *keeper, id resource.ID) *cloudtest.Host{
		"from": func(k *keeper, id resource.ID) *cloudtest.Host { return k.HostOf(id) },
		"to": func(k *keeper, id resource.ID) *cloudtest.Host {
			for _, h := range k.Hosts {
				if h.ID == k.Server(id).Move.To {
					return h
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			k, id := started(t, 2)
			for _, h := range k.Hosts {
				h.Receives, h.Sends = &compute.Transit{}, &compute.Transit{}
			}
			was := k.Server(id).HostID
			k.Must(k.Compute.LiveMigrate(k.Admin, id, ""))
			k.Settle()
			k.Lose(lost(k, id))
			k.pass(away)
			srv, op := k.Server(id), lastOperation(k.Cloud, id)
			if srv.Move != nil || srv.HostID != was || srv.Task != "" || op.Outcome != operation.Failed || !strings.Contains(op.Message, "cannot be heard") {
				t.Fatalf("it is on %s, %v, after %+v", srv.HostID, srv.Standing(), op)
			}
		})
	}
}

// A delete does not wait either, and at a dead host nothing else is taken on.
func TestDeleteAtALostHost(t *testing.T) {
	k, id := started(t, 1)
	k.Lose(k.Hosts[0])
	k.Must(k.Compute.Delete(k.Ctx, id))
	k.pass(away)
	if k.Server(id) != nil || lastOperation(k.Cloud, id).Outcome != operation.Succeeded {
		t.Fatal("the delete has not ended")
	}
	k.Return(k.Hosts[0])
	k.Settle()
	if len(k.Hosts[0].Guests) != 0 {
		t.Fatal("the host kept the guest")
	}
}

func TestNothingIsAskedOfADeadHost(t *testing.T) {
	k, id := started(t, 1)
	k.Lose(k.Hosts[0])
	_, err := (&host.Service{State: k.State}).Vouch(k.Admin, k.Hosts[0].ID)
	k.Must(err)
	err = k.Compute.Do(k.Ctx, id, compute.Stopping)
	if f := fault.From(err); f == nil || f.Code != "host-down" {
		t.Fatalf("it answers %v", err)
	}
	k.Must(k.Compute.Delete(k.Ctx, id))
	if k.Server(id) != nil {
		t.Fatal("the delete waits for a dead host")
	}
}
