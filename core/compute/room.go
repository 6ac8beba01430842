package compute

import (
	"cmp"
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A ZoneRoom is how many more servers of a flavor find a host in a zone, one after the other and if nothing else changes.
type ZoneRoom struct {
	Zone  string
	Hosts int
	Open  int        // of these, with room for one at least
	More  int64      // in all
	Why   []RoomEnds // no more, the most hosts first
}

// RoomEnds tells for how many hosts a constraint of the placement is the one that ends their room.
type RoomEnds struct {
	Constraint string
	Hosts      int
}

// Room tells how many more servers of a flavor, by its ref or name, there is room for, by zone; "" for all zones. It asks the placement's
// own constraints about each host, and changes nothing. What lies in a launch and not in the flavor, such as
// its image's architecture, a group or quota, is not asked.
func (s *Service) Room(ctx context.Context, flavor, zone string) ([]ZoneRoom, error) {
	if err := identity.Allow(ctx, "host.list", resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	f, ok := flavors.Lookup(tx, "ref", state.KeyOf(flavor))
	if !ok {
		f, ok = flavors.Lookup(tx, "name", state.KeyOf(flavor))
	}
	if !ok {
		return nil, missingFlavor(flavor)
	}
	if zone != "" && !hasZone(tx, zone) {
		return nil, fault.Errorf(fault.Invalid, "The requested availability zone is not available").WithCode("zone-not-found")
	}
	shape := f.shape()
	p := s.search(tx, shape.ask())
	all := []ZoneRoom{}
	taken := map[string]int64{} // by them, of storage that hosts share
	for h := range host.Table().Peek(tx, "zone", state.Range{}) {
		in := p.zones.Of(h)
		if zone != "" && in != zone {
			continue
		}
		n := slices.IndexFunc(all, func(r ZoneRoom) bool { return r.Zone == in })
		if n < 0 {
			n, all = len(all), append(all, ZoneRoom{Zone: in})
		}
		more, ends := p.times(h)
		if storage := h.Capacity.Storage; storage != "" && more > 0 && p.load[diskAmount] > 0 {
			_, used := Load(tx, h)
			free := p.policy.total(h)[diskAmount] - used[diskAmount] - taken[storage] // each host with its own ratio
			if fit := max(0, free/p.load[diskAmount]); fit < more {
				more, ends = fit, "has the disk"
			}
			taken[storage] += more * p.load[diskAmount]
		}
		all[n].add(more, ends)
	}
	for _, r := range all {
		slices.SortFunc(r.Why, func(a, b RoomEnds) int { return cmp.Or(b.Hosts-a.Hosts, cmp.Compare(a.Constraint, b.Constraint)) })
	}
	slices.SortFunc(all, func(a, b ZoneRoom) int { return cmp.Compare(a.Zone, b.Zone) })
	return all, nil
}

func (r *ZoneRoom) add(more int64, ends string) {
	r.Hosts++
	if more > 0 {
		r.Open++
		r.More += more
	}
	n := slices.IndexFunc(r.Why, func(w RoomEnds) bool { return w.Constraint == ends })
	if n < 0 {
		n, r.Why = len(r.Why), append(r.Why, RoomEnds{Constraint: ends})
	}
	r.Why[n].Hosts++
}

// times is how often the demand finds room on a host, and the constraint that ends it. One more server takes of its host what
// all do, so that beyond the first nothing but capacity changes.
func (p *placing) times(h *host.Host) (more int64, ends string) {
	if n := p.removes(h); n >= 0 {
		return 0, p.asked[n].name
	}
	_, used := Load(p.tx, h)
	total := p.policy.total(h)
	more = -1
	for i, name := range []string{"has the processors", "has the memory", "has the disk"} {
		if p.load[i] <= 0 {
			continue
		}
		if n := (total[i] - used[i]) / p.load[i]; more < 0 || n < more {
			more, ends = n, name
		}
	}
	for class, n := range p.claims {
		v := h.Offers[class]
		if fit := (v.Capacity() - claimed(p.tx, h.ID, class)) / n; fit <= more {
			more, ends = fit, "has the custom resources of the flavor"
		}
	}
	return more, ends
}
