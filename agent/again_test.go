package agent

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/core/host"
)

// What a host says of its levels is what it is given to say; when that has changed another session tells it.
func TestAHostSaysAnewAtWhichLevelsItWorks(t *testing.T) {
	heard := make(chan release.Span, 4)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var hello host.Hello
		if err := json.NewDecoder(r.Body).Decode(&hello); err != nil {
			t.Error(err)
		}
		heard <- hello.Speaks
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer web.Close()
	narrow := release.Span{Oldest: release.Own.Oldest, Newest: release.Own.Newest - 1}
	says := narrow
	r := &Remote{Identity: &Identity{Controllers: []string{web.URL}}, url: web.URL, client: http.DefaultClient,
		Hello: func(context.Context) (host.Hello, error) { return host.Hello{Speaks: says}, nil }}
	if !r.Says().IsZero() {
		t.Errorf("before the first session it has said %v", r.Says())
	}
	r.Again() // nothing
	for _, want := range []release.Span{narrow, release.Own} {
		s, err := r.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := <-heard; got != want || r.Says() != want {
			t.Errorf("the controller hears %v, and it says that it said %v; want %v", got, r.Says(), want)
		}
		says = release.Span{} // this release's own
		time.AfterFunc(10*time.Millisecond, r.Again)
		if _, err := s.Next(t.Context()); err != io.EOF {
			t.Errorf("its session ends with %v", err)
		}
		s.Close()
	}
}
