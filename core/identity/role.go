package identity

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Role is a name for what somebody may do. One of a domain gives nothing by itself: it
// stands for the roles that it implies.
type Role struct {
	resource.Meta
	DomainID    resource.ID // zero: of the whole cloud
	Description string
	Immutable   *bool
	Extra       Extra
}

var roles = state.NewTable("role",
	state.Unique("name", func(r *Role) state.Key { return state.KeyOf(r.DomainID, r.Name) }),
	state.Index("domain", func(r *Role) state.Key { return state.KeyOf(r.DomainID) }),
)

// An Implication says that who has one role has another too.
type Implication struct {
	resource.Meta
	PriorID, ImpliedID resource.ID
}

var implications = state.NewTable("implication",
	state.Unique("pair", func(i *Implication) state.Key { return state.KeyOf(i.PriorID, i.ImpliedID) }),
	state.Index("implied", func(i *Implication) state.Key { return state.KeyOf(i.ImpliedID) }),
)

func (r *Role) check() error {
	if err := checkName(r.Name, 255); err != nil {
		return err
	}
	if err := checkTexts(text{"description", r.Description}); err != nil {
		return err
	}
	return r.Extra.check()
}

// imply adds all that the roles imply, directly or not. The given ones stay in front.
func imply(tx *state.Tx, ids []resource.ID) []resource.ID {
	all := slices.Clone(ids)
	for i := 0; i < len(all); i++ {
		if !roles.Has(tx, all[i]) {
			continue // it is being removed
		}
		for im := range implications.Peek(tx, "pair", state.Range{Prefix: state.KeyOf(all[i])}) {
			if !slices.Contains(all, im.ImpliedID) {
				all = append(all, im.ImpliedID)
			}
		}
	}
	return all
}

// CreateRole makes a role.
func (s *Service) CreateRole(ctx context.Context, r *Role) (*Role, error) {
	if err := mayManage(ctx, "role.create", resource.ID{}); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return create(ctx, s, roles, func(tx *state.Tx) (*Role, error) {
		made := *r
		made.ID = tx.NewID()
		if d, ok := projects.PeekOne(tx, made.DomainID); !made.DomainID.IsZero() && (!ok || !d.IsDomain()) {
			return nil, notFound("domain", made.DomainID.Hex())
		}
		return &made, nil
	})
}

// mayReadRole: the cloud's roles are for whoever reads some domain, since it hands them out.
func mayReadRole(ctx context.Context, action string, domain resource.ID) error {
	if domain.IsZero() {
		domain = ActorOf(ctx).DomainID
	}
	return mayRead(ctx, action, domain)
}

// Role gives one role.
func (s *Service) Role(ctx context.Context, id resource.ID) (*Role, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	r, ok := roles.Find(tx, id)
	if !ok {
		return nil, notFound("role", id.Hex())
	}
	return r, mayReadRole(ctx, "role.get", r.DomainID)
}

// Roles lists the roles of a domain, or with the zero domain those of the cloud.
func (s *Service) Roles(ctx context.Context, domain resource.ID) ([]*Role, error) {
	if err := mayReadRole(ctx, "role.list", domain); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(roles.Each(tx, "domain", state.KeyOf(domain)), nil), nil
}

// UpdateRole changes what an admin may wish.
func (s *Service) UpdateRole(ctx context.Context, id resource.ID, change func(*Role) error) (*Role, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if !roles.Has(tx, id) {
		return nil, notFound("role", id.Hex()) // which roles there are is no secret
	}
	if err := mayManage(ctx, "role.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, roles, id, func(tx *state.Tx, r *Role) error {
		was := *r
		if err := change(r); err != nil {
			return err
		}
		switch {
		case isTrue(was.Immutable) && isTrue(r.Immutable):
			return immutable("role", id)
		case r.DomainID != was.DomainID:
			return fault.InvalidField("domain_id", "cannot be changed")
		}
		return r.check()
	})
}

// DeleteRole deletes a role and takes it from everybody.
func (s *Service) DeleteRole(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		r, ok := roles.PeekOne(tx, id)
		if !ok {
			return notFound("role", id.Hex())
		}
		if err := mayManage(ctx, "role.delete", resource.ID{}); err != nil {
			return err
		}
		if isTrue(r.Immutable) {
			return immutable("role", id)
		}
		return remove(tx, roles, id)
	})
}

// Imply says that whoever has prior has implied too; it may be said already.
func (s *Service) Imply(ctx context.Context, prior, implied resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "implied_role.create", resource.ID{}); err != nil {
			return err
		}
		if _, err := rolePair(ctx, tx, prior, implied); err != nil {
			return err
		}
		if _, ok := implications.Lookup(tx, "pair", state.KeyOf(prior, implied)); ok {
			return nil
		}
		return putImplication(tx, prior, implied)
	})
}

func rolePair(ctx context.Context, tx *state.Tx, prior, implied resource.ID) (pair [2]*Role, err error) {
	for i, id := range []resource.ID{prior, implied} {
		r, ok := roles.PeekOne(tx, id)
		if !ok {
			return pair, missing(ctx, "implied_role.get", "role", id.Hex())
		}
		pair[i] = r
	}
	return pair, nil
}

// putImplication refuses circles, and that a role of the cloud depends on a domain's.
func putImplication(tx *state.Tx, prior, implied resource.ID) error {
	if slices.Contains(imply(tx, []resource.ID{implied}), prior) {
		return fault.Errorf(fault.Forbidden, "Role %s cannot imply %s: it would imply itself.", prior.Hex(), implied.Hex())
	}
	p, _ := roles.PeekOne(tx, prior)
	i, _ := roles.PeekOne(tx, implied)
	if p != nil && i != nil && p.DomainID.IsZero() && !i.DomainID.IsZero() {
		return fault.Errorf(fault.Forbidden, "Role %s is of the whole cloud and cannot imply a role of a domain.", prior.Hex())
	}
	return implications.Put(tx, &Implication{Meta: resource.Meta{ID: tx.NewID()}, PriorID: prior, ImpliedID: implied})
}

// Unimply takes back what Imply said.
func (s *Service) Unimply(ctx context.Context, prior, implied resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "implied_role.delete", resource.ID{}); err != nil {
			return err
		}
		im, ok := implications.Lookup(tx, "pair", state.KeyOf(prior, implied))
		if !ok {
			return notImplied(prior, implied)
		}
		return implications.Delete(tx, im.ID)
	})
}

func notImplied(prior, implied resource.ID) error {
	return fault.Errorf(fault.NotFound, "Role %s does not imply %s.", prior.Hex(), implied.Hex())
}

// Implied gives both roles if the first implies the second directly.
func (s *Service) Implied(ctx context.Context, prior, implied resource.ID) (pair [2]*Role, err error) {
	if err := mayRead(ctx, "implied_role.get", resource.ID{}); err != nil {
		return pair, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return pair, err
	}
	if pair, err = rolePair(ctx, tx, prior, implied); err != nil {
		return pair, err
	}
	if _, ok := implications.Lookup(tx, "pair", state.KeyOf(prior, implied)); !ok {
		return pair, notImplied(prior, implied)
	}
	return pair, nil
}

// An Inference is a role with those that it implies directly.
type Inference struct {
	Prior   *Role
	Implied []*Role
}

// Inference gives what one role implies directly.
func (s *Service) Inference(ctx context.Context, prior resource.ID) (*Inference, error) {
	if err := mayRead(ctx, "implied_role.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	r, ok := roles.Find(tx, prior)
	if !ok {
		return nil, missing(ctx, "implied_role.list", "role", prior.Hex())
	}
	in := &Inference{Prior: r}
	for im := range implications.Peek(tx, "pair", state.Range{Prefix: state.KeyOf(prior)}) {
		if implied, ok := roles.Find(tx, im.ImpliedID); ok {
			in.Implied = append(in.Implied, implied)
		}
	}
	return in, nil
}

// Inferences gives what each role that implies any implies.
func (s *Service) Inferences(ctx context.Context) ([]*Inference, error) {
	if err := mayRead(ctx, "implied_role.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	all := []*Inference{}
	for im := range implications.Peek(tx, "pair", state.Range{}) {
		implied, ok := roles.Find(tx, im.ImpliedID)
		if !ok {
			continue
		}
		if n := len(all); n == 0 || all[n-1].Prior.ID != im.PriorID {
			prior, ok := roles.Find(tx, im.PriorID)
			if !ok {
				continue
			}
			all = append(all, &Inference{Prior: prior})
		}
		last := all[len(all)-1]
		last.Implied = append(last.Implied, implied)
	}
	return all, nil
}
