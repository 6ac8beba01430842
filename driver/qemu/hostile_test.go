package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

// A trap is a guest's directory on shared storage, in which another host plants what it likes.
type trap struct {
	*testing.T
	g       *guest
	inside  string // the guest's directory
	outside string // a directory that is none of the folder's
	secret  string // a file in it
}

func newTrap(t *testing.T) *trap {
	t.Helper()
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	tr := &trap{T: t, g: claimant(t, dir, id), inside: filepath.Join(dir, guestOn(id)), outside: t.TempDir()}
	if got := tr.g.claims(placed(id, 0, 1, false)); got != "mine" {
		t.Fatal(got)
	}
	tr.secret = filepath.Join(tr.outside, "secret")
	vars := filepath.Join(tr.outside, "template")
	tr.must(os.WriteFile(tr.secret, []byte("secret"), 0o600), os.WriteFile(vars, []byte("template"), 0o600))
	tr.g.driver.firmware = Firmware{Vars: vars}
	return tr
}

func (t *trap) must(errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// link plants one that leads to the secret.
func (t *trap) link(name string) {
	t.Helper()
	t.must(os.Symlink(t.secret, filepath.Join(t.inside, name)))
}

// kept makes sure that nothing outside of the folder has changed.
func (t *trap) kept() {
	t.Helper()
	if data, err := os.ReadFile(t.secret); err != nil || string(data) != "secret" {
		t.Errorf("outside of the folder there is %q now, %v", data, err)
	}
	if found, err := os.ReadDir(t.outside); err != nil || len(found) != 2 {
		t.Errorf("outside of the folder there is %v now, %v", found, err)
	}
}

// holds makes sure that a plain file of the guest's has this in it.
func (t *trap) holds(name, content string) {
	t.Helper()
	path := filepath.Join(t.inside, name)
	info, err := os.Lstat(path)
	t.must(err)
	if data, err := os.ReadFile(path); err != nil || !info.Mode().IsRegular() || string(data) != content {
		t.Errorf("%s is %v and holds %q, %v", name, info.Mode(), data, err)
	}
}

// A host that can write to the shared folder is not let write to, or read, another's own files by what it plants there.
func TestPlantedLinksLeadNowhere(t *testing.T) {
	for name, test := range map[string]func(*trap){
		"variables are made through a link": func(t *trap) {
			t.link(firmwareFile)
			t.g.makeVariables(t.Context())
		},
		"variables are drafted through a link": func(t *trap) {
			t.link(firmwareFile + ".new")
			t.must(t.g.makeVariables(t.Context()))
			t.holds(firmwareFile, "template")
		},
		"variables are sent through a link": func(t *trap) {
			t.link(firmwareFile)
			t.g.rec.Way = &way{Move: 1}
			if l, bodies, err := t.g.pack(compute.Guest{UEFI: true}); err == nil {
				t.Errorf("it sends %+v: %q", l.Files, bodies)
			}
		},
		"variables come through a link": func(t *trap) {
			t.link(firmwareFile)
			t.must(t.arrives(compute.Guest{UEFI: true}, false))
			t.holds(firmwareFile, "planted")
		},
		"a disk is drafted through a link": func(t *trap) {
			t.link("disk-root.raw.0-1.new")
			t.must(t.g.makeDisk(t.Context(), &device{Kind: "disk", Name: "root", Format: "raw", Bytes: 512}))
			t.holds("disk-root.raw", string(make([]byte, 512)))
		},
		"a disk is a link": func(t *trap) {
			t.link("disk-root.raw")
			if err := t.g.makeDisk(t.Context(), &device{Kind: "disk", Name: "root", Format: "raw", Bytes: 512}); err == nil {
				t.Error("it is taken for a disk")
			}
		},
		"the claim is drafted through a link": func(t *trap) {
			t.link(claimFile + ".new")
			t.must(t.g.noteDisks(t.Context(), 3))
		},
		"the claim is drafted in a pipe": func(t *trap) {
			t.must(unix.Mkfifo(filepath.Join(t.inside, claimFile+".new"), 0o600))
			t.must(t.g.noteDisks(t.Context(), 3))
		},
		"the claim is drafted in a folder": func(t *trap) {
			t.must(os.MkdirAll(filepath.Join(t.inside, claimFile+".new", "more"), 0o700))
			t.must(t.g.noteDisks(t.Context(), 3))
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTrap(t)
			test(tr)
			tr.kept()
		})
	}
}

// arrives has the guest come to this host with firmware variables, off.
func (t *trap) arrives(want compute.Guest, kept bool) (err error) {
	t.Helper()
	g := t.g
	want.ID, want.Epoch = g.id, 1
	l := &luggage{}
	if kept {
		mark, err := g.prove(t.Context())
		t.must(err)
		l.Proof = mark
	}
	g.rec.Way, g.arriving = &way{Move: 1, Incoming: true, Kept: kept}, &arrival{want: want}
	const enough = "room made" // there is no hypervisor to go on with
	g.driver.step = func(name string) {
		if name == enough {
			panic(name)
		}
	}
	defer func() {
		if was := recover(); was != nil && was != enough {
			panic(was)
		}
	}()
	_, err = g.makeRoom(t.Context(), l, map[string][]byte{firmwareFile: []byte("planted")})
	return err
}

// Firmware variables are taken from another host for a guest that has some, and has not left them with its disks.
func TestVariablesThatNobodyBrings(t *testing.T) {
	for name, test := range map[string]struct {
		want compute.Guest
		kept bool
	}{
		"not UEFI": {compute.Guest{}, false},
		"kept":     {compute.Guest{UEFI: true}, true},
		"neither":  {compute.Guest{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTrap(t)
			tr.link(firmwareFile)
			if err := tr.arrives(test.want, test.kept); err == nil {
				t.Error("they are let in")
			}
			tr.kept()
		})
	}
	tr := newTrap(t)
	tr.must(os.WriteFile(filepath.Join(tr.inside, firmwareFile), []byte("old"), 0o600))
	tr.g.rec.Way = &way{Move: 1}
	if l, _, err := tr.g.pack(compute.Guest{}); err != nil || len(l.Files) != 0 {
		t.Errorf("of a guest without firmware variables it sends %+v, %v", l, err)
	}
	if l, bodies, err := tr.g.pack(compute.Guest{UEFI: true}); err != nil || len(l.Files) != 1 || string(bodies[0]) != "old" {
		t.Errorf("of a guest with firmware variables it sends %+v, %q, %v", l, bodies, err)
	}
}

// The guest's directory is one, and its own.
func TestPlantedFolders(t *testing.T) {
	for name, plant := range map[string]func(t *trap) error{
		"elsewhere": func(t *trap) error { return os.Symlink(t.outside, t.inside) },
		"another guest's": func(t *trap) error {
			other := filepath.Join(filepath.Dir(t.inside), "other")
			return errors.Join(os.Rename(t.inside+".away", other), os.Symlink("other", t.inside))
		},
		"a pipe": func(t *trap) error { return unix.Mkfifo(t.inside, 0o600) },
		"within another folder": func(t *trap) error {
			guests := filepath.Dir(t.inside)
			return errors.Join(os.Rename(t.inside+".away", t.inside), os.Rename(guests, guests+".away"), os.Symlink("guests.away", guests))
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTrap(t)
			tr.must(os.WriteFile(filepath.Join(tr.inside, "disk-root.raw"), nil, 0o600), os.Rename(tr.inside, tr.inside+".away"), plant(tr))
			if f, err := tr.g.openDisk("disk-root.raw", os.O_RDWR); err == nil {
				f.Close()
				t.Error("a disk in it is opened")
			}
			if err := tr.g.makeVariables(t.Context()); err == nil {
				t.Error("variables are made in it")
			}
			if err := tr.g.makeDisk(t.Context(), &device{Kind: "disk", Name: "data", Format: "raw", Bytes: 512}); err == nil {
				t.Error("a disk is made in it")
			}
			if got := tr.g.claims(placed(tr.g.id, 0, 2, true)); got == "mine" || got == "another's" {
				t.Errorf("what is claimed in it is %s", got)
			}
			tr.kept()
		})
	}
}

// What makes a file system writes to the file that was made for it, whatever has the file's name by then.
func TestFileSystemsAreMadeInTheOpenFile(t *testing.T) {
	for _, label := range []string{"data", "swap"} {
		tr := newTrap(t)
		path := filepath.Join(tr.inside, "disk-data.raw.0-1.new")
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		tr.must(err)
		defer f.Close()
		tr.must(os.Remove(path))
		tr.link(filepath.Base(path))
		tr.must(blank(t.Context(), f, 4*mib, label))
		tr.kept()
		at, magic := int64(0x438), "\x53\xef"
		if label == "swap" {
			at, magic = 4096-10, "SWAPSPACE2"
		}
		found := make([]byte, len(magic))
		if _, err := f.ReadAt(found, at); err != nil || string(found) != magic {
			t.Errorf("for %s there is %q, %v", label, found, err)
		}
	}
}
