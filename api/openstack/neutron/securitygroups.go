package neutron

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func (s *server) securityGroup() *kind[network.Group] {
	type G = network.Group
	return &kind[G]{
		name: "security_group", plural: "security_groups", path: "/security-groups", things: s.networks.Groups,
		fresh: func(*identity.Actor) *G { return &G{Stateful: true} },
		attributes: append(named(func(g *G) *string { return &g.Description }),
			boolAttr("stateful", func(g *G) *bool { return &g.Stateful }),
		),
		shape: func(c *call, g *G) object {
			o := standard(&g.Meta, g.Description, g.Tags)
			o["stateful"] = g.Stateful
			o["shared"] = g.Shared || network.SharedTo(c.tx, g.ID, c.actor.ProjectID)
			list := []object{}
			for r := range network.Rules().Peek(c.tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
				list = append(list, ruleShape(c, r))
			}
			o["security_group_rules"] = list
			return o
		},
		filters: tagged(map[string]filter{
			"stateful": {field: "stateful", read: boolText}, "shared": {field: "shared", read: boolText},
		}),
		prepare: s.networks.EnsureDefaultGroup,
	}
}

// protocols are the names that rules may use (neutron-lib's IP_PROTOCOL_MAP, after IANA).
var protocols = map[string]int{
	"ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "hopopt": 0, "icmp": 1, "icmpv6": 58, "igmp": 2, "ip": 0, "ipip": 4,
	"ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43,
	"ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112,
}

func (s *server) securityGroupRule() *kind[network.Rule] {
	type R = network.Rule
	return &kind[R]{
		name: "security_group_rule", plural: "security_group_rules", path: "/security-group-rules", things: s.networks.Rules,
		fresh: func(*identity.Actor) *R { return &R{Protocol: network.AnyProtocol} },
		attributes: []attribute[R]{
			nullableText("description", func(r *R) *string { return &r.Description }),
			namedID("security_group_id", "security_group", func(r *R) *resource.ID { return &r.GroupID }).must(),
			attribute[R]{name: "direction", post: true, required: true, parse: parseDirection},
			{name: "ethertype", post: true, parse: parseEthertype},
			{name: "protocol", post: true, parse: parseProtocol},
			{name: "port_range_min", post: true, parse: parseBound("port_range_min", func(r *R) (*int, *bool) { return &r.PortMin, &r.HasMin })},
			{name: "port_range_max", post: true, parse: parseBound("port_range_max", func(r *R) (*int, *bool) { return &r.PortMax, &r.HasMax })},
			{name: "remote_ip_prefix", post: true, parse: parseRemotePrefix},
			namedID("remote_group_id", "security_group", func(r *R) *resource.ID { return &r.RemoteGroup }),
			namedID("remote_address_group_id", "address_group", func(r *R) *resource.ID { return &r.RemoteSet }),
		},
		complete: completeRule,
		shape:    ruleShape,
		filters: tagged(map[string]filter{
			"security_group_id": {field: "group", read: idText},
			"direction":         {field: "ingress", read: func(s string) []string { return boolText(strconv.FormatBool(s == "ingress")) }},
			"ethertype":         {field: "v6", read: func(s string) []string { return boolText(strconv.FormatBool(strings.EqualFold(s, "IPv6"))) }},
			"protocol":          {field: "protocol", read: protocolTexts},
			"port_range_min":    {field: "port-min"}, "port_range_max": {field: "port-max"},
			"remote_ip_prefix": {field: "remote-prefix", read: prefixTexts}, "remote_group_id": {field: "remote-group", read: idText},
			"remote_address_group_id": {field: "remote-set", read: idText},
		}),
		prepare: s.networks.EnsureDefaultGroup,
	}
}

// namedID is the ID of another thing; a word that is no ID names none, which is then not found.
func namedID[T any](name, noun string, at func(*T) *resource.ID) attribute[T] {
	return attribute[T]{name: name, post: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		id, err := readIDOrNull(name, in)
		if err != nil {
			return nil, fault.Errorf(fault.NotFound, "%s %s could not be found.", title(noun), strings.Trim(string(in), `"`)).WithCode(noun)
		}
		return func(t *T) error { *at(t) = id; return nil }, nil
	}}
}

func parseDirection(_ *call, in json.RawMessage) (func(*network.Rule) error, error) {
	s, err := readText("direction", in, 16)
	if err == nil && s != "ingress" && s != "egress" {
		err = invalid("direction", "'%s' is not in ['ingress', 'egress']", s)
	}
	return func(r *network.Rule) error { r.Ingress = s == "ingress"; return nil }, err
}

func parseEthertype(_ *call, in json.RawMessage) (func(*network.Rule) error, error) {
	if isNull(in) {
		return func(*network.Rule) error { return nil }, nil
	}
	s, err := readText("ethertype", in, 16)
	if err == nil && !strings.EqualFold(s, "IPv4") && !strings.EqualFold(s, "IPv6") {
		err = bad("SecurityGroupRuleInvalidEtherType", "Security group rule for ethertype '%s' not supported. Allowed values are IPv4, IPv6.", s)
	}
	return func(r *network.Rule) error { r.V6 = strings.EqualFold(s, "IPv6"); return nil }, err
}

// parseProtocol reads a protocol's name or number; null and "any" are all.
func parseProtocol(_ *call, in json.RawMessage) (func(*network.Rule) error, error) {
	text := strings.ToLower(strings.Trim(string(in), `"`))
	if isNull(in) || text == "any" {
		return func(*network.Rule) error { return nil }, nil
	}
	n, known := protocols[text]
	if !known {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 0 || n > 255 {
			return nil, bad("SecurityGroupRuleInvalidProtocol",
				"Security group rule protocol %s not supported. Only protocol values %s and integer representations [0 to 255] are supported.",
				text, slices.Sorted(maps.Keys(protocols)))
		}
	}
	return func(r *network.Rule) error { r.Protocol, r.ProtocolLabel = n, text; return nil }, nil
}

func protocolTexts(s string) []string {
	if s == "any" || s == "" || s == "None" {
		return []string{""}
	}
	return lowerText(s)
}

func prefixTexts(s string) []string {
	if p, err := parsePrefix("", s, true); err == nil {
		return []string{p.Masked().String()}
	}
	return []string{s}
}

func parseBound(name string, at func(*network.Rule) (*int, *bool)) func(*call, json.RawMessage) (func(*network.Rule) error, error) {
	return func(_ *call, in json.RawMessage) (func(*network.Rule) error, error) {
		if isNull(in) {
			return func(*network.Rule) error { return nil }, nil
		}
		n, err := strconv.Atoi(strings.Trim(string(in), `"`))
		if err != nil {
			return nil, bad("SecurityGroupInvalidPortValue", "Invalid value for port %s", in)
		}
		return func(r *network.Rule) error {
			value, has := at(r)
			*value, *has = n, true
			return nil
		}, nil
	}
}

func parseRemotePrefix(_ *call, in json.RawMessage) (func(*network.Rule) error, error) {
	if isNull(in) || string(in) == `""` {
		return func(*network.Rule) error { return nil }, nil
	}
	p, err := readPrefix("remote_ip_prefix", in, true)
	return func(r *network.Rule) error { r.RemotePrefix = p.Masked(); return nil }, err
}

// completeRule says what is wrong with bounds in Neutron's words; the core would refuse them, too.
func completeRule(_ *call, _ map[string]json.RawMessage, r *network.Rule) error {
	switch r.Protocol {
	case protocols["icmp"], protocols["icmpv6"]:
		for _, b := range []struct {
			field string
			value int
			has   bool
		}{{"type", r.PortMin, r.HasMin}, {"code", r.PortMax, r.HasMax}} {
			if b.has && (b.value < 0 || b.value > 255) {
				return bad("SecurityGroupInvalidIcmpValue", "Invalid value for ICMP %s (port-range-%s) %d. It must be 0 to 255.",
					b.field, map[string]string{"type": "min", "code": "max"}[b.field], b.value)
			}
		}
	default:
		for _, b := range []struct {
			value int
			has   bool
		}{{r.PortMin, r.HasMin}, {r.PortMax, r.HasMax}} {
			if b.has && (b.value < 0 || b.value > 65535) {
				return bad("SecurityGroupInvalidPortValue", "Invalid value for port %d", b.value)
			}
		}
	}
	return nil
}

func ruleShape(c *call, r *network.Rule) object {
	o := standard(&r.Meta, r.Description, r.Tags)
	delete(o, "name")
	o["security_group_id"] = r.GroupID.String()
	o["direction"], o["ethertype"] = "egress", "IPv4"
	if r.Ingress {
		o["direction"] = "ingress"
	}
	if r.V6 {
		o["ethertype"] = "IPv6"
	}
	o["protocol"], o["port_range_min"], o["port_range_max"] = nil, nil, nil
	if r.Protocol != network.AnyProtocol {
		o["protocol"] = r.ProtocolLabel
	}
	if r.HasMin {
		o["port_range_min"] = r.PortMin
	}
	if r.HasMax {
		o["port_range_max"] = r.PortMax
	}
	o["remote_ip_prefix"], o["normalized_cidr"] = prefixOrNull(r.RemotePrefix), prefixOrNull(r.RemotePrefix)
	o["remote_group_id"], o["remote_address_group_id"] = idOrNull(r.RemoteGroup), idOrNull(r.RemoteSet)
	return o
}

func prefixOrNull(p netip.Prefix) any {
	if !p.IsValid() {
		return nil
	}
	return p.String()
}
