// Package relay is how controllers speak with each other, over mutual TLS, beside the hosts that speak on the same
// listener. What a controller that follows may not answer itself it passes to the one that leads.
//
//	POST /controller/v1/join              JoinRequest -> JoinAnswer, with a token instead of a certificate
//	POST /controller/v1/present           host.Controller: where the caller is
//	ANY  /controller/v1/relay/{path…}     a client's request; 421 from who does not lead
//	ANY  /controller/v1/operate/{path…}   an operator's, from a controller's own machine; likewise
//	GET  /controller/v1/secrets           the first accounts' passwords and keys, which each controller keeps
//	GET  /controller/v1/blobs/{id}        an image's bytes
//	POST /controller/v1/blobs/{id}/fetch  {"from": link}: take them over from there
//	POST /controller/v1/host-join         host.JoinRequest -> host.JoinAnswer
//	POST /controller/v1/hosts/{id}/{what} arrive (host.Hello), observe ([host.Observation, …]) or call (host.Call)
//	POST /controller/v1/heard             which hosts the caller hears, and when it did
//	GET  /controller/v1/health            Health
//
// It decides nothing: who leads is the engine's to say, and what a request does is the dialects'.
package relay

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
)

// A JoinRequest asks to become a controller.
type JoinRequest struct {
	Token   string
	Request []byte   // certificate request, DER
	Names   []string // under which the others are to reach it
	Member  string   // the name, and
	URL     string   // the address, of its part of the engine
	Speaks  release.Span
}

// A JoinAnswer makes a machine a controller.
type JoinAnswer struct {
	Certificate []byte            // DER
	Authority   []byte            // PEM
	Members     map[string]string // of the engine: name to address, the caller's among them
	Secrets     []byte            // the first accounts, as each controller's directory holds them
	Revoked     []byte            // the authority's list of certificates that are worth nothing any more (DER)
}

// Headers of a relayed request: who asked, and how, as the first controller saw it.
const (
	hostHeader   = "Unkai-Relayed-Host"
	protoHeader  = "Unkai-Relayed-Proto"
	sourceHeader = "Unkai-Relayed-Source"
)

const (
	prefix    = "/controller/v1/"
	maxBody   = 1 << 20
	maxReport = 32 << 20
)

// A Server answers other controllers.
type Server struct {
	Authority *host.Authority
	State     *state.State
	Clients   http.Handler // answers clients, when this controller leads
	Operators http.Handler // and operators
	Blobs     Store
	Hub       *host.Hub
	// Call tells a host, which has its session here, of a call that another controller waits for.
	Call   func(ctx context.Context, id resource.ID, call host.Call) error
	Health func(context.Context) Health
	// MayJoin tells why a controller cannot join now, before its token is used up.
	MayJoin func(ctx context.Context, name, url string) error
	// Join lets a machine's part of the engine in and answers all that it needs but its certificate.
	Join func(ctx context.Context, name, url string) (*JoinAnswer, error)
	// Secrets are the first accounts'.
	Secrets func() ([]byte, error)
	Now     func() time.Time
}

// A Store is this controller's own copy of the images' bytes.
type Store interface {
	Open(ctx context.Context, id resource.ID) (image.Blob, error)
	// Fetch takes a blob over from another controller, unless it is here.
	Fetch(ctx context.Context, id resource.ID, from string) error
}

// ServeHTTP answers below /controller/v1/.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, prefix)
	switch {
	case !ok:
		http.NotFound(w, r)
	case path == "join" && r.Method == http.MethodPost:
		answer(w, r, s.join(w, r))
	default:
		if err := s.known(r); err != nil {
			answer(w, r, err)
			return
		}
		for via, h := range map[string]http.Handler{"relay": s.Clients, "operate": s.Operators} {
			if rest, ok := strings.CutPrefix(path, via+"/"); ok && h != nil {
				s.relayed(w, r, h, via, "/"+rest)
				return
			}
		}
		answer(w, r, s.others(w, r, path))
	}
}

// known lets controllers through, and nobody else that the authority has signed, nor one that was dismissed.
func (s *Server) known(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return fault.Errorf(fault.Unauthorized, "A controller's certificate is needed.")
	}
	cert := r.TLS.VerifiedChains[0][0]
	if err := host.IsController(cert); err != nil {
		return err
	}
	return host.Revoked(s.State.Latest(), cert)
}

// statuses are how faults travel between controllers; any other kind is a bad request.
var statuses = map[fault.Kind]int{
	fault.Unauthorized: http.StatusUnauthorized,
	fault.NotFound:     http.StatusNotFound,
	fault.Unavailable:  http.StatusServiceUnavailable,
	fault.Conflict:     http.StatusConflict,
	fault.Exists:       http.StatusUnprocessableEntity,
}

func kindOf(status int) fault.Kind {
	for kind, s := range statuses {
		if s == status {
			return kind
		}
	}
	if status >= 500 {
		return fault.Unavailable
	}
	return fault.Invalid
}

func unanswered(ctx context.Context, link string, err error) error {
	slog.DebugContext(ctx, "another controller did not answer", "at", link, "err", err)
	return fault.Errorf(fault.Unavailable, "The controller at %s does not answer.", link)
}

func answer(w http.ResponseWriter, r *http.Request, err error) {
	if err == nil {
		return
	}
	status, text := http.StatusInternalServerError, "internal error"
	if f := fault.From(err); f != nil {
		status, text = http.StatusBadRequest, f.Message
		if s, ok := statuses[f.Kind]; ok {
			status = s
		}
	} else if !errors.Is(err, context.Canceled) {
		slog.ErrorContext(r.Context(), "another controller's request failed", "path", r.URL.Path, "err", err)
	}
	http.Error(w, text, status)
}

func decode(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := wire.BodyWithin(w, r, maxBody, 0)
	if err != nil {
		return err
	}
	if json.Unmarshal(body, v) != nil {
		return fault.Errorf(fault.Invalid, "The request is not valid JSON.")
	}
	return nil
}

func (s *Server) join(w http.ResponseWriter, r *http.Request) error {
	var req JoinRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if req.Member == "" || req.URL == "" || len(req.Names) == 0 {
		return fault.Errorf(fault.Invalid, "A controller that joins must say its name and where it is.")
	}
	if !s.State.Leads() {
		return state.NotLeading()
	}
	// Before the token is used up, and before the engine has a member that could not read what it is sent.
	if level := state.LevelOf(s.State.Latest()); req.Speaks.OrFirst().At(level) != nil {
		return fault.Errorf(fault.Conflict, "The cloud is at level %d, and the release of the controller that wants to join works at levels %s.", level, req.Speaks.OrFirst())
	}
	ctx := identity.Internal(r.Context())
	if err := s.MayJoin(ctx, req.Member, req.URL); err != nil {
		return err
	}
	cert, err := s.Authority.JoinController(ctx, req.Token, req.Request, s.Now(), req.Member, req.URL, req.Names...)
	if err != nil {
		return err
	}
	answer, err := s.Join(ctx, req.Member, req.URL)
	if err != nil {
		return err
	}
	answer.Certificate, answer.Authority = cert, s.Authority.PEM()
	slog.InfoContext(ctx, "a controller joined", "name", req.Member, "from", r.RemoteAddr)
	return wire.WriteJSON(w, http.StatusOK, answer)
}

// A Presentation is what a controller says of itself. The connection on which it does may be older than its certificate.
type Presentation struct {
	host.Controller
	Certificate []byte `json:",omitempty"` // DER
}

func (s *Server) others(w http.ResponseWriter, r *http.Request, path string) error {
	if path == "present" && r.Method == http.MethodPost {
		var is Presentation
		if err := decode(w, r, &is); err != nil {
			return err
		}
		cert := r.TLS.VerifiedChains[0][0]
		if is.Certificate != nil { // an earlier release does not say it
			var err error
			if cert, err = s.Authority.Controller(is.Certificate); err != nil {
				return err
			}
		}
		if err := host.Present(identity.Internal(r.Context()), s.State, is.Controller, cert); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if path == "secrets" && r.Method == http.MethodGet && s.Secrets != nil {
		text, err := s.Secrets()
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	if path == "health" && r.Method == http.MethodGet {
		return wire.WriteJSON(w, http.StatusOK, s.Health(r.Context()))
	}
	if (path == "host-join" || path == "heard" || strings.HasPrefix(path, "hosts/")) && r.Method == http.MethodPost {
		return s.serveHosts(w, r, path)
	}
	name, fetch := strings.CutSuffix(strings.TrimPrefix(path, "blobs/"), "/fetch")
	id, err := resource.ParseID(name)
	if err != nil || !strings.HasPrefix(path, "blobs/") {
		return fault.Errorf(fault.NotFound, "There is no such thing here.")
	}
	switch {
	case fetch && r.Method == http.MethodPost:
		var from struct{ From string }
		if err := decode(w, r, &from); err != nil {
			return err
		}
		if err := s.Blobs.Fetch(r.Context(), id, from.From); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	case !fetch && r.Method == http.MethodGet:
		return s.blob(w, r, id)
	}
	return fault.Errorf(fault.Invalid, "The method is not allowed here.")
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	b, err := s.Blobs.Open(r.Context(), id)
	if err != nil {
		return err
	}
	defer b.Close()
	size, err := b.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = b.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	if _, err := io.Copy(w, b); err != nil {
		panic(http.ErrAbortHandler) // a part must not be taken for the whole
	}
	return nil
}

// relayed answers a client of another controller, as if it had come here.
func (s *Server) relayed(w http.ResponseWriter, r *http.Request, h http.Handler, via, path string) {
	if !s.State.Leads() || s.State.Confirm(r.Context()) != nil {
		http.Error(w, "this controller does not lead", http.StatusMisdirectedRequest)
		return
	}
	client := r.Clone(r.Context())
	client.TLS = nil
	client.URL.Path = path
	if raw, ok := strings.CutPrefix(r.URL.EscapedPath(), prefix+via); ok {
		client.URL.RawPath = raw
	}
	client.RequestURI = client.URL.RequestURI()
	client.Host = r.Header.Get(hostHeader)
	client.RemoteAddr = r.Header.Get(sourceHeader)
	client.Header.Set("X-Forwarded-Proto", r.Header.Get(protoHeader))
	for _, name := range []string{hostHeader, protoHeader, sourceHeader} {
		client.Header.Del(name)
	}
	if !attemptHere(w, client, h, elsewhere(via == "relay" && keyed(client))) {
		http.Error(w, "this controller leads no more", http.StatusMisdirectedRequest)
	}
}
