package network_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// across is a cloud of hosts with two networks joined by a router that leads outside.
type across struct {
	*bench
	hosts   []resource.ID
	changes *state.Watcher
	public  resource.ID
	first   *network.Network
	second  *network.Network
	router  *network.Router
}

// openAcross makes as many hosts; those from inland on are not connected with the world.
func openAcross(t testing.TB, hosts, inland int) *across {
	a := &across{bench: open(t)}
	for range hosts {
		a.hosts = append(a.hosts, resource.NewID(time.Now(), nil))
	}
	slices.SortFunc(a.hosts, func(x, y resource.ID) int { return slices.Compare(x[:], y[:]) })
	for n := range hosts {
		hello := host.Hello{Speaks: release.Own, Name: fmt.Sprint("h", n), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)})}
		if n < inland {
			hello.Physical = []string{"public"}
		}
		a.arrive(n, hello)
	}
	if err := network.Bootstrap(context.Background(), a.st, network.BootstrapOptions{Admin: a.adminsProject}); err != nil {
		t.Fatal(err)
	}
	a.public = pick(network.Networks(), a.st.Latest(), func(n *network.Network) bool { return n.External })[0].ID
	a.first, a.second = a.network(a.ours, a.our), a.network(a.ours, a.our)
	a.router = one(a.bench, a.Routers, a.ours, network.Router{Meta: owned(a.our, "r"), AdminUp: true, Gateway: &network.RouterGateway{NetworkID: a.public, SNAT: true}})
	for n, cidr := range map[*network.Network]string{a.first: "10.1.0.0/24", a.second: "10.2.0.0/24"} {
		must[*network.Interface](a.bench)(a.AddInterface(a.ours, a.router.ID, a.subnet(a.ours, n, cidr).ID, resource.ID{}))
	}
	a.changes = a.st.Watch(a.st.Latest().Revision())
	return a
}

// maintain has a host be emptied.
func (a *across) maintain(n int) {
	a.Helper()
	if err := a.st.Update(context.Background(), func(tx *state.Tx) error {
		h, _ := host.Find(tx, a.hosts[n])
		h.Maintenance, h.Disabled = true, true
		return host.Table().Put(tx, h)
	}); err != nil {
		a.Fatal(err)
	}
	a.settle()
}

func (a *across) observe(n int, seen []host.Observation) {
	a.Helper()
	if err := host.NewHub(a.st, host.Sources()...).Observe(identity.Internal(context.Background()), a.hosts[n], seen); err != nil {
		a.Fatal(err)
	}
}

func (a *across) arrive(n int, hello host.Hello) {
	a.Helper()
	if err := host.Arrive(identity.Internal(context.Background()), a.st, a.hosts[n], hello); err != nil {
		a.Fatal(err)
	}
}

func (a *across) server(n *network.Network, on int) *network.Port {
	a.Helper()
	return must[*network.Port](a.bench)(state.Do(a.ours, a.st, func(tx *state.Tx) (*network.Port, error) {
		return network.AddPort(a.ours, tx, network.PortWanted{ProjectID: a.our, NetworkID: n.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer, Label: "z", HostID: a.hosts[on]})
	}))
}

func (a *across) home() int {
	r, _ := network.Routers().Find(a.st.Latest(), a.router.ID)
	return slices.Index(a.hosts, r.HostID)
}

func (a *across) gateway(on int) (network.Gateway, bool) {
	return network.GatewayFor(a.st.Latest(), a.router.ID, a.hosts[on])
}

// task is the one that gives routers homes.
func (a *across) task() reconcile.Task {
	all := a.Tasks()
	return all[slices.IndexFunc(all, func(t reconcile.Task) bool { return t.Name == "router-home" })]
}

// settle does what there is to do after what has changed, as the reconciler would; what it would do at its start has to be the same.
func (a *across) settle() {
	a.Helper()
	events, err := a.changes.Poll()
	if err != nil {
		a.Fatal(err)
	}
	for _, e := range events {
		for _, id := range a.task().Touched(e) {
			if _, err := a.task().Step(context.Background(), id); err != nil {
				a.Fatal(err)
			}
		}
	}
	if strays := a.task().All(a.st.Latest()); len(strays) > 0 {
		a.Errorf("for routers %v there is a better home, and nothing touched them", strays)
	}
	if wrong := network.Audit(a.st.Latest()); wrong != nil {
		a.Fatal(wrong)
	}
}

func TestARouterIsWhereItsGuestsAre(t *testing.T) {
	a := openAcross(t, 4, 4)
	if a.home() != 0 {
		t.Fatalf("home is host %d", a.home())
	}
	if _, here := a.gateway(1); here {
		t.Error("the router is on a host without guests")
	}
	a.server(a.first, 1)
	g, here := a.gateway(1)
	if !here || len(g.Interfaces) != 2 || g.External != nil || g.Exit == nil {
		t.Errorf("on a host with guests: %v %+v", here, g)
	}
	// The router's other network is there too, and the way home.
	seg, here := network.SegmentFor(a.st.Latest(), a.second.ID, a.hosts[1])
	if !here {
		t.Fatal("a router's network is not where the router is")
	}
	homes := 0
	for _, n := range seg.Neighbors {
		if n.Host == netip.MustParseAddr("192.0.2.1") {
			homes++
		}
	}
	if homes != 1 || seg.Neighbors[0].Host.IsValid() {
		t.Errorf("neighbours %+v, want the leg here and the way home", seg.Neighbors)
	}
	at, _ := network.SegmentFor(a.st.Latest(), g.Interfaces[0].NetworkID, a.hosts[0])
	if !slices.ContainsFunc(at.Neighbors, func(n network.Neighbor) bool { return n.Exit == g.Exit.MAC }) {
		t.Errorf("the others send to %q, home listens to %+v", g.Exit.MAC, at.Neighbors)
	}
	if g, _ := a.gateway(0); g.External == nil || g.Exit != nil || len(g.External.Addresses) == 0 {
		t.Errorf("at home: %+v", g)
	}
}

func TestAFloatingAddressIsWhereItsPortIs(t *testing.T) {
	a := openAcross(t, 4, 3)
	p := a.server(a.first, 1)
	f := one(a.bench, a.Floating, a.ours, network.FloatingAddress{Meta: owned(a.our, ""), NetworkID: a.public, TargetID: p.ID})
	where := func() (on []int) {
		for n := range a.hosts {
			if g, _ := a.gateway(n); slices.ContainsFunc(g.Floating, func(x network.Floating) bool { return x.ID == f.ID }) {
				on = append(on, n)
				if _, outside := network.SegmentFor(a.st.Latest(), a.public, a.hosts[n]); !outside {
					t.Errorf("host %d has the address and not the network outside", n)
				}
			}
		}
		return on
	}
	move := func(to int) {
		t.Helper()
		if err := a.st.Update(a.ours, func(tx *state.Tx) error {
			now, _ := network.Ports().Find(tx, p.ID)
			device, err := resource.ParseID(now.DeviceID)
			if err != nil {
				return err
			}
			return network.BindPort(tx, p.ID, device, network.OwnerServer, "z", a.hosts[to])
		}); err != nil {
			t.Fatal(err)
		}
	}
	if on := where(); !slices.Equal(on, []int{1}) {
		t.Errorf("the address is on %v, want its port's host", on)
	}
	one, _ := a.gateway(1)
	if len(one.External.Addresses) != 0 || one.External.MAC == a.leg(one.External.PortID) {
		t.Errorf("away from home the router has its own address, or home's hardware address: %+v", one.External)
	}
	expect := func(at resource.ID) {
		t.Helper()
		if err := a.st.Update(a.ours, func(tx *state.Tx) error {
			now, _ := network.Ports().Find(tx, p.ID)
			device, err := resource.ParseID(now.DeviceID)
			if err != nil {
				return err
			}
			return network.ExpectPorts(tx, device, at)
		}); err != nil {
			t.Fatal(err)
		}
	}
	// Where it is expected all is ready but that anybody is told.
	expect(a.hosts[2])
	tx := a.st.Latest()
	there, _ := network.AttachmentFor(tx, p.ID, a.hosts[2])
	still, _ := network.AttachmentFor(tx, p.ID, a.hosts[1])
	if !there.Arriving || still.Arriving || still.ID != p.ID {
		t.Errorf("expected it is %+v there and %+v here", there, still)
	}
	if on := where(); !slices.Equal(on, []int{1}) {
		t.Errorf("while its port is expected elsewhere the address is on %v", on)
	}
	if g, here := a.gateway(2); !here || g.External == nil || len(g.Floating) > 0 || len(g.External.Addresses) > 0 {
		t.Errorf("where its port is expected the router is %v %+v", here, g.External)
	}
	if seg, here := network.SegmentFor(tx, a.first.ID, a.hosts[2]); !here || !slices.ContainsFunc(seg.Neighbors, func(n network.Neighbor) bool {
		return n.MAC == p.MAC && n.Host == netip.MustParseAddr("192.0.2.2")
	}) {
		t.Errorf("where it is expected its neighbours are %+v", seg.Neighbors)
	}
	expect(resource.ID{})
	if _, here := a.gateway(2); here {
		t.Error("given up, the router stays")
	}
	expect(a.hosts[2])
	move(2)
	if at, _ := network.AttachmentFor(a.st.Latest(), p.ID, a.hosts[2]); at.Arriving || at.ID != p.ID {
		t.Errorf("arrived it is %+v", at)
	}
	if on := where(); !slices.Equal(on, []int{2}) {
		t.Errorf("after its port moved the address is on %v", on)
	}
	move(3)
	if on := where(); !slices.Equal(on, []int{0}) {
		t.Errorf("with its port on a host that is not connected with the world the address is on %v, want the router's home", on)
	}
}

func (a *across) leg(id resource.ID) string {
	p, _ := network.Ports().Find(a.st.Latest(), id)
	return p.MAC
}

func TestARouterWhoseHomeIsLostGetsAnother(t *testing.T) {
	a := openAcross(t, 4, 3)
	a.server(a.first, 3)
	lose := func(n int) {
		t.Helper()
		if err := host.Lose(context.Background(), a.st, a.hosts[n]); err != nil {
			t.Fatal(err)
		}
		a.settle()
	}
	lose(0)
	if a.home() != 1 {
		t.Errorf("home is %d", a.home())
	}
	if g, _ := a.gateway(0); g.External != nil {
		t.Error("a host that is no longer home keeps the router's address")
	}
	a.arrive(0, host.Hello{Speaks: release.Own, Name: "h0", Address: netip.MustParseAddr("192.0.2.1"), Physical: []string{"public"}})
	a.settle()
	if a.home() != 1 {
		t.Errorf("the router went back to %d for no reason", a.home())
	}
	lose(1)
	lose(0)
	if a.home() != 2 {
		t.Errorf("home is %d", a.home())
	}
	// When nobody who can be heard is connected with the world, it waits where it is: elsewhere nothing would go out either.
	lose(2)
	if a.home() != 2 {
		t.Errorf("home is %d", a.home())
	}
	lose(3)
	if a.home() != 2 {
		t.Errorf("home is %d", a.home())
	}
	a.arrive(1, host.Hello{Speaks: release.Own, Name: "h1", Address: netip.MustParseAddr("192.0.2.2"), Physical: []string{"public"}})
	a.settle()
	if a.home() != 1 {
		t.Errorf("home is %d", a.home())
	}
}

// mute has a host fall mute, or answer again.
func (a *across) mute(n int, is bool) {
	a.Helper()
	if err := a.st.Update(context.Background(), func(tx *state.Tx) error { return host.Mute(tx, a.hosts[n], is) }); err != nil {
		a.Fatal(err)
	}
	a.settle()
}

// plug has a host say anew with which networks outside it is connected.
func (a *across) plug(n int, uplinks ...string) {
	a.Helper()
	a.observe(n, host.UplinkReport(a.hosts[n], uplinks))
	a.settle()
}

func TestARouterWaitsForTheOnlyHostWithItsUplink(t *testing.T) {
	a := openAcross(t, 3, 1)
	a.server(a.first, 2)
	if a.home() != 0 {
		t.Fatalf("home is %d", a.home())
	}
	a.mute(0, true)
	a.mute(0, false)
	if a.home() != 0 {
		t.Errorf("after a moment's silence home is %d, which has no uplink", a.home())
	}
	if err := host.Lose(t.Context(), a.st, a.hosts[0]); err != nil {
		t.Fatal(err)
	}
	a.settle()
	a.arrive(0, host.Hello{Speaks: release.Own, Name: "h0", Address: netip.MustParseAddr("192.0.2.1")})
	a.settle()
	if a.home() != 0 {
		t.Errorf("after it booted anew, and is not plugged in yet, home is %d", a.home())
	}
	a.plug(0, "public")
	a.plug(1, "public")
	if a.home() != 0 {
		t.Errorf("the router went to %d for no reason", a.home())
	}
	a.mute(0, true)
	if a.home() != 1 {
		t.Errorf("with another that has the uplink home is %d", a.home())
	}
	a.mute(0, false)
	if a.home() != 1 {
		t.Errorf("the router went back to %d for no reason", a.home())
	}
}

func TestARouterGoesWhereTheUplinkIsPluggedIn(t *testing.T) {
	a := openAcross(t, 3, 0)
	was := a.home()
	there := (was + 1) % 3
	a.plug(there, "dmz")
	if a.home() != was {
		t.Errorf("another network's uplink took the router from %d to %d", was, a.home())
	}
	a.plug(there, "dmz", "public")
	if a.home() != there {
		t.Errorf("host %d has the uplink now, and home is still %d", there, a.home())
	}
	a.plug(there)
	if a.home() != there {
		t.Errorf("with the uplink gone everywhere the router went to %d for no reason", a.home())
	}
	a.plug(was, "public")
	if a.home() != was {
		t.Errorf("host %d has the uplink now, and home is still %d", was, a.home())
	}
}

// TestARouterWithoutAnUplinkLeavesALostHome: where no host is connected with the world, each is as good as the other.
func TestARouterWithoutAnUplinkLeavesALostHome(t *testing.T) {
	a := openAcross(t, 2, 0)
	was := a.home()
	a.mute(was, true)
	if a.home() == was {
		t.Error("home is mute, and another would do")
	}
	was = a.home()
	a.mute(1-was, false)
	if a.home() != was {
		t.Error("the router went back for no reason")
	}
	a.maintain(was)
	if a.home() == was {
		t.Error("home is a host that is being emptied, and another would do")
	}
}

func TestADisabledHostIsHomeToRouters(t *testing.T) {
	a := openAcross(t, 3, 2)
	operator := identity.Internal(t.Context())
	hosts := &host.Service{State: a.st}
	for _, id := range a.hosts[:2] {
		if err := hosts.SetDisabled(operator, id, true, "for networks only"); err != nil {
			t.Fatal(err)
		}
	}
	a.settle()
	if a.home() != 0 {
		t.Errorf("a router left a host that takes no new guests, for %d", a.home())
	}
	a.mute(0, true)
	if a.home() != 1 {
		t.Errorf("home is %d, not the host that has the uplink and takes no new guests", a.home())
	}
	a.maintain(1)
	if a.home() != 1 {
		t.Errorf("a router left the last host with its uplink that can be heard for %d", a.home())
	}
	a.mute(0, false)
	if a.home() != 0 {
		t.Errorf("a router stays on %d, which is being emptied", a.home())
	}
}

// TestOnlyRoutersThatHaveABetterHomeAreLookedAt: one that waits for its uplink is not settled anew with each host that comes and goes.
func TestOnlyRoutersThatHaveABetterHomeAreLookedAt(t *testing.T) {
	a := openAcross(t, 3, 1)
	inside := one(a.bench, a.Routers, a.ours, network.Router{Meta: owned(a.our, "inside"), AdminUp: true})
	all := func() []resource.ID { return a.task().All(a.st.Latest()) }
	if strays := all(); len(strays) > 0 {
		t.Errorf("where nothing is wrong: %v", strays)
	}
	a.mute(0, true)
	if strays := all(); len(strays) > 0 {
		t.Errorf("while the uplink is awaited: %v", strays)
	}
	at, _ := network.Routers().Find(a.st.Latest(), inside.ID)
	if at.HostID == a.hosts[0] {
		t.Error("a router without a gateway waits for an uplink")
	}
}

func TestARouterLeavesAHomeThatFallsMuteOrIsEmptied(t *testing.T) {
	a := openAcross(t, 3, 3)
	a.server(a.first, 2)
	a.mute(0, true)
	if a.home() != 1 {
		t.Errorf("home is %d", a.home())
	}
	if h, _ := host.Find(a.st.Latest(), a.hosts[0]); !h.Up() {
		t.Error("a mute host counts as lost")
	}
	a.mute(0, false)
	if a.home() != 1 {
		t.Errorf("the router went back to %d for no reason", a.home())
	}
	a.maintain(1)
	if home := a.home(); home == 1 {
		t.Error("home is a host that is being emptied")
	}
}

func TestANetworksPacketsFitItsTunnels(t *testing.T) {
	a := openAcross(t, 1, 1)
	if a.first.MTU != 1450 {
		t.Errorf("over IPv4: %d", a.first.MTU)
	}
	a.arrive(0, host.Hello{Speaks: release.Own, Name: "h0", Address: netip.MustParseAddr("2001:db8::1"), Physical: []string{"public"}})
	if n := a.network(a.ours, a.our); n.MTU != 1430 {
		t.Errorf("over IPv6: %d", n.MTU)
	}
	// One that is there is changed as before, but not made larger than what fits now.
	name := func(mtu int) error {
		_, err := a.Networks.Update(a.ours, a.first.ID, 0, func(n *network.Network) error { n.Name, n.MTU = "renamed", mtu; return nil })
		return err
	}
	if err := name(1450); err != nil {
		t.Error(err)
	}
	a.refuses(fault.Invalid, "mtu", name(1440))
}

// TestNetworksFitTheWires: no network is made that a host's wire does not carry, and no host joins whose wire does not carry those that there are.
func TestNetworksFitTheWires(t *testing.T) {
	says := func(n, mtu int) host.Hello {
		return host.Hello{Speaks: release.Own, Name: fmt.Sprint("h", n), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)}), Physical: []string{"public"}, MTU: mtu}
	}
	a := openAcross(t, 2, 2)
	join := func(n, mtu int) error {
		return host.Arrive(context.Background(), a.st, resource.NewID(time.Now(), nil), says(n, mtu))
	}
	wish := func(mtu int) error {
		_, err := a.Networks.Create(a.ours, &network.Network{Meta: owned(a.our, ""), AdminUp: true, MTU: mtu})
		return err
	}
	makes := func(mtu, want int) {
		t.Helper()
		if n := a.network(a.ours, a.our); n.MTU != want {
			t.Errorf("an MTU of %d instead of %d", n.MTU, want)
		}
		if err := wish(want); err != nil {
			t.Error(err)
		}
	}
	a.arrive(1, says(1, 9000))
	makes(0, 1450) // the other says nothing
	a.arrive(0, says(0, 9000))
	makes(0, 1500) // what guests are used to, unless they ask
	if err := wish(8951); !fault.Is(err, fault.Invalid) {
		t.Errorf("a network of 8951 bytes over 9000: %v", err)
	}
	for _, mtu := range []int{0, 1500, 1549} {
		if err := join(2, mtu); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "1550") {
			t.Errorf("a host with a wire of %d beside networks of 1500: %v", mtu, err)
		}
	}
	if err := join(2, 1550); err != nil {
		t.Error(err)
	}
	// One that is in stays so. It is told of, and what is made next fits.
	a.arrive(1, says(1, 1400))
	if h, _ := host.Find(a.st.Latest(), a.hosts[1]); !strings.Contains(h.Narrow(a.st.Latest()), "1550") {
		t.Errorf("of a host whose wire is too small it is said: %q", h.Narrow(a.st.Latest()))
	}
	makes(0, 1350)
	a.arrive(1, says(1, 68))
	makes(0, 1280)
	if err := join(3, 1300); !fault.Is(err, fault.Conflict) {
		t.Errorf("a wire that no IPv6 fits: %v", err)
	}
}

// TestTheFirstWireDecides: what a cloud begins with is made before any host can tell what wires carry.
func TestTheFirstWireDecides(t *testing.T) {
	for name, c := range map[string]struct {
		address string
		mtu     int
		want    int
	}{
		"a smaller wire": {"192.0.2.1", 1400, 1350}, "a larger one": {"192.0.2.1", 9000, 1450}, "over IPv6": {"2001:db8::1", 1500, 1430}, "a small one over IPv6": {"2001:db8::1", 1400, 1330},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t)
			idle, used := b.network(b.ours, b.our), b.network(b.ours, b.our)
			b.subnet(b.ours, used, "10.0.0.0/24")
			hello := host.Hello{Speaks: release.Own, Name: "h", Address: netip.MustParseAddr(c.address), MTU: c.mtu}
			try := func() error {
				return host.Arrive(context.Background(), b.st, resource.NewID(time.Now(), nil), hello)
			}
			// Where a guest is that was told otherwise, the network stays as it is, and the host outside.
			port, err := state.Do(b.ours, b.st, func(tx *state.Tx) (*network.Port, error) {
				return network.AddPort(b.ours, tx, network.PortWanted{ProjectID: b.our, NetworkID: used.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer})
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := try(); fault.Is(err, fault.Conflict) != (c.want < 1450) {
				t.Errorf("beside a guest: %v", err)
			}
			if c.want < 1450 {
				if err := b.st.Update(b.ours, func(tx *state.Tx) error { return network.ReleasePort(b.ours, tx, port.ID) }); err != nil {
					t.Fatal(err)
				}
				if err := try(); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range []*network.Network{idle, used} {
				if now, _ := network.Networks().Find(b.st.Latest(), n.ID); now.MTU != c.want {
					t.Errorf("an MTU of %d instead of %d", now.MTU, c.want)
				}
			}
		})
	}
}

// TestARouterHasNoHomeThatNobodyReaches: what its guests elsewhere send out would not arrive there.
func TestARouterHasNoHomeThatNobodyReaches(t *testing.T) {
	a := openAcross(t, 3, 2)
	hello := func(n int, address string) host.Hello {
		h := host.Hello{Speaks: release.Own, Name: fmt.Sprint("h", n), Physical: []string{"public"}, Capacity: host.Capacity{Driver: "qemu"}}
		if address != "" {
			h.Address = netip.MustParseAddr(address)
		}
		return h
	}
	if a.home() != 0 {
		t.Fatalf("home is host %d", a.home())
	}
	a.arrive(0, hello(0, ""))
	a.settle()
	if a.home() != 1 {
		t.Errorf("with no address at home, home is %d", a.home())
	}
	a.arrive(1, hello(1, "2001:db8::2")) // the family is that of the first which has one
	a.settle()
	if a.home() != 1 {
		t.Errorf("home is %d", a.home())
	}
	a.arrive(0, hello(0, "192.0.2.1"))
	a.settle()
	if a.home() != 0 {
		t.Errorf("when home has an address of another family, home is %d", a.home())
	}
	// One without a way out, that is reached, is better than one that is not: guests' packets at least come that far.
	a.arrive(1, hello(1, ""))
	a.arrive(0, hello(0, ""))
	a.settle()
	if a.home() != 2 {
		t.Errorf("where only the inland host has an address, home is %d", a.home())
	}
	a.arrive(0, hello(0, "192.0.2.1"))
	a.settle()
	if a.home() != 0 {
		t.Errorf("when one with a way out has an address again, home is %d", a.home())
	}
}

// TestAnExpectedPortThatIsGone: the host that a port was on its way to is told that its network is none of its any more.
func TestAnExpectedPortThatIsGone(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	b.subnet(b.ours, n, "10.0.0.0/24")
	here, there, server := resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil)
	ctx := identity.Internal(t.Context())
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	hub := host.NewHub(b.st, b.Sources()...)
	for _, id := range []resource.ID{here, there} {
		check(host.Arrive(ctx, b.st, id, host.Hello{Speaks: release.Own, Name: id.String()}))
	}
	session := hub.Connect(there)
	told := func() (n int) {
		t.Helper()
		check(hub.Pump())
		if d := must[*host.Delivery](b)(session.Poll()); d != nil {
			for _, item := range d.Items {
				if item.Kind == "segment" && item.Body == nil {
					n--
				} else if item.Kind == "segment" {
					n++
				}
			}
		}
		return n
	}
	write := func(f func(*state.Tx) error) { t.Helper(); check(b.st.Update(ctx, f)) }
	told()
	hub.Now = func() time.Time { return time.Now().Add(time.Minute) } // no pace holds anything up
	write(func(tx *state.Tx) error {
		_, err := network.AddPort(ctx, tx, network.PortWanted{ProjectID: b.our, NetworkID: n.ID, DeviceID: server, Owner: network.OwnerServer, Label: "z", HostID: here})
		return err
	})
	write(func(tx *state.Tx) error { return network.ExpectPorts(tx, server, there) })
	if got := told(); got != 1 {
		t.Errorf("of the expected port's network the host is told %d", got)
	}
	hub.Now = func() time.Time { return time.Now().Add(time.Hour) }
	write(func(tx *state.Tx) error { return network.ReleasePorts(ctx, tx, server) })
	if got := told(); got != -1 {
		t.Errorf("that it is gone the host is told %d", got)
	}
}

// A host of the release before says nothing of its uplinks: it may have any, and keeps its routers while others are upgraded before it.
func TestAHostThatSaysNothingOfUplinksKeepsItsRouters(t *testing.T) {
	a := openAcross(t, 2, 0)
	was := a.home()
	a.arrive(was, host.Hello{Name: fmt.Sprint("h", was), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(was + 1)})})
	a.settle()
	a.plug(1-was, "public")
	if a.home() != was {
		t.Errorf("the router went from a host of the release before to %d", a.home())
	}
	a.mute(was, true)
	if a.home() != 1-was {
		t.Errorf("when its home is mute the router is at %d", a.home())
	}
	a.mute(was, false)
	a.mute(1-was, true)
	if a.home() != was {
		t.Errorf("and then at %d", a.home())
	}
}

// TestAHostWhoseWireBecameTooSmallHasNoNewGuests: as long as that is so, and others' are large enough.
func TestAHostWhoseWireBecameTooSmallHasNoNewGuests(t *testing.T) {
	a := openAcross(t, 3, 3)
	says := func(n, mtu int) {
		a.arrive(n, host.Hello{Speaks: release.Own, Name: fmt.Sprint("h", n), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)}), Physical: []string{"public"}, MTU: mtu})
	}
	unfit := func(want ...int) {
		t.Helper()
		tx := a.st.Latest()
		fit := host.FitOf(tx)
		for n, id := range a.hosts {
			h, _ := host.Find(tx, id)
			why, is := h.Unfit(tx), slices.Contains(want, n)
			if (why != "") != is || fit.Has(h) == is || is && !strings.Contains(why, "1500 are needed for networks with an MTU of 1450") {
				t.Errorf("host %d fits: %v, %q", n, fit.Has(h), why)
			}
		}
	}
	for n := range a.hosts {
		says(n, 1500)
	}
	unfit()
	says(1, 1499)
	unfit(1)
	says(2, 1400)
	unfit(1, 2)
	if err := host.Lose(context.Background(), a.st, a.hosts[0]); err != nil { // the last that carries them: no host is worse than another
		t.Fatal(err)
	}
	unfit()
	says(0, 1500)
	unfit(1, 2)
	says(2, 0) // its agent does not say
	unfit(1)
	says(1, 1500)
	unfit()
}

// TestAMachineIsToldAtTheJoinThatItsWireIsTooSmall: and nothing is adapted to a machine that is none of the hosts yet.
func TestAMachineIsToldAtTheJoinThatItsWireIsTooSmall(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	ctx := identity.Internal(t.Context())
	authority, err := host.OpenAuthority(ctx, b.st, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		t.Fatal(err)
	}
	token, err := authority.Token(ctx, time.Hour, host.ForHosts)
	if err != nil {
		t.Fatal(err)
	}
	join := func(last byte, mtu int) error {
		_, err := authority.Join(ctx, host.JoinRequest{Token: token, Request: csr, Says: &host.Hello{Name: fmt.Sprint("h", last),
			Address: netip.AddrFrom4([4]byte{192, 0, 2, last}), MTU: mtu, Capacity: host.Capacity{Driver: "qemu"}}}, time.Now())
		return err
	}
	if err := join(1, 1300); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "1330") {
		t.Errorf("a wire that no IPv6 fits: %v", err)
	}
	if err := join(1, 1400); err != nil { // the first, to which networks without guests are adapted when it comes
		t.Fatal(err)
	}
	if now, _ := network.Networks().Find(b.st.Latest(), n.ID); now.MTU != n.MTU {
		t.Errorf("the network has %d instead of %d before the host has come", now.MTU, n.MTU)
	}
	if err := host.Arrive(ctx, b.st, resource.NewID(time.Now(), nil), host.Hello{Name: "h1", Address: netip.MustParseAddr("192.0.2.1"), MTU: 1500}); err != nil {
		t.Fatal(err)
	}
	if token, err = authority.Token(ctx, time.Hour, host.ForHosts); err != nil {
		t.Fatal(err)
	}
	if err := join(2, 1400); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "1500 are needed") {
		t.Errorf("a wire of 1400 beside networks of 1450: %v", err)
	}
	if err := join(2, 1500); err != nil {
		t.Error(err)
	}
}
