package neutron

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

func (k *kind[T]) create(s *server, w http.ResponseWriter, r *http.Request) error {
	c, err := s.call(r)
	if err != nil {
		return err
	}
	bodies, bulk, err := k.bodies(r)
	if err != nil {
		return err
	}
	want := make([]*T, len(bodies))
	for i, body := range bodies {
		if want[i], err = k.wish(c, body); err != nil {
			return err
		}
	}
	made, err := k.things.Create(r.Context(), want...)
	if err != nil {
		return err
	}
	if !bulk {
		return k.answer(s, w, r, http.StatusCreated, made[0])
	}
	if c, err = s.call(r); err != nil {
		return err
	}
	list := make([]object, len(made))
	for i, t := range made {
		list[i] = k.shape(c, t)
	}
	return wire.WriteJSON(w, http.StatusCreated, object{k.plural: list})
}

func (k *kind[T]) update(s *server, w http.ResponseWriter, r *http.Request) error {
	id, err := k.id(r, "id")
	if err != nil {
		return err
	}
	revision, err := expected(r)
	if err != nil {
		return err
	}
	c, err := s.call(r)
	if err != nil {
		return err
	}
	outer, err := decode(r)
	if err != nil {
		return err
	}
	body, err := k.inner(outer)
	if err != nil {
		return err
	}
	edit, err := k.edit(c, body, false)
	if err != nil {
		return err
	}
	t, err := k.things.Update(r.Context(), id, revision, edit)
	if err != nil {
		return err
	}
	return k.answer(s, w, r, http.StatusOK, t)
}

// bodies reads {"network": {…}} or {"networks": [{…}, …]}.
func (k *kind[T]) bodies(r *http.Request) (list []map[string]json.RawMessage, bulk bool, err error) {
	outer, err := decode(r)
	if err != nil {
		return nil, false, err
	}
	if raw, ok := outer[k.plural]; ok && len(outer) == 1 {
		if json.Unmarshal(raw, &list) != nil || slices.ContainsFunc(list, func(m map[string]json.RawMessage) bool { return m == nil }) {
			return nil, true, bad("HTTPBadRequest", "Invalid input for operation: '%s' must be a list of objects.", k.plural)
		}
		if len(list) == 0 {
			return nil, true, bad("HTTPBadRequest", "Resources required")
		}
		return list, true, nil
	}
	one, err := k.inner(outer)
	return []map[string]json.RawMessage{one}, false, err
}

func decode(r *http.Request) (map[string]json.RawMessage, error) {
	var outer map[string]json.RawMessage
	if err := openstack.Decode(r, &outer); err != nil {
		return nil, err
	}
	return outer, nil
}

func (k *kind[T]) inner(outer map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	raw, ok := outer[k.name]
	if !ok || len(outer) != 1 {
		return nil, bad("HTTPBadRequest", "Unable to find '%s' in request body", k.name)
	}
	var one map[string]json.RawMessage
	if json.Unmarshal(raw, &one) != nil || one == nil {
		return nil, bad("HTTPBadRequest", "Invalid input for operation: '%s' must be an object.", k.name)
	}
	return one, nil
}

// wish makes a new thing of a request's body.
func (k *kind[T]) wish(c *call, body map[string]json.RawMessage) (*T, error) {
	project, err := c.project(body)
	if err != nil {
		return nil, err
	}
	t := k.fresh(c.actor)
	any(t).(resource.Object).GetMeta().ProjectID = project
	if k.within != nil {
		parent, err := resource.ParseID(c.r.PathValue("parent"))
		if err != nil {
			return nil, fault.Errorf(fault.NotFound, "%s could not be found.", c.r.PathValue("parent"))
		}
		if err := k.within(parent, t); err != nil {
			return nil, err
		}
	}
	edit, err := k.edit(c, body, true)
	if err != nil {
		return nil, err
	}
	if err := edit(t); err != nil {
		return nil, err
	}
	if k.complete == nil {
		return t, nil
	}
	return t, k.complete(c, body, t)
}

// project is whose the new thing is to be. tenant_id is the older word for project_id.
func (c *call) project(body map[string]json.RawMessage) (resource.ID, error) {
	project := c.actor.ProjectID
	asked := map[string]bool{}
	for _, name := range []string{"project_id", "tenant_id"} {
		raw, ok := body[name]
		if !ok {
			continue
		}
		var text string
		if json.Unmarshal(raw, &text) != nil {
			return project, invalid(name, "'%s' is not a valid string", raw)
		}
		id, err := resource.ParseID(text)
		if err != nil {
			return project, invalid(name, "'%s' is not the ID of a project", text)
		}
		asked[id.String()] = true
		project = id
	}
	if len(asked) > 1 {
		return project, bad("HTTPBadRequest", "'project_id' and 'tenant_id' do not match")
	}
	if project != c.actor.ProjectID && !c.actor.Admin() {
		return project, bad("HTTPBadRequest", "Specifying 'project_id' or 'tenant_id' other than the authenticated project in request requires admin privileges")
	}
	if project.IsZero() {
		return project, bad("HTTPBadRequest", "Running without a project in the token requires that project_id is specified")
	}
	return project, nil
}

// edit reads what a request sets, and gives what sets it, in the order of the attributes.
func (k *kind[T]) edit(c *call, body map[string]json.RawMessage, post bool) (func(*T) error, error) {
	var edits []func(*T) error
	seen := 0
	for _, a := range k.attributes {
		raw, ok := body[a.name]
		if !ok {
			if a.required && post {
				return nil, bad("HTTPBadRequest", "Failed to parse request. Required attribute '%s' not specified", a.name)
			}
			continue
		}
		seen++
		if post && !a.post {
			return nil, bad("HTTPBadRequest", "Attribute '%s' not allowed in POST", a.name)
		}
		if !post && !a.put {
			return nil, bad("HTTPBadRequest", "Cannot update read-only attribute %s", a.name)
		}
		edit, err := a.parse(c, raw)
		if err != nil {
			return nil, err
		}
		edits = append(edits, edit)
	}
	return func(t *T) error {
		for _, edit := range edits {
			if err := edit(t); err != nil {
				return err
			}
		}
		return nil
	}, k.unknown(body, seen, post)
}

// unknown refuses what no attribute is called.
func (k *kind[T]) unknown(body map[string]json.RawMessage, seen int, post bool) error {
	if seen == len(body) {
		return nil
	}
	var strange []string
	for name := range body {
		known := slices.ContainsFunc(k.attributes, func(a attribute[T]) bool { return a.name == name })
		switch {
		case known, post && (name == "project_id" || name == "tenant_id"):
		case slices.Contains(readOnly, name):
			verb := "PUT"
			if post {
				verb = "POST"
			}
			return bad("HTTPBadRequest", "Attribute '%s' not allowed in %s", name, verb)
		default:
			strange = append(strange, name)
		}
	}
	if strange == nil {
		return nil
	}
	slices.Sort(strange)
	return bad("HTTPBadRequest", "Unrecognized attribute(s) '%s'", strings.Join(strange, ", "))
}

// readOnly are attributes of every kind that no request sets.
var readOnly = []string{"id", "status", "created_at", "updated_at", "revision_number", "tags", "project_id", "tenant_id"}
