package linuxnet

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// How many connections a port, a segment and the whole process answer at a time, so that no guest takes
// the host's descriptors and memory, and none another's turn.
const (
	connectionsPerPort    = 32
	connectionsPerSegment = 512
	connectionsAltogether = 2048
)

// A listener takes metadata requests of one segment's guests.
type listener struct {
	net.Listener
	server *server

	mu   sync.Mutex
	shut bool                     // guarded by mu
	open map[net.Conn]resource.ID // the port at the other end of each; guarded by mu
}

// A guestConn is a connection that knows which segment it came in by.
type guestConn struct {
	net.Conn
	listener *listener
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.admit(conn) {
			return &guestConn{conn, l}, nil
		}
		conn.Close()
	}
}

// admit counts a connection of a port that is known here, unless there are too many: a guest has two
// listeners to try, and a port several addresses.
func (l *listener) admit(conn net.Conn) bool {
	port, known := l.server.known.Load().byAddress[peer(conn)]
	if !known {
		return false
	}
	ofPort, ofSegment := 0, 0
	for _, other := range l.server.web {
		n, all := other.count(port)
		ofPort, ofSegment = ofPort+n, ofSegment+all
	}
	if ofPort >= connectionsPerPort || ofSegment >= connectionsPerSegment {
		return false
	}
	if l.server.driver.visitors.Add(1) > connectionsAltogether {
		l.server.driver.visitors.Add(-1)
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		l.server.driver.visitors.Add(-1)
		return false
	}
	l.open[conn] = port
	return true
}

// count is how many connections a port has to the listener, and how many there are.
func (l *listener) count(port resource.ID) (ofPort, all int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, other := range l.open {
		if other == port {
			ofPort++
		}
	}
	return ofPort, len(l.open)
}

// Close also closes the connections: an open one would keep the namespace.
func (l *listener) Close() error {
	l.mu.Lock()
	l.shut = true
	for conn := range l.open {
		conn.Close()
	}
	l.mu.Unlock()
	return l.Listener.Close()
}

func (l *listener) closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shut
}

func (c *guestConn) Close() error {
	c.listener.mu.Lock()
	if _, counted := c.listener.open[c.Conn]; counted {
		delete(c.listener.open, c.Conn)
		c.listener.server.driver.visitors.Add(-1)
	}
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// peer is the address of the other end, as ports have it.
func peer(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

type guestKey struct{}

// metadataServer serves the listeners of all segments.
func (d *Driver) metadataServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(d.serveMetadata),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, guestKey{}, conn)
		},
	}
}

// serveMetadata finds the port by the segment and the source address, which
// the packet filter vouches for, and hands the request over.
func (d *Driver) serveMetadata(w http.ResponseWriter, r *http.Request) {
	port, known := asker(r)
	if !known || d.options.Metadata == nil {
		http.NotFound(w, r)
		return
	}
	handler := d.options.Metadata(port)
	if handler == nil {
		http.NotFound(w, r)
		return
	}
	handler.ServeHTTP(w, r)
}

func asker(r *http.Request) (resource.ID, bool) {
	conn, ok := r.Context().Value(guestKey{}).(*guestConn)
	if !ok {
		return resource.ID{}, false
	}
	id, known := conn.listener.server.known.Load().byAddress[peer(conn.Conn)]
	return id, known
}
