package state

import (
	"encoding/json"
	"net/netip"
	"reflect"
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

// A cloner copies a value of one type so deeply that nothing mutable is shared.
type cloner func(dst, src reflect.Value)

var cloners sync.Map // reflect.Type -> cloner; nil when plain assignment is enough

var plainTypes = map[reflect.Type]bool{
	reflect.TypeFor[time.Time]():    true, // points at a Location, which nobody changes
	reflect.TypeFor[netip.Addr]():   true,
	reflect.TypeFor[netip.Prefix](): true,
}

func cloneAny(src reflect.Value) reflect.Value {
	dst := reflect.New(src.Type()).Elem()
	dst.Set(src)
	if c := clonerOf(src.Type()); c != nil {
		c(dst, src)
	}
	return dst
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
	switch t.Kind() {
	case reflect.Struct:
		return structCloner(t)
	case reflect.Pointer:
		return func(dst, src reflect.Value) {
			if !src.IsNil() {
				p := reflect.New(t.Elem())
				p.Elem().Set(src.Elem())
				if c := clonerOf(t.Elem()); c != nil {
					c(p.Elem(), src.Elem())
				}
				dst.Set(p)
			}
		}
	case reflect.Slice:
		return func(dst, src reflect.Value) {
			if src.IsNil() {
				return
			}
			n := src.Len()
			s := reflect.MakeSlice(t, n, n)
			reflect.Copy(s, src)
			if c := clonerOf(t.Elem()); c != nil {
				for i := range n {
					c(s.Index(i), src.Index(i))
				}
			}
			dst.Set(s)
		}
	case reflect.Array:
		if clonerOf(t.Elem()) == nil {
			return nil
		}
		return func(dst, src reflect.Value) {
			for i := range t.Len() {
				clonerOf(t.Elem())(dst.Index(i), src.Index(i))
			}
		}
	case reflect.Map:
		return func(dst, src reflect.Value) {
			if src.IsNil() {
				return
			}
			m := reflect.MakeMapWithSize(t, src.Len())
			for it := src.MapRange(); it.Next(); {
				m.SetMapIndex(it.Key(), cloneAny(it.Value()))
			}
			dst.Set(m)
		}
	case reflect.Interface:
		return func(dst, src reflect.Value) {
			if !src.IsNil() {
				dst.Set(cloneAny(src.Elem()))
			}
		}
	case reflect.Chan, reflect.Func, reflect.UnsafePointer:
		panic("state: an object cannot hold a " + t.String())
	}
	return nil
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
	return func(dst, src reflect.Value) {
		for _, f := range deep {
			f.c(dst.Field(f.at), src.Field(f.at))
		}
	}
}

// encode spells an object for the engine.
func encode(v any) ([]byte, error) { return json.Marshal(v) }
