package compute_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

func running(t *testing.T, hosts int) (*cloudtest.Cloud, resource.ID) {
	t.Helper()
	c := cloudtest.New(t, hosts)
	id := c.Launch(compute.Launch{})[0]
	c.Settle()
	if got := c.Server(id).Standing(); got != (compute.Standing{Stage: compute.Running}) {
		t.Fatalf("a new server came to be %v", got)
	}
	return c, id
}

func lastOperation(c *cloudtest.Cloud, id resource.ID) *operation.Operation {
	return operation.Of(c.State.Latest(), id)[0]
}

func TestCreateUntilGone(t *testing.T) {
	c := cloudtest.New(t, 2)
	id := c.Launch(compute.Launch{Name: "first one"})[0]
	srv := c.Server(id)
	if srv.Standing() != (compute.Standing{Stage: compute.Building, Task: compute.Creating}) || srv.HostID.IsZero() || srv.Hostname != "first-one" {
		t.Fatalf("the new server is %+v", srv)
	}
	c.Settle()
	srv = c.Server(id)
	if srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.LaunchedAt.IsZero() {
		t.Fatalf("once its host has started it, it is %+v", srv)
	}
	op := lastOperation(c, id)
	if op.Outcome != operation.Succeeded || op.Why == nil || op.Why.Looked != 2 || op.Why.Chosen == "" {
		t.Fatalf("its operation is %+v, explained by %+v", op, op.Why)
	}
	guest := c.HostOf(id).Guests[id]
	if len(guest.NICs) != 1 || guest.NICs[0].MTU != 1450 || guest.Metadata.Links[0].Addresses[0].Gateway != "10.0.0.1" ||
		guest.Metadata.SecurityGroups[0] != "default" || guest.Disks[0].SizeMiB != 1024 {
		t.Fatalf("its host was told %+v", guest)
	}
	host := c.HostOf(id)
	c.Must(c.Compute.Delete(c.Ctx, id))
	c.Settle()
	if c.Server(id) != nil || len(host.Guests) != 0 || len(network.PortsOf(c.State.Latest(), id)) != 0 {
		t.Fatal("something of the server is left")
	}
	if op := lastOperation(c, id); op.Verb != "delete" || op.Outcome != operation.Succeeded {
		t.Fatalf("the operation is %+v", op)
	}
}

// moveTests do one thing to a running server after another and say how it then stands.
var moveTests = map[string]struct {
	tasks []compute.Task
	want  compute.Stage
	fails fault.Kind // of the last one; 0 if it succeeds
}{
	"stopped":                          {[]compute.Task{compute.Stopping}, compute.Stopped, 0},
	"stopped and started":              {[]compute.Task{compute.Stopping, compute.Starting}, compute.Running, 0},
	"a running server cannot start":    {[]compute.Task{compute.Starting}, compute.Running, fault.Conflict},
	"a stopped server cannot stop":     {[]compute.Task{compute.Stopping, compute.Stopping}, compute.Stopped, fault.Conflict},
	"paused and unpaused":              {[]compute.Task{compute.Pausing, compute.Unpausing}, compute.Running, 0},
	"a paused server cannot stop":      {[]compute.Task{compute.Pausing, compute.Stopping}, compute.Frozen, fault.Conflict},
	"suspended and resumed":            {[]compute.Task{compute.Suspending, compute.Resuming}, compute.Running, 0},
	"a suspended server is asleep":     {[]compute.Task{compute.Suspending}, compute.Asleep, 0},
	"a stopped server cannot suspend":  {[]compute.Task{compute.Stopping, compute.Suspending}, compute.Stopped, fault.Conflict},
	"rebooted softly":                  {[]compute.Task{compute.SoftRebooting}, compute.Running, 0},
	"a stopped one has no soft reboot": {[]compute.Task{compute.Stopping, compute.SoftRebooting}, compute.Stopped, fault.Conflict},
	"a hard reboot starts a stopped":   {[]compute.Task{compute.Stopping, compute.HardRebooting}, compute.Running, 0},
	"a hard reboot wakes a suspended":  {[]compute.Task{compute.Suspending, compute.HardRebooting}, compute.Running, 0},
}

func TestMoves(t *testing.T) {
	for name, test := range moveTests {
		t.Run(name, func(t *testing.T) {
			c, id := running(t, 1)
			for n, task := range test.tasks {
				err := c.Compute.Do(c.Ctx, id, task)
				last := n == len(test.tasks)-1
				if last && test.fails != 0 {
					if fault.KindOf(err) != test.fails {
						t.Fatalf("%s answers %v", task, err)
					}
					continue
				}
				c.Must(err)
				if got := c.Server(id).Task; got != task {
					t.Fatalf("under way is %q, not %q", got, task)
				}
				c.Settle()
			}
			if got := c.Server(id).Standing(); got != (compute.Standing{Stage: test.want}) {
				t.Fatalf("it came to be %v", got)
			}
			if operation.Active(c.State.Latest(), id) != nil {
				t.Fatal("an operation has not ended")
			}
		})
	}
}

func TestOneThingAtATime(t *testing.T) {
	c, id := running(t, 1)
	c.Hosts[0].Lazy = true
	c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping))
	if err := c.Compute.Do(c.Ctx, id, compute.Pausing); !fault.Is(err, fault.Conflict) {
		t.Fatalf("pausing while it stops answers %v", err)
	}
	c.Must(c.Compute.Delete(c.Ctx, id))
	c.Must(c.Compute.Delete(c.Ctx, id))
	ops := operation.Of(c.State.Latest(), id)
	if ops[0].Verb != "delete" || ops[1].Verb != "stop" || ops[1].Outcome != operation.Cancelled {
		t.Fatalf("the operations are %v and %v", ops[0], ops[1])
	}
}

func TestNoHost(t *testing.T) {
	c := cloudtest.New(t, 0)
	id := c.Launch(compute.Launch{})[0]
	srv := c.Server(id)
	if srv.Stage() != compute.Failed || !strings.HasPrefix(srv.Failure.Message, "No valid host was found.") || srv.Task != "" {
		t.Fatalf("without hosts the server is %+v", srv)
	}
	if len(network.PortsOf(c.State.Latest(), id)) != 0 {
		t.Fatal("it holds ports")
	}
	c.Must(c.Compute.Delete(c.Ctx, id))
	if c.Server(id) != nil {
		t.Fatal("it is still there after delete")
	}
}

func TestHostTrouble(t *testing.T) {
	c := cloudtest.New(t, 1)
	c.Hosts[0].Trouble = "the image is damaged"
	id := c.Launch(compute.Launch{})[0]
	c.Settle()
	srv := c.Server(id)
	if srv.Stage() != compute.Failed || srv.Failure.Message != "the image is damaged" || lastOperation(c, id).Outcome != operation.Failed {
		t.Fatalf("the server is %+v", srv)
	}
	c.Tell(c.Hosts[0], id, compute.Observation{Power: compute.On})
	if got := c.Server(id).Stage(); got != compute.Running {
		t.Fatalf("when it runs after all it is %s", got)
	}
}

func TestShutdownFromInside(t *testing.T) {
	c, id := running(t, 1)
	c.Tell(c.Hosts[0], id, compute.Observation{Power: compute.Off, Busy: true})
	if c.Server(id).Power != compute.On {
		t.Fatal("the wish followed a guest that is only being restarted")
	}
	c.Tell(c.Hosts[0], id, compute.Observation{Power: compute.Off})
	if srv := c.Server(id); srv.Power != compute.Off || srv.Stage() != compute.Stopped {
		t.Fatalf("after it shut down by itself it is %+v", srv)
	}
	// Its host has not been told yet that it is to be off, and never will be.
	c.Must(c.Compute.Do(c.Ctx, id, compute.Starting))
	if srv := c.Server(id); srv.Power != compute.On || srv.HardBoots <= srv.Seen.HardBoots {
		t.Fatalf("for its host nothing has changed: %+v", srv)
	}
	c.Tell(c.Hosts[0], id, compute.Observation{Power: compute.On})
	if c.Server(id).Task != compute.Starting {
		t.Fatal("it counts as started before the start that was asked for")
	}
	c.Settle()
	if c.Server(id).Stage() != compute.Running {
		t.Fatal("it does not start again")
	}
}

func TestLostHost(t *testing.T) {
	c, id := running(t, 1)
	c.Lose(c.Hosts[0])
	if got := c.Server(id).Stage(); got != compute.Running {
		t.Fatalf("a server that cannot be heard counts as %s", got)
	}
	c.Must(c.Compute.Delete(c.Ctx, id))
	op := lastOperation(c, id)
	if c.Server(id) == nil || !strings.Contains(op.WaitingFor, "cannot be heard") {
		t.Fatalf("the delete does not wait: %+v", op)
	}
	c.Must(c.Compute.ForceDelete(c.Ctx, id))
	if c.Server(id) != nil || lastOperation(c, id).Outcome != operation.Succeeded {
		t.Fatal("force did not take it away")
	}
	c.Return(c.Hosts[0])
	c.Settle()
	if len(c.Hosts[0].Guests) != 0 {
		t.Fatal("the host kept the guest")
	}
}

func TestDeleteBeforeTheHostKnew(t *testing.T) {
	c := cloudtest.New(t, 1)
	c.Settle()
	id := c.Launch(compute.Launch{})[0]
	c.Must(c.Compute.Delete(c.Ctx, id))
	c.Settle()
	if c.Server(id) != nil {
		t.Fatal("a server that its host was never told of cannot be deleted")
	}
}

// Every move that a host never carries out ends, and leaves the server as it was last seen.
func TestDeadlines(t *testing.T) {
	for _, task := range []compute.Task{compute.Stopping, compute.SoftRebooting, compute.HardRebooting, compute.Pausing, compute.Suspending} {
		t.Run(string(task), func(t *testing.T) {
			c, id := running(t, 1)
			c.Hosts[0].Lazy = true
			c.Must(c.Compute.Do(c.Ctx, id, task))
			c.Settle()
			c.Expire()
			srv, op := c.Server(id), lastOperation(c, id)
			if srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.Power != compute.On || op.Outcome != operation.Failed {
				t.Fatalf("it is %+v after %+v", srv.Standing(), op)
			}
		})
	}
	t.Run("create", func(t *testing.T) {
		c := cloudtest.New(t, 1)
		c.Hosts[0].Lazy = true
		id := c.Launch(compute.Launch{})[0]
		c.Expire()
		if got := c.Server(id).Standing(); got != (compute.Standing{Stage: compute.Failed}) {
			t.Fatalf("it is %v", got)
		}
	})
	t.Run("delete", func(t *testing.T) {
		c, id := running(t, 1)
		c.Lose(c.Hosts[0])
		c.Must(c.Compute.Delete(c.Ctx, id))
		c.Expire()
		if c.Server(id) != nil || lastOperation(c, id).Outcome != operation.Succeeded {
			t.Fatal("the delete has not ended")
		}
	})
}

func TestRebuild(t *testing.T) {
	c, id := running(t, 1)
	name := "renamed"
	_, err := c.Compute.Rebuild(c.Ctx, id, compute.Rebuild{ImageID: c.Image, Name: &name})
	c.Must(err)
	if c.Server(id).Task != compute.Rebuilding {
		t.Fatal("nothing is under way")
	}
	c.Settle()
	if srv := c.Server(id); srv.Name != name || c.Hosts[0].Guests[id].Rebuilds != 1 || srv.Stage() != compute.Running {
		t.Fatalf("rebuilt it is %+v", srv)
	}
}

func TestTenantsAreApart(t *testing.T) {
	c, id := running(t, 1)
	_, _, getErr := c.Compute.Get(c.OtherCtx, id)
	for name, err := range map[string]error{
		"get": getErr, "delete": c.Compute.Delete(c.OtherCtx, id), "stop": c.Compute.Do(c.OtherCtx, id, compute.Stopping),
		"lock": c.Compute.LockServer(c.OtherCtx, id, ""), "tag": func() error { _, err := c.Compute.SetTags(c.OtherCtx, id, nil); return err }(),
		"console": func() error { _, err := c.Compute.OpenConsole(c.OtherCtx, id, compute.VNC); return err }(),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("another tenant's %s answers %v", name, err)
		}
	}
	view, err := c.Compute.List(c.OtherCtx, compute.Query{})
	if err != nil || len(view.Servers) != 0 {
		t.Fatalf("another tenant sees %d servers, %v", len(view.Servers), err)
	}
	if _, err := c.Compute.List(c.OtherCtx, compute.Query{AllProjects: true}); !fault.Is(err, fault.Forbidden) {
		t.Fatalf("to look at all projects answers %v", err)
	}
}

func TestLock(t *testing.T) {
	c, id := running(t, 1)
	c.Must(c.Compute.LockServer(c.Ctx, id, "do not touch"))
	if err := c.Compute.Do(c.Ctx, id, compute.Stopping); !fault.Is(err, fault.Conflict) {
		t.Fatalf("a locked server's stop answers %v", err)
	}
	if err := c.Compute.Delete(c.Ctx, id); !fault.Is(err, fault.Conflict) {
		t.Fatalf("a locked server's delete answers %v", err)
	}
	c.Must(c.Compute.Do(c.Admin, id, compute.Stopping))
	c.Must(c.Compute.Unlock(c.Ctx, id))
	c.Settle()
	c.Must(c.Compute.Do(c.Ctx, id, compute.Starting))
}

func TestQuota(t *testing.T) {
	c := cloudtest.New(t, 1)
	c.Must(c.Compute.SetQuota(c.Admin, c.Project, resource.ID{}, map[string]int{compute.QuotaServers: 3}, false))
	if ids := c.Launch(compute.Launch{Min: 1, Max: 2}); len(ids) != 2 || c.Server(ids[1]).Name != "vm-2" {
		t.Fatalf("two servers became %d", len(ids))
	}
	if ids := c.Launch(compute.Launch{Min: 1, Max: 5}); len(ids) != 1 {
		t.Fatalf("as many as fit were %d", len(ids))
	}
	_, err := c.Compute.Create(c.Ctx, c.Plain(compute.Launch{}))
	if f := fault.From(err); f == nil || f.Kind != fault.OverQuota || f.Details["used"] != "3" {
		t.Fatalf("one too many answers %v", err)
	}
	if n := compute.Servers().Len(c.State.Latest()); n != 3 {
		t.Fatalf("there are %d servers", n)
	}
}

func TestAllOrNothing(t *testing.T) {
	c := cloudtest.New(t, 1)
	before := c.State.Latest().Revision()
	_, err := c.Compute.Create(c.Ctx, c.Plain(compute.Launch{Max: 3, NICs: []compute.NICWanted{{NetworkID: c.NetworkID}, {NetworkID: resource.NewID(time.Now(), nil)}}}))
	if !fault.Is(err, fault.Invalid) {
		t.Fatalf("a network that is not there answers %v", err)
	}
	if c.State.Latest().Revision() != before {
		t.Fatal("something was written")
	}
}

func TestConsoleToken(t *testing.T) {
	c, id := running(t, 1)
	token, err := c.Compute.OpenConsole(c.Ctx, id, compute.VNC)
	c.Must(err)
	got, err := c.Compute.Redeem(c.Admin, token)
	if err != nil || got != (compute.Console{ServerID: id, HostID: c.Hosts[0].ID, Kind: compute.VNC}) {
		t.Fatalf("the token opens %v, %v", got, err)
	}
	if _, err := c.Compute.Redeem(c.Admin, token); !fault.Is(err, fault.Unauthorized) {
		t.Fatalf("used twice it answers %v", err)
	}
	token, err = c.Compute.OpenConsole(c.Ctx, id, compute.Serial)
	c.Must(err)
	c.Clock = c.Clock.Add(time.Hour)
	if _, err := c.Compute.Redeem(c.Admin, token); !fault.Is(err, fault.Unauthorized) {
		t.Fatalf("too late it answers %v", err)
	}
}

func TestListAndFilters(t *testing.T) {
	c := cloudtest.New(t, 3)
	ids := c.Launch(compute.Launch{Max: 10})
	c.Settle()
	stopped := []resource.ID{ids[2], ids[7]}
	for _, id := range stopped {
		c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping))
	}
	c.Settle()
	slices.SortFunc(ids, func(a, b resource.ID) int { return bytes.Compare(b[:], a[:]) }) // the newest first
	var got []resource.ID
	for q := (compute.Query{}); ; {
		q.Limit = 3
		view, err := c.Compute.List(c.Ctx, q)
		c.Must(err)
		for _, srv := range view.Servers {
			got = append(got, srv.ID)
		}
		if !view.More {
			break
		}
		q.Marker = got[len(got)-1]
	}
	if !slices.Equal(got, ids) {
		t.Fatalf("page by page the list is %v, not %v", got, ids)
	}
	tests := map[string]struct {
		q    compute.Query
		want int
	}{
		"by standing":        {compute.Query{Standings: []compute.Standing{{Stage: compute.Stopped}}}, 2},
		"by two standings":   {compute.Query{Standings: []compute.Standing{{Stage: compute.Stopped}, {Stage: compute.Running}}}, 10},
		"by no standing":     {compute.Query{Standings: []compute.Standing{}}, 0},
		"by name":            {compute.Query{Name: "vm-4"}, 1},
		"by image":           {compute.Query{ImageID: c.Image}, 10},
		"by another image":   {compute.Query{ImageID: c.Project}, 0},
		"by what else":       {compute.Query{Keep: func(s *compute.Server) bool { return s.LaunchIndex < 5 }}, 5},
		"by a future change": {compute.Query{ChangedSince: c.Clock.Add(time.Hour)}, 0},
	}
	for name, test := range tests {
		view, err := c.Compute.List(c.Ctx, test.q)
		if err != nil || len(view.Servers) != test.want {
			t.Errorf("%s: %d servers, %v", name, len(view.Servers), err)
		}
		test.q.AllProjects = true
		if view, err := c.Compute.List(c.Admin, test.q); err != nil || len(view.Servers) != test.want {
			t.Errorf("%s, over all projects: %d servers, %v", name, len(view.Servers), err)
		}
	}
}

func TestPlanChangesNothing(t *testing.T) {
	c := cloudtest.New(t, 1)
	plan := new(state.Plan)
	made, err := c.Compute.Create(state.WithPlan(c.Ctx, plan), c.Plain(compute.Launch{}))
	c.Must(err)
	if c.Server(made.Servers[0]) != nil || len(plan.Changes()) == 0 {
		t.Fatal("the plan was carried out, or shows nothing")
	}
}

func TestReshape(t *testing.T) {
	c, id := running(t, 1)
	c.Must(c.Compute.Reshape(c.Ctx, id, "84", nil))
	if srv := c.Server(id); srv.Task != compute.Reshaping || srv.Shape.MemoryMiB != 256 {
		t.Fatalf("being reshaped it is %+v", srv)
	}
	c.Settle()
	guest := c.Hosts[0].Guests[id]
	if c.Server(id).Stage() != compute.Unsettled || guest.MemoryMiB != 256 || guest.HardBoots != 1 || guest.Disks[0].SizeMiB != 1024 {
		t.Fatalf("reshaped it is %v, and its guest %+v", c.Server(id).Standing(), guest)
	}
	if err := c.Compute.Do(c.Ctx, id, compute.Stopping); !fault.Is(err, fault.Conflict) {
		t.Fatalf("to stop an unconfirmed one answers %v", err)
	}
	c.Must(c.Compute.Revert(c.Ctx, id))
	c.Settle()
	if srv := c.Server(id); srv.Stage() != compute.Running || c.Hosts[0].Guests[id].MemoryMiB != 128 || srv.Before != nil {
		t.Fatalf("reverted it is %+v", srv)
	}
	c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping))
	c.Settle()
	c.Must(c.Compute.Reshape(c.Ctx, id, "84", nil))
	c.Must(c.Compute.Confirm(c.Ctx, id))
	c.Settle()
	if srv := c.Server(id); srv.Stage() != compute.Stopped || c.Hosts[0].Guests[id].Disks[0].SizeMiB != 2048 {
		t.Fatalf("confirmed while off it is %+v", srv)
	}
	for flavor, kind := range map[string]fault.Kind{"84": fault.Invalid, "42": fault.Invalid, "none": fault.Invalid, "4": 0} {
		err := c.Compute.Reshape(c.Ctx, id, flavor, nil)
		if kind != 0 && fault.KindOf(err) != kind || kind == 0 && err != nil {
			t.Errorf("to reshape to %s answers %v", flavor, err)
		}
		if err == nil {
			c.Must(c.Compute.Revert(c.Ctx, id))
		}
	}
}

func TestReshapeThatFails(t *testing.T) {
	c, id := running(t, 1)
	c.Hosts[0].Lazy = true
	c.Must(c.Compute.Reshape(c.Ctx, id, "84", nil))
	c.Expire()
	if srv := c.Server(id); srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.Shape.Ref != "42" || srv.Before != nil {
		t.Fatalf("it is %+v", srv)
	}
}
