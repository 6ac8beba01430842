package network_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// monkey does things at random, as two projects and an operator.
type monkey struct {
	*bench
	r      *rand.Rand
	hosts  []resource.ID
	public resource.ID
	did    map[string]int // steps that came about, by name
}

// TestRandom does things at random and looks after each step at what every reader of the state
// relies on: the audit finds nothing, and whatever changed of what a host is to make real was named.
func TestRandom(t *testing.T) {
	did := map[string]int{}
	for seed := range uint64(24) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &monkey{bench: open(t), r: rand.New(rand.NewPCG(seed, 0)), did: did}
			for n := range 3 {
				id := resource.NewID(time.Now(), nil)
				hello := host.Hello{Speaks: release.Own, Name: fmt.Sprint("h", n)}
				if n > 0 { // the first cannot be reached from the others
					hello.Address = netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
					hello.Physical = []string{"public"}
				}
				if err := host.Arrive(identity.Internal(context.Background()), m.st, id, hello); err != nil {
					t.Fatal(err)
				}
				m.hosts = append(m.hosts, id)
			}
			if err := network.Bootstrap(context.Background(), m.st, network.BootstrapOptions{Admin: m.adminsProject, Projects: []resource.ID{m.our, m.their}}); err != nil {
				t.Fatal(err)
			}
			m.public = pick(network.Networks(), m.st.Latest(), func(n *network.Network) bool { return n.External })[0].ID
			watch := m.st.Watch(m.st.Latest().Revision())
			before := m.derive()
			for step := range 250 {
				name, err := m.step()
				if err == nil {
					m.did[name]++
				} else if fault.KindOf(err) == fault.Internal {
					t.Fatalf("step %d, %s: %v", step, name, err)
				}
				if wrong := network.Audit(m.st.Latest()); wrong != nil {
					t.Fatalf("after step %d, %s: %v", step, name, wrong)
				}
				after := m.derive()
				m.named(t, fmt.Sprint("step ", step, ", ", name), watch, before, after)
				before = after
			}
			m.endEverything(t)
		})
	}
	for _, name := range stepNames {
		if did[name] == 0 {
			t.Errorf("no %s came about in any run", name)
		}
	}
}

type item struct {
	host, id resource.ID
	kind     string
}

// derive is all that all hosts are to make real.
func (m *monkey) derive() map[item][]byte {
	all := map[item][]byte{}
	tx := m.st.Latest()
	for _, s := range m.Sources() {
		for _, h := range m.hosts {
			for _, id := range s.All(tx, h) {
				want, ok := s.Want(tx, h, id)
				if !ok {
					continue
				}
				body, err := json.Marshal(want)
				if err != nil {
					m.Fatal(err)
				}
				all[item{h, id, s.Kind}] = body
				// What is carried along with the changes is what would be derived from all ports.
				var whole any
				switch s.Kind {
				case "filter":
					whole, _ = network.FilterFor(tx, id)
				case "segment":
					whole, _ = network.SegmentFor(tx, id, h)
				default:
					continue
				}
				if again, err := json.Marshal(whole); err != nil || !bytes.Equal(again, body) {
					m.Fatalf("%s %s: %s, but from all its ports %s", s.Kind, id, body, again)
				}
			}
		}
	}
	return all
}

// named checks that each difference was among what Touched and Shared named.
func (m *monkey) named(t *testing.T, step string, watch *state.Watcher, before, after map[item][]byte) {
	t.Helper()
	events, err := watch.Poll()
	if err != nil {
		t.Fatal(err)
	}
	touched := map[item]bool{}
	tx := m.st.Latest()
	for _, s := range m.Sources() {
		for _, e := range events {
			for _, ref := range s.Touched(tx, e) {
				touched[item{ref.Host, ref.ID, s.Kind}] = true
			}
			if s.Shared == nil {
				continue
			}
			for _, id := range s.Shared(tx, e) {
				for _, h := range m.hosts {
					if i := (item{h, id, s.Kind}); before[i] != nil {
						touched[i] = true
					}
				}
			}
		}
	}
	check := func(i item) {
		if !bytes.Equal(before[i], after[i]) && !touched[i] {
			t.Fatalf("%s changed %s %s on a host, and it was not named:\n%s\n%s", step, i.kind, i.id, before[i], after[i])
		}
	}
	for i := range before {
		check(i)
	}
	for i := range after {
		check(i)
	}
}

// endEverything ends both projects, after which nothing is left of them.
func (m *monkey) endEverything(t *testing.T) {
	ctx := identity.Internal(context.Background())
	err := m.st.Update(ctx, func(tx *state.Tx) error {
		for _, p := range pick(network.Ports(), tx, func(p *network.Port) bool { return p.Owner == network.OwnerServer }) {
			if err := network.ReleasePort(ctx, tx, p.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // what one project uses of the other goes in a later round
		for _, project := range []resource.ID{m.our, m.their, m.adminsProject} {
			if _, err := m.Purge(ctx, project); err != nil {
				t.Fatal(err)
			}
		}
	}
	tx := m.st.Latest()
	left := map[string]int{
		"networks": network.Networks().Len(tx), "subnets": network.Subnets().Len(tx), "ports": network.Ports().Len(tx),
		"routers": network.Routers().Len(tx), "floating": network.FloatingAddresses().Len(tx), "groups": network.Groups().Len(tx),
		"rules": network.Rules().Len(tx), "shares": network.Shares().Len(tx), "pools": network.Pools().Len(tx),
		"scopes": network.Scopes().Len(tx), "address groups": network.AddressGroups().Len(tx),
	}
	for what, n := range left {
		if n != 0 {
			t.Errorf("%d %s are left", n, what)
		}
	}
}

func pick[T any](table *state.Table[T], tx *state.Tx, keep func(*T) bool) []*T {
	var list []*T
	for thing := range table.All(tx) {
		if keep == nil || keep(thing) {
			list = append(list, thing)
		}
	}
	return list
}

// random gives one of a table's things; nil if it is empty.
func random[T any](m *monkey, table *state.Table[T]) *T {
	list := pick(table, m.st.Latest(), nil)
	if len(list) == 0 {
		return nil
	}
	return list[m.r.IntN(len(list))]
}

var stepNames = []string{
	"network", "shared network", "subnet", "subnet from pool", "port", "two addresses", "router", "interface", "gateway", "no gateway",
	"interface off", "floating", "aim", "forward", "group", "rule", "remote rule", "regroup", "pairs", "server port", "server port expected", "server port moved",
	"server gone", "share", "unshare", "pool", "address set", "address set changed", "delete network", "delete subnet", "delete port",
	"delete router", "delete floating", "delete group", "delete rule", "port down", "mtu", "host address", "subnet gateway",
}

func (m *monkey) step() (string, error) {
	name := stepNames[m.r.IntN(len(stepNames))]
	project, ctx := m.our, m.ours
	if m.r.IntN(4) == 0 {
		project, ctx = m.their, m.theirs
	}
	if m.r.IntN(5) == 0 {
		ctx = m.admin
	}
	nothing := fault.Errorf(fault.Conflict, "there is nothing to do it with")
	n, s, p, r := random(m, network.Networks()), random(m, network.Subnets()), random(m, network.Ports()), random(m, network.Routers())
	f, g, rule := random(m, network.FloatingAddresses()), random(m, network.Groups()), random(m, network.Rules())
	var err error
	switch name {
	case "network":
		_, err = m.Networks.Create(ctx, &network.Network{Meta: owned(project, "n"), AdminUp: true, Secured: m.r.IntN(5) > 0})
	case "shared network":
		_, err = m.Networks.Create(m.admin, &network.Network{Meta: owned(m.adminsProject, "n"), AdminUp: true, Secured: true, Shared: true})
	case "subnet":
		want := &network.Subnet{Meta: owned(project, "s"), NetworkID: n.ID, Gateway: network.AutoGateway, DHCP: true,
			CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(m.r.IntN(20)), 0}), 29-m.r.IntN(3))}
		if m.r.IntN(3) == 0 {
			want.CIDR = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: 0, 7: byte(m.r.IntN(8))}), 64)
			want.V6Mode = []network.Mode6{network.SLAAC, network.Stateful}[m.r.IntN(2)]
			want.RAMode = want.V6Mode
		}
		_, err = m.Subnets.Create(m.admin, want)
	case "subnet from pool":
		pool := random(m, network.Pools())
		if pool == nil {
			return name, nothing
		}
		_, err = m.Subnets.Create(m.admin, &network.Subnet{Meta: owned(project, "s"), NetworkID: n.ID, PoolID: pool.ID,
			CIDR: network.AnyPrefix(false, 26+m.r.IntN(4)), Gateway: network.AutoGateway, DHCP: true})
	case "port":
		_, err = m.Ports.Create(ctx, &network.Port{Meta: owned(project, "p"), NetworkID: n.ID, AdminUp: true, PortSecurity: n.Secured, VNIC: network.NormalVNIC})
	case "two addresses":
		if s == nil {
			return name, nothing
		}
		_, err = m.Ports.Create(ctx, &network.Port{Meta: owned(project, "p"), NetworkID: s.NetworkID, AdminUp: true, PortSecurity: true, VNIC: network.NormalVNIC,
			Fixed: []network.FixedAddress{{SubnetID: s.ID}, {SubnetID: s.ID}}})
	case "router":
		_, err = m.Routers.Create(ctx, &network.Router{Meta: owned(project, "r"), AdminUp: true})
	default:
		return name, m.more(name, ctx, project, nothing, n, s, p, r, f, g, rule)
	}
	return name, err
}

func (m *monkey) more(name string, ctx context.Context, project resource.ID, nothing error, n *network.Network, s *network.Subnet,
	p *network.Port, r *network.Router, f *network.FloatingAddress, g *network.Group, rule *network.Rule) error {
	var err error
	switch {
	case r == nil && (name == "interface" || name == "gateway" || name == "no gateway" || name == "interface off" || name == "delete router"),
		s == nil && (name == "interface" || name == "interface off" || name == "delete subnet"),
		p == nil && (name == "aim" || name == "forward" || name == "regroup" || name == "server port expected" || name == "server port moved" || name == "server gone" || name == "delete port" || name == "port down" || name == "pairs"),
		f == nil && (name == "aim" || name == "forward" || name == "delete floating"),
		g == nil && (name == "rule" || name == "remote rule" || name == "regroup" || name == "delete group"),
		rule == nil && name == "delete rule":
		return nothing
	}
	switch name {
	case "interface":
		_, err = m.AddInterface(ctx, r.ID, s.ID, resource.ID{})
	case "interface off":
		_, err = m.RemoveInterface(ctx, r.ID, s.ID, resource.ID{})
	case "gateway":
		_, err = m.Routers.Update(ctx, r.ID, 0, func(r *network.Router) error {
			r.Gateway = &network.RouterGateway{NetworkID: m.public, SNAT: true}
			return nil
		})
	case "no gateway":
		if m.r.IntN(3) > 0 {
			return nothing
		}
		_, err = m.Routers.Update(ctx, r.ID, 0, func(r *network.Router) error { r.Gateway = nil; return nil })
	case "floating":
		_, err = m.Floating.Create(ctx, &network.FloatingAddress{Meta: owned(project, ""), NetworkID: m.public})
	case "aim":
		p = m.portOf(f.ProjectID, p)
		_, err = m.Floating.Update(ctx, f.ID, 0, func(f *network.FloatingAddress) error {
			f.TargetID, f.Fixed = p.ID, netip.Addr{}
			return nil
		})
	case "forward":
		p = m.portOf(f.ProjectID, p)
		if len(p.Fixed) == 0 {
			return nothing
		}
		_, err = m.Forwards.Create(ctx, &network.Forward{FloatingID: f.ID, Protocol: 6, ExternalPort: 1 + m.r.IntN(3), TargetID: p.ID, Fixed: p.Fixed[0].Address, FixedPort: 22})
	case "group":
		_, err = m.Groups.Create(ctx, &network.Group{Meta: owned(project, "g"), Stateful: true})
	case "rule":
		_, err = m.Rules.Create(ctx, &network.Rule{Meta: owned(project, ""), GroupID: g.ID, Ingress: true, Protocol: 6, ProtocolLabel: "tcp",
			HasMin: true, HasMax: true, PortMin: 1 + m.r.IntN(90), PortMax: 99})
	case "remote rule":
		want := &network.Rule{Meta: owned(project, ""), GroupID: g.ID, Ingress: true, Protocol: network.AnyProtocol, RemoteGroup: random(m, network.Groups()).ID}
		if set := random(m, network.AddressGroups()); set != nil && m.r.IntN(2) == 0 {
			want.RemoteGroup, want.RemoteSet = resource.ID{}, set.ID
		}
		_, err = m.Rules.Create(ctx, want)
	case "regroup":
		_, err = m.Ports.Update(ctx, p.ID, 0, func(p *network.Port) error { p.Groups = []resource.ID{g.ID}; return nil })
	case "share":
		_, err = m.Shares.Create(m.admin, &network.Share{Meta: owned(m.adminsProject, ""), Kind: network.SharedNetwork, ObjectID: n.ID,
			Action: network.ShareUse, Target: []resource.ID{{}, m.our, m.their}[m.r.IntN(3)]})
	case "unshare":
		share := random(m, network.Shares())
		if share == nil || share.Action == network.ShareExternal {
			return nothing
		}
		err = m.Shares.Delete(m.admin, share.ID, 0)
	case "pool":
		_, err = m.Pools.Create(ctx, &network.SubnetPool{Meta: owned(project, "p"), Prefixes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, DefaultBits: 28})
	case "address set":
		_, err = m.Addresses.Create(ctx, &network.AddressGroup{Meta: owned(project, "a"), Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	case "address set changed":
		set := random(m, network.AddressGroups())
		if set == nil {
			return nothing
		}
		_, err = m.Addresses.Update(m.admin, set.ID, 0, func(g *network.AddressGroup) error {
			g.Prefixes = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(m.r.IntN(9))}), 32)}
			return nil
		})
	case "mtu":
		_, err = m.Networks.Update(ctx, n.ID, 0, func(n *network.Network) error { n.MTU = 1300 + m.r.IntN(100); return nil })
	case "pairs":
		_, err = m.Ports.Update(m.admin, p.ID, 0, func(p *network.Port) error {
			p.AllowedPairs = []network.AddressPair{{Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(m.r.IntN(20)), 0}), 24+m.r.IntN(9)).Masked()}}
			return nil
		})
	case "port down":
		_, err = m.Ports.Update(ctx, p.ID, 0, func(p *network.Port) error { p.AdminUp = !p.AdminUp; return nil })
	case "host address":
		h := m.hosts[1+m.r.IntN(2)]
		hello := host.Hello{Speaks: release.Own, Name: "h", Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(m.r.IntN(250))})}
		if m.r.IntN(4) > 0 {
			hello.Physical = []string{"public"}
		}
		err = host.Arrive(identity.Internal(context.Background()), m.st, h, hello)
	case "subnet gateway":
		if s == nil {
			return nothing
		}
		at := netip.Addr{} // none; and back to the first address, which the pools leave out
		if !s.Gateway.IsValid() {
			at = s.CIDR.Masked().Addr().Next()
		}
		_, err = m.Subnets.Update(m.admin, s.ID, 0, func(s *network.Subnet) error { s.Gateway = at; return nil })
	case "delete network":
		if m.r.IntN(4) > 0 {
			return nothing // networks should live long enough for other things to happen
		}
		err = m.Networks.Delete(ctx, n.ID, 0)
	case "delete subnet":
		err = m.Subnets.Delete(ctx, s.ID, 0)
	case "delete port":
		err = m.Ports.Delete(ctx, p.ID, 0)
	case "delete router":
		err = m.Routers.Delete(ctx, r.ID, 0)
	case "delete floating":
		err = m.Floating.Delete(ctx, f.ID, 0)
	case "delete group":
		err = m.Groups.Delete(ctx, g.ID, 0)
	case "delete rule":
		err = m.Rules.Delete(ctx, rule.ID, 0)
	default:
		return m.serve(name, ctx, project, n, p)
	}
	return err
}

// portOf is one of a project's ports; otherwise if it has none.
func (m *monkey) portOf(project resource.ID, otherwise *network.Port) *network.Port {
	list := pick(network.Ports(), m.st.Latest(), func(p *network.Port) bool { return p.ProjectID == project && p.Owner != network.OwnerRouter })
	if len(list) == 0 {
		return otherwise
	}
	return list[m.r.IntN(len(list))]
}

// serve does what the domain of servers does.
func (m *monkey) serve(name string, ctx context.Context, project resource.ID, n *network.Network, p *network.Port) error {
	return m.st.Update(ctx, func(tx *state.Tx) error {
		h := m.hosts[m.r.IntN(len(m.hosts))]
		switch name {
		case "server port":
			want := network.PortWanted{ProjectID: project, NetworkID: n.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer, Label: "z", HostID: h}
			if p != nil && m.r.IntN(3) == 0 {
				want.PortID = p.ID
			}
			_, err := network.AddPort(ctx, tx, want)
			return err
		case "server port expected":
			device, err := resource.ParseID(p.DeviceID)
			if err != nil || p.Owner != network.OwnerServer {
				return fault.Errorf(fault.Conflict, "no server's port")
			}
			if m.r.IntN(4) == 0 || h == p.HostID {
				h = resource.ID{}
			}
			return network.ExpectPorts(tx, device, h)
		case "server port moved":
			device, err := resource.ParseID(p.DeviceID)
			if err != nil || p.Owner != network.OwnerServer {
				return fault.Errorf(fault.Conflict, "no server's port")
			}
			return network.BindPort(tx, p.ID, device, network.OwnerServer, "z", h)
		default: // "server gone"
			device, err := resource.ParseID(p.DeviceID)
			if err != nil || p.Owner != network.OwnerServer {
				return fault.Errorf(fault.Conflict, "no server's port")
			}
			return network.ReleasePorts(ctx, tx, device)
		}
	})
}
