package linuxnet

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// guardPorts puts the packet filter in force. Without a guest there is nobody
// to filter but routers; the first to come finds the filter in place.
func (s *segment) guardPorts(ctx context.Context, ns *namespace) error {
	rules := s.guard().render()
	if rules == s.applied || s.applied == "" && len(s.attachments) == 0 && !s.routed() {
		return nil
	}
	flows := s.driver.flows()
	script := rules + flows
	if !s.fresh { // removing tables, even if there are none, takes the kernel longer than all the rest
		script = removeTable("inet", tableName) + removeTable("arp", tableName) + removeTable("bridge", tableName) + rules
		if s.applied == "" { // what an earlier process counted is counted anew
			script += removeTable("inet", tableName+"_flows") + flows
		}
	}
	s.fresh = false
	if err := ns.nft(ctx, script); err != nil {
		return fmt.Errorf("packet filter of network %s: %w", s.id, err)
	}
	s.applied = rules
	return nil
}

// guard gathers what the packet filter depends on.
func (s *segment) guard() guard {
	g := guard{BridgeMAC: s.mac().String()}
	if s.want == nil {
		return g
	}
	for _, subnet := range s.want.Subnets {
		v6 := subnet.CIDR.Addr().Is6()
		g.Metadata = g.Metadata || subnet.MetadataOn
		g.DHCPv4 = g.DHCPv4 || subnet.DHCP && !v6
		g.DHCPv6 = g.DHCPv6 || answersDHCPv6(subnet)
		g.RA = g.RA || announces(subnet)
	}
	for _, neighbour := range s.want.Neighbors {
		if neighbour.Exit != "" {
			g.Exits = append(g.Exits, exitLeg{neighbour.Exit, strings.ToLower(neighbour.MAC)})
		}
	}
	for id, attachment := range s.attachments {
		if !attachment.AdminUp {
			continue
		}
		g.Ports = append(g.Ports, guardedPort{
			Tap: tapName(id), Open: !attachment.PortSecurity, Sources: sources(attachment), Own: ownAddresses(attachment), policy: s.policy(attachment),
		})
	}
	return g
}

// policy adds up a port's groups. A group that is not here yet lets nothing through.
func (s *segment) policy(attachment network.Attachment) policy {
	sum := policy{}
	for _, id := range attachment.Groups {
		filter, here := s.driver.filter(id)
		sum.Stateful = sum.Stateful || !here || filter.Stateful
		sum.Rules = append(sum.Rules, filter.Rules...)
	}
	sum.Stateful = sum.Stateful || len(attachment.Groups) == 0
	return sum
}

// sources lists what a port may send from: its own addresses, the link-local
// one that belongs to its hardware address, and its allowed pairs.
func sources(attachment network.Attachment) []source {
	byMAC := map[string][]netip.Prefix{attachment.MAC: nil}
	for _, fixed := range attachment.Addresses {
		byMAC[attachment.MAC] = append(byMAC[attachment.MAC], netip.PrefixFrom(fixed.Address, fixed.Address.BitLen()))
	}
	for _, pair := range attachment.AllowedPairs {
		mac := pair.MAC
		if mac == "" {
			mac = attachment.MAC
		}
		byMAC[mac] = append(byMAC[mac], pair.Address.Masked())
	}
	var list []source
	for _, text := range slices.Sorted(maps.Keys(byMAC)) {
		mac, err := net.ParseMAC(text)
		if err != nil {
			continue // nobody sends from what is no address
		}
		prefixes := append(byMAC[text], netip.PrefixFrom(linkLocal(mac), 128))
		list = append(list, source{MAC: mac.String(), Prefixes: prefixes})
	}
	return list
}

// ownAddresses are a port's fixed ones and the link-local one of its hardware address.
func ownAddresses(attachment network.Attachment) []netip.Addr {
	var own []netip.Addr
	for _, fixed := range attachment.Addresses {
		own = append(own, fixed.Address)
	}
	if mac, err := net.ParseMAC(attachment.MAC); err == nil {
		own = append(own, linkLocal(mac))
	}
	return own
}

// linkLocal is the link-local address that belongs to a hardware address
// (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(a[8:], mac[:3])
	copy(a[13:], mac[3:])
	a[8] ^= 2
	return netip.AddrFrom16(a)
}

// uses reports whether a port of the segment is in a group.
func (s *segment) uses(filter resource.ID) bool {
	for _, attachment := range s.attachments {
		if slices.Contains(attachment.Groups, filter) {
			return true
		}
	}
	return false
}
