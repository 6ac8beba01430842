package identity

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

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

func TestBootstrapAgainChangesNothing(t *testing.T) {
	w := newWorld(t, Config{})
	before := w.State.Latest().Revision()
	err := Bootstrap(t.Context(), w.State, BootstrapOptions{Config: Config{Hash: cheap}, AdminPassword: "another", DemoPassword: "another", AltPassword: "another"})
	w.must(err)
	if after := w.State.Latest().Revision(); after != before {
		t.Errorf("the state went from revision %d to %d", before, after)
	}
	w.login("admin", inProject("admin")) // the password that it had
}

// What ends a token at once, and what does not.
var endings = map[string]struct {
	do   func(w *world, token string) error
	ends bool
}{
	"nothing": {func(*world, string) error { return nil }, false},
	"the password was changed": {func(w *world, _ string) error {
		return w.ChangePassword(w.t.Context(), w.user("demo").ID, "demo-password", "another-password")
	}, true},
	"the user was disabled": {func(w *world, _ string) error {
		_, err := w.UpdateUser(w.root(), w.user("demo").ID, func(u *User) error { u.Enabled = false; return nil }, nil)
		return err
	}, true},
	"the user was disabled and enabled": {func(w *world, _ string) error {
		for _, enabled := range []bool{false, true} {
			if _, err := w.UpdateUser(w.root(), w.user("demo").ID, func(u *User) error { u.Enabled = enabled; return nil }, nil); err != nil {
				return err
			}
		}
		return nil
	}, true},
	"the user was deleted": {func(w *world, _ string) error { return w.DeleteUser(w.root(), w.user("demo").ID) }, true},
	"the project was disabled": {func(w *world, _ string) error {
		_, err := w.UpdateProject(w.root(), w.project("demo").ID, false, func(p *Project) error { p.Enabled = false; return nil })
		return err
	}, true},
	"the project was deleted": {func(w *world, _ string) error { return w.DeleteProject(w.root(), w.project("demo").ID, false, false) }, true},
	"the last role was taken": {func(w *world, _ string) error {
		return w.Revoke(w.root(), Assignment{HolderID: w.user("demo").ID, RoleID: w.role("member"), Scope: Scope{ProjectID: w.project("demo").ID}})
	}, true},
	"another role was given": {func(w *world, _ string) error {
		return w.Grant(w.root(), Assignment{HolderID: w.user("demo").ID, RoleID: w.role("manager"), Scope: Scope{ProjectID: w.project("demo").ID}})
	}, false},
	"it was revoked": {func(w *world, token string) error {
		n, err := w.Session(w.t.Context(), token)
		if err != nil {
			return err
		}
		return w.RevokeToken(w.as(token), n)
	}, true},
	"another token of the user was revoked": {func(w *world, _ string) error {
		other := w.login("demo", inProject("demo"))
		n, err := w.Session(w.t.Context(), other)
		if err != nil {
			return err
		}
		return w.RevokeToken(w.as(other), n)
	}, false},
	"an hour":         {func(w *world, _ string) error { w.now = w.now.Add(time.Hour); return nil }, true},
	"all but an hour": {func(w *world, _ string) error { w.now = w.now.Add(time.Hour - time.Millisecond); return nil }, false},
	"a new key":       {func(w *world, _ string) error { return w.RotateKeys(w.root()) }, false},
	"a new key and a sweep": {func(w *world, _ string) error {
		if err := w.RotateKeys(w.root()); err != nil {
			return err
		}
		return w.Sweep(w.root())
	}, false},
}

func TestTokenEnds(t *testing.T) {
	for name, test := range endings {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			token := w.login("demo", inProject("demo"))
			w.as(token)
			w.must(test.do(w, token))
			_, err := w.Verify(t.Context(), token)
			if test.ends && !fault.Is(err, fault.Unauthorized) {
				t.Errorf("the token is good still: %v", err)
			}
			if !test.ends && err != nil {
				t.Errorf("the token is no good: %v", err)
			}
		})
	}
}

func TestSweepForgetsOldKeys(t *testing.T) {
	w := newWorld(t, Config{})
	token := w.login("demo", inProject("demo"))
	n, err := w.Session(t.Context(), token)
	w.must(err)
	w.must(w.RevokeToken(w.as(token), n))
	w.must(w.RotateKeys(w.root()))
	w.now = w.now.Add(2 * time.Hour)
	w.must(w.Sweep(w.root()))
	tx := w.State.Latest()
	if keys, revoked := tokenKeys.Len(tx), revocations.Len(tx); keys != 1 || revoked != 0 {
		t.Errorf("there are %d keys and %d revocations; want 1 and none", keys, revoked)
	}
	w.login("demo", inProject("demo"))
}

// A key signs for a day, and is gone when its tokens are.
func TestSweepChangesTheKey(t *testing.T) {
	w := newWorld(t, Config{})
	for hour, want := range []int{23: 1, 24: 2, 25: 2, 26: 2, 47: 2, 48: 3} {
		if want == 0 {
			continue
		}
		w.now = time.Date(2030, 1, 1, hour, 0, 1, 0, time.UTC)
		w.must(w.Sweep(w.root()))
		token := w.login("demo", inProject("demo"))
		if serial := newestKey(w.State.Latest()).Serial; serial != want {
			t.Errorf("after %d hours key %d signs, want %d", hour, serial, want)
		}
		w.now = w.now.Add(time.Hour - time.Second)
		w.must(w.Sweep(w.root()))
		w.as(token)
	}
	w.now = w.now.Add(24 * time.Hour)
	w.must(w.Sweep(w.root()))
	w.now = w.now.Add(2 * time.Hour)
	w.must(w.Sweep(w.root()))
	if keys := tokenKeys.Len(w.State.Latest()); keys != 1 {
		t.Errorf("%d keys are kept, want 1", keys)
	}
}

func TestSweepForgetsAsManyAsThereAre(t *testing.T) {
	w := newWorld(t, Config{})
	for range 3 {
		w.must(w.State.Update(t.Context(), func(tx *state.Tx) error {
			for range sweepAtOnce {
				if err := revocations.Put(tx, &Revocation{Meta: resource.Meta{ID: tx.NewID()}, Serial: 1, ExpiresAt: w.now}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	w.must(w.RotateKeys(w.root()))
	w.now = w.now.Add(2 * time.Hour)
	w.must(w.Sweep(w.root()))
	if n := revocations.Len(w.State.Latest()); n != 0 {
		t.Errorf("%d revocations are left", n)
	}
}

// However wrong the clock was, or is: a revoked token is never good again, and nothing lasts for years.
func TestWrongClock(t *testing.T) {
	far := 9 * 365 * 24 * time.Hour
	revoke := func(w *world) string {
		token := w.login("demo", inProject("demo"))
		n, err := w.Session(t.Context(), token)
		w.must(err)
		w.must(w.RevokeToken(w.as(token), n))
		return token
	}
	change := func(w *world) {
		w.must(second(w.UpdateUser(w.root(), w.user("alt").ID, func(u *User) error { u.Description += "x"; return nil }, nil)))
	}
	t.Run("it was in the future before the token was made", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.now = w.now.Add(far)
		change(w)
		w.now = w.now.Add(-far)
		token := revoke(w)
		w.must(w.Sweep(w.root()))
		w.refused(token, "a sweep")
	})
	t.Run("it is in the future for a while", func(t *testing.T) {
		w := newWorld(t, Config{})
		token := revoke(w)
		w.now = w.now.Add(far)
		for range 3 {
			w.must(w.Sweep(w.root()))
			w.now = w.now.Add(2 * time.Hour)
		}
		w.now = w.now.Add(-far - 6*time.Hour)
		w.refused(token, "sweeps under another clock")
		for range 3 {
			w.must(w.Sweep(w.root()))
			w.refused(token, "the clock was set right")
			w.as(w.login("demo", inProject("demo")))
			w.now = w.now.Add(2 * time.Hour)
		}
		if keys, revoked := tokenKeys.Len(w.State.Latest()), revocations.Len(w.State.Latest()); keys > 2 || revoked > 0 {
			t.Errorf("%d keys and %d revocations are kept", keys, revoked)
		}
	})
	t.Run("what was made in the future ends", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.now = w.now.Add(far)
		token := w.login("demo", inProject("demo"))
		c, err := w.CreateConsumer(w.root(), &Consumer{})
		w.must(err)
		_, err = w.RequestAccess(t.Context(), c.ID, w.project("demo").ID, signed)
		w.must(err)
		_, err = w.CreateCredential(w.root(), &Credential{Type: "totp", UserID: w.user("demo").ID, Blob: "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"})
		w.must(err)
		passcode := func() error {
			p := Proof{Methods: []string{"totp"}, User: UserRef{ID: w.user("demo").ID}, Passcode: totp([]byte("12345678901234567890"), w.now.Unix()/30)}
			return third(w.Authenticate(t.Context(), p))
		}
		w.must(passcode())
		for range 10 {
			w.Authenticate(t.Context(), password("alt", "wrong", ScopeRef{}))
		}
		w.now = w.now.Add(-far)
		w.refused(token, "the clock was set right")
		w.must(passcode())
		if err := passcode(); !fault.Is(err, fault.Unauthorized) {
			t.Errorf("the same passcode twice: %v", err)
		}
		w.now = w.now.Add(time.Hour)
		w.login("alt", inProject("alt"))
		w.must(w.Sweep(w.root()))
		if n := requestTokens.Len(w.State.Latest()); n != 0 {
			t.Errorf("%d request tokens of the future are kept", n)
		}
	})
}

func TestForgedTokens(t *testing.T) {
	w := newWorld(t, Config{})
	token := w.login("demo", inProject("demo"))
	for i := range token {
		for _, c := range []byte{'A', 'B', '_'} {
			if token[i] == c {
				continue
			}
			forged := token[:i] + string(c) + token[i+1:]
			if _, err := w.Verify(t.Context(), forged); !fault.Is(err, fault.Unauthorized) {
				t.Fatalf("a token changed at %d is good: %v", i, err)
			}
		}
	}
	other := newWorld(t, Config{})
	for why, forged := range map[string]string{
		"":                                     "being left out",
		token + "A":                            "something was added",
		token + "=":                            "padding was added",
		token[:40]:                             "it was cut",
		" " + token:                            "a space was put in front",
		strings.Repeat("A", 1<<16):             "it was made of nothing",
		other.login("demo", inProject("demo")): "it came from another cloud",
	} {
		w.refused(why, forged)
	}
}

// The same claim comes back, and nothing that is longer than promised.
func TestClaim(t *testing.T) {
	key := &TokenKey{Serial: 7, Secret: bytes.Repeat([]byte{1}, tokenKeyBytes)}
	id := func() resource.ID { return resource.NewID(time.Now(), nil) }
	at := time.UnixMilli(1893456000123).UTC()
	for _, scope := range []Scope{{}, {ProjectID: id()}, {DomainID: id()}, {System: true}} {
		for via := ViaUser; via <= ViaAccessKey; via++ {
			for _, parent := range []resource.ID{{}, id()} {
				c := Claim{Serial: 7, UserID: id(), Epoch: 3, Scope: scope, Via: via, AuditID: id(), ParentID: parent,
					Methods: ByPassword | ByToken, IssuedAt: at, ExpiresAt: at.Add(time.Hour)}
				if via != ViaUser {
					c.ViaID = id()
				}
				if via == ViaTrust {
					c.Other = 9
				}
				token := c.encode(key)
				if len(token) > TokenMost || TokenMost >= 255 {
					t.Errorf("a token has %d characters; at most %d are promised, and 255 too many", len(token), TokenMost)
				}
				got, err := decode(token, func(serial int) *TokenKey {
					if serial == key.Serial {
						return key
					}
					return nil
				})
				if err != nil || *got != c {
					t.Errorf("%+v became %+v, %v", c, got, err)
				}
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	key := &TokenKey{Serial: 1, Secret: make([]byte, tokenKeyBytes)}
	c := Claim{UserID: DefaultDomain, AuditID: DefaultDomain, Scope: Scope{ProjectID: DefaultDomain}, ParentID: DefaultDomain}
	f.Add(c.encode(key), []byte{})
	f.Add("", []byte{1, 0, 0, 0, 1, 0xff})
	f.Fuzz(func(t *testing.T, token string, body []byte) {
		find := func(int) *TokenKey { return key }
		if c, err := decode(token, find); err == nil && c.encode(key) != token {
			t.Errorf("%q means the same as %q", token, c.encode(key))
		}
		// The MAC keeps a fuzzer out; so let it in.
		if len(body) >= claimLeast {
			if c, err := parse(body); err == nil && len(c.encode(key)) > TokenMost {
				t.Errorf("%x makes a token that is too long", body)
			}
		}
	})
}

func TestLockoutSparesWhoIsExempt(t *testing.T) {
	w := newWorld(t, Config{Lockout: Lockout{After: 1, For: time.Hour}})
	yes := true
	_, err := w.UpdateUser(w.root(), w.user("admin").ID, func(u *User) error { u.Options.IgnoreLockout = &yes; return nil }, nil)
	w.must(err)
	if _, _, err := w.Authenticate(t.Context(), password("admin", "wrong", ScopeRef{})); !fault.Is(err, fault.Unauthorized) {
		t.Fatal(err)
	}
	w.login("admin", inProject("admin"))
}

func TestPasswordRules(t *testing.T) {
	w := newWorld(t, Config{Password: PasswordRules{MinLength: 8, History: 3, ExpireDays: 30}})
	id := w.user("demo").ID
	change := func(from, to string) error { return w.ChangePassword(t.Context(), id, from, to) }
	if err := change("demo-password", "short"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a short password: %v", err)
	}
	if err := change("demo-password", "demo-password"); !fault.Is(err, fault.Invalid) {
		t.Errorf("the same password: %v", err)
	}
	if err := change("wrong-password", "new-password-1"); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("without the present one: %v", err)
	}
	w.must(change("demo-password", "new-password-1"))
	w.must(change("new-password-1", "new-password-2"))
	if err := change("new-password-2", "demo-password"); !fault.Is(err, fault.Invalid) {
		t.Errorf("the last but two: %v", err)
	}
	w.must(change("new-password-2", "new-password-3"))
	w.must(change("new-password-3", "demo-password")) // four ago
	w.now = w.now.Add(31 * 24 * time.Hour)
	if _, _, err := w.Authenticate(t.Context(), password("demo", "demo-password", ScopeRef{})); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired password: %v", err)
	}
	w.must(change("demo-password", "new-password-4")) // changing it is still possible
}

func TestUnknownUserCostsTheSame(t *testing.T) {
	h := newHasher(HashCost{}, bytes.NewReader(make([]byte, 64)))
	if want, err := h.hash(t.Context(), "x"); err != nil || len(want) != len(h.dummy) || want[:30] != h.dummy[:30] {
		t.Errorf("the dummy %q is not like a real hash %q: %v", h.dummy, want, err)
	}
	if ok, err := h.matches(t.Context(), "", ""); ok || err != nil {
		t.Errorf("a user without a password got in: %v", err)
	}
}

func TestAFloodOfLoginsIsTurnedAway(t *testing.T) {
	h := newHasher(HashCost{MemoryKiB: 8, Passes: 1, AtOnce: 1}, bytes.NewReader(nil))
	h.slots <- struct{}{} // one that takes for ever
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error)
	for range 1 + hashesWaiting + 1 {
		go func() {
			_, err := h.matches(ctx, "", "x")
			answers <- err
		}()
	}
	if err := <-answers; !fault.Is(err, fault.Unavailable) {
		t.Errorf("the one too many got %v", err)
	}
	cancel()
	for range 1 + hashesWaiting {
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("one that waited got %v", err)
		}
	}
	<-h.slots
	if _, err := h.matches(t.Context(), "", "x"); err != nil {
		t.Errorf("after the flood: %v", err)
	}
}

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
			if got := RolesIn(w.State.Latest(), demo, test.where); !slices.Equal(got, test.want) && len(got)+len(test.want) > 0 {
				t.Errorf("the user has %v, want %v", got, test.want)
			}
			f := HoldingFilter{UserID: demo, Scope: test.where, Effective: true}
			all, err := w.Holdings(ctx, f)
			w.must(err)
			if len(all) != len(test.want) {
				t.Errorf("the effective list has %+v, want %v", all, test.want)
			}
			w.must(w.Revoke(ctx, test.give))
			if got := RolesIn(w.State.Latest(), demo, test.where); len(got) > 0 {
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

func second[T any](_ T, err error) error { return err }

func TestApplicationCredential(t *testing.T) {
	w := newWorld(t, Config{})
	demo := w.user("demo")
	as := w.as(w.login("demo", inProject("demo")))
	if _, _, err := w.CreateApplicationCredential(as, demo.ID, NewApplicationCredential{Name: "ci", Roles: []RoleRef{{Name: "admin"}}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("with a role that is not held: %v", err)
	}
	c, secret, err := w.CreateApplicationCredential(as, demo.ID, NewApplicationCredential{Name: "ci", Roles: []RoleRef{{Name: "reader"}},
		Limited: true, Rules: []AccessRule{{Service: "compute", Method: "GET", Path: "/v2.1/servers/**"}}})
	w.must(err)
	proof := Proof{Methods: []string{"application_credential"}, CredentialID: c.ID, Secret: secret}
	token, n, err := w.Authenticate(t.Context(), proof)
	w.must(err)
	if got := n.Actor().Roles; !slices.Equal(got, []string{"reader"}) {
		t.Errorf("its roles are %v", got)
	}
	for path, good := range map[string]bool{"/v2.1/servers/detail": true, "/v2.1/servers": false, "/v2.1/flavors": false} {
		ctx := WithRequest(t.Context(), Request{Services: []string{"compute"}, Method: "GET", Path: path})
		if _, err := w.Verify(ctx, token); (err == nil) != good {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, _, err := w.CreateApplicationCredential(As(t.Context(), n.Actor()), demo.ID, NewApplicationCredential{Name: "child"}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a restricted one makes another: %v", err)
	}
	if _, _, err := w.Authenticate(t.Context(), Proof{Methods: []string{"token"}, Token: token}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("its token is exchanged for another: %v", err)
	}
	proof.Secret = secret + "x"
	if _, _, err := w.Authenticate(t.Context(), proof); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("with a wrong secret: %v", err)
	}
	w.must(w.DeleteApplicationCredential(as, demo.ID, c.ID))
	w.refused(token, "its application credential was deleted")
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

func third[A, B any](_ A, _ B, err error) error { return err }

func TestTrust(t *testing.T) {
	w := newWorld(t, Config{})
	demo, alt := w.user("demo"), w.user("alt")
	as := w.as(w.login("demo", inProject("demo")))
	two := 2
	trust, err := w.CreateTrust(as, &Trust{TrustorID: demo.ID, TrusteeID: alt.ID, InProjectID: w.project("demo").ID, Impersonate: true, UsesLeft: &two}, []RoleRef{{Name: "member"}})
	w.must(err)
	use := func(user string) (string, error) {
		token, _, err := w.Authenticate(t.Context(), password(user, user+"-password", ScopeRef{TrustID: trust.ID}))
		return token, err
	}
	if _, err := use("admin"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("one who is not the trustee: %v", err)
	}
	token, err := use("alt")
	w.must(err)
	a, err := w.Verify(t.Context(), token)
	w.must(err)
	if a.UserID != demo.ID || a.ProjectID != w.project("demo").ID || a.TrustID != trust.ID || !a.Has("reader") || a.Has("manager") {
		t.Errorf("the trustee is %+v", a)
	}
	_, err = use("alt")
	w.must(err)
	if _, err := use("alt"); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a third use of two: %v", err)
	}
	w.as(token) // what was had stays
	w.must(w.Revoke(w.root(), Assignment{HolderID: demo.ID, RoleID: w.role("member"), Scope: Scope{ProjectID: w.project("demo").ID}}))
	w.refused(token, "the trustor lost the role")
}

func TestAccessKey(t *testing.T) {
	w := newWorld(t, Config{})
	demo := w.user("demo")
	as := w.as(w.login("demo", inProject("demo")))
	c, err := w.CreateAccessKey(as, demo.ID, w.project("demo").ID)
	w.must(err)
	secret, a, err := w.EC2Secret(t.Context(), c.Access)
	w.must(err)
	if secret != c.Secret || a.UserID != demo.ID || a.ProjectID != w.project("demo").ID || !a.Has("member") {
		t.Errorf("the key is %q of %+v", secret, a)
	}
	if _, err := w.CreateAccessKey(as, demo.ID, w.project("alt").ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("in a project without a role: %v", err)
	}
	if _, err := w.Credential(w.as(w.login("alt", inProject("alt"))), c.ID); !fault.Is(err, fault.Forbidden) {
		t.Errorf("another user sees it: %v", err)
	}
	w.must(w.DeleteProject(w.root(), w.project("demo").ID, false, false))
	if _, _, err := w.EC2Secret(t.Context(), c.Access); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("after its project was deleted: %v", err)
	}
}

func TestPasscode(t *testing.T) {
	// RFC 6238, appendix B: SHA-1, of whose eight digits we use the last six.
	for at, want := range map[int64]string{59: "287082", 1111111109: "081804", 20000000000: "353130"} {
		if got := totp([]byte("12345678901234567890"), at/30); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
	w := newWorld(t, Config{})
	demo := w.user("demo")
	yes := true
	_, err := w.CreateCredential(w.root(), &Credential{Type: "totp", UserID: demo.ID, Blob: "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"})
	w.must(err)
	_, err = w.UpdateUser(w.root(), demo.ID, func(u *User) error {
		u.Options.MultiFactor, u.Options.MultiFactorRules = &yes, [][]string{{"password", "totp"}}
		return nil
	}, nil)
	w.must(err)
	proof := password("demo", "demo-password", inProject("demo"))
	if _, _, err := w.Authenticate(t.Context(), proof); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a password alone: %v", err)
	}
	proof.Methods = []string{"password", "totp"}
	proof.Passcode = totp([]byte("12345678901234567890"), w.now.Unix()/30)
	_, _, err = w.Authenticate(t.Context(), proof)
	w.must(err)
	if _, _, err := w.Authenticate(t.Context(), proof); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("the same passcode twice: %v", err)
	}
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

var pathTests = []struct {
	pattern, path string
	want          bool
}{
	{"/v2.1/servers", "/v2.1/servers", true},
	{"/v2.1/servers", "/v2.1/servers/1", false},
	{"/v2.1/servers/*/ips", "/v2.1/servers/1/ips", true},
	{"/v2.1/servers/*/ips", "/v2.1/servers/1/2/ips", false},
	{"/v2.1/servers/*/ips", "/v2.1/servers//ips", false},
	{"/v2.1/servers/{server_id}", "/v2.1/servers/1", true},
	{"/v2.1/**", "/v2.1/servers/1/ips", true},
	{"/v2.1/**/ips", "/v2.1/servers/1/ips", true},
	{"/v2.1/**/ips", "/v2.1/servers/1", false},
	{"/**", "/", true},
}

func TestMatchPath(t *testing.T) {
	for _, test := range pathTests {
		if got := matchPath(test.pattern, test.path); got != test.want {
			t.Errorf("matchPath(%q, %q) = %v", test.pattern, test.path, got)
		}
	}
}

// Whatever the pattern, a match means what it means as a regular expression.
func TestMatchPathLikeAnExpression(t *testing.T) {
	word := regexp.MustCompile(`\*{2,}|\*|\{[^}]*\}`)
	rapid.Check(t, func(r *rapid.T) {
		pattern := rapid.StringOfN(rapid.SampledFrom([]rune("ab/*{}")), 0, 12, -1).Draw(r, "pattern")
		path := rapid.StringOfN(rapid.SampledFrom([]rune("ab/{}")), 0, 12, -1).Draw(r, "path")
		var b strings.Builder
		rest := pattern
		for rest != "" {
			at := word.FindStringIndex(rest)
			if at == nil {
				at = []int{len(rest), len(rest)}
			}
			b.WriteString(regexp.QuoteMeta(rest[:at[0]]))
			switch found := rest[at[0]:at[1]]; {
			case strings.HasPrefix(found, "**"):
				b.WriteString("(?s:.*)")
			case found != "":
				b.WriteString("[^/]+")
			}
			rest = rest[at[1]:]
		}
		if got, want := matchPath(pattern, path), regexp.MustCompile(`\A`+b.String()+`\z`).MatchString(path); got != want {
			r.Errorf("matchPath(%q, %q) = %v, want %v", pattern, path, got, want)
		}
	})
}

// The worst that a tenant can think of costs next to nothing.
func TestMatchPathIsQuick(t *testing.T) {
	for _, wild := range []string{"{}a", "**a", "*a", "{}{}{}a"} {
		pattern := "/" + strings.Repeat(wild, 30) + "b"
		start := time.Now()
		if matchPath(pattern, "/"+strings.Repeat("a", pathMost-1)) {
			t.Errorf("%.10s… matches", pattern)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%.10s… took %v", pattern, took)
		}
	}
	if matchPath("/**", "/"+strings.Repeat("a", pathMost)) {
		t.Error("a path that is too long matches")
	}
	c := NewApplicationCredential{Name: "x", Rules: []AccessRule{{Service: "compute", Method: "GET", Path: "/" + strings.Repeat("{}", 9)}}}
	if err := c.check(time.Now()); !fault.Is(err, fault.Invalid) {
		t.Errorf("nine parts in one pattern: %v", err)
	}
}

func TestResolve(t *testing.T) {
	for _, test := range []struct{ url, base, want string }{
		{"/compute", "http://cloud:8700", "http://cloud:8700/compute"},
		{":8701", "http://cloud:8700", "http://cloud:8701"},
		{":8701/x", "https://[fe80::1]:8700", "https://[fe80::1]:8701/x"},
		{":8701", "https://[fe80::1]", "https://[fe80::1]:8701"},
		{"https://elsewhere/x", "http://cloud:8700", "https://elsewhere/x"},
	} {
		if got := Resolve(test.url, test.base); got != test.want {
			t.Errorf("Resolve(%q, %q) = %q, want %q", test.url, test.base, got, test.want)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	w := &world{now: time.Now()}
	st, err := state.Open(b.Context(), state.NewMemory(1024), state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := Bootstrap(b.Context(), st, BootstrapOptions{Config: Config{Hash: cheap}, DemoPassword: "demo-password"}); err != nil {
		b.Fatal(err)
	}
	w.Service = New(st, Config{Hash: cheap})
	token, _, err := w.Authenticate(b.Context(), password("demo", "demo-password", inProject("demo")))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := w.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHash is what a password token costs at least.
func BenchmarkHash(b *testing.B) {
	h := newHasher(HashCost{}, bytes.NewReader(make([]byte, 1<<20)))
	hash, err := h.hash(b.Context(), "demo-password")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if ok, err := h.matches(b.Context(), hash, "demo-password"); !ok || err != nil {
			b.Fatal(err)
		}
	}
}
