package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/unkai-cloud/unkai/base/resource"
)

// restored makes the state that tx shows on another engine.
func restored(t *testing.T, tx *Tx, engine Engine) *State {
	t.Helper()
	r, err := NewRestorer(t.Context(), engine, Head{tx.Revision(), tx.Now()})
	if err != nil {
		t.Fatal(err)
	}
	for rec, err := range Records(tx) {
		if err == nil {
			err = r.Add(t.Context(), rec)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	return open(t, engine)
}

func TestAStateIsMadeAgainFromItsRecords(t *testing.T) {
	s := open(t, NewMemory(0))
	for i := range 3 * restoreRecords {
		if i%1000 == 0 {
			add(t, s, fmt.Sprint("apart", i), int64(i), "x")
		}
	}
	err := s.Update(t.Context(), func(tx *Tx) error { // more than one batch holds, at one revision
		for i := range 3 * restoreRecords {
			if err := things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: fmt.Sprint("n", i)}, Size: 1}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	then := s.Latest()
	add(t, s, "later", 1)
	engine := NewMemory(0)
	again := restored(t, then, engine)
	now := again.Latest()
	if now.Revision() != then.Revision() || !now.Now().Equal(then.Now()) {
		t.Errorf("it is at %d of %v, and was at %d of %v", now.Revision(), now.Now(), then.Revision(), then.Now())
	}
	if diff := cmp.Diff(slices.Collect(things.All(then)), slices.Collect(things.All(now))); diff != "" {
		t.Error(diff)
	}
	if wrong := Verify(now); wrong != nil {
		t.Error(wrong)
	}
	if _, err := again.View(WithAsOf(t.Context(), then.Revision()-1)); err == nil {
		t.Error("a past is told that is not known")
	}
	id := add(t, again, "new", 1)
	if n, err := things.Get(again.Latest(), id); err != nil || n.Revision != then.Revision()+1 {
		t.Errorf("the next change is at %+v, %v", n, err)
	}
	third := open(t, engine)
	if things.Len(third.Latest()) != things.Len(then)+1 {
		t.Error("after a restart it is another")
	}
}

func TestWhatARestorerRefuses(t *testing.T) {
	at := Head{7, time.Now()}
	used := NewMemory(0)
	add(t, open(t, used), "a", 1)
	if _, err := NewRestorer(t.Context(), used, at); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("an engine in use: %v", err)
	}
	if _, err := NewRestorer(t.Context(), NewMemory(0), Head{}); err == nil {
		t.Error("revision 0 is taken")
	}
	r, err := NewRestorer(t.Context(), NewMemory(0), at)
	if err != nil {
		t.Fatal(err)
	}
	id := resource.NewID(time.Now(), nil)
	for what, rec := range map[string]Record{
		"a kind of a newer release":    {Kind: "test-unheard-of", ID: id, Version: 1, Value: []byte("{}")},
		"a version of a newer release": {Kind: "test-thing", ID: id, Version: 99, Value: []byte("{}")},
		"another object's ID":          {Kind: "test-thing", ID: id, Version: 1, Value: []byte(`{"ID":"` + resource.NewID(time.Now(), nil).String() + `"}`)},
		"no object":                    {Kind: "test-thing", ID: id, Version: 1, Value: []byte("[")},
	} {
		if err := r.Add(t.Context(), rec); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	if err := r.Done(t.Context()); err == nil {
		t.Error("nothing at all is a state")
	}
}

func TestRecordsEndWithTheirReader(t *testing.T) {
	s := open(t, NewMemory(0))
	for i := range 10 {
		add(t, s, fmt.Sprint(i), 1)
	}
	seen := 0
	for _, err := range Records(s.Latest()) {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen == 3 {
			break
		}
	}
	counted := 0
	for kind, n := range Kinds(s.Latest()) {
		if kind == "test-thing" {
			counted = n
		}
	}
	if seen != 3 || counted != 10 {
		t.Errorf("%d were given, %d counted", seen, counted)
	}
}

// failing is an engine whose commits fail from the n-th on.
type failing struct {
	*Memory
	left int
}

func (f *failing) Commit(ctx context.Context, b Batch) error {
	if f.left--; f.left < 0 {
		return errors.New("the disk is full")
	}
	return f.Memory.Commit(ctx, b)
}

func TestARestorerTellsThatItFailed(t *testing.T) {
	s := open(t, NewMemory(0))
	add(t, s, "a", 1)
	r, err := NewRestorer(t.Context(), &failing{NewMemory(0), 0}, Head{1, time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	for rec := range Records(s.Latest()) {
		if err := r.Add(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Done(t.Context()); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("it answers %v", err)
	}
}
