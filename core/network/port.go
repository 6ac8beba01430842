package network

import (
	"bytes"
	"context"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Port is a place in a network where something is plugged in: its MAC address, its IP
// addresses, and what may pass.
type Port struct {
	resource.Meta

	// Asked for by the owner.
	Description  string
	Tags         []string
	NetworkID    resource.ID
	AdminUp      bool
	MAC          string         // "" at creation: chosen
	Fixed        []FixedAddress // nil at creation: chosen; an entry without an address, or without a subnet: chosen
	AllowedPairs []AddressPair
	PortSecurity bool
	Groups       []resource.ID // nil at creation: the project's default group; empty: none
	DHCPOptions  []DHCPOption
	DNSName      string
	DNSDomain    string

	NetworkOwner resource.ID // the network's project, which never changes

	// Who uses it.
	DeviceID   string // the ID of a server or router of ours, or whatever a client wrote
	Owner      Owner
	OwnerLabel string // what a client wrote; for a server its zone
	HostID     resource.ID
	NextHostID resource.ID `since:"2"` // where its server is on its way to: made ready there, and everybody is still told of HostID
	HostLabel  string      // what an operator wrote and is no host of ours
	Adopted    bool        // the server was given the port: it is let go, not deleted, with the server
	VNIC       string
	Profile    map[string]string // JSON texts by key: what an operator wrote for drivers

	// Found out by the host.
	Wired bool // the attachment is in place
}

// An Owner says what kind of thing a port is for.
type Owner string

// The owners that mean something here. A port of no owner is free for whoever takes it.
const (
	OwnerNone     Owner = ""
	OwnerServer   Owner = "server"
	OwnerRouter   Owner = "router"   // a router's interface
	OwnerGateway  Owner = "gateway"  // a router's leg in an external network
	OwnerFloating Owner = "floating" // holds a floating address
	OwnerDHCP     Owner = "dhcp"
)

// internal reports whether only the cloud itself handles such ports.
func (o Owner) internal() bool { return o == OwnerRouter || o == OwnerGateway || o == OwnerFloating }

// A Status is what is known of whether something works.
type Status string

// The statuses.
const (
	Active Status = "active"
	Build  Status = "build"
	Down   Status = "down"
)

// Status tells whether the port is wired. One that nobody uses, or that its owner turned off, is down.
func (p *Port) Status() Status {
	switch {
	case p.Owner.internal():
		if p.DeviceID == "" || !p.AdminUp {
			return Down
		}
		return Active
	case p.Owner != OwnerServer || p.HostID.IsZero() || !p.AdminUp:
		return Down
	case p.Wired:
		return Active
	default:
		return Build
	}
}

// eachHost gives the host that the port is on, and the one that it is on its way to.
func (p *Port) eachHost(do func(resource.ID)) {
	for _, h := range []resource.ID{p.HostID, p.NextHostID} {
		if !h.IsZero() {
			do(h)
		}
	}
}

// Bounds of what one port may hold.
const (
	maxFixed = 5
	maxPairs = 10
)

var portFields = common(fields[Port]{
	"description": {text: func(p *Port) []string { return []string{p.Description} }, by: true, sparse: true},
	"tag":         {text: func(p *Port) []string { return p.Tags }, by: true},
	"network":     {text: func(p *Port) []string { return oneID(p.NetworkID) }, index: "network", key: idKey},
	"up":          {text: func(p *Port) []string { return oneBool(p.AdminUp) }, by: true, single: true},
	"status":      {text: func(p *Port) []string { return []string{string(p.Status())} }, by: true, single: true},
	"mac":         {text: func(p *Port) []string { return []string{p.MAC} }, index: "mac", key: textKey},
	"device":      {text: func(p *Port) []string { return []string{p.DeviceID} }, by: true, single: true},
	"owner":       {text: func(p *Port) []string { return []string{OwnerText(p.Owner, p.OwnerLabel)} }, by: true, single: true},
	"host":        {text: func(p *Port) []string { return oneID(p.HostID) }, index: "host", key: idKey},
	"place":       {text: func(p *Port) []string { return []string{p.place()} }, by: true, sparse: true},
	"group":       {text: func(p *Port) []string { return idTexts(p.Groups) }, index: "group", key: idKey},
	"subnet":      {text: (*Port).subnetTexts, index: "subnet", key: idKey},
	"address":     {text: (*Port).addressTexts, index: "ip", key: addressKey, part: (*Port).addressPart},
	"security":    {text: func(p *Port) []string { return oneBool(p.PortSecurity) }, by: true, single: true},
	"dns-name":    {text: func(p *Port) []string { return []string{p.DNSName} }, by: true, sparse: true},
	"vnic":        {text: func(p *Port) []string { return []string{p.VNIC} }, by: true, single: true},
})

// OwnerText is how the field "owner" spells an owner with its label.
func OwnerText(o Owner, label string) string { return string(o) + ":" + label }

// place is where the port is: a host's ID, or what an operator wrote.
func (p *Port) place() string {
	if p.HostID.IsZero() {
		return p.HostLabel
	}
	return p.HostID.String()
}

// owners are the projects whose lists show the port.
func (p *Port) owners() []resource.ID {
	if p.NetworkOwner == p.ProjectID || p.NetworkOwner.IsZero() {
		return []resource.ID{p.ProjectID}
	}
	return []resource.ID{p.ProjectID, p.NetworkOwner}
}

func (p *Port) addressTexts() []string {
	texts := make([]string, len(p.Fixed))
	for i, f := range p.Fixed {
		texts[i] = f.Address.String()
	}
	return texts
}

// addressPart reports whether an address of the port, as text, contains a part.
func (p *Port) addressPart(part string) bool {
	var buffer [64]byte
	for _, f := range p.Fixed {
		if bytes.Contains(f.Address.AppendTo(buffer[:0]), []byte(part)) {
			return true
		}
	}
	return false
}

func (p *Port) subnetTexts() []string {
	texts := make([]string, len(p.Fixed))
	for i, f := range p.Fixed {
		texts[i] = f.SubnetID.String()
	}
	return texts
}

func (p *Port) subnetKeys() []state.Key {
	keys := make([]state.Key, len(p.Fixed))
	for i, f := range p.Fixed {
		keys[i] = state.KeyOf(f.SubnetID)
	}
	return keys
}

func textKey(value string) (state.Key, bool) { return state.KeyOf(value), value != "" }

func addressKey(value string) (state.Key, bool) {
	a, err := netip.ParseAddr(value)
	return state.KeyOf(a), err == nil
}

func idKeys(ids []resource.ID) []state.Key {
	keys := make([]state.Key, len(ids))
	for i, id := range ids {
		keys[i] = state.KeyOf(id)
	}
	return keys
}

var ports = state.NewTable[Port]("port",
	facets(portFields),
	state.Index("network", func(p *Port) state.Key { return state.KeyOf(p.NetworkID) }),
	state.Index("mac", func(p *Port) state.Key { return state.KeyOf(p.MAC) }),
	state.Unique("network-mac", func(p *Port) state.Key { return state.KeyOf(p.NetworkID, p.MAC) }),
	state.Index("device", func(p *Port) state.Key {
		if p.DeviceID == "" {
			return ""
		}
		return state.KeyOf(p.DeviceID)
	}),
	state.Index("host", func(p *Port) state.Key {
		if p.HostID.IsZero() {
			return ""
		}
		return state.KeyOf(p.HostID)
	}),
	state.Index("network-host", func(p *Port) state.Key {
		if p.HostID.IsZero() {
			return ""
		}
		return state.KeyOf(p.NetworkID, p.HostID)
	}),
	state.Index("arriving", func(p *Port) state.Key {
		if p.NextHostID.IsZero() {
			return ""
		}
		return state.KeyOf(p.NextHostID, p.NetworkID)
	}),
	state.MultiIndex("group", func(p *Port) []state.Key { return idKeys(p.Groups) }),
	state.MultiIndex("group-host", func(p *Port) []state.Key {
		if p.HostID.IsZero() {
			return nil
		}
		keys := make([]state.Key, len(p.Groups))
		for i, id := range p.Groups {
			keys[i] = state.KeyOf(id, p.HostID)
		}
		return keys
	}),
	state.MultiIndex("leg", func(p *Port) []state.Key { // routers' interfaces by subnet
		if p.Owner != OwnerRouter {
			return nil
		}
		return p.subnetKeys()
	}),
	state.MultiIndex("subnet", (*Port).subnetKeys),
	// In the order of addresses, so that a free one is found; ip is the same without the network.
	state.MultiIndex("address", func(p *Port) []state.Key {
		keys := make([]state.Key, len(p.Fixed))
		for i, f := range p.Fixed {
			keys[i] = state.KeyOf(p.NetworkID, f.Address)
		}
		return keys
	}),
	state.MultiIndex("ip", func(p *Port) []state.Key {
		keys := make([]state.Key, len(p.Fixed))
		for i, f := range p.Fixed {
			keys[i] = state.KeyOf(f.Address)
		}
		return keys
	}),
	state.Tally("project", func(p *Port) (state.Key, state.Amounts) { return state.KeyOf(p.ProjectID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"port.create": identity.Member, "port.read": identity.Reader,
	"port.update": identity.Member, "port.delete": identity.Member,
	"port.set-host": identity.Admin, "port.set-owner": identity.Admin,
})

var portNoun = noun[Port]{
	name: "port", title: "Port", table: ports, fields: portFields,
	// Who owns a network sees what is plugged into it.
	shown: func(_ *state.Tx, a *identity.Actor, p *Port) bool {
		return !p.NetworkOwner.IsZero() && p.NetworkOwner == a.ProjectID
	},
	narrow: true, tallied: true,
}

func init() {
	portNoun.add, portNoun.change, portNoun.remove = addPort, changePort, removePort
}

// Ports gives other domains and the native API a look at every port.
func Ports() *state.Table[Port] { return ports }

// owns reports whether the actor rules the network: it, and not just a port's owner, may say what
// ports are called and who they pretend to be.
func owns(ctx context.Context, n *Network) bool {
	a := identity.ActorOf(ctx)
	return a.Admin() || !n.ProjectID.IsZero() && n.ProjectID == a.ProjectID
}

func addPort(ctx context.Context, tx *state.Tx, p *Port) error {
	if err := mayCreate(ctx, "port.create", p.ProjectID); err != nil {
		return err
	}
	n, err := visibleOne(ctx, tx, &networkNoun, p.NetworkID)
	if err != nil {
		return err
	}
	if !owns(ctx, n) && !usable(tx, n, identity.ActorOf(ctx).ProjectID) {
		return fault.Errorf(fault.Forbidden, "You are not allowed to make a port on network %s.", n.ID)
	}
	if p.Owner != OwnerNone {
		return fault.Errorf(fault.Forbidden, "You are not allowed to say that a port is for a %s: it is when one takes it.", p.Owner)
	}
	if err := mayWishPort(ctx, n, &Port{Meta: resource.Meta{ProjectID: p.ProjectID}, NetworkID: n.ID, PortSecurity: n.Secured, VNIC: p.VNIC}, p); err != nil {
		return err
	}
	return makePort(ctx, tx, n, p)
}

// makePort completes and writes a port; who may has been asked.
func makePort(ctx context.Context, tx *state.Tx, n *Network, p *Port) error {
	p.NetworkOwner = n.ProjectID
	if err := checkQuota(tx, p.ProjectID, "port"); err != nil {
		return err
	}
	var err error
	if p.MAC == "" {
		if p.MAC, err = newMAC(tx); err != nil {
			return err
		}
	}
	if err := chooseGroups(ctx, tx, p); err != nil {
		return err
	}
	if err := chooseAddresses(ctx, tx, n, p, nil); err != nil {
		return err
	}
	if err := checkPort(tx, p); err != nil {
		return err
	}
	return putPort(tx, p)
}

func putPort(tx *state.Tx, p *Port) error {
	err := ports.Put(tx, p)
	if fault.Is(err, fault.Exists) {
		return fault.Errorf(fault.Conflict, "Unable to complete operation for network %s. The mac address %s is in use.", p.NetworkID, p.MAC).
			WithCode("mac-in-use")
	}
	return err
}

func changePort(ctx context.Context, tx *state.Tx, was, now *Port) error {
	n, err := networkNoun.get(tx, was.NetworkID)
	if err != nil {
		return err
	}
	if err := mayWishPort(ctx, n, was, now); err != nil {
		return err
	}
	if err := sameUser(was, now); err != nil {
		return err
	}
	if was.MAC != now.MAC && was.Owner != OwnerNone && !was.HostID.IsZero() {
		return fault.Errorf(fault.Conflict, "Unable to complete operation on port %s, port is already bound: its MAC address cannot be changed.", was.ID).
			WithCode("port-bound")
	}
	if err := chooseGroups(ctx, tx, now); err != nil {
		return err
	}
	if !slices.Equal(was.Fixed, now.Fixed) {
		if err := chooseAddresses(ctx, tx, n, now, was); err != nil {
			return err
		}
		if err := keepFloating(ctx, tx, now); err != nil {
			return err
		}
	}
	if err := checkPort(tx, now); err != nil {
		return err
	}
	if now.HostID != was.HostID {
		now.Wired = false
	}
	return putPort(tx, now)
}

// sameUser keeps who uses a port what it was. A port is given to a thing of the cloud, and let go of, by the
// thing's own verbs, which know whether it may have it: guests are wired, and told their secrets, by
// what stands here. What a client writes on a port that nothing uses are words.
func sameUser(was, now *Port) error {
	changed := now.Owner != was.Owner || now.Adopted != was.Adopted
	if was.Owner != OwnerNone {
		changed = changed || now.DeviceID != was.DeviceID || now.OwnerLabel != was.OwnerLabel || now.HostID != was.HostID || now.HostLabel != was.HostLabel
	}
	if !changed {
		return nil
	}
	return fault.Errorf(fault.Conflict, "Unable to complete operation on port %s for network %s. Port already has an attached device %s: who uses it, and where, changes with that device alone.", was.ID, was.NetworkID, was.DeviceID).
		WithCode("port-in-use").With("owner", string(was.Owner))
}

func removePort(ctx context.Context, tx *state.Tx, p *Port) error {
	if p.Owner.internal() {
		return fault.Errorf(fault.Conflict, "Port %s cannot be deleted directly via the port API: has device owner %s.", p.ID, p.Owner).
			WithCode("port-in-use").With("owner", string(p.Owner))
	}
	return dropPort(ctx, tx, p.ID)
}

// dropPort deletes a port and lets go of the floating addresses that led to it.
func dropPort(ctx context.Context, tx *state.Tx, id resource.ID) error {
	if err := letGo(tx, id); err != nil {
		return err
	}
	if err := dropForwards(tx, id); err != nil {
		return err
	}
	return ports.Delete(tx, id)
}

// mayWishPort asks for what only a network's owner or an operator may set.
func mayWishPort(ctx context.Context, n *Network, was, now *Port) error {
	if now.HostID != was.HostID || now.HostLabel != was.HostLabel || !sameProfile(was.Profile, now.Profile) {
		if err := identity.Allow(ctx, "port.set-host", was.Meta); err != nil {
			return err
		}
	}
	if owns(ctx, n) {
		return nil
	}
	var ask string
	switch {
	case now.MAC != was.MAC:
		ask = "its MAC address"
	case now.PortSecurity != was.PortSecurity:
		ask = "its port security"
	case !slices.Equal(now.AllowedPairs, was.AllowedPairs):
		ask = "its allowed address pairs"
	case slices.ContainsFunc(now.Fixed, func(f FixedAddress) bool { return f.Address.IsValid() && !slices.Contains(was.Fixed, f) }):
		ask = "its addresses"
	default:
		return nil
	}
	return mayNotChoose(ask)
}

func mayNotChoose(what string) error {
	return fault.Errorf(fault.Forbidden, "You are not allowed to set %s of a port: only the owner of the network may.", what)
}

func sameProfile(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// checkPort is what must hold of any port.
func checkPort(tx *state.Tx, p *Port) error {
	if err := checkTexts(&p.Meta, p.Description, p.Tags); err != nil {
		return err
	}
	m, err := parseMAC(p.MAC)
	if err != nil {
		return err
	}
	if m[0]&1 != 0 || m == ([6]byte{}) {
		return invalid("mac", "'%s' is not the MAC address of a single device.", p.MAC)
	}
	if len(p.DeviceID) > 255 || len(p.OwnerLabel) > 255 || len(p.HostLabel) > 255 {
		return fault.InvalidField("device", "must be at most 255 characters")
	}
	if len(p.AllowedPairs) > maxPairs {
		return invalid("pairs-exhausted", "The number of allowed address pairs exceeds the maximum %d.", maxPairs)
	}
	for i, pair := range p.AllowedPairs {
		if slices.Contains(p.AllowedPairs[:i], pair) {
			return invalid("pair-twice", "The address pair %s %s stands twice.", pair.MAC, pair.Address)
		}
	}
	if !p.PortSecurity {
		if len(p.Groups) > 0 {
			return fault.Errorf(fault.Conflict, "Port has security group associated. Cannot disable port security or ip address until security group is removed.").
				WithCode("port-has-groups")
		}
		if len(p.AllowedPairs) > 0 {
			return fault.Errorf(fault.Conflict, "Port Security must be enabled in order to have allowed address pairs on a port.").
				WithCode("pairs-need-security")
		}
	}
	return nil
}

// chooseGroups completes and checks a port's security groups.
func chooseGroups(ctx context.Context, tx *state.Tx, p *Port) error {
	if p.Groups == nil && p.PortSecurity && !p.Owner.internal() && p.Owner != OwnerDHCP {
		if p.ProjectID.IsZero() {
			p.Groups = []resource.ID{}
			return nil
		}
		g, err := ensureDefaultGroup(tx, p.ProjectID)
		if err != nil {
			return err
		}
		p.Groups = []resource.ID{g.ID}
		return nil
	}
	if p.Groups == nil {
		p.Groups = []resource.ID{}
	}
	for i, id := range p.Groups {
		g, ok := groups.PeekOne(tx, id)
		// The port's project must be able to use the group; an operator sees all but that does not help the port.
		if !ok || !groupNoun.visible(tx, identity.ActorOf(ctx), g) {
			return groupNoun.missing(id)
		}
		if slices.Contains(p.Groups[:i], id) {
			return invalid("group-twice", "Security group %s stands twice.", id)
		}
	}
	return nil
}
