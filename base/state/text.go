package state

import (
	"bytes"
	"iter"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"github.com/unkai-cloud/unkai/base/resource"
)

// Text keeps a text of every object side by side in memory, in the order of IDs, so that all of them can be searched
// for a part: a hundred thousand texts are read in about a millisecond, where a visit to as many objects, each in memory
// that no processor has at hand, takes tens. It is computed from the objects by the table itself, as an index is.
func Text[T any](name string, text func(*T) string) Option[T] {
	return func(d *tableDef) {
		d.indexes = append(d.indexes, indexDef{name: name, text: func(o any) string { return text(o.(*T)) }})
	}
}

// Texts gives the IDs and texts of a Text, in the order of IDs: those after that object (before it when
// reverse), or all when it is zero.
func (t *Table[T]) Texts(tx *Tx, name string, after resource.ID, reverse bool) iter.Seq2[resource.ID, string] {
	return func(yield func(resource.ID, string) bool) {
		tx.tables[t.def.slot].texts[t.def.index(name)].scan(after, reverse, yield)
	}
}

// texts is the content of one Text: pages in a copy-on-write tree, by their first ID.
type texts struct{ pages *btree.BTreeG[*textPage] }

// textPage holds some texts. It never changes: what changes is put in its place.
type textPage struct {
	ids  []resource.ID
	ends []int // where in text each one ends
	text string
}

// pageTexts is how many texts a page has at most: more make a search faster, and a change slower, which copies a page.
const pageTexts = 128

func newTexts() *texts {
	return &texts{btree.NewBTreeGOptions(func(a, b *textPage) bool { return bytes.Compare(a.ids[0][:], b.ids[0][:]) < 0 },
		btree.Options{NoLocks: true, Degree: degree})}
}

func (t *texts) fork() *texts { return &texts{t.pages.Copy()} }

func pageFrom(id resource.ID) *textPage { return &textPage{ids: []resource.ID{id}} }

func (p *textPage) at(i int) string {
	if i == 0 {
		return p.text[:p.ends[0]]
	}
	return p.text[p.ends[i-1]:p.ends[i]]
}

func (p *textPage) find(id resource.ID) (int, bool) {
	return slices.BinarySearchFunc(p.ids, id, func(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) })
}

// page is where an object stands, or would: nil if there is no page yet.
func (t *texts) page(id resource.ID) *textPage {
	var found *textPage
	t.pages.Descend(pageFrom(id), func(p *textPage) bool { found = p; return false })
	if found == nil {
		found, _ = t.pages.Min()
	}
	return found
}

// apply changes the text of one object; nil is none.
func (t *texts) apply(id resource.ID, before, after *string) {
	if before != nil && after != nil && *before == *after {
		return
	}
	p := t.page(id)
	if p == nil {
		p = &textPage{}
	} else {
		t.pages.Delete(p)
	}
	at, there := p.find(id)
	ids, words := slices.Clone(p.ids), p.all()
	switch {
	case after == nil && there:
		ids, words = slices.Delete(ids, at, at+1), slices.Delete(words, at, at+1)
	case after != nil && there:
		words[at] = *after
	case after != nil:
		ids, words = slices.Insert(ids, at, id), slices.Insert(words, at, *after)
	}
	cut := len(ids)
	switch {
	case cut <= pageTexts:
	case at == cut-1:
		cut-- // what is made one after the other fills page by page
	default:
		cut /= 2
	}
	t.set(ids[:cut], words[:cut])
	t.set(ids[cut:], words[cut:])
}

func (t *texts) set(ids []resource.ID, words []string) {
	if len(ids) == 0 {
		return
	}
	p := &textPage{ids: slices.Clone(ids), ends: make([]int, len(ids)), text: strings.Join(words, "")}
	end := 0
	for i, w := range words {
		end += len(w)
		p.ends[i] = end
	}
	t.pages.Set(p)
}

func (p *textPage) all() []string {
	words := make([]string, len(p.ids), len(p.ids)+1)
	for i := range words {
		words[i] = p.at(i)
	}
	return words
}

func (t *texts) len() (n int) {
	t.pages.Scan(func(p *textPage) bool { n += len(p.ids); return true })
	return n
}

// scan gives the texts after an object, or before it, in order.
func (t *texts) scan(after resource.ID, reverse bool, yield func(resource.ID, string) bool) {
	if !reverse {
		visit := func(p *textPage) bool {
			i, there := p.find(after)
			if there {
				i++
			}
			for ; i < len(p.ids); i++ {
				if !yield(p.ids[i], p.at(i)) {
					return false
				}
			}
			return true
		}
		if first := t.page(after); first != nil {
			t.pages.Ascend(first, visit)
		}
		return
	}
	visit := func(p *textPage) bool {
		i := len(p.ids)
		if !after.IsZero() {
			i, _ = p.find(after)
		}
		for i--; i >= 0; i-- {
			if !yield(p.ids[i], p.at(i)) {
				return false
			}
		}
		return true
	}
	if after.IsZero() {
		t.pages.Reverse(visit)
	} else {
		t.pages.Descend(pageFrom(after), visit)
	}
}
