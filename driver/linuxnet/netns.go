package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where ip(8) keeps named namespaces, so that an operator finds ours.
const netnsDir = "/run/netns"

// A namespace is an open network namespace. It has to be closed: an open one
// keeps the kernel from taking it down.
type namespace struct {
	*netlink.Handle
	file *os.File
}

// openNamespace opens a namespace by its path.
func openNamespace(path string) (*namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink in %s: %w", path, err), file.Close())
	}
	return &namespace{Handle: handle, file: file}, nil
}

func (n *namespace) close() {
	n.Handle.Close()
	n.file.Close() // opened read-only: nothing is lost if this fails
}

// fd is for messages that name a namespace by a descriptor.
func (n *namespace) fd() netlink.NsFd { return netlink.NsFd(n.file.Fd()) }

// do runs f on a thread that is in the namespace. Sockets, devices and
// processes that f makes belong to it for good; anything else goes by netlink.
func (n *namespace) do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.file.Name(), err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that may change its network namespace. The
// thread goes back where it was afterwards, or ends if it cannot.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- fmt.Errorf("find own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine, because it is still locked
		done <- err
	}()
	return <-done
}

// makeNamespace makes a named namespace that outlives this process, and opens
// it. It reports whether it was made just now.
func makeNamespace(name string) (ns *namespace, made bool, err error) {
	path := filepath.Join(netnsDir, name)
	if mounted(path) {
		ns, err = openNamespace(path)
		return ns, false, err
	}
	if err := shareNetnsDir(); err != nil {
		return nil, false, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return nil, false, fmt.Errorf("make network namespace: %w", err)
	}
	if err := file.Close(); err != nil {
		return nil, false, fmt.Errorf("make network namespace: %w", err)
	}
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), os.Remove(path))
	}
	ns, err = openNamespace(path)
	return ns, true, err
}

// mounted tells a namespace from the empty file that a crash leaves behind.
func mounted(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// shareNetnsDir makes namespaces mounted here visible in every mount
// namespace, as ip-netns(8) does.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", netnsDir, err)
	}
	err := unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share mount %s: %w", netnsDir, err)
	}
	return nil
}

// removeNamespace takes a named namespace away with the devices in it. The
// devices go first and by name, because a guest that still holds its tap open
// would keep the namespace alive, and them in it.
func removeNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	if mounted(path) {
		ns, err := openNamespace(path)
		if err != nil {
			return err
		}
		err = ns.removeLinks(func(netlink.Link) bool { return true })
		ns.close()
		if err != nil {
			return fmt.Errorf("empty network namespace %s: %w", name, err)
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// namespaces lists the named namespaces that begin with a prefix.
func namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), prefix) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// dump repeats a netlink listing that a concurrent change made inconsistent.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		found, err := list()
		if try < 10 && errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		return found, err
	}
}

// links lists the namespace's devices by name.
func (n *namespace) links() (map[string]netlink.Link, error) {
	list, err := dump(n.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	byName := make(map[string]netlink.Link, len(list))
	for _, link := range list {
		byName[link.Attrs().Name] = link
	}
	return byName, nil
}

// removeLinks removes the devices that match, except the loopback device and
// those every namespace is born with.
func (n *namespace) removeLinks(match func(netlink.Link) bool) error {
	links, err := n.links()
	if err != nil {
		return err
	}
	for name, link := range links {
		switch link.Type() {
		case "veth", "bridge", "vxlan", "tuntap":
		default:
			continue
		}
		if !match(link) {
			continue
		}
		if err := n.removeLink(link); err != nil {
			return fmt.Errorf("remove device %s: %w", name, err)
		}
	}
	return nil
}

// removeLink removes a device; one that is gone already, perhaps with the
// other end of its pair, is as good.
func (n *namespace) removeLink(link netlink.Link) error {
	err := n.LinkDel(link)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) && n.gone(link) {
		return nil
	}
	return err
}

func (n *namespace) gone(link netlink.Link) bool {
	_, err := n.LinkByIndex(link.Attrs().Index)
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// A setting is a kernel parameter under /proc/sys/net.
type setting struct{ name, value string }

// set writes settings. The caller is in the namespace they are for.
func set(settings []setting) error {
	for _, s := range settings {
		if err := os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0); err != nil {
			return fmt.Errorf("set net/%s: %w", s.name, err)
		}
	}
	return nil
}

// nft loads a script into the namespace, all of it or nothing.
func (n *namespace) nft(ctx context.Context, script string) error {
	return n.do(func() error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// tables lists the tables of a family whose names begin with a prefix.
func (n *namespace) tables(ctx context.Context, family, prefix string) ([]string, error) {
	var names []string
	err := n.do(func() error {
		out, err := exec.CommandContext(ctx, "nft", "list", "tables", family).Output()
		if err != nil {
			return fmt.Errorf("list tables: %w", err)
		}
		for line := range strings.Lines(string(out)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "table "+family+" "); ok && strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		return nil
	})
	return names, err
}

// makeTap makes a tap device that stays when nobody holds it open. The caller
// is in the namespace it is for.
func makeTap(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("make tap %s: %w", name, err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("make tap %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep tap %s: %w", name, err)
	}
	return nil
}
