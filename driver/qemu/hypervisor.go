package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
	"golang.org/x/sys/unix"
)

const (
	accelKVM = "kvm"
	accelTCG = "tcg"
)

// sandbox forbids QEMU by seccomp whatever it has no business to do once it runs.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// A hypervisor is what was found out about the QEMU of this host.
type hypervisor struct {
	version  string
	moves    bool               // it is new enough to send guests to others
	machines map[string]machine // by name and by alias
}

// A machine is a board that QEMU can be.
type machine struct {
	name     string // with its version
	maxVCPUs int
}

// probe runs QEMU without a machine, as guests will be run, and asks what it is.
func probe(ctx context.Context, binary string, j *jail, uid int) (*hypervisor, error) {
	here, there, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	defer there.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	complaints, err := os.CreateTemp("", "unkai-qemu")
	if err != nil {
		return nil, err
	}
	defer complaints.Close()
	if err := os.Remove(complaints.Name()); err != nil {
		return nil, err
	}
	p, err := j.start(inmate{
		argv: []string{binary, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", sandbox,
			"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control"},
		files: []*os.File{null, complaints, complaints, there},
		uid:   uid,
	})
	if err != nil {
		return nil, err
	}
	defer p.close()
	go p.watch(func() {})
	there.Close()
	defer p.kill() // it holds nothing, and an end by "quit" takes longer

	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client, err := qmp.NewClient(ctx, here, nil)
	if err != nil {
		return nil, fmt.Errorf("%w; it said: %s", err, tail(complaints, 500))
	}
	defer client.Close()
	var version struct {
		QEMU struct{ Major, Minor, Micro int }
	}
	if err := client.Execute(ctx, "query-version", nil, &version); err != nil {
		return nil, err
	}
	var machines []struct {
		Name   string `json:"name"`
		Alias  string `json:"alias"`
		CPUMax int    `json:"cpu-max"`
	}
	if err := client.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return nil, err
	}
	h := &hypervisor{
		version:  fmt.Sprintf("%d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro),
		machines: map[string]machine{},
		moves:    version.QEMU.Major > 5 || version.QEMU.Major == 5 && version.QEMU.Minor >= 2,
	}
	for _, m := range machines {
		found := machine{m.Name, m.CPUMax}
		h.machines[m.Name] = found
		if m.Alias != "" {
			h.machines[m.Alias] = found
		}
	}
	if _, ok := h.machines["q35"]; !ok {
		return nil, errors.New("this QEMU has no machine q35")
	}
	return h, nil
}

// KVMWorks tells whether the kernel can run guests by hardware. Some kernels
// have /dev/kvm without a processor that could, and then no system boots on it.
func KVMWorks() bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || runtime.GOARCH == "amd64" && !regexp.MustCompile(`(?m)^flags\s*:.*\b(vmx|svm)\b`).Match(info) {
		return false
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	const kvmCreateVM = 0xae01
	vm, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), kvmCreateVM, 0)
	if errno != 0 {
		return false
	}
	unix.Close(int(vm))
	return true
}

// cpuModel is what the host calls its processor.
func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// tail is the last part of a file, for a log.
func tail(f *os.File, max int64) string {
	size, err := f.Seek(0, 2)
	if err != nil {
		return ""
	}
	data := make([]byte, min(size, max))
	n, _ := f.ReadAt(data, size-int64(len(data)))
	return strings.TrimSpace(string(data[:n]))
}

// socketPair gives two ends, one for us and one to hand over.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// inDir gives a name for a file in a directory that fits into a socket address
// however long the directory's own is. It holds until release.
func inDir(dir, name string) (path string, release func(), err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), func() { unix.Close(fd) }, nil
}

// listen makes a socket in dir that is to be handed over, in place of an older one.
func listen(dir, name string) (*os.File, error) {
	path, release, err := inDir(dir, name)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}

// dial connects to a socket in dir.
func dial(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	path, release, err := inDir(dir, name)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
