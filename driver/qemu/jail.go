package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A jail is where QEMU runs: a file system that holds programs and firmware,
// read-only, and nothing of the host's, no network, no other process, no
// privilege, and a user ID of its guest's own. What it needs of a guest it is
// handed as descriptors.
//
// There is no helper program: a thread of ours goes into fresh namespaces,
// builds the jail, forks, and ends. The mounts live as long as QEMU does.
type jail struct {
	mountpoint string // an empty directory; nothing is ever visible there to others
	files      bool   // a file system of its own is possible here
	user       bool   // user namespaces are possible here
	identity   bool   // we may give processes another user ID
}

// An inmate is a program to start in a jail.
type inmate struct {
	argv  []string
	files []*os.File        // its descriptors, from 0 on
	uid   int               // also its group's ID
	bind  map[string]string // more of the host's files that it may open: path inside -> outside
	nodes []string          // device files that it may open
}

// start runs the inmate in a session of its own, so that it outlives us.
func (j *jail) start(in inmate) (*process, error) {
	var p *process
	var err error
	onSpareThread(func() { p, err = j.startHere(in) })
	return p, err
}

func (j *jail) startHere(in inmate) (*process, error) {
	pidfd := -1
	sys := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if j.files {
		if err := j.build(in); err != nil {
			return nil, fmt.Errorf("build the jail: %w", err)
		}
		sys.Chroot = "/jail"
	}
	if j.identity {
		sys.Credential = &syscall.Credential{Uid: uint32(in.uid), Gid: uint32(in.uid)}
		sys.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if j.user {
		sys.Cloneflags |= unix.CLONE_NEWUSER
		sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: in.uid, HostID: in.uid, Size: 1}}
		sys.GidMappings = sys.UidMappings
		sys.GidMappingsEnableSetgroups = true // to give our own groups up
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("renounce new privileges: %w", err)
	}
	fds := make([]uintptr, len(in.files))
	for i, f := range in.files {
		fds[i] = f.Fd()
	}
	pid, err := syscall.ForkExec(in.argv[0], in.argv, &syscall.ProcAttr{Dir: "/", Env: []string{"LC_ALL=C"}, Files: fds, Sys: sys})
	runtime.KeepAlive(in.files)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", in.argv[0], err)
	}
	return hold(pid, pidfd)
}

// build makes this thread's root a small tree: /proc, which the runtime needs
// to set a user namespace up, and /jail, which will be the inmate's root.
func (j *jail) build(in inmate) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	b := builder{root: j.mountpoint}
	b.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	b.mount("tmpfs", b.root, "tmpfs", unix.MS_NOSUID, "mode=0755,size=1m,nr_inodes=200")
	b.dir("/old")
	b.dir("/proc")
	b.mount("/proc", b.root+"/proc", "", unix.MS_BIND, "")
	b.dir("/jail/etc")
	b.dir("/jail/dev")
	b.node("/dev/null")
	for _, node := range in.nodes {
		b.node(node)
	}
	b.bind("/jail/usr", "/usr")
	for _, name := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		if target, err := os.Readlink(name); err == nil {
			b.do("symlink", os.Symlink(target, b.root+"/jail"+name))
		} else if _, err := os.Stat(name); err == nil {
			b.bind("/jail"+name, name)
		}
	}
	if _, err := os.Stat("/etc/ld.so.cache"); err == nil {
		b.bind("/jail/etc/ld.so.cache", "/etc/ld.so.cache")
	}
	if program := filepath.Dir(in.argv[0]); !strings.HasPrefix(program, "/usr/") && !strings.HasPrefix(program, "/bin") {
		b.bind("/jail"+program, program)
	}
	for inside, outside := range in.bind {
		b.bind("/jail"+inside, outside)
	}
	b.do("enter", unix.PivotRoot(b.root, b.root+"/old"))
	b.do("enter", unix.Chdir("/"))
	// Without this the guest would keep everything alive that is mounted now.
	b.do("leave the host's files", unix.Unmount("/old", unix.MNT_DETACH))
	b.do("leave the host's files", unix.Rmdir("/old"))
	b.mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID, "")
	return b.err
}

// A builder goes on until the first failure and keeps that.
type builder struct {
	root string
	err  error
}

func (b *builder) do(what string, err error) {
	if b.err == nil && err != nil {
		b.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (b *builder) mount(source, target, kind string, flags uintptr, data string) {
	if b.err == nil {
		b.do("mount "+target, unix.Mount(source, target, kind, flags, data))
	}
}

func (b *builder) dir(path string) {
	if b.err == nil {
		b.do("make directory", os.MkdirAll(b.root+path, 0o755))
	}
}

// bind shows a file or directory of the host, read-only.
func (b *builder) bind(inside, outside string) {
	if b.err != nil {
		return
	}
	info, err := os.Stat(outside)
	if err != nil {
		b.err = err
		return
	}
	if info.IsDir() {
		b.dir(inside)
	} else {
		b.dir(filepath.Dir(inside))
		// Never opened: a process that is forked just then would hold it open for writing until it executes its
		// program, and the tree could not be made read-only.
		b.do("make file", unix.Mknod(b.root+inside, unix.S_IFREG|0o644, 0))
	}
	b.mount(outside, b.root+inside, "", unix.MS_BIND, "")
	b.mount("", b.root+inside, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// node makes a device file that the inmate may open, whoever it is.
func (b *builder) node(path string) {
	if b.err != nil {
		return
	}
	var host unix.Stat_t
	if err := unix.Stat(path, &host); err != nil {
		b.do("find "+path, err)
		return
	}
	inside := b.root + "/jail" + path
	b.dir(filepath.Dir("/jail" + path))
	b.do("make device", unix.Mknod(inside, host.Mode&unix.S_IFMT|0o666, int(host.Rdev)))
	b.do("open device up", os.Chmod(inside, 0o666)) // whatever our umask is
}

// findJail tries what is possible on this host, the tightest first. The program
// is run with an argument that makes it end by itself at once.
func findJail(mountpoint string, try func(*jail) error) (*jail, error) {
	root := os.Geteuid() == 0
	var failures []error
	for _, j := range []*jail{
		{mountpoint, true, true, true},
		{mountpoint, true, false, true},
		{mountpoint, false, false, true},
		{mountpoint, false, false, false},
	} {
		if j.identity && !root {
			continue
		}
		err := try(j)
		if err == nil {
			return j, errors.Join(failures...)
		}
		failures = append(failures, fmt.Errorf("%s: %w", j, err))
	}
	return nil, errors.Join(failures...)
}

// loose reports whether who breaks out of QEMU finds files that are not its guest's.
func (j *jail) loose() bool { return !j.files || !j.identity }

// String says how tight the jail is.
func (j *jail) String() string {
	switch {
	case j.user:
		return "own files, namespaces, user namespace and user"
	case j.files:
		return "own files, namespaces and user"
	case j.identity:
		return "own namespaces and user"
	default:
		return "our own user"
	}
}
