package console

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
)

func TestATokenThatThereIsNotOpensNothing(t *testing.T) {
	st, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h := New(Options{Compute: compute.New(st, compute.Config{})})
	for _, token := range []string{"", "x", strings.Repeat("A", 32)} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/websockify?token="+token, nil))
		if w.Code != http.StatusUnauthorized || w.Body.Len() == 0 {
			t.Errorf("token %q: %d %q", token, w.Code, w.Body)
		}
		w = httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/websockify?token="+token, nil)
		r.Header.Set("Upgrade", "websocket")
		h.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized || w.Body.Len() != 0 || w.Header().Get("Connection") != "close" {
			t.Errorf("token %q, to be upgraded: %d %q %v", token, w.Code, w.Body, w.Header())
		}
	}
}

func TestJoinEndsWithEitherSide(t *testing.T) {
	for _, first := range []int{0, 1} {
		a, client := net.Pipe()
		b, guest := net.Pipe()
		ended := make(chan struct{})
		go func() { join(a, b, func() {}); close(ended) }()
		go guest.Write([]byte("hello"))
		got := make([]byte, 5)
		if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello" {
			t.Fatalf("%q, %v", got, err)
		}
		[]net.Conn{client, guest}[first].Close()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("the other side was kept open")
		}
	}
}
