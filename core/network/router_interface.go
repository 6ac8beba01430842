package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

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
