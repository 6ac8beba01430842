// Package openstack holds what OpenStack's services have in common on the wire: token
// headers, fault to status, JSON bodies, list parameters and links, microversions and
// version documents. Each service is a package below it and owns its own words.
package openstack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Verifier turns a token into who asks.
type Verifier interface {
	// Verify answers a fault of kind Unauthorized for a token that is forged, expired or revoked.
	Verify(ctx context.Context, token string) (*identity.Actor, error)
}

// A Service is one OpenStack service on the shared listener.
type Service struct {
	Name   string   // "compute", …: also the path prefix, "/compute"
	Types  []string // other types that the service is found by, for access rules: "volumev3", …
	Auth   Verifier
	Errors func(w http.ResponseWriter, r *http.Request, status int, f *fault.Error) // writes an error in the service's own shape
	Limit  int64                                                                    // of a JSON body in bytes; 1 MiB when 0
	// Micro is set for a service with microversions.
	Micro *Microversions

	mux    http.ServeMux
	routes []Route
}

// A Route is one kind of request that a service answers.
type Route struct {
	Pattern string // "METHOD /path/{id}", below the service's prefix
	Open    bool   // to whoever asks, without a token
}

// Routes lists what the service answers, for whoever wants to try all of it.
func (s *Service) Routes() []Route { return s.routes }

// A Handler answers one request or returns an error, which the Service writes.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Handle routes "METHOD /path" (below the service's prefix) to h, for whoever has a valid token.
func (s *Service) Handle(pattern string, h Handler) { s.handle(pattern, h, true) }

// HandleOpen routes without asking for a token.
func (s *Service) HandleOpen(pattern string, h Handler) { s.handle(pattern, h, false) }

func (s *Service) handle(pattern string, h Handler, auth bool) {
	s.routes = append(s.routes, Route{pattern, !auth})
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Openstack-Request-Id", wire.RequestID(r.Context()))
		if err := s.serve(w, r, h, auth); err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *Service) serve(w http.ResponseWriter, r *http.Request, h Handler, auth bool) error {
	actor := &identity.Actor{}
	if auth {
		// A credential may be limited to some requests: the verifier must know which one this is.
		asked := identity.WithRequest(r.Context(), identity.Request{Services: append([]string{s.Name}, s.Types...), Method: r.Method, Path: r.URL.Path})
		var err error
		if actor, err = s.Auth.Verify(asked, r.Header.Get("X-Auth-Token")); err != nil {
			return err
		}
	}
	ctx := identity.As(r.Context(), actor)
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		ctx = identity.WithSource(ctx, from.Addr())
	}
	body, err := s.buffer(r)
	if err != nil {
		return err
	}
	ctx, plan, err := wire.Context(r.WithContext(ctx), "openstack", actor.UserID, actor.ProjectID, body)
	if err != nil {
		return err
	}
	if s.Micro != nil {
		if ctx, err = s.Micro.negotiate(ctx, w, r); err != nil {
			return err
		}
	}
	if plan == nil {
		return h(w, r.WithContext(ctx))
	}
	return s.plan(w, r.WithContext(ctx), h, plan)
}

// buffer reads a JSON body ahead, within the limit, so that an idempotency key can be
// bound to it. Other bodies are streamed.
func (s *Service) buffer(r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody || strings.HasPrefix(r.Header.Get("Content-Type"), "application/octet-stream") {
		return nil, nil
	}
	limit := s.Limit
	if limit == 0 {
		limit = 1 << 20
	}
	body, err := wire.Body(r, limit)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, nil
}

// plan runs the handler on a fork and answers what it would have changed.
func (s *Service) plan(w http.ResponseWriter, r *http.Request, h Handler, p *state.Plan) error {
	if err := h(&discard{header: http.Header{}}, r); err != nil {
		return err
	}
	document, err := wire.PlanDocument(r.Context(), p)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, document)
}

// discard swallows the answer of a request that is only planned.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// fail writes an error in the service's shape. What is no fault is ours, and only logged.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := fault.From(err)
	if f == nil {
		if errors.Is(err, context.Canceled) || r.Context().Err() != nil {
			return // the client went away
		}
		slog.ErrorContext(r.Context(), "request failed", "request", wire.RequestID(r.Context()), "service", s.Name,
			"method", r.Method, "path", r.URL.Path, "err", err)
		f = fault.Errorf(fault.Internal, "An unexpected error prevented the server from fulfilling your request. It is logged as %s.",
			wire.RequestID(r.Context()))
	}
	status := Status(f.Kind)
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Keystone uri="`+wire.BaseURL(r)+`/identity"`)
	}
	s.Errors(w, r, status, f)
}

// statuses are the usual statuses of faults; a service may differ before it writes.
var statuses = map[fault.Kind]int{
	fault.Internal:     http.StatusInternalServerError,
	fault.Invalid:      http.StatusBadRequest,
	fault.Unauthorized: http.StatusUnauthorized,
	fault.Forbidden:    http.StatusForbidden,
	fault.NotFound:     http.StatusNotFound,
	fault.Conflict:     http.StatusConflict,
	fault.Exists:       http.StatusConflict,
	fault.Exhausted:    http.StatusConflict,
	fault.OverQuota:    http.StatusForbidden,
	fault.TooLarge:     http.StatusRequestEntityTooLarge,
	fault.Unsupported:  http.StatusBadRequest,
	fault.Precondition: http.StatusPreconditionFailed,
	fault.Unavailable:  http.StatusServiceUnavailable,
	fault.Gone:         http.StatusGone,
}

// Status is the HTTP status for a kind of fault.
func Status(k fault.Kind) int { return statuses[k] }

// ServeHTTP answers below the service's prefix, which the caller has stripped. Unknown paths
// and methods get the service's own error.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "" { // the prefix alone: the mux would send the client to "/", away from here
		r = r.Clone(r.Context())
		r.URL.Path = "/"
	}
	h, pattern := s.mux.Handler(r)
	if pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	// The mux answers 404 or 405 (with Allow) in plain text; keep the status, say it our way.
	probe := &probe{header: http.Header{}}
	h.ServeHTTP(probe, r)
	w.Header().Set("X-Openstack-Request-Id", wire.RequestID(r.Context()))
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		s.Errors(w, r, http.StatusMethodNotAllowed, fault.Errorf(fault.Unsupported, "The method %s is not allowed for this resource.", r.Method))
		return
	}
	if probe.status >= 300 && probe.status < 400 {
		h.ServeHTTP(w, r)
		return
	}
	s.Errors(w, r, http.StatusNotFound, fault.Errorf(fault.NotFound, "The resource could not be found."))
}

type probe struct {
	header http.Header
	status int
}

func (p *probe) Header() http.Header         { return p.header }
func (p *probe) Write(b []byte) (int, error) { return len(b), nil }
func (p *probe) WriteHeader(s int)           { p.status = s }

// Decode reads a JSON body into v. Unknown fields are the service's own affair: see DecodeStrict.
func Decode(r *http.Request, v any) error { return decode(r, v, false) }

// DecodeStrict is Decode that refuses unknown fields.
func DecodeStrict(r *http.Request, v any) error { return decode(r, v, true) }

func decode(r *http.Request, v any, strict bool) error {
	d := json.NewDecoder(r.Body)
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		return badJSON(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fault.Errorf(fault.Invalid, "Malformed request body: something follows the JSON value.")
	}
	return nil
}

func badJSON(err error) error {
	var wrong *json.UnmarshalTypeError
	var f *fault.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &wrong):
		return fault.Errorf(fault.Invalid, "Invalid input for field/attribute %s. A %s is not what belongs there.", wrong.Field, wrong.Value)
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		return fault.Errorf(fault.Invalid, "Additional properties are not allowed (%s was unexpected)", strings.TrimPrefix(err.Error(), "json: unknown field "))
	default:
		return fault.Errorf(fault.Invalid, "Malformed request body: it is not valid JSON.")
	}
}
