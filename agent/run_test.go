package agent

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// noLink is a controller that cannot be reached.
type noLink struct{}

func (noLink) Connect(context.Context) (Session, error)          { return nil, errors.New("nobody there") }
func (noLink) Observe(context.Context, []host.Observation) error { return errors.New("nobody there") }

func TestThingsThatHangDoNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		made := map[string]int{}
		hang := make(chan struct{})
		handler := func(kind string, hangs bool) Handler {
			return Handler{Kind: kind, Present: func(context.Context) ([]resource.ID, error) { return nil, nil },
				Ensure: func(ctx context.Context, _ resource.ID, _ json.RawMessage) (any, time.Duration, error) {
					if hangs {
						<-hang
					}
					mu.Lock()
					made[kind]++
					mu.Unlock()
					return nil, 0, nil
				}}
		}
		a, err := New(nil, time.Now(), handler("filter", false), handler("guest", true))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.Run(ctx, noLink{}, 2) })
		deliver := func(kind string, n int) {
			var d host.Delivery
			for range n {
				d.Items = append(d.Items, item(kind, resource.NewID(time.Now(), nil), "x"))
			}
			if err := a.Deliver(d, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		count := func(kind string) int {
			mu.Lock()
			defer mu.Unlock()
			return made[kind]
		}
		deliver("guest", 20)
		time.Sleep(10 * slowStep)
		for range 3 {
			deliver("filter", 1)
			time.Sleep(time.Second)
		}
		if n := count("filter"); n != 3 {
			t.Errorf("%d of 3 filters were made while guests hang", n)
		}
		close(hang)
		time.Sleep(time.Second)
		if n := count("guest"); n != 20 {
			t.Errorf("%d of 20 guests were made in the end", n)
		}
		cancel()
		wg.Wait()
	})
}
