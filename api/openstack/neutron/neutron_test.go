package neutron_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/api/openstack/neutron"
	"github.com/unkai-cloud/unkai/api/openstack/openstacktest"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

var (
	demo  = resource.MustID("01900000-0000-7000-8000-00000000000d")
	alt   = resource.MustID("01900000-0000-7000-8000-00000000000a")
	admin = resource.MustID("01900000-0000-7000-8000-0000000000ad")
)

func actor(project resource.ID, roles ...string) *identity.Actor {
	return &identity.Actor{UserID: project, ProjectID: project, Roles: roles}
}

// cloud is a running service.
type cloud struct {
	testing.TB
	*httptest.Server
	networks *network.Service
	public   string // ID of the external network
}

func start(t testing.TB, engine state.Engine) *cloud {
	ctx := context.Background()
	st, err := state.Open(ctx, engine, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := network.Bootstrap(ctx, st, network.BootstrapOptions{Admin: admin}); err != nil {
		t.Fatal(err)
	}
	networks := network.New(st)
	service := neutron.New(neutron.Options{Networks: networks, Auth: openstacktest.Tokens{
		"demo": actor(demo, "member", "reader"), "alt": actor(alt, "member", "reader"), "reader": actor(demo, "reader"),
		"admin": actor(admin, "admin", "manager", "member", "reader"),
	}})
	c := &cloud{TB: t, Server: httptest.NewServer(wire.Serve(http.StripPrefix("/network", service))), networks: networks}
	t.Cleanup(c.Close)
	for n := range network.Networks().All(st.Latest()) {
		c.public = n.ID.String()
	}
	return c
}

// answer is what came back.
type answer struct {
	testing.TB
	status int
	body   map[string]any
	raw    string
}

// do sends a request as somebody. The request is "METHOD path", the body JSON.
func (c *cloud) do(who, request, body string, header ...string) answer {
	c.Helper()
	method, path, _ := strings.Cut(request, " ")
	r, err := http.NewRequest(method, c.URL+"/network"+path, strings.NewReader(body))
	if err != nil {
		c.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", who)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := c.Client().Do(r)
	if err != nil {
		c.Fatal(err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		c.Fatal(err)
	}
	a := answer{TB: c.TB, status: response.StatusCode, raw: string(raw)}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &a.body); err != nil {
			c.Fatalf("%s: %d with %q, which is no JSON", request, a.status, raw)
		}
	}
	return a
}

// at gives the text at a path of keys and list positions, "" if there is none.
func (a answer) at(path ...any) string {
	var v any = a.body
	for _, p := range path {
		switch key := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[key]
		case int:
			l, _ := v.([]any)
			if key >= len(l) {
				return ""
			}
			v = l[key]
		}
	}
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

func (a answer) want(status int) answer {
	a.Helper()
	if a.status != status {
		a.Fatalf("status %d, want %d: %s", a.status, status, a.raw)
	}
	return a
}

// refused wants an error of Neutron's.
func (a answer) refused(status int, typ string) {
	a.Helper()
	if a.status != status || a.at("NeutronError", "type") != typ || a.at("NeutronError", "message") == "" {
		a.Fatalf("got %d %s, want %d %s", a.status, a.raw, status, typ)
	}
}

func (c *cloud) make(who, plural, body string) string {
	c.Helper()
	name := strings.ReplaceAll(strings.TrimSuffix(plural, "s"), "-", "_")
	return c.do(who, "POST /v2.0/"+plural, body).want(201).at(name, "id")
}

func TestConversation(t *testing.T) {
	c := start(t, state.NewMemory(0))
	n := c.do("demo", "POST /v2.0/networks", `{"network": {"name": "blue", "description": "d"}}`).want(201)
	id := n.at("network", "id")
	for field, want := range map[string]string{"name": "blue", "status": "ACTIVE", "admin_state_up": "true", "mtu": "1450",
		"project_id": demo.Hex(), "tenant_id": demo.Hex(), "shared": "false", "router:external": "false", "provider:network_type": ""} {
		if got := n.at("network", field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	c.do("admin", "GET /v2.0/networks/"+id, "").want(200)
	c.do("alt", "GET /v2.0/networks/"+id, "").refused(404, "NetworkNotFound")
	c.do("alt", "PUT /v2.0/networks/"+id, `{"network": {"name": "mine"}}`).refused(404, "NetworkNotFound")
	c.do("reader", "PUT /v2.0/networks/"+id, `{"network": {"name": "mine"}}`).refused(403, "PolicyNotAuthorized")
	c.do("nobody", "GET /v2.0/networks", "").want(401)

	s := c.make("demo", "subnets", `{"subnet": {"network_id": "`+id+`", "ip_version": 4, "cidr": "10.1.0.0/24"}}`)
	p := c.do("demo", "POST /v2.0/ports", `{"port": {"network_id": "`+id+`"}}`).want(201)
	if p.at("port", "fixed_ips", 0, "ip_address") != "10.1.0.2" || p.at("port", "status") != "DOWN" {
		t.Fatal(p.raw)
	}
	router := c.make("demo", "routers", `{"router": {"external_gateway_info": {"network_id": "`+c.public+`"}}}`)
	i := c.do("demo", "PUT /v2.0/routers/"+router+"/add_router_interface", `{"subnet_id": "`+s+`"}`).want(200)
	if i.at("subnet_id") != s || i.at("id") != router {
		t.Fatal(i.raw)
	}
	f := c.do("demo", "POST /v2.0/floatingips", `{"floatingip": {"floating_network_id": "`+c.public+`", "port_id": "`+p.at("port", "id")+`"}}`).want(201)
	if f.at("floatingip", "status") != "ACTIVE" || f.at("floatingip", "fixed_ip_address") != "10.1.0.2" || f.at("floatingip", "router_id") != router {
		t.Fatal(f.raw)
	}
	c.do("demo", "PUT /v2.0/routers/"+router+"/remove_router_interface", `{"subnet_id": "`+s+`"}`).refused(409, "RouterInterfaceInUseByFloatingIP")
	c.do("demo", "PUT /v2.0/routers/"+router, `{"router": {"external_gateway_info": null}}`).refused(409, "RouterExternalGatewayInUseByFloatingIp")
	c.do("demo", "DELETE /v2.0/routers/"+router, "").refused(409, "RouterInUse")
	c.do("demo", "DELETE /v2.0/networks/"+id, "").refused(409, "NetworkInUse")
	c.do("demo", "DELETE /v2.0/subnets/"+s, "").refused(409, "SubnetInUse")
	c.do("demo", "PUT /v2.0/floatingips/"+f.at("floatingip", "id"), `{"floatingip": {"port_id": null}}`).want(200)
	c.do("demo", "DELETE /v2.0/floatingips/"+f.at("floatingip", "id"), "").want(204)
	c.do("demo", "PUT /v2.0/routers/"+router+"/remove_router_interface", `{"subnet_id": "`+s+`"}`).want(200)
	c.do("demo", "DELETE /v2.0/ports/"+p.at("port", "id"), "").want(204)
	c.do("demo", "DELETE /v2.0/routers/"+router, "").want(204)
	c.do("demo", "DELETE /v2.0/networks/"+id, "").want(204)
	c.do("demo", "GET /v2.0/subnets/"+s, "").refused(404, "SubnetNotFound")
}

// What is wrong with a request, and what Neutron calls it. $N and $S are demo's network and its
// subnet 10.1.0.0/24, $P its port 10.1.0.2, $G its security group, $X the external network.
var refusals = map[string]struct {
	who, request, body string
	status             int
	typ                string
}{
	"no JSON":                      {"demo", "POST /v2.0/networks", `{"network": `, 400, "HTTPBadRequest"},
	"another noun":                 {"demo", "POST /v2.0/networks", `{"port": {}}`, 400, "HTTPBadRequest"},
	"a list for an object":         {"demo", "POST /v2.0/networks", `{"network": []}`, 400, "HTTPBadRequest"},
	"an unknown attribute":         {"demo", "POST /v2.0/networks", `{"network": {"colour": "blue"}}`, 400, "HTTPBadRequest"},
	"a read-only attribute":        {"demo", "POST /v2.0/networks", `{"network": {"status": "ACTIVE"}}`, 400, "HTTPBadRequest"},
	"a number for a name":          {"demo", "POST /v2.0/networks", `{"network": {"name": 1}}`, 400, "HTTPBadRequest"},
	"a long name":                  {"demo", "POST /v2.0/networks", `{"network": {"name": "` + strings.Repeat("x", 256) + `"}}`, 400, "HTTPBadRequest"},
	"sharing is for operators":     {"demo", "POST /v2.0/networks", `{"network": {"shared": true}}`, 403, "PolicyNotAuthorized"},
	"so is being external":         {"demo", "PUT /v2.0/networks/$N", `{"network": {"router:external": true}}`, 403, "PolicyNotAuthorized"},
	"somebody else's project":      {"demo", "POST /v2.0/networks", `{"network": {"project_id": "` + alt.Hex() + `"}}`, 400, "HTTPBadRequest"},
	"an ID that is none":           {"demo", "GET /v2.0/networks/x", ``, 404, "NetworkNotFound"},
	"an unknown path":              {"demo", "GET /v2.0/nothing", ``, 404, "HTTPNotFound"},
	"an unknown filter":            {"demo", "GET /v2.0/networks?colour=blue", ``, 400, "HTTPBadRequest"},
	"a filter of other things":     {"demo", "GET /v2.0/networks?fixed_ips=subnet_id%3D$S", ``, 400, "HTTPBadRequest"},
	"an unknown sort key":          {"demo", "GET /v2.0/networks?sort_key=colour", ``, 400, "HTTPBadRequest"},
	"a negative limit":             {"demo", "GET /v2.0/networks?limit=-1", ``, 400, "HTTPBadRequest"},
	"an MTU that does not fit":     {"demo", "POST /v2.0/networks", `{"network": {"mtu": 9000}}`, 400, "InvalidInput"},
	"no network":                   {"demo", "POST /v2.0/ports", `{"port": {}}`, 400, "HTTPBadRequest"},
	"a network that is not there":  {"demo", "POST /v2.0/ports", `{"port": {"network_id": "` + demo.String() + `"}}`, 404, "NetworkNotFound"},
	"another tenant's network":     {"alt", "POST /v2.0/ports", `{"port": {"network_id": "$N"}}`, 404, "NetworkNotFound"},
	"an address in use":            {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "fixed_ips": [{"ip_address": "10.1.0.2"}]}}`, 409, "IpAddressInUse"},
	"an address elsewhere":         {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "fixed_ips": [{"ip_address": "10.9.0.2"}]}}`, 400, "InvalidIpForNetwork"},
	"not of the subnet":            {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "fixed_ips": [{"subnet_id": "$S", "ip_address": "10.9.0.2"}]}}`, 400, "InvalidIpForSubnet"},
	"the broadcast address":        {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "fixed_ips": [{"subnet_id": "$S", "ip_address": "10.1.0.255"}]}}`, 400, "InvalidIpForSubnet"},
	"a multicast MAC address":      {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "mac_address": "01:00:5e:00:00:01"}}`, 400, "HTTPBadRequest"},
	"groups without port security": {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "port_security_enabled": false, "security_groups": ["$G"]}}`, 409, "PortSecurityPortHasSecurityGroup"},
	"pairs without port security":  {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "port_security_enabled": false, "allowed_address_pairs": [{"ip_address": "10.1.0.9"}]}}`, 409, "AddressPairAndPortSecurityRequired"},
	"a port on the external net":   {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$X"}}`, 403, "PolicyNotAuthorized"},
	"binding is for operators":     {"demo", "POST /v2.0/ports", `{"port": {"network_id": "$N", "binding:host_id": "h"}}`, 403, "PolicyNotAuthorized"},
	"a group that is not there":    {"demo", "PUT /v2.0/ports/$P", `{"port": {"security_groups": ["` + demo.String() + `"]}}`, 404, "SecurityGroupNotFound"},
	"an overlapping subnet":        {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4, "cidr": "10.1.0.128/25"}}`, 400, "InvalidInput"},
	"host bits in a CIDR":          {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4, "cidr": "10.2.0.1/24"}}`, 400, "HTTPBadRequest"},
	"no CIDR and no pool":          {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4}}`, 400, "HTTPBadRequest"},
	"a gateway outside":            {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4, "cidr": "10.2.0.0/24", "gateway_ip": "10.3.0.1"}}`, 400, "InvalidInput"},
	"a gateway in a pool":          {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4, "cidr": "10.2.0.0/24", "allocation_pools": [{"start": "10.2.0.1", "end": "10.2.0.9"}]}}`, 409, "GatewayConflictWithAllocationPools"},
	"overlapping pools":            {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4, "cidr": "10.2.0.0/24", "allocation_pools": [{"start": "10.2.0.5", "end": "10.2.0.9"}, {"start": "10.2.0.9", "end": "10.2.0.10"}]}}`, 409, "OverlappingAllocationPools"},
	"a pool outside":               {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4, "cidr": "10.2.0.0/24", "allocation_pools": [{"start": "10.3.0.5", "end": "10.3.0.9"}]}}`, 400, "OutOfBoundsAllocationPool"},
	"a pool upside down":           {"demo", "POST /v2.0/subnets", `{"subnet": {"network_id": "$N", "ip_version": 4, "cidr": "10.2.0.0/24", "allocation_pools": [{"start": "10.2.0.9", "end": "10.2.0.5"}]}}`, 400, "InvalidAllocationPool"},
	"a router's default group":     {"demo", "POST /v2.0/security-groups", `{"security_group": {"name": "default"}}`, 409, "SecurityGroupDefaultAlreadyExists"},
	"a rule twice":                 {"demo", "POST /v2.0/security-group-rules", `{"security_group_rule": {"security_group_id": "$G", "direction": "egress"}}`, 409, "SecurityGroupRuleExists"},
	"ports of no protocol":         {"demo", "POST /v2.0/security-group-rules", `{"security_group_rule": {"security_group_id": "$G", "direction": "ingress", "port_range_min": 1, "port_range_max": 2}}`, 400, "SecurityGroupProtocolRequiredWithPorts"},
	"a range upside down":          {"demo", "POST /v2.0/security-group-rules", `{"security_group_rule": {"security_group_id": "$G", "direction": "ingress", "protocol": "tcp", "port_range_min": 9, "port_range_max": 2}}`, 400, "SecurityGroupInvalidPortRange"},
	"another family's prefix":      {"demo", "POST /v2.0/security-group-rules", `{"security_group_rule": {"security_group_id": "$G", "direction": "ingress", "remote_ip_prefix": "fd00::/8"}}`, 400, "SecurityGroupRuleParameterConflict"},
	"two remotes":                  {"demo", "POST /v2.0/security-group-rules", `{"security_group_rule": {"security_group_id": "$G", "direction": "ingress", "remote_ip_prefix": "10.0.0.0/8", "remote_group_id": "$G"}}`, 400, "SecurityGroupMultipleRemoteEntites"},
	"a gateway to a tenant's net":  {"demo", "POST /v2.0/routers", `{"router": {"external_gateway_info": {"network_id": "$N"}}}`, 400, "BadRequest"},
	"a distributed router":         {"demo", "POST /v2.0/routers", `{"router": {"distributed": true}}`, 403, "PolicyNotAuthorized"},
	"a chosen floating address":    {"demo", "POST /v2.0/floatingips", `{"floatingip": {"floating_network_id": "$X", "floating_ip_address": "172.24.4.77"}}`, 403, "PolicyNotAuthorized"},
	"a port without a way out":     {"demo", "POST /v2.0/floatingips", `{"floatingip": {"floating_network_id": "$X", "port_id": "$P"}}`, 404, "ExternalGatewayForFloatingIPNotFound"},
	"sharing with everyone":        {"demo", "POST /v2.0/rbac-policies", `{"rbac_policy": {"object_type": "network", "object_id": "$N", "action": "access_as_shared", "target_tenant": "*"}}`, 403, "PolicyNotAuthorized"},
	"a pool of two versions":       {"demo", "POST /v2.0/subnetpools", `{"subnetpool": {"prefixes": ["10.0.0.0/8", "fd00::/8"]}}`, 400, "PrefixVersionMismatch"},
	"quotas are the operator's":    {"demo", "PUT /v2.0/quotas/" + demo.Hex(), `{"quota": {"port": 9}}`, 403, "PolicyNotAuthorized"},
	"a tag that is not there":      {"demo", "GET /v2.0/networks/$N/tags/x", ``, 404, "TagNotFound"},
}

func TestRefusals(t *testing.T) {
	c := start(t, state.NewMemory(0))
	n := c.make("demo", "networks", `{"network": {}}`)
	s := c.make("demo", "subnets", `{"subnet": {"network_id": "`+n+`", "cidr": "10.1.0.0/24"}}`)
	p := c.make("demo", "ports", `{"port": {"network_id": "`+n+`"}}`)
	g := c.make("demo", "security-groups", `{"security_group": {"name": "g"}}`)
	fill := strings.NewReplacer("$N", n, "$S", s, "$P", p, "$G", g, "$X", c.public)
	before := c.networks.State.Latest().Revision()
	for name, tt := range refusals {
		t.Run(name, func(t *testing.T) {
			a := c.do(tt.who, fill.Replace(tt.request), fill.Replace(tt.body))
			a.TB = t
			a.refused(tt.status, tt.typ)
		})
	}
	if after := c.networks.State.Latest().Revision(); after != before {
		t.Fatalf("refused requests changed the state %d times", after-before)
	}
}

func TestListsFilterSortAndPage(t *testing.T) {
	c := start(t, state.NewMemory(0))
	n := c.make("demo", "networks", `{"network": {}}`)
	c.make("demo", "subnets", `{"subnet": {"network_id": "`+n+`", "cidr": "10.1.0.0/24"}}`)
	var bodies []string
	for i := range 10 {
		bodies = append(bodies, fmt.Sprintf(`{"network_id": "%s", "name": "p%d", "admin_state_up": %t, "device_id": "d%d"}`, n, 9-i, i%2 == 0, i%3))
	}
	c.do("demo", "POST /v2.0/ports", `{"ports": [`+strings.Join(bodies, ",")+`]}`).want(201)
	names := func(query string) string {
		t.Helper()
		var got []string
		for i := 0; ; i++ {
			name := c.last(query).at("ports", i, "name")
			if name == "" {
				return strings.Join(got, " ")
			}
			got = append(got, name)
		}
	}
	for query, want := range map[string]string{
		"":                                    "p0 p1 p2 p3 p4 p5 p6 p7 p8 p9",
		"admin_state_up=True":                 "p1 p3 p5 p7 p9",
		"admin_state_up=false&device_id=d1":   "p2 p8",
		"device_id=d1&device_id=d2":           "p1 p2 p4 p5 p7 p8",
		"name=p3":                             "p3",
		"name=p3&name=p7":                     "p3 p7",
		"name=nobody":                         "",
		"fixed_ips=ip_address=10.1.0.4":       "p7",
		"fixed_ips=ip_address_substr=1.0.1":   "p0 p1",
		"sort_key=name":                       "p0 p1 p2 p3 p4 p5 p6 p7 p8 p9",
		"sort_key=name&sort_dir=desc&limit=3": "p9 p8 p7",
		"sort_key=device_id&sort_key=name&sort_dir=asc&sort_dir=desc&limit=4": "p9 p6 p3 p0",
		"limit=0&status=DOWN":                   "p0 p1 p2 p3 p4 p5 p6 p7 p8 p9",
		"status=ACTIVE":                         "",
		"project_id=" + demo.Hex() + "&name=p9": "p9",
		"project_id=" + alt.Hex():               "",
	} {
		got := names(query)
		if !strings.Contains(query, "sort_key") { // in the order of IDs, which is no matter here
			got = inOrder(got)
		}
		if got != want {
			t.Errorf("ports?%s gives %q, want %q", query, got, want)
		}
	}
	three, seven := c.last("name=p3"), c.last("name=p7")
	for query, want := range map[string]string{
		"id=" + three.at("ports", 0, "id"):                                       "p3",
		"id=" + three.at("ports", 0, "id") + "&id=" + seven.at("ports", 0, "id"): "p3 p7",
		"id=" + three.at("ports", 0, "id") + "&admin_state_up=false":             "",
		"id=nothing": "",
		"name=p3&revision_number=" + three.at("ports", 0, "revision_number"): "p3",
		"name=p3&revision_number=1":                                "",
		"name=p3&created_at=" + three.at("ports", 0, "created_at"): "p3",
	} {
		if got := inOrder(names(query)); got != want {
			t.Errorf("ports?%s gives %q, want %q", query, got, want)
		}
	}
	// Forwards and back again by the links, in each order.
	for _, query := range []string{"limit=3", "limit=3&sort_key=name", "limit=3&sort_key=name&sort_dir=desc", "limit=3&device_id=d0&device_id=d1&device_id=d2"} {
		var there, back []string
		page := c.last(query)
		for {
			for i := 0; page.at("ports", i, "id") != ""; i++ {
				there = append(there, page.at("ports", i, "name"))
			}
			next := page.link("next")
			if next == "" {
				break
			}
			page = c.follow(next)
		}
		for {
			var names []string
			for i := 0; page.at("ports", i, "id") != ""; i++ {
				names = append(names, page.at("ports", i, "name"))
			}
			back = append(names, back...)
			previous := page.link("previous")
			if previous == "" {
				break
			}
			page = c.follow(previous)
		}
		if len(there) != 10 || strings.Join(there, " ") != strings.Join(back, " ") {
			t.Errorf("%s: forwards %v, back %v", query, there, back)
		}
	}
	c.do("alt", "GET /v2.0/ports?network_id="+n, "").want(200)
	if a := c.do("alt", "GET /v2.0/ports?network_id="+n, ""); a.at("ports", 0, "id") != "" {
		t.Errorf("another tenant sees %s", a.raw)
	}
	if a := c.last("fields=id&fields=name&name=p1"); len(a.body["ports"].([]any)[0].(map[string]any)) != 2 {
		t.Errorf("fields: %s", a.raw)
	}
}

func inOrder(words string) string {
	list := strings.Fields(words)
	slices.Sort(list)
	return strings.Join(list, " ")
}

func (c *cloud) last(query string) answer {
	c.Helper()
	return c.do("demo", "GET /v2.0/ports?"+query, "").want(200)
}

func (c *cloud) follow(link string) answer {
	c.Helper()
	return c.do("demo", "GET "+strings.TrimPrefix(link, c.URL+"/network"), "").want(200)
}

func (a answer) link(rel string) string {
	for i := 0; a.at("ports_links", i, "rel") != ""; i++ {
		if a.at("ports_links", i, "rel") == rel {
			return a.at("ports_links", i, "href")
		}
	}
	return ""
}

func TestQuotaRevisionTagsAndBulk(t *testing.T) {
	c := start(t, state.NewMemory(0))
	c.do("admin", "PUT /v2.0/quotas/"+demo.Hex(), `{"quota": {"network": 2}}`).want(200)
	c.do("demo", "POST /v2.0/networks", `{"networks": [{}, {}, {}]}`).refused(409, "OverQuota")
	if a := c.do("demo", "GET /v2.0/networks?router:external=false", "").want(200); a.at("networks", 0, "id") != "" {
		t.Fatalf("half of a refused request was done: %s", a.raw)
	}
	made := c.do("demo", "POST /v2.0/networks", `{"networks": [{"name": "a"}, {"name": "b"}]}`).want(201)
	id := made.at("networks", 0, "id")
	if a := c.do("demo", "GET /v2.0/quotas/"+demo.Hex()+"/details", "").want(200); a.at("quota", "network", "used") != "2" || a.at("quota", "network", "limit") != "2" {
		t.Fatal(a.raw)
	}
	revision := made.at("networks", 0, "revision_number")
	c.do("demo", "PUT /v2.0/networks/"+id, `{"network": {"name": "c"}}`, "If-Match", "revision_number="+revision).want(200)
	c.do("demo", "PUT /v2.0/networks/"+id, `{"network": {"name": "d"}}`, "If-Match", "revision_number="+revision).refused(412, "RevisionNumberConstraintFailed")
	c.do("demo", "PUT /v2.0/networks/"+id+"/tags", `{"tags": ["x", "y"]}`).want(200)
	c.do("demo", "PUT /v2.0/networks/"+id+"/tags/z", "").want(201)
	c.do("demo", "DELETE /v2.0/networks/"+id+"/tags/y", "").want(204)
	for query, want := range map[string]bool{"tags=x,z": true, "tags=x,y": false, "tags-any=y,z": true, "not-tags=x,y": true, "not-tags-any=x": false} {
		if got := c.do("demo", "GET /v2.0/networks?name=c&"+query, "").at("networks", 0, "id") == id; got != want {
			t.Errorf("%s finds it: %t, want %t", query, got, want)
		}
	}
	plan := c.do("demo", "DELETE /v2.0/networks/"+id, "", "Unkai-Plan", "true").want(200)
	if !strings.Contains(plan.raw, `"action":"delete"`) {
		t.Error(plan.raw)
	}
	c.do("demo", "GET /v2.0/networks/"+id, "").want(200)
	once := func() string {
		return c.do("demo", "POST /v2.0/security-groups", `{"security_group": {"name": "g"}}`, "Idempotency-Key", "k").want(201).at("security_group", "id")
	}
	if first := once(); once() != first {
		t.Error("the same request twice made two groups")
	}
}

// What has run out is told so, and a request that wants more than is left gets none of it.
func TestExhausted(t *testing.T) {
	c := start(t, state.NewMemory(0))
	n := c.make("demo", "networks", `{"network": {}}`)
	c.make("demo", "subnets", `{"subnet": {"network_id": "`+n+`", "ip_version": 4, "cidr": "10.1.0.0/29"}}`)
	for range 5 {
		c.make("demo", "ports", `{"port": {"network_id": "`+n+`"}}`)
	}
	pool := c.make("demo", "subnetpools", `{"subnetpool": {"name": "p", "prefixes": ["10.9.0.0/28"], "default_prefixlen": 28}}`)
	other := c.make("demo", "networks", `{"network": {}}`)
	c.make("demo", "subnets", `{"subnet": {"network_id": "`+other+`", "ip_version": 4, "subnetpool_id": "`+pool+`"}}`)
	external := c.make("admin", "networks", `{"network": {"router:external": true}}`)
	c.make("admin", "subnets", `{"subnet": {"network_id": "`+external+`", "ip_version": 4, "cidr": "192.0.2.0/30", "enable_dhcp": false}}`)
	c.make("demo", "floatingips", `{"floatingip": {"floating_network_id": "`+external+`"}}`)
	c.do("admin", "PUT /v2.0/quotas/"+demo.Hex(), `{"quota": {"security_group": 2, "router": 0}}`).want(200)
	c.make("demo", "security-groups", `{"security_group": {"name": "g"}}`)

	before := c.networks.State.Latest().Revision()
	for name, tt := range map[string]struct {
		request, body string
		status        int
		typ           string
	}{
		"the last address is taken": {"POST /v2.0/ports", `{"port": {"network_id": "` + n + `"}}`, 409, "IpAddressGenerationFailure"},
		"one of two fits":           {"POST /v2.0/ports", `{"ports": [{"network_id": "` + other + `"}, {"network_id": "` + n + `"}]}`, 409, "IpAddressGenerationFailure"},
		"the pool is used up":       {"POST /v2.0/subnets", `{"subnet": {"network_id": "` + n + `", "ip_version": 4, "subnetpool_id": "` + pool + `"}}`, 409, "SubnetAllocationError"},
		"no floating one is left":   {"POST /v2.0/floatingips", `{"floatingip": {"floating_network_id": "` + external + `"}}`, 409, "IpAddressGenerationFailure"},
		"a quota of none":           {"POST /v2.0/routers", `{"router": {}}`, 409, "OverQuota"},
		"a quota that is used up":   {"POST /v2.0/security-groups", `{"security_group": {"name": "h"}}`, 409, "OverQuota"},
	} {
		t.Run(name, func(t *testing.T) {
			a := c.do("demo", tt.request, tt.body)
			a.TB = t
			a.refused(tt.status, tt.typ)
		})
	}
	if after := c.networks.State.Latest().Revision(); after != before {
		t.Errorf("refused requests changed the state %d times", after-before)
	}
}

func FuzzBody(f *testing.F) {
	c := start(f, state.NewMemory(0))
	n := c.make("admin", "networks", `{"network": {}}`)
	paths := []string{"networks", "subnets", "ports", "routers", "floatingips", "security-groups", "security-group-rules",
		"rbac-policies", "subnetpools", "address-scopes", "address-groups"}
	for _, tt := range refusals {
		for i, path := range paths {
			if tt.request == "POST /v2.0/"+path {
				f.Add(uint8(i), strings.NewReplacer("$N", n, "$X", c.public).Replace(tt.body))
			}
		}
	}
	f.Add(uint8(1), `{"subnet": {"network_id": "`+n+`", "cidr": "::ffff:10.0.0.0/120", "ip_version": 6, "ipv6_ra_mode": "slaac"}}`)
	f.Add(uint8(8), `{"subnetpool": {"prefixes": "0.0.0.0/0", "default_prefixlen": "8", "min_prefixlen": null}}`)
	f.Fuzz(func(t *testing.T, at uint8, body string) {
		c := &cloud{t, c.Server, c.networks, c.public}
		path := paths[int(at)%len(paths)]
		for _, method := range []string{"POST /v2.0/" + path, "PUT /v2.0/" + path + "/" + n} {
			a := c.do("admin", method, body)
			if a.status >= 500 {
				t.Fatalf("%s %s: %d %s", method, body, a.status, a.raw)
			}
			if a.status == 201 {
				for _, v := range a.body {
					if one, ok := v.(map[string]any); ok {
						c.do("admin", "DELETE /v2.0/"+path+"/"+fmt.Sprint(one["id"]), "")
					}
				}
			}
		}
		if wrong := network.Audit(c.networks.State.Latest()); wrong != nil {
			t.Fatalf("%s left %v", body, wrong)
		}
	})
}
