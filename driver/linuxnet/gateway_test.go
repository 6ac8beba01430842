package linuxnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// An internet is a machine with an external network, an uplink, and a server
// beyond it.
type internet struct {
	*machine
	hostNS, beyond *namespace
	external       network.Segment
	externalSubnet network.SegmentSubnet
}

const worldServer = "198.51.100.1"

func newInternet(t *testing.T, change ...func(*Options)) *internet {
	t.Helper()
	m := newMachine(t, append([]func(*Options){func(o *Options) {
		o.Physical = map[string]Physical{"public": {
			HostAddresses: []netip.Prefix{netip.MustParsePrefix("172.24.4.1/24")}, Masquerade: true, OpenTCP: []int{8700},
		}}
	}}, change...)...)
	i := &internet{machine: m}
	i.hostNS = must(openNamespace(netnsDir + "/" + m.host))(t)
	name := "x" + m.options.Prefix + "-beyond"
	var err error
	if i.beyond, _, err = makeNamespace(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.hostNS.close()
		i.beyond.close()
		if err := removeNamespace(name); err != nil {
			t.Error(err)
		}
	})
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "uplink", 1400 // smaller than the networks': TCP has to find out
	ok(t, i.hostNS.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wan", PeerNamespace: i.beyond.fd()}))
	for _, end := range []struct {
		ns            *namespace
		name, address string
	}{{i.hostNS, "uplink", "198.51.100.9/24"}, {i.beyond, "wan", worldServer + "/24"}, {i.hostNS, "lo", "127.0.0.1/8"}, {i.beyond, "lo", "127.0.0.1/8"}} {
		link := must(end.ns.LinkByName(end.name))(t)
		ok(t, end.ns.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(end.address))}))
		ok(t, end.ns.LinkSetUp(link))
	}
	echo(t, i.beyond, 80)
	i.externalSubnet = network.SegmentSubnet{ID: newID(), CIDR: netip.MustParsePrefix("172.24.4.0/24"), Gateway: netip.MustParseAddr("172.24.4.1")}
	i.external = network.Segment{ID: newID(), MTU: 1500, Physical: "public", Subnets: []network.SegmentSubnet{i.externalSubnet}}
	ok(t, m.EnsureSegment(context.Background(), i.external))
	return i
}

// router makes a router with a leg in the external network.
func (i *internet) router(address, mac string, tenants ...*tenant) network.Gateway {
	g := network.Gateway{
		ID: newID(), AdminUp: true,
		External: &network.GatewayExternal{
			PortID: newID(), NetworkID: i.external.ID, MAC: mac, SNAT: true,
			Addresses: []netip.Prefix{netip.MustParsePrefix(address)}, NextHops: []netip.Addr{netip.MustParseAddr("172.24.4.1")},
		},
	}
	for number, n := range tenants {
		leg := network.GatewayInterface{PortID: newID(), NetworkID: n.segment.ID, AdminUp: true}
		for _, subnet := range n.segment.Subnets {
			leg.Addresses = append(leg.Addresses, netip.PrefixFrom(subnet.Gateway, subnet.CIDR.Bits()))
		}
		leg.MAC = fmt.Sprintf("%s:%02x", mac[:14], 0xf0+number)
		g.Interfaces = append(g.Interfaces, leg)
	}
	return g
}

// second is a tenant's network with other addresses than newTenant's.
func second(vni int) *tenant {
	n := newTenant(vni)
	n.segment.Subnets[0].CIDR, n.segment.Subnets[0].Gateway = netip.MustParsePrefix("10.6.0.0/24"), netip.MustParseAddr("10.6.0.1")
	n.segment.Subnets[1].CIDR, n.segment.Subnets[1].Gateway = netip.MustParsePrefix("fd06::/64"), netip.MustParseAddr("fd06::1")
	return n
}

// move gives a port of newTenant's numbering an address in the second's subnets.
func move(port network.Attachment) network.Attachment {
	for i := range port.Addresses {
		text := port.Addresses[i].Address.String()
		text = strings.Replace(strings.Replace(text, "10.5.", "10.6.", 1), "fd05:", "fd06:", 1)
		port.Addresses[i].Address = netip.MustParseAddr(text)
	}
	port.MAC = strings.Replace(port.MAC, "fa:16:3e:00:00", "fa:16:3e:00:66", 1)
	return port
}

func floating(external, fixed string) network.Floating {
	return network.Floating{ID: newID(), External: netip.MustParseAddr(external), Fixed: netip.MustParseAddr(fixed)}
}

func TestRouter(t *testing.T) {
	i := newInternet(t)
	ctx := context.Background()
	first, other := newTenant(100), second(101)
	open := outgoing(rule(true, false), rule(true, true))
	ok(t, i.EnsureFilter(ctx, open))
	ok(t, i.EnsureSegment(ctx, first.segment))
	ok(t, i.EnsureSegment(ctx, other.segment))
	pa, pc, pb := first.port(open.ID), first.port(open.ID), move(other.port(open.ID))
	a, c, b := i.plug(pa, static(pa)...), i.plug(pc, static(pc)...), i.plug(pb, static(pb)...)
	for _, g := range []*guest{a, c} {
		g.routeVia("10.5.0.1")
		g.routeVia("fd05::1")
	}
	b.routeVia("10.6.0.1")
	b.routeVia("fd06::1")
	for _, g := range []*guest{a, b, c} {
		echo(t, g.namespace, 80)
	}
	gateway := i.router("172.24.4.10/24", "fa:16:3e:11:00:01", first, other)
	gateway.Floating = []network.Floating{floating("172.24.4.20", "10.5.0.11")}
	forwarded := floating("172.24.4.21", "0.0.0.0")
	forwarded.Forwards = []network.PortForward{{Protocol: 6, ExternalPort: 8080, Fixed: netip.MustParseAddr("10.6.0.11"), FixedPort: 80}}
	gateway.Floating = append(gateway.Floating, forwarded)
	ok(t, i.EnsureGateway(ctx, gateway))

	expect := func(what string, ns *namespace, address, want string) {
		t.Helper()
		have := asks(ns, address)
		if want != "" && have == "" {
			have = reaches(ns, address)
		}
		if have != want {
			t.Errorf("%s: taken for %q, want %q", what, have, want)
		}
	}
	expect("between networks", a.namespace, "10.6.0.11:80", "10.5.0.11")
	expect("between networks over IPv6", a.namespace, "[fd06::b]:80", "fd05::b")
	expect("out from a floating address", a.namespace, "172.24.4.1:8700", "")
	expect("to the world, under the machine's address", c.namespace, worldServer+":80", "198.51.100.9")
	expect("to a floating address", i.hostNS, "172.24.4.20:80", "172.24.4.1")
	expect("to a forwarded port", i.hostNS, "172.24.4.21:8080", "172.24.4.1")
	expect("to another port of that address", i.hostNS, "172.24.4.21:80", "")
	expect("to a floating address from another network", b.namespace, "172.24.4.20:80", "172.24.4.10")
	expect("to a floating address from the same network", c.namespace, "172.24.4.20:80", "172.24.4.10")
	expect("to its own floating address", a.namespace, "172.24.4.20:80", "172.24.4.20")
	expect("to a forwarded port from inside", a.namespace, "172.24.4.21:8080", "172.24.4.20")
	echo(t, i.hostNS, 8700)
	echo(t, i.hostNS, 22)
	expect("to an open port of the machine, from a floating address", a.namespace, "172.24.4.1:8700", "172.24.4.20")
	expect("to an open port of the machine, by SNAT", c.namespace, "172.24.4.1:8700", "172.24.4.10")
	expect("to a closed port of the machine", a.namespace, "172.24.4.1:22", "")
	expect("to a closed port of the machine by its other address", a.namespace, "198.51.100.9:22", "")
	leg := must(net.ParseMAC(gateway.Interfaces[0].MAC))(t)
	if !a.pings(linkLocal(leg).String() + "%eth0") {
		t.Error("the router does not have the link-local address that advertisements come from")
	}
	if !a.pings("10.5.0.1") || !a.pings("fd05::1") || !a.pings("172.24.4.1") {
		t.Error("the gateways do not answer ping")
	}

	// A neighbour outside that routes to private addresses reaches nobody.
	link := must(i.hostNS.LinkByName(i.physicalBridge("public")))(t)
	ok(t, i.hostNS.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("10.5.0.0/24")), Gw: netip.MustParseAddr("172.24.4.10").AsSlice()}))
	expect("to a private address from outside", i.hostNS, "10.5.0.11:80", "")

	// What runs goes on when the wish is repeated, the driver dies and comes back.
	inward, outward := connect(i.hostNS, "172.24.4.20:80"), c.connect(worldServer+":80")
	if inward == nil || outward == nil {
		t.Fatal("not connected")
	}
	lineFrom(inward)
	lineFrom(outward)
	runs := func(when string) {
		t.Helper()
		if !echoes(inward) {
			t.Errorf("%s: the connection to the floating address broke", when)
		}
		if !echoes(outward) {
			t.Errorf("%s: the connection to the world broke", when)
		}
	}
	ok(t, i.EnsureGateway(ctx, gateway))
	runs("wish repeated")
	ok(t, i.Close())
	runs("without the driver")
	expect("a new connection without the driver", c.namespace, worldServer+":80", "198.51.100.9")
	i.open()
	ok(t, i.EnsureGateway(ctx, gateway))
	ok(t, i.EnsureSegment(ctx, i.external))
	ok(t, i.EnsureSegment(ctx, first.segment))
	runs("with a new driver")
	gateway.Floating = append(gateway.Floating, floating("172.24.4.22", "10.5.0.12"))
	ok(t, i.EnsureGateway(ctx, gateway))
	runs("with one more floating address")
	expect("to the world, from the new floating address", c.namespace, "172.24.4.1:8700", "172.24.4.22")

	// A floating address that was taken away cuts what ran over it.
	gateway.Floating = gateway.Floating[1:]
	ok(t, i.EnsureGateway(ctx, gateway))
	if echoes(inward) {
		t.Error("a connection outlived its floating address")
	}
	if !echoes(outward) {
		t.Error("another connection broke")
	}
	expect("to a floating address that is no more", i.hostNS, "172.24.4.20:80", "")

	gateway.External.SNAT = false
	gateway.Floating = nil
	ok(t, i.EnsureGateway(ctx, gateway))
	expect("without SNAT", a.namespace, "172.24.4.1:8700", "10.5.0.11")

	gateway.AdminUp = false
	ok(t, i.EnsureGateway(ctx, gateway))
	expect("through a router that is down", a.namespace, "10.6.0.11:80", "")
	gateway.AdminUp = true
	ok(t, i.EnsureGateway(ctx, gateway))
	expect("through a router that is up again", a.namespace, "10.6.0.11:80", "10.5.0.11")
	expect("through a router that is up again by IPv6", a.namespace, "[fd06::b]:80", "fd05::b")
	expect("out through a router that is up again", a.namespace, "172.24.4.1:8700", "10.5.0.11")
}

// TestFloatingAddressMoves: the network hears at once where an address is now.
func TestFloatingAddressMoves(t *testing.T) {
	i := newInternet(t)
	ctx := context.Background()
	first, other := newTenant(100), newTenant(101) // the same addresses: tenants do not know of each other
	open := outgoing(rule(true, false))
	ok(t, i.EnsureFilter(ctx, open))
	var guests []*guest
	var gateways []network.Gateway
	for number, n := range []*tenant{first, other} {
		ok(t, i.EnsureSegment(ctx, n.segment))
		port := n.port(open.ID)
		g := i.plug(port, static(port)...)
		g.routeVia("10.5.0.1")
		echo(t, g.namespace, 81+number)
		guests = append(guests, g)
		gateway := i.router(fmt.Sprintf("172.24.4.1%d/24", number), fmt.Sprintf("fa:16:3e:12:00:%02x", 1+number), n)
		ok(t, i.EnsureGateway(ctx, gateway))
		gateways = append(gateways, gateway)
	}
	for round := range 4 {
		at := round % 2
		gateways[1-at].Floating = nil
		gateways[at].Floating = []network.Floating{floating("172.24.4.30", "10.5.0.11")}
		ok(t, i.EnsureGateway(ctx, gateways[1-at]))
		ok(t, i.EnsureGateway(ctx, gateways[at]))
		for number := range guests {
			address := fmt.Sprintf("172.24.4.30:%d", 81+number)
			reached := asks(i.hostNS, address) != ""
			if number == at && !reached {
				reached = reaches(i.hostNS, address) != ""
			}
			if reached != (number == at) {
				t.Errorf("round %d: guest %d reached is %v", round, number, reached)
			}
		}
	}
	// One tenant's guest reaches the other's by the floating address alone.
	if reaches(guests[0].namespace, "172.24.4.30:82") != "172.24.4.10" {
		t.Error("not reached by the floating address")
	}
}

// TestExternalPort: a guest can be in the external network itself.
func TestExternalPort(t *testing.T) {
	i := newInternet(t)
	ctx := context.Background()
	open := outgoing(rule(true, false))
	ok(t, i.EnsureFilter(ctx, open))
	port := network.Attachment{
		ID: newID(), NetworkID: i.external.ID, MAC: "fa:16:3e:33:00:05", PortSecurity: true, AdminUp: true, Groups: []resource.ID{open.ID},
		Addresses: []network.FixedAddress{{SubnetID: i.externalSubnet.ID, Address: netip.MustParseAddr("172.24.4.50")}},
	}
	g := i.plug(port, "172.24.4.50/24")
	g.routeVia("172.24.4.1")
	echo(t, g.namespace, 80)
	if have := reaches(i.hostNS, "172.24.4.50:80"); have != "172.24.4.1" {
		t.Errorf("taken for %q", have)
	}
	if have := reaches(g.namespace, worldServer+":80"); have != "198.51.100.9" {
		t.Errorf("the world took it for %q", have)
	}
}

// What an operator plugged into a bridge stays, whoever made the bridge: the next guest that comes to this host is to reach what it leads to.
func TestABridgeThatLeadsAwayStays(t *testing.T) {
	i := newInternet(t)
	ctx := context.Background()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "cable"
	ok(t, i.hostNS.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far", PeerNamespace: i.beyond.fd()}))
	cable := must(i.hostNS.LinkByName("cable"))(t)
	ok(t, i.hostNS.LinkSetMaster(cable, must(i.hostNS.LinkByName(i.physicalBridge("public")))(t)))
	thing := network.Thing{Kind: segmentKind, ID: i.external.ID}
	ok(t, i.Remove(ctx, thing))
	if link := must(i.hostNS.LinkByName("cable"))(t); link.Attrs().MasterIndex == 0 {
		t.Error("the cable was pulled out")
	}
	carrier := func(when string, want bool) {
		t.Helper()
		if uplinks := must(i.Uplinks())(t); len(uplinks) != 1 || uplinks["public"] != want {
			t.Errorf("%s there is %v", when, uplinks)
		}
	}
	carrier("before it is up", false)
	far := must(i.beyond.LinkByName("far"))(t)
	ok(t, i.hostNS.LinkSetUp(cable))
	carrier("with the far end down", false)
	ok(t, i.beyond.LinkSetUp(far))
	carrier("with both ends up", true)
	attrs.Name = "second"
	ok(t, i.hostNS.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "further", PeerNamespace: i.beyond.fd()}))
	ok(t, i.beyond.LinkSetUp(must(i.beyond.LinkByName("further"))(t)))
	second := must(i.hostNS.LinkByName("second"))(t)
	ok(t, i.hostNS.LinkSetMaster(second, must(i.hostNS.LinkByName(i.physicalBridge("public")))(t)))
	carrier("with a second one that is down", true)
	ok(t, i.beyond.LinkSetDown(far))
	carrier("when it is pulled", false)
	ok(t, i.hostNS.LinkSetUp(second))
	carrier("with the second one up", true)
	ok(t, i.hostNS.LinkDel(second))
	ok(t, i.hostNS.LinkSetNoMaster(cable))
	ok(t, i.EnsureSegment(ctx, i.external))
	ok(t, i.Remove(ctx, thing))
	if link, err := i.hostNS.LinkByName(i.physicalBridge("public")); err == nil {
		t.Errorf("%s is left", link.Attrs().Name)
	}
}
