package state

import (
	"context"
	"crypto/rand"
	"io"
	"sync"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A Plan collects what a request would change. Updates in its context run on a fork
// that nobody else sees and that is thrown away; Views in its context see the fork.
type Plan struct {
	Random io.Reader // for IDs and choices; crypto/rand when nil

	mu      sync.Mutex
	tx      *Tx      // the fork; guarded by mu
	changes []change // guarded by mu
}

type planKey struct{}

// WithPlan returns a context in which nothing is really changed.
func WithPlan(ctx context.Context, p *Plan) context.Context {
	return context.WithValue(ctx, planKey{}, p)
}

// Planning reports whether ctx only plans: what would reach outside the state (files,
// hosts) must then be left out.
func Planning(ctx context.Context) bool { return planOf(ctx) != nil }

func planOf(ctx context.Context) *Plan {
	p, _ := ctx.Value(planKey{}).(*Plan)
	return p
}

// Changes lists what the request would change so far, in the order of first touch.
func (p *Plan) Changes() []Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	var events []Event
	for _, c := range merge(p.changes) {
		e := Event{Revision: p.tx.revision, Time: p.tx.now, Cause: p.tx.cause, Kind: c.def.kind, ID: c.id, Before: c.before, After: c.after}
		if !e.begins() {
			events = append(events, e)
		}
	}
	return events
}

// fork begins the plan's own tables, once. The caller holds p.mu.
func (p *Plan) fork(s *State) {
	if p.tx != nil {
		return
	}
	now := s.published.Load()
	tables := make([]*tableData, len(now.tables))
	s.forkMu.Lock()
	for i, data := range now.tables {
		tables[i] = data.fork()
	}
	s.forkMu.Unlock()
	if p.Random == nil {
		p.Random = rand.Reader
	}
	p.tx = &Tx{tables: tables, head: now.head, now: s.clock.now(now.head.Time), revision: now.head.Revision + 1, random: p.Random, last: new(resource.ID), first: s.first}
}

func (p *Plan) view(s *State) *Tx {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fork(s)
	view := *p.tx
	view.changes, view.last = nil, nil
	return &view
}

func (p *Plan) update(s *State, ctx context.Context, fn func(*Tx) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fork(s)
	tx := *p.tx
	tx.changes, tx.writable, tx.cause = nil, true, CauseOf(ctx)
	p.tx.cause = tx.cause
	err := protect(&tx, fn)
	if err == nil {
		err = tx.spell()
	}
	if err == nil && !tx.cause.UserID.IsZero() && tx.made() > s.mayMake() {
		err = full()
	}
	if err != nil {
		tx.undo(0)
		return err
	}
	p.changes = append(p.changes, tx.changes...)
	return nil
}
