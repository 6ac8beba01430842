package native

import (
	"fmt"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/network"
)

// pages reads a whole list, and checks that each page is as long as it can be.
func pages(w *world, token, path string, limit int) []string {
	w.t.Helper()
	var all []string
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	next := ""
	for range 100 {
		l := w.list(token, fmt.Sprintf("%s%slimit=%d%s", path, sep, limit, next))
		for _, i := range l.Items {
			all = append(all, fmt.Sprint(i["name"]))
		}
		if l.Next == nil {
			return all
		}
		if len(l.Items) != limit {
			w.t.Errorf("a page of %d, with more to come", len(l.Items))
		}
		next = "&marker=" + *l.Next
	}
	w.t.Fatal("the list does not end")
	return nil
}

func TestPaging(t *testing.T) {
	w := newWorld(t)
	for i := range 7 {
		w.server(w.one, fmt.Sprintf("s%d", i), func(s *compute.Server) {
			s.Shape.VCPUs = []int{2, 10, 1, 4, 2, 10, 1}[i]
			s.Seen.StartMs = float64(i)
			if i%2 == 0 {
				s.LaunchedAt = time.Date(2026, 1, 1, 0, 0, i, 500, time.UTC)
			}
		})
		w.server(w.two, "other", nil)
	}
	for _, c := range []struct{ path, want string }{
		{"/servers", "mine s0 s1 s2 s3 s4 s5 s6"},
		{"/servers?sort=-name", "s6 s5 s4 s3 s2 s1 s0 mine"},
		{"/servers?sort=shape.vcpus,-name", "mine s6 s2 s4 s0 s3 s5 s1"},
		{"/servers?sort=-shape.vcpus", "s1 s5 s3 s0 s4 s2 s6 mine"},
		{"/servers?sort=-launched_at,name", "s6 s4 s2 s0 mine s1 s3 s5"},
		{"/servers?shape.vcpus=2&shape.vcpus=4", "s0 s3 s4"},
		{"/servers?shape.vcpus=2&name=s4", "s4"},
		{"/servers?launched_at=", "mine s1 s3 s5"},
		{"/servers?launched_at=2026-01-01T00:00:02.0000005Z&launched_at=2026-01-01T01:00:04.0000005%2B01:00", "s2 s4"},
		{"/servers?metadata.role=web&name=s1", "s1"},
		{"/servers?metadata.role=db", ""},
		{"/servers?metadata.absent=", "mine s0 s1 s2 s3 s4 s5 s6"},
		{"/servers?name=other", ""},
		{"/servers?name=s2&name=s0", "s0 s2"},
		{"/servers?config_drive=1", ""},
		{"/servers?config_drive=F&sort=-created_at&name=s2&name=s3", "s3 s2"},
	} {
		for _, limit := range []int{1, 3, 8, 100} {
			if got := strings.Join(pages(w, "one", c.path, limit), " "); got != c.want {
				t.Errorf("%s by %d: %q, want %q", c.path, limit, got, c.want)
			}
		}
	}
	if got := strings.Join(pages(w, "admin", "/servers?all_projects=true&sort=-seen.start_ms&name=s1&name=s2", 1), " "); got != "s2 s1" {
		t.Errorf("an admin sorts by what only admins see: %q", got)
	}

	if got := strings.Join(pages(w, "admin", "/servers?all_projects=true&name=other", 3), " "); got != strings.TrimSpace(strings.Repeat("other ", 7)) {
		t.Errorf("an admin finds %q", got)
	}

	// The page after one whose last object has gone meanwhile goes on where it would have been.
	l := w.list("one", "/servers?limit=2")
	w.update(func(tx *state.Tx) error {
		id, err := resource.ParseID(*l.Next)
		if err != nil {
			return err
		}
		return compute.Servers().Delete(tx, id)
	})
	if got := names(w.list("one", "/servers?limit=2&marker="+*l.Next)); got != "s1 s2" {
		t.Errorf("after a marker that is gone: %q", got)
	}
}

func TestFiltersOfNetworks(t *testing.T) {
	w := newWorld(t)
	var group, port resource.ID
	w.update(func(tx *state.Tx) error {
		group, port = tx.NewID(), tx.NewID()
		return network.Ports().Put(tx, &network.Port{Meta: resource.Meta{ID: port, ProjectID: w.two, Name: "p"}, NetworkID: w.net, NetworkOwner: w.two,
			MAC: "fa:16:3e:00:00:01", Groups: []resource.ID{group}, Fixed: []network.FixedAddress{{SubnetID: w.subnet, Address: netip.MustParseAddr("10.1.0.5")},
				{SubnetID: w.subnet, Address: netip.MustParseAddr("fd00::1")}}})
	})
	for path, want := range map[string]string{
		"/ports?fixed.address=10.1.0.5": "p", "/ports?fixed.address=FD00:0::1": "p", "/ports?fixed.address=10.1.0.6": "",
		"/ports?groups=" + group.Hex(): "p", "/ports?groups=" + port.String(): "", "/ports?groups=": "", "/ports?wired=false": "p",
		"/networks?tags=green": "hers", "/networks?tags=red": "", "/subnets?cidr=10.1.0.0/24": "hers", "/subnets?gateway=": "hers",
	} {
		if got := names(w.list("two", path)); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestEncoding(t *testing.T) {
	w := newWorld(t)
	a := w.get("one", "/servers/"+w.mine.String()).must(t, 200)
	var s object
	a.into(t, &s)
	for name, want := range map[string]any{"id": w.mine.String(), "project_id": w.one.String(), "name": "mine", "group_id": nil,
		"launched_at": nil, "lock": nil, "tags": "[]", "plugs": "[]", "hints": "map[]", "power": "on", "metadata": "map[role:web]"} {
		if got, there := s[name]; !there || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if seen := s["seen"].(map[string]any); seen["hard_boots"] != float64(0) || seen["ours_ms"] != nil {
		t.Errorf("what was observed: %v", seen)
	}
	for _, hidden := range []string{"host_id", "user_data", "files", "admin_password", "meta"} {
		if _, shown := s[hidden]; shown {
			t.Errorf("%s is shown", hidden)
		}
	}
	if s["created_at"] == nil || s["revision"] == float64(0) {
		t.Errorf("%v", s)
	}
}

func TestAsOf(t *testing.T) {
	w := newWorld(t)
	before := w.state.Latest().Revision()
	w.update(func(tx *state.Tx) error {
		s, err := compute.Servers().Get(tx, w.mine)
		if err != nil {
			return err
		}
		s.Name = "renamed"
		return compute.Servers().Put(tx, s)
	})
	w.server(w.one, "later", nil)
	w.update(func(tx *state.Tx) error { return compute.Servers().Delete(tx, w.mine) })
	if got := names(w.list("one", "/servers")); got != "later" {
		t.Fatal(got)
	}
	at := fmt.Sprint(before)
	l := w.list("one", "/servers", "Unkai-As-Of", at)
	if names(l) != "mine" || l.Revision != before {
		t.Errorf("as of %s: %+v", at, l)
	}
	a := w.get("one", "/servers/"+w.mine.String(), "Unkai-As-Of", at).must(t, 200)
	var s object
	if a.into(t, &s); s["name"] != "mine" || a.header.Get(RevisionHeader) != at {
		t.Errorf("%v %v", s, a.header)
	}
	w.get("one", "/servers/"+w.mine.String()).must(t, 404)
	w.get("two", "/servers/"+w.mine.String(), "Unkai-As-Of", at).must(t, 404)
	w.get("one", "/servers", "Unkai-As-Of", "999999").must(t, 400).code(t)
	w.get("one", "/servers", "Unkai-As-Of", "last week").must(t, 400).code(t)
	w.get("one", "/servers?watch=true", "Unkai-As-Of", at).must(t, 400).code(t)
	w.do("one", "POST", "/operations/"+w.deciding.String()+"/cancel", "", "Unkai-As-Of", at).must(t, 400).code(t)
}

// FuzzQuery: whatever the query is, the answer is a page of the tenant's own things or a fault
// that is the client's.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"", "limit=3&marker=00000000-0000-7000-8000-000000000001", "sort=-name,created_at", "metadata.a.b.c=1",
		"shape.extra.x=&sort=shape.vcpus", "plugs.port_id=1", "tags=a&tags=b", "name=%00%ff", "failure.at=2026-01-01T00:00:00Z", "seen.isolating=t",
		"sort=failure.at", "sort=.", "..=1", "=", "all_projects=false&watch=false", "since=1", "key.name=x&lock.reason="} {
		f.Add(seed)
	}
	s, err := state.Open(f.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		f.Fatal(err)
	}
	project, other := resource.ID{15: 1}, resource.ID{15: 2}
	if err := s.Update(f.Context(), func(tx *state.Tx) error {
		for _, p := range []resource.ID{project, other, project} {
			full := filled(show("servers", compute.Servers(), "server.get", rule[compute.Server]{})).(*compute.Server)
			full.Meta = resource.Meta{ID: tx.NewID(), ProjectID: p, Name: p.String()}
			if err := compute.Servers().Put(tx, full); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		f.Fatal(err)
	}
	api := New(Options{State: s})
	f.Fuzz(func(t *testing.T, text string) {
		query, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		for _, k := range []*kind{api.byPath["servers"], api.byPath["ports"], api.byPath["operations"]} {
			for _, token := range []string{"member", "admin"} {
				a := member(project, 1)
				a.Roles = append(a.Roles, token)
				l, err := k.listingOf(query, highest(a))
				if err != nil {
					if faultOf(err) == "" {
						t.Fatalf("%q: %v", text, err)
					}
					continue
				}
				p, err := k.page(s.Latest(), sightOf(a, false), l)
				if err != nil && faultOf(err) == "" {
					t.Fatalf("%q: %v", text, err)
				}
				for _, o := range p.items {
					if o.GetMeta().ProjectID != project {
						t.Fatalf("%q shows another's %v", text, o.GetMeta())
					}
				}
			}
		}
	})
}

// faultOf is the code that a client would be told; "" for what is not its mistake.
func faultOf(err error) string {
	if f := fault.From(err); f != nil && f.Kind == fault.Invalid {
		return f.Code
	}
	return ""
}

// BenchmarkPage reads pages of 100 of 100,000 servers, half of them the tenant's.
func BenchmarkPage(b *testing.B) {
	s, err := state.Open(b.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	project := resource.ID{15: 1}
	var marker resource.ID
	for n := 0; n < 100_000; n += 5000 {
		if err := s.Update(b.Context(), func(tx *state.Tx) error {
			for i := n; i < n+5000; i++ {
				id := tx.NewID()
				if i == 60_000 {
					marker = id
				}
				full := &compute.Server{Meta: resource.Meta{ID: id, ProjectID: resource.ID{15: byte(1 + i%2)}, Name: fmt.Sprint("server-", i)},
					Shape: compute.Shape{VCPUs: 1 + i%8}, Metadata: map[string]string{"role": "web"}, Plugs: make([]compute.Plug, 2)}
				if err := compute.Servers().Put(tx, full); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	api := New(Options{State: s, Auth: tokens{"one": member(project, 1)}})
	for _, q := range []string{"limit=100", "limit=100&marker=" + marker.String(), "limit=100&shape.vcpus=3",
		"limit=100&name=server-18000", "limit=100&sort=-name", "limit=1000"} {
		b.Run(q, func(b *testing.B) {
			for b.Loop() {
				r := httptest.NewRequest("GET", "/servers?"+q, nil)
				r.Header.Set("X-Auth-Token", "one")
				w := httptest.NewRecorder()
				api.ServeHTTP(w, r)
				if w.Code != 200 {
					b.Fatal(w.Code, w.Body)
				}
			}
		})
	}
}
