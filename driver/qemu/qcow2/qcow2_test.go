package qcow2

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// qemuImg runs the judge of what we wrote.
func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-img is not installed")
	}
	cmd := exec.Command(path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, &stderr)
	}
	return out
}

func TestQEMUReadsWhatWeWrite(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		size           int64
		backing        string // its content's format, "" for none
		longBackingDir bool
	}{
		"one sector":                 {size: 512},
		"blank":                      {size: 20 * mib},
		"over raw":                   {size: 64 * mib, backing: "raw"},
		"over qcow2":                 {size: 64*mib + 512, backing: "qcow2"},
		"several first-level tables": {size: 9 << 40, backing: "raw"},
		"the largest":                {size: maxBytes},
		"over a long name":           {size: mib, backing: "raw", longBackingDir: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			backing := ""
			if c.backing != "" {
				backingDir := dir
				if c.longBackingDir {
					backingDir = filepath.Join(dir, strings.Repeat("d", 200), strings.Repeat("e", 200))
					if err := os.MkdirAll(backingDir, 0o700); err != nil {
						t.Fatal(err)
					}
				}
				backing = filepath.Join(backingDir, "base")
				raw := filepath.Join(dir, "raw")
				if err := os.WriteFile(raw, bytes.Repeat([]byte("unkai---"), mib/8), 0o600); err != nil {
					t.Fatal(err)
				}
				qemuImg(t, "convert", "-f", "raw", "-O", c.backing, raw, backing)
			}
			path := filepath.Join(dir, "image")
			if err := Write(path, c.size, backing, c.backing); err != nil {
				t.Fatal(err)
			}

			var check struct {
				CheckErrors int `json:"check-errors"`
				Corruptions int
				Leaks       int
			}
			if err := json.Unmarshal(qemuImg(t, "check", "-f", "qcow2", "--output=json", path), &check); err != nil {
				t.Fatal(err)
			}
			if check.CheckErrors+check.Corruptions+check.Leaks != 0 {
				t.Errorf("qemu-img check: %+v", check)
			}
			var info struct {
				VirtualSize   int64  `json:"virtual-size"`
				Backing       string `json:"backing-filename"`
				BackingFormat string `json:"backing-filename-format"`
			}
			if err := json.Unmarshal(qemuImg(t, "info", "-f", "qcow2", "--output=json", path), &info); err != nil {
				t.Fatal(err)
			}
			if info.VirtualSize != c.size || info.Backing != backing || info.BackingFormat != c.backing {
				t.Errorf("qemu-img info: %+v", info)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if size, err := Size(f); err != nil || size != c.size {
				t.Errorf("Size = %d, %v; want %d", size, err, c.size)
			}
		})
	}
}

// A write through QEMU must leave an image that still checks, and the rest of
// it must read through to the backing file.
func TestQEMUWritesOnIt(t *testing.T) {
	qemuIO, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("qemu-io is not installed")
	}
	dir := t.TempDir()
	base, path := filepath.Join(dir, "base"), filepath.Join(dir, "image")
	if err := os.WriteFile(base, bytes.Repeat([]byte{0x42}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, 2<<40, base, "raw"); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(qemuIO, "-f", "qcow2",
		"-c", "write -P 0x17 65536 512", "-c", "write -P 0x18 1t 70000",
		"-c", "read -P 0x42 0 65536", "-c", "read -P 0x17 65536 512", "-c", "read -P 0x42 66048 512", "-c", "read -P 0x18 1t 70000",
		"-c", "read -P 0 1m 65536", path).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	qemuImg(t, "check", "-f", "qcow2", path) // fails if it finds anything
}

func TestImpossibleImages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	for name, write := range map[string]func() error{
		"no size":        func() error { return Write(path, 0, "", "") },
		"a negative one": func() error { return Write(path, -512, "", "") },
		"half a sector":  func() error { return Write(path, 700, "", "") },
		"too large":      func() error { return Write(path, maxBytes+512, "", "") },
		"long name":      func() error { return Write(path, 512, strings.Repeat("x", 1024), "raw") },
		"probed format":  func() error { return Write(path, 512, "/base", "") },
	} {
		if err := write(); err == nil {
			t.Errorf("%s: written", name)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left a file", name)
		}
	}
	if err := Write(path, 512, "", ""); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, 512, "", ""); !errors.Is(err, os.ErrExist) {
		t.Errorf("an image was written over: %v", err)
	}
}

func FuzzSize(f *testing.F) {
	image, err := layOut(1<<20, "/base", "raw")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image[:120])
	f.Add(image[:31])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, header []byte) {
		size, err := Size(bytes.NewReader(header))
		if err == nil && size < 0 {
			t.Errorf("size %d", size)
		}
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, io.EOF) {
			t.Errorf("error %v", err)
		}
	})
}
