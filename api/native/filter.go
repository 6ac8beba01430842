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
	steps  []step
	level  level    // who is told whether it holds
	values []string // as text() spells them; "" stands for nothing, too
}

// An order sorts by one field that every object has once.
type order struct {
	steps   []step
	level   level
	reverse bool
}

// A step leads from an object to its field at this place, or from a map to what stands under a key.
// Lists are passed through.
type step struct {
	at  int
	key string
}

// A way is where a path leads.
type way struct {
	steps []step
	leaf  *shape // a scalar
	level level  // the highest on the way
}

func unknownField(name string) error {
	return fault.InvalidField(name, "is no field that these can be filtered or sorted by").WithCode("unknown-field")
}

// find follows a path of names to a scalar; false if there is none. once: not through lists and maps.
func (s *shape) find(name string, once bool) (way, bool) {
	var w way
	parts := strings.Split(name, ".")
	for {
		switch s.form {
		case objectForm:
			if len(parts) == 0 {
				return w, false
			}
			at := slices.IndexFunc(s.fields, func(f field) bool { return f.name == parts[0] })
			if at < 0 {
				return w, false
			}
			f := &s.fields[at]
			w.steps, w.level = append(w.steps, step{at: at}), max(w.level, f.level)
			s, parts = f.shape, parts[1:]
		case listForm:
			if once {
				return w, false
			}
			s = s.elem
		case mapForm:
			if once || len(parts) == 0 {
				return w, false
			}
			// Where nothing else can follow it, a key may itself hold dots.
			key, rest := parts[0], parts[1:]
			if s.elem.scalar() {
				key, rest = strings.Join(parts, "."), nil
			}
			w.steps = append(w.steps, step{key: key})
			s, parts = s.elem, rest
		case rawForm, bytesForm:
			return w, false
		default:
			w.leaf = s
			return w, len(parts) == 0
		}
	}
}

func (s *shape) scalar() bool { return s.form < bytesForm }

// newCondition reads a filter as somebody of a level may ask it: one who can never see a field is
// told that there is none.
func (s *shape) newCondition(name string, values []string, lvl level) (condition, error) {
	w, ok := s.find(name, false)
	if !ok || w.level > lvl {
		return condition{}, unknownField(name)
	}
	c := condition{name: name, steps: w.steps, level: w.level}
	for _, v := range values {
		spelled, err := w.leaf.spell(v)
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
	any := s.visit(reflect.ValueOf(obj).Elem(), c.steps, func(text string) bool {
		held = slices.Contains(c.values, text)
		return !held
	})
	return held || !any && slices.Contains(c.values, "")
}

// visit gives the texts at the end of a way until yield says no more, and tells whether there was any.
func (s *shape) visit(v reflect.Value, steps []step, yield func(string) bool) bool {
	if s.nullable {
		if v.IsNil() {
			return false
		}
		v = v.Elem()
	}
	switch s.form {
	case objectForm:
		f := &s.fields[steps[0].at]
		return f.visit(v.FieldByIndex(f.index), steps[1:], yield)
	case listForm:
		any, more := false, true
		for i := 0; i < v.Len() && more; i++ {
			any = s.elem.visit(v.Index(i), steps, func(text string) bool { more = yield(text); return more }) || any
		}
		return any
	case mapForm:
		at := v.MapIndex(reflect.ValueOf(steps[0].key).Convert(v.Type().Key()))
		return at.IsValid() && s.elem.visit(at, steps[1:], yield)
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
		w, ok := s.find(bare, true)
		if !ok || w.level > lvl {
			return nil, unknownField(bare)
		}
		all = append(all, order{w.steps, w.level, reverse})
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
	for _, step := range o.steps {
		if s.nullable {
			if v.IsNil() {
				return rank{}
			}
			v = v.Elem()
		}
		f := &s.fields[step.at]
		v, s = v.FieldByIndex(f.index), f.shape
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
