package hostlink

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// callWithin is how long it may take until a host answers a call.
const callWithin = 10 * time.Second

// calls is how to reach hosts that hold a session.
type calls struct {
	mu      sync.Mutex
	hosts   map[resource.ID]chan host.Call // guarded by mu
	waiting map[string]*waiting            // guarded by mu
}

// waiting is a call that a host is to answer.
type waiting struct {
	host resource.ID
	conn chan net.Conn // holds one; sent to by whoever took the call out of the map
	over bool          // nobody waits any more; guarded by calls.mu
}

// make makes the maps; the caller holds mu.
func (c *calls) make() {
	if c.hosts == nil {
		c.hosts, c.waiting = map[resource.ID]chan host.Call{}, map[string]*waiting{}
	}
}

func (c *calls) open(id resource.ID) chan host.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.make()
	ch := make(chan host.Call)
	c.hosts[id] = ch
	return ch
}

func (c *calls) close(id resource.ID, ch chan host.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hosts[id] == ch {
		delete(c.hosts, id)
	}
}

// Dial connects to something on a host: it asks the host to connect, and waits. A fault of
// kind Unavailable if the host is not there.
func (s *Server) Dial(ctx context.Context, id resource.ID, call host.Call) (net.Conn, error) {
	gone := fault.Errorf(fault.Unavailable, "The host cannot be reached now.")
	call.ID = resource.NewID(time.Now(), nil).String() + resource.NewID(time.Now(), nil).Tail()
	wait := &waiting{host: id, conn: make(chan net.Conn, 1)}
	s.calls.mu.Lock()
	ch := s.calls.hosts[id]
	s.calls.make()
	s.calls.waiting[call.ID] = wait
	s.calls.mu.Unlock()
	defer func() {
		s.calls.mu.Lock()
		delete(s.calls.waiting, call.ID)
		wait.over = true // what arrives from now on is closed where it arrives
		s.calls.mu.Unlock()
		select {
		case late := <-wait.conn:
			late.Close()
		default:
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, callWithin, gone)
	defer cancel()
	if err := s.ring(ctx, ch, id, call); err != nil {
		return nil, err
	}
	select {
	case conn := <-wait.conn:
		return conn, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ring tells a host of a call: through its session here (ch), or through the controller that has its session.
func (s *Server) ring(ctx context.Context, ch chan host.Call, id resource.ID, call host.Call) error {
	if ch != nil {
		return pass(ctx, ch, call)
	}
	gone := fault.Errorf(fault.Unavailable, "The host cannot be reached now.")
	if s.Others == nil {
		return gone
	}
	call.At = s.Others.Link()
	links := s.Hub.Elsewhere(id)
	answers := make(chan error, len(links))
	for _, link := range links {
		go func() { answers <- s.Others.Call(ctx, link, id, call) }() // ends with ctx
	}
	for range links {
		err := <-answers
		if err == nil {
			return nil
		}
		slog.WarnContext(ctx, "a call was not passed on", "host", id, "err", err)
	}
	return gone
}

// Pass tells a host, which has its session here, of a call that another controller waits for.
func (s *Server) Pass(ctx context.Context, id resource.ID, call host.Call) error {
	s.calls.mu.Lock()
	ch := s.calls.hosts[id]
	s.calls.mu.Unlock()
	if ch == nil {
		return fault.Missing("session", id)
	}
	return pass(ctx, ch, call)
}

func pass(ctx context.Context, ch chan host.Call, call host.Call) error {
	select {
	case ch <- call:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Server) call(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	s.calls.mu.Lock()
	wait := s.calls.waiting[r.PathValue("id")]
	if wait != nil && wait.host == id {
		delete(s.calls.waiting, r.PathValue("id"))
	} else {
		wait = nil // another host's call stays that host's
	}
	s.calls.mu.Unlock()
	if wait == nil {
		return fault.Missing("call", r.PathValue("id"))
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("take the connection over: %w", err)
	}
	if err := errors.Join(
		conn.SetDeadline(time.Time{}),
		writeAll(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: unkai-call\r\n\r\n"),
	); err != nil {
		conn.Close()
		return nil // the host went away: whoever waits runs into its time limit
	}
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	if wait.over {
		conn.Close()
		return nil
	}
	wait.conn <- buffer{conn, buffered.Reader}
	return nil
}

func writeAll(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}

// buffer reads first what the HTTP server had read ahead.
type buffer struct {
	net.Conn
	r *bufio.Reader
}

func (b buffer) Read(p []byte) (int, error) { return b.r.Read(p) }
