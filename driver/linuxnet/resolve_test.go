package linuxnet

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/core/network"
)

// sought counts the neighbours in a router that it was not told of.
func sought(t *testing.T, m *machine, gateway network.Gateway) int {
	t.Helper()
	ns := must(openNamespace(netnsDir + "/" + m.options.Prefix + "-g-" + gateway.ID.String()))(t)
	defer ns.close()
	n := 0
	for _, found := range must(dump(func() ([]netlink.Neigh, error) { return ns.NeighList(0, netlink.FAMILY_ALL) }))(t) {
		if found.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 {
			n++
		}
	}
	return n
}

// TestScan: a guest that tries every address of a large network leaves the host's neighbours, which all
// tenants share, as they were, and who is there is found without asking.
func TestScan(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	first, other, stranger := newTenant(100), second(101), newTenant(102)
	other.segment.Subnets[0].CIDR = netip.MustParsePrefix("10.6.0.0/16")
	open := outgoing(rule(true, false), rule(true, true))
	ok(t, m.EnsureFilter(ctx, open))
	for _, n := range []*tenant{first, other, stranger} {
		ok(t, m.EnsureSegment(ctx, n.segment))
	}
	pa, pb := first.port(open.ID), move(other.port(open.ID))
	pb.AllowedPairs = []network.AddressPair{{Address: netip.MustParsePrefix("10.6.0.99/32")}}
	a, b := m.plug(pa, static(pa)...), m.plug(pb, "10.6.0.11/16", "10.6.0.99/16", "10.6.9.9/16", "fd06::b/64")
	a.routeVia("10.5.0.1")
	a.routeVia("fd05::1")
	b.routeVia("10.6.0.1")
	b.routeVia("fd06::1")
	echo(t, b.namespace, 80)
	gateway := network.Gateway{ID: newID(), AdminUp: true, Interfaces: []network.GatewayInterface{
		{PortID: newID(), NetworkID: first.segment.ID, MAC: "fa:16:3e:21:00:01", AdminUp: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24"), netip.MustParsePrefix("fd05::1/64")}},
		{PortID: newID(), NetworkID: other.segment.ID, MAC: "fa:16:3e:21:00:02", AdminUp: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.6.0.1/16"), netip.MustParsePrefix("fd06::1/64")}},
	}}
	ok(t, m.EnsureGateway(ctx, gateway))
	scan := func() {
		t.Helper()
		for n := range 1500 {
			v4 := netip.AddrFrom4([4]byte{10, 6, byte(1 + n/250), byte(1 + n%250)})
			a.send(udp(pa.MAC, gateway.Interfaces[0].MAC, "10.5.0.11", v4.String(), 1000, 2000, "word"))
			v6 := netip.MustParseAddr("fd06::1:0").As16()
			v6[14], v6[15] = byte(n>>8), byte(n)
			a.send(udp(pa.MAC, gateway.Interfaces[0].MAC, "fd05::b", netip.AddrFrom16(v6).String(), 1000, 2000, "word"))
		}
		time.Sleep(silence)
	}
	reached := func(address, want string) {
		t.Helper()
		if have := reaches(a.namespace, address); have != want {
			t.Errorf("to %s: taken for %q, want %q", address, have, want)
		}
	}

	scan()
	if n := sought(t, m, gateway); n > 4 {
		t.Errorf("the router looks for %d neighbours in networks of which it knows everything", n)
	}
	reached("10.6.0.11:80", "10.5.0.11")
	reached("[fd06::b]:80", "fd05::b")
	reached("10.6.0.99:80", "10.5.0.11") // an allowed address is looked for
	if asks(a.namespace, "10.6.9.9:80") != "" {
		t.Error("reached by an address that is not allowed")
	}

	// Behind a port that may use any address some are unknown; it is looked for a few at a time.
	pb.AllowedPairs = append(pb.AllowedPairs, network.AddressPair{Address: netip.MustParsePrefix("10.6.9.0/24")})
	must(m.EnsureAttachment(ctx, pb))(t)
	reached("10.6.9.9:80", "10.5.0.11")
	scan()
	if n := sought(t, m, gateway); n > 2*m.strangers(false)+8 {
		t.Errorf("the router looks for %d neighbours at a time", n)
	}
	reached("10.6.0.11:80", "10.5.0.11")

	// Nor does it note down everybody who asks for it.
	pb.PortSecurity, pb.Groups, pb.AllowedPairs = false, nil, nil
	must(m.EnsureAttachment(ctx, pb))(t)
	for n := range 1500 {
		frame := arp(pb.MAC, pb.MAC, netip.AddrFrom4([4]byte{10, 6, byte(30 + n/250), byte(1 + n%250)}).String())
		copy(frame[38:], []byte{10, 6, 0, 1}) // who has the router's address
		b.send(frame)
	}
	time.Sleep(silence)
	if n := sought(t, m, gateway); n > 4*m.strangers(false) {
		t.Errorf("the router noted down %d that asked for it", n)
	}
	reached("10.6.0.11:80", "10.5.0.11")

	// Others never noticed.
	px, py := stranger.port(open.ID), stranger.port(open.ID)
	x, _ := m.plug(px, static(px)...), m.plug(py, static(py)...)
	if !x.pings("10.5.0.12") || !x.pings("fd05::c") {
		t.Error("another tenant's guests do not find each other")
	}

	// A router that was down knows everything again, and one that comes back too.
	gateway.Interfaces[1].AdminUp = false
	ok(t, m.EnsureGateway(ctx, gateway))
	gateway.Interfaces[1].AdminUp = true
	ok(t, m.EnsureGateway(ctx, gateway))
	reached("10.6.0.11:80", "10.5.0.11")
	ok(t, m.Remove(ctx, network.Thing{Kind: gatewayKind, ID: gateway.ID}))
	ok(t, m.EnsureGateway(ctx, gateway))
	reached("10.6.0.11:80", "10.5.0.11")
}
