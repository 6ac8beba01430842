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
func (g *gateway) namespacePath() string { return filepath.Join(netnsDir, g.namespaceName()) }

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
	path := g.namespacePath()
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
	path := s.namespacePath()
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
		if err := g.removeLeg(ns, link); err != nil {
			return nil, err
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

// disconnect removes a leg, and the segment's namespace if only the leg kept it.
func (g *gateway) disconnect(ns *namespace, link netlink.Link) error {
	network, known := legNetwork(link)
	if !known && g.want != nil { // a process died before it wrote that down
		var l leg
		l, known = g.legs()[link.Attrs().Name]
		network = l.network
	}
	if !known {
		return g.removeLeg(ns, link)
	}
	s := g.driver.segment(network) // nothing of a segment goes while it is looked at
	defer g.driver.release(s)
	if err := g.removeLeg(ns, link); err != nil {
		return err
	}
	return s.tidy()
}

func (g *gateway) removeLeg(ns *namespace, link netlink.Link) error {
	if err := ns.removeLink(link); err != nil {
		return fmt.Errorf("remove leg %s of router %s: %w", link.Attrs().Name, g.id, err)
	}
	return nil
}

// remove takes the router away.
func (g *gateway) remove() error {
	path := g.namespacePath()
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
