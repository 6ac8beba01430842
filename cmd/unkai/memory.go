package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// headroomMiB is how far a large heap may grow between two collections. Go's own rule lets it double, so that
// a cloud of 100,000 servers would hold 700 MiB of nothing; collecting more often costs a few
// per cent of a processor then. A small heap is left to Go's rule.
const headroomMiB = 384

// boundMemory keeps the heap from growing by more than the headroom, until ctx ends. Whoever sets GOGC
// has decided otherwise.
func boundMemory(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	// What a start has read and thrown away would else be held for minutes.
	debug.FreeOSMemory()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	percent := 100
	for {
		metrics.Read(live)
		if want := growth(live[0].Value.Uint64()); want != percent {
			percent = want
			debug.SetGCPercent(percent)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// growth is GOGC's per cent for so many live bytes.
func growth(live uint64) int {
	return int(min(100, max(25, headroomMiB<<20*100/max(live, 1))))
}
