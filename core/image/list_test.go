package image_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
)

func has(p query.Page[image.Image], id resource.ID) bool {
	for _, i := range p.Items {
		if i.ID == id {
			return true
		}
	}
	return false
}

// TestListPages walks a list of three merged streams page by page, in both directions and by another order.
func TestListPages(t *testing.T) {
	r := newRig(t, image.Config{})
	var want []resource.ID // oldest first
	for n := range 30 {
		var i *image.Image
		switch n % 4 {
		case 0:
			i = r.make(t, r.other, fmt.Sprint("own", n))
		case 1:
			i = r.make(t, r.admin, fmt.Sprint("public", n), visible(image.Public), func(q *image.Request) { q.ProjectID = r.project })
		case 2:
			i = r.make(t, r.owner, fmt.Sprint("shared", n))
			if _, err := r.Share(r.owner, i.ID, r.second); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Answer(r.other, i.ID, r.second, image.Accepted); err != nil {
				t.Fatal(err)
			}
		case 3:
			r.make(t, r.owner, fmt.Sprint("foreign", n), visible(image.Private))
			continue
		}
		want = append(want, i.ID)
	}
	walk := func(q image.Query) []resource.ID {
		t.Helper()
		var got []resource.ID
		q.Limit = 4
		for {
			page, err := r.List(r.other, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range page.Items {
				got = append(got, i.ID)
			}
			if !page.More {
				return got
			}
			if len(page.Items) != 4 {
				t.Fatalf("a page of %d with more to come", len(page.Items))
			}
			q.Marker = page.Items[3].ID
		}
	}
	reversed := slices.Clone(want)
	slices.Reverse(reversed)
	byID := slices.Clone(want) // made within one millisecond, they are in an order of their own
	slices.SortFunc(byID, func(a, b resource.ID) int { return slices.Compare(a[:], b[:]) })
	fromEnd := slices.Clone(byID)
	slices.Reverse(fromEnd)
	for name, c := range map[string]struct {
		sort []image.Order
		want []resource.ID
	}{
		"newest first":       {nil, reversed},
		"oldest first":       {[]image.Order{{Field: "created"}}, want},
		"by a field alike":   {[]image.Order{{Field: "bytes"}}, reversed},
		"by id":              {[]image.Order{{Field: "id"}}, byID},
		"by id, highest":     {[]image.Order{{Field: "id", Reverse: true}}, fromEnd},
		"by two, the newest": {[]image.Order{{Field: "format"}, {Field: "created", Reverse: true}}, reversed},
	} {
		if got := walk(image.Query{Sort: c.sort}); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got %d\n%v\nwant %d\n%v", name, len(got), got, len(c.want), c.want)
		}
	}
	_, err := r.List(r.other, image.Query{List: query.List{Marker: user}})
	wantKind(t, err, fault.Invalid)
	_, err = r.List(r.other, image.Query{Sort: []image.Order{{Field: "odd"}}})
	wantKind(t, err, fault.Invalid)
}

func TestLookup(t *testing.T) {
	r := newRig(t, image.Config{})
	usable := r.active(t, r.owner, "usable")
	i, err := image.Lookup(r.owner, r.State.Latest(), usable.ID)
	if err != nil || i.Opened() != "raw" {
		t.Errorf("got %+v, %v", i, err)
	}
	for name, edit := range map[string]func(*image.Request){
		"a placeholder": func(q *image.Request) { q.Format = "qcow2" },
		"a container":   func(q *image.Request) { q.Container = "ova" },
		"a format":      func(q *image.Request) { q.Format = "vmdk" },
	} {
		i := r.active(t, r.owner, name, edit)
		_, err := image.Lookup(r.owner, r.State.Latest(), i.ID)
		wantKind(t, err, fault.Invalid)
	}
}

func BenchmarkList(b *testing.B) {
	s, err := state.Open(b.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	svc := image.New(s, new(imagetest.Memory), image.Config{})
	ctx := identity.As(b.Context(), &identity.Actor{UserID: user, ProjectID: user, Roles: []string{"member", "reader"}})
	for n := range 100_000 {
		if _, err := svc.Create(ctx, image.Request{Name: fmt.Sprint("image", n), Spec: image.Spec{Format: "raw", Container: "bare"}}); err != nil {
			b.Fatal(err)
		}
	}
	for name, q := range map[string]image.Query{
		"first page":   {List: query.List{Limit: 100}},
		"by name":      {List: query.List{Limit: 100}, Name: "image777"},
		"sort by name": {List: query.List{Limit: 100}, Sort: []image.Order{{Field: "name"}}},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if page, err := svc.List(ctx, q); err != nil || len(page.Items) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}
