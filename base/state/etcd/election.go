package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/unkai-cloud/unkai/base/state"
)

// A candidacy is in the election that finds, among engines on one etcd elsewhere, the one that leads. Each candidate has a key that goes with its lease, and
// the oldest leads. That one is cut off and does not know yet that it leads no more is what terms are for: what it commits is refused.
type candidacy struct {
	engine *Engine
	self   uint64
	prefix string
	may    func(context.Context) error // see Stand

	mu      sync.Mutex
	leader  uint64                // 0: none is known; guarded by mu
	changed chan struct{}         // closed and replaced when leader changes; guarded by mu
	mine    *concurrency.Election // while this engine is elected; guarded by mu
}

const (
	leaseSeconds = 2 // until a candidate that is not heard leads no more; etcd has none shorter with its usual election timeout
	electAgain   = 500 * time.Millisecond
)

func newCandidacy(e *Engine) *candidacy {
	// Beside the state's keys: they are none of them, and no change of the state.
	return &candidacy{engine: e, self: e.options.Candidate, prefix: strings.TrimSuffix(e.options.Prefix, "/") + "-lead/", changed: make(chan struct{})}
}

// Stand makes this engine a candidate until it is closed. may is asked before each time that it stands, and before each time that it leads: while it
// answers an error, the engine does not.
func (e *Engine) Stand(may func(context.Context) error) {
	e.election.may = may
	e.running.Go(e.election.run)
}

func (n *candidacy) set(leader uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leader != leader {
		n.leader = leader
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

func (n *candidacy) get() (leader uint64, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leader, n.changed
}

// run is a candidate until the engine is closed.
func (n *candidacy) run() {
	ctx := n.engine.closed
	for ctx.Err() == nil {
		err := n.stand(ctx)
		n.set(0)
		if ctx.Err() == nil && err != nil {
			slog.WarnContext(ctx, "the election of the controller that leads was interrupted", "err", err)
		}
		select {
		case <-time.After(electAgain):
		case <-ctx.Done():
		}
	}
}

// stand is a candidate for as long as a lease lives.
func (n *candidacy) stand(ctx context.Context) error {
	if err := n.may(ctx); err != nil { // before there is a lease
		return fmt.Errorf("not a candidate: %w", err)
	}
	lease, err := n.engine.client.Grant(ctx, leaseSeconds)
	if err != nil {
		return fmt.Errorf("get a lease: %w", err)
	}
	session, err := concurrency.NewSession(n.engine.client, concurrency.WithLease(lease.ID), concurrency.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("keep the lease: %w", err)
	}
	defer session.Orphan() // or the lease would be kept for as long as the engine is there
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-session.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	elections := concurrency.NewElection(session, n.prefix)
	var watching sync.WaitGroup
	watching.Go(func() {
		for now := range elections.Observe(ctx) {
			id, _ := strconv.ParseUint(string(now.Kvs[0].Value), 16, 64) // another's spelling is no one we know
			n.set(id)
		}
		cancel() // the observation ended: what it last said may be old
	})
	defer watching.Wait()
	defer cancel()
	for {
		if err := elections.Campaign(ctx, strconv.FormatUint(n.self, 16)); err != nil {
			return fmt.Errorf("wait to be elected: %w", errors.Join(err, context.Cause(ctx)))
		}
		n.mu.Lock()
		n.mine = elections
		n.mu.Unlock()
		gone := n.lost(ctx)
		n.mu.Lock()
		n.mine = nil
		n.mu.Unlock()
		if gone {
			err := n.may(ctx)
			if err == nil {
				continue
			}
			return fmt.Errorf("not a candidate any more: %w", err)
		}
		// Closed in order: others need not wait for the lease to run out.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		err := elections.Resign(end)
		cancel()
		return err
	}
}

// lost waits until this engine is not the one that leads any more, and says so; false when the engine is closed or its lease gone.
func (n *candidacy) lost(ctx context.Context) bool {
	for led := false; ; {
		leader, changed := n.get()
		if leader == n.self {
			led = true
		} else if led && leader != 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// resign gives the lead up, if this engine has it.
func (n *candidacy) resign(ctx context.Context) error {
	n.mu.Lock()
	mine := n.mine
	n.mu.Unlock()
	if mine == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return mine.Resign(ctx)
}

// handOver gives the lead up, and waits until another has it.
func (n *candidacy) handOver(ctx context.Context, s *state.State) error {
	n.mu.Lock()
	mine := n.mine
	n.mu.Unlock()
	if mine == nil {
		return nil
	}
	// Alone it would only be elected anew.
	all, err := n.engine.client.Get(ctx, n.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if all.Count < 2 {
		return errors.New("no other controller is there to lead")
	}
	s.Retire()
	if err := mine.Resign(ctx); err != nil {
		return fmt.Errorf("give up the lead: %w", err)
	}
	for {
		leader, changed := n.get()
		if leader != 0 && leader != n.self {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
