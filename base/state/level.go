package state

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A state is at a level (see package release): nothing is written that a release cannot read whose newest level it is. A state that
// begins with this release is at this release's newest level; one that an older release began stays where it is until Finalise.
//
// A table names with Since the level from which on it may be used. A field of a stored object that came later is tagged
//
//	Move *Move `since:"2"`        from level 2 on it may be set; a transaction that sets it earlier is refused
//	Physical []string `since:"2,soft"` may be set at any level: the release before drops it unread, and nothing is lost by that
//
// test/schema_test.go holds what every release stored, so that neither can be forgotten.

// A levelRecord says at which level the state is. There is none at level 1, whose release does not know the kind: that it
// refuses to read a state which has one is what keeps it from a state that was finalised.
type levelRecord struct {
	resource.Meta

	Level   int
	Release string // that finalised it
}

var levels = NewTable[levelRecord]("level", Since[levelRecord](2))

// levelID is that of the one record.
var levelID = resource.ID{15: 1}

// LevelOf is the level that the state is at.
func LevelOf(tx *Tx) int {
	if r, ok := levels.PeekOne(tx, levelID); ok {
		return r.Level
	}
	if tx.head.Revision == 0 {
		return tx.first // the first transaction writes it down
	}
	return 1
}

// ErrLevel: the state is at a level that this release does not work at.
var ErrLevel = errors.New("this release cannot work on the cloud's state")

// mayRead reports why this release must not work on tables.
func mayRead(tables []*tableData, head Head, first int) error {
	level := LevelOf(&Tx{tables: tables, head: head, first: first})
	if err := release.Own.At(level); err != nil {
		return fmt.Errorf("%w: %w", ErrLevel, err)
	}
	return nil
}

// Finalise raises the state's level to this release's newest. From then on the release before cannot take back over. may, in the same
// transaction, refuses it for what the state does not know.
func Finalise(ctx context.Context, s *State, version string, may func(tx *Tx, level int) error) (from, to int, err error) {
	to = release.Own.Newest
	err = s.Update(ctx, func(tx *Tx) error {
		from = LevelOf(tx)
		if from == to {
			return nil
		}
		if err := may(tx, to); err != nil {
			return err
		}
		r, ok := levels.Find(tx, levelID)
		if !ok {
			r = &levelRecord{Meta: resource.Meta{ID: levelID, Name: "level"}}
		}
		r.Level, r.Release = to, version
		return levels.Put(tx, r)
	})
	return from, to, err
}

// begins writes down, with the first change of a state, the level that it begins at.
func (tx *Tx) begins() {
	if tx.head.Revision > 0 || tx.first == 1 || tx.tables[levels.def.slot].rows.Len() > 0 {
		return
	}
	r := &levelRecord{Meta: resource.Meta{ID: levelID, Name: "level", CreatedAt: tx.now, UpdatedAt: tx.now, Revision: tx.revision}, Level: tx.first}
	tx.tables[levels.def.slot].apply(levels.def, levelID, nil, r)
	tx.changes = append(tx.changes, change{def: levels.def, id: levelID, after: r})
}

// begins reports whether the event is the level that a state begins at, which is no change of it.
func (e *Event) begins() bool { return e.Kind == levels.Kind() && e.Revision == 1 }

// Since says from which level on a table may be used.
func Since[T any](level int) Option[T] { return func(d *tableDef) { d.since = level } }

// Usable reports whether the table's objects may be made at the level that the state is at.
func (t *Table[T]) Usable(tx *Tx) bool { return t.def.since <= LevelOf(tx) }

// NotYet is the fault for what needs a level that the cloud is not at.
func NotYet() error {
	return fault.Errorf(fault.Conflict, "The cloud is being upgraded, and this needs the upgrade to be finalised first, by its operator.").WithCode("upgrade-not-finalised")
}

// allowed reports why an object must not be written at the level that the state is at. Mostly that is the newest, and costs
// nothing to find out.
func (tx *Tx) allowed(def *tableDef, obj resource.Object) error {
	if def == levels.def || def.since <= 1 && def.needs == nil {
		return nil
	}
	level := LevelOf(tx)
	if level >= release.Own.Newest {
		return nil
	}
	need := def.since
	if def.needs != nil {
		need = max(need, def.needs(reflect.ValueOf(obj).Elem()))
	}
	if need > level {
		return NotYet()
	}
	return nil
}

// A need finds the highest level that what is set in a value asks for.
type need func(reflect.Value) int

// needOf makes the need of a type; nil if none of its fields came later.
func needOf(t reflect.Type, within []reflect.Type) need {
	for _, outer := range within {
		if outer == t {
			return nil // of a type that holds itself the outermost counts
		}
	}
	within = append(within, t)
	switch t.Kind() {
	case reflect.Struct:
		return structNeed(t, within)
	case reflect.Pointer:
		if inner := needOf(t.Elem(), within); inner != nil {
			return func(v reflect.Value) int {
				if v.IsNil() {
					return 0
				}
				return inner(v.Elem())
			}
		}
	case reflect.Slice, reflect.Array:
		if inner := needOf(t.Elem(), within); inner != nil {
			return func(v reflect.Value) (most int) {
				for i := range v.Len() {
					most = max(most, inner(v.Index(i)))
				}
				return most
			}
		}
	case reflect.Map:
		if inner := needOf(t.Elem(), within); inner != nil {
			return func(v reflect.Value) (most int) {
				for _, value := range v.Seq2() {
					most = max(most, inner(value))
				}
				return most
			}
		}
	}
	return nil
}

func structNeed(t reflect.Type, within []reflect.Type) need {
	type part struct {
		field int
		need  need
	}
	var parts []part
	for i := range t.NumField() {
		f := t.Field(i)
		level, soft := SinceOf(f)
		switch {
		case level > 0 && !soft:
			parts = append(parts, part{i, func(v reflect.Value) int {
				if v.IsZero() {
					return 0
				}
				return level
			}})
		case level == 0 && f.IsExported():
			if inner := needOf(f.Type, within); inner != nil {
				parts = append(parts, part{i, inner})
			}
		}
	}
	if parts == nil {
		return nil
	}
	return func(v reflect.Value) (most int) {
		for _, p := range parts {
			most = max(most, p.need(v.Field(p.field)))
		}
		return most
	}
}

// SinceOf reads a field's tag: the level from which on it may be set, 0 if it has none; and whether the release before may drop it.
func SinceOf(f reflect.StructField) (level int, soft bool) {
	tag, ok := f.Tag.Lookup("since")
	if !ok {
		return 0, false
	}
	number, rest, _ := strings.Cut(tag, ",")
	level, err := strconv.Atoi(number)
	if err != nil || level < 2 || rest != "" && rest != "soft" {
		panic(fmt.Sprintf("state: the tag of %s, since:%q, is neither a level nor a level and soft", f.Name, tag))
	}
	return level, rest == "soft"
}

// Stored gives what is stored of each kind: its type, its schema's version, and the level from which on it may be used.
func Stored(each func(kind string, t reflect.Type, version, since int)) {
	for _, def := range byKind() {
		each(def.kind, def.typ, def.version, max(def.since, 1))
	}
}

// Beyond lists what is stored though the level that the state is at does not have it. There should be nothing.
func Beyond(tx *Tx) []string {
	var wrong []string
	for _, def := range tableDefs() {
		tx.tables[def.slot].rows.Scan(func(r row) bool {
			if err := tx.allowed(def, r.obj); err != nil {
				wrong = append(wrong, fmt.Sprintf("%s %s is beyond level %d, which the cloud is at", def.kind, r.id, LevelOf(tx)))
			}
			return true
		})
	}
	return wrong
}
