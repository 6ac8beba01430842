package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets this binary be unkai, for tests of the process as a whole.
func TestMain(m *testing.M) {
	if os.Getenv("UNKAI_TEST_MAIN") != "" {
		main()
		return
	}
	if os.Getenv(executions) != "" {
		executeAgain()
	}
	if dir := os.Getenv(tried); dir != "" {
		beTried(dir)
	}
	os.Exit(m.Run())
}

func unkai(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append(os.Environ(), "UNKAI_TEST_MAIN=1")
	return c
}

// refused runs unkai and wants it to fail with these words.
func refused(t *testing.T, words string, args ...string) {
	t.Helper()
	out, err := unkai(t, args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), words) || bytes.Contains(out, []byte("panic")) {
		t.Errorf("unkai %v answers %v: %s", args, err, out)
	}
}

// A running cloud of simulated hosts.
type running struct {
	cmd *exec.Cmd
	url string
	err bytes.Buffer
}

func start(t *testing.T, dir string, args ...string) *running {
	t.Helper()
	r := &running{cmd: unkai(t, append([]string{"up", "--data", dir, "--sim", "2"}, args...)...)}
	r.cmd.Stderr = &r.err
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	var ok bool
	if r.url, ok = strings.CutPrefix(strings.TrimSpace(line), "ready "); err != nil || !ok {
		t.Fatalf("its first line is %q, %v\n%s", line, err, r.err.String())
	}
	return r
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM it ends with %v\n%s", err, r.err.String())
	}
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// api asks as a user in the project of the same name, and gives the answer's body.
func (r *running) api(t *testing.T, user, password, path string) map[string]any {
	t.Helper()
	body := `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"` + user + `","domain":{"id":"default"},"password":"` + password +
		`"}}},"scope":{"project":{"name":"` + user + `","domain":{"id":"default"}}}}}`
	res, err := http.Post(r.url+"/identity/v3/auth/tokens", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 {
		t.Fatalf("%s is not let in: %s", user, res.Status)
	}
	req, err := http.NewRequest("GET", r.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", res.Header.Get("X-Subject-Token"))
	if res, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != 200 {
		t.Fatalf("%s answers %s, %v", path, res.Status, err)
	}
	return answer
}

func TestUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cloud")
	r := start(t, dir, "--listen", "127.0.0.1:0")
	if !strings.HasPrefix(r.url, "http://127.0.0.1:") {
		t.Errorf("it serves at %s", r.url)
	}
	for _, name := range []string{"secrets.json", "clouds.yaml", "openrc", "aws.env", "control.sock", "lock"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	var s secrets
	if err := json.Unmarshal([]byte(read(t, dir, "secrets.json")), &s); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{s.Admin, s.Demo, s.Alt, s.SecretKey} {
		if len(p) < 24 || strings.Count(read(t, dir, "secrets.json"), p) != 1 {
			t.Errorf("%q is a weak secret, or stands twice", p)
		}
		if strings.Contains(r.err.String(), p) {
			t.Error("a secret is in the log")
		}
	}
	clouds := read(t, dir, "clouds.yaml")
	for _, want := range []string{"  unkai:\n", "  demo:\n", "  alt:\n", "auth_url: " + r.url + "/identity/v3", s.Admin, s.Demo, s.Alt} {
		if !strings.Contains(clouds, want) {
			t.Errorf("clouds.yaml does not say %q", want)
		}
	}
	for _, want := range []string{"OS_AUTH_URL=" + r.url + "/identity/v3", "OS_PASSWORD=" + s.Admin, "OS_USERNAME=admin"} {
		if !strings.Contains(read(t, dir, "openrc"), want) {
			t.Errorf("openrc does not say %q", want)
		}
	}
	for _, want := range []string{"AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.SecretKey, "AWS_ENDPOINT_URL_EC2=" + r.url + "/ec2"} {
		if !strings.Contains(read(t, dir, "aws.env"), want) {
			t.Errorf("aws.env does not say %q", want)
		}
	}
	for path, want := range map[string]struct {
		list string
		n    int
	}{
		"/compute/v2.1/flavors":                       {"flavors", 6},
		"/image/v2/images":                            {"images", 2},
		"/network/v2.0/networks?router:external=true": {"networks", 1},
		"/network/v2.0/networks?name=private":         {"networks", 1},
	} {
		for user, password := range map[string]string{"demo": s.Demo, "alt": s.Alt} {
			if got, _ := r.api(t, user, password, path)[want.list].([]any); len(got) != want.n {
				t.Errorf("%s has %d of %s", user, len(got), path)
			}
		}
	}
	projects, _ := r.api(t, "admin", s.Admin, "/identity/v3/projects")["projects"].([]any)
	if len(projects) < 3 {
		t.Errorf("there are %d projects", len(projects))
	}

	refused(t, "is in use by process", "up", "--data", dir, "--sim", "1", "--listen", "127.0.0.1:0")
	refused(t, "is in use by process", "down", "--data", dir)
	refused(t, "address already in use", "up", "--data", t.TempDir(), "--sim", "1", "--listen", strings.TrimPrefix(r.url, "http://"))
	if out, err := unkai(t, "status", "--data", dir).CombinedOutput(); err != nil || !strings.Contains(string(out), "sim-0002") {
		t.Errorf("status: %v, %s", err, out)
	}
	if out, err := unkai(t, "audit", "--data", dir).CombinedOutput(); err != nil || !strings.Contains(string(out), "clean") {
		t.Errorf("audit: %v, %s", err, out)
	}
	r.stop(t)

	refused(t, "is it running?", "status", "--data", dir)
	again := start(t, dir, "--listen", "127.0.0.1:0")
	again.api(t, "demo", s.Demo, "/compute/v2.1/servers") // the same accounts
	again.stop(t)
	if out, err := unkai(t, "down", "--data", dir, "--purge").CombinedOutput(); err != nil {
		t.Errorf("down: %v, %s", err, out)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory is left")
	}
}

func TestUpBeyondLoopback(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, "--listen", "0.0.0.0:0")
	pool := x509.NewCertPool()
	if !strings.HasPrefix(r.url, "https://") || !pool.AppendCertsFromPEM([]byte(read(t, dir, "authority.pem"))) {
		t.Fatalf("it serves at %s", r.url)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	res, err := client.Get(r.url + "/identity/v3")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /identity/v3 HTTP/1.0\r\n\r\n")
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if text, _ := io.ReadAll(conn); bytes.Contains(text, []byte("200 OK")) {
		t.Errorf("plain HTTP is answered %q", text)
	}
	if !strings.Contains(read(t, dir, "clouds.yaml"), "cacert: "+filepath.Join(dir, "authority.pem")) {
		t.Error("clouds.yaml does not name the authority")
	}
	r.stop(t)
	r = start(t, dir, "--listen", "0.0.0.0:0", "--insecure-plain-http")
	r.stop(t) // what it says on its other stream is whole only now
	if !strings.HasPrefix(r.url, "http://") || !strings.Contains(r.err.String(), "unprotected") {
		t.Errorf("it serves at %s, and says %s", r.url, r.err.String())
	}
}

func TestWhatIsRefused(t *testing.T) {
	dir := t.TempDir()
	for words, args := range map[string][]string{
		"unknown flag --nonsense":      {"up", "--data", dir, "--nonsense"},
		"unexpected argument nonsense": {"nonsense"},
		"want an IPv4 network":         {"up", "--data", dir, "--sim", "1", "--pool", "10.0.0.1/24"},
		"missing port":                 {"up", "--data", dir, "--sim", "1", "--listen", "127.0.0.1"},
		"the certificate for --listen": {"up", "--data", dir, "--sim", "1", "--listen", "127.0.0.1:0", "--tls-cert", os.Args[0], "--tls-key", os.Args[0]},
		"is no data directory":         {"down", "--data", t.TempDir(), "--purge"},
		"nothing to take down":         {"down", "--data", filepath.Join(dir, "nowhere")},
		"is it running?":               {"controller", "token", "--data", filepath.Join(dir, "nowhere")},
		"want an address such as":      {"agent", "--data", dir, "--join", "controller:8702"},
	} {
		if words == "want an address such as" && os.Geteuid() != 0 {
			continue
		}
		refused(t, words, args...)
	}
}
