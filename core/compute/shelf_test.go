package compute_test

import (
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// shelvedOn makes a server that is shelved: on no host, or, if shelved servers stay on theirs, on its own.
func shelvedOn(t *testing.T, hosts int, stay time.Duration) (*cloudtest.Cloud, resource.ID) {
	t.Helper()
	c, id := running(t, hosts)
	c.Must(keepShelved(c, stay))
	c.Must(c.Compute.Shelve(c.Ctx, id, nil))
	c.Settle()
	return c, id
}

func keepShelved(c *cloudtest.Cloud, stay time.Duration) error {
	_, err := (&host.Service{State: c.State}).SetKeeping(c.Admin, func(k *host.Keeping) { k.ShelvedStay = stay })
	return err
}

// tidy lets the reconcilers do what is due.
func tidy(c *cloudtest.Cloud) {
	c.T.Helper()
	for _, task := range c.Compute.Reconcilers() {
		if task.Name != "compute-shelf" {
			continue
		}
		for _, id := range task.All(c.State.Latest()) {
			_, err := task.Step(c.Admin, id)
			c.Must(err)
		}
	}
	c.Settle()
}

// sound makes sure that nothing contradicts anything, and nothing is left on shared storage of what is gone.
func sound(t *testing.T, c *cloudtest.Cloud) {
	t.Helper()
	if found := audit.State(c.State.Latest()); len(found) > 0 {
		t.Errorf("the auditor found %v", found)
	}
	if n := compute.Estates().Len(c.State.Latest()); n > 0 {
		t.Errorf("%d estates are left", n)
	}
}

func imageNamed(c *cloudtest.Cloud, name string) *image.Image {
	for i := range image.Table().Each(c.State.Latest(), "", "") {
		if i.Name == name && i.State != image.Deleting {
			return i
		}
	}
	return nil
}

func TestAShelvedServerIsOnNoHost(t *testing.T) {
	c, id := shelvedOn(t, 2, 0)
	srv := c.Server(id)
	if srv.Stage() != compute.Offloaded || srv.Task != "" || !srv.HostID.IsZero() || srv.Power != compute.Off {
		t.Fatalf("it is %v on %s, and to be %s", srv.Standing(), srv.HostID, srv.Power)
	}
	clean(t, c, id)
	for _, p := range network.PortsOf(c.State.Latest(), id) {
		if !p.HostID.IsZero() || len(p.Fixed) == 0 {
			t.Errorf("its port is on host %s, with the addresses %v", p.HostID, p.Fixed)
		}
	}
	for _, h := range c.Hosts {
		if loadOf(c, h) != 0 {
			t.Errorf("room is held on %s", h.Name)
		}
	}
	if usage, err := c.Compute.Usages(c.Ctx, resource.ID{}, resource.ID{}); err != nil || usage[compute.QuotaServers].Used != 1 || usage[compute.QuotaCores].Used != 1 {
		t.Errorf("of its owner's quota it takes %+v, %v", usage, err)
	}
	img := imageNamed(c, "vm-shelved")
	if img == nil || img.State != image.Active || img.ProjectID != c.Project || img.MinDiskGiB != srv.Shape.RootGiB {
		t.Fatalf("its image is %+v", img)
	}
	if op := lastOperation(c, id); op.Verb != "shelve" || op.Outcome != operation.Succeeded {
		t.Errorf("the operation is %+v", op)
	}
	for what, err := range map[string]error{
		"start": c.Compute.Do(c.Ctx, id, compute.Starting), "resize": c.Compute.Reshape(c.Ctx, id, "84", nil), "shelve": c.Compute.Shelve(c.Ctx, id, nil),
		"migrate": c.Compute.Migrate(c.Admin, id, ""), "evacuate": c.Compute.Evacuate(c.Admin, id, "", ""), "offload": c.Compute.Offload(c.Admin, id),
	} {
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s answers %v", what, err)
		}
	}

	c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
	if srv := c.Server(id); srv.Task != compute.Unshelving || srv.HostID.IsZero() || srv.Stage() != compute.Offloaded || srv.Power != compute.Off {
		t.Errorf("on its way it is %v on %s, and to be %s", srv.Standing(), srv.HostID, srv.Power)
	}
	c.Settle()
	srv = c.Server(id)
	on := c.HostOf(id)
	if srv.Stage() != compute.Running || srv.Shelf != nil || srv.Root == nil || srv.Root.ID != img.ID || on.Guests[id].Disks[0].Image.ID != img.ID {
		t.Fatalf("back from the shelf it is %v, over %+v", srv.Standing(), on.Guests[id].Disks[0].Image)
	}
	for _, p := range network.PortsOf(c.State.Latest(), id) {
		if p.HostID != on.ID {
			t.Error("its port did not come back")
		}
	}
	if imageNamed(c, "vm-shelved") != nil || !compute.UsesImage(c.State.Latest(), img.ID) || !compute.MadeFrom(c.State.Latest(), on.ID, img.ID) {
		t.Error("its image is left, or its bytes are not")
	}
	clean(t, c, id)
	_, err := c.Compute.Rebuild(c.Ctx, id, compute.Rebuild{ImageID: c.Image})
	c.Must(err)
	if c.Settle(); on.Guests[id].Disks[0].Image.ID != c.Image || compute.UsesImage(c.State.Latest(), img.ID) {
		t.Error("made anew it still lies over what it was")
	}
}

// What fails on the way onto the shelf, and back.
func TestWhatFailsLeavesAServerAsItWas(t *testing.T) {
	t.Run("the copy", func(t *testing.T) {
		c, id := running(t, 1)
		c.Hosts[0].Copies = &compute.Copying{Trouble: "No room."}
		c.Must(c.Compute.Shelve(c.Ctx, id, nil))
		if c.Settle(); lastOperation(c, id).Message != "No room." {
			t.Errorf("the operation is %+v", lastOperation(c, id))
		}
		still(t, c, id)
	})
	t.Run("its time", func(t *testing.T) {
		c, id := running(t, 1)
		c.Hosts[0].Copies = &compute.Copying{Percent: 10}
		c.Must(c.Compute.Shelve(c.Ctx, id, nil))
		c.Settle()
		if op := lastOperation(c, id); op.Percent != 10 || c.Hosts[0].Guests[id].Power != compute.Off {
			t.Errorf("under way the operation is %+v", op)
		}
		c.Expire()
		c.Settle()
		still(t, c, id)
	})
	t.Run("it is cancelled", func(t *testing.T) {
		c, id := running(t, 1)
		c.Hosts[0].Copies = &compute.Copying{}
		c.Must(c.Compute.Shelve(c.Ctx, id, nil))
		c.Settle()
		_, err := c.Ops.Cancel(c.Ctx, c.Server(id).OperationID)
		c.Must(err)
		c.Settle()
		still(t, c, id)
	})
	t.Run("its image is taken away", func(t *testing.T) {
		c, id := running(t, 1)
		c.Hosts[0].Copies = &compute.Copying{}
		c.Must(c.Compute.Shelve(c.Ctx, id, nil))
		c.Settle()
		c.Must(c.Images.Delete(c.Ctx, c.Server(id).Snapshot.ImageID))
		g := c.Hosts[0].Guests[id]
		c.Report(c.Hosts[0], id, compute.Seen{Observation: c.Hosts[0].Seen[id], Wish: g.Wish, Copy: compute.Copying{Number: 1, Done: true}})
		c.Settle()
		still(t, c, id)
	})
	t.Run("its host dies", func(t *testing.T) {
		c, id := running(t, 2)
		from := c.HostOf(id)
		from.Copies = &compute.Copying{}
		c.Must(c.Compute.Shelve(c.Ctx, id, nil))
		c.Settle()
		c.Lose(from)
		c.Bury(from)
		c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
		c.Settle()
		if srv := c.Server(id); srv.Stage() != compute.Running || srv.HostID == from.ID || srv.Snapshot != nil || imageNamed(c, "vm-shelved") != nil {
			t.Errorf("evacuated it is %+v", srv)
		}
		sound(t, c)
	})
	t.Run("the way back", func(t *testing.T) {
		c, id := shelvedOn(t, 1, 0)
		c.Hosts[0].Trouble = "No."
		c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
		c.Settle()
		if op := lastOperation(c, id); op.Outcome != operation.Failed || op.Message != "No." {
			t.Errorf("the operation is %+v", op)
		}
		onTheShelf(t, c, id)
		c.Hosts[0].Trouble = ""
		c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
		if c.Settle(); c.Server(id).Stage() != compute.Running {
			t.Errorf("in the end it is %v", c.Server(id).Standing())
		}
	})
	t.Run("the time of the way back", func(t *testing.T) {
		c, id := shelvedOn(t, 1, 0)
		c.Hosts[0].Lazy = true
		c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
		c.Settle()
		c.Expire()
		onTheShelf(t, c, id)
	})
	t.Run("there is no room to come back to", func(t *testing.T) {
		c, id := shelvedOn(t, 1, 0)
		c.Must((&host.Service{State: c.State}).SetDisabled(c.Admin, c.Hosts[0].ID, true, ""))
		if err := c.Compute.Unshelve(c.Ctx, id, compute.Place{}); !fault.Is(err, fault.Exhausted) {
			t.Errorf("it answers %v", err)
		}
		onTheShelf(t, c, id)
	})
}

func still(t *testing.T, c *cloudtest.Cloud, id resource.ID) {
	t.Helper()
	srv := c.Server(id)
	if srv.Stage() != compute.Running || srv.Task != "" || srv.Power != compute.On || srv.Snapshot != nil || srv.Shelf != nil {
		t.Errorf("it is %v: %+v", srv.Standing(), srv)
	}
	if imageNamed(c, "vm-shelved") != nil {
		t.Error("an image is left")
	}
	clean(t, c, id)
}

func onTheShelf(t *testing.T, c *cloudtest.Cloud, id resource.ID) {
	t.Helper()
	if srv := c.Server(id); srv.Stage() != compute.Offloaded || srv.Task != "" || !srv.HostID.IsZero() || imageNamed(c, "vm-shelved") == nil {
		t.Errorf("it is %v on %s", srv.Standing(), srv.HostID)
	}
	sound(t, c)
}

// Who empties a host looks at shelved servers, too: before they are off, and before it is known what they are worth.
func TestAHostWithShelvedServersIsEmptied(t *testing.T) {
	empty := func(c *cloudtest.Cloud) {
		t.Helper()
		for range 3 {
			c.Clock = c.Clock.Add(11 * time.Second)
			for _, task := range c.Compute.Reconcilers() {
				if task.Name != "compute-drain" {
					continue
				}
				for _, id := range task.All(c.State.Latest()) {
					_, err := task.Step(c.Admin, id)
					c.Must(err)
				}
			}
		}
	}
	t.Run("one is not off yet", func(t *testing.T) {
		c, id := shelvedOn(t, 2, host.ShelvedForever)
		on, off := c.HostOf(id), c.Server(id).Seen
		c.Report(on, id, compute.Seen{Observation: compute.Observation{Power: compute.On}, Wish: c.Server(id).Wish - 1})
		_, err := c.Compute.Retire(c.Admin, on.ID, compute.Retirement{})
		c.Must(err)
		empty(c)
		if c.Server(id).Stage() != compute.Shelved {
			t.Fatalf("before it is off it is %v", c.Server(id).Standing())
		}
		c.Report(on, id, off)
		empty(c)
		c.Settle()
		onTheShelf(t, c, id)
	})
	t.Run("one may have run", func(t *testing.T) {
		c, id := shelvedOn(t, 2, time.Hour)
		on := c.HostOf(id)
		on.Lazy = true
		c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
		c.Settle()
		_, err := c.Ops.Cancel(c.Ctx, c.Server(id).OperationID)
		c.Must(err)
		on.Lazy = false
		c.Return(on)
		c.Settle()
		_, err = c.Compute.Retire(c.Admin, on.ID, compute.Retirement{})
		c.Must(err)
		empty(c)
		if srv := c.Server(id); srv.Stage() != compute.Shelved || srv.HostID != on.ID {
			t.Fatalf("its disks are given up for its image: %v", srv.Standing())
		}
		tidy(c)
		empty(c)
		c.Settle()
		empty(c)
		c.Settle()
		if srv := c.Server(id); srv.Stage() != compute.Stopped || srv.HostID == on.ID {
			t.Errorf("in the end it is %v on %s, with %v", srv.Standing(), srv.HostID, lastOperation(c, id))
		}
	})
}

// A server that is on its host still may have run, and written, before its way back was given up: its image is not what it comes back from.
func TestAWayBackThatIsGivenUpLosesNothingThatWasWritten(t *testing.T) {
	givenUp := func(t *testing.T, hosts int, stay time.Duration) (*cloudtest.Cloud, resource.ID) {
		c, id := shelvedOn(t, hosts, time.Hour)
		c.HostOf(id).Lazy = true
		c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
		c.Settle()
		_, err := c.Ops.Cancel(c.Ctx, c.Server(id).OperationID)
		c.Must(err)
		c.Must(keepShelved(c, stay))
		if tidy(c); c.Server(id).Stage() != compute.Shelved {
			t.Errorf("before its host has said that it is off it is %v", c.Server(id).Standing())
		}
		return c, id
	}
	t.Run("its host has it", func(t *testing.T) {
		c, id := givenUp(t, 1, 0)
		if err := c.Compute.Offload(c.Admin, id); !fault.Is(err, fault.Conflict) {
			t.Errorf("to offload it answers %v", err)
		}
		c.Hosts[0].Lazy = false
		c.Return(c.Hosts[0])
		c.Settle()
		tidy(c)
		srv := c.Server(id)
		if srv.Stage() != compute.Stopped || srv.Shelf != nil || srv.Root != nil || srv.HostID != c.Hosts[0].ID || imageNamed(c, "vm-shelved") != nil {
			t.Fatalf("it is %v: %+v", srv.Standing(), srv)
		}
		c.Must(c.Compute.Do(c.Ctx, id, compute.Starting))
		if c.Settle(); c.Server(id).Stage() != compute.Running {
			t.Errorf("started it is %v", c.Server(id).Standing())
		}
		clean(t, c, id)
	})
	t.Run("its host dies with its disks", func(t *testing.T) {
		c, id := givenUp(t, 2, 0)
		on := c.HostOf(id)
		c.Lose(on)
		_, err := (&host.Service{State: c.State}).Vouch(c.Admin, on.ID)
		c.Must(err)
		tidy(c)
		onTheShelf(t, c, id)
		c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
		if c.Settle(); c.Server(id).Stage() != compute.Running || c.Server(id).HostID == on.ID {
			t.Errorf("elsewhere it is %v", c.Server(id).Standing())
		}
	})
}

func TestAShelvedServerStaysOnItsHostForAsLongAsTheOperatorSays(t *testing.T) {
	c, id := shelvedOn(t, 1, time.Hour)
	if srv := c.Server(id); srv.Stage() != compute.Shelved || c.Hosts[0].Guests[id].Power != compute.Off || loadOf(c, c.Hosts[0]) == 0 {
		t.Fatalf("it is %v", srv.Standing())
	}
	if err := c.Compute.Unshelve(c.Admin, id, compute.Place{Host: c.Hosts[0].Name}); !fault.Is(err, fault.Conflict) {
		t.Errorf("to choose a host answers %v", err)
	}
	if err := c.Compute.Offload(c.Ctx, id); !fault.Is(err, fault.Forbidden) {
		t.Errorf("its owner may say that it goes: %v", err)
	}
	c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
	if c.Settle(); c.Server(id).Stage() != compute.Running || c.Server(id).Root != nil || imageNamed(c, "vm-shelved") != nil {
		t.Errorf("back from the shelf it is %+v", c.Server(id))
	}
	c.Must(c.Compute.Shelve(c.Ctx, id, nil))
	c.Settle()
	if tidy(c); c.Server(id).Stage() != compute.Shelved {
		t.Error("it did not stay")
	}
	c.Clock = c.Clock.Add(time.Hour)
	if tidy(c); c.Server(id).Stage() != compute.Offloaded {
		t.Error("it stays for ever")
	}
	clean(t, c, id)
}

func TestAShelvedServerOnALostHostMayRunThere(t *testing.T) {
	c, id := shelvedOn(t, 2, host.ShelvedForever)
	from := c.HostOf(id)
	from.Lazy = true
	c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
	c.Settle()
	c.Lose(from)
	c.Expire() // nobody knows whether it was started
	if err := c.Compute.Offload(c.Admin, id); !fault.Is(err, fault.Conflict) {
		t.Errorf("to offload it answers %v", err)
	}
	_, err := (&host.Service{State: c.State}).Vouch(c.Admin, from.ID)
	c.Must(err)
	c.Must(c.Compute.Offload(c.Admin, id))
	c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
	if c.Settle(); c.Server(id).Stage() != compute.Running || c.Server(id).HostID == from.ID {
		t.Errorf("it is %v", c.Server(id).Standing())
	}
	sound(t, c)
}

func TestWhereAShelvedServerComesBackTo(t *testing.T) {
	c, id := shelvedOn(t, 2, 0)
	zone, none := "elsewhere", ""
	for what, try := range map[string]struct {
		to   compute.Place
		kind fault.Kind
		ok   bool
	}{
		"a zone that is not there":  {to: compute.Place{Zone: &zone}, kind: fault.Invalid},
		"a host that is not there":  {to: compute.Place{Host: "nowhere"}, kind: fault.Invalid},
		"a host, and it may not":    {to: compute.Place{Host: c.Hosts[1].Name}, kind: fault.Forbidden},
		"no host, and no zone more": {to: compute.Place{Zone: &none}, ok: true},
	} {
		ctx := c.Admin
		if !try.ok && try.kind == fault.Forbidden {
			ctx = c.Ctx
		}
		err := c.Compute.Unshelve(ctx, id, try.to)
		if !try.ok && !fault.Is(err, try.kind) || try.ok && err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			c.Settle()
			c.Must(c.Compute.Shelve(c.Ctx, id, nil))
			c.Settle()
		}
	}
	for _, h := range c.Hosts {
		c.Must(c.Compute.Unshelve(c.Admin, id, compute.Place{Host: h.Name}))
		if c.Settle(); c.HostOf(id) != h {
			t.Errorf("it came back to %s, not to %s", c.HostOf(id).Name, h.Name)
		}
		c.Must(c.Compute.Shelve(c.Ctx, id, nil))
		c.Settle()
	}
	sound(t, c)
}

func TestADeletedServerTakesItsShelfAlong(t *testing.T) {
	for what, deleted := range map[string]func(*cloudtest.Cloud, resource.ID){
		"shelved":              func(*cloudtest.Cloud, resource.ID) {},
		"on its way back":      func(c *cloudtest.Cloud, id resource.ID) { c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{})) },
		"its image is deleted": func(c *cloudtest.Cloud, id resource.ID) { c.Must(c.Images.Delete(c.Ctx, c.Server(id).Shelf.Image.ID)) },
	} {
		t.Run(what, func(t *testing.T) {
			c, id := shelvedOn(t, 1, 0)
			deleted(c, id)
			c.Must(c.Compute.Delete(c.Ctx, id))
			c.Settle()
			if c.Server(id) != nil || imageNamed(c, "vm-shelved") != nil {
				t.Error("something is left")
			}
			clean(t, c, id)
		})
	}
}

func TestTheImageOfAShelvedServerMayBeDeleted(t *testing.T) {
	c, id := shelvedOn(t, 1, 0)
	c.Must(c.Images.Delete(c.Ctx, c.Server(id).Shelf.Image.ID))
	sound(t, c)
	c.Must(c.Compute.Unshelve(c.Ctx, id, compute.Place{}))
	c.Settle()
	if srv := c.Server(id); srv.Stage() != compute.Running || srv.Root == nil {
		t.Errorf("it is %v", srv.Standing())
	}
	if b, err := c.Images.Open(c.Ctx, c.Server(id).Root.ID); err != nil {
		t.Errorf("what its disk lies over is lost: %v", err)
	} else if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestMaintenanceTakesAShelvedServerOffItsHost(t *testing.T) {
	c, id := shelvedOn(t, 2, host.ShelvedForever)
	plan, err := c.Compute.PlanRetirement(c.Admin, c.HostOf(id).ID, compute.Retirement{})
	c.Must(err)
	if len(plan) != 1 || plan[0].Way != compute.IsOffloaded {
		t.Errorf("the plan is %+v", plan)
	}
	sound(t, c)
}

func TestAnImageOfARunningServer(t *testing.T) {
	c, id := running(t, 1)
	c.Must(c.Compute.LockServer(c.Ctx, id, ""))
	made, err := c.Compute.CreateImage(c.Ctx, id, compute.ImageWanted{Name: "copy", Properties: map[string]string{"a": "b"}})
	c.Must(err)
	if err := c.Compute.Do(c.Admin, id, compute.Stopping); !fault.Is(err, fault.Conflict) {
		t.Errorf("to stop it meanwhile answers %v", err)
	}
	c.Settle()
	img, ok := image.Table().PeekOne(c.State.Latest(), made)
	if !ok || img.State != image.Active || img.Name != "copy" || img.Properties["a"] != "b" || img.ProjectID != c.Project {
		t.Fatalf("the image is %+v", img)
	}
	if srv := c.Server(id); srv.Stage() != compute.Running || srv.Task != "" || srv.Snapshot != nil || c.Hosts[0].Guests[id].Snapshot != nil {
		t.Errorf("the server is %+v", srv)
	}
	clean(t, c, id)
	c.Hosts[0].Copies = &compute.Copying{}
	_, err = c.Compute.CreateImage(c.Ctx, id, compute.ImageWanted{Name: "second"})
	c.Must(err)
	c.Settle()
	c.Tell(c.Hosts[0], id, compute.Observation{Power: compute.Off})
	if op := lastOperation(c, id); op.Outcome != operation.Failed || !strings.Contains(op.Message, "ended") || imageNamed(c, "second") != nil {
		t.Errorf("of one that ends meanwhile the operation is %+v", op)
	}
	sound(t, c)
}

func TestAHostFillsOnlyItsOwnImages(t *testing.T) {
	c, id := running(t, 2)
	on := c.HostOf(id)
	on.Copies = &compute.Copying{}
	made, err := c.Compute.CreateImage(c.Ctx, id, compute.ImageWanted{Name: "copy"})
	c.Must(err)
	tx := c.State.Latest()
	if !compute.Makes(tx, on.ID, made) || compute.Makes(tx, other(c, id).ID, made) || compute.Makes(tx, on.ID, c.Image) {
		t.Error("a host may fill what is not its own, or not what is")
	}
}
