package qemu

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"golang.org/x/sys/unix"
)

// A storage is a folder that several hosts reach, in which guests' disks lie instead of beside their records. Each guest has a
// directory there, with a claim that says whose it is (see claim). All else of a guest stays with its host: what the folder
// holds is the disks, and who may write to them.
//
// Whoever else can write to the folder is another host, and may be broken into. What is opened there never leads out of it, and
// is a plain file.
type storage struct {
	dir string
	id  string // as written in the folder

	// Names there are kept in memory for a while by who mounts it, so that one may stand for a file that another host has replaced: see renew.
	aged bool
}

const (
	identityFile = "unkai-storage.json" // in the folder
	rememberFile = "storage.json"       // in the driver's own directory
)

// An identity tells folders apart. It names its own file's number, so that a copy of the folder is not taken for it.
type identity struct {
	ID    string
	Inode uint64
}

// A remembered storage is what the driver keeps of it by itself.
type remembered struct {
	Storage string // its identity
}

// openStorage finds out which storage a folder is, and makes one of a folder that is none yet.
func openStorage(dir, own string) (*storage, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if within(dir, own) || within(own, dir) {
		return nil, fmt.Errorf("qemu: the disks' folder %s and the driver's own directory %s lie one in the other", dir, own)
	}
	if why, err := deafMount(dir); err != nil || why != "" {
		return nil, errors.Join(err, fmt.Errorf("qemu: %s cannot hold shared disks: %s", dir, why))
	}
	s := &storage{dir: dir}
	known, err := recall(own)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("qemu: open the disks' folder: %w", err)
	}
	defer root.Close()
	is, err := identify(root)
	if errors.Is(err, fs.ErrNotExist) && known.Storage == "" {
		is, err = foundStorage(root)
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: %s is not the storage that it should be, or not mounted: %w", dir, err)
	}
	switch {
	case known.Storage == "":
		known.Storage = is.ID
		data, err := json.Marshal(known)
		if err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(own, rememberFile), data); err != nil {
			return nil, err
		}
	case known.Storage != is.ID:
		return nil, fmt.Errorf("qemu: %s is storage %s, and this host's guests are on %s: is another one mounted there? If it is to be so, remove %s",
			dir, is.ID, known.Storage, filepath.Join(own, rememberFile))
	}
	s.id = is.ID
	if s.aged, err = isFUSE(root); err != nil {
		return nil, err
	}
	if err := carriesLocks(root, s.aged); err != nil {
		return nil, fmt.Errorf("qemu: %s cannot hold shared disks: %w", dir, err)
	}
	if err := root.Mkdir("guests", 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return s, nil
}

func within(inner, outer string) bool {
	rel, err := filepath.Rel(outer, inner)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func recall(own string) (known remembered, err error) {
	data, err := os.ReadFile(filepath.Join(own, rememberFile))
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &known)
	}
	if err == nil && known.Storage == "" {
		err = errors.New("it is not whole")
	}
	if err != nil {
		err = fmt.Errorf("qemu: read %s: %w", filepath.Join(own, rememberFile), err)
	}
	return known, err
}

// identify reads which storage a folder is.
func identify(root *os.Root) (is identity, err error) {
	f, err := openPlain(root, identityFile, os.O_RDONLY)
	if err != nil {
		return is, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return is, err
	}
	if err := json.Unmarshal(data, &is); err != nil || is.ID == "" {
		return is, fmt.Errorf("%s cannot be understood", identityFile)
	}
	var info unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &info); err != nil {
		return is, err
	}
	if info.Ino != is.Inode {
		return is, fmt.Errorf("it is a copy of storage %s; remove %s from it if it is to be a storage of its own", is.ID, identityFile)
	}
	return is, nil
}

// foundStorage makes a storage of a folder. Of several hosts that do so at once, all find the same one.
func foundStorage(root *os.Root) (identity, error) {
	draft := ".unkai-" + rand.Text()
	f, err := root.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return identity{}, err
	}
	defer root.Remove(draft)
	var info unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &info)
	data, _ := json.Marshal(identity{ID: rand.Text(), Inode: info.Ino})
	if err == nil {
		_, err = f.Write(data)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return identity{}, err
	}
	if err := root.Link(draft, identityFile); err != nil && !errors.Is(err, fs.ErrExist) {
		return identity{}, err
	}
	return identify(root)
}

// root opens the folder, as long as it is the storage still.
func (s *storage) root() (*os.Root, error) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, fmt.Errorf("the disks' storage: %w", err)
	}
	is, err := identify(root)
	if err == nil && is.ID != s.id {
		err = fmt.Errorf("it is %s now", is.ID)
	}
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("%s is storage %s no more: %w", s.dir, s.id, err)
	}
	return root, nil
}

// renew has names in a directory stand for what they stand for now. A FUSE file system says for how long the kernel may keep a name without
// asking (GlusterFS: 1 s), and nothing but its end or a listing, which comes with what each name stands for, makes the kernel see that a
// file was replaced by another host. NFS asks whenever a file is opened.
func renew(dir *os.Root) error {
	_, err := fs.ReadDir(dir.FS(), ".")
	return err
}

// openPlain opens a plain file that lies in a directory, and nothing else: an os.Root follows links, as long as they stay beneath it.
func openPlain(dir *os.Root, name string, flags int) (*os.File, error) {
	for again := false; ; again = true {
		f, err := openIn(dir, name, flags)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err == nil && info.Mode().IsRegular() {
			return f, nil
		}
		f.Close()
		if err == nil {
			return nil, fmt.Errorf("%s is not a plain file", name)
		}
		if again || !errors.Is(err, unix.ESTALE) {
			return nil, err
		}
		if err := renew(dir); err != nil { // the name was of a file that another host has replaced
			return nil, err
		}
	}
}

// openIn opens what has a name in a directory. It follows no link, and waits for nobody who is to come to a pipe.
func openIn(dir *os.Root, name string, flags int) (*os.File, error) {
	if filepath.Base(name) != name {
		return nil, &fs.PathError{Op: "openat", Path: name, Err: fs.ErrInvalid}
	}
	at, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer at.Close()
	for {
		fd, err := unix.Openat(int(at.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &fs.PathError{Op: "openat", Path: name, Err: err}
		}
	}
}

// subfolder opens a directory within one, which is no link to one.
func subfolder(dir *os.Root, name string) (*os.Root, error) {
	f, err := openIn(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// guestRoot opens a guest's directory.
func (s *storage) guestRoot(id resource.ID) (*os.Root, error) {
	root, err := s.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := openGuest(root, id)
	if err != nil || !s.aged {
		return dir, err
	}
	if err := renew(dir); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

func openGuest(root *os.Root, id resource.ID) (*os.Root, error) {
	guests, err := subfolder(root, "guests")
	if err != nil {
		return nil, err
	}
	defer guests.Close()
	return subfolder(guests, id.String())
}

// replace writes a small file, which appears complete or stays as it was.
func replace(dir *os.Root, name string, data []byte) error {
	draft := name + ".new"
	if err := dir.RemoveAll(draft); err != nil {
		return err
	}
	f, err := openPlain(dir, draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return dir.Rename(draft, name)
}

func guestOn(id resource.ID) string { return filepath.Join("guests", id.String()) }

// disks is the directory in which the guest's disks are.
func (g *guest) disks() string {
	switch s := g.driver.storage; {
	case g.rec == nil || g.rec.Storage == "":
		return g.dir
	case s == nil || s.id != g.rec.Storage:
		return filepath.Join(g.dir, "storage-is-not-here")
	default:
		return filepath.Join(s.dir, guestOn(g.id))
	}
}

// diskRoot opens the directory in which the guest's disks are.
func (g *guest) diskRoot() (*os.Root, error) {
	if g.rec.Storage == "" {
		return os.OpenRoot(g.dir)
	}
	if trouble := g.driver.lacks(g.rec.Storage); trouble != "" {
		return nil, errors.New(trouble)
	}
	return g.driver.storage.guestRoot(g.id)
}

// openDisk opens a file of the guest's that lies with its disks.
func (g *guest) openDisk(path string, flags int) (*os.File, error) {
	dir, err := g.diskRoot()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return openPlain(dir, filepath.Base(path), flags)
}

// Where QEMU keeps its locks on an image: a byte for each thing that it does or lets nobody else do.
const (
	imageLocksFrom  = 100
	imageLocksBytes = 200
)

// inUse reports whether a hypervisor, here or on another host, holds a disk.
func inUse(f *os.File) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: imageLocksFrom, Len: imageLocksBytes}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("look for locks of %s: %w", f.Name(), err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

// occupied is why the guest cannot be started yet: somebody holds a disk of it. A hypervisor would be refused, for good.
func (g *guest) occupied() (trouble string, err error) {
	if trouble := g.driver.lacks(g.rec.Storage); trouble != "" {
		return trouble, nil
	}
	dir, err := g.diskRoot()
	if err != nil {
		return "", err
	}
	defer dir.Close()
	used, err := used(dir)
	if used == "" || err != nil {
		return "", err
	}
	return "The guest's disk is still held by the host that had it before, or its storage does not know yet that this host is gone.", nil
}

// used is a disk in a guest's directory that a hypervisor holds; "" for none.
func used(dir *os.Root) (name string, err error) {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "disk-") || !e.Type().IsRegular() {
			continue
		}
		f, err := openPlain(dir, e.Name(), os.O_RDWR)
		if err != nil {
			return "", err
		}
		held, err := inUse(f)
		f.Close()
		if held || err != nil {
			return e.Name(), err
		}
	}
	return "", nil
}

// lockPatience is how long a claim may be held by whoever changes it.
const lockPatience = 2 * time.Second
