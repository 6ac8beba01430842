package agent

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// A disk is measured as it is; what is not there, or cannot be looked at, makes none full.
func TestHowMuchOfADiskIsFree(t *testing.T) {
	dir := t.TempDir()
	there, err := FreeAt(dir)
	if err != nil || there < 0 || there > 100 {
		t.Fatalf("of %s %d %% are free, %v", dir, there, err)
	}
	if free, err := FreeAt(filepath.Join(dir, "none")); free != 100 || err != nil {
		t.Errorf("of what is not there %d %% are free, %v", free, err)
	}
	if free, err := FreeAt("/proc"); free != 100 || err != nil {
		t.Errorf("of what has no size %d %% are free, %v", free, err)
	}
	d := &Disks{Own: []string{dir, filepath.Join(dir, "none")}}
	if free, err := d.look(t.Context(), host.Free{}); free.Own > there+1 || free.Shared != 100 || err != nil {
		t.Errorf("it says %+v, %v", free, err)
	}
	d = &Disks{Own: []string{dir + "/none\x00"}, Shared: func(context.Context) (int, error) { return 0, errors.New("it hangs") }}
	if free, err := d.look(t.Context(), host.Free{Own: 20, Shared: 30}); free != (host.Free{Own: 20, Shared: 30}) || err == nil {
		t.Errorf("when nothing can be measured it says %+v, %v", free, err)
	}
}

func TestHowFullDisksAreIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		controller := &diary{end: make(chan struct{})}
		var mu sync.Mutex
		is := 50
		be := func(free int) {
			mu.Lock()
			defer mu.Unlock()
			is = free
		}
		d := &Disks{Host: resource.ID{1}, Shared: func(ctx context.Context) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if is < 0 {
				return 0, errors.New("it hangs")
			}
			return is, ctx.Err()
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.Run(ctx, controller, 1) })
		wg.Go(func() { d.Run(ctx, a) })
		expect := func(when string, pass time.Duration, want ...string) {
			t.Helper()
			time.Sleep(pass)
			synctest.Wait()
			got := controller.since()
			if len(got) != len(want) || len(got) == 1 && got[0] != host.DiskKind+" "+want[0] {
				t.Errorf("%s the controller is told %q", when, got)
			}
		}
		time.Sleep(2*lookAtDisks + time.Second)
		synctest.Wait()
		controller.since() // whatever comes first
		expect("when nothing changes", lookAtDisks)
		be(12)
		expect("when it fills", lookAtDisks, `{"Own":100,"Shared":12}`)
		expect("while it is so", 2*lookAtDisks)
		be(-1)
		expect("when it hangs", 2*lookAtDisks)
		controller.end <- struct{}{}
		expect("in a new session", lookAtDisks, `{"Own":100,"Shared":12}`)
		be(60)
		expect("when it is emptied", lookAtDisks, `{"Own":100,"Shared":60}`)
		expect("after a while", resyncEvery, `{"Own":100,"Shared":60}`)
		cancel()
		wg.Wait()
	})
}
