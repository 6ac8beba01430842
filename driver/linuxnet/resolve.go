package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
)

// The kernel keeps the neighbours of all namespaces in one table for each
// family. When it is full, nobody on the host finds anybody any more. So no
// tenant may make it grow: a router is told from the state who has which address
// in an overlay, looks for nobody else there, and hears from nobody else. Where
// addresses are not known from the state (outside, and behind guests that may use
// whatever address they like), it looks for a bounded number at a time.

// strangerSeconds is for how long an address counts that the state does not know.
const strangerSeconds = 30

// strangers is how many of them a router has to do with at a time, in one network: a small part of
// what the kernel keeps, more of it outside the cloud, where there may be many.
func (d *Driver) strangers(outside bool) int {
	if outside {
		return min(max(d.neighbourLimit/64, 64), 2048)
	}
	return min(max(d.neighbourLimit/512, 32), 256)
}

// residents is who can be in a network.
type residents struct {
	at      map[netip.Addr]string // by address the hardware address that has it; "" when several may
	open    bool                  // there may be others
	outside bool                  // it is not the cloud's own network
}

// residents adds up what the state says of a network's addresses.
func (s *segment) residents() residents {
	r := residents{at: map[netip.Addr]string{}, open: s.want.Physical != "", outside: s.want.Physical != ""}
	macs := map[string]bool{}
	var wide []netip.Prefix
	add := func(mac string, addresses []netip.Addr, pairs []netip.Prefix, open bool) {
		mac = strings.ToLower(mac)
		macs[mac] = true
		r.open = r.open || open
		for _, addr := range addresses {
			r.at[addr] = mac
		}
		for _, pair := range pairs {
			r.open = r.open || !pair.IsSingleIP()
			wide = append(wide, pair)
		}
	}
	for _, n := range s.want.Neighbors {
		add(n.MAC, n.Addresses, n.Pairs, n.Open)
	}
	for _, attachment := range s.attachments {
		var addresses []netip.Addr
		for _, fixed := range attachment.Addresses {
			addresses = append(addresses, fixed.Address)
		}
		var pairs []netip.Prefix
		for _, pair := range attachment.AllowedPairs {
			pairs = append(pairs, pair.Address)
		}
		add(attachment.MAC, addresses, pairs, !attachment.PortSecurity)
	}
	for _, subnet := range s.want.Subnets {
		if _, known := r.at[subnet.Gateway]; !known && subnet.Gateway.IsValid() && r.open {
			r.at[subnet.Gateway] = "" // of a router that is not ours, before all others
		}
	}
	// An address that others may use beside the port that has it is whose they
	// agree that it is: it is asked for.
	for _, pair := range wide {
		if pair.IsSingleIP() {
			r.at[pair.Addr()] = ""
			continue
		}
		for addr := range r.at {
			if pair.Contains(addr) {
				r.at[addr] = ""
			}
		}
	}
	for mac := range macs {
		if hardware, err := net.ParseMAC(mac); err == nil {
			r.at[linkLocal(hardware)] = mac
		}
	}
	return r
}

func legTable(leg string) string { return tableName + "_" + leg }

// render writes the rules of one leg for nft(8): whom it may look for, and whom
// it hears when they look for it; strangers is how many that are not known.
func (r residents) render(leg string, strangers int) string {
	var v4, v6 []string
	for _, addr := range slices.SortedFunc(maps.Keys(r.at), netip.Addr.Compare) {
		if addr.Is4() {
			v4 = append(v4, addr.String())
		} else {
			v6 = append(v6, addr.String())
		}
	}
	var out strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	set := func(name, kind string, elements []string) {
		line("\tset %s {\n\t\ttype %s", name, kind)
		if len(elements) > 0 {
			line("\t\telements = { %s }", strings.Join(elements, ", "))
		}
		line("\t}")
	}
	bounded := func(name, kind string) {
		if r.open {
			line("\tset %s {\n\t\ttype %s\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %ds\n\t}", name, kind, strangers, strangerSeconds)
		}
	}
	stranger := func(format string, args ...any) {
		if r.open {
			line("\t\t"+format+" accept", args...)
		}
	}
	line("table inet %s {", legTable(leg))
	set("known4", "ipv4_addr", v4)
	set("known6", "ipv6_addr", v6)
	bounded("sought4", "ipv4_addr")
	bounded("sought6", "ipv6_addr")
	bounded("heard6", "ipv6_addr")
	line("\tchain outward {\n\t\ttype filter hook postrouting priority filter; policy accept;")
	line("\t\toifname != %q accept", leg)
	line("\t\tip daddr { 224.0.0.0/4, 255.255.255.255 } accept\n\t\tip6 daddr ff00::/8 accept")
	line("\t\trt ip nexthop %s accept", exitHop)
	line("\t\trt ip nexthop @known4 accept\n\t\trt ip6 nexthop @known6 accept")
	stranger("meta nfproto ipv4 update @sought4 { rt ip nexthop }")
	stranger("meta nfproto ipv6 update @sought6 { rt ip6 nexthop }")
	line("\t\tdrop\n\t}")
	line("\tchain inward {\n\t\ttype filter hook input priority filter; policy accept;")
	line("\t\tiifname != %q accept", leg)
	line("\t\tmeta l4proto != 58 accept\n\t\ticmpv6 type != { nd-neighbor-solicit, nd-router-solicit } accept")
	line("\t\tip6 saddr :: accept\n\t\tip6 saddr @known6 accept")
	stranger("update @heard6 { ip6 saddr }")
	line("\t\tdrop\n\t}\n}")
	line("table arp %s {", legTable(leg))
	set("known4", "ipv4_addr", v4)
	bounded("heard4", "ipv4_addr")
	line("\tchain inward {\n\t\ttype filter hook input priority filter; policy accept;")
	line("\t\tiifname != %q accept", leg)
	line("\t\tarp saddr ip 0.0.0.0 accept\n\t\tarp saddr ip @known4 accept")
	stranger("update @heard4 { arp saddr ip }")
	line("\t\tdrop\n\t}\n}")
	return out.String()
}

// A resolution is what a router was told of a network by one of its legs.
type resolution struct {
	leg   int // the index of the leg's end in the segment
	rules string
	who   residents
}

// resolve tells the routers in the network who is there.
func (s *segment) resolve(ctx context.Context, links map[string]netlink.Link) error {
	var who *residents
	present := map[resource.ID]bool{}
	for name, link := range links {
		leg, ok := parseLeg(link.Attrs().Alias)
		if !ok || !strings.HasPrefix(name, legPrefix) {
			continue
		}
		if who == nil {
			all := s.residents()
			who = &all
		}
		present[leg.port] = true
		if err := s.resolveLeg(ctx, leg, link.Attrs().Index, *who); err != nil {
			return fmt.Errorf("neighbours of router %s in network %s: %w", leg.gateway, s.id, err)
		}
	}
	maps.DeleteFunc(s.resolved, func(port resource.ID, _ resolution) bool { return !present[port] })
	return nil
}

func (s *segment) resolveLeg(ctx context.Context, leg legEnd, index int, who residents) error {
	told, known := s.resolved[leg.port]
	if known && told.leg == index && told.who.open == who.open && maps.Equal(told.who.at, who.at) {
		return nil
	}
	path := filepath.Join(netnsDir, s.driver.prefix+"-g-"+leg.gateway.String())
	if !mounted(path) {
		return nil // the router goes, or comes and will ask
	}
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer ns.close()
	device, outer, err := findLeg(ns, leg.port)
	if device == nil || err != nil {
		return err
	}
	now := resolution{leg: index, who: who}
	rules := who
	rules.open = rules.open || outer // floating addresses are behind whichever router has them
	now.rules = rules.render(device.Attrs().Name, s.driver.strangers(who.outside || outer))
	if now.rules != told.rules || told.leg != index {
		if err := ns.nft(ctx, removeLegTables(device.Attrs().Name)+now.rules); err != nil {
			return err
		}
	}
	if err := who.program(ns, device, leg.mac); err != nil {
		if ns.gone(device) {
			return nil
		}
		return err
	}
	s.resolved[leg.port] = now
	return nil
}

// findLeg finds a router's device by its port; nil if it has none.
func findLeg(ns *namespace, port resource.ID) (device netlink.Link, outer bool, err error) {
	for _, prefix := range []string{innerLegPrefix, outerLegPrefix} {
		device, err = ns.LinkByName(prefix + port.Hex()[18:])
		var missing netlink.LinkNotFoundError
		if !errors.As(err, &missing) {
			return device, prefix == outerLegPrefix, err
		}
	}
	return nil, false, nil
}

func removeLegTables(leg string) string {
	return removeTable("inet", legTable(leg)) + removeTable("arp", legTable(leg))
}

// program compares the permanent neighbours of a router's leg with who is there.
func (r residents) program(ns *namespace, device netlink.Link, own string) error {
	have, err := dump(func() ([]netlink.Neigh, error) { return ns.NeighList(device.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	want := maps.Clone(r.at)
	maps.DeleteFunc(want, func(_ netip.Addr, mac string) bool { return mac == "" || mac == own })
	for _, found := range have {
		if found.State&netlink.NUD_PERMANENT == 0 || found.Family == unix.AF_BRIDGE {
			continue
		}
		addr := addrOf(found.IP)
		if addr == exitHop {
			continue // of the router's own making
		}
		switch mac, wanted := want[addr]; {
		case wanted && mac == found.HardwareAddr.String():
			delete(want, addr)
		case !wanted:
			if err := ns.NeighDel(&found); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove neighbour %s: %w", addr, err)
			}
		}
	}
	for addr, text := range want {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", addr, err)
		}
		if err := ns.NeighSet(&netlink.Neigh{LinkIndex: device.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}); err != nil {
			return fmt.Errorf("add neighbour %s: %w", addr, err)
		}
	}
	return nil
}

// neighbourLimits are how many neighbours the kernel keeps before it throws some out, before it does so in
// haste, and at most, for the whole machine. The usual 128, 512 and 1024 are for a host, not for a cloud.
var neighbourLimits = [3]int{1 << 12, 1 << 16, 1 << 17}

const usualNeighbourLimit = 1024

// raiseNeighbourLimits raises what is lower, and answers how many neighbours the kernel keeps then. Only the
// machine's first namespace has these settings; without them it is taken to be the usual number.
func (d *Driver) raiseNeighbourLimits() int {
	limit := neighbourLimits[2]
	for _, family := range []string{"ipv4", "ipv6"} {
		for n := len(neighbourLimits); n > 0; n-- { // the highest first, so that they stay in order
			path := fmt.Sprintf("/proc/sys/net/%s/neigh/default/gc_thresh%d", family, n)
			text, err := os.ReadFile(path)
			if err != nil {
				d.log.Debug("limit of neighbours not known", "setting", path, "error", err)
				limit = min(limit, usualNeighbourLimit)
				continue
			}
			have, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err == nil && have >= neighbourLimits[n-1] {
				continue
			}
			if err := os.WriteFile(path, []byte(strconv.Itoa(neighbourLimits[n-1])), 0); err != nil {
				d.log.Warn("limit of neighbours not raised", "setting", path, "error", err)
				if n == len(neighbourLimits) {
					limit = min(limit, have)
				}
			}
		}
	}
	return limit
}
