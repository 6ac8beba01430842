package network

import (
	"context"
	"net/netip"
	"slices"
	"strconv"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A FloatingAddress is an address of an external network that a project holds, and
// leads to one of its ports or to none.
type FloatingAddress struct {
	resource.Meta

	// Asked for by the owner.
	Description string
	Tags        []string
	NetworkID   resource.ID // the external one
	SubnetID    resource.ID // of the external network, at creation; zero: any
	Address     netip.Addr  // invalid at creation: chosen
	TargetID    resource.ID // the port it leads to; zero: none
	Fixed       netip.Addr  // the port's address it leads to; invalid: the port's first one of IPv4
	DNSName     string
	DNSDomain   string

	// Found out.
	PortID   resource.ID // holds the address in the external network
	RouterID resource.ID // on the way to the port
}

// Status tells whether the address leads anywhere.
func (f *FloatingAddress) Status() Status {
	if f.TargetID.IsZero() {
		return Down
	}
	return Active
}

var floatingFields = common(fields[FloatingAddress]{
	"description": {text: func(f *FloatingAddress) []string { return []string{f.Description} }, by: true, sparse: true},
	"tag":         {text: func(f *FloatingAddress) []string { return f.Tags }, by: true},
	"network":     {text: func(f *FloatingAddress) []string { return oneID(f.NetworkID) }, by: true, single: true},
	"address":     {text: func(f *FloatingAddress) []string { return []string{f.Address.String()} }, by: true, single: true},
	"fixed": {text: func(f *FloatingAddress) []string {
		if !f.Fixed.IsValid() {
			return []string{""}
		}
		return []string{f.Fixed.String()}
	}, by: true, single: true},
	"target": {text: func(f *FloatingAddress) []string { return oneID(f.TargetID) }, by: true, single: true},
	"router": {text: func(f *FloatingAddress) []string { return oneID(f.RouterID) }, by: true, single: true},
	"status": {text: func(f *FloatingAddress) []string { return []string{string(f.Status())} }, by: true, single: true},
})

var floatings = state.NewTable[FloatingAddress]("floating-address",
	facets(floatingFields),
	state.Unique("address", func(f *FloatingAddress) state.Key { return state.KeyOf(f.NetworkID, f.Address) }),
	state.Unique("target", func(f *FloatingAddress) state.Key {
		if f.TargetID.IsZero() {
			return ""
		}
		return state.KeyOf(f.TargetID, f.Fixed)
	}),
	state.Index("router", func(f *FloatingAddress) state.Key { return nonZero(f.RouterID) }),
	state.Tally("project", func(f *FloatingAddress) (state.Key, state.Amounts) {
		return state.KeyOf(f.ProjectID), state.Amounts{}
	}),
)

var _ = identity.Rules(map[string]identity.Rule{
	"floating-address.create": identity.Member, "floating-address.read": identity.Reader,
	"floating-address.update": identity.Member, "floating-address.delete": identity.Member,
	"floating-address.set-address": identity.Admin,
})

var floatingNoun = noun[FloatingAddress]{name: "floating-address", title: "Floating IP", table: floatings, fields: floatingFields, tallied: true}

func init() {
	floatingNoun.add, floatingNoun.change, floatingNoun.remove = addFloating, changeFloating, removeFloating
}

// FloatingAddresses gives other domains and the native API a look at every floating address.
func FloatingAddresses() *state.Table[FloatingAddress] { return floatings }

func addFloating(ctx context.Context, tx *state.Tx, f *FloatingAddress) error {
	if err := mayCreate(ctx, "floating-address.create", f.ProjectID); err != nil {
		return err
	}
	if f.Address.IsValid() {
		if err := identity.Allow(ctx, "floating-address.set-address", resource.Meta{ProjectID: f.ProjectID}); err != nil {
			return err
		}
	}
	n, err := external(ctx, tx, f.NetworkID)
	if err != nil {
		return err
	}
	if err := checkTexts(&f.Meta, f.Description, f.Tags); err != nil {
		return err
	}
	if err := checkQuota(tx, f.ProjectID, "floating-address"); err != nil {
		return err
	}
	if err := holdAddress(ctx, tx, n, f); err != nil {
		return err
	}
	if err := aim(ctx, tx, f); err != nil {
		return err
	}
	return putFloating(tx, f)
}

// holdAddress makes the port that keeps the address from others.
func holdAddress(ctx context.Context, tx *state.Tx, n *Network, f *FloatingAddress) error {
	want := []FixedAddress{{f.SubnetID, f.Address}}
	if f.SubnetID.IsZero() && !f.Address.IsValid() {
		s, ok := v4Subnet(tx, n.ID)
		if !ok {
			return invalid("no-floating-subnet", "Network %s does not contain any IPv4 subnet.", n.ID)
		}
		want = []FixedAddress{{s, netip.Addr{}}}
	}
	p := &Port{Meta: resource.Meta{ID: tx.NewID()}, NetworkID: n.ID, AdminUp: true, Fixed: want,
		DeviceID: f.ID.String(), Owner: OwnerFloating, Groups: []resource.ID{}, VNIC: NormalVNIC}
	if err := makePort(ctx, tx, n, p); err != nil {
		return err
	}
	if !p.Fixed[0].Address.Is4() {
		return invalid("not-v4", "Bad floating address request: %s is not an IPv4 address.", p.Fixed[0].Address)
	}
	f.PortID, f.SubnetID, f.Address = p.ID, p.Fixed[0].SubnetID, p.Fixed[0].Address
	return nil
}

// v4Subnet is the first IPv4 subnet of a network that has an address left, or else just the first.
func v4Subnet(tx *state.Tx, networkID resource.ID) (found resource.ID, ok bool) {
	for s := range subnets.Each(tx, "network", state.KeyOf(networkID)) {
		if !s.CIDR.Addr().Is4() {
			continue
		}
		if !ok {
			found, ok = s.ID, true
		}
		if _, free := freeAddress(tx, s, nil); free {
			return s.ID, true
		}
	}
	return found, ok
}

func putFloating(tx *state.Tx, f *FloatingAddress) error {
	err := floatings.Put(tx, f)
	if fault.Is(err, fault.Exists) {
		return fault.Errorf(fault.Conflict, "Cannot associate floating IP %s with port %s using fixed IP %s, as that fixed IP already has a floating IP on external network %s.", f.Address, f.TargetID, f.Fixed, f.NetworkID).
			WithCode("floating-taken")
	}
	return err
}

// aim finds the address and the router on the way to the port that the floating address is to lead to.
func aim(ctx context.Context, tx *state.Tx, f *FloatingAddress) error {
	f.RouterID = resource.ID{}
	if f.TargetID.IsZero() {
		if f.Fixed.IsValid() {
			return invalid("fixed-without-port", "Bad floating address request: Fixed IP is given without a port.")
		}
		return nil
	}
	p, err := visibleOne(ctx, tx, &portNoun, f.TargetID)
	if err != nil {
		return err
	}
	if p.ProjectID != f.ProjectID && !identity.ActorOf(ctx).Admin() {
		return invalid("foreign-port", "Bad floating address request: Port %s is associated with a different tenant than Floating IP %s and therefore cannot be bound.", p.ID, f.ID)
	}
	fixed, err := targetAddress(p, f.Fixed)
	if err != nil {
		return err
	}
	router, ok := routerTo(tx, f.NetworkID, fixed, f.ProjectID)
	if !ok {
		return fault.Errorf(fault.NotFound, "External network %s is not reachable from subnet %s. Therefore, cannot associate Port %s with a Floating IP.", f.NetworkID, fixed.SubnetID, p.ID).
			WithCode("external-unreachable")
	}
	f.Fixed, f.RouterID = fixed.Address, router
	return nil
}

// targetAddress is the address of the port that was asked for, or its only one of IPv4.
func targetAddress(p *Port, want netip.Addr) (FixedAddress, error) {
	var v4 []FixedAddress
	for _, f := range p.Fixed {
		if want.IsValid() && f.Address == want {
			if want.Is4() {
				return f, nil
			}
			return f, invalid("fixed-v6", "Bad floating address request: Cannot process floating IP association with %s, since that is not an IPv4 address.", want)
		}
		if f.Address.Is4() {
			v4 = append(v4, f)
		}
	}
	switch {
	case want.IsValid():
		return FixedAddress{}, invalid("fixed-not-on-port", "Bad floating address request: Port %s does not have fixed ip %s.", p.ID, want)
	case len(v4) == 0:
		return FixedAddress{}, invalid("no-fixed", "Bad floating address request: Cannot add floating IP to port %s that has no fixed IPv4 addresses.", p.ID)
	case len(v4) > 1:
		return FixedAddress{}, invalid("many-fixed", "Bad floating address request: Port %s has multiple fixed IPv4 addresses. Must provide a specific IPv4 address when assigning a floating IP.", p.ID)
	}
	return v4[0], nil
}

// routerTo is the router by which a project's address leads to a subnet: it has a leg there and its gateway
// in the external network, and it is not a stranger's; of several the one that is the subnet's gateway.
func routerTo(tx *state.Tx, externalID resource.ID, fixed FixedAddress, projectID resource.ID) (found resource.ID, ok bool) {
	s, there := subnets.PeekOne(tx, fixed.SubnetID)
	if !there {
		return found, false
	}
	for p := range ports.Peek(tx, "leg", state.Range{Prefix: state.KeyOf(s.ID)}) {
		id, err := resource.ParseID(p.DeviceID)
		if err != nil {
			continue
		}
		r, exists := routers.PeekOne(tx, id)
		if !exists || r.Gateway == nil || r.Gateway.NetworkID != externalID || !leads(r, p, s, projectID) {
			continue
		}
		if slices.Contains(p.Fixed, FixedAddress{s.ID, s.Gateway}) {
			return id, true
		}
		found, ok = id, true
	}
	return found, ok
}

func changeFloating(ctx context.Context, tx *state.Tx, was, now *FloatingAddress) error {
	if now.NetworkID != was.NetworkID || now.Address != was.Address || now.SubnetID != was.SubnetID {
		return fault.InvalidField("floating address", "cannot be changed")
	}
	if err := checkTexts(&now.Meta, now.Description, now.Tags); err != nil {
		return err
	}
	if now.TargetID != was.TargetID || now.Fixed != was.Fixed {
		if err := noForwards(tx, was); err != nil {
			return err
		}
		if err := aim(ctx, tx, now); err != nil {
			return err
		}
	}
	return putFloating(tx, now)
}

func removeFloating(ctx context.Context, tx *state.Tx, f *FloatingAddress) error {
	for _, id := range forwards.IDs(tx, "floating", state.KeyOf(f.ID)) {
		if err := forwards.Delete(tx, id); err != nil {
			return err
		}
	}
	if err := dropPort(ctx, tx, f.PortID); err != nil { // another address, or a forward, may lead to it
		return err
	}
	return floatings.Delete(tx, f.ID)
}

// FloatingOf are the floating addresses that lead to a port.
func FloatingOf(tx *state.Tx, portID resource.ID) []*FloatingAddress {
	var found []*FloatingAddress
	for f := range floatings.Each(tx, "target", state.KeyOf(portID)) {
		found = append(found, f)
	}
	return found
}

// letGo makes the floating addresses that lead to a port lead nowhere.
func letGo(tx *state.Tx, portID resource.ID) error {
	for _, f := range FloatingOf(tx, portID) {
		f.TargetID, f.Fixed, f.RouterID = resource.ID{}, netip.Addr{}, resource.ID{}
		if err := floatings.Put(tx, f); err != nil {
			return err
		}
	}
	return nil
}

// keepFloating lets go of the floating addresses that lead to addresses which a port has no more, and of
// the forwards: such an address may be another's next.
func keepFloating(ctx context.Context, tx *state.Tx, p *Port) error {
	for _, f := range FloatingOf(tx, p.ID) {
		if slices.ContainsFunc(p.Fixed, func(fixed FixedAddress) bool { return fixed.Address == f.Fixed }) {
			continue
		}
		f.TargetID, f.Fixed, f.RouterID = resource.ID{}, netip.Addr{}, resource.ID{}
		if err := floatings.Put(tx, f); err != nil {
			return err
		}
	}
	for _, id := range forwards.IDs(tx, "target", state.KeyOf(p.ID)) {
		w, ok := forwards.PeekOne(tx, id)
		if !ok || slices.ContainsFunc(p.Fixed, func(fixed FixedAddress) bool { return fixed.Address == w.Fixed }) {
			continue
		}
		if err := removeForward(ctx, tx, w); err != nil {
			return err
		}
	}
	return nil
}

// A Forward leads one port of a floating address to one port of a fixed address. A floating address with
// forwards leads nowhere else.
type Forward struct {
	resource.Meta

	Description  string
	FloatingID   resource.ID
	Protocol     int // protoTCP or protoUDP
	ExternalPort int
	TargetID     resource.ID // the port
	Fixed        netip.Addr
	FixedPort    int
	RouterID     resource.ID
}

var forwardFields = common(fields[Forward]{
	"description":   {text: func(f *Forward) []string { return []string{f.Description} }},
	"floating":      {text: func(f *Forward) []string { return oneID(f.FloatingID) }, index: "floating", key: idKey},
	"protocol":      {text: func(f *Forward) []string { return []string{strconv.Itoa(f.Protocol)} }},
	"external-port": {text: func(f *Forward) []string { return []string{strconv.Itoa(f.ExternalPort)} }},
	"fixed-port":    {text: func(f *Forward) []string { return []string{strconv.Itoa(f.FixedPort)} }},
	"fixed":         {text: func(f *Forward) []string { return []string{f.Fixed.String()} }},
	"target":        {text: func(f *Forward) []string { return oneID(f.TargetID) }, index: "target", key: idKey},
})

var forwards = state.NewTable[Forward]("port-forward",
	facets(forwardFields),
	state.Index("floating", func(f *Forward) state.Key { return state.KeyOf(f.FloatingID) }),
	state.Index("target", func(f *Forward) state.Key { return state.KeyOf(f.TargetID) }),
	state.Index("router", func(f *Forward) state.Key { return state.KeyOf(f.RouterID) }),
	state.Unique("outside", func(f *Forward) state.Key { return state.KeyOf(f.FloatingID, f.Protocol, f.ExternalPort) }),
	state.Unique("inside", func(f *Forward) state.Key { return state.KeyOf(f.TargetID, f.Fixed, f.Protocol, f.FixedPort) }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"port-forward.create": identity.Member, "port-forward.read": identity.Reader,
	"port-forward.update": identity.Member, "port-forward.delete": identity.Member,
})

var forwardNoun = noun[Forward]{name: "port-forward", title: "Port forwarding", table: forwards, fields: forwardFields}

func init() {
	forwardNoun.add, forwardNoun.change, forwardNoun.remove = addForward, changeForward, removeForward
}

func addForward(ctx context.Context, tx *state.Tx, f *Forward) error {
	owner, err := visibleOne(ctx, tx, &floatingNoun, f.FloatingID)
	if err != nil {
		return err
	}
	if err := floatingNoun.allow(ctx, tx, "update", owner); err != nil {
		return err
	}
	if !owner.TargetID.IsZero() {
		return invalid("floating-in-use", "Bad floating address request: Floating IP %s leads to port %s as a whole.", owner.ID, owner.TargetID)
	}
	f.ProjectID = owner.ProjectID
	return putForward(ctx, tx, owner, f)
}

func putForward(ctx context.Context, tx *state.Tx, owner *FloatingAddress, f *Forward) error {
	if f.Protocol != protoTCP && f.Protocol != protoUDP {
		return fault.InvalidField("protocol", "must be TCP or UDP")
	}
	for _, n := range []int{f.ExternalPort, f.FixedPort} {
		if n < 1 || n > 65535 {
			return fault.InvalidField("port", "must be 1 to 65535")
		}
	}
	if err := checkTexts(&f.Meta, f.Description, nil); err != nil {
		return err
	}
	p, err := visibleOne(ctx, tx, &portNoun, f.TargetID)
	if err != nil {
		return err
	}
	fixed, err := targetAddress(p, f.Fixed)
	if err != nil {
		return err
	}
	router, ok := routerTo(tx, owner.NetworkID, fixed, owner.ProjectID)
	if !ok {
		return fault.Errorf(fault.NotFound, "External network %s is not reachable from subnet %s. Therefore, cannot associate Port %s with a Floating IP.", owner.NetworkID, fixed.SubnetID, p.ID).
			WithCode("external-unreachable")
	}
	f.Fixed, f.RouterID = fixed.Address, router
	if err := forwards.Put(tx, f); err != nil {
		if fault.Is(err, fault.Exists) {
			return invalid("forward-exists", "Bad port forward request: A duplicate port forwarding entry with same attributes already exists.")
		}
		return err
	}
	return touch(tx, &floatingNoun, owner.ID)
}

func changeForward(ctx context.Context, tx *state.Tx, was, now *Forward) error {
	owner, err := floatingNoun.get(tx, was.FloatingID)
	if err != nil {
		return err
	}
	return putForward(ctx, tx, owner, now)
}

func removeForward(ctx context.Context, tx *state.Tx, f *Forward) error {
	if err := forwards.Delete(tx, f.ID); err != nil {
		return err
	}
	return touch(tx, &floatingNoun, f.FloatingID)
}

func dropForwards(tx *state.Tx, portID resource.ID) error {
	for _, id := range forwards.IDs(tx, "target", state.KeyOf(portID)) {
		if err := forwards.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// noForwards refuses to lead a floating address as a whole somewhere while ports of it lead elsewhere.
func noForwards(tx *state.Tx, f *FloatingAddress) error {
	for range forwards.Peek(tx, "floating", state.Range{Prefix: state.KeyOf(f.ID)}) {
		return fault.Errorf(fault.Conflict, "Floating IP %s has port forwardings and cannot lead to a port as a whole.", f.ID).WithCode("floating-has-forwards")
	}
	return nil
}

// ForwardsOf are the forwards of a floating address.
func ForwardsOf(tx *state.Tx, floatingID resource.ID) []*Forward {
	var found []*Forward
	for f := range forwards.Each(tx, "floating", state.KeyOf(floatingID)) {
		found = append(found, f)
	}
	return found
}
