// Package hostlink is the controller's end of the stream that each host holds: HTTP over
// mutual TLS. A host joins with a token, then keeps one request open whose answer is a line of JSON
// for each delivery, and posts what it sees.
//
//	POST /host/v1/join           {"token", "request"} -> {"host", "certificate", "authority"}, no client certificate
//	POST /host/v1/renew          host.RenewRequest -> host.JoinAnswer with the next certificate
//	POST /host/v1/session        host.Hello -> lines of Message, for as long as it lasts
//	POST /host/v1/observations   [host.Observation, …]
//	POST /host/v1/lease          host.LeaseAnswer: the host's lease, anew
//	GET  /host/v1/images/{id}    the bytes of an image
//	GET  /host/v1/calls/{id}     Upgrade: unkai-call; the raw bytes of a call that a Message named
package hostlink

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Server serves hosts.
type Server struct {
	Hub       *host.Hub
	Authority *host.Authority
	// Image opens an image for a host, if that is to have it. The caller closes it.
	Image func(ctx context.Context, host, id resource.ID) (io.ReadCloser, error)
	// Leads reports whether this controller does; hosts that come to another are told where to go. nil: it is the only one.
	Leads func() bool
	// Leader is where the controller is that leads, when it is another.
	Leader func() (link string, ok bool)
	Now    func() time.Time
	// Patience is how long a host may take to read what it is sent, or to send a request; host.Expect when 0.
	Patience time.Duration

	mux   http.ServeMux
	once  sync.Once
	calls calls
}

const (
	beatEvery = 3 * time.Second
	maxBody   = 32 << 20
)

// TLS is how the hosts' listener speaks: hosts show certificates of the authority, whoever joins has none yet.
func TLS(a *host.Authority, cert tls.Certificate) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.Pool(), NextProtos: []string{"http/1.1"}}
}

// ServeHTTP answers a host. The listener must speak as TLS says.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.once.Do(func() {
		s.mux.HandleFunc("POST /host/v1/join", s.answer(s.join))
		s.mux.HandleFunc("POST /host/v1/renew", s.answer(s.known(s.renew)))
		s.mux.HandleFunc("POST /host/v1/session", s.answer(s.known(s.session)))
		s.mux.HandleFunc("POST /host/v1/observations", s.answer(s.known(s.observations)))
		s.mux.HandleFunc("POST /host/v1/lease", s.answer(s.known(s.lease)))
		s.mux.HandleFunc("GET /host/v1/images/{id}", s.answer(s.known(s.image)))
		s.mux.HandleFunc("GET /host/v1/calls/{id}", s.answer(s.known(s.call)))
	})
	s.mux.ServeHTTP(w, r)
}

func (s *Server) answer(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.Leads != nil && !s.Leads() {
			if link, ok := s.Leader(); ok {
				w.Header().Set(host.LeaderHeader, link)
			}
			http.Error(w, "this controller does not lead", http.StatusMisdirectedRequest)
			return
		}
		err := h(w, r)
		if err == nil {
			return
		}
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // it went away, or was too slow: it must not take silence for success
		}
		status, text := http.StatusInternalServerError, "internal error"
		if f := fault.From(err); f != nil {
			text = f.Message
			switch f.Kind {
			case fault.Unauthorized:
				status = http.StatusUnauthorized
			case fault.NotFound:
				status = http.StatusNotFound
			case fault.Unavailable:
				status = http.StatusServiceUnavailable
			case fault.Exists, fault.Conflict:
				status = http.StatusConflict
			default:
				status = http.StatusBadRequest
			}
		} else {
			slog.ErrorContext(r.Context(), "a host's request failed", "path", r.URL.Path, "err", err)
		}
		http.Error(w, text, status)
	}
}

// body reads a request's body, for which whoever sends it has not for ever.
func (s *Server) body(w http.ResponseWriter, r *http.Request, max int64) ([]byte, error) {
	out := http.NewResponseController(w)
	if err := out.SetReadDeadline(time.Now().Add(cmp.Or(s.Patience, host.Expect))); err != nil {
		return nil, err
	}
	body, err := wire.Body(r, max)
	if err != nil {
		return nil, err // the deadline stays: nobody waits for the rest either
	}
	return body, out.SetReadDeadline(time.Time{})
}

type hostHandler func(w http.ResponseWriter, r *http.Request, id resource.ID) error

// known lets only hosts through: those with a verified certificate that have not been removed.
func (s *Server) known(h hostHandler) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			return fault.Errorf(fault.Unauthorized, "A host's certificate is needed. Join first.")
		}
		id, err := s.Authority.Check(r.TLS.VerifiedChains[0][0], s.Now())
		if err != nil {
			return err
		}
		return h(w, r, id)
	}
}

func (s *Server) join(w http.ResponseWriter, r *http.Request) error {
	body, err := s.body(w, r, 64<<10)
	if err != nil {
		return err
	}
	var req host.JoinRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return fault.Errorf(fault.Invalid, "The request is not valid JSON.")
	}
	if err := host.Compatible(req.Speaks); err != nil { // before the token is used up
		return err
	}
	id, cert, err := s.Authority.Join(identity.Internal(r.Context()), req.Token, req.Request, s.Now())
	if err != nil {
		return err
	}
	slog.InfoContext(r.Context(), "a machine joined", "host", id, "from", r.RemoteAddr)
	return wire.WriteJSON(w, http.StatusOK, host.JoinAnswer{Host: id, Certificate: cert, Authority: s.Authority.PEM()})
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	body, err := s.body(w, r, 64<<10)
	if err != nil {
		return err
	}
	var req host.RenewRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return fault.Errorf(fault.Invalid, "The request is not valid JSON.")
	}
	cert, err := s.Authority.Renew(id, req.Request, s.Now())
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, host.JoinAnswer{Host: id, Certificate: cert, Authority: s.Authority.PEM()})
}

func (s *Server) session(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	var hello host.Hello
	body, err := s.body(w, r, 64<<10)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, &hello); err != nil {
		return fault.Errorf(fault.Invalid, "The greeting is not valid JSON.")
	}
	if err := host.Compatible(hello.Speaks); err != nil {
		return err
	}
	ctx := identity.Internal(r.Context())
	if err := s.Authority.Arrive(ctx, id, hello); err != nil {
		return err
	}
	session := s.Hub.Connect(id)
	if hello.Differences {
		session.Differences()
	}
	if hello.Renews {
		session.Renews()
	}
	defer session.Close()
	// Removed before the session could be cut off for it?
	if _, err := s.Authority.Check(r.TLS.VerifiedChains[0][0], s.Now()); err != nil {
		return err
	}
	calls := s.calls.open(id)
	defer s.calls.close(id, calls)
	slog.InfoContext(ctx, "a host connected", "host", id, "name", hello.Name)
	defer slog.InfoContext(ctx, "a host's session ended", "host", id, "name", hello.Name)

	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	first, err := json.Marshal(host.Message{Controllers: host.Links(s.Hub.State.Latest()), Speaks: release.Own})
	if err != nil {
		return err
	}
	if _, err := w.Write(append(first, '\n')); err != nil {
		return err
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	send := func(m host.Message) error {
		line, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if err := out.SetWriteDeadline(time.Now().Add(cmp.Or(s.Patience, host.Expect))); err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
		return out.Flush()
	}
	for {
		var err error
		select {
		case <-session.Wake():
			var d *host.Delivery
			if d, err = session.Poll(); d != nil && err == nil {
				err = send(host.Message{Delivery: d})
			}
		case call := <-calls:
			err = send(host.Message{Call: &call})
		case <-beat.C:
			err = send(host.Message{})
		case <-session.Over():
			return nil
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			// The answer has begun: all there is to do is to end it, and the host comes again.
			slog.WarnContext(ctx, "a host's session broke", "host", id, "err", err)
			panic(http.ErrAbortHandler)
		}
	}
}

func (s *Server) observations(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	body, err := s.body(w, r, maxBody)
	if err != nil {
		return err
	}
	var seen []host.Observation
	if err := json.Unmarshal(body, &seen); err != nil {
		return fault.Errorf(fault.Invalid, "The report is not valid JSON.")
	}
	if err := s.Hub.Observe(identity.Internal(r.Context()), id, seen); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) lease(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	answer, err := s.Hub.Renew(r.Context(), id)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, answer)
}

func (s *Server) image(w http.ResponseWriter, r *http.Request, h resource.ID) error {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return fault.Missing("image", r.PathValue("id"))
	}
	in, err := s.Image(identity.Internal(r.Context()), h, id)
	if err != nil {
		return err
	}
	defer in.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := io.Copy(w, in); err != nil {
		panic(http.ErrAbortHandler) // the host must not take a part for the whole
	}
	return nil
}

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

func (c *calls) open(id resource.ID) chan host.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hosts == nil {
		c.hosts, c.waiting = map[resource.ID]chan host.Call{}, map[string]*waiting{}
	}
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
	if ch != nil {
		s.calls.waiting[call.ID] = wait
	}
	s.calls.mu.Unlock()
	if ch == nil {
		return nil, gone
	}
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
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	select {
	case ch <- call:
	case <-timeout.C:
		return nil, gone
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case conn := <-wait.conn:
		return conn, nil
	case <-timeout.C:
		return nil, gone
	case <-ctx.Done():
		return nil, ctx.Err()
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
