package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// peer is a host of a cloud, on loopback.
func peer(t *testing.T, a *host.Authority) *Peers {
	t.Helper()
	private, request, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	id := &Identity{Host: resource.NewID(time.Now(), nil), Key: private, Authority: a.PEM()}
	if id.Certificate, err = a.SignHost(id.Host, csr, time.Now()); err != nil {
		t.Fatal(err)
	}
	r, err := NewRemote("https://127.0.0.1:1", id, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Peers("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.listen.Close() })
	return p
}

func TestHostsReachEachOther(t *testing.T) {
	a := newAuthority(t)
	here, there := peer(t, a), peer(t, a)
	callers := make(chan resource.ID, 1)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		there.Run(ctx, func(from resource.ID, conn net.Conn) {
			callers <- from
			io.Copy(conn, conn)
			conn.(*tls.Conn).CloseWrite()
		})
	}()
	conn, err := here.Dial(t.Context(), there.Where())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "a guest"); err != nil {
		t.Fatal(err)
	}
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "a guest" || err != nil {
		t.Errorf("back comes %q, %v", got, err)
	}
	if from := <-callers; from != here.remote.Identity.Host {
		t.Errorf("it is taken for host %s", from)
	}

	// Another host that listens at the same address is not meant, nor is one of another cloud.
	address, _, _ := strings.Cut(there.Where(), "/")
	for name, where := range map[string]string{
		"another host": address + "/" + here.remote.Identity.Host.String(), "no host": address, "nobody": "127.0.0.1:1/" + there.remote.Identity.Host.String(),
	} {
		if conn, err := here.Dial(t.Context(), where); err == nil {
			conn.Close()
			t.Errorf("%s was reached", name)
		}
	}
	stranger := peer(t, newAuthority(t))
	if conn, err := stranger.Dial(t.Context(), there.Where()); err == nil {
		conn.Close()
		t.Error("a stranger reached a host")
	}
	// Nobody without a host's certificate is heard: not with none, nor with a controller's.
	controllers, err := a.ServerCertificate(time.Now(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for name, certs := range map[string][]tls.Certificate{"nobody": nil, "a controller": {controllers}} {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, Certificates: certs})
		if err == nil {
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, err = conn.Read(make([]byte, 1)) // in TLS 1.3 the refusal comes after the handshake
			conn.Close()
		}
		if err == nil || len(callers) > 0 {
			t.Errorf("%s was heard", name)
		}
	}
	// A host cannot be taken for a controller.
	if err := isController(here.remote.cert.Leaf, parse(t, a)); err == nil {
		t.Error("a host's certificate passes for a controller's")
	}
	end()
	<-ended
}

func parse(t *testing.T, a *host.Authority) *x509.Certificate {
	t.Helper()
	cert, err := a.ServerCertificate(time.Now(), "x")
	if err != nil {
		t.Fatal(err)
	}
	authority, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	return authority
}
