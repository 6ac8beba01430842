package keystone

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// cloud is the service over a bootstrapped state, as a listener would serve it.
type cloud struct {
	http.Handler
	t *testing.T
}

func newCloud(t testing.TB) *cloud {
	st, err := state.Open(t.Context(), state.NewMemory(1024), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	config := identity.Config{Hash: identity.HashCost{MemoryKiB: 8, Passes: 1}}
	err = identity.Bootstrap(t.Context(), st, identity.BootstrapOptions{
		Config: config, AdminPassword: "admin-password", DemoPassword: "demo-password", AltPassword: "alt-password",
		Offers: []identity.NewOffer{
			{Type: "identity", Name: "keystone", URL: "/identity"},
			{Type: "object-store", Name: "swift", URL: "/object-store/v1/AUTH_$(project_id)s"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	svc := New(Options{Identity: identity.New(st, config)})
	c := &cloud{Handler: wire.Serve(http.StripPrefix("/identity", svc))}
	c.t, _ = t.(*testing.T)
	return c
}

// reply is an answer, with its JSON decoded.
type reply struct {
	t      *testing.T
	status int
	header http.Header
	text   string
	body   any
}

// do sends one request. headers are pairs.
func (c *cloud) do(method, path, body string, headers ...string) *reply {
	r := httptest.NewRequest(method, "http://cloud.example:8700/identity"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	out := &reply{t: c.t, status: w.Code, header: w.Header(), text: w.Body.String()}
	_ = json.Unmarshal(w.Body.Bytes(), &out.body) // an empty body stays nil, and at then fails
	return out
}

// at follows a path such as "token.user.name" or "users.0.id"; nil if it leads nowhere.
func (r *reply) at(path string) any {
	v := r.body
	for step := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[step]
		case []any:
			var i int
			if _, err := fmt.Sscan(step, &i); err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

func (r *reply) word(path string) string { s, _ := r.at(path).(string); return s }

func (r *reply) want(status int) *reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("status %d, want %d: %s", r.status, status, r.text)
	}
	return r
}

func loginBody(user, password, scope string) string {
	return fmt.Sprintf(`{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":%q,"domain":{"id":"default"},"password":%q}}}%s}}`,
		user, password, scope)
}

func projectScope(name string) string {
	return fmt.Sprintf(`,"scope":{"project":{"name":%q,"domain":{"name":"Default"}}}`, name)
}

// login gives the headers of somebody with a token.
func (c *cloud) login(user string) []string {
	c.t.Helper()
	r := c.do("POST", "/v3/auth/tokens", loginBody(user, user+"-password", projectScope(user))).want(201)
	return []string{"X-Auth-Token", r.header.Get("X-Subject-Token")}
}

func TestDiscovery(t *testing.T) {
	c := newCloud(t)
	for _, path := range []string{"", "/"} {
		r := c.do("GET", path, "").want(300)
		if got := r.at("versions.values.0.links.0.href"); got != "http://cloud.example:8700/identity/v3/" {
			t.Errorf("%q leads to %v", path, got)
		}
	}
	for _, path := range []string{"/v3", "/v3/"} {
		r := c.do("GET", path, "").want(200)
		if r.at("version.id") != "v3.14" || r.at("version.status") != "stable" {
			t.Errorf("the version is %s", r.text)
		}
	}
	r := c.do("GET", "/v3/nothing", "").want(404)
	if r.at("error.code") != 404.0 || r.at("error.title") != "Not Found" {
		t.Errorf("the error is %s", r.text)
	}
	c.do("PUT", "/v3", "").want(405)
}

func TestTokenOfAProject(t *testing.T) {
	c := newCloud(t)
	r := c.do("POST", "/v3/auth/tokens", loginBody("demo", "demo-password", projectScope("demo"))).want(201)
	token := r.header.Get("X-Subject-Token")
	project := r.word("token.project.id")
	for path, want := range map[string]any{
		"token.user.name": "demo", "token.user.domain.id": "default", "token.user.domain.name": "Default",
		"token.project.name": "demo", "token.project.domain.id": "default", "token.methods.0": "password",
		"token.roles.0.name": "member", "token.roles.1.name": "reader", "token.is_domain": false,
		"token.catalog.0.type": "identity", "token.catalog.0.endpoints.0.url": "http://cloud.example:8700/identity",
		"token.catalog.1.endpoints.0.url":    "http://cloud.example:8700/object-store/v1/AUTH_" + project,
		"token.catalog.0.endpoints.0.region": "RegionOne",
	} {
		if got := r.at(path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if len(project) != 32 {
		t.Errorf("the project's ID is %q, which is not 32 digits", project)
	}
	me := []string{"X-Auth-Token", token, "X-Subject-Token", token}
	again := c.do("GET", "/v3/auth/tokens?nocatalog", "", me...).want(200)
	if again.at("token.catalog") != nil || again.at("token.expires_at") != r.at("token.expires_at") {
		t.Errorf("validated, the token is %s", again.text)
	}
	c.do("HEAD", "/v3/auth/tokens", "", me...).want(200)
	c.do("DELETE", "/v3/auth/tokens", "", me...).want(204)
	c.do("GET", "/v3/auth/tokens", "", me...).want(401)
	admin := c.login("admin")
	c.do("GET", "/v3/auth/tokens", "", append(admin, "X-Subject-Token", token)...).want(404)
}

func TestScopes(t *testing.T) {
	c := newCloud(t)
	login := func(user, scope string) *reply {
		return c.do("POST", "/v3/auth/tokens", loginBody(user, user+"-password", scope))
	}
	r := login("admin", `,"scope":{"system":{"all":true}}`).want(201)
	if r.at("token.system.all") != true || r.at("token.project") != nil {
		t.Errorf("a system token is %s", r.text)
	}
	r = login("admin", `,"scope":{"domain":{"id":"default"}}`).want(201)
	if r.at("token.domain.id") != "default" {
		t.Errorf("a domain token is %s", r.text)
	}
	for _, scope := range []string{"", `,"scope":"unscoped"`, `,"scope":{"unscoped":{}}`} {
		r = login("demo", scope).want(201)
		if r.at("token.roles") != nil || r.at("token.catalog") != nil {
			t.Errorf("a token without a scope is %s", r.text)
		}
		unscoped := []string{"X-Auth-Token", r.header.Get("X-Subject-Token")}
		if got := c.do("GET", "/v3/auth/projects", "", unscoped...).want(200).at("projects.0.name"); got != "demo" {
			t.Errorf("its projects begin with %v", got)
		}
		c.do("GET", "/v3/auth/catalog", "", unscoped...).want(403)
		exchange := fmt.Sprintf(`{"auth":{"identity":{"methods":["token"],"token":{"id":%q}}%s}}`, unscoped[1], projectScope("demo"))
		r2 := c.do("POST", "/v3/auth/tokens", exchange).want(201)
		if r2.at("token.expires_at") != r.at("token.expires_at") || r2.at("token.audit_ids.1") != r.at("token.audit_ids.0") {
			t.Errorf("exchanged, %s became %s", r.text, r2.text)
		}
	}
	for _, scope := range []string{`,"scope":{"system":{"all":true}}`, `,"scope":{"domain":{"id":"default"}}`, projectScope("alt"), projectScope("none")} {
		login("demo", scope).want(401)
	}
}

// Each of these bodies is answered so, with an error in Keystone's shape.
var authErrors = map[string]struct {
	body   string
	status int
}{
	"nothing":                  {``, 400},
	"no JSON":                  {`{"auth":`, 400},
	"two values":               {`{} {}`, 400},
	"a list":                   {`[]`, 400},
	"no auth":                  {`{}`, 400},
	"auth is null":             {`{"auth":null}`, 400},
	"no identity":              {`{"auth":{}}`, 400},
	"identity is a number":     {`{"auth":{"identity":1}}`, 400},
	"no methods":               {`{"auth":{"identity":{}}}`, 400},
	"methods is a word":        {`{"auth":{"identity":{"methods":"password"}}}`, 400},
	"methods is empty":         {`{"auth":{"identity":{"methods":[]}}}`, 400},
	"a method of numbers":      {`{"auth":{"identity":{"methods":[1]}}}`, 400},
	"an unknown method":        {`{"auth":{"identity":{"methods":["magic"]}}}`, 401},
	"a password without user":  {`{"auth":{"identity":{"methods":["password"],"password":{}}}}`, 400},
	"a user without domain":    {`{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"demo","password":"x"}}}}}`, 400},
	"a numeric password":       {`{"auth":{"identity":{"methods":["password"],"password":{"user":{"id":"x","password":1}}}}}`, 400},
	"a user that is not there": {`{"auth":{"identity":{"methods":["password"],"password":{"user":{"id":"x","password":"x"}}}}}`, 401},
	"a wrong password":         {loginBody("demo", "wrong", ""), 401},
	"two scopes":               {loginBody("demo", "demo-password", `,"scope":{"domain":{"id":"default"},"system":{"all":true}}`), 400},
	"an unknown scope":         {loginBody("demo", "demo-password", `,"scope":{"galaxy":{}}`), 400},
	"a project without domain": {loginBody("demo", "demo-password", `,"scope":{"project":{"name":"demo"}}`), 400},
	"a bad token":              {`{"auth":{"identity":{"methods":["token"],"token":{"id":"x"}}}}`, 404},
	"many methods":             {`{"auth":{"identity":{"methods":[` + strings.Repeat(`"password",`, 1000) + `"token"]}}}`, 400},
}

func TestAuthErrors(t *testing.T) {
	c := newCloud(t)
	for name, test := range authErrors {
		t.Run(name, func(t *testing.T) {
			r := c.do("POST", "/v3/auth/tokens", test.body)
			if r.status != test.status || r.at("error.code") != float64(test.status) || r.word("error.message") == "" {
				t.Errorf("status %d, want %d: %s", r.status, test.status, r.text)
			}
		})
	}
}

func FuzzAuthenticate(f *testing.F) {
	for _, test := range authErrors {
		f.Add([]byte(test.body))
	}
	f.Add([]byte(loginBody("demo", "no", `,"scope":{"OS-TRUST:trust":{"id":"x"}}`)))
	f.Add([]byte(`{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"x","secret":"y"}}}}`))
	f.Add([]byte(`{"auth":{"identity":{"methods":["totp"],"totp":{"user":{"id":"x","passcode":"1"}}},"scope":{"system":{"all":true}}}}`))
	c := newCloud(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/identity/v3/auth/tokens", bytes.NewReader(body))
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		if w.Code < 400 || w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q is answered with %d: %s", body, w.Code, w.Body)
		}
	})
}

// Who may do what, and what wrong input is told.
func TestRefusals(t *testing.T) {
	c := newCloud(t)
	admin, demo := c.login("admin"), c.login("demo")
	id := c.do("GET", "/v3/users?name=demo", "", admin...).want(200).word("users.0.id")
	alt := c.do("GET", "/v3/users?name=alt", "", admin...).want(200).word("users.0.id")
	none := strings.Repeat("0", 31) + "1"
	for _, test := range []struct {
		who    []string
		method string
		path   string
		body   string
		status int
	}{
		{nil, "GET", "/v3/users", "", 401},
		{[]string{"X-Auth-Token", "x"}, "GET", "/v3/users", "", 401},
		{demo, "GET", "/v3/users", "", 403},
		{demo, "GET", "/v3/users/" + id, "", 200},
		{demo, "GET", "/v3/users/" + alt, "", 403},
		{demo, "GET", "/v3/users/" + none, "", 403},
		{admin, "GET", "/v3/users/" + none, "", 404},
		{admin, "GET", "/v3/users/no-id-at-all", "", 404},
		{demo, "GET", "/v3/projects", "", 403},
		{demo, "GET", "/v3/domains/default", "", 200},
		{demo, "POST", "/v3/users", `{"user":{"name":"x"}}`, 403},
		{demo, "GET", "/v3/users/" + id + "/projects", "", 200},
		{demo, "GET", "/v3/users/" + alt + "/projects", "", 403},
		{admin, "POST", "/v3/users", `{"user":{}}`, 400},
		{admin, "POST", "/v3/users", `{"user":{"name":null}}`, 400},
		{admin, "POST", "/v3/users", `{"user":{"name":""}}`, 400},
		{admin, "POST", "/v3/users", `{"user":{"name":"demo"}}`, 409},
		{admin, "POST", "/v3/users", `{"user":{"name":"x","enabled":"yes"}}`, 400},
		{admin, "POST", "/v3/users", `{"user":{"name":"x","password":"short"}}`, 400},
		{admin, "POST", "/v3/users", `{"user":{"name":"x","domain_id":"` + none + `"}}`, 404},
		{admin, "POST", "/v3/users", `{"user":{"name":"x","default_project_id":"default"}}`, 400},
		{admin, "POST", "/v3/users", `{"user":{"name":"x","junk":"` + strings.Repeat("x", 20000) + `"}}`, 400},
		{admin, "POST", "/v3/users", `{"user":{"name":"` + strings.Repeat("x", 256) + `"}}`, 400},
		{admin, "POST", "/v3/users", strings.Repeat("x", 2<<20), 413},
		{admin, "PATCH", "/v3/users/" + id, `{"user":{"domain_id":"` + none + `"}}`, 400},
		{admin, "POST", "/v3/projects", `{"project":{"name":"x","tags":["a","a"]}}`, 400},
		{admin, "POST", "/v3/projects", `{"project":{"name":"x","tags":["a/b"]}}`, 400},
		{admin, "POST", "/v3/projects", `{"project":{"name":"x","parent_id":"` + none + `"}}`, 404},
		{admin, "DELETE", "/v3/domains/default", "", 403},
		{admin, "PUT", "/v3/projects/" + none + "/users/" + id + "/roles/" + none, "", 404},
		{admin, "GET", "/v3/role_assignments?scope.project.id=x&scope.domain.id=default", "", 400},
		{admin, "POST", "/v3/endpoints", `{"endpoint":{"service_id":"x","interface":"public","url":"http://x"}}`, 400},
		{admin, "GET", "/v3/users?limit=x", "", 400},
		{admin, "POST", "/v3/users/" + alt + "/application_credentials", `{"application_credential":{"name":"x"}}`, 403},
	} {
		r := c.do(test.method, test.path, test.body, test.who...)
		if r.status != test.status {
			t.Errorf("%s %s %.60s: status %d, want %d: %s", test.method, test.path, test.body, r.status, test.status, r.text)
		}
	}
}

func TestListsAreFilteredAndPaged(t *testing.T) {
	c := newCloud(t)
	admin := c.login("admin")
	for i := range 5 {
		c.do("POST", "/v3/projects", fmt.Sprintf(`{"project":{"name":"shop-%d","enabled":%v,"tags":["t%d"]}}`, i, i > 0, i), admin...).want(201)
	}
	for query, want := range map[string]int{
		"": 9, "?name=shop-1": 1, "?name__contains=hop": 5, "?name__startswith=shop": 5, "?name__icontains=SHOP": 5, "?name__endswith=-4": 1,
		"?enabled=false": 1, "?enabled": 8, "?domain_id=default&name=shop-2": 1, "?domain_id=other": 0, "?unknown=x": 9, "?is_domain=true": 1,
		"?tags=t1": 1, "?tags-any=t1,t2": 2, "?not-tags-any=t1,t2": 7, "?limit=4": 4, "?parent_id=default": 9,
	} {
		r := c.do("GET", "/v3/projects"+query, "", admin...).want(200)
		if got := len(r.at("projects").([]any)); got != want {
			t.Errorf("%q finds %d projects, want %d", query, got, want)
		}
	}
	seen, path := map[string]bool{}, "/v3/projects?limit=2"
	for path != "" {
		r := c.do("GET", path, "", admin...).want(200)
		for _, p := range r.at("projects").([]any) {
			seen[p.(map[string]any)["id"].(string)] = true
		}
		path = strings.TrimPrefix(r.word("links.next"), "http://cloud.example:8700/identity")
	}
	if len(seen) != 9 {
		t.Errorf("the pages have %d projects, want 9", len(seen))
	}
}

func TestExtraAttributesAreKept(t *testing.T) {
	c := newCloud(t)
	admin := c.login("admin")
	r := c.do("POST", "/v3/users", `{"user":{"name":"x","password":"secret-word","colour":"blue","size":{"w":1},"links":{},"id":"mine"}}`, admin...).want(201)
	id := r.word("user.id")
	if r.at("user.colour") != "blue" || r.at("user.size.w") != 1.0 || id == "mine" {
		t.Errorf("the user is %s", r.text)
	}
	r = c.do("PATCH", "/v3/users/"+id, `{"user":{"colour":"red"}}`, admin...).want(200)
	if r.at("user.colour") != "red" || r.at("user.size.w") != 1.0 {
		t.Errorf("changed, the user is %s", r.text)
	}
	list := c.do("GET", "/v3/users", "", admin...).want(200)
	if strings.Contains(list.text, "argon2") || strings.Contains(list.text, "secret-word") {
		t.Errorf("a list shows secrets: %s", list.text)
	}
}

func TestPlanShowsNoSecret(t *testing.T) {
	c := newCloud(t)
	admin := c.login("admin")
	r := c.do("POST", "/v3/users", `{"user":{"name":"x","password":"secret-word"}}`, append(admin, wire.PlanHeader, "true")...).want(200)
	if r.at("changes.0.kind") != "user" || strings.Contains(r.text, "argon2") {
		t.Errorf("the plan is %s", r.text)
	}
	if users := c.do("GET", "/v3/users?name=x", "", admin...).want(200).at("users").([]any); len(users) != 0 {
		t.Error("a plan made a user")
	}
}

// A plan forgets what it wrote, and would forget that a password was wrong.
func TestPasswordsCannotBeTriedByPlans(t *testing.T) {
	c := newCloud(t)
	id := c.do("GET", "/v3/users?name=demo", "", c.login("admin")...).want(200).word("users.0.id")
	for path, body := range map[string]string{
		"/v3/auth/tokens":               loginBody("demo", "demo-password", ""),
		"/v3/users/" + id + "/password": `{"user":{"original_password":"demo-password","password":"another-password"}}`,
	} {
		c.do("POST", path, body, wire.PlanHeader, "true").want(400)
	}
}

func TestSameRequestTwiceHasOneEffect(t *testing.T) {
	c := newCloud(t)
	admin := append(c.login("admin"), wire.OnceHeader, "k1")
	body := `{"project":{"name":"once"}}`
	first := c.do("POST", "/v3/projects", body, admin...).want(201)
	again := c.do("POST", "/v3/projects", body, admin...).want(201)
	if first.at("project.id") != again.at("project.id") {
		t.Errorf("%s, then %s", first.text, again.text)
	}
	c.do("POST", "/v3/projects", `{"project":{"name":"other"}}`, admin...).want(409)
}

func TestApplicationCredentialOverTheWire(t *testing.T) {
	c := newCloud(t)
	demo := c.login("demo")
	me := c.do("GET", "/v3/auth/tokens", "", append(demo, "X-Subject-Token", demo[1])...).want(200).word("token.user.id")
	at := "/v3/users/" + me + "/application_credentials"
	r := c.do("POST", at, `{"application_credential":{"name":"ci","access_rules":[{"service":"identity","method":"GET","path":"/v3/regions"}]}}`, demo...).want(201)
	id, secret := r.word("application_credential.id"), r.word("application_credential.secret")
	if shown := c.do("GET", at+"/"+id, "", demo...).want(200); strings.Contains(shown.text, secret) || shown.at("application_credential.secret") != nil {
		t.Errorf("the secret is shown again: %s", shown.text)
	}
	login := c.do("POST", "/v3/auth/tokens",
		fmt.Sprintf(`{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":%q,"secret":%q}}}}`, id, secret)).want(201)
	if login.at("token.application_credential.restricted") != true || login.at("token.project.name") != "demo" {
		t.Errorf("the token is %s", login.text)
	}
	app := []string{"X-Auth-Token", login.header.Get("X-Subject-Token")}
	c.do("GET", "/v3/regions", "", app...).want(200)
	c.do("GET", "/v3/users/"+me, "", app...).want(401)
	c.do("DELETE", at+"/"+id, "", demo...).want(204)
	c.do("GET", "/v3/regions", "", app...).want(401)
}

// BenchmarkToken is all of a login but the password's hash, which is made as cheap as can be.
func BenchmarkToken(b *testing.B) {
	c := newCloud(b)
	body := loginBody("demo", "demo-password", projectScope("demo"))
	for b.Loop() {
		if r := c.do("POST", "/v3/auth/tokens", body); r.status != 201 {
			b.Fatal(r.text)
		}
	}
}

// BenchmarkCheck is a request whose token is checked and that does nothing else of weight.
func BenchmarkCheck(b *testing.B) {
	c := newCloud(b)
	token := c.do("POST", "/v3/auth/tokens", loginBody("demo", "demo-password", projectScope("demo"))).header.Get("X-Subject-Token")
	for b.Loop() {
		if r := c.do("GET", "/v3/auth/tokens?nocatalog", "", "X-Auth-Token", token, "X-Subject-Token", token); r.status != 200 {
			b.Fatal(r.text)
		}
	}
}

func TestParseTime(t *testing.T) {
	for text, want := range map[string]string{
		"2030-01-31T12:00:00Z":        "2030-01-31T12:00:00Z",
		"2030-01-31T12:00:00.5":       "2030-01-31T12:00:00.5Z",
		"2030-01-31T12:00:00+02:00":   "2030-01-31T10:00:00Z",
		"2030-01-31T12:00:00+0200":    "2030-01-31T10:00:00Z",
		"9999-12-31T23:59:59Z":        "9999-12-31T23:59:59Z",
		"9999-12-31T23:59:59-12:00":   "",
		"0001-01-01T00:00:00+01:00":   "",
		"0000-01-01T00:00:00Z":        "",
		"0001-01-01T00:00:00Z":        "",
		"10000-01-01T00:00:00Z":       "",
		"2030-02-30T00:00:00Z":        "",
		"soon":                        "",
		"2030-01-31T12:00:00+99:99":   "",
		"2030-01-31T12:00:00Z and on": "",
	} {
		at, ok := parseTime(text)
		if ok != (want != "") || ok && at.Format(time.RFC3339Nano) != want {
			t.Errorf("%q is %v, %v", text, at, ok)
		}
	}
}
