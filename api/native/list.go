package native

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Bounds of what one request may cost.
const (
	defaultLimit = 100
	maxLimit     = 1000
	maxLooked    = 20_000 // objects that one page looks at, when no filter's index leaves fewer
	maxSorted    = 50_000 // objects that are sorted
	maxFilters   = 32     // fields, and values of each
)

// A listing is what a list's query asks for.
type listing struct {
	limit  int
	marker resource.ID
	sort   []order
	where  []condition
	all    bool
	watch  bool
	since  int64 // of a watch; -1: from now on
}

// listingOf reads a query as somebody of a level may ask it.
func (k *kind) listingOf(query url.Values, lvl level) (listing, error) {
	l := listing{limit: defaultLimit, since: -1}
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names) // so that of two mistakes it is always the same that is told
	if len(names) > maxFilters {
		return l, fault.Errorf(fault.Invalid, "There are more than %d parameters.", maxFilters).WithCode("too-many-parameters")
	}
	for _, name := range names {
		values := query[name]
		if slices.Contains(reserved, name) {
			if len(values) > 1 {
				return l, fault.InvalidField(name, "must be given once").WithCode("invalid-value")
			}
			if err := l.set(k, name, values[0], lvl); err != nil {
				return l, err
			}
			continue
		}
		if len(values) > maxFilters {
			return l, fault.InvalidField(name, "must have at most %d values", maxFilters).WithCode("invalid-value")
		}
		c, err := k.shape.newCondition(name, values, lvl)
		if err != nil {
			return l, err
		}
		l.where = append(l.where, c)
	}
	return l, nil
}

// set reads one of the parameters that are no filters.
func (l *listing) set(k *kind, name, value string, lvl level) (err error) {
	bad := func(what string) error { return fault.InvalidField(name, "%s", what).WithCode("invalid-value") }
	switch name {
	case "limit":
		if l.limit, err = strconv.Atoi(value); err != nil || l.limit < 1 || l.limit > maxLimit {
			return bad(fmt.Sprintf("must be a number from 1 to %d", maxLimit))
		}
	case "marker":
		if l.marker, err = resource.ParseID(value); err != nil || l.marker.IsZero() {
			return bad("must be the UUID that the page before named as next")
		}
	case "sort":
		l.sort, err = k.shape.newOrders(value, lvl)
	case "watch":
		if l.watch, err = strconv.ParseBool(value); err != nil {
			return bad("must be true or false")
		}
	case "all_projects":
		if l.all, err = strconv.ParseBool(value); err != nil {
			return bad("must be true or false")
		}
	case "since":
		if l.since, err = strconv.ParseInt(value, 10, 64); err != nil || l.since < 0 {
			return bad("must be a revision")
		}
	default:
		return unknownField(name)
	}
	return err
}

// maySee asks the core whether an actor may read things of this kind at all, in the sight it asks for.
func (k *kind) maySee(r *http.Request, all bool) (sight, error) {
	a := identity.ActorOf(r.Context())
	if all && !a.Admin() {
		return sight{}, fault.Errorf(fault.Forbidden, "Only an admin may ask for all projects.").WithCode("forbidden")
	}
	err := identity.Allow(r.Context(), k.action, resource.Meta{ProjectID: a.ProjectID})
	return sightOf(a, all), err
}

// list answers a page, or a watch.
func (s *Server) list(w http.ResponseWriter, r *http.Request) error {
	k, err := s.kindOf(r)
	if err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fault.Errorf(fault.Invalid, "The query cannot be read.").WithCode("invalid-query")
	}
	l, err := k.listingOf(query, highest(identity.ActorOf(r.Context())))
	if err != nil {
		return err
	}
	sight, err := k.maySee(r, l.all)
	if err != nil {
		return err
	}
	if l.watch {
		return s.watch(w, r, []*kind{k}, sight, l)
	}
	if l.since >= 0 {
		return fault.InvalidField("since", "is for a watch").WithCode("invalid-value")
	}
	tx, err := s.State.View(r.Context())
	if err != nil {
		return err
	}
	page, err := k.page(tx, sight, l)
	if err != nil {
		return err
	}
	return s.writePage(w, r, tx, k, sight, page)
}

// A page is a part of a list.
type page struct {
	items []resource.Object
	next  resource.ID // the marker of the next page; zero: there is none
}

func (k *kind) page(tx *state.Tx, s sight, l listing) (page, error) {
	if len(l.sort) > 0 {
		return k.sorted(tx, s, l)
	}
	var p page
	looked := 0
	var last resource.ID
	for o := range k.candidates(tx, s, l.marker, l.where) {
		if len(p.items) == l.limit || looked == maxLooked {
			p.next = last
			break
		}
		looked++
		last = o.GetMeta().ID
		if k.holds(s, l.where, o) {
			p.items = append(p.items, o)
		}
	}
	return p, nil
}

// holds reports whether an object meets all conditions.
func (k *kind) holds(s sight, where []condition, o resource.Object) bool {
	if len(where) == 0 {
		return true
	}
	lvl := k.levelOf(s, o)
	for i := range where {
		if !where[i].holds(k.shape, o, lvl) {
			return false
		}
	}
	return true
}

// sorted makes a page in an order that no index has. The marker names the last object of the page before.
func (k *kind) sorted(tx *state.Tx, s sight, l listing) (page, error) {
	type placed struct {
		obj   resource.Object
		ranks []rank
	}
	place := func(o resource.Object) placed {
		p := placed{o, make([]rank, len(l.sort))}
		lvl := k.levelOf(s, o)
		for i := range l.sort {
			p.ranks[i] = l.sort[i].rank(k.shape, o, lvl)
		}
		return p
	}
	compare := func(a, b placed) int {
		for i := range l.sort {
			if c := compareRanks(a.ranks[i], b.ranks[i]); c != 0 {
				if l.sort[i].reverse {
					return -c
				}
				return c
			}
		}
		x, y := a.obj.GetMeta().ID, b.obj.GetMeta().ID
		return bytes.Compare(x[:], y[:])
	}
	var after *placed
	if !l.marker.IsZero() {
		o, ok := k.find(tx, l.marker)
		if !ok || !k.sees(tx, s, o) {
			return page{}, fault.InvalidField("marker", "names nothing that is there; begin the list again").WithCode("unknown-marker")
		}
		p := place(o)
		after = &p
	}
	var found []placed
	for o := range k.candidates(tx, s, resource.ID{}, l.where) {
		if !k.holds(s, l.where, o) {
			continue
		}
		if len(found) == maxSorted {
			return page{}, fault.InvalidField("sort", "is not possible for more than %d objects; narrow the list", maxSorted).WithCode("too-many-to-sort")
		}
		if p := place(o); after == nil || compare(p, *after) > 0 {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, compare)
	var p page
	for i := range found[:min(len(found), l.limit)] {
		p.items = append(p.items, found[i].obj)
	}
	if len(found) > l.limit {
		p.next = found[l.limit-1].obj.GetMeta().ID
	}
	return p, nil
}

func (s *Server) writePage(w http.ResponseWriter, r *http.Request, tx *state.Tx, k *kind, sight sight, p page) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"kind":%q,"revision":%d,"next":`, k.name, tx.Revision())
	if p.next.IsZero() {
		b.WriteString("null")
	} else {
		fmt.Fprintf(&b, "%q", p.next)
	}
	b.WriteString(`,"items":[`)
	for i, o := range p.items {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := k.shape.encode(&b, o, k.levelOf(sight, o)); err != nil {
			return fmt.Errorf("encode %s %s: %w", k.name, o.GetMeta().ID, err)
		}
	}
	b.WriteString("]}\n")
	s.send(w, r, http.StatusOK, tx.Revision(), b.Bytes())
	return nil
}

// send writes an answer of a revision.
func (s *Server) send(w http.ResponseWriter, r *http.Request, status int, revision int64, body []byte) {
	setRevision(w, revision)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		slog.DebugContext(r.Context(), "the client went away", "request", wire.RequestID(r.Context()), "err", err)
	}
}

func missing(k *kind, id any) error {
	return fault.Errorf(fault.NotFound, "There is no %s %v.", k.name, id).WithCode("not-found")
}

// one finds what the path names, for whoever may see it. For others it is not there.
func (s *Server) one(r *http.Request) (*state.Tx, *kind, sight, resource.Object, error) {
	k, err := s.kindOf(r)
	if err != nil {
		return nil, nil, sight{}, nil, err
	}
	a := identity.ActorOf(r.Context())
	see := sightOf(a, a.Admin())
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, nil, see, nil, missing(k, r.PathValue("id"))
	}
	tx, err := s.State.View(r.Context())
	if err != nil {
		return nil, nil, see, nil, err
	}
	o, ok := k.find(tx, id)
	if !ok || !k.sees(tx, see, o) {
		return nil, nil, see, nil, missing(k, id)
	}
	return tx, k, see, o, nil
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) error {
	tx, k, see, o, err := s.one(r)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := k.shape.encode(&b, o, k.levelOf(see, o)); err != nil {
		return fmt.Errorf("encode %s %s: %w", k.name, o.GetMeta().ID, err)
	}
	b.WriteByte('\n')
	s.send(w, r, http.StatusOK, tx.Revision(), b.Bytes())
	return nil
}
