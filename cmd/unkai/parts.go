package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// parts are what goes on in a process until it is told to end. Some answer others: they end first. For as long as a request is under way
// goes on what it counts on, above all that the state is kept: else a read would wait for changes that nobody takes in any more, be answered
// from what was, and hold up whoever comes to the process that goes on in this one's place.
type parts struct {
	told    context.Context // to end
	stop    context.CancelCauseFunc
	working context.Context // ends when those have ended that answer
	over    context.CancelFunc

	answering, work sync.WaitGroup

	mu     sync.Mutex
	ending time.Time // when they were told to; zero before; guarded by mu
	ended  []part    // guarded by mu
}

// A part is one that has ended.
type part struct {
	name  string
	after time.Duration // the process was told to
}

// tellFrom is what a part has to take to be worth a word.
const tellFrom = 50 * time.Millisecond

// newParts are none yet. stop ends told, with what a part fails with.
func newParts(told context.Context, stop context.CancelCauseFunc) *parts {
	p := &parts{told: told, stop: stop}
	p.working, p.over = context.WithCancel(context.WithoutCancel(told))
	context.AfterFunc(told, p.note)
	return p
}

// answer begins a part that answers others until the process is told to end.
func (p *parts) answer(name string, run func(context.Context) error) {
	p.begin(&p.answering, p.told, name, run)
}

// do begins any other part; it ends when those have that answer.
func (p *parts) do(name string, run func(context.Context) error) {
	p.begin(&p.work, p.working, name, run)
}

func (p *parts) begin(wg *sync.WaitGroup, ctx context.Context, name string, run func(context.Context) error) {
	wg.Go(func() {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			p.stop(fmt.Errorf("%s: %w", name, err))
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.ending.IsZero() {
			p.ended = append(p.ended, part{name, time.Since(p.ending)})
		}
	})
}

// note takes note that they were told to end.
func (p *parts) note() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending.IsZero() {
		p.ending = time.Now()
	}
}

// end ends them all, in their order.
func (p *parts) end() {
	p.note()
	p.stop(nil)
	p.answering.Wait()
	p.over()
	p.work.Wait()
}

// took is how long it is since they were told to end, and in words which of them took their time.
func (p *parts) took() (time.Duration, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var slow []string
	last := time.Duration(0) // one that ended with another was not waited for
	slices.SortStableFunc(p.ended, func(a, b part) int { return int(a.after - b.after) })
	for _, e := range p.ended {
		if e.after-last >= tellFrom {
			slow, last = append(slow, fmt.Sprintf("%s %v", e.name, e.after.Round(time.Millisecond))), e.after
		}
	}
	return time.Since(p.ending).Round(time.Millisecond), strings.Join(slow, ", ")
}
