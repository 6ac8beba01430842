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

	Standings   []Standing // any of these; nil: all
	ImageID     resource.ID
	FlavorID    resource.ID
	HostID      resource.ID
	Reservation string
	Name        string // exactly
	// Patterns that texts of it match.
	NameIs, HostnameIs, DescriptionIs func(string) bool
	KeyName                           string
	AnyTag                            []string      // one of these
	IDs                               []resource.ID // one of these; nil: all
	Locked                            bool          // only those that are
	Unplaced                          bool          // only those that are on no host
	ChangedSince                      time.Time
	Past                              bool                   // the marker only says from where on; its server may be gone
	Keep                              func(*Server) bool     // what else is asked
	Order                             func(a, b *Server) int // nil: the newest first, or the oldest if Reverse
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

// keeper is what is asked of each server that the scan gives. It looks only at what the query names: of many
// servers each field is in memory that no processor has at hand.
func (q *Query) keeper(project resource.ID) func(*Server) bool {
	var asked []func(*Server) bool
	ask := func(named bool, fn func(*Server) bool) {
		if named {
			asked = append(asked, fn)
		}
	}
	ask(!project.IsZero(), func(s *Server) bool { return s.ProjectID == project })
	ask(q.Name != "", func(s *Server) bool { return s.Name == q.Name })
	ask(q.NameIs != nil, func(s *Server) bool { return q.NameIs(s.Name) })
	ask(q.HostnameIs != nil, func(s *Server) bool { return q.HostnameIs(s.Hostname) })
	ask(q.DescriptionIs != nil, func(s *Server) bool { return q.DescriptionIs(s.Description) })
	ask(q.Standings != nil, func(s *Server) bool { return slices.Contains(q.Standings, s.Standing()) })
	ask(!q.ImageID.IsZero(), func(s *Server) bool { return s.Boot.ImageID() == q.ImageID })
	ask(!q.FlavorID.IsZero(), func(s *Server) bool { return s.Shape.FlavorID == q.FlavorID })
	ask(!q.HostID.IsZero(), func(s *Server) bool { return s.HostID == q.HostID })
	ask(q.Reservation != "", func(s *Server) bool { return s.ReservationID == q.Reservation })
	ask(q.KeyName != "", func(s *Server) bool { return s.Key != nil && s.Key.Name == q.KeyName })
	ask(q.AnyTag != nil, func(s *Server) bool {
		return slices.ContainsFunc(q.AnyTag, func(tag string) bool { return slices.Contains(s.Tags, tag) })
	})
	ask(q.Locked, (*Server).Locked)
	ask(q.Unplaced, func(s *Server) bool { return s.HostID.IsZero() })
	ask(!q.ChangedSince.IsZero(), func(s *Server) bool { return !s.UpdatedAt.Before(q.ChangedSince) })
	ask(q.Keep != nil, q.Keep)
	return func(s *Server) bool {
		for _, fn := range asked {
			if !fn(s) {
				return false
			}
		}
		return true
	}
}

// scan gives the servers of the narrowest index that serves the query, by ID from the marker on, downwards
// unless Reverse.
func (q *Query) scan(tx *state.Tx, project resource.ID) iter.Seq[*Server] {
	narrow := q.narrow(tx, project)
	switch {
	case narrow != nil && !q.worded():
		return narrow
	case narrow != nil:
		if few, ok := q.few(narrow); ok {
			return few
		}
	}
	if q.worded() {
		return q.byWords(tx)
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
		return servers.Peek(tx, "", state.Range{After: q.Marker, Reverse: !q.Reverse})
	}
	return q.at(tx, "project", project)
}

func (q *Query) worded() bool {
	return q.NameIs != nil || q.HostnameIs != nil || q.DescriptionIs != nil
}

// wordsOf are what servers are searched for by.
func wordsOf(s *Server) string { return s.Name + "\x00" + s.Hostname + "\x00" + s.Description }

// byWords gives the servers whose texts are asked for, in scan's order. It looks at no others.
func (q *Query) byWords(tx *state.Tx) iter.Seq[*Server] {
	is := func(asked func(string) bool, text string) bool { return asked == nil || asked(text) }
	return func(yield func(*Server) bool) {
		for id, words := range servers.Texts(tx, "words", q.Marker, !q.Reverse) {
			name, rest, _ := strings.Cut(words, "\x00")
			hostname, description, _ := strings.Cut(rest, "\x00")
			if !is(q.NameIs, name) || !is(q.HostnameIs, hostname) || !is(q.DescriptionIs, description) {
				continue
			}
			if s, ok := servers.PeekOne(tx, id); ok && !yield(s) {
				return
			}
		}
	}
}

// narrow gives the servers that an index has for what is asked, in scan's order; nil if none does.
func (q *Query) narrow(tx *state.Tx, project resource.ID) iter.Seq[*Server] {
	several := func(index string, keys ...[]any) iter.Seq[*Server] {
		var all []iter.Seq[*Server]
		for _, key := range keys {
			all = append(all, q.at(tx, index, key...))
		}
		return merge(all, !q.Reverse)
	}
	switch {
	case q.IDs != nil:
		return q.among(tx)
	case q.Reservation != "":
		return q.at(tx, "reservation", q.Reservation)
	case q.KeyName != "":
		return q.at(tx, "key", project, q.KeyName)
	case q.Locked:
		return q.at(tx, "locked", project)
	case q.Unplaced:
		return q.at(tx, "unplaced", project)
	case q.AnyTag != nil:
		var keys [][]any
		for _, tag := range q.AnyTag {
			keys = append(keys, []any{project, tag})
		}
		return several("tag", keys...)
	case q.Name != "":
		return q.at(tx, "name", project, q.Name)
	case !q.HostID.IsZero():
		return q.at(tx, "host", q.HostID)
	case q.Standings != nil:
		var keys [][]any
		for _, st := range q.Standings {
			keys = append(keys, []any{project, string(st.Stage), string(st.Task)})
		}
		return several("standing", keys...)
	case !q.ImageID.IsZero():
		return q.at(tx, "image", project, q.ImageID)
	case !q.FlavorID.IsZero():
		return q.at(tx, "flavor", project, q.FlavorID)
	}
	return nil
}

// at gives the servers with one key of an index, in scan's order.
func (q *Query) at(tx *state.Tx, index string, parts ...any) iter.Seq[*Server] {
	key := state.KeyOf(parts...)
	return servers.Peek(tx, index, state.Range{Prefix: key, After: q.Marker, AfterKey: key, Reverse: !q.Reverse})
}

// firstID comes before every other ID.
var firstID = resource.ID{15: 1}

// compare is the order of IDs that the query wants.
func (q *Query) compare(a, b resource.ID) int {
	if q.Reverse {
		return bytes.Compare(a[:], b[:])
	}
	return bytes.Compare(b[:], a[:])
}

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
	slices.SortFunc(found, func(a, b *Server) int { return q.compare(a.ID, b.ID) })
	return func(yield func(*Server) bool) {
		for _, s := range found {
			if !q.Marker.IsZero() && q.compare(s.ID, q.Marker) <= 0 {
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
