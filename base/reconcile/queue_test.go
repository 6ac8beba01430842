package reconcile

import (
	"testing"
	"time"
)

var t0 = time.Unix(1_000_000, 0)

func take(t *testing.T, q *Queue[string], at time.Duration, want string) {
	t.Helper()
	key, ok := q.Take(t0.Add(at))
	if !ok && want != "" || ok && key != want {
		t.Fatalf("at %v the queue gives %q, %v; want %q", at, key, ok, want)
	}
}

func TestQueueGivesTheOldestFirst(t *testing.T) {
	var q Queue[string]
	q.Add("b", t0.Add(2*time.Second))
	q.Add("a", t0.Add(time.Second))
	q.Add("c", t0.Add(time.Second))
	take(t, &q, 0, "")
	take(t, &q, 3*time.Second, "a")
	take(t, &q, 3*time.Second, "c")
	take(t, &q, 3*time.Second, "b")
	take(t, &q, 3*time.Second, "")
}

func TestQueueNeverGivesAKeyTwiceAtOnce(t *testing.T) {
	var q Queue[string]
	q.Add("a", t0)
	take(t, &q, 0, "a")
	q.Add("a", t0)
	take(t, &q, time.Hour, "")
	q.Done("a", t0, 0, false)
	take(t, &q, 0, "a")
	q.Done("a", t0, 0, false)
	take(t, &q, time.Hour, "")
	if q.Len() != 0 {
		t.Errorf("%d keys are left", q.Len())
	}
}

func TestQueueDone(t *testing.T) {
	for name, c := range map[string]struct {
		again  time.Duration // Add while it is out; negative: none
		after  time.Duration
		failed bool
		due    time.Duration // negative: gone
	}{
		"nothing more":                  {-1, 0, false, -1},
		"later":                         {-1, 5 * time.Second, false, 5 * time.Second},
		"changed meanwhile":             {0, 0, false, 0},
		"changed, and later":            {0, 5 * time.Second, false, 0},
		"to change later, and sooner":   {9 * time.Second, 5 * time.Second, false, 5 * time.Second},
		"failed":                        {-1, 0, true, 200 * time.Millisecond},
		"failed, though changed":        {0, 0, true, 200 * time.Millisecond},
		"failed, whatever it asked for": {-1, time.Hour, true, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			var q Queue[string]
			q.Add("a", t0)
			take(t, &q, 0, "a")
			if c.again >= 0 {
				q.Add("a", t0.Add(c.again))
			}
			q.Done("a", t0, c.after, c.failed)
			if c.due < 0 {
				take(t, &q, 24*time.Hour, "")
				return
			}
			if at, ok := q.Next(); !ok || !at.Equal(t0.Add(c.due)) {
				t.Errorf("due at %v, %v; want %v", at.Sub(t0), ok, c.due)
			}
		})
	}
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	last := time.Duration(0)
	for n := 1; n < 50; n++ {
		d := Backoff(n)
		if d < last || d > 30*time.Second {
			t.Errorf("after %d failures: %v, before that %v", n, d, last)
		}
		last = d
	}
}
