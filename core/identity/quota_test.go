package identity

import (
	"fmt"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
)

func TestQuota(t *testing.T) {
	w := newWorld(t, Config{Quota: Quota{Credentials: 2, ApplicationCredentials: 2, AccessRules: 2, Trusts: 2, AccessTokens: 2, Consumers: 2}})
	as := w.as(w.login("demo", inProject("demo")))
	demo, alt, project := w.user("demo").ID, w.user("alt").ID, w.project("demo").ID
	consumer, err := w.CreateConsumer(w.root(), &Consumer{})
	w.must(err)
	for name, make := range map[string]func(n int) error{
		"credentials": func(int) error {
			return second(w.CreateCredential(as, &Credential{Type: "cert", UserID: demo, Blob: "x"}))
		},
		"application credentials": func(n int) error {
			return third(w.CreateApplicationCredential(as, demo, NewApplicationCredential{Name: fmt.Sprint(n)}))
		},
		"trusts": func(int) error {
			return second(w.CreateTrust(as, &Trust{TrustorID: demo, TrusteeID: alt, InProjectID: project}, []RoleRef{{Name: "member"}}))
		},
		"access tokens": func(int) error {
			request, err := w.RequestAccess(t.Context(), consumer.ID, project, signed)
			w.must(err)
			request, err = w.AuthorizeAccess(as, request.ID, []RoleRef{{Name: "member"}})
			w.must(err)
			return second(w.CreateAccessToken(t.Context(), consumer.ID, request.ID, request.Verifier, signed))
		},
	} {
		for n := range 2 {
			if err := make(n); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := make(2); !fault.Is(err, fault.OverQuota) {
			t.Errorf("a third of the %s: %v", name, err)
		}
	}
	_, err = w.CreateConsumer(w.root(), &Consumer{})
	w.must(err)
	if _, err := w.CreateConsumer(w.root(), &Consumer{}); !fault.Is(err, fault.OverQuota) {
		t.Errorf("a third consumer: %v", err)
	}
	// Access rules are made with the credential.
	alts := w.as(w.login("alt", inProject("alt")))
	rules := func(n int) (all []AccessRule) {
		for i := range n {
			all = append(all, AccessRule{Service: "compute", Method: "GET", Path: fmt.Sprint("/", i)})
		}
		return all
	}
	if _, _, err := w.CreateApplicationCredential(alts, alt, NewApplicationCredential{Name: "a", Limited: true, Rules: rules(3)}); !fault.Is(err, fault.OverQuota) {
		t.Errorf("three access rules: %v", err)
	}
	_, _, err = w.CreateApplicationCredential(alts, alt, NewApplicationCredential{Name: "b", Limited: true, Rules: rules(2)})
	w.must(err)
}
