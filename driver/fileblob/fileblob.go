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
	"sync"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// Store is a directory of blobs.
type Store struct {
	dir  string
	keep int64 // bytes of the disk that blobs leave free

	// Held from looking at the free space to taking some of it, so that what is free for one writer is
	// not free for another.
	mu       sync.Mutex
	unbacked int64 // bytes that writers may still write though no block of the disk is theirs yet; guarded by mu
}

var _ image.Blobs = (*Store)(nil)

// keepFree is what of a disk is left for everything else on it, the cloud's state above all: a twentieth,
// within bounds.
func keepFree(disk int64) int64 { return min(max(disk/20, 256<<20), 10<<30) }

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
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("ask for the size of %s: %w", dir, err)
	}
	return &Store{dir: dir, keep: keepFree(int64(st.Blocks) * st.Bsize)}, nil
}

func (s *Store) path(id resource.ID) string { return filepath.Join(s.dir, id.String()+suffix) }

// Create begins a blob. A size that cannot be had is refused at once, but room is only taken as
// bytes come: a claim costs nothing, and must not keep others out.
func (s *Store) Create(_ context.Context, id resource.ID, expect int64) (image.Writer, error) {
	s.mu.Lock()
	free, err := s.free()
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if free < max(expect, 0) {
		return nil, full()
	}
	w := &writer{store: s, path: s.path(id), expect: expect}
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
	return w, nil
}

// free is how many bytes blobs may yet take. The caller holds mu.
func (s *Store) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", s.dir, err)
	}
	return int64(st.Bavail)*st.Bsize - s.keep - s.unbacked, nil
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
	store    *Store
	path     string
	named    string // its temporary name where it had to have one, until it is committed
	expect   int64  // how many bytes are to come; -1 if nobody knows
	room     int64  // how many may be written before the store is asked for more
	unbacked int64  // of the store's, ours
	begun    int64  // bytes written
	sent     int64  // bytes that the kernel was told to write back
}

const (
	// writeback is how much is written before the kernel is told to begin with the disk: so
	// that Commit has little left to wait for, and dirty pages do not pile up.
	writeback = 8 << 20
	// stride is how much room is taken at once.
	stride = 16 << 20
)

// extend takes room on the disk for bytes up to need, and some more.
func (w *writer) extend(need int64) error {
	to := max(w.room+stride, need)
	if w.expect >= need {
		to = min(to, w.expect)
	}
	s := w.store
	s.mu.Lock()
	defer s.mu.Unlock()
	free, err := s.free()
	if err != nil {
		return err
	}
	if free < need-w.room {
		return full()
	}
	to = min(to, w.room+free)
	err = unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_KEEP_SIZE, w.room, to-w.room)
	switch {
	case err == nil:
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
		// The file system gives blocks out when it likes: until then they are only promised.
		w.promise(to)
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EDQUOT):
		return full()
	default:
		return fmt.Errorf("take room up to byte %d: %w", to, err)
	}
	w.room = to
	return nil
}

// promise counts what of the bytes up to an offset has no block on the disk yet. The caller holds
// the store's mu.
func (w *writer) promise(to int64) {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.Fd()), &st); err == nil {
		to -= st.Blocks * 512
	}
	to = max(to, 0)
	w.store.unbacked += to - w.unbacked
	w.unbacked = to
}

// Write appends.
func (w *writer) Write(b []byte) (int, error) {
	if need := w.begun + int64(len(b)); need > w.room {
		if err := w.extend(need); err != nil {
			return 0, err
		}
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
	if w.room > w.begun { // what was taken and not needed
		if err := w.File.Truncate(w.begun); err != nil {
			return fmt.Errorf("give back the room that %s does not need: %w", w.path, err)
		}
	}
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
	w.store.mu.Lock()
	w.store.unbacked -= w.unbacked
	w.unbacked = 0
	w.store.mu.Unlock()
	if w.named != "" {
		err = errors.Join(err, os.Remove(w.named))
	}
	return err
}
