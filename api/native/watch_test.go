package native

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

type line struct {
	Type     string
	Revision int64
	Resume   int64
	Kind     string
	ID       string
	Object   object
	Changed  []string
	Cause    map[string]any
	Code     string
	text     string
}

// A following is a watch under way.
type following struct {
	t     *testing.T
	lines chan line
	stop  func()
}

// streamWriter hands what the handler writes to a reader, as a connection would.
type streamWriter struct {
	header http.Header
	status chan int
	out    *io.PipeWriter
	wrote  bool
}

func (s *streamWriter) Header() http.Header { return s.header }
func (s *streamWriter) Flush()              {}
func (s *streamWriter) WriteHeader(status int) {
	if !s.wrote {
		s.wrote = true
		s.status <- status
	}
}

func (s *streamWriter) Write(b []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	return s.out.Write(b)
}

func (w *world) follow(token, path string) *following {
	w.t.Helper()
	return w.followIn(w.t.Context(), token, path)
}

func (w *world) followIn(ctx context.Context, token, path string) *following {
	w.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	r := httptest.NewRequestWithContext(ctx, "GET", path, nil)
	r.Header.Set("X-Auth-Token", token)
	in, out := io.Pipe()
	sw := &streamWriter{header: http.Header{}, status: make(chan int, 1), out: out}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.api.ServeHTTP(sw, r)
		out.Close()
	}()
	if status := <-sw.status; status != 200 {
		body, _ := io.ReadAll(in)
		cancel()
		w.t.Fatalf("%s: %d %s", path, status, body)
	}
	f := &following{t: w.t, lines: make(chan line), stop: func() { cancel(); in.Close(); <-done }}
	go func() {
		defer close(f.lines)
		scan := bufio.NewScanner(in)
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			l := line{text: scan.Text()}
			if err := json.Unmarshal(scan.Bytes(), &l); err != nil {
				l.Type = "broken: " + err.Error()
			}
			select {
			case f.lines <- l:
			case <-ctx.Done():
				return
			}
		}
	}()
	w.t.Cleanup(f.stop)
	return f
}

// next is the next line that is about an object, or the end.
func (f *following) next() line {
	f.t.Helper()
	for {
		select {
		case l, ok := <-f.lines:
			if !ok {
				f.t.Fatal("the stream ended")
			}
			if l.Type != "alive" {
				return l
			}
		case <-time.After(20 * time.Second):
			f.t.Fatal("no line comes")
		}
	}
}

func (l line) String() string {
	name := l.Object["name"]
	if name == nil {
		name = "-"
	}
	return fmt.Sprintf("%s %s %v", l.Type, l.Kind, name)
}

func (f *following) expect(want ...string) []line {
	f.t.Helper()
	var all []line
	for _, w := range want {
		l := f.next()
		if l.String() != w {
			f.t.Errorf("line %q, want %q: %s", l, w, l.text)
		}
		all = append(all, l)
	}
	return all
}

func (w *world) change(id resource.ID, fn func(*compute.Server)) {
	w.t.Helper()
	w.update(func(tx *state.Tx) error {
		s, err := compute.Servers().Get(tx, id)
		if err != nil {
			return err
		}
		fn(s)
		return compute.Servers().Put(tx, s)
	})
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	since := w.list("one", "/servers").Revision
	f := w.follow("one", fmt.Sprintf("/servers?watch=true&since=%d", since))
	w.change(w.hers, func(s *compute.Server) { s.Name = "theirs" }) // not ours to see
	w.change(w.mine, func(s *compute.Server) { s.Description, s.HostID, s.AdminPassword = "new", resource.ID{}, "SECRET2" })
	w.updateAs("one", func(tx *state.Tx) error {
		return compute.Servers().Put(tx, &compute.Server{Meta: resource.Meta{ID: tx.NewID(), ProjectID: w.one, Name: "made"}})
	})
	w.change(w.mine, func(s *compute.Server) { s.ProjectID = w.two })
	w.change(w.hers, func(s *compute.Server) { s.ProjectID = w.one })
	w.updateAs("two", func(tx *state.Tx) error { return compute.Servers().Delete(tx, w.hers) })
	lines := f.expect("updated server mine", "created server made", "deleted server -", "created server theirs", "deleted server -")
	if got := fmt.Sprint(lines[0].Changed); got != "[description]" {
		t.Errorf("changed: %s", got)
	}
	if lines[0].ID != w.mine.String() || lines[2].ID != w.mine.String() || lines[4].ID != w.hers.String() {
		t.Error("wrong objects")
	}
	if c := lines[1].Cause; c["user_id"] == nil || c["request_id"] != "req-x" || c["via"] != "test" {
		t.Errorf("our own cause: %v", c)
	}
	if c := lines[4].Cause; c["user_id"] != nil || c["project_id"] != nil || c["request_id"] != nil {
		t.Errorf("another's cause: %v", c)
	}
	d := document(t, w)
	for i, l := range lines {
		if l.Resume != l.Revision || i > 0 && l.Revision <= lines[i-1].Revision {
			t.Errorf("line %d: %s", i, l.text)
		}
		if strings.Contains(l.text, "SECRET") || strings.Contains(l.text, w.host.String()) {
			t.Errorf("a line tells too much: %s", l.text)
		}
		var v any
		if err := json.Unmarshal([]byte(l.text), &v); err != nil {
			t.Fatal(err)
		}
		if err := d.check(d.schema("Change"), v); err != nil {
			t.Errorf("%v: %s", err, l.text)
		}
	}
}

func TestWatchFiltered(t *testing.T) {
	w := newWorld(t)
	f := w.follow("admin", "/servers?watch=true&all_projects=true&power=off")
	w.change(w.mine, func(s *compute.Server) { s.Power = compute.Off })
	w.change(w.mine, func(s *compute.Server) { s.Name = "still" })
	w.change(w.mine, func(s *compute.Server) { s.Power = compute.On })
	f.expect("created server mine", "updated server still", "deleted server -")
}

// Lines of one transaction: only after the last can a client go on behind it.
func TestWatchTransaction(t *testing.T) {
	w := newWorld(t)
	f := w.follow("one", "/watch?kinds=servers,keypairs")
	w.update(func(tx *state.Tx) error {
		for _, name := range []string{"a", "b"} {
			if err := compute.Servers().Put(tx, &compute.Server{Meta: resource.Meta{ID: tx.NewID(), ProjectID: w.one, Name: name}}); err != nil {
				return err
			}
		}
		return compute.KeyPairs().Put(tx, &compute.KeyPair{Meta: resource.Meta{ID: tx.NewID(), Name: "k"}, UserID: w.tokens["one"].UserID})
	})
	lines := f.expect("created server a", "created server b", "created keypair k")
	rev := lines[0].Revision
	if lines[0].Resume != rev-1 || lines[1].Resume != rev-1 || lines[2].Resume != rev {
		t.Errorf("resume %d %d %d of %d", lines[0].Resume, lines[1].Resume, lines[2].Resume, rev)
	}
	again := w.follow("one", fmt.Sprintf("/servers?watch=true&since=%d", lines[0].Resume))
	again.expect("created server a", "created server b")
}

func TestWatchShared(t *testing.T) {
	w := newWorld(t)
	f := w.follow("one", "/watch?kinds=networks,subnets")
	var share resource.ID
	w.update(func(tx *state.Tx) error {
		share = tx.NewID()
		return network.Shares().Put(tx, &network.Share{Meta: resource.Meta{ID: share, ProjectID: w.two}, Kind: network.SharedNetwork,
			ObjectID: w.net, Action: network.ShareUse, Target: w.one})
	})
	f.expect("created network hers", "created subnet hers")
	w.update(func(tx *state.Tx) error {
		n, err := network.Networks().Get(tx, w.net)
		if err != nil {
			return err
		}
		n.Name, n.Segment = "ours", 1
		return network.Networks().Put(tx, n)
	})
	if l := f.expect("updated network ours")[0]; fmt.Sprint(l.Changed) != "[name]" {
		t.Errorf("changed: %v", l.Changed)
	}
	w.update(func(tx *state.Tx) error { return network.Shares().Delete(tx, share) })
	f.expect("deleted network -", "deleted subnet -")
	setShared := func(shared bool) {
		w.update(func(tx *state.Tx) error {
			n, err := network.Networks().Get(tx, w.net)
			if err != nil {
				return err
			}
			n.Shared = shared
			return network.Networks().Put(tx, n)
		})
	}
	setShared(true)
	f.expect("created network ours", "created subnet hers")
	w.update(func(tx *state.Tx) error { // all at once: then nothing says any more that it was shared
		if err := network.Subnets().Delete(tx, w.subnet); err != nil {
			return err
		}
		return network.Networks().Delete(tx, w.net)
	})
	if l := f.expect("deleted subnet -", "deleted network -"); l[0].ID != w.subnet.String() || l[1].ID != w.net.String() {
		t.Error("wrong objects")
	}
}

// TestWatchSharedFromFarBehind is told the same of a long history, whether each batch has a view of the past of
// its own or one view is moved on.
func TestWatchSharedFromFarBehind(t *testing.T) {
	w := newWorld(t)
	since := w.state.Latest().Revision()
	for i := range 4 {
		var net, subnet resource.ID
		w.update(func(tx *state.Tx) error {
			net, subnet = tx.NewID(), tx.NewID()
			if err := network.Networks().Put(tx, &network.Network{Meta: resource.Meta{ID: net, ProjectID: w.two, Name: fmt.Sprint("n", i)}, Shared: true}); err != nil {
				return err
			}
			return network.Subnets().Put(tx, &network.Subnet{Meta: resource.Meta{ID: subnet, ProjectID: w.two, Name: "s"}, NetworkID: net})
		})
		for range 700 {
			w.change(w.hers, func(s *compute.Server) { s.Description += "." })
		}
		w.update(func(tx *state.Tx) error {
			if err := network.Subnets().Delete(tx, subnet); err != nil {
				return err
			}
			return network.Networks().Delete(tx, net)
		})
	}
	w.update(func(tx *state.Tx) error {
		return network.Networks().Put(tx, &network.Network{Meta: resource.Meta{ID: tx.NewID(), ProjectID: w.one, Name: "last"}})
	})
	told := map[int64][]string{}
	for _, near := range []int64{0, 1 << 40} {
		defer func(was int64) { nearby = was }(nearby)
		nearby = near
		f := w.follow("one", fmt.Sprintf("/watch?kinds=networks,subnets&since=%d", since))
		for last := false; !last; {
			l := f.next()
			told[near] = append(told[near], fmt.Sprint(l.Type, " ", l.Kind, " ", l.Revision))
			last = l.Object["name"] == "last"
		}
		f.stop()
	}
	if !slices.Equal(told[0], told[1<<40]) || len(told[0]) < 9 {
		t.Errorf("one view that is moved on tells\n%v\nand many tell\n%v", told[0], told[1<<40])
	}
}

// TestWatchExactly changes servers at random. A watch without a break tells exactly what happened
// to the tenant's; one that breaks off anywhere, and resumes, ends with the same servers as a list.
func TestWatchExactly(t *testing.T) {
	w := newWorld(t)
	random := rand.New(rand.NewPCG(7, 7))
	since := w.list("one", "/servers").Revision
	f := w.follow("one", fmt.Sprintf("/servers?watch=true&since=%d", since))
	mirror := map[string]any{}
	for _, i := range w.list("one", "/servers").Items {
		mirror[i["id"].(string)] = i["name"]
	}
	live := []resource.ID{w.mine, w.hers}
	var want []string
	for n := range 150 {
		w.update(func(tx *state.Tx) error {
			for range 1 + random.IntN(3) {
				told, err := w.step(tx, random, &live, fmt.Sprint("s", n))
				if err != nil {
					return err
				}
				if told != "" {
					want = append(want, told)
				}
			}
			return nil
		})
	}
	var got []string
	for range want {
		l := f.next()
		got = append(got, l.Type+" "+l.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("told\n%v\nwant\n%v", got, want)
	}
	if len(want) < 100 {
		t.Fatalf("only %d changes were in sight: this tests little", len(want))
	}

	end := w.state.Latest().Revision()
	breaks := 0
	for since < end {
		f := w.follow("one", fmt.Sprintf("/servers?watch=true&since=%d", since))
		for range 1 + random.IntN(12) {
			l := <-f.lines
			switch l.Type {
			case "created", "updated":
				mirror[l.ID] = l.Object["name"]
			case "deleted":
				delete(mirror, l.ID)
			}
			since = l.Resume
			if since >= end {
				break
			}
		}
		f.stop()
		breaks++
	}
	if breaks < 10 {
		t.Errorf("only %d breaks", breaks)
	}
	list := w.list("one", "/servers?limit=1000")
	if len(list.Items) != len(mirror) {
		t.Errorf("%d servers were followed, %d are there", len(mirror), len(list.Items))
	}
	for _, i := range list.Items {
		if mirror[i["id"].(string)] != i["name"] {
			t.Errorf("%v was followed as %v", i["name"], mirror[i["id"].(string)])
		}
	}
}

// step changes one server, each at most once in a transaction, and tells what tenant one is told.
func (w *world) step(tx *state.Tx, random *rand.Rand, live *[]resource.ID, name string) (string, error) {
	project := []resource.ID{w.one, w.two}[random.IntN(2)]
	if len(*live) == 0 || random.IntN(3) == 0 {
		id := tx.NewID()
		*live = append(*live, id)
		err := compute.Servers().Put(tx, &compute.Server{Meta: resource.Meta{ID: id, ProjectID: project, Name: name}})
		if project == w.one {
			return "created " + id.String(), err
		}
		return "", err
	}
	at := random.IntN(len(*live))
	id := (*live)[at]
	s, err := compute.Servers().Get(tx, id)
	if err != nil || s.Revision == tx.Revision() {
		return "", err // merged with what was done to it before
	}
	was := s.ProjectID == w.one
	if random.IntN(3) == 0 {
		*live = slices.Delete(*live, at, at+1)
		if was {
			return "deleted " + id.String(), compute.Servers().Delete(tx, id)
		}
		return "", compute.Servers().Delete(tx, id)
	}
	s.Name, s.ProjectID = name, project
	told := map[[2]bool]string{{true, true}: "updated ", {true, false}: "deleted ", {false, true}: "created "}[[2]bool{was, project == w.one}]
	if told != "" {
		told += id.String()
	}
	return told, compute.Servers().Put(tx, s)
}

func TestWatchCompacted(t *testing.T) {
	w := newWorldKeeping(t, state.Options{History: 8})
	for range 40 {
		w.change(w.mine, func(s *compute.Server) { s.Description += "x" })
	}
	a := w.get("one", "/servers?watch=true&since=1").must(t, 410)
	if code := a.code(t); code != "compacted" {
		t.Error(code)
	}
	var out failure
	a.into(t, &out)
	present := fmt.Sprint(w.state.Latest().Revision())
	if out.Error.Details["revision"] != present || a.header.Get(RevisionHeader) != present {
		t.Errorf("%s %v", a.body, a.header)
	}
}

// A watch lives on in silence, and ends with its token.
func TestWatchEnds(t *testing.T) {
	for what, end := range map[string]func(w *world){
		"expired":         func(*world) {},
		"revoked":         func(w *world) { delete(w.tokens, "short") },
		"with less roles": func(w *world) { w.tokens["short"] = &identity.Actor{ProjectID: w.one, Roles: []string{"none"}} },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorldKeeping(t, state.Options{Now: time.Now})
				a := member(w.one, 4)
				a.ExpiresAt = time.Now().Add(100 * time.Second)
				w.tokens["short"] = a
				start := time.Now()
				f := w.follow("short", "/servers?watch=true")
				alive := 0
				for l := range f.lines {
					switch l.Type {
					case "alive":
						if alive++; alive == 3 {
							end(w)
						}
						continue
					case "end":
						if l.Code != "unauthorized" {
							t.Errorf("ended with %s", l.text)
						}
					default:
						t.Errorf("a line of type %s", l.text)
					}
					break
				}
				took := time.Since(start)
				switch {
				case what == "expired" && (took != 100*time.Second || alive != 7):
					t.Errorf("lived for %s with %d signs of life", took, alive)
				case what != "expired" && took > 60*time.Second:
					t.Errorf("lived for %s", took)
				}
				f.stop()
			})
		})
	}
}

// A watch ends when its server is to stop, also while something always changes, and says from where to go on.
func TestWatchEndsWithItsServer(t *testing.T) {
	for _, busy := range []bool{false, true} {
		w := newWorld(t)
		leaving, leave := context.WithCancel(t.Context())
		f := w.followIn(wire.WithLeaving(t.Context(), leaving, func() {}), "one", "/servers?watch=true")
		server := w.server(w.one, "busy", nil)
		f.expect("created server busy")
		var changing sync.WaitGroup
		over := make(chan struct{})
		if busy {
			changing.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-over:
						return
					default:
						w.change(server, func(s *compute.Server) { s.Name = fmt.Sprint("busy", n) })
					}
				}
			})
			f.next()
		}
		leave()
		began := time.Now()
		var last line
		for l := range f.lines {
			if last.Type == "updated" && l.Type == "end" && l.Resume < last.Resume {
				t.Errorf("%s after %s", l.text, last.text)
			}
			if last = l; l.Type == "end" || time.Since(began) > 2*time.Second {
				break
			}
		}
		if took := time.Since(began); last.Code != "stopping" || took > 500*time.Millisecond {
			t.Errorf("busy: %v; after %v the last line is %s", busy, took, last.text)
		}
		close(over)
		changing.Wait()
		f.stop()
	}
}

// The real listener's writers carry a stream, too.
func TestWatchOverHTTP(t *testing.T) {
	w := newWorld(t)
	listener := httptest.NewServer(http.StripPrefix("/v1", w.api))
	defer listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", listener.URL+"/v1/servers?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", "one")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	in := bufio.NewReader(answer.Body)
	if first, err := in.ReadBytes('\n'); err != nil || !bytes.Contains(first, []byte(`"alive"`)) {
		t.Fatalf("%s %v", first, err)
	}
	w.server(w.one, "over-http", nil)
	if second, err := in.ReadBytes('\n'); err != nil || !bytes.Contains(second, []byte("over-http")) {
		t.Fatalf("%s %v", second, err)
	}
}
