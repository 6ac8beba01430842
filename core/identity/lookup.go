package identity

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// ProjectNamed is the project of this name in the default domain; zero if there is none.
func ProjectNamed(tx *state.Tx, name string) resource.ID {
	p, ok := projects.Lookup(tx, "name", state.KeyOf(DefaultDomain, name))
	if !ok {
		return resource.ID{}
	}
	return p.ID
}

// ActorFor is a user of the default domain in one of its projects, as a token would make it: for
// what the cloud does on a user's behalf without a request.
func (s *Service) ActorFor(_ context.Context, user, project string) (*Actor, error) {
	tx := s.State.Latest()
	u, ok := users.Lookup(tx, "name", state.KeyOf(DefaultDomain, user))
	id := ProjectNamed(tx, project)
	if !ok || id.IsZero() {
		return nil, fault.Errorf(fault.NotFound, "There is no user %s or no project %s.", user, project)
	}
	return s.actorOf(tx, u, id)
}
