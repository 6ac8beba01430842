package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcdElsewhere is one that other processes reach.
func etcdElsewhere(t *testing.T) string {
	t.Helper()
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.MaxTxnOps, c.MaxRequestBytes = t.TempDir(), "error", 1<<16, 128<<20
	peers, clients := freePort(t), freePort(t)
	at := func(address string) []url.URL { return []url.URL{{Scheme: "http", Host: address}} }
	c.ListenPeerUrls, c.AdvertisePeerUrls = at(peers), at(peers)
	c.ListenClientUrls, c.AdvertiseClientUrls = at(clients), at(clients)
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return "http://" + clients
}

// onEtcd starts a controller on an etcd elsewhere.
func onEtcd(t *testing.T, name, dir, endpoint string) *exec.Cmd {
	t.Helper()
	c := unkai(t, "controller", "--name", name, "--data", dir, "--etcd", endpoint, "--address", "127.0.0.1", "--listen", "127.0.0.1:0", "--hosts", freePort(t))
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	c.Stderr = &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready ") {
		c.Process.Kill()
		c.Wait()
		t.Fatalf("%s says %q, %v\n%s", name, line, err, log.String())
	}
	return c
}

func statusOf(t *testing.T, dir string) (h health) {
	t.Helper()
	out, err := unkai(t, "status", "--json", "--data", dir).Output()
	if err == nil {
		err = json.Unmarshal(out, &h)
	}
	if err != nil {
		t.Fatalf("status of %s: %v", dir, err)
	}
	return h
}

// Controllers whose state is in an etcd elsewhere are one cloud: one leads, its end costs nothing that was acknowledged, and all have the first
// accounts' secrets.
func TestControllersOnAnEtcdElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	endpoint := etcdElsewhere(t)
	dirs, cmds := map[string]string{}, map[string]*exec.Cmd{}
	for _, name := range []string{"one", "two"} {
		dirs[name] = t.TempDir()
		cmds[name] = onEtcd(t, name, dirs[name], endpoint)
	}
	if !sameFile(t, filepath.Join(dirs["one"], secretsFile), filepath.Join(dirs["two"], secretsFile)) {
		t.Error("the two have different secrets")
	}
	leader := func(but string) string {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			for name := range cmds {
				if name != but && statusOf(t, dirs[name]).Leads {
					return name
				}
			}
		}
		t.Fatal("nobody leads")
		return ""
	}
	first := leader("")
	other := map[string]string{"one": "two", "two": "one"}[first]
	// A follower passes on what only the leader may do.
	token := func(name string) {
		t.Helper()
		if out, err := unkai(t, "controller", "token", "--data", dirs[name]).CombinedOutput(); err != nil {
			t.Fatalf("a token of %s: %v\n%s", name, err, out)
		}
	}
	token(other)
	before := statusOf(t, dirs[other]).Revision

	if err := cmds[first].Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmds[first].Wait()
	delete(cmds, first)
	if got := leader(first); got != other {
		t.Fatalf("%s leads", got)
	}
	token(other)
	if h := statusOf(t, dirs[other]); h.Revision <= before || len(h.Controllers) != 2 {
		t.Errorf("revision %d after %d, controllers %v", h.Revision, before, h.Controllers)
	}
	cmds[first] = onEtcd(t, first, dirs[first], endpoint)
	if a, b := statusOf(t, dirs[first]).Revision, statusOf(t, dirs[other]).Revision; a < before || b < before {
		t.Errorf("revisions %d and %d", a, b)
	}
	if out, err := unkai(t, "audit", "--data", dirs[first]).CombinedOutput(); err != nil {
		t.Errorf("audit: %v\n%s", err, out)
	}
	refused(t, "started alike", "controller", "--data", t.TempDir(), "--etcd", endpoint, "--cluster")
	refused(t, "begin with an empty one", "controller", "--data", owned(t), "--etcd", endpoint, "--name", "three", "--address", "127.0.0.1", "--hosts", "127.0.0.1:9")
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	one, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(one, two)
}

// owned is a data directory that has a state of its own.
func owned(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etcd"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
