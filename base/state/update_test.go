package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// gate is an engine whose commits wait to be let through, and can be made to fail.
type gate struct {
	*Memory
	arrived chan Batch
	verdict chan error // nil: on to the engine
}

func newGate() *gate {
	return &gate{NewMemory(0), make(chan Batch), make(chan error)}
}

func (g *gate) Commit(ctx context.Context, b Batch) error {
	g.arrived <- b
	if err := <-g.verdict; err != nil {
		return err
	}
	return g.Memory.Commit(ctx, b)
}

// queued waits until so many updates wait behind the writer.
func (s *State) queued(n int) {
	for {
		s.mu.Lock()
		waiting := len(s.queue)
		s.mu.Unlock()
		if waiting == n {
			return
		}
		runtime.Gosched()
	}
}

// group starts an update that holds the writer up, queues the others behind it in order, and
// lets the first through, so that the others make one group. Their commits get the verdicts, and
// those after them get through. It gives the updates' errors.
func group(t *testing.T, s *State, g *gate, verdicts []error, fns ...func(*Tx) error) []error {
	t.Helper()
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Update(context.Background(), func(tx *Tx) error {
			return things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: "first"}})
		}); err != nil {
			t.Errorf("the first update: %v", err)
		}
	})
	<-g.arrived
	for i, fn := range fns {
		wg.Go(func() { errs[i] = s.Update(context.Background(), fn) })
		s.queued(i + 1)
	}
	g.verdict <- nil
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	for {
		select {
		case <-g.arrived:
			var verdict error
			if len(verdicts) > 0 {
				verdict, verdicts = verdicts[0], verdicts[1:]
			}
			g.verdict <- verdict
		case <-done:
			if len(verdicts) > 0 {
				t.Errorf("%d commits fewer than were expected", len(verdicts))
			}
			return errs
		}
	}
}

func makeThing(name string) func(*Tx) error {
	return func(tx *Tx) error {
		return things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: name}, Size: 1})
	}
}

func names(tx *Tx) (names []string) {
	for t := range things.Each(tx, "name", "") {
		names = append(names, t.Name)
	}
	return names
}

func TestUpdatesThatComeTogetherShareACommit(t *testing.T) {
	g := newGate()
	s := open(t, g)
	refused := errors.New("refused")
	errs := group(t, s, g, []error{nil},
		makeThing("a"),
		func(tx *Tx) error {
			if err := makeThing("b")(tx); err != nil {
				return err
			}
			return refused
		},
		func(tx *Tx) error {
			if got := names(tx); !slices.Equal(got, []string{"a", "first"}) {
				t.Errorf("the third of a group sees %v", got)
			}
			return nil
		},
		makeThing("a"),
		makeThing("c"),
	)
	if errs[0] != nil || errs[1] != refused || errs[2] != nil || !fault.Is(errs[3], fault.Exists) || errs[4] != nil {
		t.Errorf("errors %v", errs)
	}
	if got := names(s.Latest()); !slices.Equal(got, []string{"a", "c", "first"}) {
		t.Errorf("after the group there are %v", got)
	}
	events, err := s.Watch(1).Poll()
	if err != nil || len(events) != 2 || events[0].Revision != 2 || events[1].Revision != 3 {
		t.Errorf("the group's events: %+v, %v", events, err)
	}
}

func TestNothingRestsOnACommitThatFailed(t *testing.T) {
	quiet(t)
	g := newGate()
	s := open(t, g)
	sawIt := func(tx *Tx) error { // as Do does, when the request came before
		if _, ok := things.Lookup(tx, "name", KeyOf(resource.ID{}, "a")); !ok {
			return errors.New("the writer does not see what came before in its group")
		}
		return nil
	}
	before := func(tx *Tx) error { return nil } // saw nothing of the group
	again := func(tx *Tx) error {               // writes what a transaction before it wrote
		a, ok := things.Lookup(tx, "name", KeyOf(resource.ID{}, "a"))
		if !ok {
			return errors.New("a is not there")
		}
		a.Name, a.Size = "renamed", 100
		return things.Put(tx, a)
	}
	errs := group(t, s, g, []error{errors.New("no disk")}, before, makeThing("a"), sawIt, makeThing("a"), makeThing("b"), again)
	if errs[0] != nil {
		t.Errorf("an update that came before those that failed: %v", errs[0])
	}
	for i, err := range errs[1:] {
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("update %d, whose commit failed, or that saw one that did: %v", i+1, err)
		}
	}
	if got := names(s.Latest()); !slices.Equal(got, []string{"first"}) {
		t.Errorf("after the failure there are %v", got)
	}
	if n, _ := things.Sum(s.Latest(), "size", KeyOf(resource.ID{})); n != 1 {
		t.Errorf("after the failure the tally counts %d", n)
	}
	if s.Broken() != nil {
		t.Errorf("broken: %v", s.Broken())
	}
	for name, tx := range map[string]*Tx{"readers": s.Latest(), "the writer": s.begin(t.Context())} {
		if wrong := Verify(tx); wrong != nil {
			t.Errorf("for %s: %v", name, wrong)
		}
	}
	err := s.Update(t.Context(), func(tx *Tx) error {
		if got := names(tx); !slices.Equal(got, []string{"first"}) {
			t.Errorf("the next transaction sees %v", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUnknownOutcomeStopsTheWriter(t *testing.T) {
	quiet(t)
	for _, verdict := range []error{fmt.Errorf("%w: no answer", ErrUncertain), ErrFenced} {
		g := newGate()
		s := open(t, g)
		errs := group(t, s, g, []error{verdict}, makeThing("a"), makeThing("b"))
		for _, err := range errs {
			if !fault.Is(err, fault.Unavailable) {
				t.Errorf("after %v: %v", verdict, err)
			}
		}
		select {
		case <-s.Stopped():
		default:
			t.Error("nobody is told that the state has stopped")
		}
		if !errors.Is(s.Broken(), verdict) {
			t.Errorf("broken is %v, want %v", s.Broken(), verdict)
		}
		if err := s.Update(t.Context(), makeThing("c")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("the next update: %v", err)
		}
		if got := names(s.Latest()); !slices.Equal(got, []string{"first"}) {
			t.Errorf("readers see %v", got)
		}
	}
}

// narrow is an engine that takes few objects at once.
type narrow struct {
	*Memory
	most int
}

func (n narrow) Commit(ctx context.Context, b Batch) error {
	if len(b.Records) > n.most {
		return fmt.Errorf("%w: %d records", ErrTooLarge, len(b.Records))
	}
	return n.Memory.Commit(ctx, b)
}

func TestGroupsTooLargeForTheEngineAreCut(t *testing.T) {
	quiet(t)
	makeMany := func(name string, n int) func(*Tx) error {
		return func(tx *Tx) error {
			for i := range n {
				if err := makeThing(fmt.Sprint(name, i))(tx); err != nil {
					return err
				}
			}
			return nil
		}
	}
	g := newGate()
	s := open(t, &gateOver{g, narrow{g.Memory, 3}})
	errs := group(t, s, g, nil,
		makeMany("a", 2), makeMany("b", 2), makeMany("c", 1), makeMany("d", 3))
	for i, err := range errs {
		if err != nil {
			t.Errorf("update %d: %v", i, err)
		}
	}
	if n := things.Len(s.Latest()); n != 9 {
		t.Errorf("%d things", n)
	}

	g = newGate()
	s = open(t, &gateOver{g, narrow{g.Memory, 3}})
	errs = group(t, s, g, nil, makeMany("a", 2), makeMany("b", 4), makeMany("c", 1), makeMany("d", 1))
	if errs[0] != nil || !fault.Is(errs[1], fault.TooLarge) || !fault.Is(errs[2], fault.Unavailable) || !fault.Is(errs[3], fault.Unavailable) {
		t.Errorf("with one too large: %v", errs)
	}
	if got := names(s.Latest()); !slices.Equal(got, []string{"a0", "a1", "first"}) {
		t.Errorf("with one too large there are %v", got)
	}
	big := open(t, NewMemory(0)).Update(t.Context(), makeMany("x", maxChanges+1))
	if !fault.Is(big, fault.TooLarge) {
		t.Errorf("a transaction past the limit: %v", big)
	}
}

// gateOver lets a gate stand before another engine.
type gateOver struct {
	*gate
	inner Engine
}

func (g *gateOver) Commit(ctx context.Context, b Batch) error {
	g.arrived <- b
	if err := <-g.verdict; err != nil {
		return err
	}
	return g.inner.Commit(ctx, b)
}

func TestPanicIsAnError(t *testing.T) {
	quiet(t)
	s := open(t, NewMemory(0))
	err := s.Update(t.Context(), func(tx *Tx) error {
		if err := makeThing("a")(tx); err != nil {
			return err
		}
		panic("a mistake")
	})
	if err == nil || fault.From(err) != nil || !strings.Contains(err.Error(), "a mistake") {
		t.Errorf("a panic came out as %v", err)
	}
	if err := s.Update(t.Context(), makeThing("b")); err != nil {
		t.Errorf("after the panic: %v", err)
	}
	if got := names(s.Latest()); !slices.Equal(got, []string{"b"}) {
		t.Errorf("after the panic there are %v", got)
	}
}

func TestTransactionThatEndsItsGoroutine(t *testing.T) {
	g := newGate()
	s := open(t, g)
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Update(context.Background(), func(tx *Tx) error { // it does not return
			if err := makeThing("a")(tx); err != nil {
				t.Error(err)
			}
			runtime.Goexit()
			return nil
		})
		t.Error("the update came back")
	})
	wg.Wait()
	if err := s.Update(t.Context(), makeThing("b")); !fault.Is(err, fault.Unavailable) || s.Broken() == nil {
		t.Errorf("the next update: %v, broken: %v", err, s.Broken())
	}
	if got := names(s.Latest()); got != nil {
		t.Errorf("readers see %v", got)
	}
}

func TestCancelledContext(t *testing.T) {
	g := newGate()
	s := open(t, g)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		// It has begun, so its end is waited for.
		if err := s.Update(ctx, makeThing("begun")); err != nil {
			t.Errorf("an update that had begun: %v", err)
		}
	})
	<-g.arrived
	wg.Go(func() {
		err := s.Update(ctx, func(*Tx) error { t.Error("a cancelled update ran"); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("an update that was cancelled as it waited: %v", err)
		}
	})
	s.queued(1)
	cancel()
	g.verdict <- nil
	wg.Wait()
	if err := s.Update(ctx, makeThing("late")); !errors.Is(err, context.Canceled) {
		t.Errorf("an update that was cancelled before: %v", err)
	}
	if got := names(s.Latest()); !slices.Equal(got, []string{"begun"}) {
		t.Errorf("there are %v", got)
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	clock := time.Date(2026, 5, 5, 5, 5, 5, 5, time.FixedZone("far", 3600))
	m := NewMemory(0)
	var last time.Time
	for i, step := range []time.Duration{0, time.Second, -time.Hour, time.Minute} {
		clock = clock.Add(step)
		s, err := Open(t.Context(), m, Options{Now: func() time.Time { return clock }})
		if err != nil {
			t.Fatal(err)
		}
		id := add(t, s, fmt.Sprint(i), 1)
		made, err := things.Get(s.Latest(), id)
		if err != nil {
			t.Fatal(err)
		}
		if made.CreatedAt.Before(last) || made.CreatedAt.Location() != time.UTC {
			t.Errorf("made at %v, after %v", made.CreatedAt, last)
		}
		last = made.CreatedAt
	}
}

func TestViewsAreNotWritten(t *testing.T) {
	s := open(t, NewMemory(0))
	id := add(t, s, "a", 1)
	for name, tx := range map[string]*Tx{"latest": s.Latest(), "as of": mustView(t, s, WithAsOf(t.Context(), 1))} {
		if err := makeThing("b")(tx); err == nil {
			t.Errorf("%s: a put in a view worked", name)
		}
		if err := things.Delete(tx, id); err == nil {
			t.Errorf("%s: a delete in a view worked", name)
		}
	}
	if err := s.Update(WithAsOf(t.Context(), 1), makeThing("b")); !fault.Is(err, fault.Invalid) {
		t.Errorf("an update of the past: %v", err)
	}
	if err := s.Update(t.Context(), func(tx *Tx) error { return things.Put(tx, &thing{}) }); err == nil {
		t.Error("an object without an ID was put")
	}
}

func mustView(t *testing.T, s *State, ctx context.Context) *Tx {
	t.Helper()
	tx, err := s.View(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// Whoever reads gets a copy: changing it changes nothing.
func TestCopiesAreTheCallersOwn(t *testing.T) {
	s := open(t, NewMemory(0))
	id := add(t, s, "a", 1, "x", "y")
	spoil := func(a *thing) { a.Name, a.Tags[0] = "spoilt", "spoilt" }
	tx := s.Latest()
	if a, err := things.Get(tx, id); err == nil {
		spoil(a)
	}
	for a := range things.All(tx) {
		spoil(a)
	}
	if a, ok := things.Lookup(tx, "tag", KeyOf("x")); ok {
		spoil(a)
	}
	if a, err := things.Get(s.Latest(), id); err != nil || a.Name != "a" || a.Tags[0] != "x" {
		t.Errorf("spoilt: %+v, %v", a, err)
	}
}

func TestCauseIsRecorded(t *testing.T) {
	m := NewMemory(0)
	s := open(t, m)
	cause := Cause{UserID: resource.ID{1}, ProjectID: resource.ID{2}, RequestID: "req-1", Via: "ec2"}
	if err := s.Update(WithCause(t.Context(), cause), makeThing("a")); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{s, open(t, m)} {
		events, err := s.Watch(0).Poll()
		if err != nil || len(events) != 1 || events[0].Cause != cause {
			t.Errorf("events %+v, %v", events, err)
		}
	}
}

// Writers, readers, planners and watchers at once: each sees whole transactions.
func TestEverybodyAtOnce(t *testing.T) {
	m := NewMemory(0)
	s := open(t, m)
	ids := [2]resource.ID{add(t, s, "left", 0), add(t, s, "right", 0)}
	shift := func(tx *Tx) error {
		for i, id := range ids {
			a, err := things.Get(tx, id)
			if err != nil {
				return err
			}
			a.Size += int64(1 - 2*i)
			if err := things.Put(tx, a); err != nil {
				return err
			}
		}
		return nil
	}
	balance := func(what string, tx *Tx, want int64) {
		if _, sums := things.Sum(tx, "size", KeyOf(resource.ID{})); sums[0] != 0 {
			t.Errorf("%s: the tally is %d", what, sums[0])
		}
		a, _ := things.Find(tx, ids[0])
		b, _ := things.Find(tx, ids[1])
		if a == nil || b == nil || a.Size != -b.Size || want >= 0 && a.Size != want {
			t.Errorf("%s: %+v and %+v, want %d", what, a, b, want)
		}
	}
	const writers, each = 4, 100
	ctx, cancel := context.WithCancel(t.Context())
	var readers, updates sync.WaitGroup
	repeat := func(fn func()) {
		readers.Go(func() {
			for ctx.Err() == nil {
				fn()
			}
		})
	}
	repeat(func() { balance("latest", s.Latest(), -1) })
	repeat(func() {
		revision := s.Latest().Revision()
		balance("as of", mustView(t, s, WithAsOf(t.Context(), revision)), revision-2)
	})
	repeat(func() {
		var p Plan
		planning := WithPlan(ctx, &p)
		before := mustView(t, s, planning).Revision()
		for range 3 {
			if err := s.Update(planning, shift); err != nil && ctx.Err() == nil {
				t.Errorf("plan: %v", err)
			}
		}
		balance("plan", mustView(t, s, planning), before) // which is one above what it forked
	})
	watcher := s.Watch(2)
	readers.Go(func() {
		size, seen := int64(0), int64(2)
		for seen < 2+writers*each {
			events, err := watcher.Next(t.Context())
			if err != nil {
				t.Errorf("watch: %v", err)
				return
			}
			if now := s.Latest().Revision(); now < events[len(events)-1].Revision {
				t.Errorf("an event of revision %d came when %d was shown", events[len(events)-1].Revision, now)
			}
			for _, e := range events {
				if e.ID == ids[0] {
					size++
					seen++
					if e.Revision != seen || e.After.(*thing).Size != size || e.Before.(*thing).Size != size-1 {
						t.Errorf("event %+v after size %d, revision %d", e, size-1, seen-1)
					}
				}
			}
		}
	})
	for range writers {
		updates.Go(func() {
			for range each {
				if err := s.Update(ctx, shift); err != nil {
					t.Errorf("update: %v", err)
				}
			}
		})
	}
	updates.Wait()
	cancel()
	readers.Wait()
	balance("in the end", s.Latest(), writers*each)
	balance("after a restart", open(t, m).Latest(), writers*each)
}

// box is a table at version 3; older ones held a weight in grams, then no colour.
type box struct {
	resource.Meta
	Kilograms int
	Serial    int64
	Colour    string
}

var boxes = NewTable("test-box", Version[box](3, map[int]func(map[string]any) error{
	1: func(f map[string]any) error {
		number, _ := f["Grams"].(json.Number)
		grams, err := number.Int64()
		if err != nil {
			return err
		}
		delete(f, "Grams")
		f["Kilograms"] = grams / 1000
		return nil
	},
	2: func(f map[string]any) error { f["Colour"] = "brown"; return nil },
}))

// stored puts records into an engine, as some release did.
func stored(t *testing.T, m *Memory, records ...Record) {
	t.Helper()
	term, err := m.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	head, err := m.Load(t.Context(), func(Record) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	next := head.Revision + 1
	b := Batch{Term: term, Base: head.Revision, Records: records, Txs: []TxInfo{{Revision: next, Time: time.Unix(next, 0).UTC()}}}
	if err := m.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestOldVersionsAreUpgraded(t *testing.T) {
	m := NewMemory(0)
	id := func(n byte) resource.ID { return resource.ID{n} }
	record := func(n byte, version int, rest string) Record {
		return Record{Kind: "test-box", ID: id(n), Version: version, Value: []byte(`{"ID":"` + id(n).String() + `",` + rest + `}`)}
	}
	stored(t, m, record(1, 1, `"Grams":5000,"Serial":9007199254740993`), record(2, 2, `"Kilograms":6`), record(3, 3, `"Kilograms":7,"Colour":"red"`))
	stored(t, m, record(1, 2, `"Kilograms":8`))
	s := open(t, m)
	want := map[byte]string{1: "8 brown", 2: "6 brown", 3: "7 red"}
	check := func(tx *Tx) {
		for n, is := range want {
			if b, ok := boxes.Find(tx, id(n)); !ok || fmt.Sprint(b.Kilograms, " ", b.Colour) != is {
				t.Errorf("box %d is %+v, want %s", n, b, is)
			}
		}
	}
	check(s.Latest())
	if b, err := boxes.Get(mustView(t, s, WithAsOf(t.Context(), 1)), id(1)); err != nil || b.Serial != 1<<53+1 {
		t.Errorf("a large number was changed: %+v, %v", b, err)
	}
	want[1] = "5 brown"
	check(mustView(t, s, WithAsOf(t.Context(), 1)))

	err := s.Update(t.Context(), func(tx *Tx) error {
		b, err := boxes.Get(tx, id(2))
		if err != nil {
			return err
		}
		b.Colour = "blue"
		return boxes.Put(tx, b)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Load(t.Context(), func(r Record) error {
		if r.ID == id(2) && (r.Version != 3 || !strings.Contains(string(r.Value), "blue")) {
			t.Errorf("stored again: version %d, %s", r.Version, r.Value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestWhatCannotBeLoaded(t *testing.T) {
	id := resource.ID{1}
	good := `{"ID":"` + id.String() + `"`
	for name, r := range map[string]Record{
		"a kind of a newer release":    {Kind: "test-newer", ID: id, Version: 1, Value: []byte(good + `}`)},
		"a version of a newer release": {Kind: "test-box", ID: id, Version: 4, Value: []byte(good + `}`)},
		"an upgrade that fails":        {Kind: "test-box", ID: id, Version: 1, Value: []byte(good + `}`)},
		"what is no JSON":              {Kind: "test-box", ID: id, Version: 3, Value: []byte(good)},
		"another object's value":       {Kind: "test-box", ID: resource.ID{2}, Version: 3, Value: []byte(good + `}`)},
	} {
		m := NewMemory(0)
		stored(t, m, r)
		for range 600 { // more than is decoded at once
			id[5]++
			id[4] += id[5] / 255
			stored(t, m, Record{Kind: "test-box", ID: id, Version: 3, Value: []byte(`{"ID":"` + id.String() + `"}`)})
		}
		if _, err := Open(t.Context(), m, Options{}); err == nil {
			t.Errorf("%s was loaded", name)
		}
	}
}

func TestTablesThatCannotBe(t *testing.T) {
	for name, make := range map[string]func(){
		"two of a kind": func() { NewTable[thing]("test-thing") },
		"two indexes of name": func() {
			NewTable("test-x1", Index("a", func(*thing) Key { return "" }), Index("a", func(*thing) Key { return "" }))
		},
		"no meta": func() { NewTable[struct{ A int }]("test-x2") },
		"a hidden field": func() {
			NewTable[struct {
				resource.Meta
				hidden int
			}]("test-x3")
		},
		"a channel": func() {
			NewTable[struct {
				resource.Meta
				C chan int
			}]("test-x4")
		},
		"an upgrade missing":       func() { NewTable("test-x5", Version[thing](3, map[int]func(map[string]any) error{1: nil})) },
		"an index of no such name": func() { things.def.index("none") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			make()
		}()
	}
}

func TestReceipts(t *testing.T) {
	m := NewMemory(0)
	s := open(t, m)
	make := func(ctx context.Context, name string) (string, error) {
		return Do(ctx, s, func(tx *Tx) (string, error) {
			return "made " + name, makeThing(name)(tx)
		})
	}
	request := func(scope, key, hash string) context.Context {
		return WithOnce(t.Context(), &Once{Scope: scope, Key: key, Hash: hash})
	}
	ctx := request("p", "k", "h")
	for _, name := range []string{"a", "b"} { // two steps of one request
		if got, err := make(ctx, name); got != "made "+name || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	s = open(t, m)
	ctx = request("p", "k", "h")
	for _, name := range []string{"a", "b"} { // and the same after a restart
		if got, err := make(ctx, name); got != "made "+name || err != nil {
			t.Errorf("%s again: %q, %v", name, got, err)
		}
	}
	if _, err := make(request("p", "k", "other"), "c"); !fault.Is(err, fault.Conflict) {
		t.Errorf("the key with another request: %v", err)
	}
	if got, err := make(request("q", "k", "other"), "d"); got != "made d" || err != nil {
		t.Errorf("another's key: %q, %v", got, err)
	}
	if _, err := make(request("p", "fails", "h"), "a"); !fault.Is(err, fault.Exists) {
		t.Errorf("a request that fails: %v", err)
	}
	if got, err := make(request("p", "fails", "h"), "e"); got != "made e" || err != nil {
		t.Errorf("the same key after a failure, which has no effect: %q, %v", got, err)
	}
	if got := names(s.Latest()); !slices.Equal(got, []string{"a", "b", "d", "e"}) {
		t.Errorf("there are %v", got)
	}

	// The same request many times at once.
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if got, err := make(request("p", "rush", "h"), "rush"); got != "made rush" || err != nil {
				t.Errorf("rush %d: %q, %v", i, got, err)
			}
		})
	}
	wg.Wait()

	n := receipts.Len(s.Latest())
	if forgot, err := Forget(t.Context(), s, time.Now().Add(time.Hour), 3); forgot != 3 || err != nil || receipts.Len(s.Latest()) != n-3 {
		t.Errorf("forgot %d of %d, %v", forgot, n, err)
	}
	if forgot, err := Forget(t.Context(), s, time.Now().Add(-time.Hour), 100); forgot != 0 || err != nil {
		t.Errorf("forgot %d that are young, %v", forgot, err)
	}
}

func TestPlanOfAReceipt(t *testing.T) {
	s := open(t, NewMemory(0))
	var p Plan
	ctx := WithOnce(WithPlan(t.Context(), &p), &Once{Scope: "p", Key: "k", Hash: "h"})
	if _, err := Do(ctx, s, func(tx *Tx) (int, error) { return 1, makeThing("a")(tx) }); err != nil {
		t.Fatal(err)
	}
	if !Planning(ctx) || things.Len(s.Latest()) != 0 || receipts.Len(s.Latest()) != 0 {
		t.Error("a plan had an effect")
	}
}

// After a restart a watch gives what it would have given before: also versions that
// another transaction of the same commit replaced.
func TestHistoryIsTheSameAfterARestart(t *testing.T) {
	g := newGate()
	s := open(t, g)
	id := resource.ID{1}
	change := func(size int64) func(*Tx) error {
		return func(tx *Tx) error {
			if size < 0 {
				return things.Delete(tx, id)
			}
			return things.Put(tx, &thing{Meta: resource.Meta{ID: id, Name: "x"}, Size: size})
		}
	}
	brief := func(tx *Tx) error {
		return things.Put(tx, &thing{Meta: resource.Meta{ID: resource.ID{2}, Name: "brief"}})
	}
	unbrief := func(tx *Tx) error { return things.Delete(tx, resource.ID{2}) }
	for _, err := range group(t, s, g, []error{nil}, change(1), change(2), brief, change(-1), change(3), unbrief) {
		if err != nil {
			t.Fatal(err)
		}
	}
	spell := func(s *State) string {
		events, err := s.Watch(0).Poll()
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.MarshalIndent(events, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := spell(s)
	again := open(t, g.Memory)
	if after := spell(again); after != before {
		t.Errorf("after the restart:\n%s\nbefore:\n%s", after, before)
	}
	for revision, size := range map[int64]int64{2: 1, 3: 2, 4: 2, 6: 3} {
		if a, ok := things.Find(mustView(t, again, WithAsOf(t.Context(), revision)), id); !ok || a.Size != size {
			t.Errorf("as of revision %d: %+v, want size %d", revision, a, size)
		}
	}
	if things.Has(mustView(t, again, WithAsOf(t.Context(), 5)), id) {
		t.Error("as of revision 5 what was deleted is there")
	}
}

func TestHistoryIsBounded(t *testing.T) {
	m := NewMemory(50)
	o := Options{History: 100}
	s, err := Open(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	slow := s.Watch(0)
	for i := range 300 {
		add(t, s, fmt.Sprint(i), 1)
	}
	if _, err := slow.Poll(); !errors.Is(err, ErrCompacted) {
		t.Errorf("a watcher that is too slow: %v", err)
	}
	if n := len(s.feed.events); n < 100 || n > 125 {
		t.Errorf("%d events are kept", n)
	}
	if events, err := s.Watch(200).Poll(); err != nil || len(events) != 100 {
		t.Errorf("the newest 100: %d, %v", len(events), err)
	}
	for ctx, kind := range map[context.Context]fault.Kind{
		WithAsOf(t.Context(), 1):                         fault.Gone,
		WithAsOfTime(t.Context(), time.Now().Add(-1e12)): fault.Gone,
		WithAsOf(t.Context(), 301):                       fault.Invalid,
	} {
		if _, err := s.View(ctx); !fault.Is(err, kind) {
			t.Errorf("view: %v, want kind %d", err, kind)
		}
	}
	// The engine remembers less than that.
	if s, err = Open(t.Context(), m, o); err != nil {
		t.Fatal(err)
	}
	if events, err := s.Watch(270).Poll(); err != nil || len(events) != 30 {
		t.Errorf("after a restart, the newest 30: %d, %v", len(events), err)
	}
	if _, err := s.Watch(100).Poll(); !errors.Is(err, ErrCompacted) {
		t.Errorf("after a restart, more than the engine kept: %v", err)
	}
	m.Compact()
	if s, err = Open(t.Context(), m, o); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Watch(299).Poll(); !errors.Is(err, ErrCompacted) {
		t.Errorf("after all was compacted: %v", err)
	}
	if events, err := s.Watch(300).Poll(); err != nil || len(events) != 0 {
		t.Errorf("after all was compacted, from now on: %d, %v", len(events), err)
	}
}

func TestWatcherWaits(t *testing.T) {
	s := open(t, NewMemory(0))
	ctx, cancel := context.WithCancel(t.Context())
	w := s.Watch(0)
	var wg sync.WaitGroup
	wg.Go(func() {
		events, err := w.Next(ctx)
		if err != nil || len(events) != 1 || w.Revision() != 1 {
			t.Errorf("%+v, %v", events, err)
		}
		if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled watcher: %v", err)
		}
	})
	add(t, s, "a", 1)
	cancel()
	wg.Wait()
}

func TestWatchNeverCutsATransaction(t *testing.T) {
	s := open(t, NewMemory(0))
	for name, n := range map[string]int{"a": 700, "b": 700, "c": 3000, "d": 1} {
		err := s.Update(t.Context(), func(tx *Tx) error {
			for i := range n {
				if err := makeThing(fmt.Sprint(name, i))(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w := s.Watch(0)
	sizes := map[int64]int{}
	for polls := 0; ; polls++ {
		events, err := w.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			if polls < 2 {
				t.Error("all came at once: the test proved nothing")
			}
			break
		}
		if last := events[len(events)-1].Revision; last != w.Revision() {
			t.Errorf("events up to %d, and the watcher is at %d", last, w.Revision())
		}
		for _, e := range events {
			sizes[e.Revision]++
		}
		for revision := range sizes {
			if revision < events[0].Revision && sizes[revision] != 700 && sizes[revision] != 3000 && sizes[revision] != 1 {
				t.Errorf("revision %d came with %d events", revision, sizes[revision])
			}
		}
		first := events[0].Revision
		if whole := map[int]bool{700: true, 3000: true, 1: true}; !whole[sizes[first]] || !whole[sizes[w.Revision()]] {
			t.Errorf("a poll begins or ends within a transaction: %v", sizes)
		}
	}
}

// A label's key has as many parts as it likes.
type label struct {
	resource.Meta
	Parts []resource.ID
}

func labelKey(l *label) Key {
	parts := make([]any, len(l.Parts))
	for i, part := range l.Parts {
		parts[i] = part
	}
	return KeyOf(parts...)
}

var labels = NewTable("test-label", Unique("path", labelKey))

// Keys of different lengths in one index do not hide one another, even where the ID behind
// a short key looks like the next part of a long one.
func TestKeysOfDifferentLengths(t *testing.T) {
	s := open(t, NewMemory(0))
	a, b, c := resource.ID{1}, resource.ID{2}, resource.ID{3}
	put := func(id resource.ID, parts ...resource.ID) error {
		return s.Update(t.Context(), func(tx *Tx) error {
			return labels.Put(tx, &label{Meta: resource.Meta{ID: id}, Parts: parts})
		})
	}
	for id, parts := range map[resource.ID][]resource.ID{
		b:               {a},    // stands at a b
		{9}:             {a, a}, // at a a 9, before it
		{8}:             {a, b}, // at a b 8, behind it
		{7}:             {a, b, c},
		resource.ID{10}: {b},
	} {
		if err := put(id, parts...); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(resource.ID{200}, a); !fault.Is(err, fault.Exists) {
		t.Errorf("a second one at a: %v", err)
	}
	if err := put(resource.ID{200}, a, b); !fault.Is(err, fault.Exists) {
		t.Errorf("a second one at a b: %v", err)
	}
	for name, test := range map[string]struct {
		prefix Key
		want   []resource.ID
	}{
		"a":     {KeyOf(a), []resource.ID{{9}, b, {7}, {8}}},
		"a b":   {KeyOf(a, b), []resource.ID{{7}, {8}}},
		"a b c": {KeyOf(a, b, c), []resource.ID{{7}}},
		"b":     {KeyOf(b), []resource.ID{{10}}},
		"c":     {KeyOf(c), nil},
	} {
		if got := labels.IDs(s.Latest(), "path", test.prefix); !slices.Equal(got, test.want) {
			t.Errorf("below %s: %v, want %v", name, got, test.want)
		}
		var back []resource.ID
		for l := range labels.Range(s.Latest(), "path", Range{Prefix: test.prefix, Reverse: true}) {
			back = append(back, l.ID)
		}
		slices.Reverse(back)
		if !slices.Equal(back, test.want) {
			t.Errorf("below %s, in reverse: %v, want %v", name, back, test.want)
		}
	}
}
