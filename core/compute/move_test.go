package compute_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// other is a host that the server is not on.
func other(c *cloudtest.Cloud, id resource.ID) *cloudtest.Host {
	for _, h := range c.Hosts {
		if h.ID != c.Server(id).HostID {
			return h
		}
	}
	return nil
}

// ways are the ways to another host that an operator can ask for.
var ways = map[string]struct {
	task compute.Task
	ask  func(c *cloudtest.Cloud, id resource.ID, to string) error
}{
	"cold": {compute.Migrating, func(c *cloudtest.Cloud, id resource.ID, to string) error {
		return c.Compute.Migrate(c.Admin, id, to)
	}},
	"live": {compute.LiveMigrating, func(c *cloudtest.Cloud, id resource.ID, to string) error {
		return c.Compute.LiveMigrate(c.Admin, id, to)
	}},
}

func migrationOf(c *cloudtest.Cloud, id resource.ID) *compute.Migration {
	c.T.Helper()
	_, found, _, err := c.Compute.ListMigrations(c.Admin, compute.MigrationQuery{ServerID: id})
	c.Must(err)
	if len(found) == 0 {
		c.T.Fatal("no migration is recorded")
	}
	return found[0]
}

// clean makes sure that nothing contradicts anything, and nothing is left anywhere.
func clean(t *testing.T, c *cloudtest.Cloud, id resource.ID) {
	t.Helper()
	if found := audit.State(c.State.Latest()); len(found) > 0 {
		t.Errorf("the auditor found %v", found)
	}
	for _, h := range c.Hosts {
		_, has := h.Guests[id]
		if srv := c.Server(id); has != (srv != nil && srv.HostID == h.ID) {
			t.Errorf("host %s has the guest: %v", h.Name, has)
		}
	}
	if n := host.Leftovers().Len(c.State.Latest()); n != 0 {
		t.Errorf("%d things are left over", n)
	}
}

func loadOf(c *cloudtest.Cloud, h *cloudtest.Host) int64 {
	tx := c.State.Latest()
	is, _ := host.Table().PeekOne(tx, h.ID)
	_, taken := compute.Load(tx, is)
	return taken[1]
}

func TestAMoveTakesAServerToAnotherHost(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			c, id := running(t, 2)
			from, to := c.HostOf(id), other(c, id)
			c.Must(way.ask(c, id, ""))
			if srv := c.Server(id); srv.Task != way.task || srv.HostID != from.ID || loadOf(c, from) == 0 || loadOf(c, to) == 0 {
				t.Fatalf("at first it is %v on %s; taken are %d and %d", srv.Standing(), srv.HostID, loadOf(c, from), loadOf(c, to))
			}
			c.Settle()
			srv := c.Server(id)
			if srv.HostID != to.ID || srv.Move != nil || srv.Seen.Power != compute.On || to.Guests[id].Arrive != nil {
				t.Fatalf("in the end it is %+v", srv)
			}
			for _, p := range network.PortsOf(c.State.Latest(), id) {
				if p.HostID != to.ID {
					t.Error("its port stayed behind")
				}
			}
			if op := lastOperation(c, id); op.Outcome != operation.Succeeded || op.Why == nil || op.Why.Chosen != to.Name || len(op.Steps) != 3 {
				t.Errorf("the operation is %+v", op)
			}
			if m := migrationOf(c, id); m.State != compute.Moved || m.From != from.ID || m.To != to.ID || m.Task != way.task {
				t.Errorf("recorded is %+v", m)
			}
			clean(t, c, id)
			if way.task == compute.LiveMigrating {
				if srv.Stage() != compute.Running || loadOf(c, from) != 0 {
					t.Errorf("it is %s, and %d are held where it was", srv.Stage(), loadOf(c, from))
				}
				return
			}
			if srv.Stage() != compute.Unsettled || loadOf(c, from) == 0 {
				t.Errorf("unconfirmed it is %s, and %d are held where it was", srv.Stage(), loadOf(c, from))
			}
			if err := c.Compute.DismissHost(c.Admin, from.ID); !fault.Is(err, fault.Conflict) {
				t.Errorf("to dismiss the host where room is held answers %v", err)
			}
			c.Must(c.Compute.Confirm(c.Ctx, id))
			if c.Server(id).Stage() != compute.Running || loadOf(c, from) != 0 || migrationOf(c, id).State != compute.Confirmed {
				t.Error("confirmed, it is not settled")
			}
		})
	}
}

func TestRevertGoesBack(t *testing.T) {
	c, id := running(t, 2)
	from, to := c.HostOf(id), other(c, id)
	c.Must(c.Compute.Migrate(c.Admin, id, to.Name))
	c.Settle()
	c.Must(c.Compute.Revert(c.Ctx, id))
	c.Settle()
	if srv := c.Server(id); srv.HostID != from.ID || srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.Before != nil {
		t.Fatalf("it came to be %+v", srv)
	}
	if loadOf(c, to) != 0 || migrationOf(c, id).State != compute.Reverted {
		t.Errorf("%d are held where it was; recorded is %s", loadOf(c, to), migrationOf(c, id).State)
	}
	clean(t, c, id)
}

func TestAFailedRevertLeavesItUnconfirmed(t *testing.T) {
	c, id := running(t, 2)
	from, to := c.HostOf(id), other(c, id)
	c.Must(c.Compute.Migrate(c.Admin, id, ""))
	c.Settle()
	from.Receives = &compute.Transit{Trouble: "No."}
	c.Must(c.Compute.Revert(c.Ctx, id))
	c.Settle()
	if srv := c.Server(id); srv.HostID != to.ID || srv.Standing() != (compute.Standing{Stage: compute.Unsettled}) {
		t.Fatalf("it is %v on %s", srv.Standing(), srv.HostID)
	}
	from.Receives = nil
	c.Must(c.Compute.Revert(c.Ctx, id))
	c.Settle()
	if srv := c.Server(id); srv.HostID != from.ID || srv.Stage() != compute.Running {
		t.Fatalf("tried again it is %v on %s", srv.Standing(), srv.HostID)
	}
	clean(t, c, id)
}

// obstacles end a move that has been asked for before it has come to its end.
var obstacles = map[string]struct {
	receives, sends *compute.Transit
	then            func(c *cloudtest.Cloud, id resource.ID) error
	outcome         operation.Outcome
}{
	"the new host cannot":          {receives: &compute.Transit{Trouble: "No."}, outcome: operation.Failed},
	"the old host cannot":          {sends: &compute.Transit{Trouble: "No."}, outcome: operation.Failed},
	"the way breaks":               {receives: &compute.Transit{Where: "there"}, sends: &compute.Transit{Trouble: "It broke."}, outcome: operation.Failed},
	"the new host never has it":    {receives: &compute.Transit{Where: "there"}, then: expire, outcome: operation.Failed},
	"the old host never lets go":   {sends: &compute.Transit{}, then: expire, outcome: operation.Failed},
	"the new host never answers":   {receives: &compute.Transit{}, then: expire, outcome: operation.Failed},
	"it is cancelled":              {sends: &compute.Transit{}, then: cancelLast, outcome: operation.Cancelled},
	"cancelled after it was sent":  {receives: &compute.Transit{Where: "there"}, then: cancelLast, outcome: operation.Cancelled},
	"an operator settles its fate": {sends: &compute.Transit{}, then: reset, outcome: operation.Cancelled},
}

func expire(c *cloudtest.Cloud, _ resource.ID) error { c.Expire(); return nil }

func cancelLast(c *cloudtest.Cloud, id resource.ID) error {
	_, err := c.Ops.Cancel(c.Admin, lastOperation(c, id).ID)
	return err
}

func reset(c *cloudtest.Cloud, id resource.ID) error { return c.Compute.Reset(c.Admin, id, false) }

func TestAMoveThatFailsChangesNothing(t *testing.T) {
	for way, how := range ways {
		for name, obstacle := range obstacles {
			t.Run(way+": "+name, func(t *testing.T) {
				c, id := running(t, 2)
				from, to := c.HostOf(id), other(c, id)
				was := c.Server(id)
				from.Sends, to.Receives = obstacle.sends, obstacle.receives
				c.Must(how.ask(c, id, ""))
				c.Settle()
				if obstacle.then != nil {
					if c.Server(id).Move == nil {
						t.Fatal("the move is over before it met its obstacle")
					}
					c.Must(obstacle.then(c, id))
					c.Settle()
				}
				srv := c.Server(id)
				if srv.HostID != from.ID || srv.Standing() != was.Standing() || srv.Seen.Power != compute.On || srv.Power != compute.On || srv.Before != nil {
					t.Fatalf("it came to be %+v", srv)
				}
				if srv.Seen.HardBoots != was.Seen.HardBoots {
					t.Error("it was power-cycled")
				}
				if op := lastOperation(c, id); op.Outcome != obstacle.outcome || op.Message == "" {
					t.Errorf("the operation is %+v", op)
				}
				if loadOf(c, to) != 0 {
					t.Errorf("%d are held where it went", loadOf(c, to))
				}
				clean(t, c, id)
				from.Sends, to.Receives = nil, nil
				c.Must(how.ask(c, id, "")) // and it can be asked for again
				c.Settle()
				if c.Server(id).HostID != to.ID {
					t.Error("the second time it did not move")
				}
				clean(t, c, id)
			})
		}
	}
}

// What is said of a move that is over moves nothing.
func TestLateReportsOfAMove(t *testing.T) {
	c, id := running(t, 2)
	from, to := c.HostOf(id), other(c, id)
	from.Sends = &compute.Transit{}
	c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
	c.Settle()
	c.Must(cancelLast(c, id))
	wish := c.Server(id).Wish
	late := compute.Seen{Observation: compute.Observation{Power: compute.Paused}, Wish: wish - 1, Transit: compute.Transit{Move: 1, Done: true}}
	c.Report(from, id, late)
	c.Report(to, id, late)
	if srv := c.Server(id); srv.HostID != from.ID || srv.Stage() != compute.Running {
		t.Fatalf("it came to be %v on %s", srv.Standing(), srv.HostID)
	}
	c.Settle()
	from.Sends, to.Receives = &compute.Transit{}, &compute.Transit{Where: "there"}
	c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
	c.Settle()
	c.Report(from, id, late)
	c.Report(to, id, late)
	if srv := c.Server(id); srv.Move == nil || srv.HostID != from.ID {
		t.Fatal("reports of the first move were taken for the second's")
	}
}

// A host that forgot what it had does not get it again: the guest stands still until somebody gives the move up.
func TestAMoveThatAHostForgotIsGivenUp(t *testing.T) {
	for name, test := range map[string]struct {
		told   bool // the new host had said that it has all of it
		within time.Duration
	}{
		"what it had said": {true, time.Second}, "what nobody had heard of": {false, 3 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			c, id := running(t, 2)
			from, to := c.HostOf(id), other(c, id)
			from.Sends, to.Receives = &compute.Transit{}, &compute.Transit{Where: "there"}
			c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
			c.Settle()
			say := func(by *cloudtest.Host, transit compute.Transit) {
				transit.Move = 1
				c.Report(by, id, compute.Seen{Observation: compute.Observation{Power: compute.Paused}, Wish: c.Server(id).Wish, Transit: transit})
			}
			if test.told {
				say(to, compute.Transit{Where: "there", Done: true})
			} else {
				say(from, compute.Transit{Done: true})
			}
			if c.Server(id).Move == nil {
				t.Fatal("the move is over")
			}
			from.Sends, to.Receives = nil, nil
			say(to, compute.Transit{Where: "there"})
			c.Clock = c.Clock.Add(test.within)
			c.Reap()
			c.Settle()
			if srv := c.Server(id); srv.Move != nil || srv.HostID != from.ID || srv.Seen.Power != compute.On || lastOperation(c, id).Outcome != operation.Failed {
				t.Errorf("it is %+v on %s", srv.Standing(), srv.HostID)
			}
			clean(t, c, id)
		})
	}
}

func TestAMoveHasTimeAsLongAsItComesFurther(t *testing.T) {
	c, id := running(t, 2)
	from := c.HostOf(id)
	from.Sends = &compute.Transit{}
	c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
	c.Settle()
	for n := range int64(5) {
		c.Clock = c.Clock.Add(10 * time.Minute)
		c.Report(from, id, compute.Seen{Observation: from.Seen[id], Wish: c.Server(id).Wish,
			Transit: compute.Transit{Move: 1, Memory: compute.Progress{Total: 10, Sent: n, Left: 10 - n}}})
	}
	op := lastOperation(c, id)
	if op.Outcome != operation.Running || op.Percent != 40 || op.Deadline.Before(c.Clock) {
		t.Fatalf("the operation is %+v", op)
	}
	revision := c.State.Latest().Revision()
	c.Report(from, id, compute.Seen{Observation: from.Seen[id], Wish: c.Server(id).Wish,
		Transit: compute.Transit{Move: 1, Memory: compute.Progress{Total: 10, Sent: 4, Left: 6}}})
	if c.State.Latest().Revision() != revision {
		t.Error("no news was written")
	}
}

func TestOperatorsHurryAndAbortALiveMove(t *testing.T) {
	c, id := running(t, 2)
	from := c.HostOf(id)
	from.Sends = &compute.Transit{}
	c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
	number := migrationOf(c, id).Number
	if err := c.Compute.AbortMove(c.Admin, id, number+1); !fault.Is(err, fault.NotFound) {
		t.Errorf("to abort another answers %v", err)
	}
	c.Settle()
	c.Must(c.Compute.HurryMove(c.Admin, id, number))
	c.Settle()
	if g := from.Guests[id]; g.Leave == nil || !g.Leave.Urgent {
		t.Errorf("its host was told %+v", g.Leave)
	}
	if err := c.Compute.AbortMove(c.Ctx, id, number); !fault.Is(err, fault.Forbidden) {
		t.Errorf("its owner may abort: %v", err)
	}
	c.Must(c.Compute.AbortMove(c.Admin, id, number))
	c.Settle()
	if c.Server(id).Stage() != compute.Running || migrationOf(c, id).State != compute.Cancelled {
		t.Errorf("it is %v, recorded as %s", c.Server(id).Standing(), migrationOf(c, id).State)
	}
	if err := c.Compute.AbortMove(c.Admin, id, number); !fault.Is(err, fault.Invalid) {
		t.Errorf("to abort it again answers %v", err)
	}
	clean(t, c, id)
}

func TestDeleteWhileItMoves(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			c, id := running(t, 2)
			from := c.HostOf(id)
			from.Sends = &compute.Transit{}
			c.Must(way.ask(c, id, ""))
			c.Settle()
			c.Must(c.Compute.Delete(c.Ctx, id))
			c.Settle()
			if c.Server(id) != nil {
				t.Fatal("it is still there")
			}
			if n := compute.Migrations().Len(c.State.Latest()); n != 0 {
				t.Errorf("%d records of its moves are left", n)
			}
			clean(t, c, id)
		})
	}
}

// A guest that ends by itself before it is switched off for the way is not started for having moved.
func TestAGuestThatEndsBeforeItsMove(t *testing.T) {
	c, id := running(t, 2)
	from, to := c.HostOf(id), other(c, id)
	to.Receives = &compute.Transit{}
	c.Must(c.Compute.Migrate(c.Admin, id, ""))
	c.Settle()
	c.Tell(from, id, compute.Observation{Power: compute.Off})
	c.Report(to, id, compute.Seen{Wish: c.Server(id).Wish, Transit: compute.Transit{Move: 1, Where: "there", Done: true}})
	to.Receives = nil
	c.Settle()
	if srv := c.Server(id); srv.HostID != to.ID || srv.Power != compute.Off || srv.Seen.Power != compute.Off {
		t.Fatalf("it came to be %v, %s on %s", srv.Standing(), srv.Power, srv.HostID)
	}
	c.Must(c.Compute.Confirm(c.Ctx, id))
	if got := c.Server(id).Stage(); got != compute.Stopped {
		t.Errorf("confirmed it is %s", got)
	}
}

// A resize that its host has no room for takes the server to one that has.
func TestAResizeMayMove(t *testing.T) {
	c, id := running(t, 1)
	from := c.Hosts[0]
	c.Must(c.State.Update(c.Admin, func(tx *state.Tx) error {
		h, _ := host.Find(tx, from.ID)
		h.Capacity.MemoryMiB = 256
		return host.Table().Put(tx, h)
	}))
	if err := c.Compute.Reshape(c.Ctx, id, "1", nil); !fault.Is(err, fault.Exhausted) {
		t.Fatalf("without another host it answers %v", err)
	}
	to := c.AddHost("large", cloudtest.Capacity)
	c.Must(c.Compute.Reshape(c.Ctx, id, "1", nil))
	if g, _ := c.Compute.Sources()[0].Want(c.State.Latest(), from.ID, id); g.(*compute.Guest).MemoryMiB != 128 {
		t.Errorf("the full host is to give it %d MiB", g.(*compute.Guest).MemoryMiB)
	}
	c.Settle()
	if srv := c.Server(id); srv.HostID != to.ID || srv.Stage() != compute.Unsettled || to.Guests[id].MemoryMiB != 512 {
		t.Fatalf("it came to be %v with %d MiB", srv.Standing(), to.Guests[id].MemoryMiB)
	}
	c.Must(c.Compute.Revert(c.Ctx, id))
	c.Settle()
	if srv := c.Server(id); srv.HostID != from.ID || srv.Stage() != compute.Running || from.Guests[id].MemoryMiB != 128 {
		t.Fatalf("reverted it is %v with %d MiB", srv.Standing(), from.Guests[id].MemoryMiB)
	}
	clean(t, c, id)
}

func TestEvacuateALostHost(t *testing.T) {
	c, id := running(t, 2)
	from, to := c.HostOf(id), other(c, id)
	if err := c.Compute.Evacuate(c.Admin, id, "", ""); !fault.Is(err, fault.Invalid) {
		t.Fatalf("of a host that can be heard it answers %v", err)
	}
	c.Lose(from)
	if err := c.Compute.LiveMigrate(c.Admin, id, ""); !fault.Is(err, fault.Conflict) {
		t.Errorf("a live move off a lost host answers %v", err)
	}
	if err := c.Compute.Evacuate(c.Ctx, id, "", ""); !fault.Is(err, fault.Forbidden) {
		t.Errorf("its owner may evacuate: %v", err)
	}
	was := *c.Server(id)
	if err := c.Compute.Evacuate(c.Admin, id, "", ""); !fault.Is(err, fault.Conflict) || fault.From(err).Code != "host-not-dead" || !strings.Contains(err.Error(), "unkai host fenced "+from.Name+" --sure") {
		t.Errorf("while it may run on its host it answers %v", err)
	}
	if srv := c.Server(id); srv.HostID != from.ID || srv.Task != "" || srv.Moves != was.Moves {
		t.Fatalf("what was refused made it %v on %s", srv.Standing(), srv.HostID)
	}
	c.Bury(from)
	c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
	if c.Server(id).Task != compute.Evacuating {
		t.Fatalf("it is %v", c.Server(id).Standing())
	}
	c.Settle()
	if srv := c.Server(id); srv.HostID != to.ID || srv.Standing() != (compute.Standing{Stage: compute.Running}) {
		t.Fatalf("it came to be %v on %s", srv.Standing(), srv.HostID)
	}
	c.Return(from)
	c.Settle()
	clean(t, c, id)
}

func TestEvacuateInTheMiddleOfAMove(t *testing.T) {
	c, id := running(t, 3)
	from := c.HostOf(id)
	from.Sends = &compute.Transit{}
	c.Must(c.Compute.Migrate(c.Admin, id, ""))
	c.Settle()
	c.Lose(from)
	if err := c.Compute.Evacuate(c.Admin, id, "", ""); !fault.Is(err, fault.Conflict) || c.Server(id).Move == nil {
		t.Fatalf("of a host that is merely lost it answers %v, and the move is %+v", err, c.Server(id).Move)
	}
	c.Bury(from)
	c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
	c.Settle()
	c.Return(from)
	c.Settle()
	if srv := c.Server(id); srv.HostID == from.ID || srv.Standing() != (compute.Standing{Stage: compute.Running}) || srv.Seen.Power != compute.On {
		t.Fatalf("it came to be %v", srv.Standing())
	}
	clean(t, c, id)
}

// refusals are moves that cannot be.
var refusals = map[string]struct {
	ask  func(c *cloudtest.Cloud, ctx context.Context, id resource.ID) error
	kind fault.Kind
}{
	"to its own host": {func(c *cloudtest.Cloud, _ context.Context, id resource.ID) error {
		return c.Compute.Migrate(c.Admin, id, c.HostOf(id).Name)
	}, fault.Invalid},
	"to a host that is not there": {func(c *cloudtest.Cloud, _ context.Context, id resource.ID) error {
		return c.Compute.LiveMigrate(c.Admin, id, "nowhere")
	}, fault.Invalid},
	"by its owner": {func(c *cloudtest.Cloud, ctx context.Context, id resource.ID) error {
		return c.Compute.Migrate(ctx, id, "")
	}, fault.Forbidden},
	"live, while it is off": {func(c *cloudtest.Cloud, ctx context.Context, id resource.ID) error {
		c.Must(c.Compute.Do(ctx, id, compute.Stopping))
		c.Settle()
		return c.Compute.LiveMigrate(c.Admin, id, "")
	}, fault.Conflict},
	"twice": {func(c *cloudtest.Cloud, _ context.Context, id resource.ID) error {
		c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
		return c.Compute.LiveMigrate(c.Admin, id, "")
	}, fault.Conflict},
	"to a host that takes nothing in": {func(c *cloudtest.Cloud, _ context.Context, id resource.ID) error {
		plain := cloudtest.Capacity
		plain.Moves = false
		return c.Compute.Migrate(c.Admin, id, c.AddHost("plain", plain).Name)
	}, fault.Exhausted},
}

func TestMovesThatCannotBe(t *testing.T) {
	for name, test := range refusals {
		t.Run(name, func(t *testing.T) {
			c, id := running(t, 2)
			if err := test.ask(c, c.Ctx, id); fault.KindOf(err) != test.kind {
				t.Errorf("it answers %v", err)
			}
		})
	}
}

// most is a flavor that takes more than half of a host.
func most(c *cloudtest.Cloud) {
	_, err := c.Compute.CreateFlavor(c.Admin, compute.Flavor{Meta: resource.Meta{Name: "most"}, Ref: "most", VCPUs: 1, MemoryMiB: 40000, RootGiB: 1})
	c.Must(err)
	c.Must(c.Compute.SetQuota(c.Admin, c.Project, resource.ID{}, map[string]int{compute.QuotaMemory: -1}, true))
}

// The room that an unconfirmed move holds where the server was is the server's own.
func TestEvacuateIntoItsOwnRoom(t *testing.T) {
	for name, evacuate := range map[string]func(k *keeper, id resource.ID){
		"by an operator": func(k *keeper, id resource.ID) { k.Must(k.Compute.Evacuate(k.Admin, id, "", "")) },
		"by itself":      func(*keeper, resource.ID) {},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, 2)
			most(k.Cloud)
			made, err := k.Compute.Create(operatorOf(k.Cloud), k.Plain(compute.Launch{Flavor: "most", Host: k.Hosts[0].Name,
				Hints: map[string]string{"unkai_restart_elsewhere": "true"}}))
			k.Must(err)
			id := made.Servers[0]
			k.Settle()
			k.Must(k.Compute.Migrate(k.Admin, id, k.Hosts[1].Name))
			k.Settle()
			k.Lose(k.Hosts[1])
			k.Bury(k.Hosts[1])
			evacuate(k, id)
			k.pass(time.Second)
			if srv := k.Server(id); srv.HostID != k.Hosts[0].ID || srv.Stage() != compute.Running {
				t.Errorf("it is %s on %s: %+v", srv.Stage(), srv.HostID, srv.Stranded)
			}
		})
	}
}
