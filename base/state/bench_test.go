package state

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// item has four indexes and is as large as most objects are.
type item struct {
	resource.Meta
	HostID    resource.ID
	Zone      string
	Status    string
	Addresses []string
	Labels    map[string]string
	Size      int64
}

var items = NewTable("bench-item",
	Unique("name", func(i *item) Key { return KeyOf(i.ProjectID, i.Name) }),
	Index("host", func(i *item) Key { return KeyOf(i.HostID) }),
	Index("status", func(i *item) Key { return KeyOf(i.ProjectID, i.Status, i.CreatedAt) }),
	MultiIndex("address", func(i *item) (keys []Key) {
		for _, a := range i.Addresses {
			keys = append(keys, KeyOf(a))
		}
		return keys
	}),
	Tally("size", func(i *item) (Key, Amounts) { return KeyOf(i.ProjectID), Amounts{i.Size} }),
)

func newItem(tx *Tx, n int) *item {
	return &item{
		Meta:   resource.Meta{ID: tx.NewID(), ProjectID: resource.ID{1, byte(n % 10)}, Name: fmt.Sprint("item-", n)},
		HostID: resource.ID{2, byte(n), byte(n >> 8)}, Zone: "nova", Status: "active", Size: 4,
		Addresses: []string{fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)}, Labels: map[string]string{"role": "web"},
	}
}

// filled makes a state of n items.
func filled(b *testing.B, n int) *State {
	b.Helper()
	s := open(b, NewMemory(1))
	for done := 0; done < n; {
		err := s.Update(b.Context(), func(tx *Tx) error {
			for range min(1000, n-done) {
				if err := items.Put(tx, newItem(tx, done)); err != nil {
					return err
				}
				done++
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return s
}

func BenchmarkRead(b *testing.B) {
	s := filled(b, 100_000)
	tx := s.Latest()
	var ids []resource.ID
	for i := range items.Peek(tx, "", Range{}) {
		if ids = append(ids, i.ID); len(ids) == 1000 {
			break
		}
	}
	page := func(seq func(func(*item) bool)) {
		n := 0
		for range seq {
			if n++; n == 100 {
				return
			}
		}
		b.Fatalf("%d items", n)
	}
	host := KeyOf(resource.ID{1, 3}, "active")
	b.Run("Get", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := items.Get(tx, ids[i%len(ids)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("PeekOne", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, ok := items.PeekOne(tx, ids[i%len(ids)]); !ok {
				b.Fatal("no item")
			}
		}
	})
	b.Run("Range100", func(b *testing.B) {
		for b.Loop() {
			page(items.Each(tx, "status", host))
		}
	})
	b.Run("Peek100", func(b *testing.B) {
		for b.Loop() {
			page(items.Peek(tx, "status", Range{Prefix: host}))
		}
	})
	b.Run("PeekReverse100", func(b *testing.B) {
		for b.Loop() {
			page(items.Peek(tx, "status", Range{Prefix: host, Reverse: true}))
		}
	})
	b.Run("Plan", func(b *testing.B) {
		for b.Loop() {
			var p Plan
			err := s.Update(WithPlan(b.Context(), &p), func(tx *Tx) error { return items.Put(tx, newItem(tx, 1<<20)) })
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("AsOf1000Back", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.View(WithAsOf(b.Context(), tx.Revision()-1)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkUpdate measures transactions that change one of 100,000 items or add one.
func BenchmarkUpdate(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := filled(b, 100_000)
			var ids []resource.ID
			for i := range items.Peek(s.Latest(), "", Range{}) {
				ids = append(ids, i.ID)
			}
			var next atomic.Int64
			took := make([][]time.Duration, writers)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for {
						n := int(next.Add(1))
						if n > b.N {
							return
						}
						start := time.Now()
						err := s.Update(b.Context(), func(tx *Tx) error {
							if n%2 == 0 {
								return items.Put(tx, newItem(tx, 100_000+n))
							}
							i, err := items.Get(tx, ids[n%len(ids)])
							if err != nil {
								return err
							}
							i.Status = fmt.Sprint("state-", n%7)
							return items.Put(tx, i)
						})
						if err != nil {
							b.Error(err)
							return
						}
						took[w] = append(took[w], time.Since(start))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			all := slices.Concat(took...)
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
		})
	}
}

// BenchmarkHeap tells what an object costs in memory: itself, and its place in the
// rows, four indexes and a tally.
func BenchmarkHeap(b *testing.B) {
	const n = 100_000
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		tables := newTableData(items.def)
		tx := &Tx{now: time.Now().UTC(), random: nil}
		made := make([]*item, n)
		for i := range made {
			made[i] = newItem(tx, i)
		}
		objects := heap()
		for _, i := range made {
			tables.apply(items.def, i.ID, nil, i)
		}
		after := heap()
		b.ReportMetric((objects-before)/n, "object-B")
		b.ReportMetric((after-objects)/n, "indexes-B")
		runtime.KeepAlive(made)
		runtime.KeepAlive(tables)
	}
}
