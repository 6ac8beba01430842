package image_test

import (
	"context"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// TestPermissions: who sees and who changes an image, by its visibility.
func TestPermissions(t *testing.T) {
	r := newRig(t, image.Config{})
	change := func(ctx context.Context, id resource.ID) error {
		_, err := r.Update(ctx, id, func(i *image.Image) error { i.Name += "x"; return nil })
		return err
	}
	for _, c := range []struct {
		visibility  image.Visibility
		seen        bool // by others
		listed, all bool // by default, and when all are asked for
	}{
		{image.Private, false, false, false},
		{image.Shared, false, false, false},
		{image.Community, true, false, true},
		{image.Public, true, true, true},
	} {
		t.Run(string(c.visibility), func(t *testing.T) {
			i := r.active(t, r.admin, string(c.visibility), func(q *image.Request) { q.ProjectID = r.project; q.Visibility = c.visibility })
			for who, ctx := range map[string]context.Context{"owner": r.owner, "reader": r.reader, "admin": r.admin} {
				if _, err := r.Get(ctx, i.ID); err != nil {
					t.Errorf("the %s does not see it: %v", who, err)
				}
			}
			_, err := r.Get(r.other, i.ID)
			_, _, dl := r.Download(r.other, i.ID)
			_, use := image.Lookup(r.other, r.State.Latest(), i.ID)
			if c.seen {
				if err != nil || dl != nil || use != nil {
					t.Errorf("others cannot see, load or use it: %v, %v, %v", err, dl, use)
				}
				wantKind(t, change(r.other, i.ID), fault.Forbidden)
				wantKind(t, r.Delete(r.other, i.ID), fault.Forbidden)
				wantKind(t, r.Deactivate(r.other, i.ID), fault.Forbidden)
			} else {
				for _, err := range []error{err, dl, use, change(r.other, i.ID), r.Delete(r.other, i.ID), r.Deactivate(r.other, i.ID)} {
					wantKind(t, err, fault.NotFound)
				}
			}
			wantKind(t, change(r.reader, i.ID), fault.Forbidden)
			for q, want := range map[image.Visibility]bool{"": c.listed, image.All: c.all, c.visibility: c.seen} {
				page, err := r.List(r.other, image.Query{Visibility: q})
				if err != nil {
					t.Fatal(err)
				}
				if got := has(page, i.ID); got != want {
					t.Errorf("listed to others with %q: %v", q, got)
				}
			}
		})
	}
	i := r.make(t, r.owner, "x")
	for to, kind := range map[image.Visibility]fault.Kind{image.Public: fault.Forbidden, "odd": fault.Invalid} {
		_, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.Visibility = to; return nil })
		wantKind(t, err, kind)
		_, err = r.Create(r.owner, image.Request{Spec: image.Spec{Visibility: to}})
		wantKind(t, err, kind)
	}
	_, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.ProjectID = r.second; return nil })
	wantKind(t, err, fault.Forbidden)
	_, err = r.Create(r.owner, image.Request{ProjectID: r.second})
	wantKind(t, err, fault.Forbidden)
	_, err = r.Create(r.reader, image.Request{})
	wantKind(t, err, fault.Forbidden)
	_, err = r.Create(r.owner, image.Request{ID: i.ID})
	wantKind(t, err, fault.Exists)
}

func TestMembers(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "x")
	listed := func(answer image.Answer) bool {
		t.Helper()
		page, err := r.List(r.other, image.Query{Answer: answer})
		if err != nil {
			t.Fatal(err)
		}
		return has(page, i.ID)
	}
	_, err := r.Share(r.other, i.ID, r.second)
	wantKind(t, err, fault.NotFound)
	m, err := r.Share(r.owner, i.ID, r.second)
	if err != nil || m.Answer != image.Pending || m.CreatedAt.IsZero() {
		t.Fatalf("shared as %+v, %v", m, err)
	}
	_, err = r.Share(r.owner, i.ID, r.second)
	wantKind(t, err, fault.Exists)
	if _, err := r.Get(r.other, i.ID); err != nil {
		t.Error(err)
	}
	if listed("") || !listed(image.Pending) || !listed(image.All) {
		t.Error("a pending offer is in the wrong lists")
	}
	_, err = r.Answer(r.owner, i.ID, r.second, image.Accepted)
	wantKind(t, err, fault.Forbidden)
	_, err = r.Answer(r.other, i.ID, r.second, "perhaps")
	wantKind(t, err, fault.Invalid)
	if m, err = r.Answer(r.other, i.ID, r.second, image.Accepted); err != nil || m.Answer != image.Accepted {
		t.Errorf("answered as %+v, %v", m, err)
	}
	if !listed("") || listed(image.Pending) {
		t.Error("an accepted offer is in the wrong lists")
	}
	third := resource.MustID("01900000-0000-7000-8000-0000000000a3")
	if _, err := r.Share(r.owner, i.ID, third); err != nil {
		t.Fatal(err)
	}
	if all, err := r.Members(r.owner, i.ID); err != nil || len(all) != 2 {
		t.Errorf("the owner sees %v, %v", all, err)
	}
	if all, err := r.Members(r.other, i.ID); err != nil || len(all) != 1 || all[0].ProjectID != r.second {
		t.Errorf("a member sees %v, %v", all, err)
	}
	_, err = r.Member(r.other, i.ID, third)
	wantKind(t, err, fault.NotFound)
	_, err = r.Answer(r.other, i.ID, third, image.Accepted)
	wantKind(t, err, fault.NotFound)
	wantKind(t, r.Unshare(r.other, i.ID, r.second), fault.Forbidden)
	if err := r.Unshare(r.owner, i.ID, r.second); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Unshare(r.owner, i.ID, r.second), fault.NotFound)
	_, err = r.Get(r.other, i.ID)
	wantKind(t, err, fault.NotFound)
	if listed("") {
		t.Error("listed although it is no longer shared")
	}
	private := r.make(t, r.owner, "private", visible(image.Private))
	_, err = r.Share(r.owner, private.ID, r.second)
	wantKind(t, err, fault.Forbidden)
}
