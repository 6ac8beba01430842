package identity

import (
	"slices"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// Roles reach a project from every side.
func TestEffectiveRoles(t *testing.T) {
	w := newWorld(t, Config{})
	ctx := w.root()
	make := func(name string, parent resource.ID) *Project {
		p := &Project{DomainID: DefaultDomain, ParentID: parent, Enabled: true}
		p.Name = name
		made, err := w.CreateProject(ctx, p)
		w.must(err)
		return made
	}
	top := make("top", resource.ID{})
	middle := make("middle", top.ID)
	leaf := make("leaf", middle.ID)
	g := &Group{DomainID: DefaultDomain}
	g.Name = "ops"
	group, err := w.CreateGroup(ctx, g)
	w.must(err)
	demo := w.user("demo").ID
	domainRole := &Role{DomainID: DefaultDomain}
	domainRole.Name = "operator"
	operator, err := w.CreateRole(ctx, domainRole)
	w.must(err)
	w.must(w.Imply(ctx, operator.ID, w.role("service")))

	for name, test := range map[string]struct {
		give  Assignment
		where Scope
		want  []string
	}{
		"direct, with implied ones":        {Assignment{HolderID: demo, RoleID: w.role("manager"), Scope: Scope{ProjectID: leaf.ID}}, Scope{ProjectID: leaf.ID}, []string{"manager", "member", "reader"}},
		"inherited from the domain":        {Assignment{HolderID: demo, RoleID: w.role("reader"), Scope: Scope{DomainID: DefaultDomain}, Inherited: true}, Scope{ProjectID: leaf.ID}, []string{"reader"}},
		"inherited is not in the domain":   {Assignment{HolderID: demo, RoleID: w.role("reader"), Scope: Scope{DomainID: DefaultDomain}, Inherited: true}, Scope{DomainID: DefaultDomain}, nil},
		"the domain's own do not descend":  {Assignment{HolderID: demo, RoleID: w.role("reader"), Scope: Scope{DomainID: DefaultDomain}}, Scope{ProjectID: leaf.ID}, nil},
		"inherited over two projects":      {Assignment{HolderID: demo, RoleID: w.role("reader"), Scope: Scope{ProjectID: top.ID}, Inherited: true}, Scope{ProjectID: leaf.ID}, []string{"reader"}},
		"inherited is not in the project":  {Assignment{HolderID: demo, RoleID: w.role("reader"), Scope: Scope{ProjectID: top.ID}, Inherited: true}, Scope{ProjectID: top.ID}, nil},
		"by a group":                       {Assignment{HolderID: group.ID, OfGroup: true, RoleID: w.role("member"), Scope: Scope{ProjectID: leaf.ID}}, Scope{ProjectID: leaf.ID}, []string{"member", "reader"}},
		"of a domain, for what it implies": {Assignment{HolderID: demo, RoleID: operator.ID, Scope: Scope{ProjectID: leaf.ID}}, Scope{ProjectID: leaf.ID}, []string{"service"}},
		"over the system":                  {Assignment{HolderID: demo, RoleID: w.role("reader"), Scope: Scope{System: true}}, Scope{System: true}, []string{"reader"}},
		"the system's are in no project":   {Assignment{HolderID: demo, RoleID: w.role("reader"), Scope: Scope{System: true}}, Scope{ProjectID: leaf.ID}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w.must(w.AddMember(ctx, group.ID, demo))
			w.must(w.Grant(ctx, test.give))
			if got := names(effective(w.State.Latest(), demo, test.where)); !slices.Equal(got, test.want) && len(got)+len(test.want) > 0 {
				t.Errorf("the user has %v, want %v", got, test.want)
			}
			f := HoldingFilter{UserID: demo, Scope: test.where, Effective: true}
			all, err := w.Holdings(ctx, f)
			w.must(err)
			if len(all) != len(test.want) {
				t.Errorf("the effective list has %+v, want %v", all, test.want)
			}
			w.must(w.Revoke(ctx, test.give))
			if got := names(effective(w.State.Latest(), demo, test.where)); len(got) > 0 {
				t.Errorf("the user has %v after it was taken", got)
			}
		})
	}
}

func TestRolesCannotImplyThemselves(t *testing.T) {
	w := newWorld(t, Config{})
	for _, prior := range []string{"reader", "member", "manager"} {
		if err := w.Imply(w.root(), w.role(prior), w.role("admin")); !fault.Is(err, fault.Forbidden) {
			t.Errorf("%s implies admin: %v", prior, err)
		}
	}
}

// An admin of one domain rules that domain, and cannot become more.
func TestDomainAdmin(t *testing.T) {
	w := newWorld(t, Config{})
	ctx := w.root()
	d := &Project{Enabled: true}
	d.Name = "acme"
	domain, err := w.CreateProject(ctx, d)
	w.must(err)
	person := func(name string, domain resource.ID) *User {
		u := &User{DomainID: domain, Enabled: true}
		u.Name = name
		made, err := w.CreateUser(ctx, u, name+"-password")
		w.must(err)
		return made
	}
	boss, worker := person("boss", domain.ID), person("worker", domain.ID)
	mightyOne := person("mighty", domain.ID)
	w.must(w.Grant(ctx, Assignment{HolderID: boss.ID, RoleID: w.role("admin"), Scope: Scope{DomainID: domain.ID}}))
	w.must(w.Grant(ctx, Assignment{HolderID: mightyOne.ID, RoleID: w.role("admin"), Scope: Scope{ProjectID: w.project("admin").ID}}))
	g := &Group{DomainID: domain.ID}
	g.Name = "mighty"
	group, err := w.CreateGroup(ctx, g)
	w.must(err)
	w.must(w.Grant(ctx, Assignment{HolderID: group.ID, OfGroup: true, RoleID: w.role("admin"), Scope: Scope{System: true}}))
	p := &Project{DomainID: domain.ID, Enabled: true}
	p.Name = "shop"
	shop, err := w.CreateProject(ctx, p)
	w.must(err)

	token, _, err := w.Authenticate(t.Context(), Proof{Methods: []string{"password"}, User: UserRef{ID: boss.ID}, Password: "boss-password",
		Scope: ScopeRef{Domain: DomainRef{ID: domain.ID}}})
	w.must(err)
	as := w.as(token)
	pass := "a-new-password"
	keep := func(*User) error { return nil }
	for name, test := range map[string]struct {
		do   func() error
		want fault.Kind // Internal: it works
	}{
		"changes its users": {func() error { _, err := w.UpdateUser(as, worker.ID, keep, &pass); return err }, fault.Internal},
		"gives roles in its projects": {func() error {
			return w.Grant(as, Assignment{HolderID: worker.ID, RoleID: w.role("member"), Scope: Scope{ProjectID: shop.ID}})
		}, fault.Internal},
		"makes another admin of its domain": {func() error {
			return w.Grant(as, Assignment{HolderID: worker.ID, RoleID: w.role("admin"), Scope: Scope{DomainID: domain.ID}})
		}, fault.Internal},
		"cannot make an admin of the cloud by a project": {func() error {
			return w.Grant(as, Assignment{HolderID: worker.ID, RoleID: w.role("admin"), Scope: Scope{ProjectID: shop.ID}})
		}, fault.Forbidden},
		"nor by inheritance": {func() error {
			return w.Grant(as, Assignment{HolderID: worker.ID, RoleID: w.role("admin"), Scope: Scope{DomainID: domain.ID}, Inherited: true})
		}, fault.Forbidden},
		"nor over the system": {func() error {
			return w.Grant(as, Assignment{HolderID: worker.ID, RoleID: w.role("reader"), Scope: Scope{System: true}})
		}, fault.Forbidden},
		"nor take the password of one": {func() error { _, err := w.UpdateUser(as, mightyOne.ID, keep, &pass); return err }, fault.Forbidden},
		"nor join a group of them":     {func() error { return w.AddMember(as, group.ID, worker.ID) }, fault.Forbidden},
		"nor keep an access key of one": {func() error {
			_, err := w.CreateAccessKey(as, mightyOne.ID, w.project("admin").ID)
			return err
		}, fault.Forbidden},
		"does not see another domain's user": {func() error { _, err := w.User(as, w.user("demo").ID); return err }, fault.Forbidden},
		"nor whether there is one":           {func() error { _, err := w.User(as, shop.ID); return err }, fault.Forbidden},
		"does not make domains": {func() error {
			d := &Project{Enabled: true}
			d.Name = "own"
			_, err := w.CreateProject(as, d)
			return err
		}, fault.Forbidden},
		"does not make roles": {func() error {
			r := &Role{}
			r.Name = "admin2"
			_, err := w.CreateRole(as, r)
			return err
		}, fault.Forbidden},
		"lists its own users": {func() error {
			all, err := w.Users(as, UserFilter{})
			if err == nil && len(all) != 3 {
				t.Errorf("it sees %d users, want 3", len(all))
			}
			return err
		}, fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.do()
			if test.want == fault.Internal && err != nil || test.want != fault.Internal && !fault.Is(err, test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPlainUser(t *testing.T) {
	w := newWorld(t, Config{})
	as := w.as(w.login("demo", inProject("demo")))
	demo, alt := w.user("demo").ID, w.user("alt").ID
	_, err := w.User(as, demo)
	w.must(err)
	_, err = w.Project(as, w.project("demo").ID, false)
	w.must(err)
	_, err = w.ScopesOf(as, demo, false)
	w.must(err)
	for name, err := range map[string]error{
		"another user":        second(w.User(as, alt)),
		"no user at all":      second(w.User(as, w.project("demo").ID)),
		"another project":     second(w.Project(as, w.project("alt").ID, false)),
		"the list of users":   second(w.Users(as, UserFilter{})),
		"the roles of others": second(w.Holdings(as, HoldingFilter{})),
		"a user's keys":       second(w.ApplicationCredentialsOf(as, alt)),
	} {
		if !fault.Is(err, fault.Forbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
