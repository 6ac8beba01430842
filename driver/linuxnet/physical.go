package linuxnet

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A Physical is a network outside the cloud that provider networks are part
// of. On this host it is a bridge in the host's own namespace.
type Physical struct {
	// Bridge is its name. It is made when it is not there, and taken away again only if it was made here and nothing was plugged into
	// it. "" is the prefix, a dash and the network's name.
	Bridge string
	// HostAddresses are this machine's own in the network, e.g. the gateway of
	// the pool that floating addresses are from. It has them while the network is
	// within the machine: one that leads away has a gateway of its own, and other hosts.
	HostAddresses []netip.Prefix
	// Masquerade lets the network reach what this machine can reach, under
	// this machine's address.
	Masquerade bool
	// OpenTCP are ports of this machine that guests may connect to. They reach
	// no other; ping and answers to what this machine asked pass.
	OpenTCP []int
}

// hostName names a device of a network in the host's namespace.
func (d *Driver) hostName(id resource.ID) string {
	name := d.prefix + "-" + id.Hex()[16:]
	return name[:min(len(name), 15)]
}

// hostAlias marks the devices in the host's namespace as ours.
func (d *Driver) hostAlias() string { return d.prefix + " linuxnet" }

// ours tells devices that we made in the host's namespace from the operator's.
// The name counts too: a crash may have come before the mark.
func (d *Driver) ours(link netlink.Link) bool {
	return link.Attrs().Alias == d.hostAlias() || strings.HasPrefix(link.Attrs().Name, d.prefix+"-")
}

// hostTable is where the host's rules for a physical network stand.
func (d *Driver) hostTable(physical string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, physical)
	return d.prefix + "_" + clean
}

// ensurePhysical makes the host's bridge for a provider network.
func (d *Driver) ensurePhysical(ctx context.Context, want *network.Segment) (netlink.Link, error) {
	physical, known := d.options.Physical[want.Physical]
	if !known {
		return nil, fmt.Errorf("network %s: this host is not configured with a physical network named %q", want.ID, want.Physical)
	}
	if want.VLAN != 0 {
		return nil, fmt.Errorf("network %s: VLANs are not supported on physical networks", want.ID)
	}
	d.physicalMu.Lock()
	defer d.physicalMu.Unlock()
	if d.physicalUsers[want.Physical] == nil {
		d.physicalUsers[want.Physical] = map[resource.ID]bool{}
	}
	d.physicalUsers[want.Physical][want.ID] = true
	links, err := d.host.links()
	if err != nil {
		return nil, err
	}
	name := d.physicalBridge(want.Physical)
	bridge := links[name]
	if bridge == nil {
		snooping := false
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = name, localMAC("physical", d.prefix, want.Physical), want.MTU
		if err := d.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return nil, fmt.Errorf("make bridge %s: %w", name, err)
		}
		if bridge, err = d.host.LinkByName(name); err != nil {
			return nil, fmt.Errorf("find bridge %s: %w", name, err)
		}
		if err := d.host.LinkSetAlias(bridge, d.hostAlias()); err != nil {
			return nil, fmt.Errorf("name bridge %s: %w", name, err)
		}
		bridge.Attrs().Alias = d.hostAlias()
		if _, err := d.boundLearning(d.host, bridge); err != nil {
			return nil, err
		}
		delete(d.physicalApplied, want.Physical)
	}
	if err := setUp(d.host, bridge); err != nil {
		return nil, err
	}
	switch {
	case d.leadsAway(bridge, links):
		if bridge.Attrs().Alias == d.hostAlias() { // from before a member was plugged in; the others are the operator's
			if err := dropAddresses(d.host, bridge, physical.HostAddresses); err != nil {
				return nil, err
			}
		}
	case d.ours(bridge): // an operator's own bridge keeps its addresses
		if _, err := setAddresses(d.host, bridge, physical.HostAddresses); err != nil {
			return nil, err
		}
	}
	rules := physical.render(d.hostTable(want.Physical), name)
	if d.physicalApplied[want.Physical] == rules {
		return bridge, nil
	}
	if err := d.host.nft(ctx, rules); err != nil {
		return nil, fmt.Errorf("packet filter of physical network %s: %w", want.Physical, err)
	}
	if physical.Masquerade {
		if err := d.host.do(func() error { return set([]setting{{"ipv4/ip_forward", "1"}}) }); err != nil {
			return nil, err
		}
	}
	d.physicalApplied[want.Physical] = rules
	return bridge, nil
}

// Uplinks tells of the physical networks that lead away from this machine, those whose bridge has a member that the operator plugged in, whether any
// such member has a carrier.
func (d *Driver) Uplinks() (map[string]bool, error) {
	links, err := d.host.links()
	if err != nil {
		return nil, err
	}
	carriers := map[string]bool{}
	for physical := range d.options.Physical {
		bridge := links[d.physicalBridge(physical)]
		if bridge == nil || !d.leadsAway(bridge, links) {
			continue
		}
		carriers[physical] = false
		for member := range d.plugged(bridge, links) {
			if member.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
				carriers[physical] = true
			}
		}
	}
	return carriers, nil
}

// leadsAway reports whether the operator plugged something into a bridge.
func (d *Driver) leadsAway(bridge netlink.Link, links map[string]netlink.Link) bool {
	for range d.plugged(bridge, links) {
		return true
	}
	return false
}

// plugged are the members that the operator plugged into a bridge.
func (d *Driver) plugged(bridge netlink.Link, links map[string]netlink.Link) iter.Seq[netlink.Link] {
	return func(yield func(netlink.Link) bool) {
		for _, link := range links {
			if link.Attrs().MasterIndex == bridge.Attrs().Index && !d.ours(link) && !yield(link) {
				return
			}
		}
	}
}

func (d *Driver) physicalBridge(physical string) string {
	if name := d.options.Physical[physical].Bridge; name != "" {
		return name
	}
	return d.prefix + "-" + physical
}

// removePhysical takes the host's part of a physical network away after its
// last segment, unless the operator made it.
func (d *Driver) removePhysical(ctx context.Context, physical string, last resource.ID) error {
	d.physicalMu.Lock()
	defer d.physicalMu.Unlock()
	delete(d.physicalUsers[physical], last)
	if len(d.physicalUsers[physical]) > 0 {
		return nil
	}
	links, err := d.host.links()
	if err != nil {
		return err
	}
	bridge := links[d.physicalBridge(physical)]
	if bridge == nil {
		return nil
	}
	for _, link := range links { // segments that this process has not seen wanted yet
		if link.Attrs().MasterIndex == bridge.Attrs().Index && d.ours(link) {
			return nil
		}
	}
	// The bridge last: while it is there, an interrupted removal is repeated.
	if err := d.host.nft(ctx, removeTable("inet", d.hostTable(physical))); err != nil {
		return err
	}
	delete(d.physicalApplied, physical)
	if d.ours(bridge) && !d.leadsAway(bridge, links) { // by its name one is ours that an operator made and plugged something into
		if err := d.host.removeLink(bridge); err != nil {
			return fmt.Errorf("remove bridge %s: %w", bridge.Attrs().Name, err)
		}
	}
	return nil
}

// removeTable is a script that ends well if there is no such table, too.
func removeTable(family, name string) string {
	return fmt.Sprintf("table %s %s\ndelete table %[1]s %[2]s\n", family, name)
}

// render writes the host's rules for the network.
func (p Physical) render(table, bridge string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%stable inet %s {\n", removeTable("inet", table), table)
	if p.Masquerade {
		out.WriteString("\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n")
		for _, prefix := range p.HostAddresses {
			if prefix.Addr().Is4() {
				fmt.Fprintf(&out, "\t\tip saddr %s oifname != %q masquerade\n", prefix.Masked(), bridge)
			}
		}
		out.WriteString("\t}\n\tchain forwarding {\n\t\ttype filter hook forward priority mangle; policy accept;\n")
		fmt.Fprintf(&out, "\t\tiifname %[1]q oifname != %[1]q %[2]s\n", bridge, clampMSS)
		fmt.Fprintf(&out, "\t\tiifname != %[1]q oifname %[1]q %[2]s\n", bridge, clampMSS)
		out.WriteString("\t}\n")
	}
	out.WriteString("\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n")
	fmt.Fprintf(&out, "\t\tiifname != %q return\n", bridge)
	out.WriteString("\t\tct state established,related accept\n\t\tmeta l4proto { 1, 58 } accept\n")
	for _, port := range p.OpenTCP {
		fmt.Fprintf(&out, "\t\ttcp dport %d accept\n", port)
	}
	out.WriteString("\t\tdrop\n\t}\n}\n")
	return out.String()
}

// clampMSS keeps TCP within the smaller MTU where two networks meet.
const clampMSS = "tcp flags syn tcp option maxseg size set rt mtu"
