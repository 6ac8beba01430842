package fileblob

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
	s.keep = 0
	w, err := s.Create(t.Context(), id, -1)
	if err != nil {
		t.Fatal(err)
	}
	w.(*writer).left = 10
	if _, err := w.Write(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 8)); !fault.Is(err, fault.Exhausted) {
		t.Errorf("bytes past the room there is: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	empty(t, s.dir)
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
