package linuxnet

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/network"
)

// TestColdStart prints how long the first port of a network takes. The bound is
// generous, for machines that are busy with other tests.
func TestColdStart(t *testing.T) {
	i := newInternet(t)
	ctx := context.Background()
	n := newTenant(100)
	group := outgoing()
	port, gateway := n.port(group.ID), i.router("172.24.4.10/24", "fa:16:3e:11:00:01", n)
	gateway.Floating = []network.Floating{floating("172.24.4.20", "10.5.0.11")}
	ok(t, i.EnsureFilter(ctx, group))
	var total time.Duration
	timed := func(what string, f func() error) {
		t.Helper()
		start := time.Now()
		ok(t, f())
		took := time.Since(start)
		t.Logf("%s: %v", what, took.Round(100*time.Microsecond))
		total += took
	}
	attach := func() error { _, err := i.EnsureAttachment(ctx, port); return err }
	timed("segment", func() error { return i.EnsureSegment(ctx, n.segment) })
	timed("first port", attach)
	if total > time.Second {
		t.Errorf("a segment and its first port took %v", total)
	}
	timed("router with a floating address", func() error { return i.EnsureGateway(ctx, gateway) })
	timed("segment again", func() error { return i.EnsureSegment(ctx, n.segment) })
	timed("port again", attach)
	timed("router again", func() error { return i.EnsureGateway(ctx, gateway) })
	timed("rules changed", func() error {
		group.Rules = append(group.Rules, rule(true, false))
		return i.EnsureFilter(ctx, group)
	})
}

func TestGroupsBetweenGuestsOfOneNetwork(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	client, server := outgoing(), outgoing()
	web := network.FilterRule{Ingress: true, Protocol: 6, PortMin: 80, PortMax: 81, Remote: []netip.Prefix{netip.MustParsePrefix("10.5.0.11/32")}}
	web6 := network.FilterRule{Ingress: true, V6: true, Protocol: 6, PortMin: 80, PortMax: 81}
	server.Rules = append(server.Rules, web, web6)
	ok(t, m.EnsureFilter(ctx, client))
	ok(t, m.EnsureFilter(ctx, server))
	ok(t, m.EnsureSegment(ctx, n.segment))
	a, b := n.port(client.ID), n.port(server.ID)
	ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
	echo(t, gb.namespace, 80)
	echo(t, gb.namespace, 90)
	echo(t, ga.namespace, 80)

	for _, address := range []string{"10.5.0.12:80", "[fd05::c]:80"} {
		if reaches(ga.namespace, address) == "" {
			t.Errorf("%s: allowed, but not reached", address)
		}
	}
	for _, address := range []string{"10.5.0.12:90", "[fd05::c]:90"} {
		if asks(ga.namespace, address) != "" {
			t.Errorf("%s: reached, though no rule allows it", address)
		}
	}
	if ga.pings("10.5.0.12") {
		t.Error("ping passed, though no rule allows it")
	}
	if asks(gb.namespace, "10.5.0.11:80") != "" {
		t.Error("the client was reached, though no rule allows it")
	}

	kept4, kept6 := ga.connect("10.5.0.12:80"), ga.connect("[fd05::c]:80")
	if kept4 == nil || kept6 == nil {
		t.Fatal("not connected")
	}
	lineFrom(kept4)
	lineFrom(kept6)
	server.Rules = []network.FilterRule{rule(false, false), rule(false, true), web6}
	ok(t, m.EnsureFilter(ctx, server))
	if echoes(kept4) {
		t.Error("a connection outlived the rule that allowed it")
	}
	if !echoes(kept6) {
		t.Error("a connection broke, though its rule is still there")
	}
	m.restart()
	ok(t, m.EnsureSegment(ctx, n.segment))
	ok(t, m.EnsureFilter(ctx, server))
	if !echoes(kept6) {
		t.Error("a connection broke when the driver was restarted")
	}
}

// TestStatelessGroup: without state an answer needs a rule of its own.
func TestStatelessGroup(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	client := outgoing()
	server := network.Filter{ID: newID(), Rules: []network.FilterRule{{Ingress: true, Protocol: 6, PortMin: 80, PortMax: 80}}}
	ok(t, m.EnsureFilter(ctx, client))
	ok(t, m.EnsureFilter(ctx, server))
	ok(t, m.EnsureSegment(ctx, n.segment))
	a, b := n.port(client.ID), n.port(server.ID)
	ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
	echo(t, gb.namespace, 80)
	if asks(ga.namespace, "10.5.0.12:80") != "" {
		t.Error("an answer passed without a rule")
	}
	server.Rules = append(server.Rules, network.FilterRule{Protocol: 6, PortMin: -1, PortMax: -1})
	ok(t, m.EnsureFilter(ctx, server))
	if reaches(ga.namespace, "10.5.0.12:80") == "" {
		t.Error("an answer did not pass, though a rule lets it")
	}
}

// BenchmarkPort measures one more port of a network that has some.
func BenchmarkPort(b *testing.B) {
	for _, have := range []int{0, 50} {
		b.Run(fmt.Sprint("beside ", have), func(b *testing.B) {
			m := newMachine(b)
			ctx := context.Background()
			n := newTenant(100)
			group := outgoing(rule(true, false), rule(true, true))
			ok(b, m.EnsureFilter(ctx, group))
			ok(b, m.EnsureSegment(ctx, n.segment))
			for range have {
				must(m.EnsureAttachment(ctx, n.port(group.ID)))(b)
			}
			port := n.port(group.ID)
			for b.Loop() {
				if _, err := m.EnsureAttachment(ctx, port); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := m.Remove(ctx, network.Thing{Kind: "attachment", ID: port.ID}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
