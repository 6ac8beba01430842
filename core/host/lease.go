package host

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A host's lease is its right to run the guests that may be started elsewhere when the host is lost. It is granted for
// LeaseTime, which the host counts from before it asked, on a clock that nobody sets. A host with a watchdog cuts such guests
// off when its lease is over, and its watchdog resets it when it does not.
//
// Why no guest runs twice: the lease is granted only by a read of the newest state in which the host is not lost. So whoever
// sees it lost looks later than the host asked, and after LeaseTime on its own clock the lease is over. LeaseMargin is what
// the host then needs to cut the guests off, or its watchdog to reset it, and for two clocks not being alike.
const (
	LeaseTime   = time.Minute
	LeaseMargin = time.Minute
	// RenewEvery is how often a host asks.
	RenewEvery = 4 * time.Second
)

// A LeaseAnswer grants a lease.
type LeaseAnswer struct{ For time.Duration }

// Renew grants a host its lease anew, and takes note that it was heard.
func (h *Hub) Renew(ctx context.Context, id resource.ID) (LeaseAnswer, error) {
	h.mu.Lock()
	if s := h.sessions[id]; s != nil {
		s.heard = h.now() // whatever is answered
	}
	h.mu.Unlock()
	if h.Confirm != nil {
		if err := h.Confirm(ctx); err != nil {
			return LeaseAnswer{}, fault.Errorf(fault.Unavailable, "It is not sure that this controller has the newest state.")
		}
	}
	known, ok := hosts.PeekOne(h.State.Latest(), id)
	if !ok || !known.Up() {
		return LeaseAnswer{}, fault.Errorf(fault.Conflict, "The host counts as lost. Connect first.")
	}
	return LeaseAnswer{For: LeaseTime}, nil
}

// Renews says that the host renews its lease: from now on it counts as lost when it does not, whatever becomes of the session,
// for what is written into a cut line is long not missed.
func (s *Session) Renews() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.renews, s.heard = true, s.hub.now()
}

// audible reports whether a host is heard. The caller holds the hub's mu.
func (h *Hub) audible(id resource.ID, now time.Time) bool {
	s := h.sessions[id]
	return s != nil && (!s.renews || now.Sub(s.heard) < Expect)
}
