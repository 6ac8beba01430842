package native

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A level says to whom a field is shown.
type level int

const (
	everybody level = iota // whoever sees the object at all
	owners                 // a reader of its project
	operators              // an admin
)

var levelNames = map[level]string{owners: "owner", operators: "operator"}

// A form is how a value looks in JSON.
type form int

const (
	textForm form = iota
	boolForm
	intForm
	floatForm
	idForm
	timeForm
	spelledForm // a type that spells itself, as addresses do; the last scalar
	bytesForm   // base64
	rawForm     // any JSON, kept as it is
	objectForm
	listForm
	mapForm
)

// A shape is one type as the API shows it.
type shape struct {
	form     form
	typ      reflect.Type
	nullable bool    // a pointer
	fields   []field // of an object
	elem     *shape  // of a list or a map
}

// A field is one of an object's.
type field struct {
	name  string // in JSON
	path  string // in Go, from the object's type: "Seen.OursMs"
	index []int
	level level
	*shape
}

var (
	idType      = reflect.TypeFor[resource.ID]()
	timeType    = reflect.TypeFor[time.Time]()
	bytesType   = reflect.TypeFor[[]byte]()
	rawType     = reflect.TypeFor[json.RawMessage]()
	spellerType = reflect.TypeFor[encoding.TextMarshaler]()
)

const deepest = 12 // no core type is nested further; one that holds itself would be

// shaper makes the shape of one kind.
type shaper struct {
	levels map[string]level // by Go path
	used   map[string]bool
}

// shapeOf derives a shape. A path in levels that no field has is a programmer's mistake.
func shapeOf(t reflect.Type, levels map[string]level) *shape {
	s := shaper{levels, map[string]bool{}}
	made := s.make(t, "", 0)
	for path := range levels {
		if !s.used[path] {
			panic("native: " + t.String() + " has no field " + path)
		}
	}
	return made
}

func (s *shaper) make(t reflect.Type, path string, depth int) *shape {
	if depth > deepest {
		panic("native: " + t.String() + " at " + path + " is nested too deeply")
	}
	if t.Kind() == reflect.Pointer {
		inner := *s.make(t.Elem(), path, depth+1)
		inner.nullable = true
		return &inner
	}
	made := &shape{typ: t}
	switch {
	case t == idType:
		made.form = idForm
	case t == timeType:
		made.form = timeForm
	case t == rawType:
		made.form = rawForm
	case t == bytesType:
		made.form = bytesForm
	case t.Implements(spellerType):
		made.form = spelledForm
	default:
		s.fill(made, t, path, depth)
	}
	return made
}

func (s *shaper) fill(made *shape, t reflect.Type, path string, depth int) {
	switch t.Kind() {
	case reflect.String:
		made.form = textForm
	case reflect.Bool:
		made.form = boolForm
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint8, reflect.Uint16, reflect.Uint32:
		made.form = intForm
	case reflect.Float32, reflect.Float64:
		made.form = floatForm
	case reflect.Slice:
		made.form, made.elem = listForm, s.make(t.Elem(), path, depth+1)
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			panic("native: a map that is not keyed by text at " + path)
		}
		made.form, made.elem = mapForm, s.make(t.Elem(), path, depth+1)
	case reflect.Struct:
		made.form, made.fields = objectForm, s.fields(t, nil, path, depth)
	default:
		panic("native: no JSON for " + t.String() + " at " + path)
	}
}

// fields are a struct's, with those of embedded ones among them.
func (s *shaper) fields(t reflect.Type, at []int, path string, depth int) []field {
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Tag.Get("secret") == "true" || f.Tag.Get("json") == "-" || f.PkgPath != "" && !f.Anonymous {
			continue
		}
		index := append(slices.Clone(at), i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			all = append(all, s.fields(f.Type, index, path, depth+1)...)
			continue
		}
		p := strings.TrimPrefix(path+"."+f.Name, ".")
		lvl := s.levels[p]
		if _, given := s.levels[p]; given {
			s.used[p] = true
		}
		all = append(all, field{name: snake(f.Name), path: p, index: index, level: lvl, shape: s.make(f.Type, p, depth+1)})
	}
	names := map[string]bool{}
	for _, f := range all {
		if names[f.name] {
			panic("native: " + t.String() + " has two fields " + f.name)
		}
		names[f.name] = true
	}
	return all
}

// odd are words that do not follow the rule by which names are cut.
var odd = strings.NewReplacer("IPv4", "Ipv4", "IPv6", "Ipv6", "VCPUs", "Vcpus", "MiB", "Mib", "GiB", "Gib", "IDs", "Ids")

// snake spells a Go name for JSON: "MemoryMiB" is memory_mib, "HostID" host_id.
func snake(name string) string {
	runes := []rune(odd.Replace(name))
	var b strings.Builder
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 {
			before, follows := runes[i-1], i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if !unicode.IsUpper(before) || follows {
				b.WriteByte('_')
			}
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// write spells a value for somebody of a level.
func (s *shape) write(b *bytes.Buffer, v reflect.Value, lvl level) error {
	if s.nullable {
		if v.IsNil() {
			b.WriteString("null")
			return nil
		}
		v = v.Elem()
	}
	switch s.form {
	case objectForm:
		return s.writeObject(b, v, lvl)
	case listForm:
		return s.writeList(b, v, lvl)
	case mapForm:
		return s.writeMap(b, v, lvl)
	case boolForm:
		b.WriteString(strconv.FormatBool(v.Bool()))
	case intForm:
		b.WriteString(s.number(v))
	default:
		return s.writeScalar(b, v)
	}
	return nil
}

func (s *shape) number(v reflect.Value) string {
	if v.CanUint() {
		return strconv.FormatUint(v.Uint(), 10)
	}
	return strconv.FormatInt(v.Int(), 10)
}

func (s *shape) writeScalar(b *bytes.Buffer, v reflect.Value) error {
	switch s.form {
	case rawForm:
		raw := v.Bytes()
		if len(raw) == 0 {
			raw = []byte("null")
		}
		return json.Compact(b, raw)
	case floatForm:
		return appendJSON(b, v.Float())
	case timeForm:
		if t := v.Interface().(time.Time); !t.IsZero() {
			b.WriteByte('"')
			b.Write(t.UTC().AppendFormat(b.AvailableBuffer(), time.RFC3339Nano))
			b.WriteByte('"')
			return nil
		}
	}
	text, there := s.text(v)
	if !there {
		b.WriteString("null")
		return nil
	}
	return appendText(b, text)
}

// appendText writes a text; most have nothing to escape.
func appendText(b *bytes.Buffer, text string) error {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return appendJSON(b, text)
		}
	}
	b.WriteByte('"')
	b.WriteString(text)
	b.WriteByte('"')
	return nil
}

// appendJSON writes without the line end that an Encoder adds, and without escaping for HTML.
func appendJSON(b *bytes.Buffer, v any) error {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1)
	return nil
}

// text is a scalar as text; false when it stands for nothing: no time, no ID, no address.
func (s *shape) text(v reflect.Value) (string, bool) {
	switch s.form {
	case textForm:
		return v.String(), true
	case boolForm:
		return strconv.FormatBool(v.Bool()), true
	case intForm:
		return s.number(v), true
	case floatForm:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64), true
	case idForm:
		id := v.Interface().(resource.ID)
		return id.String(), !id.IsZero()
	case timeForm:
		t := v.Interface().(time.Time)
		return t.UTC().Format(time.RFC3339Nano), !t.IsZero()
	case spelledForm:
		if v.IsZero() {
			return "", false
		}
		text, err := v.Interface().(encoding.TextMarshaler).MarshalText()
		return string(text), err == nil && len(text) > 0
	case bytesForm:
		return base64.StdEncoding.EncodeToString(v.Bytes()), true
	}
	return "", false
}

func (s *shape) writeObject(b *bytes.Buffer, v reflect.Value, lvl level) error {
	b.WriteByte('{')
	first := true
	for i := range s.fields {
		f := &s.fields[i]
		if f.level > lvl {
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		b.WriteByte('"')
		b.WriteString(f.name)
		b.WriteString(`":`)
		if err := f.write(b, v.FieldByIndex(f.index), lvl); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	b.WriteByte('}')
	return nil
}

func (s *shape) writeList(b *bytes.Buffer, v reflect.Value, lvl level) error {
	b.WriteByte('[')
	for i := range v.Len() {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := s.elem.write(b, v.Index(i), lvl); err != nil {
			return err
		}
	}
	b.WriteByte(']')
	return nil
}

// writeMap writes keys in order, so that the same object is always the same text.
func (s *shape) writeMap(b *bytes.Buffer, v reflect.Value, lvl level) error {
	if v.Len() == 0 {
		b.WriteString("{}")
		return nil
	}
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	b.WriteByte('{')
	for i, key := range keys {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := appendText(b, key.String()); err != nil {
			return err
		}
		b.WriteByte(':')
		if err := s.elem.write(b, v.MapIndex(key), lvl); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

// encode spells an object.
func (s *shape) encode(b *bytes.Buffer, obj resource.Object, lvl level) error {
	return s.write(b, reflect.ValueOf(obj).Elem(), lvl)
}

// changed names the fields of an object, as far as somebody of a level sees them, that differ. What
// every change changes is not among them.
func (s *shape) changed(before, after resource.Object, lvl level) []string {
	was, is := reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem()
	names := []string{}
	for i := range s.fields {
		f := &s.fields[i]
		if f.level > lvl || f.name == "updated_at" || f.name == "revision" {
			continue
		}
		if f.differs(was.FieldByIndex(f.index), is.FieldByIndex(f.index), lvl) {
			names = append(names, f.name)
		}
	}
	return names
}

// differs compares what somebody of a level sees of two values.
func (s *shape) differs(a, b reflect.Value, lvl level) bool {
	if s.nullable {
		if a.IsNil() || b.IsNil() {
			return a.IsNil() != b.IsNil()
		}
		a, b = a.Elem(), b.Elem()
	}
	switch s.form {
	case objectForm:
		return slices.ContainsFunc(s.fields, func(f field) bool {
			return f.level <= lvl && f.differs(a.FieldByIndex(f.index), b.FieldByIndex(f.index), lvl)
		})
	case listForm:
		if a.Len() != b.Len() {
			return true
		}
		for i := range a.Len() {
			if s.elem.differs(a.Index(i), b.Index(i), lvl) {
				return true
			}
		}
		return false
	case mapForm:
		if a.Len() != b.Len() {
			return true
		}
		for it := a.MapRange(); it.Next(); {
			other := b.MapIndex(it.Key())
			if !other.IsValid() || s.elem.differs(it.Value(), other, lvl) {
				return true
			}
		}
		return false
	case rawForm, bytesForm:
		return !bytes.Equal(a.Bytes(), b.Bytes())
	}
	was, there := s.text(a)
	is, still := s.text(b)
	return was != is || there != still
}
