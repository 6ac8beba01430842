package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestABundleHoldsNoSecrets(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cloud")
	r := start(t, dir, "--listen", "127.0.0.1:0")
	own := secretsOf(t, dir)
	demo, admin := r.session(t, "demo", own.Demo), r.session(t, "admin", own.Admin)
	image := furnish(t, demo)
	const planted = "PLANTED-SECRET-"
	hidden := base64.StdEncoding.EncodeToString([]byte(planted + "user-data"))
	demo.must("POST", "/compute/v2.1/servers", fmt.Sprintf(`{"server":{"name":"hides","imageRef":"%s","flavorRef":"1","networks":"none",
		"adminPass":"%spass","user_data":"%s","metadata":{"k":"%smetadata"}}}`, image, planted, hidden, planted), "OpenStack-API-Version", "compute 2.37", "X-OpenStack-Nova-API-Version", "2.37")
	admin.must("POST", "/identity/v3/users", `{"user":{"name":"someone","password":"`+planted+`password"}}`)
	admin.must("POST", "/identity/v3/credentials", `{"credential":{"type":"cert","blob":"`+planted+`blob","project_id":null,"user_id":"`+userID(t, admin)+`"}}`)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(planted+"signs-webhooks"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"alert", "add", "webhook", "ops", "http://127.0.0.1:1/" + planted + "url", "--secret-file", secret, "--data", dir},
		{"alert", "add", "mail", "box", "a@example.org", "--server", "smtp://127.0.0.1:1", "--from", "b@example.org", "--username", "u", "--password-file", secret, "--data", dir},
		{"controller", "token", "--data", dir},
	} {
		if out, err := unkai(t, args...).CombinedOutput(); err != nil {
			t.Fatalf("unkai %v: %v, %s", args, err, out)
		}
	}
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	if out, err := unkai(t, "support", "--data", dir, file).CombinedOutput(); err != nil {
		t.Fatalf("support: %v, %s", err, out)
	}
	refused(t, "exists", "support", "--data", dir, file)
	secrets := []string{planted, hidden, base64.StdEncoding.EncodeToString([]byte(planted))[:16], own.Admin, own.Demo, own.Alt, own.AccessKey, own.SecretKey, demo.token, admin.token}
	parts := bundle(t, file)
	for name, text := range parts {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s holds the secret %s", name, s)
			}
		}
		if strings.Contains(text, "could not be had") {
			t.Errorf("%s: %s", name, text)
		}
	}
	for name, want := range map[string]string{"status.json": `"Revision"`, "audit.json": "[]", "versions.txt": "unkai 0.0.0-dev", "metrics.txt": "unkai_servers", "operations.json": `"create"`,
		"hosts.json": "sim-0001", "alerts.json": `"items":`, "goroutine.txt": "goroutine profile", "heap.pprof": "", "doctor.txt": "qemu"} {
		if text, ok := parts["unkai-support/"+name]; !ok || !strings.Contains(text, want) {
			t.Errorf("%s is there: %v, and says %.300s", name, ok, text)
		}
	}
	r.stop(t)
}

func userID(t *testing.T, admin *session) string {
	t.Helper()
	text := string(admin.must(http.MethodGet, "/identity/v3/users?name=someone", ""))
	_, rest, ok := strings.Cut(text, `"id":"`)
	if !ok {
		_, rest, _ = strings.Cut(text, `"id": "`)
	}
	id, _, _ := strings.Cut(rest, `"`)
	return id
}

// bundle reads a bundle's files.
func bundle(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		parts[h.Name] = string(text)
	}
}
