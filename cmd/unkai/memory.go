package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// headroomMiB is how far a large heap may grow between two collections. Go's own rule lets it double, so that
// a cloud of 100,000 servers would hold 700 MiB of nothing; collecting more often costs a few
// per cent of a processor then. A small heap is left to Go's rule.
const headroomMiB = 384

// boundMemory keeps the heap from growing by more than the headroom, from now on. Whoever sets GOGC
// has decided otherwise.
func boundMemory() {
	if os.Getenv("GOGC") == "" {
		afterCollection(100)
	}
}

// afterCollection sets the growth anew after each collection; now it is percent. Something that nobody
// holds is told of one by its finalizer.
func afterCollection(percent int) {
	runtime.SetFinalizer(&struct{ alone [32]byte }{}, func(any) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		want := growth(live[0].Value.Uint64())
		if want < percent || want > percent+5 { // setting it stops everything for a moment
			debug.SetGCPercent(want)
			percent = want
		}
		afterCollection(percent)
	})
}

// growth is GOGC's per cent for so many live bytes.
func growth(live uint64) int {
	return int(min(100, max(25, headroomMiB<<20*100/max(live, 1))))
}
