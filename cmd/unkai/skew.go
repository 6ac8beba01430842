package main

import (
	"log/slog"
	"os"
	"time"
)

// machineClock is read by all that the machine's time matters to.
var machineClock = wallClock()

// wallClock is the clock of the state: the machine's. For tests of controllers that disagree about the time it can be made wrong:
// UNKAI_CLOCK_SKEW=-30s. That can do no more harm than a machine's clock that is wrong, which is what it stands for.
func wallClock() func() time.Time {
	text := os.Getenv("UNKAI_CLOCK_SKEW")
	if text == "" {
		return time.Now
	}
	skew, err := time.ParseDuration(text)
	if err != nil {
		slog.Error("UNKAI_CLOCK_SKEW is no duration; the machine's clock counts", "value", text)
		return time.Now
	}
	slog.Warn("the clock is made wrong, as told", "by", skew)
	return func() time.Time { return time.Now().Add(skew) }
}
