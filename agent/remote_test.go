package agent

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

func newAuthority(t *testing.T) *host.Authority {
	t.Helper()
	s, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	a, err := host.OpenAuthority(t.Context(), s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// controller serves joining and renewing, with a certificate that it is given.
func controller(t *testing.T, a *host.Authority, cert tls.Certificate) string {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, id resource.ID, der []byte, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		if err := json.NewEncoder(w).Encode(host.JoinAnswer{Host: id, Certificate: der, Authority: a.PEM()}); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("POST /host/v1/join", func(w http.ResponseWriter, r *http.Request) {
		var req host.JoinRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		joined, err := a.Join(r.Context(), req, time.Now())
		answer(w, joined.Host, joined.Certificate, err)
	})
	mux.HandleFunc("POST /host/v1/renew", func(w http.ResponseWriter, r *http.Request) {
		var req host.RenewRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		if len(r.TLS.PeerCertificates) == 0 {
			id, der, err := a.RenewLapsed(req, time.Now())
			answer(w, id, der, err)
			return
		}
		id, err := a.Check(r.TLS.PeerCertificates[0], time.Now())
		var der []byte
		if err == nil {
			der, err = a.Renew(r.TLS.PeerCertificates[0], req.Request, time.Now())
		}
		answer(w, id, der, err)
	})
	web := httptest.NewUnstartedServer(mux)
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.Pool()}
	web.StartTLS()
	t.Cleanup(web.Close)
	return web.URL
}

func serverCertificate(t *testing.T, a *host.Authority) tls.Certificate {
	t.Helper()
	cert, err := a.ServerCertificate(time.Now(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func token(t *testing.T, a *host.Authority) string {
	t.Helper()
	text, err := a.Token(t.Context(), time.Hour, host.ForHosts)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestJoin(t *testing.T) {
	a := newAuthority(t)
	url := controller(t, a, serverCertificate(t, a))
	dir := filepath.Join(t.TempDir(), "agent")
	id, err := Join(t.Context(), url, token(t, a), dir, host.Hello{Name: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, IdentityFile)); err != nil || info.Mode() != 0o600 {
		t.Errorf("its key is kept as %v, %v", info.Mode(), err)
	}
	if kept, err := LoadIdentity(dir); err != nil || kept.Host != id.Host || id.Host.IsZero() {
		t.Errorf("kept is %+v, %v", kept, err)
	}
}

// Who may not be taken for the controller: anybody of another authority, and a host of the right one.
func TestJoinKnowsTheController(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	private, csr, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.SignHost(resource.NewID(time.Now(), nil), parsed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	chain := serverCertificate(t, a).Certificate
	aHost := tls.Certificate{Certificate: [][]byte{der, chain[1]}, PrivateKey: key.(*ecdsa.PrivateKey)}
	borrowed := serverCertificate(t, other)
	borrowed.Certificate = [][]byte{borrowed.Certificate[0], chain[1]} // shows our authority's beside its own
	for name, cert := range map[string]tls.Certificate{
		"another authority's": serverCertificate(t, other), "a host's": aHost, "one that our authority did not sign": borrowed,
		"one alone": {Certificate: chain[:1], PrivateKey: serverCertificate(t, a).PrivateKey},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Join(t.Context(), controller(t, a, cert), token(t, a), dir, host.Hello{Name: "h"}); err == nil {
				t.Error("it was taken for the controller")
			}
			if _, err := os.Stat(filepath.Join(dir, IdentityFile)); err == nil {
				t.Error("an identity is kept")
			}
		})
	}
}

func TestCertificateIsRenewedInTime(t *testing.T) {
	a := newAuthority(t)
	url := controller(t, a, serverCertificate(t, a))
	dir := t.TempDir()
	id, err := Join(t.Context(), url, token(t, a), dir, host.Hello{Name: "h"})
	if err != nil {
		t.Fatal(err)
	}
	link, err := NewRemote(url, id, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := string(id.Certificate)
	renew := func(after time.Duration) {
		t.Helper()
		if err := link.Renew(t.Context(), time.Now().Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	const day = 24 * time.Hour
	renew(50 * day)
	if string(id.Certificate) != first {
		t.Error("it was renewed long before its end")
	}
	renew(65 * day)
	kept, err := LoadIdentity(dir)
	if err != nil || string(kept.Certificate) == first || kept.Host != id.Host || string(kept.Certificate) != string(id.Certificate) {
		t.Fatalf("kept is another, or the old one: %v", err)
	}
	second := string(id.Certificate)
	renew(65 * day) // with the next one
	if string(id.Certificate) == second {
		t.Error("the next certificate is not renewed")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in its directory: %v, %v", entries, err)
	}
}

// A host whose certificate has run out can show it to nobody, and gets the next one all the same; in one process with the authority it
// needs to ask nobody.
func TestCertificateIsRenewedAfterItsEnd(t *testing.T) {
	a := newAuthority(t)
	url := controller(t, a, serverCertificate(t, a))
	id, err := Join(t.Context(), url, token(t, a), t.TempDir(), host.Hello{Name: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Arrive(t.Context(), id.Host, host.Hello{Name: "h"}); err != nil {
		t.Fatal(err)
	}
	lapse := func() {
		t.Helper()
		now, err := id.certificate()
		if err != nil {
			t.Fatal(err)
		}
		next, _, err := id.next(func(csr []byte) ([]byte, error) { return a.Renew(now.Leaf, csr, time.Now().AddDate(0, 0, -100)) })
		if err != nil {
			t.Fatal(err)
		}
		*id = *next
	}
	sound := func() {
		t.Helper()
		kept, err := LoadIdentity(id.dir)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := kept.certificate()
		if err != nil || cert.Leaf.NotAfter.Before(time.Now()) {
			t.Fatalf("kept is a certificate until %v, %v", cert.Leaf.NotAfter, err)
		}
		if is, err := a.Check(cert.Leaf, time.Now()); err != nil || is != id.Host {
			t.Errorf("it is host %s, %v", is, err)
		}
	}
	lapse()
	link, err := NewRemote(url, id, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Renew(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	sound()
	if link.lapsed(time.Now()) {
		t.Error("it goes on with the old one")
	}
	lapse()
	if err := id.Resign(func(after *x509.Certificate, csr []byte) ([]byte, error) { return a.Renew(after, csr, time.Now()) }, time.Now()); err != nil {
		t.Fatal(err)
	}
	sound()
}
