package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// A Word is a controller's about what is this host's. After the machine's boot guests are started only when it was given: the machine may have been off for
// long, and what was lost with it made anew elsewhere.
type Word struct {
	// After is for how long since the boot they wait for it. Then they are started without, for a host is to work without a controller. Negative: for ever.
	After time.Duration
	// Clock is one that nobody sets and that never stands still; BootClock when nil.
	Clock func() time.Time

	file string // outlives the agent, not the machine's boot; "" for none
	boot string // which run of the machine this is

	mu    sync.Mutex
	given bool      // since the machine's boot; guarded by mu
	kept  bool      // that it was given is in the file; guarded by mu
	since time.Time // an agent waits for it; guarded by mu
	told  bool      // that nothing waits any more; guarded by mu
}

// keptWord is what a machine's later agents are to know of it.
type keptWord struct {
	Boot  string
	Since time.Time
	Given bool
}

// OpenWord takes up whether an earlier agent was given the word since the machine's boot, or since when it waits. Where boots cannot be told apart, it
// counts as given.
func OpenWord(file string, after time.Duration) (*Word, error) {
	w := &Word{After: after, file: file, boot: boot()}
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var was keptWord
	if err != nil || json.Unmarshal(text, &was) != nil || was.Boot != w.boot { // what is damaged is of no boot
		was = keptWord{}
	}
	w.given, w.kept, w.since = was.Given, was.Given, was.Since
	if w.boot == "" {
		slog.Warn("this machine does not tell its boots apart: after one, guests start that may have been made anew elsewhere meanwhile")
		w.given, w.kept = true, true
	}
	if w.given || !w.since.IsZero() {
		return w, nil
	}
	w.since = w.now()
	if err := w.write(); err != nil { // a full disk keeps no agent from its work
		slog.Warn("guests wait as long again for a controller's word if this agent starts anew", "err", err)
	}
	return w, nil
}

func (w *Word) now() time.Time {
	if w.Clock == nil {
		return BootClock()
	}
	return w.Clock()
}

// write is not synced: a machine that boots anew waits again. The caller holds mu, or is the only one.
func (w *Word) write() error {
	text, err := json.Marshal(keptWord{w.boot, w.since, w.given})
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.file+".new", text, 0o600); err != nil {
		return fmt.Errorf("keep whether a controller has told everything since the machine's boot: %w", err)
	}
	return os.Rename(w.file+".new", w.file)
}

// give takes in that a controller has told everything. Whoever has taken up what was wanted before waits all the same: see Agent.Step.
func (w *Word) give() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.given = true
}

// keep has the machine's next agents know that it was given. With an error the next one waits as after the boot, and this one tries again.
func (w *Word) keep() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.given || w.kept || w.file == "" {
		return nil
	}
	err := w.write()
	w.kept = err == nil
	return err
}

// awaited reports whether guests wait for it.
func (w *Word) awaited() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.given || w.After == 0 {
		return false
	}
	if w.since.IsZero() {
		w.since = w.now()
	}
	if w.After < 0 || w.now().Sub(w.since) < w.After {
		return true
	}
	if !w.told {
		w.told = true
		slog.Warn("no controller could be heard since the machine's boot: guests are started as this host knew them before", "after", w.After)
	}
	return false
}

// unheard marks a step with what was wanted before the word was given.
type unheard struct{}

// unasked decides about a guest that is to run here. mine: it may.
func (g *Guests) unasked(ctx context.Context, want *compute.Guest) (mine bool, report any, again time.Duration, err error) {
	if want.Power != compute.On && want.Power != compute.Paused || ctx.Value(unheard{}) == nil {
		return true, nil, 0, nil
	}
	if runs, err := g.runs(ctx, want.ID); err != nil || runs {
		return err == nil, nil, 0, err
	}
	g.waiting.Do(func() {
		slog.InfoContext(ctx, "the machine has booted: guests wait until a controller has told which of them are still this host's")
	})
	seen, err := g.seen(ctx, want.ID)
	if err != nil {
		return false, nil, 0, err
	}
	seen.Busy, seen.Trouble = true, "" // it waits
	return false, compute.Seen{Observation: seen, Wish: want.Wish}, guardEvery, nil
}
