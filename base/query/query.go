// Package query holds how lists are asked for, whatever is listed: a page of a sequence
// after a marker, in some order, with what a filter keeps.
package query

import (
	"cmp"
	"iter"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A List is what part of a list is wanted.
type List struct {
	Limit   int         // at most so many; 0: all
	Marker  resource.ID // only what comes after this object
	Reverse bool        // the other way round
}

// A Page is a part of a list.
type Page[T any] struct {
	Items []*T
	More  bool // there are more after these
}

// Take makes a page of a sequence that is in the wanted order and already begins
// after the marker. It stops reading as soon as the page is full.
func Take[T any](seq iter.Seq[*T], limit int, keep func(*T) bool) Page[T] {
	var p Page[T]
	for item := range seq {
		if keep != nil && !keep(item) {
			continue
		}
		if limit > 0 && len(p.Items) == limit {
			p.More = true
			break
		}
		p.Items = append(p.Items, item)
	}
	return p
}

// Sorted makes a page in an order that no index serves: it looks at all that the filter
// keeps, so use it only after an index has narrowed the sequence. Ties go by ID, upwards. The marker need not be kept by the filter.
func Sorted[T any](seq iter.Seq[*T], q List, meta func(*T) *resource.Meta, order func(a, b *T) int, keep func(*T) bool) Page[T] {
	var all []*T
	var marker *T
	for item := range seq {
		if meta(item).ID == q.Marker {
			marker = item
		}
		if keep == nil || keep(item) {
			all = append(all, item)
		}
	}
	compare := func(a, b *T) int {
		c := order(a, b)
		if q.Reverse {
			c = -c
		}
		return cmp.Or(c, slices.Compare(meta(a).ID[:], meta(b).ID[:]))
	}
	if marker != nil {
		all = slices.DeleteFunc(all, func(item *T) bool { return compare(item, marker) <= 0 })
	}
	if q.Limit <= 0 || len(all) <= q.Limit {
		slices.SortFunc(all, compare)
		return Page[T]{all, false}
	}
	return Page[T]{least(all, q.Limit, compare), true}
}

// least gives the first n of many in order, without sorting the rest.
func least[T any](all []*T, n int, compare func(a, b *T) int) []*T {
	first := slices.Clone(all[:n])
	slices.SortFunc(first, compare)
	for _, item := range all[n:] {
		if compare(item, first[n-1]) >= 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(first, item, compare)
		copy(first[at+1:], first[at:n-1])
		first[at] = item
	}
	return first
}
