package compute

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Query says which servers are wanted. Zero fields keep all.
type Query struct {
	query.List
	AllProjects bool        // an operator looks at all of them
	ProjectID   resource.ID // or at this one; otherwise the actor's

	Standings    []Standing // any of these; nil: all
	ImageID      resource.ID
	FlavorID     resource.ID
	HostID       resource.ID
	Reservation  string
	Name         string // exactly
	NamePrefix   string
	KeyName      string
	AnyTag       []string      // one of these
	IDs          []resource.ID // one of these; nil: all
	Locked       bool          // only those that are
	Unplaced     bool          // only those that are on no host
	ChangedSince time.Time
	Past         bool                   // the marker only says from where on; its server may be gone
	Keep         func(*Server) bool     // what else is asked
	Order        func(a, b *Server) int // nil: the newest first, or the oldest if Reverse
}

// A View is servers as they were at one moment, with the view to look up what belongs to
// them. What it holds is shared: look, do not touch.
type View struct {
	Tx      *state.Tx
	Servers []*Server
	More    bool
}

// Get shows one server.
func (s *Service) Get(ctx context.Context, id resource.ID) (*state.Tx, *Server, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	srv, err := serverFor(ctx, tx, "server.get", id)
	return tx, srv, err
}

// List shows servers. Its cost is that of the page, and of those that an index could not leave out.
func (s *Service) List(ctx context.Context, q Query) (View, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return View{}, err
	}
	actor := identity.ActorOf(ctx)
	project := actor.ProjectID
	if !q.ProjectID.IsZero() {
		project = q.ProjectID
	}
	if q.AllProjects {
		if err := identity.Allow(ctx, "server.list-all", resource.Meta{}); err != nil {
			return View{}, err
		}
		project = q.ProjectID
	} else if err := identity.Allow(ctx, "server.list", resource.Meta{ProjectID: project}); err != nil {
		return View{}, err
	}
	if !q.Marker.IsZero() && !q.Past {
		if m, ok := servers.PeekOne(tx, q.Marker); !ok || !project.IsZero() && m.ProjectID != project {
			return View{}, fault.Errorf(fault.Invalid, "marker [%s] not found", q.Marker).WithCode("marker")
		}
	}
	keep := q.keeper(project)
	var page query.Page[Server]
	if q.Order != nil {
		all := q
		all.Marker, all.Reverse = resource.ID{}, true
		page = query.Sorted(all.scan(tx, project), q.List, func(s *Server) *resource.Meta { return &s.Meta }, q.Order, keep)
	} else {
		page = query.Take(q.scan(tx, project), q.Limit, keep)
	}
	return View{tx, page.Items, page.More}, nil
}

// keeper is what is asked of each server that the scan gives.
func (q *Query) keeper(project resource.ID) func(*Server) bool {
	standings := map[Standing]bool{}
	for _, st := range q.Standings {
		standings[st] = true
	}
	return func(s *Server) bool {
		return (project.IsZero() || s.ProjectID == project) &&
			(q.Standings == nil || standings[s.Standing()]) &&
			(q.ImageID.IsZero() || s.Boot.ImageID() == q.ImageID) &&
			(q.FlavorID.IsZero() || s.Shape.FlavorID == q.FlavorID) &&
			(q.HostID.IsZero() || s.HostID == q.HostID) &&
			(q.Reservation == "" || s.ReservationID == q.Reservation) &&
			(q.Name == "" || s.Name == q.Name) &&
			strings.HasPrefix(s.Name, q.NamePrefix) &&
			(q.KeyName == "" || s.Key != nil && s.Key.Name == q.KeyName) &&
			(q.AnyTag == nil || slices.ContainsFunc(q.AnyTag, func(tag string) bool { return slices.Contains(s.Tags, tag) })) &&
			(!q.Locked || s.Locked()) &&
			(!q.Unplaced || s.HostID.IsZero()) &&
			!s.UpdatedAt.Before(q.ChangedSince) &&
			(q.Keep == nil || q.Keep(s))
	}
}

// scan gives the servers of the narrowest index that serves the query, by ID from the marker on, downwards
// unless Reverse.
func (q *Query) scan(tx *state.Tx, project resource.ID) iter.Seq[*Server] {
	down := !q.Reverse
	at := func(index string, parts ...any) iter.Seq[*Server] {
		key := state.KeyOf(parts...)
		return servers.Peek(tx, index, state.Range{Prefix: key, After: q.Marker, AfterKey: key, Reverse: down})
	}
	several := func(index string, keys ...[]any) iter.Seq[*Server] {
		var all []iter.Seq[*Server]
		for _, key := range keys {
			all = append(all, at(index, key...))
		}
		return merge(all, down)
	}
	switch {
	case q.IDs != nil:
		return q.among(tx)
	case q.Reservation != "":
		return at("reservation", q.Reservation)
	case q.KeyName != "":
		return at("key", project, q.KeyName)
	case q.Locked:
		return at("locked", project)
	case q.Unplaced:
		return at("unplaced", project)
	case q.AnyTag != nil:
		var keys [][]any
		for _, tag := range q.AnyTag {
			keys = append(keys, []any{project, tag})
		}
		return several("tag", keys...)
	case q.Name != "":
		return at("name", project, q.Name)
	case !q.HostID.IsZero():
		return at("host", q.HostID)
	case q.Standings != nil:
		var keys [][]any
		for _, st := range q.Standings {
			keys = append(keys, []any{project, string(st.Stage), string(st.Task)})
		}
		return several("standing", keys...)
	case !q.ImageID.IsZero():
		return at("image", project, q.ImageID)
	case !q.FlavorID.IsZero():
		return at("flavor", project, q.FlavorID)
	}
	if q.NamePrefix != "" {
		// A Key of a text goes on after its last letter; without the end it is a prefix of all that begin so.
		prefix := state.KeyOf(project) + state.Key(q.NamePrefix)
		if few, ok := q.few(servers.Peek(tx, "name", state.Range{Prefix: prefix})); ok {
			return few
		}
	}
	if !q.ChangedSince.IsZero() {
		r := state.Range{Prefix: state.KeyOf(project), After: firstID, AfterKey: state.KeyOf(project, q.ChangedSince)}
		if few, ok := q.few(servers.Peek(tx, "updated", r)); ok {
			return few
		}
	}
	// Most of the table, in its own order, is read faster than a large part of it by an index.
	const most = 4
	held, _ := servers.Sum(tx, "use", state.KeyOf(project))
	if project.IsZero() || held > int64(servers.Len(tx)/most) {
		return servers.Peek(tx, "", state.Range{After: q.Marker, Reverse: down})
	}
	return at("project", project)
}

// firstID comes before every other ID.
var firstID = resource.ID{15: 1}

// few gives the servers of a sequence in the order of the query, unless there are so many that to look through
// all, in that order already, finds a page of them sooner.
func (q *Query) few(seq iter.Seq[*Server]) (iter.Seq[*Server], bool) {
	const most = 2000
	var found []*Server
	for s := range seq {
		if len(found) == most {
			return nil, false
		}
		found = append(found, s)
	}
	return q.sorted(found), true
}

// sorted puts servers into the order of IDs that the query wants, from its marker on.
func (q *Query) sorted(found []*Server) iter.Seq[*Server] {
	compare := func(a, b resource.ID) int {
		if q.Reverse {
			return bytes.Compare(a[:], b[:])
		}
		return bytes.Compare(b[:], a[:])
	}
	slices.SortFunc(found, func(a, b *Server) int { return compare(a.ID, b.ID) })
	return func(yield func(*Server) bool) {
		for _, s := range found {
			if !q.Marker.IsZero() && compare(s.ID, q.Marker) <= 0 {
				continue
			}
			if !yield(s) {
				return
			}
		}
	}
}

// among gives the servers that the query names one by one.
func (q *Query) among(tx *state.Tx) iter.Seq[*Server] {
	var found []*Server
	seen := map[resource.ID]bool{}
	for _, id := range q.IDs {
		if s, ok := servers.PeekOne(tx, id); ok && !seen[id] {
			seen[id] = true
			found = append(found, s)
		}
	}
	return q.sorted(found)
}

// merge gives the servers of several sequences that are each in the order of IDs in that order.
func merge(all []iter.Seq[*Server], down bool) iter.Seq[*Server] {
	switch len(all) {
	case 0:
		return func(func(*Server) bool) {}
	case 1:
		return all[0]
	}
	return func(yield func(*Server) bool) {
		type head struct {
			next func() (*Server, bool)
			at   *Server
		}
		var heads []head
		for _, seq := range all {
			next, stop := iter.Pull(seq)
			defer stop()
			if first, ok := next(); ok {
				heads = append(heads, head{next, first})
			}
		}
		for len(heads) > 0 {
			best := 0
			for i := range heads {
				if c := bytes.Compare(heads[i].at.ID[:], heads[best].at.ID[:]); down && c > 0 || !down && c < 0 {
					best = i
				}
			}
			if !yield(heads[best].at) {
				return
			}
			following, ok := heads[best].next()
			if ok {
				heads[best].at = following
			} else {
				heads = append(heads[:best], heads[best+1:]...)
			}
		}
	}
}

// Operations are what was done to a server, the newest first; also to one that is gone.
func (s *Service) Operations(ctx context.Context, id resource.ID) ([]*operation.Operation, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if servers.Has(tx, id) {
		if _, err := serverFor(ctx, tx, "server.get", id); err != nil {
			return nil, err
		}
		return operation.Of(tx, id), nil
	}
	all := operation.Of(tx, id)
	if len(all) == 0 || all[0].TargetKind != servers.Kind() {
		return nil, missingServer(id)
	}
	gone := resource.Meta{ID: id, ProjectID: all[0].ProjectID}
	if err := identity.Allow(ctx, "server.get", gone); err != nil {
		return nil, missingServer(id)
	}
	return all, nil
}
