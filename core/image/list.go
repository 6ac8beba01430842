package image

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Query asks for a part of the images that the actor can see.
type Query struct {
	query.List
	Sort []Order // none: the newest first

	// Which of the images that the actor can see. "": its own, public ones, and shared ones whose offer it
	// answered with Answer; "all": community images as well.
	Visibility Visibility
	Answer     Answer      // "": Accepted; "all": whatever it answered
	Owner      resource.ID // zero: anybody
	Hidden     bool        // those that are hidden, and not those that are not

	// What narrows the list by an index.
	Name string
	Tags []string // all of them

	Keep func(*Image) bool // nil: all; it must not change what it is given
}

// All is the Visibility and Answer that filter nothing.
const All = "all"

// An Order sorts by one field.
type Order struct {
	Field   string // one of orders
	Reverse bool
}

var orders = map[string]func(a, b *Image) int{
	"name":       func(a, b *Image) int { return strings.Compare(a.Name, b.Name) },
	"state":      func(a, b *Image) int { return strings.Compare(string(a.State), string(b.State)) },
	"format":     func(a, b *Image) int { return strings.Compare(a.Format, b.Format) },
	"container":  func(a, b *Image) int { return strings.Compare(a.Container, b.Container) },
	"visibility": func(a, b *Image) int { return strings.Compare(string(a.Visibility), string(b.Visibility)) },
	"bytes":      func(a, b *Image) int { return cmp.Compare(a.Bytes, b.Bytes) },
	"virtual":    func(a, b *Image) int { return cmp.Compare(a.VirtualBytes, b.VirtualBytes) },
	"min-disk":   func(a, b *Image) int { return cmp.Compare(a.MinDiskGiB, b.MinDiskGiB) },
	"min-memory": func(a, b *Image) int { return cmp.Compare(a.MinMemoryMiB, b.MinMemoryMiB) },
	"created":    func(a, b *Image) int { return a.CreatedAt.Compare(b.CreatedAt) },
	"updated":    func(a, b *Image) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
	"owner":      func(a, b *Image) int { return slices.Compare(a.ProjectID[:], b.ProjectID[:]) },
	"id":         func(a, b *Image) int { return slices.Compare(a.ID[:], b.ID[:]) },
}

// A stream is a part of an index.
type stream struct {
	index  string
	prefix state.Key
}

// List gives the images that the actor can see.
func (s *Service) List(ctx context.Context, q Query) (query.Page[Image], error) {
	var page query.Page[Image]
	tx, err := s.State.View(ctx)
	if err != nil {
		return page, err
	}
	actor := identity.ActorOf(ctx)
	if err := identity.Allow(ctx, "image.list", resource.Meta{ProjectID: actor.ProjectID}); err != nil {
		return page, err
	}
	var marker *Image
	if !q.Marker.IsZero() {
		if marker, err = find(ctx, tx, q.Marker, "image.get"); err != nil {
			return page, fault.Errorf(fault.Invalid, "Marker %s could not be found.", q.Marker).WithCode("marker")
		}
	}
	keep := func(i *Image) bool { return q.keeps(i, actor) }
	streams := q.streams(actor)
	if descending, ok := q.chronological(); ok {
		page = query.Take(merge(tx, streams, marker, descending), q.Limit, keep)
	} else {
		order, err := q.order()
		if err != nil {
			return page, err
		}
		page = query.Sorted(merge(tx, streams, nil, false), q.List, (*Image).GetMeta, order, keep)
	}
	// So far they are the table's own; only those of the page are copied.
	for n, i := range page.Items {
		if page.Items[n], err = images.Get(tx, i.ID); err != nil {
			return page, err
		}
	}
	return page, nil
}

// chronological reports whether the indexes have the order that is asked for.
func (q *Query) chronological() (descending, ok bool) {
	if len(q.Sort) == 0 {
		return true, true
	}
	if len(q.Sort) > 2 || q.Sort[0].Field != "created" || len(q.Sort) == 2 && q.Sort[1] != (Order{"id", q.Sort[0].Reverse}) {
		return false, false
	}
	return q.Sort[0].Reverse, true
}

func (q *Query) order() (func(a, b *Image) int, error) {
	for _, o := range q.Sort {
		if orders[o.Field] == nil {
			return nil, fault.InvalidField("sort_key", "'%s' is not known", o.Field)
		}
	}
	all := append(slices.Clone(q.Sort), Order{"created", true}, Order{"id", true})
	return func(a, b *Image) int {
		for _, o := range all {
			c := orders[o.Field](a, b)
			if o.Reverse {
				c = -c
			}
			if c != 0 {
				return c
			}
		}
		return 0
	}, nil
}

// streams are parts of indexes that hold, together, everything that keeps may let pass.
func (q *Query) streams(actor *identity.Actor) []stream {
	switch {
	case q.Name != "":
		return []stream{{"name", state.KeyOf(q.Name)}}
	case len(q.Tags) > 0:
		return []stream{{"tag", state.KeyOf(q.Tags[0])}}
	case !q.Owner.IsZero():
		return []stream{{"owner", state.KeyOf(q.Owner)}}
	case q.Visibility == Public, q.Visibility == Community:
		return []stream{{"visibility", state.KeyOf(q.Visibility)}}
	case actor.Admin():
		return []stream{{"created", ""}}
	}
	own := stream{"owner", state.KeyOf(actor.ProjectID)}
	offered := stream{"member", state.KeyOf(actor.ProjectID)}
	public := stream{"visibility", state.KeyOf(Public)}
	switch q.Visibility {
	case Private:
		return []stream{own}
	case Shared:
		return []stream{own, offered}
	case All:
		return []stream{own, offered, public, {"visibility", state.KeyOf(Community)}}
	}
	return []stream{own, offered, public}
}

// keeps reports whether an image is in the list.
func (q *Query) keeps(i *Image, actor *identity.Actor) bool {
	return i.State != Deleting && i.Hidden == q.Hidden &&
		(q.Name == "" || i.Name == q.Name) &&
		(q.Owner.IsZero() || i.ProjectID == q.Owner) &&
		(q.Visibility == "" || q.Visibility == All || i.Visibility == q.Visibility) &&
		q.listed(i, actor) && q.tagged(i) && (q.Keep == nil || q.Keep(i))
}

// listed reports whether an image is in the actor's lists, which is less than what it can see.
func (q *Query) listed(i *Image, actor *identity.Actor) bool {
	if !actor.ProjectID.IsZero() && i.ProjectID == actor.ProjectID {
		return true
	}
	switch i.Visibility {
	case Public:
		return true
	case Community:
		return q.Visibility == Community || q.Visibility == All
	case Shared:
		if m := i.member(actor.ProjectID); m != nil {
			return q.Answer == All || m.Answer == cmp.Or(q.Answer, Accepted) || actor.Admin()
		}
	}
	return actor.Admin()
}

func (q *Query) tagged(i *Image) bool {
	for _, tag := range q.Tags {
		if _, ok := slices.BinarySearch(i.Tags, tag); !ok {
			return false
		}
	}
	return true
}

// merge gives the images of several streams in the order of their making, each once. What it
// gives is the tables' own: look, do not touch.
func merge(tx *state.Tx, streams []stream, marker *Image, descending bool) iter.Seq[*Image] {
	ranges := make([]iter.Seq[*Image], len(streams))
	for n, st := range streams {
		r := state.Range{Prefix: st.prefix, Reverse: descending}
		if marker != nil {
			r.After, r.AfterKey = marker.ID, st.prefix+state.KeyOf(marker.CreatedAt)
		}
		ranges[n] = images.Peek(tx, st.index, r)
	}
	if len(ranges) == 1 {
		return ranges[0]
	}
	return func(yield func(*Image) bool) {
		heads := make([]*Image, len(ranges))
		nexts := make([]func() (*Image, bool), len(ranges))
		for n, seq := range ranges {
			next, stop := iter.Pull(seq)
			defer stop()
			nexts[n] = next
			heads[n], _ = next()
		}
		for {
			first := earliest(heads, descending)
			if first == nil || !yield(first) {
				return
			}
			for n, head := range heads {
				if head != nil && head.ID == first.ID {
					heads[n], _ = nexts[n]()
				}
			}
		}
	}
}

func earliest(heads []*Image, descending bool) *Image {
	var first *Image
	for _, i := range heads {
		if i == nil {
			continue
		}
		if first == nil {
			first = i
			continue
		}
		c := cmp.Or(i.CreatedAt.Compare(first.CreatedAt), slices.Compare(i.ID[:], first.ID[:]))
		if c < 0 != descending && c != 0 {
			first = i
		}
	}
	return first
}
