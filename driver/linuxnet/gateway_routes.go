package linuxnet

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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
		for _, near := range g.want.External.OnLink { // whoever is there may be nobody's to send on
			if near.Addr().Is4() {
				floats[name] = append(floats[name], netlink.Route{Dst: ipNet(near), Scope: netlink.SCOPE_LINK})
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
