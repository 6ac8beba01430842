package network

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// What follows derives what hosts are to make real. It reads and decides nothing. A router is
// realized on every host that has guests in one of its networks, and on its home, its HostID, where
// its ports are bound: see distribute.go.

// SegmentFor is a network as a host is to make it real; false when nothing of it is there.
func SegmentFor(tx *state.Tx, networkID, hostID resource.ID) (Segment, bool) {
	s, n, ok := segment(tx, networkID, hostID)
	if ok && n.Kind == Overlay {
		s.Neighbors = neighbors(tx, networkID, hostID)
	}
	return s, ok
}

// segment is all of it but its neighbors.
func segment(tx *state.Tx, networkID, hostID resource.ID) (Segment, *Network, bool) {
	n, ok := networks.PeekOne(tx, networkID)
	if !ok || !present(tx, networkID, hostID) {
		return Segment{}, nil, false
	}
	s := Segment{ID: n.ID, ProjectID: n.ProjectID, MTU: n.MTU, Physical: n.Physical}
	if n.Kind == Overlay {
		s.VNI = n.Segment
	} else {
		s.VLAN = n.Segment
	}
	for sub := range subnets.Peek(tx, "network", state.Range{Prefix: state.KeyOf(networkID)}) {
		s.Subnets = append(s.Subnets, segmentSubnet(tx, n, sub))
	}
	return s, n, true
}

// present reports whether a host has something plugged into a network: a port, or a leg of a router that
// is realized there.
func present(tx *state.Tx, networkID, hostID resource.ID) bool {
	for range portsIn(tx, networkID, hostID) {
		return true
	}
	for leg := range legs(tx, networkID) {
		if r, ok := routerOf(tx, leg); ok && realized(tx, r, hostID) {
			return true
		}
	}
	return outside(tx, networkID, hostID)
}

func segmentSubnet(tx *state.Tx, n *Network, s *Subnet) SegmentSubnet {
	out := SegmentSubnet{ID: s.ID, CIDR: s.CIDR, Gateway: s.Gateway, DHCP: s.DHCP, DNS: s.DNS, Routes: s.Routes,
		V6Mode: string(s.V6Mode), RAMode: string(s.RAMode), MetadataOn: !n.External && n.AdminUp}
	for p := range ports.Peek(tx, "leg", state.Range{Prefix: state.KeyOf(s.ID)}) {
		mine := slices.Contains(p.Fixed, FixedAddress{s.ID, s.Gateway})
		// Guests hear of no router that a stranger put there, though there be no other.
		if mine || s.CIDR.Addr().Is6() && out.RouterMAC == "" && p.ProjectID == n.ProjectID {
			out.RouterMAC = p.MAC
		}
	}
	return out
}

// neighbors are the ports of a network on other hosts that can be reached, and the legs of routers.
func neighbors(tx *state.Tx, networkID, hostID resource.ID) []Neighbor {
	var found []Neighbor
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if h.ID != hostID { // what is here it knows as attachments
			found = append(found, neighborsAt(tx, networkID, h.ID)...)
		}
	}
	return append(found, neighborLegs(tx, networkID, hostID)...)
}

// neighborsAt are the ports of a network on a host, for others.
func neighborsAt(tx *state.Tx, networkID, hostID resource.ID) []Neighbor {
	h, ok := host.Table().PeekOne(tx, hostID)
	if !ok || !h.Address.IsValid() {
		return nil
	}
	var found []Neighbor
	for p := range ports.Peek(tx, "network-host", state.Range{Prefix: state.KeyOf(networkID, hostID)}) {
		if p.Owner != OwnerRouter {
			found = append(found, neighbor(p, h.Address))
		}
	}
	return found
}

// neighborLegs are the legs of the routers in a network, as a host sees them.
func neighborLegs(tx *state.Tx, networkID, hostID resource.ID) []Neighbor {
	var found []Neighbor
	for leg := range legs(tx, networkID) {
		if r, ok := routerOf(tx, leg); ok {
			found = append(found, legNeighbors(tx, r, leg, hostID)...)
		}
	}
	return found
}

// legNeighbors are a router's leg as a host sees it, and the way to the router's home.
func legNeighbors(tx *state.Tx, r *Router, leg *Port, hostID resource.ID) []Neighbor {
	here, exit := neighbor(leg, netip.Addr{}), exitMAC(leg.ID)
	if r.HostID == hostID {
		here.Exit = exit
		return []Neighbor{here}
	}
	home, ok := host.Table().PeekOne(tx, r.HostID)
	away := ok && home.Address.IsValid()
	switch {
	case !realized(tx, r, hostID) && away:
		return []Neighbor{neighbor(leg, home.Address)}
	case !realized(tx, r, hostID):
		return nil
	case away:
		return []Neighbor{here, {MAC: exit, Host: home.Address}}
	default:
		return []Neighbor{here}
	}
}

func neighbor(p *Port, at netip.Addr) Neighbor {
	n := Neighbor{MAC: p.MAC, Host: at, Open: !p.PortSecurity && !p.Owner.internal()}
	for _, f := range p.Fixed {
		n.Addresses = append(n.Addresses, f.Address)
	}
	for _, pair := range p.AllowedPairs {
		n.Pairs = append(n.Pairs, pair.Address)
		if pair.MAC != "" && pair.MAC != p.MAC && !slices.Contains(n.MACs, pair.MAC) {
			n.MACs = append(n.MACs, pair.MAC)
		}
	}
	return n
}

// AttachmentFor is a server's port as a host is to make it real; false when it is not there, nor on its way there.
func AttachmentFor(tx *state.Tx, portID, hostID resource.ID) (Attachment, bool) {
	p, ok := ports.PeekOne(tx, portID)
	if !ok || p.Owner != OwnerServer || hostID.IsZero() || p.HostID != hostID && p.NextHostID != hostID {
		return Attachment{}, false
	}
	n, ok := networks.PeekOne(tx, p.NetworkID)
	if !ok {
		return Attachment{}, false
	}
	server, err := resource.ParseID(p.DeviceID)
	if err != nil {
		return Attachment{}, false
	}
	a := Attachment{ID: p.ID, NetworkID: p.NetworkID, ProjectID: p.ProjectID, ServerID: server, MAC: p.MAC,
		Addresses: p.Fixed, AllowedPairs: p.AllowedPairs, PortSecurity: p.PortSecurity, Groups: p.Groups,
		AdminUp: p.AdminUp && n.AdminUp, Hostname: Hostname(p), DNSDomain: dnsDomain(p, n), MTU: n.MTU, DHCPOptions: p.DHCPOptions,
		Arriving: p.HostID != hostID}
	return a, true
}

// Hostname is what a port's guest is told to call itself: what its owner chose, or a name made of
// its address.
func Hostname(p *Port) string {
	if p.DNSName != "" {
		return p.DNSName
	}
	for _, f := range p.Fixed {
		return "host-" + strings.NewReplacer(".", "-", ":", "-").Replace(f.Address.String())
	}
	return ""
}

func dnsDomain(p *Port, n *Network) string {
	if p.DNSDomain != "" {
		return p.DNSDomain
	}
	return n.DNSDomain
}

// FilterFor is a security group as hosts enforce it.
func FilterFor(tx *state.Tx, groupID resource.ID) (Filter, bool) {
	return filterFor(tx, groupID, func(group resource.ID, v6 bool) []netip.Prefix { return members(tx, group, v6) })
}

func filterFor(tx *state.Tx, groupID resource.ID, members func(groupID resource.ID, v6 bool) []netip.Prefix) (Filter, bool) {
	g, ok := groups.PeekOne(tx, groupID)
	if !ok {
		return Filter{}, false
	}
	f := Filter{ID: g.ID, Stateful: g.Stateful}
	for r := range rules.Peek(tx, "group", state.Range{Prefix: state.KeyOf(groupID)}) {
		f.Rules = append(f.Rules, filterRule(tx, r, members))
	}
	return f, true
}

func filterRule(tx *state.Tx, r *Rule, members func(resource.ID, bool) []netip.Prefix) FilterRule {
	out := FilterRule{Ingress: r.Ingress, V6: r.V6, Protocol: max(r.Protocol, 0), PortMin: -1, PortMax: -1}
	if r.Protocol == protoICMP && r.V6 {
		out.Protocol = protoICMPv6
	}
	if r.HasMin {
		out.PortMin = r.PortMin
	}
	if r.HasMax {
		out.PortMax = r.PortMax
	}
	switch {
	case r.RemotePrefix.IsValid():
		out.Remote = []netip.Prefix{r.RemotePrefix}
	case !r.RemoteGroup.IsZero():
		out.Remote = members(r.RemoteGroup, r.V6)
	case !r.RemoteSet.IsZero():
		out.Remote = []netip.Prefix{}
		if set, ok := addressGroups.PeekOne(tx, r.RemoteSet); ok {
			for _, p := range set.Prefixes {
				if p.Addr().Is6() == r.V6 {
					out.Remote = append(out.Remote, p)
				}
			}
		}
	}
	return out
}

// members are the addresses of all ports of a group, as the fewest prefixes that hold just them.
// Addresses are given out in order, so that these are few even for a large group.
func members(tx *state.Tx, groupID resource.ID, v6 bool) []netip.Prefix {
	set := read(tx, groupID).set(v6)
	if set == nil || len(set.Ranges()) == 0 {
		return []netip.Prefix{}
	}
	return set.Prefixes()
}

// GatewayFor is a router as a host is to make it real; false when it has nothing to do there.
func GatewayFor(tx *state.Tx, routerID, hostID resource.ID) (Gateway, bool) {
	r, ok := routers.PeekOne(tx, routerID)
	if !ok || !realized(tx, r, hostID) {
		return Gateway{}, false
	}
	g := Gateway{ID: r.ID, ProjectID: r.ProjectID, AdminUp: r.AdminUp, Routes: r.Routes}
	for p := range ports.Peek(tx, "device", state.Range{Prefix: state.KeyOf(routerID.String())}) {
		switch p.Owner {
		case OwnerRouter:
			g.Interfaces = append(g.Interfaces, GatewayInterface{PortID: p.ID, NetworkID: p.NetworkID, MAC: p.MAC,
				Addresses: prefixes(tx, p), AdminUp: p.AdminUp})
		case OwnerGateway:
			g.External = &GatewayExternal{PortID: p.ID, NetworkID: p.NetworkID, MAC: p.MAC, Addresses: prefixes(tx, p),
				NextHops: nextHops(tx, p), SNAT: r.Gateway != nil && r.Gateway.SNAT}
		}
	}
	if g.External != nil {
		g.Floating = floatingThrough(tx, r, hostID)
		if r.HostID != hostID {
			g.away(hostID, expectsFloating(tx, r, hostID))
		}
	}
	return g, g.External != nil || len(g.Interfaces) > 0
}

// away makes of a router what it is on a host that is not its home. Its leg outside is there for floating addresses, and before
// them if one is expected: what takes longest is done then when the address comes.
func (g *Gateway) away(hostID resource.ID, expected bool) {
	for _, i := range g.Interfaces {
		if i.AdminUp {
			g.Exit = &GatewayExit{PortID: i.PortID, MAC: exitMAC(i.PortID)}
			break
		}
	}
	if len(g.Floating) == 0 && !expected {
		g.External = nil
		return
	}
	for _, p := range g.External.Addresses {
		g.External.OnLink = append(g.External.OnLink, p.Masked())
	}
	g.External.MAC, g.External.Addresses = outsideMAC(g.External.PortID, hostID), nil
}

func prefixes(tx *state.Tx, p *Port) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range p.Fixed {
		if s, ok := subnets.PeekOne(tx, f.SubnetID); ok {
			out = append(out, netip.PrefixFrom(f.Address, s.CIDR.Bits()))
		}
	}
	return out
}

func nextHops(tx *state.Tx, p *Port) []netip.Addr {
	var hops []netip.Addr
	for _, f := range p.Fixed {
		s, ok := subnets.PeekOne(tx, f.SubnetID)
		if ok && s.Gateway.IsValid() && !slices.Contains(hops, s.Gateway) {
			hops = append(hops, s.Gateway)
		}
	}
	return hops
}

// floatingThrough are the floating addresses and forwards that a router carries on a host.
func floatingThrough(tx *state.Tx, r *Router, hostID resource.ID) []Floating {
	var out []Floating
	for f := range floatings.Peek(tx, "router", state.Range{Prefix: state.KeyOf(r.ID)}) {
		if floatsAt(tx, r, f) == hostID {
			out = append(out, Floating{ID: f.ID, External: f.Address, Fixed: f.Fixed, PortID: f.TargetID})
		}
	}
	if r.HostID != hostID {
		return out // a forward leads to several ports: it is at home
	}
	at := map[resource.ID]int{}
	for w := range forwards.Peek(tx, "router", state.Range{Prefix: state.KeyOf(r.ID)}) {
		f, ok := floatings.PeekOne(tx, w.FloatingID)
		if !ok {
			continue
		}
		n, begun := at[f.ID]
		if !begun {
			n = len(out)
			at[f.ID] = n
			out = append(out, Floating{ID: f.ID, External: f.Address})
		}
		out[n].Forwards = append(out[n].Forwards, PortForward{Protocol: w.Protocol, ExternalPort: w.ExternalPort, Fixed: w.Fixed, FixedPort: w.FixedPort})
	}
	return out
}
