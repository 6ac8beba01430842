package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// parts are what goes on in a process until it is told to end, each under a name. They tell what it waited for: whoever connects while a
// process is replaced waits as long.
type parts struct {
	running sync.WaitGroup
	mu      sync.Mutex
	told    time.Time // when the first was told to end; zero before; guarded by mu
	ended   []part    // after that; guarded by mu
}

// A part is one that has ended.
type part struct {
	name  string
	after time.Duration // it was told to
}

// tellFrom is what a part has to take to be worth a word.
const tellFrom = 50 * time.Millisecond

// start begins a part. stop is called with what it fails with while ctx goes on.
func (p *parts) start(ctx context.Context, stop context.CancelCauseFunc, name string, run func(context.Context) error) {
	p.running.Go(func() {
		defer context.AfterFunc(ctx, p.tell)()
		if err := run(ctx); err != nil && ctx.Err() == nil {
			stop(fmt.Errorf("%s: %w", name, err))
		}
		p.end(name)
	})
}

// tell takes note that the parts are told to end.
func (p *parts) tell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told.IsZero() {
		p.told = time.Now()
	}
}

func (p *parts) end(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.told.IsZero() {
		p.ended = append(p.ended, part{name, time.Since(p.told)})
	}
}

// wait waits until all have ended.
func (p *parts) wait() { p.running.Wait() }

// took is how long it took since they were told to, and for which of them in words, the slowest first.
func (p *parts) took() (time.Duration, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told.IsZero() {
		return 0, ""
	}
	slices.SortFunc(p.ended, func(a, b part) int { return int(b.after - a.after) })
	var slow []string
	for _, e := range p.ended {
		if e.after >= tellFrom {
			slow = append(slow, fmt.Sprintf("%s %v", e.name, e.after.Round(time.Millisecond)))
		}
	}
	return time.Since(p.told).Round(time.Millisecond), strings.Join(slow, ", ")
}
