package neutron

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// A kind is one of Neutron's resources.
type kind[T any] struct {
	name, plural string // as in bodies: "security_group", "security_groups"
	path         string // as in paths: "/security-groups"; under says below what
	under        string // a path before it, with {parent}
	things       network.Collection[T]

	attributes []attribute[T]
	fresh      func(a *identity.Actor) *T // a new one as the defaults have it
	// complete sees to what a request to create left out, or said beside what the thing is.
	complete func(c *call, body map[string]json.RawMessage, t *T) error
	within   func(parent resource.ID, t *T) error // puts a new one below its parent

	shape   func(c *call, t *T) object
	filters map[string]filter
	// prepare runs before a list is read.
	prepare func(ctx context.Context) error
	fixed   []network.Condition // of every list
}

// An attribute is something that a request can set.
type attribute[T any] struct {
	name      string
	post, put bool
	required  bool // in a request to create
	// parse reads a value; what it gives back is applied to the thing, in the order of the attributes.
	parse func(c *call, in json.RawMessage) (func(*T) error, error)
}

// A call is one request on its way.
type call struct {
	*server
	r     *http.Request
	actor *identity.Actor
	tx    *state.Tx // to render from
}

func (s *server) call(r *http.Request) (*call, error) {
	tx, err := s.networks.State.View(r.Context())
	return &call{s, r, identity.ActorOf(r.Context()), tx}, err
}

// serve gives a kind its routes.
func serve[T any](s *server, k *kind[T]) []route {
	base := "/v2.0" + k.under + k.path
	if k.under == "" {
		s.shown = append(s.shown, shownResource{k.name, strings.TrimPrefix(k.path, "/")})
	}
	return []route{
		{"DELETE " + base + "/{id}", k.remove},
		{"GET " + base, func(w http.ResponseWriter, r *http.Request) error { return k.list(s, w, r) }},
		{"GET " + base + "/{id}", func(w http.ResponseWriter, r *http.Request) error { return k.get(s, w, r) }},
		{"POST " + base, func(w http.ResponseWriter, r *http.Request) error { return k.create(s, w, r) }},
		{"PUT " + base + "/{id}", func(w http.ResponseWriter, r *http.Request) error { return k.update(s, w, r) }},
	}
}

// id reads an ID from the path; whatever is no ID names nothing.
func (k *kind[T]) id(r *http.Request, name string) (resource.ID, error) {
	id, err := resource.ParseID(r.PathValue(name))
	if err != nil || id.IsZero() {
		return id, fault.Errorf(fault.NotFound, "%s %s could not be found.", title(k.name), r.PathValue(name)).WithCode(k.name)
	}
	return id, nil
}

func title(name string) string {
	return strings.ToUpper(name[:1]) + strings.ReplaceAll(name[1:], "_", " ")
}

// expected is the revision that If-Match asks for (extension revision-if-match).
func expected(r *http.Request) (int64, error) {
	match := r.Header.Get("If-Match")
	if match == "" {
		return 0, nil
	}
	text, ok := strings.CutPrefix(match, "revision_number=")
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil || n <= 0 {
		return 0, bad("HTTPBadRequest", "Invalid value for If-Match: %s.", match)
	}
	return n, nil
}

func (k *kind[T]) get(s *server, w http.ResponseWriter, r *http.Request) error {
	id, err := k.id(r, "id")
	if err != nil {
		return err
	}
	t, err := k.things.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return k.answer(s, w, r, http.StatusOK, t)
}

func (k *kind[T]) remove(w http.ResponseWriter, r *http.Request) error {
	id, err := k.id(r, "id")
	if err != nil {
		return err
	}
	revision, err := expected(r)
	if err != nil {
		return err
	}
	if err := k.things.Delete(r.Context(), id, revision); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// answer writes one thing.
func (k *kind[T]) answer(s *server, w http.ResponseWriter, r *http.Request, status int, t *T) error {
	c, err := s.call(r)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, status, object{k.name: only(k.shape(c, t), r.URL.Query()["fields"])})
}
