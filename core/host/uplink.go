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
		h, ok := hosts.Find(tx, host)
		if !ok || slices.Equal(h.Physical, physical) {
			return nil
		}
		h.Physical = physical
		return hosts.Put(tx, h)
	})
}
