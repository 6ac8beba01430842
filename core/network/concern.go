package network

import (
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// What follows says whom a change concerns. The functions touched… name a thing on the hosts that may have it from now on, or have it unlike
// any other; shared… name what is to be told anew to all that have it. None of them looks at every host that there is.

// refs collects things on hosts.
type refs []host.Ref

func (r *refs) on(h resource.ID, ids ...resource.ID) {
	if h.IsZero() {
		return
	}
	for _, id := range ids {
		if ref := (host.Ref{Host: h, ID: id}); !id.IsZero() && !slices.Contains(*r, ref) {
			*r = append(*r, ref)
		}
	}
}

// leg names things wherever a router's leg makes a difference: at the router's home, and where guests are in its networks.
func (r *refs) leg(tx *state.Tx, leg *Port, routerID resource.ID, ids ...resource.ID) {
	seen := map[resource.ID]bool{{}: true}
	at := func(h resource.ID) {
		if seen[h] {
			return
		}
		seen[h] = true
		for _, id := range ids {
			*r = append(*r, host.Ref{Host: h, ID: id}) // there may be many hosts
		}
	}
	at(leg.HostID)
	if router, ok := routers.PeekOne(tx, routerID); ok {
		at(router.HostID)
	}
	for _, id := range unique(append(legNetworks(tx, routerID), leg.NetworkID)) {
		for p := range ports.Peek(tx, "network", state.Range{Prefix: state.KeyOf(id)}) {
			if p.Owner == OwnerServer {
				p.eachHost(at)
			}
		}
	}
}

// unique leaves each ID once, and the zero one out.
func unique(ids []resource.ID) []resource.ID {
	var out []resource.ID
	for _, id := range ids {
		if !id.IsZero() && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// sides are an event's object before and after, as a type; nil where it is not of it, or not there.
func sides[T any](e state.Event) (was, now *T) {
	was, _ = any(e.Before).(*T)
	now, _ = any(e.After).(*T)
	return was, now
}

func both[T any](e state.Event) []*T {
	was, now := sides[T](e)
	var out []*T
	if was != nil {
		out = append(out, was)
	}
	if now != nil {
		out = append(out, now)
	}
	return out
}

func touchedSegments(tx *state.Tx, e state.Event) []host.Ref {
	var r refs
	switch e.Kind {
	case ports.Kind():
		was, now := sides[Port](e)
		if was == nil || now == nil || was.NextHostID != now.NextHostID { // it is expected somewhere, or not any more
			for _, p := range both[Port](e) {
				touchedAt(tx, &r, p, p.NextHostID)
			}
		}
		if sameReach(was, now) {
			break
		}
		for _, p := range both[Port](e) {
			if p.Owner != OwnerRouter {
				touchedAt(tx, &r, p, p.HostID)
			} else if id, err := resource.ParseID(p.DeviceID); err == nil {
				r.leg(tx, p, id, unique(append(behind(tx, id), p.NetworkID))...)
			}
		}
	case floatings.Kind():
		// It may be on another host now, and no longer on the one where it was.
		for _, f := range both[FloatingAddress](e) {
			if target, ok := ports.PeekOne(tx, f.TargetID); ok {
				target.eachHost(func(h resource.ID) { r.on(h, f.NetworkID) })
			}
		}
	case host.Table().Kind():
		if was, now := sides[host.Host](e); was == nil || now == nil || !slices.Equal(was.Physical, now.Physical) {
			for _, id := range routersOn(tx, e.ID) {
				if router, ok := routers.PeekOne(tx, id); ok && router.Gateway != nil {
					r.on(e.ID, router.Gateway.NetworkID)
				}
			}
		}
	}
	return r
}

func sharedSegments(tx *state.Tx, e state.Event) []resource.ID {
	var ids []resource.ID
	switch e.Kind {
	case networks.Kind():
		ids = append(ids, e.ID)
	case subnets.Kind():
		for _, s := range both[Subnet](e) {
			ids = append(ids, s.NetworkID)
		}
	case ports.Kind():
		if was, now := sides[Port](e); sameReach(was, now) {
			break
		}
		for _, p := range both[Port](e) {
			if p.Owner == OwnerRouter { // its other networks come or go where this one has guests
				ids = append(ids, p.NetworkID)
				if id, err := resource.ParseID(p.DeviceID); err == nil {
					ids = append(ids, behind(tx, id)...)
				}
			} else if h, ok := host.Table().PeekOne(tx, p.HostID); ok && h.Address.IsValid() { // other hosts reach it there
				ids = append(ids, p.NetworkID)
			}
		}
	case host.Table().Kind():
		// Where its ports are reached may have changed.
		if was, now := sides[host.Host](e); was == nil || now == nil || was.Address != now.Address {
			ids = segmentsOn(tx, e.ID)
		}
	}
	return unique(ids)
}

// sameReach reports whether a port is where it was and reached as it was.
func sameReach(was, now *Port) bool {
	return was != nil && now != nil && was.HostID == now.HostID && was.MAC == now.MAC && was.Owner == now.Owner && slices.Equal(was.Fixed, now.Fixed) &&
		was.PortSecurity == now.PortSecurity && slices.Equal(was.AllowedPairs, now.AllowedPairs)
}

// touchedAt names the segments that come or go on a host with a port there.
func touchedAt(tx *state.Tx, r *refs, p *Port, h resource.ID) {
	if h.IsZero() {
		return
	}
	if p.Owner == OwnerServer {
		for leg := range legs(tx, p.NetworkID) {
			if id, err := resource.ParseID(leg.DeviceID); err == nil {
				r.on(h, behind(tx, id)...)
			}
		}
	}
	r.on(h, p.NetworkID)
}

// behind are all networks that a router is in.
func behind(tx *state.Tx, routerID resource.ID) []resource.ID {
	ids := legNetworks(tx, routerID)
	if r, ok := routers.PeekOne(tx, routerID); ok && r.Gateway != nil {
		ids = append(ids, r.Gateway.NetworkID)
	}
	return ids
}

func touchedFilters(_ *state.Tx, e state.Event) []host.Ref {
	var r refs
	if was, now := sides[Port](e); !sameMembership(was, now) || was.HostID != now.HostID || was.NextHostID != now.NextHostID {
		for _, p := range both[Port](e) {
			p.eachHost(func(h resource.ID) { r.on(h, p.Groups...) })
		}
	}
	return r
}

func sharedFilters(tx *state.Tx, e state.Event) []resource.ID {
	var ids []resource.ID
	switch e.Kind {
	case groups.Kind():
		ids = append(ids, e.ID)
	case rules.Kind():
		for _, rule := range both[Rule](e) {
			ids = append(ids, rule.GroupID)
		}
	case addressGroups.Kind():
		for rule := range rules.Peek(tx, "remote-set", state.Range{Prefix: state.KeyOf(e.ID)}) {
			ids = append(ids, rule.GroupID)
		}
	case ports.Kind():
		if was, now := sides[Port](e); sameMembership(was, now) {
			break
		}
		for _, p := range both[Port](e) { // the groups with rules about the members of its groups
			for _, id := range p.Groups {
				for rule := range rules.Peek(tx, "remote-group", state.Range{Prefix: state.KeyOf(id)}) {
					ids = append(ids, rule.GroupID)
				}
			}
		}
	}
	return unique(ids)
}

// sameMembership reports whether a port is in the same groups with the same addresses.
func sameMembership(was, now *Port) bool {
	return was != nil && now != nil && slices.Equal(was.Groups, now.Groups) && slices.Equal(was.Fixed, now.Fixed) && slices.Equal(was.AllowedPairs, now.AllowedPairs)
}

func touchedGateways(tx *state.Tx, e state.Event) []host.Ref {
	var r refs
	switch e.Kind {
	case routers.Kind():
		for _, router := range both[Router](e) {
			r.on(router.HostID, router.ID)
		}
	case ports.Kind():
		was, now := sides[Port](e)
		for _, p := range both[Port](e) {
			id, err := resource.ParseID(p.DeviceID)
			switch {
			case err != nil:
			case p.Owner == OwnerRouter:
				r.leg(tx, p, id, id)
			case p.Owner == OwnerGateway:
				r.on(p.HostID, id)
				if router, ok := routers.PeekOne(tx, id); ok {
					r.on(router.HostID, id)
				}
			}
		}
		if was != nil && now != nil && was.HostID == now.HostID && was.NextHostID == now.NextHostID && was.Owner == now.Owner {
			break
		}
		// The routers that it is behind, on the hosts where it was and is, and at their homes, if floating addresses go along.
		for _, p := range both[Port](e) {
			for leg := range legs(tx, p.NetworkID) {
				if router, ok := routerOf(tx, leg); ok {
					p.eachHost(func(h resource.ID) { r.on(h, router.ID) })
					r.on(router.HostID, router.ID)
				}
			}
		}
	}
	return r
}

func sharedGateways(tx *state.Tx, e state.Event) []resource.ID {
	var ids []resource.ID
	device := func(p *Port) {
		if id, err := resource.ParseID(p.DeviceID); err == nil {
			ids = append(ids, id)
		}
	}
	switch e.Kind {
	case routers.Kind():
		ids = append(ids, e.ID)
	case floatings.Kind():
		for _, f := range both[FloatingAddress](e) {
			ids = append(ids, f.RouterID)
		}
	case forwards.Kind():
		for _, f := range both[Forward](e) {
			ids = append(ids, f.RouterID)
		}
	case ports.Kind():
		for _, p := range both[Port](e) {
			if p.Owner == OwnerRouter || p.Owner == OwnerGateway {
				device(p)
			}
		}
	case subnets.Kind():
		for p := range ports.Peek(tx, "leg", state.Range{Prefix: state.KeyOf(e.ID)}) {
			device(p)
		}
		for p := range ports.Peek(tx, "subnet", state.Range{Prefix: state.KeyOf(e.ID)}) {
			if p.Owner == OwnerGateway { // whose next hop is the subnet's gateway
				device(p)
			}
		}
	case host.Table().Kind():
		// Floating addresses are where the world is.
		if was, now := sides[host.Host](e); was == nil || now == nil || !slices.Equal(was.Physical, now.Physical) {
			ids = routersOn(tx, e.ID)
		}
	}
	return unique(ids)
}

func touchedAttachments(tx *state.Tx, e state.Event) []host.Ref {
	var r refs
	switch e.Kind {
	case ports.Kind():
		for _, p := range both[Port](e) {
			p.eachHost(func(h resource.ID) { r.on(h, p.ID) })
		}
	case networks.Kind():
		was, now := sides[Network](e)
		if was == nil || now == nil || was.MTU == now.MTU && was.DNSDomain == now.DNSDomain && was.AdminUp == now.AdminUp {
			return nil
		}
		for p := range ports.Peek(tx, "network-host", state.Range{Prefix: state.KeyOf(e.ID)}) {
			p.eachHost(func(h resource.ID) { r = append(r, host.Ref{Host: h, ID: p.ID}) })
		}
	}
	return r
}
