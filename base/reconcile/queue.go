// Package reconcile runs level-triggered work: steps that take one thing nearer to what is
// wanted, that may run at any time and any number of times. It knows no domain.
//
// The queue has no goroutine and reads no clock, so that the simulator can drive the same
// work deterministically that Run drives with goroutines.
package reconcile

import (
	"container/heap"
	"time"
)

// A Queue holds keys that are due at some time. A key is in it at most once, and not handed out
// again before Done: so the steps for one key never overlap. It is not safe for
// concurrent use.
type Queue[K comparable] struct {
	items  map[K]*item[K]
	due    dueHeap[K]
	serial int64
}

type item[K comparable] struct {
	key      K
	at       time.Time
	serial   int64
	index    int // in the heap; -1 while it is handed out
	again    bool
	againAt  time.Time
	failures int
}

// Add makes a key due at a time, or earlier if it already was. While it is handed out
// it becomes due again afterwards.
func (q *Queue[K]) Add(key K, at time.Time) {
	if q.items == nil {
		q.items = map[K]*item[K]{}
	}
	it := q.items[key]
	switch {
	case it == nil:
		q.serial++
		it = &item[K]{key: key, at: at, serial: q.serial}
		q.items[key] = it
		heap.Push(&q.due, it)
	case it.index < 0:
		if !it.again || at.Before(it.againAt) {
			it.again, it.againAt = true, at
		}
	case at.Before(it.at):
		it.at = at
		heap.Fix(&q.due, it.index)
	}
}

// Take hands out the key that has been due for longest; false if none is due.
func (q *Queue[K]) Take(now time.Time) (K, bool) {
	if len(q.due) == 0 || q.due[0].at.After(now) {
		var none K
		return none, false
	}
	it := heap.Pop(&q.due).(*item[K])
	it.index = -1
	return it.key, true
}

// Done gives a key back. after > 0: it is due again then; failed: later and later with each
// failure in a row.
func (q *Queue[K]) Done(key K, now time.Time, after time.Duration, failed bool) {
	it := q.items[key]
	if it == nil || it.index >= 0 {
		return
	}
	if failed {
		it.failures++
		after = Backoff(it.failures)
	} else {
		it.failures = 0
	}
	at := now.Add(after)
	switch {
	case failed: // a change does not shorten the wait: it may be what fails
	case it.again && (after <= 0 || it.againAt.Before(at)):
		at = it.againAt
	case after <= 0:
		delete(q.items, key)
		return
	}
	it.at = at
	it.again = false
	q.serial++
	it.serial = q.serial
	heap.Push(&q.due, it)
}

// Next is when the earliest key is due; false if the queue is empty.
func (q *Queue[K]) Next() (time.Time, bool) {
	if len(q.due) == 0 {
		return time.Time{}, false
	}
	return q.due[0].at, true
}

// Len is how many keys are due or handed out.
func (q *Queue[K]) Len() int { return len(q.items) }

// Backoff is how long to wait after so many failures in a row: 0.2 s, doubling, at most 30 s.
func Backoff(failures int) time.Duration {
	d := 200 * time.Millisecond << min(failures-1, 10)
	return min(d, 30*time.Second)
}

type dueHeap[K comparable] []*item[K]

func (h dueHeap[K]) Len() int { return len(h) }
func (h dueHeap[K]) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].serial < h[j].serial
}
func (h dueHeap[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *dueHeap[K]) Push(x any) {
	it := x.(*item[K])
	it.index = len(*h)
	*h = append(*h, it)
}
func (h *dueHeap[K]) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
