package compute

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Plug is a port of a server, and what the guest is to know it by.
type Plug struct {
	PortID resource.ID
	Tag    string `json:",omitempty"`
}

// A socket is what each server of a launch gets: a port on a network, or one that there is.
type socket struct {
	NICWanted
	groups []resource.ID
}

// wantedSockets decides which NICs the servers get.
func (b *builder) wantedSockets() ([]socket, error) {
	if b.NoNetwork {
		return nil, nil
	}
	var groups []resource.ID
	if b.Groups != nil {
		var err error
		if groups, err = network.GroupIDs(b.ctx, b.tx, b.actor.ProjectID, b.Groups); err != nil {
			return nil, asRequest(err)
		}
	}
	wanted := b.NICs
	if len(wanted) == 0 {
		found := network.DefaultNetworks(b.tx, b.actor.ProjectID)
		if len(found) > 1 {
			return nil, fault.Errorf(fault.Conflict, "Multiple possible networks found, use a Network ID to be more specific.").WithCode("network-ambiguous")
		}
		for _, n := range found {
			wanted = append(wanted, NICWanted{NetworkID: n.ID})
		}
	}
	var sockets []socket
	for _, nic := range wanted {
		sockets = append(sockets, socket{nic, groups})
	}
	return sockets, nil
}

// physical are the physical networks that the ports of the servers will lie on.
func (b *builder) physical() (names []string) {
	for _, s := range b.sockets {
		id := s.NetworkID
		if p, ok := network.Ports().PeekOne(b.tx, s.PortID); ok && (p.ProjectID == b.actor.ProjectID || b.actor.Admin()) {
			id = p.NetworkID
		}
		names = onPhysical(b.tx, names, id)
	}
	return names
}

// onPhysical adds the physical network that a network lies on, if it is one of a provider's.
func onPhysical(tx *state.Tx, names []string, id resource.ID) []string {
	if n, ok := network.Networks().PeekOne(tx, id); ok && n.Physical != "" && !slices.Contains(names, n.Physical) {
		names = append(names, n.Physical)
	}
	return names
}

// asRequest turns the fault for a thing that is not there into one about the request that named it.
func asRequest(err error) error {
	if f := fault.From(err); f != nil && f.Kind == fault.NotFound {
		return &fault.Error{Kind: fault.Invalid, Field: f.Field, Code: f.Code, Message: f.Message, Details: f.Details}
	}
	return err
}

// plug gives a new server its ports.
func (b *builder) plug(srv *Server) error {
	for _, s := range b.sockets {
		if _, err := addPort(b.ctx, b.tx, srv, s); err != nil {
			return asRequest(err)
		}
	}
	return nil
}

func addPort(ctx context.Context, tx *state.Tx, srv *Server, s socket) (*network.Port, error) {
	p, err := network.AddPort(ctx, tx, network.PortWanted{
		ProjectID: srv.ProjectID, NetworkID: s.NetworkID, SubnetID: s.SubnetID, Address: s.Address, PortID: s.PortID, Groups: s.groups,
		DeviceID: srv.ID, Owner: network.OwnerServer, Label: zoneLabel(tx, srv), HostID: srv.HostID,
	})
	if err != nil {
		return nil, err
	}
	srv.Plugs = append(srv.Plugs, Plug{p.ID, s.Tag})
	return p, nil
}

func zoneLabel(tx *state.Tx, srv *Server) string {
	if h, ok := host.Table().PeekOne(tx, srv.HostID); ok {
		return ZonesOf(tx).Of(h)
	}
	return srv.Zone
}

// unplugAll lets go of a server's ports.
func (s *Service) unplugAll(tx *state.Tx, srv *Server) error {
	return network.ReleasePorts(identity.Internal(context.Background()), tx, srv.ID)
}

// Ports are a server's ports in the order in which it got them: those that say so and that the server
// itself knows it was given. They are shared: look, do not touch.
func Ports(tx *state.Tx, srv *Server) []*network.Port {
	var ports []*network.Port
	for i := range srv.Plugs {
		p, ok := network.Ports().PeekOne(tx, srv.Plugs[i].PortID)
		if !ok || p.Owner != network.OwnerServer || p.ProjectID != srv.ProjectID {
			continue
		}
		if device, err := resource.ParseID(p.DeviceID); err == nil && device == srv.ID {
			ports = append(ports, p)
		}
	}
	return ports
}

// place is where a port stands among the server's; past the end if it is none of them.
func (s *Server) place(port resource.ID) int {
	if n := slices.IndexFunc(s.Plugs, func(p Plug) bool { return p.PortID == port }); n >= 0 {
		return n
	}
	return len(s.Plugs)
}

// wire puts the server's ports into its guest.
func (s *Service) wire(tx *state.Tx, srv *Server, g *Guest) {
	for _, p := range Ports(tx, srv) {
		mtu := 0
		if n, ok := network.Networks().PeekOne(tx, p.NetworkID); ok {
			mtu = n.MTU
		}
		g.NICs = append(g.NICs, NIC{PortID: p.ID, MAC: p.MAC, MTU: mtu, Model: srv.Boot.NICModel})
		g.Metadata.Links = append(g.Metadata.Links, link(tx, p, mtu))
		if tag := srv.Plugs[srv.place(p.ID)].Tag; tag != "" {
			g.Metadata.Devices = append(g.Metadata.Devices, Device{Kind: "nic", MAC: p.MAC, Tags: []string{tag}})
		}
		for _, id := range p.Groups {
			if sg, ok := network.Groups().PeekOne(tx, id); ok && !slices.Contains(g.Metadata.SecurityGroups, sg.Name) {
				g.Metadata.SecurityGroups = append(g.Metadata.SecurityGroups, sg.Name)
			}
		}
	}
}

// link is how a port's NIC is configured.
func link(tx *state.Tx, p *network.Port, mtu int) Link {
	l := Link{PortID: p.ID, NetworkID: p.NetworkID, MAC: p.MAC, MTU: mtu}
	for _, f := range p.Fixed {
		sub, ok := network.Subnets().PeekOne(tx, f.SubnetID)
		if !ok {
			continue
		}
		a := LinkAddress{Address: f.Address.String(), Prefix: sub.CIDR.Bits(), Mode: addressMode(sub)}
		if sub.Gateway.IsValid() {
			a.Gateway = sub.Gateway.String()
		}
		for _, r := range sub.Routes {
			a.Routes = append(a.Routes, LinkRoute{r.Destination.String(), r.NextHop.String()})
		}
		for _, dns := range sub.DNS {
			l.DNS = append(l.DNS, dns.String())
		}
		l.Addresses = append(l.Addresses, a)
	}
	for _, f := range network.FloatingOf(tx, p.ID) {
		if f.Address.Is4() {
			l.PublicIPv4 = f.Address.String()
			break
		}
	}
	return l
}

// addressMode is how a guest learns an address of the subnet.
func addressMode(sub *network.Subnet) string {
	switch {
	case !sub.DHCP:
		return "static"
	case sub.CIDR.Addr().Is4():
		return "dhcp"
	case sub.V6Mode == "":
		return "static"
	}
	return string(sub.V6Mode)
}

// touchedByNetwork says which guests a change of the network concerns.
func touchedByNetwork(tx *state.Tx, e state.Event) []host.Ref {
	var refs []host.Ref
	add := func(p *network.Port) {
		id, err := resource.ParseID(p.DeviceID)
		if p.Owner != network.OwnerServer || err != nil {
			return
		}
		for _, h := range []resource.ID{p.HostID, p.NextHostID} {
			if ref := (host.Ref{Host: h, ID: id}); !h.IsZero() && !slices.Contains(refs, ref) {
				refs = append(refs, ref)
			}
		}
	}
	byIndex := func(index string, id resource.ID) {
		for p := range network.Ports().Peek(tx, index, state.Range{Prefix: state.KeyOf(id)}) {
			add(p)
		}
	}
	for _, obj := range []resource.Object{e.Before, e.After} {
		switch obj := obj.(type) {
		case *network.Port:
			add(obj)
		case *network.FloatingAddress:
			if p, ok := network.Ports().PeekOne(tx, obj.TargetID); ok {
				add(p)
			}
		case *network.Subnet: // a new one has no ports yet
			if e.Before != nil {
				byIndex("network", obj.NetworkID)
			}
		case *network.Network:
			if was, ok := e.Before.(*network.Network); ok && was.MTU != obj.MTU {
				byIndex("network", obj.ID)
			}
		case *network.Group:
			if was, ok := e.Before.(*network.Group); ok && was.Name != obj.Name {
				byIndex("group", obj.ID)
			}
		}
	}
	return refs
}

// pluggable are the stages in which a server's ports can be changed.
var pluggable = []Stage{Running, Frozen, Stopped}

// Attach gives a server another port.
func (s *Service) Attach(ctx context.Context, id resource.ID, nic NICWanted) (*network.Port, error) {
	var port *network.Port
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		if !slices.Contains(pluggable, srv.Stage()) || srv.Task != "" {
			return wrongState(srv, "attach-interface")
		}
		if nic.NetworkID.IsZero() && nic.PortID.IsZero() {
			found := network.DefaultNetworks(tx, srv.ProjectID)
			switch len(found) {
			case 0:
				return fault.Errorf(fault.Invalid, "There is no network to attach the server to.")
			case 1:
				nic.NetworkID = found[0].ID
			default:
				return fault.Errorf(fault.Conflict, "Multiple possible networks found, use a Network ID to be more specific.").WithCode("network-ambiguous")
			}
		}
		var err error
		if port, err = addPort(ctx, tx, srv, socket{NICWanted: nic}); err != nil {
			return err
		}
		h, ok := host.Table().PeekOne(tx, srv.HostID)
		if p := (&placing{demand: demand{physical: onPhysical(tx, nil, port.NetworkID)}}); ok && !p.connects(h) {
			return fault.Errorf(fault.Conflict, "The server's host is not connected with the physical network that network %s lies on. A server that is made with a port there comes to a host that is.", port.NetworkID).WithCode("host-not-connected")
		}
		return record(ctx, tx, srv, "attach-interface")
	})
	return port, err
}

// Detach takes a port from a server.
func (s *Service) Detach(ctx context.Context, id, portID resource.ID) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		p, ok := network.Ports().PeekOne(tx, portID)
		if !ok || p.DeviceID != srv.ID.String() || p.Owner != network.OwnerServer {
			return fault.Errorf(fault.NotFound, "Port id %s not found.", portID).WithCode("port-not-found")
		}
		if !slices.Contains(pluggable, srv.Stage()) || srv.Task != "" {
			return wrongState(srv, "detach-interface")
		}
		if err := network.ReleasePort(ctx, tx, portID); err != nil {
			return err
		}
		srv.Plugs = slices.DeleteFunc(srv.Plugs, func(p Plug) bool { return p.PortID == portID })
		return record(ctx, tx, srv, "detach-interface")
	})
	return err
}

// record keeps that something was done at once.
func record(ctx context.Context, tx *state.Tx, srv *Server, verb string) error {
	op, err := operation.Begin(tx, verb, servers.Kind(), &srv.Meta, identity.ActorOf(ctx), time.Minute)
	if err != nil {
		return err
	}
	return operation.End(tx, op, operation.Succeeded, "")
}

// AddSecurityGroup puts a security group, by name or ID, on all of a server's ports.
func (s *Service) AddSecurityGroup(ctx context.Context, id resource.ID, group string) error {
	return s.regroup(ctx, id, group, network.AddGroup)
}

// RemoveSecurityGroup takes it off again.
func (s *Service) RemoveSecurityGroup(ctx context.Context, id resource.ID, group string) error {
	return s.regroup(ctx, id, group, func(tx *state.Tx, server, group resource.ID) error {
		for _, p := range network.PortsOf(tx, server) {
			if slices.Contains(p.Groups, group) {
				return network.DropGroup(tx, server, group)
			}
		}
		return fault.Errorf(fault.NotFound, "Security group %s is not associated with the server %s.", group, server).WithCode("group-not-found")
	})
}

func (s *Service) regroup(ctx context.Context, id resource.ID, group string, fn func(tx *state.Tx, server, group resource.ID) error) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		g, err := network.GroupByName(ctx, tx, srv.ProjectID, group)
		if err != nil {
			return err
		}
		return fn(tx, srv.ID, g.ID)
	})
	return err
}
