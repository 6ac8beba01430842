package neutron

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// owners are Neutron's words for who uses a port (neutron-lib's constants DEVICE_OWNER_*).
var owners = map[network.Owner]string{
	network.OwnerRouter:   "network:router_interface",
	network.OwnerGateway:  "network:router_gateway",
	network.OwnerFloating: "network:floatingip",
	network.OwnerDHCP:     "network:dhcp",
}

// ownerWord spells an owner with its label. A server's label is its zone.
func ownerWord(o network.Owner, label string) string {
	if o == network.OwnerServer {
		return "compute:" + label
	}
	if word, ok := owners[o]; ok {
		return word
	}
	return label
}

// ownerTexts are what the core may have for one of Neutron's words: what the cloud itself wrote,
// and what a client did.
func ownerTexts(word string) []string {
	own := network.OwnerText(network.OwnerNone, word)
	if zone, ok := strings.CutPrefix(word, "compute:"); ok {
		return []string{network.OwnerText(network.OwnerServer, zone), own}
	}
	for o, w := range owners {
		if w == word {
			return []string{network.OwnerText(o, ""), own}
		}
	}
	return []string{own}
}

// statuses are Neutron's words for what is known of ports and floating addresses.
var statuses = map[network.Status]string{network.Active: "ACTIVE", network.Build: "BUILD", network.Down: "DOWN"}

func statusText(word string) []string {
	for s, w := range statuses {
		if w == strings.ToUpper(word) {
			return []string{string(s)}
		}
	}
	return nil
}

func (s *server) port() *kind[network.Port] {
	type P = network.Port
	return &kind[P]{
		name: "port", plural: "ports", path: "/ports", things: s.networks.Ports,
		fresh: func(*identity.Actor) *P { return &P{AdminUp: true, PortSecurity: true, VNIC: network.NormalVNIC} },
		attributes: append(named(func(p *P) *string { return &p.Description }),
			idAttr("network_id", func(p *P) *resource.ID { return &p.NetworkID }).create().must(),
			boolAttr("admin_state_up", func(p *P) *bool { return &p.AdminUp }),
			attribute[P]{name: "mac_address", post: true, put: true, parse: parseMAC},
			listAttr("fixed_ips", readFixed, func(p *P) *[]network.FixedAddress { return &p.Fixed }),
			nullableText("device_id", func(p *P) *string { return &p.DeviceID }),
			attribute[P]{name: "device_owner", post: true, put: true, parse: parseOwner},
			boolAttr("port_security_enabled", func(p *P) *bool { return &p.PortSecurity }),
			listAttr("security_groups", readGroupID, func(p *P) *[]resource.ID { return &p.Groups }),
			listAttr("allowed_address_pairs", readPair, func(p *P) *[]network.AddressPair { return &p.AllowedPairs }),
			attribute[P]{name: "extra_dhcp_opts", post: true, put: true, parse: parseDHCPOptions},
			attribute[P]{name: "dns_name", post: true, put: true, parse: parseDNSName},
			nullableText("dns_domain", func(p *P) *string { return &p.DNSDomain }),
			attribute[P]{name: "binding:host_id", post: true, put: true, parse: parseHost},
			attribute[P]{name: "binding:vnic_type", post: true, put: true, parse: parseVNIC},
			attribute[P]{name: "binding:profile", post: true, put: true, parse: parseProfile},
		),
		complete: completePort,
		shape:    portShape,
		filters: tagged(map[string]filter{
			"network_id": {field: "network", read: idText}, "admin_state_up": {field: "up", read: boolText},
			"status": {field: "status", read: statusText}, "mac_address": {field: "mac", read: lowerText},
			"device_id": {field: "device"}, "device_owner": {field: "owner", read: ownerTexts},
			"security_groups":       {field: "group", read: idText, noSort: true},
			"port_security_enabled": {field: "security", read: boolText}, "dns_name": {field: "dns-name"},
			"binding:host_id": {field: "place", read: s.place}, "binding:vnic_type": {field: "vnic"},
		}),
	}
}

func parseMAC(_ *call, in json.RawMessage) (func(*network.Port) error, error) {
	if isNull(in) {
		return nil, invalid("mac_address", "'null' is not a valid MAC address")
	}
	mac, err := readMAC("mac_address", in)
	return func(p *network.Port) error { p.MAC = mac; return nil }, err
}

func parseOwner(_ *call, in json.RawMessage) (func(*network.Port) error, error) {
	if isNull(in) {
		in = json.RawMessage(`""`)
	}
	word, err := readText("device_owner", in, 255)
	return func(p *network.Port) error {
		if ownerWord(p.Owner, p.OwnerLabel) != word {
			p.Owner, p.OwnerLabel = network.OwnerNone, word
		}
		return nil
	}, err
}

// readGroupID reads the ID of a group; a word that is none names no group.
func readGroupID(name string, in json.RawMessage) (resource.ID, error) {
	id, err := readID(name, in)
	if err != nil {
		return id, invalid(name, "%s is not a valid UUID", in)
	}
	return id, nil
}

func readPair(name string, in json.RawMessage) (network.AddressPair, error) {
	var pair network.AddressPair
	o, err := readObject(name, in, "mac_address", "ip_address")
	if err != nil {
		return pair, err
	}
	if _, ok := o["ip_address"]; !ok {
		return pair, bad("AllowedAddressPairsMissingIP", "AllowedAddressPair must contain ip_address")
	}
	if raw, ok := o["mac_address"]; ok && !isNull(raw) {
		if pair.MAC, err = readMAC(name, raw); err != nil {
			return pair, err
		}
	}
	pair.Address, err = readPrefix(name, o["ip_address"], true)
	return pair, err
}

// parseDHCPOptions reads options; when a port is changed, those named replace the ones it has of that
// name and version, and one without a value goes away.
func parseDHCPOptions(_ *call, in json.RawMessage) (func(*network.Port) error, error) {
	type change struct {
		network.DHCPOption
		drop bool
	}
	changes, err := readList("extra_dhcp_opts", in, func(name string, in json.RawMessage) (change, error) {
		c := change{DHCPOption: network.DHCPOption{Version: 4}}
		o, err := readObject(name, in, "opt_name", "opt_value", "ip_version")
		if err != nil {
			return c, err
		}
		if c.Name, err = readText(name, o["opt_name"], 64); err != nil || c.Name == "" {
			return c, invalid(name, "each option needs an opt_name")
		}
		if raw, ok := o["ip_version"]; ok {
			if c.Version, err = readInt(name, raw); err != nil || c.Version != 4 && c.Version != 6 {
				return c, invalid(name, "'%s' is not in [4, 6]", raw)
			}
		}
		raw, ok := o["opt_value"]
		if !ok {
			return c, invalid(name, "each option needs an opt_value")
		}
		if c.drop = isNull(raw); c.drop {
			return c, nil
		}
		c.Value, err = readText(name, raw, 255)
		return c, err
	})
	return func(p *network.Port) error {
		for _, c := range changes {
			p.DHCPOptions = slices.DeleteFunc(p.DHCPOptions, func(o network.DHCPOption) bool {
				return o.Name == c.Name && o.Version == c.Version
			})
			if !c.drop {
				p.DHCPOptions = append(p.DHCPOptions, c.DHCPOption)
			}
		}
		return nil
	}, err
}

// label is one part of a DNS name (RFC 1123, section 2.1).
var label = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$`)

func parseDNSName(_ *call, in json.RawMessage) (func(*network.Port) error, error) {
	if isNull(in) {
		in = json.RawMessage(`""`)
	}
	name, err := readText("dns_name", in, 255)
	if err == nil && name != "" {
		for part := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
			if !label.MatchString(part) {
				err = invalid("dns_name", "'%s' not a valid PQDN or FQDN", name)
			}
		}
	}
	return func(p *network.Port) error { p.DNSName = strings.ToLower(name); return nil }, err
}

// parseHost reads the name of a host; what is no host of ours is kept as it is.
func parseHost(c *call, in json.RawMessage) (func(*network.Port) error, error) {
	if isNull(in) {
		in = json.RawMessage(`""`)
	}
	name, err := readText("binding:host_id", in, 255)
	return func(p *network.Port) error {
		p.HostID, p.HostLabel = resource.ID{}, name
		if h, ok := host.ByName(c.tx, name); ok {
			p.HostID, p.HostLabel = h.ID, ""
		}
		return nil
	}, err
}

func parseVNIC(_ *call, in json.RawMessage) (func(*network.Port) error, error) {
	s, err := readText("binding:vnic_type", in, 64)
	if err == nil && s != network.NormalVNIC {
		err = invalid("binding:vnic_type", "'%s' is not in ['normal']", s)
	}
	return func(p *network.Port) error { p.VNIC = s; return nil }, err
}

func parseProfile(_ *call, in json.RawMessage) (func(*network.Port) error, error) {
	profile := map[string]string{}
	if !isNull(in) {
		var o map[string]json.RawMessage
		if json.Unmarshal(in, &o) != nil || len(in) > 4095 {
			return nil, invalid("binding:profile", "'%s' is not a dictionary of at most 4095 bytes", in)
		}
		for k, v := range o {
			profile[k] = string(v)
		}
	}
	return func(p *network.Port) error { p.Profile = profile; return nil }, nil
}

// completePort lets the network say what the request did not.
func completePort(c *call, body map[string]json.RawMessage, p *network.Port) error {
	if _, given := body["port_security_enabled"]; given {
		return nil
	}
	if n, ok := network.Networks().PeekOne(c.tx, p.NetworkID); ok {
		p.PortSecurity = n.Secured
	}
	return nil
}

func portShape(c *call, p *network.Port) object {
	o := standard(&p.Meta, p.Description, p.Tags)
	o["network_id"] = p.NetworkID.String()
	o["admin_state_up"] = p.AdminUp
	o["status"] = statuses[p.Status()]
	o["mac_address"] = p.MAC
	o["fixed_ips"] = fixedShape(p.Fixed)
	o["device_id"] = p.DeviceID
	o["device_owner"] = ownerWord(p.Owner, p.OwnerLabel)
	o["port_security_enabled"] = p.PortSecurity
	o["security_groups"] = texts(p.Groups)
	pairs := make([]object, len(p.AllowedPairs))
	for i, pair := range p.AllowedPairs {
		pairs[i] = object{"ip_address": pairText(pair.Address), "mac_address": pair.MAC}
		if pair.MAC == "" {
			pairs[i]["mac_address"] = p.MAC
		}
	}
	o["allowed_address_pairs"] = pairs
	options := make([]object, len(p.DHCPOptions))
	for i, opt := range p.DHCPOptions {
		options[i] = object{"opt_name": opt.Name, "opt_value": opt.Value, "ip_version": opt.Version}
	}
	o["extra_dhcp_opts"] = options
	o["dns_name"], o["dns_domain"] = p.DNSName, p.DNSDomain
	o["dns_assignment"] = assignments(p)
	o["binding:vnic_type"] = p.VNIC
	if c.actor.Admin() {
		bindingShape(c, o, p)
	}
	return o
}

// pairText leaves the length out of a single address, as it was most likely given.
func pairText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func assignments(p *network.Port) []object {
	list := make([]object, len(p.Fixed))
	for i, f := range p.Fixed {
		name := p.DNSName
		if name == "" {
			name = "host-" + strings.NewReplacer(".", "-", ":", "-").Replace(f.Address.String())
		}
		fqdn := name + "."
		if p.DNSDomain != "" {
			fqdn += strings.TrimSuffix(p.DNSDomain, ".") + "."
		}
		list[i] = object{"ip_address": f.Address.String(), "hostname": name, "fqdn": fqdn}
	}
	return list
}

func bindingShape(c *call, o object, p *network.Port) {
	o["binding:host_id"], o["binding:vif_type"] = p.HostLabel, "unbound"
	o["binding:vif_details"] = object{}
	if h, ok := host.Table().PeekOne(c.tx, p.HostID); ok {
		o["binding:host_id"], o["binding:vif_type"] = h.Name, "tap"
		o["binding:vif_details"] = object{"port_filter": p.PortSecurity}
	} else if p.HostLabel != "" {
		o["binding:vif_type"] = "binding_failed"
	}
	profile := object{}
	for k, v := range p.Profile {
		profile[k] = json.RawMessage(v)
	}
	o["binding:profile"] = profile
}

// place is what the core calls the host of this name.
func (s *server) place(name string) []string {
	if h, ok := host.ByName(s.networks.State.Latest(), name); ok {
		return []string{h.ID.String()}
	}
	return []string{name}
}
