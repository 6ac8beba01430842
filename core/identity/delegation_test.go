package identity

import (
	"context"
	"slices"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

func signed(string, string) bool { return true }

// delegates are the ways in which the user admin lets somebody act as a reader of its project, each as the
// context of whoever does.
func delegates(w *world) map[string]context.Context {
	w.t.Helper()
	admin, project := w.user("admin").ID, w.project("admin").ID
	ctx := w.as(w.login("admin", inProject("admin")))
	reader := []RoleRef{{Name: "reader"}}
	all := map[string]context.Context{}

	c, err := w.CreateConsumer(w.root(), &Consumer{})
	w.must(err)
	request, err := w.RequestAccess(w.t.Context(), c.ID, project, signed)
	w.must(err)
	request, err = w.AuthorizeAccess(ctx, request.ID, reader)
	w.must(err)
	access, err := w.CreateAccessToken(w.t.Context(), c.ID, request.ID, request.Verifier, signed)
	w.must(err)
	token, _, err := w.Authenticate(w.t.Context(), Proof{Methods: []string{"oauth1"}, ConsumerID: c.ID, AccessTokenID: access.ID, Signed: signed})
	w.must(err)
	all["an access token"] = w.as(token)

	trust, err := w.CreateTrust(ctx, &Trust{TrustorID: admin, TrusteeID: w.user("alt").ID, InProjectID: project, Impersonate: true}, reader)
	w.must(err)
	all["a trust"] = w.as(w.login("alt", ScopeRef{TrustID: trust.ID}))

	for name, unrestricted := range map[string]bool{"an application credential": false, "an unrestricted application credential": true} {
		ac, secret, err := w.CreateApplicationCredential(ctx, admin, NewApplicationCredential{Name: name, Roles: reader, Unrestricted: unrestricted})
		w.must(err)
		token, _, err = w.Authenticate(w.t.Context(), Proof{Methods: []string{"application_credential"}, CredentialID: ac.ID, Secret: secret})
		w.must(err)
		all[name] = w.as(token)
	}

	key, err := w.CreateAccessKey(all["an unrestricted application credential"], admin, project)
	w.must(err)
	_, actor, err := w.EC2Secret(w.t.Context(), key.Access)
	w.must(err)
	all["an access key"] = As(w.t.Context(), actor)
	return all
}

func TestDelegatesGainNothing(t *testing.T) {
	w := newWorld(t, Config{})
	admin, alt, project := w.user("admin").ID, w.user("alt").ID, w.project("admin").ID
	own := w.as(w.login("admin", inProject("admin")))
	key, err := w.CreateAccessKey(own, admin, project)
	w.must(err)
	other := &Project{DomainID: DefaultDomain, Enabled: true}
	other.Name = "other"
	other, err = w.CreateProject(w.root(), other)
	w.must(err)
	w.must(w.Grant(w.root(), Assignment{HolderID: admin, RoleID: w.role("reader"), Scope: Scope{ProjectID: other.ID}}))
	// What each asks for, and what the unrestricted application credential alone may have.
	asks := map[string]struct {
		do      func(ctx context.Context) error
		allowed bool
	}{
		"a trust of more": {func(ctx context.Context) error {
			return second(w.CreateTrust(ctx, &Trust{TrustorID: admin, TrusteeID: alt, InProjectID: project, Impersonate: true}, []RoleRef{{Name: "admin"}}))
		}, false},
		"a trust elsewhere": {func(ctx context.Context) error {
			return second(w.CreateTrust(ctx, &Trust{TrustorID: admin, TrusteeID: alt, InProjectID: other.ID}, []RoleRef{{Name: "reader"}}))
		}, false},
		"a trust": {func(ctx context.Context) error {
			return second(w.CreateTrust(ctx, &Trust{TrustorID: admin, TrusteeID: alt, InProjectID: project}, []RoleRef{{Name: "reader"}}))
		}, true},
		"an application credential with more": {func(ctx context.Context) error {
			return third(w.CreateApplicationCredential(ctx, admin, NewApplicationCredential{Name: "more", Roles: []RoleRef{{Name: "admin"}}}))
		}, false},
		"an application credential": {func(ctx context.Context) error {
			return third(w.CreateApplicationCredential(ctx, admin, NewApplicationCredential{Name: "same"}))
		}, true},
		"an access key":           {func(ctx context.Context) error { return second(w.CreateAccessKey(ctx, admin, project)) }, true},
		"an access key elsewhere": {func(ctx context.Context) error { return second(w.CreateAccessKey(ctx, admin, other.ID)) }, false},
		"a secret for passcodes": {func(ctx context.Context) error {
			return second(w.CreateCredential(ctx, &Credential{Type: "totp", UserID: admin, Blob: "GEZDGNBVGY3TQOJQ"}))
		}, false},
		"to change a key": {func(ctx context.Context) error {
			return second(w.UpdateCredential(ctx, key.ID, func(*Credential) error { return nil }))
		}, false},
		"to delete a key": {func(ctx context.Context) error { return w.DeleteCredential(ctx, key.ID) }, false},
		"to let a consumer act": {func(ctx context.Context) error {
			return second(w.AuthorizeAccess(ctx, resource.ID{1}, []RoleRef{{Name: "reader"}}))
		}, false},
	}
	for who, ctx := range delegates(w) {
		for what, ask := range asks {
			t.Run(who+" asks for "+what, func(t *testing.T) {
				err := ask.do(ctx)
				if want := ask.allowed && who == "an unrestricted application credential"; want != (err == nil) {
					t.Errorf("the answer is %v", err)
				}
			})
		}
		t.Run(who+" reads a secret", func(t *testing.T) {
			all, err := w.Credentials(ctx, resource.ID{}, "")
			w.must(err)
			for _, c := range all {
				if c.ID == key.ID && (c.Blob != "" || c.Secret != "") {
					t.Error("it is in the list")
				}
			}
			c, err := w.Credential(ctx, key.ID)
			if err != nil || c.Blob != "" || c.Secret != "" {
				t.Errorf("it is shown: %+v, %v", c, err)
			}
			c, err = w.AccessKey(ctx, admin, key.Access)
			if err != nil || c.Blob != "" || c.Secret != "" {
				t.Errorf("it is shown with its key: %+v, %v", c, err)
			}
		})
	}
	if c, err := w.Credential(own, key.ID); err != nil || c.Secret == "" {
		t.Errorf("its owner does not see it: %v", err)
	}
	if wrong := Audit(w.State.Latest()); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// An access key is no more than the application credential that made it.
func TestAccessKeyOfAnApplicationCredential(t *testing.T) {
	w := newWorld(t, Config{})
	admin := w.user("admin").ID
	ctx := w.as(w.login("admin", inProject("admin")))
	c, secret, err := w.CreateApplicationCredential(ctx, admin, NewApplicationCredential{Name: "ci", Roles: []RoleRef{{Name: "reader"}}, Unrestricted: true})
	w.must(err)
	token, _, err := w.Authenticate(t.Context(), Proof{Methods: []string{"application_credential"}, CredentialID: c.ID, Secret: secret})
	w.must(err)
	key, err := w.CreateAccessKey(w.as(token), admin, w.project("admin").ID)
	w.must(err)
	_, a, err := w.EC2Secret(t.Context(), key.Access)
	w.must(err)
	if !slices.Equal(a.Roles, []string{"reader"}) {
		t.Errorf("the key gives %v", a.Roles)
	}
	if seen, err := w.Credential(w.as(token), key.ID); err != nil || seen.Secret != key.Secret {
		t.Errorf("what made the key does not see it: %v", err)
	}
	w.must(w.DeleteApplicationCredential(ctx, admin, c.ID))
	if _, _, err := w.EC2Secret(t.Context(), key.Access); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("the key outlives it: %v", err)
	}
}

// Access rules bind what a credential makes, too.
func TestAccessRulesAreHandedOn(t *testing.T) {
	w := newWorld(t, Config{})
	demo := w.user("demo").ID
	rule := AccessRule{Service: "identity", Method: "POST", Path: "/v3/**"}
	c, secret, err := w.CreateApplicationCredential(w.as(w.login("demo", inProject("demo"))), demo,
		NewApplicationCredential{Name: "ci", Unrestricted: true, Limited: true, Rules: []AccessRule{rule}})
	w.must(err)
	_, n, err := w.Authenticate(t.Context(), Proof{Methods: []string{"application_credential"}, CredentialID: c.ID, Secret: secret})
	w.must(err)
	as := As(t.Context(), n.Actor())
	for name, test := range map[string]struct {
		want NewApplicationCredential
		ok   bool
	}{
		"no rules":     {NewApplicationCredential{Name: "a"}, false},
		"other rules":  {NewApplicationCredential{Name: "b", Limited: true, Rules: []AccessRule{{Service: "compute", Method: "GET", Path: "/**"}}}, false},
		"the same":     {NewApplicationCredential{Name: "c", Limited: true, Rules: []AccessRule{rule}}, true},
		"none allowed": {NewApplicationCredential{Name: "d", Limited: true}, true},
	} {
		if _, _, err := w.CreateApplicationCredential(as, demo, test.want); test.ok != (err == nil) || !test.ok && !fault.Is(err, fault.Forbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.CreateAccessKey(as, demo, w.project("demo").ID); !fault.Is(err, fault.Forbidden) {
		t.Errorf("an access key: %v", err)
	}
	if _, err := w.CreateTrust(as, &Trust{TrustorID: demo, TrusteeID: w.user("alt").ID, InProjectID: w.project("demo").ID}, []RoleRef{{Name: "member"}}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a trust: %v", err)
	}
}

func TestASystemReaderSeesNoSecret(t *testing.T) {
	w := newWorld(t, Config{})
	_, err := w.CreateAccessKey(w.as(w.login("admin", inProject("admin"))), w.user("admin").ID, w.project("admin").ID)
	w.must(err)
	_, err = w.CreateCredential(w.root(), &Credential{Type: "totp", UserID: w.user("admin").ID, Blob: "GEZDGNBVGY3TQOJQ"})
	w.must(err)
	w.must(w.Grant(w.root(), Assignment{HolderID: w.user("alt").ID, RoleID: w.role("reader"), Scope: Scope{System: true}}))
	as := w.as(w.login("alt", ScopeRef{System: true}))
	all, err := w.Credentials(as, resource.ID{}, "")
	w.must(err)
	if len(all) != 2 {
		t.Errorf("it sees %d credentials, want 2", len(all))
	}
	for _, c := range all {
		if c.Blob != "" || c.Secret != "" {
			t.Errorf("it sees the secret of type %s", c.Type)
		}
	}
}

// A domain's admin may not act on a user who can do anything that it cannot.
func TestDomainAdminAndTheMighty(t *testing.T) {
	w := newWorld(t, Config{})
	domain, err := w.CreateProject(w.root(), &Project{Meta: resource.Meta{Name: "acme"}, Enabled: true})
	w.must(err)
	shop, err := w.CreateProject(w.root(), &Project{Meta: resource.Meta{Name: "shop"}, DomainID: domain.ID, Enabled: true})
	w.must(err)
	person := func(name string) *User {
		u, err := w.CreateUser(w.root(), &User{Meta: resource.Meta{Name: name}, DomainID: domain.ID, Enabled: true}, name+"-password")
		w.must(err)
		return u
	}
	boss := person("boss")
	w.must(w.Grant(w.root(), Assignment{HolderID: boss.ID, RoleID: w.role("admin"), Scope: Scope{DomainID: domain.ID}}))
	token, _, err := w.Authenticate(t.Context(), Proof{Methods: []string{"password"}, User: UserRef{ID: boss.ID}, Password: "boss-password",
		Scope: ScopeRef{Domain: DomainRef{ID: domain.ID}}})
	w.must(err)
	as := w.as(token)
	auditor := person("auditor")
	w.must(w.Grant(w.root(), Assignment{HolderID: auditor.ID, RoleID: w.role("reader"), Scope: Scope{System: true}}))

	for name, test := range map[string]struct {
		given func(u *User) error
		may   bool
	}{
		"nothing": {func(*User) error { return nil }, true},
		"member of a project of the domain": {func(u *User) error {
			return w.Grant(w.root(), Assignment{HolderID: u.ID, RoleID: w.role("member"), Scope: Scope{ProjectID: shop.ID}})
		}, true},
		"admin of the domain": {func(u *User) error {
			return w.Grant(w.root(), Assignment{HolderID: u.ID, RoleID: w.role("admin"), Scope: Scope{DomainID: domain.ID}})
		}, true},
		"reader of the system": {func(u *User) error {
			return w.Grant(w.root(), Assignment{HolderID: u.ID, RoleID: w.role("reader"), Scope: Scope{System: true}})
		}, false},
		"member of another domain's project": {func(u *User) error {
			return w.Grant(w.root(), Assignment{HolderID: u.ID, RoleID: w.role("member"), Scope: Scope{ProjectID: w.project("demo").ID}})
		}, false},
		"a service": {func(u *User) error {
			return w.Grant(w.root(), Assignment{HolderID: u.ID, RoleID: w.role("service"), Scope: Scope{ProjectID: shop.ID}})
		}, false},
		"trustee of another domain's user": {func(u *User) error {
			return second(w.CreateTrust(w.as(w.login("demo", inProject("demo"))), &Trust{TrustorID: w.user("demo").ID, TrusteeID: u.ID,
				InProjectID: w.project("demo").ID, Impersonate: true}, []RoleRef{{Name: "reader"}}))
		}, false},
		"trustee of a mighty user": {func(u *User) error {
			if err := w.Grant(w.root(), Assignment{HolderID: auditor.ID, RoleID: w.role("member"), Scope: Scope{ProjectID: shop.ID}}); err != nil {
				return err
			}
			ctx := As(t.Context(), &Actor{UserID: auditor.ID, ProjectID: shop.ID, Roles: []string{"member"}})
			return second(w.CreateTrust(ctx, &Trust{TrustorID: auditor.ID, TrusteeID: u.ID, InProjectID: shop.ID, Impersonate: true}, []RoleRef{{Name: "member"}}))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := person("u-" + name)
			w.must(test.given(u))
			stolen := "stolen-password"
			_, err := w.UpdateUser(as, u.ID, func(*User) error { return nil }, &stolen)
			if test.may && err != nil || !test.may && !fault.Is(err, fault.Forbidden) {
				t.Errorf("setting its password: %v", err)
			}
		})
	}
	for _, role := range []string{"service", "ResellerAdmin"} {
		if err := w.Grant(as, Assignment{HolderID: boss.ID, RoleID: w.role(role), Scope: Scope{ProjectID: shop.ID}}); !fault.Is(err, fault.Forbidden) {
			t.Errorf("it gives itself the role %s: %v", role, err)
		}
		if err := w.Grant(as, Assignment{HolderID: boss.ID, RoleID: w.role(role), Scope: Scope{DomainID: domain.ID}}); !fault.Is(err, fault.Forbidden) {
			t.Errorf("it gives itself the role %s in its domain: %v", role, err)
		}
	}
}

func TestALimitedTrustIsNotPassedOn(t *testing.T) {
	w := newWorld(t, Config{})
	demo, alt, project := w.user("demo").ID, w.user("alt").ID, w.project("demo").ID
	ctx := w.as(w.login("demo", inProject("demo")))
	one := 1
	_, err := w.CreateTrust(ctx, &Trust{TrustorID: demo, TrusteeID: alt, InProjectID: project, UsesLeft: &one, Redelegate: true, Depth: 2}, []RoleRef{{Name: "member"}})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("a trust for one use that can be passed on: %v", err)
	}
}

// A new password of either party ends the tokens of a trust.
func TestATrustEndsWithAPassword(t *testing.T) {
	for _, impersonate := range []bool{true, false} {
		for _, party := range []string{"demo", "alt"} {
			w := newWorld(t, Config{})
			trust, err := w.CreateTrust(w.as(w.login("demo", inProject("demo"))), &Trust{TrustorID: w.user("demo").ID, TrusteeID: w.user("alt").ID,
				InProjectID: w.project("demo").ID, Impersonate: impersonate}, []RoleRef{{Name: "member"}})
			w.must(err)
			token := w.login("alt", ScopeRef{TrustID: trust.ID})
			w.as(token)
			w.must(w.ChangePassword(t.Context(), w.user(party).ID, party+"-password", "another-password"))
			w.refused(token, "a new password of "+party)
		}
	}
}
