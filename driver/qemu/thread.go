package qemu

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onSpareThread runs f on a thread of its own, which ends with it, so that f may
// change what cannot be changed back: its namespaces, its root, its privileges.
// It is never the program's first thread: that one cannot end, and stands for
// the whole program in /proc.
func onSpareThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onSpareThread(f) // cannot be given this thread again while we hold it
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}
