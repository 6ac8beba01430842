// Package fileblob keeps blobs of bytes as files in a directory. A blob in the making has no name,
// so the kernel itself lets go of it when the process dies; it gets its name when every
// byte is on the disk.
package fileblob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// Store is a directory of blobs.
type Store struct {
	dir  string
	keep int64 // bytes of the disk that blobs leave free
}

var _ image.Blobs = (*Store)(nil)

// keepFree is what is left for everything else on the same disk: its state above all.
const keepFree = 256 << 20

const (
	suffix  = ".blob"
	pending = ".new" // only where the file system cannot make files without a name
)

// New makes the directory if need be, and removes what an earlier process could not finish.
func New(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for blobs: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"+pending))
	if err != nil {
		return nil, fmt.Errorf("list unfinished blobs: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove an unfinished blob: %w", err)
		}
	}
	return &Store{dir, keepFree}, nil
}

func (s *Store) path(id resource.ID) string { return filepath.Join(s.dir, id.String()+suffix) }

// Create begins a blob. When the size is known, the room for it is taken at once.
func (s *Store) Create(_ context.Context, id resource.ID, expect int64) (image.Writer, error) {
	free, err := s.free()
	if err != nil {
		return nil, err
	}
	if free-s.keep < max(expect, 0) {
		return nil, full()
	}
	w := &writer{store: s, path: s.path(id), left: free - s.keep}
	fd, err := unix.Open(s.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		w.File = os.NewFile(uintptr(fd), w.path)
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL):
		if w.File, err = os.CreateTemp(s.dir, id.String()+"-*"+pending); err != nil {
			return nil, fmt.Errorf("begin blob %s: %w", id, err)
		}
		w.named = w.File.Name()
	default:
		return nil, fmt.Errorf("begin blob %s: %w", id, err)
	}
	if expect > 0 {
		if err := w.reserve(expect); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

func (s *Store) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", s.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func full() error {
	return fault.Errorf(fault.Exhausted, "There is no room for the data of this image.").WithCode("image-space")
}

// Open gives a blob as the file itself.
func (s *Store) Open(_ context.Context, id resource.ID) (image.Blob, error) {
	f, err := os.Open(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Missing("Blob", id)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", id, err)
	}
	return f, nil
}

// Remove unlinks a blob; who has it open reads on.
func (s *Store) Remove(_ context.Context, id resource.ID) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob %s: %w", id, err)
	}
	return nil
}

// Present lists the files that are blobs.
func (s *Store) Present(context.Context) ([]resource.ID, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	var ids []resource.ID
	for _, e := range entries {
		name, ok := cutSuffix(e.Name())
		if !ok {
			continue
		}
		if id, err := resource.ParseID(name); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func cutSuffix(name string) (string, bool) {
	n := len(name) - len(suffix)
	return name[:max(n, 0)], n > 0 && name[n:] == suffix
}

// A writer is a file without a name.
type writer struct {
	*os.File
	store *Store
	path  string
	named string // its temporary name where it had to have one, until it is committed
	left  int64  // bytes that may still come
	begun int64  // bytes written
	sent  int64  // bytes that the kernel was told to write back
}

// writeback is how much is written before the kernel is told to begin with the disk: so
// that Commit has little left to wait for, and dirty pages do not pile up.
const writeback = 8 << 20

func (w *writer) reserve(n int64) error {
	err := unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	switch {
	case err == nil || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
		return nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EDQUOT):
		return full()
	}
	return fmt.Errorf("reserve %d bytes: %w", n, err)
}

// Write appends.
func (w *writer) Write(b []byte) (int, error) {
	if w.begun+int64(len(b)) > w.left {
		return 0, full()
	}
	n, err := w.File.Write(b)
	w.begun += int64(n)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return n, full()
	}
	if err == nil && w.begun-w.sent >= writeback {
		// Only a hint: what fails here, Commit finds out.
		_ = unix.SyncFileRange(int(w.Fd()), w.sent, w.begun-w.sent, unix.SYNC_FILE_RANGE_WRITE)
		w.sent = w.begun
	}
	return n, err
}

// Commit puts every byte on the disk, gives the file its name, and puts that on the disk, too.
func (w *writer) Commit() error {
	if err := w.File.Sync(); err != nil {
		return fmt.Errorf("write %s to disk: %w", w.path, err)
	}
	if err := w.File.Chmod(0o400); err != nil {
		return fmt.Errorf("protect %s: %w", w.path, err)
	}
	if err := w.link(); err != nil {
		return fmt.Errorf("name %s: %w", w.path, err)
	}
	dir, err := os.Open(w.store.dir)
	if err != nil {
		return fmt.Errorf("open the directory of %s: %w", w.path, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("write the name of %s to disk: %w", w.path, err)
	}
	return nil
}

func (w *writer) link() error {
	if w.named != "" {
		if err := os.Rename(w.named, w.path); err != nil {
			return err
		}
		w.named = ""
		return nil
	}
	if err := os.Remove(w.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	self := fmt.Sprintf("/proc/self/fd/%d", w.Fd())
	return unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, w.path, unix.AT_SYMLINK_FOLLOW)
}

// Close lets go of the file; without a name nothing is left of it.
func (w *writer) Close() error {
	err := w.File.Close()
	if w.named != "" {
		err = errors.Join(err, os.Remove(w.named))
	}
	return err
}
