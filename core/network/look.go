package network

import (
	"iter"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Shown reports whether a thing is there for an actor although it may not be its own: shared,
// external, or in what it owns. An admin is asked about like anybody else.
func (c Collection[T]) Shown(tx *state.Tx, a *identity.Actor, thing *T) bool {
	return c.noun.shown != nil && c.noun.shown(tx, a, thing)
}

// Walk gives what lists show to an actor who is no admin, each thing once, in no order that
// matters: its own things and what others show it. They are shared: look, do not touch.
func (c Collection[T]) Walk(tx *state.Tx, a *identity.Actor) iter.Seq[*T] {
	spans := []span{{index: "by", key: facet(a.ProjectID, all, "")}}
	if c.noun.others != nil {
		spans = append(spans, c.noun.others(tx, a)...)
	}
	return c.noun.each(tx, spans, false)
}

// Forwards gives the native API a look at every port forwarding.
func Forwards() *state.Table[Forward] { return forwards }
