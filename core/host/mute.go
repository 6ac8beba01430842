package host

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A host is mute when its machine leaves unanswered what every machine's kernel answers by itself: it is off, or cut off. That is known
// within MuteAfter, long before the host counts as lost, and unlike a silent agent, which may be about to start again, it says
// something of what the machine's kernel does for others. So routers leave a mute host at once; guests, leases and fences
// wait until it is lost.

// MuteAfter is how long a machine may owe an answer. It is asked every second, so that one question or answer may get lost.
const MuteAfter = 2500 * time.Millisecond

// MuteKind is the kind of the report that a host has fallen mute (true), or answers again. The controller that has its session makes
// it, in the host's name: it goes the way of the host's own reports to the controller that leads.
const MuteKind = "host-mute"

// MuteReport reports it.
func MuteReport(id resource.ID, mute bool) []Observation {
	seen := json.RawMessage("false")
	if mute {
		seen = json.RawMessage("true")
	}
	return []Observation{{Key: Key{MuteKind, id}, Seen: seen}}
}

// muteness takes such reports in.
func muteness() Source {
	return Reports(MuteKind, func(tx *state.Tx, host, _ resource.ID, seen json.RawMessage) error {
		var mute bool
		if err := json.Unmarshal(seen, &mute); err != nil {
			return fmt.Errorf("decode whether host %s is mute: %w", host, err)
		}
		return Mute(tx, host, mute)
	})
}

// Mute records that a host has fallen mute, or that it answers again. One that is lost is no longer asked.
func Mute(tx *state.Tx, id resource.ID, mute bool) error {
	h, ok := hosts.Find(tx, id)
	if !ok || !h.Up() || mute == !h.Mute.IsZero() {
		return nil
	}
	if h.Mute = (time.Time{}); mute {
		h.Mute = tx.Now()
	}
	return hosts.Put(tx, h)
}
