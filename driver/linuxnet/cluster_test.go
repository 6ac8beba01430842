package linuxnet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// A cluster is some machines that are joined by a wire, and by another one to the world outside. What
// they are to make real is derived from a state, as in the real cloud: a test changes the state and looks
// at what packets do.
type cluster struct {
	t           testing.TB
	st          *state.State
	net         *network.Service
	admin, ours context.Context
	our         resource.ID
	external    *network.Network
	hosts       []*clusterHost
	wire, world *namespace
	sent        map[resource.ID]map[network.Thing]string // what each host was told last
}

type clusterHost struct {
	*machine
	id      resource.ID
	address netip.Addr
	own     *namespace // the host's own
}

// A clusterShape says how a cluster is made.
type clusterShape struct {
	hosts  int
	mtu    int        // of the wire
	first  netip.Addr // of the hosts' addresses on the wire
	inland int        // the last so many hosts are not connected with the world
}

var usualShape = clusterShape{hosts: 2, mtu: 1500, first: netip.MustParseAddr("192.0.2.1")}

const (
	outsideGateway   = "203.0.113.1"
	outsideGatewayV6 = "2001:db8:24::1"
	externalBridge   = "ext0" // in each host's namespace, of the operator's making
)

func newCluster(t testing.TB, shape clusterShape) *cluster {
	t.Helper()
	c := &cluster{t: t, sent: map[resource.ID]map[network.Thing]string{}}
	var err error
	if c.st, err = state.Open(t.Context(), state.NewMemory(0), state.Options{Random: rand.NewChaCha8([32]byte{1})}); err != nil {
		t.Fatal(err)
	}
	c.net = network.New(c.st)
	c.our = newID()
	c.ours = identity.As(t.Context(), &identity.Actor{UserID: c.our, ProjectID: c.our, Roles: []string{"member", "reader"}})
	c.admin = identity.As(t.Context(), &identity.Actor{UserID: c.our, ProjectID: newID(), Roles: []string{"admin", "manager", "member", "reader"}})
	address := shape.first
	for n := range shape.hosts {
		c.addHost(address, n >= shape.hosts-shape.inland)
		address = address.Next()
	}
	prefix := c.hosts[0].options.Prefix
	c.wire = c.space("x" + prefix + "-wire")
	c.world = c.space("x" + prefix + "-world")
	c.bridge(c.wire, "wire", shape.mtu)
	c.bridge(c.world, "world", 1500)
	for n, h := range c.hosts {
		c.join(h.own, "wire", c.wire, fmt.Sprint("w", n), "wire", shape.mtu, false)
		bits := 24
		if h.address.Is6() {
			bits = 64
		}
		c.address(h.own, "wire", netip.PrefixFrom(h.address, bits))
		if n < shape.hosts-shape.inland {
			c.bridge(h.own, externalBridge, 1500)
			c.join(h.own, "uplink", c.world, fmt.Sprint("w", n), "world", 1500, true)
		}
	}
	for n, h := range c.hosts {
		hello := host.Hello{Name: fmt.Sprint("host-", n), Address: h.address, MTU: shape.mtu, Physical: slices.Sorted(maps.Keys(must(h.Uplinks())(t)))}
		if connected := n < shape.hosts-shape.inland; connected != (len(hello.Physical) == 1) {
			t.Errorf("host %d says that it is connected with %v", n, hello.Physical)
		}
		ok(t, host.Arrive(identity.Internal(t.Context()), c.st, h.id, hello))
	}
	c.address(c.world, "world", netip.MustParsePrefix(outsideGateway+"/24"))
	c.address(c.world, "world", netip.MustParsePrefix(outsideGatewayV6+"/64"))
	echo(t, c.world, 80)
	c.external = c.network(c.admin, network.Network{Meta: resource.Meta{ProjectID: identity.ActorOf(c.admin).ProjectID, Name: "public"}, AdminUp: true, Secured: true, External: true, Kind: network.Flat, Physical: "public"})
	c.subnet(c.admin, c.external, "203.0.113.0/24")
	c.subnet(c.admin, c.external, "2001:db8:24::/64")
	return c
}

func (c *cluster) addHost(address netip.Addr, inland bool) {
	c.t.Helper()
	m := newMachine(c.t, func(o *Options) {
		o.TunnelAddress, o.Metadata = address, whoami
		if !inland {
			o.Physical = map[string]Physical{"public": {Bridge: externalBridge}}
		}
	})
	h := &clusterHost{machine: m, id: newID(), address: address, own: must(openNamespace(netnsDir + "/" + m.host))(c.t)}
	c.t.Cleanup(h.own.close)
	c.hosts = append(c.hosts, h)
}

// space makes a namespace for the test's time.
func (c *cluster) space(name string) *namespace {
	c.t.Helper()
	ns, _, err := makeNamespace(name)
	ok(c.t, err)
	ok(c.t, ns.do(func() error {
		return set([]setting{{"ipv6/conf/all/accept_dad", "0"}, {"ipv6/conf/default/accept_dad", "0"}})
	}))
	c.t.Cleanup(func() {
		ns.close()
		if err := removeNamespace(name); err != nil {
			c.t.Error(err)
		}
	})
	return ns
}

func (c *cluster) bridge(ns *namespace, name string, mtu int) {
	c.t.Helper()
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	ok(c.t, ns.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}))
	ok(c.t, ns.LinkSetUp(must(ns.LinkByName(name))(c.t)))
}

// join connects a namespace with a bridge in another; plugged: by its own bridge to the world.
func (c *cluster) join(ns *namespace, name string, far *namespace, peer, bridge string, mtu int, plugged bool) {
	c.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	ok(c.t, ns.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: far.fd(), PeerMTU: uint32(mtu)}))
	near, there := must(ns.LinkByName(name))(c.t), must(far.LinkByName(peer))(c.t)
	ok(c.t, far.LinkSetMaster(there, must(far.LinkByName(bridge))(c.t)))
	if plugged {
		ok(c.t, ns.LinkSetMaster(near, must(ns.LinkByName(externalBridge))(c.t)))
	}
	ok(c.t, ns.LinkSetUp(near))
	ok(c.t, far.LinkSetUp(there))
}

func (c *cluster) address(ns *namespace, name string, prefix netip.Prefix) {
	c.t.Helper()
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	ok(c.t, ns.AddrReplace(must(ns.LinkByName(name))(c.t), addr))
}

// sync tells the hosts what has changed, as the control plane does.
func (c *cluster) sync(only ...*clusterHost) {
	c.t.Helper()
	if only == nil {
		only = c.hosts
	}
	tx := c.st.Latest()
	for _, h := range only {
		now := map[network.Thing]string{}
		for _, source := range c.net.Sources() {
			for _, id := range source.All(tx, h.id) {
				want, here := source.Want(tx, h.id, id)
				if !here {
					continue
				}
				thing := network.Thing{Kind: source.Kind, ID: id}
				body := must(json.Marshal(want))(c.t)
				if now[thing] = string(body); c.sent[h.id][thing] != now[thing] {
					c.tell(h, thing, body)
				}
			}
		}
		for thing := range c.sent[h.id] {
			if _, still := now[thing]; !still {
				ok(c.t, h.Remove(context.Background(), thing))
			}
		}
		c.sent[h.id] = now
	}
}

func (c *cluster) tell(h *clusterHost, thing network.Thing, body []byte) {
	c.t.Helper()
	ctx := context.Background()
	switch thing.Kind {
	case segmentKind:
		ok(c.t, h.EnsureSegment(ctx, decode[network.Segment](c, body)))
	case filterKind:
		ok(c.t, h.EnsureFilter(ctx, decode[network.Filter](c, body)))
	case gatewayKind:
		ok(c.t, h.EnsureGateway(ctx, decode[network.Gateway](c, body)))
	case attachmentKind:
		must(h.EnsureAttachment(ctx, decode[network.Attachment](c, body)))(c.t)
	}
}

func decode[T any](c *cluster, body []byte) (v T) {
	c.t.Helper()
	ok(c.t, json.Unmarshal(body, &v))
	return v
}

func (c *cluster) network(ctx context.Context, want network.Network) *network.Network {
	c.t.Helper()
	return must(c.net.Networks.Create(ctx, &want))(c.t)[0]
}

func (c *cluster) subnet(ctx context.Context, n *network.Network, cidr string) *network.Subnet {
	c.t.Helper()
	want := network.Subnet{Meta: resource.Meta{ProjectID: n.ProjectID}, NetworkID: n.ID, CIDR: netip.MustParsePrefix(cidr), Gateway: network.AutoGateway}
	return must(c.net.Subnets.Create(ctx, &want))(c.t)[0]
}

// tenant makes a network of the project's with a subnet of each family.
func (c *cluster) tenant(number, mtu int) *network.Network {
	c.t.Helper()
	n := c.network(c.ours, network.Network{Meta: resource.Meta{ProjectID: c.our}, AdminUp: true, Secured: true, MTU: mtu})
	c.subnet(c.ours, n, fmt.Sprintf("10.%d.0.0/24", number))
	c.subnet(c.ours, n, fmt.Sprintf("fd%02d::/64", number))
	return n
}

// router joins networks, and the world.
func (c *cluster) router(networks ...*network.Network) *network.Router {
	c.t.Helper()
	r := must(c.net.Routers.Create(c.ours, &network.Router{
		Meta: resource.Meta{ProjectID: c.our}, AdminUp: true, Gateway: &network.RouterGateway{NetworkID: c.external.ID, SNAT: true},
	}))(c.t)[0]
	for _, n := range networks {
		for s := range network.Subnets().All(c.st.Latest()) {
			if s.NetworkID == n.ID {
				must(c.net.AddInterface(c.ours, r.ID, s.ID, resource.ID{}))(c.t)
			}
		}
	}
	return r
}

// server makes a server's port on a host.
func (c *cluster) server(ctx context.Context, n *network.Network, on *clusterHost) *network.Port {
	c.t.Helper()
	p, err := state.Do(ctx, c.st, func(tx *state.Tx) (*network.Port, error) {
		return network.AddPort(ctx, tx, network.PortWanted{ProjectID: n.ProjectID, NetworkID: n.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer, Label: "z", HostID: on.id})
	})
	ok(c.t, err)
	return p
}

// boot plugs a guest into a port where its host has it.
func (c *cluster) boot(p *network.Port) *guest {
	c.t.Helper()
	p, _ = network.Ports().Find(c.st.Latest(), p.ID)
	for _, h := range c.hosts {
		if h.id == p.HostID {
			return c.bootOn(p, h)
		}
	}
	c.t.Fatalf("port %s is on no host", p.ID)
	return nil
}

// bootOn plugs a guest into a port where one host has it.
func (c *cluster) bootOn(p *network.Port, h *clusterHost) *guest {
	c.t.Helper()
	var addresses []string
	var gateways []string
	for _, f := range p.Fixed {
		s, _ := network.Subnets().Find(c.st.Latest(), f.SubnetID)
		addresses = append(addresses, fmt.Sprintf("%s/%d", f.Address, s.CIDR.Bits()))
		gateways = append(gateways, s.Gateway.String())
	}
	tap := network.Tap{Netns: netnsDir + "/" + h.options.Prefix + "-s-" + p.NetworkID.String(), Name: tapName(p.ID)}
	g := h.boot(tap, p.MAC, addresses...)
	n, _ := network.Networks().Find(c.st.Latest(), p.NetworkID)
	ok(c.t, g.LinkSetMTU(g.eth0, n.MTU))
	for _, gateway := range gateways {
		g.routeVia(gateway)
	}
	echo(c.t, g.namespace, 80)
	return g
}

// of gives a port's address of a family.
func of(p *network.Port, v6 bool) string {
	for _, f := range p.Fixed {
		if f.Address.Is6() == v6 {
			return f.Address.String()
		}
	}
	return ""
}

// overWire counts the tunnels' packets between the hosts that match, while f runs. It is given what
// they carry.
func (c *cluster) overWire(match func(frame []byte) bool, f func()) int {
	c.t.Helper()
	var fd int
	ok(c.t, c.wire.do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	defer unix.Close(fd)
	ok(c.t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	f()
	time.Sleep(50 * time.Millisecond)
	n := 0
	buffer := make([]byte, 1<<17)
	for {
		size, from, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return n
		}
		if link, is := from.(*unix.SockaddrLinklayer); !is || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if inner := carried(buffer[:size]); inner != nil && match(inner) {
			n++
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// carried is the frame that a packet of the tunnels carries; nil if it is no such packet.
func carried(frame []byte) []byte {
	at := 0
	switch {
	case len(frame) > 50 && frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_UDP:
		at = 14 + 20
	case len(frame) > 70 && frame[12] == 0x86 && frame[13] == 0xdd && frame[20] == unix.IPPROTO_UDP:
		at = 14 + 40
	default:
		return nil
	}
	if frame[at+2] != 4789>>8 || frame[at+3] != 4789&0xff {
		return nil
	}
	return frame[at+16:]
}

// expect looks for an answer, and at whom the one who answers takes the asker for.
func (c *cluster) expect(what string, from *namespace, address, want string) {
	c.t.Helper()
	have := asks(from, address)
	if want != "" && have == "" {
		have = reaches(from, address)
	}
	if have != want {
		c.t.Errorf("%s: taken for %q, want %q", what, have, want)
	}
}

func at(address string, port int) string { return net.JoinHostPort(address, fmt.Sprint(port)) }

// openToAll lets everybody in to the project's servers.
func (c *cluster) openToAll() {
	c.t.Helper()
	group, found := network.DefaultGroup(c.st.Latest(), c.our)
	if !found {
		c.t.Fatal("the project has no group")
	}
	for _, v6 := range []bool{false, true} {
		must(c.net.Rules.Create(c.ours, &network.Rule{Meta: resource.Meta{ProjectID: c.our}, GroupID: group, Ingress: true, V6: v6, Protocol: network.AnyProtocol}))(c.t)
	}
}

// move binds a server's port to another host.
func (c *cluster) move(p *network.Port, to *clusterHost) {
	c.t.Helper()
	ok(c.t, c.st.Update(c.ours, func(tx *state.Tx) error {
		device, err := resource.ParseID(p.DeviceID)
		if err != nil {
			return err
		}
		return network.BindPort(tx, p.ID, device, network.OwnerServer, "z", to.id)
	}))
}

// await has another host make ready for a server's port.
func (c *cluster) await(p *network.Port, at *clusterHost) {
	c.t.Helper()
	ok(c.t, c.st.Update(c.ours, func(tx *state.Tx) error {
		device, err := resource.ParseID(p.DeviceID)
		if err != nil {
			return err
		}
		return network.ExpectPorts(tx, device, at.id)
	}))
}

// rehome does what the control plane does when hosts come and go.
func (c *cluster) rehome() {
	c.t.Helper()
	for _, task := range c.net.Tasks() {
		if task.Name != "router-home" {
			continue
		}
		for _, id := range task.All(c.st.Latest()) {
			must(task.Step(identity.Internal(context.Background()), id))(c.t)
		}
	}
}

// arpIn listens in a namespace; what it gives waits until somebody says of himself that he has an address.
func (c *cluster) arpIn(ns *namespace, address string) func() bool {
	c.t.Helper()
	var fd int
	ok(c.t, ns.do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ARP)))
		return err
	}))
	c.t.Cleanup(func() { unix.Close(fd) })
	addr := netip.MustParseAddr(address).AsSlice()
	return func() bool {
		buffer := make([]byte, 2048)
		for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
			n, _, err := unix.Recvfrom(fd, buffer, 0)
			if err != nil {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			if n >= 42 && bytes.Equal(buffer[28:32], addr) && bytes.Equal(buffer[38:42], addr) {
				return true
			}
		}
		return false
	}
}

// macOf is the hardware address that a namespace knows of a neighbour.
func (c *cluster) macOf(ns *namespace, address string) string {
	c.t.Helper()
	for _, n := range must(dump(func() ([]netlink.Neigh, error) { return ns.NeighList(0, netlink.FAMILY_V4) }))(c.t) {
		if addrOf(n.IP) == netip.MustParseAddr(address) {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

// outsideOf is a router's own IPv4 address outside, where IPv6 is routed to it: upstream has to know.
func (c *cluster) outsideOf(r *network.Router, behind ...*network.Network) string {
	c.t.Helper()
	own := ""
	for _, f := range r.Gateway.Fixed {
		if f.Address.Is4() {
			own = f.Address.String()
			continue
		}
		for _, n := range behind {
			for s := range network.Subnets().All(c.st.Latest()) {
				if s.NetworkID == n.ID && s.CIDR.Addr().Is6() {
					link := must(c.world.LinkByName("world"))(c.t)
					ok(c.t, c.world.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(s.CIDR), Gw: f.Address.AsSlice()}))
				}
			}
		}
	}
	return own
}
