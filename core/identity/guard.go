package identity

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A guard counts wrong guesses at passwords, passcodes and secrets, and refuses all for a while after too
// many. It keeps them in memory: a wrong guess costs the state nothing, so that it takes no longer at a
// user that there is than at one that there is not. A restart forgives everybody.
//
// A lock weighs who is guessed at and where from, so that nobody locks others out of their own
// accounts: a source has its own count, those that have never succeeded have one more together, and one that
// has succeeded before has nothing to do with what the others guess.
type guard struct {
	rules Lockout

	mu       sync.Mutex
	accounts map[resource.ID]*account // guarded by mu; by user, or application credential
}

type account struct {
	strangers tally // from all sources that have never succeeded
	sources   map[netip.Prefix]*tally
	seen      time.Time
}

// A tally is of failures in a row.
type tally struct {
	failures int
	last     time.Time
	known    bool // it has succeeded
}

const (
	mostAccounts = 1 << 16
	mostSources  = 256 // of an account
	// strangersFactor is how many sources may each guess as often as one before all that are unknown are
	// refused: what a crowd of attackers has in all, against one.
	strangersFactor = 10
)

func newGuard(l Lockout) *guard { return &guard{rules: l, accounts: map[resource.ID]*account{}} }

// judge takes a guess into account and says whether it counts as right: one that comes while the account is
// locked for its source does not, whatever it is.
func (g *guard) judge(ctx context.Context, who resource.ID, good bool, now time.Time) bool {
	if g.rules.After <= 0 {
		return good
	}
	source, after := sourceOf(ctx), shareOf(ctx, g.rules.After)
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.accounts[who]
	if a == nil {
		if good {
			return true
		}
		a = g.open(who, now)
	}
	a.seen = now
	t, strangers := a.sources[source], &a.strangers
	if t != nil && t.known {
		strangers = nil
	}
	if t.locked(after, g.rules.For, now) || strangers.locked(after*strangersFactor, g.rules.For, now) {
		return false
	}
	if good {
		return true
	}
	if t == nil {
		t = a.add(source)
	}
	if t.fail(after, now) || strangers.fail(after*strangersFactor, now) {
		slog.WarnContext(ctx, "logins are refused after too many failures", "account", who, "source", source, "for", g.rules.For)
	}
	return false
}

// succeeded forgets the failures of a source that has proved all that it had to.
func (g *guard) succeeded(ctx context.Context, who resource.ID, now time.Time) {
	source := sourceOf(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.accounts[who]
	if a == nil {
		a = g.open(who, now)
	}
	a.seen = now
	t := a.sources[source]
	if t == nil {
		t = a.add(source)
	}
	*t = tally{known: true, last: now}
}

// forgive forgets all failures of an account.
func (g *guard) forgive(who resource.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.accounts, who)
}

// open begins an account. When there are too many, half of them go, those first that have been still for a day.
func (g *guard) open(who resource.ID, now time.Time) *account {
	if len(g.accounts) >= mostAccounts {
		for id, a := range g.accounts {
			if now.Sub(a.seen) > 24*time.Hour {
				delete(g.accounts, id)
			}
		}
		for id := range g.accounts {
			if len(g.accounts) < mostAccounts/2 {
				break
			}
			delete(g.accounts, id)
		}
	}
	a := &account{sources: map[netip.Prefix]*tally{}, seen: now}
	g.accounts[who] = a
	return a
}

// add begins the tally of a source, in the place of the stalest when there are too many: of an unknown one
// if there is any.
func (a *account) add(source netip.Prefix) *tally {
	if len(a.sources) >= mostSources {
		var stalest netip.Prefix
		var of *tally
		for at, t := range a.sources {
			if of == nil || of.known && !t.known || of.known == t.known && t.last.Before(of.last) {
				stalest, of = at, t
			}
		}
		delete(a.sources, stalest)
	}
	t := &tally{}
	a.sources[source] = t
	return t
}

func (t *tally) locked(after int, lasts time.Duration, now time.Time) bool {
	return t != nil && t.failures >= after && now.Sub(t.last).Abs() < lasts
}

// fail counts a failure and reports whether it was one too many.
func (t *tally) fail(after int, now time.Time) bool {
	if t == nil {
		return false
	}
	if t.failures >= after {
		t.failures = 0 // a lock that has run out: count anew
	}
	t.failures++
	t.last = now
	return t.failures >= after
}

type sourceKey struct{}

// WithSource returns a context that says which address a request comes from.
func WithSource(ctx context.Context, from netip.Addr) context.Context {
	from = from.Unmap().WithZone("")
	bits := from.BitLen()
	if from.Is6() {
		bits = 64 // what one customer of a provider has at the least
	}
	p, err := from.Prefix(bits)
	if err != nil {
		return ctx // no address: as if nothing had been said
	}
	return context.WithValue(ctx, sourceKey{}, p)
}

func sourceOf(ctx context.Context) netip.Prefix {
	p, _ := ctx.Value(sourceKey{}).(netip.Prefix)
	return p
}

type countersKey struct{}

// AmongCounters returns a context of a guess that one of n controllers judges, none of which knows what the others have counted: each
// allows its share, so that they allow no more together than one would.
func AmongCounters(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, countersKey{}, n)
}

// shareOf is how many failures one controller allows of those that all do.
func shareOf(ctx context.Context, all int) int {
	n, _ := ctx.Value(countersKey{}).(int)
	return max(all/max(n, 1), 1)
}
