package agent

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// Images is the host's cache of image files, each verified once when it arrives and
// read-only from then on.
type Images struct {
	Dir string
	// Get reads an image from a controller. A fault-like refusal (the image is gone) is an *ImageError.
	Get func(ctx context.Context, id resource.ID) (io.ReadCloser, error)

	mu       sync.Mutex
	fetching map[resource.ID]*fetch // guarded by mu
}

type fetch struct {
	done chan struct{}
	err  error
}

// An ImageError says, in words for the owner, that an image cannot be had at all.
type ImageError struct{ Message string }

func (e *ImageError) Error() string { return e.Message }

func (c *Images) path(ref compute.ImageRef) string {
	return filepath.Join(c.Dir, ref.ID.String()+"."+ref.SHA512[:min(16, len(ref.SHA512))])
}

// Fetch answers the path of an image, which it brings here first if need be. Calls for the
// same image share one transfer.
func (c *Images) Fetch(ctx context.Context, ref compute.ImageRef) (string, error) {
	path := c.path(ref)
	if info, err := os.Stat(path); err == nil && info.Size() == ref.Bytes {
		now := time.Now()
		os.Chtimes(path, now, now) // best effort: only Sweep reads it
		return path, nil
	}
	c.mu.Lock()
	f := c.fetching[ref.ID]
	if f == nil {
		f = &fetch{done: make(chan struct{})}
		if c.fetching == nil {
			c.fetching = map[resource.ID]*fetch{}
		}
		c.fetching[ref.ID] = f
		c.mu.Unlock()
		f.err = c.fetch(ctx, ref, path)
		c.mu.Lock()
		delete(c.fetching, ref.ID)
		c.mu.Unlock()
		close(f.done)
		return path, f.err
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return path, f.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (c *Images) fetch(ctx context.Context, ref compute.ImageRef, path string) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	in, err := c.Get(ctx, ref.ID)
	if err != nil {
		return fmt.Errorf("get image %s: %w", ref.ID, err)
	}
	defer in.Close()
	temp, err := os.CreateTemp(c.Dir, "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	sum := sha512.New()
	n, err := io.Copy(io.MultiWriter(temp, sum), io.LimitReader(in, ref.Bytes+1))
	if err != nil {
		return fmt.Errorf("copy image %s: %w", ref.ID, err)
	}
	if n != ref.Bytes || hex.EncodeToString(sum.Sum(nil)) != ref.SHA512 {
		return fmt.Errorf("image %s arrived damaged: %d bytes of %d", ref.ID, n, ref.Bytes)
	}
	if err := temp.Chmod(0o444); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// Sweep removes images that are not to be kept and were not used for so long.
func (c *Images) Sweep(keep map[resource.ID]bool, unused time.Duration) error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, _, _ := strings.Cut(e.Name(), ".")
		id, err := resource.ParseID(text)
		info, err2 := e.Info()
		if err2 != nil || time.Since(info.ModTime()) < unused || err == nil && keep[id] {
			continue
		}
		if err := os.Remove(filepath.Join(c.Dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
