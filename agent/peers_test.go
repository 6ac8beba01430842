package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
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

// callee takes calls.
type callee struct {
	awaits func(from resource.ID) bool
	serve  func(from resource.ID, conn net.Conn)
}

func (c callee) Awaits(from resource.ID) bool          { return c.awaits(from) }
func (c callee) Serve(from resource.ID, conn net.Conn) { c.serve(from, conn) }

func TestHostsReachEachOther(t *testing.T) {
	a := newAuthority(t)
	here, there := peer(t, a), peer(t, a)
	callers := make(chan resource.ID, 1)
	callee := callee{awaits: func(resource.ID) bool { return true }, serve: func(from resource.ID, conn net.Conn) {
		callers <- from
		io.Copy(conn, conn)
		conn.(*tls.Conn).CloseWrite()
	}}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		there.Run(ctx, callee)
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

// A removed host may not be known for one, and anybody may reach the port: neither takes a place from a host that is awaited.
func TestWhoIsNotAwaitedTakesNoPlaceFromWhoIs(t *testing.T) {
	a := newAuthority(t)
	there, guests, removed, nosy := peer(t, a), peer(t, a), peer(t, a), peer(t, a)
	id := func(p *Peers) resource.ID { return p.remote.Identity.Host }
	there.unawaited.all, there.awaited.each, there.strangers.machines.each = 3, 2, 4
	arrived := make(chan resource.ID)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		there.Run(ctx, callee{awaits: func(from resource.ID) bool { return from == id(guests) }, serve: func(from resource.ID, conn net.Conn) {
			arrived <- from
			io.Copy(io.Discard, conn) // for as long as the other likes
		}})
	}()
	t.Cleanup(func() { end(); <-ended })
	conns := map[*Peers][]net.Conn{}
	calls := func(p *Peers, heard bool) {
		t.Helper()
		conn, err := p.Dial(t.Context(), there.Where())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns[p] = append(conns[p], conn)
		if heard {
			if from := <-arrived; from != id(p) {
				t.Fatalf("%s was heard instead", from)
			}
			return
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("it is not turned away: %v", err)
		}
	}
	calls(removed, true)
	calls(removed, true)
	calls(removed, false) // one host has two places at most
	calls(nosy, true)
	calls(nosy, false) // and all of them three
	calls(guests, true)
	calls(guests, true)
	calls(guests, false)
	conns[guests][0].Close()
	for there.awaited.enter(id(guests)) == false { // it has noticed
		time.Sleep(time.Millisecond)
	}
	there.awaited.leave(id(guests))
	calls(guests, true)

	// Who says nothing waits in a room of its own, and a machine cannot fill that.
	for range there.strangers.machines.each {
		conn, err := net.Dial("tcp", there.listen.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	conn, err := net.Dial("tcp", there.listen.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(4 * time.Second)) // less than it has for a handshake
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one machine has more places than it may: %v", err)
	}
	if s := &there.strangers; s.machines.all <= s.links.each || s.links.each <= s.machines.each {
		t.Error("one machine, or one link, can take them all")
	}
}

func TestWhoseConnectionItIs(t *testing.T) {
	for address, want := range map[string][2]string{
		"192.0.2.1:5": {"192.0.2.1", "192.0.2.1/32"}, "[::ffff:192.0.2.1]:5": {"192.0.2.1", "192.0.2.1/32"},
		"[2001:db8:1:2:3::4]:5": {"2001:db8:1:2:3::4", "2001:db8:1:2::/64"}, "[fe80::1%eth0]:5": {"fe80::1%eth0", "fe80::/64"},
	} {
		if machine, link := callerOf(from(address)); machine.String() != want[0] || link.String() != want[1] {
			t.Errorf("%s counts as %s of %s", address, machine, link)
		}
	}
}

// Hosts have their IPv6 addresses of one /64: a machine there that calls and says nothing does not keep the others out, and neither does one
// that has all addresses of another /64.
func TestAStrangerTakesNoPlaceFromItsNeighbours(t *testing.T) {
	var s strangers
	s.machines.each, s.machines.all, s.links.each, s.links.all = 2, 8, 4, 8
	enter := func(address string, want bool) func() {
		t.Helper()
		leave, ok := s.enter(from(address))
		if ok != want {
			t.Fatalf("%s has a place: %v", address, ok)
		}
		return leave
	}
	enter("[2001:db8::1]:1", true)
	first := enter("[2001:db8::1]:2", true)
	enter("[2001:db8::1]:3", false)
	enter("[2001:db8::2]:1", true) // its neighbour
	enter("[2001:db8::3]:1", true)
	enter("[2001:db8::4]:1", false) // the link has what it may have
	enter("[2001:db8:0:1::1]:1", true)
	enter("192.0.2.1:1", true)
	first()
	enter("[2001:db8::4]:1", true)
	enter("[2001:db8::1]:4", false) // the link is full again
	if s.machines.sum != 6 || s.links.sum != 6 {
		t.Errorf("%d and %d places are taken", s.machines.sum, s.links.sum)
	}
}

// from is a connection from an address.
func from(address string) net.Conn { return farConn{address: address} }

type farConn struct {
	net.Conn
	address string
}

func (c farConn) RemoteAddr() net.Addr { return farAddr(c.address) }

type farAddr string

func (a farAddr) Network() string { return "tcp" }
func (a farAddr) String() string  { return string(a) }
