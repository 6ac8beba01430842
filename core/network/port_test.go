package network_test

import (
	"net/netip"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/network"
)

// plugged makes a port as a server of a project gets it.
func (b *bench) plugged(project resource.ID, want network.PortWanted) (*network.Port, error) {
	ctx := as(project, "member", "reader")
	return state.Do(ctx, b.st, func(tx *state.Tx) (*network.Port, error) {
		want.ProjectID, want.DeviceID, want.Owner, want.Label, want.HostID = project, tx.NewID(), network.OwnerServer, "z", tx.NewID()
		return network.AddPort(ctx, tx, want)
	})
}

// userEdits are what the owner of a bound port may ask about who uses it, all of which are refused.
var userEdits = map[string]network.Edit[network.Port]{
	"another device":       func(p *network.Port) error { p.DeviceID = p.NetworkID.String(); return nil },
	"no device":            func(p *network.Port) error { p.DeviceID = ""; return nil },
	"no owner":             func(p *network.Port) error { p.Owner = network.OwnerNone; return nil },
	"another kind":         func(p *network.Port) error { p.Owner = network.OwnerRouter; return nil },
	"another zone":         func(p *network.Port) error { p.OwnerLabel = "y"; return nil },
	"another host":         func(p *network.Port) error { p.HostID = p.NetworkID; return nil },
	"a host of no cloud":   func(p *network.Port) error { p.HostLabel = "elsewhere"; return nil },
	"that it was not made": func(p *network.Port) error { p.Adopted = !p.Adopted; return nil },
}

func TestWhoUsesAPortChangesWithTheUserAlone(t *testing.T) {
	b := open(t)
	n := b.network(b.theirs, b.their)
	b.subnet(b.theirs, n, "10.0.0.0/24")
	given := b.port(b.theirs, n)
	made := must[*network.Port](b)(b.plugged(b.their, network.PortWanted{NetworkID: n.ID}))
	must[*network.Port](b)(b.plugged(b.their, network.PortWanted{PortID: given.ID}))
	r := one(b, b.Routers, b.theirs, network.Router{Meta: owned(b.their, "r"), AdminUp: true})
	leg := must[*network.Interface](b)(b.AddInterface(b.theirs, r.ID, made.Fixed[0].SubnetID, resource.ID{}))
	for name, edit := range userEdits {
		for _, id := range []resource.ID{made.ID, given.ID, leg.PortID} {
			_, err := b.Ports.Update(b.admin, id, 0, edit)
			if id == leg.PortID && name == "another kind" {
				continue // it is a router's already
			}
			b.refuses(fault.Conflict, "port-in-use", err)
		}
	}
	// The words may be said again, and everything else may change.
	now, err := b.Ports.Update(b.theirs, made.ID, 0, func(p *network.Port) error { p.Name = "mine"; return nil })
	if err != nil || now.DeviceID != made.DeviceID || now.Name != "mine" {
		t.Fatalf("port %+v, %v", now, err)
	}
}

func TestWordsOfClientsAreNoOwners(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	victim := resource.MustID("01020304-0506-0708-090a-0b0c0d0e0f10")
	want := network.Port{Meta: owned(b.our, "p"), NetworkID: n.ID, PortSecurity: true, VNIC: network.NormalVNIC, DeviceID: victim.String()}
	said := one(b, b.Ports, b.ours, want)
	for _, owner := range []network.Owner{network.OwnerServer, network.OwnerRouter, network.OwnerDHCP} {
		want := want
		want.Owner = owner
		_, err := b.Ports.Create(b.ours, &want)
		b.refuses(fault.Forbidden, "", err)
		_, err = b.Ports.Update(b.ours, said.ID, 0, func(p *network.Port) error { p.Owner = owner; return nil })
		b.refuses(fault.Conflict, "port-in-use", err)
	}
	if got := network.PortsOf(b.st.Latest(), victim); len(got) != 0 {
		t.Fatalf("a port is the server's because a client said so: %+v", got)
	}
	if _, err := b.Ports.Update(b.ours, said.ID, 0, func(p *network.Port) error { p.DeviceID = ""; return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestServersTakeTheirOwnProjectsPorts(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	p := b.port(b.ours, n)
	err := b.st.Update(b.admin, func(tx *state.Tx) error {
		_, err := network.AddPort(b.admin, tx, network.PortWanted{ProjectID: b.their, PortID: p.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer})
		return err
	})
	b.refuses(fault.Invalid, "port-not-usable", err)
}

// shared is a network of the operator's that everybody may use, with its gateway at 10.0.0.1.
func (b *bench) shared() (*network.Network, *network.Subnet) {
	n := one(b, b.Networks, b.admin, network.Network{Meta: owned(b.adminsProject, "n"), AdminUp: true, Secured: true, Shared: true})
	return n, b.subnet(b.admin, n, "10.0.0.0/24")
}

func TestAddressesOfSharedNetworksAreNotChosenByUsers(t *testing.T) {
	b := open(t)
	n, s := b.shared()
	for _, text := range []string{"10.0.0.1", "10.0.0.77"} {
		_, err := b.plugged(b.their, network.PortWanted{NetworkID: n.ID, Address: netip.MustParseAddr(text)})
		b.refuses(fault.Forbidden, "", err)
	}
	p := must[*network.Port](b)(b.plugged(b.their, network.PortWanted{NetworkID: n.ID, SubnetID: s.ID}))
	if p.Fixed[0].Address == s.Gateway {
		t.Fatal("a guest stands at the gateway's address")
	}
	must[*network.Port](b)(b.plugged(b.adminsProject, network.PortWanted{NetworkID: n.ID, Address: netip.MustParseAddr("10.0.0.77")}))
}

// TestStrangersRouterIsNoGateway: nobody's packets pass it who did not send them there.
func TestStrangersRouterIsNoGateway(t *testing.T) {
	b := open(t)
	public := one(b, b.Networks, b.admin, network.Network{Meta: owned(b.adminsProject, "public"), AdminUp: true, Secured: true, External: true})
	b.subnet(b.admin, public, "203.0.113.0/24")
	n, s := b.shared()
	v6 := one(b, b.Subnets, b.admin, network.Subnet{Meta: owned(b.adminsProject, "s6"), NetworkID: n.ID, CIDR: netip.MustParsePrefix("fd00::/64"),
		Gateway: network.AutoGateway, DHCP: true, V6Mode: network.SLAAC, RAMode: network.SLAAC})
	routers := map[resource.ID]resource.ID{}
	connect := func(project resource.ID) netip.Addr {
		t.Helper()
		ctx := as(project, "member", "reader")
		r := one(b, b.Routers, ctx, network.Router{Meta: owned(project, "r"), AdminUp: true, Gateway: &network.RouterGateway{NetworkID: public.ID, SNAT: true}})
		routers[project] = r.ID
		must[*network.Interface](b)(b.AddInterface(ctx, r.ID, v6.ID, resource.ID{}))
		i := must[*network.Interface](b)(b.AddInterface(ctx, r.ID, s.ID, resource.ID{}))
		return must[*network.Port](b)(b.Ports.Get(b.admin, i.PortID)).Fixed[0].Address
	}
	if at := connect(b.their); at == s.Gateway {
		t.Fatal("a stranger's router took the gateway's address")
	}
	p := must[*network.Port](b)(b.plugged(b.our, network.PortWanted{NetworkID: n.ID}))
	if seg, ok := network.SegmentFor(b.st.Latest(), n.ID, p.HostID); !ok || seg.Subnets[1].RouterMAC != "" {
		t.Errorf("guests hear of a stranger's router: %+v", seg.Subnets)
	}
	aim := func() (*network.FloatingAddress, error) {
		made, err := b.Floating.Create(b.ours, &network.FloatingAddress{Meta: owned(b.our, ""), NetworkID: public.ID, TargetID: p.ID})
		if err != nil {
			return nil, err
		}
		return made[0], nil
	}
	_, err := aim()
	b.refuses(fault.NotFound, "external-unreachable", err)
	if at := connect(b.adminsProject); at != s.Gateway {
		t.Fatalf("the owner's router is at %s", at)
	}
	if f := must[*network.FloatingAddress](b)(aim()); f.RouterID != routers[b.adminsProject] {
		t.Error("the floating address leads through a stranger's router")
	}
}

func TestExternalShareIsForGatewaysAlone(t *testing.T) {
	b := open(t)
	n := b.network(b.admin, b.adminsProject)
	b.subnet(b.admin, n, "203.0.113.0/24")
	share := func(action network.ShareAction) {
		one(b, b.Shares, b.admin, network.Share{Meta: owned(b.adminsProject, ""), Kind: network.SharedNetwork, ObjectID: n.ID, Action: action, Target: b.their})
	}
	want := func() error {
		_, err := b.Ports.Create(b.theirs, &network.Port{Meta: owned(b.their, "p"), NetworkID: n.ID, PortSecurity: true, VNIC: network.NormalVNIC})
		return err
	}
	share(network.ShareExternal)
	b.refuses(fault.Forbidden, "", want())
	if _, err := b.plugged(b.their, network.PortWanted{NetworkID: n.ID}); err == nil {
		t.Fatal("a guest is in the external network")
	}
	if got := network.DefaultNetworks(b.st.Latest(), b.their); len(got) != 0 {
		t.Error("servers would be put on it")
	}
	one(b, b.Routers, b.theirs, network.Router{Meta: owned(b.their, "r"), AdminUp: true, Gateway: &network.RouterGateway{NetworkID: n.ID, SNAT: true}})
	share(network.ShareUse)
	if err := want(); err != nil {
		t.Fatal(err)
	}
}

func TestRouterTakesPortsOfItsProject(t *testing.T) {
	b := open(t)
	n := b.network(b.theirs, b.their)
	b.subnet(b.theirs, n, "10.9.0.0/24")
	one(b, b.Shares, b.theirs, network.Share{Meta: owned(b.their, ""), Kind: network.SharedNetwork, ObjectID: n.ID, Action: network.ShareUse, Target: b.our})
	r := one(b, b.Routers, b.theirs, network.Router{Meta: owned(b.their, "r"), AdminUp: true})
	p := one(b, b.Ports, b.ours, network.Port{Meta: owned(b.our, "p"), NetworkID: n.ID, PortSecurity: true, VNIC: network.NormalVNIC})
	_, err := b.AddInterface(b.theirs, r.ID, resource.ID{}, p.ID) // seen by the owner of the network
	if !fault.Is(err, fault.Forbidden) {
		t.Fatalf("got %v, want forbidden", err)
	}
	if now := must[*network.Port](b)(b.Ports.Get(b.ours, p.ID)); now.Owner != network.OwnerNone || !now.PortSecurity {
		t.Fatalf("port %+v", now)
	}
	must[*network.Interface](b)(b.AddInterface(b.theirs, r.ID, resource.ID{}, b.port(b.theirs, n).ID))
}

// TestRouterStaysWhileForwardsLean: and a forward goes with the address that it leads to.
func TestRouterStaysWhileForwardsLean(t *testing.T) {
	b := open(t)
	public := one(b, b.Networks, b.admin, network.Network{Meta: owned(b.adminsProject, "public"), AdminUp: true, Secured: true, External: true})
	b.subnet(b.admin, public, "203.0.113.0/24")
	n := b.network(b.ours, b.our)
	s := b.subnet(b.ours, n, "10.0.0.0/24")
	p := b.port(b.ours, n)
	r := one(b, b.Routers, b.ours, network.Router{Meta: owned(b.our, "r"), AdminUp: true, Gateway: &network.RouterGateway{NetworkID: public.ID, SNAT: true}})
	must[*network.Interface](b)(b.AddInterface(b.ours, r.ID, s.ID, resource.ID{}))
	f := one(b, b.Floating, b.ours, network.FloatingAddress{Meta: owned(b.our, ""), NetworkID: public.ID})
	one(b, b.Forwards, b.ours, network.Forward{FloatingID: f.ID, Protocol: 6, ExternalPort: 2222, TargetID: p.ID, FixedPort: 22})
	off := func() error {
		_, err := b.RemoveInterface(b.ours, r.ID, s.ID, resource.ID{})
		return err
	}
	b.refuses(fault.Conflict, "interface-in-use-floating", off())
	_, err := b.Routers.Update(b.ours, r.ID, 0, func(r *network.Router) error { r.Gateway = nil; return nil })
	b.refuses(fault.Conflict, "gateway-needed", err)
	b.refuses(fault.Conflict, "router-in-use", b.Routers.Delete(b.ours, r.ID, 0))
	if _, err := b.Ports.Update(b.ours, p.ID, 0, func(p *network.Port) error {
		p.Fixed = []network.FixedAddress{{Address: netip.MustParseAddr("10.0.0.99")}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if left := network.ForwardsOf(b.st.Latest(), f.ID); len(left) != 0 {
		t.Errorf("%+v leads to an address that the port gave back", left[0])
	}
	if err := off(); err != nil {
		t.Fatal(err)
	}
	if err := b.Routers.Delete(b.ours, r.ID, 0); err != nil {
		t.Fatal(err)
	}
	if wrong := network.Audit(b.st.Latest()); wrong != nil {
		t.Error(wrong)
	}
}
