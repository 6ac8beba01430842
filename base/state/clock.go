package state

import (
	"log/slog"
	"sync"
	"time"
)

// clock is the state's time. It never goes back, also when the machine's clock does, and it never stands
// still: else whatever was stored under a clock that was ahead would have its deadline years away. While
// it is ahead of the machine's clock it runs a tenth slower, until that has caught up.
type clock struct {
	wall func() time.Time

	mu    sync.Mutex
	ahead time.Duration // of the wall clock, at the moment since; guarded by mu
	since time.Time     // by the wall clock; guarded by mu
}

// slower is the part of its speed that a clock loses which is ahead.
const slower = 10

// now is the time, not before floor.
func (c *clock) now(floor time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall := c.wall().UTC().Round(0) // as it will be read from the engine
	ahead := c.ahead
	if passed := wall.Sub(c.since); passed > 0 {
		ahead = max(0, ahead-passed/slower)
	}
	if behind := floor.Sub(wall.Add(ahead)); behind > 0 {
		if behind > time.Minute {
			slog.Error("the clock of this machine is behind the newest change that is stored; the cloud's own goes on from there",
				"behind", behind.Round(time.Second), "newest", floor)
		}
		ahead += behind
		c.ahead, c.since = ahead, wall
	}
	return wall.Add(ahead)
}
