package agent

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// Images is the host's cache of image files, each verified once when it arrives and
// read-only from then on. Nobody but our own user may read it: an image is its owner's. Transfers
// go on by themselves, a few at a time, so that whoever needs an image can do something else meanwhile.
type Images struct {
	Dir string
	// Get reads an image from a controller. A fault-like refusal (the image is gone) is an *ImageError.
	Get func(ctx context.Context, id resource.ID) (io.ReadCloser, error)
	// Arrived is called when an image that guests wait for is here, or cannot be had now.
	Arrived func(guests []resource.ID)

	mu      sync.Mutex
	fetches map[string]*fetch // by path; guarded by mu
	queue   []*fetch          // not begun; guarded by mu
	wake    chan struct{}     // guarded by mu; nil until it is first needed
}

// A fetch is an image on its way, or one that could not be had the last time. The cache's mu guards it.
type fetch struct {
	ref      compute.ImageRef
	path     string
	waiting  map[resource.ID]bool // the guests that need it
	failures int
	err      error     // of the last attempt that failed
	next     time.Time // not to be tried before
	busy     bool      // queued or under way
}

// An ImageError says, in words for the owner, that an image cannot be had at all.
type ImageError struct{ Message string }

func (e *ImageError) Error() string { return e.Message }

const (
	transfers = 4           // at a time; more would only share the same wire
	stalled   = time.Minute // without a byte, a transfer is given up
)

func (c *Images) path(ref compute.ImageRef) string {
	return filepath.Join(c.Dir, ref.ID.String()+"."+ref.SHA512[:min(16, len(ref.SHA512))])
}

// Find answers the paths of the images that a guest needs; nil while one is on its way here, which
// Find sees to, and of whose arrival Arrived tells. The error is an *ImageError: anything else is tried
// again and again.
func (c *Images) Find(guest resource.ID, refs ...compute.ImageRef) ([]string, error) {
	paths := make([]string, len(refs))
	missing := map[string]compute.ImageRef{}
	now := time.Now()
	c.mu.Lock() // so that Sweep sees it used, or we see it gone
	defer c.mu.Unlock()
	for i, ref := range refs {
		paths[i] = c.path(ref)
		if info, err := os.Stat(paths[i]); err != nil || info.Size() != ref.Bytes {
			missing[paths[i]] = ref
			continue
		}
		os.Chtimes(paths[i], now, now) // best effort: only Sweep reads it
	}
	for path, f := range c.fetches {
		if _, needed := missing[path]; !needed {
			c.leave(f, guest)
		}
	}
	var never error
	for path, ref := range missing {
		f := c.fetches[path]
		if f == nil {
			if c.fetches == nil {
				c.fetches = map[string]*fetch{}
			}
			f = &fetch{ref: ref, path: path, waiting: map[resource.ID]bool{}}
			c.fetches[path] = f
		}
		f.waiting[guest] = true
		if !f.busy && !now.Before(f.next) {
			f.busy = true
			c.queue = append(c.queue, f)
			c.poke()
		}
		if refused := (*ImageError)(nil); errors.As(f.err, &refused) {
			never = refused
		}
	}
	countFind(len(paths)-len(missing), len(missing))
	if len(missing) > 0 {
		return nil, never
	}
	return paths, nil
}

// Forget says that a guest needs no image any more. What only it waited for is not begun,
// and given up when it has begun.
func (c *Images) Forget(guest resource.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.fetches {
		c.leave(f, guest)
	}
}

// leave takes a guest from those that wait. The caller holds mu.
func (c *Images) leave(f *fetch, guest resource.ID) {
	delete(f.waiting, guest)
	if len(f.waiting) == 0 && !f.busy {
		delete(c.fetches, f.path)
	}
}

// poke wakes a transfer. The caller holds mu.
func (c *Images) poke() {
	if c.wake == nil {
		c.wake = make(chan struct{}, transfers)
	}
	select {
	case c.wake <- struct{}{}:
	default: // all of them are about to look
	}
}

// Run brings images here until ctx ends.
func (c *Images) Run(ctx context.Context) {
	c.mu.Lock()
	if c.wake == nil {
		c.wake = make(chan struct{}, transfers)
	}
	wake := c.wake
	c.mu.Unlock()
	var wg sync.WaitGroup
	for range transfers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if f := c.take(); f != nil {
					c.finish(ctx, f, c.fetch(ctx, f))
					continue
				}
				select {
				case <-wake:
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
}

// take gives the fetch that is next and still waited for; nil if there is none.
func (c *Images) take() *fetch {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		f := c.queue[0]
		c.queue = c.queue[1:]
		if len(f.waiting) > 0 {
			return f
		}
		delete(c.fetches, f.path)
	}
	return nil
}

func (c *Images) finish(ctx context.Context, f *fetch, err error) {
	countFetch(f.ref.Bytes, err)
	c.mu.Lock()
	f.busy = false
	guests := slices.SortedFunc(maps.Keys(f.waiting), func(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) })
	if err == nil || len(guests) == 0 {
		delete(c.fetches, f.path)
	} else {
		f.failures++
		f.err, f.next = err, time.Now().Add(reconcile.Backoff(f.failures))
		slog.WarnContext(ctx, "could not bring an image here", "image", f.ref.ID, "failures", f.failures, "err", err)
	}
	c.mu.Unlock()
	if ctx.Err() == nil && len(guests) > 0 && c.Arrived != nil {
		c.Arrived(guests)
	}
}

var errUnwanted = errors.New("nobody waits for the image any more")

func (c *Images) fetch(ctx context.Context, f *fetch) error {
	ref := f.ref
	if err := c.makeDir(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(stalled, func() { cancel(fmt.Errorf("not a byte came for %v", stalled)) })
	defer silence.Stop()
	in, err := c.Get(ctx, ref.ID)
	if err != nil {
		return fmt.Errorf("get image %s: %w", ref.ID, because(ctx, err))
	}
	defer in.Close()
	temp, err := os.CreateTemp(c.Dir, "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	sum := sha512.New()
	progress := writerFunc(func(b []byte) (int, error) {
		silence.Reset(stalled)
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(f.waiting) == 0 {
			return 0, errUnwanted
		}
		return len(b), nil
	})
	n, err := io.CopyBuffer(io.MultiWriter(progress, temp, sum), io.LimitReader(in, ref.Bytes+1), make([]byte, 1<<20))
	if err != nil {
		return fmt.Errorf("copy image %s: %w", ref.ID, because(ctx, err))
	}
	silence.Stop()
	if n != ref.Bytes || hex.EncodeToString(sum.Sum(nil)) != ref.SHA512 {
		return fmt.Errorf("image %s arrived damaged: %d bytes of %d", ref.ID, n, ref.Bytes)
	}
	if err := temp.Chmod(0o400); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), f.path)
}

// because prefers the reason for which a transfer was cancelled to how that looked from within.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		return cause
	}
	return err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// makeDir makes the cache's directory, and closes one that an earlier release left open to all.
func (c *Images) makeDir() error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(c.Dir, 0o700)
}

// Open makes the cache ready: it removes what an earlier process did not finish.
func (c *Images) Open() error {
	if err := c.makeDir(); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(c.Dir, "new-*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// Sweep removes images that are not to be kept and were not used for so long.
func (c *Images) Sweep(keep map[resource.ID]bool, unused time.Duration) error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, _, _ := strings.Cut(e.Name(), ".")
		if id, err := resource.ParseID(text); err == nil && keep[id] {
			continue
		}
		if err := c.letGo(e.Name(), unused); err != nil {
			return err
		}
	}
	return nil
}

// letGo removes a file that was not used for so long: by now, for a guest that came after keep was put together may be made
// over it this moment.
func (c *Images) letGo(name string, unused time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := filepath.Join(c.Dir, name)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(info.ModTime()) < unused {
		return nil
	}
	if err != nil {
		return err
	}
	slog.Info("letting go of a cached image that no guest here uses", "file", name)
	return os.Remove(path)
}
