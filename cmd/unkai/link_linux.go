package main

import (
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
