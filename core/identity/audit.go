package identity

import (
	"fmt"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Audit finds what refers to something that is gone. There is nothing to find unless a verb
// of this package is wrong.
func Audit(tx *state.Tx) []string {
	var wrong []string
	orphan := func(noun string, id resource.ID, of string, is bool, refs ...resource.ID) {
		for _, ref := range refs {
			is = is || removals.Has(tx, ref) // it goes soon, too
		}
		if !is {
			wrong = append(wrong, fmt.Sprintf("%s %s is of a %s that is gone", noun, id, of))
		}
	}
	domain := func(id resource.ID) bool {
		p, ok := projects.PeekOne(tx, id)
		return ok && p.IsDomain()
	}
	all := state.Range{}
	for p := range projects.Peek(tx, "", all) {
		orphan("project", p.ID, "domain", p.IsDomain() || domain(p.DomainID), p.DomainID)
		orphan("project", p.ID, "parent", p.IsDomain() || projects.Has(tx, p.ParentID), p.ParentID)
	}
	for u := range users.Peek(tx, "", all) {
		orphan("user", u.ID, "domain", domain(u.DomainID), u.DomainID)
	}
	for g := range groups.Peek(tx, "", all) {
		orphan("group", g.ID, "domain", domain(g.DomainID), g.DomainID)
	}
	for r := range roles.Peek(tx, "", all) {
		orphan("role", r.ID, "domain", r.DomainID.IsZero() || domain(r.DomainID), r.DomainID)
	}
	for m := range memberships.Peek(tx, "", all) {
		orphan("membership", m.ID, "user", users.Has(tx, m.UserID), m.UserID)
		orphan("membership", m.ID, "group", groups.Has(tx, m.GroupID), m.GroupID)
	}
	for i := range implications.Peek(tx, "", all) {
		orphan("implication", i.ID, "role", roles.Has(tx, i.PriorID) && roles.Has(tx, i.ImpliedID), i.PriorID, i.ImpliedID)
	}
	for a := range assignments.Peek(tx, "", all) {
		orphan("assignment", a.ID, "role", roles.Has(tx, a.RoleID), a.RoleID)
		orphan("assignment", a.ID, "holder", a.OfGroup && groups.Has(tx, a.HolderID) || !a.OfGroup && users.Has(tx, a.HolderID), a.HolderID)
		orphan("assignment", a.ID, "scope", a.Scope.System || projects.Has(tx, a.Scope.id()), a.Scope.id())
	}
	for c := range credentials.Peek(tx, "", all) {
		orphan("credential", c.ID, "user", users.Has(tx, c.UserID), c.UserID)
		orphan("credential", c.ID, "project", c.InProjectID.IsZero() || projects.Has(tx, c.InProjectID), c.InProjectID)
	}
	for c := range credentials.Peek(tx, "application-credential", all) {
		by := c.ApplicationCredentialID
		orphan("credential", c.ID, "application credential", by.IsZero() || appCredentials.Has(tx, by), c.UserID, c.InProjectID)
	}
	for c := range appCredentials.Peek(tx, "", all) {
		orphan("application credential", c.ID, "user", users.Has(tx, c.UserID), c.UserID)
		orphan("application credential", c.ID, "project", projects.Has(tx, c.InProjectID), c.InProjectID)
		for _, rule := range c.RuleIDs {
			orphan("application credential", c.ID, "rule", accessRules.Has(tx, rule), c.UserID)
		}
	}
	for r := range accessRules.Peek(tx, "", all) {
		orphan("access rule", r.ID, "user", users.Has(tx, r.UserID), r.UserID)
	}
	for t := range trusts.Peek(tx, "", all) {
		orphan("trust", t.ID, "user", users.Has(tx, t.TrustorID) && users.Has(tx, t.TrusteeID), t.TrustorID, t.TrusteeID)
		orphan("trust", t.ID, "project", projects.Has(tx, t.InProjectID), t.InProjectID)
		orphan("trust", t.ID, "trust", t.RedelegateOf.IsZero() || trusts.Has(tx, t.RedelegateOf))
	}
	for t := range requestTokens.Peek(tx, "", all) {
		orphan("request token", t.ID, "consumer", consumers.Has(tx, t.ConsumerID))
		orphan("request token", t.ID, "project", projects.Has(tx, t.InProjectID), t.InProjectID)
		orphan("request token", t.ID, "user", t.UserID.IsZero() || users.Has(tx, t.UserID), t.UserID)
	}
	for t := range accessTokens.Peek(tx, "", all) {
		orphan("access token", t.ID, "consumer", consumers.Has(tx, t.ConsumerID))
		orphan("access token", t.ID, "project", projects.Has(tx, t.InProjectID), t.InProjectID)
		orphan("access token", t.ID, "user", users.Has(tx, t.UserID), t.UserID)
	}
	for e := range endpoints.Peek(tx, "", all) {
		orphan("endpoint", e.ID, "service", offers.Has(tx, e.OfferID))
	}
	for f := range endpointFilters.Peek(tx, "", all) {
		orphan("endpoint filter", f.ID, "project", projects.Has(tx, f.InProjectID), f.InProjectID)
		orphan("endpoint filter", f.ID, "endpoint", endpoints.Has(tx, f.EndpointID) || endpointGroups.Has(tx, f.GroupID))
	}
	for l := range limits.Peek(tx, "", all) {
		orphan("limit", l.ID, "owner", projects.Has(tx, l.OwnerID), l.OwnerID)
		orphan("limit", l.ID, "registered limit", defaultLimits.Has(tx, l.DefaultID))
	}
	for l := range defaultLimits.Peek(tx, "", all) {
		orphan("registered limit", l.ID, "service", offers.Has(tx, l.OfferID))
	}
	for o := range domainOptions.Peek(tx, "", all) {
		orphan("domain option", o.ID, "domain", domain(o.DomainID), o.DomainID)
	}
	return wrong
}
