package native

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

func TestSnake(t *testing.T) {
	for name, want := range map[string]string{
		"ID": "id", "HostID": "host_id", "MemoryMiB": "memory_mib", "VCPUs": "vcpus", "MaxVCPUs": "max_vcpus", "AccessIPv4": "access_ipv4",
		"V6Mode": "v6_mode", "NoNDPProxy": "no_ndp_proxy", "DHCPOptions": "dhcp_options", "MD5": "md5", "SHA512": "sha512", "OursMs": "ours_ms",
		"RoleIDs": "role_ids", "Name": "name", "CIDR": "cidr", "DNS": "dns", "RAMode": "ra_mode", "UEFI": "uefi",
	} {
		if got := snake(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// fill gives every field of a value something, and every secret one, however deep, a text with SECRET in it.
func fill(v reflect.Value, secret bool) {
	text := "text"
	if secret {
		text = "SECRET"
	}
	switch p := v.Addr().Interface().(type) {
	case *resource.ID:
		*p = resource.NewID(time.Unix(1, 0), nil)
		return
	case *time.Time:
		*p = time.Unix(1700000000, 0)
		return
	case *netip.Addr:
		*p = netip.MustParseAddr("10.0.0.1")
		return
	case *netip.Prefix:
		*p = netip.MustParsePrefix("10.0.0.0/8")
		return
	case *json.RawMessage:
		*p = json.RawMessage(`{"raw":"` + text + `"}`)
		return
	case *[]byte:
		*p = []byte(text)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint32:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), secret)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), secret)
		fill(v.Index(1), secret)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		elem := reflect.New(v.Type().Elem()).Elem()
		fill(elem, secret)
		v.SetMapIndex(reflect.ValueOf(text+".key").Convert(v.Type().Key()), elem)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), secret || v.Type().Field(i).Tag.Get("secret") == "true")
		}
	default:
		panic("cannot fill a " + v.Type().String())
	}
}

func filled(k *kind) resource.Object {
	v := reflect.New(k.shape.typ)
	fill(v.Elem(), false)
	return v.Interface().(resource.Object)
}

// TestRedaction walks every type that is shown: what is tagged as a secret is in no output, in no
// filter, and does not count as a change; nor does what is for others.
func TestRedaction(t *testing.T) {
	w := newWorld(t)
	tagged := 0
	for _, k := range w.native.kinds {
		full, empty := filled(k), reflect.New(k.shape.typ).Interface().(resource.Object)
		raw, err := json.Marshal(full)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), "SECRET") || strings.Contains(string(raw), "U0VDUkVU") {
			tagged++
		}
		for _, lvl := range []level{everybody, owners, operators} {
			var b bytes.Buffer
			if err := k.shape.encode(&b, full, lvl); err != nil {
				t.Fatal(err)
			}
			if !json.Valid(b.Bytes()) {
				t.Errorf("%s is no JSON: %s", k.path, b.Bytes())
			}
			if strings.Contains(b.String(), "SECRET") || strings.Contains(b.String(), "U0VDUkVU") {
				t.Errorf("%s gives a secret away: %s", k.path, b.Bytes())
			}
			for _, name := range k.shape.changed(empty, full, lvl) {
				if !strings.Contains(b.String(), `"`+name+`":`) {
					t.Errorf("%s tells somebody of level %d that %s changed", k.path, lvl, name)
				}
			}
			for _, name := range k.shape.paths("") {
				w, ok := k.shape.find(name, false)
				_, err := k.shape.newCondition(name, []string{""}, lvl)
				if !ok || (err == nil) != (w.level <= lvl) {
					t.Errorf("%s can be filtered by %s at level %d: %v", k.path, name, lvl, err)
				}
			}
		}
	}
	if tagged == 0 {
		t.Error("no kind has a secret: this test tests nothing")
	}
	for _, secret := range []string{"credential", "join-token", "authority", "receipt", "console-token", "token-key",
		"application-credential", "consumer", "trust", "domain-option"} {
		if w.native.byName[secret] != nil {
			t.Errorf("%s is shown", secret)
		}
	}
}

// An object that is filled, and one that is empty, are as the description says.
func TestSchemas(t *testing.T) {
	w := newWorld(t)
	d := document(t, w)
	for _, k := range w.native.kinds {
		for what, obj := range map[string]resource.Object{"full": filled(k), "empty": reflect.New(k.shape.typ).Interface().(resource.Object)} {
			for _, lvl := range []level{everybody, owners, operators} {
				var b bytes.Buffer
				if err := k.shape.encode(&b, obj, lvl); err != nil {
					t.Fatal(err)
				}
				var v any
				if err := json.Unmarshal(b.Bytes(), &v); err != nil {
					t.Fatalf("%s: %v: %s", k.path, err, b.Bytes())
				}
				if err := d.check(d.schema(k.title), v); err != nil {
					t.Errorf("%s %s at level %d: %v", what, k.path, lvl, err)
				}
			}
		}
	}
}

// names of fields have no torn words: a new acronym must be taught to snake.
func TestFieldNames(t *testing.T) {
	torn := regexp.MustCompile(`(^|[_.])[a-z]([_.]|$)`)
	for _, k := range newWorld(t).native.kinds {
		for _, name := range k.shape.paths("") {
			if torn.MatchString(name) {
				t.Errorf("%s has a field %s", k.path, name)
			}
		}
	}
}

func TestShapeMistakes(t *testing.T) {
	type inner struct{ Field int }
	type recursive struct {
		resource.Meta
		Next []*recursive
	}
	type twice struct {
		ID   string
		Id   string // the clash is what is tested
		Deep inner
	}
	for what, make := range map[string]func(){
		"a level for a field that is not there": func() { shapeOf(reflect.TypeFor[inner](), map[string]level{"Absent": owners}) },
		"a type that holds itself":              func() { shapeOf(reflect.TypeFor[recursive](), nil) },
		"two fields of one name":                func() { shapeOf(reflect.TypeFor[twice](), nil) },
		"a channel":                             func() { shapeOf(reflect.TypeFor[chan int](), nil) },
	} {
		t.Run(what, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("was accepted")
				}
			}()
			make()
		})
	}
}

// A described is the document, as a client reads it.
type described map[string]any

func document(t *testing.T, w *world) described {
	t.Helper()
	var d described
	w.get("", "/openapi.json").must(t, 200).into(t, &d)
	return d
}

func (d described) schema(name string) any {
	return d["components"].(map[string]any)["schemas"].(map[string]any)[name]
}

// at follows a local reference; nil if it leads nowhere.
func (d described) at(ref string) any {
	var v any = map[string]any(d)
	for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[part]
	}
	return v
}

// check holds a value against a schema, of the few words that the document uses.
func (d described) check(schema, v any) error {
	s, ok := schema.(map[string]any)
	if !ok {
		return fmt.Errorf("no schema: %v", schema)
	}
	if ref, ok := s["$ref"].(string); ok {
		return d.check(d.at(ref), v)
	}
	if want, ok := s["const"]; ok && want != v {
		return fmt.Errorf("%v is not %v", v, want)
	}
	if err := checkType(s, v); err != nil || v == nil {
		return err
	}
	switch v := v.(type) {
	case map[string]any:
		return d.checkObject(s, v)
	case []any:
		for i, item := range v {
			if err := d.check(s["items"], item); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
	case string:
		if s["format"] == "uuid" {
			_, err := resource.ParseID(v)
			return err
		}
		if s["format"] == "date-time" {
			_, err := time.Parse(time.RFC3339Nano, v)
			return err
		}
	}
	return nil
}

func checkType(s map[string]any, v any) error {
	var types []string
	switch t := s["type"].(type) {
	case nil:
		return nil
	case string:
		types = []string{t}
	case []any:
		for _, name := range t {
			types = append(types, name.(string))
		}
	}
	is := map[bool]string{true: "boolean"}[reflect.TypeOf(v) == reflect.TypeFor[bool]()]
	switch n := v.(type) {
	case nil:
		is = "null"
	case string:
		is = "string"
	case float64:
		is = "number"
		if n == float64(int64(n)) && slices.Contains(types, "integer") {
			is = "integer"
		}
	case []any:
		is = "array"
	case map[string]any:
		is = "object"
	}
	if !slices.Contains(types, is) {
		return fmt.Errorf("%v is no %v", v, types)
	}
	return nil
}

func (d described) checkObject(s, v map[string]any) error {
	required, _ := s["required"].([]any)
	for _, name := range required {
		if _, there := v[name.(string)]; !there {
			return fmt.Errorf("lacks %v", name)
		}
	}
	properties, _ := s["properties"].(map[string]any)
	for name, value := range v {
		p, known := properties[name]
		if !known {
			switch more := s["additionalProperties"].(type) {
			case bool:
				return fmt.Errorf("has %s, which is not described", name)
			case map[string]any:
				p = more
			default:
				continue
			}
		}
		if err := d.check(p, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// The document is whole: every route is in it, every reference leads somewhere, every parameter of a
// path is declared, every operation has a name of its own and says how it can end.
func TestDescription(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Dialects = http.NotFoundHandler() })
	d := document(t, w)
	if d["openapi"] != "3.1.0" {
		t.Error(d["openapi"])
	}
	paths := d["paths"].(map[string]any)
	for _, r := range w.native.routes() {
		path := strings.ReplaceAll(strings.TrimSuffix(r.path, "{$}"), "{kind}", "servers")
		item, _ := paths[path].(map[string]any)
		if item[strings.ToLower(r.method)] == nil {
			t.Errorf("%s %s is not described", r.method, r.path)
		}
	}
	seen := map[any]string{}
	for path, item := range paths {
		for method, op := range item.(map[string]any) {
			op := op.(map[string]any)
			if where := seen[op["operationId"]]; where != "" || op["operationId"] == "" {
				t.Errorf("%s %s and %s are both %v", method, path, where, op["operationId"])
			}
			seen[op["operationId"]] = method + " " + path
			if len(op["responses"].(map[string]any)) == 0 {
				t.Errorf("%s %s has no responses", method, path)
			}
			declared := map[string]bool{}
			for _, p := range op["parameters"].([]any) {
				p := p.(map[string]any)
				key := fmt.Sprint(p["in"], " ", p["name"])
				if declared[key] {
					t.Errorf("%s %s declares %s twice", method, path, key)
				}
				declared[key] = true
			}
			if strings.Contains(path, "{id}") != declared["path id"] {
				t.Errorf("%s %s: the path's parameters are not those declared", method, path)
			}
		}
	}
	references := 0
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				references++
				if d.at(ref) == nil {
					t.Errorf("%s leads nowhere", ref)
				}
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(map[string]any(d))
	if references == 0 {
		t.Error("no references were found")
	}

	for path, schema := range map[string]string{"/servers": "ServerList", "/servers/" + w.mine.String(): "Server",
		"/servers/" + w.mine.String() + "/why": "Reason", "/health": "Health", "/": "Index", "/hosts": "HostList",
		"/operations?all_projects=true": "OperationList", "/flavors": "FlavorList"} {
		token := "admin"
		var v any
		w.get(token, path).must(t, 200).into(t, &v)
		if err := d.check(d.schema(schema), v); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	var v any
	w.get("one", "/hosts").must(t, 403).into(t, &v)
	if err := d.check(d.schema("Error"), v); err != nil {
		t.Error(err)
	}
}
