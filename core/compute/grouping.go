package compute

import (
	"sync/atomic"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// A grouping is what some aggregates say of hosts, in a form in which one host is quickly looked up. It is derived and never
// changed. Every placement needs one, and aggregates of thousands of hosts are read for it only after they changed.
type grouping struct {
	of    []*Aggregate // as stored, where nothing is changed either: as long as there are these, it is true
	hosts []map[resource.ID]bool
	zones map[resource.ID]string // of hosts that have theirs from an aggregate; nil if none has
	// What aggregates say of how much hosts may promise, the least of several; nil if none says anything.
	ratios map[resource.ID]host.Ratios
}

var lastGrouping atomic.Pointer[grouping]

// groupingOf is that of the aggregates that there are.
func groupingOf(tx *state.Tx) *grouping {
	last, n := lastGrouping.Load(), 0
	same := last != nil && aggregates.Len(tx) == len(last.of)
	if same {
		for a := range aggregates.Peek(tx, "", state.Range{}) {
			if same = a == last.of[n]; !same {
				break
			}
			n++
		}
	}
	if same {
		return last
	}
	g := &grouping{}
	for a := range aggregates.Peek(tx, "", state.Range{}) {
		in := make(map[resource.ID]bool, len(a.Hosts))
		var ratios host.Ratios
		for of := range ratios {
			ratios[of] = a.ratioOf(of)
		}
		for _, id := range a.Hosts {
			g.limit(id, ratios)
			in[id] = true
			if a.Zone != "" {
				if g.zones == nil {
					g.zones = map[resource.ID]string{}
				}
				g.zones[id] = a.Zone
			}
		}
		g.of, g.hosts = append(g.of, a), append(g.hosts, in)
	}
	lastGrouping.Store(g)
	return g
}

// limit gives a host the lower of the ratios that it has and these.
func (g *grouping) limit(id resource.ID, ratios host.Ratios) {
	if ratios == (host.Ratios{}) {
		return
	}
	if g.ratios == nil {
		g.ratios = map[resource.ID]host.Ratios{}
	}
	has := g.ratios[id].Or(ratios)
	for of, ratio := range ratios.Or(has) {
		has[of] = min(has[of], ratio)
	}
	g.ratios[id] = has
}

// labeled are the hosts of each aggregate that has all of some metadata.
func (g *grouping) labeled(labels map[string]string) []map[resource.ID]bool {
	var found []map[resource.ID]bool
	for n, a := range g.of {
		fits := true
		for k, v := range labels {
			fits = fits && a.Metadata[k] == v
		}
		if fits {
			found = append(found, g.hosts[n])
		}
	}
	return found
}

// A ZoneMap tells hosts' zones: that of an aggregate goes before the host's own.
type ZoneMap struct{ byHost map[resource.ID]string }

// ZonesOf reads the zones as they are.
func ZonesOf(tx *state.Tx) ZoneMap { return ZoneMap{groupingOf(tx).zones} }

// Of is a host's zone.
func (z ZoneMap) Of(h *host.Host) string {
	if zone, ok := z.byHost[h.ID]; ok {
		return zone
	}
	return h.Zone
}
