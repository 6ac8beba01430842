package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/relay"
	"github.com/unkai-cloud/unkai/base/freeport"
)

// What answers ends first, and what it counts on goes on until then.
func TestWhatAnswersEndsFirst(t *testing.T) {
	told, stop := context.WithCancelCause(t.Context())
	p := newParts(told, stop)
	asks, answers := make(chan struct{}), make(chan struct{})
	p.do("work", func(ctx context.Context) error {
		for {
			select {
			case <-asks:
				answers <- struct{}{}
			case <-ctx.Done():
				return nil
			}
		}
	})
	p.answer("serve", func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(2 * tellFrom) // as the last request does
		select {
		case asks <- struct{}{}:
			<-answers
			return nil
		case <-time.After(5 * time.Second):
			t.Error("it has ended on which a request counts")
			return nil
		}
	})
	why := errors.New("enough")
	p.do("fail", func(context.Context) error { return why })
	<-told.Done()
	p.end()
	if err := context.Cause(told); !errors.Is(err, why) {
		t.Errorf("it ends for %v", err)
	}
	took, slow := p.took()
	if took < 2*tellFrom || !strings.HasPrefix(slow, "serve 1") || strings.Contains(slow, "work") {
		t.Errorf("it says that it took %v, for %q", took, slow)
	}
}

// A controller that follows and is told to end answers who asks just then as ever: at once, and with what was acknowledged.
func TestAControllerThatEndsAnswersReads(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts two controllers")
	}
	t.Parallel()
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	onEtcd(t, "one", one, "--cluster", "--peers", freeport.Address(t))
	token, err := unkai(t, "controller", "token", "--for", "controller", "--data", one).Output()
	if err != nil {
		t.Fatal(err)
	}
	ends := onEtcd(t, "two", two, "--peers", freeport.Address(t), "--join", statusOf(t, one).At.HostsURL, "--token", strings.TrimSpace(string(token)))
	writes := (&running{url: statusOf(t, one).At.URL}).session(t, "admin", secretsOf(t, one).Admin)
	reads := statusOf(t, two).At.URL
	ctx, over := context.WithCancel(t.Context())
	defer over()
	ask := func(method, url, body string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Auth-Token", writes.token)
		return http.DefaultClient.Do(req)
	}
	var answered, wrong atomic.Int64
	var clients sync.WaitGroup
	gone := make(chan struct{})
	for client := range 16 {
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("%d-%d", client, n)
				res, err := ask("POST", writes.url+"/compute/v2.1/os-keypairs", `{"keypair":{"name":"`+name+`"}}`)
				if err != nil || res.Body.Close() != nil || res.StatusCode != http.StatusOK {
					return // most of two are two
				}
				began := time.Now()
				if res, err = ask("GET", reads+"/compute/v2.1/os-keypairs/"+name, ""); err != nil {
					return // it is gone
				}
				res.Body.Close()
				answered.Add(1)
				if took := time.Since(began); res.StatusCode != http.StatusOK || res.Header.Get(relay.StaleHeader) != "" || took > time.Second {
					wrong.Add(1)
					t.Logf("a read is answered with %s after %v, and may be old: %q", res.Status, took, res.Header.Get(relay.StaleHeader))
				}
			}
		})
	}
	for end := time.Now().Add(20 * time.Second); answered.Load() < 50 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	began := time.Now()
	if err := ends.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	go func() {
		ends.Wait() // how it ended is not the question
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
	}
	took := time.Since(began)
	over()
	clients.Wait()
	if wrong.Load() > 0 || took > 2*time.Second {
		t.Errorf("of %d reads %d are not answered as ever; it takes %v to end", answered.Load(), wrong.Load(), took)
	}
}
