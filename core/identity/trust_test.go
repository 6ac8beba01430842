package identity

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
)

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
