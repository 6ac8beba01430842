package linuxnet

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// TestWhichConnectionsEnd: a, of group ga, has 10.0.0.1 for its own, b, of group gb, 10.0.0.2; beside that each has the pairs of its
// case. What is asked for is whether an incoming connection to an address ends, by TCP port.
func TestWhichConnectionsEnd(t *testing.T) {
	const a, b = "a", "b"
	web := network.FilterRule{Ingress: true, Protocol: unix.IPPROTO_TCP, PortMin: 80, PortMax: 80}
	ssh := network.FilterRule{Ingress: true, Protocol: unix.IPPROTO_TCP, PortMin: 22, PortMax: 22}
	type rules = []network.FilterRule
	type world struct {
		ga, gb rules
		pairs  map[string]string // by port, texts of prefixes
		down   string            // the port that is off
		gone   string            // the port that is not there
	}
	segmentOf := func(w world) *segment {
		s := &segment{driver: &Driver{filters: map[resource.ID]network.Filter{}}, attachments: map[resource.ID]network.Attachment{}}
		for n, port := range []string{a, b} {
			id, group := resource.ID{byte(n + 1)}, resource.ID{byte(n + 11)}
			s.driver.filters[group] = network.Filter{ID: group, Stateful: true, Rules: []rules{w.ga, w.gb}[n]}
			if port == w.gone {
				continue
			}
			at := network.Attachment{ID: id, MAC: "fa:16:3e:00:00:0" + string(rune('1'+n)), PortSecurity: true, AdminUp: port != w.down, Groups: []resource.ID{group},
				Addresses: []network.FixedAddress{{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(n + 1)})}}}
			for _, text := range strings.Fields(w.pairs[port]) {
				at.AllowedPairs = append(at.AllowedPairs, network.AddressPair{Address: netip.MustParsePrefix(text)})
			}
			s.attachments[id] = at
		}
		return s
	}
	vip := map[string]string{a: "10.0.0.100/32", b: "10.0.0.100/32"}
	for name, test := range map[string]struct {
		before, after world
		swept         bool // or else the process is new
		to            string
		port          int
		ends          bool
	}{
		"a rule of the address's port is gone":                            {world{ga: rules{web}}, world{}, true, "10.0.0.1", 80, true},
		"another rule is":                                                 {world{ga: rules{web, ssh}}, world{ga: rules{web}}, true, "10.0.0.1", 80, false},
		"nothing is":                                                      {world{ga: rules{web}}, world{ga: rules{web}}, true, "10.0.0.1", 22, false},
		"to a link-local address, a rule is gone":                         {world{ga: rules{{Ingress: true, V6: true, Protocol: unix.IPPROTO_TCP, PortMin: -1, PortMax: -1}}}, world{}, true, "fe80::f816:3eff:fe00:1", 80, true},
		"to a pair, a rule of its only port is gone":                      {world{ga: rules{web}, pairs: map[string]string{a: "10.0.0.100/32"}}, world{pairs: map[string]string{a: "10.0.0.100/32"}}, true, "10.0.0.100", 80, true},
		"to a pair, another rule is":                                      {world{ga: rules{web, ssh}, pairs: vip}, world{ga: rules{web}, pairs: vip}, true, "10.0.0.100", 80, false},
		"to a pair, a rule of one of its ports is gone":                   {world{ga: rules{web}, gb: rules{web}, pairs: vip}, world{gb: rules{web}, pairs: vip}, true, "10.0.0.100", 80, true},
		"to a pair, one of its ports never let it begin":                  {world{ga: rules{web, ssh}, pairs: vip}, world{ga: rules{web}, pairs: vip}, true, "10.0.0.100", 80, false},
		"to a pair, one of its ports is deleted":                          {world{ga: rules{web}, gb: rules{web}, pairs: vip}, world{gb: rules{web}, pairs: vip, gone: a}, true, "10.0.0.100", 80, false},
		"to a pair, one of its ports is turned off":                       {world{ga: rules{web}, gb: rules{web}, pairs: vip}, world{ga: rules{web}, gb: rules{web}, pairs: vip, down: a}, true, "10.0.0.100", 80, false},
		"to a pair, its only port is deleted":                             {world{ga: rules{web}, pairs: map[string]string{a: "10.0.0.100/32"}}, world{ga: rules{web}, gone: a}, true, "10.0.0.100", 80, true},
		"to a pair that is no longer one":                                 {world{ga: rules{web}, pairs: vip}, world{ga: rules{web}, pairs: map[string]string{b: "10.0.0.100/32"}}, true, "10.0.0.100", 80, true},
		"to a pair, in a new process, one of its ports lets it begin":     {world{gb: rules{web}, pairs: vip}, world{gb: rules{web}, pairs: vip}, false, "10.0.0.100", 80, false},
		"to a pair, in a new process, none does":                          {world{gb: rules{web}, pairs: vip}, world{gb: rules{web}, pairs: vip}, false, "10.0.0.100", 22, true},
		"into a range, a rule is gone":                                    {world{ga: rules{web}, pairs: map[string]string{a: "10.0.1.0/24"}}, world{pairs: map[string]string{a: "10.0.1.0/24"}}, true, "10.0.1.7", 80, true},
		"into a range, another rule is":                                   {world{ga: rules{web, ssh}, pairs: map[string]string{a: "10.0.1.0/24"}}, world{ga: rules{web}, pairs: map[string]string{a: "10.0.1.0/24"}}, true, "10.0.1.7", 80, false},
		"past a port with a range of all, which never let it begin":       {world{ga: rules{ssh}, gb: rules{web}, pairs: map[string]string{a: "0.0.0.0/0"}}, world{gb: rules{web}, pairs: map[string]string{a: "0.0.0.0/0"}}, true, "10.0.0.2", 80, false},
		"past a port with a range of all, which never let it, and is new": {world{gb: rules{web}}, world{gb: rules{web}, pairs: map[string]string{a: "0.0.0.0/0"}}, false, "192.0.2.7", 80, false},
		"past a port with a range of all, which is deleted":               {world{ga: rules{web}, pairs: map[string]string{a: "0.0.0.0/0"}}, world{gone: a}, true, "192.0.2.7", 80, false},
	} {
		j := judgeOf(segmentOf(test.before).bounds(), segmentOf(test.after).bounds(), !test.swept)
		to := netip.MustParseAddr(test.to)
		from := netip.MustParseAddr("192.0.2.1")
		if to.Is6() {
			from = netip.MustParseAddr("fe80::1")
		}
		if ends := j.ends(tuple{from, to, unix.IPPROTO_TCP, test.port}); ends != test.ends {
			t.Errorf("%s: the connection ends: %v", name, ends)
		}
	}
}

// TestConnectionsToAllowedPairsEnd: when a rule goes, so do the connections to what its port has beside its own addresses, and those
// that another rule allows go on.
func TestConnectionsToAllowedPairsEnd(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	client, server := outgoing(), outgoing()
	rule := func(v6 bool, port int) network.FilterRule {
		return network.FilterRule{Ingress: true, V6: v6, Protocol: unix.IPPROTO_TCP, PortMin: port, PortMax: port}
	}
	server.Rules = append(server.Rules, rule(false, 80), rule(true, 80), rule(false, 90), rule(true, 90))
	ok(t, m.EnsureFilter(ctx, client))
	ok(t, m.EnsureFilter(ctx, server))
	ok(t, m.EnsureSegment(ctx, n.segment))
	a, b := n.port(client.ID), n.port(server.ID)
	for _, pair := range prefix("10.5.0.100/32", "10.5.0.128/28", "fd05::100/128", "fd05::200/120") {
		b.AllowedPairs = append(b.AllowedPairs, network.AddressPair{Address: pair})
	}
	ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
	local := linkLocal(must(net.ParseMAC(b.MAC))(t)).String() + "%eth0"
	shared := []string{"10.5.0.100", "10.5.0.130", "[fd05::100]", "[fd05::207]"}
	for _, address := range []string{"10.5.0.100/24", "10.5.0.130/24", "fd05::100/64", "fd05::207/64"} {
		addAddress(t, gb, address)
	}
	for _, address := range prefix("fd05::100/128", "fd05::207/128") {
		gb.awaitSolicited(address.Addr())
	}
	echo(t, gb.namespace, 80)
	echo(t, gb.namespace, 90)
	for _, address := range append(shared, "["+local+"]") {
		revoked, kept := ga.connect(address+":80"), ga.connect(address+":90")
		if revoked == nil || kept == nil {
			t.Fatalf("%s: not connected", address)
		}
		t.Cleanup(func() { revoked.Close(); kept.Close() })
		lineFrom(revoked)
		lineFrom(kept)
		fewer := server
		fewer.Rules = append(outgoing().Rules, rule(false, 90), rule(true, 90))
		ok(t, m.EnsureFilter(ctx, fewer))
		if echoes(revoked) {
			t.Errorf("%s: a connection outlived the rule that allowed it", address)
		}
		if !echoes(kept) {
			t.Errorf("%s: a connection broke, though its rule is still there", address)
		}
		ok(t, m.EnsureFilter(ctx, server))
	}
	m.restart()
	kept := ga.connect("10.5.0.130:80")
	if kept == nil {
		t.Fatal("not connected after a restart")
	}
	defer kept.Close()
	lineFrom(kept)
	ok(t, m.EnsureSegment(ctx, n.segment))
	ok(t, m.EnsureFilter(ctx, server))
	if !echoes(kept) {
		t.Error("a connection broke when the driver was restarted")
	}
}
