package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Next says when a step wants to run again although nothing changes. The zero
// Next: not before something does.
type Next struct{ After time.Duration }

// A Task is one kind of reconciling work.
type Task struct {
	Name string
	// Step reads afresh, takes one thing a step further, and says when to come again. An
	// error is logged and the step tried again, later and later.
	Step func(ctx context.Context, id resource.ID) (Next, error)
	// Touched says which things a change concerns.
	Touched func(e state.Event) []resource.ID
	// All lists every thing there may be work for: at the start, and when changes were missed.
	All func(tx *state.Tx) []resource.ID
}

type taskKey struct {
	task int
	id   resource.ID
}

// A Reconciler feeds tasks from a state's changes.
type Reconciler struct {
	state *state.State
	tasks []Task
	watch *state.Watcher

	mu    sync.Mutex
	queue Queue[taskKey] // guarded by mu
	// For which a step is taken, until one ends well; guarded by mu.
	requests map[taskKey]string
	wake     chan struct{}
}

// New makes a Reconciler with everything due at once.
func New(s *state.State, now time.Time, tasks ...Task) *Reconciler {
	r := &Reconciler{state: s, tasks: tasks, requests: map[taskKey]string{}, wake: make(chan struct{}, 1)}
	r.all(now)
	return r
}

// all makes everything due and follows the changes from there.
func (r *Reconciler) all(now time.Time) {
	tx := r.state.Latest()
	r.watch = r.state.Watch(tx.Revision())
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, task := range r.tasks {
		for _, id := range task.All(tx) {
			r.queue.Add(taskKey{n, id}, now)
		}
	}
}

// Pump takes in what changed since the last call, without waiting.
func (r *Reconciler) Pump(now time.Time) error {
	for {
		events, err := r.watch.Poll()
		if errors.Is(err, state.ErrCompacted) {
			r.all(now)
			return nil
		}
		if err != nil || len(events) == 0 {
			return err
		}
		r.take(events, now)
	}
}

func (r *Reconciler) take(events []state.Event, now time.Time) {
	r.mu.Lock()
	for _, e := range events {
		for n, task := range r.tasks {
			for _, id := range task.Touched(e) {
				key := taskKey{n, id}
				r.queue.Add(key, now)
				if e.Cause.RequestID != "" {
					r.requests[key] = e.Cause.RequestID
				}
			}
		}
	}
	r.mu.Unlock()
	r.poke()
}

func (r *Reconciler) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Due is when the next step is due; false if nothing waits.
func (r *Reconciler) Due() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queue.Next()
}

// Do runs one due step; false if none is due.
func (r *Reconciler) Do(ctx context.Context, now func() time.Time) bool {
	r.mu.Lock()
	key, ok := r.queue.Take(now())
	request := r.requests[key]
	delete(r.requests, key)
	due, more := r.queue.Next()
	r.mu.Unlock()
	if !ok {
		return false
	}
	if more && !due.After(now()) {
		r.poke() // another worker, before this step: it may take long
	}
	task := r.tasks[key.task]
	ctx = state.WithCause(ctx, state.Cause{Via: task.Name, RequestID: request})
	next, err := step(ctx, task, key.id)
	countStep(task.Name, err)
	if err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "a reconciling step failed", "task", task.Name, "id", key.id, "err", err)
	}
	r.mu.Lock()
	r.queue.Done(key, now(), next.After, err != nil)
	if err != nil && request != "" && r.requests[key] == "" {
		r.requests[key] = request // it is tried again for the same request, unless a newer one has come
	}
	r.mu.Unlock()
	return true
}

func step(ctx context.Context, task Task, id resource.ID) (next Next, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return task.Step(ctx, id)
}

// Run drives the tasks with so many goroutines until ctx ends.
func (r *Reconciler) Run(ctx context.Context, workers int) {
	var wg sync.WaitGroup
	wg.Go(func() { r.follow(ctx) })
	for range workers {
		wg.Go(func() { r.work(ctx) })
	}
	wg.Wait()
}

func (r *Reconciler) follow(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := r.watch.Next(ctx)
		switch {
		case errors.Is(err, state.ErrCompacted):
			r.all(time.Now())
			r.poke()
		case err == nil:
			r.take(events, time.Now())
		}
	}
}

func (r *Reconciler) work(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if r.Do(ctx, time.Now) {
			r.poke() // somebody may wait who could take the next one
			continue
		}
		wait := time.Minute
		if at, ok := r.Due(); ok {
			wait = time.Until(at)
		}
		timer.Reset(wait)
		select {
		case <-r.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}
