package compute_test

import (
	"fmt"
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

// launchOn makes a server of the project on a certain host.
func launchOn(c *cloudtest.Cloud, l compute.Launch, h *cloudtest.Host) resource.ID {
	c.T.Helper()
	admin := &identity.Actor{UserID: c.User.UserID, ProjectID: c.Project, Roles: []string{"admin", "member", "reader"}}
	l.Host = h.Name
	made, err := c.Compute.Create(identity.As(c.Ctx, admin), c.Plain(l))
	c.Must(err)
	return made.Servers[0]
}

func newGroup(c *cloudtest.Cloud, p compute.Policy) resource.ID {
	c.T.Helper()
	made, err := c.Compute.CreateGroup(c.Ctx, compute.Group{Meta: resource.Meta{Name: "g"}, Policy: p})
	c.Must(err)
	return made.ID
}

// apart makes sure that two servers are on two hosts, or one of them on none.
func apart(c *cloudtest.Cloud, a, b resource.ID) {
	c.T.Helper()
	if s, t := c.Server(a), c.Server(b); s.HostID == t.HostID {
		c.T.Errorf("both are on one host: %v and %v", s.Standing(), t.Standing())
	}
}

// A host that a server is on its way to is taken for whoever is to be apart from it.
func TestApartFromWhatArrives(t *testing.T) {
	c := cloudtest.New(t, 3)
	g := newGroup(c, compute.Apart)
	a := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[0])
	c.Settle()
	c.Hosts[1].Receives = &compute.Transit{Where: "x"}
	c.Must(c.Compute.LiveMigrate(c.Admin, a, c.Hosts[1].Name))
	c.Settle()
	if b := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[1]); c.Server(b).Stage() != compute.Failed {
		t.Errorf("a member is made where another one is about to arrive: %v", c.Server(b).Standing())
	}
	b := c.Launch(compute.Launch{GroupID: g})[0]
	c.Hosts[1].Receives = &compute.Transit{Where: "x", Done: true}
	c.Report(c.Hosts[1], a, compute.Seen{Wish: c.Hosts[1].Guests[a].Wish, Transit: compute.Transit{Move: c.Server(a).Move.Number, Where: "x", Done: true}})
	c.Settle()
	if c.Server(a).HostID != c.Hosts[1].ID || c.Server(b).HostID != c.Hosts[2].ID {
		t.Errorf("the two are %v on %v and %v on %v", c.Server(a).Standing(), c.Server(a).HostID, c.Server(b).Standing(), c.Server(b).HostID)
	}
}

// So is the host that a server may have to go back to.
func TestApartFromWhatMayComeBack(t *testing.T) {
	c := cloudtest.New(t, 2)
	g := newGroup(c, compute.Apart)
	a := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[0])
	c.Settle()
	c.Must(c.Compute.Migrate(c.Admin, a, c.Hosts[1].Name))
	c.Settle()
	b := c.Launch(compute.Launch{GroupID: g})[0]
	c.Settle()
	c.Must(c.Compute.Revert(c.Ctx, a))
	c.Settle()
	apart(c, a, b)
	if b = c.Launch(compute.Launch{GroupID: g})[0]; c.Server(b).HostID != c.Hosts[1].ID {
		t.Errorf("once it is back, the host that it was on is not free for others: %v", c.Server(b).Standing())
	}
}

// What is done at the same moment to both is no other case: two hosts are emptied, and only one other takes servers.
func TestApartWhenBothLeave(t *testing.T) {
	k := newKeeper(t, 3)
	g := newGroup(k.Cloud, compute.Apart)
	a := launchOn(k.Cloud, compute.Launch{GroupID: g}, k.Hosts[0])
	b := launchOn(k.Cloud, compute.Launch{GroupID: g}, k.Hosts[1])
	k.Settle()
	for _, h := range k.Hosts[:2] {
		_, err := k.Compute.Retire(k.Admin, h.ID, compute.Retirement{})
		k.Must(err)
	}
	k.pass(5 * time.Minute)
	apart(k.Cloud, a, b)
	if k.Server(a).HostID != k.Hosts[2].ID && k.Server(b).HostID != k.Hosts[2].ID {
		t.Error("neither has left")
	}
}

// Evacuation and the way back from the shelf count what is on its way, too.
func TestApartByWhicheverWay(t *testing.T) {
	for name, way := range map[string]func(c *cloudtest.Cloud, b resource.ID) error{
		"evacuate": func(c *cloudtest.Cloud, b resource.ID) error {
			on := c.HostOf(b)
			c.Lose(on)
			c.Bury(on)
			return c.Compute.Evacuate(c.Admin, b, "", "")
		},
		"unshelve": func(c *cloudtest.Cloud, b resource.ID) error {
			c.Must(c.Compute.Shelve(c.Ctx, b, nil))
			c.Settle()
			c.Hosts[1].Lazy = true
			h := c.Server(b)
			if !h.HostID.IsZero() {
				c.T.Fatal("it is not off its host")
			}
			c.Lose(c.Hosts[1])
			return c.Compute.Unshelve(c.Ctx, b, compute.Place{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t, 3)
			g := newGroup(c, compute.Apart)
			a := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[0])
			b := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[1])
			c.Settle()
			c.Hosts[2].Receives = &compute.Transit{Where: "x"}
			c.Must(c.Compute.LiveMigrate(c.Admin, a, c.Hosts[2].Name))
			c.Settle()
			if err := way(c, b); !fault.Is(err, fault.Exhausted) {
				t.Errorf("where one member is and where it goes there is room for the other: %v, on %v", err, c.Server(b).HostID)
			}
		})
	}
}

// Those that are together leave a dead host together: where the first goes, the others follow.
func TestTogetherFromDeadHost(t *testing.T) {
	c := cloudtest.New(t, 5)
	g := newGroup(c, compute.Together)
	var ids []resource.ID
	for range 3 {
		ids = append(ids, launchOn(c, compute.Launch{GroupID: g}, c.Hosts[0]))
	}
	c.Settle()
	c.Lose(c.Hosts[0])
	if b := c.Launch(compute.Launch{GroupID: g})[0]; c.Server(b).Stage() != compute.Failed {
		t.Errorf("a new member is made elsewhere, while the others may be running: %v", c.Server(b).Standing())
	}
	c.Bury(c.Hosts[0])
	for _, id := range ids {
		c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
	}
	c.Settle()
	for _, id := range ids {
		if h := c.Server(id).HostID; h == c.Hosts[0].ID || h != c.Server(ids[0]).HostID {
			t.Errorf("%s is on %s", id, h)
		}
	}
	if b := c.Launch(compute.Launch{GroupID: g})[0]; c.Server(b).HostID != c.Server(ids[0]).HostID {
		t.Errorf("a new member is not with them: %v", c.Server(b).Standing())
	}
}

// The same without anybody's help, twice: also from the host that they came to. The first of them goes where there is room for all.
func TestTogetherRestartedElsewhere(t *testing.T) {
	k := newKeeper(t, 4)
	for name, size := range map[string][2]int{"big": {25000, 1}, "fat": {64, 900}} {
		_, err := k.Compute.CreateFlavor(k.Admin, compute.Flavor{Meta: resource.Meta{Name: name}, Ref: name, VCPUs: 1, MemoryMiB: size[0], RootGiB: size[1]})
		k.Must(err)
	}
	k.Must(k.Compute.SetQuota(k.Admin, k.Project, resource.ID{}, map[string]int{compute.QuotaMemory: -1}, true))
	g := newGroup(k.Cloud, compute.Together)
	hints := map[string]string{"unkai_restart_elsewhere": "true"}
	var ids []resource.ID
	for range 2 {
		ids = append(ids, launchOn(k.Cloud, compute.Launch{Flavor: "big", GroupID: g, Hints: hints}, k.Hosts[0]))
	}
	// One alone would do best where there is memory for one.
	launchOn(k.Cloud, compute.Launch{Flavor: "big"}, k.Hosts[1])
	for _, h := range k.Hosts[2:] {
		launchOn(k.Cloud, compute.Launch{Flavor: "fat"}, h)
	}
	k.Settle()
	for range 2 {
		h := k.HostOf(ids[0])
		k.Lose(h)
		_, err := k.hosts.Vouch(k.Admin, h.ID)
		k.Must(err)
		k.pass(10 * time.Minute)
		if a, b := k.Server(ids[0]), k.Server(ids[1]); a.Stranded != nil || b.Stranded != nil || a.HostID != b.HostID || a.HostID == h.ID {
			t.Fatalf("they are on %s (%+v) and %s (%+v)", a.HostID, a.Stranded, b.HostID, b.Stranded)
		}
	}
}

// A host with servers that are together can be emptied.
func TestTogetherFromMaintenance(t *testing.T) {
	k := newKeeper(t, 4)
	g := newGroup(k.Cloud, compute.Together)
	var ids []resource.ID
	for range 3 {
		ids = append(ids, launchOn(k.Cloud, compute.Launch{GroupID: g}, k.Hosts[0]))
	}
	k.Settle()
	if err := k.Compute.LiveMigrate(k.Admin, ids[0], ""); !fault.Is(err, fault.Exhausted) {
		t.Errorf("one leaves the others, which stay: %v", err)
	}
	_, err := k.Compute.Retire(k.Admin, k.Hosts[0].ID, compute.Retirement{})
	k.Must(err)
	k.pass(5 * time.Minute)
	for _, id := range ids {
		if h := k.Server(id).HostID; h == k.Hosts[0].ID || h != k.Server(ids[0]).HostID {
			t.Errorf("%s is on %s", id, h)
		}
	}
	if op := k.drainOf(k.Hosts[0]); op.Outcome != operation.Succeeded {
		t.Errorf("emptying the host came to be %v: %s", op.Outcome, op.Message)
	}
}

// A server does not go back from those that have come to it.
func TestTogetherAfterRevert(t *testing.T) {
	c := cloudtest.New(t, 2)
	g := newGroup(c, compute.Together)
	a := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[0])
	c.Settle()
	c.Must(c.Compute.Migrate(c.Admin, a, c.Hosts[1].Name))
	c.Settle()
	b := c.Launch(compute.Launch{GroupID: g})[0]
	c.Settle()
	if c.Server(b).HostID != c.Hosts[1].ID {
		t.Fatalf("the second is on %v", c.Server(b).HostID)
	}
	if err := c.Compute.Revert(c.Ctx, a); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "group") {
		t.Errorf("it goes back alone: %v", err)
	}
	c.Must(c.Compute.Delete(c.Ctx, b))
	c.Settle()
	c.Must(c.Compute.Revert(c.Ctx, a))
}

// In a cloud of which a decision looks at a part, that part is chosen so that soft policies hold.
func TestSoftlyTogetherInLargeCloud(t *testing.T) {
	c := cloudtest.New(t, 0)
	for n := range 1000 {
		c.AddHost(fmt.Sprintf("h%04d", n), cloudtest.Capacity)
	}
	g := newGroup(c, compute.SoftTogether)
	on := map[resource.ID]int{}
	for _, id := range c.Launch(compute.Launch{GroupID: g, Min: 10, Max: 10}) {
		on[c.Server(id).HostID]++
	}
	if len(on) > 1 {
		t.Errorf("10 servers that are softly together are on %d hosts, and any has room for all", len(on))
	}
}

// Of a launch of several as many become members as the quota allows, and the least that was asked for, or none.
func TestGroupMembersQuota(t *testing.T) {
	c := cloudtest.New(t, 3)
	g := newGroup(c, compute.SoftApart)
	if ids := c.Launch(compute.Launch{GroupID: g, Min: 1, Max: 30}); len(ids) != 10 {
		t.Errorf("%d members are made where 10 may be", len(ids))
	}
	for _, least := range []int{1, 2} {
		if _, err := c.Compute.Create(c.Ctx, c.Plain(compute.Launch{GroupID: g, Min: least, Max: 30})); !fault.Is(err, fault.OverQuota) {
			t.Errorf("%d more are made: %v", least, err)
		}
	}
	if _, err := c.Compute.Create(c.Ctx, c.Plain(compute.Launch{GroupID: newGroup(c, compute.Apart), Min: 11, Max: 30})); !fault.Is(err, fault.OverQuota) {
		t.Errorf("11 are made: %v", err)
	}
}

// While one of those that are together is on its way nobody knows where it will be: neither host takes another one in.
func TestTogetherWhileOneIsOnItsWay(t *testing.T) {
	for name, end := range map[string]struct {
		transit compute.Transit
		to      int
	}{"which arrives": {compute.Transit{Where: "x", Done: true}, 1}, "which fails": {compute.Transit{Trouble: "no room"}, 0}} {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t, 3)
			g := newGroup(c, compute.Together)
			a := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[0])
			off := launchOn(c, compute.Launch{GroupID: g}, c.Hosts[0])
			c.Settle()
			c.Must(c.Compute.Shelve(c.Ctx, off, nil))
			c.Settle()
			c.Hosts[1].Receives = &compute.Transit{Where: "x"}
			c.Must(c.Compute.LiveMigrate(c.Admin, a, c.Hosts[1].Name))
			c.Settle()
			b := c.Launch(compute.Launch{GroupID: g})[0]
			if s := c.Server(b); s.Stage() != compute.Failed || !strings.Contains(s.Failure.Message, "on its way") {
				t.Errorf("a new member is made where nobody knows whether the others will be: %v, %+v", s.Standing(), s.Failure)
			}
			if err := c.Compute.Unshelve(c.Ctx, off, compute.Place{}); !fault.Is(err, fault.Exhausted) {
				t.Errorf("one comes back from the shelf: %v", err)
			}
			move := c.Server(a).Move.Number
			c.Hosts[1].Receives = &end.transit
			says := end.transit
			says.Move = move
			c.Report(c.Hosts[1], a, compute.Seen{Wish: c.Hosts[1].Guests[a].Wish, Transit: says})
			c.Settle()
			c.Hosts[1].Receives = nil
			c.Must(c.Compute.Unshelve(c.Ctx, off, compute.Place{}))
			b = c.Launch(compute.Launch{GroupID: g})[0]
			c.Settle()
			for _, id := range []resource.ID{a, b, off} {
				if s := c.Server(id); s.HostID != c.Hosts[end.to].ID {
					t.Errorf("%v is on %v", s.Standing(), s.HostID)
				}
			}
		})
	}
}

// A host in maintenance is left by all that are together, or by none, and the plan says which; later by all, once they can.
func TestTogetherOrNotAtAll(t *testing.T) {
	for name, way := range map[string]struct {
		hinder, help func(k *keeper, ids []resource.ID)
		why          string
	}{
		"one is suspended": {
			func(k *keeper, ids []resource.ID) { k.Must(k.Compute.Do(k.Ctx, ids[2], compute.Suspending)) },
			func(k *keeper, ids []resource.ID) { k.Must(k.Compute.Delete(k.Ctx, ids[2])) },
			"another one of them cannot leave",
		},
		"no host has room for all": {
			func(k *keeper, ids []resource.ID) {
				for _, h := range k.Hosts[1:] {
					launchOn(k.Cloud, compute.Launch{Flavor: "big"}, h)
				}
			},
			func(k *keeper, ids []resource.ID) {
				for srv := range compute.Servers().All(k.State.Latest()) {
					if srv.Shape.Ref == "big" && srv.HostID == k.Hosts[2].ID {
						k.Must(k.Compute.Delete(k.Ctx, srv.ID))
					}
				}
				k.Settle()
				k.Must(k.Compute.Do(k.Ctx, ids[0], compute.Stopping)) // they stand otherwise
			},
			"room for all of the group",
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, 3)
			for name, mib := range map[string]int{"big": 20000, "part": 20000} {
				_, err := k.Compute.CreateFlavor(k.Admin, compute.Flavor{Meta: resource.Meta{Name: name}, Ref: name, VCPUs: 1, MemoryMiB: mib, RootGiB: 1})
				k.Must(err)
			}
			k.Must(k.Compute.SetQuota(k.Admin, k.Project, resource.ID{}, map[string]int{compute.QuotaMemory: -1}, true))
			g := newGroup(k.Cloud, compute.Together)
			var ids []resource.ID
			for range 3 {
				ids = append(ids, launchOn(k.Cloud, compute.Launch{Flavor: "part", GroupID: g}, k.Hosts[0]))
			}
			k.Settle()
			plan, err := k.Compute.PlanRetirement(k.Admin, k.Hosts[0].ID, compute.Retirement{})
			k.Must(err)
			for n, l := range plan {
				if l.Way != compute.GoesLive || l.To != plan[0].To || (l.Note != "") != (n < 3) {
					t.Errorf("planned is %+v", l)
				}
			}
			way.hinder(k, ids)
			k.Settle()
			plan, err = k.Compute.PlanRetirement(k.Admin, k.Hosts[0].ID, compute.Retirement{})
			k.Must(err)
			for _, l := range plan {
				if l.Way != compute.Stays || !strings.Contains(l.Why, way.why) && !strings.Contains(l.Why, "suspended") {
					t.Errorf("planned is %+v", l)
				}
			}
			_, err = k.Compute.Retire(k.Admin, k.Hosts[0].ID, compute.Retirement{})
			k.Must(err)
			k.pass(5 * time.Minute)
			for _, id := range ids {
				if s := k.Server(id); s.HostID != k.Hosts[0].ID {
					t.Errorf("%v has left, and others have not", s.Standing())
				}
			}
			way.help(k, ids)
			k.pass(5 * time.Minute)
			for _, id := range ids {
				if s := k.Server(id); s != nil && (s.HostID == k.Hosts[0].ID || s.HostID != k.Server(ids[0]).HostID) {
					t.Errorf("%v is on %v", s.Standing(), s.HostID)
				}
			}
		})
	}
}

// A maintenance that is ended midway takes nobody from the others any more.
func TestTogetherWhenMaintenanceEnds(t *testing.T) {
	k := newKeeper(t, 3)
	g := newGroup(k.Cloud, compute.Together)
	var ids []resource.ID
	for range 2 {
		ids = append(ids, launchOn(k.Cloud, compute.Launch{GroupID: g}, k.Hosts[0]))
	}
	k.Settle()
	for _, h := range k.Hosts[1:] {
		h.Receives = &compute.Transit{Where: "x"}
	}
	_, err := k.Compute.Retire(k.Admin, k.Hosts[0].ID, compute.Retirement{AtOnce: 1})
	k.Must(err)
	k.pass(10 * time.Second)
	at := 0
	if k.Server(ids[1]).Move != nil {
		at = 1
	}
	s := k.Server(ids[at])
	if s.Move == nil || k.Server(ids[1-at]).Move != nil {
		t.Fatalf("%v and %v", s.Standing(), k.Server(ids[1-at]).Standing())
	}
	k.Must(k.hosts.SetDisabled(k.Admin, k.Hosts[0].ID, false, ""))
	for _, h := range k.Hosts[1:] {
		h.Receives = nil
		if h.ID == s.Move.To {
			k.Report(h, s.ID, compute.Seen{Wish: h.Guests[s.ID].Wish, Transit: compute.Transit{Move: s.Move.Number, Where: "x", Done: true}})
		}
	}
	k.pass(time.Minute)
	for _, id := range ids {
		if s := k.Server(id); s.HostID != k.Hosts[0].ID || s.Move != nil || s.Stage() != compute.Running {
			t.Errorf("%v is on %v", s.Standing(), s.HostID)
		}
	}
}
