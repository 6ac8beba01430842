package compute_test

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func endTask(t *testing.T, c *cloudtest.Cloud) reconcile.Task {
	t.Helper()
	for _, task := range c.Compute.Reconcilers() {
		if task.Name == "compute-end" {
			return task
		}
	}
	t.Fatal("nothing takes along what projects leave behind")
	return reconcile.Task{}
}

// What a project or a user leaves behind goes with it; another's stays.
func TestProjectTakesItsServersAlong(t *testing.T) {
	c, id := running(t, 2)
	c.Must(identity.Bootstrap(c.Admin, c.State, identity.BootstrapOptions{AdminPassword: "first-1", DemoPassword: "second-2", AltPassword: "third-3"}))
	there := identity.ProjectNamed(c.State.Latest(), "alt")
	port := network.PortsOf(c.State.Latest(), id)[0].ID
	if _, err := c.Compute.CreateGroup(c.Ctx, compute.Group{Meta: resource.Meta{Name: "g"}, Policy: "affinity"}); err != nil {
		t.Fatal(err)
	}
	theirs, err := c.Compute.CreateGroup(identity.As(t.Context(), c.Member(there)), compute.Group{Meta: resource.Meta{Name: "g"}, Policy: "affinity"})
	c.Must(err)
	c.Must(c.Compute.SetQuota(c.Admin, c.Project, resource.ID{}, map[string]int{compute.QuotaCores: 100}, false))
	if _, err := c.Compute.ImportKeyPair(c.Ctx, compute.KeyPair{Meta: resource.Meta{Name: "k"}, Type: "ssh",
		Public: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1sRbq5xvqVFZrSu7cUnJFJ1YQO8uWlgQwQ2zVrS8Yv"}); err != nil {
		t.Fatal(err)
	}

	task := endTask(t, c)
	orphans := map[resource.ID]bool{}
	for _, gone := range task.All(c.State.Latest()) {
		orphans[gone] = true
		if _, err := task.Step(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
	}
	if !orphans[c.Project] || !orphans[c.User.UserID] || orphans[there] {
		t.Fatalf("taken for gone: %v", orphans)
	}
	c.Settle()
	tx := c.State.Latest()
	if c.Server(id) != nil || network.Ports().Has(tx, port) {
		t.Error("the server or its port is left")
	}
	if n := compute.Groups().Len(tx); n != 1 || !compute.Groups().Has(tx, theirs.ID) {
		t.Errorf("%d groups are left", n)
	}
	if n := compute.KeyPairs().Len(tx) + compute.Quotas().Len(tx); n != 0 {
		t.Errorf("%d keys and quotas are left", n)
	}
	if again := task.All(tx); len(again) != 0 {
		t.Errorf("still to be taken along: %v", again)
	}
}
