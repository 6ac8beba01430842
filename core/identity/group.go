package identity

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Group is a set of users that are given roles together.
type Group struct {
	resource.Meta
	DomainID    resource.ID
	Description string
	Extra       Extra
}

var groups = state.NewTable("group",
	state.Unique("name", func(g *Group) state.Key { return state.KeyOf(g.DomainID, g.Name) }),
	state.Index("domain", func(g *Group) state.Key { return state.KeyOf(g.DomainID) }),
)

// A Membership says that a user is in a group.
type Membership struct {
	resource.Meta
	UserID, GroupID resource.ID
}

var memberships = state.NewTable("membership",
	state.Unique("pair", func(m *Membership) state.Key { return state.KeyOf(m.UserID, m.GroupID) }),
	state.Index("user", func(m *Membership) state.Key { return state.KeyOf(m.UserID) }),
	state.Index("group", func(m *Membership) state.Key { return state.KeyOf(m.GroupID) }),
)

func (g *Group) check() error {
	if err := checkName(g.Name, 64); err != nil {
		return err
	}
	if err := checkTexts(text{"description", g.Description}); err != nil {
		return err
	}
	return g.Extra.check()
}

// CreateGroup makes a group in its domain.
func (s *Service) CreateGroup(ctx context.Context, g *Group) (*Group, error) {
	if err := mayManage(ctx, "group.create", g.DomainID); err != nil {
		return nil, err
	}
	if err := g.check(); err != nil {
		return nil, err
	}
	return create(ctx, s, groups, func(tx *state.Tx) (*Group, error) {
		made := *g
		made.ID = tx.NewID()
		if d, ok := projects.PeekOne(tx, made.DomainID); !ok || !d.IsDomain() {
			return nil, notFound("domain", made.DomainID.Hex())
		}
		return &made, nil
	})
}

// Group gives one group.
func (s *Service) Group(ctx context.Context, id resource.ID) (*Group, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	g, ok := groups.Find(tx, id)
	if !ok || leaving(tx, g.DomainID) {
		return nil, missing(ctx, "group.get", "group", id.Hex())
	}
	return g, mayRead(ctx, "group.get", g.DomainID)
}

// A GroupFilter says which groups are wanted; its zero fields want all.
type GroupFilter struct {
	DomainID resource.ID
	Name     string
}

// Groups lists groups. An admin or reader of a domain sees those of the domain.
func (s *Service) Groups(ctx context.Context, f GroupFilter) ([]*Group, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	if !a.readsAll() {
		if !a.reads(a.DomainID) {
			return nil, refuse("group.list")
		}
		if !f.DomainID.IsZero() && f.DomainID != a.DomainID {
			return []*Group{}, nil
		}
		f.DomainID = a.DomainID
	}
	keep := func(g *Group) bool { return (f.Name == "" || g.Name == f.Name) && !leaving(tx, g.DomainID) }
	if !f.DomainID.IsZero() {
		return collect(groups.Each(tx, "domain", state.KeyOf(f.DomainID)), keep), nil
	}
	return collect(groups.All(tx), keep), nil
}

// UpdateGroup changes what the owner may wish.
func (s *Service) UpdateGroup(ctx context.Context, id resource.ID, change func(*Group) error) (*Group, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.manageGroup(ctx, tx, id, "group.update"); err != nil {
		return nil, err
	}
	return edit(ctx, s, groups, id, func(tx *state.Tx, g *Group) error {
		if _, err := s.manageGroup(ctx, tx, id, "group.update"); err != nil {
			return err
		}
		domain := g.DomainID
		if err := change(g); err != nil {
			return err
		}
		if g.DomainID != domain {
			return fault.InvalidField("domain_id", "cannot be changed")
		}
		return g.check()
	})
}

func (s *Service) manageGroup(ctx context.Context, tx *state.Tx, id resource.ID, action string) (*Group, error) {
	g, ok := groups.Find(tx, id)
	if !ok || leaving(tx, g.DomainID) {
		return nil, missingToChange(ctx, action, "group", id.Hex())
	}
	return g, manageHolder(ctx, tx, action, id, g.DomainID)
}

// DeleteGroup deletes a group with its memberships and roles; its users stay.
func (s *Service) DeleteGroup(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if _, err := s.manageGroup(ctx, tx, id, "group.delete"); err != nil {
			return err
		}
		return remove(tx, groups, id)
	})
}

// AddMember puts a user into a group; it may be there already.
func (s *Service) AddMember(ctx context.Context, group, user resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := s.manageMember(ctx, tx, group, user, "group.add_user"); err != nil {
			return err
		}
		if _, ok := memberships.Lookup(tx, "pair", state.KeyOf(user, group)); ok {
			return nil
		}
		return memberships.Put(tx, &Membership{Meta: resource.Meta{ID: tx.NewID()}, UserID: user, GroupID: group})
	})
}

// RemoveMember takes a user out of a group.
func (s *Service) RemoveMember(ctx context.Context, group, user resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := s.manageMember(ctx, tx, group, user, "group.remove_user"); err != nil {
			return err
		}
		m, ok := memberships.Lookup(tx, "pair", state.KeyOf(user, group))
		if !ok {
			return notMember(user, group)
		}
		// What the user could do through the group it can no more; its tokens see that at once,
		// because roles are looked up anew for each request.
		return memberships.Delete(tx, m.ID)
	})
}

func notMember(user, group resource.ID) error {
	return fault.Errorf(fault.NotFound, "User %s is not in group %s.", user.Hex(), group.Hex())
}

// manageMember asks about both: a domain's admin may not take in users of other domains.
func (s *Service) manageMember(ctx context.Context, tx *state.Tx, group, user resource.ID, action string) error {
	if _, err := s.manageGroup(ctx, tx, group, action); err != nil {
		return err
	}
	return s.manageUser(ctx, tx, user, action)
}

// IsMember asks whether a user is in a group; no error means that it is.
func (s *Service) IsMember(ctx context.Context, group, user resource.ID) error {
	tx, err := s.State.View(ctx)
	if err != nil {
		return err
	}
	g, ok := groups.PeekOne(tx, group)
	if !ok {
		return missing(ctx, "group.check_user", "group", group.Hex())
	}
	if err := mayRead(ctx, "group.check_user", g.DomainID); err != nil {
		return err
	}
	if !users.Has(tx, user) {
		return missing(ctx, "group.check_user", "user", user.Hex())
	}
	if _, ok := memberships.Lookup(tx, "pair", state.KeyOf(user, group)); !ok {
		return notMember(user, group)
	}
	return nil
}

// Members lists the users of a group, those that the actor may see.
func (s *Service) Members(ctx context.Context, group resource.ID) ([]*User, error) {
	if _, err := s.Group(ctx, group); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	all := []*User{}
	for m := range memberships.Peek(tx, "group", state.Range{Prefix: state.KeyOf(group)}) {
		if u, ok := users.Find(tx, m.UserID); ok && ActorOf(ctx).reads(u.DomainID) {
			all = append(all, u)
		}
	}
	return all, nil
}

// GroupsOf lists the groups that a user is in, those that the actor may see; a user may see its own.
func (s *Service) GroupsOf(ctx context.Context, user resource.ID) ([]*Group, error) {
	if _, err := s.User(ctx, user); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	all := []*Group{}
	for m := range memberships.Peek(tx, "user", state.Range{Prefix: state.KeyOf(user)}) {
		if g, ok := groups.Find(tx, m.GroupID); ok && (ActorOf(ctx).own(user) || ActorOf(ctx).reads(g.DomainID)) {
			all = append(all, g)
		}
	}
	return all, nil
}
