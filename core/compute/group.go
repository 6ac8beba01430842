package compute

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Group keeps its servers together or apart.
type Group struct {
	resource.Meta

	UserID     resource.ID
	Policy     Policy
	MaxPerHost int // of Apart: how many may share a host; 1 when 0
}

// A Policy says where a group's servers go.
type Policy string

const (
	Together     Policy = "affinity"           // all on one host
	Apart        Policy = "anti-affinity"      // each on a host of its own
	SoftTogether Policy = "soft-affinity"      // so if it can be
	SoftApart    Policy = "soft-anti-affinity" // so if it can be
)

var policies = []Policy{Together, Apart, SoftTogether, SoftApart}

var groups = state.NewTable[Group]("server-group",
	state.Index("project", func(g *Group) state.Key { return state.KeyOf(g.ProjectID) }),
	state.Tally("project-count", func(g *Group) (state.Key, state.Amounts) { return state.KeyOf(g.ProjectID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"server-group.get": identity.Reader, "server-group.list": identity.Reader, "server-group.list-all": identity.Admin,
	"server-group.create": identity.Member, "server-group.delete": identity.Member,
})

// Groups gives the native API and the auditor a look at every group.
func Groups() *state.Table[Group] { return groups }

func missingGroup(id any) error {
	return fault.Errorf(fault.NotFound, "Instance group %v could not be found.", id).WithCode("server-group-not-found")
}

func groupFor(ctx context.Context, tx *state.Tx, action string, id resource.ID) (*Group, error) {
	g, ok := groups.Find(tx, id)
	if !ok {
		return nil, missingGroup(id)
	}
	err := identity.Allow(ctx, action, g.Meta)
	if fault.Is(err, fault.NotFound) {
		return nil, missingGroup(id)
	}
	return g, err
}

// MembersOf lists the servers of a group.
func MembersOf(tx *state.Tx, group resource.ID) []resource.ID {
	return servers.IDs(tx, "group", state.KeyOf(group))
}

// A GroupView is a group with its servers.
type GroupView struct {
	*Group
	Members []resource.ID
}

// Group shows one group.
func (s *Service) Group(ctx context.Context, id resource.ID) (GroupView, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return GroupView{}, err
	}
	g, err := groupFor(ctx, tx, "server-group.get", id)
	if err != nil {
		return GroupView{}, err
	}
	return GroupView{g, MembersOf(tx, id)}, nil
}

// ListGroups shows a project's groups, or every project's.
func (s *Service) ListGroups(ctx context.Context, q query.List, allProjects bool, skip int) ([]GroupView, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	actor := identity.ActorOf(ctx)
	seq := groups.Range(tx, "project", state.Range{Prefix: state.KeyOf(actor.ProjectID)})
	if allProjects {
		if err := identity.Allow(ctx, "server-group.list-all", resource.Meta{}); err != nil {
			return nil, err
		}
		seq = groups.All(tx)
	} else if err := identity.Allow(ctx, "server-group.list", resource.Meta{ProjectID: actor.ProjectID}); err != nil {
		return nil, err
	}
	var views []GroupView
	for _, g := range query.Take(seq, q.Limit, func(*Group) bool { skip--; return skip < 0 }).Items {
		views = append(views, GroupView{g, MembersOf(tx, g.ID)})
	}
	return views, nil
}

// CreateGroup makes an empty group for the actor's project.
func (s *Service) CreateGroup(ctx context.Context, g Group) (*Group, error) {
	actor := identity.ActorOf(ctx)
	switch {
	case g.Name == "" || len(g.Name) > 255:
		return nil, fault.InvalidField("name", "must be of 1 to 255 characters")
	case !slices.Contains(policies, g.Policy):
		return nil, fault.InvalidField("policy", "must be one of %v", policies)
	case g.MaxPerHost != 0 && g.Policy != Apart:
		return nil, fault.InvalidField("max_server_per_host", "is only for the policy %s", Apart)
	case g.MaxPerHost < 0:
		return nil, fault.InvalidField("max_server_per_host", "must be at least 1")
	}
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Group, error) {
		if err := identity.Allow(ctx, "server-group.create", resource.Meta{ProjectID: actor.ProjectID}); err != nil {
			return nil, err
		}
		held, _ := groups.Sum(tx, "project-count", state.KeyOf(actor.ProjectID))
		if err := roomFor(tx, actor.ProjectID, actor.UserID, QuotaGroups, held, 1); err != nil {
			return nil, err
		}
		g.Meta = resource.Meta{ID: tx.NewID(), ProjectID: actor.ProjectID, Name: g.Name}
		g.UserID = actor.UserID
		return &g, groups.Put(tx, &g)
	})
}

// DeleteGroup takes a group away; its servers stay, and are free of it.
func (s *Service) DeleteGroup(ctx context.Context, id resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if _, err := groupFor(ctx, tx, "server-group.delete", id); err != nil {
			return err
		}
		for _, member := range MembersOf(tx, id) {
			srv, err := servers.Get(tx, member)
			if err != nil {
				return err
			}
			srv.GroupID = resource.ID{}
			if err := servers.Put(tx, srv); err != nil {
				return err
			}
		}
		return groups.Delete(tx, id)
	})
}
