package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// chooseAddresses completes and checks a port's addresses; was is nil for a new port.
func chooseAddresses(ctx context.Context, tx *state.Tx, n *Network, p, was *Port) error {
	var all []*Subnet
	for s := range subnets.Each(tx, "network", state.KeyOf(n.ID)) {
		all = append(all, s)
	}
	if p.Fixed == nil && was == nil {
		return autoAddresses(tx, all, p)
	}
	if len(p.Fixed) > maxFixed && !p.Owner.internal() {
		return invalid("too-many-addresses", "Invalid input for operation: Exceeded maximum amount of fixed ips per port: %d.", maxFixed)
	}
	kept := map[resource.ID][]FixedAddress{}
	if was != nil {
		for _, f := range was.Fixed {
			kept[f.SubnetID] = append(kept[f.SubnetID], f)
		}
	}
	for i := range p.Fixed {
		if err := chooseAddress(tx, n, all, p, i, kept); err != nil {
			return err
		}
	}
	if err := mayStandFor(ctx, n, all, p, was); err != nil {
		return err
	}
	if p.Owner == OwnerRouter || p.Owner == OwnerGateway || p.Owner == OwnerFloating {
		return nil
	}
	// A guest makes itself an address in every subnet where it can.
	for _, s := range all {
		if s.Auto() && len(p.Fixed) > 0 && !slices.ContainsFunc(p.Fixed, func(f FixedAddress) bool { return f.SubnetID == s.ID }) && was == nil {
			if err := addAuto(tx, p, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// mayStandFor refuses a subnet's gateway address, which everybody there sends to, to whoever does not rule
// the network, on whatever way it was asked for.
func mayStandFor(ctx context.Context, n *Network, all []*Subnet, p, was *Port) error {
	for _, f := range p.Fixed {
		gateway := slices.ContainsFunc(all, func(s *Subnet) bool { return s.ID == f.SubnetID && s.Gateway == f.Address })
		if gateway && (was == nil || !slices.Contains(was.Fixed, f)) && !owns(ctx, n) {
			return mayNotChoose("the gateway's address")
		}
	}
	return nil
}

func addAuto(tx *state.Tx, p *Port, s *Subnet) error {
	a, err := eui64(s.CIDR, p.MAC)
	if err != nil {
		return err
	}
	if addressTaken(tx, s.NetworkID, a) {
		return addressInUse(a, s.NetworkID)
	}
	p.Fixed = append(p.Fixed, FixedAddress{s.ID, a})
	return nil
}

func addressInUse(a netip.Addr, networkID resource.ID) error {
	return fault.Errorf(fault.Conflict, "IP address %s already allocated in subnet of network %s.", a, networkID).WithCode("address-in-use")
}

// chooseAddress completes the port's i-th address. kept are addresses that the port has already.
func chooseAddress(tx *state.Tx, n *Network, all []*Subnet, p *Port, i int, kept map[resource.ID][]FixedAddress) error {
	f := &p.Fixed[i]
	var s *Subnet
	switch {
	case !f.SubnetID.IsZero():
		at := slices.IndexFunc(all, func(s *Subnet) bool { return s.ID == f.SubnetID })
		if at < 0 {
			if !subnets.Has(tx, f.SubnetID) {
				return subnetNoun.missing(f.SubnetID)
			}
			return invalid("invalid-input", "Invalid input for operation: Failed to create port on network %s, because subnet %s is not of it.", n.ID, f.SubnetID)
		}
		s = all[at]
	case f.Address.IsValid():
		at := slices.IndexFunc(all, func(s *Subnet) bool { return s.CIDR.Contains(f.Address) })
		if at < 0 {
			return invalid("address-not-in-network", "IP address %s is not a valid IP for any of the subnets on the specified network.", f.Address)
		}
		s = all[at]
		f.SubnetID = s.ID
	default:
		return invalid("invalid-input", "Invalid input for operation: an address needs a subnet or the address itself.")
	}
	if !f.Address.IsValid() {
		return fillAddress(tx, s, p, i, kept)
	}
	if !s.CIDR.Contains(f.Address) {
		return invalid("address-not-in-subnet", "IP address %s is not a valid IP for the specified subnet.", f.Address)
	}
	if s.CIDR.Addr().Is4() && s.CIDR.Bits() < 31 && (f.Address == s.CIDR.Addr() || f.Address == lastAddress(s.CIDR)) {
		return invalid("address-not-in-subnet", "IP address %s is not a valid IP for the specified subnet.", f.Address)
	}
	if slices.ContainsFunc(p.Fixed[:i], func(other FixedAddress) bool { return other.Address == f.Address }) {
		return invalid("invalid-input", "Invalid input for operation: Duplicate IP address %s specified.", f.Address)
	}
	if had := kept[s.ID]; slices.Contains(had, *f) {
		kept[s.ID] = slices.DeleteFunc(had, func(h FixedAddress) bool { return h == *f })
		return nil
	}
	if s.Auto() && !p.Owner.internal() {
		if auto, err := eui64(s.CIDR, p.MAC); err != nil || auto != f.Address {
			return invalid("auto-address", "IPv6 address %s can not be directly assigned to a port on subnet %s since the subnet is configured for automatic addresses.", f.Address, s.ID)
		}
	}
	if addressTaken(tx, n.ID, f.Address) {
		return addressInUse(f.Address, n.ID)
	}
	return nil
}

// fillAddress chooses the i-th address from its subnet: one that the port has there already, or a free one.
func fillAddress(tx *state.Tx, s *Subnet, p *Port, i int, kept map[resource.ID][]FixedAddress) error {
	for _, had := range kept[s.ID] {
		if !slices.Contains(p.Fixed, had) {
			p.Fixed[i] = had
			kept[s.ID] = slices.DeleteFunc(kept[s.ID], func(h FixedAddress) bool { return h == had })
			return nil
		}
	}
	if s.Auto() && !p.Owner.internal() {
		a, err := eui64(s.CIDR, p.MAC)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(p.Fixed, func(f FixedAddress) bool { return f.Address == a }) {
			return invalid("invalid-input", "Invalid input for operation: Duplicate automatic address of subnet %s.", s.ID)
		}
		if addressTaken(tx, s.NetworkID, a) {
			return addressInUse(a, s.NetworkID)
		}
		p.Fixed[i].Address = a
		return nil
	}
	// What this very port asks for or was just given is not in the table yet.
	free, ok := freeAddress(tx, s, p.Fixed)
	if !ok {
		return exhausted(s.NetworkID)
	}
	p.Fixed[i].Address = free
	return nil
}

func exhausted(networkID resource.ID) error {
	return fault.Errorf(fault.Exhausted, "No more IP addresses available on network %s.", networkID).WithCode("addresses-exhausted")
}

// autoAddresses gives a port that asked for nothing an address of each IP version, and one in
// every subnet where guests make their own.
func autoAddresses(tx *state.Tx, all []*Subnet, p *Port) error {
	p.Fixed = []FixedAddress{}
	for _, v4 := range []bool{true, false} {
		asked, given := false, false
		for _, s := range all {
			if s.CIDR.Addr().Is4() != v4 || s.Auto() && !p.Owner.internal() || !serves(s, p) || given {
				continue
			}
			asked = true
			if a, ok := freeAddress(tx, s, nil); ok {
				p.Fixed = append(p.Fixed, FixedAddress{s.ID, a})
				given = true
			}
		}
		if asked && !given {
			return exhausted(p.NetworkID)
		}
	}
	if p.Owner.internal() {
		return nil
	}
	for _, s := range all {
		if s.Auto() && serves(s, p) {
			if err := addAuto(tx, p, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// serves reports whether a subnet is for such a port: one with service types is for these alone.
func serves(s *Subnet, p *Port) bool {
	return len(s.ServiceFor) == 0 || slices.Contains(s.ServiceFor, OwnerText(p.Owner, p.OwnerLabel))
}

// addAutoAddresses gives the ports of a network their addresses in a new subnet where guests
// make their own.
func addAutoAddresses(tx *state.Tx, s *Subnet) error {
	var there []*Port
	for p := range ports.Each(tx, "network", state.KeyOf(s.NetworkID)) {
		if !p.Owner.internal() && len(p.Fixed) > 0 {
			there = append(there, p)
		}
	}
	for _, p := range there {
		if err := addAuto(tx, p, s); err != nil {
			return err
		}
		if err := ports.Put(tx, p); err != nil {
			return err
		}
	}
	return nil
}
