package linuxnet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A segment is one network on this host: a namespace with a bridge, into which
// the guests' taps, the routers' legs and the way to other hosts are plugged.
// The namespace is there as soon as anything of the network is, the bridge only
// while the segment itself is wanted.
type segment struct {
	driver *Driver
	id     resource.ID

	mu          sync.Mutex
	removed     bool             // no longer in the driver's map: look it up again
	want        *network.Segment // nil: not wanted, or not yet
	attachments map[resource.ID]network.Attachment

	// What this process has made sure of since it started.
	fresh    bool   // the namespace is new: there are no rules and no connections in it
	prepared bool   // its settings are made
	applied  string // the packet filter that is in force
	swept    bool   // every connection has been held against the policies
	policies map[netip.Addr]bound
	flags    map[string]portFlags
	bounded  bool                       // the bridge learns so many addresses and no more
	resolved map[resource.ID]resolution // by the port of a router's leg
	server   *server
}

// portFlags is how a bridge treats one of its ports.
type portFlags struct {
	learning, flood, suppress bool
}

func (s *segment) namespaceName() string { return s.driver.prefix + "-s-" + s.id.String() }

// mac is the bridge's hardware address. It is the same on every host, so that a
// guest that moves keeps its neighbour entries.
func (s *segment) mac() net.HardwareAddr { return localMAC("bridge", s.id.String()) }

// localMAC derives a locally administered hardware address from words.
func localMAC(words ...string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(strings.Join(words, " ")))
	return net.HardwareAddr{0x0a, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

func tapName(id resource.ID) string { return tapPrefix + id.Hex()[18:] }
func legName(id resource.ID) string { return legPrefix + id.Hex()[18:] }

// segmentSettings make a namespace bridge without taking part: its frames go
// through connection tracking, and it routes, learns and announces nothing.
var segmentSettings = []setting{
	{"bridge/bridge-nf-call-iptables", "1"},
	{"bridge/bridge-nf-call-ip6tables", "1"},
	{"bridge/bridge-nf-call-arptables", "0"},
	{"ipv4/ip_forward", "0"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/arp_ignore", "1"},
	{"ipv4/conf/default/arp_ignore", "1"},
	{"ipv6/conf/all/forwarding", "0"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/default/addr_gen_mode", "1"}, // no link-local addresses of its own
}

// flowSettings forget a connection that nobody answered sooner than the kernel would.
var flowSettings = []setting{
	{"netfilter/nf_conntrack_tcp_timeout_syn_sent", "30"},
	{"netfilter/nf_conntrack_tcp_timeout_syn_recv", "30"},
	{"netfilter/nf_conntrack_udp_timeout", "20"},
	{"netfilter/nf_conntrack_icmp_timeout", "10"},
	{"netfilter/nf_conntrack_icmpv6_timeout", "10"},
	{"netfilter/nf_conntrack_generic_timeout", "60"},
}

// converge makes the kernel match what is wanted of the segment, and leaves
// alone what does already. The rules come before the ports they are for.
func (s *segment) converge(ctx context.Context) error {
	ns, made, err := makeNamespace(s.namespaceName())
	if err != nil {
		return err
	}
	defer ns.close()
	if made {
		s.forgetKernel()
	}
	if err := s.guardPorts(ctx, ns); err != nil {
		return err
	}
	links, err := ns.links()
	if err != nil {
		return err
	}
	if err := s.makePorts(ns, links); err != nil {
		return err
	}
	if s.want == nil {
		s.stopServing()
		if err := s.unplug(ns, links); err != nil {
			return err
		}
	} else if err := s.plug(ctx, ns, links); err != nil {
		return err
	}
	if err := s.cutConnections(ns); err != nil {
		return err
	}
	return s.serve(ns, links[bridgeName])
}

// forgetKernel forgets what this process knew of a namespace that is gone.
func (s *segment) forgetKernel() {
	s.fresh, s.prepared, s.applied = true, false, ""
	s.swept, s.policies = true, nil
	s.flags = map[string]portFlags{}
	s.resolved = map[resource.ID]resolution{}
	s.stopServing()
}

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

// routed reports whether a router is to be in the network on this host.
func (s *segment) routed() bool {
	return s.want != nil && slices.ContainsFunc(s.want.Neighbors, func(n network.Neighbor) bool { return !n.Host.IsValid() })
}

// makePorts makes the namespace's settings and the taps that are missing, and
// adds them to links.
func (s *segment) makePorts(ns *namespace, links map[string]netlink.Link) error {
	var missing []string
	for id := range s.attachments {
		if name := tapName(id); links[name] == nil {
			missing = append(missing, name)
		}
	}
	if s.prepared && len(missing) == 0 {
		return s.setPorts(ns, links)
	}
	err := ns.do(func() error {
		if !s.prepared {
			if err := errors.Join(set(segmentSettings), set(flowSettings)); err != nil {
				return err
			}
		}
		for _, name := range missing {
			if err := makeTap(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ports of network %s: %w", s.id, err)
	}
	s.prepared = true
	for _, name := range missing {
		link, err := ns.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find tap %s: %w", name, err)
		}
		links[name] = link
		delete(s.flags, name)
	}
	return s.setPorts(ns, links)
}

// setPorts names each tap's attachment beside it, and sets its MTU.
func (s *segment) setPorts(ns *namespace, links map[string]netlink.Link) error {
	for id, attachment := range s.attachments {
		tap := links[tapName(id)]
		if alias := attachmentAlias(id); tap.Attrs().Alias != alias {
			if err := ns.LinkSetAlias(tap, alias); err != nil {
				return fmt.Errorf("name tap of port %s: %w", id, err)
			}
		}
		if err := setMTU(ns, tap, attachment.MTU); err != nil {
			return err
		}
		if err := setUp(ns, tap); err != nil {
			return err
		}
	}
	return nil
}

func attachmentAlias(id resource.ID) string { return "attachment " + id.String() }

func setMTU(ns *namespace, link netlink.Link, mtu int) error {
	if mtu == 0 || link.Attrs().MTU == mtu {
		return nil
	}
	if err := ns.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", link.Attrs().Name, mtu, err)
	}
	return nil
}

func setUp(ns *namespace, link netlink.Link) error {
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := ns.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// unplug takes the bridge and the ways out of the host away. Taps and legs stay
// for when the segment comes back, and reach nothing.
func (s *segment) unplug(ns *namespace, links map[string]netlink.Link) error {
	for _, name := range []string{vxlanName, uplinkName, bridgeName} {
		if link := links[name]; link != nil {
			if err := ns.removeLink(link); err != nil {
				return fmt.Errorf("remove %s of network %s: %w", name, s.id, err)
			}
			delete(links, name)
			delete(s.flags, name)
		}
	}
	for name := range s.flags { // they left the bridge, and their flags with it
		delete(s.flags, name)
	}
	return nil
}

// plug makes the bridge and connects everything to it.
func (s *segment) plug(ctx context.Context, ns *namespace, links map[string]netlink.Link) error {
	bridge, err := s.makeBridge(ns, links)
	if err != nil {
		return err
	}
	if err := s.makeTunnel(ctx, ns, links); err != nil {
		return err
	}
	if err := s.makeUplink(ctx, ns, links); err != nil {
		return err
	}
	for name, link := range links {
		flags, ours := s.portFlags(name)
		if !ours {
			continue
		}
		if link.Attrs().MasterIndex != bridge.Attrs().Index {
			if err := ns.LinkSetMaster(link, bridge); err != nil {
				return fmt.Errorf("plug %s into network %s: %w", name, s.id, err)
			}
			delete(s.flags, name)
		}
		if err := s.setFlags(ns, link, flags); err != nil {
			return err
		}
		if strings.HasPrefix(name, legPrefix) {
			if err := setMTU(ns, link, s.want.MTU); err != nil {
				return err
			}
		}
		if err := setUp(ns, link); err != nil {
			return err
		}
	}
	if err := s.forward(ns, links); err != nil {
		return err
	}
	if err := s.neighbours(ns, bridge); err != nil {
		return err
	}
	return s.resolve(ctx, links)
}

func (s *segment) makeBridge(ns *namespace, links map[string]netlink.Link) (netlink.Link, error) {
	bridge := links[bridgeName]
	if bridge == nil {
		snooping := false // nobody here queries for groups, so nobody would stay a member
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = bridgeName, s.mac()
		if err := ns.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return nil, fmt.Errorf("make bridge of network %s: %w", s.id, err)
		}
		var err error
		if bridge, err = ns.LinkByName(bridgeName); err != nil {
			return nil, fmt.Errorf("find bridge of network %s: %w", s.id, err)
		}
		links[bridgeName] = bridge
	}
	if err := setMTU(ns, bridge, s.want.MTU); err != nil {
		return nil, err
	}
	if bounded, err := s.driver.boundLearning(ns, bridge); err != nil {
		return nil, fmt.Errorf("bridge of network %s: %w", s.id, err)
	} else if s.bounded = bounded; !bounded {
		s.driver.log.Debug("the kernel cannot bound what a bridge learns", "network", s.id)
	}
	if err := setUp(ns, bridge); err != nil {
		return nil, err
	}
	addresses := []netip.Prefix{netip.MustParsePrefix(metadataV4 + "/32"), netip.MustParsePrefix(metadataV6 + "/64")}
	if _, err := setAddresses(ns, bridge, addresses); err != nil {
		return nil, fmt.Errorf("addresses of network %s: %w", s.id, err)
	}
	var routes []netlink.Route
	for _, subnet := range s.want.Subnets {
		if subnet.CIDR.Addr().Is4() {
			routes = append(routes, netlink.Route{
				Dst: ipNet(subnet.CIDR.Masked()), Scope: netlink.SCOPE_LINK, LinkIndex: bridge.Attrs().Index,
			})
		}
	}
	if err := setRoutes(ns, bridge, routes); err != nil {
		return nil, fmt.Errorf("routes of network %s: %w", s.id, err)
	}
	return bridge, nil
}

// makeTunnel makes the way to the other hosts. The device stands here; because
// it is made by a socket of the host's namespace, its packets travel there.
func (s *segment) makeTunnel(ctx context.Context, ns *namespace, links map[string]netlink.Link) error {
	tunnel := s.driver.options.TunnelAddress
	if !tunnel.IsValid() || s.want.Physical != "" {
		return nil
	}
	if err := s.driver.guardTunnel(ctx, s.id, s.tunnelHosts()); err != nil {
		return err
	}
	if links[vxlanName] == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Namespace = vxlanName, s.want.MTU, ns.fd()
		err := s.driver.host.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: s.want.VNI, SrcAddr: tunnel.AsSlice(), Port: s.driver.options.TunnelPort,
		})
		if err != nil {
			return fmt.Errorf("make tunnel of network %s: %w", s.id, err)
		}
		link, err := ns.LinkByName(vxlanName)
		if err != nil {
			return fmt.Errorf("find tunnel of network %s: %w", s.id, err)
		}
		links[vxlanName] = link
		delete(s.flags, vxlanName)
	}
	return setMTU(ns, links[vxlanName], s.want.MTU)
}

// makeUplink connects a provider network with the host's bridge for it.
func (s *segment) makeUplink(ctx context.Context, ns *namespace, links map[string]netlink.Link) error {
	if s.want.Physical == "" {
		return nil
	}
	bridge, err := s.driver.ensurePhysical(ctx, s.want)
	if err != nil {
		return err
	}
	name := s.driver.hostName(s.id)
	if links[uplinkName] == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = uplinkName, s.want.MTU
		err := ns.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: s.driver.host.fd(), PeerMTU: uint32(s.want.MTU)})
		if err != nil {
			return fmt.Errorf("make uplink of network %s: %w", s.id, err)
		}
		link, err := ns.LinkByName(uplinkName)
		if err != nil {
			return fmt.Errorf("find uplink of network %s: %w", s.id, err)
		}
		links[uplinkName] = link
		delete(s.flags, uplinkName)
	}
	peer, err := s.driver.host.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find uplink of network %s on the host: %w", s.id, err)
	}
	if peer.Attrs().Alias == "" {
		if err := s.driver.host.LinkSetAlias(peer, s.driver.hostAlias()); err != nil {
			return fmt.Errorf("name uplink of network %s on the host: %w", s.id, err)
		}
	}
	if peer.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := s.driver.host.LinkSetMaster(peer, bridge); err != nil {
			return fmt.Errorf("plug network %s into %s: %w", s.id, bridge.Attrs().Name, err)
		}
	}
	if err := setMTU(s.driver.host, peer, s.want.MTU); err != nil {
		return err
	}
	if err := setUp(s.driver.host, peer); err != nil {
		return err
	}
	return setMTU(ns, links[uplinkName], s.want.MTU)
}

// announce tells switches outside where a guest is now that came from another host: it was not here when it last said so
// itself. Within an overlay every host is told from the state.
func (s *segment) announce(attachment network.Attachment) error {
	if s.want == nil || s.want.Physical == "" {
		return nil
	}
	mac, err := net.ParseMAC(attachment.MAC)
	if err != nil {
		return err
	}
	ns, err := openNamespace(netnsDir + "/" + s.namespaceName())
	if err != nil {
		return err
	}
	defer ns.close()
	uplink, err := ns.LinkByName(uplinkName)
	if err != nil {
		return fmt.Errorf("find uplink of network %s: %w", s.id, err)
	}
	var list []announcement
	for _, fixed := range attachment.Addresses {
		list = append(list, announcement{device: uplink.Attrs().Index, mac: mac, addr: fixed.Address, guest: true})
	}
	return sendAnnouncements(ns, list)
}

// portFlags says how the bridge is to treat a port, and whether it is a port.
// It learns only where addresses are not known: outside, and behind a guest
// without port security, if that cannot fill the host's memory. What is not
// learned is flooded where it may be, and nowhere else.
func (s *segment) portFlags(name string) (portFlags, bool) {
	switch {
	case name == vxlanName:
		return portFlags{flood: s.strangersAway(), suppress: true}, true
	case name == uplinkName:
		return portFlags{learning: true, flood: true}, true
	case strings.HasPrefix(name, legPrefix):
		return portFlags{}, true
	case strings.HasPrefix(name, tapPrefix):
		for id, attachment := range s.attachments {
			if tapName(id) == name {
				open := !attachment.PortSecurity
				return portFlags{learning: open && s.bounded, flood: open}, true
			}
		}
	}
	return portFlags{}, false
}

// strangersAway reports whether there may be hardware addresses on other hosts that are not known.
func (s *segment) strangersAway() bool {
	return slices.ContainsFunc(s.want.Neighbors, func(n network.Neighbor) bool {
		return n.Host.IsValid() && n.Host != s.driver.options.TunnelAddress && (n.Open || len(n.MACs) > 0)
	})
}

func (s *segment) setFlags(ns *namespace, link netlink.Link, want portFlags) error {
	name := link.Attrs().Name
	if have, known := s.flags[name]; known && have == want {
		return nil
	}
	for _, flag := range []struct {
		on  bool
		set func(netlink.Link, bool) error
	}{{want.learning, ns.LinkSetLearning}, {want.flood, ns.LinkSetFlood}, {want.suppress, ns.LinkSetBrNeighSuppress}} {
		if err := flag.set(link, flag.on); err != nil {
			return fmt.Errorf("set flags of bridge port %s: %w", name, err)
		}
	}
	s.flags[name] = want
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

// A bound is what holds a port's address.
type bound struct {
	policy
	open bool // no port security
	down bool
}

func (b bound) equal(other bound) bool {
	return b.open == other.open && b.down == other.down && equal(b.policy, other.policy)
}

// permits reports whether the port may take part in a connection.
func (b bound) permits(ingress bool, t tuple) bool {
	return !b.down && (b.open || b.policy.permits(ingress, t))
}

// bounds is what holds each address of the segment's ports.
func (s *segment) bounds() map[netip.Addr]bound {
	all := map[netip.Addr]bound{}
	for _, attachment := range s.attachments {
		b := bound{policy: s.policy(attachment), open: !attachment.PortSecurity, down: !attachment.AdminUp}
		for _, fixed := range attachment.Addresses {
			all[fixed.Address] = b
		}
	}
	return all
}

// cutConnections ends the connections that may not begin any more: those of
// addresses whose rules have changed, or which have gone and may soon be
// another's. A new process looks at all of them once, as the last one may have
// died before it did.
func (s *segment) cutConnections(ns *namespace) error {
	now := s.bounds()
	concerned := map[netip.Addr]bool{}
	var families []netlink.InetFamily
	for addr, before := range s.policies {
		if after, still := now[addr]; !still || !after.equal(before) {
			concerned[addr] = true
			families = append(families, familyOf(addr))
		}
	}
	if !s.swept {
		for addr := range now {
			concerned[addr] = true
			families = append(families, familyOf(addr))
		}
	}
	slices.Sort(families)
	for _, family := range slices.Compact(families) {
		err := ns.cut(family, func(flow *netlink.ConntrackFlow) bool {
			t := tupleOf(flow)
			if t.Destination.IsLinkLocalUnicast() { // the metadata service
				return false
			}
			// An address that has gone is held by no rules: nothing is permitted.
			return concerned[t.Source] && !now[t.Source].permits(false, t) ||
				concerned[t.Destination] && !now[t.Destination].permits(true, t)
		})
		if err != nil {
			return err
		}
	}
	s.swept, s.policies = true, now
	return nil
}

func familyOf(addr netip.Addr) netlink.InetFamily {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func equal(a, b policy) bool {
	return a.Stateful == b.Stateful && slices.EqualFunc(a.Rules, b.Rules, func(x, y network.FilterRule) bool {
		return x.Ingress == y.Ingress && x.V6 == y.V6 && x.Protocol == y.Protocol && x.PortMin == y.PortMin &&
			x.PortMax == y.PortMax && (x.Remote == nil) == (y.Remote == nil) && slices.Equal(x.Remote, y.Remote)
	})
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

// tidy takes the namespace away when nothing is left that needs it.
func (s *segment) tidy() error {
	if s.want != nil || len(s.attachments) > 0 {
		return nil
	}
	path := netnsDir + "/" + s.namespaceName()
	if mounted(path) {
		ns, err := openNamespace(path)
		if err != nil {
			return err
		}
		links, err := ns.links()
		ns.close()
		if err != nil {
			return err
		}
		for name := range links {
			if strings.HasPrefix(name, legPrefix) || strings.HasPrefix(name, tapPrefix) {
				return nil // of a gateway, or of an attachment that only the kernel still knows
			}
		}
	}
	s.stopServing()
	return removeNamespace(s.namespaceName())
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

// setAddresses gives a device exactly these addresses, beside the link-local
// one that the kernel makes. It answers those that are new.
func setAddresses(ns *namespace, link netlink.Link, want []netip.Prefix) (added []netip.Prefix, err error) {
	have, err := dump(func() ([]netlink.Addr, error) { return ns.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	present := map[netip.Prefix]bool{}
	for _, addr := range have {
		bits, _ := addr.Mask.Size()
		prefix := netip.PrefixFrom(addrOf(addr.IP), bits)
		if slices.Contains(want, prefix) {
			present[prefix] = true
			continue
		}
		if prefix.Addr().IsLinkLocalUnicast() && prefix.Addr().Is6() {
			continue
		}
		if err := ns.AddrDel(link, &addr); err != nil {
			return nil, fmt.Errorf("remove address %s from %s: %w", prefix, link.Attrs().Name, err)
		}
	}
	for _, prefix := range want {
		if present[prefix] {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // whose it is was decided elsewhere
		}
		if err := ns.AddrReplace(link, addr); err != nil {
			return nil, fmt.Errorf("add address %s to %s: %w", prefix, link.Attrs().Name, err)
		}
		present[prefix] = true
		added = append(added, prefix)
	}
	return added, nil
}

// routeProtocol marks routes as ours: what else is there belongs to the kernel.
const routeProtocol = unix.RTPROT_STATIC

// setRoutes gives a device exactly these routes of ours.
func setRoutes(ns *namespace, link netlink.Link, want []netlink.Route) error {
	return setRoutesIn(ns, link, unix.RT_TABLE_MAIN, want)
}

// setRoutesIn gives a device exactly these routes of ours in a table.
func setRoutesIn(ns *namespace, link netlink.Link, table int, want []netlink.Route) error {
	have, err := dump(func() ([]netlink.Route, error) {
		return ns.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: routeProtocol, Table: table},
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", link.Attrs().Name, err)
	}
	key := func(r netlink.Route) string {
		destination := "default"
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				destination = r.Dst.String()
			}
		}
		return destination + " " + addrOf(r.Gw).String()
	}
	wanted := map[string]bool{}
	for _, route := range want {
		wanted[key(route)] = true
	}
	present := map[string]bool{}
	for _, route := range have {
		if present[key(route)] = true; wanted[key(route)] {
			continue
		}
		if err := ns.RouteDel(&route); err != nil {
			return fmt.Errorf("remove route %s: %w", key(route), err)
		}
	}
	for _, route := range want {
		if present[key(route)] {
			continue
		}
		present[key(route)] = true
		route.Protocol, route.Table = routeProtocol, table
		if err := ns.RouteReplace(&route); err != nil {
			return fmt.Errorf("add route %s: %w", key(route), err)
		}
	}
	return nil
}
