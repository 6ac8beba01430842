package relay

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A controller that renews its certificate goes on over the connection that it has.
func TestARenewedCertificateIsKnown(t *testing.T) {
	p := newPair(t)
	certify := func() *tls.Certificate {
		c, err := p.authority.ControllerCertificate(time.Now(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		c.Leaf, _ = x509.ParseCertificate(c.Certificate[0])
		return &c
	}
	var current atomic.Pointer[tls.Certificate]
	old := certify()
	current.Store(old)
	tr := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: p.authority.Pool(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current.Load(), nil }}}
	defer tr.CloseIdleConnections()
	is := host.Controller{Member: 7, Link: "https://x:1"}
	is.Name = "b"
	present := func(over http.RoundTripper) error {
		return Post(t.Context(), over, p.web.URL, "present", Presentation{is, current.Load().Leaf.Raw}, nil)
	}
	if err := present(tr); err != nil {
		t.Fatal(err)
	}
	next := certify()
	current.Store(next)
	if err := present(tr); err != nil {
		t.Fatal(err)
	}
	if !host.Presented(p.leads.Latest(), &is, next.Leaf) {
		t.Error("the leader does not know the new certificate")
	}
	elsewhere, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := host.OpenAuthority(t.Context(), elsewhere, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := stranger.ControllerCertificate(time.Now(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := Post(t.Context(), tr, p.web.URL, "present", Presentation{is, other.Certificate[0]}, nil); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("another cloud's certificate: %v", err)
	}
	if err := host.Dismiss(identity.Internal(t.Context()), p.leads, "b"); err != nil {
		t.Fatal(err)
	}
	if host.Revoked(p.leads.Latest(), old.Leaf) == nil {
		t.Error("old is not revoked")
	}
	if host.Revoked(p.leads.Latest(), next.Leaf) == nil {
		t.Error("the dismissed controller's certificate is not revoked")
	}
	if err := present(p.transport(next)); err == nil {
		t.Error("the dismissed controller presents itself again and is taken in")
	}
	if _, ok := host.ControllerOf(p.leads.Latest(), 7); ok {
		t.Error("and is a controller again")
	}
}
