package openstack_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/openstack/glance"
	"github.com/unkai-cloud/unkai/api/openstack/keystone"
	"github.com/unkai-cloud/unkai/api/openstack/neutron"
	"github.com/unkai-cloud/unkai/api/openstack/nova"
	"github.com/unkai-cloud/unkai/api/openstack/placement"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
	"github.com/unkai-cloud/unkai/core/network"
)

// What follows tries every route of all five services with what a stranger, a thief of tokens or a broken client may
// send. Whatever comes back has to be an error in the service's own shape, and the state has to be what it was.

// A cloud is all five services over one state, with something of each kind that belongs to the project demo.
type cloud struct {
	testing.TB
	http.Handler
	st       *state.State
	services map[string]*openstack.Service // by prefix
	now      time.Time
	tokens   map[string]string // by user
	// ids are demo's things, or what else may stand in a path, by the segment before them.
	ids map[string]string
}

func newCloud(t testing.TB) *cloud {
	t.Helper()
	ctx := identity.Internal(t.Context())
	st, err := state.Open(ctx, state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := &cloud{TB: t, st: st, now: time.Now(), tokens: map[string]string{}, ids: map[string]string{}}
	config := identity.Config{Hash: identity.HashCost{MemoryKiB: 8, Passes: 1}, Now: func() time.Time { return c.now }}
	for _, err := range []error{
		identity.Bootstrap(ctx, st, identity.BootstrapOptions{Config: config, AdminPassword: "admin-password", DemoPassword: "demo-password", AltPassword: "alt-password"}),
		compute.Bootstrap(ctx, st),
		network.Bootstrap(ctx, st, network.BootstrapOptions{Admin: identity.ProjectNamed(st.Latest(), "admin")}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	who := identity.New(st, config)
	images, networks, servers := image.New(st, new(imagetest.Memory), image.Config{}), network.New(st), compute.New(st, compute.Config{})
	c.services = map[string]*openstack.Service{
		"/identity":  keystone.New(keystone.Options{Identity: who}),
		"/image":     glance.New(glance.Options{Images: images, Auth: who}),
		"/network":   neutron.New(neutron.Options{Networks: networks, Auth: who}),
		"/compute":   nova.New(nova.Options{Compute: servers, Auth: who, Images: images, Network: networks}),
		"/placement": placement.New(placement.Options{Compute: servers, Auth: who}),
	}
	mux := http.NewServeMux()
	for prefix, service := range c.services {
		mux.Handle(prefix+"/", http.StripPrefix(prefix, service))
	}
	c.Handler = wire.Serve(mux)
	for _, user := range []string{"admin", "demo", "alt"} {
		c.tokens[user] = c.login(user)
	}
	c.furnish()
	return c
}

func (c *cloud) login(user string) string {
	c.Helper()
	w := c.ask("", "POST /identity/v3/auth/tokens", fmt.Sprintf(`{"auth": {"identity": {"methods": ["password"], "password": {"user":
		{"name": %q, "domain": {"id": "default"}, "password": "%s-password"}}}, "scope": {"project": {"name": %q, "domain": {"id": "default"}}}}}`, user, user, user))
	if w.Code != http.StatusCreated {
		c.Fatalf("%s cannot log in: %d %s", user, w.Code, w.Body)
	}
	return w.Header().Get("X-Subject-Token")
}

// ask sends one request with a token, or with none when it is "".
func (c *cloud) ask(token, request, body string, headers ...string) *httptest.ResponseRecorder {
	method, path, _ := strings.Cut(request, " ")
	r := httptest.NewRequest(method, "http://cloud.example/", strings.NewReader(body))
	u, err := url.ParseRequestURI(path) // as it is, and not tidied up as a browser would
	if err != nil {
		c.Fatalf("%s: %v", request, err)
	}
	r.URL, r.RequestURI = u, path
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("X-Auth-Token", token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w
}

// make makes something as somebody, and gives what stands at a dotted path in the answer, of a list in its first one.
func (c *cloud) make(who, request, body, at string) string {
	c.Helper()
	w := c.ask(c.tokens[who], request, body)
	if w.Code >= 300 {
		c.Fatalf("%s: %d %s", request, w.Code, w.Body)
	}
	var v any
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		c.Fatalf("%s: %v", request, err)
	}
	for step := range strings.SplitSeq(at, ".") {
		if list, ok := v.([]any); ok && len(list) > 0 {
			v = list[0]
		}
		m, _ := v.(map[string]any)
		v = m[step]
	}
	text, ok := v.(string)
	if !ok {
		c.Fatalf("%s: no %s in %s", request, at, w.Body)
	}
	return text
}

// furniture is one of everything that a project can have, and of what only operators make.
var furniture = []struct {
	segment string // of a path, before the thing's ID
	who     string
	request string
	body    string
	at      string // where the answer has its ID
}{
	{"networks", "demo", "POST /network/v2.0/networks", `{"network": {"name": "n"}}`, "network.id"},
	{"subnets", "demo", "POST /network/v2.0/subnets", `{"subnet": {"network_id": "$networks", "cidr": "10.1.0.0/24", "ip_version": 4}}`, "subnet.id"},
	{"security-groups", "demo", "POST /network/v2.0/security-groups", `{"security_group": {"name": "g"}}`, "security_group.id"},
	{"security-group-rules", "demo", "POST /network/v2.0/security-group-rules", `{"security_group_rule": {"security_group_id": "$security-groups", "direction": "ingress"}}`, "security_group_rule.id"},
	{"ports", "demo", "POST /network/v2.0/ports", `{"port": {"network_id": "$networks"}}`, "port.id"},
	{"routers", "demo", "POST /network/v2.0/routers", `{"router": {"external_gateway_info": {"network_id": "$public"}}}`, "router.id"},
	{"", "demo", "PUT /network/v2.0/routers/$routers/add_router_interface", `{"subnet_id": "$subnets"}`, "id"},
	{"floatingips", "demo", "POST /network/v2.0/floatingips", `{"floatingip": {"floating_network_id": "$public"}}`, "floatingip.id"},
	{"port_forwardings", "demo", "POST /network/v2.0/floatingips/$floatingips/port_forwardings",
		`{"port_forwarding": {"protocol": "tcp", "external_port": 80, "internal_port": 80, "internal_port_id": "$ports", "internal_ip_address": "10.1.0.2"}}`, "port_forwarding.id"},
	{"subnetpools", "demo", "POST /network/v2.0/subnetpools", `{"subnetpool": {"name": "p", "prefixes": ["10.9.0.0/16"]}}`, "subnetpool.id"},
	{"address-scopes", "demo", "POST /network/v2.0/address-scopes", `{"address_scope": {"name": "s", "ip_version": 4}}`, "address_scope.id"},
	{"address-groups", "demo", "POST /network/v2.0/address-groups", `{"address_group": {"name": "a", "addresses": ["10.0.0.0/8"]}}`, "address_group.id"},
	{"rbac-policies", "demo", "POST /network/v2.0/rbac-policies",
		`{"rbac_policy": {"object_type": "address_group", "object_id": "$address-groups", "action": "access_as_shared", "target_tenant": "$projects"}}`, "rbac_policy.id"},
	{"images", "demo", "POST /image/v2/images", `{"name": "i", "disk_format": "raw", "container_format": "bare", "visibility": "shared"}`, "id"},
	{"namespaces", "admin", "POST /image/v2/metadefs/namespaces", `{"namespace": "OS::Test", "visibility": "private"}`, "namespace"},
	{"os-keypairs", "demo", "POST /compute/v2.1/os-keypairs", `{"keypair": {"name": "key-of-demo"}}`, "keypair.name"},
	{"os-server-groups", "demo", "POST /compute/v2.1/os-server-groups", `{"server_group": {"name": "g", "policies": ["affinity"]}}`, "server_group.id"},
	{"users", "admin", "GET /identity/v3/users?name=demo", ``, "users.id"},
	{"roles", "admin", "POST /identity/v3/roles", `{"role": {"name": "r"}}`, "role.id"},
	{"groups", "admin", "POST /identity/v3/groups", `{"group": {"name": "g"}}`, "group.id"},
	{"domains", "admin", "POST /identity/v3/domains", `{"domain": {"name": "d"}}`, "domain.id"},
	{"services", "admin", "POST /identity/v3/services", `{"service": {"type": "t"}}`, "service.id"},
	{"regions", "admin", "POST /identity/v3/regions", `{"region": {"id": "R2"}}`, "region.id"},
	{"endpoints", "admin", "POST /identity/v3/endpoints", `{"endpoint": {"service_id": "$services", "interface": "public", "url": "http://x"}}`, "endpoint.id"},
	{"policies", "admin", "POST /identity/v3/policies", `{"policy": {"type": "t", "blob": "b"}}`, "policy.id"},
	{"consumers", "admin", "POST /identity/v3/OS-OAUTH1/consumers", `{"consumer": {"description": "c"}}`, "consumer.id"},
	{"credentials", "demo", "POST /identity/v3/credentials", `{"credential": {"type": "cert", "blob": "b", "user_id": "$users"}}`, "credential.id"},
	{"OS-EC2", "demo", "POST /identity/v3/users/$users/credentials/OS-EC2", `{"tenant_id": "$projects"}`, "credential.access"},
	{"application_credentials", "demo", "POST /identity/v3/users/$users/application_credentials", `{"application_credential": {"name": "a"}}`, "application_credential.id"},
}

// fill puts IDs where a text has $segment.
func (c *cloud) fill(text string) string {
	return regexp.MustCompile(`\$[a-z_-]+`).ReplaceAllStringFunc(text, func(name string) string {
		if c.ids[name[1:]] == "" {
			c.Fatalf("%s: no %s yet", text, name)
		}
		return c.ids[name[1:]]
	})
}

// furnish makes it.
func (c *cloud) furnish() {
	c.Helper()
	tx := c.st.Latest()
	project := identity.ProjectNamed(tx, "demo").Hex()
	for _, segment := range []string{"projects", "quotas", "os-quota-sets", "os-quota-class-sets"} {
		c.ids[segment] = project
	}
	c.ids["members"] = identity.ProjectNamed(tx, "alt").Hex()
	for n := range network.Networks().All(tx) {
		c.ids["public"] = n.ID.String()
	}
	for _, x := range furniture {
		if id := c.make(x.who, c.fill(x.request), c.fill(x.body), x.at); x.segment != "" {
			c.ids[x.segment] = id
		}
	}
	c.ids["os-networks"], c.ids["os-tenant-networks"], c.ids["network-ip-availabilities"] = c.ids["networks"], c.ids["networks"], c.ids["networks"]
	c.ids["os-security-groups"], c.ids["os-security-group-rules"] = c.ids["security-groups"], c.ids["security-group-rules"]
	c.ids["os-floating-ips"], c.ids["os-interface"], c.ids["flavors"] = c.ids["floatingips"], c.ids["ports"], "42"
	c.furnishServer()
	c.furnishHost()
}

// furnishHost adds a host with something of each kind that an operator gives one.
func (c *cloud) furnishHost() {
	c.Helper()
	ctx, id := identity.Internal(c.Context()), resource.NewID(c.now, nil)
	if err := host.Arrive(ctx, c.st, id, host.Hello{Name: "n1", Capacity: host.Capacity{VCPUs: 4, MemoryMiB: 4096, DiskGiB: 100, Arch: "x86_64"}}); err != nil {
		c.Fatal(err)
	}
	hosts := host.Service{State: c.st}
	_, err := hosts.CreateTrait(ctx, "CUSTOM_GOLD")
	if err == nil {
		_, err = hosts.CreateClass(ctx, "CUSTOM_LICENSE")
	}
	if err == nil {
		_, err = hosts.SetTraits(ctx, id, nil, []string{"CUSTOM_GOLD"})
	}
	if err != nil {
		c.Fatal(err)
	}
	c.ids["resource_providers"], c.ids["allocations"] = id.String(), c.ids["servers"]
	c.ids["traits"], c.ids["resource_classes"], c.ids["inventories"] = "CUSTOM_GOLD", "CUSTOM_LICENSE", "CUSTOM_LICENSE"
}

// furnishServer makes a server. It needs an image, and no host: it stays one that is being made.
func (c *cloud) furnishServer() {
	c.Helper()
	err := c.st.Update(identity.Internal(c.Context()), func(tx *state.Tx) error {
		return image.Table().Put(tx, &image.Image{Meta: resource.Meta{ID: tx.NewID(), Name: "bootable", ProjectID: identity.ProjectNamed(tx, "demo")},
			Spec: image.Spec{Format: "raw", Container: "bare", Visibility: image.Private}, State: image.Active, Usable: true, Bytes: 1, VirtualBytes: 1, SHA512: "00"})
	})
	if err != nil {
		c.Fatal(err)
	}
	var bootable string
	for i := range image.Table().All(c.st.Latest()) {
		if i.Name == "bootable" {
			bootable = i.ID.String()
		}
	}
	c.ids["servers"] = c.make("demo", "POST /compute/v2.1/servers",
		`{"server": {"name": "s", "flavorRef": "42", "imageRef": "`+bootable+`", "networks": [{"uuid": "`+c.ids["networks"]+`"}]}}`, "server.id")
}

// stranger is an ID of the right form that nothing has.
const stranger = "01900000-0000-7000-8000-00000000dead"

var parameter = regexp.MustCompile(`([^/]+)/\{[^}]+\}`)

// path fills a pattern's parameters with what there is; with a first one that is not there, if one is given. It
// also tells what it would have put there, "" if that is nothing of demo's.
func (c *cloud) path(prefix, pattern, first string) (path, was string) {
	_, path, _ = strings.Cut(strings.TrimSuffix(pattern, "/{$}"), " ")
	n := 0
	path = parameter.ReplaceAllStringFunc(path, func(m string) string {
		segment, _, _ := strings.Cut(m, "/")
		id := c.ids[segment]
		if n++; n == 1 {
			if was = id; first != "" {
				id = first
			}
		}
		if id == "" {
			id = "x"
		}
		return segment + "/" + id
	})
	// What is left stands behind another parameter: /v2/metadefs/namespaces/{namespace}/{part}.
	return prefix + regexp.MustCompile(`\{[^}]+\}`).ReplaceAllString(path, "objects"), was
}

// each calls try for every route, with the method. Keystone's are there with a slash at the end too: those are the same.
func (c *cloud) each(try func(t *testing.T, prefix, method string, route openstack.Route)) {
	for prefix, service := range c.services {
		c.TB.(*testing.T).Run(prefix[1:], func(t *testing.T) {
			if len(service.Routes()) < 20 {
				t.Fatalf("only %d routes", len(service.Routes()))
			}
			for _, route := range service.Routes() {
				if !strings.HasSuffix(route.Pattern, "/{$}") {
					method, _, _ := strings.Cut(route.Pattern, " ")
					try(t, prefix, method, route)
				}
			}
		})
	}
}

// misshapen says what is wrong with an error's shape; "" if nothing is.
func misshapen(prefix string, w *httptest.ResponseRecorder) string {
	var body map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		return "is no JSON"
	}
	if prefix == "/image" {
		code, _ := body["code"].(string)
		message, _ := body["message"].(string)
		if !strings.HasPrefix(code, fmt.Sprint(w.Code)) || body["title"] == "" || message == "" && w.Code != http.StatusUnauthorized {
			return "is not Glance's error"
		}
		return ""
	}
	if len(body) != 1 {
		return "has not one key"
	}
	if prefix == "/placement" {
		all, _ := body["errors"].([]any)
		if len(all) != 1 {
			return "is not Placement's error"
		}
		e, _ := all[0].(map[string]any)
		status, _ := e["status"].(float64)
		if detail, _ := e["detail"].(string); int(status) != w.Code || detail == "" || e["title"] == "" || e["request_id"] == "" {
			return "is not Placement's error"
		}
		return ""
	}
	for key, v := range body {
		inner, _ := v.(map[string]any)
		message, _ := inner["message"].(string)
		code, _ := inner["code"].(float64)
		typ, _ := inner["type"].(string)
		switch {
		case message == "":
			return "has no message"
		case key == "NeutronError" && (prefix != "/network" || typ == ""):
			return "is not Neutron's error"
		case key != "NeutronError" && int(code) != w.Code:
			return "has another code"
		case key == "error" && prefix != "/identity" && w.Code != http.StatusUnauthorized:
			return "is Keystone's error"
		}
	}
	return ""
}

// refused wants an error of one of some statuses, in the service's shape, after which the state is what it was.
func (c *cloud) refused(t *testing.T, what, prefix string, w *httptest.ResponseRecorder, before int64, statuses ...int) {
	t.Helper()
	switch problem := misshapen(prefix, w); {
	case w.Code < 400 || w.Code >= 500 && w.Code != http.StatusNotImplemented || len(statuses) > 0 && !slices.Contains(statuses, w.Code):
		t.Errorf("%s: %d, want %v: %.300s", what, w.Code, statuses, w.Body)
	case problem != "":
		t.Errorf("%s: the %d %s: %.300s", what, w.Code, problem, w.Body)
	case c.st.Latest().Revision() != before:
		t.Errorf("%s: %d, but it changed the state", what, w.Code)
	}
}

func TestBadTokensOpenNothing(t *testing.T) {
	c := newCloud(t)
	good := c.tokens["admin"]
	flip := func(at int) string {
		b := []byte(good)
		if b[at] == 'A' {
			b[at] = 'B'
		} else {
			b[at] = 'A'
		}
		return string(b)
	}
	other := newCloud(t)
	revoked := c.login("admin")
	if w := c.ask(good, "DELETE /identity/v3/auth/tokens", "", "X-Subject-Token", revoked); w.Code != http.StatusNoContent {
		t.Fatal(w.Code, w.Body)
	}
	c.now = c.now.Add(-2 * time.Hour)
	expired := c.login("admin")
	c.now = c.now.Add(2 * time.Hour)
	bad := map[string]string{
		"none": "", "a word": "x", "long": strings.Repeat("A", 60000), "cut": good[:len(good)-1], "longer": good + "A",
		"another claim": flip(len(good) / 3), "another MAC": flip(len(good) - 10), "another version": flip(0), "another key": flip(4),
		"of another cloud": other.tokens["admin"], "revoked": revoked, "expired": expired, "no base64": "!" + good[1:], "twice": good + "," + good,
	}
	if w := c.ask(good, "GET /identity/v3/users", ""); w.Code != http.StatusOK {
		t.Fatalf("the good one does not work: %d %s", w.Code, w.Body)
	}
	before := c.st.Latest().Revision()
	c.each(func(t *testing.T, prefix, method string, route openstack.Route) {
		if route.Open {
			return
		}
		path, _ := c.path(prefix, route.Pattern, "")
		for name, token := range bad {
			w := c.ask(token, method+" "+path, "{}")
			c.refused(t, name+": "+route.Pattern, prefix, w, before, http.StatusUnauthorized)
		}
	})
}

// wishes are sound bodies for routes that look at the body first, by what the pattern begins with.
var wishes = []struct{ pattern, body string }{
	{"PATCH /v2/images/{id}", `[{"op": "replace", "path": "/name", "value": "mine"}]`},
	{"POST /v2/images/{id}/members", `{"member": "$members"}`},
	{"PUT /v2/images/{id}/members/{member}", `{"status": "accepted"}`},
	{"POST /v2/images/{id}/import", `{"method": {"name": "glance-direct"}}`},
	{"PUT /v2/images/{id}/file", `bytes`},
	{"PUT /v2/images/{id}/stage", `bytes`},
	{"POST /v2/metadefs/namespaces/{namespace}/{part}", `{"name": "mine"}`},
	{"PUT /v2/metadefs/namespaces/{namespace}", `{"namespace": "mine"}`},

	{"PUT /v2.0/routers/{id}/add_router_interface", `{"subnet_id": "$subnets"}`},
	{"PUT /v2.0/routers/{id}/remove_router_interface", `{"subnet_id": "$subnets"}`},
	{"PUT /v2.0/routers/{id}/add_extraroutes", `{"router": {"routes": [{"destination": "10.8.0.0/16", "nexthop": "10.1.0.9"}]}}`},
	{"PUT /v2.0/routers/{id}/remove_extraroutes", `{"router": {"routes": [{"destination": "10.8.0.0/16", "nexthop": "10.1.0.9"}]}}`},
	{"PUT /v2.0/address-groups/{id}/add_addresses", `{"addresses": ["10.7.0.0/16"]}`},
	{"PUT /v2.0/address-groups/{id}/remove_addresses", `{"addresses": ["10.0.0.0/8"]}`},
	{"PUT /v2.0/networks/{id}", `{"network": {"name": "mine"}}`},
	{"PUT /v2.0/subnets/{id}", `{"subnet": {"name": "mine"}}`},
	{"PUT /v2.0/ports/{id}", `{"port": {"name": "mine"}}`},
	{"PUT /v2.0/routers/{id}", `{"router": {"name": "mine"}}`},
	{"PUT /v2.0/floatingips/{id}", `{"floatingip": {"description": "mine"}}`},
	{"POST /v2.0/floatingips/{parent}/port_forwardings", `{"port_forwarding": {"protocol": "tcp", "external_port": 81, "internal_port": 80, "internal_port_id": "$ports", "internal_ip_address": "10.1.0.2"}}`},
	{"PUT /v2.0/floatingips/{parent}/port_forwardings", `{"port_forwarding": {"external_port": 82}}`},
	{"PUT /v2.0/security-groups/{id}", `{"security_group": {"name": "mine"}}`},
	{"PUT /v2.0/security-group-rules/{id}", `{"security_group_rule": {"description": "mine"}}`},
	{"PUT /v2.0/subnetpools/{id}", `{"subnetpool": {"name": "mine"}}`},
	{"PUT /v2.0/address-scopes/{id}", `{"address_scope": {"name": "mine"}}`},
	{"PUT /v2.0/address-groups/{id}", `{"address_group": {"name": "mine"}}`},
	{"PUT /v2.0/rbac-policies/{id}", `{"rbac_policy": {"target_tenant": "*"}}`},
	{"PUT /v2.0/quotas/{id}", `{"quota": {"port": 1}}`},

	{"POST /v2.1/servers/{id}/action", `{"os-stop": null}`},
	{"POST /v2.1/servers/{id}/metadata", `{"metadata": {"k": "v"}}`},
	{"PUT /v2.1/servers/{id}/metadata/{key}", `{"meta": {"x": "v"}}`},
	{"PUT /v2.1/servers/{id}/metadata", `{"metadata": {"k": "v"}}`},
	{"POST /v2.1/images/{id}/metadata", `{"metadata": {"k": "v"}}`},
	{"PUT /v2.1/images/{id}/metadata/{key}", `{"meta": {"x": "v"}}`},
	{"PUT /v2.1/images/{id}/metadata", `{"metadata": {"k": "v"}}`},
	{"POST /v2.1/servers/{id}/os-interface", `{"interfaceAttachment": {"net_id": "$networks"}}`},
	{"POST /v2.1/servers/{id}/remote-consoles", `{"remote_console": {"protocol": "vnc", "type": "novnc"}}`},
	{"PUT /v2.1/servers/{id}", `{"server": {"name": "mine"}}`},
	{"PUT /v2.1/os-quota-sets/{id}", `{"quota_set": {"cores": 1}}`},
	{"PUT /v2.1/os-quota-class-sets/{id}", `{"quota_class_set": {"cores": 1}}`},
	{"PUT /v2.1/os-security-groups/{id}", `{"security_group": {"name": "mine", "description": "d"}}`},

	{"PUT /resource_providers/{uuid}/inventories/{name}", `{"total": 3, "reserved": 1, "min_unit": 1, "max_unit": 2, "step_size": 1, "allocation_ratio": 1.5, "resource_provider_generation": 1}`},
	{"PUT /resource_providers/{uuid}/inventories", `{"resource_provider_generation": 1, "inventories": {"CUSTOM_LICENSE": {"total": 3}}}`},
	{"POST /resource_providers/{uuid}/inventories", `{"resource_class": "CUSTOM_LICENSE", "total": 3, "reserved": 1, "min_unit": 1, "max_unit": 2, "step_size": 1, "allocation_ratio": 1.5}`},
	{"PUT /resource_providers/{uuid}/aggregates", `{"aggregates": ["` + stranger + `"], "resource_provider_generation": 1}`},
	{"PUT /resource_providers/{uuid}/traits", `{"traits": ["CUSTOM_GOLD", "HW_CPU_X86_AVX2"], "resource_provider_generation": 1}`},
	{"PUT /resource_providers/{uuid}", `{"name": "mine"}`},
	{"POST /resource_providers", `{"name": "mine", "uuid": "` + stranger + `", "parent_provider_uuid": null}`},
	{"POST /resource_classes", `{"name": "CUSTOM_MINE"}`},
	{"PUT /allocations/{consumer}", `{"allocations": {"$resource_providers": {"resources": {"VCPU": 1}}}, "project_id": "p", "user_id": "u", "consumer_generation": null, "consumer_type": "INSTANCE"}`},
	{"POST /allocations", `{"$servers": {"allocations": {}, "project_id": "p", "user_id": "u", "consumer_generation": 1}}`},
	{"POST /reshaper", `{"inventories": {}, "allocations": {}}`},

	{"POST /v3/users/{user_id}/application_credentials", `{"application_credential": {"name": "mine"}}`},
	{"POST /v3/users/{user_id}/credentials/OS-EC2", `{"tenant_id": "$projects"}`},
	{"PATCH /v3/credentials/{credential_id}", `{"credential": {"blob": "mine"}}`},
	{"PATCH /v3/projects/{project_id}/cascade", `{"project": {"enabled": false}}`},
	{"PATCH /v3/projects/{project_id}", `{"project": {"description": "mine"}}`},
	{"PATCH /v3/users/{user_id}", `{"user": {"description": "mine"}}`},
	{"PATCH /v3/groups/{group_id}", `{"group": {"description": "mine"}}`},
	{"PATCH /v3/domains/{domain_id}/config", `{"config": {"identity": {"driver": "mine"}}}`},
	{"PUT /v3/domains/{domain_id}/config", `{"config": {"identity": {"driver": "mine"}}}`},
	{"PATCH /v3/domains/{domain_id}", `{"domain": {"description": "mine"}}`},
	{"PATCH /v3/services/{service_id}", `{"service": {"description": "mine"}}`},
	{"PATCH /v3/policies/{policy_id}", `{"policy": {"blob": "mine"}}`},
	{"PATCH /v3/OS-OAUTH1/consumers/{consumer_id}", `{"consumer": {"description": "mine"}}`},
}

// wish is a sound body for a route, and the headers that it needs.
func (c *cloud) wish(prefix, pattern string) (body string, headers []string) {
	body = "{}"
	if prefix == "/compute" {
		pattern = strings.Replace(pattern, " /v2/", " /v2.1/", 1)
	}
	tags := strings.HasPrefix(pattern, "PUT ") && strings.HasSuffix(pattern, "/tags")
	if tags {
		body = `{"tags": ["mine"]}`
	}
	for _, w := range wishes {
		if !tags && strings.HasPrefix(pattern, w.pattern) {
			body = c.fill(w.body)
			break
		}
	}
	switch {
	case strings.HasPrefix(body, "["):
		headers = []string{"Content-Type", "application/openstack-images-v2.1-json-patch"}
	case body == "bytes":
		headers = []string{"Content-Type", "application/octet-stream"}
	case prefix == "/placement":
		headers = []string{"OpenStack-API-Version", "placement 1.39"}
	case strings.Contains(pattern, "/servers/{id}/tags"):
		headers = []string{"OpenStack-API-Version", "compute 2.26"}
	case strings.Contains(pattern, "remote-consoles"):
		headers = []string{"OpenStack-API-Version", "compute 2.6"}
	}
	return body, headers
}

// known are the segments before IDs that everybody may know: every catalog and every token shows them.
var known = []string{"flavors", "roles", "regions", "endpoints"}

// TestForeignThingsAreNotThere asks for demo's things as somebody of another project: the answer must be the one that there
// is for what does not exist at all, so that it tells nothing, and comes from the same code.
func TestForeignThingsAreNotThere(t *testing.T) {
	c := newCloud(t)
	before := c.st.Latest().Revision()
	tried := 0
	c.each(func(t *testing.T, prefix, method string, route openstack.Route) {
		path, id := c.path(prefix, route.Pattern, "")
		segment := parameter.FindStringSubmatch(route.Pattern)
		if id == "" || route.Open || slices.Contains(known, segment[1]) {
			return
		}
		nothing := resource.MustID(stranger).Hex()
		if strings.Contains(id, "-") {
			nothing = stranger
		}
		void, _ := c.path(prefix, route.Pattern, nothing)
		body, headers := c.wish(prefix, route.Pattern)
		answer := func(path, id string) (int, string) {
			w := c.ask(c.tokens["alt"], method+" "+path, body, headers...)
			if w.Code == http.StatusBadRequest {
				t.Errorf("%s: the wish is not a sound one: %s", route.Pattern, w.Body)
			}
			text := strings.NewReplacer(id, "ID", w.Header().Get("X-Openstack-Request-Id"), "REQUEST").Replace(w.Body.String())
			if parsed, err := resource.ParseID(id); err == nil {
				text = strings.NewReplacer(parsed.String(), "ID", parsed.Hex(), "ID").Replace(text)
			}
			return w.Code, text
		}
		status, text := answer(path, id)
		wantStatus, wantText := answer(void, nothing)
		if status != wantStatus || text != wantText {
			t.Errorf("%s: another project's is answered with %d %s, what is not there with %d %s", route.Pattern, status, text, wantStatus, wantText)
		}
		tried++
	})
	if tried < 150 {
		t.Errorf("only %d routes were tried", tried)
	}
	if after := c.st.Latest().Revision(); after != before {
		t.Errorf("the state changed %d times", after-before)
	}
}

// heedless are the routes whose path says it all, so that they read no body; or Nova's floating addresses, which need none.
var heedless = regexp.MustCompile(`^PUT .*(/tags/\{[a-z]+\}|/roles/\{role_id\}(/inherited_to_projects)?|/users/\{user_id\}|/OS-EP-FILTER/projects/\{project_id\}/endpoints/\{endpoint_id\})$|^POST /v2(\.1)?/os-floating-ips$`)

var badBodies = map[string]string{
	"nothing": "", "half an object": `{"server": {`, "a list": "[]", "null": "null", "a string": `"x"`, "a number too large": "1e999", "no text": "\xff\xfe\x00",
	"two values": "{} {}", "deep lists": strings.Repeat("[", 100_000), "deep objects": strings.Repeat(`{"a":`, 100_000),
	"another thing": `{"teapot": {}}`, "a comment": `// {}`, "a key twice": `{"": 1, "": 2}`,
}

func TestBadBodiesChangeNothing(t *testing.T) {
	c := newCloud(t)
	c.each(func(t *testing.T, prefix, method string, route openstack.Route) {
		if method != http.MethodPost && method != http.MethodPut && method != http.MethodPatch {
			return
		}
		path, _ := c.path(prefix, route.Pattern, "")
		for name, body := range badBodies {
			before := c.st.Latest().Revision()
			w := c.ask(c.tokens["admin"], method+" "+path, body)
			if w.Code < 300 && heedless.MatchString(route.Pattern) {
				continue
			}
			c.refused(t, name+": "+route.Pattern, prefix, w, before)
		}
	})
}

// wrong are values that do not belong where they are put.
var wrong = []any{nil, true, 7, -1, 1.5, 1e300, "", "x", strings.Repeat("x", 70_000), "\x00", []any{}, []any{nil}, []any{[]any{}}, map[string]any{}, map[string]any{"x": map[string]any{}}}

// mutants calls try with copies of a value in each of which one thing is wrong.
func mutants(v any, try func(any)) {
	for _, w := range wrong {
		try(w)
	}
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			mutants(inner, func(m any) { c := maps.Clone(v); c[key] = m; try(c) })
			c := maps.Clone(v)
			delete(c, key)
			try(c)
		}
		c := maps.Clone(v)
		c["teapot"] = 1
		try(c)
	case []any:
		for n, inner := range v {
			mutants(inner, func(m any) { c := slices.Clone(v); c[n] = m; try(c) })
		}
		try(slices.Repeat(v, 2000))
	}
}

// TestWrongTypesHalfDoNothing puts something wrong into each place of each sound body. Some of it may be right by
// chance; what is refused must have changed nothing, and nothing may be our fault.
func TestWrongTypesHalfDoNothing(t *testing.T) {
	c := newCloud(t)
	tried := 0
	try := func(t *testing.T, request, body string, headers ...string) {
		var sound any
		if err := json.Unmarshal([]byte(body), &sound); err != nil {
			return // bytes
		}
		prefix := "/" + strings.Split(request, "/")[1]
		mutants(sound, func(m any) {
			text, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			before := c.st.Latest().Revision()
			if w := c.ask(c.tokens["admin"], request, string(text), headers...); w.Code >= 300 {
				c.refused(t, fmt.Sprintf("%s %.200s", request, text), prefix, w, before)
			}
			tried++
		})
	}
	for _, f := range furniture {
		if f.body != "" {
			try(t, c.fill(f.request), c.fill(f.body))
		}
	}
	c.each(func(t *testing.T, prefix, method string, route openstack.Route) {
		if body, headers := c.wish(prefix, route.Pattern); body != "{}" {
			path, _ := c.path(prefix, route.Pattern, "")
			try(t, method+" "+path, body, headers...)
		}
	})
	if tried < 1000 {
		t.Errorf("only %d bodies were tried", tried)
	}
	tx := c.st.Latest()
	if found := slices.Concat(network.Audit(tx), identity.Audit(tx)); len(found) > 0 {
		t.Errorf("the audit found %v", found)
	}
}

func TestOversizedBodiesAreRefused(t *testing.T) {
	c := newCloud(t)
	body := `{"x": "` + strings.Repeat("x", 1<<20) + `"}`
	before := c.st.Latest().Revision()
	c.each(func(t *testing.T, prefix, method string, route openstack.Route) {
		if route.Open && prefix != "/identity" {
			return
		}
		path, _ := c.path(prefix, route.Pattern, "")
		w := c.ask(c.tokens["admin"], method+" "+path, body)
		c.refused(t, route.Pattern, prefix, w, before, http.StatusRequestEntityTooLarge)
	})
}

func TestPathTricks(t *testing.T) {
	c := newCloud(t)
	before := c.st.Latest().Revision()
	for prefix, base := range map[string]string{"/identity": "/v3/users/", "/image": "/v2/images/", "/network": "/v2.0/networks/", "/compute": "/v2.1/servers/", "/placement": "/resource_providers/"} {
		for _, tail := range []string{"..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "a%00b", "%ff%fe", "a%2fb", "%20", strings.Repeat("x", 60_000), "x%0d%0aSet-Cookie:%20a=b",
			stranger + "%00", stranger + "/", "{" + stranger + "}", "urn:uuid:" + stranger, "%F0%9F%98%80", "'%20OR%201=1--", "..", ".", "*", "$(id)", "%25%32%65"} {
			for _, method := range []string{"GET", "DELETE"} {
				w := c.ask(c.tokens["admin"], method+" "+prefix+base+tail, "")
				what := fmt.Sprintf("%s %.60s", method, prefix+base+tail)
				if w.Code >= 300 && w.Code < 400 { // a clean spelling of the same path
					if to := w.Header().Get("Location"); !strings.HasPrefix(to, prefix+"/") {
						t.Errorf("%s leads to %s", what, to)
					}
					continue
				}
				if tail == "." || tail == ".." {
					continue // cleaned by the client already
				}
				c.refused(t, what, prefix, w, before)
				for name, values := range w.Header() {
					if strings.ContainsAny(strings.Join(values, ""), "\r\n") || name == "Set-Cookie" {
						t.Errorf("%s: header %s: %q", what, name, values)
					}
				}
			}
		}
		for _, path := range []string{"//v3/users", base + "../../../identity/v3/users", "/./" + base, base + "/" + stranger, "/../.." + base} {
			w := c.ask(c.tokens["admin"], "GET "+prefix+path, "")
			if w.Code >= 300 && w.Code < 400 {
				if to := w.Header().Get("Location"); strings.Contains(to, "..") || strings.Contains(to, "//") {
					t.Errorf("%s%s leads to %s", prefix, path, to)
				}
			} else if w.Code >= 500 || bytes.Contains(w.Body.Bytes(), []byte("password")) {
				t.Errorf("%s%s: %d %s", prefix, path, w.Code, w.Body)
			}
		}
	}
	if after := c.st.Latest().Revision(); after != before {
		t.Errorf("the state changed %d times", after-before)
	}
}
