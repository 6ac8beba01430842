package state

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/go-cmp/cmp"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A replica is one of several states on the same engine.
type replica struct {
	*State
	stop func() error // ends its following; nil while it does not follow
}

func newReplica(t *testing.T, e Engine) *replica {
	t.Helper()
	s, err := OpenFollower(t.Context(), e, Options{History: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{State: s}
	t.Cleanup(func() { r.rest(t) })
	return r
}

func (r *replica) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Follow(ctx) }()
	r.stop = func() error { cancel(); return <-done }
}

// rest ends its following.
func (r *replica) rest(t *testing.T) {
	t.Helper()
	if r.stop != nil {
		if err := r.stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("following ended with %v", err)
		}
		r.stop = nil
	}
}

func (r *replica) lead(t *testing.T) {
	t.Helper()
	r.rest(t)
	if err := r.Lead(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// scramble makes a transaction of a few random changes.
func scramble(r *rand.Rand, ids *[]resource.ID) func(*Tx) error {
	return func(tx *Tx) error {
		for range 1 + r.IntN(3) {
			if len(*ids) > 0 && r.IntN(2) == 0 {
				n := r.IntN(len(*ids))
				id := (*ids)[n]
				if r.IntN(3) == 0 {
					*ids = slices.Delete(*ids, n, n+1)
					if err := things.Delete(tx, id); err != nil {
						return err
					}
					continue
				}
				if err := things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: id.String()}, Size: r.Int64N(99)}); err != nil {
					return err
				}
				continue
			}
			id := tx.NewID()
			*ids = append(*ids, id)
			if err := things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: id.String()}, Tags: []string{"x"}}); err != nil {
				return err
			}
		}
		return nil
	}
}

// same compares what two states hold, and the history that both know.
func same(t *testing.T, a, b *State) {
	t.Helper()
	x, y := a.Latest(), b.Latest()
	if x.Revision() != y.Revision() || !x.Now().Equal(y.Now()) {
		t.Fatalf("one is at revision %d, %v, the other at %d, %v", x.Revision(), x.Now(), y.Revision(), y.Now())
	}
	if diff := cmp.Diff(slices.Collect(things.All(x)), slices.Collect(things.All(y))); diff != "" {
		t.Fatal(diff)
	}
	if wrong := Verify(y); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	events := func(s *State) (told []string) {
		w := s.Watch(max(a.feed.floor.Revision, b.feed.floor.Revision))
		for {
			some, err := w.Poll()
			if err != nil {
				t.Fatal(err)
			}
			if len(some) == 0 {
				return told
			}
			for _, e := range some {
				told = append(told, fmt.Sprintf("%d %s %s %v %v %+v %+v", e.Revision, e.Time, e.ID, e.Before != nil, e.After != nil, e.Before, e.After))
			}
		}
	}
	if diff := cmp.Diff(events(a), events(b)); diff != "" {
		t.Fatal(diff)
	}
}

// TestFollowersAreTheSame changes a state at random while others follow, and lets them take over from each other.
func TestFollowersAreTheSame(t *testing.T) {
	engine := NewMemory(0)
	random := rand.New(rand.NewPCG(5, 5))
	all := []*replica{newReplica(t, engine), newReplica(t, engine), newReplica(t, engine)}
	var ids []resource.ID
	for turn := range 12 {
		leader := all[turn%len(all)]
		leader.lead(t)
		for _, r := range all {
			if r != leader && r.stop == nil {
				if r.Leads() {
					// It has not heard yet that it is deposed: what it accepts now is refused, and it follows from then on.
					if err := r.Update(t.Context(), scramble(random, new([]resource.ID))); !fault.Is(err, fault.Unavailable) {
						t.Fatalf("an old leader's change: %v", err)
					}
				}
				<-r.Deposed()
				r.follow()
			}
		}
		for range 40 {
			if err := leader.Update(t.Context(), scramble(random, &ids)); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range all {
			if err := r.Confirm(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, leader.State, r.State)
			if r != leader {
				if err := r.Update(t.Context(), scramble(random, new([]resource.ID))); fault.From(err).Code != "not-leading" {
					t.Fatalf("a follower's change: %v", err)
				}
			}
		}
	}
}

// TestFollowerThatWasAway finds that the changes meanwhile are no longer kept.
func TestFollowerThatWasAway(t *testing.T) {
	engine := NewMemory(0)
	leader, other := newReplica(t, engine), newReplica(t, engine)
	leader.lead(t)
	random := rand.New(rand.NewPCG(6, 6))
	var ids []resource.ID
	for range 20 {
		if err := leader.Update(t.Context(), scramble(random, &ids)); err != nil {
			t.Fatal(err)
		}
	}
	watcher := other.Watch(other.Latest().Revision())
	engine.Compact()
	other.follow()
	if err := other.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, leader.State, other.State)
	if _, err := watcher.Poll(); !errors.Is(err, ErrCompacted) {
		t.Errorf("who watched it is told %v", err)
	}
	// And so when it is to lead: it must not begin with less than all.
	other.rest(t)
	if err := leader.Update(t.Context(), scramble(random, &ids)); err != nil {
		t.Fatal(err)
	}
	engine.Compact()
	other.lead(t)
	same(t, leader.State, other.State)
}

// unsure is an engine between which and its state answers get lost.
type unsure struct {
	*Memory
	mu     sync.Mutex
	random *rand.Rand // guarded by mu
}

func (u *unsure) Commit(ctx context.Context, b Batch) error {
	u.mu.Lock()
	n := u.random.IntN(20)
	u.mu.Unlock()
	switch n {
	case 0:
		return ErrUncertain // not stored, and nobody knows
	case 1:
		if err := u.Memory.Commit(ctx, b); err != nil {
			return err
		}
		return ErrUncertain
	}
	return u.Memory.Commit(ctx, b)
}

type registerOp struct {
	write bool
	value int64
}

// TestLinearizable has clients write and read one object through three controllers that take the lead from each other, lose
// answers and do not know that they are deposed. Whatever order the clients saw must be that of one register.
func TestLinearizable(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { linearizable(t, seed) })
	}
}

func linearizable(t *testing.T, seed uint64) {
	engine := &unsure{Memory: NewMemory(0), random: rand.New(rand.NewPCG(seed, 1))}
	var all []*replica
	for range 3 {
		all = append(all, newReplica(t, engine))
		all[len(all)-1].follow()
	}
	id := resource.ID{15: 1}
	var mu sync.Mutex
	var history []porcupine.Operation
	over := make(chan struct{})
	var clients, roles sync.WaitGroup
	began := time.Now()
	for c := range 6 {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(10+c)))
			for n := range 40 {
				op := registerOp{write: random.IntN(2) == 0, value: int64(c*1000 + n + 1)}
				s := all[random.IntN(len(all))]
				call := time.Since(began).Nanoseconds()
				var err error
				got := int64(0)
				if op.write {
					err = s.Update(t.Context(), func(tx *Tx) error {
						return things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: "register"}, Size: op.value})
					})
				} else if err = s.Confirm(t.Context()); err == nil {
					if o, ok := things.Find(s.Latest(), id); ok {
						got = o.Size
					}
				}
				if err != nil && (!op.write || fault.From(err).Code == "not-leading") {
					time.Sleep(100 * time.Microsecond)
					continue // it surely did nothing
				}
				back := time.Since(began).Nanoseconds()
				if err != nil {
					back = 1 << 60 // it may happen at any time, or never
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: len(history), Input: op, Call: call, Output: got, Return: back})
				mu.Unlock()
			}
		})
	}
	roles.Go(func() {
		random := rand.New(rand.NewPCG(seed, 2))
		for {
			r := all[random.IntN(len(all))]
			if r.stop != nil {
				r.rest(t)
			}
			if err := r.Lead(t.Context()); err != nil {
				t.Error(err)
			}
			for _, other := range all {
				if other != r && other.stop == nil && !other.Leads() {
					other.follow()
				}
			}
			select {
			case <-over:
				return
			case <-time.After(time.Duration(random.IntN(2000)) * time.Microsecond):
			}
		}
	})
	// Who was deposed without being told learns of it with its next write, or here: a read must not wait for ever.
	clients.Go(func() {
		for n := 0; n < 400; n++ {
			for _, r := range all {
				if r.Leads() {
					r.Update(t.Context(), func(tx *Tx) error {
						return things.Put(tx, &thing{Meta: resource.Meta{ID: resource.ID{15: 2}, Name: "beat"}, Size: int64(n)})
					})
				}
			}
			time.Sleep(200 * time.Microsecond)
		}
	})
	clients.Wait()
	close(over)
	roles.Wait()
	model := porcupine.Model{
		Init: func() any { return int64(0) },
		Step: func(state, input, output any) (bool, any) {
			if op := input.(registerOp); op.write {
				return true, op.value
			}
			return state.(int64) == output.(int64), state
		},
	}
	if len(history) < 60 {
		t.Fatalf("only %d operations", len(history))
	}
	if got := porcupine.CheckOperationsTimeout(model, history, 20*time.Second); got != porcupine.Ok {
		t.Errorf("%d operations: %v", len(history), got)
	}
}
