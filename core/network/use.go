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

// What follows is for other domains, inside their own transactions. The context is that of
// the one who asked them: permission and quotas are asked of it as if it had asked here.

// NormalVNIC is the kind of interface that every host has.
const NormalVNIC = "normal"

// A PortWanted says which port another domain wants for a thing of its own.
type PortWanted struct {
	ProjectID resource.ID
	NetworkID resource.ID
	SubnetID  resource.ID // zero: any
	Address   netip.Addr  // invalid: any
	PortID    resource.ID // set: take this port over, whose owner gives it; the fields above are then not needed

	Name     string
	Tags     []string
	Groups   []resource.ID // nil: the default group. Not for a port that is taken over
	DeviceID resource.ID
	Owner    Owner
	Label    string      // with the owner, e.g. a server's zone
	HostID   resource.ID // zero: not known yet
}

// AddPort makes a port for a thing, or takes over one that was made for it.
func AddPort(ctx context.Context, tx *state.Tx, want PortWanted) (*Port, error) {
	if !want.PortID.IsZero() {
		return takePort(ctx, tx, want)
	}
	if err := mayCreate(ctx, "port.create", want.ProjectID); err != nil {
		return nil, err
	}
	n, err := visibleOne(ctx, tx, &networkNoun, want.NetworkID)
	if err != nil {
		return nil, err
	}
	if !usable(tx, n, want.ProjectID) && !identity.ActorOf(ctx).Admin() {
		if n.External {
			return nil, fault.Errorf(fault.Forbidden, "It is not allowed to create an interface on external network %s.", n.ID).WithCode("external-network")
		}
		return nil, networkNoun.missing(n.ID)
	}
	p := &Port{
		Meta:      resource.Meta{ID: tx.NewID(), ProjectID: want.ProjectID, Name: want.Name},
		NetworkID: n.ID, Tags: want.Tags, AdminUp: true, PortSecurity: n.Secured, Groups: want.Groups, VNIC: NormalVNIC,
		DeviceID: want.DeviceID.String(), Owner: want.Owner, OwnerLabel: want.Label, HostID: want.HostID,
	}
	if !n.Secured {
		p.Groups = []resource.ID{}
	}
	if want.Address.IsValid() && !owns(ctx, n) {
		return nil, mayNotChoose("its addresses")
	}
	if !want.SubnetID.IsZero() || want.Address.IsValid() {
		p.Fixed = []FixedAddress{{want.SubnetID, want.Address}}
	}
	if err := makePort(ctx, tx, n, p); err != nil {
		return nil, err
	}
	return p, nil
}

func takePort(ctx context.Context, tx *state.Tx, want PortWanted) (*Port, error) {
	p, err := visibleOne(ctx, tx, &portNoun, want.PortID)
	if err != nil {
		return nil, err
	}
	if err := portNoun.allow(ctx, tx, "update", p); err != nil {
		return nil, err
	}
	if p.ProjectID != want.ProjectID {
		return nil, fault.Errorf(fault.Invalid, "Port %s not usable for instance %s.", p.ID, want.DeviceID).WithCode("port-not-usable")
	}
	if p.DeviceID != "" || p.Owner != OwnerNone {
		return nil, fault.Errorf(fault.Conflict, "Port %s is still in use.", p.ID).WithCode("port-in-use")
	}
	p.DeviceID, p.Owner, p.OwnerLabel, p.HostID = want.DeviceID.String(), want.Owner, want.Label, want.HostID
	p.Adopted, p.Wired = true, false
	return p, ports.Put(tx, p)
}

// BindPort says who uses a port and where. Writing what is already so changes nothing.
func BindPort(tx *state.Tx, portID, device resource.ID, owner Owner, label string, hostID resource.ID) error {
	p, err := portNoun.get(tx, portID)
	if err != nil {
		return err
	}
	if p.DeviceID == device.String() && p.Owner == owner && p.OwnerLabel == label && p.HostID == hostID && p.NextHostID.IsZero() {
		return nil
	}
	if p.HostID != hostID {
		p.Wired = false
	}
	p.DeviceID, p.Owner, p.OwnerLabel, p.HostID, p.NextHostID = device.String(), owner, label, hostID, resource.ID{}
	return ports.Put(tx, p)
}

// ExpectPorts has a host make ready for a server's ports, which are another host's until BindPort; a zero ID takes that back.
func ExpectPorts(tx *state.Tx, deviceID, hostID resource.ID) error {
	for _, p := range PortsOf(tx, deviceID) {
		if p.Owner != OwnerServer || p.NextHostID == hostID {
			continue
		}
		p.NextHostID = hostID
		if err := ports.Put(tx, p); err != nil {
			return err
		}
	}
	return nil
}

// ReleasePorts lets go of all ports of a thing that goes away: those made for it are deleted, those
// that were given are free again.
func ReleasePorts(ctx context.Context, tx *state.Tx, deviceID resource.ID) error {
	for _, p := range PortsOf(tx, deviceID) {
		if err := ReleasePort(ctx, tx, p.ID); err != nil {
			return err
		}
	}
	return nil
}

// ReleasePort lets go of one port of a thing.
func ReleasePort(ctx context.Context, tx *state.Tx, portID resource.ID) error {
	p, err := portNoun.get(tx, portID)
	if err != nil {
		return err
	}
	if !p.Adopted {
		return dropPort(ctx, tx, p.ID)
	}
	p.DeviceID, p.Owner, p.OwnerLabel, p.HostID, p.NextHostID, p.Adopted, p.Wired = "", OwnerNone, "", resource.ID{}, resource.ID{}, false, false
	return ports.Put(tx, p)
}

// PortsOf are the ports of a server or another thing, in the order of their making.
func PortsOf(tx *state.Tx, deviceID resource.ID) []*Port {
	var found []*Port
	for p := range ports.Each(tx, "device", state.KeyOf(deviceID.String())) {
		if p.Owner != OwnerNone {
			found = append(found, p)
		}
	}
	return found
}

// AddGroup puts a security group on all ports of a thing that have port security.
func AddGroup(tx *state.Tx, deviceID, groupID resource.ID) error {
	return eachGroups(tx, deviceID, func(ids []resource.ID) []resource.ID {
		if slices.Contains(ids, groupID) {
			return ids
		}
		return append(ids, groupID)
	})
}

// DropGroup takes a security group off all ports of a thing.
func DropGroup(tx *state.Tx, deviceID, groupID resource.ID) error {
	return eachGroups(tx, deviceID, func(ids []resource.ID) []resource.ID {
		return slices.DeleteFunc(ids, func(id resource.ID) bool { return id == groupID })
	})
}

func eachGroups(tx *state.Tx, deviceID resource.ID, change func([]resource.ID) []resource.ID) error {
	for _, p := range PortsOf(tx, deviceID) {
		if !p.PortSecurity {
			continue
		}
		was := slices.Clone(p.Groups)
		if p.Groups = change(p.Groups); slices.Equal(was, p.Groups) {
			continue
		}
		if err := ports.Put(tx, p); err != nil {
			return err
		}
	}
	return nil
}
