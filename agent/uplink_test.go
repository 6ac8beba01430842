package agent

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// diary is a controller that wants nothing, and writes down what it is told. Each session ends when end is sent to.
type diary struct {
	end chan struct{}

	mu   sync.Mutex
	told []string // guarded by mu
}

type diarySession struct {
	*diary
	begun bool
}

func (d *diary) Connect(context.Context) (Session, error) { return &diarySession{diary: d}, nil }

func (d *diary) Observe(_ context.Context, seen []host.Observation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range seen {
		d.told = append(d.told, o.Kind+" "+string(o.Seen))
	}
	return nil
}

// since gives what it was told since it was asked last.
func (d *diary) since() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	told := d.told
	d.told = nil
	return told
}

func (s *diarySession) Next(ctx context.Context) (*host.Delivery, error) {
	if !s.begun {
		s.begun = true
		return &host.Delivery{Full: true}, nil
	}
	select {
	case <-s.end:
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *diarySession) Close() error { return nil }

func TestUplinksAreToldWhenTheyChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		controller := &diary{end: make(chan struct{})}
		var mu sync.Mutex
		var physical map[string]bool
		var broken error
		plug := func(err error, names ...string) {
			mu.Lock()
			defer mu.Unlock()
			physical, broken = map[string]bool{}, err
			for _, name := range names {
				physical[name] = true
			}
		}
		u := &Uplinks{Host: resource.ID{1}, Look: func() (map[string]bool, error) {
			mu.Lock()
			defer mu.Unlock()
			return physical, broken
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.Run(ctx, controller, 1) })
		wg.Go(func() { u.Run(ctx, a) })
		expect := func(when string, want ...string) {
			t.Helper()
			time.Sleep(lookAtUplinks + time.Second)
			synctest.Wait()
			got := controller.since()
			if len(got) != len(want) || len(got) == 1 && got[0] != host.UplinkKind+" "+want[0] {
				t.Errorf("%s the controller is told %q", when, got)
			}
		}
		time.Sleep(2*lookAtUplinks + time.Second)
		synctest.Wait()
		controller.since() // whatever comes first
		expect("when nothing changes")
		plug(nil, "public")
		expect("when one is plugged in", `["public"]`)
		plug(errors.New("no memory"))
		expect("when they cannot be looked at")
		plug(nil, "public")
		controller.end <- struct{}{}
		expect("in a new session", `["public"]`)
		plug(nil)
		expect("when it is plugged out", `null`)
		time.Sleep(resyncEvery - lookAtUplinks - time.Second)
		expect("after a while", `null`)
		cancel()
		wg.Wait()
	})
}

func TestACarrierCountsWhenItIsSteady(t *testing.T) {
	now := time.Unix(1e9, 0)
	carriers := map[string]bool{}
	u := &Uplinks{Look: func() (map[string]bool, error) { return carriers, nil }}
	// for a while there is this, and the machine counts as connected with that.
	stays := func(d time.Duration, when, want string) {
		t.Helper()
		for end := now.Add(d); now.Before(end); now = now.Add(lookAtUplinks) {
			got, err := u.Connected(now)
			if err != nil || strings.Join(got, " ") != want {
				t.Fatalf("%s, at %v from its end, it counts as connected with %q: %v", when, end.Sub(now), got, err)
			}
		}
	}
	ends := func(d time.Duration, when, want string) {
		t.Helper()
		for end := now.Add(d); now.Before(end); now = now.Add(lookAtUplinks) {
			if _, err := u.Connected(now); err != nil {
				t.Fatal(err)
			}
		}
		stays(lookAtUplinks, when, want)
	}
	carriers["dmz"], carriers["public"] = true, false
	stays(time.Minute, "from the beginning", "dmz")
	carriers["public"] = true
	stays(steadyUplink, "with a carrier for the first time", "dmz")
	ends(lookAtUplinks, "after it has been there for long", "dmz public")
	carriers["public"] = false
	stays(lostUplink, "as it is lost", "dmz public")
	ends(0, "when it is", "dmz")
	for range 5 {
		carriers["public"] = true
		stays(steadyUplink, "while it comes and goes", "dmz")
		carriers["public"] = false
		stays(lookAtUplinks, "while it comes and goes", "dmz")
	}
	carriers["public"] = true
	stays(steadyUplink, "when it is back", "dmz")
	ends(lookAtUplinks, "when it has been back for long", "dmz public")
	for range 5 {
		carriers["public"] = false
		stays(lookAtUplinks, "away for a moment", "dmz public")
		carriers["public"] = true
		stays(lookAtUplinks, "back at once", "dmz public")
	}
	delete(carriers, "dmz")
	stays(time.Second, "with one plugged out", "public")
	carriers["dmz"] = true
	stays(time.Second, "with it plugged in anew", "dmz public")
}
