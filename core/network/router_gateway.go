package network

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A RouterGateway is a router's leg in an external network.
type RouterGateway struct {
	NetworkID resource.ID
	SNAT      bool           // tenants' addresses are hidden behind the router's
	Fixed     []FixedAddress // nil at creation: chosen
	PortID    resource.ID    // made with the gateway
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
