package identity

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Who may do what with the things of this package is decided by the domain they belong to, not by
// a project: an admin of the cloud may do all; a reader of the system may see all; an admin
// or reader of a domain the same within it; and a user may see itself, and what it made.

func (a *Actor) manages(domain resource.ID) bool {
	return a.Admin() || !domain.IsZero() && a.DomainID == domain && a.Has("admin")
}

func (a *Actor) reads(domain resource.ID) bool {
	return a.manages(domain) || a.System && a.Has("reader") || !domain.IsZero() && a.DomainID == domain && a.Has("reader")
}

// readsAll reports whether the actor sees every domain, so that for it "there is none" is no secret.
func (a *Actor) readsAll() bool { return a.reads(resource.ID{}) }

// own reports whether the actor is this user, by whatever token.
func (a *Actor) own(user resource.ID) bool { return !a.UserID.IsZero() && a.UserID == user }

// delegated reports whether the actor has only a part of its user's powers: some roles, one project. What
// proves a user's whole identity (a password, another secret) is not shown to it, nor made by it.
func (a *Actor) delegated() bool {
	return !a.TrustID.IsZero() || !a.AccessTokenID.IsZero() || !a.AccessKeyID.IsZero() || !a.ApplicationCredentialID.IsZero()
}

// restricted reports whether the actor may not hand its part on either.
func (a *Actor) restricted() bool { return a.delegated() && !a.Unrestricted }

// mayHandOn gives the roles that the actor may hand on in a project of its user: those that the user holds
// there, and of a delegated actor no more than it was given itself.
func (a *Actor) mayHandOn(tx *state.Tx, action string, project resource.ID) ([]resource.ID, error) {
	have := imply(tx, assigned(tx, a.UserID, Scope{ProjectID: project}))
	if !a.delegated() {
		return have, nil
	}
	if a.restricted() || project != a.ProjectID {
		return nil, refuse(action)
	}
	c, ok := appCredentials.PeekOne(tx, a.ApplicationCredentialID)
	if !ok {
		return nil, unauthorized // gone since the token was checked
	}
	return held(imply(tx, c.RoleIDs), have), nil
}

func refuse(action string) error {
	return fault.Errorf(fault.Forbidden, "You are not authorized to perform the requested action: %s.", action).
		With("action", action).With("role", "admin")
}

// mayManage asks whether the context's actor may change a thing of a domain; the zero domain
// is the cloud itself.
func mayManage(ctx context.Context, action string, domain resource.ID) error {
	if ActorOf(ctx).manages(domain) {
		return nil
	}
	return refuse(action)
}

// mayRead asks whether the actor may see the things of a domain.
func mayRead(ctx context.Context, action string, domain resource.ID) error {
	if ActorOf(ctx).reads(domain) {
		return nil
	}
	return refuse(action)
}

// missing is the answer for a thing that is not there. Whoever could not see it if it were there
// gets the same refusal as for one that is.
func missing(ctx context.Context, action, noun string, name any) error {
	if ActorOf(ctx).readsAll() {
		return notFound(noun, name)
	}
	return refuse(action)
}

// missingToChange is missing for whoever wants to change the thing.
func missingToChange(ctx context.Context, action, noun string, name any) error {
	if ActorOf(ctx).Admin() {
		return notFound(noun, name)
	}
	return refuse(action)
}

func notFound(noun string, name any) error {
	return fault.Errorf(fault.NotFound, "Could not find %s: %v.", noun, name)
}
