package linuxnet

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/core/network"
)

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
// was given back must not lead to its former owner. It also has what went out by the router's home
// so far begin here, if it goes out from here now: what the kernel knows is not translated any more. The first look is at all.
func (g *gateway) cutConnections(ns *namespace) error {
	now := g.mappings()
	if g.mapped != nil && maps.Equal(g.mapped, now) {
		return nil
	}
	leaves := g.leavesTranslated()
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
		if from == seen {
			return to == led && leaves(from, to)
		}
		// Its source was changed.
		return !now[mapping{external: seen}] && !now[mapping{seen, network.PortForward{Fixed: from}}]
	})
	if err != nil {
		return err
	}
	g.mapped = now
	return nil
}

// leavesTranslated reports whether what goes from one address to another leaves the router's networks here, under another source.
func (g *gateway) leavesTranslated() func(from, to netip.Addr) bool {
	var inside []netip.Prefix
	for _, inner := range g.want.Interfaces {
		inside = append(inside, inner.Addresses...)
	}
	within := func(a netip.Addr) bool {
		return slices.ContainsFunc(inside, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	floating := g.leavingHere()
	home := g.want.Exit == nil && g.want.External != nil && g.want.External.SNAT
	return func(from, to netip.Addr) bool { return (home || floating[from]) && within(from) && !within(to) }
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
