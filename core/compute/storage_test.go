package compute_test

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
)

// sharing is a cloud with hosts on those storages, "" for their own disks, and a server that runs on the first one.
func sharing(t *testing.T, storages ...string) (*cloudtest.Cloud, resource.ID) {
	t.Helper()
	c := cloudtest.New(t, 0)
	var id resource.ID
	for n, storage := range storages {
		capacity := cloudtest.Capacity
		capacity.Storage = storage
		c.AddHost("host-"+string(rune('a'+n)), capacity)
		if n == 0 {
			id = c.Launch(compute.Launch{})[0]
		}
	}
	c.Settle()
	if srv := c.Server(id); srv.Storage != storages[0] || srv.Kept || c.Hosts[0].Guests[id].Storage != storages[0] {
		t.Fatalf("a new server's disks are to be on %q", srv.Storage)
	}
	return c, id
}

func erased(h *cloudtest.Host, id resource.ID, storage string) bool {
	for _, e := range h.Erased {
		if e.GuestID == id && e.Storage == storage {
			return true
		}
	}
	return false
}

// Between hosts that share it the disks stay, and are counted once; beyond, they are copied, and what is left behind is erased.
func TestMovesOnSharedStorage(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			c, id := sharing(t, "nas", "nas", "", "san")
			disk := func(h *cloudtest.Host) int64 {
				_, taken := compute.Load(c.State.Latest(), h.ID)
				return taken[2]
			}
			first := disk(c.Hosts[0])
			for n, to := range []struct {
				host   int
				kept   bool
				erased bool // what it had before
			}{{1, true, false}, {2, false, true}, {0, false, false}, {3, false, true}} {
				from := c.HostOf(id)
				before := c.Server(id)
				c.Must(way.ask(c, id, c.Hosts[to.host].Name))
				if to.kept && (disk(c.Hosts[0]) != first || disk(c.Hosts[1]) != first) {
					t.Errorf("on its way it takes %d of the storage, alone %d", disk(c.Hosts[0]), first)
				}
				c.Settle()
				if way.task == compute.Migrating {
					c.Must(c.Compute.Confirm(c.Ctx, id))
				}
				c.Settle()
				srv := c.Server(id)
				g := c.Hosts[to.host].Guests[id]
				if srv.HostID != c.Hosts[to.host].ID || srv.Kept != to.kept || srv.Storage != []string{"nas", "nas", "", "san"}[to.host] || g.Kept != srv.Kept || g.Storage != srv.Storage {
					t.Fatalf("move %d: it is on %q (kept: %v)", n, srv.Storage, srv.Kept)
				}
				if got := erased(from, id, before.Storage); got != to.erased {
					t.Errorf("move %d: what it had on %q is erased: %v", n, before.Storage, got)
				}
				sound(t, c)
			}
			c.Must(c.Compute.Delete(c.Ctx, id))
			c.Settle()
			if !erased(c.Hosts[3], id, "san") {
				t.Error("what it had is not erased with it")
			}
			sound(t, c)
		})
	}
}

// A move that fails has nothing erased that the server has, and everything that was copied.
func TestAFailedMoveOnSharedStorage(t *testing.T) {
	for storage, copied := range map[string]bool{"nas": false, "san": true} {
		c, id := sharing(t, "nas", storage)
		c.Hosts[1].Receives = &compute.Transit{Where: "x", Trouble: "No."}
		c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
		c.Settle()
		if srv := c.Server(id); srv.HostID != c.Hosts[0].ID || srv.Storage != "nas" || srv.Move != nil {
			t.Errorf("to %s: it is %v on %q", storage, srv.Standing(), srv.Storage)
		}
		if erased(c.Hosts[0], id, "nas") || erased(c.Hosts[1], id, storage) != copied {
			t.Errorf("to %s: erased are %v and %v", storage, c.Hosts[0].Erased, c.Hosts[1].Erased)
		}
		sound(t, c)
	}
}

func TestEvacuateWithDisks(t *testing.T) {
	c, id := sharing(t, "nas", "", "nas")
	c.Lose(c.Hosts[0])
	if err := c.Compute.Evacuate(c.Admin, id, c.Hosts[1].Name, ""); !fault.Is(err, fault.Exhausted) {
		t.Errorf("to a host that does not reach its disks: %v", err)
	}
	c.Must(c.Compute.Evacuate(c.Admin, id, "", "secret"))
	c.Settle()
	srv := c.Server(id)
	if srv.HostID != c.Hosts[2].ID || !srv.Kept || srv.Storage != "nas" || srv.Stage() != compute.Running || srv.AdminPassword == "secret" {
		t.Fatalf("it is %v, kept: %v", srv.Standing(), srv.Kept)
	}
	if g := c.Hosts[2].Guests[id]; !g.Kept || g.Epoch <= 1 {
		t.Errorf("its host is told %+v", g)
	}
	c.Return(c.Hosts[0])
	c.Settle()
	if _, has := c.Hosts[0].Guests[id]; has || len(c.Hosts[0].Erased)+len(c.Hosts[2].Erased) > 0 {
		t.Error("its old host has it still, or its disks were erased")
	}
	sound(t, c)
}

// What is left by a server of a lost host is erased by another that reaches it; if none does, when one comes.
func TestEstatesFindTheirHost(t *testing.T) {
	c, id := sharing(t, "nas", "nas")
	c.Lose(c.Hosts[0])
	c.Lose(c.Hosts[1])
	c.Must(c.Compute.ForceDelete(c.Admin, id))
	c.Settle()
	if compute.Estates().Len(c.State.Latest()) != 1 {
		t.Fatal("nothing is left to be erased")
	}
	c.Return(c.Hosts[1])
	c.Settle()
	if !erased(c.Hosts[1], id, "nas") {
		t.Error("the other host was not told to erase it")
	}
	if compute.Estates().Len(c.State.Latest()) != 1 {
		t.Error("it is forgotten, and the host that had the guest may begin with it anew")
	}
	c.Return(c.Hosts[0])
	c.Settle()
	if n := host.Leftovers().Len(c.State.Latest()); n > 0 {
		t.Errorf("%d things are left over", n)
	}
	sound(t, c)
}

func TestSharedStorageIsNotOversubscribed(t *testing.T) {
	c := cloudtest.New(t, 0)
	capacity := cloudtest.Capacity
	capacity.Storage, capacity.DiskGiB = "nas", 10
	for _, name := range []string{"a", "b", "c"} {
		c.AddHost(name, capacity)
	}
	n := 0
	for ; n < 100; n++ {
		id := c.Launch(compute.Launch{})[0]
		if c.Server(id).Failure != nil {
			break
		}
	}
	_, one := compute.Load(c.State.Latest(), c.Hosts[0].ID)
	if n == 0 || one[2] > 10 || one[2]+one[2]/int64(n) <= 10 {
		t.Errorf("%d servers take %d of 10 GiB", n, one[2])
	}
	sound(t, c)
}
