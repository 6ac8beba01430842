package linuxnet

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// TestNetworkAcrossHosts: guests of one network on two hosts are as if they were beside each other, and nobody
// else hears of it.
func TestNetworkAcrossHosts(t *testing.T) {
	for name, shape := range map[string]clusterShape{
		"over IPv4": usualShape, "over IPv6": {hosts: 2, mtu: 1500, first: netip.MustParseAddr("2001:db8::1")},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, shape)
			n := c.tenant(10, 0)
			pa, pb := c.server(c.ours, n, c.hosts[0]), c.server(c.ours, n, c.hosts[1])
			// Another tenant has the same addresses on the same hosts.
			their := newID()
			theirs := identity.As(t.Context(), &identity.Actor{UserID: their, ProjectID: their, Roles: []string{"member", "reader"}})
			other := c.network(theirs, network.Network{Meta: resource.Meta{ProjectID: their}, AdminUp: true, Secured: true})
			c.subnet(theirs, other, "10.10.0.0/24")
			c.subnet(theirs, other, "fd10::/64")
			px, py := c.server(theirs, other, c.hosts[0]), c.server(theirs, other, c.hosts[1])
			c.sync()
			a, b, x, y := c.boot(pa), c.boot(pb), c.boot(px), c.boot(py)
			if of(pb, false) != of(py, false) {
				t.Fatalf("%s and %s: the tenants should have the same addresses", of(pb, false), of(py, false))
			}

			// Both are in their project's own group, which lets its members in: also those on another host.
			asked := c.overWire(func(f []byte) bool { return isQuestion(f) && f[0]&1 != 0 }, func() {
				for _, v6 := range []bool{false, true} {
					if !a.pings(of(pb, v6)) || !b.pings(of(pa, v6)) {
						t.Errorf("no ping between hosts (IPv6: %v)", v6)
					}
					c.expect("between hosts", a.namespace, at(of(pb, v6), 80), of(pa, v6))
					c.expect("between hosts, the other way", b.namespace, at(of(pa, v6), 80), of(pb, v6))
					c.expect("another tenant with the same addresses", x.namespace, at(of(py, v6), 80), of(px, v6))
				}
			})
			if asked > 0 {
				t.Errorf("%d questions for known neighbours' addresses crossed the wire", asked)
			}
			// What fits the network fits the tunnel.
			n, _ = network.Networks().Find(c.st.Latest(), n.ID)
			if out, err := a.run("ping", "-n", "-c1", "-W1", "-M", "do", "-s", fmt.Sprint(n.MTU-28), of(pb, false)); err != nil || n.MTU < 1430 {
				t.Errorf("the largest packet of a network of %d:\n%s", n.MTU, out)
			}
			if !sends(t, a, at(of(pb, true), 80), 1<<20) {
				t.Error("1 MiB did not arrive")
			}
			// What was for one was never seen by the other.
			word := []byte("for nobody else")
			if y.hears(func(f []byte) bool { return bytes.Contains(f, word) }, silence, func() {
				for range 3 {
					a.send(udp(pa.MAC, "ff:ff:ff:ff:ff:ff", of(pa, false), "255.255.255.255", 1000, 2000, string(word)))
				}
			}) {
				t.Error("a broadcast reached another tenant")
			}
			flooded := c.overWire(func(f []byte) bool { return bytes.Contains(f, word) }, func() {
				a.send(udp(pa.MAC, "fa:16:3e:99:99:99", of(pa, false), of(pb, false), 1000, 2000, string(word)))
			})
			if flooded > 0 {
				t.Error("a frame for an address that nobody has crossed the wire")
			}
			// Nobody speaks for another, whichever host that is on.
			forged := c.overWire(func(f []byte) bool { return bytes.Contains(f, []byte("forged")) }, func() {
				a.send(udp(pa.MAC, pb.MAC, "10.10.0.77", of(pb, false), 1000, 2000, "forged"))
				a.send(udp(pb.MAC, pb.MAC, of(pa, false), of(pb, false), 1000, 2000, "forged"))
				a.send(udp(pa.MAC, pb.MAC, "fd10::77", of(pb, true), 1000, 2000, "forged"))
			})
			if forged > 0 {
				t.Errorf("%d forged packets left the host", forged)
			}

			// A port that leaves the group is let in nowhere from then on, a connection that is there ends.
			talk := a.connect(at(of(pb, false), 80))
			if talk == nil || lineFrom(talk) == "" || !echoes(talk) {
				t.Fatal("no connection")
			}
			defer talk.Close()
			lonely := must(c.net.Groups.Create(c.ours, &network.Group{Meta: resource.Meta{ProjectID: c.our, Name: "lonely"}, Stateful: true}))(t)[0]
			_, err := c.net.Ports.Update(c.ours, pa.ID, 0, func(p *network.Port) error { p.Groups = []resource.ID{lonely.ID}; return nil })
			ok(t, err)
			c.sync()
			if echoes(talk) {
				t.Error("a connection outlived the membership that let it in")
			}
			c.expect("from outside the group", a.namespace, at(of(pb, false), 80), "")
			c.expect("from outside the group over IPv6", a.namespace, at(of(pb, true), 80), "")
			c.expect("into a group that lets nobody in", b.namespace, at(of(pa, false), 80), "")

			// A guest on another host gets its hardware address known, and is forgotten when it goes.
			pc := c.server(c.ours, n, c.hosts[0])
			c.sync()
			d := c.boot(pc)
			c.expect("a guest that came later", d.namespace, at(of(pb, false), 80), of(pc, false))
		})
	}
}

// isQuestion reports whether a frame asks who has an address: ARP, or a neighbour solicitation.
func isQuestion(f []byte) bool {
	switch {
	case len(f) >= 22 && f[12] == 8 && f[13] == 6:
		return f[21] == 1 && !bytes.Equal(f[28:32], f[38:42]) // not who says that it has it
	case len(f) > 54 && f[12] == 0x86 && f[13] == 0xdd && f[20] == 58:
		return f[54] == 135
	}
	return false
}

// TestRoutingAcrossHosts: a packet between two networks is routed on the host of who sends it, by the same
// addresses on both.
func TestRoutingAcrossHosts(t *testing.T) {
	c := newCluster(t, clusterShape{hosts: 3, mtu: 1500, first: netip.MustParseAddr("192.0.2.1")})
	first, second := c.tenant(10, 0), c.tenant(20, 1300)
	r := c.router(first, second)
	pa, pb, pd := c.server(c.ours, first, c.hosts[0]), c.server(c.ours, second, c.hosts[1]), c.server(c.ours, second, c.hosts[0])
	c.sync()
	a, b, d := c.boot(pa), c.boot(pb), c.boot(pd)
	home, _ := network.Routers().Find(c.st.Latest(), r.ID)

	asked := c.overWire(func(f []byte) bool { return isQuestion(f) }, func() {
		for _, v6 := range []bool{false, true} {
			c.expect("between networks and hosts", a.namespace, at(of(pb, v6), 80), of(pa, v6))
			c.expect("between networks and hosts, the other way", b.namespace, at(of(pa, v6), 80), of(pb, v6))
		}
	})
	if asked > 0 {
		t.Errorf("%d questions for addresses crossed the wire", asked)
	}
	// On one host nothing crosses the wire at all, but that a kernel says to which groups it listens (MLDv2).

	crossed := c.overWire(func(f []byte) bool { return !bytes.HasPrefix(f, []byte{0x33, 0x33, 0, 0, 0, 0x16}) }, func() {
		c.expect("between networks on one host", a.namespace, at(of(pd, false), 80), of(pa, false))
		c.expect("between networks on one host over IPv6", a.namespace, at(of(pd, true), 80), of(pa, true))
	})
	if crossed > 0 {
		t.Errorf("%d packets crossed the wire between networks on one host", crossed)
	}
	// From host to host each packet crosses once, routed already.
	routed, bare, leg := 0, 0, ""
	c.overWire(func(f []byte) bool {
		if bytes.Contains(f, []byte("routed here")) {
			switch net.HardwareAddr(f[:6]).String() {
			case pb.MAC:
				routed++
			case leg:
				bare++
			}
		}
		return false
	}, func() {
		for p := range network.Ports().All(c.st.Latest()) {
			if p.NetworkID == first.ID && p.Owner == network.OwnerRouter && strings.HasPrefix(of(p, false), "10.") {
				leg = p.MAC
			}
		}
		a.send(udp(pa.MAC, leg, of(pa, false), of(pb, false), 1000, 2000, "routed here"))
	})
	if routed != 1 || bare != 0 {
		t.Errorf("the packet crossed %d times routed and %d times before, want 1 and 0", routed, bare)
	}

	// The gateway is the same on every host.
	var macs []string
	for _, g := range []*guest{b, d} {
		if !g.pings("10.20.0.1") || !g.pings("fd20::1") {
			t.Error("the gateway does not answer")
		}
		out, err := g.run("ip", "neigh", "show", "10.20.0.1")
		ok(t, err)
		macs = append(macs, out)
	}
	if macs[0] != macs[1] {
		t.Errorf("the gateway on two hosts: %q", macs)
	}

	// The second network's packets are smaller: the largest that fits passes, one byte more is answered with how
	// large it may be.
	for _, v6 := range []bool{false, true} {
		headers := 28
		if v6 {
			headers = 48
		}
		ping := func(size int) string {
			out, _ := a.run("ping", "-n", "-c1", "-W1", "-M", "do", "-s", fmt.Sprint(size-headers), of(pb, v6))
			return out
		}
		if out := ping(1300); !strings.Contains(out, "1 received") {
			t.Errorf("the largest packet that fits (IPv6: %v):\n%s", v6, out)
		}
		if out := ping(1301); !strings.Contains(out, "mtu = 1300") && !strings.Contains(out, "mtu=1300") {
			t.Errorf("a packet too large by one byte (IPv6: %v):\n%s", v6, out)
		}
	}
	// A host without guests behind the router has nothing of it, unless it is its home.
	for _, h := range c.hosts {
		present := must(h.Present(t.Context()))(t)
		if h.id == c.hosts[2].id && home.HostID != h.id && len(present) > 0 {
			t.Errorf("a host without guests holds %v", present)
		}
	}
}

// sends reports whether so many bytes arrive over a connection and come back.
func sends(t *testing.T, from *guest, address string, size int) bool {
	t.Helper()
	conn := from.connect(address)
	if conn == nil || lineFrom(conn) == "" {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	var writing sync.WaitGroup
	writing.Go(func() { conn.Write(make([]byte, size)) }) // what does not arrive is missed below
	n, err := io.CopyN(io.Discard, conn, int64(size))
	writing.Wait()
	return err == nil && n == int64(size)
}

// TestLargePackets: what fits a network fits the tunnel, whatever the wire's size is.
func TestLargePackets(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::1")
	for _, shape := range []clusterShape{{mtu: 1400}, {mtu: 1500}, {mtu: 9000}, {mtu: 1400, first: v6}, {mtu: 1570, first: v6}} {
		cost := 70
		if !shape.first.IsValid() {
			shape.first, cost = usualShape.first, 50
		}
		shape.hosts = 2
		t.Run(fmt.Sprint("a wire of ", shape.mtu, " to ", shape.first), func(t *testing.T) {
			c := newCluster(t, shape)
			mtu := shape.mtu - cost
			n := c.tenant(10, 0)
			if n.MTU != min(mtu, 1500) {
				t.Errorf("the network's MTU is %d, want %d", n.MTU, min(mtu, 1500))
			}
			if mtu > 1500 {
				n = c.tenant(20, mtu) // asked for
			}
			pa, pb := c.server(c.ours, n, c.hosts[0]), c.server(c.ours, n, c.hosts[1])
			c.sync()
			a := c.boot(pa)
			c.boot(pb)
			for _, v6 := range []bool{false, true} {
				headers := 28
				if v6 {
					headers = 48
				}
				fragments := c.overWire(isFragment, func() {
					if out, err := a.run("ping", "-n", "-c1", "-W1", "-M", "do", "-s", fmt.Sprint(mtu-headers), of(pb, v6)); err != nil {
						t.Errorf("the largest packet that fits (IPv6: %v):\n%s", v6, out)
					}
					if !sends(t, a, at(of(pb, v6), 80), 4<<20) {
						t.Errorf("4 MiB did not arrive (IPv6: %v)", v6)
					}
				})
				if fragments > 0 {
					t.Errorf("%d fragments", fragments)
				}
			}
		})
	}
}

// isFragment reports whether a frame is a part of an IPv4 packet.
func isFragment(f []byte) bool {
	return len(f) > 34 && f[12] == 8 && f[13] == 0 && (f[20]&0x3f != 0 || f[21] != 0)
}

// TestFloatingAddressFollowsItsPort: it is reached at the port's host, and where that goes it goes.
func TestFloatingAddressFollowsItsPort(t *testing.T) {
	c := newCluster(t, clusterShape{hosts: 3, mtu: 1500, first: netip.MustParseAddr("192.0.2.1"), inland: 1})
	first, second := c.tenant(10, 0), c.tenant(20, 0)
	r := c.router(first, second)
	pa, pb, pd := c.server(c.ours, first, c.hosts[0]), c.server(c.ours, first, c.hosts[1]), c.server(c.ours, second, c.hosts[2])
	c.openToAll()
	floats := map[*network.Port]string{}
	for _, p := range []*network.Port{pa, pb, pd} {
		f := must(c.net.Floating.Create(c.ours, &network.FloatingAddress{Meta: resource.Meta{ProjectID: c.our}, NetworkID: c.external.ID, TargetID: p.ID}))(t)[0]
		floats[p] = f.Address.String()
	}
	pe := c.server(c.ours, first, c.hosts[1])
	c.sync()
	a, b, d, e := c.boot(pa), c.boot(pb), c.boot(pd), c.boot(pe)
	home, _ := network.Routers().Find(c.st.Latest(), r.ID)
	own := c.outsideOf(home, first, second)

	for p, g := range map[*network.Port]*guest{pa: a, pb: b, pd: d} {
		c.expect("from outside to "+floats[p], c.world, at(floats[p], 80), outsideGateway)
		c.expect("to the outside from "+floats[p], g.namespace, at(outsideGateway, 80), floats[p])
	}
	// What a guest with an address of its own does outside never touches another host.
	if n := c.overWire(func(f []byte) bool {
		return len(f) > 34 && (bytes.Equal(f[26:30], netip.MustParseAddr(of(pb, false)).AsSlice()) || bytes.Equal(f[30:34], netip.MustParseAddr(of(pb, false)).AsSlice()))
	}, func() {
		c.expect("again", b.namespace, at(outsideGateway, 80), floats[pb])
		c.expect("again, from outside", c.world, at(floats[pb], 80), outsideGateway)
	}); n > 0 {
		t.Errorf("%d packets of a floating address crossed the wire", n)
	}
	// Within the router's networks nobody takes the way outside.
	c.expect("from one with a floating address to another network", b.namespace, at(of(pd, false), 80), of(pb, false))
	c.expect("over IPv6 by the router's home", b.namespace, at(outsideGatewayV6, 80), of(pb, true))
	// Inside, floating addresses are reached as from outside.
	c.expect("from host to host by floating addresses", a.namespace, at(floats[pb], 80), floats[pa])
	seen := floats[pb]
	if home.HostID == c.hosts[1].id { // where the router has an address of its own for that
		seen = own
	}
	c.expect("to a neighbour's by one that has none", e.namespace, at(floats[pb], 80), seen)
	c.expect("to another host's by one that has none", e.namespace, at(floats[pa], 80), own)
	c.expect("to itself", b.namespace, at(floats[pb], 80), floats[pb])

	// The port is expected on another host: its tap is there, and for everybody, there too, it is where it was.
	hears := c.arpIn(c.world, floats[pb])
	before := c.macOf(c.world, floats[pb])
	c.await(pb, c.hosts[0])
	c.sync()
	moved := c.bootOn(pb, c.hosts[0])
	c.expect("from outside, before the move", c.world, at(floats[pb], 80), outsideGateway)
	c.expect("to the outside, before the move", b.namespace, at(outsideGateway, 80), floats[pb])
	c.expect("from where it is expected", a.namespace, at(of(pb, false), 80), of(pa, false))
	c.expect("from there over IPv6", a.namespace, at(of(pb, true), 80), of(pa, true))
	if after := c.macOf(c.world, floats[pb]); after != before {
		t.Errorf("outside the address was at %q and is at %q, before its port has moved", before, after)
	}
	// It moves, and everybody outside hears of it.
	c.move(pb, c.hosts[0])
	c.sync()
	if !hears() {
		t.Error("nobody said outside that the address has moved")
	}
	c.expect("from outside, after the move", c.world, at(floats[pb], 80), outsideGateway)
	c.expect("to the outside, after the move", moved.namespace, at(outsideGateway, 80), floats[pb])
	if after := c.macOf(c.world, floats[pb]); after == before || after == "" {
		t.Errorf("outside the address was at %q and is at %q", before, after)
	}
	if !moved.pings(of(pe, false)) || !e.pings(of(pb, false)) || !e.pings(of(pb, true)) {
		t.Error("its neighbours lost it")
	}
}

// TestSNATFailsOver: what has no floating address goes out by the router's home, from every host; when that is
// lost, by another.
func TestSNATFailsOver(t *testing.T) {
	c := newCluster(t, clusterShape{hosts: 3, mtu: 1500, first: netip.MustParseAddr("192.0.2.1")})
	n := c.tenant(10, 0)
	r := c.router(n)
	guests := map[int]*guest{}
	ports := map[int]*network.Port{}
	for i, h := range c.hosts {
		ports[i] = c.server(c.ours, n, h)
	}
	c.sync()
	for i := range c.hosts {
		guests[i] = c.boot(ports[i])
	}
	router := func() *network.Router { r, _ := network.Routers().Find(c.st.Latest(), r.ID); return r }
	own := c.outsideOf(router(), n)
	for i, g := range guests {
		c.expect(fmt.Sprint("to the outside from host ", i), g.namespace, at(outsideGateway, 80), own)
		c.expect(fmt.Sprint("to the outside over IPv6 from host ", i), g.namespace, at(outsideGatewayV6, 80), of(ports[i], true))
		if !sends(t, g, at(outsideGateway, 80), 1<<20) {
			t.Errorf("1 MiB from host %d did not arrive", i)
		}
	}

	// What is open when the home is lost: at a guest's own host it passed untranslated so far, on its way to the home.
	open := map[int]net.Conn{}
	for i, g := range guests {
		open[i] = g.connect(at(outsideGateway, 80))
		if open[i] == nil || lineFrom(open[i]) != own {
			t.Fatalf("no connection from host %d", i)
		}
		defer open[i].Close()
	}
	goesOn := func(i int) bool {
		open[i].SetDeadline(time.Now().Add(10 * time.Second))
		_, err := open[i].Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(open[i], make([]byte, 1))
		}
		return err == nil
	}

	// The home is cut off, from the other hosts and from the world.
	home := slices.IndexFunc(c.hosts, func(h *clusterHost) bool { return h.id == router().HostID })
	lost := c.hosts[home]
	for _, wire := range []string{"wire", "uplink"} {
		ok(t, lost.own.LinkSetDown(must(lost.own.LinkByName(wire))(t)))
	}
	var left []*clusterHost
	asker := -1
	for i, h := range c.hosts {
		if i != home {
			left, asker = append(left, h), i
		}
	}
	if guests[asker].pings(outsideGateway) {
		t.Fatal("the home is lost and still passes packets")
	}
	known := time.Now()
	ok(t, host.Lose(identity.Internal(t.Context()), c.st, lost.id))
	c.rehome()
	c.sync(left...)
	for !guests[asker].pings(outsideGateway) {
		if time.Since(known) > 10*time.Second {
			t.Fatal("the outside is not reached any more")
		}
	}
	took := time.Since(known)
	t.Logf("reached again %v after the home was known to be lost", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	for i, g := range guests {
		if i != home {
			if !goesOn(i) {
				t.Errorf("what was open from host %d does not go on", i)
			}
			c.expect(fmt.Sprint("from host ", i, " by the new home"), g.namespace, at(outsideGateway, 80), own)
			c.expect(fmt.Sprint("from host ", i, " over IPv6 by the new home"), g.namespace, at(outsideGatewayV6, 80), of(ports[i], true))
		}
	}

	// It comes back and is home to the router no longer.
	for _, wire := range []string{"wire", "uplink"} {
		ok(t, lost.own.LinkSetUp(must(lost.own.LinkByName(wire))(t)))
	}
	ok(t, host.Arrive(identity.Internal(t.Context()), c.st, lost.id, host.Hello{Name: fmt.Sprint("host-", home), Address: lost.address, Physical: []string{"public"}}))
	c.rehome()
	c.sync()
	if router().HostID == lost.id {
		t.Error("the router went back to the host that was lost")
	}
	for i, g := range guests {
		c.expect(fmt.Sprint("from host ", i, " after it is back"), g.namespace, at(outsideGateway, 80), own)
	}
}
