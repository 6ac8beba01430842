package linuxnet

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a text with the one in testdata, and lets nft read it.
func golden(t *testing.T, name, have string) {
	t.Helper()
	path := filepath.Join("testdata", name+".nft")
	if *update {
		ok(t, os.WriteFile(path, []byte(have), 0o644))
	}
	want := must(os.ReadFile(path))(t)
	if diff := cmp.Diff(string(want), have); diff != "" {
		t.Errorf("differs from %s (-update writes it anew):\n%s", path, diff)
	}
	readable(t, have)
}

// readable checks that nft understands a script. It changes nothing.
func readable(t testing.TB, script string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	cmd := exec.Command("nft", "-c", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("nft: %v\n%s\n%s", err, out, script)
	}
}

func prefix(texts ...string) []netip.Prefix {
	list := []netip.Prefix{}
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestGuardGolden(t *testing.T) {
	remote := prefix("10.5.0.11/32", "10.5.0.12/32", "10.5.0.13/32", "fd05::b/128")
	for name, g := range map[string]guard{
		"empty": {BridgeMAC: "0a:00:00:00:00:01"},
		"ports": {
			BridgeMAC: "0a:00:00:00:00:01", DHCPv4: true, DHCPv6: true, RA: true, Metadata: true,
			Ports: []guardedPort{
				{Tap: "tb", Open: true},
				{
					Tap: "ta", Own: []netip.Addr{netip.MustParseAddr("10.5.0.11"), netip.MustParseAddr("fd05::b")},
					Sources: []source{
						{MAC: "fa:16:3e:00:00:0b", Prefixes: prefix("10.5.0.11/32", "fd05::b/128", "fe80::f816:3eff:fe00:b/128")},
						{MAC: "fa:16:3e:aa:aa:aa", Prefixes: prefix("10.6.0.0/16", "0.0.0.0/0", "fd06::/70", "::/0")},
					},
					policy: policy{Stateful: true, Rules: []network.FilterRule{
						rule(false, false), rule(false, true),
						{Ingress: true, PortMin: -1, PortMax: -1, Remote: remote},
						{Ingress: true, V6: true, PortMin: -1, PortMax: -1, Remote: remote},
						{Ingress: true, Protocol: 6, PortMin: 22, PortMax: 22},
						{Ingress: true, Protocol: 6, PortMin: 22, PortMax: 22},
						{Ingress: true, Protocol: 17, PortMin: 1, PortMax: 65535, Remote: prefix("192.0.2.0/24", "192.0.2.0/25")},
						{Ingress: true, Protocol: 132, PortMin: -1, PortMax: -1},
						{Ingress: true, Protocol: 1, PortMin: 8, PortMax: -1},
						{Ingress: true, Protocol: 1, PortMin: 3, PortMax: 4},
						{Ingress: true, V6: true, Protocol: 58, PortMin: 128, PortMax: 0},
						{Ingress: true, Protocol: 6, PortMin: 80, PortMax: 80, Remote: []netip.Prefix{}},
						{Ingress: true, Protocol: 112, PortMin: -1, PortMax: -1},
					}},
				},
				{Tap: "tc", Sources: []source{{MAC: "fa:16:3e:00:00:0c"}}, policy: policy{Rules: []network.FilterRule{rule(true, false)}}},
			},
		},
	} {
		golden(t, "guard-"+name, g.render())
	}
}

func TestGatewayGolden(t *testing.T) {
	port := resource.MustID("01890000-0000-7000-8000-0123456789ab")
	forwarded := network.Floating{External: netip.MustParseAddr("203.0.113.7"), Forwards: []network.PortForward{
		{Protocol: 6, ExternalPort: 8080, Fixed: netip.MustParseAddr("10.5.0.11"), FixedPort: 80},
	}}
	full := network.Gateway{
		External: &network.GatewayExternal{PortID: port, Addresses: prefix("2001:db8::5/64", "203.0.113.5/24"), SNAT: true},
		Floating: []network.Floating{floating("203.0.113.6", "10.5.0.12"), forwarded, floating("203.0.113.4", "10.5.0.13")},
	}
	golden(t, "gateway-inside", renderGateway(network.Gateway{}))
	golden(t, "gateway-full", renderGateway(full))
	external := *full.External
	external.SNAT = false
	full.External = &external
	golden(t, "gateway-nosnat", renderGateway(full))
	golden(t, "physical", Physical{HostAddresses: prefix("203.0.113.1/24", "2001:db8::1/64"), Masquerade: true, OpenTCP: []int{8700}}.render("unkai_public", "unkai-public"))
}

// TestRulesAreAlwaysReadable: whatever a tenant writes into rules, pairs and
// addresses, nft reads it; one tenant's nonsense would otherwise freeze the
// filter of a whole network.
func TestRulesAreAlwaysReadable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("nft reads for root only")
	}
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "v6") {
			return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
		}
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
	})
	network4or6 := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := addr.Draw(t, "addr")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
	})
	ruleOf := rapid.Custom(func(t *rapid.T) network.FilterRule {
		low := rapid.IntRange(-1, 65535).Draw(t, "low")
		rule := network.FilterRule{
			Ingress: rapid.Bool().Draw(t, "ingress"), V6: rapid.Bool().Draw(t, "V6"), Protocol: rapid.IntRange(0, 255).Draw(t, "protocol"),
			PortMin: low, PortMax: rapid.IntRange(low, 65535).Draw(t, "high"),
		}
		if isICMP(rule.Protocol) {
			rule.PortMin, rule.PortMax = rapid.IntRange(-1, 255).Draw(t, "type"), rapid.IntRange(-1, 255).Draw(t, "code")
		}
		if rapid.Bool().Draw(t, "about somebody") {
			rule.Remote = rapid.SliceOfN(network4or6, 0, 4).Draw(t, "remote")
		}
		return rule
	})
	rapid.Check(t, func(rt *rapid.T) {
		s := &segment{driver: &Driver{filters: map[resource.ID]network.Filter{}}, want: &network.Segment{}, attachments: map[resource.ID]network.Attachment{}}
		port := newTenant(1).port()
		port.AdminUp = true
		for range rapid.IntRange(0, 3).Draw(rt, "pairs") {
			pair := network.AddressPair{Address: network4or6.Draw(rt, "pair")}
			if rapid.Bool().Draw(rt, "own MAC") {
				pair.MAC = "FA:16:3E:01:02:03"
			}
			port.AllowedPairs = append(port.AllowedPairs, pair)
		}
		group := network.Filter{ID: newID(), Stateful: rapid.Bool().Draw(rt, "stateful"), Rules: rapid.SliceOfN(ruleOf, 0, 6).Draw(rt, "rules")}
		s.driver.filters[group.ID] = group
		port.Groups = []resource.ID{group.ID}
		s.attachments[port.ID] = port
		script := s.guard().render()
		cmd := exec.Command("nft", "-c", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			rt.Errorf("nft: %v\n%s\n%s", err, out, script)
		}
	})
}
