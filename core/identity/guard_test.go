package identity

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// from is a context of whoever comes from an address.
func (w *world) from(address string) context.Context {
	return WithSource(w.t.Context(), netip.MustParseAddr(address))
}

func (w *world) try(ctx context.Context, pass string) error {
	_, _, err := w.Authenticate(ctx, password("demo", pass, inProject("demo")))
	if err != nil && !fault.Is(err, fault.Unauthorized) {
		w.t.Helper()
		w.t.Fatal(err)
	}
	return err
}

func TestLockout(t *testing.T) {
	w := newWorld(t, Config{Lockout: Lockout{After: 3, For: time.Minute}})
	before := w.State.Latest().Revision()
	for range 3 {
		w.try(t.Context(), "wrong")
	}
	if w.try(t.Context(), "demo-password") == nil {
		t.Error("a locked user got in")
	}
	if after := w.State.Latest().Revision(); after != before {
		t.Error("a wrong password changes the state, which tells whether there is such a user, and costs a write for each guess")
	}
	w.now = w.now.Add(30 * time.Second)
	w.try(t.Context(), "wrong") // is not looked at, and does not make it longer
	w.now = w.now.Add(30 * time.Second)
	w.must(w.try(t.Context(), "demo-password"))
	for range 2 {
		w.try(t.Context(), "wrong")
	}
	w.must(w.try(t.Context(), "demo-password"))
}

func TestLockoutIsOfASource(t *testing.T) {
	w := newWorld(t, Config{Lockout: Lockout{After: 3, For: time.Minute}})
	w.must(w.try(w.from("192.0.2.1"), "demo-password"))
	for range 100 {
		w.try(w.from("198.51.100.1"), "wrong")
	}
	if w.try(w.from("198.51.100.1"), "demo-password") == nil {
		t.Error("who guesses is not locked out")
	}
	w.must(w.try(w.from("203.0.113.1"), "demo-password"))
	w.must(w.try(w.from("::ffff:192.0.2.1"), "demo-password"))
	// One customer of an IPv6 provider is one source.
	for i := range 4 {
		w.try(w.from(fmt.Sprintf("2001:db8::%x", i+1)), "wrong")
	}
	if w.try(w.from("2001:db8::ffff"), "demo-password") == nil {
		t.Error("a source has as many tries as addresses")
	}
}

// A crowd has a bounded number of guesses, and locks out nobody who was there before.
func TestLockoutOfACrowd(t *testing.T) {
	w := newWorld(t, Config{Lockout: Lockout{After: 3, For: time.Minute}})
	w.must(w.try(w.from("192.0.2.1"), "demo-password"))
	crowd := func(i int) context.Context { return w.from(fmt.Sprintf("10.0.%d.%d", i/256, i%256)) }
	for i := range 2 * mostSources {
		w.try(crowd(i), "wrong")
	}
	if w.try(crowd(5000), "demo-password") == nil {
		t.Errorf("after %d guesses from all over the world one more is heard", 2*mostSources)
	}
	w.must(w.try(w.from("192.0.2.1"), "demo-password"))
	for range 3 {
		w.try(w.from("192.0.2.1"), "wrong")
	}
	if w.try(w.from("192.0.2.1"), "demo-password") == nil {
		t.Error("who was there before may guess for ever")
	}
}

// Several controllers that do not know of each other allow no more together than one would, and each one guess at the least.
func TestLockoutAmongSeveral(t *testing.T) {
	for _, c := range []struct{ after, counters, allows int }{{10, 0, 10}, {10, 1, 10}, {10, 3, 3}, {10, 5, 2}, {3, 5, 1}} {
		w := newWorld(t, Config{Lockout: Lockout{After: c.after, For: time.Minute}})
		ctx := AmongCounters(w.from("192.0.2.1"), c.counters)
		for range c.allows - 1 {
			w.try(ctx, "wrong")
		}
		w.must(w.try(ctx, "demo-password"))
		for range c.allows {
			w.try(ctx, "wrong")
		}
		if w.try(ctx, "demo-password") == nil {
			t.Errorf("one of %d controllers allows more than %d of %d guesses", c.counters, c.allows, c.after)
		}
	}
	never := newWorld(t, Config{Lockout: Lockout{After: -1}})
	for range 20 {
		never.try(AmongCounters(t.Context(), 3), "wrong")
	}
	never.must(never.try(AmongCounters(t.Context(), 3), "demo-password"))
}

func TestAnAdminUnlocks(t *testing.T) {
	w := newWorld(t, Config{Lockout: Lockout{After: 1, For: time.Hour}})
	w.try(t.Context(), "wrong")
	pass := "demo-password"
	_, err := w.UpdateUser(w.root(), w.user("demo").ID, func(*User) error { return nil }, &pass)
	w.must(err)
	w.must(w.try(t.Context(), "demo-password"))
}

// Passcodes are guessed as seldom as passwords, whether or not there is a password.
func TestPasscodesAreCounted(t *testing.T) {
	w := newWorld(t, Config{})
	bot, err := w.CreateUser(w.root(), &User{Meta: resource.Meta{Name: "bot"}, DomainID: DefaultDomain, Enabled: true}, "")
	w.must(err)
	secret := []byte("12345678901234567890")
	_, err = w.CreateCredential(w.root(), &Credential{Type: "totp", UserID: bot.ID, Blob: "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"})
	w.must(err)
	try := func(passcode string) error {
		return third(w.Authenticate(t.Context(), Proof{Methods: []string{"totp"}, User: UserRef{ID: bot.ID}, Passcode: passcode}))
	}
	right := func() string { return totp(secret, w.now.Unix()/30) }
	for range 9 {
		try("000000")
	}
	w.must(try(right()))
	for range 10 {
		try("000000")
	}
	w.now = w.now.Add(30 * time.Second)
	if err := try(right()); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("after ten wrong ones: %v", err)
	}
	w.now = w.now.Add(30 * time.Second)
	w.must(try(right()))
}

// Who knows the password does not get more guesses at the second factor by it.
func TestAPasswordForgivesNoPasscodes(t *testing.T) {
	w := newWorld(t, Config{Lockout: Lockout{After: 3, For: time.Minute}})
	yes := true
	_, err := w.CreateCredential(w.root(), &Credential{Type: "totp", UserID: w.user("demo").ID, Blob: "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"})
	w.must(err)
	_, err = w.UpdateUser(w.root(), w.user("demo").ID, func(u *User) error {
		u.Options.MultiFactor, u.Options.MultiFactorRules = &yes, [][]string{{"password", "totp"}}
		return nil
	}, nil)
	w.must(err)
	proof := password("demo", "demo-password", inProject("demo"))
	proof.Methods = []string{"password", "totp"}
	for range 3 {
		proof.Passcode = "000000"
		w.Authenticate(t.Context(), proof)
		w.try(t.Context(), "demo-password")                                   // the password alone
		w.ChangePassword(t.Context(), w.user("demo").ID, "demo-password", "") // right, and then refused
	}
	proof.Passcode = totp([]byte("12345678901234567890"), w.now.Unix()/30)
	if _, _, err := w.Authenticate(t.Context(), proof); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("after three wrong passcodes: %v", err)
	}
}

func TestChosenSecretsAreCounted(t *testing.T) {
	w := newWorld(t, Config{Lockout: Lockout{After: 3, For: time.Minute}})
	as := w.as(w.login("demo", inProject("demo")))
	if _, _, err := w.CreateApplicationCredential(as, w.user("demo").ID, NewApplicationCredential{Name: "x", Secret: "secret"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a short secret: %v", err)
	}
	c, _, err := w.CreateApplicationCredential(as, w.user("demo").ID, NewApplicationCredential{Name: "x", Secret: "a secret of mine"})
	w.must(err)
	try := func(secret string) error {
		return third(w.Authenticate(t.Context(), Proof{Methods: []string{"application_credential"}, CredentialID: c.ID, Secret: secret}))
	}
	for range 3 {
		try("wrong")
	}
	if err := try("a secret of mine"); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("after three wrong ones: %v", err)
	}
	w.now = w.now.Add(time.Minute)
	w.must(try("a secret of mine"))
}

func TestTheGuardIsBounded(t *testing.T) {
	w := newWorld(t, Config{})
	for i := range mostAccounts + 10 {
		w.guard.judge(t.Context(), resource.ID{byte(i >> 16), byte(i >> 8), byte(i)}, false, w.now)
	}
	for i := range 2 * mostSources {
		w.guard.judge(w.from(fmt.Sprintf("10.1.%d.%d", i/256, i%256)), resource.ID{1}, false, w.now)
	}
	if n, m := len(w.guard.accounts), len(w.guard.accounts[resource.ID{1}].sources); n > mostAccounts || m > mostSources {
		t.Errorf("%d accounts and %d sources are kept", n, m)
	}
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
