package fileblob

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.keep = 0
	return s
}

func TestBlobs(t *testing.T) {
	imagetest.TestBlobs(t, func(t *testing.T) func() image.Blobs {
		dir := t.TempDir()
		return func() image.Blobs { return open(t, dir) }
	})
}

var id = resource.MustID("01900000-0000-7000-8000-000000000001")

func TestNoRoom(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.Create(t.Context(), id, 1<<60); !fault.Is(err, fault.Exhausted) {
		t.Errorf("room for an exbibyte: %v", err)
	}
	free, err := s.free()
	if err != nil {
		t.Fatal(err)
	}
	s.keep = free + 1<<30
	if _, err := s.Create(t.Context(), id, -1); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a full disk takes a blob of unknown size: %v", err)
	}
	empty(t, s.dir)
}

// small gives a file system of so many bytes.
func small(t *testing.T, bytes int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a small disk takes root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Skipf("no small disk can be made here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestManyWritersLeaveRoom: each fills what is free for it, and the disk is never as full as it must not be.
func TestManyWritersLeaveRoom(t *testing.T) {
	const disk, keep = 256 << 20, 64 << 20
	s := open(t, small(t, disk))
	s.keep = keep
	var writers sync.WaitGroup
	var stored atomic.Int64
	for range 6 {
		w, err := s.Create(t.Context(), resource.NewID(time.Now(), nil), -1)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		writers.Go(func() {
			buf := make([]byte, 1<<20)
			for {
				n, err := w.Write(buf)
				stored.Add(int64(n))
				if err != nil {
					if !fault.Is(err, fault.Exhausted) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	writers.Wait()
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		t.Fatal(err)
	}
	if left := int64(st.Bavail) * st.Bsize; left < keep {
		t.Errorf("%d MiB are left free, not %d", left>>20, keep>>20)
	}
	if n := stored.Load(); n < (disk-keep)*9/10-stride {
		t.Errorf("only %d MiB could be stored", n>>20)
	}
}

// TestAClaimTakesNoRoom: who says that much will come has not brought it.
func TestAClaimTakesNoRoom(t *testing.T) {
	s := open(t, small(t, 128<<20))
	for range 3 {
		w := create(t, s, 60<<20)
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		defer w.Close()
	}
	w := create(t, s, -1)
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(w.path)
	if err != nil {
		t.Fatal(err)
	}
	if blocks := info.Sys().(*syscall.Stat_t).Blocks * 512; blocks > 1<<20 {
		t.Errorf("a blob of 1 MiB takes %d bytes of the disk", blocks)
	}
}

func create(t *testing.T, s *Store, expect int64) *writer {
	t.Helper()
	w, err := s.Create(t.Context(), resource.NewID(time.Now(), nil), expect)
	if err != nil {
		t.Fatal(err)
	}
	return w.(*writer)
}

// TestPromisedRoomIsCounted is for file systems on which no room can be taken beforehand.
func TestPromisedRoomIsCounted(t *testing.T) {
	s := open(t, t.TempDir())
	before, err := s.free()
	if err != nil {
		t.Fatal(err)
	}
	w := create(t, s, -1)
	w.promise(1 << 30)
	if s.unbacked != 1<<30 {
		t.Errorf("%d bytes are promised", s.unbacked)
	}
	if after, err := s.free(); err != nil || after > before-1<<29 {
		t.Errorf("free were %d, are %d, %v", before, after, err)
	}
	if err := w.Close(); err != nil || s.unbacked != 0 {
		t.Errorf("%d bytes are promised to nobody, %v", s.unbacked, err)
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestNamedLeftoversGo(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, id.String()+"-123"+pending), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	empty(t, dir)
}

// TestKilled writes in a process that is killed in the middle: nothing is left, without any sweep.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("FILEBLOB_DIR"); dir != "" {
		w, err := open(t, dir).Create(t.Context(), id, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 1<<19)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "reached"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		t.Fatal(self.Kill())
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), "FILEBLOB_DIR="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("the process was not killed")
	}
	if err := os.Remove(filepath.Join(dir, "reached")); err != nil {
		t.Fatalf("the process did not come so far: %v\n%s", err, out)
	}
	empty(t, dir)
}
