package main

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// A request, the operation that it began and the agent's steps for it reach an OpenTelemetry collector as one trace, whose ID the client was told.
func TestTracesReachACollector(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process")
	}
	var mu sync.Mutex
	var seen []byte
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s, %v", r.URL, err)
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, body...)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	dir := t.TempDir()
	r := start(t, dir, "--listen", "127.0.0.1:0")
	s := r.session(t, "demo", secretsOf(t, dir).Demo)
	furnish(t, s)
	// What a span holds: the trace's ID, then, somewhere, its name.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		mu.Lock()
		all := bytes.Clone(seen)
		mu.Unlock()
		if traceWith(all, "POST", "create server", "guest") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no trace with a request, an operation and an agent's step, in %d bytes; a create is there: %v, a guest: %v", len(all),
				bytes.Contains(all, []byte("create server")), bytes.Contains(all, []byte("guest")))
		}
	}
	r.stop(t)
}

// traceWith reports whether spans with all of these names bear the same request.
func traceWith(all []byte, names ...string) bool {
	requests := map[string]map[string]bool{}
	for _, name := range names {
		// Each span has its name before its attributes, unkai.request the first of them, and its trace's ID before both.
		for rest := all; ; {
			_, after, ok := bytes.Cut(rest, []byte("\x2a"+string(rune(len(name)))+name)) // field 5, the name
			if !ok {
				break
			}
			rest = after
			_, text, ok := bytes.Cut(after, []byte("req-"))
			if !ok || len(text) < 36 {
				break
			}
			id := string(text[:36])
			if raw, err := hex.DecodeString(strings.ReplaceAll(id, "-", "")); err != nil || !bytes.Contains(all, raw) {
				continue
			}
			if requests[id] == nil {
				requests[id] = map[string]bool{}
			}
			requests[id][name] = true
		}
	}
	for _, seen := range requests {
		if len(seen) == len(names) {
			return true
		}
	}
	return false
}
