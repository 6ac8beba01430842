package host

import (
	"context"
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

// Mute takes in that the machine of a connected host has fallen mute, or that it answers again.
func Mute(ctx context.Context, s *state.State, id resource.ID, mute bool) error {
	return s.Update(state.WithCause(ctx, state.Cause{Via: "host"}), func(tx *state.Tx) error {
		h, ok := hosts.Find(tx, id)
		if !ok || !h.Up() || mute == !h.Mute.IsZero() {
			return nil
		}
		if h.Mute = (time.Time{}); mute {
			h.Mute = tx.Now()
		}
		return hosts.Put(tx, h)
	})
}
