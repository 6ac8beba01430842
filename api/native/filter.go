package native

import (
	"cmp"
	"encoding"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A condition keeps the objects of which a field has one of some values. A path leads through
// objects, through any element of lists, and through maps by their keys: fixed.address, metadata.role.
type condition struct {
	name   string
	parts  []string
	leaf   *shape
	level  level    // who is told whether it holds
	values []string // as text() spells them; "" stands for nothing, too
}

// An order sorts by one field that every object has once.
type order struct {
	parts   []string
	leaf    *shape
	level   level
	reverse bool
}

func unknownField(name string) error {
	return fault.InvalidField(name, "is no field that these can be filtered or sorted by").WithCode("unknown-field")
}

// find follows a path of names to a scalar and tells the highest level on the way. once: not
// through lists and maps.
func (s *shape) find(parts []string, once bool) (leaf *shape, lvl level, ok bool) {
	switch s.form {
	case objectForm:
		if len(parts) == 0 {
			return nil, 0, false
		}
		for i := range s.fields {
			if s.fields[i].name == parts[0] {
				leaf, lvl, ok = s.fields[i].find(parts[1:], once)
				return leaf, max(lvl, s.fields[i].level), ok
			}
		}
		return nil, 0, false
	case listForm:
		if once {
			return nil, 0, false
		}
		return s.elem.find(parts, once)
	case mapForm:
		if once || len(parts) == 0 {
			return nil, 0, false
		}
		return s.elem.find(s.afterKey(parts), once)
	case rawForm, bytesForm:
		return nil, 0, false
	}
	return s, 0, len(parts) == 0
}

// afterKey is what of a path is left after a map's key, which may itself hold dots when nothing
// else can follow it.
func (s *shape) afterKey(parts []string) []string {
	if s.elem.form == objectForm || s.elem.form == listForm || s.elem.form == mapForm {
		return parts[1:]
	}
	return nil
}

// newCondition reads a filter as somebody of a level may ask it: one who can never see a field is
// told that there is none.
func (s *shape) newCondition(name string, values []string, lvl level) (condition, error) {
	c := condition{name: name, parts: strings.Split(name, ".")}
	var ok bool
	if c.leaf, c.level, ok = s.find(c.parts, false); !ok || c.level > lvl {
		return c, unknownField(name)
	}
	for _, v := range values {
		spelled, err := c.leaf.spell(v)
		if err != nil {
			return c, fault.InvalidField(name, "%s", err.Error()).WithCode("invalid-value")
		}
		c.values = append(c.values, spelled)
	}
	return c, nil
}

// A wrong says what is wrong with a value, in words that go on from its field's name.
type wrong string

func (w wrong) Error() string { return string(w) }

// spell brings a value into the form that text() gives.
func (s *shape) spell(v string) (string, error) {
	if v == "" {
		return "", nil
	}
	switch s.form {
	case boolForm:
		b, err := strconv.ParseBool(v)
		if err != nil {
			return "", wrong("must be true or false")
		}
		return strconv.FormatBool(b), nil
	case intForm:
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return "", wrong("must be a whole number")
		}
		return strconv.FormatInt(n, 10), nil
	case floatForm:
		f, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return "", wrong("must be a number")
		}
		return strconv.FormatFloat(f, 'g', -1, 64), nil
	case idForm:
		id, err := resource.ParseID(v)
		if err != nil {
			return "", wrong("must be a UUID")
		}
		return id.String(), nil
	case timeForm:
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			return "", wrong("must be a time as in RFC 3339")
		}
		return t.UTC().Format(time.RFC3339Nano), nil
	case spelledForm:
		return s.respell(v)
	}
	return v, nil
}

func (s *shape) respell(v string) (string, error) {
	p := reflect.New(s.typ)
	reader, ok := p.Interface().(encoding.TextUnmarshaler)
	if !ok {
		return v, nil
	}
	if err := reader.UnmarshalText([]byte(v)); err != nil {
		return "", wrong("has a value that is not one of its kind")
	}
	text, err := p.Elem().Interface().(encoding.TextMarshaler).MarshalText()
	if err != nil {
		return "", wrong("has a value that is not one of its kind")
	}
	return string(text), nil
}

// holds reports whether an object has one of the values, to somebody who sees it at a level.
func (c *condition) holds(s *shape, obj resource.Object, lvl level) bool {
	if c.level > lvl {
		return false
	}
	held := false
	any := s.visit(reflect.ValueOf(obj).Elem(), c.parts, func(text string) bool {
		held = slices.Contains(c.values, text)
		return !held
	})
	return held || !any && slices.Contains(c.values, "")
}

// visit gives the texts at the end of a path until yield says no more, and tells whether there
// was any. The path was found to be there.
func (s *shape) visit(v reflect.Value, parts []string, yield func(string) bool) bool {
	if s.nullable {
		if v.IsNil() {
			return false
		}
		v = v.Elem()
	}
	switch s.form {
	case objectForm:
		for i := range s.fields {
			if s.fields[i].name == parts[0] {
				return s.fields[i].visit(v.FieldByIndex(s.fields[i].index), parts[1:], yield)
			}
		}
		return false
	case listForm:
		any, more := false, true
		for i := 0; i < v.Len() && more; i++ {
			any = s.elem.visit(v.Index(i), parts, func(text string) bool { more = yield(text); return more }) || any
		}
		return any
	case mapForm:
		rest := s.afterKey(parts)
		key := strings.Join(parts[:len(parts)-len(rest)], ".")
		at := v.MapIndex(reflect.ValueOf(key).Convert(v.Type().Key()))
		return at.IsValid() && s.elem.visit(at, rest, yield)
	}
	text, there := s.text(v)
	if there {
		yield(text)
	}
	return there
}

// newOrders reads "name,-created_at".
func (s *shape) newOrders(text string, lvl level) ([]order, error) {
	if text == "" {
		return nil, nil
	}
	names := strings.Split(text, ",")
	if len(names) > 8 {
		return nil, fault.InvalidField("sort", "must name at most 8 fields").WithCode("invalid-value")
	}
	var all []order
	for _, name := range names {
		bare, reverse := strings.CutPrefix(name, "-")
		o := order{parts: strings.Split(bare, "."), reverse: reverse}
		var ok bool
		if o.leaf, o.level, ok = s.find(o.parts, true); !ok || o.level > lvl {
			return nil, unknownField(bare)
		}
		all = append(all, o)
	}
	return all, nil
}

// A rank is what one object is sorted by: nothing comes before anything.
type rank struct {
	there  bool
	whole  int64
	number float64
	text   string
}

func (o *order) rank(s *shape, obj resource.Object, lvl level) rank {
	if o.level > lvl {
		return rank{}
	}
	v := reflect.ValueOf(obj).Elem()
	for _, part := range o.parts {
		if s.nullable {
			if v.IsNil() {
				return rank{}
			}
			v = v.Elem()
		}
		i := slices.IndexFunc(s.fields, func(f field) bool { return f.name == part })
		v, s = v.FieldByIndex(s.fields[i].index), s.fields[i].shape
	}
	if s.nullable {
		if v.IsNil() {
			return rank{}
		}
		v = v.Elem()
	}
	switch s.form {
	case intForm:
		if v.CanUint() {
			return rank{there: true, whole: int64(v.Uint())} // of at most 32 bits
		}
		return rank{there: true, whole: v.Int()}
	case floatForm:
		return rank{there: true, number: v.Float()}
	case timeForm:
		t := v.Interface().(time.Time)
		return rank{there: !t.IsZero(), whole: t.UnixNano()}
	}
	text, there := s.text(v)
	return rank{there: there, text: text}
}

func compareRanks(a, b rank) int {
	if a.there != b.there {
		if a.there {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(a.whole, b.whole), cmp.Compare(a.number, b.number), strings.Compare(a.text, b.text))
}
