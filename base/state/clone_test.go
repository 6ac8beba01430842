package state

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

type deep struct {
	resource.Meta
	Words   []string
	Bytes   json.RawMessage
	Pairs   map[string]string
	Lists   map[string][]int
	Inner   []inner
	Pointer *inner
	Any     any
	Grid    [2][]int
	Plain   [2]int
	When    *time.Time
	Net     []netip.Prefix
	Nothing *inner
	Empty   []string
	NoPairs map[string]string
}

type inner struct {
	Name string
	Tags []string
}

func newDeep() *deep {
	when := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &deep{
		Words: []string{"a"}, Bytes: json.RawMessage(`{"a":1}`), Pairs: map[string]string{"a": "b"},
		Lists: map[string][]int{"a": {1}}, Inner: []inner{{"a", []string{"b"}}}, Pointer: &inner{"c", []string{"d"}},
		Any: map[string]any{"a": []any{"b"}}, Grid: [2][]int{{1}, {2}}, When: &when,
		Net: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Empty: []string{},
	}
}

// spoil changes everything that can be reached from a value.
func spoil(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			spoil(v.Elem())
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() && v.CanSet() {
			v.SetZero()
		} else if v.Type() != reflect.TypeFor[netip.Prefix]() {
			for i := range v.NumField() {
				spoil(v.Field(i))
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			spoil(v.Index(i))
		}
		if v.Kind() == reflect.Slice && v.Len() > 0 {
			v.Index(0).SetZero()
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			spoil(it.Value())
			v.SetMapIndex(it.Key(), reflect.Zero(v.Type().Elem()))
		}
	default:
		if v.CanSet() {
			v.SetZero()
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	original := newDeep()
	copied := clone(original)
	opt := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(original, copied, opt); diff != "" {
		t.Errorf("the copy differs:\n%s", diff)
	}
	spoil(reflect.ValueOf(copied))
	if diff := cmp.Diff(newDeep(), original, opt); diff != "" {
		t.Errorf("what changed the copy changed the original:\n%s", diff)
	}
	if cmp.Equal(original, copied, opt) {
		t.Error("nothing was changed: the test proved nothing")
	}
}

func TestStoredObjectsComeBack(t *testing.T) {
	def := &tableDef{kind: "deep", typ: reflect.TypeFor[deep](), version: 1}
	tests := map[string]*deep{
		"full":                      newDeep(),
		"empty":                     {},
		"pointer to a zero struct":  {Pointer: &inner{}},
		"empty is not nil":          {Words: []string{}, Pairs: map[string]string{}, Inner: []inner{{}}},
		"text that is not UTF-8 is": {Words: []string{"replaced: \ufffd"}},
	}
	for name, obj := range tests {
		t.Run(name, func(t *testing.T) {
			if err := survives(def, obj); err != nil {
				t.Fatal(err)
			}
		})
	}
	if _, err := encode(&deep{Words: []string{"a\xff"}}); !fault.Is(err, fault.Invalid) {
		t.Fatalf("%v: text that would come back as another one must be refused", err)
	}
	if err := survives(def, &deep{Any: inner{"x", nil}}); err == nil {
		t.Fatal("a struct behind an interface comes back as a map, and that was not seen")
	}
}
