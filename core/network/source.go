package network

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// Sources tell hosts what to make real of networks, in the order in which it is best taken up.
func (s *Service) Sources() []host.Source {
	return []host.Source{
		{Kind: "segment", All: segmentsOn, Touched: touchedSegments, Every: crowdPace,
			Want: func(tx *state.Tx, h, id resource.ID) (any, bool) { return s.segmentText(tx, id, h) }},
		{Kind: "filter", All: filtersOn, Touched: touchedFilters, Every: crowdPace,
			Want: func(tx *state.Tx, h, id resource.ID) (any, bool) {
				if !filteredOn(tx, id, h) {
					return nil, false
				}
				return wanted(filterFor(tx, id, s.crowd.members))
			}},
		{Kind: "gateway", All: routersOn, Touched: touchedGateways,
			Want: func(tx *state.Tx, h, id resource.ID) (any, bool) { return wanted(GatewayFor(tx, id, h)) }},
		{Kind: "attachment", All: attachmentsOn, Touched: touchedAttachments, Observe: observeAttachment,
			Want: func(tx *state.Tx, h, id resource.ID) (any, bool) { return wanted(AttachmentFor(tx, id, h)) }},
	}
}

// crowdPace is how often at most a host is told anew who else is in a network or a group: each port
// that comes or goes there touches every host that has part in it.
const crowdPace = 500 * time.Millisecond

// segmentText is SegmentFor, spelled.
func (s *Service) segmentText(tx *state.Tx, networkID, hostID resource.ID) (any, bool) {
	text, ok, err := s.crowd.segmentText(tx, networkID, hostID)
	if err != nil { // nothing that is kept cannot be spelled
		return wanted(SegmentFor(tx, networkID, hostID))
	}
	return text, ok
}

func wanted[T any](want T, ok bool) (any, bool) { return want, ok }

func segmentsOn(tx *state.Tx, h resource.ID) []resource.ID {
	seen := map[resource.ID]bool{}
	var ids []resource.ID
	add := func(networkID resource.ID) {
		if !seen[networkID] {
			seen[networkID] = true
			ids = append(ids, networkID)
		}
	}
	for p := range portsAt(tx, h) {
		add(p.NetworkID)
	}
	for _, id := range routersOn(tx, h) {
		for _, networkID := range legNetworks(tx, id) {
			add(networkID)
		}
		if r, ok := routers.PeekOne(tx, id); ok && r.Gateway != nil && outside(tx, r.Gateway.NetworkID, h) {
			add(r.Gateway.NetworkID)
		}
	}
	return ids
}

func filtersOn(tx *state.Tx, h resource.ID) []resource.ID {
	seen := map[resource.ID]bool{}
	var ids []resource.ID
	for p := range portsAt(tx, h) {
		for _, id := range p.Groups {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// filteredOn reports whether a host has a port of the group, or is about to.
func filteredOn(tx *state.Tx, groupID, h resource.ID) bool {
	for range ports.Peek(tx, "group-host", state.Range{Prefix: state.KeyOf(groupID, h)}) {
		return true
	}
	for p := range ports.Peek(tx, "arriving", state.Range{Prefix: state.KeyOf(h)}) {
		if slices.Contains(p.Groups, groupID) {
			return true
		}
	}
	return false
}

func attachmentsOn(tx *state.Tx, h resource.ID) []resource.ID {
	var ids []resource.ID
	for p := range portsAt(tx, h) {
		if p.Owner == OwnerServer {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// refs collects what is to be derived anew.
type refs []host.Ref

// on names things on one host; everywhere names them wherever they are.
func (r *refs) on(h resource.ID, ids ...resource.ID) {
	for _, id := range ids {
		if ref := (host.Ref{Host: h, ID: id}); !id.IsZero() && !slices.Contains(*r, ref) {
			*r = append(*r, ref)
		}
	}
}

func (r *refs) everywhere(ids ...resource.ID) { r.on(resource.ID{}, ids...) }

// having names segments and filters on the hosts that have them already: of what gives them to no other.
func (r *refs) having(ids ...resource.ID) {
	for _, id := range ids {
		if ref := (host.Ref{ID: id, Having: true}); !id.IsZero() && !slices.Contains(*r, ref) {
			*r = append(*r, ref)
		}
	}
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
	case networks.Kind():
		r.everywhere(e.ID)
	case subnets.Kind():
		for _, s := range both[Subnet](e) {
			r.everywhere(s.NetworkID)
		}
	case ports.Kind():
		touchedByPort(tx, &r, e)
	case floatings.Kind():
		// It may be on another host now, and no longer on the one where it was.
		for _, f := range both[FloatingAddress](e) {
			if target, ok := ports.PeekOne(tx, f.TargetID); ok {
				target.eachHost(func(h resource.ID) { r.on(h, f.NetworkID) })
			}
		}
	case "host":
		// Where its ports are reached may have changed, and what it is connected with.
		was, now := sides[host.Host](e)
		if was == nil || now == nil || was.Address != now.Address {
			r.having(segmentsOn(tx, e.ID)...)
		}
		if was == nil || now == nil || !slices.Equal(was.Physical, now.Physical) {
			for _, id := range routersOn(tx, e.ID) {
				if router, ok := routers.PeekOne(tx, id); ok && router.Gateway != nil {
					r.on(e.ID, router.Gateway.NetworkID)
				}
			}
		}
	}
	return r
}

// touchedByPort names the segments in which a port came, went or changed its place or addresses.
func touchedByPort(tx *state.Tx, r *refs, e state.Event) {
	was, now := sides[Port](e)
	if was != nil && now != nil && was.NextHostID != now.NextHostID { // it is expected somewhere, or not any more
		for _, p := range both[Port](e) {
			touchedAt(tx, r, p, p.NextHostID)
		}
	}
	if was != nil && now != nil && was.HostID == now.HostID && was.MAC == now.MAC && was.Owner == now.Owner && slices.Equal(was.Fixed, now.Fixed) &&
		was.PortSecurity == now.PortSecurity && slices.Equal(was.AllowedPairs, now.AllowedPairs) {
		return
	}
	for _, p := range both[Port](e) {
		switch {
		case p.Owner == OwnerRouter:
			r.everywhere(p.NetworkID)
			// The router's other networks come or go where this one has guests.
			if id, err := resource.ParseID(p.DeviceID); err == nil {
				r.everywhere(behind(tx, id)...)
			}
		case p.HostID.IsZero():
		default:
			touchedAt(tx, r, p, p.HostID)
			// Other hosts hear of it only if it can be reached from there.
			if h, ok := host.Table().PeekOne(tx, p.HostID); ok && h.Address.IsValid() {
				r.having(p.NetworkID)
			}
		}
	}
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

func touchedFilters(tx *state.Tx, e state.Event) []host.Ref {
	var r refs
	switch e.Kind {
	case groups.Kind():
		r.having(e.ID)
	case rules.Kind():
		for _, rule := range both[Rule](e) {
			r.having(rule.GroupID)
		}
	case addressGroups.Kind():
		for rule := range rules.Peek(tx, "remote-set", state.Range{Prefix: state.KeyOf(e.ID)}) {
			r.having(rule.GroupID)
		}
	case ports.Kind():
		was, now := sides[Port](e)
		same := was != nil && now != nil && sameMembership(was, now)
		if same && was.HostID == now.HostID && was.NextHostID == now.NextHostID {
			return nil
		}
		for _, p := range both[Port](e) {
			p.eachHost(func(h resource.ID) { r.on(h, p.Groups...) })
			if !same {
				touchedRemotes(tx, &r, p)
			}
		}
	}
	return r
}

// sameMembership reports whether a port is in the same groups with the same addresses.
func sameMembership(was, now *Port) bool {
	return slices.Equal(was.Groups, now.Groups) && slices.Equal(was.Fixed, now.Fixed) && slices.Equal(was.AllowedPairs, now.AllowedPairs)
}

// touchedRemotes names the groups with rules about the members of a port's groups.
func touchedRemotes(tx *state.Tx, r *refs, p *Port) {
	for _, id := range p.Groups {
		for rule := range rules.Peek(tx, "remote-group", state.Range{Prefix: state.KeyOf(id)}) {
			r.having(rule.GroupID)
		}
	}
}

func touchedGateways(tx *state.Tx, e state.Event) []host.Ref {
	var r refs
	switch e.Kind {
	case routers.Kind():
		r.everywhere(e.ID)
	case floatings.Kind():
		for _, f := range both[FloatingAddress](e) {
			r.everywhere(f.RouterID)
		}
	case forwards.Kind():
		for _, f := range both[Forward](e) {
			r.everywhere(f.RouterID)
		}
	case ports.Kind():
		for _, p := range both[Port](e) {
			if p.Owner == OwnerRouter || p.Owner == OwnerGateway {
				if id, err := resource.ParseID(p.DeviceID); err == nil {
					r.everywhere(id)
				}
			}
		}
		touchedByGuest(tx, &r, e)
	case "host":
		// Floating addresses are where the world is.
		was, now := sides[host.Host](e)
		if was == nil || now == nil || !slices.Equal(was.Physical, now.Physical) {
			r.everywhere(routersOn(tx, e.ID)...)
		}
	case subnets.Kind():
		for p := range ports.Peek(tx, "leg", state.Range{Prefix: state.KeyOf(e.ID)}) {
			if id, err := resource.ParseID(p.DeviceID); err == nil {
				r.everywhere(id)
			}
		}
	}
	return r
}

// touchedByGuest names the routers that a server's port is behind, on the hosts where it was and is, and at
// their homes, if floating addresses go along.
func touchedByGuest(tx *state.Tx, r *refs, e state.Event) {
	was, now := sides[Port](e)
	if was != nil && now != nil && was.HostID == now.HostID && was.NextHostID == now.NextHostID && was.Owner == now.Owner {
		return
	}
	for _, p := range both[Port](e) {
		for leg := range legs(tx, p.NetworkID) {
			if router, ok := routerOf(tx, leg); ok {
				p.eachHost(func(h resource.ID) { r.on(h, router.ID) })
				r.on(router.HostID, router.ID)
			}
		}
	}
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
			p.eachHost(func(h resource.ID) { r.on(h, p.ID) })
		}
	}
	return r
}

// A wiring is what a host reports of an attachment.
type wiring struct {
	Up   bool
	Gone bool // it was taken away
}

func observeAttachment(tx *state.Tx, h, id resource.ID, seen json.RawMessage) error {
	var w wiring
	if err := json.Unmarshal(seen, &w); err != nil {
		return fmt.Errorf("decode the report of port %s: %w", id, err)
	}
	p, ok := ports.PeekOne(tx, id)
	up := w.Up && !w.Gone
	if !ok || p.HostID != h || p.Wired == up {
		return nil
	}
	p, _ = ports.Find(tx, id)
	p.Wired = up
	return ports.Put(tx, p)
}
