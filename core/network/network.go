package network

import (
	"context"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Network is an isolated layer-2 domain.
type Network struct {
	resource.Meta

	// Asked for by the owner.
	Description string
	Tags        []string
	AdminUp     bool
	MTU         int  // 0 at creation: the largest that fits, but no larger than what guests are used to
	Secured     bool // whether new ports get port security unless they say otherwise
	ZoneHints   []string
	DNSDomain   string
	ScopeV4     resource.ID // address scopes of its subnets' pools; derived, zero for none
	ScopeV6     resource.ID

	// Asked for by an operator.
	External bool   // routers may have their gateway here, and floating addresses come from here
	Shared   bool   // every project may use it
	Default  bool   // the external network for whoever names none
	Kind     string // "vxlan" for an overlay, "flat" or "vlan" for a piece of a physical network
	Physical string // the physical network's name; "" for an overlay
	Segment  int    // the VXLAN or VLAN identifier; 0 for none
}

// Kinds of networks.
const (
	Overlay = "vxlan"
	Flat    = "flat"
	VLAN    = "vlan"
)

// Bounds of MTUs and identifiers.
const (
	physicalMTU = 1500
	minMTU      = 68
	minMTUv6    = 1280
	firstVNI    = 1
	lastVNI     = 1<<24 - 1
	lastVLAN    = 4094
)

var networkFields = common(fields[Network]{
	"description": {text: func(n *Network) []string { return []string{n.Description} }, by: true, sparse: true},
	"tag":         {text: func(n *Network) []string { return n.Tags }, by: true},
	"up":          {text: func(n *Network) []string { return oneBool(n.AdminUp) }, by: true, single: true},
	"shared":      {text: func(n *Network) []string { return oneBool(n.Shared) }, by: true, single: true},
	"external":    {text: func(n *Network) []string { return oneBool(n.External) }, by: true, single: true},
	"default":     {text: func(n *Network) []string { return oneBool(n.Default) }, by: true, single: true},
	"secured":     {text: func(n *Network) []string { return oneBool(n.Secured) }, by: true, single: true},
	"mtu": {text: func(n *Network) []string { return []string{strconv.Itoa(n.MTU)} },
		order: func(a, b *Network) int { return a.MTU - b.MTU }},
	"kind":     {text: func(n *Network) []string { return []string{n.Kind} }, by: true, single: true},
	"physical": {text: func(n *Network) []string { return []string{n.Physical} }, by: true, single: true},
	"segment": {text: func(n *Network) []string { return []string{strconv.Itoa(n.Segment)} }, by: true,
		order: func(a, b *Network) int { return a.Segment - b.Segment }},
	"scope-v4":   {text: func(n *Network) []string { return oneID(n.ScopeV4) }},
	"scope-v6":   {text: func(n *Network) []string { return oneID(n.ScopeV6) }},
	"dns-domain": {text: func(n *Network) []string { return []string{n.DNSDomain} }, by: true},
})

var networks = state.NewTable[Network]("network",
	facets(networkFields),
	state.Index("tail", func(n *Network) state.Key { return state.KeyOf(n.ID.Tail()) }),
	state.Index("overlay-mtu", func(n *Network) state.Key {
		if n.Kind != Overlay {
			return ""
		}
		return state.KeyOf(n.MTU)
	}),
	state.Index("vni", func(n *Network) state.Key {
		if n.Kind != Overlay {
			return ""
		}
		return state.KeyOf(n.Segment)
	}),
	// One physical network carries one flat network, and one for each VLAN.
	state.Unique("segment", func(n *Network) state.Key {
		if n.Kind == Overlay {
			return state.KeyOf(n.Kind, n.Segment)
		}
		return state.KeyOf("", n.Physical, n.Segment)
	}),
	state.Tally("project", func(n *Network) (state.Key, state.Amounts) { return state.KeyOf(n.ProjectID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"network.create": identity.Member, "network.read": identity.Reader,
	"network.update": identity.Member, "network.delete": identity.Member,
	"network.set-shared": identity.Admin, "network.set-external": identity.Admin,
	"network.set-default": identity.Admin, "network.set-segment": identity.Admin,
})

var networkNoun = noun[Network]{
	tallied: true,
	name:    "network", title: "Network", table: networks, fields: networkFields,
	shown: func(tx *state.Tx, a *identity.Actor, n *Network) bool {
		return n.Shared || n.External || sharedWith(tx, n.ID, a.ProjectID)
	},
	others: func(tx *state.Tx, a *identity.Actor) []span {
		spans := []span{{index: "by", key: facet(resource.ID{}, "shared", "true")}, {index: "by", key: facet(resource.ID{}, "external", "true")}}
		return append(spans, sharedSpans(tx, SharedNetwork, a.ProjectID)...)
	},
}

func init() { // the hooks reach other nouns, whose hooks reach this one
	networkNoun.add, networkNoun.change, networkNoun.remove = addNetwork, changeNetwork, removeNetwork
}

// Networks gives other domains and the native API a look at every network.
func Networks() *state.Table[Network] { return networks }

func addNetwork(ctx context.Context, tx *state.Tx, n *Network) error {
	if err := mayCreate(ctx, "network.create", n.ProjectID); err != nil {
		return err
	}
	if err := mayWishNetwork(ctx, &Network{Meta: resource.Meta{ProjectID: n.ProjectID}}, n); err != nil {
		return err
	}
	if err := chooseSegment(tx, n); err != nil {
		return err
	}
	if n.MTU == 0 {
		n.MTU = min(largestMTU(tx, n), physicalMTU)
	}
	if err := checkMTU(tx, n); err != nil {
		return err
	}
	if err := checkNetwork(n); err != nil {
		return err
	}
	if err := checkQuota(tx, n.ProjectID, "network"); err != nil {
		return err
	}
	if _, err := ensureDefaultGroup(tx, n.ProjectID); err != nil {
		return err
	}
	if err := onlyDefault(tx, n); err != nil {
		return err
	}
	if err := putSegment(tx, n); err != nil {
		return err
	}
	return syncNetworkShares(tx, &Network{}, n)
}

func changeNetwork(ctx context.Context, tx *state.Tx, was, now *Network) error {
	if err := mayWishNetwork(ctx, was, now); err != nil {
		return err
	}
	if now.Kind != was.Kind || now.Physical != was.Physical || now.Segment != was.Segment {
		return fault.InvalidField("segment", "of a network cannot be changed").WithCode("provider-fixed")
	}
	if now.MTU != was.MTU { // a host that joined since may have made less of what fits
		if err := checkMTU(tx, now); err != nil {
			return err
		}
	}
	if err := checkNetwork(now); err != nil {
		return err
	}
	if was.External && !now.External && externalInUse(tx, now.ID) {
		return fault.Errorf(fault.Conflict, "External network %s cannot be updated to be made non-external, since it has existing gateway ports.", now.ID).
			WithCode("external-in-use")
	}
	if was.Shared && !now.Shared {
		if err := unshareable(tx, now.ID, now.ProjectID); err != nil {
			return err
		}
	}
	if err := onlyDefault(tx, now); err != nil {
		return err
	}
	if err := putSegment(tx, now); err != nil {
		return err
	}
	return syncNetworkShares(tx, was, now)
}

func removeNetwork(ctx context.Context, tx *state.Tx, n *Network) error {
	idle, err := idleFloating(tx, n.ID)
	if err != nil {
		return err
	}
	for _, f := range idle {
		if err := removeFloating(ctx, tx, f); err != nil {
			return err
		}
	}
	for _, id := range subnets.IDs(tx, "network", state.KeyOf(n.ID)) {
		if err := subnets.Delete(tx, id); err != nil {
			return err
		}
	}
	if err := dropShares(tx, n.ID); err != nil {
		return err
	}
	return networks.Delete(tx, n.ID)
}

// idleFloating are the floating addresses of a network, all of which lead nowhere, when there is nothing
// else on it.
func idleFloating(tx *state.Tx, networkID resource.ID) ([]*FloatingAddress, error) {
	var idle []*FloatingAddress
	for p := range ports.Peek(tx, "network", state.Range{Prefix: state.KeyOf(networkID)}) {
		id, err := resource.ParseID(p.DeviceID)
		if p.Owner != OwnerFloating || err != nil {
			return nil, networkInUse(networkID, p.ID)
		}
		f, err := floatingNoun.get(tx, id)
		if err != nil {
			return nil, err
		}
		if !f.TargetID.IsZero() || len(ForwardsOf(tx, f.ID)) > 0 {
			return nil, networkInUse(networkID, p.ID)
		}
		idle = append(idle, f)
	}
	return idle, nil
}

func networkInUse(id, port resource.ID) error {
	return fault.Errorf(fault.Conflict, "Unable to complete operation on network %s. There are one or more ports still in use on the network, id for these ports is %s.", id, port).
		WithCode("network-in-use")
}

// mayWishNetwork asks for what only some may set.
func mayWishNetwork(ctx context.Context, was, now *Network) error {
	for _, wish := range []struct {
		changed bool
		action  string
	}{
		{was.Shared != now.Shared, "network.set-shared"},
		{was.External != now.External, "network.set-external"},
		{was.Default != now.Default, "network.set-default"},
		{was.Kind != now.Kind || was.Physical != now.Physical || was.Segment != now.Segment, "network.set-segment"},
	} {
		if !wish.changed {
			continue
		}
		if err := identity.Allow(ctx, wish.action, was.Meta); err != nil {
			return err
		}
	}
	return nil
}

// chooseSegment completes and checks where the network's packets are to travel.
func chooseSegment(tx *state.Tx, n *Network) error {
	switch n.Kind {
	case "":
		if n.Physical != "" || n.Segment != 0 {
			return fault.Errorf(fault.Invalid, "Invalid input for operation: network type required.").WithCode("provider")
		}
		n.Kind = Overlay
		fallthrough
	case Overlay:
		if n.Physical != "" {
			return fault.Errorf(fault.Invalid, "Invalid input for operation: a %s network has no physical network.", n.Kind).WithCode("provider")
		}
		if n.Segment == 0 {
			return chooseVNI(tx, n)
		}
		if n.Segment < firstVNI || n.Segment > lastVNI {
			return fault.Errorf(fault.Invalid, "Invalid input for operation: the segmentation ID %d is not between %d and %d.", n.Segment, firstVNI, lastVNI).WithCode("provider")
		}
	case Flat:
		if n.Physical == "" {
			return fault.Errorf(fault.Invalid, "Invalid input for operation: a flat network needs a physical network.").WithCode("provider")
		}
		if n.Segment != 0 {
			return fault.Errorf(fault.Invalid, "Invalid input for operation: a flat network has no identifier.").WithCode("provider")
		}
	case VLAN:
		if n.Physical == "" || n.Segment < 1 || n.Segment > lastVLAN {
			return fault.Errorf(fault.Invalid, "Invalid input for operation: a VLAN network needs a physical network and an identifier from 1 to %d.", lastVLAN).WithCode("provider")
		}
	default:
		return fault.Errorf(fault.Invalid, "Invalid input for operation: networks of type %s are not supported.", n.Kind).WithCode("provider")
	}
	return nil
}

func chooseVNI(tx *state.Tx, n *Network) error {
	used := func(vni uint64) bool {
		_, taken := networks.Lookup(tx, "vni", state.KeyOf(int(vni)))
		return taken
	}
	last := uint64(0)
	for newest := range networks.Peek(tx, "vni", state.Range{Reverse: true}) {
		last = uint64(newest.Segment)
		break
	}
	vni, ok := pickFree(tx, firstVNI, lastVNI, last, used)
	if !ok {
		return fault.Errorf(fault.Exhausted, "Unable to create the network. No tenant network is available for allocation.").WithCode("no-segment")
	}
	n.Segment = int(vni)
	return nil
}

func putSegment(tx *state.Tx, n *Network) error {
	err := networks.Put(tx, n)
	if fault.Is(err, fault.Exists) {
		return fault.Errorf(fault.Conflict, "Unable to create the network. The segment %s %d of physical network '%s' is in use.", n.Kind, n.Segment, n.Physical).
			WithCode("segment-in-use")
	}
	return err
}

func checkMTU(tx *state.Tx, n *Network) error {
	if largest := largestMTU(tx, n); n.MTU < minMTU || n.MTU > largest {
		return fault.Errorf(fault.Invalid, "Invalid input for operation: Requested MTU %d is not between %d and %d, the largest that fits on this network.", n.MTU, minMTU, largest).
			WithCode("mtu")
	}
	return nil
}

func checkNetwork(n *Network) error {
	return checkTexts(&n.Meta, n.Description, n.Tags)
}

// checkTexts bounds what owners may call things.
func checkTexts(m *resource.Meta, description string, tags []string) error {
	switch {
	case utf8.RuneCountInString(m.Name) > 255:
		return fault.InvalidField("name", "must be at most 255 characters")
	case utf8.RuneCountInString(description) > 255:
		return fault.InvalidField("description", "must be at most 255 characters")
	case len(tags) > maxTags:
		return fault.InvalidField("tags", "must be at most %d", maxTags)
	}
	for _, tag := range tags {
		if tag == "" || utf8.RuneCountInString(tag) > 255 {
			return fault.InvalidField("tags", "must be of 1 to 255 characters each")
		}
	}
	return nil
}

const maxTags = 50

// onlyDefault keeps at most one external network the default one.
func onlyDefault(tx *state.Tx, n *Network) error {
	if !n.Default {
		return nil
	}
	for other := range networks.Each(tx, "by", facet(resource.ID{}, "default", "true")) {
		if other.ID != n.ID {
			return fault.Errorf(fault.Conflict, "A default external network already exists: %s.", other.ID).WithCode("default-exists")
		}
	}
	return nil
}

// externalInUse reports whether routers or floating addresses lean on an external network.
func externalInUse(tx *state.Tx, id resource.ID) bool {
	for p := range ports.Peek(tx, "network", state.Range{Prefix: state.KeyOf(id)}) {
		if p.Owner == OwnerGateway || p.Owner == OwnerFloating {
			return true
		}
	}
	return false
}

// usable reports whether a project may put ports on the network. To see an external network, and to have
// gateways and floating addresses there, takes less.
func usable(tx *state.Tx, n *Network, projectID resource.ID) bool {
	return n.ProjectID == projectID || n.Shared || SharedTo(tx, n.ID, projectID)
}

// ZonesOf are the zones in which something is plugged into a network, in order.
func ZonesOf(tx *state.Tx, networkID resource.ID) []string {
	zones := []string{}
	var at resource.ID
	// Host by host: each step skips the ports of the one before.
	r := state.Range{Prefix: state.KeyOf(networkID)}
	for {
		next := resource.ID{}
		for p := range ports.Peek(tx, "network-host", r) {
			next = p.HostID
			break
		}
		if next.IsZero() || next == at {
			break
		}
		at = next
		if h, ok := host.Table().PeekOne(tx, at); ok && !slices.Contains(zones, h.Zone) {
			zones = append(zones, h.Zone)
		}
		r.After, r.AfterKey = maxID, state.KeyOf(networkID, at)
	}
	slices.Sort(zones)
	return zones
}

// ZonesOfRouter are the zones in which a router is realized.
func ZonesOfRouter(tx *state.Tx, r *Router) []string {
	if h, ok := host.Table().PeekOne(tx, r.HostID); ok {
		return []string{h.Zone}
	}
	return []string{}
}

// DefaultNetworks gives the networks on which a project's server is put when it names none:
// its own ones, or else those that others share with it. External networks are never among them.
func DefaultNetworks(tx *state.Tx, projectID resource.ID) []*Network {
	var own []*Network
	for n := range networks.Each(tx, "by", facet(projectID, all, "")) {
		if !n.External {
			own = append(own, n)
		}
	}
	if own != nil {
		return own
	}
	spans := append(sharedSpans(tx, SharedNetwork, projectID), span{index: "by", key: facet(resource.ID{}, "shared", "true")})
	var shared []*Network
	for n := range networkNoun.each(tx, spans, false) {
		if !n.External && usable(tx, n, projectID) {
			n, _ := networks.Find(tx, n.ID)
			shared = append(shared, n)
		}
	}
	return shared
}

// DefaultExternal is the external network for whoever names none: the one that an operator
// marked, or else the oldest.
func DefaultExternal(tx *state.Tx) (resource.ID, bool) {
	var first resource.ID
	for n := range networks.Peek(tx, "", state.Range{}) {
		if n.External && (n.Default || first.IsZero()) {
			first = n.ID
			if n.Default {
				break
			}
		}
	}
	return first, !first.IsZero()
}
