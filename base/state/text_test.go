package state

import (
	"bytes"
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
)

// TestTexts compares pages of texts with a map, through changes at every place and in forks.
func TestTexts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	id := func() (id resource.ID) {
		n := 1 + r.IntN(2000)
		id[14], id[15] = byte(n>>8), byte(n)
		return id
	}
	want, live := map[resource.ID]string{}, newTexts()
	held, heldWant := live.fork(), map[resource.ID]string{}
	for step := range 20_000 {
		one := id()
		if step < 3000 { // as they are made: one after the other
			one = resource.ID{14: byte((step + 1) >> 8), 15: byte(step + 1)}
		}
		var before, after *string
		if was, ok := want[one]; ok {
			before = &was
		}
		if step < 3000 || step%9000 < 6000 && r.IntN(3) > 0 {
			text := string(bytes.Repeat([]byte{byte('a' + r.IntN(26))}, r.IntN(5)))
			after = &text
			want[one] = text
		} else {
			delete(want, one)
		}
		live.apply(one, before, after)
		if step%997 == 0 {
			sameTexts(t, live, want, id())
			sameTexts(t, held, heldWant, id()) // untouched by what came since
			held, heldWant = live.fork(), maps.Clone(want)
		}
	}
	filled := newTexts()
	filled.fill(func(each func(resource.ID, string) bool) { live.scan(resource.ID{}, false, each) })
	sameTexts(t, filled, want, id())
	for one, text := range want {
		live.apply(one, &text, nil)
	}
	if live.len() != 0 || live.pages.Len() != 0 {
		t.Errorf("%d texts in %d pages are left", live.len(), live.pages.Len())
	}
}

func sameTexts(t *testing.T, texts *texts, want map[resource.ID]string, from resource.ID) {
	t.Helper()
	for _, after := range []resource.ID{{}, from, {0: 0xff}} {
		for _, reverse := range []bool{false, true} {
			ids := slices.SortedFunc(maps.Keys(want), func(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) })
			ids = slices.DeleteFunc(ids, func(id resource.ID) bool {
				c := cmp.Compare(bytes.Compare(id[:], after[:]), 0)
				return !after.IsZero() && (reverse && c >= 0 || !reverse && c <= 0)
			})
			if reverse {
				slices.Reverse(ids)
			}
			n := 0
			texts.scan(after, reverse, func(id resource.ID, text string) bool {
				if n >= len(ids) || ids[n] != id || want[id] != text {
					t.Fatalf("after %x, reverse %v: text %d is %q of %x", after, reverse, n, text, id)
				}
				n++
				return true
			})
			if n != len(ids) || texts.len() != len(want) {
				t.Fatalf("after %x, reverse %v: %d texts, want %d; %d in all, want %d", after, reverse, n, len(ids), texts.len(), len(want))
			}
		}
	}
}
