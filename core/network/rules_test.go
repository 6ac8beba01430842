package network_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/network"
)

func TestBootstrapFurnishesOnce(t *testing.T) {
	b := open(t)
	o := network.BootstrapOptions{Admin: b.adminsProject, Projects: []resource.ID{b.adminsProject, b.our}}
	furnish := func() {
		t.Helper()
		if err := network.Bootstrap(context.Background(), b.st, o); err != nil {
			t.Fatal(err)
		}
	}
	furnish()
	tx := b.st.Latest()
	if n, r := network.Networks().Len(tx), network.Routers().Len(tx); n != 3 || r != 2 {
		t.Fatalf("%d networks and %d routers, want the external one and two private ones with a router each", n, r)
	}
	before := tx.Revision()
	furnish()
	if after := b.st.Latest().Revision(); after != before {
		t.Fatal("a second time changed something")
	}
	if _, err := b.Purge(b.admin, b.our); err != nil {
		t.Fatal(err)
	}
	one(b, b.Groups, b.ours, network.Group{Meta: owned(b.our, "g"), Stateful: true})
	furnish()
	if got := network.DefaultNetworks(b.st.Latest(), b.our); len(got) != 0 {
		t.Fatal("what the project had given up came back")
	}
}

func TestAddressesRunOutAndComeBack(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	b.subnet(b.ours, n, "10.0.0.0/29") // .1 is the gateway's, .2 to .6 are left
	var made []*network.Port
	for range 5 {
		made = append(made, b.port(b.ours, n))
	}
	full := func() error {
		_, err := b.Ports.Create(b.ours, &network.Port{Meta: owned(b.our, "p"), NetworkID: n.ID, PortSecurity: true, VNIC: network.NormalVNIC})
		return err
	}
	b.refuses(fault.Exhausted, "addresses-exhausted", full())
	for _, p := range []*network.Port{made[1], made[4], made[0]} {
		if err := b.Ports.Delete(b.ours, p.ID, 0); err != nil {
			t.Fatal(err)
		}
		if again := b.port(b.ours, n); again.Fixed[0] != p.Fixed[0] {
			t.Fatalf("got %v, want the only one free: %v", again.Fixed, p.Fixed)
		}
	}
	b.refuses(fault.Exhausted, "addresses-exhausted", full())
}

func TestPoolsCutInOrderAndReuseGaps(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	p := one(b, b.Pools, b.ours, network.SubnetPool{Meta: owned(b.our, "p"), Prefixes: prefixes("10.0.0.0/24", "10.0.2.0/25"), DefaultBits: 26})
	cut := func(bits int, want string) *network.Subnet {
		t.Helper()
		s := network.Subnet{Meta: owned(b.our, ""), NetworkID: n.ID, PoolID: p.ID, CIDR: network.AnyPrefix(false, bits), Gateway: network.AutoGateway}
		made, err := b.Subnets.Create(b.ours, &s)
		switch {
		case want == "":
			b.refuses(fault.Exhausted, "pool-exhausted", err)
			return nil
		case err != nil:
			t.Fatal(err)
		case made[0].CIDR.String() != want:
			t.Fatalf("cut %s, want %s", made[0].CIDR, want)
		}
		return made[0]
	}
	cut(26, "10.0.2.0/26") // the smaller prefix first
	cut(26, "10.0.2.64/26")
	first := cut(26, "10.0.0.0/26")
	cut(28, "10.0.0.64/28")
	cut(25, "10.0.0.128/25")
	cut(26, "")
	cut(28, "10.0.0.80/28")
	if err := b.Subnets.Delete(b.ours, first.ID, 0); err != nil {
		t.Fatal(err)
	}
	cut(27, "10.0.0.0/27")
	cut(26, "")
	cut(27, "10.0.0.32/27")
	b.refuses(fault.Conflict, "pool-in-use", b.Pools.Delete(b.ours, p.ID, 0))
}

// ruleTests are security group rules and what is wrong with them; "" for nothing.
var ruleTests = map[string]struct {
	rule network.Rule
	want string
}{
	"anything":                   {network.Rule{Protocol: network.AnyProtocol}, ""},
	"a range of TCP ports":       {tcp(1, 65535), ""},
	"one end of a range":         {network.Rule{Protocol: 6, HasMin: true, PortMin: 5}, "rule-port-range"},
	"upside down":                {tcp(9, 8), "rule-port-range"},
	"port 0":                     {tcp(0, 8), "rule-port-range"},
	"a port too far":             {tcp(1, 65536), "rule-port"},
	"ports of everything":        {network.Rule{Protocol: network.AnyProtocol, HasMin: true, HasMax: true, PortMin: 1, PortMax: 2}, "rule-protocol-required"},
	"ports of GRE":               {network.Rule{Protocol: 47, HasMin: true, HasMax: true, PortMin: 1, PortMax: 2}, "rule-port-protocol"},
	"an ICMP type":               {network.Rule{Protocol: 1, HasMin: true, PortMin: 8}, ""},
	"an ICMP type above a code":  {network.Rule{Protocol: 1, HasMin: true, PortMin: 8, HasMax: true}, ""},
	"an ICMP code alone":         {network.Rule{Protocol: 1, HasMax: true, PortMax: 1}, "rule-icmp-type"},
	"an ICMP type too far":       {network.Rule{Protocol: 1, HasMin: true, PortMin: 256}, "rule-icmp"},
	"ICMPv6 in IPv4":             {network.Rule{Protocol: 58}, "rule-ethertype-protocol"},
	"ICMPv6 in IPv6":             {network.Rule{Protocol: 58, V6: true}, ""},
	"a prefix":                   {network.Rule{Protocol: network.AnyProtocol, RemotePrefix: prefixes("10.0.0.0/8")[0]}, ""},
	"a prefix of another family": {network.Rule{Protocol: network.AnyProtocol, V6: true, RemotePrefix: prefixes("10.0.0.0/8")[0]}, "rule-ethertype"},
}

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParsePrefix(text)
	}
	return list
}

func tcp(low, high int) network.Rule {
	return network.Rule{Protocol: 6, HasMin: true, HasMax: true, PortMin: low, PortMax: high}
}

func TestRules(t *testing.T) {
	b := open(t)
	g := one(b, b.Groups, b.ours, network.Group{Meta: owned(b.our, "g"), Stateful: true})
	for name, tt := range ruleTests {
		t.Run(name, func(t *testing.T) {
			r := tt.rule
			r.GroupID, r.ProjectID, r.Ingress = g.ID, b.our, true
			_, err := b.Rules.Create(b.ours, &r)
			code := ""
			if f := fault.From(err); f != nil {
				code = f.Code
			} else if err != nil {
				t.Fatal(err)
			}
			if code != tt.want {
				t.Errorf("got %q (%v), want %q", code, err, tt.want)
			}
		})
	}
}

func TestPortsOfServersAreLetGo(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	b.subnet(b.ours, n, "10.0.0.0/24")
	given := b.port(b.ours, n)
	var server resource.ID
	update := func(fn func(tx *state.Tx) error) {
		t.Helper()
		if err := b.st.Update(b.ours, fn); err != nil {
			t.Fatal(err)
		}
	}
	update(func(tx *state.Tx) error {
		server = tx.NewID()
		for _, w := range []network.PortWanted{{PortID: given.ID}, {NetworkID: n.ID}} {
			w.ProjectID, w.DeviceID, w.Owner = b.our, server, network.OwnerServer
			if _, err := network.AddPort(b.ours, tx, w); err != nil {
				return err
			}
		}
		return nil
	})
	if got := network.PortsOf(b.st.Latest(), server); len(got) != 2 {
		t.Fatalf("%d ports, want 2", len(got))
	}
	err := b.st.Update(b.ours, func(tx *state.Tx) error {
		_, err := network.AddPort(b.ours, tx, network.PortWanted{ProjectID: b.our, PortID: given.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer})
		return err
	})
	b.refuses(fault.Conflict, "port-in-use", err)
	err = b.st.Update(b.theirs, func(tx *state.Tx) error {
		_, err := network.AddPort(b.theirs, tx, network.PortWanted{ProjectID: b.their, NetworkID: n.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer})
		return err
	})
	b.refuses(fault.NotFound, "network-not-found", err)
	update(func(tx *state.Tx) error { return network.ReleasePorts(b.ours, tx, server) })
	left := must[*network.Port](b)(b.Ports.Get(b.ours, given.ID))
	if left.DeviceID != "" || left.Owner != network.OwnerNone || left.Adopted {
		t.Fatalf("the port that was given is still in use: %+v", left)
	}
	if n := network.Ports().Len(b.st.Latest()); n != 1 {
		t.Fatalf("%d ports are left, want the one that was given", n)
	}
}
