package state

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A piece has every sort of index.
type piece struct {
	resource.Meta
	Group  string
	Weight int64
	Tags   []string
	Notes  map[string]string
	Parent *resource.ID
}

var pieces = NewTable("test-piece",
	Unique("name", func(p *piece) Key { return KeyOf(p.ProjectID, p.Name) }),
	Index("group", func(p *piece) Key {
		if p.Group == "" {
			return ""
		}
		return KeyOf(p.Group, p.Weight)
	}),
	MultiIndex("tag", func(p *piece) (keys []Key) {
		for _, tag := range p.Tags {
			keys = append(keys, KeyOf(tag))
		}
		return keys
	}),
	Text("words", func(p *piece) string { return p.Name }),
	Tally("weight", func(p *piece) (Key, Amounts) { return KeyOf(p.ProjectID), Amounts{p.Weight, -1} }),
	MultiTally("tagged", func(p *piece) (shares []Share) {
		for n, tag := range p.Tags {
			if !slices.Contains(p.Tags[:n], tag) {
				shares = append(shares, Share{KeyOf(tag), Amounts{p.Weight}})
			}
		}
		return shares
	}),
)

// content is the model of the table: what a map can do.
type content map[resource.ID]piece

func (c content) taken(p piece) bool {
	for id, other := range c {
		if id != p.ID && other.ProjectID == p.ProjectID && other.Name == p.Name {
			return true
		}
	}
	return false
}

// placed is an object at one of its places in an index, as the model computes it.
type placed struct {
	key Key
	id  resource.ID
}

func (c content) places(keys func(*piece) []Key) []placed {
	seen := map[placed]bool{}
	for id, p := range c {
		for _, key := range keys(&p) {
			if key != "" {
				seen[placed{key, id}] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b placed) int {
		return strings.Compare(string(a.key)+string(a.id[:]), string(b.key)+string(b.id[:]))
	})
}

// check compares a view with the model, through every index in both directions.
func (c content) check(t *rapid.T, tx *Tx) {
	t.Helper()
	got := content{}
	for p := range pieces.All(tx) {
		got[p.ID] = *p
	}
	if diff := cmp.Diff(c, got); diff != "" {
		t.Fatalf("revision %d (-want +got):\n%s", tx.Revision(), diff)
	}
	if n := pieces.Len(tx); n != len(c) {
		t.Fatalf("Len is %d, want %d", n, len(c))
	}
	for _, index := range pieces.def.indexes {
		if index.keys == nil {
			continue
		}
		c.checkIndex(t, tx, index.name, c.places(func(p *piece) []Key { return index.keys(p) }))
	}
	c.checkIndex(t, tx, "", c.places(func(p *piece) []Key { return []Key{Key(p.ID[:])} }))
	c.checkTally(t, tx)
	words := map[resource.ID]string{}
	for id, text := range pieces.Texts(tx, "words", resource.ID{}, false) {
		words[id] = text
	}
	for id, p := range c {
		if words[id] != p.Name || len(words) != len(c) {
			t.Fatalf("the words of %s are %q, want %q; %d in all, want %d", id, words[id], p.Name, len(words), len(c))
		}
	}
}

func (c content) checkIndex(t *rapid.T, tx *Tx, index string, want []placed) {
	t.Helper()
	prefixes := []Key{""}
	if len(want) > 0 && index != "" {
		key := rapid.SampledFrom(want).Draw(t, "key").key
		prefixes = append(prefixes, key, key[:rapid.IntRange(0, len(key)).Draw(t, "cut")], key+"x")
	}
	for _, prefix := range prefixes {
		var in []placed
		for _, p := range want {
			if strings.HasPrefix(string(p.key), string(prefix)) {
				in = append(in, p)
			}
		}
		for _, reverse := range []bool{false, true} {
			list := slices.Clone(in)
			if reverse {
				slices.Reverse(list)
			}
			c.sameRange(t, tx, index, Range{Prefix: prefix, Reverse: reverse}, list)
			for n, p := range list {
				c.sameRange(t, tx, index, Range{Prefix: prefix, Reverse: reverse, After: p.id, AfterKey: p.key}, list[n+1:])
			}
		}
	}
}

func (c content) sameRange(t *rapid.T, tx *Tx, index string, r Range, want []placed) {
	t.Helper()
	var ids, peeked []resource.ID
	for p := range pieces.Range(tx, index, r) {
		ids = append(ids, p.ID)
	}
	for p := range pieces.Peek(tx, index, r) {
		peeked = append(peeked, p.ID)
	}
	var wanted []resource.ID
	for _, p := range want {
		wanted = append(wanted, p.id)
	}
	if !slices.Equal(ids, wanted) || !slices.Equal(peeked, wanted) {
		t.Fatalf("index %q, %+v: got %v, peeked %v, want %v", index, r, ids, peeked, wanted)
	}
	if r.After.IsZero() && !r.Reverse && index != "" && !slices.Equal(pieces.IDs(tx, index, r.Prefix), wanted) {
		t.Fatalf("index %q: IDs %v, want %v", index, pieces.IDs(tx, index, r.Prefix), wanted)
	}
}

func (c content) checkTally(t *rapid.T, tx *Tx) {
	t.Helper()
	for n := range byte(3) {
		project := resource.ID{n}
		var count int64
		var sums Amounts
		for _, p := range c {
			if p.ProjectID == project {
				count++
				sums[0] += p.Weight
				sums[1]--
			}
		}
		if got, gotSums := pieces.Sum(tx, "weight", KeyOf(project)); got != count || gotSums != sums {
			t.Fatalf("the tally of %v is %d, %v, want %d, %v", project, got, gotSums, count, sums)
		}
	}
	tagged := map[string]sum{}
	for _, p := range c {
		seen := map[string]bool{}
		for _, tag := range p.Tags {
			if !seen[tag] {
				tagged[tag] = sum{tagged[tag].count + 1, Amounts{tagged[tag].amounts[0] + p.Weight}}
			}
			seen[tag] = true
		}
	}
	for tag, want := range tagged {
		if got, gotSums := pieces.Sum(tx, "tagged", KeyOf(tag)); got != want.count || gotSums != want.amounts {
			t.Fatalf("the tally of tag %q is %d, %v, want %v", tag, got, gotSums, want)
		}
	}
	if n := tx.tables[pieces.def.slot].tallies[pieces.def.index("tagged")].Len(); n != len(tagged) {
		t.Fatalf("%d tags are tallied, want %d", n, len(tagged))
	}
}

// machine runs a State beside the model.
type machine struct {
	engine *Memory
	state  *State
	clock  time.Time

	now     content
	past    map[int64]content // at every revision since the history began
	times   map[int64]time.Time
	watcher *Watcher
	watched content
}

const machineHistory = 8

func (m *machine) open(t *rapid.T) {
	t.Helper()
	var err error
	m.state, err = Open(context.Background(), m.engine, Options{History: machineHistory, Now: func() time.Time { return m.clock }})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
}

func (m *machine) ctx() context.Context { return context.Background() }

var errOnPurpose = errors.New("on purpose")

// transaction draws some writes, does them, and gives the model after them.
func (m *machine) transaction(t *rapid.T, tx *Tx, before content, depth int) (content, error) {
	after := maps.Clone(before)
	for range rapid.IntRange(0, 4).Draw(t, "writes") {
		switch rapid.IntRange(0, 9).Draw(t, "write") {
		case 0, 1:
			if len(after) == 0 {
				continue
			}
			id := drawID(t, after)
			if err := pieces.Delete(tx, id); err != nil {
				t.Fatalf("delete: %v", err)
			}
			delete(after, id)
		case 2:
			if err := pieces.Delete(tx, resource.ID{99}); !fault.Is(err, fault.NotFound) {
				t.Fatalf("delete of nothing: %v", err)
			}
		case 3:
			if depth == 2 {
				continue
			}
			var tried content
			err := tx.Try(func() (err error) {
				tried, err = m.transaction(t, tx, after, depth+1)
				return err
			})
			if err == nil {
				after = tried
			}
		case 4:
			if rapid.IntRange(0, 3).Draw(t, "fail") == 0 {
				return after, errOnPurpose
			}
		default:
			p := m.draw(t, tx, after)
			err := pieces.Put(tx, &p)
			switch {
			case after.taken(p):
				if !fault.Is(err, fault.Exists) {
					t.Fatalf("put of a taken name: %v", err)
				}
			case err != nil:
				t.Fatalf("put: %v", err)
			default:
				after[p.ID] = p
				if p.Tags != nil {
					// What the caller does with its copy later is its own affair.
					mine := p
					mine.Tags = slices.Clone(p.Tags)
					after[p.ID] = mine
					p.Tags[0] = "changed after the put"
				}
			}
		}
		if depth == 0 && rapid.IntRange(0, 9).Draw(t, "look") == 0 {
			after.check(t, tx)
		}
	}
	return after, nil
}

func drawID(t *rapid.T, c content) resource.ID {
	ids := slices.SortedFunc(maps.Keys(c), func(a, b resource.ID) int { return strings.Compare(string(a[:]), string(b[:])) })
	return rapid.SampledFrom(ids).Draw(t, "id")
}

// draw makes a new piece, or a changed copy of an old one.
func (m *machine) draw(t *rapid.T, tx *Tx, c content) piece {
	var p piece
	if len(c) > 0 && rapid.Bool().Draw(t, "change") {
		old, err := pieces.Get(tx, drawID(t, c))
		if err != nil {
			t.Fatalf("get: %v", err)
		}
		p = *old
	} else {
		p.ID = tx.NewID()
	}
	text := rapid.SampledFrom([]string{"", "a", "ab", "b", "a\x00", "a\x00b", "é", "\xff"})
	p.ProjectID = resource.ID{rapid.ByteRange(0, 2).Draw(t, "project")}
	p.Name = rapid.SampledFrom([]string{"", "a", "ab", "b", "c", "d", "e"}).Draw(t, "name")
	p.Group = strings.ToValidUTF8(text.Draw(t, "group"), "?")
	p.Weight = rapid.Int64Range(-2, 2).Draw(t, "weight")
	p.Tags = nil
	for range rapid.IntRange(0, 3).Draw(t, "tags") {
		p.Tags = append(p.Tags, strings.ToValidUTF8(text.Draw(t, "tag"), "?"))
	}
	p.Notes = map[string]string{"n": p.Name}
	if rapid.Bool().Draw(t, "parent") {
		p.Parent = &resource.ID{7}
	}
	return p
}

func (m *machine) committed(after content) {
	m.now = after
	revision := m.state.Latest().Revision()
	m.past[revision], m.times[revision] = after, m.clock
}

// Update is a transaction, alone.
func (m *machine) Update(t *rapid.T) {
	m.clock = m.clock.Add(time.Duration(rapid.IntRange(-5, 5).Draw(t, "seconds")) * time.Second)
	revision := m.state.Latest().Revision()
	var after content
	wrote := false
	err := m.state.Update(m.ctx(), func(tx *Tx) (err error) {
		if m.clock.Before(tx.Now()) {
			m.clock = tx.Now() // it never goes back
		}
		after, err = m.transaction(t, tx, m.now, 0)
		wrote = len(merge(tx.changes)) > 0
		return err
	})
	if err != nil && !errors.Is(err, errOnPurpose) {
		t.Fatalf("update: %v", err)
	}
	if got := m.state.Latest().Revision(); (got != revision) != (wrote && err == nil) {
		t.Fatalf("revision %d after %d, wrote %t, %v", got, revision, wrote, err)
	}
	if err == nil && wrote {
		m.committed(after)
	}
}

// Plan is a dry run of some transactions; nobody else sees them.
func (m *machine) Plan(t *rapid.T) {
	var p Plan
	ctx := WithPlan(m.ctx(), &p)
	planned := m.now
	for range rapid.IntRange(1, 3).Draw(t, "updates") {
		var after content
		err := m.state.Update(ctx, func(tx *Tx) (err error) {
			after, err = m.transaction(t, tx, planned, 0)
			return err
		})
		if err == nil {
			planned = after
		}
		view, err := m.state.View(ctx)
		if err != nil {
			t.Fatal(err)
		}
		planned.check(t, view)
	}
	changed := maps.Clone(m.now)
	for _, e := range p.Changes() {
		apply(t, changed, e)
	}
	if diff := cmp.Diff(planned, changed); diff != "" {
		t.Fatalf("the plan's changes (-want +got):\n%s", diff)
	}
}

// apply does to a model what an event says.
func apply(t *rapid.T, c content, e Event) {
	t.Helper()
	before, ok := c[e.ID]
	if ok != (e.Before != nil) || ok && cmp.Diff(before, *e.Before.(*piece)) != "" {
		t.Fatalf("event %+v: there was %+v", e, before)
	}
	if e.After == nil {
		delete(c, e.ID)
	} else {
		c[e.ID] = *e.After.(*piece)
	}
}

// AsOf looks back, as far as the history goes.
func (m *machine) AsOf(t *rapid.T) {
	newest := m.state.Latest().Revision()
	revision := rapid.Int64Range(0, newest+1).Draw(t, "revision")
	view, err := m.state.View(WithAsOf(m.ctx(), revision))
	kept := m.state.feed.floor.Revision
	switch {
	case revision > newest:
		if !fault.Is(err, fault.Invalid) {
			t.Fatalf("as of revision %d, when %d is the newest: %v", revision, newest, err)
		}
		return
	case revision < kept:
		if !fault.Is(err, fault.Gone) {
			t.Fatalf("as of revision %d, when history goes back to %d: %v", revision, kept, err)
		}
		return
	case err != nil:
		t.Fatalf("as of revision %d: %v", revision, err)
	}
	m.past[revision].check(t, view)
	if view.Revision() != revision {
		t.Fatalf("as of revision %d the view says %d", revision, view.Revision())
	}
	if revision == kept {
		return // its time may be unknown after a restart
	}
	// Of several revisions at one time the last is meant.
	last := revision
	for last < newest && !m.times[last+1].After(m.times[revision]) {
		last++
	}
	view, err = m.state.View(WithAsOfTime(m.ctx(), m.times[revision]))
	if err != nil {
		t.Fatalf("as of the time of revision %d: %v", revision, err)
	}
	m.past[last].check(t, view)
}

// Watch catches up with the changes.
func (m *machine) Watch(t *rapid.T) {
	events, err := m.watcher.Poll()
	if errors.Is(err, ErrCompacted) {
		if m.watcher.Revision() >= m.state.feed.floor.Revision {
			t.Fatal("kept history was refused")
		}
		m.rewatch()
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		apply(t, m.watched, e)
	}
	at := m.watcher.Revision()
	if diff := cmp.Diff(m.past[at], m.watched); diff != "" {
		t.Fatalf("watched up to %d (-want +got):\n%s", at, diff)
	}
}

func (m *machine) rewatch() {
	at := m.state.Latest().Revision()
	m.watcher, m.watched = m.state.Watch(at), maps.Clone(m.now)
}

// Restart opens the state anew. The watch goes on where it was.
func (m *machine) Restart(t *rapid.T) {
	m.open(t)
	m.watcher = m.state.Watch(m.watcher.Revision())
}

// Refused is a transaction that the engine does not store.
func (m *machine) Refused(t *rapid.T) {
	m.engine.Fault = func(step string) error {
		if step == "before" {
			return errors.New("no disk")
		}
		return nil
	}
	defer func() { m.engine.Fault = nil }()
	wrote := false
	err := m.state.Update(m.ctx(), func(tx *Tx) error {
		_, err := m.transaction(t, tx, m.now, 0)
		wrote = len(merge(tx.changes)) > 0 && err == nil
		return err
	})
	if wrote && !fault.Is(err, fault.Unavailable) {
		t.Fatalf("update that is not stored: %v", err)
	}
	if m.state.Broken() != nil {
		t.Fatal("a commit that was refused broke the state")
	}
}

// Unknown is a transaction of which the engine does not know whether it is stored; here it is.
func (m *machine) Unknown(t *rapid.T) {
	m.engine.Fault = func(step string) error {
		if step == "after" {
			return errors.New("no answer")
		}
		return nil
	}
	var after content
	wrote := false
	err := m.state.Update(m.ctx(), func(tx *Tx) (err error) {
		if m.clock.Before(tx.Now()) {
			m.clock = tx.Now()
		}
		after, err = m.transaction(t, tx, m.now, 0)
		wrote = len(merge(tx.changes)) > 0 && err == nil
		return err
	})
	m.engine.Fault = nil
	if !wrote {
		return
	}
	if !fault.Is(err, fault.Unavailable) || m.state.Broken() == nil {
		t.Fatalf("update of unknown outcome: %v, broken: %v", err, m.state.Broken())
	}
	m.now.check(t, m.state.Latest())
	if err := m.state.Update(m.ctx(), func(*Tx) error { return nil }); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("update of a broken state: %v", err)
	}
	m.Restart(t)
	m.committed(after)
}

// Check is run after each action.
func (m *machine) Check(t *rapid.T) {
	m.now.check(t, m.state.Latest())
	const largest = 4 * 4 * 4 // changes of one transaction, with its parts and their parts
	if n := len(m.state.feed.events); n > machineHistory+machineHistory/4+largest {
		t.Fatalf("the history has %d events", n)
	}
}

// quiet keeps the errors that a test makes on purpose out of its output.
func quiet(t *testing.T) {
	old := slog.Default()
	t.Cleanup(func() { slog.SetDefault(old) })
	slog.SetDefault(slog.New(slog.DiscardHandler))
}

func TestModel(t *testing.T) {
	quiet(t)
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{engine: NewMemory(6), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), now: content{}, watched: content{}}
		m.past, m.times = map[int64]content{0: {}}, map[int64]time.Time{0: {}}
		m.open(t)
		m.rewatch()
		t.Repeat(map[string]func(*rapid.T){
			"":        m.Check,
			"update":  m.Update,
			"update2": m.Update,
			"update3": m.Update,
			"plan":    m.Plan,
			"as of":   m.AsOf,
			"watch":   m.Watch,
			"restart": m.Restart,
			"refused": m.Refused,
			"unknown": m.Unknown,
		})
	})
}

// Keys order as their parts do, and a key of the first parts is a prefix.
func TestKeyOrder(t *testing.T) {
	text := rapid.StringOf(rapid.SampledFrom([]rune{0, 1, 2, 'a', 'b', 0x10ffff}))
	rapid.Check(t, func(t *rapid.T) {
		a1, b1 := text.Draw(t, "a1"), text.Draw(t, "b1")
		a2, b2 := rapid.Int64().Draw(t, "a2"), rapid.Int64().Draw(t, "b2")
		want := strings.Compare(a1, b1)
		if want == 0 {
			want = cmpInt(a2, b2)
		}
		a, b := KeyOf(a1, a2), KeyOf(b1, b2)
		if got := strings.Compare(string(a), string(b)); got != want {
			t.Fatalf("%q %d and %q %d compare as %d, want %d", a1, a2, b1, b2, got, want)
		}
		if strings.HasPrefix(string(a), string(KeyOf(b1))) != (a1 == b1) {
			t.Fatalf("key of %q is a prefix of that of %q, %d", b1, a1, a2)
		}
	})
}

func cmpInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
