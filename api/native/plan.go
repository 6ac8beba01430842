package native

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A plan is tried on a fork of the state that nobody else sees and that is thrown away. One
// request is planned by its own header, in any dialect; several that build on each other here: each
// finds what those before it would have made.

// A planRequest is what POST /plan takes.
type planRequest struct {
	Requests []tried `json:"requests"`
}

// A tried request is one of any dialect, as its client would send it.
type tried struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"` // as on the wire, with its query
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
}

// A planned is the answer: what each request would be told, and what would change in all.
type planned struct {
	RequestID string     `json:"request_id"`
	Responses []response `json:"responses,omitempty"`
	Changes   []change   `json:"changes"`
	Quota     *quota     `json:"quota"` // of the token's project, as it would be; null if it has none
}

type response struct {
	Status int             `json:"status"`
	Body   json.RawMessage `json:"body"` // text that is no JSON stands here as a string
}

type change struct {
	Action  string          `json:"action"` // "create", "update" or "delete"
	Kind    string          `json:"kind"`
	ID      resource.ID     `json:"id"`
	Name    string          `json:"name"`
	Object  json.RawMessage `json:"object"`  // as it would be; null if it would be gone, or is of a kind that is not shown
	Changed []string        `json:"changed"` // which of its fields differ
}

const (
	mostTried    = 64
	mostAnswered = 1 << 20 // bytes that are kept of one answer
)

// refused headers are set by us, or would lead out of the plan.
var refusedHeaders = []string{"X-Auth-Token", "Authorization", "Idempotency-Key", "Connection", "Upgrade", "Host",
	"Content-Length", "Transfer-Encoding"}

func (s *Server) plan(w http.ResponseWriter, r *http.Request) error {
	var asked planRequest
	if err := readJSON(r, &asked); err != nil {
		return err
	}
	if n := len(asked.Requests); n == 0 || n > mostTried {
		return fault.InvalidField("requests", "must be 1 to %d", mostTried).WithCode("invalid-value")
	}
	if state.Planning(r.Context()) {
		return fault.Errorf(fault.Invalid, "This is a plan already: leave the header %s out.", wire.PlanHeader).WithCode("invalid-value")
	}
	p := new(state.Plan)
	ctx := state.WithPlan(r.Context(), p)
	responses := []response{}
	for i, t := range asked.Requests {
		request, err := t.request(r)
		if err != nil {
			return fault.InvalidField(fmt.Sprintf("requests[%d]", i), "%s", err.Error()).WithCode("invalid-value")
		}
		answer := &recorder{header: http.Header{}}
		s.Dialects.ServeHTTP(answer, request.WithContext(ctx))
		responses = append(responses, answer.response())
		if answer.status >= 400 {
			break // those that follow build on it
		}
	}
	out, err := s.planned(ctx, p, responses)
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, out)
	return nil
}

// request makes the request to try, with the token of the one that asks for the plan.
func (t *tried) request(r *http.Request) (*http.Request, error) {
	if !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE"}, t.Method) {
		return nil, wrong("must have a method that changes something: POST, PUT, PATCH or DELETE")
	}
	at, err := url.ParseRequestURI(t.Path)
	if err != nil || !strings.HasPrefix(t.Path, "/") || strings.HasPrefix(t.Path, "//") {
		return nil, wrong("must have a path that begins with a slash")
	}
	if path.Clean(at.Path) == "/v1/plan" {
		return nil, wrong("cannot be a plan itself")
	}
	q := r.Clone(r.Context())
	q.Method, q.URL, q.RequestURI, q.Pattern = t.Method, at, t.Path, ""
	q.Body, q.ContentLength = http.NoBody, int64(len(t.Body))
	q.Header = http.Header{"Accept": {"application/json"}}
	if len(t.Body) > 0 {
		q.Body = readCloser{bytes.NewReader(t.Body)}
		q.Header.Set("Content-Type", "application/json")
	}
	for name, value := range t.Headers {
		canonical := http.CanonicalHeaderKey(name)
		if slices.Contains(refusedHeaders, canonical) || strings.HasPrefix(canonical, "Unkai-") {
			return nil, wrong("cannot have the header " + canonical)
		}
		q.Header.Set(canonical, value)
	}
	q.Header.Set("X-Auth-Token", tokenOf(r))
	return q, nil
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// A recorder keeps the answer to a request that is tried.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (c *recorder) Header() http.Header { return c.header }

func (c *recorder) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
}

func (c *recorder) Write(b []byte) (int, error) {
	c.WriteHeader(http.StatusOK)
	if room := mostAnswered - c.body.Len(); room > 0 {
		c.body.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

func (c *recorder) response() response {
	c.WriteHeader(http.StatusOK)
	body := bytes.TrimSpace(c.body.Bytes())
	switch {
	case len(body) == 0:
		return response{c.status, json.RawMessage("null")}
	case json.Valid(body):
		return response{c.status, body}
	}
	text, err := json.Marshal(string(body))
	if err != nil {
		text = []byte("null") // a string always has a spelling
	}
	return response{c.status, text}
}

// Planned tells what a plan would change, in the context that it was made in, as far as the actor
// would see it: as with a list of each kind, and with the same fields. It is a wire.Describer.
func (s *Server) Planned(ctx context.Context, p *state.Plan) (any, error) {
	return s.planned(ctx, p, nil)
}

func (s *Server) planned(ctx context.Context, p *state.Plan, responses []response) (*planned, error) {
	out := &planned{RequestID: wire.RequestID(ctx), Responses: responses, Changes: []change{}}
	a := identity.ActorOf(ctx)
	see := sightOf(a, a.Admin())
	before := s.State.Latest()
	after, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range p.Changes() {
		k := s.byName[e.Kind]
		if k == nil {
			if c, ok := unshown(e, a); ok {
				out.Changes = append(out.Changes, c)
			}
			continue
		}
		c, ok, err := k.change(e, see, before, after)
		if err != nil {
			return nil, err
		}
		if ok {
			out.Changes = append(out.Changes, c)
		}
	}
	if out.Quota, err = s.plannedQuota(ctx); err != nil {
		return nil, err
	}
	return out, nil
}

// unshown tells that a thing would change whose kind the registry does not show: an admin of any,
// others of their project's own. What is kept about the request itself is no change.
func unshown(e state.Event, a *identity.Actor) (change, bool) {
	c := change{Action: "update", Kind: e.Kind, ID: e.ID, Object: json.RawMessage("null"), Changed: []string{}}
	object := e.After
	switch {
	case e.Before == nil:
		c.Action = "create"
	case e.After == nil:
		c.Action, object = "delete", e.Before
	}
	m := object.GetMeta()
	c.Name = m.Name
	_, receipt := object.(*state.Receipt)
	own := !m.ProjectID.IsZero() && m.ProjectID == a.ProjectID && a.Has("reader")
	return c, !receipt && (a.Admin() || own)
}

func (k *kind) change(e state.Event, see sight, before, after *state.Tx) (change, bool, error) {
	c := change{Kind: k.name, ID: e.ID, Changed: []string{}}
	was := e.Before != nil && k.sees(before, see, e.Before)
	is := e.After != nil && k.sees(after, see, e.After)
	shown := e.After
	switch {
	case was && is:
		c.Action, c.Changed = "update", k.shape.changed(e.Before, e.After, k.levelOf(see, e.After))
	case is:
		c.Action = "create"
	case was:
		c.Action, shown = "delete", e.Before
	default:
		return c, false, nil
	}
	c.Name = shown.GetMeta().Name
	if c.Action == "delete" {
		c.Object = json.RawMessage("null")
		return c, true, nil
	}
	var b bytes.Buffer
	if err := k.shape.encode(&b, shown, k.levelOf(see, shown)); err != nil {
		return c, false, fmt.Errorf("encode %s %s: %w", k.name, e.ID, err)
	}
	c.Object = b.Bytes()
	return c, true, nil
}
