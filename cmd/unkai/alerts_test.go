package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/driver/webhook"
)

func TestAlertsAreToldToWhoWasNamed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cloud")
	r := start(t, dir, "--listen", "127.0.0.1:0")
	const secret = "the-secret-that-signs"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var heard []string
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, string(body))
		signature := q.Header.Get(webhook.SignatureHeader)
		if signature != webhook.Sign(secret, time.Now(), body) && signature != webhook.Sign(secret, time.Now().Add(-time.Second), body) {
			t.Errorf("it is signed %s", signature)
		}
	}))
	defer hook.Close()
	run := func(args ...string) string {
		t.Helper()
		out, err := unkai(t, append(append([]string{}, args...), "--data", dir)...).CombinedOutput()
		if err != nil {
			t.Fatalf("unkai %v: %v, %s", args, err, out)
		}
		return string(out)
	}
	if out := run("alert", "add", "webhook", "ops", hook.URL+"/a-key-in-it", "--secret-file", file); strings.Contains(out, secret) {
		t.Errorf("adding says %s", out)
	}
	if out := run("alert", "add", "webhook", "made", "http://127.0.0.1:1/x"); !strings.Contains(out, "not shown again") {
		t.Errorf("adding says %s", out)
	}
	run("alert", "add", "mail", "box", "ops@example.org", "--server", "smtp://127.0.0.1:1", "--from", "unkai@example.org")
	refused(t, "Another alert-target", "alert", "add", "webhook", "ops", hook.URL, "--data", dir)
	refused(t, "at least 16", "alert", "add", "webhook", "short", hook.URL, "--secret-file", shortFile(t), "--data", dir)
	run("alert", "test", "ops")
	mu.Lock()
	if len(heard) != 1 || !strings.Contains(heard[0], `"event":"test"`) || !strings.Contains(heard[0], r.url) {
		t.Errorf("heard %v", heard)
	}
	mu.Unlock()
	refused(t, "connection refused", "alert", "test", "made", "--data", dir)
	refused(t, "connection refused", "alert", "test", "box", "--data", dir)
	refused(t, "no alert target", "alert", "test", "nobody", "--data", dir)
	for _, out := range []string{run("alert", "list"), run("alert", "list", "--json")} {
		if strings.Contains(out, secret) || strings.Contains(out, "a-key-in-it") || !strings.Contains(out, "ops@example.org") {
			t.Errorf("the list says %s", out)
		}
	}
	run("alert", "remove", "box")
	if out := run("alert", "list"); !strings.Contains(out, "0 alerts, 2 targets") {
		t.Errorf("the list says %s", out)
	}
	s := secretsOf(t, dir)
	if text := string(r.session(t, "admin", s.Admin).must("GET", "/v1/alerts", "")); !strings.Contains(text, `"items":[]`) {
		t.Errorf("/v1/alerts answers %s", text)
	}
	if text, err := r.session(t, "demo", s.Demo).ask("GET", "/v1/alert-targets", ""); err == nil {
		t.Errorf("targets are shown: %s", text)
	}
	r.stop(t)
}

func shortFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheCertificateThatIsShownIsSeen(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	want := server.Certificate().NotAfter
	seen, err := certificatesAt(t.Context(), []string{"http://127.0.0.1:1", server.URL, ""})
	if err != nil || len(seen) != 1 || !seen[0].Ends.Equal(want) || seen[0].Name != server.URL {
		t.Errorf("seen are %v, want one until %v", seen, want)
	}
}
