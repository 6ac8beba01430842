package native

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

// dialect makes, and renames, servers for whoever holds a token.
type dialect struct {
	w    *world
	seen []string
}

func (d *dialect) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, err := d.w.tokens.Verify(r.Context(), r.Header.Get("X-Auth-Token"))
	body, _ := io.ReadAll(r.Body)
	d.seen = append(d.seen, fmt.Sprintf("%s %s %s %s", r.Method, r.URL.Path, r.URL.RawQuery, body))
	if err != nil || r.URL.Path == "/refuse" {
		http.Error(w, "no", http.StatusConflict)
		return
	}
	var s *compute.Server
	err = d.w.state.Update(r.Context(), func(tx *state.Tx) error {
		if r.Method == "DELETE" {
			id, err := resource.ParseID(strings.TrimPrefix(r.URL.Path, "/"))
			if err != nil {
				return err
			}
			return compute.Servers().Delete(tx, id)
		}
		// The second finds what the first would have made.
		count := 0
		for range compute.Servers().Peek(tx, "project", state.Range{Prefix: state.KeyOf(a.ProjectID)}) {
			count++
		}
		s = &compute.Server{Meta: resource.Meta{ID: tx.NewID(), ProjectID: a.ProjectID, Name: fmt.Sprint("planned", count)},
			HostID: d.w.host, AdminPassword: "SECRET"}
		return compute.Servers().Put(tx, s)
	})
	if err != nil {
		http.Error(w, err.Error(), fault2status(err))
		return
	}
	w.WriteHeader(http.StatusAccepted)
	if s != nil {
		fmt.Fprintf(w, `{"id":%q}`, s.ID)
	}
}

func fault2status(err error) int { return faults[fault.KindOf(err)].status }

func TestPlan(t *testing.T) {
	d := &dialect{}
	w := newWorld(t, func(o *Options) { o.Dialects = d })
	d.w = w
	before := w.state.Latest().Revision()
	var p planned
	a := w.do("one", "POST", "/plan", `{"requests":[
		{"method":"POST","path":"/compute/v2.1/servers?x=1","body":{"a":1}},
		{"method":"POST","path":"/compute/v2.1/servers","headers":{"OpenStack-API-Version":"compute 2.60"}},
		{"method":"DELETE","path":"/`+w.mine.String()+`"},
		{"method":"POST","path":"/refuse"},
		{"method":"POST","path":"/never"}]}`).must(t, 200)
	a.into(t, &p)
	if w.state.Latest().Revision() != before {
		t.Error("a plan changed something")
	}
	if fmt.Sprintf("%q", d.seen) != fmt.Sprintf("%q", []string{`POST /compute/v2.1/servers x=1 {"a":1}`, "POST /compute/v2.1/servers  ",
		"DELETE /" + w.mine.String() + "  ", "POST /refuse  "}) {
		t.Errorf("asked: %q", d.seen)
	}
	statuses := ""
	for _, r := range p.Responses {
		statuses += fmt.Sprint(r.Status, " ")
	}
	if statuses != "202 202 202 409 " || string(p.Responses[3].Body) != `"no"` || string(p.Responses[2].Body) != "null" {
		t.Errorf("%s", a.body)
	}
	actions := ""
	for _, c := range p.Changes {
		actions += c.Action + " " + c.Name + "; "
	}
	if actions != "create planned1; create planned2; delete mine; " {
		t.Errorf("%s", actions)
	}
	if text := string(a.body); strings.Contains(text, "SECRET") || strings.Contains(text, w.host.String()) {
		t.Errorf("a plan tells too much: %s", text)
	}
	if l := left(p.Quota, "servers"); l != "2 used, 48 left" { // mine is gone, two are made
		t.Errorf("quota: %s", l)
	}
	var v any
	a.into(t, &v)
	doc := document(t, w)
	if err := doc.check(doc.schema("Plan"), v); err != nil {
		t.Error(err)
	}

	for _, body := range []string{`{}`, `{"requests":[]}`, `{"requests":[{"method":"GET","path":"/x"}]}`, `{"requests":[{"method":"POST","path":"x"}]}`,
		`{"requests":[{"method":"POST","path":"//evil/x"}]}`, `{"requests":[{"method":"POST","path":"/v1/./plan"}]}`,
		`{"requests":[{"method":"POST","path":"/x","headers":{"x-auth-token":"admin"}}]}`,
		`{"requests":[{"method":"POST","path":"/x","headers":{"unkai-plan":"false"}}]}`, `{"requests":[{"method":"POST","path":"/x"}],"more":1}`} {
		w.do("one", "POST", "/plan", body).must(t, 400).code(t)
	}
	w.do("", "POST", "/plan", `{"requests":[{"method":"POST","path":"/x"}]}`).must(t, 401)
	w.do("one", "POST", "/plan", strings.Repeat(" ", bodyLimit+1)).must(t, 413)
}

// A login in a plan would be a way to try passwords that nobody counts.
func TestNoLoginInPlan(t *testing.T) {
	w := newWorld(t)
	s := identity.New(w.state, identity.Config{})
	_, _, err := s.Authenticate(state.WithPlan(t.Context(), new(state.Plan)), identity.Proof{})
	if !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

func left(q *quota, of string) string {
	if q == nil {
		return "no quota"
	}
	for _, l := range q.Limits {
		if l.Of == of && l.Left != nil {
			return fmt.Sprintf("%d used, %d left", l.Used, *l.Left)
		}
	}
	return "no limit"
}

func TestQuota(t *testing.T) {
	w := newWorld(t)
	var q quota
	w.get("one", "/quota").must(t, 200).into(t, &q)
	if got := left(&q, "servers"); got != "1 used, 49 left" || q.ProjectID != w.one {
		t.Errorf("%s of %s", got, q.ProjectID)
	}
	if got := left(&q, "networks"); got == "no limit" {
		t.Error("no quota of networks")
	}
	w.get("admin", "/quota?project_id="+w.two.String()).must(t, 200).into(t, &q)
	if got := left(&q, "servers"); got != "1 used, 49 left" || q.ProjectID != w.two {
		t.Errorf("%s of %s", got, q.ProjectID)
	}
	w.get("one", "/quota?project_id="+w.two.String()).must(t, 403).code(t)
	w.get("one", "/quota?project_id=x").must(t, 400).code(t)
	w.get("one", "/quota?of=x").must(t, 400).code(t)
	w.get("unscoped", "/quota").must(t, 400).code(t)
}

// Kinds that are not shown: an admin learns that they would change, and nobody how.
func TestPlanOfUnshown(t *testing.T) {
	w := newWorld(t)
	for token, want := range map[string]string{"admin": "[create compute-quota null][create region null]", "one": "[create compute-quota null]"} {
		p := new(state.Plan)
		ctx := state.WithPlan(identity.As(t.Context(), w.tokens[token]), p)
		err := w.state.Update(ctx, func(tx *state.Tx) error {
			return compute.Quotas().Put(tx, &compute.Quota{Meta: resource.Meta{ID: tx.NewID(), ProjectID: w.one}})
		})
		if err != nil {
			t.Fatal(err)
		}
		service := identity.New(w.state, identity.Config{})
		admin := identity.As(ctx, w.tokens["admin"])
		if _, err := service.CreateRegion(admin, &identity.Region{Meta: resource.Meta{Name: "new"}}); err != nil {
			t.Fatal(err)
		}
		document, err := w.native.Planned(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range document.(*planned).Changes {
			got += fmt.Sprintf("[%s %s %s]", c.Action, c.Kind, c.Object)
		}
		if got != want {
			t.Errorf("%s is told %s, want %s", token, got, want)
		}
	}
}
