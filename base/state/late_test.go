package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/unkai-cloud/unkai/base/resource"
)

// slow is an engine that shows nothing of its history until it may.
type slow struct {
	*Memory
	may chan struct{}
}

func (e slow) Watch(ctx context.Context, since int64, each func(Batch) error) error {
	select {
	case <-e.may:
		return e.Memory.Watch(ctx, since, each)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// What was before a start comes later, in front of what has happened meanwhile, and nothing is missing or there twice.
func TestHistoryComesLate(t *testing.T) {
	for _, keep := range []int{1 << 16, 300, 40} {
		t.Run(fmt.Sprint("of ", keep), func(t *testing.T) {
			memory := NewMemory(0)
			live, err := Open(t.Context(), memory, Options{History: keep})
			if err != nil {
				t.Fatal(err)
			}
			var ids []resource.ID
			change := func(s *State, n int) {
				t.Helper()
				if n%7 == 0 {
					ids = append(ids, add(t, s, fmt.Sprint("thing ", n), int64(n)))
					return
				}
				err := s.Update(t.Context(), func(tx *Tx) error {
					for _, id := range ids[max(0, len(ids)-3):] {
						a, err := things.Get(tx, id)
						if err != nil {
							return err
						}
						a.Size += int64(n)
						if err := things.Put(tx, a); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			for n := range 200 {
				change(live, n)
			}
			engine := slow{memory, make(chan struct{})}
			s, err := OpenFollower(t.Context(), engine, Options{History: keep, LateHistory: true})
			if err != nil {
				t.Fatal(err)
			}
			head := s.Latest().Revision()
			soon, cancel := context.WithCancel(t.Context())
			cancel()
			if err := s.Restored(soon, head-1); !errors.Is(err, context.Canceled) {
				t.Fatalf("Restored says %v", err)
			}
			if err := s.Restored(soon, head); err != nil {
				t.Fatalf("what comes from now on is waited for: %v", err)
			}
			if _, err := s.Watch(head - 1).Poll(); !errors.Is(err, ErrCompacted) {
				t.Fatalf("a watch of what was not read yet says %v", err)
			}
			for n := range 20 { // another writes on, and this one takes it in
				change(live, 200+n)
			}
			_ = memory.Watch(t.Context(), head, func(b Batch) error {
				if err := s.takeIn(b); err != nil {
					return err
				}
				if s.live.head.Revision == live.Latest().Revision() {
					return errCaughtUp
				}
				return nil
			})
			close(engine.may)
			if err := s.Restored(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			is, was := all(t, s), all(t, live)
			if len(is) < min(len(was), 20) || keep > 1000 && len(is) != len(was) {
				t.Fatalf("%d changes are there, and %d were", len(is), len(was))
			}
			was = was[max(0, len(was)-len(is)):]
			is = is[len(is)-len(was):]
			for i := range is {
				is[i].bytes, was[i].bytes = 0, 0
				if !reflect.DeepEqual(is[i], was[i]) {
					t.Fatalf("change %d is %+v, and was %+v", i, is[i], was[i])
				}
			}
			bytes := 0
			for _, e := range s.feed.events {
				bytes += e.bytes
			}
			if bytes != s.feed.bytes {
				t.Errorf("%d bytes are said to be %d", bytes, s.feed.bytes)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// unsteady is an engine that can be asked for its history only now and then, and tells some of it before it fails.
type unsteady struct {
	*Memory
	asked *atomic.Int64
}

func (e unsteady) Watch(ctx context.Context, since int64, each func(Batch) error) error {
	if n := e.asked.Add(1); n%3 != 0 {
		told := int64(0)
		lost := errors.New("no leader")
		err := e.Memory.Watch(ctx, since, func(b Batch) error {
			if told++; told > n {
				return lost
			}
			return each(b)
		})
		return cmp.Or(err, lost)
	}
	return e.Memory.Watch(ctx, since, each)
}

// A controller may begin while none leads: its history comes all the same.
func TestHistoryIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := NewMemory(0)
		live := open(t, memory)
		for n := range 100 {
			add(t, live, fmt.Sprint("thing ", n), int64(n))
		}
		engine := unsteady{memory, new(atomic.Int64)}
		s, err := OpenFollower(t.Context(), engine, Options{LateHistory: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Restored(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if is, was := all(t, s), all(t, live); len(is) != len(was) || engine.asked.Load() < 4 {
			t.Errorf("%d changes are there, and %d were; it was asked %d times", len(is), len(was), engine.asked.Load())
		}
	})
}

// A state that is closed does not wait for its history.
func TestLateHistoryEndsWithTheState(t *testing.T) {
	memory := NewMemory(0)
	add(t, open(t, memory), "a", 1)
	s, err := OpenFollower(t.Context(), slow{memory, make(chan struct{})}, Options{LateHistory: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// all gives every change that a state remembers.
func all(t *testing.T, s *State) []Event {
	t.Helper()
	w := s.Watch(s.feed.floor.Revision)
	var events []Event
	for {
		next, err := w.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if len(next) == 0 {
			return events
		}
		events = append(events, next...)
	}
}
