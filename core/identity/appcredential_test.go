package identity

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/unkai-cloud/unkai/base/fault"
)

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
