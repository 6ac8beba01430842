package neutron

import (
	"encoding/json"
	"strings"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func (s *server) network() *kind[network.Network] {
	type N = network.Network
	return &kind[N]{
		name: "network", plural: "networks", path: "/networks", things: s.networks.Networks,
		fresh: func(*identity.Actor) *N { return &N{AdminUp: true, Secured: true} },
		attributes: append(named(func(n *N) *string { return &n.Description }),
			boolAttr("admin_state_up", func(n *N) *bool { return &n.AdminUp }),
			boolAttr("shared", func(n *N) *bool { return &n.Shared }),
			boolAttr("router:external", func(n *N) *bool { return &n.External }),
			boolAttr("is_default", func(n *N) *bool { return &n.Default }),
			boolAttr("port_security_enabled", func(n *N) *bool { return &n.Secured }),
			intAttr("mtu", func(n *N) *int { return &n.MTU }),
			nullableText("dns_domain", func(n *N) *string { return &n.DNSDomain }),
			listAttr("availability_zone_hints", readShortText, func(n *N) *[]string { return &n.ZoneHints }).create(),
			nullableText("provider:network_type", func(n *N) *string { return &n.Kind }),
			nullableText("provider:physical_network", func(n *N) *string { return &n.Physical }),
			nullableInt("provider:segmentation_id", func(n *N) *int { return &n.Segment }),
		),
		shape: networkShape,
		filters: tagged(map[string]filter{
			"admin_state_up": {field: "up", read: boolText}, "shared": {field: "shared", read: boolText},
			"router:external": {field: "external", read: boolText}, "is_default": {field: "default", read: boolText},
			"port_security_enabled": {field: "secured", read: boolText}, "mtu": {field: "mtu"},
			"dns_domain": {field: "dns-domain"}, "status": {field: "up", read: networkStatus},
			"provider:network_type":     {field: "kind", read: lowerText},
			"provider:physical_network": {field: "physical"}, "provider:segmentation_id": {field: "segment"},
			"ipv4_address_scope": {field: "scope-v4", read: idText}, "ipv6_address_scope": {field: "scope-v6", read: idText},
		}),
	}
}

// nullableInt takes null for 0, which stands for none.
func nullableInt[T any](name string, at func(*T) *int) attribute[T] {
	a := intAttr(name, at)
	parse := a.parse
	a.parse = func(c *call, in json.RawMessage) (func(*T) error, error) {
		if isNull(in) {
			in = json.RawMessage("0")
		}
		return parse(c, in)
	}
	return a
}

// networkStatus reads Neutron's words: a network that is up is active.
func networkStatus(s string) []string {
	switch strings.ToUpper(s) {
	case "ACTIVE":
		return []string{"true"}
	case "DOWN":
		return []string{"false"}
	}
	return nil
}

func networkShape(c *call, n *network.Network) object {
	o := standard(&n.Meta, n.Description, n.Tags)
	o["admin_state_up"] = n.AdminUp
	o["status"] = map[bool]string{true: "ACTIVE", false: "DOWN"}[n.AdminUp]
	o["subnets"] = texts(network.Subnets().IDs(c.tx, "network", state.KeyOf(n.ID)))
	o["shared"] = n.Shared || network.SharedTo(c.tx, n.ID, c.actor.ProjectID) && n.ProjectID != c.actor.ProjectID
	o["router:external"] = n.External
	if n.External {
		o["is_default"] = n.Default
	}
	o["port_security_enabled"] = n.Secured
	o["mtu"] = n.MTU
	o["dns_domain"] = n.DNSDomain
	o["availability_zone_hints"] = orEmpty(n.ZoneHints)
	o["availability_zones"] = network.ZonesOf(c.tx, n.ID)
	o["ipv4_address_scope"], o["ipv6_address_scope"] = idOrNull(n.ScopeV4), idOrNull(n.ScopeV6)
	if c.actor.Admin() {
		o["provider:network_type"] = n.Kind
		o["provider:physical_network"], o["provider:segmentation_id"] = nil, nil
		if n.Physical != "" {
			o["provider:physical_network"] = n.Physical
		}
		if n.Segment != 0 {
			o["provider:segmentation_id"] = n.Segment
		}
	}
	return o
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
