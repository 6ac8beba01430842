package compute

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Use is what a server has, or had, and since when until when. Those of servers that are no more are kept for a while:
// whoever asks what was used wants them too.
type Use struct {
	resource.Meta // the server's ID, project and name

	Flavor    string
	VCPUs     int
	MemoryMiB int
	DiskGiB   int // swap not counted
	From      time.Time
	Until     time.Time `json:",omitzero"` // zero: it is still there
}

// A use is kept for so long after its end: reports are about the last four weeks, or a calendar month. Of a project
// that makes and deletes servers all the time only the newest are, lest it fill the state.
const (
	usesKept      = 32 * 24 * time.Hour
	usesOfProject = 100_000
)

// uses are those that have ended.
var uses = state.NewTable("server-use",
	state.Index("project", func(u *Use) state.Key { return state.KeyOf(u.ProjectID) }),
	state.Index("project-ended", func(u *Use) state.Key { return state.KeyOf(u.ProjectID, u.Until) }),
	state.Tally("count", func(u *Use) (state.Key, state.Amounts) { return state.KeyOf(u.ProjectID), state.Amounts{} }),
	state.Index("ended", func(u *Use) state.Key { return state.KeyOf(u.Until) }),
)

var _ = identity.Rules(map[string]identity.Rule{"server-use.list": identity.Reader, "server-use.list-all": identity.Admin})

func (s *Server) use() *Use {
	return &Use{Meta: resource.Meta{ID: s.ID, ProjectID: s.ProjectID, Name: s.Name}, Flavor: s.Shape.Name, VCPUs: s.Shape.VCPUs,
		MemoryMiB: s.Shape.MemoryMiB, DiskGiB: s.Shape.RootGiB + s.Shape.EphemeralGiB, From: s.LaunchedAt}
}

// remember keeps what a server had that is taken away. One that never ran had nothing.
func remember(tx *state.Tx, s *Server) error {
	if s.LaunchedAt.IsZero() {
		return nil
	}
	u := s.use()
	u.Until = tx.Now()
	if n, _ := uses.Sum(tx, "count", state.KeyOf(u.ProjectID)); n >= usesOfProject {
		for oldest := range uses.Peek(tx, "project-ended", state.Range{Prefix: state.KeyOf(u.ProjectID)}) {
			if err := uses.Delete(tx, oldest.ID); err != nil {
				return err
			}
			break
		}
	}
	return uses.Put(tx, u)
}

// A Span asks for the uses of a project, or of all for the zero ID, of which a part lies between two times.
type Span struct {
	ProjectID   resource.ID
	From, Until time.Time
	After       resource.ID // those after this one
	Most        int         // at most so many; 0: all
}

// Uses lists uses in the order of the servers' IDs. A server that has another shape now counts as if it always had it.
func (s *Service) Uses(ctx context.Context, q Span) (found []*Use, more bool, err error) {
	action := "server-use.list"
	if q.ProjectID.IsZero() {
		action = "server-use.list-all"
	}
	if err := identity.Allow(ctx, action, resource.Meta{ProjectID: q.ProjectID}); err != nil {
		return nil, false, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, false, err
	}
	index, r := "", state.Range{After: q.After}
	if !q.ProjectID.IsZero() {
		index, r.Prefix, r.AfterKey = "project", state.KeyOf(q.ProjectID), state.KeyOf(q.ProjectID)
	}
	found = q.take(found, func(yield func(*Use) bool) {
		for srv := range servers.Peek(tx, index, r) {
			if !srv.LaunchedAt.IsZero() && !yield(srv.use()) {
				return
			}
		}
	})
	found = q.take(found, uses.Range(tx, index, r))
	slices.SortFunc(found, func(a, b *Use) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	if q.Most > 0 && len(found) > q.Most {
		return found[:q.Most], true, nil
	}
	return found, false, nil
}

// take adds the first of a sequence that are asked for: one more than go on a page, so that it is known whether there is another.
func (q *Span) take(found []*Use, all iter.Seq[*Use]) []*Use {
	n := 0
	for u := range all {
		if !u.From.Before(q.Until) || !u.Until.IsZero() && !u.Until.After(q.From) {
			continue
		}
		if n++; q.Most > 0 && n > q.Most+1 {
			break
		}
		found = append(found, u)
	}
	return found
}

// Hours is how much of the use lies between two times.
func (u *Use) Hours(from, until time.Time) float64 {
	if u.From.After(from) {
		from = u.From
	}
	if !u.Until.IsZero() && u.Until.Before(until) {
		until = u.Until
	}
	return max(0, until.Sub(from).Hours())
}

// Forget drops the uses that ended long ago, at most max of them, and says how many.
func (s *Service) Forget(ctx context.Context, max int) (int, error) {
	dropped := 0
	err := s.State.Update(ctx, func(tx *state.Tx) error {
		var old []resource.ID
		for u := range uses.Peek(tx, "ended", state.Range{}) {
			if tx.Now().Sub(u.Until) < usesKept || len(old) == max {
				break
			}
			old = append(old, u.ID)
		}
		for _, id := range old {
			if err := uses.Delete(tx, id); err != nil {
				return err
			}
		}
		dropped = len(old)
		return nil
	})
	return dropped, err
}
