package identity

import (
	"fmt"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// settle runs the service's task until there is nothing to do.
func (w *world) settle() {
	w.t.Helper()
	task := w.Task()
	for range 1000 {
		ids := task.All(w.State.Latest())
		if len(ids) == 0 {
			return
		}
		for _, id := range ids {
			_, err := task.Step(w.t.Context(), id)
			w.must(err)
		}
	}
	w.t.Fatal("removing does not end")
}

// many makes a lot of objects, in as many transactions as it takes.
func many(w *world, n int, make func(tx *state.Tx) error) {
	w.t.Helper()
	for n > 0 {
		w.must(w.State.Update(w.t.Context(), func(tx *state.Tx) error {
			for range min(n, 10_000) {
				if err := make(tx); err != nil {
					return err
				}
			}
			return nil
		}))
		n -= 10_000
	}
}

func TestDeleteALargeDomain(t *testing.T) {
	w := newWorld(t, Config{})
	domain, err := w.CreateProject(w.root(), &Project{Meta: resource.Meta{Name: "acme"}, Enabled: true})
	w.must(err)
	shop, err := w.CreateProject(w.root(), &Project{Meta: resource.Meta{Name: "shop"}, DomainID: domain.ID, Enabled: true})
	w.must(err)
	worker, err := w.CreateUser(w.root(), &User{Meta: resource.Meta{Name: "worker"}, DomainID: domain.ID, Enabled: true}, "worker-password")
	w.must(err)
	// Both outside users in the domain's project and the domain's users outside of it.
	w.must(w.Grant(w.root(), Assignment{HolderID: worker.ID, RoleID: w.role("member"), Scope: Scope{ProjectID: w.project("demo").ID}}))
	w.must(w.Grant(w.root(), Assignment{HolderID: w.user("demo").ID, RoleID: w.role("member"), Scope: Scope{ProjectID: shop.ID}}))
	key, err := w.CreateAccessKey(w.root(), worker.ID, w.project("demo").ID)
	w.must(err)
	proof := Proof{Methods: []string{"password"}, User: UserRef{ID: worker.ID}, Password: "worker-password", Scope: inProject("demo")}
	token, _, err := w.Authenticate(t.Context(), proof)
	w.must(err)
	before := users.Len(w.State.Latest())
	many(w, 34_000, func(tx *state.Tx) error {
		id := tx.NewID()
		return users.Put(tx, &User{Meta: resource.Meta{ID: id, Name: id.Hex()}, DomainID: domain.ID, Enabled: true})
	})
	_, err = w.UpdateProject(w.root(), domain.ID, true, func(p *Project) error { p.Enabled = false; return nil })
	w.must(err)
	w.must(w.DeleteProject(w.root(), domain.ID, true, false))

	if _, ok := users.PeekOne(w.State.Latest(), worker.ID); !ok {
		t.Fatal("the user went with the first of the 34,000: nothing is left to try")
	}
	w.refused(token, "its domain was deleted")
	if _, _, err := w.Authenticate(t.Context(), proof); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a user of a domain that is being deleted logs in: %v", err)
	}
	if _, _, err := w.EC2Secret(t.Context(), key.Access); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("its key is good: %v", err)
	}
	if Usable(w.State.Latest(), shop.ID) {
		t.Error("its project can be used")
	}
	for what, err := range map[string]error{
		"the domain":  second(w.Project(w.root(), domain.ID, true)),
		"the project": second(w.Project(w.root(), shop.ID, false)),
		"the user":    second(w.User(w.root(), worker.ID)),
		"a new user":  second(w.CreateUser(w.root(), &User{Meta: resource.Meta{Name: "late"}, DomainID: domain.ID}, "")),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	all, err := w.Users(w.root(), UserFilter{})
	w.must(err)
	if len(all) != before-1 {
		t.Errorf("%d users are listed, want %d", len(all), before-1)
	}
	if wrong := Audit(w.State.Latest()); len(wrong) > 0 {
		t.Errorf("meanwhile %d things are wrong, as %s", len(wrong), wrong[0])
	}
	_, err = w.CreateProject(w.root(), &Project{Meta: resource.Meta{Name: "acme"}, Enabled: true})
	w.must(err) // the name is free

	w.settle()
	tx := w.State.Latest()
	if wrong := Audit(tx); len(wrong) > 0 || users.Len(tx) != before-1 || projects.Has(tx, shop.ID) || credentials.Has(tx, key.ID) {
		t.Errorf("in the end there are %d users, and %v is wrong", users.Len(tx), wrong)
	}
}

// Whatever has too much to be deleted at once gives nobody any power from then on.
func TestDeleteLargeThings(t *testing.T) {
	const lots = 33_000
	name := 0
	named := func(tx *state.Tx) resource.Meta {
		name++
		return resource.Meta{ID: tx.NewID(), Name: fmt.Sprint(name)}
	}
	t.Run("group", func(t *testing.T) {
		w := newWorld(t, Config{})
		g, err := w.CreateGroup(w.root(), &Group{Meta: resource.Meta{Name: "ops"}, DomainID: DefaultDomain})
		w.must(err)
		w.must(w.AddMember(w.root(), g.ID, w.user("alt").ID))
		w.must(w.Grant(w.root(), Assignment{HolderID: g.ID, OfGroup: true, RoleID: w.role("member"), Scope: Scope{ProjectID: w.project("demo").ID}}))
		token := w.login("alt", inProject("demo"))
		many(w, lots, func(tx *state.Tx) error {
			u := &User{Meta: named(tx), DomainID: DefaultDomain}
			if err := users.Put(tx, u); err != nil {
				return err
			}
			return memberships.Put(tx, &Membership{Meta: resource.Meta{ID: tx.NewID()}, UserID: u.ID, GroupID: g.ID})
		})
		// So many roles that the one is not among the first to go.
		many(w, removeAtOnce+10, func(tx *state.Tx) error {
			p := &Project{Meta: named(tx), DomainID: DefaultDomain, ParentID: DefaultDomain}
			if err := projects.Put(tx, p); err != nil {
				return err
			}
			return assignments.Put(tx, &Assignment{Meta: resource.Meta{ID: tx.NewID()}, RoleID: w.role("member"), HolderID: g.ID, OfGroup: true, Scope: Scope{ProjectID: p.ID}})
		})
		w.must(w.DeleteGroup(w.root(), g.ID))
		w.refused(token, "its group was deleted")
		w.settle()
		if n := memberships.Len(w.State.Latest()); n != 0 {
			t.Errorf("%d memberships are left", n)
		}
	})
	t.Run("role", func(t *testing.T) {
		w := newWorld(t, Config{})
		r, err := w.CreateRole(w.root(), &Role{Meta: resource.Meta{Name: "cook"}})
		w.must(err)
		w.must(w.Imply(w.root(), r.ID, w.role("member")))
		w.must(w.Grant(w.root(), Assignment{HolderID: w.user("alt").ID, RoleID: r.ID, Scope: Scope{ProjectID: w.project("demo").ID}}))
		token := w.login("alt", inProject("demo"))
		many(w, lots, func(tx *state.Tx) error {
			u := &User{Meta: named(tx), DomainID: DefaultDomain}
			if err := users.Put(tx, u); err != nil {
				return err
			}
			return assignments.Put(tx, &Assignment{Meta: resource.Meta{ID: tx.NewID()}, RoleID: r.ID, HolderID: u.ID, Scope: Scope{ProjectID: w.project("demo").ID}})
		})
		w.must(w.DeleteRole(w.root(), r.ID))
		w.refused(token, "its role was deleted")
		w.settle()
		if wrong := Audit(w.State.Latest()); len(wrong) > 0 {
			t.Error(wrong[0])
		}
	})
	t.Run("project", func(t *testing.T) {
		w := newWorld(t, Config{})
		demo := w.project("demo").ID
		token := w.login("demo", inProject("demo"))
		many(w, lots, func(tx *state.Tx) error {
			u := &User{Meta: named(tx), DomainID: DefaultDomain, DefaultProjectID: demo}
			if err := users.Put(tx, u); err != nil {
				return err
			}
			return assignments.Put(tx, &Assignment{Meta: resource.Meta{ID: tx.NewID()}, RoleID: w.role("member"), HolderID: u.ID, Scope: Scope{ProjectID: demo}})
		})
		w.must(w.DeleteProject(w.root(), demo, false, false))
		w.refused(token, "its project was deleted")
		w.settle()
		tx := w.State.Latest()
		if wrong := Audit(tx); len(wrong) > 0 {
			t.Error(wrong[0])
		}
		if ids := users.IDs(tx, "project", state.KeyOf(demo)); len(ids) > 0 {
			t.Errorf("it is the default project of %d users still", len(ids))
		}
	})
	t.Run("user", func(t *testing.T) {
		w := newWorld(t, Config{})
		demo := w.user("demo").ID
		token := w.login("demo", inProject("demo"))
		many(w, lots, func(tx *state.Tx) error {
			return trusts.Put(tx, &Trust{Meta: resource.Meta{ID: tx.NewID()}, TrustorID: demo, TrusteeID: w.user("alt").ID, InProjectID: w.project("demo").ID})
		})
		w.must(w.DeleteUser(w.root(), demo))
		w.refused(token, "its user was deleted")
		w.settle()
		if n := trusts.Len(w.State.Latest()); n != 0 {
			t.Errorf("%d trusts are left", n)
		}
	})
}

func TestDeleteDomainTakesAllAlong(t *testing.T) {
	w := newWorld(t, Config{})
	ctx := w.root()
	count := func() (n int) {
		tx := w.State.Latest()
		return users.Len(tx) + groups.Len(tx) + projects.Len(tx) + roles.Len(tx) + assignments.Len(tx) + memberships.Len(tx) +
			credentials.Len(tx) + trusts.Len(tx) + appCredentials.Len(tx) + implications.Len(tx)
	}
	before := count()
	d := &Project{Enabled: true}
	d.Name = "acme"
	domain, err := w.CreateProject(ctx, d)
	w.must(err)
	p := &Project{DomainID: domain.ID, Enabled: true}
	p.Name = "shop"
	shop, err := w.CreateProject(ctx, p)
	w.must(err)
	u := &User{DomainID: domain.ID, Enabled: true, DefaultProjectID: shop.ID}
	u.Name = "worker"
	worker, err := w.CreateUser(ctx, u, "worker-password")
	w.must(err)
	g := &Group{DomainID: domain.ID}
	g.Name = "ops"
	group, err := w.CreateGroup(ctx, g)
	w.must(err)
	r := &Role{DomainID: domain.ID}
	r.Name = "operator"
	role, err := w.CreateRole(ctx, r)
	w.must(err)
	w.must(w.Imply(ctx, role.ID, w.role("member")))
	w.must(w.AddMember(ctx, group.ID, worker.ID))
	w.must(w.Grant(ctx, Assignment{HolderID: worker.ID, RoleID: w.role("member"), Scope: Scope{ProjectID: shop.ID}}))
	w.must(w.Grant(ctx, Assignment{HolderID: group.ID, OfGroup: true, RoleID: role.ID, Scope: Scope{DomainID: domain.ID}, Inherited: true}))
	w.must(w.Grant(ctx, Assignment{HolderID: w.user("demo").ID, RoleID: w.role("member"), Scope: Scope{ProjectID: shop.ID}}))
	_, err = w.CreateAccessKey(ctx, w.user("demo").ID, shop.ID)
	w.must(err)
	if err := w.DeleteProject(ctx, domain.ID, true, false); !fault.Is(err, fault.Forbidden) {
		t.Errorf("an enabled domain is deleted: %v", err)
	}
	_, err = w.UpdateProject(ctx, domain.ID, true, func(p *Project) error { p.Enabled = false; return nil })
	w.must(err)
	w.must(w.DeleteProject(ctx, domain.ID, true, false))
	if after := count(); after != before {
		t.Errorf("%d objects are left; there were %d", after, before)
	}
	if removals.Len(w.State.Latest()) > 0 {
		t.Error("a small domain is not deleted at once")
	}
}

// Whoever is deleted while its request is under way leaves nothing behind.
func TestRequestsOfADeletedUser(t *testing.T) {
	w := newWorld(t, Config{})
	demo, project := w.user("demo").ID, w.project("demo").ID
	as := w.as(w.login("demo", inProject("demo")))
	c, err := w.CreateConsumer(w.root(), &Consumer{})
	w.must(err)
	request, err := w.RequestAccess(t.Context(), c.ID, project, func(string, string) bool { return true })
	w.must(err)
	w.must(w.DeleteUser(w.root(), demo))
	for verb, err := range map[string]error{
		"an application credential": third(w.CreateApplicationCredential(as, demo, NewApplicationCredential{Name: "ci"})),
		"an access key":             second(w.CreateAccessKey(as, demo, project)),
		"a trust":                   second(w.CreateTrust(as, &Trust{TrustorID: demo, TrusteeID: w.user("alt").ID, InProjectID: project}, []RoleRef{{Name: "member"}})),
		"an access token":           second(w.AuthorizeAccess(as, request.ID, []RoleRef{{Name: "member"}})),
	} {
		if err == nil {
			t.Errorf("a user that is gone makes %s", verb)
		}
	}
	if wrong := Audit(w.State.Latest()); len(wrong) > 0 {
		t.Error(wrong)
	}
}
