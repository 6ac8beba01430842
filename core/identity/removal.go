package identity

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Removal is of a project, user, group or role that is deleted, while some of what belonged to it is still there:
// more than one transaction bears. Its ID is that of the thing, which is gone itself: nobody finds it, its
// name is free, and whatever belongs to it gives nobody any power.
type Removal struct {
	resource.Meta
	Of string // the kind of the thing, as its table's
}

var removals = state.NewTable[Removal]("removal")

// removeAtOnce is how many objects one transaction takes away. Tests make it smaller.
var removeAtOnce = 2000

// remove deletes a thing with all that belongs to it; what is too much for this transaction is left to the
// service's Task.
func remove[T any](tx *state.Tx, table *state.Table[T], id resource.ID) error {
	if err := table.Delete(tx, id); err != nil {
		return err
	}
	done, err := sweepOut(tx, table.Kind(), id)
	if done || err != nil {
		return err
	}
	return removals.Put(tx, &Removal{Meta: resource.Meta{ID: id}, Of: table.Kind()})
}

// sweepOut takes away some of what belongs to a thing and reports whether that was all.
func sweepOut(tx *state.Tx, kind string, id resource.ID) (bool, error) {
	b := &broom{tx: tx, left: removeAtOnce}
	switch kind {
	case projects.Kind():
		b.domain(id) // of a project nothing is found there
		b.project(id)
	case users.Kind():
		b.user(id)
	case groups.Kind():
		b.group(id)
	case roles.Kind():
		b.role(id)
	}
	return b.going(), b.err
}

// leaving reports whether the thing of an ID is being removed.
func leaving(tx *state.Tx, ids ...resource.ID) bool {
	return removals.Len(tx) > 0 && slices.ContainsFunc(ids, func(id resource.ID) bool { return removals.Has(tx, id) })
}

// Task is what the service has to do beside answering: to take away what belonged to large things.
func (s *Service) Task() reconcile.Task {
	return reconcile.Task{
		Name: "identity",
		All:  func(tx *state.Tx) []resource.ID { return removals.IDs(tx, "", "") },
		Touched: func(e state.Event) []resource.ID {
			if _, ok := e.After.(*Removal); ok {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: s.goOn,
	}
}

// goOn takes a removal a step further.
func (s *Service) goOn(ctx context.Context, id resource.ID) (reconcile.Next, error) {
	done := true
	err := s.State.Update(ctx, func(tx *state.Tx) (err error) {
		r, ok := removals.PeekOne(tx, id)
		if !ok {
			return nil
		}
		if done, err = sweepOut(tx, r.Of, id); done && err == nil {
			return removals.Delete(tx, id)
		}
		return err
	})
	if err != nil || done {
		return reconcile.Next{}, err
	}
	return reconcile.Next{After: 10 * time.Millisecond}, nil // others are to get in between
}

// A broom takes objects away until it has had enough of them, those that others refer to last.
type broom struct {
	tx   *state.Tx
	left int
	err  error
}

func (b *broom) going() bool { return b.err == nil && b.left > 0 }

func (b *broom) took(err error) {
	b.left--
	b.err = err
}

// some gives the IDs of as much of an index as the broom takes, the newest first: what is in a tree is
// younger than what it hangs on.
func some[T any](b *broom, table *state.Table[T], index string, key state.Key) []resource.ID {
	var ids []resource.ID
	if !b.going() {
		return nil
	}
	for obj := range table.Peek(b.tx, index, state.Range{Prefix: key, Reverse: true}) {
		if len(ids) == b.left {
			break
		}
		ids = append(ids, any(obj).(resource.Object).GetMeta().ID)
	}
	return ids
}

// each takes away what an index finds.
func each[T any](b *broom, table *state.Table[T], index string, key state.Key) {
	for _, id := range some(b, table, index, key) {
		if b.going() {
			b.took(table.Delete(b.tx, id))
		}
	}
}

// last takes away the thing itself after all of its own, unless it went first.
func last[T any](b *broom, table *state.Table[T], id resource.ID) {
	if b.going() && table.Has(b.tx, id) {
		b.took(table.Delete(b.tx, id))
	}
}

func (b *broom) domain(id resource.ID) {
	key := state.KeyOf(id)
	for _, project := range some(b, projects, "domain", key) {
		b.project(project)
	}
	for _, user := range some(b, users, "domain", key) {
		b.user(user)
	}
	for _, group := range some(b, groups, "domain", key) {
		b.group(group)
	}
	for _, role := range some(b, roles, "domain", key) {
		b.role(role)
	}
	each(b, assignments, "target", state.KeyOf(Scope{DomainID: id}.kind(), id))
	each(b, domainOptions, "domain", key)
}

// project takes away a project with what this package keeps for it, and the projects below it first.
func (b *broom) project(id resource.ID) {
	for b.going() {
		below := id
		for next := range projects.Peek(b.tx, "parent", state.Range{Prefix: state.KeyOf(id)}) {
			below = next.ID
			break
		}
		if below == id {
			break
		}
		b.project(below)
	}
	key := state.KeyOf(id)
	each(b, assignments, "target", state.KeyOf(Scope{ProjectID: id}.kind(), id))
	each(b, credentials, "project", key)
	each(b, appCredentials, "project", key)
	b.trusts("project", key)
	each(b, limits, "owner", key)
	each(b, endpointFilters, "project", key)
	each(b, requestTokens, "project", key)
	each(b, accessTokens, "project", key)
	for _, user := range some(b, users, "project", key) {
		if u, ok := users.Find(b.tx, user); ok && b.going() {
			u.DefaultProjectID = resource.ID{}
			b.took(users.Put(b.tx, u))
		}
	}
	last(b, projects, id)
}

func (b *broom) user(id resource.ID) {
	key := state.KeyOf(id)
	each(b, memberships, "user", key)
	each(b, assignments, "holder", key)
	each(b, credentials, "user", key)
	each(b, appCredentials, "user", key)
	each(b, accessRules, "user", key)
	b.trusts("trustor", key)
	b.trusts("trustee", key)
	each(b, requestTokens, "user", key)
	each(b, accessTokens, "user", key)
	last(b, users, id)
}

func (b *broom) group(id resource.ID) {
	each(b, assignments, "holder", state.KeyOf(id))
	each(b, memberships, "group", state.KeyOf(id))
	last(b, groups, id)
}

func (b *broom) role(id resource.ID) {
	each(b, implications, "pair", state.KeyOf(id))
	each(b, implications, "implied", state.KeyOf(id))
	each(b, assignments, "role", state.KeyOf(id))
	last(b, roles, id)
}

// trusts takes away what an index finds, with those that were made from it.
func (b *broom) trusts(index string, key state.Key) {
	for _, id := range some(b, trusts, index, key) {
		b.trust(id)
	}
}

func (b *broom) trust(id resource.ID) {
	for _, made := range some(b, trusts, "parent", state.KeyOf(id)) {
		b.trust(made)
	}
	last(b, trusts, id)
}
