package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Router passes packets between networks, and to the world through its gateway.
type Router struct {
	resource.Meta

	// Asked for by the owner.
	Description string
	Tags        []string
	AdminUp     bool
	Gateway     *RouterGateway // nil: none
	Routes      []Route
	ZoneHints   []string

	// Asked for by an operator.
	Distributed bool
	Redundant   bool // kept on several hosts, one of which answers
	NoNDPProxy  bool

	// Found out by the control plane.
	HostID resource.ID // its home; its ports are bound there
}

// A RouterGateway is a router's leg in an external network.
type RouterGateway struct {
	NetworkID resource.ID
	SNAT      bool           // tenants' addresses are hidden behind the router's
	Fixed     []FixedAddress // nil at creation: chosen
	PortID    resource.ID    // made with the gateway
}

const maxRouterRoutes = 30

var routerFields = common(fields[Router]{
	"description": {text: func(r *Router) []string { return []string{r.Description} }, by: true, sparse: true},
	"tag":         {text: func(r *Router) []string { return r.Tags }, by: true},
	"up":          {text: func(r *Router) []string { return oneBool(r.AdminUp) }, by: true, single: true},
	"distributed": {text: func(r *Router) []string { return oneBool(r.Distributed) }, by: true, single: true},
	"redundant":   {text: func(r *Router) []string { return oneBool(r.Redundant) }, by: true, single: true},
	"status":      {text: func(r *Router) []string { return []string{string(r.Status())} }},
	"external": {text: func(r *Router) []string {
		if r.Gateway == nil {
			return nil
		}
		return []string{r.Gateway.NetworkID.String()}
	}, by: true},
})

var routers = state.NewTable[Router]("router",
	facets(routerFields),
	state.Index("host", func(r *Router) state.Key { return nonZero(r.HostID) }),
	state.Index("homeless", func(r *Router) state.Key { // those that no host has yet
		if !r.HostID.IsZero() {
			return ""
		}
		return state.KeyOf(true)
	}),
	state.Tally("project", func(r *Router) (state.Key, state.Amounts) { return state.KeyOf(r.ProjectID), state.Amounts{} }),
	state.Tally("host-load", func(r *Router) (state.Key, state.Amounts) { return nonZero(r.HostID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"router.create": identity.Member, "router.read": identity.Reader,
	"router.update": identity.Member, "router.delete": identity.Member,
	"router.set-distributed": identity.Admin, "router.set-redundant": identity.Admin,
	"router.set-snat": identity.Admin, "router.set-external-address": identity.Admin,
})

var routerNoun = noun[Router]{name: "router", title: "Router", table: routers, fields: routerFields, tallied: true}

func init() {
	routerNoun.add, routerNoun.change, routerNoun.remove = addRouter, changeRouter, removeRouter
}

// Status tells whether the router is served. A router does from its making on what it is asked to.
func (r *Router) Status() Status { return Active }

// Routers gives other domains and the native API a look at every router.
func Routers() *state.Table[Router] { return routers }

func addRouter(ctx context.Context, tx *state.Tx, r *Router) error {
	if err := mayCreate(ctx, "router.create", r.ProjectID); err != nil {
		return err
	}
	if err := mayWishRouter(ctx, &Router{Meta: resource.Meta{ProjectID: r.ProjectID}}, r); err != nil {
		return err
	}
	if err := checkTexts(&r.Meta, r.Description, r.Tags); err != nil {
		return err
	}
	if err := checkQuota(tx, r.ProjectID, "router"); err != nil {
		return err
	}
	settle(tx, r)
	if err := plugGateway(ctx, tx, r); err != nil {
		return err
	}
	if err := checkRoutes(tx, r); err != nil {
		return err
	}
	return routers.Put(tx, r)
}

// mayWishRouter asks for what only an operator may set. was has no ID when the router is new.
func mayWishRouter(ctx context.Context, was, now *Router) error {
	if was.Distributed != now.Distributed {
		if err := identity.Allow(ctx, "router.set-distributed", was.Meta); err != nil {
			return err
		}
	}
	if was.Redundant != now.Redundant {
		if err := identity.Allow(ctx, "router.set-redundant", was.Meta); err != nil {
			return err
		}
	}
	old := RouterGateway{SNAT: true}
	if was.Gateway != nil {
		old = *was.Gateway
	}
	if now.Gateway == nil {
		return nil
	}
	if old.SNAT != now.Gateway.SNAT {
		if err := identity.Allow(ctx, "router.set-snat", was.Meta); err != nil {
			return err
		}
	}
	if now.Gateway.Fixed != nil && !slices.Equal(old.Fixed, now.Gateway.Fixed) {
		return identity.Allow(ctx, "router.set-external-address", was.Meta)
	}
	return nil
}

func changeRouter(ctx context.Context, tx *state.Tx, was, now *Router) error {
	if err := mayWishRouter(ctx, was, now); err != nil {
		return err
	}
	if err := checkTexts(&now.Meta, now.Description, now.Tags); err != nil {
		return err
	}
	if now.Distributed != was.Distributed && was.AdminUp {
		return invalid("router-up", "A router must be turned off before it becomes distributed or no longer is.")
	}
	if err := changeGateway(ctx, tx, was, now); err != nil {
		return err
	}
	if !slices.Equal(was.Routes, now.Routes) {
		if err := checkRoutes(tx, now); err != nil {
			return err
		}
	}
	return routers.Put(tx, now)
}

// changeGateway takes a router from one gateway to another.
func changeGateway(ctx context.Context, tx *state.Tx, was, now *Router) error {
	switch old, new := was.Gateway, now.Gateway; {
	case old == nil:
		return plugGateway(ctx, tx, now)
	case new == nil:
		return unplugGateway(tx, was, now)
	case old.NetworkID != new.NetworkID:
		if err := unplugGateway(tx, was, now); err != nil {
			return err
		}
		new.PortID = resource.ID{}
		now.Gateway = new
		return plugGateway(ctx, tx, now)
	case new.Fixed == nil || slices.Equal(old.Fixed, new.Fixed):
		new.PortID, new.Fixed = old.PortID, old.Fixed
		return nil
	default:
		new.PortID = old.PortID
		return moveGateway(ctx, tx, now)
	}
}

// plugGateway gives the router its port in the external network.
func plugGateway(ctx context.Context, tx *state.Tx, r *Router) error {
	if r.Gateway == nil {
		return nil
	}
	n, err := external(ctx, tx, r.Gateway.NetworkID)
	if err != nil {
		return err
	}
	if err := noOverlap(tx, r, r.Gateway.NetworkID); err != nil {
		return err
	}
	was := r.HostID
	if settle(tx, r); r.HostID != was {
		if err := followHome(tx, r); err != nil {
			return err
		}
	}
	p := &Port{Meta: resource.Meta{ID: tx.NewID()}, NetworkID: n.ID, AdminUp: true, Fixed: r.Gateway.Fixed,
		DeviceID: r.ID.String(), Owner: OwnerGateway, HostID: r.HostID, Groups: []resource.ID{}, VNIC: NormalVNIC}
	if err := makePort(ctx, tx, n, p); err != nil {
		return err
	}
	r.Gateway.PortID, r.Gateway.Fixed = p.ID, p.Fixed
	return nil
}

// external finds an external network that the actor can see.
func external(ctx context.Context, tx *state.Tx, id resource.ID) (*Network, error) {
	n, err := visibleOne(ctx, tx, &networkNoun, id)
	if err != nil {
		return nil, err
	}
	if n.External {
		return n, nil
	}
	if _, ok := shares.Lookup(tx, "same", state.KeyOf(id, string(ShareExternal), identity.ActorOf(ctx).ProjectID)); ok {
		return n, nil
	}
	return nil, invalid("not-external", "Network %s is not an external network.", id)
}

// noOverlap keeps the subnets behind a router apart from those of its external network.
func noOverlap(tx *state.Tx, r *Router, externalID resource.ID) error {
	for s := range subnets.Each(tx, "network", state.KeyOf(externalID)) {
		if err := apart(tx, r.ID, s); err != nil {
			return err
		}
	}
	return nil
}

// apart refuses a subnet that overlaps one that the router is in already.
func apart(tx *state.Tx, routerID resource.ID, s *Subnet) error {
	for p := range ports.Peek(tx, "device", state.Range{Prefix: state.KeyOf(routerID.String())}) {
		for _, f := range p.Fixed {
			other, ok := subnets.PeekOne(tx, f.SubnetID)
			if !ok || !p.Owner.internal() {
				continue
			}
			if other.ID == s.ID && p.Owner == OwnerRouter {
				return invalid("router-has-subnet", "Bad router request: Router already has a port on subnet %s.", s.ID)
			}
			if other.ID != s.ID && other.CIDR.Overlaps(s.CIDR) {
				return invalid("router-overlap", "Bad router request: Cidr %s of subnet %s overlaps with cidr %s of subnet %s.", s.CIDR, s.ID, other.CIDR, other.ID)
			}
		}
	}
	return nil
}

// unplugGateway takes the router's port in the external network away.
func unplugGateway(tx *state.Tx, was, now *Router) error {
	for f := range floatings.Peek(tx, "router", state.Range{Prefix: state.KeyOf(was.ID)}) {
		return gatewayNeeded(was, f.ID)
	}
	for w := range forwards.Peek(tx, "router", state.Range{Prefix: state.KeyOf(was.ID)}) {
		return gatewayNeeded(was, w.FloatingID)
	}
	if err := ports.Delete(tx, was.Gateway.PortID); err != nil {
		return err
	}
	now.Gateway = nil
	return nil
}

func gatewayNeeded(r *Router, floating resource.ID) error {
	return fault.Errorf(fault.Conflict, "Gateway cannot be updated for router %s, since a gateway to external network %s is required by floating address %s.", r.ID, r.Gateway.NetworkID, floating).
		WithCode("gateway-needed")
}

// moveGateway gives the gateway other addresses.
func moveGateway(ctx context.Context, tx *state.Tx, r *Router) error {
	n, err := networkNoun.get(tx, r.Gateway.NetworkID)
	if err != nil {
		return err
	}
	was, err := portNoun.get(tx, r.Gateway.PortID)
	if err != nil {
		return err
	}
	now, err := portNoun.get(tx, r.Gateway.PortID)
	if err != nil {
		return err
	}
	now.Fixed = r.Gateway.Fixed
	if err := chooseAddresses(ctx, tx, n, now, was); err != nil {
		return err
	}
	r.Gateway.Fixed = now.Fixed
	return ports.Put(tx, now)
}

// checkRoutes keeps next hops within what the router's legs reach.
func checkRoutes(tx *state.Tx, r *Router) error {
	if len(r.Routes) > maxRouterRoutes {
		return invalid("routes-exhausted", "Unable to complete operation for %s. The number of routes exceeds the maximum %d.", r.ID, maxRouterRoutes)
	}
	var reach []netip.Prefix
	var own []netip.Addr
	for p := range ports.Peek(tx, "device", state.Range{Prefix: state.KeyOf(r.ID.String())}) {
		for _, f := range p.Fixed {
			if s, ok := subnets.PeekOne(tx, f.SubnetID); ok && p.Owner.internal() {
				reach, own = append(reach, s.CIDR), append(own, f.Address)
			}
		}
	}
	for i, route := range r.Routes {
		hop := func(p netip.Prefix) bool { return p.Contains(route.NextHop) }
		switch {
		case !route.Destination.IsValid() || !route.NextHop.IsValid() || route.Destination.Addr().Is4() != route.NextHop.Is4():
			return invalid("route", "Invalid format for routes: %s via %s.", route.Destination, route.NextHop)
		case slices.Contains(r.Routes[:i], route):
			return invalid("route", "Invalid format for routes: %s via %s stands twice.", route.Destination, route.NextHop)
		case !slices.ContainsFunc(reach, hop):
			return invalid("route-hop", "Invalid format for routes: the nexthop %s is not connected with router.", route.NextHop)
		case slices.Contains(own, route.NextHop):
			return invalid("route-hop", "Invalid format for routes: the nexthop %s is used by router.", route.NextHop)
		}
	}
	return nil
}

func removeRouter(ctx context.Context, tx *state.Tx, r *Router) error {
	for p := range ports.Peek(tx, "device", state.Range{Prefix: state.KeyOf(r.ID.String())}) {
		if p.Owner == OwnerRouter {
			return fault.Errorf(fault.Conflict, "Router %s still has ports.", r.ID).WithCode("router-in-use")
		}
	}
	if r.Gateway != nil {
		now := *r
		if err := unplugGateway(tx, r, &now); err != nil {
			return fault.Errorf(fault.Conflict, "Router %s still has floating addresses.", r.ID).WithCode("router-in-use")
		}
	}
	return routers.Delete(tx, r.ID)
}

// An Interface is a router's leg in a tenant's network, as it was made or taken away.
type Interface struct {
	RouterID, ProjectID, NetworkID, PortID resource.ID
	SubnetIDs                              []resource.ID
	Tags                                   []string
}

func interfaceOf(r *Router, p *Port) *Interface {
	i := &Interface{RouterID: r.ID, ProjectID: r.ProjectID, NetworkID: p.NetworkID, PortID: p.ID, Tags: p.Tags}
	for _, f := range p.Fixed {
		i.SubnetIDs = append(i.SubnetIDs, f.SubnetID)
	}
	return i
}

// AddInterface connects a router to a subnet, or takes a port over for it: one of both is given.
func (s *Service) AddInterface(ctx context.Context, routerID, subnetID, portID resource.ID) (*Interface, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Interface, error) {
		r, err := routerNoun.get(tx, routerID)
		if err != nil {
			return nil, err
		}
		if err := routerNoun.allow(ctx, tx, "update", r); err != nil {
			return nil, err
		}
		p, err := connect(ctx, tx, r, subnetID, portID)
		if err != nil {
			return nil, err
		}
		return interfaceOf(r, p), routers.Put(tx, r)
	})
}

func connect(ctx context.Context, tx *state.Tx, r *Router, subnetID, portID resource.ID) (*Port, error) {
	switch {
	case subnetID.IsZero() == portID.IsZero():
		return nil, invalid("bad-interface", "Bad router request: either a subnet or a port must be given, and not both.")
	case !portID.IsZero():
		return adoptInterface(ctx, tx, r, portID)
	default:
		return makeInterface(ctx, tx, r, subnetID)
	}
}

// makeInterface puts a port of the router in a subnet.
func makeInterface(ctx context.Context, tx *state.Tx, r *Router, subnetID resource.ID) (*Port, error) {
	s, err := visibleOne(ctx, tx, &subnetNoun, subnetID)
	if err != nil {
		return nil, err
	}
	n, err := networkNoun.get(tx, s.NetworkID)
	if err != nil {
		return nil, err
	}
	if !owns(ctx, n) && !usable(tx, n, identity.ActorOf(ctx).ProjectID) {
		return nil, fault.Errorf(fault.Forbidden, "You are not allowed to connect a router to network %s.", n.ID)
	}
	if !s.Gateway.IsValid() {
		return nil, invalid("bad-interface", "Bad router request: Subnet for router interface must have a gateway IP.")
	}
	if s.CIDR.Addr().Is6() && s.V6Mode != "" && s.RAMode == "" {
		return nil, invalid("bad-interface", "Bad router request: IPv6 subnet %s configured to receive RAs from an external router cannot be added to a router.", s.ID)
	}
	if err := apart(tx, r.ID, s); err != nil {
		return nil, err
	}
	// IPv6 subnets of one network share the router's port.
	if s.CIDR.Addr().Is6() {
		for p := range ports.Each(tx, "device", state.KeyOf(r.ID.String())) {
			if p.Owner == OwnerRouter && p.NetworkID == s.NetworkID && len(p.Fixed) > 0 && p.Fixed[0].Address.Is6() {
				return widenInterface(ctx, tx, n, p, s)
			}
		}
	}
	p := &Port{Meta: resource.Meta{ID: tx.NewID(), ProjectID: r.ProjectID}, NetworkID: s.NetworkID, AdminUp: true,
		Fixed: []FixedAddress{{s.ID, legAddress(ctx, n, s)}}, DeviceID: r.ID.String(), Owner: OwnerRouter, HostID: r.HostID, Groups: []resource.ID{}, VNIC: NormalVNIC}
	return p, makePort(ctx, tx, n, p)
}

// legAddress is where a router stands in a subnet: at the address that the guests take for their gateway if
// the one who rules the network asks, otherwise at a free one.
func legAddress(ctx context.Context, n *Network, s *Subnet) netip.Addr {
	if s.Gateway.IsLinkLocalUnicast() || !owns(ctx, n) {
		return netip.Addr{}
	}
	return s.Gateway
}

// leads reports whether a router may stand between a subnet and the world for a project: it is the
// project's, or of the owner of the network, or, by an address that only they give, the gateway.
func leads(r *Router, leg *Port, s *Subnet, projectID resource.ID) bool {
	return r.ProjectID == projectID || r.ProjectID == leg.NetworkOwner || slices.Contains(leg.Fixed, FixedAddress{s.ID, s.Gateway})
}

func widenInterface(ctx context.Context, tx *state.Tx, n *Network, p *Port, s *Subnet) (*Port, error) {
	was, err := portNoun.get(tx, p.ID)
	if err != nil {
		return nil, err
	}
	p.Fixed = append(p.Fixed, FixedAddress{s.ID, legAddress(ctx, n, s)})
	if err := chooseAddresses(ctx, tx, n, p, was); err != nil {
		return nil, err
	}
	return p, ports.Put(tx, p)
}

// adoptInterface makes a free port of a tenant the router's.
func adoptInterface(ctx context.Context, tx *state.Tx, r *Router, portID resource.ID) (*Port, error) {
	p, err := visibleOne(ctx, tx, &portNoun, portID)
	if err != nil {
		return nil, err
	}
	if err := portNoun.allow(ctx, tx, "update", p); err != nil {
		return nil, err
	}
	switch {
	case p.ProjectID != r.ProjectID && !identity.ActorOf(ctx).Admin():
		return nil, invalid("bad-interface", "Bad router request: port %s is of another project than the router.", p.ID)
	case p.DeviceID == r.ID.String() && p.Owner == OwnerRouter:
		return nil, invalid("bad-interface", "Bad router request: port %s is the router's already.", p.ID)
	case p.DeviceID != "" || p.Owner != OwnerNone || !p.HostID.IsZero():
		return nil, fault.Errorf(fault.Conflict, "Unable to complete operation on port %s for network %s. Port already has an attached device %s.", p.ID, p.NetworkID, p.DeviceID).
			WithCode("port-in-use")
	case len(p.Fixed) == 0:
		return nil, invalid("bad-interface", "Bad router request: Router port must have at least one fixed IP.")
	}
	v4 := 0
	for _, f := range p.Fixed {
		s, err := subnetNoun.get(tx, f.SubnetID)
		if err != nil {
			return nil, err
		}
		if s.CIDR.Addr().Is4() {
			v4++
		}
		if err := apart(tx, r.ID, s); err != nil {
			return nil, err
		}
	}
	if v4 > 1 {
		return nil, invalid("bad-interface", "Bad router request: Cannot have multiple IPv4 subnets on router port.")
	}
	p.DeviceID, p.Owner, p.OwnerLabel, p.HostID = r.ID.String(), OwnerRouter, "", r.HostID
	p.Groups, p.PortSecurity, p.AllowedPairs = []resource.ID{}, false, nil
	return p, ports.Put(tx, p)
}

// RemoveInterface takes a router's leg away, found by its port or by its subnet.
func (s *Service) RemoveInterface(ctx context.Context, routerID, subnetID, portID resource.ID) (*Interface, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Interface, error) {
		r, err := routerNoun.get(tx, routerID)
		if err != nil {
			return nil, err
		}
		if err := routerNoun.allow(ctx, tx, "update", r); err != nil {
			return nil, err
		}
		p, err := findInterface(tx, r, subnetID, portID)
		if err != nil {
			return nil, err
		}
		gone := interfaceOf(r, p)
		for _, f := range p.Fixed {
			if !subnetID.IsZero() && f.SubnetID != subnetID {
				continue
			}
			if err := interfaceNeeded(tx, r, p, f.SubnetID); err != nil {
				return nil, err
			}
		}
		if !subnetID.IsZero() && len(p.Fixed) > 1 && portID.IsZero() {
			p.Fixed = slices.DeleteFunc(p.Fixed, func(f FixedAddress) bool { return f.SubnetID == subnetID })
			gone.SubnetIDs = []resource.ID{subnetID}
			if err := ports.Put(tx, p); err != nil {
				return nil, err
			}
		} else if err := dropPort(ctx, tx, p.ID); err != nil {
			return nil, err
		}
		return gone, routers.Put(tx, r)
	})
}

func findInterface(tx *state.Tx, r *Router, subnetID, portID resource.ID) (*Port, error) {
	if subnetID.IsZero() && portID.IsZero() {
		return nil, invalid("bad-interface", "Bad router request: either a subnet or a port must be given.")
	}
	for p := range ports.Each(tx, "device", state.KeyOf(r.ID.String())) {
		if p.Owner != OwnerRouter || !portID.IsZero() && p.ID != portID {
			continue
		}
		in := slices.ContainsFunc(p.Fixed, func(f FixedAddress) bool { return f.SubnetID == subnetID })
		if !subnetID.IsZero() && !in {
			if !portID.IsZero() {
				return nil, fault.Errorf(fault.Conflict, "Subnet %s is not that of port %s.", subnetID, portID).WithCode("subnet-mismatch")
			}
			continue
		}
		return p, nil
	}
	if !portID.IsZero() {
		return nil, fault.Errorf(fault.NotFound, "Router %s does not have an interface with id %s.", r.ID, portID).WithCode("router-interface-not-found")
	}
	return nil, fault.Errorf(fault.NotFound, "Router %s has no interface on subnet %s.", r.ID, subnetID).WithCode("router-subnet-not-found")
}

// interfaceNeeded refuses to take away a leg that floating addresses or routes lean on.
func interfaceNeeded(tx *state.Tx, r *Router, p *Port, subnetID resource.ID) error {
	for f := range floatings.Peek(tx, "router", state.Range{Prefix: state.KeyOf(r.ID)}) {
		target, ok := ports.PeekOne(tx, f.TargetID)
		if ok && slices.Contains(target.Fixed, FixedAddress{subnetID, f.Fixed}) {
			return interfaceInUse(r.ID, subnetID)
		}
	}
	for w := range forwards.Peek(tx, "router", state.Range{Prefix: state.KeyOf(r.ID)}) {
		target, ok := ports.PeekOne(tx, w.TargetID)
		if ok && slices.Contains(target.Fixed, FixedAddress{subnetID, w.Fixed}) {
			return interfaceInUse(r.ID, subnetID)
		}
	}
	s, ok := subnets.PeekOne(tx, subnetID)
	if ok && slices.ContainsFunc(r.Routes, func(route Route) bool { return s.CIDR.Contains(route.NextHop) }) {
		return fault.Errorf(fault.Conflict, "Router interface for subnet %s on router %s cannot be deleted, as it is required by one or more routes.", subnetID, r.ID).
			WithCode("interface-in-use-route")
	}
	return nil
}

func interfaceInUse(routerID, subnetID resource.ID) error {
	return fault.Errorf(fault.Conflict, "Router interface for subnet %s on router %s cannot be deleted, as it is required by one or more floating IPs.", subnetID, routerID).
		WithCode("interface-in-use-floating")
}

// AddRoutes and RemoveRoutes change some of a router's extra routes and leave the others.
func (s *Service) AddRoutes(ctx context.Context, routerID resource.ID, routes []Route) (*Router, error) {
	return s.Routers.Update(ctx, routerID, 0, func(r *Router) error {
		for _, route := range routes {
			if !slices.Contains(r.Routes, route) {
				r.Routes = append(r.Routes, route)
			}
		}
		return nil
	})
}

// RemoveRoutes takes some of a router's extra routes away.
func (s *Service) RemoveRoutes(ctx context.Context, routerID resource.ID, routes []Route) (*Router, error) {
	return s.Routers.Update(ctx, routerID, 0, func(r *Router) error {
		r.Routes = slices.DeleteFunc(r.Routes, func(route Route) bool { return slices.Contains(routes, route) })
		return nil
	})
}

// settle gives a router a home: where its own address outside is, under which all go out that have no
// floating one. It stays where it is as long as no other host is better. Among equals it comes to the one in its
// zones that is home to the fewest.
func settle(tx *state.Tx, r *Router) {
	best, least := resource.ID{}, int64(0)
	most := suits(tx, r, r.HostID)
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if h.Disabled || len(r.ZoneHints) > 0 && !slices.Contains(r.ZoneHints, h.Zone) {
			continue
		}
		n, _ := routers.Sum(tx, "host-load", state.KeyOf(h.ID))
		if how := suits(tx, r, h.ID); how > most || how == most && !best.IsZero() && n < least {
			best, most, least = h.ID, how, n
		}
	}
	if most == 0 || !best.IsZero() {
		r.HostID = best
	}
}

// suits says how well a host would do as a router's home; 0 for one that is not there.
func suits(tx *state.Tx, r *Router, hostID resource.ID) int {
	h, ok := host.Table().PeekOne(tx, hostID)
	switch {
	case !ok:
		return 0
	case !h.Up():
		return 1
	case !h.Mute.IsZero():
		return 2
	case r.Gateway != nil && !connected(tx, hostID, r.Gateway.NetworkID):
		return 3
	case h.Maintenance: // it may be switched off, and what went out through it would then wait
		return 4
	default:
		return 5
	}
}

// followHome binds a router's ports to where the router is.
func followHome(tx *state.Tx, r *Router) error {
	for _, id := range ports.IDs(tx, "device", state.KeyOf(r.ID.String())) {
		p, _ := ports.Find(tx, id)
		if !p.Owner.internal() || p.HostID == r.HostID {
			continue
		}
		p.HostID = r.HostID
		if err := ports.Put(tx, p); err != nil {
			return err
		}
	}
	return nil
}
