package network

import (
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// settle gives a router a home: where its own address outside is, under which all go out that have no
// floating one. It stays where it is as long as no other host is better. Among equals it comes to the one in its
// zones that is home to the fewest. That a host is disabled keeps guests off it, not routers.
func settle(tx *state.Tx, r *Router) {
	best, least := resource.ID{}, int64(0)
	under := host.UnderlayOf(tx)
	uplink, most := uplinkOf(tx, r), nowhere
	if h, ok := host.Table().PeekOne(tx, r.HostID); ok {
		most = suits(under, h, uplink, true)
	}
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if h.ID == r.HostID || len(r.ZoneHints) > 0 && !slices.Contains(r.ZoneHints, h.Zone) {
			continue
		}
		how := suits(under, h, uplink, false)
		if how < most || how == most && best.IsZero() {
			continue
		}
		if n, _ := routers.Sum(tx, "host-load", state.KeyOf(h.ID)); how > most || n < least {
			best, most, least = h.ID, how, n
		}
	}
	if most == nowhere || !best.IsZero() {
		r.HostID = best
	}
}

// How well a host does as a router's home, from worst to best.
const (
	nowhere   = iota // it is not there
	unheard          // it is lost or mute
	cutOff           // the other hosts do not reach it, and what their guests send out would not either
	inlandOff        // in maintenance, and without the router's uplink
	inland           // without it
	awaited          // it is home, and has the uplink, but is lost or mute
	leaving          // in maintenance: it may be switched off, and what went out through it would then wait
	fit
)

// suits says how well a host would do as the home of a router with an uplink, or does as what it is. A home with the uplink is
// not left for a host that has none: nothing would go out there either, and home may be back any moment.
func suits(under host.Underlay, h *host.Host, uplink string, home bool) int {
	heard, leads, reached := h.Up() && h.Mute.IsZero(), uplink == "" || h.Leads(uplink), under.Reaches(h)
	switch {
	case !heard && leads && home && reached:
		return awaited
	case !heard:
		return unheard
	case !reached:
		return cutOff
	case leads && h.Maintenance:
		return leaving
	case leads:
		return fit
	case h.Maintenance:
		return inlandOff
	default:
		return inland
	}
}

// uplinkOf names the physical network that a router's home has to be connected with; "" if any host will do.
func uplinkOf(tx *state.Tx, r *Router) string {
	if r.Gateway == nil {
		return ""
	}
	n, ok := networks.PeekOne(tx, r.Gateway.NetworkID)
	if !ok {
		return ""
	}
	return n.Physical // none of an overlay
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
