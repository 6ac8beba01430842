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
	ends []int32 // where in text each one ends
	text string
}

// pageTexts is how many texts a page has at most: more make a search faster, and a change dearer, which copies a page.
const pageTexts = 64

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
	}
	at, there := p.find(id)
	if after == nil && !there {
		return
	}
	if len(p.ids) > 0 {
		t.pages.Delete(p)
	}
	p = p.splice(at, there, id, after)
	cut := len(p.ids)
	switch {
	case cut <= pageTexts:
	case at == cut-1:
		cut-- // what is made one after the other fills page by page
	default:
		cut /= 2
	}
	t.set(p.part(0, cut))
	t.set(p.part(cut, len(p.ids)))
}

func (t *texts) set(p *textPage) {
	if len(p.ids) > 0 {
		t.pages.Set(p)
	}
}

// splice is the page with one text at a place, instead of the one there if that is replaced; nil is none.
func (p *textPage) splice(at int, replaced bool, id resource.ID, text *string) *textPage {
	from, to := 0, 0 // what goes, in p.text
	if at > 0 {
		from = int(p.ends[at-1])
	}
	to = from
	next := at
	if replaced {
		to, next = int(p.ends[at]), at+1
	}
	made := &textPage{ids: make([]resource.ID, at, len(p.ids)+1), ends: make([]int32, at, len(p.ids)+1)}
	copy(made.ids, p.ids)
	copy(made.ends, p.ends)
	word := ""
	if text != nil {
		word = *text
		made.ids, made.ends = append(made.ids, id), append(made.ends, int32(from+len(word)))
	}
	made.ids = append(made.ids, p.ids[next:]...)
	for _, end := range p.ends[next:] {
		made.ends = append(made.ends, end+int32(from+len(word)-to))
	}
	made.text = p.text[:from] + word + p.text[to:]
	return made
}

// part is some texts of a page.
func (p *textPage) part(from, to int) *textPage {
	if from == 0 && to == len(p.ids) || from == to {
		return &textPage{p.ids[from:to], p.ends[from:to], p.text}
	}
	begin := int32(0)
	if from > 0 {
		begin = p.ends[from-1]
	}
	made := &textPage{slices.Clone(p.ids[from:to]), slices.Clone(p.ends[from:to]), strings.Clone(p.text[begin:p.ends[to-1]])}
	for i := range made.ends {
		made.ends[i] -= begin
	}
	return made
}

// fill makes all pages anew, of objects in the order of their IDs: when all are there, that is a hundredth of the work of
// adding one after the other.
func (t *texts) fill(objects func(each func(id resource.ID, text string) bool)) {
	p, words := &textPage{}, strings.Builder{}
	flush := func() {
		p.text = words.String()
		t.set(p)
		p, words = &textPage{}, strings.Builder{}
	}
	objects(func(id resource.ID, text string) bool {
		if len(p.ids) == pageTexts {
			flush()
		}
		words.WriteString(text)
		p.ids, p.ends = append(p.ids, id), append(p.ends, int32(words.Len()))
		return true
	})
	flush()
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
