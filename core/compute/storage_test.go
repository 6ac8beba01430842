package compute_test

import (
	"fmt"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/audit"
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

// diskOf is how many GiB of disk are taken of a host.
func diskOf(c *cloudtest.Cloud, h *cloudtest.Host) int64 {
	tx := c.State.Latest()
	is, _ := host.Table().PeekOne(tx, h.ID)
	_, taken := compute.Load(tx, is)
	return taken[2]
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
			disk := func(h *cloudtest.Host) int64 { return diskOf(c, h) }
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
	taken := diskOf(c, c.Hosts[0])
	if n == 0 || taken > 10 || taken+taken/int64(n) <= 10 {
		t.Errorf("%d servers take %d of 10 GiB", n, taken)
	}
	sound(t, c)
}

// A shelved server takes nothing of the storage, and comes back to it as one that was never there.
func TestShelvingOnSharedStorage(t *testing.T) {
	c, id := sharing(t, "nas", "nas")
	c.Must(c.Compute.Shelve(c.Ctx, id, nil))
	c.Settle()
	srv := c.Server(id)
	if srv.Stage() != compute.Offloaded || srv.Storage != "" || srv.Kept || diskOf(c, c.Hosts[0]) != 0 || !erased(c.Hosts[0], id, "nas") {
		t.Fatalf("it is %v, on %q; erased are %v", srv.Standing(), srv.Storage, c.Hosts[0].Erased)
	}
	sound(t, c)
	first := srv.Epoch
	for _, h := range []*cloudtest.Host{c.Hosts[1], c.Hosts[0]} {
		c.Must(c.Compute.Unshelve(c.Admin, id, compute.Place{Host: h.Name}))
		c.Settle()
		srv = c.Server(id)
		if g := h.Guests[id]; srv.Stage() != compute.Running || srv.Storage != "nas" || srv.Kept || g.Storage != "nas" || g.Kept || g.Epoch <= first || diskOf(c, h) == 0 {
			t.Fatalf("back on %s it is %v on %q, told %+v", h.Name, srv.Standing(), srv.Storage, g)
		}
		first = srv.Epoch
		c.Must(c.Compute.Shelve(c.Ctx, id, nil))
		c.Settle()
		sound(t, c)
	}
	// What is given up on the way back is erased, too.
	c.Hosts[1].Lazy = true
	c.Must(c.Compute.Unshelve(c.Admin, id, compute.Place{Host: c.Hosts[1].Name}))
	c.Settle()
	_, err := c.Ops.Cancel(c.Ctx, c.Server(id).OperationID)
	c.Must(err)
	c.Hosts[1].Lazy = false
	c.Settle()
	if last := c.Hosts[1].Erased; c.Server(id).Stage() != compute.Offloaded || len(last) == 0 || last[len(last)-1].Epoch != c.Server(id).Epoch {
		t.Errorf("given up it is %v, and erased are %v", c.Server(id).Standing(), last)
	}
	c.Must(c.Compute.Delete(c.Ctx, id))
	c.Settle()
	sound(t, c)
}

// What a server had on a host that is dead is erased by another, and does not hinder it there.
func TestAShelvedServerOfADeadHost(t *testing.T) {
	c, id := sharing(t, "nas", "nas")
	c.Must(keepShelved(c, host.ShelvedForever))
	c.Must(c.Compute.Shelve(c.Ctx, id, nil))
	c.Settle()
	if srv := c.Server(id); srv.Stage() != compute.Shelved || srv.Storage != "nas" || len(c.Hosts[0].Erased) > 0 {
		t.Fatalf("it is %v", srv.Standing())
	}
	c.Lose(c.Hosts[0])
	if err := c.Compute.Evacuate(c.Admin, id, "", ""); !fault.Is(err, fault.Conflict) {
		t.Errorf("to evacuate it answers %v", err)
	}
	_, err := (&host.Service{State: c.State}).Vouch(c.Admin, c.Hosts[0].ID)
	c.Must(err)
	c.Must(c.Compute.Offload(c.Admin, id))
	c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
	c.Settle()
	srv := c.Server(id)
	if srv.Stage() != compute.Running || srv.HostID != c.Hosts[1].ID || compute.Estates().Len(c.State.Latest()) != 1 {
		t.Errorf("it is %v", srv.Standing())
	}
	for _, e := range c.Hosts[1].Erased {
		if e.Epoch >= srv.Epoch {
			t.Errorf("the disks were erased that it has now: %+v", e)
		}
	}
	if found := audit.State(c.State.Latest()); len(found) > 0 {
		t.Errorf("the auditor found %v", found)
	}
	c.Return(c.Hosts[0])
	c.Settle()
	sound(t, c)
}

// From the shelf a server lies over its shelf's image, wherever its disks are kept from then on.
func TestWhatCameFromTheShelfOutlivesItsHost(t *testing.T) {
	c, id := sharing(t, "", "nas", "nas")
	c.Must(c.Compute.Shelve(c.Ctx, id, nil))
	c.Settle()
	c.Must(c.Compute.Unshelve(c.Admin, id, compute.Place{Host: c.Hosts[1].Name}))
	c.Settle()
	root := c.Server(id).Root
	c.Lose(c.Hosts[1])
	c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
	c.Settle()
	srv, g := c.Server(id), c.Hosts[2].Guests[id]
	if srv.Stage() != compute.Running || !g.Kept || g.Storage != "nas" || root == nil || g.Disks[0].Image.ID != root.ID {
		t.Errorf("it is %v, told %+v", srv.Standing(), g)
	}
	_, err := c.Compute.Rebuild(c.Ctx, id, compute.Rebuild{ImageID: c.Image})
	c.Must(err)
	c.Settle()
	if srv, g := c.Server(id), c.Hosts[2].Guests[id]; srv.Root != nil || !g.Kept || g.Rebuilds != 1 || g.Disks[0].Image.ID != c.Image {
		t.Errorf("rebuilt it is %v, told %+v", srv.Standing(), g)
	}
	c.Return(c.Hosts[1])
	c.Settle()
	sound(t, c)
}

// An image of a server whose disks are shared is made by its host, and a host that is lost makes none.
func TestAnImageOfAServerOnSharedStorage(t *testing.T) {
	c, id := sharing(t, "nas", "nas")
	_, err := c.Compute.CreateImage(c.Ctx, id, compute.ImageWanted{Name: "copy"})
	c.Must(err)
	c.Settle()
	if srv := c.Server(id); imageNamed(c, "copy") == nil || srv.Snapshot != nil || srv.Storage != "nas" || srv.Stage() != compute.Running {
		t.Errorf("it is %v", srv.Standing())
	}
	c.Hosts[0].Lazy = true
	_, err = c.Compute.CreateImage(c.Ctx, id, compute.ImageWanted{Name: "another"})
	c.Must(err)
	c.Lose(c.Hosts[0])
	c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
	c.Settle()
	if srv := c.Server(id); srv.Stage() != compute.Running || !srv.Kept || srv.Snapshot != nil || imageNamed(c, "another") != nil {
		t.Errorf("evacuated it is %v, with %v", srv.Standing(), srv.Snapshot)
	}
	c.Hosts[0].Lazy = false
	c.Return(c.Hosts[0])
	c.Settle()
	sound(t, c)
}

// A forecast counts what goes over the wire.
func TestAForecastLeavesSharedDisksOut(t *testing.T) {
	c, id := sharing(t, "nas", "nas", "")
	weighed(c, compute.Burden{Live: true, Memory: 64 << 20, Used: 32 << 20, Disk: 1 << 40, DiskWrites: 1 << 40, Seen: true, Seconds: 1, Pages: 256, Limit: 200})
	for to, kept := range map[*cloudtest.Host]bool{c.Hosts[1]: true, c.Hosts[2]: false} {
		f, err := c.Compute.ForecastMove(c.Admin, id, compute.Relocation{To: to.Name})
		c.Must(err)
		if f.Kept != kept || (f.Burden.Disk == 0) != kept || (f.Outcome == compute.Surely) != kept {
			t.Errorf("to %s it is %+v", to.Name, f)
		}
	}
	all, err := c.Compute.ForecastRetirement(c.Admin, c.Hosts[0].ID, compute.Retirement{})
	c.Must(err)
	if len(all) != 1 || all[0].To != c.Hosts[1].Name || !all[0].Forecast.Kept || all[0].Forecast.Burden.Disk != 0 {
		t.Errorf("of all of them it is %+v", all)
	}
}

// In a restored state the numbers are given again: an era goes before them, also on a host that a server has yet to come to.
func TestAMoveOntoSharedStorageSaysTheEra(t *testing.T) {
	c, id := sharing(t, "", "nas")
	c.Must(host.Restored(c.Admin, c.State))
	c.Hosts[1].Receives = &compute.Transit{} // not yet
	c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
	c.Settle()
	if g, era := c.Hosts[1].Guests[id], host.MarkOf(c.State.Latest()).Era; g.Arrive == nil || era == 0 || g.Era != era {
		t.Errorf("it is told era %d, not %d", g.Era, era)
	}
}

// Disks that a host was to make on the storage, and of which nobody knows that they were, are made elsewhere: nothing is there to be kept.
func TestEvacuatedBeforeItsDisksWereMade(t *testing.T) {
	for storage, left := range map[string]bool{"nas": false, "san": true, "": true} {
		c, id := sharing(t, "", "nas")
		c.Hosts[1].Mute = true // it may have made them, or died before
		c.Lose(c.Hosts[0])
		c.Bury(c.Hosts[0])
		c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
		c.Settle()
		first := c.Server(id)
		if first.Storage != "nas" || first.Kept || first.Lasts() {
			t.Fatalf("it is on %q, kept: %v", first.Storage, first.Kept)
		}
		c.Lose(c.Hosts[1])
		capacity := cloudtest.Capacity
		capacity.Storage = storage
		c.AddHost("host-c", capacity)
		c.Bury(c.Hosts[1])
		c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
		c.Settle()
		srv, g := c.Server(id), c.Hosts[2].Guests[id]
		if srv.Stage() != compute.Running || srv.Storage != storage || srv.Kept || g.Kept || g.Epoch <= first.Epoch || srv.Lasts() != (storage != "") {
			t.Errorf("onto %q: it is %v on %q, kept: %v", storage, srv.Standing(), srv.Storage, g.Kept)
		}
		if got := compute.Estates().Len(c.State.Latest()) == 1; got != left {
			t.Errorf("onto %q: something is left to be erased: %v", storage, got)
		}
		c.Hosts[1].Mute = false
		c.Return(c.Hosts[1])
		c.Settle()
		if erased(c.Hosts[1], id, "nas") != left {
			t.Errorf("onto %q: erased is %v", storage, c.Hosts[1].Erased)
		}
		sound(t, c)
		if storage == "" {
			continue
		}
		c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping)) // it has run there: from now on they are kept, whatever it does
		c.Settle()
		c.Lose(c.Hosts[2])
		c.AddHost("host-d", capacity)
		c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
		c.Settle()
		if srv, g := c.Server(id), c.HostOf(id).Guests[id]; !srv.Kept || !g.Kept || srv.Storage != storage {
			t.Errorf("onto %q: what it has written is not kept", storage)
		}
		sound(t, c)
	}
}

// What was made and has never run is as its image, wherever it is made.
func TestAServerThatNeverRanIsNotKept(t *testing.T) {
	c, _ := sharing(t, "nas", "nas")
	id := c.Launch(compute.Launch{Stopped: true})[0]
	c.Settle()
	on := c.HostOf(id)
	c.Must(c.Compute.Migrate(c.Admin, id, ""))
	c.Settle()
	if srv := c.Server(id); srv.HostID == on.ID || !srv.Kept || srv.Lasts() {
		t.Fatalf("moved it is %v, kept: %v", srv.Standing(), srv.Kept)
	}
	c.Must(c.Compute.Confirm(c.Ctx, id))
	lost := c.HostOf(id)
	c.Lose(lost)
	c.Bury(lost)
	c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
	c.Settle()
	if srv := c.Server(id); srv.HostID != on.ID || srv.Kept || srv.Stage() != compute.Stopped {
		t.Errorf("it is %v, kept: %v", srv.Standing(), srv.Kept)
	}
	sound(t, c)
}

// A host may have carried out rebuilds that a restored state knows nothing of. One that is asked for then is none of those.
func TestARebuildAfterARestoredBackupIsANewOne(t *testing.T) {
	c, id := sharing(t, "nas")
	c.Must(host.Restored(c.Admin, c.State))
	for n := range 2 {
		if _, err := c.Compute.Rebuild(c.Ctx, id, compute.Rebuild{ImageID: c.Image}); err != nil {
			t.Fatal(err)
		}
		c.Settle()
		if srv, before := c.Server(id), int(host.MarkOf(c.State.Latest()).Era); srv.Rebuilds != before+1+n || srv.Stage() != compute.Running {
			t.Errorf("it is number %d, and as many as %d may have been", srv.Rebuilds, before)
		}
	}
	sound(t, c)
}

// A host that can be heard, and cannot erase what a server has left, does not keep others from it; and an operator sees why it is there still.
func TestAnEstateGoesToTheNextHost(t *testing.T) {
	c, id := sharing(t, "nas", "nas", "nas")
	on := c.HostOf(id)
	on.Keeps = "Read-only file system."
	c.Must(c.Compute.Delete(c.Ctx, id))
	c.Settle()
	if erased(on, id, "nas") || !erased(c.Hosts[1], id, "nas") && !erased(c.Hosts[2], id, "nas") {
		t.Error("no other host has erased it")
	}
	sound(t, c)

	alone, id := sharing(t, "nas")
	alone.Hosts[0].Keeps = "Read-only file system."
	alone.Must(alone.Compute.Delete(alone.Ctx, id))
	alone.Settle()
	for e := range compute.Estates().Peek(alone.State.Latest(), "", state.Range{}) {
		if e.Trouble != "Read-only file system." {
			t.Errorf("it says %q", e.Trouble)
		}
	}
	if compute.Estates().Len(alone.State.Latest()) != 1 {
		t.Error("it is forgotten")
	}
}

// Disks stay on the storage that they are on, however few of a large cloud's hosts reach it.
func TestKeepsStorageInLargeCloud(t *testing.T) {
	for try := range 4 {
		c := cloudtest.New(t, 0)
		shared := cloudtest.Capacity
		shared.Storage = "nas"
		for n := range 1000 {
			capacity := cloudtest.Capacity
			if n >= 400 && n < 403 {
				capacity = shared
			}
			c.AddHost(fmt.Sprintf("h%04d-%d", n, try), capacity)
		}
		id := launchOn(c, compute.Launch{}, c.Hosts[401])
		for _, h := range c.Hosts {
			h.Silent = h.ID != c.Hosts[401].ID
		}
		c.Settle()
		if !c.Server(id).Lasts() {
			t.Fatal("it does not last")
		}
		c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
		if c.Server(id).Move.Storage != "nas" {
			t.Fatal("the move takes the disks off the storage, though two more hosts reach it and are empty")
		}
	}
}
