package glance

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// resourceTypes are the kinds of things that Glance knows from the start to be described.
var resourceTypes = []string{"OS::Cinder::Volume", "OS::Glance::Image", "OS::Nova::Aggregate", "OS::Nova::Flavor", "OS::Nova::Server", "OS::Trove::Instance"}

// A part is one sort of definitions in a namespace, by its name in the path.
type part struct {
	noun   string
	schema string
	list   func(*image.Namespace) *[]image.Definition
	stamps bool // shows when it was written
	keyed  bool // is listed as an object by name
	under  string
}

var parts = map[string]part{
	"objects":        {"object", "object", func(n *image.Namespace) *[]image.Definition { return &n.Objects }, true, false, "objects"},
	"properties":     {"property", "property", func(n *image.Namespace) *[]image.Definition { return &n.Properties }, false, true, "properties"},
	"tags":           {"tag", "tag", func(n *image.Namespace) *[]image.Definition { return &n.Tags }, true, false, "tags"},
	"resource_types": {"resource type association", "resource_type", func(n *image.Namespace) *[]image.Definition { return &n.Kinds }, true, false, "resource_type_associations"},
}

func partOf(r *http.Request) (part, error) {
	p, ok := parts[r.PathValue("part")]
	if !ok {
		return p, fault.Errorf(fault.NotFound, "The resource could not be found.")
	}
	return p, nil
}

func namespaceView(n *image.Namespace, whole bool) map[string]any {
	v := map[string]any{
		"namespace": n.Name, "display_name": n.Title, "description": n.Description, "visibility": string(n.Visibility),
		"protected": n.Protected, "owner": orNull(hexOf(n.ProjectID)), "created_at": stamp(n.CreatedAt), "updated_at": stamp(n.UpdatedAt),
		"self": "/v2/metadefs/namespaces/" + n.Name, "schema": "/v2/schemas/metadefs/namespace",
	}
	for name, p := range parts {
		if list := *p.list(n); len(list) > 0 && (whole || name == "resource_types") {
			v[p.under] = p.views(n, list)
		}
	}
	return v
}

func (p part) views(n *image.Namespace, list []image.Definition) any {
	if p.keyed {
		all := map[string]any{}
		for _, d := range list {
			all[d.Name] = p.view(n, d)
		}
		return all
	}
	all := make([]map[string]any, len(list))
	for i, d := range list {
		all[i] = p.view(n, d)
	}
	return all
}

func (p part) view(n *image.Namespace, d image.Definition) map[string]any {
	v := map[string]any{}
	var body fields
	if json.Unmarshal(d.Body, &body) == nil {
		for key, value := range body {
			v[key] = value
		}
	}
	v["name"] = d.Name
	if p.stamps {
		v["created_at"], v["updated_at"] = stamp(d.CreatedAt), stamp(d.UpdatedAt)
	}
	if p.schema == "object" {
		v["self"] = "/v2/metadefs/namespaces/" + n.Name + "/objects/" + d.Name
		v["schema"] = "/v2/schemas/metadefs/object"
		for key, empty := range map[string]any{"required": []string{}, "properties": map[string]any{}} {
			if v[key] == nil {
				v[key] = empty
			}
		}
	}
	return v
}

// definition reads one from JSON; name stands in for one that the body lacks.
func (p part) definition(body fields, name string) (image.Definition, error) {
	d := image.Definition{Name: name}
	if raw, ok := body["name"]; ok {
		if err := decode(raw, "name", "a string", &d.Name); err != nil {
			return d, err
		}
	}
	if d.Name == "" {
		return d, fault.Errorf(fault.Invalid, "Provided object does not match schema '%s': 'name' is a required property", p.noun)
	}
	if p.schema == "property" {
		for _, key := range []string{"title", "type"} {
			var s string
			if json.Unmarshal(body[key], &s) != nil {
				return d, fault.Errorf(fault.Invalid, "Provided object does not match schema 'property': '%s' is a required property", key)
			}
		}
	}
	keep := maps.Clone(body)
	for _, key := range []string{"name", "created_at", "updated_at", "self", "schema"} {
		delete(keep, key)
	}
	var err error
	d.Body, err = json.Marshal(keep)
	return d, err
}

// definitions reads a list, or for properties an object by name.
func (p part) definitions(raw json.RawMessage) ([]image.Definition, error) {
	var list []image.Definition
	add := func(body fields, name string) error {
		d, err := p.definition(body, name)
		list = append(list, d)
		return err
	}
	if p.keyed {
		var all map[string]fields
		if err := decode(raw, p.under, "an object of objects", &all); err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if err := add(all[name], name); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	var all []fields
	if err := decode(raw, p.under, "a list of objects", &all); err != nil {
		return nil, err
	}
	for _, body := range all {
		if err := add(body, ""); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// namespaceParts are what else may stand in the body: what is said elsewhere, or only by us.
var namespaceParts = []string{"objects", "properties", "tags", "resource_type_associations", "self", "schema", "created_at", "updated_at"}

// readNamespace applies a body to a namespace.
func readNamespace(n *image.Namespace, body fields) error {
	var owner, visibility string
	own := map[string]any{
		"namespace": &n.Name, "display_name": &n.Title, "description": &n.Description, "visibility": &visibility,
		"protected": &n.Protected, "owner": &owner,
	}
	if _, ok := body["namespace"]; !ok {
		return fault.Errorf(fault.Invalid, "Provided object does not match schema 'namespace': 'namespace' is a required property")
	}
	for key, raw := range body {
		switch into := own[key]; {
		case into != nil:
			if err := decode(raw, key, "of its type", into); err != nil {
				return err
			}
		case !slices.Contains(namespaceParts, key):
			return fault.Errorf(fault.Invalid, "Provided object does not match schema 'namespace': Additional properties are not allowed ('%s' was unexpected)", key)
		}
	}
	if visibility != "" {
		n.Visibility = image.Visibility(visibility)
	}
	if owner != "" {
		id, err := resource.ParseID(owner)
		if err != nil {
			return fault.InvalidField("owner", "must be the ID of a project")
		}
		n.ProjectID = id
	}
	return nil
}

func (s *server) listNamespaces(w http.ResponseWriter, r *http.Request) error {
	all, err := s.images.Namespaces(r.Context())
	if err != nil {
		return err
	}
	want := r.URL.Query().Get("visibility")
	list := []map[string]any{}
	for _, n := range all {
		if want == "" || string(n.Visibility) == want {
			list = append(list, namespaceView(n, false))
		}
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"namespaces": list, "first": "/v2/metadefs/namespaces", "schema": "/v2/schemas/metadefs/namespaces"})
}

func (s *server) createNamespace(w http.ResponseWriter, r *http.Request) error {
	body, err := readObject(r)
	if err != nil {
		return err
	}
	n := &image.Namespace{Visibility: image.Private}
	if err := readNamespace(n, body); err != nil {
		return err
	}
	for _, p := range parts {
		raw, ok := body[p.under]
		if !ok {
			continue
		}
		list, err := p.definitions(raw)
		if err != nil {
			return err
		}
		*p.list(n) = list
	}
	made, err := s.images.CreateNamespace(r.Context(), n)
	if err != nil {
		return err
	}
	w.Header().Set("Location", wire.BaseURL(r)+prefix+"/v2/metadefs/namespaces/"+made.Name)
	return wire.WriteJSON(w, http.StatusCreated, namespaceView(made, true))
}

func (s *server) showNamespace(w http.ResponseWriter, r *http.Request) error {
	n, err := s.images.Namespace(r.Context(), r.PathValue("namespace"))
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, namespaceView(n, true))
}

func (s *server) updateNamespace(w http.ResponseWriter, r *http.Request) error {
	body, err := readObject(r)
	if err != nil {
		return err
	}
	n, err := s.images.UpdateNamespace(r.Context(), r.PathValue("namespace"), func(n *image.Namespace, _ time.Time) error {
		return readNamespace(n, body)
	})
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, namespaceView(n, false))
}

func (s *server) deleteNamespace(w http.ResponseWriter, r *http.Request) error {
	if err := s.images.DeleteNamespace(r.Context(), r.PathValue("namespace")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) listResourceTypes(w http.ResponseWriter, r *http.Request) error {
	all, err := s.images.Namespaces(r.Context())
	if err != nil {
		return err
	}
	names := slices.Clone(resourceTypes)
	for _, n := range all {
		for _, d := range n.Kinds {
			if !slices.Contains(names, d.Name) {
				names = append(names, d.Name)
			}
		}
	}
	list := make([]map[string]string, len(names))
	for n, name := range names {
		list[n] = map[string]string{"name": name}
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"resource_types": list, "schema": "/v2/schemas/metadefs/resource_types"})
}

func (s *server) listDefinitions(w http.ResponseWriter, r *http.Request) error {
	p, err := partOf(r)
	if err != nil {
		return err
	}
	n, err := s.images.Namespace(r.Context(), r.PathValue("namespace"))
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{p.under: p.views(n, *p.list(n))})
}

func (s *server) showDefinition(w http.ResponseWriter, r *http.Request) error {
	p, err := partOf(r)
	if err != nil {
		return err
	}
	n, err := s.images.Namespace(r.Context(), r.PathValue("namespace"))
	if err != nil {
		return err
	}
	return p.writeOne(w, http.StatusOK, n, r.PathValue("name"))
}

func (p part) find(n *image.Namespace, name string) (int, error) {
	at := slices.IndexFunc(*p.list(n), func(d image.Definition) bool { return d.Name == name })
	if at < 0 {
		return at, fault.Errorf(fault.NotFound, "The metadata definition %s with name=%.255s was not found in namespace=%s.", p.noun, name, n.Name)
	}
	return at, nil
}

func (p part) writeOne(w http.ResponseWriter, status int, n *image.Namespace, name string) error {
	at, err := p.find(n, name)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, status, p.view(n, (*p.list(n))[at]))
}

// createDefinition adds one, or replaces all tags at once.
func (s *server) createDefinition(w http.ResponseWriter, r *http.Request) error {
	p, err := partOf(r)
	if err != nil {
		return err
	}
	body, err := readObject(r)
	if err != nil {
		return err
	}
	if p.schema == "tag" {
		return s.replaceTags(w, r, p, body)
	}
	d, err := p.definition(body, "")
	if err != nil {
		return err
	}
	n, err := s.add(r, p, d)
	if err != nil {
		return err
	}
	return p.writeOne(w, http.StatusCreated, n, d.Name)
}

func (s *server) add(r *http.Request, p part, d image.Definition) (*image.Namespace, error) {
	return s.images.UpdateNamespace(r.Context(), r.PathValue("namespace"), func(n *image.Namespace, now time.Time) error {
		d.CreatedAt, d.UpdatedAt = now, now
		list := p.list(n)
		*list = append(*list, d)
		return nil
	})
}

func (s *server) replaceTags(w http.ResponseWriter, r *http.Request, p part, body fields) error {
	tags, err := p.definitions(body["tags"])
	if err != nil {
		return err
	}
	n, err := s.images.UpdateNamespace(r.Context(), r.PathValue("namespace"), func(n *image.Namespace, now time.Time) error {
		for at := range tags {
			tags[at].CreatedAt, tags[at].UpdatedAt = now, now
		}
		n.Tags = tags
		return nil
	})
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, map[string]any{"tags": p.views(n, n.Tags)})
}

// createTagDefinition adds the tag that the path names.
func (s *server) createTagDefinition(w http.ResponseWriter, r *http.Request) error {
	p, err := partOf(r)
	if err != nil {
		return err
	}
	if p.schema != "tag" {
		return fault.Errorf(fault.NotFound, "The resource could not be found.")
	}
	d, err := p.definition(nil, r.PathValue("name"))
	if err != nil {
		return err
	}
	n, err := s.add(r, p, d)
	if err != nil {
		return err
	}
	return p.writeOne(w, http.StatusCreated, n, d.Name)
}

func (s *server) updateDefinition(w http.ResponseWriter, r *http.Request) error {
	p, err := partOf(r)
	if err != nil {
		return err
	}
	if p.schema == "resource_type" {
		return fault.Errorf(fault.NotFound, "The resource could not be found.")
	}
	body, err := readObject(r)
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	d, err := p.definition(body, name)
	if err != nil {
		return err
	}
	n, err := s.images.UpdateNamespace(r.Context(), r.PathValue("namespace"), func(n *image.Namespace, now time.Time) error {
		at, err := p.find(n, name)
		if err != nil {
			return err
		}
		was := &(*p.list(n))[at]
		d.CreatedAt, d.UpdatedAt = was.CreatedAt, now
		*was = d
		return nil
	})
	if err != nil {
		return err
	}
	return p.writeOne(w, http.StatusOK, n, d.Name)
}

func (s *server) deleteDefinition(w http.ResponseWriter, r *http.Request) error {
	p, err := partOf(r)
	if err != nil {
		return err
	}
	if _, err := s.images.UpdateNamespace(r.Context(), r.PathValue("namespace"), func(n *image.Namespace, _ time.Time) error {
		at, err := p.find(n, r.PathValue("name"))
		if err != nil {
			return err
		}
		list := p.list(n)
		*list = slices.Delete(*list, at, at+1)
		return nil
	}); err != nil {
		return err
	}
	return noContent(w)
}

// clearDefinitions takes all of one sort away.
func (s *server) clearDefinitions(w http.ResponseWriter, r *http.Request) error {
	p, err := partOf(r)
	if err != nil {
		return err
	}
	if _, err := s.images.UpdateNamespace(r.Context(), r.PathValue("namespace"), func(n *image.Namespace, _ time.Time) error {
		*p.list(n) = nil
		return nil
	}); err != nil {
		return err
	}
	return noContent(w)
}
