package linuxnet

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// localMAC derives a locally administered hardware address from words.
func localMAC(words ...string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(strings.Join(words, " ")))
	return net.HardwareAddr{0x0a, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

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

// dropAddresses takes addresses from a device, if it has them.
func dropAddresses(ns *namespace, link netlink.Link, unwanted []netip.Prefix) error {
	for _, prefix := range unwanted {
		err := ns.AddrDel(link, &netlink.Addr{IPNet: ipNet(prefix)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", prefix, link.Attrs().Name, err)
		}
	}
	return nil
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
