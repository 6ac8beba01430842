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
		{Kind: "segment", All: segmentsOn, Touched: touchedSegments, Shared: sharedSegments, Every: crowdPace,
			Want: func(tx *state.Tx, h, id resource.ID) (any, bool) { return s.segmentText(tx, id, h) }},
		{Kind: "filter", All: filtersOn, Touched: touchedFilters, Shared: sharedFilters, Every: crowdPace,
			Want: func(tx *state.Tx, h, id resource.ID) (any, bool) {
				if !filteredOn(tx, id, h) {
					return nil, false
				}
				return s.filterText(tx, id)
			}},
		{Kind: "gateway", All: routersOn, Touched: touchedGateways, Shared: sharedGateways,
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

// filterText is FilterFor, spelled.
func (s *Service) filterText(tx *state.Tx, groupID resource.ID) (any, bool) {
	text, ok, err := s.crowd.filterText(groupID)
	if err != nil {
		return wanted(FilterFor(tx, groupID))
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
