package image_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
)

func TestDelete(t *testing.T) {
	inUse := true
	r := newRig(t, image.Config{InUse: func(*state.Tx, resource.ID) bool { return inUse }})
	i := r.active(t, r.owner, "x")
	_, reader, err := r.Download(r.owner, i.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.Protected = true; return nil }); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Delete(r.owner, i.ID), fault.Forbidden)
	if _, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.Protected = false; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(r.owner, i.ID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Delete(r.owner, i.ID), fault.NotFound)
	if page, err := r.List(r.owner, image.Query{}); err != nil || len(page.Items) != 0 {
		t.Errorf("still listed: %v, %v", page.Items, err)
	}
	// A host still makes a guest from it.
	if b, err := r.Open(t.Context(), i.ID); err != nil {
		t.Error(err)
	} else {
		b.Close()
	}
	inUse = false
	r.settle(t)
	_, err = r.Open(t.Context(), i.ID)
	wantKind(t, err, fault.NotFound)
	r.clean(t, 0)
	if got, err := io.ReadAll(reader); err != nil || string(got) != "content of x" {
		t.Errorf("a reader was disturbed: %q, %v", got, err)
	}
}

func TestDeactivate(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "x")
	wantKind(t, r.Deactivate(r.owner, r.make(t, r.owner, "queued").ID), fault.Forbidden)
	for range 2 {
		if err := r.Deactivate(r.owner, i.ID); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := r.Download(r.owner, i.ID)
	wantKind(t, err, fault.Forbidden)
	_, err = image.Lookup(r.owner, r.State.Latest(), i.ID)
	wantKind(t, err, fault.Invalid)
	if err := r.Reactivate(r.owner, i.ID); err != nil {
		t.Fatal(err)
	}
	if _, err = image.Lookup(r.owner, r.State.Latest(), i.ID); err != nil {
		t.Error(err)
	}
}

func TestPlan(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "x")
	queued := r.make(t, r.owner, "y")
	rev := r.State.Latest().Revision()
	for name, do := range map[string]func(ctx context.Context) error{
		"delete": func(ctx context.Context) error { return r.Delete(ctx, i.ID) },
		"upload": func(ctx context.Context) error {
			return r.Upload(ctx, queued.ID, iotest.ErrReader(errors.New("a plan reads no body")), -1)
		},
	} {
		var p state.Plan
		if err := do(state.WithPlan(r.owner, &p)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(p.Changes()) == 0 {
			t.Errorf("%s would change nothing", name)
		}
	}
	if r.State.Latest().Revision() != rev {
		t.Error("a plan changed the state")
	}
	r.clean(t, 1)
}

// TestProjectEnds deletes a project: what it had goes along, what is everybody's stays.
func TestProjectEnds(t *testing.T) {
	r := newRig(t, image.Config{})
	people := identity.New(r.State, identity.Config{})
	admin := identity.Internal(t.Context())
	p := newProject(t, people, "p", newProject(t, people, "e", resource.ID{}))
	member := as(t, p, "member", "reader")
	own := r.active(t, member, "own")
	public := r.active(t, r.admin, "public", visible(image.Public), func(q *image.Request) { q.ProjectID = p })
	stray := r.active(t, r.admin, "stray", func(q *image.Request) { q.ProjectID = user })
	shared := r.active(t, r.admin, "shared", func(q *image.Request) { q.ProjectID = r.project })
	if _, err := r.Share(r.admin, shared.ID, p); err != nil {
		t.Fatal(err)
	}
	if err := people.DeleteProject(admin, p, false, false); err != nil {
		t.Fatal(err)
	}
	task := r.Task()
	for range 2 {
		for _, id := range append(task.All(r.State.Latest()), p) {
			if _, err := task.Step(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := r.Get(r.admin, own.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("its image is still there: %v", err)
	}
	for _, i := range []*image.Image{public, stray, shared} {
		if got := r.read(t, i.ID); got.State != image.Active || len(got.Members) != 0 {
			t.Errorf("%s is %+v", i.Name, got)
		}
	}
	r.clean(t, 3)
}
