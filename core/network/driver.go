package network

import (
	"context"
	"net/netip"

	"github.com/unkai-cloud/unkai/base/resource"
)

// What follows is what one host is to make real of the tenants' networks. The
// control plane derives it from the nouns of this package; it travels to the
// host as JSON and is kept on the host's disk. Wishes only, no observations.

// A Segment is one network as a host sees it: an isolated layer-2 domain.
type Segment struct {
	ID        resource.ID // the network's
	ProjectID resource.ID
	VNI       int // the VXLAN identifier, unique in the cloud
	MTU       int
	Physical  string // the name of a physical network for a provider network, e.g. "public"; "" for an overlay
	VLAN      int    // of a provider network, 0 for untagged
	Subnets   []SegmentSubnet
	Neighbors []Neighbor // every other port of the network, of those on this host its routers': for forwarding and for who has which address. Ports that arrive are among them
}

// A SegmentSubnet is what a host has to know to answer DHCP, RA and DNS options.
type SegmentSubnet struct {
	ID         resource.ID
	CIDR       netip.Prefix
	Gateway    netip.Addr // invalid for none
	DHCP       bool
	DNS        []netip.Addr
	Routes     []Route // announced to guests (DHCP option 121)
	V6Mode     string  // "slaac", "dhcpv6-stateful", "dhcpv6-stateless" or "" (address mode)
	RAMode     string  // the same words: who announces what; "" when the router of the network is not ours
	RouterMAC  string  // of the gateway port, "" while there is none: whose link-local address RAs come from
	MetadataOn bool    // answer 169.254.169.254 on the host (always, for tenants' networks)
}

// A Neighbor is a port of the network wherever it is.
type Neighbor struct {
	MAC       string
	Addresses []netip.Addr
	Host      netip.Addr // the tunnel address of its host; invalid when it is on this host, as a router's leg is on many
	// What else it may send from: prefixes beside its addresses, or, without port security, whatever it likes.
	Pairs []netip.Prefix `json:",omitempty"`
	Open  bool           `json:",omitempty"`
	MACs  []string       `json:",omitempty"` // hardware addresses beside its own
	// Of a leg of a router whose home is this host: the hardware address by which other hosts mean this one's.
	Exit string `json:",omitempty"`
}

// A Route sends a destination to a next hop.
type Route struct {
	Destination netip.Prefix
	NextHop     netip.Addr
}

// An Attachment is one port on this host: a tap for a guest.
type Attachment struct {
	ID           resource.ID // the port's
	NetworkID    resource.ID
	ProjectID    resource.ID
	ServerID     resource.ID
	MAC          string
	Addresses    []FixedAddress
	AllowedPairs []AddressPair
	PortSecurity bool          // false: no anti-spoofing, no groups
	Groups       []resource.ID // security groups; Filters with these IDs are sent too
	AdminUp      bool
	Hostname     string
	DNSDomain    string
	MTU          int
	DHCPOptions  []DHCPOption
	// The port is another host's still, and its guest on the way here. The tap is made and guarded; that the port
	// is here nobody is told, and what is for it goes on to that host.
	Arriving bool `json:",omitempty"`
}

// A FixedAddress is an address of a port with the subnet it is from.
type FixedAddress struct {
	SubnetID resource.ID
	Address  netip.Addr
}

// An AddressPair is what a port may use beside its own addresses.
type AddressPair struct {
	MAC     string // "" for the port's own
	Address netip.Prefix
}

// A DHCPOption is set by the owner for one port.
type DHCPOption struct {
	Name    string // as dnsmasq names them, or a number
	Value   string
	Version int // 4 or 6
}

// A Filter is a security group as a host enforces it.
type Filter struct {
	ID       resource.ID
	Stateful bool
	Rules    []FilterRule
}

// A FilterRule lets packets through; what no rule lets through is dropped.
type FilterRule struct {
	Ingress  bool
	V6       bool
	Protocol int // IP protocol number, 0 for any (ICMPv6 is 58)
	// For TCP, UDP, SCTP and DCCP a range of destination ports; for ICMP a type
	// and a code. -1 for any.
	PortMin, PortMax int
	Remote           []netip.Prefix // whom the rule is about; nil for anybody, empty for nobody
}

// A Gateway is a router as a host makes it real. It is on every host that has guests behind it, with the
// same hardware addresses, so that a packet between its networks is routed where it is sent. One host is
// its home: there is its own address outside. Elsewhere it has a leg outside only for the floating
// addresses of guests there, and everything else that is for outside goes to its home.
type Gateway struct {
	ID         resource.ID // the router's
	ProjectID  resource.ID
	AdminUp    bool
	Interfaces []GatewayInterface
	External   *GatewayExternal
	Floating   []Floating
	Routes     []Route
	Exit       *GatewayExit // elsewhere than at its home, if it has a leg outside there
}

// A GatewayExit is the way to a router's home, within one of its networks.
type GatewayExit struct {
	PortID resource.ID // the interface in that network
	MAC    string      // by which the router's home is meant
}

// A GatewayInterface is a router's leg in a tenant's network.
type GatewayInterface struct {
	PortID    resource.ID
	NetworkID resource.ID
	MAC       string
	Addresses []netip.Prefix // with the subnet's prefix length
	AdminUp   bool
}

// A GatewayExternal is a router's leg in an external network. At its home it has the router's own addresses,
// elsewhere none, and a hardware address of that host's.
type GatewayExternal struct {
	PortID    resource.ID
	NetworkID resource.ID
	MAC       string
	Addresses []netip.Prefix
	NextHops  []netip.Addr // gateways of the external subnets
	// Where it has no addresses that say so: what is within these is reached without a gateway.
	OnLink []netip.Prefix `json:",omitempty"`
	SNAT   bool
}

// A Floating maps an external address to a fixed one, both ways.
type Floating struct {
	ID       resource.ID
	External netip.Addr
	Fixed    netip.Addr
	PortID   resource.ID
	// Forwards replaces the whole mapping by single ports when set.
	Forwards []PortForward
}

// A PortForward maps one port of a floating address.
type PortForward struct {
	Protocol     int
	ExternalPort int
	Fixed        netip.Addr
	FixedPort    int
}

// A Tap is where a guest's frames enter: a tap device in a network namespace.
type Tap struct {
	Netns string // path of the namespace, "" for the host's own
	Name  string
}

// A Thing is something of ours that a host holds.
type Thing struct {
	Kind string // "segment", "attachment", "filter", "gateway"
	ID   resource.ID
}

// A Driver makes networks real on one host. Any call may come again, after a
// crash too, with the same or another wish; calls for different things come
// together. What is already right is left alone: no established connection
// breaks because a wish was repeated. An error is tried again later.
type Driver interface {
	EnsureSegment(ctx context.Context, want Segment) error
	// EnsureAttachment answers where the guest's tap is. The segment and the
	// filters may come later than the attachment: until then frames are dropped.
	EnsureAttachment(ctx context.Context, want Attachment) (Tap, error)
	EnsureFilter(ctx context.Context, want Filter) error
	EnsureGateway(ctx context.Context, want Gateway) error
	// Remove takes the thing away with everything of it. No error if there is none.
	Remove(ctx context.Context, thing Thing) error
	// Present lists everything of ours that the host still holds.
	Present(ctx context.Context) ([]Thing, error)
}
