package native

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// tokens knows who holds which token.
type tokens map[string]*identity.Actor

func (t tokens) Verify(_ context.Context, token string) (*identity.Actor, error) {
	if a := t[token]; a != nil {
		return a, nil
	}
	return nil, fault.Errorf(fault.Unauthorized, "The request you have made requires authentication.")
}

// A world is a cloud with two tenants and an admin, and a server of each tenant.
type world struct {
	t      *testing.T
	state  *state.State
	api    http.Handler
	native *Server
	tokens tokens

	one, two   resource.ID // projects
	host       resource.ID
	mine, hers resource.ID // servers of one and of two
	deciding   resource.ID // the operation that placed mine
	net        resource.ID // of two
	subnet     resource.ID // of two's network
}

func member(project resource.ID, user byte) *identity.Actor {
	return &identity.Actor{UserID: resource.ID{15: user}, ProjectID: project, Roles: []string{"member", "reader"}}
}

func newWorld(t *testing.T, o ...func(*Options)) *world {
	t.Helper()
	return newWorldKeeping(t, state.Options{}, o...)
}

func newWorldKeeping(t *testing.T, history state.Options, o ...func(*Options)) *world {
	t.Helper()
	return newWorldOn(t, state.NewMemory(0), history, o...)
}

func newWorldOn(t *testing.T, engine state.Engine, history state.Options, o ...func(*Options)) *world {
	t.Helper()
	if history.Now == nil { // each transaction later than the one before: then IDs are in the order of making
		at := time.Now()
		history.Now = func() time.Time { at = at.Add(time.Millisecond); return at }
	}
	s, err := state.Open(t.Context(), engine, history)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, state: s, one: resource.ID{0: 1, 15: 1}, two: resource.ID{0: 1, 15: 2}}
	admin := member(resource.ID{0: 1, 15: 9}, 9)
	admin.Roles = []string{"admin", "manager", "member", "reader"}
	w.tokens = tokens{"one": member(w.one, 1), "two": member(w.two, 2), "admin": admin,
		"roleless": {UserID: resource.ID{15: 7}, ProjectID: w.one, Roles: []string{"auditor"}},
		"unscoped": {UserID: resource.ID{15: 8}}}
	options := Options{State: s, Auth: w.tokens, Version: "test", Operations: &operation.Service{State: s,
		Cancellers: map[string]operation.Canceller{"server": func(context.Context, *state.Tx, *operation.Operation) error { return nil }}}}
	for _, change := range o {
		change(&options)
	}
	w.native = New(options)
	w.api = wire.Serve(w.native)
	w.furnish()
	return w
}

func (w *world) update(fn func(tx *state.Tx) error) {
	w.t.Helper()
	w.updateAs("", fn)
}

func (w *world) updateAs(token string, fn func(tx *state.Tx) error) {
	w.t.Helper()
	ctx := w.t.Context()
	if a := w.tokens[token]; a != nil {
		ctx = state.WithCause(ctx, state.Cause{UserID: a.UserID, ProjectID: a.ProjectID, RequestID: "req-x", Via: "test"})
	}
	if err := w.state.Update(ctx, fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) furnish() {
	w.update(func(tx *state.Tx) error {
		w.host = tx.NewID()
		return host.Table().Put(tx, &host.Host{Meta: resource.Meta{ID: w.host, Name: "node-secret"}, Zone: "nova", Address: netip.MustParseAddr("10.0.0.9")})
	})
	w.mine = w.server(w.one, "mine", nil)
	w.hers = w.server(w.two, "hers", nil)
	w.update(func(tx *state.Tx) error {
		w.deciding = tx.NewID()
		return operation.Table().Put(tx, &operation.Operation{Meta: resource.Meta{ID: w.deciding, ProjectID: w.one, Name: "create"}, Verb: "create",
			TargetKind: "server", TargetID: w.mine, Outcome: operation.Running, Deadline: tx.Now().Add(time.Hour),
			Why: &operation.Why{Chosen: "node-secret", Looked: 3, Asked: []string{"can be heard", "has the memory", "has the disk"}, Ended: "has the memory", Removed: []operation.Removed{{Constraint: "has the memory", Count: 2,
				Examples: []string{"node-other"}}}, Scores: []operation.Score{{Name: "node-secret", Score: 0.5}}},
			Steps: []operation.Step{{Name: "place", HostID: w.host, Outcome: operation.Running}}})
	})
	w.update(func(tx *state.Tx) error {
		w.net, w.subnet = tx.NewID(), tx.NewID()
		if err := network.Networks().Put(tx, &network.Network{Meta: resource.Meta{ID: w.net, ProjectID: w.two, Name: "hers"},
			Kind: "vxlan", Segment: 4711, Tags: []string{"blue", "green"}}); err != nil {
			return err
		}
		return network.Subnets().Put(tx, &network.Subnet{Meta: resource.Meta{ID: w.subnet, ProjectID: w.two, Name: "hers"}, NetworkID: w.net,
			CIDR: netip.MustParsePrefix("10.1.0.0/24")})
	})
}

func (w *world) server(project resource.ID, name string, change func(*compute.Server)) resource.ID {
	w.t.Helper()
	var id resource.ID
	w.update(func(tx *state.Tx) error {
		id = tx.NewID()
		s := &compute.Server{Meta: resource.Meta{ID: id, ProjectID: project, Name: name}, HostID: w.host, Power: compute.On,
			UserData: []byte("SECRET-user-data"), AdminPassword: "SECRET-password", Files: []compute.File{{Path: "/SECRET", Data: []byte("x")}},
			Metadata: map[string]string{"role": "web"}}
		if change != nil {
			change(s)
		}
		return compute.Servers().Put(tx, s)
	})
	return id
}

// An answered request.
type answered struct {
	status int
	header http.Header
	body   []byte
}

func (w *world) do(token, method, path, body string, headers ...string) answered {
	w.t.Helper()
	r := httptest.NewRequestWithContext(w.t.Context(), method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("X-Auth-Token", token)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	out := httptest.NewRecorder()
	w.api.ServeHTTP(out, r)
	return answered{out.Code, out.Header(), out.Body.Bytes()}
}

func (w *world) get(token, path string, headers ...string) answered {
	w.t.Helper()
	return w.do(token, "GET", path, "", headers...)
}

// must fails unless the status is this one.
func (a answered) must(t *testing.T, status int) answered {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

func (a answered) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

type object map[string]any

type listed struct {
	Kind     string
	Revision int64
	Next     *string
	Items    []object
}

func (w *world) list(token, path string, headers ...string) listed {
	w.t.Helper()
	var l listed
	w.get(token, path, headers...).must(w.t, 200).into(w.t, &l)
	return l
}

func names(l listed) string {
	var all []string
	for _, i := range l.Items {
		all = append(all, fmt.Sprint(i["name"]))
	}
	return strings.Join(all, " ")
}

// code is the error's code.
func (a answered) code(t *testing.T) string {
	t.Helper()
	var f failure
	a.into(t, &f)
	if f.Error.Message == "" || !strings.HasPrefix(f.Error.RequestID, "req-") {
		t.Errorf("an error without message or request ID: %s", a.body)
	}
	return f.Error.Code
}

func TestIsolation(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ token, path, want string }{
		{"one", "/servers", "mine"},
		{"two", "/servers", "hers"},
		{"admin", "/servers", ""},
		{"admin", "/servers?all_projects=true", "mine hers"},
		{"admin", "/hosts", "node-secret"},
		{"one", "/networks", ""},
		{"two", "/networks", "hers"},
		{"one", "/subnets", ""},
		{"one", "/operations", "create"},
		{"two", "/operations", ""},
		{"two", "/operations?target_id=" + w.mine.String(), ""},
		{"one", "/operations?target_id=" + w.mine.String(), "create"},
		{"one", "/servers?project_id=" + w.two.String(), ""},
		{"admin", "/servers?all_projects=true&project_id=" + w.two.String(), "hers"},
		{"admin", "/servers?all_projects=true&host_id=" + w.host.String(), "mine hers"},
	} {
		if got := names(w.list(c.token, c.path)); got != c.want {
			t.Errorf("%s lists %s: %q, want %q", c.token, c.path, got, c.want)
		}
	}

	absent := resource.ID{0: 9}
	for _, path := range []string{"/servers/%s", "/servers/%s/why", "/networks/%s", "/hosts/%s", "/operations/%s", "/images/%s"} {
		for _, id := range []resource.ID{w.hers, w.net, w.host, absent} {
			a := w.get("one", fmt.Sprintf(path, id)).must(t, 404)
			b := w.get("one", fmt.Sprintf(path, absent)).must(t, 404)
			x := strings.ReplaceAll(withoutRequest(t, a), id.String(), absent.String())
			if y := withoutRequest(t, b); x != y {
				t.Errorf("another's %s is told apart from what is not there: %s, %s", path, x, y)
			}
		}
	}
	w.get("admin", "/servers/"+w.hers.String()).must(t, 200)

	for _, c := range []struct {
		token, path string
		status      int
	}{
		{"", "/servers", 401}, {"forged", "/servers", 401}, {"one", "/hosts", 403}, {"one", "/servers?all_projects=true", 403},
		{"roleless", "/servers", 403}, {"unscoped", "/servers", 403}, {"one", "/aggregates", 403}, {"one", "/credentials", 404},
		{"admin", "/receipts", 404}, {"admin", "/token-keys", 404},
	} {
		w.get(c.token, c.path).must(t, c.status).code(t)
	}
}

func withoutRequest(t *testing.T, a answered) string {
	t.Helper()
	var f failure
	a.into(t, &f)
	f.Error.RequestID = ""
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTokenHeaders(t *testing.T) {
	w := newWorld(t)
	w.get("", "/servers", "Authorization", "Bearer one").must(t, 200)
	w.get("", "/servers", "Authorization", "bearer  one").must(t, 200)
	w.get("", "/servers", "Authorization", "Basic one").must(t, 401)
	if got := w.get("", "/servers").must(t, 401); got.header.Get("WWW-Authenticate") != "Bearer" || got.code(t) != "no-token" {
		t.Errorf("%v %s", got.header, got.body)
	}
}

func TestSharing(t *testing.T) {
	w := newWorld(t)
	w.update(func(tx *state.Tx) error {
		return network.Shares().Put(tx, &network.Share{Meta: resource.Meta{ID: tx.NewID(), ProjectID: w.two}, Kind: network.SharedNetwork,
			ObjectID: w.net, Action: network.ShareUse, Target: w.one})
	})
	for _, path := range []string{"/networks", "/subnets"} {
		if got := names(w.list("one", path)); got != "hers" {
			t.Errorf("%s shows %q", path, got)
		}
	}
	var n object
	w.get("one", "/networks/"+w.net.String()).must(t, 200).into(t, &n)
	if _, shown := n["segment"]; shown || n["name"] != "hers" {
		t.Errorf("a tenant is shown %v", n)
	}
	w.get("admin", "/networks/"+w.net.String()).must(t, 200).into(t, &n)
	if n["segment"] != float64(4711) {
		t.Errorf("an admin is shown %v", n)
	}
	if got := names(w.list("one", "/network-shares")); got != "" {
		t.Errorf("another's shares: %q", got)
	}

	var shared, public resource.ID
	w.update(func(tx *state.Tx) error {
		shared, public = tx.NewID(), tx.NewID()
		if err := image.Table().Put(tx, &image.Image{Meta: resource.Meta{ID: shared, ProjectID: w.two, Name: "shared"}, State: image.Active,
			Spec: image.Spec{Visibility: image.Shared}, Members: []image.Member{{ProjectID: w.one}, {ProjectID: w.host}}}); err != nil {
			return err
		}
		return image.Table().Put(tx, &image.Image{Meta: resource.Meta{ID: public, ProjectID: w.two, Name: "public"}, State: image.Active,
			Spec: image.Spec{Visibility: image.Public}})
	})
	l := w.list("one", "/images")
	if names(l) != "shared public" && names(l) != "public shared" {
		t.Errorf("images: %q", names(l))
	}
	for _, i := range l.Items {
		if _, told := i["members"]; told {
			t.Errorf("a member is told who the others are: %v", i)
		}
	}
	if got := w.list("two", "/images?name=shared").Items; len(got) != 1 || len(got[0]["members"].([]any)) != 2 {
		t.Errorf("the owner sees %v", got)
	}
	// Who may not see a field cannot find out about it with a filter.
	if got := names(w.list("one", "/images?members.project_id="+w.one.String())); got != "" {
		t.Errorf("a filter gives members away: %q", got)
	}
	if code := w.get("one", "/networks?segment=4711").must(t, 400).code(t); code != "unknown-field" {
		t.Error(code)
	}
	w.update(func(tx *state.Tx) error {
		i, err := image.Table().Get(tx, public)
		if err != nil {
			return err
		}
		i.State = image.Deleting
		return image.Table().Put(tx, i)
	})
	w.get("admin", "/images/"+public.String()).must(t, 404)
}

func TestWhy(t *testing.T) {
	w := newWorld(t)
	a := w.get("one", "/servers/"+w.mine.String()+"/why").must(t, 200)
	var got struct {
		Operation string `json:"operation_id"`
		Chosen    bool
		Why       object
	}
	a.into(t, &got)
	if got.Operation != w.deciding.String() || !got.Chosen || fmt.Sprint(got.Why["asked"]) != "[can be heard has the memory has the disk]" || got.Why["removed"] != nil {
		t.Errorf("%s", a.body)
	}
	for _, path := range []string{"/servers/" + w.mine.String() + "/why", "/operations", "/operations/" + w.deciding.String(), "/servers"} {
		body := w.get("one", path).must(t, 200).body
		for _, fact := range []string{"node-secret", "node-other", w.host.String(), `"looked"`, `"count":2`, `"nearest"`, `"removed"`, `"ended"`} {
			if bytes.Contains(body, []byte(fact)) {
				t.Errorf("%s tells a tenant %s: %s", path, fact, body)
			}
		}
		told := w.get("admin", path+"?all_projects=true").body
		for _, fact := range []string{"node-secret", `"looked":3`, `"count":2`, `"ended":"has the memory"`, `"constraint":"has the memory"`} {
			if !bytes.Contains(told, []byte(fact)) && strings.Contains(path, "why") {
				t.Errorf("%s does not tell an admin %s: %s", path, fact, told)
			}
		}
	}
	w.get("two", "/servers/"+w.hers.String()+"/why").must(t, 404).code(t)
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	path := "/operations/" + w.deciding.String() + "/cancel"
	w.do("two", "POST", path, "").must(t, 404)
	w.tokens["reader"] = &identity.Actor{UserID: resource.ID{15: 3}, ProjectID: w.one, Roles: []string{"reader"}}
	w.do("reader", "POST", path, "").must(t, 403)
	var p planned
	w.do("one", "POST", path, "", "Unkai-Plan", "true").must(t, 200).into(t, &p)
	if len(p.Changes) != 1 || p.Changes[0].Action != "update" || p.Changes[0].Kind != "operation" || !slices.Contains(p.Changes[0].Changed, "outcome") {
		t.Errorf("%+v", p)
	}
	var o object
	w.get("one", "/operations/"+w.deciding.String()).must(t, 200).into(t, &o)
	if o["outcome"] != "running" {
		t.Error("a plan changed something")
	}
	for range 2 { // twice is once
		w.do("one", "POST", path, "").must(t, 202).into(t, &o)
		if o["outcome"] != "cancelled" {
			t.Errorf("%v", o)
		}
	}
	for verb, want := range map[string]string{"delete": "operation-not-cancellable", "stop": "operation-ended"} {
		w.update(func(tx *state.Tx) error {
			o, err := operation.Get(tx, w.deciding)
			if err != nil {
				return err
			}
			o.Verb, o.Outcome = verb, operation.Running
			if verb == "stop" {
				o.Outcome = operation.Succeeded
			}
			return operation.Table().Put(tx, o)
		})
		if code := w.do("one", "POST", path, "").must(t, 409).code(t); code != want {
			t.Errorf("%s: %s", verb, code)
		}
	}
}

func TestHosts(t *testing.T) {
	w := newWorld(t)
	path := "/hosts/" + w.host.String()
	w.do("one", "PATCH", path, `{"disabled":true}`).must(t, 404)
	var h object
	w.do("admin", "PATCH", path, `{"disabled":true,"disabled_reason":"new disks"}`).must(t, 200).into(t, &h)
	if h["disabled"] != true || h["disabled_reason"] != "new disks" || h["address"] != "10.0.0.9" {
		t.Errorf("%v", h)
	}
	w.do("admin", "PATCH", path, `{"disabled":false}`).must(t, 200).into(t, &h)
	if h["disabled"] != false || h["disabled_reason"] != "" {
		t.Errorf("%v", h)
	}
	for _, body := range []string{``, `[]`, `{"disabled":1}`, `{"disabled":true}x`, `{"name":"x"}`, `{"disabled":false,"disabled_reason":"x"}`} {
		w.do("admin", "PATCH", path, body).must(t, 400).code(t)
	}
}

func TestHealth(t *testing.T) {
	w := newWorld(t)
	if got := strings.TrimSpace(string(w.get("", "/health").must(t, 200).body)); got != `{"status":"ok"}` {
		t.Error(got)
	}
	if got := string(w.get("one", "/health").must(t, 200).body); strings.Contains(got, "facts") {
		t.Error(got)
	}
	var h health
	w.get("admin", "/health").must(t, 200).into(t, &h)
	if h.Facts == nil || h.Facts.Hosts != 1 || h.Facts.OperationsOverdue != 0 {
		t.Errorf("%+v", h)
	}
}

// alone is an engine that cannot reach most of its members.
type alone struct {
	*state.Memory
	is atomic.Bool
}

func (a *alone) Head(ctx context.Context) (state.Head, error) {
	if a.is.Load() {
		return state.Head{}, errors.New("most members cannot be reached")
	}
	return a.Memory.Head(ctx)
}

// A controller that can change nothing, for it is cut off from the others, does not say that it is well.
func TestHealthOfWhoIsAlone(t *testing.T) {
	engine := &alone{Memory: state.NewMemory(0)}
	w := newWorldOn(t, engine, state.Options{})
	w.get("", "/health").must(t, 200)
	engine.is.Store(true)
	if got := strings.TrimSpace(string(w.get("", "/health").must(t, 503).body)); got != `{"status":"read-only"}` {
		t.Error(got)
	}
	engine.is.Store(false)
	w.get("", "/health").must(t, 200)
}

func TestUnknown(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/nothing", 404, "unknown-kind"},
		{"GET", "/servers/not-a-uuid", 404, "not-found"},
		{"GET", "/servers/x/y/z", 404, "unknown-path"},
		{"DELETE", "/servers", 405, "method-not-allowed"},
		{"POST", "/plan", 405, "method-not-allowed"}, // no dialects were given
		{"GET", "/servers?limit=0", 400, "invalid-value"},
		{"GET", "/servers?limit=1001", 400, "invalid-value"},
		{"GET", "/servers?limit=1&limit=2", 400, "invalid-value"},
		{"GET", "/servers?marker=x", 400, "invalid-value"},
		{"GET", "/servers?colour=red", 400, "unknown-field"},
		{"GET", "/servers?user_data=x", 400, "unknown-field"},
		{"GET", "/servers?shape=x", 400, "unknown-field"},
		{"GET", "/servers?shape.vcpus=two", 400, "invalid-value"},
		{"GET", "/servers?config_drive=perhaps", 400, "invalid-value"},
		{"GET", "/servers?id=1", 400, "invalid-value"},
		{"GET", "/servers?created_at=yesterday", 400, "invalid-value"},
		{"GET", "/servers?sort=metadata.role", 400, "unknown-field"},
		{"GET", "/servers?sort=host_id", 400, "unknown-field"},
		{"GET", "/servers?sort=", 200, ""},
		{"GET", "/servers?sort=name,", 400, "unknown-field"},
		{"GET", "/servers?sort=name&marker=" + w.hers.String(), 400, "unknown-marker"},
		{"GET", "/servers?since=1", 400, "invalid-value"},
		{"GET", "/servers?watch=1&since=99999", 400, "invalid-value"},
		{"GET", "/servers?watch=1&since=-1", 400, "invalid-value"},
		{"GET", "/servers?watch=1&sort=name", 400, "invalid-value"},
		{"GET", "/watch?kinds=servers,dreams", 400, "unknown-kind"},
		{"GET", "/watch?name=x", 400, "unknown-field"},
		{"GET", "/servers?a=%zz", 400, "invalid-query"},
		{"GET", "/ports?fixed.address=nowhere", 400, "invalid-value"},
	} {
		a := w.do("one", c.method, c.path, "").must(t, c.status)
		if c.code != "" && a.code(t) != c.code {
			t.Errorf("%s %s: %s", c.method, c.path, a.body)
		}
	}
}

// TestWhyAMachineIsNoHostIsShown to operators alone.
func TestWhyAMachineIsNoHostIsShown(t *testing.T) {
	w := newWorld(t)
	id := resource.NewID(time.Now(), nil)
	refused := host.Refusal{Since: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Why: "Host b says that its address is another's."}
	if err := w.state.Update(t.Context(), func(tx *state.Tx) error {
		h, ok := host.Find(tx, w.host)
		if !ok {
			t.Fatal("there is no host")
		}
		h.Refused = refused
		return errors.Join(host.Table().Put(tx, h), host.Newcomers().Put(tx, &host.Newcomer{Meta: resource.Meta{ID: id, Name: "b"}, Refused: refused}))
	}); err != nil {
		t.Fatal(err)
	}
	if got := names(w.list("admin", "/newcomers")); got != "b" {
		t.Errorf("shown are %q", got)
	}
	for _, path := range []string{"/newcomers/" + id.String(), "/hosts/" + w.host.String()} {
		if body := string(w.get("admin", path).must(t, 200).body); !strings.Contains(body, `"refused":{"since":"2030-01-02T03:04:05Z","why":"Host b says that its address is another's."}`) {
			t.Errorf("%s is %s", path, body)
		}
		w.get("one", path).must(t, 404)
	}
	w.get("one", "/newcomers").must(t, 403)
}
