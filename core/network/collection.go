package network

import (
	"context"
	"fmt"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Service is everything a dialect may ask of this domain.
type Service struct {
	State *state.State
	crowd *crowd

	Networks  Collection[Network]
	Subnets   Collection[Subnet]
	Ports     Collection[Port]
	Routers   Collection[Router]
	Floating  Collection[FloatingAddress]
	Forwards  Collection[Forward]
	Groups    Collection[Group]
	Rules     Collection[Rule]
	Shares    Collection[Share]
	Pools     Collection[SubnetPool]
	Scopes    Collection[AddressScope]
	Addresses Collection[AddressGroup]
}

// New gives the domain's verbs on a state.
func New(st *state.State) *Service {
	return &Service{
		State:     st,
		crowd:     newCrowd(st),
		Networks:  Collection[Network]{st, &networkNoun},
		Subnets:   Collection[Subnet]{st, &subnetNoun},
		Ports:     Collection[Port]{st, &portNoun},
		Routers:   Collection[Router]{st, &routerNoun},
		Floating:  Collection[FloatingAddress]{st, &floatingNoun},
		Forwards:  Collection[Forward]{st, &forwardNoun},
		Groups:    Collection[Group]{st, &groupNoun},
		Rules:     Collection[Rule]{st, &ruleNoun},
		Shares:    Collection[Share]{st, &shareNoun},
		Pools:     Collection[SubnetPool]{st, &poolNoun},
		Scopes:    Collection[AddressScope]{st, &scopeNoun},
		Addresses: Collection[AddressGroup]{st, &addressGroupNoun},
	}
}

// noun is what a Collection must know of one kind of thing.
type noun[T any] struct {
	name   string // as in actions, "network.create", and in codes, "network-not-found"
	title  string // as in messages
	table  *state.Table[T]
	fields fields[T]

	// shown reports whether an actor may see a thing of another project; nil: never.
	shown func(tx *state.Tx, a *identity.Actor, thing *T) bool
	// narrow: all that the actor may see stands in the index "by" under its own project.
	narrow bool
	// tallied: the table counts its things by project.
	tallied bool
	// others gives what lists show to the actor of other projects' things, beside its own; nil: nothing.
	others func(tx *state.Tx, a *identity.Actor) []span

	// The rules. Each checks and writes; permission to take the verb itself was asked before,
	// except by add, which knows whom to ask.
	add    func(ctx context.Context, tx *state.Tx, want *T) error
	change func(ctx context.Context, tx *state.Tx, was, now *T) error
	remove func(ctx context.Context, tx *state.Tx, thing *T) error
}

// A Collection is all things of one kind, as far as the asking actor may see them.
type Collection[T any] struct {
	state *state.State
	noun  *noun[T]
}

func meta[T any](thing *T) *resource.Meta { return any(thing).(resource.Object).GetMeta() }

// missing is the fault for a thing that is not there or not to be seen.
func missing(title, name string, id any) error {
	return fault.Errorf(fault.NotFound, "%s %v could not be found.", title, id).
		WithCode(name+"-not-found").With("id", fmt.Sprint(id))
}

func (n *noun[T]) missing(id any) error { return missing(n.title, n.name, id) }

func (n *noun[T]) get(tx *state.Tx, id resource.ID) (*T, error) {
	if thing, ok := n.table.Find(tx, id); ok {
		return thing, nil
	}
	return nil, n.missing(id)
}

func (n *noun[T]) visible(tx *state.Tx, a *identity.Actor, thing *T) bool {
	if a.Admin() {
		return true
	}
	owner := meta(thing).ProjectID
	return !owner.IsZero() && owner == a.ProjectID || n.shown != nil && n.shown(tx, a, thing)
}

// allow asks whether the actor may take a verb on a thing.
func (n *noun[T]) allow(ctx context.Context, tx *state.Tx, verb string, thing *T) error {
	m := *meta(thing)
	shown := n.shown != nil && n.shown(tx, identity.ActorOf(ctx), thing)
	err := identity.AllowShared(ctx, n.name+"."+verb, m, shown)
	if fault.Is(err, fault.NotFound) {
		return n.missing(m.ID)
	}
	return err
}

// visibleOne reads a thing that the actor can see; the fault says that there is none otherwise.
func visibleOne[T any](ctx context.Context, tx *state.Tx, n *noun[T], id resource.ID) (*T, error) {
	thing, err := n.get(tx, id)
	if err != nil {
		return nil, err
	}
	if !n.visible(tx, identity.ActorOf(ctx), thing) {
		return nil, n.missing(id)
	}
	return thing, nil
}

// mayCreate asks whether the actor may make things for a project.
func mayCreate(ctx context.Context, action string, projectID resource.ID) error {
	return identity.Allow(ctx, action, resource.Meta{ProjectID: projectID})
}

// Get reads one thing.
func (c Collection[T]) Get(ctx context.Context, id resource.ID) (*T, error) {
	tx, err := c.state.View(ctx)
	if err != nil {
		return nil, err
	}
	thing, err := c.noun.get(tx, id)
	if err != nil {
		return nil, err
	}
	return thing, c.noun.allow(ctx, tx, "read", thing)
}

// Create makes things, all or none.
func (c Collection[T]) Create(ctx context.Context, want ...*T) ([]*T, error) {
	return state.Do(ctx, c.state, func(tx *state.Tx) ([]*T, error) {
		for _, w := range want {
			m := meta(w)
			m.ID = tx.NewID()
			if err := c.noun.add(ctx, tx, w); err != nil {
				return nil, err
			}
			now, err := c.noun.get(tx, m.ID)
			if err != nil {
				return nil, err
			}
			*w = *now
		}
		return want, nil
	})
}

// An Edit changes what its owner may wish of a thing. It runs inside the transaction.
type Edit[T any] func(*T) error

// Update edits one thing. expect is the revision it must still have; 0 for any.
func (c Collection[T]) Update(ctx context.Context, id resource.ID, expect int64, edit Edit[T]) (*T, error) {
	return state.Do(ctx, c.state, func(tx *state.Tx) (*T, error) {
		was, err := c.noun.get(tx, id)
		if err != nil {
			return nil, err
		}
		if err := c.noun.allow(ctx, tx, "update", was); err != nil {
			return nil, err
		}
		if err := expected(was, expect); err != nil {
			return nil, err
		}
		now, err := c.noun.get(tx, id)
		if err != nil {
			return nil, err
		}
		if err := edit(now); err != nil {
			return nil, err
		}
		if err := c.noun.change(ctx, tx, was, now); err != nil {
			return nil, err
		}
		return c.noun.get(tx, id)
	})
}

// Delete takes a thing away with all that belongs to it.
func (c Collection[T]) Delete(ctx context.Context, id resource.ID, expect int64) error {
	return c.state.Update(ctx, func(tx *state.Tx) error {
		thing, err := c.noun.get(tx, id)
		if err != nil {
			return err
		}
		if err := c.noun.allow(ctx, tx, "delete", thing); err != nil {
			return err
		}
		if err := expected(thing, expect); err != nil {
			return err
		}
		return c.noun.remove(ctx, tx, thing)
	})
}

func expected[T any](thing *T, revision int64) error {
	if revision == 0 || meta(thing).Revision == revision {
		return nil
	}
	return fault.Errorf(fault.Precondition, "Constrained to revision %d, but the current revision is %d.", revision, meta(thing).Revision).
		WithCode("revision")
}

// touch gives a thing a new revision because what it is made of changed.
func touch[T any](tx *state.Tx, n *noun[T], id resource.ID) error {
	thing, ok := n.table.Find(tx, id)
	if !ok {
		return nil
	}
	return n.table.Put(tx, thing)
}
