package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process is a running QEMU, ours or left by an agent before us. It is known
// by a descriptor, so that a number used again is never mistaken for it.
type process struct {
	pid  int
	file *os.File // a pidfd
	gone chan struct{}
}

// hold takes over a pidfd.
func hold(pid, pidfd int) (*process, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, err
	}
	return &process{pid: pid, file: os.NewFile(uintptr(pidfd), "pidfd"), gone: make(chan struct{})}, nil
}

// adopt finds the process again that l tells of; nil if it is no more.
func adopt(l *launch) (*process, error) {
	if l.PID == 0 || l.Boot != bootID() {
		return nil, nil
	}
	pidfd, err := unix.PidfdOpen(l.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: it is a thread now
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", l.PID, err)
	}
	ticks, err := startTicks(l.PID)
	if err != nil || ticks != l.Ticks {
		unix.Close(pidfd)
		return nil, nil
	}
	return hold(l.PID, pidfd)
}

// watch waits for the process's end, or for close. ended is called for an end.
func (p *process) watch(ended func()) {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return // closed already
	}
	err = conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		if err != nil || n == 0 {
			return false
		}
		// If it is our child it has to be buried; if not, ECHILD says so.
		unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil)
		return true
	})
	if err == nil {
		close(p.gone)
		ended()
	}
}

func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// exitWithin waits for the process's end, and says whether it came.
func (p *process) exitWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.gone:
		return true
	case <-timer.C:
		return false
	}
}

// kill cuts the process off and waits until it is gone.
func (p *process) kill() error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, sent)
	}
	if !p.exitWithin(5 * time.Second) {
		return fmt.Errorf("process %d does not end, though killed", p.pid)
	}
	return nil
}

// close lets go of the process, which runs on.
func (p *process) close() { p.file.Close() }

// bootID tells one run of the host from another.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// startTicks is when a process started, in clock ticks since the host's boot.
func startTicks(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses, and may hold anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// strays finds the processes of a guest that no record tells of: their agent
// died between starting one and writing it down. They complain into the guest's directory: another
// host on the same machine may have a guest of this name, on its way there or back.
func strays(guest, dir string, owns func(uid int) bool) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	var pids []int
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		var owner unix.Stat_t
		if unix.Stat(filepath.Dir(path), &owner) != nil || !owns(int(owner.Uid)) {
			continue
		}
		cmdline, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if !bytes.Contains(cmdline, []byte("\x00-uuid\x00"+guest+"\x00")) {
			continue
		}
		complaints, err := os.Readlink(filepath.Join(filepath.Dir(path), "fd", "2"))
		if err != nil || strings.HasPrefix(complaints, dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
