package identity

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

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
