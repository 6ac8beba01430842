package identity

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A DefaultLimit is how much of something each project may have, for services that ask here.
type DefaultLimit struct {
	resource.Meta
	OfferID     resource.ID
	Region      string
	Resource    string
	Default     int
	Description string
}

var defaultLimits = state.NewTable("registered-limit",
	state.Unique("resource", func(l *DefaultLimit) state.Key { return state.KeyOf(l.OfferID, l.Region, l.Resource) }),
	state.Index("region", func(l *DefaultLimit) state.Key { return state.KeyOf(l.Region) }),
)

// A Limit is what one project or domain may have instead.
type Limit struct {
	resource.Meta
	DefaultID   resource.ID
	OwnerID     resource.ID // a project or a domain
	OfDomain    bool
	OfferID     resource.ID
	Region      string
	Resource    string
	Most        int
	Description string
}

var limits = state.NewTable("limit",
	state.Unique("resource", func(l *Limit) state.Key { return state.KeyOf(l.OwnerID, l.OfferID, l.Region, l.Resource) }),
	state.Index("owner", func(l *Limit) state.Key { return state.KeyOf(l.OwnerID) }),
	state.Index("default", func(l *Limit) state.Key { return state.KeyOf(l.DefaultID) }),
)

func (l *DefaultLimit) check(tx *state.Tx) error {
	if l.Resource == "" || len(l.Resource) > 255 {
		return fault.InvalidField("resource_name", "must have 1 to 255 characters")
	}
	if err := checkTexts(text{"description", l.Description}); err != nil {
		return err
	}
	if l.Default < -1 {
		return fault.InvalidField("default_limit", "must be at least -1")
	}
	if !offers.Has(tx, l.OfferID) {
		return fault.Errorf(fault.Invalid, "Could not find service: %s.", l.OfferID.Hex())
	}
	if _, ok := regions.Lookup(tx, "name", state.KeyOf(l.Region)); l.Region != "" && !ok {
		return fault.Errorf(fault.Invalid, "Could not find region: %s.", l.Region)
	}
	return nil
}

// CreateDefaultLimits registers limits, all or none.
func (s *Service) CreateDefaultLimits(ctx context.Context, want []*DefaultLimit) ([]*DefaultLimit, error) {
	if err := mayManage(ctx, "registered_limit.create", resource.ID{}); err != nil {
		return nil, err
	}
	return createAll(ctx, s, defaultLimits, want, func(tx *state.Tx, l *DefaultLimit) error { return l.check(tx) })
}

// DefaultLimits lists the registered limits; whoever is known may see them.
func (s *Service) DefaultLimits(ctx context.Context) ([]*DefaultLimit, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(defaultLimits.All(tx), nil), nil
}

// DefaultLimit gives one.
func (s *Service) DefaultLimit(ctx context.Context, id resource.ID) (*DefaultLimit, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return defaultLimits.Get(tx, id)
}

// UpdateDefaultLimit changes one that no project's limit refers to.
func (s *Service) UpdateDefaultLimit(ctx context.Context, id resource.ID, change func(*DefaultLimit) error) (*DefaultLimit, error) {
	if err := mayManage(ctx, "registered_limit.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, defaultLimits, id, func(tx *state.Tx, l *DefaultLimit) error {
		was := *l
		if err := change(l); err != nil {
			return err
		}
		if _, used := limits.Lookup(tx, "default", state.KeyOf(id)); used &&
			(l.OfferID != was.OfferID || l.Region != was.Region || l.Resource != was.Resource) {
			return fault.Errorf(fault.Forbidden, "Registered limit %s is used by a project limit.", id.Hex())
		}
		return l.check(tx)
	})
}

// DeleteDefaultLimit deletes one that no project's limit refers to.
func (s *Service) DeleteDefaultLimit(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "registered_limit.delete", resource.ID{}); err != nil {
			return err
		}
		if _, used := limits.Lookup(tx, "default", state.KeyOf(id)); used {
			return fault.Errorf(fault.Forbidden, "Registered limit %s is used by a project limit.", id.Hex())
		}
		return defaultLimits.Delete(tx, id)
	})
}

func (l *Limit) check() error {
	if l.Most < -1 {
		return fault.InvalidField("resource_limit", "must be at least -1")
	}
	return checkTexts(text{"description", l.Description})
}

// CreateLimits gives projects or domains limits of their own, all or none.
func (s *Service) CreateLimits(ctx context.Context, want []*Limit) ([]*Limit, error) {
	if err := mayManage(ctx, "limit.create", resource.ID{}); err != nil {
		return nil, err
	}
	return createAll(ctx, s, limits, want, func(tx *state.Tx, l *Limit) error {
		p, ok := projects.PeekOne(tx, l.OwnerID)
		if !ok || p.IsDomain() != l.OfDomain {
			return notFound("project", l.OwnerID.Hex())
		}
		d, ok := defaultLimits.Lookup(tx, "resource", state.KeyOf(l.OfferID, l.Region, l.Resource))
		if !ok {
			return fault.Errorf(fault.Forbidden, "There is no registered limit for %s of service %s.", l.Resource, l.OfferID.Hex())
		}
		l.DefaultID = d.ID
		return l.check()
	})
}

func (l *Limit) seenBy(tx *state.Tx, a *Actor) bool {
	p, ok := projects.PeekOne(tx, l.OwnerID)
	return a.readsAll() || a.ProjectID == l.OwnerID || ok && a.reads(p.Domain())
}

// Limits lists those that the actor may see: of its project or domain, or all.
func (s *Service) Limits(ctx context.Context) ([]*Limit, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	return slices.DeleteFunc(collect(limits.All(tx), nil), func(l *Limit) bool { return !l.seenBy(tx, a) }), nil
}

// Limit gives one.
func (s *Service) Limit(ctx context.Context, id resource.ID) (*Limit, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	l, ok := limits.Find(tx, id)
	if !ok {
		return nil, missing(ctx, "limit.get", "limit", id.Hex())
	}
	if !l.seenBy(tx, ActorOf(ctx)) {
		return nil, refuse("limit.get")
	}
	return l, nil
}

// UpdateLimit changes how much it is.
func (s *Service) UpdateLimit(ctx context.Context, id resource.ID, change func(*Limit) error) (*Limit, error) {
	if err := mayManage(ctx, "limit.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, limits, id, func(tx *state.Tx, l *Limit) error {
		if err := change(l); err != nil {
			return err
		}
		return l.check()
	})
}

// DeleteLimit gives a project the default again.
func (s *Service) DeleteLimit(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "limit.delete", resource.ID{}); err != nil {
			return err
		}
		return limits.Delete(tx, id)
	})
}

// LimitOf is how much of something a project may have by the limits that an operator registered for
// the services of a type; false if none is. -1 is no limit. One that names no region, which is all
// that a cloud of one region needs, goes before others.
func LimitOf(tx *state.Tx, project resource.ID, service, what string) (most int, ok bool) {
	for _, offer := range offers.IDs(tx, "type", state.KeyOf(service)) {
		for l := range limits.Peek(tx, "resource", state.Range{Prefix: state.KeyOf(project, offer)}) {
			if l.Resource == what {
				return l.Most, true
			}
		}
	}
	for _, offer := range offers.IDs(tx, "type", state.KeyOf(service)) {
		for l := range defaultLimits.Peek(tx, "resource", state.Range{Prefix: state.KeyOf(offer)}) {
			if l.Resource == what {
				return l.Default, true
			}
		}
	}
	return 0, false
}
