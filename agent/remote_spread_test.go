package agent

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// TestHostsAreSpread: each host has its own order of the controllers, is with its first, goes on to the next when that does not
// answer, and comes back after a while.
func TestHostsAreSpread(t *testing.T) {
	all := []string{"https://1", "https://2", "https://3"}
	first, second := map[string]int{}, map[string]int{}
	for n := range 300 {
		id := &Identity{Host: resource.NewID(time.Unix(int64(n), 0), nil), Controllers: all, dir: t.TempDir()}
		r := &Remote{Identity: id, url: "https://join"}
		now := time.Unix(1e9, 0)
		if r.away(r.at(), now) == 0 {
			t.Fatal("it stays with the controller that it joined through")
		}
		r.goHome(now)
		home := r.at()
		first[home]++
		if r.away(r.at(), now) != 0 {
			t.Fatal("at home it is away")
		}
		r.elsewhere("https://other") // what another request has found out already
		if r.at() != home {
			t.Fatal("it left without a reason")
		}
		r.elsewhere(home)
		second[home+r.at()]++
		next := r.at()
		r.goHome(now.Add(time.Minute))
		if r.at() != next || next == home {
			t.Fatalf("at %s after %s did not answer", r.at(), home)
		}
		if wait := r.away(next, now.Add(time.Minute)); wait < 4*time.Minute || wait > 10*time.Minute {
			t.Fatalf("it stays away for %v", wait)
		}
		r.elsewhere(next)
		r.elsewhere(r.at())
		if r.at() != home {
			t.Fatal("it does not ask all of them in turn")
		}
	}
	for _, url := range all {
		if first[url] < 70 {
			t.Errorf("the hosts are with %v", first)
		}
		for _, other := range all {
			if n := second[url+other]; other != url && n < first[url]/3 {
				t.Errorf("those of one that is lost go to %v", fmt.Sprint(second))
			}
		}
	}
}

// TestWhoCannotAnswer: what one controller does not answer in time, or cannot, is asked of another the next time, whatever it is. What
// the host itself gives up says nothing about a controller.
func TestWhoCannotAnswer(t *testing.T) {
	hangs := make(chan struct{})
	deaf := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer deaf.Close()
	defer close(hangs)
	alone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	defer alone.Close()
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) }))
	defer refuses.Close()
	for name, c := range map[string]struct {
		url     string
		context func(context.Context) (context.Context, context.CancelFunc)
		stays   bool
	}{
		"one that hangs": {deaf.URL, func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 20*time.Millisecond)
		}, false},
		"one that hangs, given up": {deaf.URL, func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx, cancel
		}, true},
		"one that is alone":          {alone.URL, context.WithCancel, false},
		"one that refuses what asks": {refuses.URL, context.WithCancel, true},
	} {
		r := &Remote{Identity: &Identity{Controllers: []string{c.url, "https://other"}}, url: c.url, client: http.DefaultClient}
		ctx, cancel := c.context(t.Context())
		if _, err := r.Lease(ctx, host.LeaseRequest{}); err == nil {
			t.Errorf("%s grants a lease", name)
		}
		cancel()
		if stays := r.at() == c.url; stays != c.stays {
			t.Errorf("%s: the next request goes to %s", name, r.at())
		}
	}
}
