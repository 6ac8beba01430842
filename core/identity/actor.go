package identity

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// An Actor is who asks: a user with the roles of the scope that the token is for. Dialects
// verify tokens and signatures, and put the Actor into the request's context.
type Actor struct {
	UserID       resource.ID
	UserName     string
	UserDomainID resource.ID

	// The scope: at most one of these three.
	ProjectID resource.ID
	DomainID  resource.ID
	System    bool

	Roles []string // names, with the implied ones

	ApplicationCredentialID resource.ID // zero if none was used
	TrustID                 resource.ID // the trust that the actor works under; zero for none
	AccessTokenID           resource.ID // what a user let a consumer do; zero for none
	AccessKeyID             resource.ID // the credential that a signature was made with; zero for none
	Unrestricted            bool        // of that credential: it may make others
	TokenID                 string      // the audit ID of the token, for the trail; never the token
	ExpiresAt               time.Time
}

// Has reports whether the actor holds a role in its scope.
func (a *Actor) Has(role string) bool { return slices.Contains(a.Roles, role) }

// Admin reports whether the actor may act on everybody's things: it holds the admin role in
// a project or over the whole system. An admin of a domain is no Admin.
func (a *Actor) Admin() bool { return a.Has("admin") && a.DomainID.IsZero() }

// Standing spells who the actor is and on whose behalf, scope and delegation told apart: what one of a user's
// sessions has asked for is not answered to another one with less power. "" for nobody.
func (a *Actor) Standing() string {
	if a.UserID.IsZero() {
		return ""
	}
	parts := []string{a.ProjectID.String(), a.UserID.String()}
	if a.System {
		parts = append(parts, "system")
	}
	for _, of := range []struct {
		kind string
		id   resource.ID
	}{{"domain", a.DomainID}, {"trust", a.TrustID}, {"access-token", a.AccessTokenID}, {"access-key", a.AccessKeyID},
		{"application-credential", a.ApplicationCredentialID}} {
		if !of.id.IsZero() {
			parts = append(parts, of.kind, of.id.String())
		}
	}
	return strings.Join(parts, "/")
}

type actorKey struct{}

// As returns a context in which this actor asks.
func As(ctx context.Context, a *Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf is who asks; an Actor without roles or user when nobody was verified.
func ActorOf(ctx context.Context) *Actor {
	if a, ok := ctx.Value(actorKey{}).(*Actor); ok {
		return a
	}
	return &Actor{}
}

// Internal is the cloud itself: what it does on its own account, outside of any request.
func Internal(ctx context.Context) context.Context {
	return As(ctx, &Actor{UserName: "unkai", System: true, Roles: []string{"admin", "manager", "member", "reader"}})
}
