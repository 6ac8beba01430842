package network

import (
	"context"
	"math/big"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Subnet is a range of addresses of a network, and what its guests are told with them.
type Subnet struct {
	resource.Meta

	// Asked for by the owner.
	Description string
	Tags        []string
	NetworkID   resource.ID
	CIDR        netip.Prefix
	Gateway     netip.Addr // invalid: none
	Pools       []Pool     // nil at creation: all but the gateway
	DHCP        bool
	DNS         []netip.Addr
	Routes      []Route
	V6Mode      Mode6 // how guests get their addresses
	RAMode      Mode6 // what the router announces
	PoolID      resource.ID
	ServiceFor  []string // kinds of owners of ports that this subnet alone is for, in the dialect's words
	DNSPublish  bool     // the addresses' names are to be published
}

// A Mode6 is a way in which guests learn their IPv6 addresses.
type Mode6 string

// The modes.
const (
	SLAAC     Mode6 = "slaac"
	Stateful  Mode6 = "dhcpv6-stateful"
	Stateless Mode6 = "dhcpv6-stateless"
)

// Auto reports whether guests make their addresses themselves, from their MAC addresses.
func (s *Subnet) Auto() bool {
	return s.CIDR.Addr().Is6() && (s.V6Mode == SLAAC || s.V6Mode == Stateless)
}

// Bounds of what one subnet may hold.
const (
	maxDNS    = 5
	maxRoutes = 20
)

var subnetFields = common(fields[Subnet]{
	"description": {text: func(s *Subnet) []string { return []string{s.Description} }, by: true, sparse: true},
	"tag":         {text: func(s *Subnet) []string { return s.Tags }, by: true},
	"network":     {text: func(s *Subnet) []string { return oneID(s.NetworkID) }, index: "network", key: idKey},
	"cidr":        {text: func(s *Subnet) []string { return []string{s.CIDR.String()} }, by: true, single: true},
	"version": {text: func(s *Subnet) []string {
		if s.CIDR.Addr().Is4() {
			return []string{"4"}
		}
		return []string{"6"}
	}, by: true, single: true},
	"gateway": {text: func(s *Subnet) []string {
		if !s.Gateway.IsValid() {
			return []string{""}
		}
		return []string{s.Gateway.String()}
	}, by: true},
	"dhcp":    {text: func(s *Subnet) []string { return oneBool(s.DHCP) }, by: true, single: true},
	"v6-mode": {text: func(s *Subnet) []string { return []string{string(s.V6Mode)} }, by: true},
	"ra-mode": {text: func(s *Subnet) []string { return []string{string(s.RAMode)} }, by: true},
	"pool":    {text: func(s *Subnet) []string { return oneID(s.PoolID) }, index: "pool", key: idKey},
})

var subnets = state.NewTable[Subnet]("subnet",
	facets(subnetFields),
	state.Index("tail", func(s *Subnet) state.Key { return state.KeyOf(s.ID.Tail()) }),
	state.Index("network", func(s *Subnet) state.Key { return state.KeyOf(s.NetworkID) }),
	state.Index("pool", func(s *Subnet) state.Key {
		if s.PoolID.IsZero() {
			return ""
		}
		return state.KeyOf(s.PoolID)
	}),
	// In the order of addresses, so that the space between them is found.
	state.Index("pool-address", func(s *Subnet) state.Key {
		if s.PoolID.IsZero() {
			return ""
		}
		return state.KeyOf(s.PoolID, s.CIDR.Addr())
	}),
	state.Tally("project", func(s *Subnet) (state.Key, state.Amounts) { return state.KeyOf(s.ProjectID), state.Amounts{} }),
	// How many addresses a project holds of a pool, in units of /32 or /64.
	state.Tally("pool-project", func(s *Subnet) (state.Key, state.Amounts) {
		if s.PoolID.IsZero() {
			return "", state.Amounts{}
		}
		return state.KeyOf(s.PoolID, s.ProjectID), state.Amounts{prefixUnits(s.CIDR)}
	}),
)

var _ = identity.Rules(map[string]identity.Rule{
	"subnet.create": identity.Member, "subnet.read": identity.Reader,
	"subnet.update": identity.Member, "subnet.delete": identity.Member,
	"subnet.set-service": identity.Admin, "subnet.count-addresses": identity.Admin,
})

var subnetNoun = noun[Subnet]{
	tallied: true,
	name:    "subnet", title: "Subnet", table: subnets, fields: subnetFields,
	shown: func(tx *state.Tx, a *identity.Actor, s *Subnet) bool {
		n, ok := networks.PeekOne(tx, s.NetworkID)
		return ok && usable(tx, n, a.ProjectID)
	},
	// The subnets of every network that others share. Those of an external network are not shown with it.
	others: func(tx *state.Tx, a *identity.Actor) []span {
		var spans []span
		shared := append(sharedSpans(tx, SharedNetwork, a.ProjectID), span{index: "by", key: facet(resource.ID{}, "shared", "true")})
		for n := range networkNoun.each(tx, shared, false) {
			spans = append(spans, span{index: "network", key: state.KeyOf(n.ID)})
		}
		return spans
	},
}

func init() {
	subnetNoun.add, subnetNoun.change, subnetNoun.remove = addSubnet, changeSubnet, removeSubnet
}

// Subnets gives other domains and the native API a look at every subnet.
func Subnets() *state.Table[Subnet] { return subnets }

// AutoGateway, as a Subnet's Gateway at creation, stands for the first address of the CIDR.
var AutoGateway = netip.IPv6Unspecified()

// AnyPrefix, as a Subnet's CIDR at creation, stands for a prefix of that length out of its pool; a
// negative length (the zero Prefix) for the pool's own default length.
func AnyPrefix(v6 bool, bits int) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), bits)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), bits)
}

func addSubnet(ctx context.Context, tx *state.Tx, s *Subnet) error {
	n, err := visibleOne(ctx, tx, &networkNoun, s.NetworkID)
	if err != nil {
		return err
	}
	if err := mayCreate(ctx, "subnet.create", s.ProjectID); err != nil {
		return err
	}
	// Only who may change the network gives it a subnet.
	if err := networkNoun.allow(ctx, tx, "update", n); err != nil {
		return err
	}
	if len(s.ServiceFor) > 0 {
		if err := identity.Allow(ctx, "subnet.set-service", n.Meta); err != nil {
			return err
		}
	}
	if !s.PoolID.IsZero() {
		if err := cutFromPool(ctx, tx, s); err != nil {
			return err
		}
	}
	if s.Gateway == AutoGateway {
		s.Gateway = firstAddress(s)
	}
	if s.Pools == nil {
		s.Pools = defaultPools(s.CIDR, s.Gateway)
	}
	if err := checkSubnet(tx, s); err != nil {
		return err
	}
	if err := checkScopes(tx, n, s); err != nil {
		return err
	}
	if err := checkQuota(tx, s.ProjectID, "subnet"); err != nil {
		return err
	}
	if err := subnets.Put(tx, s); err != nil {
		return err
	}
	if s.Auto() {
		if err := addAutoAddresses(tx, s); err != nil {
			return err
		}
	}
	return touchNetwork(tx, n.ID)
}

// touchNetwork gives the network a new revision, and the address scopes that its subnets now have.
func touchNetwork(tx *state.Tx, id resource.ID) error {
	n, ok := networks.Find(tx, id)
	if !ok {
		return nil
	}
	n.ScopeV4, n.ScopeV6 = scopesOf(tx, id)
	return networks.Put(tx, n)
}

// firstAddress is what a gateway gets that nobody chose.
func firstAddress(s *Subnet) netip.Addr {
	a := s.CIDR.Masked().Addr()
	if s.CIDR.Bits() >= a.BitLen()-1 && a.Is4() {
		return a
	}
	if s.CIDR.Bits() == a.BitLen() {
		return a
	}
	return a.Next()
}

func changeSubnet(ctx context.Context, tx *state.Tx, was, now *Subnet) error {
	switch {
	case now.CIDR != was.CIDR:
		return fault.InvalidField("cidr", "cannot be changed")
	case now.V6Mode != was.V6Mode || now.RAMode != was.RAMode:
		return fault.InvalidField("ipv6 modes", "cannot be changed")
	}
	if !slices.Equal(was.ServiceFor, now.ServiceFor) {
		if err := identity.Allow(ctx, "subnet.set-service", was.Meta); err != nil {
			return err
		}
	}
	if now.Gateway == AutoGateway {
		now.Gateway = firstAddress(now)
	}
	if err := checkSubnet(tx, now); err != nil {
		return err
	}
	if was.Gateway != now.Gateway && was.Gateway.IsValid() {
		for p := range ports.Peek(tx, "address", state.Range{Prefix: state.KeyOf(was.NetworkID, was.Gateway)}) {
			if p.Owner == OwnerRouter {
				return fault.Errorf(fault.Conflict, "Gateway ip %s cannot be updated because it is in use by port %s.", was.Gateway, p.ID).WithCode("gateway-in-use")
			}
		}
	}
	if err := subnets.Put(tx, now); err != nil {
		return err
	}
	return touchNetwork(tx, now.NetworkID)
}

func removeSubnet(ctx context.Context, tx *state.Tx, s *Subnet) error {
	var strip []*Port
	for p := range ports.Each(tx, "subnet", state.KeyOf(s.ID)) {
		// An address that the guest makes itself goes away with its subnet, unless a router has it.
		if p.Owner == OwnerDHCP || s.Auto() && p.Owner != OwnerRouter && p.Owner != OwnerGateway && p.Owner != OwnerFloating {
			strip = append(strip, p)
			continue
		}
		return fault.Errorf(fault.Conflict, "Unable to complete operation on subnet %s: One or more ports have an IP allocation from this subnet.", s.ID).
			WithCode("subnet-in-use")
	}
	for _, p := range strip {
		p.Fixed = slices.DeleteFunc(p.Fixed, func(f FixedAddress) bool { return f.SubnetID == s.ID })
		if err := ports.Put(tx, p); err != nil {
			return err
		}
	}
	if err := subnets.Delete(tx, s.ID); err != nil {
		return err
	}
	return touchNetwork(tx, s.NetworkID)
}

func invalid(code, format string, args ...any) error {
	return fault.Errorf(fault.Invalid, format, args...).WithCode(code)
}

// checkSubnet is what must hold of any subnet, new or changed.
func checkSubnet(tx *state.Tx, s *Subnet) error {
	if !s.CIDR.IsValid() || s.CIDR.Masked() != s.CIDR {
		return invalid("cidr", "Invalid input for cidr. '%s' is not a valid IP subnet.", s.CIDR)
	}
	if err := checkTexts(&s.Meta, s.Description, s.Tags); err != nil {
		return err
	}
	if s.CIDR.Bits() == 0 {
		return invalid("cidr", "Invalid input for operation: 0 is not allowed as CIDR prefix length.")
	}
	if s.CIDR.Addr().Is4() && s.CIDR.Addr().IsMulticast() || s.CIDR.Addr().IsLinkLocalUnicast() && s.CIDR.Addr().Is4() {
		return invalid("cidr", "Invalid input for operation: the subnet %s is multicast or link-local.", s.CIDR)
	}
	if err := checkModes(s); err != nil {
		return err
	}
	if err := checkGateway(s); err != nil {
		return err
	}
	if err := checkPools(s); err != nil {
		return err
	}
	if err := checkGuestFacts(s); err != nil {
		return err
	}
	for other := range subnets.Peek(tx, "network", state.Range{Prefix: state.KeyOf(s.NetworkID)}) {
		if other.ID != s.ID && other.CIDR.Overlaps(s.CIDR) {
			return invalid("cidr-overlap", "Invalid input for operation: Requested subnet with cidr: %s for network: %s overlaps with another subnet.", s.CIDR, s.NetworkID)
		}
	}
	if n, ok := networks.PeekOne(tx, s.NetworkID); ok && s.CIDR.Addr().Is6() && n.MTU < minMTUv6 {
		return invalid("mtu", "Invalid input for operation: the network's MTU %d is too small for IPv6.", n.MTU)
	}
	return nil
}

var modes6 = []Mode6{"", SLAAC, Stateful, Stateless}

func checkModes(s *Subnet) error {
	if s.V6Mode == "" && s.RAMode == "" {
		return nil
	}
	if s.CIDR.Addr().Is4() {
		return invalid("v6-mode", "Invalid input for operation: IPv6 modes cannot be set for an IPv4 subnet.")
	}
	if !slices.Contains(modes6, s.V6Mode) || !slices.Contains(modes6, s.RAMode) {
		return invalid("v6-mode", "Invalid input for operation: '%s' and '%s' are not modes.", s.RAMode, s.V6Mode)
	}
	if !s.DHCP {
		return invalid("v6-mode", "Invalid input for operation: IPv6 modes cannot be set for a subnet without DHCP.")
	}
	if s.V6Mode != "" && s.RAMode != "" && s.V6Mode != s.RAMode {
		return invalid("v6-mode", "Invalid input for operation: the IPv6 modes '%s' for advertisements and '%s' for addresses must be the same if both are set.", s.RAMode, s.V6Mode)
	}
	if (s.Auto() || s.RAMode == SLAAC || s.RAMode == Stateless) && s.CIDR.Bits() != 64 {
		return invalid("v6-mode", "Invalid input for operation: Invalid CIDR %s for IPv6 address mode: addresses made from MAC addresses need a /64.", s.CIDR)
	}
	return nil
}

func checkGateway(s *Subnet) error {
	g := s.Gateway
	if !g.IsValid() {
		return nil
	}
	if g.Is4() != s.CIDR.Addr().Is4() {
		return invalid("gateway", "Invalid input for operation: the gateway %s is not of the subnet's IP version.", g)
	}
	if g.Is6() && g.IsLinkLocalUnicast() {
		return nil
	}
	r := netipx.RangeOfPrefix(s.CIDR)
	bad := !s.CIDR.Contains(g)
	if g.Is4() && s.CIDR.Bits() < 31 {
		bad = bad || g == r.From() || g == r.To()
	}
	if g.Is6() && s.CIDR.Bits() < 127 {
		bad = bad || g == r.From()
	}
	if bad {
		return invalid("gateway", "Invalid input for operation: Gateway is not valid on subnet.")
	}
	return nil
}

func checkPools(s *Subnet) error {
	slices.SortFunc(s.Pools, func(a, b Pool) int { return a.First.Compare(b.First) })
	r := netipx.RangeOfPrefix(s.CIDR)
	for i, p := range s.Pools {
		switch {
		case !p.First.IsValid() || !p.Last.IsValid() || p.First.Is4() != s.CIDR.Addr().Is4() || p.Last.Is4() != p.First.Is4():
			return invalid("pool", "The allocation pool %s-%s is not valid.", p.First, p.Last)
		case p.Last.Less(p.First):
			return invalid("pool", "The allocation pool %s-%s is not valid.", p.First, p.Last)
		case !s.CIDR.Contains(p.First) || !s.CIDR.Contains(p.Last),
			p.First.Is4() && s.CIDR.Bits() < 31 && (p.First == r.From() || p.Last == r.To()):
			return invalid("pool-out-of-bounds", "The allocation pool %s-%s spans beyond the subnet cidr %s.", p.First, p.Last, s.CIDR)
		case i > 0 && p.First.Compare(s.Pools[i-1].Last) <= 0:
			return fault.Errorf(fault.Conflict, "Found overlapping allocation pools: %s-%s %s-%s for subnet %s.", s.Pools[i-1].First, s.Pools[i-1].Last, p.First, p.Last, s.CIDR).
				WithCode("pool-overlap")
		case s.Gateway.IsValid() && p.Holds(s.Gateway):
			return fault.Errorf(fault.Conflict, "Gateway ip %s conflicts with allocation pool %s-%s.", s.Gateway, p.First, p.Last).WithCode("gateway-in-pool")
		}
	}
	return nil
}

func checkGuestFacts(s *Subnet) error {
	if len(s.DNS) > maxDNS {
		return invalid("dns", "Unable to complete operation for %s. The number of DNS nameservers exceeds the limit %d.", s.ID, maxDNS)
	}
	if len(s.Routes) > maxRoutes {
		return invalid("routes", "Unable to complete operation for %s. The number of host routes exceeds the limit %d.", s.ID, maxRoutes)
	}
	for i, d := range s.DNS {
		if !d.IsValid() || slices.Contains(s.DNS[:i], d) {
			return invalid("dns", "Invalid input for operation: '%s' stands twice among the nameservers, or is no address.", d)
		}
	}
	for i, r := range s.Routes {
		if !r.Destination.IsValid() || !r.NextHop.IsValid() || slices.Contains(s.Routes[:i], r) {
			return invalid("routes", "Invalid input for operation: the host route to %s stands twice, or is no route.", r.Destination)
		}
		if s.CIDR.Addr().Is4() != r.Destination.Addr().Is4() || r.Destination.Addr().Is4() != r.NextHop.Is4() {
			return invalid("routes", "Invalid input for operation: the host route to %s is not of the subnet's IP version.", r.Destination)
		}
	}
	return nil
}

// prefixUnits is the size of a prefix in the units that pools' quotas are in.
func prefixUnits(p netip.Prefix) int64 {
	whole := 32
	if p.Addr().Is6() {
		whole = 64
	}
	return 1 << min(62, max(0, whole-p.Bits()))
}

// An Occupancy tells how much of a subnet's addresses is in use.
type Occupancy struct {
	Subnet *Subnet
	Total  *big.Int
	Used   int64
}

// MayCount asks whether the actor may see how full networks are.
func MayCount(ctx context.Context) error {
	return identity.Allow(ctx, "subnet.count-addresses", resource.Meta{})
}

// Occupancies tells of each subnet of a network how much of it is in use.
func Occupancies(tx *state.Tx, networkID resource.ID) []Occupancy {
	var all []Occupancy
	for s := range subnets.Each(tx, "network", state.KeyOf(networkID)) {
		o := Occupancy{Subnet: s, Total: count(s.Pools)}
		for range ports.Peek(tx, "subnet", state.Range{Prefix: state.KeyOf(s.ID)}) {
			o.Used++
		}
		all = append(all, o)
	}
	return all
}
