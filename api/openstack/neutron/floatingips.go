package neutron

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func (s *server) floatingIP() *kind[network.FloatingAddress] {
	type F = network.FloatingAddress
	address := func(s string) []string { return []string{addressText(s)} }
	return &kind[F]{
		name: "floatingip", plural: "floatingips", path: "/floatingips", things: s.networks.Floating,
		fresh: func(*identity.Actor) *F { return new(F) },
		attributes: []attribute[F]{
			nullableText("description", func(f *F) *string { return &f.Description }),
			idAttr("floating_network_id", func(f *F) *resource.ID { return &f.NetworkID }).create().must(),
			idAttr("subnet_id", func(f *F) *resource.ID { return &f.SubnetID }).create(),
			addressAttr("floating_ip_address", func(f *F) *netip.Addr { return &f.Address }).create(),
			{name: "port_id", post: true, put: true, parse: parseTarget},
			addressAttr("fixed_ip_address", func(f *F) *netip.Addr { return &f.Fixed }),
			nullableText("dns_name", func(f *F) *string { return &f.DNSName }).create(),
			nullableText("dns_domain", func(f *F) *string { return &f.DNSDomain }).create(),
		},
		shape: floatingShape,
		filters: tagged(map[string]filter{
			"floating_network_id": {field: "network", read: idText}, "floating_ip_address": {field: "address", read: address},
			"fixed_ip_address": {field: "fixed", read: address}, "port_id": {field: "target", read: idText},
			"router_id": {field: "router", read: idText}, "status": {field: "status", read: statusText},
		}),
	}
}

func addressAttr[T any](name string, at func(*T) *netip.Addr) attribute[T] {
	return attribute[T]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		a, err := readAddressOrNull(name, in)
		return func(t *T) error { *at(t) = a; return nil }, err
	}}
}

// parseTarget reads the port that a floating address is to lead to. Which of its addresses, is
// chosen anew unless the request says.
func parseTarget(_ *call, in json.RawMessage) (func(*network.FloatingAddress) error, error) {
	id, err := readIDOrNull("port_id", in)
	return func(f *network.FloatingAddress) error {
		f.TargetID, f.Fixed = id, netip.Addr{}
		return nil
	}, err
}

func floatingShape(c *call, f *network.FloatingAddress) object {
	o := standard(&f.Meta, f.Description, f.Tags)
	delete(o, "name")
	o["floating_network_id"] = f.NetworkID.String()
	o["floating_ip_address"] = f.Address.String()
	o["fixed_ip_address"] = addressOrNull(f.Fixed)
	o["port_id"], o["router_id"] = idOrNull(f.TargetID), idOrNull(f.RouterID)
	o["status"] = statuses[f.Status()]
	o["dns_name"], o["dns_domain"] = f.DNSName, f.DNSDomain
	o["port_details"] = nil
	if p, ok := network.Ports().PeekOne(c.tx, f.TargetID); ok {
		o["port_details"] = object{"name": p.Name, "network_id": p.NetworkID.String(), "mac_address": p.MAC,
			"admin_state_up": p.AdminUp, "status": statuses[p.Status()], "device_id": p.DeviceID,
			"device_owner": ownerWord(p.Owner, p.OwnerLabel)}
	}
	forwardings := []object{}
	for _, w := range network.ForwardsOf(c.tx, f.ID) {
		forwardings = append(forwardings, object{"protocol": forwardProtocol(w.Protocol), "internal_ip_address": w.Fixed.String(),
			"internal_port": w.FixedPort, "external_port": w.ExternalPort, "id": w.ID.String()})
	}
	o["port_forwardings"] = forwardings
	return o
}

// forwarding is the kind "port forwarding" below a floating address.
func (s *server) forwarding() *kind[network.Forward] {
	type W = network.Forward
	number := func(s string) []string { return []string{strings.TrimLeft(s, "0")} }
	return &kind[W]{
		name: "port_forwarding", plural: "port_forwardings", path: "/port_forwardings", under: "/floatingips/{parent}",
		things: s.networks.Forwards,
		fresh:  func(*identity.Actor) *W { return new(W) },
		within: func(parent resource.ID, w *W) error { w.FloatingID = parent; return nil },
		attributes: []attribute[W]{
			nullableText("description", func(w *W) *string { return &w.Description }),
			{name: "protocol", post: true, put: true, required: true, parse: parseForwardProtocol},
			intAttr("external_port", func(w *W) *int { return &w.ExternalPort }).must(),
			idAttr("internal_port_id", func(w *W) *resource.ID { return &w.TargetID }).must(),
			addressAttr("internal_ip_address", func(w *W) *netip.Addr { return &w.Fixed }).must(),
			intAttr("internal_port", func(w *W) *int { return &w.FixedPort }).must(),
		},
		shape: func(_ *call, w *W) object {
			return object{"id": w.ID.String(), "description": w.Description, "protocol": forwardProtocol(w.Protocol),
				"external_port": w.ExternalPort, "internal_port_id": w.TargetID.String(),
				"internal_ip_address": w.Fixed.String(), "internal_port": w.FixedPort}
		},
		filters: map[string]filter{
			"id": {field: "id", read: idText}, "description": {field: "description"},
			"protocol":            {field: "protocol", read: func(s string) []string { return []string{strconv.Itoa(forwardNumber(s))} }},
			"external_port":       {field: "external-port", read: number},
			"internal_port":       {field: "fixed-port", read: number},
			"internal_port_id":    {field: "target", read: idText},
			"internal_ip_address": {field: "fixed"},
		},
	}
}

func forwardProtocol(n int) string {
	if n == 17 {
		return "udp"
	}
	return "tcp"
}

func forwardNumber(s string) int {
	switch strings.ToLower(s) {
	case "tcp":
		return 6
	case "udp":
		return 17
	}
	return -1
}

func parseForwardProtocol(_ *call, in json.RawMessage) (func(*network.Forward) error, error) {
	s, err := readText("protocol", in, 16)
	n := forwardNumber(s)
	if err == nil && n < 0 {
		err = invalid("protocol", "'%s' is not in ['tcp', 'udp']", s)
	}
	return func(w *network.Forward) error { w.Protocol = n; return nil }, err
}
