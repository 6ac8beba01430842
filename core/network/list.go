package network

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Query asks for a part of a list.
type Query struct {
	query.List
	Sort  []Order     // none: in the order of making
	Where []Condition // all must hold
}

// An Order sorts by one field.
type Order struct {
	Field   string
	Reverse bool
}

// A Mode says how a Condition's values are meant.
type Mode int

const (
	Any      Mode = iota // the field has one of the values
	All                  // it has all of them
	NotAll               // it lacks at least one
	None                 // it has none of them
	Contains             // one of its texts contains one of the values
)

// A Condition is about one field of a noun; their names stand in each noun's file.
type Condition struct {
	Field  string
	Mode   Mode
	Values []string
}

// fields are what a noun's lists can be filtered and sorted by.
type fields[T any] map[string]field[T]

type field[T any] struct {
	text  func(*T) []string // its values as text
	order func(a, b *T) int // nil: as the texts compare
	// Exactly one or none of these two says how things with a value are found.
	by     bool                                        // in the index that facets made
	sparse bool                                        // but not the empty text, which most things have
	wide   bool                                        // but only for the whole cloud
	row    bool                                        // by the ID itself
	single bool                                        // always exactly one text, so that the index has the order of the field
	index  string                                      // in an index of its own
	key    func(value string) (key state.Key, ok bool) // of a value in that index; not ok: nothing can have it
	part   func(t *T, part string) bool                // whether a text contains a part; nil: by the texts
}

// span is a part of an index, all with the same key, so that it is in the order of IDs; or the one thing
// with an ID.
type span struct {
	index string
	key   state.Key
	id    resource.ID
}

// read gives what is in a span, after a marker.
func (n *noun[T]) read(tx *state.Tx, s span, marker resource.ID, reverse bool) iter.Seq[*T] {
	if s.index != "" {
		return n.table.Peek(tx, s.index, state.Range{Prefix: s.key, After: marker, AfterKey: s.key, Reverse: reverse})
	}
	return func(yield func(*T) bool) {
		thing, ok := n.table.PeekOne(tx, s.id)
		past := slices.Compare(s.id[:], marker[:])
		if ok && (marker.IsZero() || past > 0 && !reverse || past < 0 && reverse) {
			yield(thing)
		}
	}
}

const all = "" // the facet that every thing has

// facets is the index "by" of a table: each thing by its owner, and, for its owner and for
// the whole cloud (the zero owner), by each value of the fields marked so.
func facets[T any](fs fields[T]) state.Option[T] {
	var names []string
	for name, f := range fs {
		if f.by {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return state.MultiIndex("by", func(thing *T) []state.Key {
		owners := ownersOf(thing)
		keys := make([]state.Key, 0, len(owners)+2*len(names))
		for _, owner := range owners {
			keys = append(keys, facet(owner, all, ""))
		}
		for _, name := range names {
			for _, value := range fs[name].text(thing) {
				if value == "" && fs[name].sparse {
					continue
				}
				for _, owner := range owners {
					if !fs[name].wide {
						keys = append(keys, facet(owner, name, value))
					}
				}
				if fs[name].wide || !slices.Contains(owners, resource.ID{}) {
					keys = append(keys, facet(resource.ID{}, name, value))
				}
			}
		}
		return keys
	})
}

// ownersOf are the projects in whose lists a thing stands: its own, and others if the noun says so.
func ownersOf[T any](thing *T) []resource.ID {
	if o, ok := any(thing).(interface{ owners() []resource.ID }); ok {
		return o.owners()
	}
	return []resource.ID{meta(thing).ProjectID}
}

func facet(owner resource.ID, field, value string) state.Key {
	return state.KeyOf(owner, field, value)
}

// common are the fields that every noun has; own are the noun's.
func common[T any](own fields[T]) fields[T] {
	fs := fields[T]{
		"id":      {text: func(t *T) []string { return []string{meta(t).ID.String()} }, row: true},
		"name":    {text: func(t *T) []string { return []string{meta(t).Name} }, by: true, single: true},
		"project": {text: func(t *T) []string { return []string{meta(t).ProjectID.String()} }, index: "by", key: ownerKey},
		"created": {text: func(t *T) []string { return []string{meta(t).CreatedAt.UTC().Format("2006-01-02T15:04:05Z")} }, by: true, wide: true},
		"updated": {text: func(t *T) []string { return []string{meta(t).UpdatedAt.UTC().Format("2006-01-02T15:04:05Z")} }, by: true, wide: true},
		"revision": {text: func(t *T) []string { return []string{strconv.FormatInt(meta(t).Revision, 10)} },
			order: func(a, b *T) int { return int(meta(a).Revision - meta(b).Revision) }, by: true, wide: true},
	}
	maps.Copy(fs, own)
	return fs
}

func ownerKey(value string) (state.Key, bool) {
	id, err := resource.ParseID(value)
	return facet(id, all, ""), err == nil
}

// idKey is the key of an ID in an index over IDs alone.
func idKey(value string) (state.Key, bool) {
	id, err := resource.ParseID(value)
	return state.KeyOf(id), err == nil && !id.IsZero()
}

// List gives a page of what the actor may see. The things are shared with every other
// reader: look, do not touch.
func (c Collection[T]) List(ctx context.Context, q Query) (query.Page[T], error) {
	var none query.Page[T]
	tx, err := c.state.View(ctx)
	if err != nil {
		return none, err
	}
	a := identity.ActorOf(ctx)
	if err := identity.Allow(ctx, c.noun.name+".read", resource.Meta{ProjectID: a.ProjectID}); err != nil {
		return none, err
	}
	keep, err := c.noun.keeper(tx, a, q)
	if err != nil {
		return none, err
	}
	spans, whole := c.noun.plan(tx, a, q)
	if len(q.Sort) > 0 {
		return c.noun.sorted(tx, a, q, spans, whole, keep)
	}
	if whole {
		return query.Take(c.noun.table.Peek(tx, "", state.Range{After: q.Marker, Reverse: q.Reverse}), q.Limit, keep), nil
	}
	return c.noun.merged(tx, q, spans, keep), nil
}

// keeper is what a thing must be to stand in the list.
func (n *noun[T]) keeper(tx *state.Tx, a *identity.Actor, q Query) (func(*T) bool, error) {
	var tests []func(*T) bool
	for _, c := range q.Where {
		f, ok := n.fields[c.Field]
		if !ok {
			return nil, fmt.Errorf("network: lists of %s know no field %q", n.name, c.Field)
		}
		tests = append(tests, f.test(c))
	}
	return func(t *T) bool {
		for _, test := range tests {
			if !test(t) {
				return false
			}
		}
		return n.visible(tx, a, t)
	}, nil
}

// test is what a condition asks of one thing.
func (f field[T]) test(c Condition) func(*T) bool {
	if c.Mode == Contains && f.part != nil {
		return func(t *T) bool {
			return slices.ContainsFunc(c.Values, func(v string) bool { return f.part(t, v) })
		}
	}
	return func(t *T) bool { return c.holds(f.text(t)) }
}

func (c Condition) holds(have []string) bool {
	has := func(v string) bool { return slices.Contains(have, v) }
	switch c.Mode {
	case All:
		return !slices.ContainsFunc(c.Values, func(v string) bool { return !has(v) })
	case NotAll:
		return slices.ContainsFunc(c.Values, func(v string) bool { return !has(v) })
	case None:
		return !slices.ContainsFunc(c.Values, has)
	case Contains:
		return slices.ContainsFunc(have, func(h string) bool {
			return slices.ContainsFunc(c.Values, func(v string) bool { return strings.Contains(h, v) })
		})
	default:
		return slices.ContainsFunc(c.Values, has)
	}
}

// probe is how far a span is counted before it passes as large.
const probe = 256

// plan chooses the spans that hold all that the query wants and little else. whole: there
// are none, and the list is to be read from end to end.
func (n *noun[T]) plan(tx *state.Tx, a *identity.Actor, q Query) (spans []span, whole bool) {
	owner := n.owner(a, q)
	var best []span
	for _, c := range q.Where {
		s, ok := n.spans(c, owner)
		if !ok {
			continue
		}
		if n.small(tx, s) {
			return s, false
		}
		if best == nil {
			best = s
		}
	}
	if !a.Admin() {
		own := []span{{index: "by", key: facet(a.ProjectID, all, "")}}
		if n.others != nil {
			own = append(own, n.others(tx, a)...)
		}
		if n.small(tx, own) {
			return own, false
		}
		// Whoever owns much of everything is served faster by reading all of it in order.
		if best == nil && !n.much(tx, a.ProjectID) {
			return own, false
		}
	}
	return best, best == nil
}

// much reports whether a project owns a good part of all things of the kind.
func (n *noun[T]) much(tx *state.Tx, projectID resource.ID) bool {
	if !n.tallied {
		return false
	}
	count, _ := n.table.Sum(tx, "project", state.KeyOf(projectID))
	return count > int64(n.table.Len(tx))/8
}

// owner is the only project whose things can be in the list; zero if there may be several.
func (n *noun[T]) owner(a *identity.Actor, q Query) resource.ID {
	if !a.Admin() && (n.shown == nil || n.narrow) {
		return a.ProjectID
	}
	for _, c := range q.Where {
		if c.Field == "project" && c.Mode == Any && len(c.Values) == 1 {
			id, _ := resource.ParseID(c.Values[0])
			return id
		}
	}
	return resource.ID{}
}

// spans are where a condition's things are; not ok if no index knows.
func (n *noun[T]) spans(c Condition, owner resource.ID) ([]span, bool) {
	f := n.fields[c.Field]
	if c.Mode != Any && c.Mode != All || !f.by && !f.row && f.index == "" {
		return nil, false
	}
	values := c.Values
	if c.Mode == All {
		values = values[:min(1, len(values))]
	}
	found := []span{}
	for _, v := range values {
		if f.sparse && v == "" {
			return nil, false
		}
		switch {
		case f.wide:
			found = append(found, span{index: "by", key: facet(resource.ID{}, c.Field, v)})
		case f.by:
			found = append(found, span{index: "by", key: facet(owner, c.Field, v)})
		case f.row:
			if id, err := resource.ParseID(v); err == nil {
				found = append(found, span{id: id})
			}
		default:
			if key, ok := f.key(v); ok {
				found = append(found, span{index: f.index, key: key})
			}
		}
	}
	return found, true
}

func (n *noun[T]) small(tx *state.Tx, spans []span) bool {
	count := 0
	for _, s := range spans {
		for range n.read(tx, s, resource.ID{}, false) {
			if count++; count > probe {
				return false
			}
		}
	}
	return true
}

// merged reads spans side by side in the order of IDs, each thing once.
func (n *noun[T]) merged(tx *state.Tx, q Query, spans []span, keep func(*T) bool) query.Page[T] {
	if len(spans) == 1 {
		return query.Take(n.read(tx, spans[0], q.Marker, q.Reverse), q.Limit, keep)
	}
	var items []*T
	more := false
	for _, s := range spans {
		p := query.Take(n.read(tx, s, q.Marker, q.Reverse), q.Limit, keep)
		items, more = append(items, p.Items...), more || p.More
	}
	byID := func(a, b *T) int {
		c := slices.Compare(meta(a).ID[:], meta(b).ID[:])
		if q.Reverse {
			return -c
		}
		return c
	}
	slices.SortFunc(items, byID)
	items = slices.CompactFunc(items, func(a, b *T) bool { return meta(a).ID == meta(b).ID })
	if q.Limit > 0 && len(items) > q.Limit {
		items, more = items[:q.Limit], true
	}
	return query.Page[T]{Items: items, More: more}
}

// sorted makes a page in another order than that of IDs: along an index if one has
// the order, otherwise by sorting all that the spans hold.
func (n *noun[T]) sorted(tx *state.Tx, a *identity.Actor, q Query, spans []span, whole bool, keep func(*T) bool) (query.Page[T], error) {
	for _, o := range q.Sort {
		if _, ok := n.fields[o.Field]; !ok {
			return query.Page[T]{}, fmt.Errorf("network: lists of %s know no field %q", n.name, o.Field)
		}
	}
	if first := n.fields[q.Sort[0].Field]; first.by && first.single && len(q.Sort) == 1 {
		owner := n.owner(a, q)
		if whole || !n.small(tx, spans) {
			return query.Take(n.along(tx, q, owner), q.Limit, keep), nil
		}
	}
	order := func(a, b *T) int {
		for _, o := range q.Sort {
			c := n.fields[o.Field].compare(a, b)
			if o.Reverse {
				c = -c
			}
			if c != 0 {
				return c
			}
		}
		return 0
	}
	return query.Sorted(n.each(tx, spans, whole), q.List, func(t *T) *resource.Meta { return meta(t) }, order, keep), nil
}

// along walks the index that is in the order of the one sort field, from the marker on.
func (n *noun[T]) along(tx *state.Tx, q Query, owner resource.ID) iter.Seq[*T] {
	by := q.Sort[0]
	r := state.Range{Prefix: state.KeyOf(owner, by.Field), Reverse: by.Reverse != q.Reverse}
	if marker, ok := n.table.PeekOne(tx, q.Marker); ok {
		r.After, r.AfterKey = q.Marker, facet(owner, by.Field, n.fields[by.Field].text(marker)[0])
	}
	return n.table.Peek(tx, "by", r)
}

// each gives everything in the spans once, in no order that matters.
func (n *noun[T]) each(tx *state.Tx, spans []span, whole bool) iter.Seq[*T] {
	if whole {
		return n.table.Peek(tx, "", state.Range{})
	}
	if len(spans) == 1 {
		return n.read(tx, spans[0], resource.ID{}, false)
	}
	return func(yield func(*T) bool) {
		seen := map[resource.ID]bool{}
		for _, s := range spans {
			for t := range n.read(tx, s, resource.ID{}, false) {
				if id := meta(t).ID; !seen[id] {
					seen[id] = true
					if !yield(t) {
						return
					}
				}
			}
		}
	}
}

func (f field[T]) compare(a, b *T) int {
	if f.order != nil {
		return f.order(a, b)
	}
	return cmp.Compare(strings.Join(f.text(a), " "), strings.Join(f.text(b), " "))
}

// Small makers of fields' texts.

func oneID(id resource.ID) []string {
	if id.IsZero() {
		return []string{""}
	}
	return []string{id.String()}
}

func oneBool(b bool) []string {
	if b {
		return []string{"true"}
	}
	return []string{"false"}
}

func idTexts(ids []resource.ID) []string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return texts
}
