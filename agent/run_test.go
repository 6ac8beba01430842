package agent

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
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

// burst is a controller that tells everything at once.
type burst struct {
	deliveries chan *host.Delivery
	closed     chan struct{}
}

func (b *burst) Connect(context.Context) (Session, error)          { return b, nil }
func (b *burst) Observe(context.Context, []host.Observation) error { return nil }
func (b *burst) Close() error                                      { close(b.closed); return nil }

func (b *burst) Next(ctx context.Context) (*host.Delivery, error) {
	select {
	case d := <-b.deliveries:
		return d, nil
	case <-b.closed:
		return nil, errors.New("closed")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// slowStore takes its time, as a disk does.
type slowStore struct {
	kept  map[host.Key]string
	saves int
}

func (s *slowStore) Load() (Kept, error) { return Kept{}, nil }

func (s *slowStore) Save(c Change) error {
	time.Sleep(10 * time.Millisecond)
	s.saves++
	for _, i := range c.Items {
		if i.Body == nil {
			delete(s.kept, i.Key)
		} else {
			s.kept[i.Key] = string(i.Body)
		}
	}
	return nil
}

// In real time: a bubble's clock stands still while a worker waits for the lock under which the store takes its time.
func TestManyDeliveriesAreKeptTogether(t *testing.T) {
	store := &slowStore{kept: map[host.Key]string{}}
	m := &machine{has: map[resource.ID]string{}}
	a, err := New(store, time.Now(), m.handler("net"), m.guests())
	if err != nil {
		t.Fatal(err)
	}
	link := &burst{make(chan *host.Delivery, 2000), make(chan struct{})}
	link.deliveries <- &host.Delivery{Full: true, Mark: host.Mark{Revision: 1}, Items: []host.Item{item("guest", guestID, "one")}}
	for n := range 1000 {
		d := &host.Delivery{Mark: host.Mark{Revision: int64(2 + n)}, Items: []host.Item{item("guest", guestID, []string{"", "again"}[n%2])}}
		if n == 500 {
			d.Items = append(d.Items, item("net", netID, "net"))
		}
		link.deliveries <- d
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.Run(ctx, link, 1) })
	for a.Mark().Revision < 1001 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if store.saves > 100 { // a handful, on a machine that has a moment for its reader
		t.Errorf("1,000 deliveries took %d writes", store.saves)
	}
	want := map[host.Key]string{{Kind: "guest", ID: guestID}: `"again"`, {Kind: "net", ID: netID}: `"net"`}
	if !maps.Equal(store.kept, want) {
		t.Errorf("kept is %v", store.kept)
	}
}
