package operation

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A rig is a state on a clock of its own, and somebody who asks.
type rig struct {
	*state.State
	t      *testing.T
	clock  time.Time
	actor  *identity.Actor
	ctx    context.Context
	target resource.Meta
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, clock: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	var err error
	if r.State, err = state.Open(t.Context(), state.NewMemory(0), state.Options{Now: func() time.Time { return r.clock }}); err != nil {
		t.Fatal(err)
	}
	r.actor = &identity.Actor{UserID: resource.NewID(r.clock, nil), ProjectID: resource.NewID(r.clock, nil), Roles: []string{"member", "reader"}}
	r.ctx = identity.As(t.Context(), r.actor)
	r.target = resource.Meta{ID: resource.NewID(r.clock, nil), ProjectID: r.actor.ProjectID}
	return r
}

func (r *rig) update(fn func(tx *state.Tx) error) {
	r.t.Helper()
	if err := r.Update(r.ctx, fn); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) begin(verb string, within time.Duration) *Operation {
	r.t.Helper()
	o, err := state.Do(r.ctx, r.State, func(tx *state.Tx) (*Operation, error) {
		return Begin(tx, verb, "thing", &r.target, r.actor, within)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return o
}

func (r *rig) read(id resource.ID) *Operation {
	r.t.Helper()
	o, err := Get(r.Latest(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return o
}

func TestCourseOfAnOperation(t *testing.T) {
	r := newRig(t)
	o := r.begin("build", time.Minute)
	if o.Outcome != Running || !o.Deadline.Equal(r.clock.Add(time.Minute)) || o.ProjectID != r.target.ProjectID || o.UserID != r.actor.UserID {
		t.Fatalf("begun: %+v", o)
	}
	for _, step := range []string{"place", "start"} {
		r.clock = r.clock.Add(time.Second)
		r.update(func(tx *state.Tx) error {
			o, err := Get(tx, o.ID)
			return errors.Join(err, Stepped(tx, o, step, resource.ID{}), Note(tx, o, "its host", 50))
		})
	}
	at := r.Latest().Revision()
	r.update(func(tx *state.Tx) error { return Note(tx, r.read(o.ID), "its host", 50) })
	if r.Latest().Revision() != at {
		t.Error("the same note again was written")
	}
	if got := Active(r.Latest(), r.target.ID); got == nil || got.ID != o.ID || got.WaitingFor != "its host" || got.Percent != 50 {
		t.Errorf("under way is %+v", got)
	}
	r.clock = r.clock.Add(time.Second)
	r.update(func(tx *state.Tx) error { return End(tx, r.read(o.ID), Failed, "no room") })
	got := r.read(o.ID)
	if got.Outcome != Failed || got.Message != "no room" || got.WaitingFor != "" || !got.EndedAt.Equal(r.clock) || Active(r.Latest(), r.target.ID) != nil {
		t.Errorf("ended: %+v", got)
	}
	if s := got.Steps; len(s) != 2 || s[0].Outcome != Succeeded || !s[0].EndedAt.Equal(s[1].StartedAt) || s[1].Outcome != Failed || s[1].Message != "no room" {
		t.Errorf("its steps: %+v", s)
	}
	r.update(func(tx *state.Tx) error { return End(tx, r.read(o.ID), Succeeded, "") })
	if again := r.read(o.ID); again.Outcome != Failed {
		t.Error("what had ended ended again")
	}
	other := r.begin("build", time.Minute)
	if err := r.Update(r.ctx, func(tx *state.Tx) error { return End(tx, other, Running, "") }); err == nil {
		t.Error("an operation ended as running")
	}
}

func TestStepsAreBounded(t *testing.T) {
	r := newRig(t)
	o := r.begin("build", time.Minute)
	r.update(func(tx *state.Tx) error {
		for n := range maxSteps + 5 {
			if err := Stepped(tx, o, fmt.Sprint(n), resource.ID{}); err != nil {
				return err
			}
		}
		return nil
	})
	if s := r.read(o.ID).Steps; len(s) != maxSteps || s[maxSteps-1].Name != fmt.Sprint(maxSteps+4) {
		t.Errorf("%d steps, the last is %s", len(s), s[len(s)-1].Name)
	}
}

func TestOfEndAllAndDeleted(t *testing.T) {
	r := newRig(t)
	first := r.begin("build", time.Minute)
	second := r.begin(DeleteVerb, time.Minute)
	if of := Of(r.Latest(), r.target.ID); len(of) != 2 || of[0].ID != second.ID || of[1].ID != first.ID {
		t.Fatalf("of the target: %+v", of)
	}
	r.update(func(tx *state.Tx) error { return End(tx, r.read(first.ID), Failed, "") })
	r.update(func(tx *state.Tx) error { return EndAll(tx, r.target.ID, Succeeded, "") })
	if r.read(first.ID).Outcome != Failed || r.read(second.ID).Outcome != Succeeded {
		t.Error("not each has its own end")
	}
	gone := func(project resource.ID, kind string, since time.Time) int {
		return len(Deleted(r.Latest(), project, kind, since))
	}
	if gone(r.target.ProjectID, "thing", r.clock) != 1 || gone(r.target.ProjectID, "thing", r.clock.Add(time.Second)) != 0 ||
		gone(r.target.ProjectID, "other", r.clock) != 0 || gone(r.target.ID, "thing", r.clock) != 0 {
		t.Error("what was deleted is listed wrongly")
	}
}

// reap steps the reaper over everything that runs.
func (r *rig) reap(expirers map[string]Expirer) {
	r.t.Helper()
	task := (&Reaper{State: r.State, Now: func() time.Time { return r.clock }, Expirers: expirers}).Task()
	for _, id := range task.All(r.Latest()) {
		if _, err := task.Step(r.ctx, id); err != nil {
			r.t.Fatal(err)
		}
	}
}

func TestDeadline(t *testing.T) {
	for name, test := range map[string]struct {
		expire  Expirer
		outcome Outcome
	}{
		"nobody settles the target": {nil, Failed},
		"the target is settled":     {func(*state.Tx, *Operation) error { return nil }, Failed},
		"it ends in its own way":    {func(tx *state.Tx, o *Operation) error { return End(tx, o, Succeeded, "late") }, Succeeded},
		"it is given more time once": {func(tx *state.Tx, o *Operation) error {
			o.Deadline = tx.Now().Add(time.Hour)
			return operations.Put(tx, o)
		}, Running},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			o := r.begin("build", time.Minute)
			expirers := map[string]Expirer{}
			if test.expire != nil {
				expirers["thing"] = test.expire
			}
			r.clock = o.Deadline.Add(-1)
			r.reap(expirers)
			if r.read(o.ID).Outcome != Running {
				t.Fatal("it ended before its deadline")
			}
			r.clock = o.Deadline
			r.reap(expirers)
			if got := r.read(o.ID); got.Outcome != test.outcome {
				t.Errorf("it is %+v", got)
			}
		})
	}
}

func TestReaperLooksAgainAtTheDeadline(t *testing.T) {
	r := newRig(t)
	o := r.begin("build", time.Minute)
	task := (&Reaper{State: r.State, Now: func() time.Time { return r.clock }}).Task()
	if ids := task.Touched(state.Event{ID: o.ID, After: o}); len(ids) != 1 || ids[0] != o.ID {
		t.Error("a new operation does not touch the reaper")
	}
	if next, err := task.Step(r.ctx, o.ID); err != nil || next.After != time.Minute {
		t.Errorf("it comes again after %v, %v", next.After, err)
	}
}

func TestForget(t *testing.T) {
	r := newRig(t)
	reaper := &Reaper{State: r.State, Now: func() time.Time { return r.clock }, Keep: time.Hour}
	var ids []resource.ID
	for range 3 {
		o := r.begin("build", time.Minute)
		r.update(func(tx *state.Tx) error { return End(tx, o, Succeeded, "") })
		ids = append(ids, o.ID)
	}
	running := r.begin("build", 1000*time.Hour)
	left := func(want int) {
		t.Helper()
		if _, err := reaper.Forget(r.ctx, 2); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, id := range ids {
			if operations.Has(r.Latest(), id) {
				n++
			}
		}
		if n != want || !operations.Has(r.Latest(), running.ID) {
			t.Errorf("%d are left, not %d", n, want)
		}
	}
	left(3)
	r.clock = r.clock.Add(time.Hour)
	left(1) // two at a time
	left(0)
}

func TestCancel(t *testing.T) {
	r := newRig(t)
	asked := 0
	s := &Service{State: r.State, Cancellers: map[string]Canceller{"thing": func(_ context.Context, tx *state.Tx, o *Operation) error {
		asked++
		if o.Verb == "burn" {
			return NotCancellable("It burns.")
		}
		return nil
	}}}
	code := func(ctx context.Context, id resource.ID) string {
		t.Helper()
		_, err := s.Cancel(ctx, id)
		if f := fault.From(err); f != nil {
			return fmt.Sprint(f.Kind, " ", f.Code)
		}
		if err != nil {
			t.Error(err)
		}
		return ""
	}
	kind := func(k fault.Kind, code string) string { return fmt.Sprint(k, " ", code) }

	o := r.begin("build", time.Minute)
	stranger := *r.actor
	stranger.ProjectID = resource.NewID(r.clock, nil)
	if got := code(identity.As(t.Context(), &stranger), o.ID); got != kind(fault.NotFound, "") {
		t.Errorf("a stranger is answered %q", got)
	}
	if got := code(r.ctx, resource.NewID(r.clock, nil)); got != kind(fault.NotFound, "") {
		t.Errorf("for one that is not there the answer is %q", got)
	}
	if asked != 0 || r.read(o.ID).Outcome != Running {
		t.Fatal("a refused request did something")
	}
	for range 2 {
		if got := code(r.ctx, o.ID); got != "" || asked != 1 {
			t.Errorf("the answer is %q, and the target's domain was asked %d times", got, asked)
		}
	}
	if got := r.read(o.ID); got.Outcome != Cancelled || got.Message == "" || !got.EndedAt.Equal(r.clock) {
		t.Errorf("cancelled it is %+v", got)
	}
	done := r.begin("build", time.Minute)
	r.update(func(tx *state.Tx) error { return End(tx, done, Succeeded, "") })
	r.target.ID = resource.NewID(r.clock, nil)
	burns, gone := r.begin("burn", time.Minute), r.begin(DeleteVerb, time.Minute)
	for o, want := range map[*Operation]string{
		done: "operation-ended", burns: "operation-not-cancellable", gone: "operation-not-cancellable",
	} {
		if got := code(r.ctx, o.ID); got != kind(fault.Conflict, want) {
			t.Errorf("%s, %s: the answer is %q", o.Verb, o.Outcome, got)
		}
	}
	s.Cancellers = nil
	if got := code(r.ctx, r.begin("build", time.Minute).ID); got != kind(fault.Conflict, "operation-not-cancellable") {
		t.Errorf("of a kind that nobody cancels the answer is %q", got)
	}
}
