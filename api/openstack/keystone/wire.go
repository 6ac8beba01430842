package keystone

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

// nobody is what a word that is no ID of ours stands for: it names nothing, now and for ever,
// so that the core answers as for any other ID that is not there.
var nobody = resource.MustID("ffffffff-ffff-ffff-ffff-ffffffffffff")

// idOf reads Keystone's spelling of an ID: 32 hexadecimal digits, or "default" for that domain.
func idOf(s string) resource.ID {
	if s == "default" {
		return identity.DefaultDomain
	}
	id, err := resource.ParseID(s)
	if err != nil || id.IsZero() {
		return nobody
	}
	return id
}

func pathID(r *http.Request, name string) resource.ID { return idOf(r.PathValue(name)) }

// optional is idOf for what may be left out.
func optional(s string) resource.ID {
	if s == "" {
		return resource.ID{}
	}
	return idOf(s)
}

// spell is the inverse of idOf.
func spell(id resource.ID) string {
	if id == identity.DefaultDomain {
		return "default"
	}
	return id.Hex()
}

// orNull is spell for what may be missing.
func orNull(id resource.ID) any {
	if id.IsZero() {
		return nil
	}
	return spell(id)
}

func textOrNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// stamp is how Keystone writes times: in UTC with microseconds.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

func stampOrNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return stamp(t)
}

// parseTime reads a time with or without a zone; without, it is UTC. One that has no four digits for its
// year in UTC cannot be written again.
func parseTime(s string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05-0700"} {
		if t, err := time.Parse(layout, s); err == nil {
			t = t.UTC()
			return t, t.After(time.Time{}) && t.Year() <= 9999 // the zero time means that there is none
		}
	}
	return time.Time{}, false
}

// fields reads the attributes of one object from a request, each once, and keeps the first
// error. What is never read is the object's extra.
type fields struct {
	raw map[string]json.RawMessage
	err error
}

// body reads {"noun": {…}}.
func body(r *http.Request, noun string) (*fields, error) {
	var outer map[string]json.RawMessage
	if err := openstack.Decode(r, &outer); err != nil {
		return nil, err
	}
	raw, ok := outer[noun]
	if !ok {
		return nil, fault.Errorf(fault.Invalid, "Expecting to find %s in request body.", noun)
	}
	in, ok := object(raw)
	if !ok {
		return nil, fault.Errorf(fault.Invalid, "%s must be an object.", noun)
	}
	return in, nil
}

func object(raw json.RawMessage) (*fields, bool) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil || m == nil {
		return nil, false
	}
	return &fields{raw: m}, true
}

func isNull(raw json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(raw), []byte("null")) }

// take gives an attribute and marks it as read.
func (in *fields) take(name string) (json.RawMessage, bool) {
	raw, ok := in.raw[name]
	delete(in.raw, name)
	return raw, ok
}

func (in *fields) wrong(name, what string) {
	if in.err == nil {
		in.err = fault.Errorf(fault.Invalid, "Invalid input for field '%s': it must be %s.", name, what)
	}
}

// text reads a string; absent leaves what is there.
func (in *fields) text(name string, to *string) bool {
	raw, ok := in.take(name)
	if ok && (isNull(raw) || json.Unmarshal(raw, to) != nil) {
		in.wrong(name, "a string")
	}
	return ok
}

// note reads a string that may be null, which is the empty one.
func (in *fields) note(name string, to *string) bool {
	raw, ok := in.take(name)
	if ok && isNull(raw) {
		*to = ""
	} else if ok && json.Unmarshal(raw, to) != nil {
		in.wrong(name, "a string or null")
	}
	return ok
}

func (in *fields) flag(name string, to *bool) bool {
	raw, ok := in.take(name)
	if ok && (isNull(raw) || json.Unmarshal(raw, to) != nil) {
		in.wrong(name, "true or false")
	}
	return ok
}

// option reads a boolean that null takes back.
func (in *fields) option(name string, to **bool) {
	raw, ok := in.take(name)
	if !ok {
		return
	}
	var fresh *bool // what was there may be shared
	if json.Unmarshal(raw, &fresh) != nil {
		in.wrong(name, "true, false or null")
		return
	}
	*to = fresh
}

func (in *fields) number(name string, to *int) bool {
	raw, ok := in.take(name)
	if ok && (isNull(raw) || json.Unmarshal(raw, to) != nil) {
		in.wrong(name, "an integer")
	}
	return ok
}

// id reads an ID that may be null.
func (in *fields) id(name string, to *resource.ID) bool {
	raw, ok := in.take(name)
	if !ok {
		return false
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		in.wrong(name, "a string or null")
	}
	*to = optional(s)
	return true
}

func (in *fields) texts(name string, to *[]string) bool {
	raw, ok := in.take(name)
	if ok && (isNull(raw) || json.Unmarshal(raw, to) != nil) {
		in.wrong(name, "a list of strings")
	}
	return ok
}

func (in *fields) time(name string, to *time.Time) {
	raw, ok := in.take(name)
	if !ok || isNull(raw) {
		return
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		in.wrong(name, "a time")
		return
	}
	if *to, ok = parseTime(s); !ok {
		in.wrong(name, "a time as in 2030-01-31T12:00:00Z")
	}
}

// sub reads an object; empty if it is absent or null.
func (in *fields) sub(name string) *fields {
	raw, ok := in.take(name)
	if !ok || isNull(raw) {
		return &fields{raw: map[string]json.RawMessage{}}
	}
	o, ok := object(raw)
	if !ok {
		in.wrong(name, "an object")
		return &fields{raw: map[string]json.RawMessage{}}
	}
	return o
}

// list reads a list of objects.
func (in *fields) list(name string) []*fields {
	raw, ok := in.take(name)
	if !ok || isNull(raw) {
		return nil
	}
	var items []json.RawMessage
	if json.Unmarshal(raw, &items) != nil {
		in.wrong(name, "a list")
		return nil
	}
	var all []*fields
	for _, item := range items {
		o, ok := object(item)
		if !ok {
			in.wrong(name, "a list of objects")
			return nil
		}
		all = append(all, o)
	}
	return all
}

// join takes over the error of a part.
func (in *fields) join(parts ...*fields) {
	for _, p := range parts {
		if in.err == nil {
			in.err = p.err
		}
	}
}

// require says that an attribute must be there. Ask before it is read.
func (in *fields) require(names ...string) error {
	for _, name := range names {
		if _, ok := in.raw[name]; !ok {
			return fault.Errorf(fault.Invalid, "'%s' is a required property", name)
		}
	}
	return nil
}

// extra keeps all that was not read.
func (in *fields) extra(to *identity.Extra) {
	delete(in.raw, "id")
	delete(in.raw, "links")
	if len(in.raw) == 0 {
		return
	}
	if *to == nil {
		*to = identity.Extra{}
	}
	maps.Copy(*to, in.raw)
}

// shape is an object on its way out.
type shape = map[string]any

// withExtra adds extra attributes, which never hide one of ours.
func withExtra(out shape, extra identity.Extra) shape {
	for name, raw := range extra {
		if _, ours := out[name]; !ours {
			out[name] = raw
		}
	}
	return out
}

// write answers {"noun": {…}}.
func write(w http.ResponseWriter, status int, noun string, v any) error {
	w.Header().Set("Vary", "X-Auth-Token")
	return wire.WriteJSON(w, status, shape{noun: v})
}

func noContent(w http.ResponseWriter) error {
	w.Header().Set("Vary", "X-Auth-Token")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) self(r *http.Request, collection, id string) shape {
	return shape{"self": s.base(r) + "/v3/" + collection + "/" + url.PathEscape(id)}
}

// writeList answers a collection: what its filters keep, a page of it if a limit is given, and links.
func (s *server) writeList(w http.ResponseWriter, r *http.Request, noun string, items []shape, filters ...string) error {
	query := r.URL.Query()
	kept := slices.DeleteFunc(items, func(item shape) bool { return !matches(item, query, filters) })
	links := shape{"self": s.base(r) + r.URL.RequestURI(), "previous": nil, "next": nil}
	if marker := query.Get("marker"); marker != "" {
		at := slices.IndexFunc(kept, func(item shape) bool { return item["id"] == marker })
		if at < 0 {
			return fault.Errorf(fault.Invalid, "marker [%s] not found", marker)
		}
		kept = kept[at+1:]
	}
	if text := query.Get("limit"); text != "" {
		limit, err := strconv.Atoi(text)
		if err != nil || limit < 0 {
			return fault.Errorf(fault.Invalid, "Invalid input for field 'limit': it must be an integer of at least 0.")
		}
		if limit > 0 && len(kept) > limit {
			kept = kept[:limit]
			if last, ok := kept[limit-1]["id"].(string); ok {
				links["next"] = openstack.NextLink(r, s.prefix, last)
			}
		}
	}
	if kept == nil {
		kept = []shape{}
	}
	w.Header().Set("Vary", "X-Auth-Token")
	return wire.WriteJSON(w, http.StatusOK, shape{noun: kept, "links": links})
}

// comparisons are the inexact filters (Identity API v3, "Query parameters"): name__contains=x.
var comparisons = map[string]func(have, want string) bool{
	"":            func(have, want string) bool { return have == want },
	"contains":    strings.Contains,
	"icontains":   func(have, want string) bool { return strings.Contains(strings.ToLower(have), strings.ToLower(want)) },
	"startswith":  strings.HasPrefix,
	"istartswith": func(have, want string) bool { return strings.HasPrefix(strings.ToLower(have), strings.ToLower(want)) },
	"endswith":    strings.HasSuffix,
	"iendswith":   func(have, want string) bool { return strings.HasSuffix(strings.ToLower(have), strings.ToLower(want)) },
}

// matches reports whether an item passes the query's filters, of which only the named ones count.
func matches(item shape, query url.Values, filters []string) bool {
	for key, values := range query {
		name, op, _ := strings.Cut(key, "__")
		compare, known := comparisons[op]
		if !known || !slices.Contains(filters, name) {
			continue
		}
		for _, want := range values {
			switch have := item[name].(type) {
			case bool:
				if have != truth(want) {
					return false
				}
			case string:
				if !compare(have, want) {
					return false
				}
			default: // null: only the empty filter finds it
				if want != "" {
					return false
				}
			}
		}
	}
	return true
}

// truth reads a boolean of a query, where a bare name means true.
func truth(s string) bool {
	switch strings.ToLower(s) {
	case "0", "false", "no", "off":
		return false
	}
	return true
}
