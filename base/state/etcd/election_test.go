package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
)

// A candidate is one of several controllers on an etcd elsewhere.
type candidate struct {
	engine *etcd.Engine
	state  *state.State
	stop   context.CancelFunc
	done   chan struct{}

	dismissed atomic.Bool // it may not stand
}

func stand(t *testing.T, endpoint string, id uint64) *candidate {
	t.Helper()
	e, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{endpoint}, Prefix: "/" + t.Name() + "/", Candidate: id})
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.OpenFollower(t.Context(), e, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &candidate{engine: e, state: s, stop: stop, done: make(chan struct{})}
	e.Stand(func(context.Context) error {
		if c.dismissed.Load() {
			return errors.New("dismissed")
		}
		return nil
	})
	go func() {
		defer close(c.done)
		if err := etcd.Serve(ctx, e, s, func(ctx context.Context) { <-ctx.Done() }); err != nil && ctx.Err() == nil {
			t.Errorf("candidate %d: %v", id, err)
		}
	}()
	return c
}

func (c *candidate) end(t *testing.T) {
	c.stop()
	<-c.done
	if err := c.state.Close(); err != nil {
		t.Error(err)
	}
}

func leaderOf(t *testing.T, all map[uint64]*candidate, but uint64) uint64 {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for id, c := range all {
			if id != but && c.state.Leads() {
				return id
			}
		}
	}
	t.Fatal("nobody leads")
	return 0
}

// One of several on an etcd elsewhere leads, hands over in order, and is replaced when it ends or is cut off: what was acknowledged is
// there once whoever leads, and nobody else writes.
func TestOneOfSeveralOnAnEtcdElsewhereLeads(t *testing.T) {
	endpoint := serveElsewhere(t, 1<<16, 128<<20)
	all := map[uint64]*candidate{}
	var ended sync.WaitGroup
	for id := range uint64(3) {
		all[id+1] = stand(t, endpoint, id+1)
	}
	t.Cleanup(func() {
		ended.Wait()
		for _, c := range all {
			c.end(t)
		}
	})
	made := 0
	write := func(by *candidate, n int) {
		t.Helper()
		for range n {
			err := by.state.Update(t.Context(), func(tx *state.Tx) error {
				return halves.Put(tx, &half{Meta: resource.Meta{ID: tx.NewID(), Name: fmt.Sprint(made)}, Count: made})
			})
			if err != nil {
				t.Fatalf("write %d: %v", made, err)
			}
			made++
		}
	}
	shown := func() {
		t.Helper()
		for id, c := range all {
			if err := c.state.Confirm(t.Context()); err != nil {
				t.Fatalf("candidate %d: %v", id, err)
			}
			if got := halves.Len(c.state.Latest()); got != made {
				t.Errorf("candidate %d shows %d, and %d were acknowledged", id, got, made)
			}
		}
	}
	first := leaderOf(t, all, 0)
	write(all[first], 20)
	for id, c := range all {
		if id == first {
			continue
		}
		err := c.state.Update(t.Context(), func(tx *state.Tx) error { return nil })
		if f := fault.From(err); f == nil || f.Code != "not-leading" {
			t.Errorf("candidate %d, which follows, answers %v", id, err)
		}
	}
	shown()

	if err := all[first].engine.HandOver(t.Context(), all[first].state, nil); err != nil {
		t.Fatalf("hand over: %v", err)
	}
	second := leaderOf(t, all, first)
	write(all[second], 20)
	shown()

	// In order it ends at once, and the next need not wait for its lease.
	all[second].end(t)
	delete(all, second)
	third := leaderOf(t, all, 0)
	write(all[third], 20)
	shown()

	// Cut off: it hands over to nobody, and its lease has to run out.
	lost := all[third]
	delete(all, third)
	lost.engine.Abort()
	ended.Go(func() { lost.end(t) })
	last := leaderOf(t, all, 0)
	write(all[last], 20)
	shown()
}

// Who may not lead any more, and waits for its turn as one that did not hear of it, leaves it to the next, and does not stand again.
func TestADismissedCandidateDoesNotLead(t *testing.T) {
	endpoint := serveElsewhere(t, 1<<16, 128<<20)
	all := map[uint64]*candidate{}
	for id := range uint64(3) { // so that they would lead in this order
		all[id+1] = stand(t, endpoint, id+1)
		for end := time.Now().Add(30 * time.Second); all[id+1].engine.Candidates(t.Context()) != int64(id+1); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it does not stand")
			}
		}
	}
	t.Cleanup(func() {
		for _, c := range all {
			c.end(t)
		}
	})
	leaderOf(t, all, 0)
	all[2].dismissed.Store(true)
	all[1].end(t)
	delete(all, 1)
	if got := leaderOf(t, all, 0); got != 3 {
		t.Errorf("candidate %d leads", got)
	}
	for end := time.Now().Add(30 * time.Second); all[3].engine.Candidates(t.Context()) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it stands again")
		}
	}
	err := all[3].state.Update(t.Context(), func(tx *state.Tx) error {
		return halves.Put(tx, &half{Meta: resource.Meta{ID: tx.NewID(), Name: "x"}})
	})
	if err != nil || all[2].state.Leads() {
		t.Errorf("who leads cannot write: %v", err)
	}
}
