package compute

import (
	"context"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// endAtOnce is how many things of a project or user that is no more one transaction takes away.
const endAtOnce = 200

// endTask takes along what projects and users leave behind: servers, groups, quotas and keys. Its
// steps are for projects and for users.
func (s *Service) endTask() reconcile.Task {
	return reconcile.Task{
		Name: "compute-end",
		All:  orphaned,
		Touched: func(e state.Event) []resource.ID {
			if e.After != nil {
				return nil
			}
			switch e.Before.(type) {
			case *identity.Project, *identity.User:
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			ctx = identity.Internal(ctx)
			for {
				n := 0
				err := s.State.Update(ctx, func(tx *state.Tx) (err error) {
					n, err = s.end(ctx, tx, id)
					return err
				})
				if err != nil || n < endAtOnce {
					return reconcile.Next{}, err
				}
			}
		},
	}
}

// orphaned lists the projects and users that have things here and are no more.
func orphaned(tx *state.Tx) []resource.ID {
	seen := map[resource.ID]bool{}
	var gone []resource.ID
	look := func(id resource.ID, there bool) {
		if !seen[id] && !there {
			gone = append(gone, id)
		}
		seen[id] = true
	}
	project := func(id resource.ID) { look(id, identity.HasProject(tx, id)) }
	for srv := range servers.Peek(tx, "", state.Range{}) {
		if !seen[srv.ProjectID] {
			project(srv.ProjectID)
		}
	}
	for g := range groups.Peek(tx, "", state.Range{}) {
		project(g.ProjectID)
	}
	for q := range quotas.Peek(tx, "", state.Range{}) {
		if !q.ProjectID.IsZero() { // the defaults are nobody's
			project(q.ProjectID)
		}
	}
	for k := range keypairs.Peek(tx, "", state.Range{}) {
		look(k.UserID, identity.HasUser(tx, k.UserID))
	}
	return gone
}

// end takes away up to endAtOnce things of a project or a user that is no more, and says how many.
func (s *Service) end(ctx context.Context, tx *state.Tx, id resource.ID) (int, error) {
	if identity.HasProject(tx, id) || identity.HasUser(tx, id) {
		return 0, nil
	}
	var left []*Server
	for srv := range servers.Each(tx, "project", state.KeyOf(id)) {
		if !srv.Doomed() {
			left = append(left, srv)
		}
		if len(left) == endAtOnce {
			break
		}
	}
	for _, srv := range left {
		if err := s.doom(ctx, tx, srv, false); err != nil {
			return 0, err
		}
	}
	n := len(left)
	for _, rest := range []func() (int, error){
		func() (int, error) { return drop(tx, groups, "project", state.KeyOf(id)) },
		func() (int, error) { return drop(tx, quotas, "whom", state.KeyOf(id)) },
		func() (int, error) { return drop(tx, keypairs, "name", state.KeyOf(id)) },
	} {
		m, err := rest()
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// drop deletes up to endAtOnce objects under a key.
func drop[T any](tx *state.Tx, table *state.Table[T], index string, key state.Key) (int, error) {
	ids := table.IDs(tx, index, key)
	ids = ids[:min(len(ids), endAtOnce)]
	for _, id := range ids {
		if err := table.Delete(tx, id); err != nil {
			return 0, err
		}
	}
	return len(ids), nil
}
