// Package openstacktest is for the tests of the services below api/openstack: tokens that are names, and conversations
// that are replayed from files.
package openstacktest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Tokens are who may ask, by the token itself.
type Tokens map[string]*identity.Actor

// Verify implements openstack.Verifier.
func (t Tokens) Verify(_ context.Context, token string) (*identity.Actor, error) {
	if a := t[token]; a != nil {
		return a, nil
	}
	return nil, fault.Errorf(fault.Unauthorized, "The request you have made requires authentication.")
}

// A Stage is where a conversation takes place.
type Stage struct {
	URL     string            // of the service; what a conversation calls a path follows
	Bound   map[string]string // what "$name" stands for
	Version string            // the microversions' service type and major version: "compute 2."; "" for a service without them
	Command func(words string)
}

// Replay plays testdata/*.txt, each on a stage of its own.
//
// A line "> WHO METHOD PATH [MINOR | HEADER: VALUE, …]" begins a request, its body follows; "< STATUS" begins the answer:
// JSON in which what stands there must be found, or text that must. "$name" in an answer binds a word that later lines
// may use, "*" is anything, "absent" must not be there. "? " instead of "> " repeats a request until its answer is as
// wanted. "! WORDS" is a command to the stage. A line that begins with "# " is a comment.
func Replay(t *testing.T, stage func(t *testing.T) Stage) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := stage(t)
			for _, e := range parse(t, string(text)) {
				switch {
				case e.command == "":
					e.play(t, &s)
				case s.Command == nil:
					t.Fatalf("line %d: a command to a stage that takes none", e.line)
				default:
					s.Command(e.command)
				}
			}
		})
	}
}

type exchange struct {
	line                         int
	patient                      bool
	command, request, body, want string
	status                       int
}

func parse(t *testing.T, text string) []*exchange {
	t.Helper()
	var all []*exchange
	var into *string
	for n, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "! "):
			all, into = append(all, &exchange{line: n + 1, command: line[2:]}), nil
		case strings.HasPrefix(line, "> ") || strings.HasPrefix(line, "? "):
			all = append(all, &exchange{line: n + 1, request: line[2:], patient: line[0] == '?'})
			into = &all[len(all)-1].body
		case strings.HasPrefix(line, "< "):
			status, err := strconv.Atoi(strings.TrimSpace(line[2:]))
			if err != nil || len(all) == 0 {
				t.Fatalf("line %d: %v", n+1, err)
			}
			all[len(all)-1].status = status
			into = &all[len(all)-1].want
		case into != nil && !strings.HasPrefix(line, "# "):
			*into += line
		}
	}
	return all
}

var word = regexp.MustCompile(`\$[a-zA-Z]+`)

func (s *Stage) fill(text string) string {
	return word.ReplaceAllStringFunc(text, func(w string) string {
		if v, ok := s.Bound[w]; ok {
			return v
		}
		return w
	})
}

func (e *exchange) play(t *testing.T, s *Stage) {
	t.Helper()
	for tries := 0; ; tries++ {
		problem := e.try(t, s)
		if problem == "" {
			return
		}
		if !e.patient || tries == 200 {
			t.Fatalf("line %d: %s: %s", e.line, e.request, problem)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// try plays once, and says in what the answer is not as wanted.
func (e *exchange) try(t *testing.T, s *Stage) string {
	t.Helper()
	status, got := e.ask(t, s)
	if status != e.status {
		return fmt.Sprintf("status %d, want %d; %s", status, e.status, got)
	}
	want := s.fill(e.want)
	if !strings.HasPrefix(want, "{") {
		if !strings.Contains(string(got), want) {
			return fmt.Sprintf("got %s, want %s", got, want)
		}
		return ""
	}
	var w, g any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("line %d: %v: %s", e.line, err, want)
	}
	if err := json.Unmarshal(got, &g); err != nil {
		return fmt.Sprintf("%v: %s", err, got)
	}
	if problem := s.match(w, g, ""); problem != "" {
		return problem + "\n" + string(got)
	}
	return ""
}

func (e *exchange) ask(t *testing.T, s *Stage) (status int, body []byte) {
	t.Helper()
	parts := strings.SplitN(s.fill(e.request), " ", 4)
	if len(parts) < 3 {
		t.Fatalf("line %d: no request: %s", e.line, e.request)
	}
	// A byte that no text has, for the beginning of a disk image.
	sent := strings.ReplaceAll(s.fill(e.body), `\xfb`, "\xfb")
	req, err := http.NewRequestWithContext(t.Context(), parts[1], s.URL+parts[2], strings.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", parts[0])
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	if len(parts) == 4 {
		for h := range strings.SplitSeq(parts[3], ", ") {
			if key, value, ok := strings.Cut(h, ": "); ok {
				req.Header.Set(key, value)
			} else {
				req.Header.Set("OpenStack-API-Version", s.Version+h)
			}
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err = io.ReadAll(res.Body); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, body
}

// match says where got lacks something of want; "" if it does not.
func (s *Stage) match(want, got any, at string) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is %v", at, got)
		}
		for key, value := range w {
			have, there := g[key]
			switch {
			case value == "absent" && there:
				return fmt.Sprintf("%s.%s is there", at, key)
			case value == "absent":
			case !there:
				return fmt.Sprintf("%s.%s is not there", at, key)
			default:
				if problem := s.match(value, have, at+"."+key); problem != "" {
					return problem
				}
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("%s is %v, want %v", at, got, w)
		}
		for n := range w {
			if problem := s.match(w[n], g[n], fmt.Sprintf("%s[%d]", at, n)); problem != "" {
				return problem
			}
		}
		return ""
	case string:
		if w == "*" {
			return ""
		}
		if strings.HasPrefix(w, "$") {
			s.Bound[w] = fmt.Sprint(got)
			return ""
		}
	}
	if !reflect.DeepEqual(want, got) {
		return fmt.Sprintf("%s is %v, want %v", at, got, want)
	}
	return ""
}
