package state

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
)

type later struct {
	resource.Meta
}

type grown struct {
	resource.Meta
	Move  *string               `since:"2"`
	Told  string                `since:"2,soft"`
	Parts []grownPart           `json:",omitempty"`
	By    map[string]*grownPart `json:",omitempty"`
}

type grownPart struct {
	Old int
	New int `since:"2"`
}

var (
	laters = NewTable("test-later", Since[later](2))
	growns = NewTable[grown]("test-grown")
)

// old makes an engine that holds what a release of level 1 wrote.
func old(t *testing.T) *Memory {
	t.Helper()
	was := release.Own
	defer func() { release.Own = was }()
	release.Own = release.First
	engine := NewMemory(0)
	s, err := Open(t.Context(), engine, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(tx *Tx) error {
		return growns.Put(tx, &grown{Meta: resource.Meta{ID: tx.NewID(), Name: "first"}})
	}); err != nil {
		t.Fatal(err)
	}
	return engine
}

func openAt(t *testing.T, engine Engine, own release.Span) (*State, error) {
	t.Helper()
	was := release.Own
	t.Cleanup(func() { release.Own = was })
	release.Own = own
	return Open(t.Context(), engine, Options{})
}

func put[T any](s *State, table *Table[T], fill func(*T)) error {
	return s.Update(context.Background(), func(tx *Tx) error {
		obj := new(T)
		any(obj).(resource.Object).GetMeta().ID = tx.NewID()
		if fill != nil {
			fill(obj)
		}
		return table.Put(tx, obj)
	})
}

func TestNothingIsWrittenThatTheReleaseBeforeCannotRead(t *testing.T) {
	engine := old(t)
	s, err := openAt(t, engine, release.Span{Oldest: 1, Newest: 2})
	if err != nil {
		t.Fatal(err)
	}
	if got := LevelOf(s.Latest()); got != 1 {
		t.Fatalf("the state is at level %d", got)
	}
	text := "x"
	for name, write := range map[string]func() error{
		"a later kind":         func() error { return put(s, laters, nil) },
		"a later field":        func() error { return put(s, growns, func(g *grown) { g.Move = &text }) },
		"a later field inside": func() error { return put(s, growns, func(g *grown) { g.Parts = []grownPart{{Old: 1}, {New: 1}} }) },
		"a later field in a map": func() error {
			return put(s, growns, func(g *grown) { g.By = map[string]*grownPart{"a": nil, "b": {New: 1}} })
		},
	} {
		if err := write(); fault.From(err) == nil || fault.From(err).Code != "upgrade-not-finalised" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := put(s, growns, func(g *grown) {
		g.Told, g.Parts, g.By = "soft", []grownPart{{Old: 1}}, map[string]*grownPart{"a": {Old: 1}}
	}); err != nil {
		t.Errorf("what the release before may drop is refused: %v", err)
	}
	if laters.Usable(s.Latest()) {
		t.Error("a later kind is usable")
	}

	// The release before takes back over.
	back, err := openAt(t, engine, release.First)
	if err != nil {
		t.Fatalf("the release before cannot read it: %v", err)
	}
	if growns.Len(back.Latest()) != 2 || levels.Len(back.Latest()) != 0 {
		t.Error("it finds something else")
	}
}

func TestFinaliseHasNoWayBack(t *testing.T) {
	engine := old(t)
	s, err := openAt(t, engine, release.Span{Oldest: 1, Newest: 2})
	if err != nil {
		t.Fatal(err)
	}
	refused := fault.Errorf(fault.Conflict, "a controller is older")
	if _, _, err := Finalise(t.Context(), s, "v2", func(*Tx, int) error { return refused }); !errors.Is(err, refused) {
		t.Fatalf("not refused: %v", err)
	}
	from, to, err := Finalise(t.Context(), s, "v2", func(*Tx, int) error { return nil })
	if err != nil || from != 1 || to != 2 {
		t.Fatal(from, to, err)
	}
	if err := put(s, laters, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := openAt(t, engine, release.First); !errors.Is(err, ErrLevel) {
		t.Errorf("the release before opens it: %v", err)
	}
	if _, err := openAt(t, engine, release.Span{Oldest: 2, Newest: 3}); err != nil {
		t.Errorf("the next release does not: %v", err)
	}
	if _, err := openAt(t, engine, release.Span{Oldest: 3, Newest: 4}); !errors.Is(err, ErrLevel) || !strings.Contains(err.Error(), "upgrade through") {
		t.Errorf("the one after next opens it: %v", err)
	}
}

func TestAStateBeginsAtTheNewestLevel(t *testing.T) {
	engine := NewMemory(0)
	s, err := Open(t.Context(), engine, Options{})
	if err != nil {
		t.Fatal(err)
	}
	watch := s.Watch(0)
	if err := s.Update(t.Context(), func(tx *Tx) error {
		_ = tx.Try(func() error {
			_ = laters.Put(tx, &later{resource.Meta{ID: tx.NewID()}})
			return errors.New("not this")
		})
		return laters.Put(tx, &later{resource.Meta{ID: tx.NewID()}})
	}); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), engine, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, tx := range map[string]*Tx{"at once": s.Latest(), "after a restart": again.Latest()} {
		if LevelOf(tx) != release.Own.Newest || levels.Len(tx) != 1 || laters.Len(tx) != 1 {
			t.Errorf("%s: level %d, %d records of it, %d things", name, LevelOf(tx), levels.Len(tx), laters.Len(tx))
		}
	}
	if events, err := watch.Poll(); err != nil || len(events) != 1 || events[0].Kind != "test-later" {
		t.Errorf("events %v, %v", events, err)
	}
}

// A follower must not go on with what it cannot read.
func TestAFollowerOfAnOlderReleaseEndsWhenTheStateIsFinalised(t *testing.T) {
	engine := old(t)
	release1 := release.First
	was := release.Own
	t.Cleanup(func() { release.Own = was })
	release.Own = release1
	follower, err := OpenFollower(t.Context(), engine, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	release.Own = release.Span{Oldest: 1, Newest: 2}
	s, err := Open(t.Context(), engine, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Finalise(t.Context(), s, "v2", func(*Tx, int) error { return nil }); err != nil {
		t.Fatal(err)
	}
	release.Own = release1
	if err := follower.Follow(ctx); !errors.Is(err, ErrLevel) {
		t.Errorf("it follows on: %v", err)
	}
	if follower.Broken() == nil {
		t.Error("it does not end")
	}
}

// A kind's second version, as a release of level 2 brings it: Size was MiB, and is bytes.
type resized struct {
	resource.Meta
	Bytes int64
}

var resizeds = NewTable("test-resized", Version[resized](2, map[int]func(map[string]any) error{
	1: func(f map[string]any) error {
		return rescale(f, "MiB", "Bytes", func(n int64) int64 { return n << 20 })
	},
}), Until[resized](2, 2, func(f map[string]any) error {
	return rescale(f, "Bytes", "MiB", func(n int64) int64 { return n >> 20 })
}))

func rescale(fields map[string]any, from, to string, scale func(int64) int64) error {
	was, ok := fields[from].(json.Number)
	if !ok {
		return nil // a zero is not spelled
	}
	n, err := was.Int64()
	delete(fields, from)
	fields[to] = json.Number(strconv.FormatInt(scale(n), 10))
	return err
}

func TestAnOlderVersionIsStoredUntilTheStateIsFinalised(t *testing.T) {
	engine := old(t)
	s, err := openAt(t, engine, release.Span{Oldest: 1, Newest: 2})
	if err != nil {
		t.Fatal(err)
	}
	known := map[resource.ID]bool{}
	// stored finds what was not there before: numbers of one moment are in no order.
	stored := func() (version int, value string) {
		_, err := engine.Load(t.Context(), func(r Record) error {
			if r.Kind == "test-resized" && !known[r.ID] {
				known[r.ID], version, value = true, r.Version, string(r.Value)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return version, value
	}
	if err := put(s, resizeds, func(r *resized) { r.Bytes = 7 << 20 }); err != nil {
		t.Fatal(err)
	}
	if version, value := stored(); version != 1 || !strings.Contains(value, `"MiB":7`) {
		t.Errorf("before: version %d, %s", version, value)
	}
	for r, err := range Records(s.Latest()) {
		if err != nil || r.Kind == "test-resized" && r.Version != 1 {
			t.Errorf("a backup has version %d, %v", r.Version, err)
		}
	}
	if _, _, err := Finalise(t.Context(), s, "v2", func(*Tx, int) error { return nil }); err != nil {
		t.Fatal(err)
	}
	again, err := openAt(t, engine, release.Span{Oldest: 1, Newest: 2})
	if err != nil {
		t.Fatal(err)
	}
	for r := range resizeds.All(again.Latest()) {
		if r.Bytes != 7<<20 {
			t.Errorf("read back as %d", r.Bytes)
		}
	}
	if err := put(again, resizeds, func(r *resized) { r.Bytes = 8 << 20 }); err != nil {
		t.Fatal(err)
	}
	if version, value := stored(); version != 2 || !strings.Contains(value, `"Bytes":`) {
		t.Errorf("after: version %d, %s", version, value)
	}
}
