package linuxnet

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/core/network"
)

// TestTwoHosts connects two machines by their tunnels.
func TestTwoHosts(t *testing.T) {
	ctx := context.Background()
	var hosts []*machine
	var wires []*namespace
	addresses := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	for _, address := range addresses {
		m := newMachine(t, func(o *Options) { o.TunnelAddress = address; o.TunnelPort = 4790; o.Metadata = whoami })
		ns := must(openNamespace(netnsDir + "/" + m.host))(t)
		t.Cleanup(ns.close)
		hosts, wires = append(hosts, m), append(wires, ns)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire"
	ok(t, wires[0].LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire", PeerNamespace: wires[1].fd()}))
	for i, ns := range wires {
		link := must(ns.LinkByName("wire"))(t)
		ok(t, ns.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addresses[i], 24))}))
		ok(t, ns.LinkSetUp(link))
	}

	n := newTenant(4242)
	open := outgoing(rule(true, false), rule(true, true))
	ports := []network.Attachment{n.port(open.ID), n.port(open.ID)}
	var guests []*guest
	for i, m := range hosts {
		segment := n.segment
		for j, port := range ports {
			neighbour := network.Neighbor{MAC: port.MAC}
			for _, fixed := range port.Addresses {
				neighbour.Addresses = append(neighbour.Addresses, fixed.Address)
			}
			if i != j {
				neighbour.Host = addresses[j]
			}
			segment.Neighbors = append(segment.Neighbors, neighbour)
		}
		ok(t, m.EnsureFilter(ctx, open))
		ok(t, m.EnsureSegment(ctx, segment))
		guests = append(guests, m.plug(ports[i], static(ports[i])...))
		echo(t, guests[i].namespace, 80)
	}
	a, b := guests[0], guests[1]
	question := []byte{0, 1, 8, 0, 6, 4, 0, 1} // ARP, request
	if b.hears(func(frame []byte) bool { return len(frame) > 22 && bytes.Equal(frame[14:22], question) }, silence, func() {
		if have := reaches(a.namespace, "10.5.0.12:80"); have != "10.5.0.11" {
			t.Errorf("over the tunnel: taken for %q", have)
		}
	}) {
		t.Error("a question for a known neighbour's address crossed the tunnel")
	}
	if have := reaches(b.namespace, "[fd05::b]:80"); have != "fd05::c" {
		t.Errorf("over the tunnel by IPv6: taken for %q", have)
	}
	// Each guest is answered by its own host.
	for i, g := range guests {
		g.routeVia("10.5.0.1")
		ok(t, g.NeighSet(neighbour(g, "10.5.0.1", "fa:16:3e:00:00:01")))
		if have := g.get("http://169.254.169.254/"); have != "200 "+ports[i].ID.String() {
			t.Errorf("metadata on host %d: %s", i, have)
		}
	}
	// What nobody knows of is flooded to the other hosts of the network.
	broadcast := udp(ports[0].MAC, "ff:ff:ff:ff:ff:ff", "10.5.0.11", "255.255.255.255", 1000, 2000, "to everybody")
	if !b.hears(func(frame []byte) bool { return bytes.Contains(frame, []byte("to everybody")) }, time.Second, func() { a.send(broadcast) }) {
		t.Error("a broadcast did not cross the tunnel")
	}

	// Whoever else reaches the tunnel's port is not believed.
	forged := append([]byte{8, 0, 0, 0, 0, 4242 >> 8, 4242 & 0xff, 0}, udp(ports[1].MAC, "ff:ff:ff:ff:ff:ff", "10.5.0.12", "255.255.255.255", 1000, 2000, "out of the blue")...)
	ok(t, wires[1].AddrReplace(must(wires[1].LinkByName("wire"))(t), &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.0.2.9/24"))}))
	for from, believed := range map[string]bool{"192.0.2.9": false, "192.0.2.2": true} {
		send := func() {
			ok(t, wires[1].do(func() error {
				conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP("192.0.2.1"), Port: 4790})
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.Write(forged)
				return err
			}))
		}
		if heard := a.hears(func(frame []byte) bool { return bytes.Contains(frame, []byte("out of the blue")) }, silence, send); heard != believed {
			t.Errorf("a packet from %s was believed: %v", from, heard)
		}
	}
	readable(t, renderTunnel("t", 4790, append(addresses, netip.MustParseAddr("2001:db8::1"))))

	// A new process knows the hosts of all networks before it guards the tunnels.
	hosts[0].restart()
	another := newTenant(4243)
	ok(t, hosts[0].EnsureSegment(ctx, another.segment))
	if have := reaches(b.namespace, "10.5.0.11:80"); have != "10.5.0.12" {
		t.Errorf("with a new driver: taken for %q", have)
	}

	// A neighbour that has gone is forgotten.
	ok(t, hosts[0].EnsureSegment(ctx, n.segment))
	ns := must(openNamespace(netnsDir + "/" + hosts[0].options.Prefix + "-s-" + n.segment.ID.String()))(t)
	defer ns.close()
	if out, err := runIn(ns, "bridge", "fdb", "show", "dev", vxlanName); err != nil || strings.Contains(out, "192.0.2.2") || strings.Contains(out, "fa:16:3e") {
		t.Errorf("%v, still programmed:\n%s", err, out)
	}
	if asks(a.namespace, "10.5.0.12:80") != "" {
		t.Error("reached a neighbour that is no more")
	}
}

// TestANeighbourOfAnotherFamily: a host that has an IPv6 address among those that have IPv4 ones is not reached, and hinders nothing.
func TestANeighbourOfAnotherFamily(t *testing.T) {
	var said bytes.Buffer
	m := newMachine(t, func(o *Options) {
		o.TunnelAddress = netip.MustParseAddr("192.0.2.1")
		o.Log = slog.New(slog.NewTextHandler(&said, nil))
	})
	n := newTenant(4250)
	strange, away := n.port(), n.port()
	segment := n.segment
	for port, at := range map[*network.Attachment]string{&strange: "2001:db8::9", &away: "192.0.2.2"} {
		neighbour := network.Neighbor{MAC: port.MAC, Host: netip.MustParseAddr(at)}
		for _, fixed := range port.Addresses {
			neighbour.Addresses = append(neighbour.Addresses, fixed.Address)
		}
		segment.Neighbors = append(segment.Neighbors, neighbour)
	}
	look := func() (entries, neighbours string) {
		t.Helper()
		ns := must(openNamespace(netnsDir + "/" + m.options.Prefix + "-s-" + n.segment.ID.String()))(t)
		defer ns.close()
		return must(runIn(ns, "bridge", "fdb", "show", "dev", vxlanName))(t), must(runIn(ns, "ip", "neigh", "show", "nud", "permanent"))(t)
	}
	for range 2 {
		ok(t, m.EnsureSegment(t.Context(), segment))
		entries, neighbours := look()
		if !strings.Contains(entries, "dst 192.0.2.2") || strings.Contains(entries, "2001:db8::9") {
			t.Errorf("tunnel entries:\n%s", entries)
		}
		if !strings.Contains(neighbours, away.Addresses[0].Address.String()) {
			t.Errorf("neighbours:\n%s", neighbours)
		}
	}
	if n := strings.Count(said.String(), "2001:db8::9"); n != 1 {
		t.Errorf("it was told of %d times:\n%s", n, said.String())
	}

	// Given an IPv6 address, the host reaches the one and not the other.
	m.options.TunnelAddress = netip.MustParseAddr("2001:db8::1")
	m.restart()
	ok(t, m.EnsureSegment(t.Context(), segment))
	if entries, _ := look(); strings.Contains(entries, "192.0.2.2") || !strings.Contains(entries, "dst 2001:db8::9") {
		t.Errorf("tunnel entries with another address:\n%s", entries)
	}
	// Without one networks end here.
	m.options.TunnelAddress = netip.Addr{}
	m.restart()
	ok(t, m.EnsureSegment(t.Context(), segment))
	ns := must(openNamespace(netnsDir + "/" + m.options.Prefix + "-s-" + n.segment.ID.String()))(t)
	defer ns.close()
	if _, err := ns.LinkByName(vxlanName); err == nil {
		t.Error("the tunnel is there though the host has no address")
	}
}
