package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
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
