package state

import (
	"bytes"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// tableData is one table's content: its objects and its indexes, in copy-on-write
// trees. A published one never changes; the writer works on its own copy.
type tableData struct {
	rows *btree.BTreeG[row]
	// By index, and nil where it is of another kind.
	places  []*btree.Map[string, struct{}] // key, then the 16 bytes of the ID
	tallies []*btree.Map[string, sum]
	texts   []*texts
}

type row struct {
	id  resource.ID
	obj resource.Object
}

type sum struct {
	count   int64
	amounts Amounts
}

// degree is how wide the trees are, half the library's usual: a write copies the nodes on its
// path, so that narrow ones cost it less, and readers hardly notice.
const degree = 16

func newTableData(def *tableDef) *tableData {
	d := &tableData{
		rows: btree.NewBTreeGOptions(func(a, b row) bool { return bytes.Compare(a.id[:], b.id[:]) < 0 },
			btree.Options{NoLocks: true, Degree: degree}),
		places:  make([]*btree.Map[string, struct{}], len(def.indexes)),
		tallies: make([]*btree.Map[string, sum], len(def.indexes)),
		texts:   make([]*texts, len(def.indexes)),
	}
	for i, index := range def.indexes {
		switch {
		case index.tally != nil || index.shares != nil:
			d.tallies[i] = btree.NewMap[string, sum](degree)
		case index.text != nil:
			d.texts[i] = newTexts()
		default:
			d.places[i] = btree.NewMap[string, struct{}](degree)
		}
	}
	return d
}

// fork copies the table in O(indexes): both sides then copy what they change.
func (d *tableData) fork() *tableData {
	f := &tableData{
		rows:    d.rows.Copy(),
		places:  make([]*btree.Map[string, struct{}], len(d.places)),
		tallies: make([]*btree.Map[string, sum], len(d.tallies)),
		texts:   make([]*texts, len(d.texts)),
	}
	for i := range d.places {
		switch {
		case d.places[i] != nil:
			f.places[i] = d.places[i].Copy()
		case d.texts[i] != nil:
			f.texts[i] = d.texts[i].fork()
		default:
			f.tallies[i] = d.tallies[i].Copy()
		}
	}
	return f
}

// place is where an object stands in an index.
func place(key Key, id resource.ID) string { return string(key) + string(id[:]) }

// conflict says which unique index the object would break.
func (d *tableData) conflict(def *tableDef, id resource.ID, obj resource.Object) error {
	for i, index := range def.indexes {
		if !index.unique {
			continue
		}
		for _, key := range index.keys(obj) {
			if key == "" {
				continue
			}
			taken := false
			d.places[i].Ascend(string(key), func(at string, _ struct{}) bool {
				if !strings.HasPrefix(at, string(key)) {
					return false
				}
				if len(at) != len(key)+16 {
					return true // a longer key that begins so, or a shorter one whose ID goes on so
				}
				taken = at[len(key):] != string(id[:])
				return !taken
			})
			if taken {
				return fault.Errorf(fault.Exists, "Another %s has the same %s.", def.kind, index.name).
					WithCode(def.kind + "-" + index.name + "-taken")
			}
		}
	}
	return nil
}

// apply changes one object from before to after, either of which may be nil, in
// the rows and every index. apply(after, before) undoes it.
func (d *tableData) apply(def *tableDef, id resource.ID, before, after resource.Object) {
	for i, index := range def.indexes {
		if index.text != nil {
			d.texts[i].apply(id, textIn(index, before), textIn(index, after))
		}
	}
	d.place(def, id, before, after)
}

// admit takes in one object of many; fillTexts ends that.
func (d *tableData) admit(def *tableDef, id resource.ID, obj resource.Object) {
	d.place(def, id, nil, obj)
}

// fillTexts makes the texts of all objects.
func (d *tableData) fillTexts(def *tableDef) {
	for i, index := range def.indexes {
		if index.text != nil {
			d.texts[i] = newTexts()
			d.texts[i].fill(func(each func(resource.ID, string) bool) {
				d.rows.Scan(func(r row) bool { return each(r.id, index.text(r.obj)) })
			})
		}
	}
}

// place is apply without the texts.
func (d *tableData) place(def *tableDef, id resource.ID, before, after resource.Object) {
	for i, index := range def.indexes {
		if index.tally != nil {
			d.applyTally(i, index, before, after)
			continue
		}
		if index.shares != nil {
			d.applyShares(i, index, before, after)
			continue
		}
		if index.text != nil {
			continue
		}
		was, is := keysOf(index, before), keysOf(index, after)
		if len(was) == 1 && len(is) == 1 && was[0] == is[0] {
			continue
		}
		for _, key := range was {
			if key != "" {
				d.places[i].Delete(place(key, id))
			}
		}
		for _, key := range is {
			if key != "" {
				d.places[i].Set(place(key, id), struct{}{})
			}
		}
	}
	if after == nil {
		d.rows.Delete(row{id: id})
	} else {
		d.rows.Set(row{id, after})
	}
}

func keysOf(index indexDef, obj resource.Object) []Key {
	if obj == nil {
		return nil
	}
	return index.keys(obj)
}

func textIn(index indexDef, obj resource.Object) *string {
	if obj == nil {
		return nil
	}
	text := index.text(obj)
	return &text
}

func (d *tableData) applyTally(i int, index indexDef, before, after resource.Object) {
	var oldKey, newKey Key
	var was, is Amounts
	if before != nil {
		oldKey, was = index.tally(before)
	}
	if after != nil {
		newKey, is = index.tally(after)
	}
	if oldKey == newKey && was == is && (before == nil) == (after == nil) {
		return
	}
	d.add(i, oldKey, -1, was)
	d.add(i, newKey, 1, is)
}

func (d *tableData) applyShares(i int, index indexDef, before, after resource.Object) {
	var was, is []Share
	if before != nil {
		was = index.shares(before)
	}
	if after != nil {
		is = index.shares(after)
	}
	if slices.Equal(was, is) {
		return
	}
	for _, share := range was {
		d.add(i, share.Key, -1, share.Amounts)
	}
	for _, share := range is {
		d.add(i, share.Key, 1, share.Amounts)
	}
}

func (d *tableData) add(i int, key Key, sign int64, amounts Amounts) {
	if key == "" {
		return
	}
	s, _ := d.tallies[i].Get(string(key))
	s.count += sign
	for n := range amounts {
		s.amounts[n] += sign * amounts[n]
	}
	if s == (sum{}) {
		d.tallies[i].Delete(string(key))
	} else {
		d.tallies[i].Set(string(key), s)
	}
}

// scan walks a range of an index.
func (d *tableData) scan(def *tableDef, index string, r Range, yield func(resource.Object) bool) {
	if index == "" {
		d.scanRows(r, yield)
		return
	}
	places := d.places[def.index(index)]
	visit := func(at string, _ struct{}) bool {
		if !strings.HasPrefix(at, string(r.Prefix)) {
			// Beside the prefix: past its end, or, in reverse, not yet in it.
			return r.Reverse && at > string(r.Prefix)
		}
		if len(at) < len(r.Prefix)+16 {
			return true // a shorter key: it is the ID that goes on like the prefix
		}
		var id resource.ID
		copy(id[:], at[len(at)-16:])
		if id == r.After && at == place(r.AfterKey, id) {
			return true
		}
		found, _ := d.rows.Get(row{id: id})
		return yield(found.obj)
	}
	from := string(r.Prefix)
	if !r.After.IsZero() {
		from = place(r.AfterKey, r.After)
	}
	switch {
	case !r.Reverse:
		places.Ascend(from, visit)
	case !r.After.IsZero():
		places.Descend(from, visit)
	case from == "":
		places.Reverse(visit)
	default:
		places.Descend(from+strings.Repeat("\xff", 256), visit)
	}
}

func (d *tableData) scanRows(r Range, yield func(resource.Object) bool) {
	visit := func(at row) bool {
		if at.id == r.After && !r.After.IsZero() {
			return true
		}
		return yield(at.obj)
	}
	switch {
	case !r.Reverse:
		d.rows.Ascend(row{id: r.After}, visit)
	case r.After.IsZero():
		d.rows.Reverse(visit)
	default:
		d.rows.Descend(row{id: r.After}, visit)
	}
}
