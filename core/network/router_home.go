package network

import (
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// settle gives a router a home: where its own address outside is, under which all go out that have no
// floating one. It stays where it is as long as no other host is better. Among equals it comes to the one in its
// zones that is home to the fewest.
func settle(tx *state.Tx, r *Router) {
	best, least := resource.ID{}, int64(0)
	most := suits(tx, r, r.HostID)
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if h.Disabled || len(r.ZoneHints) > 0 && !slices.Contains(r.ZoneHints, h.Zone) {
			continue
		}
		n, _ := routers.Sum(tx, "host-load", state.KeyOf(h.ID))
		if how := suits(tx, r, h.ID); how > most || how == most && !best.IsZero() && n < least {
			best, most, least = h.ID, how, n
		}
	}
	if most == 0 || !best.IsZero() {
		r.HostID = best
	}
}

// suits says how well a host would do as a router's home; 0 for one that is not there.
func suits(tx *state.Tx, r *Router, hostID resource.ID) int {
	h, ok := host.Table().PeekOne(tx, hostID)
	switch {
	case !ok:
		return 0
	case !h.Up():
		return 1
	case !h.Mute.IsZero():
		return 2
	case r.Gateway != nil && !connected(tx, hostID, r.Gateway.NetworkID):
		return 3
	case h.Maintenance: // it may be switched off, and what went out through it would then wait
		return 4
	default:
		return 5
	}
}

// followHome binds a router's ports to where the router is.
func followHome(tx *state.Tx, r *Router) error {
	for _, id := range ports.IDs(tx, "device", state.KeyOf(r.ID.String())) {
		p, _ := ports.Find(tx, id)
		if !p.Owner.internal() || p.HostID == r.HostID {
			continue
		}
		p.HostID = r.HostID
		if err := ports.Put(tx, p); err != nil {
			return err
		}
	}
	return nil
}
