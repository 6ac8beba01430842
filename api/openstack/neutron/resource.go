package neutron

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// object is a JSON object on its way out.
type object map[string]any

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

// A filter reads a query's parameter as a condition on one of the core's fields.
type filter struct {
	field string
	read  func(string) []string // nil: as it is
	mode  network.Mode
	// sortOnly: not a filter; noSort: not a sort key.
	noSort bool
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

// only keeps the fields that were asked for.
func only(o object, fields []string) object {
	if len(fields) == 0 {
		return o
	}
	for name := range o {
		if !slices.Contains(fields, name) {
			delete(o, name)
		}
	}
	return o
}

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
	edits, err := k.edits(c, body, true)
	if err != nil {
		return nil, err
	}
	for _, edit := range edits {
		if err := edit(t); err != nil {
			return nil, err
		}
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

// edits reads what a request sets, in the order of the attributes.
func (k *kind[T]) edits(c *call, body map[string]json.RawMessage, post bool) ([]func(*T) error, error) {
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
	return edits, k.unknown(body, seen, post)
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
	edits, err := k.edits(c, body, false)
	if err != nil {
		return err
	}
	t, err := k.things.Update(r.Context(), id, revision, func(t *T) error {
		for _, edit := range edits {
			if err := edit(t); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return k.answer(s, w, r, http.StatusOK, t)
}

func (k *kind[T]) list(s *server, w http.ResponseWriter, r *http.Request) error {
	if k.prepare != nil {
		if err := k.prepare(r.Context()); err != nil {
			return err
		}
	}
	q, err := k.query(r)
	if err != nil {
		return err
	}
	page, err := k.things.List(r.Context(), q)
	if err != nil {
		return err
	}
	c, err := s.call(r)
	if err != nil {
		return err
	}
	if q.Reverse {
		slices.Reverse(page.Items)
	}
	fields := r.URL.Query()["fields"]
	list := make([]object, len(page.Items))
	for i, t := range page.Items {
		list[i] = only(k.shape(c, t), fields)
	}
	answer := object{k.plural: list}
	if q.Limit > 0 {
		if links := pageLinks(r, page.Items, q, page.More); len(links) > 0 {
			answer[k.plural+"_links"] = links
		}
	}
	return wire.WriteJSON(w, http.StatusOK, answer)
}

// pageLinks lead to the pages beside this one.
func pageLinks[T any](r *http.Request, items []*T, q network.Query, more bool) []object {
	var links []object
	if len(items) == 0 {
		return nil
	}
	id := func(t *T) string { return any(t).(resource.Object).GetMeta().ID.String() }
	link := func(rel, marker string, back bool) {
		values := r.URL.Query()
		values.Del("page_reverse")
		if back {
			values.Set("page_reverse", "True")
		}
		values.Set("marker", marker)
		links = append(links, object{"rel": rel, "href": wire.BaseURL(r) + prefix + r.URL.Path + "?" + values.Encode()})
	}
	if !q.Reverse && more || q.Reverse && !q.Marker.IsZero() {
		link("next", id(items[len(items)-1]), false)
	}
	if !q.Reverse && !q.Marker.IsZero() || q.Reverse && more {
		link("previous", id(items[0]), true)
	}
	return links
}

// control are the parameters of a list that are no filters.
var control = []string{"limit", "marker", "page_reverse", "fields", "sort_key", "sort_dir"}

func (k *kind[T]) query(r *http.Request) (network.Query, error) {
	var q network.Query
	values := r.URL.Query()
	list, err := openstack.List(r, 0)
	if err != nil {
		return q, err
	}
	if s := values.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return q, bad("HTTPBadRequest", "Bad limit '%s': it must be an integer of at least 0.", s)
		}
		list.Limit = n
	}
	q.List = list
	if s := values.Get("page_reverse"); s != "" {
		if q.Reverse, err = parseBool("page_reverse", s); err != nil {
			return q, err
		}
	}
	if q.Sort, err = k.sort(values["sort_key"], values["sort_dir"]); err != nil {
		return q, err
	}
	q.Where = slices.Clone(k.fixed)
	if k.within != nil {
		q.Where = append(q.Where, network.Condition{Field: "floating", Values: []string{r.PathValue("parent")}})
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if slices.Contains(control, name) {
			continue
		}
		conditions, err := k.conditions(name, values[name])
		if err != nil {
			return q, err
		}
		q.Where = append(q.Where, conditions...)
	}
	return q, nil
}

func (k *kind[T]) sort(keys, dirs []string) ([]network.Order, error) {
	if len(keys) != len(dirs) && len(dirs) > 0 {
		return nil, bad("HTTPBadRequest", "The number of sort_keys and sort_dirs must be same")
	}
	var orders []network.Order
	for i, key := range keys {
		f, ok := k.filters[key]
		if !ok || f.noSort {
			return nil, bad("HTTPBadRequest", "'%s' is an invalid attribute for sort keys", key)
		}
		o := network.Order{Field: f.field}
		if len(dirs) > 0 {
			switch dirs[i] {
			case "asc":
			case "desc":
				o.Reverse = true
			default:
				return nil, bad("HTTPBadRequest", "'%s' is an invalid value for sort_dirs, value must be one of asc, desc", dirs[i])
			}
		}
		if o.Field == "id" && !o.Reverse && i == len(keys)-1 {
			continue // ties go by ID anyway
		}
		orders = append(orders, o)
	}
	return orders, nil
}

// conditions reads one filter. Several values of one name are alternatives.
func (k *kind[T]) conditions(name string, values []string) ([]network.Condition, error) {
	if name == "fixed_ips" && k.name == "port" {
		return fixedIPConditions(values)
	}
	f, ok := k.filters[name]
	if !ok {
		return nil, bad("HTTPBadRequest", "['%s'] is invalid attribute for filtering", name)
	}
	c := network.Condition{Field: f.field, Mode: f.mode}
	for _, v := range values {
		if f.read == nil {
			c.Values = append(c.Values, v)
			continue
		}
		c.Values = append(c.Values, f.read(v)...)
	}
	return []network.Condition{c}, nil
}

// fixedIPConditions reads fixed_ips=ip_address=…, subnet_id=… and ip_address_substr=….
func fixedIPConditions(values []string) ([]network.Condition, error) {
	parts := map[string]*network.Condition{
		"ip_address":        {Field: "address"},
		"subnet_id":         {Field: "subnet"},
		"ip_address_substr": {Field: "address", Mode: network.Contains},
	}
	for _, v := range values {
		name, value, ok := strings.Cut(v, "=")
		part := parts[name]
		if !ok || part == nil {
			return nil, bad("HTTPBadRequest", "'%s' is an invalid filter for fixed_ips", v)
		}
		if name == "ip_address" {
			value = addressText(value)
		}
		part.Values = append(part.Values, value)
	}
	var list []network.Condition
	for _, name := range []string{"ip_address", "subnet_id", "ip_address_substr"} {
		if len(parts[name].Values) > 0 {
			list = append(list, *parts[name])
		}
	}
	return list, nil
}

// common are the filters of every kind; own are the kind's.
func common(own map[string]filter) map[string]filter {
	fs := map[string]filter{
		"id": {field: "id", read: idText}, "name": {field: "name"},
		"project_id": {field: "project", read: idText}, "tenant_id": {field: "project", read: idText},
		"created_at": {field: "created"}, "updated_at": {field: "updated"}, "revision_number": {field: "revision"},
	}
	maps.Copy(fs, own)
	return fs
}

// tagged are the filters of kinds with tags (extension standard-attr-tag).
func tagged(own map[string]filter) map[string]filter {
	split := func(s string) []string { return strings.Split(s, ",") }
	fs := common(map[string]filter{
		"tags":         {field: "tag", read: split, mode: network.All, noSort: true},
		"tags-any":     {field: "tag", read: split, noSort: true},
		"not-tags":     {field: "tag", read: split, mode: network.NotAll, noSort: true},
		"not-tags-any": {field: "tag", read: split, mode: network.None, noSort: true},
		"description":  {field: "description"},
	})
	maps.Copy(fs, own)
	return fs
}

// Readers of filters' values.

func idText(s string) []string {
	if id, err := resource.ParseID(s); err == nil {
		return []string{id.String()}
	}
	return []string{s}
}

func boolText(s string) []string {
	b, err := parseBool("", s)
	if err != nil {
		return []string{s}
	}
	return []string{strconv.FormatBool(b)}
}

func lowerText(s string) []string { return []string{strings.ToLower(s)} }

// standard are the attributes that every shape begins with.
func standard(m *resource.Meta, description string, tags []string) object {
	if tags == nil {
		tags = []string{}
	}
	o := owned(m)
	o["description"], o["tags"] = description, tags
	o["created_at"], o["updated_at"] = stamp(m.CreatedAt), stamp(m.UpdatedAt)
	o["revision_number"] = m.Revision
	return o
}

func owned(m *resource.Meta) object {
	project := projectText(m.ProjectID)
	return object{"id": m.ID.String(), "name": m.Name, "project_id": project, "tenant_id": project}
}

// projectText spells a project's ID as Keystone does; what belongs to none has the empty text.
func projectText(id resource.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.Hex()
}

func idOrNull(id resource.ID) any {
	if id.IsZero() {
		return nil
	}
	return id.String()
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.String()
	}
	return out
}
