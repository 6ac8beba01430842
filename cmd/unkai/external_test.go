package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
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

	"github.com/unkai-cloud/unkai/base/freeport"
)

// etcdElsewhere is one that other processes reach by TLS, if they show a certificate of its authority; and the options that say so.
func etcdElsewhere(t *testing.T) (endpoint string, options []string) {
	t.Helper()
	dir := t.TempDir()
	authority, key := certified(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	ca := written(t, dir, "ca", "CERTIFICATE", authority.Raw)
	pair := func(name string, use x509.ExtKeyUsage) (cert, private string) {
		signed, own := certified(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}}, authority, key)
		der, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			t.Fatal(err)
		}
		return written(t, dir, name, "CERTIFICATE", signed.Raw), written(t, dir, name+"-key", "PRIVATE KEY", der)
	}
	c := embed.NewConfig()
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = pair("server", x509.ExtKeyUsageServerAuth)
	c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth, c.ClientTLSInfo.SkipClientSANVerify = ca, true, true
	c.Dir, c.LogLevel, c.MaxTxnOps, c.MaxRequestBytes = t.TempDir(), "error", 1<<16, 128<<20
	peers, clients := freeport.Address(t), freeport.Address(t)
	at := func(scheme, address string) []url.URL { return []url.URL{{Scheme: scheme, Host: address}} }
	c.ListenPeerUrls, c.AdvertisePeerUrls = at("http", peers), at("http", peers)
	c.ListenClientUrls, c.AdvertiseClientUrls = at("https", clients), at("https", clients)
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	cert, private := pair("client", x509.ExtKeyUsageClientAuth)
	return "https://" + clients, []string{"--etcd-ca", ca, "--etcd-cert", cert, "--etcd-key", private}
}

// certified makes a certificate of a new key, signed by an authority or, when that is nil, by itself.
func certified(t *testing.T, template, by *x509.Certificate, with *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		by, with = template, key
	}
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, by, key.Public(), with)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func written(t *testing.T, dir, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(dir, name+".pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// onEtcd starts a controller on an etcd elsewhere.
func onEtcd(t *testing.T, name, dir string, options ...string) *exec.Cmd {
	t.Helper()
	c := unkai(t, append([]string{"controller", "--name", name, "--data", dir, "--address", "127.0.0.1", "--listen", "127.0.0.1:0", "--hosts", freeport.Address(t)}, options...)...)
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
	endpoint, keys := etcdElsewhere(t)
	elsewhere := append([]string{"--etcd", endpoint}, keys...)
	dirs, cmds := map[string]string{}, map[string]*exec.Cmd{}
	for _, name := range []string{"one", "two"} {
		dirs[name] = t.TempDir()
		cmds[name] = onEtcd(t, name, dirs[name], elsewhere...)
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
	killed := time.Now()
	cmds[first].Wait()
	delete(cmds, first)
	if got := leader(first); got != other {
		t.Fatalf("%s leads", got)
	}
	token(other)
	t.Logf("what is written after the end of the one that led was after %v", time.Since(killed))
	if h := statusOf(t, dirs[other]); h.Revision <= before || len(h.Controllers) != 2 {
		t.Errorf("revision %d after %d, controllers %v", h.Revision, before, h.Controllers)
	}
	cmds[first] = onEtcd(t, first, dirs[first]) // where its state is, and how to get there, it has kept
	if a, b := statusOf(t, dirs[first]).Revision, statusOf(t, dirs[other]).Revision; a < before || b < before {
		t.Errorf("revisions %d and %d", a, b)
	}
	if out, err := unkai(t, "audit", "--data", dirs[first]).CombinedOutput(); err != nil {
		t.Errorf("audit: %v\n%s", err, out)
	}
	strange := t.TempDir()
	stranger, _ := certified(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true}, nil, nil)
	wrong := written(t, strange, "wrong", "CERTIFICATE", stranger.Raw)
	for why, options := range map[string][]string{
		"without a certificate of its own":   {"--etcd", endpoint, "--etcd-ca", keys[1]},
		"with another authority than etcd's": {"--etcd", endpoint, "--etcd-ca", wrong, "--etcd-cert", keys[3], "--etcd-key", keys[5]},
	} {
		began := time.Now()
		refused(t, "certificate", append([]string{"controller", "--name", "three", "--data", t.TempDir(), "--address", "127.0.0.1", "--listen", "127.0.0.1:0", "--hosts", freeport.Address(t)}, options...)...)
		t.Logf("%s: it ended after %v", why, time.Since(began))
	}
	refused(t, "no such file", "controller", "--data", t.TempDir(), "--etcd", endpoint, "--etcd-ca", "/nowhere", "--etcd-cert", keys[3], "--etcd-key", keys[5], "--name", "three", "--address", "127.0.0.1", "--hosts", "127.0.0.1:9")
	refused(t, "started alike", "controller", "--data", t.TempDir(), "--etcd", endpoint, "--cluster")
	refused(t, "begin with an empty one", "controller", "--data", owned(t), "--etcd", endpoint, "--name", "three", "--address", "127.0.0.1", "--hosts", "127.0.0.1:9")
}

// known waits until the controller of a data directory knows so many.
func known(t *testing.T, dir string, n int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); len(statusOf(t, dir).Controllers) != n; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the controllers are %v", statusOf(t, dir).Controllers)
		}
	}
}

// stopped ends a process in order.
func stopped(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.Wait() // how it ended is not the question
}

// A controller goes on with the state that it knows: below the same prefix though only the etcd is given again, and with no other cloud's, nor none.
func TestAControllerOnAnEtcdElsewhereKeepsToItsState(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	endpoint, keys := etcdElsewhere(t)
	elsewhere := append([]string{"--etcd", endpoint}, keys...)
	dir, other := t.TempDir(), t.TempDir()
	c := onEtcd(t, "one", dir, append(elsewhere, "--etcd-prefix", "/mine/")...)
	began := statusOf(t, dir).Revision
	stopped(t, c)
	c = onEtcd(t, "one", dir, elsewhere...)
	if again := statusOf(t, dir).Revision; again < began {
		t.Errorf("it was at revision %d, and is at %d", began, again)
	}
	known(t, dir, 1)
	secrets, revision := read(t, dir, secretsFile), statusOf(t, dir).Revision
	stopped(t, c)

	again := func(options ...string) []string {
		return append(append([]string{"controller", "--data", dir, "--listen", "127.0.0.1:0", "--hosts", freeport.Address(t)}, elsewhere...), options...)
	}
	refused(t, "the state is missing", again("--etcd-prefix", "/empty/")...)
	stopped(t, onEtcd(t, "one", other, append(elsewhere, "--etcd-prefix", "/other/")...))
	refused(t, "another cloud's", again("--etcd-prefix", "/other/")...)
	refused(t, "the state is missing", "controller", "--data", putSecrets(t, dir), "--name", "two", "--address", "127.0.0.1", "--listen", "127.0.0.1:0", "--hosts", freeport.Address(t),
		"--etcd", endpoint, keys[0], keys[1], keys[2], keys[3], keys[4], keys[5])

	c = onEtcd(t, "one", dir) // what was refused is not what it goes on with
	known(t, dir, 1)
	if read(t, dir, secretsFile) != secrets || statusOf(t, dir).Revision < revision {
		t.Error("it is another cloud")
	}
	stopped(t, c)
}

// putSecrets is a new data directory with another's first accounts.
func putSecrets(t *testing.T, from string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, secretsFile), []byte(read(t, from, secretsFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ended waits until a process ends by itself, and gives what it said.
func ended(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Wait() // how it ended is in what it said
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	return c.Stderr.(*strings.Builder).String()
}

// Who was dismissed ends, leads no more, and does not come back with what it has.
func TestADismissedControllerOnAnEtcdElsewhereLeadsNoMore(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	endpoint, keys := etcdElsewhere(t)
	elsewhere := append([]string{"--etcd", endpoint}, keys...)
	dirs, cmds := map[string]string{}, map[string]*exec.Cmd{}
	for n, name := range []string{"one", "two", "three", "four"} { // so that they lead in this order
		dirs[name] = t.TempDir()
		cmds[name] = onEtcd(t, name, dirs[name], elsewhere...)
		known(t, dirs["one"], n+1)
	}
	dismiss := func(name string) {
		t.Helper()
		if out, err := unkai(t, "controller", "dismiss", name, "--data", dirs["one"]).CombinedOutput(); err != nil {
			t.Fatalf("dismiss %s: %v\n%s", name, err, out)
		}
	}
	dismiss("two")
	if said := ended(t, cmds["two"]); !strings.Contains(said, "two was dismissed") {
		t.Errorf("it ends and says %s", said)
	}
	// One that does not see that it is dismissed, until the one that leads is gone.
	if err := cmds["three"].Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	dismiss("three")
	stopped(t, cmds["one"])
	if err := cmds["three"].Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if said := ended(t, cmds["three"]); !strings.Contains(said, "three was dismissed") || strings.Contains(said, "this controller leads") {
		t.Errorf("it ends and says %s", said)
	}
	for end := time.Now().Add(20 * time.Second); !statusOf(t, dirs["four"]).Leads; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody leads")
		}
	}
	if out, err := unkai(t, "controller", "token", "--data", dirs["four"]).CombinedOutput(); err != nil {
		t.Errorf("a token of who was not dismissed: %v\n%s", err, out)
	}
	for _, name := range []string{"two", "three"} {
		refused(t, name+" was dismissed", "controller", "--data", dirs[name], "--listen", "127.0.0.1:0", "--hosts", freeport.Address(t))
	}
	refused(t, "nobody", "controller", "dismiss", "nobody", "--data", dirs["four"])
	onEtcd(t, "two", t.TempDir(), elsewhere...) // anew
}

// Two machines that are called alike, as from one image, are not one controller.
func TestTwoControllersOnAnEtcdElsewhereAreCalledAlike(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	endpoint, keys := etcdElsewhere(t)
	elsewhere := append([]string{"--etcd", endpoint}, keys...)
	dir := t.TempDir()
	c := onEtcd(t, "localhost", dir, elsewhere...)
	known(t, dir, 1)
	two := putSecrets(t, dir)
	refused(t, "another controller named localhost", append([]string{"controller", "--name", "localhost", "--data", two, "--address", "127.0.0.1", "--listen", "127.0.0.1:0", "--hosts", freeport.Address(t)}, elsewhere...)...)
	onEtcd(t, "another", two, elsewhere...) // with a name of its own the same directory will do
	c.Process.Kill()
	c.Wait()
	onEtcd(t, "localhost", dir, elsewhere...) // and the first comes back as itself
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
