package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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
// that is a member still is known as far as this host was told. Whoever is not awaited finds little room, and takes none from those who are.
type Peers struct {
	// Admits refuses a host that is none of the cloud's any more, by its certificate's host and machine; nil: none is refused.
	Admits func(id resource.ID, machine int) error

	remote *Remote
	listen net.Listener
	where  string

	mu       sync.Mutex
	standing map[net.Conn]other // with whom; guarded by mu

	strangers strangers           // whose certificates are not seen yet
	awaited   places[resource.ID] // hosts from which something is to come
	unawaited places[resource.ID] // other hosts
}

// Peers listens for other hosts on an address.
func (r *Remote) Peers(address string) (*Peers, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for other hosts: %w", err)
	}
	p := &Peers{remote: r, listen: l, where: l.Addr().String() + "/" + r.Identity.Host.String()}
	p.strangers.machines.each, p.strangers.machines.all = 32, 1024
	p.strangers.links.each, p.strangers.links.all = 512, 1024
	p.awaited.each, p.awaited.all = 512, 1024 // one guest takes one for each disk, and one more
	p.unawaited.each, p.unawaited.all = 2, 32 // who only tries the wire needs one
	return p, nil
}

// An other is the other end of a connection, as its certificate says.
type other struct {
	host    resource.ID
	machine int
}

// admits refuses whoever is none of the cloud's any more.
func (p *Peers) admits(o other) error {
	if p.Admits == nil {
		return nil
	}
	return p.Admits(o.host, o.machine)
}

// stand counts a connection among those that Sweep looks at, until leave is called; an error if it is not to be. It counts from before it
// is known whether it may: who is removed in between is swept.
func (p *Peers) stand(secure *tls.Conn) (leave func(), err error) {
	cert := secure.ConnectionState().PeerCertificates[0]
	id, err := host.HostOf(cert)
	if err != nil {
		return nil, err
	}
	who, conn := other{id, host.MachineOf(cert)}, secure.NetConn()
	p.mu.Lock()
	if p.standing == nil {
		p.standing = map[net.Conn]other{}
	}
	p.standing[conn] = who
	p.mu.Unlock()
	leave = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.standing, conn)
	}
	if err := p.admits(who); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// Sweep closes the connections with whoever is not admitted any more. It is called when that may be somebody else than before.
func (p *Peers) Sweep() {
	p.mu.Lock()
	standing := maps.Clone(p.standing)
	p.mu.Unlock()
	for conn, who := range standing {
		if err := p.admits(who); err != nil {
			slog.Warn("a connection with another host is cut", "host", who.host, "why", err)
			conn.Close()
		}
	}
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
	leave, err := p.stand(secure)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &dialed{secure, leave}, nil
}

// dialed is a connection that stands until it is closed.
type dialed struct {
	*tls.Conn
	leave func()
}

func (d *dialed) Close() error {
	d.leave()
	return d.Conn.Close()
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
		known, ok := p.strangers.enter(conn)
		if !ok {
			conn.Close()
			continue
		}
		wg.Go(func() { p.answer(ctx, conn, known, callee) })
	}
}

// answer hears who calls: known is told when that is clear.
func (p *Peers) answer(ctx context.Context, conn net.Conn, known func(), callee Callee) {
	defer conn.Close()
	over := context.AfterFunc(ctx, func() { conn.Close() })
	defer over()
	impatient(conn)
	from, secure, err := p.greet(ctx, conn)
	known()
	if err != nil {
		slog.DebugContext(ctx, "a caller is no host of this cloud", "from", conn.RemoteAddr(), "err", err)
		return
	}
	leave, err := p.stand(secure)
	if err != nil {
		slog.DebugContext(ctx, "another host is turned away", "from", conn.RemoteAddr(), "why", err)
		return
	}
	defer leave()
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
