package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// number gives an ID that can be told from others.
func number(n byte) resource.ID {
	return resource.ID{0: 1, 6: 0x70, 8: 0x80, 15: n}
}

func named(n byte) resource.Meta { return resource.Meta{ID: number(n), Name: "planted"} }

func put[T any](table *state.Table[T], o *T) func(*state.Tx) error {
	return func(tx *state.Tx) error { return table.Put(tx, o) }
}

var (
	auditCIDR    = netip.MustParsePrefix("10.1.0.0/24")
	auditAddress = netip.MustParseAddr("10.1.0.5")
)

func auditNetwork(n byte) func(*state.Tx) error {
	return put(networks, &Network{Meta: named(n), Kind: Overlay, Segment: int(n)})
}

func auditSubnet(n, network byte, cidr string) func(*state.Tx) error {
	return put(subnets, &Subnet{Meta: named(n), NetworkID: number(network), CIDR: netip.MustParsePrefix(cidr)})
}

func auditPort(n, network byte, change func(*Port)) func(*state.Tx) error {
	p := &Port{Meta: named(n), NetworkID: number(network), MAC: "02:00:00:00:00:" + number(n).Hex()[30:]}
	if change != nil {
		change(p)
	}
	return put(ports, p)
}

func fixed(subnet byte, address netip.Addr) func(*Port) {
	return func(p *Port) { p.Fixed = []FixedAddress{{number(subnet), address}} }
}

func ownedBy(by Owner, device byte) func(*Port) {
	return func(p *Port) { p.Owner, p.DeviceID = by, number(device).String() }
}

// Each contradiction is planted and found. What is not there is number 99.
func TestAuditFinds(t *testing.T) {
	for name, test := range map[string]struct {
		plant []func(*state.Tx) error
		want  string
	}{
		"a subnet of no network": {[]func(*state.Tx) error{auditSubnet(2, 99, "10.1.0.0/24")}, "subnet # is of network #, which is not there"},
		"a subnet of no pool": {[]func(*state.Tx) error{auditNetwork(1),
			put(subnets, &Subnet{Meta: named(2), NetworkID: number(1), CIDR: auditCIDR, PoolID: number(99)})}, "cut from pool #, which is not there"},
		"subnets that overlap": {[]func(*state.Tx) error{auditNetwork(1), auditSubnet(2, 1, "10.1.0.0/24"), auditSubnet(3, 1, "10.1.0.128/25")},
			"of one network overlap"},
		"subnets of a pool that overlap": {[]func(*state.Tx) error{auditNetwork(1), auditNetwork(4), put(pools, &SubnetPool{Meta: named(5)}),
			put(subnets, &Subnet{Meta: named(2), NetworkID: number(1), CIDR: auditCIDR, PoolID: number(5)}),
			put(subnets, &Subnet{Meta: named(3), NetworkID: number(4), CIDR: netip.MustParsePrefix("10.1.0.128/25"), PoolID: number(5)})},
			"overlaps the one before it"},
		"a port of no network": {[]func(*state.Tx) error{auditPort(3, 99, nil)}, "port # is of network #, which is not there or has another owner"},
		"a port that thinks its network another's": {[]func(*state.Tx) error{auditNetwork(1),
			auditPort(3, 1, func(p *Port) { p.NetworkOwner = number(99) })}, "which is not there or has another owner"},
		"a port with an address of no subnet": {[]func(*state.Tx) error{auditNetwork(1), auditPort(3, 1, fixed(99, auditAddress))},
			"which is not of its subnet"},
		"a port with an address of another network": {[]func(*state.Tx) error{auditNetwork(1), auditNetwork(4), auditSubnet(2, 4, "10.1.0.0/24"),
			auditPort(3, 1, fixed(2, auditAddress))}, "which is not of its subnet"},
		"a port with an address outside": {[]func(*state.Tx) error{auditNetwork(1), auditSubnet(2, 1, "10.2.0.0/24"),
			auditPort(3, 1, fixed(2, auditAddress))}, "which is not of its subnet"},
		"two ports with one address": {[]func(*state.Tx) error{auditNetwork(1), auditSubnet(2, 1, "10.1.0.0/24"),
			auditPort(3, 1, fixed(2, auditAddress)), auditPort(4, 1, fixed(2, auditAddress))}, "have the same address 10.1.0.5"},
		"a port in no group": {[]func(*state.Tx) error{auditNetwork(1), auditPort(3, 1, func(p *Port) { p.Groups = []resource.ID{number(99)} })},
			"is in security group #, which is not there"},
		"a port of no router":           {[]func(*state.Tx) error{auditNetwork(1), auditPort(3, 1, ownedBy(OwnerRouter, 99))}, "does not know it or is elsewhere"},
		"a gateway of no router":        {[]func(*state.Tx) error{auditNetwork(1), auditPort(3, 1, ownedBy(OwnerGateway, 99))}, "does not know it or is elsewhere"},
		"a port of no floating address": {[]func(*state.Tx) error{auditNetwork(1), auditPort(3, 1, ownedBy(OwnerFloating, 99))}, "does not know it or is elsewhere"},
		"a port that is not where its router is": {[]func(*state.Tx) error{auditNetwork(1), put(routers, &Router{Meta: named(6), HostID: number(99)}),
			auditPort(3, 1, ownedBy(OwnerRouter, 6))}, "does not know it or is elsewhere"},
		"a gateway that its router does not know": {[]func(*state.Tx) error{auditNetwork(1), put(routers, &Router{Meta: named(6)}),
			auditPort(3, 1, ownedBy(OwnerGateway, 6))}, "does not know it or is elsewhere"},
		"a router with a gateway by no port": {[]func(*state.Tx) error{
			put(routers, &Router{Meta: named(6), Gateway: &RouterGateway{NetworkID: number(1), PortID: number(99)}})}, "is not there or is not as it says"},
		"a floating address held by no port": {[]func(*state.Tx) error{
			put(floatings, &FloatingAddress{Meta: named(7), NetworkID: number(1), Address: auditAddress, PortID: number(99)})}, "is held by port #"},
		"a floating address that leads nowhere": {[]func(*state.Tx) error{
			put(floatings, &FloatingAddress{Meta: named(7), NetworkID: number(1), Address: auditAddress, TargetID: number(99), Fixed: auditAddress})},
			"leads to 10.1.0.5 of port #, which is not there"},
		"a floating address through no router": {[]func(*state.Tx) error{
			put(floatings, &FloatingAddress{Meta: named(7), NetworkID: number(1), Address: auditAddress, TargetID: number(3), RouterID: number(99)})},
			"goes through router #, which is not there or has no gateway"},
		"a port forward of no address": {[]func(*state.Tx) error{
			put(forwards, &Forward{Meta: named(8), FloatingID: number(99), TargetID: number(99), Fixed: auditAddress})}, "one of which is not there"},
		"a port forward through no router": {[]func(*state.Tx) error{auditNetwork(1), auditSubnet(2, 1, "10.1.0.0/24"), auditPort(3, 1, fixed(2, auditAddress)),
			put(floatings, &FloatingAddress{Meta: named(7), NetworkID: number(1), Address: auditAddress}),
			put(forwards, &Forward{Meta: named(8), FloatingID: number(7), TargetID: number(3), Fixed: auditAddress, RouterID: number(99)})},
			"port forward # goes through router #"},
		"a rule of no group": {[]func(*state.Tx) error{put(rules, &Rule{Meta: named(9), GroupID: number(99)})}, "rule # is of or about a group that is not there"},
		"a rule about no group": {[]func(*state.Tx) error{put(groups, &Group{Meta: named(10)}),
			put(rules, &Rule{Meta: named(9), GroupID: number(10), RemoteGroup: number(99)})}, "is of or about a group that is not there"},
		"a rule about no set": {[]func(*state.Tx) error{put(groups, &Group{Meta: named(10)}),
			put(rules, &Rule{Meta: named(9), GroupID: number(10), RemoteSet: number(99)})}, "is of or about a group that is not there"},
		"a share of nothing": {[]func(*state.Tx) error{put(shares, &Share{Meta: named(11), Kind: SharedNetwork, ObjectID: number(99), Action: ShareUse})},
			"share # is of network #, which is not there"},
		"a shared network without a share": {[]func(*state.Tx) error{put(networks, &Network{Meta: named(1), Shared: true})}, "and its shares differ about"},
		"a share that its network does not know": {[]func(*state.Tx) error{auditNetwork(1),
			put(shares, &Share{Meta: named(11), Kind: SharedNetwork, ObjectID: number(1), Action: ShareExternal})}, "and its shares differ about"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := state.Open(t.Context(), state.NewMemory(0), state.Options{Now: func() time.Time { return time.Unix(1e9, 0) }})
			if err != nil {
				t.Fatal(err)
			}
			if wrong := Audit(s.Latest()); len(wrong) > 0 {
				t.Fatalf("of nothing it finds %v", wrong)
			}
			for _, plant := range test.plant {
				if err := s.Update(t.Context(), plant); err != nil {
					t.Fatal(err)
				}
			}
			found := Audit(s.Latest())
			if !slices.ContainsFunc(found, func(what string) bool {
				for n := range byte(100) {
					what = strings.ReplaceAll(what, number(n).String(), "#")
				}
				return strings.Contains(what, test.want)
			}) {
				t.Errorf("it finds %q", found)
			}
		})
	}
}
