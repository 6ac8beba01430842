package compute_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
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

// What a lost host would have to do fails long before its deadline, and says why; what the host has seen last holds.
func TestNothingWaitsForALostHost(t *testing.T) {
	for _, task := range []compute.Task{compute.Stopping, compute.SoftRebooting, compute.HardRebooting, compute.Pausing, compute.Suspending} {
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
			if srv.Task != "" || srv.Power != compute.On || op.Outcome != operation.Failed || !strings.Contains(op.Message, "cannot be heard since 20") {
				t.Fatalf("it is %v and to be %s after %+v", srv.Standing(), srv.Power, op)
			}
			k.Return(k.Hosts[0])
			k.Settle()
			if got := k.Server(id).Standing(); got != (compute.Standing{Stage: compute.Running}) {
				t.Fatalf("when its host is back it is %v", got)
			}
		})
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
