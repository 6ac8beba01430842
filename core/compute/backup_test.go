package compute_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/operation"
)

// backUp asks for a backup, and does not wait for it.
func backUp(c *cloudtest.Cloud, id resource.ID, name, kind string, keep int) resource.ID {
	c.T.Helper()
	made, err := c.Compute.CreateBackup(c.Ctx, id, compute.BackupWanted{ImageWanted: compute.ImageWanted{Name: name}, Type: kind, Keep: keep})
	c.Must(err)
	return made
}

// imagesOf are the names of a project's images, in order.
func imagesOf(c *cloudtest.Cloud) string {
	var names []string
	for i := range image.Table().Each(c.State.Latest(), "", "") {
		if i.ProjectID == c.Project && i.State != image.Deleting {
			names = append(names, i.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestBackupsRotate(t *testing.T) {
	c, id := running(t, 1)
	other := c.Launch(compute.Launch{})[0]
	c.Settle()
	for _, b := range []struct {
		of         resource.ID
		name, kind string
		keep       int
		want       string
	}{
		{id, "d1", "daily", 2, "d1"},
		{id, "w1", "weekly", 1, "d1 w1"},
		{id, "d2", "daily", 2, "d1 d2 w1"},
		{other, "o1", "daily", 1, "d1 d2 o1 w1"},
		{id, "d3", "daily", 2, "d2 d3 o1 w1"},
		{id, "d4", "daily", 1, "d4 o1 w1"},
		{id, "w2", "weekly", 5, "d4 o1 w1 w2"},
		{id, "none", "daily", 0, "o1 w1 w2"},
		{id, "none", "", 0, "o1 w1 w2"},
	} {
		made := backUp(c, b.of, b.name, b.kind, b.keep)
		if srv := c.Server(b.of); b.keep > 0 && (srv.Task != compute.BackingUp || srv.Stage() != compute.Running) {
			t.Fatalf("under way the server is %v", srv.Standing())
		}
		c.Settle()
		if got := imagesOf(c); got != b.want {
			t.Fatalf("after %s there are %q, not %q", b.name, got, b.want)
		}
		if image.Table().Has(c.State.Latest(), made) != (b.keep > 0) {
			t.Errorf("the ID that %s answered is of no image, or is of one", b.name)
		}
		if op := lastOperation(c, b.of); op.Verb != "create-backup" || op.Outcome != operation.Succeeded {
			t.Errorf("the operation is %+v", op)
		}
	}
	sound(t, c)
}

// Until the new one is whole, and if it never is, nothing is lost.
func TestNoBackupIsLostBeforeTheNextIsWhole(t *testing.T) {
	c, id := running(t, 1)
	backUp(c, id, "old", "daily", 1)
	c.Settle()
	c.Hosts[0].Copies = &compute.Copying{Percent: 50}
	backUp(c, id, "new", "daily", 1)
	c.Settle()
	if got := imagesOf(c); got != "new old" {
		t.Fatalf("under way there are %q", got)
	}
	if _, err := c.Compute.CreateBackup(c.Ctx, id, compute.BackupWanted{Type: "daily"}); fault.From(err) == nil || fault.From(err).Code != "server-state" {
		t.Errorf("none to be kept while one is made: %v", err)
	}
	c.Hosts[0].Copies.Trouble = "No room."
	c.Report(c.Hosts[0], id, compute.Seen{Observation: c.Server(id).Seen.Observation, Wish: c.Server(id).Wish,
		Copy: compute.Copying{Number: c.Server(id).Snapshot.Number, Trouble: "No room."}})
	if got, op := imagesOf(c), lastOperation(c, id); got != "old" || op.Outcome != operation.Failed {
		t.Fatalf("after it failed there are %q, and the operation is %+v", got, op)
	}
	c.Hosts[0].Copies = nil
	backUp(c, id, "new", "daily", 1)
	c.Settle()
	if got := imagesOf(c); got != "new" {
		t.Fatalf("after it there are %q", got)
	}
	sound(t, c)
}

// Images that only say of themselves that they are backups are not, and what its owner protects stays.
func TestRotationTakesOnlyBackups(t *testing.T) {
	c, id := running(t, 1)
	says := map[string]string{"image_type": "backup", "backup_type": "daily", "instance_uuid": id.String()}
	_, err := c.Compute.CreateImage(c.Ctx, id, compute.ImageWanted{Name: "says", Properties: says})
	c.Must(err)
	c.Settle()
	kept := backUp(c, id, "kept", "daily", 1)
	c.Settle()
	_, err = c.Images.Update(c.Ctx, kept, func(i *image.Image) error { i.Protected = true; return nil })
	c.Must(err)
	given := backUp(c, id, "given", "daily", 5)
	c.Settle()
	_, err = c.Images.Update(c.Admin, given, func(i *image.Image) error { i.ProjectID = c.Other; return nil })
	c.Must(err)
	backUp(c, id, "last", "daily", 1)
	c.Settle()
	if got := imagesOf(c); got != "kept last says" {
		t.Fatalf("there are %q", got)
	}
	if _, err := c.Images.Get(c.OtherCtx, given); err != nil {
		t.Errorf("what was given away went: %v", err)
	}
	sound(t, c)
}

// A guest may end in the moment in which its copy is whole: then the copy is good, and the wish follows the guest.
func TestGuestThatEndsAsItsCopyIsWhole(t *testing.T) {
	c, id := running(t, 1)
	c.Hosts[0].Copies = &compute.Copying{Percent: 50}
	made := backUp(c, id, "one", "daily", 1)
	c.Settle()
	disk := make([]byte, 512)
	c.Must(c.Images.Fill(c.Admin, made, bytes.NewReader(disk), int64(len(disk))))
	off := compute.Seen{Observation: compute.Observation{Power: compute.Off}, Wish: c.Server(id).Wish}
	off.Copy = compute.Copying{Number: c.Server(id).Snapshot.Number, Done: true}
	c.Report(c.Hosts[0], id, off)
	if srv, op := c.Server(id), lastOperation(c, id); srv.Power != compute.Off || srv.Standing() != (compute.Standing{Stage: compute.Stopped}) || op.Outcome != operation.Succeeded {
		t.Fatalf("it is %v and to be %s after %+v", srv.Standing(), srv.Power, op)
	}
}

func TestBackupsThatAreRefused(t *testing.T) {
	c, id := running(t, 1)
	backUp(c, id, "one", "daily", 1)
	c.Settle()
	before := c.State.Latest().Revision()
	for name, r := range map[string]struct {
		ctx  func() (resource.ID, error)
		kind fault.Kind
	}{
		"a stranger's": {func() (resource.ID, error) {
			return c.Compute.CreateBackup(c.OtherCtx, id, compute.BackupWanted{Type: "daily"})
		}, fault.NotFound},
		"less than none": {func() (resource.ID, error) {
			return c.Compute.CreateBackup(c.Ctx, id, compute.BackupWanted{Type: "daily", Keep: -1})
		}, fault.Invalid},
		"a long type": {func() (resource.ID, error) {
			return c.Compute.CreateBackup(c.Ctx, id, compute.BackupWanted{Type: strings.Repeat("x", 256), Keep: 1})
		}, fault.Invalid},
		"too much metadata": {func() (resource.ID, error) {
			return c.Compute.CreateBackup(c.Ctx, id, compute.BackupWanted{ImageWanted: compute.ImageWanted{Counted: 129}, Type: "daily"})
		}, fault.OverQuota},
	} {
		if _, err := r.ctx(); !fault.Is(err, r.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c.State.Latest().Revision() != before {
		t.Error("something was written")
	}
}
