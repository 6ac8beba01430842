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
// Why no guest runs twice: the lease is granted only by a read of the newest state in which the host is not lost, and has
// not been since it was told what it is to run. So whoever sees it lost looks later than the host asked, and after LeaseTime on its
// own clock the lease is over. LeaseMargin is what
// the host then needs to cut the guests off, or its watchdog to reset it, and for two clocks not being alike.
const (
	LeaseTime   = time.Minute
	LeaseMargin = time.Minute
	// RenewEvery is how often a host asks.
	RenewEvery = 4 * time.Second
)

// A LeaseRequest asks for it. What it says of clocks is for Clock, and left out by who does not know it.
type LeaseRequest struct {
	Arrival  int           // of the last full delivery
	Clock    time.Time     `json:",omitzero"`  // the host's
	Answered time.Time     `json:",omitzero"`  // the controller's, as it said in the answer before
	Held     time.Duration `json:",omitempty"` // since the host has that
}

// A LeaseAnswer grants a lease.
type LeaseAnswer struct {
	For   time.Duration
	Clock time.Time `json:",omitzero"` // the controller's
}

// Renew grants a host its lease anew, and takes note that it was heard. arrival is that of the last full delivery that the host took
// in: it must not count on what it was told before it was last lost. Any controller may grant it; see docs/decisions/fencing.md.
func (h *Hub) Renew(ctx context.Context, id resource.ID, arrival int) (LeaseAnswer, error) {
	h.mu.Lock()
	h.heard[id] = h.now() // whatever is answered
	h.mu.Unlock()
	if h.Confirm != nil {
		if err := h.Confirm(ctx); err != nil {
			return LeaseAnswer{}, fault.Errorf(fault.Unavailable, "It is not sure that this controller has the newest state.")
		}
	}
	known, ok := hosts.PeekOne(h.State.Latest(), id)
	if !ok || !known.Up() || known.Arrivals != arrival {
		h.endSession(id) // it says hello again, and is told everything anew
		return LeaseAnswer{}, fault.Errorf(fault.Conflict, "The host counts as lost, or did since it was told what is wanted of it. Connect first.")
	}
	return LeaseAnswer{For: LeaseTime}, nil
}

// Renews says that the host renews its lease: from now on it counts as lost when it does not, whatever becomes of the session.
func (s *Session) Renews() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.renews = true
}
