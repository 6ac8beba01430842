package qemu

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// deafMount is why locks on files of a folder are not told to other hosts, if the way it is mounted says so.
func deafMount(dir string) (why string, err error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("qemu: find the disks' folder: %w", err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return deafIn(string(table), real), nil
}

// mountName is a name as mountinfo has it.
var mountName = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func deafIn(table, dir string) (why string) {
	var point, kind, options string
	for line := range strings.Lines(table) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		fields, more := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(more) < 3 {
			continue
		}
		if on := mountName.Replace(fields[4]); within(dir, on) && len(on) >= len(point) {
			point, kind, options = on, more[0], more[2]
		}
	}
	switch kind {
	case "nfs", "nfs4":
		for option := range strings.SplitSeq(options, ",") {
			if option == "nolock" || option == "local_lock=all" || option == "local_lock=posix" {
				return fmt.Sprintf("it is mounted with %s, so that other hosts do not see locks", option)
			}
		}
	case "fuse.glusterfs":
		return forgetful(point)
	case "fuse.ceph", "fuse.ceph-fuse":
	default:
		if strings.HasPrefix(kind, "fuse") {
			// The claim that another host has replaced must not be read for the one that is there: of these it is known how not to.
			return fmt.Sprintf("it is a %s, of which it is not known whether one host sees at once what another wrote: GlusterFS, CephFS and NFS are", kind)
		}
	}
	return ""
}

// forgetful is why a GlusterFS client that has lost its bricks for a while would write on without the locks that they took from it
// meanwhile. The client shows its own options in files.
func forgetful(point string) (why string) {
	client := func(option string) []string {
		files, _ := filepath.Glob(filepath.Join(mountGlob.Replace(point), ".meta/graphs/active/*/options", option))
		return files
	}
	bricks, strict := len(client("remote-subvolume")), 0
	for _, path := range client("strict-locks") {
		if data, err := os.ReadFile(path); err == nil && isOn[strings.ToLower(strings.TrimSpace(string(data)))] {
			strict++
		}
	}
	if bricks == 0 || strict < bricks {
		return "its GlusterFS volume lets a client write on whose locks were lost: gluster volume set VOLUME client.strict-locks on, then mount it anew"
	}
	return ""
}

var (
	mountGlob = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)
	isOn      = map[string]bool{"on": true, "yes": true, "true": true, "enable": true, "1": true}
)

// carriesLocks makes sure that a lock on a file there keeps others out, on this host at least. What a FUSE file system is not able to lock the
// kernel does for it, for this host alone.
func carriesLocks(root *os.Root, fuse bool) error {
	name := ".unkai-" + rand.Text()
	first, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer root.Remove(name)
	defer first.Close()
	second, err := openPlain(root, name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer second.Close()
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(first.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		return fmt.Errorf("it has no locks: %w", err)
	}
	if err := unix.FcntlFlock(second.Fd(), unix.F_OFD_SETLK, &whole); !isTaken(err) {
		return fmt.Errorf("its locks keep nobody out (%v)", err)
	}
	if !fuse {
		return nil
	}
	var info unix.Stat_t
	if err := unix.Fstat(int(first.Fd()), &info); err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/locks")
	if err == nil && isLocal(string(table), info.Dev, info.Ino) {
		err = errors.New("its locks stay on this host")
	}
	return err
}

// isLocal reports whether the kernel keeps locks of a file itself. Those that a FUSE file system keeps are not in its table.
func isLocal(table string, dev, inode uint64) bool {
	return strings.Contains(table, fmt.Sprintf(" %02x:%02x:%d ", unix.Major(dev), unix.Minor(dev), inode))
}

func isTaken(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

// isFUSE reports whether a folder is on a file system that a process of this host speaks for.
func isFUSE(dir *os.Root) (bool, error) {
	f, err := dir.Open(".")
	if err != nil {
		return false, err
	}
	defer f.Close()
	var info unix.Statfs_t
	err = unix.Fstatfs(int(f.Fd()), &info)
	return info.Type == unix.FUSE_SUPER_MAGIC, err
}
