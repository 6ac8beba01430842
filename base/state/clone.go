package state

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"
)

// textOf gives the text of any type whose kind is string; anything else in a Key
// is a programmer's mistake.
func textOf(v any) string {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.String {
		panic("state: a key cannot hold a " + r.Type().String())
	}
	return r.String()
}

// A cloner deepens a shallow copy: what it refers to is replaced by copies, until nothing
// mutable is shared with the original. The value is addressable.
type cloner func(copied reflect.Value)

var cloners sync.Map // reflect.Type -> cloner; nil when the shallow copy is enough

var plainTypes = map[reflect.Type]bool{
	reflect.TypeFor[time.Time]():      true, // points at a Location, which nobody changes
	reflect.TypeFor[netip.Addr]():     true,
	reflect.TypeFor[netip.Prefix]():   true,
	reflect.TypeFor[netip.AddrPort](): true,
}

// quickCloners are for types so frequent that reflection would be felt.
var quickCloners = map[reflect.Type]cloner{
	reflect.TypeFor[[]string]():          quick(slices.Clone[[]string]),
	reflect.TypeFor[map[string]string](): quick(maps.Clone[map[string]string]),
}

func quick[T any](clone func(T) T) cloner {
	return func(copied reflect.Value) {
		p := copied.Addr().Interface().(*T)
		*p = clone(*p)
	}
}

func clonerOf(t reflect.Type) cloner {
	if c, ok := cloners.Load(t); ok {
		return c.(cloner)
	}
	c := makeCloner(t)
	cloners.Store(t, c)
	return c
}

func makeCloner(t reflect.Type) cloner {
	if plainTypes[t] {
		return nil
	}
	if c := quickCloners[t]; c != nil {
		return c
	}
	switch t.Kind() {
	case reflect.Struct:
		return structCloner(t)
	case reflect.Pointer:
		return func(v reflect.Value) {
			if !v.IsNil() {
				v.Set(cloneOf(v.Elem()).Addr())
			}
		}
	case reflect.Slice:
		return func(v reflect.Value) {
			if v.IsNil() {
				return
			}
			n := v.Len()
			s := reflect.MakeSlice(t, n, n)
			reflect.Copy(s, v)
			if c := clonerOf(t.Elem()); c != nil {
				for i := range n {
					c(s.Index(i))
				}
			}
			v.Set(s)
		}
	case reflect.Array:
		c := clonerOf(t.Elem())
		if c == nil {
			return nil
		}
		return func(v reflect.Value) {
			for i := range t.Len() {
				c(v.Index(i))
			}
		}
	case reflect.Map:
		return func(v reflect.Value) {
			if v.IsNil() {
				return
			}
			m := reflect.MakeMapWithSize(t, v.Len())
			for it := v.MapRange(); it.Next(); {
				m.SetMapIndex(it.Key(), cloneOf(it.Value()))
			}
			v.Set(m)
		}
	case reflect.Interface:
		return func(v reflect.Value) {
			if !v.IsNil() {
				v.Set(cloneOf(v.Elem()))
			}
		}
	case reflect.Chan, reflect.Func, reflect.UnsafePointer:
		panic("state: an object cannot hold a " + t.String())
	}
	return nil
}

// cloneOf gives an addressable copy of any value.
func cloneOf(v reflect.Value) reflect.Value {
	copied := reflect.New(v.Type()).Elem()
	copied.Set(v)
	if c := clonerOf(v.Type()); c != nil {
		c(copied)
	}
	return copied
}

func structCloner(t reflect.Type) cloner {
	type field struct {
		at int
		c  cloner
	}
	var deep []field
	for i := range t.NumField() {
		f := t.Field(i)
		if f.PkgPath != "" && !f.Anonymous {
			panic("state: " + t.String() + "." + f.Name + " is not exported, so it would not be stored")
		}
		if c := clonerOf(f.Type); c != nil {
			deep = append(deep, field{i, c})
		}
	}
	if deep == nil {
		return nil
	}
	return func(v reflect.Value) {
		for _, f := range deep {
			f.c(v.Field(f.at))
		}
	}
}
