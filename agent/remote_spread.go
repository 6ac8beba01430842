package agent

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"
)

// at is the controller to ask.
func (r *Remote) at() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.url
}

// At is the controller that is asked now.
func (r *Remote) At() string { return r.at() }

// elsewhere has the next request go to the next controller that is known. failed is where it was sent.
func (r *Remote) elsewhere(failed string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.url != failed {
		return // another request has found that out
	}
	if order := r.order(); len(order) > 0 {
		r.url = order[(slices.Index(order, failed)+1)%len(order)]
	}
}

// order is the controllers in the order in which this host takes them. Each host has its own, so that many are spread over
// them, and those of one that is lost over the others. The caller holds mu.
func (r *Remote) order() []string {
	rank := func(url string) []byte {
		sum := sha256.Sum256(append(r.Identity.Host[:], url...))
		return sum[:]
	}
	return slices.SortedFunc(slices.Values(r.Identity.Controllers), func(a, b string) int { return bytes.Compare(rank(a), rank(b)) })
}

// goHome has the next session be with the controller that this host takes first, if that has not been tried for a while.
func (r *Remote) goHome(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if order := r.order(); len(order) > 0 && !now.Before(r.home) {
		r.url, r.home = order[0], now.Add(homeAgain+time.Duration(r.Identity.Host[15])*homeAgain/256)
	}
}

// away is how long a session with the controller at a URL may last, if that is not where this host belongs; 0: for ever.
func (r *Remote) away(at string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if order := r.order(); len(order) == 0 || order[0] == at {
		return 0
	}
	return max(r.home.Sub(now), time.Second)
}

// homeAgain is how long a host at least stays away from the controller that it takes first, once that did not answer.
const homeAgain = 5 * time.Minute

// learn takes in where the controllers are, and keeps it for when none of those that are known is left.
func (r *Remote) learn(controllers []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(controllers, r.Identity.Controllers) {
		return nil
	}
	next := *r.Identity
	next.Controllers = controllers
	if err := next.save(); err != nil {
		return fmt.Errorf("keep where the controllers are: %w", err)
	}
	*r.Identity = next
	return nil
}
