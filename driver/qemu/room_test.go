package qemu

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// What hangs is told as it last was, and is asked once.
func TestGauge(t *testing.T) {
	t.Parallel()
	g := &gauge{patience: time.Minute}
	if n, err := g.read(t.Context(), func() (int, error) { return 7, nil }); n != 7 || err != nil {
		t.Fatalf("it is %d, %v", n, err)
	}
	broken := errors.New("broken")
	if n, err := g.read(t.Context(), func() (int, error) { return 0, broken }); n != 7 || err != broken {
		t.Fatalf("broken it is %d, %v", n, err)
	}
	var asked atomic.Int32
	release := make(chan struct{})
	g.patience = time.Millisecond
	for range 3 {
		if n, err := g.read(t.Context(), func() (int, error) { asked.Add(1); <-release; return 9, nil }); n != 7 || err != errHangs {
			t.Fatalf("while it hangs it is %d, %v", n, err)
		}
	}
	close(release)
	eventually(t, "the new reading", func() bool {
		n, err := g.read(t.Context(), func() (int, error) { return 9, nil })
		return n == 9 && err == nil
	})
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times while it hung", n)
	}
}
