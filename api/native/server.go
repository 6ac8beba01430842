package native

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Verifier turns a token into who asks.
type Verifier interface {
	// Verify answers a fault of kind Unauthorized for a token that is forged, expired or revoked.
	Verify(ctx context.Context, token string) (*identity.Actor, error)
}

// Options are what New needs.
type Options struct {
	State *state.State
	Auth  Verifier
	// Operations cancels them; nil: none can be.
	Operations *operation.Service
	// Compute empties hosts; nil: one with nothing configured.
	Compute *compute.Service
	// Dialects answers the requests that POST /plan is to try: the whole listener, as
	// clients see it. nil: there are no plans of several requests.
	Dialects http.Handler
	Version  string           // of the program
	Now      func() time.Time // the clock for tokens; time.Now when nil
	Alive    time.Duration    // how often an idle watch says that it lives; 15 s when 0
}

// RevisionHeader tells of what revision an answer is: a watch goes on from there.
const RevisionHeader = "Unkai-Revision"

// New answers below /v1, which the caller has stripped.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Operations == nil {
		o.Operations = &operation.Service{State: o.State}
	}
	if o.Compute == nil {
		o.Compute = compute.New(o.State, compute.Config{})
	}
	if o.Alive == 0 {
		o.Alive = 15 * time.Second
	}
	s := &Server{Options: o, kinds: kinds(network.New(o.State)), byPath: map[string]*kind{}, byName: map[string]*kind{}}
	for _, k := range s.kinds {
		s.byPath[k.path], s.byName[k.name] = k, k
	}
	for _, r := range s.routes() {
		s.handle(r)
	}
	s.document = s.describe()
	return s
}

// A Server is the native API on one state.
type Server struct {
	Options
	kinds    []*kind
	byPath   map[string]*kind
	byName   map[string]*kind // as in events
	document []byte
	mux      http.ServeMux
}

// A route is one thing that can be asked for. The description is made from the same list.
type route struct {
	method, path string
	open         bool // without a token
	handle       func(*Server, http.ResponseWriter, *http.Request) error
	about        about
}

// routes, with {kind} standing for the path of every kind.
func (s *Server) routes() []route {
	all := []route{
		{"GET", "/{$}", true, (*Server).index, aboutIndex},
		{"GET", "/openapi.json", true, (*Server).openAPI, aboutOpenAPI},
		{"GET", "/health", true, (*Server).health, aboutHealth},
		{"GET", "/watch", false, (*Server).watchAll, aboutWatch},
		{"GET", "/quota", false, (*Server).quota, aboutQuota},
		{"GET", "/{kind}", false, (*Server).list, aboutList},
		{"GET", "/{kind}/{id}", false, (*Server).get, aboutGet},
		{"GET", "/{kind}/{id}/why", false, (*Server).why, aboutWhy},
		{"POST", "/operations/{id}/cancel", false, (*Server).cancel, aboutCancel},
		{"PATCH", "/hosts/{id}", false, (*Server).patchHost, aboutPatchHost},
		{"POST", "/hosts/{id}/maintenance", false, (*Server).retire, aboutRetire},
		{"POST", "/hosts/{id}/maintenance/plan", false, (*Server).planRetirement, aboutPlanRetirement},
		{"POST", "/hosts/{id}/fenced", false, (*Server).vouch, aboutVouch},
		{"PUT", "/hosts/{id}/fencing", false, (*Server).putFencing, aboutPutFencing},
		{"POST", "/servers/{id}/move", false, (*Server).relocate, aboutRelocate},
		{"POST", "/servers/{id}/move/plan", false, (*Server).planRelocation, aboutPlanRelocation},
		{"PATCH", "/servers/{id}/keep", false, (*Server).patchKeep, aboutPatchKeep},
		{"GET", "/keeping", false, (*Server).keeping, aboutKeeping},
		{"PATCH", "/keeping", false, (*Server).patchKeeping, aboutPatchKeeping},
	}
	if s.Dialects != nil {
		all = append(all, route{"POST", "/plan", false, (*Server).plan, aboutPlan})
	}
	return all
}

const bodyLimit = 1 << 20

func (s *Server) handle(rt route) {
	s.mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
		if err := s.serve(w, r, rt); err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, rt route) error {
	if rt.open {
		return rt.handle(s, w, r)
	}
	actor, err := s.actor(r)
	if err != nil {
		return err
	}
	body, err := wire.Body(r, bodyLimit)
	if err != nil {
		return err
	}
	ctx, plan, err := wire.Context(r.WithContext(identity.As(r.Context(), actor)), "native", actor.UserID, actor.ProjectID, body)
	if err != nil {
		return err
	}
	r = r.WithContext(ctx)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if plan == nil {
		return rt.handle(s, w, r)
	}
	if err := rt.handle(s, &swallow{header: http.Header{}}, r); err != nil {
		return err
	}
	document, err := s.planned(r.Context(), plan, nil)
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, document)
	return nil
}

// actor verifies the token, in either of the two headers that clients send one in.
func (s *Server) actor(r *http.Request) (*identity.Actor, error) {
	token := tokenOf(r)
	if token == "" {
		return nil, fault.Errorf(fault.Unauthorized, "Send a token in X-Auth-Token, or in Authorization as Bearer.").WithCode("no-token")
	}
	asked := identity.WithRequest(r.Context(), identity.Request{Services: []string{"unkai"}, Method: r.Method, Path: "/v1" + r.URL.Path})
	return s.Auth.Verify(asked, token)
}

func tokenOf(r *http.Request) string {
	if token := r.Header.Get("X-Auth-Token"); token != "" {
		return token
	}
	if scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}

// swallow takes the answer of a request that is only planned.
type swallow struct{ header http.Header }

func (d *swallow) Header() http.Header         { return d.header }
func (d *swallow) Write(b []byte) (int, error) { return len(b), nil }
func (d *swallow) WriteHeader(int)             {}

// faults are our words and statuses for the core's kinds of fault.
var faults = map[fault.Kind]struct {
	status int
	code   string
}{
	fault.Internal:     {http.StatusInternalServerError, "internal"},
	fault.Invalid:      {http.StatusBadRequest, "invalid"},
	fault.Unauthorized: {http.StatusUnauthorized, "unauthorized"},
	fault.Forbidden:    {http.StatusForbidden, "forbidden"},
	fault.NotFound:     {http.StatusNotFound, "not-found"},
	fault.Conflict:     {http.StatusConflict, "conflict"},
	fault.Exists:       {http.StatusConflict, "exists"},
	fault.Exhausted:    {http.StatusConflict, "exhausted"},
	fault.OverQuota:    {http.StatusForbidden, "over-quota"},
	fault.TooLarge:     {http.StatusRequestEntityTooLarge, "too-large"},
	fault.Unsupported:  {http.StatusBadRequest, "unsupported"},
	fault.Precondition: {http.StatusPreconditionFailed, "precondition"},
	fault.Unavailable:  {http.StatusServiceUnavailable, "unavailable"},
	fault.Gone:         {http.StatusGone, "gone"},
}

// A failure is the one shape of every error.
type failure struct {
	Error struct {
		Code      string            `json:"code"`
		Message   string            `json:"message"`
		Field     string            `json:"field,omitempty"`
		Details   map[string]string `json:"details,omitempty"`
		RequestID string            `json:"request_id"`
	} `json:"error"`
}

func failureOf(ctx context.Context, f *fault.Error) (int, failure) {
	is := faults[f.Kind]
	var out failure
	out.Error.Code, out.Error.Message, out.Error.Field, out.Error.Details = is.code, f.Message, f.Field, f.Details
	if f.Code != "" {
		out.Error.Code = f.Code
	}
	out.Error.RequestID = wire.RequestID(ctx)
	return is.status, out
}

// fail writes an error. What is no fault is ours, and only logged.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := fault.From(err)
	if f == nil {
		if errors.Is(err, context.Canceled) || r.Context().Err() != nil {
			return // the client went away
		}
		slog.ErrorContext(r.Context(), "request failed", "request", wire.RequestID(r.Context()), "service", "native",
			"method", r.Method, "path", r.URL.Path, "err", err)
		f = fault.Errorf(fault.Internal, "Something went wrong here. It is logged as %s.", wire.RequestID(r.Context()))
	}
	status, out := failureOf(r.Context(), f)
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	s.write(w, r, status, out)
}

func (s *Server) write(w http.ResponseWriter, r *http.Request, status int, v any) {
	if err := wire.WriteJSON(w, status, v); err != nil {
		slog.DebugContext(r.Context(), "the client went away", "request", wire.RequestID(r.Context()), "err", err)
	}
}

// ServeHTTP answers unknown paths and methods in our own shape, too.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Unkai-Request-Id", wire.RequestID(r.Context()))
	if h, pattern := s.mux.Handler(r); pattern == "" {
		answer := &swallowStatus{swallow: swallow{http.Header{}}}
		h.ServeHTTP(answer, r)
		if answer.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", answer.header.Get("Allow"))
			_, out := failureOf(r.Context(), fault.Errorf(fault.Invalid, "This cannot be done here with %s.", r.Method).WithCode("method-not-allowed"))
			s.write(w, r, answer.status, out)
			return
		}
		s.fail(w, r, fault.Errorf(fault.NotFound, "There is no such path; see /v1/openapi.json.").WithCode("unknown-path"))
		return
	}
	s.mux.ServeHTTP(w, r)
}

type swallowStatus struct {
	swallow
	status int
}

func (s *swallowStatus) WriteHeader(status int) { s.status = status }

func (s *Server) index(w http.ResponseWriter, r *http.Request) error {
	paths := make([]string, len(s.kinds))
	for i, k := range s.kinds {
		paths[i] = k.path
	}
	s.write(w, r, http.StatusOK, map[string]any{"version": "v1", "release": s.Version,
		"description": wire.BaseURL(r) + "/v1/openapi.json", "kinds": paths})
	return nil
}

// kindOf is the kind that the path names, if the actor may read such things at all.
func (s *Server) kindOf(r *http.Request) (*kind, error) {
	k := s.byPath[r.PathValue("kind")]
	if k == nil {
		return nil, fault.Errorf(fault.NotFound, "There is no kind %q; see /v1/.", r.PathValue("kind")).WithCode("unknown-kind")
	}
	return k, nil
}

func setRevision(w http.ResponseWriter, revision int64) {
	w.Header().Set(RevisionHeader, strconv.FormatInt(revision, 10))
}
