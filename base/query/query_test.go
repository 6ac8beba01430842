package query

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
)

type thing struct {
	resource.Meta
	rank int
}

func things(n int, r *rand.Rand) []*thing {
	all := make([]*thing, n)
	for i := range all {
		all[i] = &thing{rank: r.IntN(20)} // so that there are ties
		all[i].ID[0], all[i].ID[15] = byte(r.Uint32()), byte(i)
		all[i].ID[14] = byte(i >> 8)
	}
	return all
}

// TestSortedPages walks every page of random lists: together they are the whole list in order.
func TestSortedPages(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 7, 100, 300} {
		for _, limit := range []int{0, 1, 3, 50, 400} {
			for _, reverse := range []bool{false, true} {
				all := things(n, r)
				keep := func(i *thing) bool { return i.rank != 3 }
				want := slices.DeleteFunc(slices.Clone(all), func(i *thing) bool { return !keep(i) })
				order := func(a, b *thing) int { return a.rank - b.rank }
				slices.SortFunc(want, func(a, b *thing) int {
					c := order(a, b)
					if reverse {
						c = -c
					}
					if c == 0 {
						c = slices.Compare(a.ID[:], b.ID[:])
					}
					return c
				})
				var got []*thing
				q := List{Limit: limit, Reverse: reverse}
				for {
					page := Sorted(slices.Values(all), q, (*thing).GetMeta, order, keep)
					got = append(got, page.Items...)
					if !page.More {
						break
					}
					if len(page.Items) != limit {
						t.Fatalf("a page of %d, limit %d", len(page.Items), limit)
					}
					q.Marker = page.Items[limit-1].ID
				}
				if !slices.Equal(got, want) {
					t.Errorf("%d things in pages of %d, reverse %v: got %d, want %d", n, limit, reverse, len(got), len(want))
				}
			}
		}
	}
}

// TestMarkerOutside begins after something that the filter does not keep.
func TestMarkerOutside(t *testing.T) {
	all := things(100, rand.New(rand.NewPCG(3, 4)))
	order := func(a, b *thing) int { return a.rank - b.rank }
	marker := all[slices.IndexFunc(all, func(i *thing) bool { return i.rank == 3 })]
	page := Sorted(slices.Values(all), List{Marker: marker.ID}, (*thing).GetMeta, order, func(i *thing) bool { return i.rank != 3 })
	for _, i := range page.Items {
		if i.rank < 4 {
			t.Errorf("rank %d comes after rank 3", i.rank)
		}
	}
	if len(page.Items) == 0 {
		t.Error("nothing comes after the marker")
	}
}

func BenchmarkSorted(b *testing.B) {
	all := things(100_000, rand.New(rand.NewPCG(5, 6)))
	for b.Loop() {
		Sorted(slices.Values(all), List{Limit: 100}, (*thing).GetMeta, func(a, b *thing) int { return a.rank - b.rank }, nil)
	}
}
