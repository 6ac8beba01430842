package linuxnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/network"
)

// udp makes a datagram's frame.
func udp(fromMAC, toMAC, from, to string, fromPort, toPort uint16, payload string) []byte {
	a, _ := net.ParseMAC(fromMAC)
	b, _ := net.ParseMAC(toMAC)
	return datagram{
		fromMAC: a, toMAC: b, from: netip.MustParseAddr(from), to: netip.MustParseAddr(to),
		protocol: protocolUDP, fromPort: fromPort, toPort: toPort, payload: []byte(payload),
	}.frame()
}

func icmpv6(fromMAC, toMAC, from, to string, message []byte) []byte {
	a, _ := net.ParseMAC(fromMAC)
	b, _ := net.ParseMAC(toMAC)
	return datagram{
		fromMAC: a, toMAC: b, from: netip.MustParseAddr(from), to: netip.MustParseAddr(to),
		protocol: protocolICMPv6, payload: message,
	}.frame()
}

func arp(fromMAC, senderMAC, sender string) []byte {
	a, _ := net.ParseMAC(fromMAC)
	b, _ := net.ParseMAC(senderMAC)
	frame := arpAnnouncement(b, netip.MustParseAddr(sender))
	copy(frame[6:12], a)
	return frame
}

// tagged puts a VLAN tag into a frame.
func tagged(frame []byte) []byte {
	out := append(bytes.Clone(frame[:12]), 0x81, 0x00, 0x00, 0x05)
	return append(out, frame[12:]...)
}

// TestSpoofing sends what a hostile guest would, straight through its tap.
func TestSpoofing(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	open := outgoing(rule(true, false), rule(true, true))
	ok(t, m.EnsureFilter(ctx, open))
	ok(t, m.EnsureSegment(ctx, n.segment))
	evil, victim := n.port(open.ID), n.port(open.ID)
	evil.AllowedPairs = []network.AddressPair{
		{Address: netip.MustParsePrefix("10.5.0.99/32")},
		{MAC: "fa:16:3e:aa:aa:aa", Address: netip.MustParsePrefix("10.6.0.0/16")},
		{Address: netip.MustParsePrefix("fd06::/70")},
	}
	e, v := m.plug(evil), m.plug(victim, static(victim)...)
	const (
		own, other = "fa:16:3e:00:00:0b", "fa:16:3e:00:00:0c"
		all        = "ff:ff:ff:ff:ff:ff"
		ownLL      = "fe80::f816:3eff:fe00:b"
		otherLL    = "fe80::f816:3eff:fe00:c"
		allNodes   = "33:33:00:00:00:01"
	)
	advertise := func(target string) []byte {
		return append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
	}
	routerAdvert := append([]byte{134, 0, 0, 0, 64, 0, 7, 8}, make([]byte, 8)...)
	cases := map[string]struct {
		frame  []byte
		passes bool
	}{
		"its own IPv4 address":                         {udp(own, other, "10.5.0.11", "10.5.0.12", 1000, 2000, "word"), true},
		"its own IPv6 address":                         {udp(own, other, "fd05::b", "fd05::c", 1000, 2000, "word"), true},
		"its own link-local address":                   {udp(own, other, ownLL, otherLL, 1000, 2000, "word"), true},
		"an allowed address":                           {udp(own, other, "10.5.0.99", "10.5.0.12", 1000, 2000, "word"), true},
		"an allowed address with its own MAC":          {udp("fa:16:3e:aa:aa:aa", other, "10.6.7.8", "10.5.0.12", 1000, 2000, "word"), true},
		"an allowed IPv6 network":                      {udp(own, other, "fd06:0:0:0:300::1", "fd05::c", 1000, 2000, "word"), true},
		"an address beside the allowed IPv6 network":   {udp(own, other, "fd06:0:0:0:400::1", "fd05::c", 1000, 2000, "word"), false},
		"another's MAC":                                {udp(other, other, "10.5.0.11", "10.5.0.12", 1000, 2000, "word"), false},
		"another's IPv4 address":                       {udp(own, other, "10.5.0.1", "10.5.0.12", 1000, 2000, "word"), false},
		"another's IPv6 address":                       {udp(own, other, "fd05::1", "fd05::c", 1000, 2000, "word"), false},
		"another's link-local address":                 {udp(own, other, "fe80::1", "fd05::c", 1000, 2000, "word"), false},
		"an allowed address with the wrong MAC":        {udp(own, other, "10.6.7.8", "10.5.0.12", 1000, 2000, "word"), false},
		"its own address with an allowed MAC":          {udp("fa:16:3e:aa:aa:aa", other, "10.5.0.11", "10.5.0.12", 1000, 2000, "word"), false},
		"no IPv4 address":                              {udp(own, other, "0.0.0.0", "10.5.0.12", 1000, 2000, "word"), false},
		"ARP for itself":                               {arp(own, own, "10.5.0.11"), true},
		"ARP for an allowed address":                   {arp(own, own, "10.5.0.99"), true},
		"an ARP probe":                                 {arp(own, own, "0.0.0.0"), true},
		"ARP for the gateway":                          {arp(own, own, "10.5.0.1"), false},
		"ARP for another":                              {arp(own, own, "10.5.0.12"), false},
		"ARP that names another MAC":                   {arp(own, other, "10.5.0.11"), false},
		"ARP from another MAC":                         {arp(other, own, "10.5.0.11"), false},
		"a neighbour advertisement for itself":         {icmpv6(own, allNodes, "fd05::b", "ff02::1", advertise("fd05::b")), true},
		"a neighbour advertisement for an allowed one": {icmpv6(own, allNodes, "fd05::b", "ff02::1", advertise("fd06::5")), true},
		"a neighbour advertisement for the gateway":    {icmpv6(own, allNodes, "fd05::b", "ff02::1", advertise("fd05::1")), false},
		"a router advertisement":                       {icmpv6(own, allNodes, ownLL, "ff02::1", routerAdvert), false},
		"a redirect":                                   {icmpv6(own, other, ownLL, otherLL, append([]byte{137}, make([]byte, 39)...)), false},
		"a DHCP answer":                                {udp(own, all, "10.5.0.11", "255.255.255.255", 67, 68, "word"), false},
		"a DHCPv6 answer":                              {udp(own, other, ownLL, otherLL, 547, 546, "word"), false},
		"a DHCP question":                              {udp(own, all, "0.0.0.0", "255.255.255.255", 68, 67, "word"), false},
		"a VLAN tag":                                   {tagged(udp(own, other, "10.5.0.11", "10.5.0.12", 1000, 2000, "word")), false},
		"a protocol that is neither IP nor ARP":        {append(append([]byte{}, udp(own, other, "10.5.0.11", "10.5.0.12", 1, 2, "")[:12]...), 0x88, 0xb5, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			kind := c.frame[12:14]
			heard := v.hears(func(frame []byte) bool {
				// The same packet; its tag may have moved out of the frame.
				return bytes.Contains(frame, c.frame[14:]) && (bytes.Equal(frame[12:14], kind) || kind[0] == 0x81)
			}, silence/3, func() { e.send(c.frame) })
			if heard != c.passes {
				t.Errorf("passed is %v, want %v", heard, c.passes)
			}
		})
	}
	// Without port security its own filter lets all of it pass. What still does
	// not arrive, the host answers or the victim's filter refuses.
	refused := map[string]bool{
		"a DHCP question":                       true,
		"a redirect":                            true, // it is about no connection
		"a protocol that is neither IP nor ARP": true, // no rule lets it in
	}
	evil.PortSecurity = false
	must(m.EnsureAttachment(ctx, evil))(t)
	for name, c := range cases {
		heard := func(frame []byte) bool { return len(frame) > 14 && bytes.Contains(c.frame, frame[14:]) }
		if !refused[name] && !v.hears(heard, time.Second, func() { e.send(c.frame) }) {
			t.Errorf("without port security, %s did not pass", name)
		}
	}
}

// TestFragmentsHideNothing: what a fragment is part of is known when it is
// judged.
func TestFragmentsHideNothing(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	out, in := outgoing(), outgoing(network.FilterRule{Ingress: true, Protocol: 17, PortMin: 2000, PortMax: 2000})
	ok(t, m.EnsureFilter(ctx, out))
	ok(t, m.EnsureFilter(ctx, in))
	ok(t, m.EnsureSegment(ctx, n.segment))
	a, b := n.port(out.ID), n.port(in.ID)
	ga, gb := m.plug(a), m.plug(b, static(b)...)
	whole := udp(a.MAC, b.MAC, "10.5.0.11", "10.5.0.12", 1000, 2000, string(bytes.Repeat([]byte("x"), 2000)))
	forbidden := udp(a.MAC, b.MAC, "10.5.0.11", "10.5.0.12", 1000, 2001, string(bytes.Repeat([]byte("y"), 2000)))
	pieces := func(frame []byte, id byte) [][]byte {
		const cut = 1400
		head := append(bytes.Clone(frame[:34]), frame[34:34+cut]...)
		tail := append(bytes.Clone(frame[:34]), frame[34+cut:]...)
		for i, piece := range [][]byte{head, tail} {
			binary.BigEndian.PutUint16(piece[16:], uint16(len(piece)-14))
			piece[18] = id
			binary.BigEndian.PutUint16(piece[20:], []uint16{0x2000, cut / 8}[i])
			piece[24], piece[25] = 0, 0
			binary.BigEndian.PutUint16(piece[24:], checksum(piece[14:34], 0))
		}
		return [][]byte{head, tail}
	}
	send := func(frames [][]byte) func() {
		return func() {
			for _, frame := range frames {
				ga.send(frame)
			}
		}
	}
	if !gb.hears(func(frame []byte) bool { return bytes.Contains(frame, []byte("xxxxxxxx")) }, time.Second, send(pieces(whole, 1))) {
		t.Error("fragments of an allowed packet did not pass")
	}
	if gb.hears(func(frame []byte) bool { return bytes.Contains(frame, []byte("yyyyyyyy")) }, silence, send(pieces(forbidden, 2))) {
		t.Error("fragments of a forbidden packet passed")
	}
}
