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

// connectionsPerGuest keeps one guest from taking the host's descriptors.
const connectionsPerGuest = 32

// A listener takes metadata requests of one segment's guests.
type listener struct {
	net.Listener
	server *server

	mu   sync.Mutex
	shut bool                    // guarded by mu
	open map[net.Conn]netip.Addr // guarded by mu
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

// admit counts a connection, unless its guest has too many.
func (l *listener) admit(conn net.Conn) bool {
	guest := peer(conn)
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, other := range l.open {
		if other == guest {
			n++
		}
	}
	if l.shut || n >= connectionsPerGuest {
		return false
	}
	l.open[conn] = guest
	return true
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
	delete(c.listener.open, c.Conn)
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
