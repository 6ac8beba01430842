// Package hostlink is the controller's end of the stream that each host holds: HTTP over
// mutual TLS. A host joins with a token, then keeps one request open whose answer is a line of JSON
// for each delivery, and posts what it sees. Any controller serves it, from its own copy of the state; what has to be written is
// passed to the one that leads.
//
//	POST /host/v1/join           {"token", "request"} -> {"host", "certificate", "authority"}, no client certificate
//	POST /host/v1/renew          host.RenewRequest -> host.JoinAnswer with the next certificate; without a client certificate for one that has run out
//	POST /host/v1/session        host.Hello -> lines of Message, for as long as it lasts
//	POST /host/v1/observations   [host.Observation, …]
//	POST /host/v1/lease          host.LeaseRequest -> host.LeaseAnswer: the host's lease, anew
//	GET  /host/v1/images/{id}    the bytes of an image
//	PUT  /host/v1/images/{id}    the bytes of a snapshot of one of its guests
//	GET  /host/v1/calls/{id}     Upgrade: unkai-call; the raw bytes of a call that a Message named
package hostlink

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"slices"
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
	// Fill brings the bytes of a snapshot into its image, if the host is to make it. One that has them already needs no more.
	Fill func(ctx context.Context, host, id resource.ID, body io.Reader, bytes int64) error
	// Leader is where hosts reach the controller that leads, when it is another: who has bytes to bring is sent there.
	Leader func() (link string, ok bool)
	// Others is the other controllers; nil when there are none.
	Others Others
	Now    func() time.Time
	// Clock is this machine's, with which hosts' are compared; time.Now when nil.
	Clock func() time.Time
	// Patience is how long a host may take to read what it is sent, or to send a request; host.Expect when 0.
	Patience time.Duration

	mux    http.ServeMux
	once   sync.Once
	calls  calls
	clocks clocks
}

// Others is what a controller that is one of several asks of the others.
type Others interface {
	// Join, Arrive and Observe are done by the one that leads.
	Join(ctx context.Context, req host.JoinRequest) (host.JoinAnswer, error)
	Arrive(ctx context.Context, id resource.ID, hello host.Hello) error
	Observe(ctx context.Context, id resource.ID, seen []host.Observation) error
	// Call has another controller pass a call on to a host that has its session there.
	Call(ctx context.Context, link string, id resource.ID, call host.Call) error
	// Told reports whether the one that leads knows which hosts are heard here.
	Told() bool
	// Link is where hosts reach this one.
	Link() string
}

const (
	beatEvery  = 3 * time.Second
	maxBody    = 32 << 20
	sureWithin = 5 * time.Second
)

// TLS is how the hosts' listener speaks: hosts show certificates of the authority, whoever joins has none yet.
func TLS(a *host.Authority, show func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: show,
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.Pool(), NextProtos: []string{"http/1.1"}}
}

// ServeHTTP answers a host. The listener must speak as TLS says.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.once.Do(func() {
		s.mux.HandleFunc("POST /host/v1/join", s.answer(s.join))
		s.mux.HandleFunc("POST /host/v1/renew", s.answer(s.renew))
		s.mux.HandleFunc("POST /host/v1/session", s.answer(s.known(s.session)))
		s.mux.HandleFunc("POST /host/v1/observations", s.answer(s.known(s.observations)))
		s.mux.HandleFunc("POST /host/v1/lease", s.answer(s.known(s.lease)))
		s.mux.HandleFunc("GET /host/v1/images/{id}", s.answer(s.known(s.image)))
		s.mux.HandleFunc("PUT /host/v1/images/{id}", s.answer(s.known(s.fill)))
		s.mux.HandleFunc("GET /host/v1/calls/{id}", s.answer(s.known(s.call)))
	})
	s.mux.ServeHTTP(w, r)
}

func (s *Server) answer(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
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
			case fault.Gone:
				status = http.StatusGone
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
	return wire.BodyWithin(w, r, max, cmp.Or(s.Patience, host.Expect))
}

type hostHandler func(w http.ResponseWriter, r *http.Request, id resource.ID) error

// known lets only hosts through: those with a verified certificate that have not been removed.
func (s *Server) known(h hostHandler) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			return fault.Errorf(fault.Unauthorized, "A host's certificate is needed. Join first.")
		}
		cert := r.TLS.VerifiedChains[0][0]
		id, err := s.Authority.Check(cert, s.Now())
		if err != nil && s.follows() {
			if err := s.sure(r.Context()); err != nil {
				return err
			}
			id, err = s.Authority.Check(cert, s.Now()) // it may have joined a moment ago, elsewhere
		}
		if err != nil {
			return err
		}
		return h(w, r, id)
	}
}

// follows reports whether another controller leads, as far as this one knows.
func (s *Server) follows() bool { return s.Others != nil && !s.Hub.State.Leads() }

// sure waits until this controller shows whatever any has acknowledged. Who has lost the others must not tell hosts what to do: they
// find one that has not.
func (s *Server) sure(ctx context.Context) error {
	if s.Others == nil {
		return nil
	}
	for end := time.Now().Add(sureWithin); ; {
		err := s.Hub.State.Confirm(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			slog.DebugContext(ctx, "a host is turned away", "err", err)
			return fault.Errorf(fault.Unavailable, "This controller cannot reach most of the others. Ask another.")
		}
		select { // an election takes a second or two
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
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
	var answer host.JoinAnswer
	if s.follows() {
		answer, err = s.Others.Join(r.Context(), req)
	} else {
		answer, err = s.Authority.Join(identity.Internal(r.Context()), req, s.Now())
	}
	if err != nil {
		return err
	}
	slog.InfoContext(r.Context(), "a machine joined", "host", answer.Host, "from", r.RemoteAddr)
	return wire.WriteJSON(w, http.StatusOK, answer)
}

// renew makes the next certificate of a host, which shows its present one; or proves that it has the key of one that has run out, which
// opens nothing else.
func (s *Server) renew(w http.ResponseWriter, r *http.Request) error {
	if r.TLS != nil && len(r.TLS.VerifiedChains) == 0 {
		return s.renewLapsed(w, r)
	}
	return s.known(func(w http.ResponseWriter, r *http.Request, id resource.ID) error {
		req, err := s.renewal(w, r)
		if err != nil {
			return err
		}
		cert, err := s.Authority.Renew(r.TLS.VerifiedChains[0][0], req.Request, s.Now())
		if err != nil {
			return err
		}
		return s.certified(w, id, cert)
	})(w, r)
}

func (s *Server) renewal(w http.ResponseWriter, r *http.Request) (req host.RenewRequest, err error) {
	body, err := s.body(w, r, 64<<10)
	if err == nil && json.Unmarshal(body, &req) != nil {
		err = fault.Errorf(fault.Invalid, "The request is not valid JSON.")
	}
	return req, err
}

func (s *Server) renewLapsed(w http.ResponseWriter, r *http.Request) error {
	req, err := s.renewal(w, r)
	if err != nil {
		return err
	}
	if req.Certificate == nil {
		return fault.Errorf(fault.Unauthorized, "A host's certificate is needed. Join first.")
	}
	if err := s.sure(r.Context()); err != nil { // it may have been removed a moment ago, elsewhere
		return err
	}
	id, cert, err := s.Authority.RenewLapsed(req, s.Now())
	if err != nil {
		return err
	}
	slog.InfoContext(r.Context(), "a host renewed a certificate that had run out", "host", id, "from", r.RemoteAddr)
	return s.certified(w, id, cert)
}

func (s *Server) certified(w http.ResponseWriter, id resource.ID, cert []byte) error {
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
	ctx := identity.Internal(r.Context())
	if err := host.Compatible(hello.Speaks); err != nil {
		if !s.follows() { // another may be of another release, and take it
			s.Authority.Refuse(ctx, id, err)
		}
		return err
	}
	hello.CertificateEnds = r.TLS.VerifiedChains[0][0].NotAfter
	if err := s.sure(ctx); err != nil {
		return err
	}
	switch {
	case !s.follows():
		err = s.Authority.Arrive(ctx, id, hello)
	case !s.Others.Told():
		err = fault.Errorf(fault.Unavailable, "This controller cannot reach the one that leads. Ask another.")
	case !host.Expected(s.Hub.State.Latest(), id, hello):
		if err = s.Others.Arrive(ctx, id, hello); err == nil {
			err = s.sure(ctx) // it shows the host
		}
	}
	if err != nil {
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
	// Removed, or taken for lost, before the session could be cut off for it?
	if _, err := s.Authority.Check(r.TLS.VerifiedChains[0][0], s.Now()); err != nil {
		return err
	}
	if h, ok := host.Table().PeekOne(s.Hub.State.Latest(), id); !ok || !h.Up() {
		return fault.Errorf(fault.Conflict, "The host counts as lost. Connect again.")
	}
	defer s.listen(ctx, r, id)()
	defer s.keepTime(ctx, id)()
	calls := s.calls.open(id)
	defer s.calls.close(id, calls)
	slog.InfoContext(ctx, "a host connected", "host", id, "name", hello.Name)
	defer slog.InfoContext(ctx, "a host's session ended", "host", id, "name", hello.Name)

	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
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
	told := host.Links(s.Hub.State.Latest()) // where the controllers are
	err = send(host.Message{Controllers: told, Speaks: release.Own})
	for {
		if links := host.Links(s.Hub.State.Latest()); err == nil && !slices.Equal(links, told) {
			told, err = links, send(host.Message{Controllers: links})
		}
		if err != nil {
			slog.WarnContext(ctx, "a host's session broke", "host", id, "err", err)
			panic(http.ErrAbortHandler)
		}
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
		case <-wire.Leaving(ctx).Done():
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
	if err := s.observe(r.Context(), id, seen); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// observe has a host's reports taken in where that can be done.
func (s *Server) observe(ctx context.Context, id resource.ID, seen []host.Observation) error {
	if s.follows() {
		return s.Others.Observe(ctx, id, seen)
	}
	return s.Hub.Observe(identity.Internal(ctx), id, seen)
}

func (s *Server) lease(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	body, err := s.body(w, r, 4<<10)
	if err != nil {
		return err
	}
	received := s.time()
	var req host.LeaseRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return fault.Errorf(fault.Invalid, "The request is not valid JSON.")
	}
	answer, err := s.Hub.Renew(r.Context(), id, req.Arrival)
	if err != nil {
		return err
	}
	answer.Clock = s.compare(id, req, received)
	return wire.WriteJSON(w, http.StatusOK, answer)
}

func (s *Server) image(w http.ResponseWriter, r *http.Request, h resource.ID) error {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return fault.Missing("image", r.PathValue("id"))
	}
	if err := s.sure(r.Context()); err != nil { // one that was not there a moment ago is not gone
		return err
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

func (s *Server) fill(w http.ResponseWriter, r *http.Request, h resource.ID) error {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return fault.Missing("image", r.PathValue("id"))
	}
	if s.follows() {
		if link, ok := s.Leader(); ok {
			w.Header().Set(host.LeaderHeader, link)
		}
		http.Error(w, "this controller does not lead", http.StatusMisdirectedRequest)
		return nil
	}
	out := http.NewResponseController(w)
	patience := cmp.Or(s.Patience, host.Expect)
	body := readerFunc(func(b []byte) (int, error) { // it may take its time for all, and not for a part
		if err := out.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return 0, err
		}
		return r.Body.Read(b)
	})
	if err := s.Fill(identity.Internal(r.Context()), h, id, body, r.ContentLength); err != nil {
		return err
	}
	if err := out.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
