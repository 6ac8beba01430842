package image_test

import (
	"context"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A rig is a service on an empty state, and who may ask it.
type rig struct {
	*image.Service
	engine state.Engine
	blobs  image.Blobs

	project, second             resource.ID // two projects of the cloud
	owner, other, reader, admin context.Context
}

var user = resource.MustID("01900000-0000-7000-8000-0000000000b1")

func as(t *testing.T, project resource.ID, roles ...string) context.Context {
	return identity.As(t.Context(), &identity.Actor{UserID: user, ProjectID: project, Roles: roles})
}

func newRig(t *testing.T, c image.Config) *rig {
	t.Helper()
	r := &rig{engine: state.NewMemory(0), blobs: new(imagetest.Memory)}
	r.restart(t, c)
	people := identity.New(r.State, identity.Config{})
	domain := newProject(t, people, "d", resource.ID{})
	r.project, r.second = newProject(t, people, "one", domain), newProject(t, people, "two", domain)
	r.owner, r.other = as(t, r.project, "member", "reader"), as(t, r.second, "member", "reader")
	r.reader, r.admin = as(t, r.project, "reader"), as(t, r.second, "admin", "manager", "member", "reader")
	return r
}

// restart is a new process on the same state and blobs.
func (r *rig) restart(t *testing.T, c image.Config) {
	t.Helper()
	s, err := state.Open(t.Context(), r.engine, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Service = image.New(s, r.blobs, c)
}

// settle runs the service's reconciling until there is nothing to do at once.
func (r *rig) settle(t *testing.T) {
	t.Helper()
	task := r.Task()
	for _, id := range task.All(r.State.Latest()) {
		if _, err := task.Step(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *rig) make(t *testing.T, ctx context.Context, name string, edits ...func(*image.Request)) *image.Image {
	t.Helper()
	q := image.Request{Name: name, Spec: image.Spec{Format: "raw", Container: "bare"}}
	for _, e := range edits {
		e(&q)
	}
	i, err := r.Create(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (r *rig) active(t *testing.T, ctx context.Context, name string, edits ...func(*image.Request)) *image.Image {
	t.Helper()
	i := r.make(t, ctx, name, edits...)
	if err := r.Upload(ctx, i.ID, strings.NewReader("content of "+name), -1); err != nil {
		t.Fatal(err)
	}
	return r.read(t, i.ID)
}

func visible(v image.Visibility) func(*image.Request) {
	return func(q *image.Request) { q.Visibility = v }
}

// read gives an image as the cloud itself sees it.
func (r *rig) read(t *testing.T, id resource.ID) *image.Image {
	t.Helper()
	i, err := r.Get(identity.Internal(t.Context()), id)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// clean fails the test if anything is where it should not be.
func (r *rig) clean(t *testing.T, blobs int) {
	t.Helper()
	found, err := r.Audit(t.Context())
	if err != nil || len(found) > 0 {
		t.Errorf("the audit finds %v, %v", found, err)
	}
	present, err := r.blobs.Present(t.Context())
	if err != nil || len(present) != blobs {
		t.Errorf("%d blobs, %v; want %d", len(present), err, blobs)
	}
	for o := range operation.Table().All(r.State.Latest()) {
		if o.Outcome == operation.Running {
			t.Errorf("operation %s on %s still runs", o.Verb, o.TargetID)
		}
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) || err == nil {
		t.Errorf("got %v, want a fault of kind %d", err, kind)
	}
}

// newProject makes a project, or a domain when it is in none.
func newProject(t *testing.T, people *identity.Service, name string, domain resource.ID) resource.ID {
	t.Helper()
	p, err := people.CreateProject(identity.Internal(t.Context()), &identity.Project{Meta: resource.Meta{Name: name}, DomainID: domain, Enabled: true})
	if err != nil {
		t.Fatal(err)
	}
	return p.ID
}
