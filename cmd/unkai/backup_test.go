package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// A session is one user's, in the project of the same name.
type session struct {
	t     *testing.T
	url   string
	token string
}

func (r *running) session(t *testing.T, user, password string) *session {
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
	return &session{t, r.url, res.Header.Get("X-Subject-Token")}
}

// ask sends one request and gives the answer, which must be a success.
func (s *session) ask(method, path, body string, headers ...string) ([]byte, error) {
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Auth-Token", s.token)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 300 {
		err = fmt.Errorf("%s %s answers %s: %s", method, path, res.Status, text)
	}
	return text, err
}

func (s *session) must(method, path, body string, headers ...string) []byte {
	s.t.Helper()
	text, err := s.ask(method, path, body, headers...)
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// id reads what the API made.
func (s *session) id(text []byte, what string) string {
	s.t.Helper()
	var made map[string]struct{ ID string }
	if err := json.Unmarshal(text, &made); err != nil || made[what].ID == "" {
		var flat struct{ ID string }
		if json.Unmarshal(text, &flat) == nil && flat.ID != "" {
			return flat.ID
		}
		s.t.Fatalf("no %s was made: %s", what, text)
	}
	return made[what].ID
}

func secretsOf(t *testing.T, dir string) (s secrets) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, dir, "secrets.json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// furnish gives a cloud servers, networks and images, and answers an image with bytes.
func furnish(t *testing.T, s *session) (image string) {
	t.Helper()
	var flavors struct{ Flavors []struct{ ID, Name string } }
	if err := json.Unmarshal(s.must("GET", "/compute/v2.1/flavors", ""), &flavors); err != nil || len(flavors.Flavors) == 0 {
		t.Fatalf("there is no flavor: %v", err)
	}
	image = s.id(s.must("POST", "/image/v2/images", `{"name":"mine","disk_format":"raw","container_format":"bare"}`), "image")
	s.must("PUT", "/image/v2/images/"+image+"/file", strings.Repeat("the bytes of an image", 100_000), "Content-Type", "application/octet-stream")
	for n := range 3 {
		network := s.id(s.must("POST", "/network/v2.0/networks", fmt.Sprintf(`{"network":{"name":"n%d"}}`, n)), "network")
		s.must("POST", "/network/v2.0/subnets", fmt.Sprintf(`{"subnet":{"network_id":"%s","ip_version":4,"cidr":"10.9.%d.0/24"}}`, network, n))
		s.must("POST", "/compute/v2.1/servers", fmt.Sprintf(`{"server":{"name":"s%d","imageRef":"%s","flavorRef":"%s","networks":[{"uuid":"%s"}]}}`,
			n, image, flavors.Flavors[0].ID, network))
	}
	return image
}

// load changes the cloud until it is told to stop.
func load(t *testing.T, s *session) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				text, err := s.ask("POST", "/image/v2/images", fmt.Sprintf(`{"name":"l%d-%d","disk_format":"raw","container_format":"bare"}`, worker, n))
				if err != nil {
					t.Error(err)
					return
				}
				var made struct{ ID string }
				if err := json.Unmarshal(text, &made); err != nil {
					t.Error(err)
					return
				}
				if _, err := s.ask("PUT", "/image/v2/images/"+made.ID+"/file", strings.Repeat("x", 300_000), "Content-Type", "application/octet-stream"); err != nil {
					t.Error(err)
				}
				if n%2 == 0 {
					if _, err := s.ask("DELETE", "/image/v2/images/"+made.ID, ""); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

var compared = []string{"servers", "networks", "subnets", "ports", "images", "users", "projects", "flavors", "operations", "security-groups"}

// asOf is all that the API shows of a moment.
func asOf(s *session, revision string) map[string]string {
	s.t.Helper()
	all := map[string]string{}
	for _, kind := range compared {
		for marker := ""; ; {
			var answer struct {
				Items []json.RawMessage
				Next  string
			}
			page := "/v1/" + kind + "?limit=500&all_projects=true" + marker
			if err := json.Unmarshal(s.must("GET", page, "", "Unkai-As-Of", revision), &answer); err != nil {
				s.t.Fatal(err)
			}
			for _, item := range answer.Items {
				all[kind] += string(item) + "\n"
			}
			if answer.Next == "" {
				break
			}
			marker = "&marker=" + answer.Next
		}
	}
	return all
}

func TestBackupAndRestore(t *testing.T) {
	dir, file := filepath.Join(t.TempDir(), "cloud"), filepath.Join(t.TempDir(), "backup")
	r := start(t, dir, "--listen", "127.0.0.1:0")
	secrets := secretsOf(t, dir)
	image := furnish(t, r.session(t, "demo", secrets.Demo))
	stop := load(t, r.session(t, "demo", secrets.Demo))
	time.Sleep(300 * time.Millisecond)
	out, err := unkai(t, "backup", "--data", dir, file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "mode 0600") {
		t.Fatalf("backup: %v, %s", err, out)
	}
	piped := unkai(t, "backup", "--data", dir, "-")
	if text, err := piped.Output(); err != nil || !bytes.HasPrefix(text, []byte("unkai-backup 1\n")) {
		t.Errorf("backup to standard output: %v, %.40q", err, text)
	}
	bucket := s3mem.New()
	if err := bucket.CreateBucket("safe"); err != nil {
		t.Fatal(err)
	}
	service := httptest.NewServer(gofakes3.New(bucket).Server())
	defer service.Close()
	t.Setenv("AWS_ENDPOINT_URL", service.URL)
	t.Setenv("AWS_ACCESS_KEY_ID", "somebody")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	if out, err := unkai(t, "backup", "--data", dir, "s3://safe/clouds/this").CombinedOutput(); err != nil || !strings.Contains(string(out), "s3://safe/clouds/this is the backup of revision") {
		t.Errorf("backup to a bucket: %v, %s", err, out)
	}
	stop()
	refused(t, "is there already", "backup", "--data", dir, "s3://safe/clouds/this")
	refused(t, "no bucket lost", "backup", "--data", dir, "s3://lost/this")
	refused(t, "is there already", "backup", "--data", dir, file)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("its file is %v, %v", info, err)
	}
	var revision string
	if _, err := fmt.Sscanf(string(out[strings.Index(string(out), "revision "):]), "revision %s", &revision); err != nil {
		t.Fatal(err)
	}
	was := asOf(r.session(t, "admin", secrets.Admin), revision)
	refused(t, "in use", "restore", "--data", dir, file)
	r.stop(t)
	refused(t, "is not empty", "restore", "--data", dir, file)
	refused(t, "is it running?", "backup", "--data", dir, file+"2")
	refused(t, "is it running?", "backup", "--data", dir, "s3://safe/later")
	refused(t, "s3://safe/later is not there", "restore", "--data", filepath.Join(t.TempDir(), "none"), "s3://safe/later")
	if out, err := unkai(t, "restore", "--data", filepath.Join(t.TempDir(), "from a bucket"), "s3://safe/clouds/this").CombinedOutput(); err != nil {
		t.Errorf("restore from a bucket: %v, %s", err, out)
	}

	second := filepath.Join(t.TempDir(), "again")
	if out, err := unkai(t, "restore", "--data", second, file).CombinedOutput(); err != nil || !strings.Contains(string(out), "controller restored") {
		t.Fatalf("restore: %v, %s", err, out)
	}
	again := start(t, second, "--listen", "127.0.0.1:0")
	admin := again.session(t, "admin", secrets.Admin)
	is := asOf(admin, revision)
	for _, kind := range compared {
		if was[kind] != is[kind] || was[kind] == "" {
			t.Errorf("of %s there was\n%sand is\n%s", kind, was[kind], is[kind])
		}
	}
	if bytes := admin.must("GET", "/image/v2/images/"+image+"/file", ""); len(bytes) != 2_100_000 {
		t.Errorf("the image has %d bytes", len(bytes))
	}
	if out, err := unkai(t, "controller", "restored", "--data", second).CombinedOutput(); err != nil {
		t.Errorf("controller restored: %v, %s", err, out)
	}
	if out, err := unkai(t, "audit", "--data", second).CombinedOutput(); err != nil {
		t.Errorf("audit: %v, %s", err, out)
	}
	again.session(t, "demo", secrets.Demo).must("POST", "/network/v2.0/networks", `{"network":{"name":"new"}}`)
	again.stop(t)
}

// names lists a directory.
func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestARestoreThatDoesNotEnd(t *testing.T) {
	dir, file := filepath.Join(t.TempDir(), "cloud"), filepath.Join(t.TempDir(), "backup")
	r := start(t, dir, "--listen", "127.0.0.1:0")
	furnish(t, r.session(t, "demo", secretsOf(t, dir).Demo))
	if out, err := unkai(t, "backup", "--data", dir, file).CombinedOutput(); err != nil {
		t.Fatalf("backup: %v, %s", err, out)
	}
	r.stop(t)
	text := []byte(read(t, file))

	second := filepath.Join(t.TempDir(), "again")
	for _, at := range []int{10, len(text) / 20, len(text) - 1_000_000, len(text) - 5} {
		c := unkai(t, "restore", "--data", second, "-")
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(text[:at]); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); !slices.Contains(namesIn(t, filepath.Dir(second)), "again") ||
			!slices.Contains(namesIn(t, second), restoreMark) || !slices.Contains(namesIn(t, second), "etcd"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it has not begun: %v", namesIn(t, second))
			}
		}
		time.Sleep(200 * time.Millisecond)
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		c.Wait()
		if names := namesIn(t, second); !slices.Contains(names, restoreMark) {
			t.Fatalf("killed after %d bytes it leaves %v", at, names)
		}
		refused(t, "restore that did not finish", "up", "--data", second, "--sim", "1", "--listen", "127.0.0.1:0")
	}

	for what, altered := range map[string][]byte{"damaged": text[:len(text)-1000], "altered": bytes.Replace(text, []byte(`"s1"`), []byte(`"s7"`), 1)} {
		path := filepath.Join(t.TempDir(), "damaged")
		if err := os.WriteFile(path, altered, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, what, "restore", "--data", second, path)
		if names := namesIn(t, second); !slices.Equal(names, []string{"lock"}) {
			t.Errorf("a restore that failed leaves %v", names)
		}
	}
	if err := os.Mkdir(filepath.Join(second, "host"), 0o700); err != nil { // this machine as a host stays
		t.Fatal(err)
	}
	if out, err := unkai(t, "restore", "--data", second, file).CombinedOutput(); err != nil {
		t.Fatalf("in the end: %v, %s", err, out)
	}
	start(t, second, "--listen", "127.0.0.1:0").stop(t)
}
