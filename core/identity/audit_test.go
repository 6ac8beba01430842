package identity

import (
	"context"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// TestAudit makes, ties together and deletes things at random. Whatever the order, nothing is left
// that refers to what is gone.
func TestAudit(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t, Config{})
		removeAtOnce = rapid.IntRange(1, 30).Draw(r, "at once")
		defer func(usual int) { removeAtOnce = usual }(2000)
		d := &dice{world: w, r: r, ctx: w.root()}
		for range rapid.IntRange(1, 60).Draw(r, "steps") {
			verbs[rapid.IntRange(0, len(verbs)-1).Draw(r, "verb")](d)
			tx := w.State.Latest()
			if wrong := append(Audit(tx), state.Verify(tx)...); len(wrong) > 0 {
				r.Fatalf("after %v: %v", d.done, wrong)
			}
		}
		w.settle()
		if wrong := Audit(w.State.Latest()); len(wrong) > 0 {
			r.Fatalf("in the end, after %v: %v", d.done, wrong)
		}
	})
}

// dice picks what the next verb is about. A verb that is refused is fine: many are.
type dice struct {
	*world
	r    *rapid.T
	ctx  context.Context
	n    int
	done []string
}

func pick[T any](d *dice, table *state.Table[T]) resource.ID {
	var ids []resource.ID
	for obj := range table.All(d.State.Latest()) {
		ids = append(ids, any(obj).(resource.Object).GetMeta().ID)
	}
	if len(ids) == 0 {
		return resource.ID{}
	}
	return ids[rapid.IntRange(0, len(ids)-1).Draw(d.r, table.Kind())]
}

func (d *dice) name() string { d.n++; return fmt.Sprintf("n%d", d.n) }

func (d *dice) note(verb string, err error) {
	if err == nil {
		d.done = append(d.done, verb)
	}
}

func (d *dice) scope() Scope {
	id := pick(d, projects)
	p, _ := projects.PeekOne(d.State.Latest(), id)
	if p.IsDomain() {
		return Scope{DomainID: id}
	}
	return Scope{ProjectID: id}
}

var verbs = []func(*dice){
	func(d *dice) {
		p := &Project{Enabled: true, DomainID: pick(d, projects), ParentID: pick(d, projects)}
		p.Name = d.name()
		_, err := d.CreateProject(d.ctx, p)
		d.note("project", err)
	},
	func(d *dice) {
		p := &Project{Enabled: true}
		p.Name = d.name()
		_, err := d.CreateProject(d.ctx, p)
		d.note("domain", err)
	},
	func(d *dice) {
		u := &User{Enabled: true, DomainID: pick(d, projects), DefaultProjectID: pick(d, projects)}
		u.Name = d.name()
		_, err := d.CreateUser(d.ctx, u, "")
		d.note("user", err)
	},
	func(d *dice) {
		g := &Group{DomainID: pick(d, projects)}
		g.Name = d.name()
		_, err := d.CreateGroup(d.ctx, g)
		d.note("group", err)
	},
	func(d *dice) {
		r := &Role{DomainID: pick(d, projects)}
		r.Name = d.name()
		_, err := d.CreateRole(d.ctx, r)
		d.note("role", err)
	},
	func(d *dice) { d.note("member", d.AddMember(d.ctx, pick(d, groups), pick(d, users))) },
	func(d *dice) { d.note("imply", d.Imply(d.ctx, pick(d, roles), pick(d, roles))) },
	func(d *dice) {
		inherited := rapid.Bool().Draw(d.r, "inherited")
		d.note("grant", d.Grant(d.ctx, Assignment{HolderID: pick(d, users), RoleID: pick(d, roles), Scope: d.scope(), Inherited: inherited}))
	},
	func(d *dice) {
		d.note("grant a group", d.Grant(d.ctx, Assignment{HolderID: pick(d, groups), OfGroup: true, RoleID: pick(d, roles), Scope: d.scope()}))
	},
	func(d *dice) {
		_, err := d.CreateAccessKey(d.ctx, pick(d, users), pick(d, projects))
		d.note("key", err)
	},
	func(d *dice) { // what a user with a role makes for itself, or passes on
		given, ok := assignments.Find(d.State.Latest(), pick(d, assignments))
		if !ok || given.OfGroup || given.Scope.ProjectID.IsZero() {
			return
		}
		a := &Actor{UserID: given.HolderID, ProjectID: given.Scope.ProjectID, TrustID: pick(d, trusts)}
		trust := &Trust{TrustorID: given.HolderID, TrusteeID: pick(d, users), InProjectID: given.Scope.ProjectID, Redelegate: true, Depth: 2}
		if t, ok := trusts.PeekOne(d.State.Latest(), a.TrustID); ok && rapid.Bool().Draw(d.r, "redelegate") {
			a.UserID, trust.TrustorID, trust.InProjectID = t.TrusteeID, t.TrustorID, t.InProjectID
		} else {
			a.TrustID = resource.ID{}
		}
		_, err := d.CreateTrust(As(d.t.Context(), a), trust, []RoleRef{{ID: given.RoleID}})
		d.note("trust", err)
		_, _, err = d.CreateApplicationCredential(As(d.t.Context(), a), a.UserID, NewApplicationCredential{
			Name: d.name(), Limited: true, Rules: []AccessRule{{Service: "compute", Method: "GET", Path: "/"}}})
		d.note("application credential", err)
	},
	func(d *dice) {
		made, err := d.CreateConsumer(d.ctx, &Consumer{})
		d.note("consumer", err)
		yes := func(string, string) bool { return true }
		request, err := d.RequestAccess(d.ctx, made.ID, pick(d, projects), yes)
		d.note("request access", err)
		given, ok := assignments.Find(d.State.Latest(), pick(d, assignments))
		if err != nil || !ok || given.OfGroup {
			return
		}
		as := As(d.t.Context(), &Actor{UserID: given.HolderID})
		request, err = d.AuthorizeAccess(as, request.ID, []RoleRef{{ID: given.RoleID}})
		if d.note("authorize", err); err != nil {
			return
		}
		_, err = d.CreateAccessToken(d.ctx, made.ID, request.ID, request.Verifier, yes)
		d.note("access token", err)
	},
	func(d *dice) { d.note("delete a consumer", d.DeleteConsumer(d.ctx, pick(d, consumers))) },
	func(d *dice) {
		err := d.ShowEndpoint(d.ctx, EndpointFilter{InProjectID: pick(d, projects), EndpointID: pick(d, endpoints)}, true)
		d.note("show an endpoint", err)
	},
	func(d *dice) {
		offer := pick(d, offers)
		_, err := d.CreateDefaultLimits(d.ctx, []*DefaultLimit{{OfferID: offer, Resource: d.name()}})
		d.note("registered limit", err)
		if l, ok := defaultLimits.Find(d.State.Latest(), pick(d, defaultLimits)); ok {
			_, err = d.CreateLimits(d.ctx, []*Limit{{OwnerID: pick(d, projects), OfferID: l.OfferID, Resource: l.Resource}})
			d.note("limit", err)
		}
	},
	func(d *dice) {
		if id := pick(d, removals); !id.IsZero() {
			_, err := d.goOn(d.ctx, id)
			d.note("go on removing", err)
		}
	},
	func(d *dice) { d.note("delete a user", d.DeleteUser(d.ctx, pick(d, users))) },
	func(d *dice) { d.note("delete a group", d.DeleteGroup(d.ctx, pick(d, groups))) },
	func(d *dice) { d.note("delete a role", d.DeleteRole(d.ctx, pick(d, roles))) },
	func(d *dice) { d.note("delete a project", d.DeleteProject(d.ctx, pick(d, projects), false, false)) },
	func(d *dice) {
		id := pick(d, projects)
		_, err := d.UpdateProject(d.ctx, id, true, func(p *Project) error { p.Enabled = false; return nil })
		if err == nil {
			d.note("delete a domain", d.DeleteProject(d.ctx, id, true, false))
		}
	},
	func(d *dice) { d.note("delete a trust", d.DeleteTrust(d.ctx, pick(d, trusts))) },
	func(d *dice) {
		id := pick(d, appCredentials)
		if c, ok := appCredentials.Find(d.State.Latest(), id); ok {
			d.note("delete an application credential", d.DeleteApplicationCredential(d.ctx, c.UserID, id))
		}
	},
	func(d *dice) {
		if c, ok := accessRules.Find(d.State.Latest(), pick(d, accessRules)); ok {
			d.note("delete a rule", d.DeleteAccessRule(d.ctx, c.UserID, c.ID))
		}
	},
	func(d *dice) { d.note("delete an endpoint", d.DeleteEndpoint(d.ctx, pick(d, endpoints))) },
	func(d *dice) { d.note("delete a service", d.DeleteOffer(d.ctx, pick(d, offers))) },
}
