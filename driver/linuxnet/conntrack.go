package linuxnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/core/network"
)

// A tuple is how a connection began.
type tuple struct {
	Source, Destination netip.Addr
	Protocol            int
	Port                int // the destination's, where the protocol has ports
}

// permits reports whether the policy lets a connection begin. What a listing of
// connections does not tell, the type of an ICMP message, is taken to match no
// rule that asks for one: the next such message opens the connection again.
func (p policy) permits(ingress bool, t tuple) bool {
	for _, rule := range p.Rules {
		if rule.Ingress == ingress && covers(rule, t) {
			return true
		}
	}
	return false
}

func covers(rule network.FilterRule, t tuple) bool {
	far := t.Destination
	if rule.Ingress {
		far = t.Source
	}
	if rule.V6 != far.Is6() || rule.Protocol != 0 && rule.Protocol != t.Protocol {
		return false
	}
	if isICMP(rule.Protocol) && (rule.PortMin >= 0 || rule.PortMax >= 0) {
		return false
	}
	if hasPorts(rule.Protocol) {
		if low, high := portRange(rule); t.Port < low || t.Port > high {
			return false
		}
	}
	if rule.Remote == nil {
		return true
	}
	for _, prefix := range rule.Remote {
		if prefix.Contains(far) {
			return true
		}
	}
	return false
}

// A cutter says which tracked connections have to end. It is a
// netlink.CustomConntrackFilter.
type cutter func(flow *netlink.ConntrackFlow) bool

func (c cutter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return c(flow) }

// cut ends connections of a family: their next packet is judged by the rules
// again. It reads the kernel's whole table, which takes milliseconds.
func (n *namespace) cut(family netlink.InetFamily, c cutter) error {
	for try := 0; ; try++ {
		_, err := n.ConntrackDeleteFilters(netlink.ConntrackTable, family, c)
		if try < 10 && errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return fmt.Errorf("end connections that are no longer allowed: %w", err)
		}
		return nil
	}
}

func tupleOf(flow *netlink.ConntrackFlow) tuple {
	return tuple{
		Source:      addrOf(flow.Forward.SrcIP),
		Destination: addrOf(flow.Forward.DstIP),
		Protocol:    int(flow.Forward.Protocol),
		Port:        int(flow.Forward.DstPort),
	}
}

func addrOf(ip []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

// flowLimit is how many connections one guest may have at a time: a small part of what the kernel tracks,
// and not so many that counting them takes long.
func flowLimit() int {
	const least, most, share = 256, 8192, 32
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return most
	}
	all, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return most
	}
	return min(max(all/share, least), most)
}

// flows bounds the connections of a segment's guests, by their taps.
func (d *Driver) flows() string {
	return fmt.Sprintf(flowTable, tableName, d.flowLimit, 16*d.flowLimit)
}

// routedFlows bounds the connections through a router, by who began them.
func (d *Driver) routedFlows() string {
	return fmt.Sprintf(routedFlowTable, tableName, d.flowLimit)
}

// routedFlowTable goes by source addresses, for which the segments' filters vouch.
const routedFlowTable = `table inet %[1]s_flows {
	set asking4 {
		type ipv4_addr
		size 65535
		flags dynamic
	}
	set asking6 {
		type ipv6_addr
		size 65535
		flags dynamic
	}
	chain counting {
		type filter hook prerouting priority mangle - 10; policy accept;
		ct state != new accept
		ct status & confirmed == confirmed accept
		add @asking4 { ip saddr ct count over %[2]d } drop
		add @asking6 { ip6 saddr ct count over %[2]d } drop
	}
}
`
