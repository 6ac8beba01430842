package identity

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
)

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
