package compute_test

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
)

// What a server gives up by a smaller shape is its owner's again only when there is no way back.
func TestAnUnconfirmedShapeHoldsTheQuotaOfTheLargerOne(t *testing.T) {
	c := cloudtest.New(t, 3)
	for _, f := range []compute.Flavor{{Ref: "A", VCPUs: 4, MemoryMiB: 128, RootGiB: 1}, {Ref: "B", VCPUs: 1, MemoryMiB: 128, RootGiB: 1}} {
		f.Name = f.Ref
		if _, err := c.Compute.CreateFlavor(c.Admin, f); err != nil {
			t.Fatal(err)
		}
	}
	c.Must(c.Compute.SetQuota(c.Admin, c.Project, resource.ID{}, map[string]int{compute.QuotaCores: 20}, false))
	ids := c.Launch(compute.Launch{Flavor: "A", Min: 5, Max: 5})
	c.Settle()
	c.Must(c.Compute.Reshape(c.Ctx, ids[0], "B", nil))
	c.Settle()
	if _, err := c.Compute.Create(c.Ctx, c.Plain(compute.Launch{Flavor: "B"})); !fault.Is(err, fault.OverQuota) {
		t.Fatalf("what a revert needs was given away: %v", err)
	}
	c.Must(c.Compute.Revert(c.Ctx, ids[0]))
	c.Settle()
	c.Must(c.Compute.Reshape(c.Ctx, ids[0], "B", nil))
	c.Settle()
	c.Must(c.Compute.Confirm(c.Ctx, ids[0]))
	c.Launch(compute.Launch{Flavor: "B", Min: 3, Max: 3})
	if _, sums := compute.Servers().Sum(c.State.Latest(), "use", state.KeyOf(c.Project)); sums[0] != 20 {
		t.Errorf("%d cores are in use with a quota of 20", sums[0])
	}
}

// A flavor without a disk bounds nothing: what the image says is counted, and only operators may use it.
func TestFlavorsWithoutADisk(t *testing.T) {
	c := cloudtest.New(t, 1)
	for _, f := range []compute.Flavor{{Ref: "zero", VCPUs: 1, MemoryMiB: 128}, {Ref: "ten", VCPUs: 1, MemoryMiB: 128, RootGiB: 10}, {Ref: "huge", VCPUs: 1, MemoryMiB: 128, RootGiB: 40}} {
		f.Name = f.Ref
		if _, err := c.Compute.CreateFlavor(c.Admin, f); err != nil {
			t.Fatal(err)
		}
	}
	actor := c.Member(c.Project)
	actor.Roles = append(actor.Roles, "admin")
	operator := identity.As(t.Context(), actor)
	large := func(gib int64) resource.ID {
		t.Helper()
		var id resource.ID
		c.Must(c.State.Update(c.Admin, func(tx *state.Tx) error {
			id = tx.NewID()
			return image.Table().Put(tx, &image.Image{Meta: resource.Meta{ID: id, Name: "large"},
				Spec:  image.Spec{Format: "qcow2", Container: "bare", Visibility: image.Public},
				State: image.Active, Usable: true, Bytes: 1 << 20, VirtualBytes: gib << 30, SHA512: "00"})
		}))
		return id
	}
	if _, err := c.Compute.Create(c.Ctx, c.Plain(compute.Launch{Flavor: "zero"})); !fault.Is(err, fault.Forbidden) {
		t.Errorf("an owner uses a flavor without a disk: %v", err)
	}
	if _, err := c.Compute.Create(c.Ctx, c.Plain(compute.Launch{Flavor: "ten", ImageID: large(11)})); !fault.Is(err, fault.Invalid) {
		t.Errorf("an image of 11 GiB on a disk of 10: %v", err)
	}
	made, err := c.Compute.Create(operator, c.Plain(compute.Launch{Flavor: "zero", ImageID: large(30)}))
	if err != nil {
		t.Fatal(err)
	}
	c.Settle()
	h := c.HostOf(made.Servers[0])
	if _, sums := compute.Servers().Sum(c.State.Latest(), "load", state.KeyOf(h.ID)); sums[2] != 30 {
		t.Errorf("a disk of 30 GiB counts as %d", sums[2])
	}
	if _, err := c.Compute.Rebuild(operator, made.Servers[0], compute.Rebuild{ImageID: large(31)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("rebuilt from an image that is larger than its disk: %v", err)
	}
	if err := c.Compute.Reshape(operator, made.Servers[0], "ten", nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a disk of 30 GiB becomes one of 10: %v", err)
	}
	c.Must(c.Compute.Reshape(operator, made.Servers[0], "huge", nil))
}

// A kernel is copied for each guest, and put into its memory.
func TestAKernelFitsIntoMemory(t *testing.T) {
	g := compute.Guest{VCPUs: 1, MemoryMiB: 128, Power: compute.On, Disks: []compute.Disk{{Name: "root", SizeMiB: 1}},
		Kernel: &compute.ImageRef{Bytes: 100 << 20}, Initrd: &compute.ImageRef{Bytes: 28 << 20}}
	if trouble := g.Check(1); trouble != "" {
		t.Error(trouble)
	}
	g.Initrd.Bytes++
	if g.Check(1) == "" {
		t.Error("it is taken though it does not fit")
	}
}

// A server that is buried while its host is away leaves an order behind.
func TestAHostThatWasAwayIsToldWhatToTakeAway(t *testing.T) {
	c := cloudtest.New(t, 1)
	id := c.Launch(compute.Launch{})[0]
	c.Settle()
	h := c.HostOf(id)
	c.Must(host.Lose(c.Admin, c.State, h.ID))
	c.Must(c.Compute.ForceDelete(c.Ctx, id))
	if compute.Servers().Has(c.State.Latest(), id) {
		t.Fatal("the server is not gone")
	}
	found := 0
	for l := range host.Leftovers().Peek(c.State.Latest(), "thing", state.Range{}) {
		if l.ThingID != id || l.HostID != h.ID || l.Kind != "guest" || !l.Ordered {
			t.Errorf("left over: %+v", l)
		}
		found++
	}
	if found != 1 {
		t.Errorf("%d orders", found)
	}
}
