package native

import (
	"context"
	"net/http"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// A quota is what a project may have, and has, by the kinds of things.
type quota struct {
	ProjectID resource.ID `json:"project_id"`
	Revision  int64       `json:"revision"`
	Limits    []limit     `json:"limits"`
}

type limit struct {
	Of    string `json:"of"`
	Limit *int64 `json:"limit"` // null: none
	Used  int64  `json:"used"`
	Left  *int64 `json:"left"` // null: any number
}

func newLimit(of string, most, used int64) limit {
	l := limit{Of: of, Used: used}
	if most != compute.Unlimited {
		left := max(most-used, 0)
		l.Limit, l.Left = &most, &left
	}
	return l
}

// counted are the compute quotas of a whole project, with the words and units that stand here.
var counted = []struct{ of, name string }{
	{"servers", compute.QuotaServers}, {"vcpus", compute.QuotaCores}, {"memory_mib", compute.QuotaMemory}, {"server-groups", compute.QuotaGroups},
}

// quotaOf reads a project's quota as the context's request would find it: in a plan, after what is planned.
func (s *Server) quotaOf(ctx context.Context, project resource.ID) (*quota, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	q := &quota{ProjectID: project, Revision: tx.Revision(), Limits: []limit{}}
	servers := compute.Service{State: s.State}
	usages, err := servers.Usages(ctx, project, resource.ID{})
	if err != nil {
		return nil, err
	}
	for _, c := range counted {
		u := usages[c.name]
		q.Limits = append(q.Limits, newLimit(c.of, int64(u.Limit), int64(u.Used)))
	}
	networks := network.Service{State: s.State}
	uses, err := networks.Quota(ctx, project)
	if err != nil {
		return nil, err
	}
	for _, noun := range network.QuotaNouns() {
		of := noun
		if k := s.byName[noun]; k != nil {
			of = k.path
		}
		q.Limits = append(q.Limits, newLimit(of, int64(uses[noun].Limit), uses[noun].Used))
	}
	return q, nil
}

// quota answers for the token's project, or to an admin for any.
func (s *Server) quota(w http.ResponseWriter, r *http.Request) error {
	project := identity.ActorOf(r.Context()).ProjectID
	for name, values := range r.URL.Query() {
		var err error
		if name != "project_id" {
			return fault.InvalidField(name, "is no parameter of this").WithCode("unknown-field")
		}
		if project, err = resource.ParseID(values[0]); err != nil {
			return fault.InvalidField(name, "must be a UUID").WithCode("invalid-value")
		}
	}
	if project.IsZero() {
		return fault.Errorf(fault.Invalid, "The token is for no project: name one with project_id.").WithCode("no-project")
	}
	q, err := s.quotaOf(r.Context(), project)
	if err != nil {
		return err
	}
	setRevision(w, q.Revision)
	s.write(w, r, http.StatusOK, q)
	return nil
}

// plannedQuota is what the actor's project would have left; nil for an actor that may not know.
func (s *Server) plannedQuota(ctx context.Context) (*quota, error) {
	project := identity.ActorOf(ctx).ProjectID
	if project.IsZero() || !state.Planning(ctx) {
		return nil, nil
	}
	q, err := s.quotaOf(ctx, project)
	if fault.From(err) != nil {
		return nil, nil
	}
	return q, err
}
