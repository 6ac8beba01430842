package native

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/api/wire"
)

// An about is what the description says of a route beyond its path.
type about struct {
	id, summary string
	tag         string
	parameters  func(k *kind) []node // beside those of the path
	body        string               // the schema of the request's body
	answers     map[int]answer
	errors      []int
}

type answer struct {
	what, schema, media string
}

type node = map[string]any

var (
	aboutIndex   = about{id: "index", summary: "What is here.", tag: "about", answers: map[int]answer{200: {what: "The kinds, by their paths.", schema: "Index"}}}
	aboutOpenAPI = about{id: "openapi", summary: "This description.", tag: "about",
		answers: map[int]answer{200: {what: "An OpenAPI 3.1 document."}}}
	aboutHealth = about{id: "health", summary: "Whether the control plane takes changes. An admin's token is told more.", tag: "about",
		answers: map[int]answer{200: {what: "All is well.", schema: "Health"}, 503: {what: "No change can be stored now.", schema: "Health"}}}
	aboutWatch = about{id: "watch", summary: "Follow the changes of several kinds; of all that may be read when none is named.", tag: "watch",
		parameters: func(*kind) []node {
			return []node{query("kinds", "Paths of kinds, separated by commas.", text()), sinceParameter, allParameter}
		},
		answers: map[int]answer{200: {what: "A line for each change, until the token ends.", schema: "Change", media: "application/x-ndjson"}},
		errors:  []int{400, 403, 410}}
	aboutQuota = about{id: "quota", summary: "What a project may have, and has.", tag: "about",
		parameters: func(*kind) []node {
			return []node{query("project_id", "Another project than the token's. Only for an admin.", node{"type": "string", "format": "uuid"}), asOfParameter}
		},
		answers: map[int]answer{200: {what: "The quota.", schema: "Quota"}}, errors: []int{400, 403, 410}}
	aboutList = about{id: "list", summary: "List, page by page; or watch, with watch=true, the same selection.",
		parameters: (*kind).parameters,
		answers:    map[int]answer{200: {what: "A page, and the revision that it shows; or, for a watch, a line for each change.", schema: "List"}},
		errors:     []int{400, 403, 410}}
	aboutGet = about{id: "get", summary: "Read one.", parameters: asOfOnly,
		answers: map[int]answer{200: {what: "It, as it was at the revision in the header."}}, errors: []int{404, 410}}
	aboutWhy = about{id: "why", summary: "Why it was decided as it was: the newest decision, as the placement of a server.", parameters: asOfOnly,
		answers: map[int]answer{200: {what: "The decision.", schema: "Reason"}}, errors: []int{404, 410}}
	aboutCancel = about{id: "cancelOperation", summary: "End an operation that is no longer wanted.", tag: "operations", parameters: changing,
		answers: map[int]answer{202: {what: "It has ended as cancelled. Its target may still be on its way.", schema: "Operation"}, 200: planAnswer}, errors: []int{403, 404, 409}}
	aboutPatchHost = about{id: "patchHost", summary: "Keep new servers off a host, or let them on it again.", tag: "hosts", body: "HostPatch",
		parameters: changing, answers: map[int]answer{200: {what: "The host; or, with the header Unkai-Plan, a plan.", schema: "Host"}}, errors: []int{400, 404}}
	aboutPlan = about{id: "plan", summary: "Try requests of any dialect, one after the other, on a fork that is thrown away.", tag: "plan",
		body: "PlanRequest", answers: map[int]answer{200: planAnswer}, errors: []int{400, 413}}
	planAnswer = answer{what: "What would change.", schema: "Plan"}
)

var (
	sinceParameter = query("since", "Only changes after this revision: of a list, or the resume of a line. Without it: from now on.", integer(0))
	allParameter   = query("all_projects", "Of every project. Only for an admin.", node{"type": "boolean", "default": false})
	asOfParameter  = node{"name": wire.AsOfHeader, "in": "header", "description": "Read as of this time or revision, as long as it is kept.", "schema": text()}
	planParameter  = node{"name": wire.PlanHeader, "in": "header", "description": "true: change nothing, and answer what would change.", "schema": node{"type": "boolean"}}
	onceParameter  = node{"name": wire.OnceHeader, "in": "header", "description": "The same request with the same key has one effect.", "schema": node{"type": "string", "maxLength": 255}}
)

func asOfOnly(*kind) []node { return []node{asOfParameter} }
func changing(*kind) []node { return []node{planParameter, onceParameter} }

func text() node             { return node{"type": "string"} }
func integer(least int) node { return node{"type": "integer", "format": "int64", "minimum": least} }
func ref(schema string) node { return node{"$ref": "#/components/schemas/" + schema} }

func query(name, what string, schema node) node {
	return node{"name": name, "in": "query", "description": what, "schema": schema}
}

// parameters are those of a list: how much of it, and a filter for each field.
func (k *kind) parameters() []node {
	all := []node{
		query("limit", "At most so many.", node{"type": "integer", "minimum": 1, "maximum": maxLimit, "default": defaultLimit}),
		query("marker", "The next of the page before.", node{"type": "string", "format": "uuid"}),
		query("sort", "Fields, separated by commas; with - before one, downwards. Without it: in the order of making.", text()),
		allParameter,
		query("watch", "true: follow the changes.", node{"type": "boolean", "default": false}),
		sinceParameter, asOfParameter,
	}
	for _, name := range k.shape.paths("") {
		w, _ := k.shape.find(name, false)
		p := query(name, "Only those with one of these values; an empty one stands for none.", node{"type": "array", "items": text()})
		p["style"], p["explode"] = "form", true
		if w.leaf.form == boolForm {
			p["schema"] = node{"type": "array", "items": node{"type": "string", "enum": []string{"true", "false", ""}}}
		}
		if w.level != everybody {
			p["x-unkai-shown-to"] = levelNames[w.level]
		}
		all = append(all, p)
	}
	return all
}

// paths are the names of all scalars that can be named without a map's key.
func (s *shape) paths(prefix string) []string {
	switch s.form {
	case objectForm:
		var all []string
		for i := range s.fields {
			f := &s.fields[i]
			all = append(all, f.paths(strings.TrimPrefix(prefix+"."+f.name, "."))...)
		}
		return all
	case listForm:
		return s.elem.paths(prefix)
	case mapForm, rawForm, bytesForm:
		return nil
	}
	return []string{prefix}
}

// schema describes a shape.
func (s *shape) schema() node {
	var n node
	null := s.nullable
	switch s.form {
	case textForm:
		n = text()
	case boolForm:
		n = node{"type": "boolean"}
	case intForm:
		n = node{"type": "integer", "format": "int64"}
	case floatForm:
		n = node{"type": "number", "format": "double"}
	case idForm:
		n, null = node{"type": "string", "format": "uuid"}, true
	case timeForm:
		n, null = node{"type": "string", "format": "date-time"}, true
	case spelledForm:
		n, null = text(), true
	case bytesForm:
		n = node{"type": "string", "contentEncoding": "base64"}
	case rawForm:
		return node{}
	case listForm:
		n = node{"type": "array", "items": s.elem.schema()}
	case mapForm:
		n = node{"type": "object", "additionalProperties": s.elem.schema()}
	case objectForm:
		n = s.objectSchema()
	}
	if null {
		n["type"] = []string{n["type"].(string), "null"}
	}
	return n
}

func (s *shape) objectSchema() node {
	properties := node{}
	required := []string{}
	for i := range s.fields {
		f := &s.fields[i]
		p := f.schema()
		if f.level == everybody {
			required = append(required, f.name)
		} else {
			p["x-unkai-shown-to"] = levelNames[f.level]
		}
		properties[f.name] = p
	}
	return node{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
}

// schemaOf describes a Go type that is written with encoding/json.
func schemaOf(t reflect.Type) node {
	switch {
	case t == idType:
		return node{"type": "string", "format": "uuid"}
	case t == timeType:
		return node{"type": "string", "format": "date-time"}
	case t == rawType:
		return node{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		n := schemaOf(t.Elem())
		if name, ok := n["type"].(string); ok {
			n["type"] = []string{name, "null"}
		}
		return n
	case reflect.String:
		return text()
	case reflect.Bool:
		return node{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return node{"type": "integer", "format": "int64"}
	case reflect.Float64:
		return node{"type": "number", "format": "double"}
	case reflect.Slice:
		return node{"type": "array", "items": schemaOf(t.Elem())}
	case reflect.Map:
		return node{"type": "object", "additionalProperties": schemaOf(t.Elem())}
	case reflect.Struct:
		return structSchema(t)
	}
	panic("native: no schema for " + t.String())
}

func structSchema(t reflect.Type) node {
	properties := node{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		properties[name] = schemaOf(t.Field(i).Type)
	}
	return node{"type": "object", "properties": properties, "additionalProperties": false}
}

// fixed are the schemas that are no kind's.
func fixed() node {
	request := schemaOf(reflect.TypeFor[planRequest]())
	request["required"] = []string{"requests"}
	return node{
		"Error":        schemaOf(reflect.TypeFor[failure]()),
		"Health":       schemaOf(reflect.TypeFor[health]()),
		"Reason":       schemaOf(reflect.TypeFor[reason]()),
		"HostPatch":    schemaOf(reflect.TypeFor[hostPatch]()),
		"Retirement":   schemaOf(reflect.TypeFor[retirement]()),
		"Leavings":     schemaOf(reflect.TypeFor[leavings]()),
		"Relocation":   schemaOf(reflect.TypeFor[relocation]()),
		"Forecast":     schemaOf(reflect.TypeFor[forecast]()),
		"Fencing":      schemaOf(reflect.TypeFor[fencing]()),
		"KeepPatch":    schemaOf(reflect.TypeFor[keepPatch]()),
		"Keeping":      schemaOf(reflect.TypeFor[keeping]()),
		"KeepingPatch": schemaOf(reflect.TypeFor[keepingPatch]()),
		"PlanRequest":  request,
		"Plan":         schemaOf(reflect.TypeFor[planned]()),
		"Quota":        schemaOf(reflect.TypeFor[quota]()),
		"Index": node{"type": "object", "properties": node{"version": text(), "release": text(), "description": text(),
			"kinds": node{"type": "array", "items": text()}}},
		"Change": node{"type": "object", "required": []string{"type", "revision", "resume"}, "properties": node{
			"type":     node{"type": "string", "enum": []string{"created", "updated", "deleted", "alive", "end"}},
			"revision": integer(0),
			"resume":   node{"type": "integer", "format": "int64", "minimum": 0, "description": "Give this as since to go on after this line without a gap."},
			"time":     node{"type": "string", "format": "date-time"},
			"kind":     text(),
			"id":       node{"type": "string", "format": "uuid"},
			"object":   node{"type": []string{"object", "null"}, "description": "As a get would show it; null when it is gone, or out of sight."},
			"changed":  node{"type": "array", "items": text()},
			"cause":    schemaOf(reflect.TypeFor[cause]()),
			"code":     node{"type": "string", "description": "Why the stream ended."},
			"message":  text(),
		}},
	}
}

// describe makes the OpenAPI document.
func (s *Server) describe() []byte {
	schemas := fixed()
	tags := []node{{"name": "about"}, {"name": "watch"}}
	for _, k := range s.kinds {
		schemas[k.title] = k.shape.schema()
		schemas[k.title+"List"] = node{"type": "object", "required": []string{"kind", "revision", "next", "items"},
			"additionalProperties": false, "properties": node{
				"kind": node{"const": k.name}, "revision": integer(0), "next": node{"type": []string{"string", "null"}, "format": "uuid"},
				"items": node{"type": "array", "items": ref(k.title)}}}
		tags = append(tags, node{"name": k.path})
	}
	paths := map[string]node{}
	for _, r := range s.routes() {
		path := strings.TrimSuffix(r.path, "{$}")
		if !strings.Contains(path, "{kind}") {
			addOperation(paths, path, r, nil)
			continue
		}
		for _, k := range s.kinds {
			addOperation(paths, strings.ReplaceAll(path, "{kind}", k.path), r, k)
		}
	}
	if s.Dialects != nil {
		tags = append(tags, node{"name": "plan"})
	}
	document, err := json.Marshal(node{
		"openapi": "3.1.0",
		"info": node{"title": "Unkai", "version": "v1", "license": node{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "Every kind is read in one way. Fields of type " + quote("uuid") + " and times are null when they stand for nothing. " +
				"Fields marked x-unkai-shown-to are left out for everybody else."},
		"servers":    []node{{"url": "/v1"}},
		"tags":       tags,
		"security":   []node{{"token": []string{}}, {"bearer": []string{}}},
		"paths":      paths,
		"components": node{"schemas": schemas, "responses": errorResponses(), "securitySchemes": schemes},
	})
	if err != nil {
		panic("native: the description cannot be spelled: " + err.Error())
	}
	return document
}

func quote(s string) string { return "`" + s + "`" }

var schemes = node{
	"token":  node{"type": "apiKey", "in": "header", "name": "X-Auth-Token", "description": "A token of the identity service."},
	"bearer": node{"type": "http", "scheme": "bearer", "description": "The same token."},
}

// errorResponses are what each status means, in the one shape of errors.
func errorResponses() node {
	what := map[int]string{400: "The request can never succeed as it is.", 401: "There is no token, or none that is good.",
		403: "The token is good, and this is not allowed with it.", 404: "There is no such thing, or none that you may see.",
		409: "The thing's present state is in the way.", 410: "That far back is no longer kept.", 413: "The body is too large."}
	all := node{}
	for status, says := range what {
		all[fmt.Sprint(status)] = node{"description": says, "content": node{"application/json": node{"schema": ref("Error")}}}
	}
	return all
}

func addOperation(paths map[string]node, path string, r route, k *kind) {
	if paths[path] == nil {
		paths[path] = node{}
	}
	paths[path][strings.ToLower(r.method)] = r.operation(path, k)
}

func (r *route) operation(path string, k *kind) node {
	a := r.about
	op := node{"operationId": a.id, "summary": a.summary, "tags": []string{a.tag}}
	if k != nil {
		op["operationId"], op["tags"] = a.id+k.title, []string{k.path}
	}
	parameters := []node{}
	if strings.Contains(path, "{id}") {
		parameters = append(parameters, node{"name": "id", "in": "path", "required": true, "schema": node{"type": "string", "format": "uuid"}})
	}
	if a.parameters != nil {
		parameters = append(parameters, a.parameters(k)...)
	}
	op["parameters"] = parameters
	if a.body != "" {
		op["requestBody"] = node{"required": true, "content": node{"application/json": node{"schema": ref(a.body)}}}
	}
	if r.open {
		op["security"] = []node{{}}
	}
	op["responses"] = r.responses(k)
	return op
}

func (r *route) responses(k *kind) node {
	all := node{}
	for _, status := range slices.Sorted(maps.Keys(r.about.answers)) {
		a := r.about.answers[status]
		schema := node{}
		switch {
		case a.schema == "List":
			schema = ref(k.title + "List")
		case a.schema != "":
			schema = ref(a.schema)
		case k != nil:
			schema = ref(k.title)
		}
		content := node{"application/json": node{"schema": schema}}
		if a.media != "" {
			content = node{a.media: node{"schema": schema}}
		}
		if a.schema == "List" {
			content["application/x-ndjson"] = node{"schema": ref("Change")}
		}
		said := node{"description": a.what, "content": content}
		if k != nil {
			said["headers"] = node{RevisionHeader: node{"description": "Of what revision this is.", "schema": integer(0)}}
		}
		all[fmt.Sprint(status)] = said
	}
	errors := r.about.errors
	if !r.open {
		errors = append([]int{401}, errors...)
	}
	for _, status := range errors {
		all[fmt.Sprint(status)] = node{"$ref": fmt.Sprintf("#/components/responses/%d", status)}
	}
	return all
}

// openAPI gives the description.
func (s *Server) openAPI(w http.ResponseWriter, r *http.Request) error {
	s.write(w, r, http.StatusOK, json.RawMessage(s.document))
	return nil
}
