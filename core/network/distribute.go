package network

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// What follows says on which hosts a router and its addresses are. A packet between two networks is
// routed on the host of who sends it, a floating address is on the host of its port, and what leaves
// under the router's own address does so at one host, the router's home: an address outside can be at
// one place only, and so can what is tracked of the connections that share it.

// legs are the routers' interfaces in a network, each once.
func legs(tx *state.Tx, networkID resource.ID) iter.Seq[*Port] {
	return func(yield func(*Port) bool) {
		seen := map[resource.ID]bool{}
		for s := range subnets.Peek(tx, "network", state.Range{Prefix: state.KeyOf(networkID)}) {
			for p := range ports.Peek(tx, "leg", state.Range{Prefix: state.KeyOf(s.ID)}) {
				if seen[p.ID] {
					continue
				}
				if seen[p.ID] = true; !yield(p) {
					return
				}
			}
		}
	}
}

// routerOf is the router that an interface belongs to.
func routerOf(tx *state.Tx, leg *Port) (*Router, bool) {
	id, err := resource.ParseID(leg.DeviceID)
	if err != nil {
		return nil, false
	}
	return routers.PeekOne(tx, id)
}

// legNetworks are the networks that a router is in with an interface.
func legNetworks(tx *state.Tx, routerID resource.ID) []resource.ID {
	var ids []resource.ID
	for p := range ports.Peek(tx, "device", state.Range{Prefix: state.KeyOf(routerID.String())}) {
		if p.Owner == OwnerRouter && !slices.Contains(ids, p.NetworkID) {
			ids = append(ids, p.NetworkID)
		}
	}
	return ids
}

// portsAt are the ports that are on a host, and those on their way there.
func portsAt(tx *state.Tx, hostID resource.ID) iter.Seq[*Port] {
	return chain(ports.Peek(tx, "host", state.Range{Prefix: state.KeyOf(hostID)}), ports.Peek(tx, "arriving", state.Range{Prefix: state.KeyOf(hostID)}))
}

// portsIn are those of them that are in a network.
func portsIn(tx *state.Tx, networkID, hostID resource.ID) iter.Seq[*Port] {
	return chain(ports.Peek(tx, "network-host", state.Range{Prefix: state.KeyOf(networkID, hostID)}),
		ports.Peek(tx, "arriving", state.Range{Prefix: state.KeyOf(hostID, networkID)}))
}

func chain(parts ...iter.Seq[*Port]) iter.Seq[*Port] {
	return func(yield func(*Port) bool) {
		for _, part := range parts {
			for p := range part {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// guests reports whether a host has a server's port in a network, or is about to.
func guests(tx *state.Tx, networkID, hostID resource.ID) bool {
	for p := range portsIn(tx, networkID, hostID) {
		if p.Owner == OwnerServer {
			return true
		}
	}
	return false
}

// realized reports whether a router is to be real on a host: at its home, and where guests are behind it.
func realized(tx *state.Tx, r *Router, hostID resource.ID) bool {
	if r.HostID == hostID {
		return true
	}
	for _, id := range legNetworks(tx, r.ID) {
		if guests(tx, id, hostID) {
			return true
		}
	}
	return false
}

// routersOn lists the routers that are to be real on a host.
func routersOn(tx *state.Tx, hostID resource.ID) []resource.ID {
	ids := routers.IDs(tx, "host", state.KeyOf(hostID))
	seen, looked := map[resource.ID]bool{}, map[resource.ID]bool{}
	for _, id := range ids {
		seen[id] = true
	}
	for p := range portsAt(tx, hostID) {
		if p.Owner != OwnerServer || looked[p.NetworkID] {
			continue
		}
		looked[p.NetworkID] = true
		for leg := range legs(tx, p.NetworkID) {
			if r, ok := routerOf(tx, leg); ok && !seen[r.ID] {
				seen[r.ID] = true
				ids = append(ids, r.ID)
			}
		}
	}
	return ids
}

// floatsAt is the host that a floating address is at: that of its port if it is connected with the network
// outside, otherwise the router's home.
func floatsAt(tx *state.Tx, r *Router, f *FloatingAddress) resource.ID {
	target, ok := ports.PeekOne(tx, f.TargetID)
	if !ok || target.Owner != OwnerServer || target.HostID.IsZero() || !connected(tx, target.HostID, f.NetworkID) || !realized(tx, r, target.HostID) {
		return r.HostID
	}
	return target.HostID
}

// expectsFloating reports whether a port is on its way to a host whose floating address will be there too.
func expectsFloating(tx *state.Tx, r *Router, hostID resource.ID) bool {
	for p := range ports.Peek(tx, "arriving", state.Range{Prefix: state.KeyOf(hostID)}) {
		for _, f := range FloatingOf(tx, p.ID) {
			if f.RouterID == r.ID && connected(tx, hostID, f.NetworkID) {
				return true
			}
		}
	}
	return false
}

// connected reports whether a host says that it is connected with the physical network that a network is on.
func connected(tx *state.Tx, hostID, networkID resource.ID) bool {
	n, ok := networks.PeekOne(tx, networkID)
	if !ok || n.Kind == Overlay {
		return false
	}
	h, ok := host.Table().PeekOne(tx, hostID)
	return ok && slices.Contains(h.Physical, n.Physical)
}

// outside reports whether a host has, or expects, floating addresses in a network of routers whose home is elsewhere.
func outside(tx *state.Tx, networkID, hostID resource.ID) bool {
	if !connected(tx, hostID, networkID) {
		return false
	}
	for _, id := range routersOn(tx, hostID) {
		r, ok := routers.PeekOne(tx, id)
		if ok && r.Gateway != nil && r.Gateway.NetworkID == networkID && r.HostID != hostID && (len(floatingThrough(tx, r, hostID)) > 0 || expectsFloating(tx, r, hostID)) {
			return true
		}
	}
	return false
}

// exitMAC is by which hardware address other hosts mean the leg of a router at its home: the leg's own is
// on all of them.
func exitMAC(portID resource.ID) string { return derivedMAC("exit", portID) }

// outsideMAC is the hardware address of a router outside on a host that is not its home.
func outsideMAC(portID, hostID resource.ID) string { return derivedMAC("outside", portID, hostID) }

// derivedMAC makes a locally administered hardware address of what it is for.
func derivedMAC(what string, of ...resource.ID) string {
	text := []byte(what)
	for _, id := range of {
		text = append(text, id[:]...)
	}
	sum := sha256.Sum256(text)
	return fmt.Sprintf("0e:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4])
}
