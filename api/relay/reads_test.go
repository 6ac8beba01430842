package relay

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack/keystone"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// severed is an engine most of whose members cannot be asked, once it is cut.
type severed struct {
	state.Engine
	cut atomic.Bool
}

func (s *severed) Head(ctx context.Context) (state.Head, error) {
	if s.cut.Load() {
		return state.Head{}, errors.New("no majority")
	}
	return s.Engine.Head(ctx)
}

// TestWhoAnswersWhatMayBeARead, with a leader and when most controllers cannot be reached: of what comes in one form only that is answered here
// that reads, and of logins only where nobody else can count the guesses.
func TestWhoAnswersWhatMayBeARead(t *testing.T) {
	const here, leader, refused = "here", "the leader", "Nothing was changed"
	const login, describe, password = "/identity/v3/auth/tokens", "Action=DescribeInstances&Version=2016-11-15", `{"auth":{}}`
	for name, c := range map[string]struct {
		method, path, body string
		writes             bool
		want, alone        string
	}{
		"EC2's read, as a form":             {"POST", "/ec2", describe, false, here, here},
		"its address may end in a slash":    {"POST", "/ec2/", describe, false, here, here},
		"EC2's read, in the address":        {"GET", "/ec2?" + describe, "", false, here, here},
		"the action apart from the rest":    {"POST", "/ec2?Action=DescribeVpcs", "Version=2016-11-15", false, here, here},
		"EC2's read that writes":            {"POST", "/ec2", "Action=DescribeSecurityGroups", true, leader, refused},
		"EC2's write, as a form":            {"POST", "/ec2", "Action=RunInstances", false, leader, refused},
		"EC2's write, in the address":       {"GET", "/ec2?Action=TerminateInstances", "", false, leader, refused},
		"a console, that the leader finds":  {"POST", "/ec2", "Action=GetConsoleOutput", false, leader, refused},
		"two actions":                       {"POST", "/ec2?Action=DescribeVpcs", "Action=RunInstances", false, leader, refused},
		"one action twice":                  {"POST", "/ec2", "Action=DescribeVpcs&Action=RunInstances", false, leader, refused},
		"no action":                         {"POST", "/ec2", "Version=2016-11-15", false, leader, refused},
		"no form":                           {"POST", "/ec2", "Action=DescribeVpcs&%zz", false, leader, refused},
		"no address":                        {"POST", "/ec2?%zz", describe, false, leader, refused},
		"what EC2 does not know":            {"PUT", "/ec2", describe, false, leader, refused},
		"another's path":                    {"POST", "/ec2x", describe, false, leader, refused},
		"a form that is too large":          {"POST", "/ec2", describe + "&x=" + strings.Repeat("x", keptBody), false, leader, refused},
		"an image's bytes, though named so": {"PUT", "/image/v2/images/x/file?Action=DescribeVpcs", describe, false, leader, refused},
		"a login":                           {"POST", login, password, false, leader, here},
		"a login with a slash":              {"POST", login + "/", password, false, leader, here},
		"a login that writes":               {"POST", login, password, true, leader, refused},
		"an end of a login":                 {"DELETE", login, "", false, leader, refused},
		"a look at a token":                 {"GET", login, "", false, here, here},
		"a password's change":               {"POST", "/identity/v3/users/x/password", "{}", false, leader, refused},
		"another of Keystone's":             {"POST", "/identity/v3/OS-OAUTH1/request_token", "", false, leader, refused},
		"a login that was signed":           {"POST", "/identity/v3/ec2tokens", "{}", false, here, here},
		"one for S3":                        {"POST", "/identity/v3/s3tokens", "{}", false, here, here},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.front.Patience = time.Millisecond
			whole := func(w http.ResponseWriter, r *http.Request, who string) {
				body, err := io.ReadAll(r.Body)
				if err != nil || string(body) != c.body {
					t.Errorf("%s is sent %d bytes of %d: %v", who, len(body), len(c.body), err)
				}
				fmt.Fprint(w, who)
			}
			p.clients = func(w http.ResponseWriter, r *http.Request) { whole(w, r, leader) }
			p.front.Here = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c.writes {
					p.follows.Update(r.Context(), func(*state.Tx) error { return nil }) // is refused
				}
				whole(w, r, here)
			})
			if got := p.ask(c.method, c.path, c.body); got.Body.String() != c.want || got.Header().Get(StaleHeader) != "" {
				t.Errorf("with a leader: %d %s, stale %q; want %s", got.Code, got.Body, got.Header().Get(StaleHeader), c.want)
			}
			p.engine.cut.Store(true)
			p.front.Leader = func() (string, bool) { return "", false }
			got := p.ask(c.method, c.path, c.body)
			if stale := got.Header().Get(StaleHeader) == "true"; !strings.Contains(got.Body.String(), c.alone) || stale != (c.alone == here) || c.alone == refused && got.Code != 503 {
				t.Errorf("without one: %d %s, stale %v; want %s", got.Code, got.Body, stale, c.alone)
			}
		})
	}
}

// TestAnEC2ReadIsAskedAgain when the leader's answer was lost, as any read is.
func TestAnEC2ReadIsAskedAgain(t *testing.T) {
	p := newPair(t)
	p.front.Here = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		p.follows.Update(r.Context(), func(*state.Tx) error { return nil }) // is refused
	})
	answer := p.clients
	p.clients = func(w http.ResponseWriter, r *http.Request) {
		if p.asked.Load() == 1 {
			panic(http.ErrAbortHandler)
		}
		answer(w, r)
	}
	const form = "Action=DescribeSecurityGroups"
	if got := p.ask("POST", "/ec2", form); got.Code != 200 || !strings.Contains(got.Body.String(), form) || p.asked.Load() != 2 {
		t.Errorf("%d %s, asked %d times", got.Code, got.Body, p.asked.Load())
	}
}

// TestGuessesAtPasswords are not more for being spread over the controllers: all are counted by the one that leads, and when it cannot be asked each
// of three allows a third.
func TestGuessesAtPasswords(t *testing.T) {
	p := newPair(t)
	now := time.Now()
	config := identity.Config{Hash: identity.HashCost{MemoryKiB: 8, Passes: 1}, Now: func() time.Time { return now }}
	if err := identity.Bootstrap(t.Context(), p.leads, identity.BootstrapOptions{Config: config, DemoPassword: "right-password"}); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b", "c"} {
		cert, err := p.authority.ControllerCertificate(now, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		is := host.Controller{Member: uint64(i + 1), Link: "https://" + name + ":1"}
		is.Name = name
		if err := host.Present(identity.Internal(t.Context()), p.leads, is, leaf); err != nil {
			t.Fatal(err)
		}
	}
	keystoneOf := func(s *state.State) http.HandlerFunc {
		return wire.Serve(http.StripPrefix("/identity", keystone.New(keystone.Options{Identity: identity.New(s, config)}))).ServeHTTP
	}
	p.clients, p.front.Here = keystoneOf(p.leads), keystoneOf(p.follows)
	login := func(password string) *httptest.ResponseRecorder {
		return p.ask("POST", "/identity/v3/auth/tokens", `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"demo","domain":{"id":"default"},"password":"`+password+`"}}}}}`,
			"Content-Type", "application/json")
	}
	fails := func(most int) {
		t.Helper()
		for range most - 1 {
			login("wrong")
		}
		if got := login("right-password"); got.Code != 201 {
			t.Errorf("after %d wrong ones: %d %s", most-1, got.Code, got.Body)
		}
		for range most {
			if got := login("wrong"); got.Code != 401 {
				t.Errorf("a wrong password: %d %s", got.Code, got.Body)
			}
		}
		if got := login("right-password"); got.Code != 401 {
			t.Errorf("after %d wrong ones: %d", most, got.Code)
		}
		now = now.Add(2 * time.Minute)
		if got := login("right-password"); got.Code != 201 {
			t.Errorf("after two minutes: %d %s", got.Code, got.Body)
		}
	}
	fails(10)
	p.engine.cut.Store(true)
	p.front.Leader = func() (string, bool) { return "", false }
	fails(3)
	token := login("right-password").Header().Get("X-Subject-Token")
	if got := p.ask("GET", "/identity/v3/auth/tokens", "", "X-Auth-Token", token, "X-Subject-Token", token); got.Code != 200 {
		t.Errorf("a token that was made without a leader: %d %s", got.Code, got.Body)
	}
	p.engine.cut.Store(false)
	p.front.Leader = func() (string, bool) { return p.web.URL, true }
	// Any controller knows it.
	if got := p.ask("DELETE", "/identity/v3/auth/tokens", "", "X-Auth-Token", token, "X-Subject-Token", token); got.Code != 204 {
		t.Errorf("and to the leader: %d %s", got.Code, got.Body)
	}
}
