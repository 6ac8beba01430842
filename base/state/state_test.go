package state

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/unkai-cloud/unkai/base/fault"

	"github.com/unkai-cloud/unkai/base/resource"
)

type thing struct {
	resource.Meta
	Size int64
	Tags []string
}

var things = NewTable[thing]("test-thing",
	Unique("name", func(t *thing) Key { return KeyOf(t.ProjectID, t.Name) }),
	MultiIndex("tag", func(t *thing) (keys []Key) {
		for _, tag := range t.Tags {
			keys = append(keys, KeyOf(tag))
		}
		return keys
	}),
	Tally("size", func(t *thing) (Key, Amounts) { return KeyOf(t.ProjectID), Amounts{t.Size} }),
	Text("words", func(t *thing) string { return t.Name }),
)

func open(t testing.TB, e Engine) *State {
	t.Helper()
	s, err := Open(context.Background(), e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func add(t testing.TB, s *State, name string, size int64, tags ...string) resource.ID {
	t.Helper()
	id, err := Do(context.Background(), s, func(tx *Tx) (resource.ID, error) {
		id := tx.NewID()
		return id, things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: name}, Size: size, Tags: tags})
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	s := open(t, NewMemory(0))
	id := add(t, s, "a", 5, "x", "y")
	err := s.Update(t.Context(), func(tx *Tx) error {
		a, _ := things.Get(tx, id)
		a.Size, a.Tags = 7, []string{"z"}
		if err := things.Put(tx, a); err != nil {
			return err
		}
		return things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: "a"}})
	})
	if !fault.Is(err, fault.Exists) {
		t.Fatalf("a second thing of the same name: %v", err)
	}
	tx := s.Latest()
	if n, sums := things.Sum(tx, "size", KeyOf(resource.ID{})); n != 1 || sums[0] != 5 {
		t.Errorf("tally is %d, %v", n, sums)
	}
	if ids := things.IDs(tx, "tag", KeyOf("x")); len(ids) != 1 {
		t.Errorf("tag x has %v", ids)
	}
	if ids := things.IDs(tx, "tag", KeyOf("z")); len(ids) != 0 {
		t.Errorf("tag z has %v", ids)
	}
}

func TestConcurrentUpdates(t *testing.T) {
	s := open(t, NewMemory(0))
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 100 {
				add(t, s, fmt.Sprintf("%d-%d", g, i), 1)
			}
		})
	}
	wg.Wait()
	if n, sums := things.Sum(s.Latest(), "size", KeyOf(resource.ID{})); n != 1600 || sums[0] != 1600 {
		t.Errorf("tally is %d, %v", n, sums)
	}
}

func TestPlanAndAsOf(t *testing.T) {
	s := open(t, NewMemory(0))
	id := add(t, s, "a", 1)
	rev := s.Latest().Revision()
	var p Plan
	ctx := WithPlan(t.Context(), &p)
	grow := func(tx *Tx) error {
		a, err := things.Get(tx, id)
		if err != nil {
			return err
		}
		a.Size++
		return things.Put(tx, a)
	}
	for range 2 {
		if err := s.Update(ctx, grow); err != nil {
			t.Fatal(err)
		}
	}
	view, _ := s.View(ctx)
	if a, _ := things.Get(view, id); a.Size != 3 {
		t.Errorf("the plan sees size %d", a.Size)
	}
	if c := p.Changes(); len(c) != 1 || c[0].Before.(*thing).Size != 1 || c[0].After.(*thing).Size != 3 {
		t.Errorf("the plan has changes %+v", c)
	}
	if s.Latest().Revision() != rev {
		t.Error("a plan changed the state")
	}
	if err := s.Update(t.Context(), grow); err != nil {
		t.Fatal(err)
	}
	then, err := s.View(WithAsOf(t.Context(), rev))
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := things.Get(then, id); a.Size != 1 {
		t.Errorf("as of revision %d the size is %d", rev, a.Size)
	}
	if a, _ := things.Get(s.Latest(), id); a.Size != 2 {
		t.Errorf("now the size is %d", a.Size)
	}
}

func TestRestartResumesWatch(t *testing.T) {
	m := NewMemory(0)
	s := open(t, m)
	add(t, s, "a", 1)
	rev := s.Latest().Revision()
	id := add(t, s, "b", 2)
	s = open(t, m)
	events, err := s.Watch(rev).Poll()
	if err != nil || len(events) != 1 || events[0].ID != id || events[0].Before != nil {
		t.Fatalf("after the restart: %+v, %v", events, err)
	}
	if _, ok := things.Find(s.Latest(), id); !ok {
		t.Error("b is lost")
	}
}

func TestOnce(t *testing.T) {
	s := open(t, NewMemory(0))
	var first resource.ID
	for i := range 3 {
		ctx := WithOnce(t.Context(), &Once{Scope: "p", Key: "k", Hash: "h"})
		id, err := Do(ctx, s, func(tx *Tx) (resource.ID, error) {
			id := tx.NewID()
			return id, things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: fmt.Sprint(i)}})
		})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = id
		} else if id != first {
			t.Errorf("request %d made %s, not %s", i, id, first)
		}
	}
	if things.Len(s.Latest()) != 1 {
		t.Error("one request had more than one effect")
	}
}

func TestIDsAreInTheOrderOfTheirMaking(t *testing.T) {
	s, err := Open(t.Context(), NewMemory(0), Options{Now: func() time.Time { return time.UnixMilli(1e12) }})
	if err != nil {
		t.Fatal(err)
	}
	var last resource.ID
	next := func(tx *Tx) error {
		for range 100 {
			id := tx.NewID()
			if bytes.Compare(id[:], last[:]) <= 0 {
				return fmt.Errorf("%s does not sort after %s", id, last)
			}
			last = id
		}
		return nil
	}
	for range 3 {
		if err := s.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
	}
	last = resource.ID{}
	if err := s.Update(WithPlan(t.Context(), new(Plan)), next); err != nil {
		t.Errorf("in a plan: %v", err)
	}
}

// TestVerifyFindsDrift plants what no transaction can: an index, a tally and an object that disagree.
func TestVerifyFindsDrift(t *testing.T) {
	for name, plant := range map[string]func(d *tableData){
		"an entry for no object":   func(d *tableData) { d.places[0].Set("nobody", struct{}{}) },
		"an entry that is missing": func(d *tableData) { d.places[1].Clear() },
		"a tally that is off": func(d *tableData) {
			d.tallies[2].Scan(func(key string, s sum) bool {
				s.amounts[0]++
				d.tallies[2].Set(key, s)
				return false
			})
		},
		"a text of what it was before": func(d *tableData) {
			d.texts[3].pages.Scan(func(p *textPage) bool {
				d.texts[3].pages.Set(&textPage{ids: p.ids, ends: p.ends, text: "b"})
				return false
			})
		},
		"a text that is missing": func(d *tableData) { d.texts[3].pages.Clear() },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, NewMemory(0))
			if err := s.Update(t.Context(), func(tx *Tx) error {
				return things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: "a"}, Size: 7, Tags: []string{"x"}})
			}); err != nil {
				t.Fatal(err)
			}
			tx := s.Latest()
			if wrong := Verify(tx); len(wrong) > 0 {
				t.Fatalf("before anything is wrong: %v", wrong)
			}
			def := defOf("test-thing")
			tables := slices.Clone(tx.tables)
			tables[def.slot] = tables[def.slot].fork()
			plant(tables[def.slot])
			tx.tables = tables
			if wrong := Verify(tx); len(wrong) == 0 {
				t.Error("it finds nothing")
			}
		})
	}
}

// TestPastMovesOn goes through the history from any moment, and compares with a view of each.
func TestPastMovesOn(t *testing.T) {
	s := open(t, NewMemory(0))
	r := rand.New(rand.NewPCG(7, 8))
	var ids []resource.ID
	for range 200 {
		if err := s.Update(t.Context(), func(tx *Tx) error {
			if len(ids) > 5 && r.IntN(2) == 0 {
				n := r.IntN(len(ids))
				id := ids[n]
				if r.IntN(2) == 0 {
					ids = slices.Delete(ids, n, n+1)
					return things.Delete(tx, id)
				}
				return things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: id.String()}, Size: r.Int64N(9)})
			}
			id := tx.NewID()
			ids = append(ids, id)
			return things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: id.String()}, Tags: []string{"x"}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	head := s.Latest().Revision()
	before := Verify(s.Latest())
	for range 20 {
		at := 1 + r.Int64N(head-1)
		past, err := s.Past(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		events, err := s.Watch(at).Poll()
		if err != nil {
			t.Fatal(err)
		}
		to := r.IntN(len(events) + 1)
		past.Redo(events[:to])
		if to > 0 {
			at = events[to-1].Revision
		}
		want, err := s.View(WithAsOf(t.Context(), at))
		if err != nil {
			t.Fatal(err)
		}
		is := slices.Collect(things.All(past.View()))
		if diff := cmp.Diff(slices.Collect(things.All(want)), is); diff != "" || past.View().Revision() != want.Revision() {
			t.Fatalf("at revision %d, %d, want %d: %s", at, past.View().Revision(), want.Revision(), diff)
		}
		if wrong := Verify(past.View()); len(wrong) > 0 {
			t.Fatal(wrong)
		}
	}
	if after := Verify(s.Latest()); len(before)+len(after) > 0 || s.Latest().Revision() != head {
		t.Errorf("the present was touched: %v, %v", before, after)
	}
	if _, err := s.Past(t.Context(), head+1); err == nil {
		t.Error("there is a view of the future")
	}
}
