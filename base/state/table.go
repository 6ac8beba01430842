package state

import (
	"fmt"
	"iter"
	"reflect"
	"sync"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A Table declares that objects of type T are kept, and how they are found. T is a struct
// that embeds resource.Meta and has only exported fields. Make tables with NewTable, as package variables.
type Table[T any] struct{ def *tableDef }

// tableDef is what the package itself has to know of a table.
type tableDef struct {
	kind     string
	typ      reflect.Type
	slot     int // in State's list of tables
	version  int
	upgrades map[int]func(map[string]any) error
	lowers   map[int]lower // by the version that they begin from
	indexes  []indexDef
	byName   map[string]int
	since    int  // the level from which on it may be used; see level.go
	needs    need // what an object asks for beyond that; nil: nothing
}

type indexDef struct {
	name   string
	unique bool
	keys   func(obj any) []Key
	tally  func(obj any) (Key, Amounts) // set: it is a tally, and keys is not
	shares func(obj any) []Share        // set: it is a tally of several keys, and keys is not
	text   func(obj any) string         // set: it is a Text, and keys is not
}

// Amounts is what a Tally adds up, besides the number of objects.
type Amounts [4]int64

var registry struct {
	mu     sync.Mutex
	tables []*tableDef
	kinds  map[string]*tableDef
}

// An Option of NewTable for objects of type T.
type Option[T any] func(*tableDef)

// NewTable declares a table. kind is stored with each object and must never change.
func NewTable[T any](kind string, options ...Option[T]) *Table[T] {
	typ := reflect.TypeFor[T]()
	if _, ok := reflect.New(typ).Interface().(resource.Object); !ok {
		panic("state: " + typ.String() + " does not embed resource.Meta")
	}
	clonerOf(typ) // panics now, not later, on a field that cannot be kept
	def := &tableDef{kind: kind, typ: typ, version: 1, byName: map[string]int{}}
	for _, option := range options {
		option(def)
	}
	def.needs = needOf(typ, nil)
	for i, index := range def.indexes {
		if _, twice := def.byName[index.name]; twice {
			panic("state: " + kind + " has two indexes named " + index.name)
		}
		def.byName[index.name] = i
	}
	registry.mu.Lock()
	defer registry.mu.Unlock()
	if registry.kinds == nil {
		registry.kinds = map[string]*tableDef{}
	}
	if registry.kinds[kind] != nil {
		panic("state: two tables of kind " + kind)
	}
	def.slot = len(registry.tables)
	registry.tables = append(registry.tables, def)
	registry.kinds[kind] = def
	return &Table[T]{def}
}

// Index finds objects by a key that several may share.
func Index[T any](name string, key func(*T) Key) Option[T] {
	return func(d *tableDef) {
		d.indexes = append(d.indexes, indexDef{name: name, keys: func(o any) []Key { return []Key{key(o.(*T))} }})
	}
}

// MultiIndex finds an object by each of several keys.
func MultiIndex[T any](name string, keys func(*T) []Key) Option[T] {
	return func(d *tableDef) {
		d.indexes = append(d.indexes, indexDef{name: name, keys: func(o any) []Key { return keys(o.(*T)) }})
	}
}

// Unique is an Index whose key no two objects may share. A Put that would break
// this fails with a fault of kind Exists.
func Unique[T any](name string, key func(*T) Key) Option[T] {
	return func(d *tableDef) {
		d.indexes = append(d.indexes, indexDef{name: name, unique: true, keys: func(o any) []Key { return []Key{key(o.(*T))} }})
	}
}

// Tally keeps, for each key, the number of objects and the sum of their amounts. It is an
// index like the others: computed from the objects by the table itself, in the same transaction,
// and anew at each start. Quota and capacity are read from it in O(log n).
func Tally[T any](name string, amounts func(*T) (Key, Amounts)) Option[T] {
	return func(d *tableDef) {
		d.indexes = append(d.indexes, indexDef{name: name, tally: func(o any) (Key, Amounts) { return amounts(o.(*T)) }})
	}
}

// A Share is what an object adds under one key of a MultiTally.
type Share struct {
	Key     Key
	Amounts Amounts
}

// MultiTally is a Tally to which an object adds under several keys, each given once and always in the same order.
func MultiTally[T any](name string, shares func(*T) []Share) Option[T] {
	return func(d *tableDef) {
		d.indexes = append(d.indexes, indexDef{name: name, shares: func(o any) []Share { return shares(o.(*T)) }})
	}
}

// Version sets the schema's version (1 when absent). upgrades[n] changes an object of version
// n, as decoded JSON with its numbers as json.Number, to one of version n+1; every version below
// must have one.
func Version[T any](version int, upgrades map[int]func(map[string]any) error) Option[T] {
	return func(d *tableDef) {
		for n := 1; n < version; n++ {
			if upgrades[n] == nil {
				panic(fmt.Sprintf("state: %s has no upgrade from version %d", d.kind, n))
			}
		}
		d.version, d.upgrades = version, upgrades
	}
}

// Until has objects stored in the version before a certain one, as down makes it of decoded JSON, until the state is at a level: what
// the release knows that brought the level. Each version but the first of all needs one, as long as its level is not the oldest.
func Until[T any](level, version int, down func(map[string]any) error) Option[T] {
	return func(d *tableDef) {
		if d.lowers == nil {
			d.lowers = map[int]lower{}
		}
		d.lowers[version] = lower{level, down}
	}
}

// Kind is the name that the table's objects are stored under.
func (t *Table[T]) Kind() string { return t.def.kind }

// Get gives the caller's own copy of an object. A fault of kind NotFound if there is none.
func (t *Table[T]) Get(tx *Tx, id resource.ID) (*T, error) {
	if obj, ok := t.Find(tx, id); ok {
		return obj, nil
	}
	return nil, fault.Missing(t.def.kind, id)
}

// Find is Get for when absence is no error.
func (t *Table[T]) Find(tx *Tx, id resource.ID) (*T, bool) {
	r, ok := tx.tables[t.def.slot].rows.Get(row{id: id})
	if !ok {
		return nil, false
	}
	return clone(any(r.obj).(*T)), true
}

// Has reports whether there is such an object.
func (t *Table[T]) Has(tx *Tx, id resource.ID) bool {
	_, ok := tx.tables[t.def.slot].rows.Get(row{id: id})
	return ok
}

// Put inserts the object, or replaces the one of the same ID. It fills CreatedAt (if zero),
// UpdatedAt and Revision in. The table keeps a copy of its own.
func (t *Table[T]) Put(tx *Tx, obj *T) error {
	meta := any(obj).(resource.Object).GetMeta()
	if meta.ID.IsZero() {
		return fmt.Errorf("put a %s without an ID", t.def.kind)
	}
	if meta.CreatedAt.IsZero() {
		meta.CreatedAt = tx.now
	}
	meta.UpdatedAt, meta.Revision = tx.now, tx.revision
	return tx.write(t.def, meta.ID, any(clone(obj)).(resource.Object))
}

// Delete takes the object away. A fault of kind NotFound if there is none.
func (t *Table[T]) Delete(tx *Tx, id resource.ID) error {
	if !t.Has(tx, id) {
		return fault.Missing(t.def.kind, id)
	}
	return tx.write(t.def, id, nil)
}

// Lookup gives the first object with exactly this key in an index, e.g. a Unique one.
func (t *Table[T]) Lookup(tx *Tx, index string, key Key) (*T, bool) {
	for obj := range t.Range(tx, index, Range{Prefix: key}) {
		return obj, true
	}
	return nil, false
}

// All gives every object in the order of their IDs, which is that of their making.
func (t *Table[T]) All(tx *Tx) iter.Seq[*T] { return t.Range(tx, "", Range{}) }

// Each gives the objects whose key in the index begins with prefix, in the order of
// the index and then of IDs.
func (t *Table[T]) Each(tx *Tx, index string, prefix Key) iter.Seq[*T] {
	return t.Range(tx, index, Range{Prefix: prefix})
}

// A Range is a part of an index.
type Range struct {
	Prefix Key // only keys that begin so
	// Start after this object (before it when Reverse), at the place that it has, or
	// would have, with key AfterKey. AfterKey is not needed for the index "".
	After    resource.ID
	AfterKey Key
	Reverse  bool
}

// Range gives a part of an index, "" being the order of IDs. The sequence reads
// the snapshot that the transaction began with plus its own writes; do not write to the
// same table while it runs: collect first.
func (t *Table[T]) Range(tx *Tx, index string, r Range) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		data := tx.tables[t.def.slot]
		data.scan(t.def, index, r, func(obj resource.Object) bool { return yield(clone(any(obj).(*T))) })
	}
}

// IDs gives the IDs of the objects whose key begins with prefix, without copying objects.
func (t *Table[T]) IDs(tx *Tx, index string, prefix Key) []resource.ID {
	var ids []resource.ID
	data := tx.tables[t.def.slot]
	data.scan(t.def, index, Range{Prefix: prefix}, func(obj resource.Object) bool {
		ids = append(ids, obj.GetMeta().ID)
		return true
	})
	return ids
}

// Peek is Range without the copies, for hot read paths: whoever reads must not change
// what it is given, nor keep it.
func (t *Table[T]) Peek(tx *Tx, index string, r Range) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		data := tx.tables[t.def.slot]
		data.scan(t.def, index, r, func(obj resource.Object) bool { return yield(any(obj).(*T)) })
	}
}

// PeekOne is Find without the copy, under Peek's rule.
func (t *Table[T]) PeekOne(tx *Tx, id resource.ID) (*T, bool) {
	r, ok := tx.tables[t.def.slot].rows.Get(row{id: id})
	if !ok {
		return nil, false
	}
	return any(r.obj).(*T), true
}

// PeekAt is the n-th object in the order of IDs, from 0, under Peek's rule.
func (t *Table[T]) PeekAt(tx *Tx, n int) (*T, bool) {
	r, ok := tx.tables[t.def.slot].rows.GetAt(n)
	if !ok {
		return nil, false
	}
	return any(r.obj).(*T), true
}

// Len is how many objects there are.
func (t *Table[T]) Len(tx *Tx) int { return tx.tables[t.def.slot].rows.Len() }

// Sum reads a Tally or MultiTally: how many objects have this key, and the sum of their amounts.
func (t *Table[T]) Sum(tx *Tx, tally string, key Key) (count int64, sums Amounts) {
	i := t.def.index(tally)
	sum, _ := tx.tables[t.def.slot].tallies[i].Get(string(key))
	return sum.count, sum.amounts
}

// SumOf is Sum for a key that is one ID alone, for hot paths: it makes no Key.
func (t *Table[T]) SumOf(tx *Tx, tally string, id resource.ID) (count int64, sums Amounts) {
	i := t.def.index(tally)
	sum, _ := tx.tables[t.def.slot].tallies[i].Get(string(id[:]))
	return sum.count, sum.amounts
}

func (d *tableDef) index(name string) int {
	i, ok := d.byName[name]
	if !ok {
		panic("state: " + d.kind + " has no index " + name)
	}
	return i
}

func clone[T any](obj *T) *T {
	copied := new(T)
	*copied = *obj
	if c := clonerOf(reflect.TypeFor[T]()); c != nil {
		c(reflect.ValueOf(copied).Elem())
	}
	return copied
}
