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
// hosts are known to their controllers. Who calls has a host's certificate of this cloud, and which host's is sure. Whether
// that is a member still no host knows: so whoever is not awaited finds little room, and takes none from those who are.
type Peers struct {
	remote *Remote
	listen net.Listener
	where  string

	strangers places[string]      // by machine, whose certificate is not seen yet
	awaited   places[resource.ID] // hosts from which something is to come
	unawaited places[resource.ID] // other hosts: also those that were removed, until their certificates end
}

// Peers listens for other hosts on an address.
func (r *Remote) Peers(address string) (*Peers, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for other hosts: %w", err)
	}
	p := &Peers{remote: r, listen: l, where: l.Addr().String() + "/" + r.Identity.Host.String()}
	p.strangers.each, p.strangers.all = 32, 1024
	p.awaited.each, p.awaited.all = 512, 1024 // one guest takes one for each disk, and one more
	p.unawaited.each, p.unawaited.all = 2, 32 // who only tries the wire needs one
	return p, nil
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

// A Callee is who takes calls of other hosts: a driver of guests.
type Callee interface {
	// Awaits reports whether something is to come from a host.
	Awaits(from resource.ID) bool
	// Serve speaks with a host until it has said all. The connection is then closed.
	Serve(from resource.ID, conn net.Conn)
}

// Run takes connections until ctx ends, and gives each to the callee.
func (p *Peers) Run(ctx context.Context, callee Callee) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { p.listen.Close() })
	defer stop()
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
		from := callerOf(conn)
		if !p.strangers.enter(from) {
			conn.Close()
			continue
		}
		wg.Go(func() { p.answer(ctx, conn, from, callee) })
	}
}

func (p *Peers) answer(ctx context.Context, conn net.Conn, machine string, callee Callee) {
	defer conn.Close()
	over := context.AfterFunc(ctx, func() { conn.Close() })
	defer over()
	impatient(conn)
	from, secure, err := p.greet(ctx, conn)
	p.strangers.leave(machine)
	if err != nil {
		slog.DebugContext(ctx, "a caller is no host of this cloud", "from", conn.RemoteAddr(), "err", err)
		return
	}
	places := &p.unawaited
	if callee.Awaits(from) {
		places = &p.awaited
	}
	if !places.enter(from) {
		slog.DebugContext(ctx, "another host calls too often", "from", from)
		return
	}
	defer places.leave(from)
	callee.Serve(from, secure)
}

// greet makes sure who calls.
func (p *Peers) greet(ctx context.Context, conn net.Conn) (from resource.ID, secure *tls.Conn, err error) {
	secure = tls.Server(conn, p.peerTLS(func(is resource.ID) error { from = is; return nil }))
	ctx, cancel := context.WithTimeout(ctx, peerHandshake)
	defer cancel()
	err = secure.HandshakeContext(ctx) // sets from
	return from, secure, err
}
