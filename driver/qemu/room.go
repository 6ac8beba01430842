package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// room is how many GiB guests' disks may have on the file system where they are. What the host offers does not shrink as they come.
func room(dir string) (gib int, err error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return 0, fmt.Errorf("ask for the host's disk: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "guests", "*", "disk-*"))
	if err != nil {
		return 0, fmt.Errorf("add up the guests' disks: %w", err)
	}
	free := int64(disk.Bavail) * disk.Bsize
	for _, path := range files {
		var info unix.Stat_t
		if err := unix.Lstat(path, &info); err == nil { // else it has just gone
			free += info.Blocks * 512
		}
	}
	return int(free >> 30), nil
}

// A gauge reads what may hang, as a network's file system does. Whoever asks gets what was last read rather than to wait: a host lives on
// without its storage, and tells its controller so.
type gauge struct {
	patience time.Duration

	mu      sync.Mutex
	last    int           // guarded by mu
	reading chan struct{} // closed when the reading that is under way is over; nil while none is; guarded by mu
	err     error         // of the last; guarded by mu
}

var errHangs = errors.New("it does not answer")

// read is the newest reading, and why it is not of now.
func (g *gauge) read(ctx context.Context, f func() (int, error)) (int, error) {
	g.mu.Lock()
	over := g.reading
	if over == nil {
		over = make(chan struct{})
		g.reading = over
		go func() { // as long as it takes; there is never another beside it
			n, err := f()
			g.mu.Lock()
			defer g.mu.Unlock()
			if err == nil {
				g.last = n
			}
			g.err, g.reading = err, nil
			close(over)
		}()
	}
	g.mu.Unlock()
	timer := time.NewTimer(g.patience)
	defer timer.Stop()
	hangs := false
	select {
	case <-over:
	case <-timer.C:
		hangs = true
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if hangs && g.reading == over {
		return g.last, errHangs
	}
	return g.last, g.err
}

// Shared measures, by the function that is given, how much of the storage is free that is shared. While a measuring hangs no other is begun.
func (d *Driver) Shared(ctx context.Context, measure func(dir string) (percent int, err error)) (int, error) {
	if d.storage == nil {
		return 100, ctx.Err()
	}
	return d.level.read(ctx, func() (int, error) { return measure(d.storage.dir) })
}

// hangsAfter is when storage that is shared is said to hang: a busy one takes seconds.
const hangsAfter = 10 * time.Second

// Away says why the storage that is shared cannot be reached, as far as is known now; "" if it can, or there is none. While a question hangs
// no other is asked.
func (d *Driver) Away(ctx context.Context) (string, error) {
	if d.storage == nil {
		return "", ctx.Err()
	}
	return d.pulse.away(ctx, d.storage.answers)
}

func (g *gauge) away(ctx context.Context, answers func() error) (string, error) {
	_, err := g.read(ctx, func() (int, error) { return 0, answers() })
	if err == nil || ctx.Err() != nil {
		return "", ctx.Err()
	}
	return err.Error(), nil
}

// answers asks the file server, not only what the kernel remembers of it: of a whole file system nothing is remembered.
func (s *storage) answers() error {
	root, err := s.root()
	if err != nil {
		return err
	}
	defer root.Close()
	var disk unix.Statfs_t
	if err := unix.Statfs(s.dir, &disk); err != nil {
		return fmt.Errorf("ask for the storage's room: %w", err)
	}
	return nil
}
