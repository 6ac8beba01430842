// Package enginetest is what every state.Engine has to pass.
package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Store is a place where engines under test keep what they are given.
type Store interface {
	// Open makes one more engine on what is stored. The store closes it in the end.
	Open(t *testing.T) state.Engine
	// Restart ends all engines as a crash would: those opened before are not used again.
	Restart(t *testing.T)
	// Fault installs a hook that every commit calls at each of Steps; nil takes it away.
	Fault(hook func(step string) error)
	// Steps names the places of a commit where the hook is called. Some are reached only
	// when an earlier one failed.
	Steps() []string
	// Compact forgets the batches so far.
	Compact(t *testing.T)
}

const patience = 20 * time.Second

// Test runs the contract of state.Engine; open makes an empty store.
func Test(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(*testing.T, Store){
		"an empty store has nothing":                             testEmpty,
		"what was committed is loaded, also after a restart":     testLoad,
		"a term is higher than every one before":                 testTerms,
		"who led before is fenced":                               testFence,
		"a batch must follow the head":                           testBase,
		"many objects fit into one batch, and load in pages":     testLarge,
		"a watch gives each batch with what was before":          testWatch,
		"a watch goes on from any revision, also after restarts": testWatchResumes,
		"a watch follows live commits, and ends as told":         testWatchLive,
		"compacted history is refused, newer history is not":     testCompaction,
		"replaced versions inside a batch are watched":           testEarlier,
		"a failing step leaves all or nothing, and says which":   testFailingSteps,
		"a crash at any step leaves all or nothing":              testCrashes,
		"random batches give what a map gives":                   testRandom,
		"readers do not disturb a writer":                        testConcurrent,
		"of two writers, one stores each batch":                  testRivals,
		"a batch that writes an object twice is refused":         testTwice,
		"values of any bytes come back":                          testBytes,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// writer commits batches one after the other and remembers what must be stored.
type writer struct {
	t      *testing.T
	engine state.Engine
	term   int64
	head   state.Head
	want   map[object]state.Record
	log    []state.Batch // as Watch has to give them
}

type object struct {
	kind string
	id   resource.ID
}

func newWriter(t *testing.T, e state.Engine) *writer {
	t.Helper()
	w := &writer{t: t, engine: e, want: map[object]state.Record{}}
	w.lead()
	return w
}

func (w *writer) lead() {
	w.t.Helper()
	term, err := w.engine.Lead(w.t.Context())
	if err != nil {
		w.t.Fatalf("lead: %v", err)
	}
	w.term = term
}

// batch makes a batch of one transaction that follows the head.
func (w *writer) batch(records ...state.Record) state.Batch {
	next := w.head.Revision + 1
	return state.Batch{Term: w.term, Base: w.head.Revision, Records: records, Txs: []state.TxInfo{{
		Revision: next, Time: moment(next),
		Cause: state.Cause{UserID: number(7), RequestID: fmt.Sprintf("req-%d", next), Via: "test"}}}}
}

func (w *writer) commit(b state.Batch) {
	w.t.Helper()
	if err := w.engine.Commit(w.t.Context(), b); err != nil {
		w.t.Fatalf("commit of revision %d: %v", b.Head().Revision, err)
	}
	w.stored(b)
}

// stored notes that a batch is in the store.
func (w *writer) stored(b state.Batch) {
	logged := b
	logged.Records = nil
	for _, r := range b.Records {
		at := object{r.Kind, r.ID}
		was, ok := w.want[at]
		if !ok && r.Value == nil {
			continue
		}
		if r.Value == nil {
			delete(w.want, at)
		} else {
			w.want[at] = r
		}
		r.Before, r.BeforeVersion = was.Value, was.Version
		logged.Records = append(logged.Records, r)
	}
	w.log = append(w.log, logged)
	w.head = b.Head()
}

// check compares what an engine loads with what must be there.
func (w *writer) check(e state.Engine) {
	w.t.Helper()
	got, head := load(w.t, e)
	w.compare(got, head)
}

func (w *writer) compare(got map[object]state.Record, head state.Head) {
	w.t.Helper()
	if head.Revision != w.head.Revision || !head.Time.Equal(w.head.Time) {
		w.t.Fatalf("loaded head %+v, want %+v", head, w.head)
	}
	if diff := differences(got, w.want); diff != "" {
		w.t.Fatal("loaded: " + diff)
	}
}

func differences(got, want map[object]state.Record) string {
	for at, r := range want {
		g, ok := got[at]
		if !ok {
			return fmt.Sprintf("%s %s is missing", at.kind, at.id)
		}
		if g.Version != r.Version || !bytes.Equal(g.Value, r.Value) {
			return fmt.Sprintf("%s %s is version %d %.60q, want version %d %.60q", at.kind, at.id, g.Version, g.Value, r.Version, r.Value)
		}
	}
	for at := range got {
		if _, ok := want[at]; !ok {
			return fmt.Sprintf("%s %s should not be there", at.kind, at.id)
		}
	}
	return ""
}

func load(t *testing.T, e state.Engine) (map[object]state.Record, state.Head) {
	t.Helper()
	got := map[object]state.Record{}
	head, err := e.Load(t.Context(), func(r state.Record) error {
		at := object{r.Kind, r.ID}
		if _, twice := got[at]; twice {
			return fmt.Errorf("%s %s was loaded twice", r.Kind, r.ID)
		}
		if r.Value == nil {
			return fmt.Errorf("%s %s was loaded without a value", r.Kind, r.ID)
		}
		got[at] = r
		return nil
	})
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	// Nobody commits while a test loads, so that both are of one moment.
	if read, err := e.Head(t.Context()); err != nil || read.Revision != head.Revision || !read.Time.Equal(head.Time) {
		t.Fatalf("Head is %v, %v; Load gave %v", read, err, head)
	}
	return got, head
}

var errEnough = errors.New("enough")

// watch reads the batches above since until the one of revision last.
func watch(t *testing.T, e state.Engine, since, last int64) []state.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var got []state.Batch
	err := e.Watch(ctx, since, func(b state.Batch) error {
		got = append(got, b)
		if b.Head().Revision >= last {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("watch since %d gave %d batches and then %v", since, len(got), err)
	}
	return got
}

func sameBatches(t *testing.T, got, want []state.Batch) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.Transformer("nilIsEmpty", func(b []byte) string { return string(b) })); diff != "" {
		t.Errorf("watched batches (-want +got):\n%s", diff)
	}
}

func moment(n int64) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 987654321, time.UTC).Add(time.Duration(n) * time.Second)
}

func number(n int) (id resource.ID) {
	id[0], id[15], id[14], id[13] = 'i', byte(n), byte(n>>8), byte(n>>16)
	return id
}

func put(n int, value string) state.Record {
	return state.Record{Kind: "thing", ID: number(n), Version: 1, Value: fmt.Appendf(nil, `{"V":%q}`, value)}
}

func gone(n int) state.Record { return state.Record{Kind: "thing", ID: number(n)} }

func testEmpty(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	w.check(w.engine)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := w.engine.Watch(ctx, 0, func(state.Batch) error { return errors.New("there is nothing to watch") })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("watch of nothing: %v", err)
	}
}

func testLoad(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	w.commit(w.batch(put(1, "a"), put(2, "b"), state.Record{Kind: "other", ID: number(1), Version: 3, Value: []byte(`{}`)}))
	w.commit(w.batch(put(2, "c"), put(3, "d")))
	w.commit(w.batch(gone(1), gone(99)))
	w.commit(w.batch()) // a transaction without changes is one, too
	w.check(w.engine)
	s.Restart(t)
	w.check(s.Open(t))

	w.engine = s.Open(t)
	w.lead()
	w.commit(w.batch(put(1, "again")))
	w.check(w.engine)

	stop := errors.New("stop")
	if _, err := w.engine.Load(t.Context(), func(state.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("load that is told to stop: %v", err)
	}
}

func testTerms(t *testing.T, s Store) {
	var last int64
	for i := range 6 {
		if i == 3 {
			s.Restart(t)
		}
		term, err := s.Open(t).Lead(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if term <= last {
			t.Fatalf("term %d follows term %d", term, last)
		}
		last = term
	}
}

func testFence(t *testing.T, s Store) {
	old := newWriter(t, s.Open(t))
	old.commit(old.batch(put(1, "a")))
	next := newWriter(t, s.Open(t))
	next.head, next.want = old.head, old.want
	if err := old.engine.Commit(t.Context(), old.batch(put(1, "late"))); !errors.Is(err, state.ErrFenced) {
		t.Fatalf("commit in an old term: %v", err)
	}
	next.check(next.engine)
	next.commit(next.batch(put(2, "b")))
	if err := old.engine.Commit(t.Context(), old.batch(put(1, "late"))); !errors.Is(err, state.ErrFenced) {
		t.Fatalf("commit in an old term, at an old base: %v", err)
	}
	forged := next.batch(put(1, "forged"))
	forged.Term--
	if err := next.engine.Commit(t.Context(), forged); !errors.Is(err, state.ErrFenced) {
		t.Fatalf("commit with another's term: %v", err)
	}
	next.check(next.engine)
}

func testBase(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	ahead := w.batch(put(1, "x"))
	ahead.Base = 5
	ahead.Txs[0].Revision = 6
	if err := w.engine.Commit(t.Context(), ahead); !errors.Is(err, state.ErrFenced) {
		t.Errorf("the first commit at base 5: %v", err)
	}
	for i := range 12 {
		w.commit(w.batch(put(i, "a")))
	}
	for _, base := range []int64{0, 1, 11, 13, 120, 1 << 40} {
		b := w.batch(put(1, "x"))
		b.Base, b.Txs[0].Revision = base, base+1
		if err := w.engine.Commit(t.Context(), b); !errors.Is(err, state.ErrFenced) {
			t.Errorf("commit at base %d when the head is 12: %v", base, err)
		}
	}
	w.check(w.engine)
	w.commit(w.batch(put(1, "b")))
	w.check(w.engine)
}

func testLarge(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	const n = 36_000
	records := make([]state.Record, n)
	for i := range records {
		records[i] = put(i, "one of many")
	}
	w.commit(w.batch(records...))
	w.check(w.engine)
	for i := range records[:n/2] {
		records[i] = gone(i)
	}
	w.commit(w.batch(records...))
	s.Restart(t)
	w.check(s.Open(t))
	w.engine = s.Open(t)
	w.lead()
	huge := put(1, "huge")
	huge.Value = fmt.Appendf(nil, `{"V":%q}`, bytes.Repeat([]byte("x"), 8<<20))
	w.commit(w.batch(huge))
	w.check(w.engine)
}

func testWatch(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	w.commit(w.batch(put(1, "a"), put(2, "b")))
	w.commit(w.batch(put(2, "c"), gone(99), gone(1)))
	b := w.batch(put(1, "anew"), put(3, "d"), gone(2))
	b.Txs = append(b.Txs, state.TxInfo{Revision: b.Base + 2, Time: moment(50)}, state.TxInfo{Revision: b.Base + 3, Time: moment(51)})
	b.Records[1].Tx, b.Records[2].Tx = 1, 2
	w.commit(b)
	v2 := put(3, "newer")
	v2.Version = 2
	w.commit(w.batch(v2))
	for since := range w.head.Revision {
		var want []state.Batch
		for _, b := range w.log {
			if b.Head().Revision > since {
				want = append(want, b)
			}
		}
		sameBatches(t, watch(t, w.engine, since, w.head.Revision), want)
	}
}

func testWatchResumes(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	for i := range 20 {
		w.commit(w.batch(put(i%3, fmt.Sprint(i)), gone((i+1)%3)))
		if i%7 == 6 {
			s.Restart(t)
			w.engine = s.Open(t)
			w.lead()
		}
	}
	for since := range int64(20) {
		sameBatches(t, watch(t, w.engine, since, 20), w.log[since:])
	}
}

func testWatchLive(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	w.commit(w.batch(put(1, "before")))
	reader := s.Open(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got := make(chan state.Batch, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- reader.Watch(ctx, 0, func(b state.Batch) error { got <- b; return nil })
	}()
	for i := range 10 {
		select {
		case b := <-got:
			sameBatches(t, []state.Batch{b}, w.log[i:i+1])
		case <-ctx.Done():
			t.Fatalf("batch %d was not seen", i)
		}
		w.commit(w.batch(put(1, fmt.Sprint(i)), put(100+i, "x")))
		if i == 4 {
			w.lead() // which is not a batch
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled watch ended with %v", err)
	}
	select {
	case b := <-got:
		sameBatches(t, []state.Batch{b}, w.log[10:])
	default: // the last batch need not have come before the cancellation
	}
}

func testCompaction(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	for i := range 10 {
		w.commit(w.batch(put(i%2, fmt.Sprint(i)), gone((i+1)%2)))
	}
	s.Compact(t)
	for i := range 5 {
		w.commit(w.batch(put(i%2, fmt.Sprint(i)), gone((i+1)%2)))
	}
	for _, since := range []int64{0, 5, 9} {
		err := w.engine.Watch(t.Context(), since, func(state.Batch) error { return errors.New("a batch was given") })
		if !errors.Is(err, state.ErrCompacted) {
			t.Errorf("watch since %d: %v", since, err)
		}
	}
	for since := int64(10); since < 15; since++ {
		sameBatches(t, watch(t, w.engine, since, 15), w.log[since:])
	}
	w.check(w.engine)
	s.Compact(t)
	s.Restart(t)
	w.engine = s.Open(t)
	w.check(w.engine)
	w.lead()
	w.commit(w.batch(put(1, "after")))
	sameBatches(t, watch(t, w.engine, 15, 16), w.log[15:])
}

func testEarlier(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	w.commit(w.batch(put(1, "a")))
	b := w.batch(put(1, "d"), gone(2))
	b.Txs = append(b.Txs, state.TxInfo{Revision: b.Base + 2, Time: moment(60)}, state.TxInfo{Revision: b.Base + 3, Time: moment(61)})
	b.Records[0].Tx, b.Records[1].Tx = 2, 2
	c := put(1, "c")
	c.Tx, c.Version = 1, 2
	b.Earlier = []state.Record{put(1, "b"), gone(1), c, put(2, "short-lived")}
	b.Earlier[1].Tx = 0
	w.commit(b)
	w.check(w.engine)
	s.Restart(t)
	e := s.Open(t)
	w.check(e)
	sameBatches(t, watch(t, e, 0, w.head.Revision), w.log)
}

// testFailingSteps lets one step fail at a time: whatever Commit answers must be true.
func testFailingSteps(t *testing.T, s Store) {
	reached := eachStep(t, s, func(t *testing.T, w *writer, b state.Batch, fail string, more ...string) []string {
		var reached []string
		failed := errors.New("injected")
		s.Fault(func(step string) error {
			reached = append(reached, step)
			if step == fail || slices.Contains(more, step) && count(reached, step) == 1 {
				if step == fail && count(reached, step) > 1 {
					return nil
				}
				return failed
			}
			return nil
		})
		err := w.engine.Commit(t.Context(), b)
		s.Fault(nil)
		got, head := load(t, w.engine)
		w.outcome(got, head, b, err)
		if errors.Is(err, state.ErrUncertain) {
			w.lead()
		}
		return reached
	})
	wantSteps(t, s, reached)
}

// testCrashes lets the writer die at one step at a time.
func testCrashes(t *testing.T, s Store) {
	reached := eachStep(t, s, func(t *testing.T, w *writer, b state.Batch, die string, fail ...string) []string {
		var reached []string
		s.Fault(func(step string) error {
			reached = append(reached, step)
			if step == die {
				runtime.Goexit()
			}
			if slices.Contains(fail, step) {
				return errors.New("injected")
			}
			return nil
		})
		answered := false
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = w.engine.Commit(t.Context(), b) // only whether it answers counts
			answered = true
		})
		wg.Wait()
		s.Fault(nil)
		if slices.Contains(reached, die) == answered {
			t.Errorf("step %s reached: %t, commit answered: %t", die, !answered, answered)
		}
		s.Restart(t)
		w.engine = s.Open(t)
		got, head := load(t, w.engine)
		w.outcome(got, head, b, state.ErrUncertain)
		w.lead()
		return reached
	})
	wantSteps(t, s, reached)
}

// eachStep runs a commit for each step, once plainly and once after each earlier step
// has failed, with commits between that must succeed. It gives the steps that were reached.
func eachStep(t *testing.T, s Store, run func(t *testing.T, w *writer, b state.Batch, step string, more ...string) []string) []string {
	w := newWriter(t, s.Open(t))
	w.commit(w.batch(put(1, "a"), put(2, "b"), put(3, "c")))
	var reached []string
	for i, step := range s.Steps() {
		before := [][]string{nil}
		for _, earlier := range s.Steps()[:i] {
			before = append(before, []string{earlier})
		}
		for n, more := range before {
			b := w.batch(put(1, fmt.Sprintf("%s-%d", step, n)), gone(2), put(4, step))
			if _, ok := w.want[object{"thing", number(2)}]; !ok {
				b.Records[1] = put(2, "back")
			}
			reached = append(reached, run(t, w, b, step, more...)...)
			w.check(w.engine)
			w.commit(w.batch(put(3, fmt.Sprintf("after %s-%d", step, n))))
			w.check(w.engine)
		}
	}
	return reached
}

// outcome checks that a batch is there entirely or not at all, as its commit's answer says.
func (w *writer) outcome(got map[object]state.Record, head state.Head, b state.Batch, err error) {
	w.t.Helper()
	stored := head.Revision == b.Head().Revision
	if err == nil && !stored {
		w.t.Fatal("a commit without error is not stored")
	}
	if err != nil && !errors.Is(err, state.ErrUncertain) && stored {
		w.t.Fatalf("a commit is stored although it answered %v", err)
	}
	if stored {
		w.stored(b)
	}
	w.compare(got, head)
}

func wantSteps(t *testing.T, s Store, reached []string) {
	t.Helper()
	for _, step := range s.Steps() {
		if !slices.Contains(reached, step) {
			t.Errorf("step %q was never reached", step)
		}
	}
	for _, step := range reached {
		if !slices.Contains(s.Steps(), step) {
			t.Errorf("step %q has no place in Steps", step)
		}
	}
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

func testRandom(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 150 {
		var records []state.Record
		for _, n := range random.Perm(12)[:1+random.IntN(8)] {
			r := put(n, fmt.Sprint(i))
			if random.IntN(3) == 0 {
				r = gone(n)
			}
			if random.IntN(2) == 0 {
				r.Kind = "other/kind"
			}
			records = append(records, r)
		}
		w.commit(w.batch(records...))
		if i%50 == 49 {
			w.check(w.engine)
		}
	}
	sameBatches(t, watch(t, w.engine, 0, w.head.Revision), w.log)
	s.Restart(t)
	w.check(s.Open(t))
}

// testConcurrent loads while a writer commits pairs: each load has to see whole batches.
func testConcurrent(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	w.commit(w.batch(put(1, "0"), put(2, "0")))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		reader := s.Open(t)
		wg.Go(func() {
			var last int64
			for n := 0; ; n++ {
				select {
				case <-stop:
					if n > 0 {
						return
					}
				default:
				}
				values := map[resource.ID]string{}
				head, err := reader.Load(t.Context(), func(r state.Record) error {
					values[r.ID] = string(r.Value)
					return nil
				})
				if err != nil {
					t.Errorf("load: %v", err)
					return
				}
				want := fmt.Sprintf(`{"V":"%d"}`, head.Revision-1)
				if values[number(1)] != want || values[number(2)] != want {
					t.Errorf("at revision %d a load saw %v", head.Revision, values)
					return
				}
				if head.Revision < last {
					t.Errorf("a load saw revision %d after %d", head.Revision, last)
				}
				last = head.Revision
			}
		})
	}
	for i := 1; i <= 200; i++ {
		w.commit(w.batch(put(1, fmt.Sprint(i)), put(2, fmt.Sprint(i))))
	}
	close(stop)
	wg.Wait()
}

// testRivals lets two writers take the lead from each other in turns.
func testRivals(t *testing.T, s Store) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := map[int64]string{}
	for _, name := range []string{"a", "b"} {
		e := s.Open(t)
		wg.Go(func() {
			done := 0
			for round := 0; done < 10 && round < 1000; round++ {
				term, err := e.Lead(t.Context())
				if err != nil {
					t.Errorf("%s: lead: %v", name, err)
					return
				}
				head, err := e.Load(t.Context(), func(state.Record) error { return nil })
				if err != nil {
					t.Errorf("%s: load: %v", name, err)
					return
				}
				for range 3 {
					next := head.Revision + 1
					value := fmt.Sprintf("%s-%d", name, next)
					err := e.Commit(t.Context(), state.Batch{Term: term, Base: head.Revision, Records: []state.Record{put(int(next), value)},
						Txs: []state.TxInfo{{Revision: next, Time: moment(next)}}})
					if errors.Is(err, state.ErrFenced) {
						break
					}
					if err != nil {
						t.Errorf("%s: commit: %v", name, err)
						return
					}
					mu.Lock()
					if other, twice := acknowledged[next]; twice {
						t.Errorf("revision %d was stored as %s and as %s", next, other, value)
					}
					acknowledged[next] = value
					mu.Unlock()
					head.Revision = next
					done++
				}
			}
		})
	}
	wg.Wait()
	got, head := load(t, s.Open(t))
	if int(head.Revision) != len(acknowledged) || len(got) != len(acknowledged) {
		t.Errorf("%d commits were acknowledged, %d objects are there, the head is %d", len(acknowledged), len(got), head.Revision)
	}
	for n, value := range acknowledged {
		if r := got[object{"thing", number(int(n))}]; !bytes.Equal(r.Value, put(0, value).Value) {
			t.Errorf("revision %d holds %s, want %s", n, r.Value, value)
		}
	}
}

func testTwice(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	w.commit(w.batch(put(1, "a")))
	for name, b := range map[string]state.Batch{
		"put and put":    w.batch(put(1, "b"), put(1, "c")),
		"put and delete": w.batch(put(1, "b"), gone(1)),
	} {
		if err := w.engine.Commit(t.Context(), b); err == nil || errors.Is(err, state.ErrUncertain) {
			t.Errorf("%s: %v", name, err)
		}
		w.check(w.engine)
	}
	w.commit(w.batch(put(1, "d")))
	w.check(w.engine)
}

func testBytes(t *testing.T, s Store) {
	w := newWriter(t, s.Open(t))
	var all [16]byte
	for i := range all {
		all[i] = 0xff
	}
	slashes := resource.ID([]byte("////////////////"))
	w.commit(w.batch(
		state.Record{Kind: "a", ID: resource.ID(all), Version: 12345, Value: []byte(`{"T":"zero \u0000, space, 雲海, ` + "\xf0\x9f\x8c\xa5" + `"}`)},
		state.Record{Kind: "a", ID: slashes, Version: 1, Value: []byte(`"  two words "`)},
		state.Record{Kind: "a/b", ID: slashes, Version: 1, Value: []byte(`null`)},
		state.Record{Kind: "ab", ID: resource.ID{}, Version: 1, Value: []byte(`[]`)},
	))
	w.check(w.engine)
	s.Restart(t)
	w.check(s.Open(t))
	sameBatches(t, watch(t, s.Open(t), 0, 1), w.log)
}
