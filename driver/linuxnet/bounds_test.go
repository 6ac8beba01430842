package linuxnet

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/core/network"
)

// TestOneGuestCannotTakeAllConnectionTracking: it may begin so many connections, and the others theirs.
func TestOneGuestCannotTakeAllConnectionTracking(t *testing.T) {
	m := newMachine(t)
	m.flowLimit = 40
	ctx := context.Background()
	n := newTenant(100)
	open := outgoing(rule(true, false), rule(true, true))
	ok(t, m.EnsureFilter(ctx, open))
	ok(t, m.EnsureSegment(ctx, n.segment))
	pa, pb, pc := n.port(open.ID), n.port(open.ID), n.port(open.ID)
	a, b, c := m.plug(pa), m.plug(pb, static(pb)...), m.plug(pc, static(pc)...)
	echo(t, b.namespace, 80)
	running := c.connect("10.5.0.12:80")
	if running == nil {
		t.Fatal("not connected")
	}
	lineFrom(running)

	flood := func(at *guest, toMAC, to, word string, rounds int) int {
		var heard atomic.Int64
		at.watch(func(frame []byte) {
			if bytes.Contains(frame, []byte(word)) {
				heard.Add(1)
			}
		})
		defer at.watch(nil)
		for port := range 200 {
			for range rounds {
				a.send(udp(pa.MAC, toMAC, "10.5.0.11", to, uint16(1000+port), 2000, word))
			}
		}
		time.Sleep(silence)
		return int(heard.Load())
	}
	// Packets of a connection that is counted pass, however many.
	if n := flood(b, pb.MAC, "10.5.0.12", "abcdefgh", 3); n < 3*30 || n > 3*m.flowLimit {
		t.Errorf("%d packets of at most %d connections arrived", n, m.flowLimit)
	}
	if !echoes(running) {
		t.Error("another guest's connection broke")
	}
	if have := reaches(c.namespace, "10.5.0.12:80"); have != "10.5.0.13" {
		t.Errorf("another guest's new connection: taken for %q", have)
	}
	// Other rules do not make it forget.
	open.Rules = append(open.Rules, network.FilterRule{Ingress: true, Protocol: 6, PortMin: 1, PortMax: 2})
	ok(t, m.EnsureFilter(ctx, open))
	if n := flood(b, pb.MAC, "10.5.0.12", "ijklmnop", 1); n > m.flowLimit {
		t.Errorf("%d connections after a change of rules", n)
	}
}

// TestOneSourceCannotTakeAllOfARoutersConnectionTracking: a guest that was let begin more does not get
// further than its router.
func TestOneSourceCannotTakeAllOfARoutersConnectionTracking(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n, far := newTenant(100), second(101)
	open := outgoing(rule(true, false), rule(true, true))
	ok(t, m.EnsureFilter(ctx, open))
	ok(t, m.EnsureSegment(ctx, n.segment))
	ok(t, m.EnsureSegment(ctx, far.segment))
	pa, pf := n.port(open.ID), move(far.port(open.ID))
	a, f := m.plug(pa), m.plug(pf, static(pf)...)
	m.flowLimit = 40
	gateway := network.Gateway{ID: newID(), AdminUp: true, Interfaces: []network.GatewayInterface{
		{PortID: newID(), NetworkID: n.segment.ID, MAC: "fa:16:3e:21:00:01", AdminUp: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24")}},
		{PortID: newID(), NetworkID: far.segment.ID, MAC: "fa:16:3e:21:00:02", AdminUp: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.6.0.1/24")}},
	}}
	ok(t, m.EnsureGateway(ctx, gateway))
	var heard atomic.Int64
	f.watch(func(frame []byte) {
		if bytes.Contains(frame, []byte("abcdefgh")) {
			heard.Add(1)
		}
	})
	for port := range 200 {
		a.send(udp(pa.MAC, gateway.Interfaces[0].MAC, "10.5.0.11", "10.6.0.11", uint16(1000+port), 2000, "abcdefgh"))
	}
	time.Sleep(silence)
	f.watch(nil)
	if n := heard.Load(); n < 30 || n > 40 {
		t.Errorf("%d connections of at most 40 passed", n)
	}
}

// TestLearningIsBounded: who may send from any hardware address does not fill the host's memory with them.
func TestLearningIsBounded(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	ok(t, m.EnsureSegment(ctx, n.segment))
	port, other := n.port(), n.port()
	port.PortSecurity, other.PortSecurity = false, false
	g, h := m.plug(port), m.plug(other, static(other)...)
	learned := func() int {
		ns := must(openNamespace(netnsDir + "/" + m.options.Prefix + "-s-" + n.segment.ID.String()))(t)
		defer ns.close()
		count := 0
		for _, found := range must(dump(func() ([]netlink.Neigh, error) { return ns.NeighList(0, unix.AF_BRIDGE) }))(t) {
			if found.Flags&(ntfSticky|unix.NTF_SELF) == 0 && found.State&netlink.NUD_PERMANENT == 0 {
				count++
			}
		}
		return count
	}
	for i := range maxLearned + 500 {
		mac := net.HardwareAddr{0x02, 0, 0, 1, byte(i >> 8), byte(i)}
		g.send(udp(mac.String(), other.MAC, "10.5.0.11", "10.5.0.12", 1, 2, "word"))
	}
	time.Sleep(silence)
	if have := learned(); have < 10 || have > maxLearned {
		t.Errorf("%d hardware addresses were learned, at most %d are to be", have, maxLearned)
	}
	// What is not learned is flooded.
	late := udp(other.MAC, "02:00:00:02:00:01", "10.5.0.12", "10.5.0.11", 1, 2, "to whom nobody knows")
	if !g.hears(func(frame []byte) bool { return bytes.Contains(frame, []byte("to whom nobody knows")) }, time.Second, func() { h.send(late) }) {
		t.Error("a frame for an address that was not learned is lost")
	}
}

// TestPanicIsContained: a question that a parser cannot bear is not answered, and the log is not flooded.
func TestPanicIsContained(t *testing.T) {
	var log bytes.Buffer
	v := &server{driver: &Driver{log: slog.New(slog.NewTextHandler(&log, nil))}}
	for n := range 25 {
		if _, answered := v.contain([]byte{byte(n)}, func() ([]byte, bool) { panic("too short") }); answered {
			t.Error("answered")
		}
	}
	if lines := strings.Count(log.String(), "too short"); lines != 2 || v.panics != 25 {
		t.Errorf("%d lines of %d panics:\n%s", lines, v.panics, &log)
	}
	if reply, ok := v.contain(nil, func() ([]byte, bool) { return []byte("yes"), true }); !ok || string(reply) != "yes" {
		t.Error("the next question was not answered")
	}
}
