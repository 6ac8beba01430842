package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A gateway is one router on this host: a namespace with a leg in the segment
// of each of its networks.
type gateway struct {
	driver *Driver
	id     resource.ID

	mu      sync.Mutex
	removed bool
	want    *network.Gateway

	// What this process has made sure of since it started.
	fresh    bool // the namespace is new: there are no rules and no connections in it
	prepared bool
	applied  string
	mapped   map[mapping]bool // nil before the first look at what runs over mappings
}

func (g *gateway) namespaceName() string { return g.driver.prefix + "-g-" + g.id.String() }

// A leg is one device of a router, wherever it leads.
type leg struct {
	port, network resource.ID
	mac           string
	addresses     []netip.Prefix
	up            bool
}

const (
	innerLegPrefix = "i"
	outerLegPrefix = "x"
)

// legAlias is written on a leg's end in the segment, so that the segment knows
// where to send frames for the router, after a restart too.
func legAlias(gateway resource.ID, l leg) string {
	return fmt.Sprintf("leg %s of %s at %s", l.port, gateway, strings.ToLower(l.mac))
}

type legEnd struct {
	port, gateway resource.ID
	mac           string
}

func parseLeg(alias string) (legEnd, bool) {
	words := strings.Fields(alias)
	if len(words) != 6 || words[0] != "leg" || words[2] != "of" || words[4] != "at" {
		return legEnd{}, false
	}
	port, err := resource.ParseID(words[1])
	if err != nil {
		return legEnd{}, false
	}
	gateway, err := resource.ParseID(words[3])
	if err != nil {
		return legEnd{}, false
	}
	return legEnd{port, gateway, words[5]}, true
}

var gatewaySettings = []setting{
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/arp_ignore", "1"},
	{"ipv4/conf/all/arp_announce", "2"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv6/conf/default/forwarding", "1"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/all/accept_redirects", "0"},
}

// legs lists what the router is to have, by the device's name.
func (g *gateway) legs() map[string]leg {
	legs := map[string]leg{}
	for _, inner := range g.want.Interfaces {
		legs[innerLegPrefix+inner.PortID.Hex()[18:]] = leg{
			port: inner.PortID, network: inner.NetworkID, mac: inner.MAC, addresses: inner.Addresses,
			up: g.want.AdminUp && inner.AdminUp,
		}
	}
	if outer := g.want.External; outer != nil {
		addresses := slices.Clone(outer.Addresses)
		for _, floating := range g.want.Floating {
			addresses = append(addresses, netip.PrefixFrom(floating.External, floating.External.BitLen()))
		}
		legs[outerLegPrefix+outer.PortID.Hex()[18:]] = leg{
			port: outer.PortID, network: outer.NetworkID, mac: outer.MAC, addresses: unique(addresses), up: g.want.AdminUp,
		}
	}
	return legs
}

// unique drops an address that is there with another prefix length already, as
// a floating address may be the router's own.
func unique(prefixes []netip.Prefix) []netip.Prefix {
	var kept []netip.Prefix
	for _, prefix := range prefixes {
		if !slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Addr() == prefix.Addr() }) {
			kept = append(kept, prefix)
		}
	}
	return kept
}

// converge makes the kernel match what is wanted of the router, and leaves
// alone what does already.
func (g *gateway) converge(ctx context.Context) error {
	ns, made, err := makeNamespace(g.namespaceName())
	if err != nil {
		return err
	}
	defer ns.close()
	if made {
		g.prepared, g.applied, g.mapped, g.fresh = false, "", g.mappings(), true
	}
	if !g.prepared {
		if err := ns.do(func() error { return errors.Join(set(gatewaySettings), set(flowSettings)) }); err != nil {
			return fmt.Errorf("router %s: %w", g.id, err)
		}
		g.prepared = true
	}
	// NAT first: no packet is to leave under an address that is nobody's outside.
	if rules := renderGateway(*g.want); rules != g.applied {
		flows := g.driver.routedFlows()
		script := rules + flows
		if !g.fresh {
			script = removeTable("inet", tableName) + rules
			if g.applied == "" {
				script += removeTable("inet", tableName+"_flows") + flows
			}
		}
		g.fresh = false
		if err := ns.nft(ctx, script); err != nil {
			return fmt.Errorf("rules of router %s: %w", g.id, err)
		}
		g.applied = rules
	}
	links, err := ns.links()
	if err != nil {
		return err
	}
	if err := setUp(ns, links["lo"]); err != nil {
		return err
	}
	legs := g.legs()
	for name, link := range links {
		if _, wanted := legs[name]; !wanted && link.Type() == "veth" {
			if err := g.disconnect(ns, link); err != nil {
				return err
			}
			if err := ns.nft(ctx, removeLegTables(name)); err != nil {
				return fmt.Errorf("rules of a leg of router %s: %w", g.id, err)
			}
			delete(links, name)
		}
	}
	var announce []announcement
	for _, name := range slices.Sorted(maps.Keys(legs)) {
		fresh, err := g.convergeLeg(ctx, ns, links, name, legs[name])
		if err != nil {
			return err
		}
		announce = append(announce, fresh...)
	}
	if err := g.route(ns, links, legs); err != nil {
		return err
	}
	if err := g.cutConnections(ns); err != nil {
		return err
	}
	if err := sendAnnouncements(ns, announce); err != nil {
		return err
	}
	if len(announce) > 0 {
		g.driver.later(func() { g.announceAgain() })
	}
	return nil
}

// announceAgain announces all that the router has: a leg that was new a moment
// ago may not have been connected yet, and a frame may get lost.
func (g *gateway) announceAgain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed || g.want == nil {
		return
	}
	if err := g.announceAll(); err != nil {
		g.driver.log.Warn("router's addresses not announced again", "router", g.id, "error", err)
	}
}

func (g *gateway) announceAll() error {
	path := filepath.Join(netnsDir, g.namespaceName())
	if !mounted(path) {
		return nil
	}
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer ns.close()
	links, err := ns.links()
	if err != nil {
		return err
	}
	var all []announcement
	for name, l := range g.legs() {
		mac, err := net.ParseMAC(l.mac)
		if err != nil || links[name] == nil || links[name].Attrs().Flags&net.FlagUp == 0 {
			continue
		}
		for _, prefix := range l.addresses {
			all = append(all, announcement{links[name].Attrs().Index, mac, prefix.Addr(), strings.HasPrefix(name, innerLegPrefix), false})
		}
	}
	return sendAnnouncements(ns, all)
}

// convergeLeg makes one leg right, and answers the addresses that are new on it.
func (g *gateway) convergeLeg(ctx context.Context, ns *namespace, links map[string]netlink.Link, name string, want leg) ([]announcement, error) {
	was := links[name]
	link, err := g.connect(ctx, ns, was, name, want)
	if err != nil {
		return nil, err
	}
	links[name] = link
	added, err := setAddresses(ns, link, want.addresses)
	if err != nil {
		return nil, fmt.Errorf("router %s: %w", g.id, err)
	}
	if !want.up {
		if link.Attrs().Flags&net.FlagUp != 0 {
			if err := ns.LinkSetDown(link); err != nil {
				return nil, fmt.Errorf("take leg %s of router %s down: %w", name, g.id, err)
			}
		}
		return nil, nil
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		added = want.addresses
	}
	if err := setUp(ns, link); err != nil {
		return nil, err
	}
	if was != nil && was.Attrs().Flags&net.FlagUp == 0 {
		if err := g.driver.resolveAgain(ctx, want); err != nil { // the kernel forgets the neighbours of a device that is down
			return nil, err
		}
	}
	mac, err := net.ParseMAC(want.mac)
	if err != nil {
		return nil, fmt.Errorf("port %s of router %s: %w", want.port, g.id, err)
	}
	var fresh []announcement
	for _, prefix := range added {
		fresh = append(fresh, announcement{link.Attrs().Index, mac, prefix.Addr(), strings.HasPrefix(name, innerLegPrefix), false})
	}
	return fresh, nil
}

// resolveAgain tells a leg's router anew who is in its network.
func (d *Driver) resolveAgain(ctx context.Context, l leg) error {
	s := d.segment(l.network)
	defer d.release(s)
	delete(s.resolved, l.port)
	path := filepath.Join(netnsDir, s.namespaceName())
	if s.want == nil || !mounted(path) {
		return nil
	}
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer ns.close()
	links, err := ns.links()
	if err != nil {
		return err
	}
	return s.resolve(ctx, links)
}

// connect makes the pair of devices whose one end is the leg and whose other
// end is a port of the network's bridge. The segment's lock is held meanwhile:
// it may be coming or going.
func (g *gateway) connect(ctx context.Context, ns *namespace, link netlink.Link, name string, want leg) (netlink.Link, error) {
	mac, err := net.ParseMAC(want.mac)
	if err != nil {
		return nil, fmt.Errorf("port %s of router %s: %w", want.port, g.id, err)
	}
	s := g.driver.segment(want.network)
	defer g.driver.release(s)
	if link != nil {
		// Were the other end gone, this one would be too. The alias is written last,
		// so a leg that has it is connected; only its address may have changed.
		if at, complete := legNetwork(link); complete && at == want.network && link.Attrs().HardwareAddr.String() == mac.String() {
			mtu := 0
			if s.want != nil {
				mtu = s.want.MTU
			}
			return link, setMTU(ns, link, mtu)
		}
		if err := ns.removeLink(link); err != nil {
			return nil, fmt.Errorf("remove leg %s of router %s: %w", name, g.id, err)
		}
	}
	far, made, err := makeNamespace(s.namespaceName())
	if err != nil {
		return nil, err
	}
	defer far.close()
	if made {
		s.forgetKernel()
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.TxQLen = name, mac, 1000
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: legName(want.port), PeerNamespace: far.fd(),
		PeerHardwareAddr: localMAC("leg", want.port.String()),
	}
	if s.want != nil {
		pair.MTU, pair.PeerMTU = s.want.MTU, uint32(s.want.MTU)
	}
	if err := ns.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("make leg %s of router %s: %w", name, g.id, err)
	}
	peer, err := far.LinkByName(legName(want.port))
	if err != nil {
		return nil, fmt.Errorf("find leg %s of router %s: %w", name, g.id, err)
	}
	if err := far.LinkSetAlias(peer, legAlias(g.id, want)); err != nil {
		return nil, fmt.Errorf("name leg %s of router %s: %w", name, g.id, err)
	}
	if s.want != nil {
		delete(s.flags, legName(want.port))
		if err := s.converge(ctx); err != nil { // plugs it in
			return nil, err
		}
	} else if err := setUp(far, peer); err != nil {
		return nil, err
	}
	if link, err = ns.LinkByName(name); err != nil {
		return nil, fmt.Errorf("find leg %s of router %s: %w", name, g.id, err)
	}
	if err := ns.LinkSetAlias(link, networkAlias(want.network)); err != nil {
		return nil, fmt.Errorf("name leg %s of router %s: %w", name, g.id, err)
	}
	return link, nil
}

// networkAlias is written on a leg's end at the router.
func networkAlias(network resource.ID) string { return "leg in " + network.String() }

func legNetwork(link netlink.Link) (resource.ID, bool) {
	text, ok := strings.CutPrefix(link.Attrs().Alias, "leg in ")
	id, err := resource.ParseID(text)
	return id, ok && err == nil
}

// route programs the default routes and the owner's own. Where the router is not at home, the default route
// leads to its home; what comes from an address that has a floating one here leaves here.
func (g *gateway) route(ns *namespace, links map[string]netlink.Link, legs map[string]leg) error {
	byLeg, floats := map[string][]netlink.Route{}, map[string][]netlink.Route{}
	for name := range legs {
		byLeg[name], floats[name] = nil, nil
	}
	if g.want.External != nil {
		name := outerLegPrefix + g.want.External.PortID.Hex()[18:]
		for _, hop := range g.want.External.NextHops {
			route := netlink.Route{Dst: ipNet(everything(hop)), Gw: hop.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
			if g.want.Exit == nil {
				byLeg[name] = append(byLeg[name], route)
			} else if hop.Is4() {
				floats[name] = append(floats[name], route)
			}
		}
	}
	if exit := g.want.Exit; exit != nil && legs[innerLegPrefix+exit.PortID.Hex()[18:]].up {
		name := innerLegPrefix + exit.PortID.Hex()[18:]
		hops, err := g.exit(ns, links[name], exit.MAC)
		if err != nil {
			return err
		}
		for _, hop := range hops {
			byLeg[name] = append(byLeg[name], netlink.Route{Dst: ipNet(everything(hop)), Gw: hop.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		}
	}
	for _, route := range g.want.Routes {
		for name, l := range legs {
			if slices.ContainsFunc(l.addresses, func(p netip.Prefix) bool { return p.Masked().Contains(route.NextHop) }) {
				byLeg[name] = append(byLeg[name], netlink.Route{Dst: ipNet(route.Destination.Masked()), Gw: route.NextHop.AsSlice()})
				break
			}
		}
	}
	for name := range legs {
		if !legs[name].up {
			continue // the kernel takes the routes of a device that is down away
		}
		for table, routes := range map[int][]netlink.Route{unix.RT_TABLE_MAIN: byLeg[name], floatingTable: floats[name]} {
			for i := range routes {
				routes[i].LinkIndex = links[name].Attrs().Index
			}
			if err := setRoutesIn(ns, links[name], table, routes); err != nil {
				return fmt.Errorf("router %s: %w", g.id, err)
			}
		}
	}
	if err := setRules(ns, g.leavingHere()); err != nil {
		return fmt.Errorf("router %s: %w", g.id, err)
	}
	return nil
}

// exitHop stands for a router's home in routes of IPv4. It means something on one leg only, and there it
// is always known who has it.
var exitHop = netip.MustParseAddr("169.254.0.1")

// exit tells the router who its home is on a leg, and answers what default routes lead there.
func (g *gateway) exit(ns *namespace, link netlink.Link, text string) ([]netip.Addr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil {
		return nil, fmt.Errorf("home of router %s: %w", g.id, err)
	}
	hops := []netip.Addr{exitHop, linkLocal(mac)}
	for _, hop := range hops {
		err := ns.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: hop.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
		if err != nil {
			return nil, fmt.Errorf("home of router %s: %w", g.id, err)
		}
	}
	return hops, nil
}

// leavingHere are the addresses that reach the world here and not by the router's home.
func (g *gateway) leavingHere() map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	if g.want.Exit == nil {
		return all
	}
	for _, floating := range g.want.Floating {
		if len(floating.Forwards) == 0 && floating.Fixed.Is4() {
			all[floating.Fixed] = true
		}
	}
	return all
}

// floatingTable is where routes for what leaves under a floating address stand, and the order of the rules
// that lead there: what is routed within the router's networks comes before.
const (
	floatingTable    = 100
	withinPreference = 100
	floatPreference  = 200
)

// setRules makes what comes from these addresses go by the table for floating ones, unless it stays within.
func setRules(ns *namespace, from map[netip.Addr]bool) error {
	have, err := dump(func() ([]netlink.Rule, error) { return ns.RuleList(netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	missing, within := maps.Clone(from), len(from) > 0
	for _, rule := range have {
		switch {
		case rule.Priority == withinPreference && within:
			within = false
			continue
		case rule.Priority == floatPreference && rule.Src != nil && missing[addrOf(rule.Src.IP)]:
			delete(missing, addrOf(rule.Src.IP))
			continue
		case rule.Priority != withinPreference && rule.Priority != floatPreference:
			continue // the kernel's own
		}
		rule.Family = netlink.FAMILY_V4
		if err := ns.RuleDel(&rule); err != nil {
			return fmt.Errorf("remove routing rule: %w", err)
		}
	}
	if within {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table, rule.SuppressPrefixlen = netlink.FAMILY_V4, withinPreference, unix.RT_TABLE_MAIN, 0
		if err := ns.RuleAdd(rule); err != nil {
			return fmt.Errorf("add routing rule: %w", err)
		}
	}
	for addr := range missing {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table, rule.Src = netlink.FAMILY_V4, floatPreference, floatingTable, ipNet(netip.PrefixFrom(addr, 32))
		if err := ns.RuleAdd(rule); err != nil {
			return fmt.Errorf("add routing rule for %s: %w", addr, err)
		}
	}
	return nil
}

// everything is the default route's destination in an address's family.
func everything(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// A mapping leads from an external address, or one port of it, to a fixed one.
// The router's own addresses are mappings to nowhere.
type mapping struct {
	external netip.Addr
	forward  network.PortForward
}

func (g *gateway) mappings() map[mapping]bool {
	all := map[mapping]bool{}
	for _, floating := range g.want.Floating {
		if len(floating.Forwards) == 0 {
			all[mapping{floating.External, network.PortForward{Fixed: floating.Fixed}}] = true
			if g.want.Exit != nil { // also the source of who asks for it here
				all[mapping{external: floating.External}] = true
			}
		}
		for _, forward := range floating.Forwards {
			all[mapping{floating.External, forward}] = true
		}
	}
	if g.want.External != nil {
		for _, prefix := range g.want.External.Addresses {
			all[mapping{external: prefix.Addr()}] = true
		}
	}
	return all
}

// cutConnections ends what runs over a mapping that is no more: an address that
// was given back must not lead to its former owner. The first look is at all.
func (g *gateway) cutConnections(ns *namespace) error {
	now := g.mappings()
	if g.mapped != nil && maps.Equal(g.mapped, now) {
		return nil
	}
	err := ns.cut(unix.AF_INET, func(flow *netlink.ConntrackFlow) bool {
		from, to := addrOf(flow.Forward.SrcIP), addrOf(flow.Forward.DstIP)
		led, seen := addrOf(flow.Reverse.SrcIP), addrOf(flow.Reverse.DstIP)
		if to != led { // its destination was changed
			port := network.PortForward{
				Protocol: int(flow.Forward.Protocol), ExternalPort: int(flow.Forward.DstPort),
				Fixed: led, FixedPort: int(flow.Reverse.SrcPort),
			}
			if !now[mapping{to, network.PortForward{Fixed: led}}] && !now[mapping{to, port}] {
				return true
			}
		}
		// Its source was changed.
		return from != seen && !now[mapping{external: seen}] && !now[mapping{seen, network.PortForward{Fixed: from}}]
	})
	if err != nil {
		return err
	}
	g.mapped = now
	return nil
}

// disconnect removes a leg, and the segment's namespace if only the leg kept it.
func (g *gateway) disconnect(ns *namespace, link netlink.Link) error {
	network, known := legNetwork(link)
	if !known && g.want != nil { // a process died before it wrote that down
		var l leg
		l, known = g.legs()[link.Attrs().Name]
		network = l.network
	}
	if err := ns.removeLink(link); err != nil {
		return fmt.Errorf("remove leg %s of router %s: %w", link.Attrs().Name, g.id, err)
	}
	if !known {
		return nil
	}
	s := g.driver.segment(network)
	defer g.driver.release(s)
	return s.tidy()
}

// remove takes the router away.
func (g *gateway) remove() error {
	path := filepath.Join(netnsDir, g.namespaceName())
	if mounted(path) {
		ns, err := openNamespace(path)
		if err != nil {
			return err
		}
		defer ns.close()
		links, err := ns.links()
		if err != nil {
			return err
		}
		for _, link := range links {
			if link.Type() == "veth" {
				if err := g.disconnect(ns, link); err != nil {
					return err
				}
			}
		}
	}
	return removeNamespace(g.namespaceName())
}

// renderGateway writes a router's rules for nft(8). Protocols stand as numbers, here and elsewhere (ICMP is 1 and, in
// version 6, 58): their names are in /etc/protocols, which a bare machine has not.
func renderGateway(want network.Gateway) string {
	var out strings.Builder
	fmt.Fprintf(&out, "table inet %s {\n", tableName)
	if want.External != nil {
		writeNAT(&out, want, outerLegPrefix+want.External.PortID.Hex()[18:])
	}
	fmt.Fprintf(&out, "\tchain clamp {\n\t\ttype filter hook forward priority mangle; policy accept;\n\t\t%s\n\t}\n", clampMSS)
	out.WriteString(`	chain input {
		type filter hook input priority filter; policy accept;
		ct state established,related accept
		meta l4proto { 1, 58 } accept
		drop
	}
	chain output {
		type filter hook output priority filter; policy accept;
		icmpv6 type nd-redirect drop
	}
}
`)
	return out.String()
}

func writeNAT(out *strings.Builder, want network.Gateway, outer string) {
	line := func(format string, args ...any) { fmt.Fprintf(out, "\t\t"+format+"\n", args...) }
	floating := slices.Clone(want.Floating)
	slices.SortFunc(floating, func(a, b network.Floating) int { return a.External.Compare(b.External) })
	var inward, outward []string
	mapped := map[netip.Addr]bool{} // nft refuses a map that leads two ways
	out.WriteString("\tchain prerouting {\n")
	line("type nat hook prerouting priority dstnat; policy accept;")
	for _, f := range floating {
		if len(f.Forwards) == 0 {
			if !mapped[f.External] && f.External.Is4() && f.Fixed.Is4() {
				inward = append(inward, fmt.Sprintf("%s : %s", f.External, f.Fixed))
			}
			if !mapped[f.Fixed] && f.External.Is4() && f.Fixed.Is4() {
				outward = append(outward, fmt.Sprintf("%s : %s", f.Fixed, f.External))
			}
			mapped[f.External], mapped[f.Fixed] = true, true
			continue
		}
		for _, forward := range f.Forwards {
			line("ip daddr %s meta l4proto %d th dport %d dnat ip to %s:%d", f.External, forward.Protocol, forward.ExternalPort, forward.Fixed, forward.FixedPort)
		}
	}
	if len(inward) > 0 {
		line("dnat ip to ip daddr map { %s }", strings.Join(inward, ", "))
	}
	out.WriteString("\t}\n\tchain postrouting {\n")
	line("type nat hook postrouting priority srcnat; policy accept;")
	own := netip.Addr{}
	for _, prefix := range want.External.Addresses {
		if prefix.Addr().Is4() {
			own = prefix.Addr()
			break
		}
	}
	// From inside to a floating address of this router the packet comes back in
	// by the leg it might have left by: without a new source, the answer would go
	// straight to the asker, who asked somebody else.
	line("oifname != %q iifname != %q ct status dnat jump outward", outer, outer)
	line("oifname %q iifname != %q jump outward", outer, outer)
	out.WriteString("\t}\n\tchain outward {\n")
	if len(outward) > 0 {
		line("snat ip to ip saddr map { %s }", strings.Join(outward, ", "))
	}
	if !own.IsValid() && len(inward) > 0 {
		// Who asks for a floating address here and has none is not known outside here: it asks in that one's name.
		var selves []string
		for _, pair := range inward {
			external, _, _ := strings.Cut(pair, " : ")
			selves = append(selves, external+" : "+external)
		}
		line("ct status dnat snat ip to ct original ip daddr map { %s }", strings.Join(selves, ", "))
	}
	if own.IsValid() {
		if !want.External.SNAT {
			line("ct status dnat meta nfproto ipv4 snat ip to %s", own)
		} else {
			line("meta nfproto ipv4 snat ip to %s", own)
		}
	}
	out.WriteString("\t}\n")
	if want.External.SNAT {
		// Private addresses are private: a neighbour in the external network that
		// routes to them reaches nobody.
		out.WriteString("\tchain private {\n")
		line("type filter hook forward priority filter; policy accept;")
		line("iifname %q meta nfproto ipv4 ct state new ct status ! dnat drop", outer)
		out.WriteString("\t}\n")
	}
}
