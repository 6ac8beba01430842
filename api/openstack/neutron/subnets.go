package neutron

import (
	"encoding/json"
	"net/netip"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func (s *server) subnet() *kind[network.Subnet] {
	type S = network.Subnet
	return &kind[S]{
		name: "subnet", plural: "subnets", path: "/subnets", things: s.networks.Subnets,
		fresh: func(*identity.Actor) *S { return &S{DHCP: true, Gateway: network.AutoGateway} },
		attributes: append(named(func(s *S) *string { return &s.Description }),
			idAttr("network_id", func(s *S) *resource.ID { return &s.NetworkID }).create().must(),
			idAttr("subnetpool_id", func(s *S) *resource.ID { return &s.PoolID }).create(),
			aside[S]("cidr"), aside[S]("ip_version"), aside[S]("use_default_subnetpool"), aside[S]("prefixlen"),
			attribute[S]{name: "gateway_ip", post: true, put: true, parse: parseGateway},
			attribute[S]{name: "segment_id", post: true, put: true, parse: parseNoSegment},
			listAttr("allocation_pools", readPool, func(s *S) *[]network.Pool { return &s.Pools }),
			listAttr("dns_nameservers", readAddress, func(s *S) *[]netip.Addr { return &s.DNS }),
			listAttr("host_routes", readRoute, func(s *S) *[]network.Route { return &s.Routes }),
			listAttr("service_types", readServiceType, func(s *S) *[]string { return &s.ServiceFor }),
			boolAttr("enable_dhcp", func(s *S) *bool { return &s.DHCP }),
			modeAttr("ipv6_ra_mode", func(s *S) *network.Mode6 { return &s.RAMode }).create(),
			modeAttr("ipv6_address_mode", func(s *S) *network.Mode6 { return &s.V6Mode }).create(),
		),
		complete: completeSubnet,
		shape:    subnetShape,
		filters: tagged(map[string]filter{
			"network_id": {field: "network", read: idText}, "cidr": {field: "cidr"}, "ip_version": {field: "version"},
			"gateway_ip":  {field: "gateway", read: func(s string) []string { return []string{addressText(s)} }},
			"enable_dhcp": {field: "dhcp", read: boolText}, "subnetpool_id": {field: "pool", read: idText},
			"ipv6_ra_mode": {field: "ra-mode"}, "ipv6_address_mode": {field: "v6-mode"},
		}),
	}
}

// aside is an attribute of a request to create that complete reads.
func aside[T any](name string) attribute[T] {
	return attribute[T]{name: name, post: true, parse: func(*call, json.RawMessage) (func(*T) error, error) {
		return func(*T) error { return nil }, nil
	}}
}

func parseGateway(_ *call, in json.RawMessage) (func(*network.Subnet) error, error) {
	a, err := readAddressOrNull("gateway_ip", in)
	return func(s *network.Subnet) error { s.Gateway = a; return nil }, err
}

// parseNoSegment takes null alone: networks here have no segments of their own.
func parseNoSegment(_ *call, in json.RawMessage) (func(*network.Subnet) error, error) {
	if !isNull(in) {
		return nil, invalid("segment_id", "networks have no segments here")
	}
	return func(*network.Subnet) error { return nil }, nil
}

func readPool(name string, in json.RawMessage) (network.Pool, error) {
	var p network.Pool
	o, err := readObject(name, in, "start", "end")
	if err != nil {
		return p, err
	}
	if len(o) != 2 {
		return p, invalid(name, "Invalid data format for IP pool: '%s'", in)
	}
	if p.First, err = readAddress(name, o["start"]); err != nil {
		return p, err
	}
	p.Last, err = readAddress(name, o["end"])
	return p, err
}

func readServiceType(name string, in json.RawMessage) (string, error) {
	s, err := readText(name, in, 255)
	if err != nil {
		return "", err
	}
	return ownerTexts(s)[0], nil
}

func modeAttr[T any](name string, at func(*T) *network.Mode6) attribute[T] {
	return attribute[T]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		if isNull(in) {
			return func(t *T) error { *at(t) = ""; return nil }, nil
		}
		s, err := readText(name, in, 64)
		if err != nil {
			return nil, err
		}
		switch mode := network.Mode6(s); mode {
		case network.SLAAC, network.Stateful, network.Stateless:
			return func(t *T) error { *at(t) = mode; return nil }, nil
		}
		return nil, invalid(name, "'%s' is not in ['dhcpv6-stateful', 'dhcpv6-stateless', 'slaac']", s)
	}}
}

// completeSubnet finds out which prefix the new subnet is to have.
func completeSubnet(c *call, body map[string]json.RawMessage, s *network.Subnet) error {
	given := func(name string) bool { raw, ok := body[name]; return ok && !isNull(raw) }
	version := 0
	if given("ip_version") {
		var err error
		if version, err = readInt("ip_version", body["ip_version"]); err != nil || version != 4 && version != 6 {
			return invalid("ip_version", "'%s' is not in [4, 6]", body["ip_version"])
		}
	}
	if given("cidr") {
		prefix, err := readPrefix("cidr", body["cidr"], false)
		if err != nil {
			return err
		}
		if prefix.Masked() != prefix {
			return invalid("cidr", "'%s' isn't a recognized IP subnet cidr, '%s' is recommended", prefix, prefix.Masked())
		}
		if v6 := prefix.Addr().Is6(); version != 0 && v6 != (version == 6) {
			return bad("InvalidInput", "Invalid input for operation: cidr '%s' does not match the ip_version '%d'.", prefix, version)
		}
		s.CIDR = prefix
	}
	return choosePool(c, body, s, version)
}

func choosePool(c *call, body map[string]json.RawMessage, s *network.Subnet, version int) error {
	if raw, ok := body["use_default_subnetpool"]; ok {
		use, err := readBool("use_default_subnetpool", raw)
		if err != nil {
			return err
		}
		if use && !s.PoolID.IsZero() {
			return bad("HTTPBadRequest", "subnetpool_id and use_default_subnetpool cannot both be specified")
		}
		if use {
			p, ok := network.DefaultPool(c.tx, version == 6)
			if !ok {
				return bad("HTTPBadRequest", "No default subnetpool found for IPv%d", version)
			}
			s.PoolID = p.ID
		}
	}
	bits := 0
	if raw, ok := body["prefixlen"]; ok && !isNull(raw) {
		var err error
		if bits, err = readInt("prefixlen", raw); err != nil || bits < 0 || bits > 128 {
			return invalid("prefixlen", "'%s' is not a prefix length", raw)
		}
		if s.CIDR.IsValid() {
			return bad("HTTPBadRequest", "cidr and prefixlen must not be supplied together")
		}
	}
	switch {
	case s.CIDR.IsValid():
		return nil
	case s.PoolID.IsZero():
		return bad("HTTPBadRequest", "Bad subnets request: a subnetpool must be specified in the absence of a cidr.")
	case s.Gateway != network.AutoGateway && s.Gateway.IsValid(), s.Pools != nil:
		return bad("HTTPBadRequest", "Bad subnets request: allocation_pools and gateway_ip can only be given with a cidr.")
	}
	if version != 0 && bits > 0 {
		s.CIDR = network.AnyPrefix(version == 6, bits)
	} else if bits > 0 {
		s.CIDR = network.AnyPrefix(bits > 32, bits)
	}
	return nil
}

func subnetShape(c *call, s *network.Subnet) object {
	o := standard(&s.Meta, s.Description, s.Tags)
	o["network_id"] = s.NetworkID.String()
	o["cidr"] = s.CIDR.String()
	o["ip_version"] = 4
	if s.CIDR.Addr().Is6() {
		o["ip_version"] = 6
	}
	o["gateway_ip"] = addressOrNull(s.Gateway)
	pools := make([]object, len(s.Pools))
	for i, p := range s.Pools {
		pools[i] = object{"start": p.First.String(), "end": p.Last.String()}
	}
	o["allocation_pools"] = pools
	o["dns_nameservers"] = texts(s.DNS)
	o["host_routes"] = routesShape(s.Routes)
	o["enable_dhcp"] = s.DHCP
	o["ipv6_ra_mode"], o["ipv6_address_mode"] = modeOrNull(s.RAMode), modeOrNull(s.V6Mode)
	o["subnetpool_id"] = idOrNull(s.PoolID)
	o["segment_id"] = nil
	types := make([]string, len(s.ServiceFor))
	for i, text := range s.ServiceFor {
		owner, label, _ := strings.Cut(text, ":")
		types[i] = ownerWord(network.Owner(owner), label)
	}
	o["service_types"] = types
	return o
}

func addressOrNull(a netip.Addr) any {
	if !a.IsValid() {
		return nil
	}
	return a.String()
}

func modeOrNull(m network.Mode6) any {
	if m == "" {
		return nil
	}
	return string(m)
}
