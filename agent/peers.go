package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// Peers is how this host's driver of guests and those of other hosts reach each other: mutual TLS with the certificates by which
// hosts are known to their controllers. Who calls is a host of this cloud, and which one is sure; whether it is awaited
// is the driver's to say.
type Peers struct {
	remote *Remote
	listen net.Listener
	where  string
}

// Peers listens for other hosts on an address.
func (r *Remote) Peers(address string) (*Peers, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for other hosts: %w", err)
	}
	return &Peers{remote: r, listen: l, where: l.Addr().String() + "/" + r.Identity.Host.String()}, nil
}

// Where names this host's address, and the host: whoever dials it wants no other.
func (p *Peers) Where() string { return p.where }

// peerTLS knows the other end by its certificate: one that the authority gave to a host, and which is awaited. A host's
// certificate is a client's, whichever end it is at: with a server's it could pass for a controller.
func (p *Peers) peerTLS(awaited func(resource.ID) error) *tls.Config {
	current := func() *tls.Certificate {
		p.remote.mu.Lock()
		defer p.remote.mu.Unlock()
		return p.remote.cert
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert,
		SessionTicketsDisabled: true, // each connection is looked at
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current(), nil },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current(), nil },
		InsecureSkipVerify:     true, // verified here:
		VerifyConnection: func(c tls.ConnectionState) error {
			if len(c.PeerCertificates) == 0 {
				return errors.New("the other end shows no certificate")
			}
			id, err := hostBy(c.PeerCertificates[0], p.remote.tls.RootCAs)
			if err != nil {
				return err
			}
			return awaited(id)
		},
	}
}

// hostBy is the host that a certificate is of, if one of these authorities gave it.
func hostBy(cert *x509.Certificate, authorities *x509.CertPool) (resource.ID, error) {
	if _, err := cert.Verify(x509.VerifyOptions{Roots: authorities, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return resource.ID{}, err
	}
	return host.HostOf(cert)
}

const peerHandshake = 5 * time.Second

// Dial reaches the host that a Where names.
func (p *Peers) Dial(ctx context.Context, where string) (net.Conn, error) {
	address, name, _ := strings.Cut(where, "/")
	want, err := resource.ParseID(name)
	if err != nil {
		return nil, fmt.Errorf("%q names no host", where)
	}
	ctx, cancel := context.WithTimeout(ctx, peerHandshake)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	impatient(conn)
	secure := tls.Client(conn, p.peerTLS(func(is resource.ID) error {
		if is != want {
			return fmt.Errorf("it is host %s", is)
		}
		return nil
	}))
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("make sure that %s is host %s: %w", address, want, err)
	}
	return secure, nil
}

// silence is how long the other host may say nothing at all, not even that it has received something, before
// it counts as gone: a guest may be standing still meanwhile.
const silence = 10 * time.Second

func impatient(conn net.Conn) {
	tcp := conn.(*net.TCPConn)
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: silence / 4, Interval: silence / 4, Count: 3})
	if raw, err := tcp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
		})
	}
}

// maxCallers is how many connections of other hosts there are at a time. One guest takes one for each disk, and one more.
const maxCallers = 1024

// Run takes connections until ctx ends, and gives each to serve, which ends it.
func (p *Peers) Run(ctx context.Context, serve func(from resource.ID, conn net.Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { p.listen.Close() })
	defer stop()
	places := make(chan struct{}, maxCallers)
	for {
		conn, err := p.listen.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			slog.WarnContext(ctx, "could not take a connection from another host", "err", err)
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			p.answer(ctx, conn, serve)
		})
	}
}

func (p *Peers) answer(ctx context.Context, conn net.Conn, serve func(from resource.ID, conn net.Conn)) {
	defer conn.Close()
	over := context.AfterFunc(ctx, func() { conn.Close() })
	defer over()
	impatient(conn)
	var from resource.ID
	secure := tls.Server(conn, p.peerTLS(func(is resource.ID) error { from = is; return nil }))
	limited, cancel := context.WithTimeout(ctx, peerHandshake)
	defer cancel()
	if err := secure.HandshakeContext(limited); err != nil {
		slog.DebugContext(ctx, "a caller is no host of this cloud", "from", conn.RemoteAddr(), "err", err)
		return
	}
	serve(from, secure)
}
