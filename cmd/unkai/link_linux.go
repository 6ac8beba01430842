package main

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkKind reports whether the kernel can make links of a kind. It tries, in a network
// namespace of its own that ends with its thread.
func linkKind(kind string) bool {
	result := make(chan bool)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			result <- false
			return
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "probe"
		var link netlink.Link = &netlink.Bridge{LinkAttrs: attrs}
		if kind == "vxlan" {
			link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 4789}
		}
		result <- netlink.LinkAdd(link) == nil
	}()
	return <-result
}

// wireOf is the link of this machine that has an address, and the largest packet that goes over it.
func wireOf(address netip.Addr) (name string, mtu int, err error) {
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return "", 0, fmt.Errorf("list this machine's addresses: %w", err)
	}
	for _, a := range addresses {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == address.Unmap() {
			return linkAt(a.LinkIndex)
		}
	}
	return "", 0, fmt.Errorf("no link of this machine has the address %s", address)
}

func linkAt(index int) (name string, mtu int, err error) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return "", 0, fmt.Errorf("find the link of an address: %w", err)
	}
	return link.Attrs().Name, link.Attrs().MTU, nil
}

// outwards is the link by which this machine reaches what is anywhere else.
func outwards() (name string, mtu int, err error) {
	var failed error
	for _, anywhere := range []net.IP{net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1")} { // nobody's
		routes, err := netlink.RouteGet(anywhere)
		if err == nil && len(routes) > 0 {
			return linkAt(routes[0].LinkIndex)
		}
		failed = err
	}
	return "", 0, fmt.Errorf("this machine has no default route: %w", failed)
}
