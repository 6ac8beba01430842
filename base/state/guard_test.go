package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A transaction whose objects cannot be spelled fails alone: not those it shares a commit with.
func TestWhatCannotBeStoredFailsItsAuthorAlone(t *testing.T) {
	g := newGate()
	s := open(t, g)
	year10000 := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	errs := group(t, s, g, nil,
		makeThing("before"),
		func(tx *Tx) error {
			return things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: "bad", CreatedAt: year10000}})
		},
		func(tx *Tx) error {
			return things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: "bad \xff"}})
		},
		makeThing("after"))
	if errs[0] != nil || errs[3] != nil {
		t.Errorf("the others got %v and %v", errs[0], errs[3])
	}
	if errs[1] == nil || fault.From(errs[1]) != nil {
		t.Errorf("a year that JSON cannot tell: %v", errs[1])
	}
	if !fault.Is(errs[2], fault.Invalid) {
		t.Errorf("text that is not UTF-8: %v", errs[2])
	}
	if got := strings.Join(names(s.Latest()), " "); got != "after before first" {
		t.Errorf("there are %s", got)
	}
	if wrong := Verify(s.Latest()); wrong != nil {
		t.Error(wrong)
	}
}

// bounded is an engine that says how full it is.
type bounded struct {
	*Memory
	room Room
}

func (b *bounded) Room() Room { return b.room }

func TestFullStore(t *testing.T) {
	e := &bounded{Memory: NewMemory(0), room: Room{Quota: 100, Reserve: 50}}
	s := open(t, e)
	user := WithCause(t.Context(), Cause{UserID: resource.ID{1}})
	put := func(ctx context.Context, name string, bytes int) error {
		return s.Update(ctx, func(tx *Tx) error {
			return things.Put(tx, &thing{Meta: resource.Meta{ID: tx.NewID(), Name: name}, Tags: []string{strings.Repeat("x", bytes)}})
		})
	}
	remove := func(name string) error {
		return s.Update(user, func(tx *Tx) error {
			for o := range things.All(tx) {
				if o.Name == name {
					return things.Delete(tx, o.ID)
				}
			}
			return errors.New("there is no " + name)
		})
	}
	for step, c := range []struct {
		used       int64
		ctx        context.Context
		bytes      int
		wantRefuse bool
	}{
		{0, user, 10_000, false},
		{99, user, 10_000, false},
		{100, user, 10_000, true},
		{100, user, 100, false}, // a delete's operation is about this large
		{125, user, 100, true},
		{125, t.Context(), 10_000, false}, // the control plane ends what was begun
	} {
		e.room.Used = c.used
		name := fmt.Sprint("step", step)
		var p Plan
		planned := put(WithPlan(c.ctx, &p), name, c.bytes)
		err := put(c.ctx, name, c.bytes)
		if fault.Is(err, fault.Unavailable) != c.wantRefuse || !c.wantRefuse && err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		if (planned == nil) != (err == nil) {
			t.Errorf("step %d: planned %v, done %v", step, planned, err)
		}
	}
	e.room.Used = 1000
	if err := remove("step0"); err != nil {
		t.Errorf("a delete when nothing is left: %v", err)
	}
}

// A caller's receipts are bounded, and another's are not touched by it.
func TestReceiptsAreBounded(t *testing.T) {
	s := open(t, NewMemory(0))
	ask := func(scope, key string, bytes int) {
		t.Helper()
		ctx := WithOnce(t.Context(), &Once{Scope: scope, Key: key, Hash: "h"})
		if _, err := Do(ctx, s, func(*Tx) (string, error) { return strings.Repeat("x", bytes), nil }); err != nil {
			t.Fatal(err)
		}
	}
	count := func(scope string) (int64, int64) {
		n, sums := receipts.Sum(s.Latest(), "scope-size", KeyOf(scope))
		return n, sums[0]
	}
	ask("quiet", "k", 1000)
	for i := range 20 {
		ask("large", fmt.Sprint(i), 1<<20)
	}
	if n, bytes := count("large"); n != 3 || bytes > keepReceiptBytes {
		t.Errorf("%d receipts of %d bytes", n, bytes)
	}
	for i := range keepReceipts + 50 {
		ask("many", fmt.Sprint(i), 10)
	}
	if n, _ := count("many"); n != keepReceipts {
		t.Errorf("%d receipts", n)
	}
	if n, _ := count("quiet"); n != 1 {
		t.Error("another's receipt is gone")
	}
	before := s.Latest().Revision()
	ask("many", fmt.Sprint(keepReceipts+49), 10)
	if s.Latest().Revision() != before {
		t.Error("the newest was forgotten")
	}
}

// A few large objects that are written again and again shorten the history, and it stays whole.
func TestHistoryIsBoundedInBytes(t *testing.T) {
	m := NewMemory(0)
	o := Options{HistoryBytes: 1 << 20}
	s, err := Open(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	id := add(t, s, "large", 0)
	for i := range 100 {
		err := s.Update(t.Context(), func(tx *Tx) error {
			a, err := things.Get(tx, id)
			if err == nil {
				a.Size, a.Tags = int64(i), []string{strings.Repeat("x", 100_000)}
				err = things.Put(tx, a)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	for what, s := range map[string]*State{"live": s, "after a restart": again} {
		bytes := 0
		for _, e := range s.feed.events {
			bytes += e.bytes
		}
		if bytes != s.feed.bytes || bytes > o.HistoryBytes*5/4 || len(s.feed.events) < 4 {
			t.Errorf("%s: %d events, %d bytes, said to be %d", what, len(s.feed.events), bytes, s.feed.bytes)
		}
		oldest := s.feed.events[0].Revision
		tx := mustView(t, s, WithAsOf(t.Context(), oldest))
		if a, err := things.Get(tx, id); err != nil || a.Revision != oldest {
			t.Errorf("%s: as of the oldest: %+v, %v", what, a, err)
		}
		if _, err := s.View(WithAsOf(t.Context(), 1)); !fault.Is(err, fault.Gone) {
			t.Errorf("%s: as of what is forgotten: %v", what, err)
		}
	}
}

// A request that looks at the past sees one moment, and pays for it once.
func TestOneRequestOnePast(t *testing.T) {
	s := open(t, NewMemory(0))
	add(t, s, "a", 1)
	ctx := WithAsOfTime(t.Context(), time.Now().Add(time.Hour))
	first := mustView(t, s, ctx)
	add(t, s, "b", 1)
	second := mustView(t, s, ctx)
	if first.Revision() != second.Revision() || things.Len(second) != 1 {
		t.Errorf("the past moved from %d to %d", first.Revision(), second.Revision())
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.View(WithAsOf(gone, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits for it any more: %v", err)
	}
	for range pastViews {
		s.building <- struct{}{}
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.View(WithAsOf(short, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("there are no more than %d at once: %v", pastViews, err)
	}
}

// The state's clock goes on when the machine's is set back, a little slower until that has caught up.
func TestClockIsSetBack(t *testing.T) {
	wall := time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC)
	m := NewMemory(0)
	at := func(step time.Duration) (elapsed time.Duration) {
		t.Helper()
		wall = wall.Add(step)
		s, err := Open(t.Context(), m, Options{Now: func() time.Time { return wall }})
		if err != nil {
			t.Fatal(err)
		}
		was := s.Now()
		add(t, s, wall.String(), 1)
		wall = wall.Add(10 * time.Minute)
		return s.Now().Sub(was)
	}
	if got := at(0); got != 10*time.Minute {
		t.Errorf("a right clock: %v pass in ten minutes", got)
	}
	if got := at(-10 * 365 * 24 * time.Hour); got != 9*time.Minute {
		t.Errorf("ten years ahead: %v pass in ten minutes", got)
	}
	if got := at(10 * 365 * 24 * time.Hour); got != 10*time.Minute {
		t.Errorf("the machine has caught up: %v", got)
	}
}
