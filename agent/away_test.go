package agent

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

func TestThatAStorageIsAwayIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		controller := &diary{end: make(chan struct{})}
		var mu sync.Mutex
		var is string
		be := func(why string) {
			mu.Lock()
			defer mu.Unlock()
			is = why
		}
		s := &Storage{Host: resource.ID{1}, Look: func(ctx context.Context) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			return is, ctx.Err()
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.Run(ctx, controller, 1) })
		wg.Go(func() { s.Run(ctx, a) })
		expect := func(when string, pass time.Duration, want ...string) {
			t.Helper()
			time.Sleep(pass)
			synctest.Wait()
			got := controller.since()
			if len(got) != len(want) || len(got) == 1 && got[0] != host.StorageKind+" "+want[0] {
				t.Errorf("%s the controller is told %q", when, got)
			}
		}
		time.Sleep(2*lookAtStorage + time.Second)
		synctest.Wait()
		controller.since() // whatever comes first
		expect("when nothing changes", lookAtStorage)
		be("it does\nnot answer")
		expect("when it hangs", lookAtStorage, `"it does not answer"`)
		expect("while it hangs", 2*lookAtStorage)
		controller.end <- struct{}{}
		expect("in a new session", lookAtStorage, `"it does not answer"`)
		be("")
		expect("when it is back", lookAtStorage, `""`)
		expect("after a while", resyncEvery, `""`)
		cancel()
		wg.Wait()
		if text := onALine(strings.Repeat("ä", 150) + "\xff"); len(text) > 200 || strings.Contains(text, "�") {
			t.Errorf("a long one becomes %q", text)
		}
	})
}
