package identity

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// cheap makes hashes that cost next to nothing, so that tests measure rules and not Argon2.
var cheap = HashCost{MemoryKiB: 8, Passes: 1}

// A world is a bootstrapped cloud with a clock that the test moves.
type world struct {
	*Service
	t   *testing.T
	now time.Time
}

func newWorld(t *testing.T, c Config) *world {
	t.Helper()
	w := &world{t: t, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	clock := func() time.Time { return w.now }
	st, err := state.Open(t.Context(), state.NewMemory(1024), state.Options{Now: clock, Random: rand.NewChaCha8([32]byte{})})
	if err != nil {
		t.Fatal(err)
	}
	c.Hash, c.Now = cheap, clock
	err = Bootstrap(t.Context(), st, BootstrapOptions{
		Config: c, AdminPassword: "admin-password", DemoPassword: "demo-password", AltPassword: "alt-password",
		Offers: []NewOffer{{Type: "identity", Name: "keystone", URL: "/identity"}, {Type: "s3", Name: "s3", URL: ":8701"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Service = New(st, c)
	return w
}

func (w *world) root() context.Context { return Internal(w.t.Context()) }

func (w *world) user(name string) *User {
	w.t.Helper()
	u, ok := UserRef{Name: name, Domain: DomainRef{ID: DefaultDomain}}.find(w.State.Latest())
	if !ok {
		w.t.Fatalf("there is no user %s", name)
	}
	return u
}

func (w *world) project(name string) *Project {
	w.t.Helper()
	p, ok := projects.Lookup(w.State.Latest(), "name", state.KeyOf(DefaultDomain, name))
	if !ok {
		w.t.Fatalf("there is no project %s", name)
	}
	return p
}

func (w *world) role(name string) resource.ID {
	w.t.Helper()
	r, ok := RoleRef{Name: name}.find(w.State.Latest())
	if !ok {
		w.t.Fatalf("there is no role %s", name)
	}
	return r.ID
}

func password(user, password string, scope ScopeRef) Proof {
	return Proof{Methods: []string{"password"}, User: UserRef{Name: user, Domain: DomainRef{ID: DefaultDomain}}, Password: password, Scope: scope}
}

func inProject(name string) ScopeRef {
	return ScopeRef{ProjectName: name, ProjectDomain: DomainRef{ID: DefaultDomain}}
}

func (w *world) login(user string, scope ScopeRef) string {
	w.t.Helper()
	token, _, err := w.Authenticate(w.t.Context(), password(user, user+"-password", scope))
	if err != nil {
		w.t.Fatalf("log in as %s: %v", user, err)
	}
	return token
}

// as is the context of whoever holds a token.
func (w *world) as(token string) context.Context {
	w.t.Helper()
	a, err := w.Verify(w.t.Context(), token)
	if err != nil {
		w.t.Fatalf("verify: %v", err)
	}
	return As(w.t.Context(), a)
}

func (w *world) refused(token, why string) {
	w.t.Helper()
	if _, err := w.Verify(w.t.Context(), token); !fault.Is(err, fault.Unauthorized) {
		w.t.Errorf("a token is good after %s: %v", why, err)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

func third[A, B any](_ A, _ B, err error) error { return err }
