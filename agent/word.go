package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// A Word is a controller's about what is this host's. After the machine's boot guests are started only when it was given: the machine may have been off for
// long, and what was lost with it made anew elsewhere.
type Word struct {
	// After is for how long they wait for it. Then they are started without, for a host is to work without a controller. Negative: for ever.
	After time.Duration
	// Clock is one that nobody sets and that never stands still; BootClock when nil.
	Clock func() time.Time

	file string // outlives the agent, not the machine's boot; "" for none

	mu    sync.Mutex
	given bool      // since the machine's boot; guarded by mu
	began time.Time // when it was first waited for; guarded by mu
	told  bool      // that nothing waits any more; guarded by mu
}

// OpenWord takes up whether an earlier agent was given the word since the machine's boot. Where boots cannot be told apart, it counts as given.
func OpenWord(file string, after time.Duration) (*Word, error) {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	is := boot()
	return &Word{After: after, file: file, given: is == "" || strings.TrimSpace(string(text)) == is}, nil
}

func (w *Word) now() time.Time {
	if w.Clock == nil {
		return BootClock()
	}
	return w.Clock()
}

// Give takes in that a controller has told everything, and that it is kept. An error means that the next agent may wait for it in vain.
func (w *Word) Give() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.given {
		return nil
	}
	w.given = true
	if w.file == "" {
		return nil
	}
	if err := os.WriteFile(w.file+".new", []byte(boot()+"\n"), 0o600); err != nil { // not synced: a machine that boots anew waits again
		return fmt.Errorf("keep that a controller has told everything since the machine's boot: %w", err)
	}
	return os.Rename(w.file+".new", w.file)
}

// awaited reports whether guests wait for it.
func (w *Word) awaited(ctx context.Context) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.given || w.After == 0 {
		return false
	}
	if w.began.IsZero() {
		w.began = w.now()
		without := "never"
		if w.After >= 0 {
			without = "after " + w.After.String()
		}
		slog.InfoContext(ctx, "the machine has booted: guests wait until a controller has told which of them are still this host's", "without", without)
	}
	if w.After < 0 || w.now().Sub(w.began) < w.After {
		return true
	}
	if !w.told {
		w.told = true
		slog.WarnContext(ctx, "no controller could be heard since the machine's boot: guests are started as this host knew them before", "after", w.After)
	}
	return false
}

// unasked decides about a guest that is to run here. mine: it may.
func (g *Guests) unasked(ctx context.Context, want *compute.Guest) (mine bool, report any, again time.Duration, err error) {
	if g.Word == nil || want.Power != compute.On && want.Power != compute.Paused || !g.Word.awaited(ctx) {
		return true, nil, 0, nil
	}
	if runs, err := g.runs(ctx, want.ID); err != nil || runs {
		return err == nil, nil, 0, err
	}
	seen, err := g.seen(ctx, want.ID)
	if err != nil {
		return false, nil, 0, err
	}
	seen.Busy, seen.Trouble = true, "" // it waits
	return false, compute.Seen{Observation: seen, Wish: want.Wish}, guardEvery, nil
}
