package host

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A host says with which physical networks it is connected when its session begins, and again whenever an operator plugs one in or
// out: what has to be where the world is follows.

// SaysUplinks reports whether the host says with which physical networks it is connected. One of the release before never does.
func (h *Host) SaysUplinks() bool { return h.Speaks.OrFirst().Newest >= 2 }

// Leads reports whether a host is connected with a physical network, or may be: of one that does not say it counts as so with all.
func (h *Host) Leads(physical string) bool {
	return !h.SaysUplinks() || slices.Contains(h.Physical, physical)
}

// UplinkKind is the kind of the report that lists the physical networks that a host is connected with now.
const UplinkKind = "host-uplinks"

// UplinkReport reports them.
func UplinkReport(id resource.ID, physical []string) []Observation {
	seen, err := json.Marshal(physical)
	if err != nil {
		panic(err) // texts are always spelled
	}
	return []Observation{{Key: Key{UplinkKind, id}, Seen: seen}}
}

// uplinks takes such reports in. Whoever reports means itself.
func uplinks() Source {
	return Reports(UplinkKind, func(tx *state.Tx, host, _ resource.ID, seen json.RawMessage) error {
		var physical []string
		if err := json.Unmarshal(seen, &physical); err != nil {
			return fmt.Errorf("decode the uplinks of host %s: %w", host, err)
		}
		if err := checkPhysical(physical); err != nil {
			return err
		}
		h, ok := hosts.Find(tx, host)
		if !ok || slices.Equal(h.Physical, physical) {
			return nil
		}
		h.Physical = physical
		return hosts.Put(tx, h)
	})
}
