package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Beyond its guest's memory QEMU needs some for itself. Under emulation it also
// keeps translated code, whose bookkeeping is larger than the code.
const (
	ownMiB         = 192
	ownPerVCPUMiB  = 8
	translatorMiB  = 4 * translationMiB
	translationMiB = 64
	maxThreads     = 256 // beside one for each processor
)

// cgroups keep each guest to its share of the host. Which controllers can be
// used differs between hosts, and none has to be.
type cgroups struct {
	name    string   // of our group, which holds one for each guest
	unified string   // where version 2 is mounted, with usable controllers; or ""
	legacy  []string // where version 1 controllers are mounted that we use

	mu sync.Mutex // our own group comes with its first guest and goes with its last
}

// findCgroups looks at what is mounted and tries it.
func findCgroups(name string) (*cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := &cgroups{name: name}
	var failures []error
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		head, tail, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if len(fields) < 5 || len(kind) < 3 {
			continue
		}
		mount := fields[4]
		switch options := strings.Split(kind[2], ","); kind[0] {
		case "cgroup":
			if !slices.ContainsFunc(options, func(o string) bool { return slices.Contains(controllers, o) }) {
				continue
			}
			if err := tryGroup(filepath.Join(mount, name)); err != nil {
				failures = append(failures, err)
				continue
			}
			c.legacy = append(c.legacy, mount)
		case "cgroup2":
			offered, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
			if err != nil || !slices.ContainsFunc(strings.Fields(string(offered)), func(o string) bool { return slices.Contains(controllers, o) }) {
				continue // version 1 has them all
			}
			if err := errors.Join(enable(mount), tryGroup(filepath.Join(mount, name))); err != nil {
				failures = append(failures, err)
				continue
			}
			c.unified = mount
		}
	}
	return c, errors.Join(append(failures, lines.Err())...)
}

// controllers are the ones we use, by the names both versions share.
var controllers = []string{"memory", "cpu", "pids"}

// tryGroup sees whether groups can be made there.
func tryGroup(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	probe := filepath.Join(path, "probe-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(probe, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(unix.Rmdir(probe), removeEmpty(path))
}

// enable passes the controllers on to the groups below path.
func enable(path string) error {
	offered, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var usable []string
	for _, name := range controllers {
		if slices.Contains(strings.Fields(string(offered)), name) {
			usable = append(usable, "+"+name)
		}
	}
	return setting(path, "cgroup.subtree_control", strings.Join(usable, " "))
}

// setting writes one of a group's files, which must be there.
func setting(path, name, value string) error {
	f, err := os.OpenFile(filepath.Join(path, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// groups lists where a guest's groups are, or would be.
func (c *cgroups) groups(guest string) []string {
	var paths []string
	for _, mount := range append(slices.Clone(c.legacy), c.unified) {
		if mount != "" {
			paths = append(paths, filepath.Join(mount, c.name, guest))
		}
	}
	return paths
}

// enter puts a process into its guest's groups, with the limits for this shape.
func (c *cgroups) enter(guest string, pid int, s shape) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var failures []error
	for _, path := range c.groups(guest) {
		if err := c.fill(path, pid, s); err != nil {
			failures = append(failures, fmt.Errorf("control group %s: %w", path, err))
		}
	}
	return errors.Join(failures...)
}

func (c *cgroups) fill(path string, pid int, s shape) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	if c.unified != "" && strings.HasPrefix(path, c.unified+"/") {
		if err := enable(filepath.Dir(path)); err != nil {
			return err
		}
	}
	memory := strconv.FormatInt(int64(hostMemoryMiB(s))<<20, 10)
	threads := strconv.Itoa(maxThreads + s.VCPUs)
	for _, limit := range []struct{ name, value string }{
		{"memory.limit_in_bytes", memory}, // version 1
		{"cpu.shares", strconv.Itoa(1024 * s.VCPUs)},
		{"memory.max", memory}, // version 2
		{"cpu.weight", strconv.Itoa(min(100*s.VCPUs, 10000))},
		{"pids.max", threads}, // both
	} {
		err := setting(path, limit.name, limit.value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // not of this controller
			return err
		}
	}
	return setting(path, "cgroup.procs", strconv.Itoa(pid))
}

// hostMemoryMiB is how much of the host's memory a machine may come to use.
func hostMemoryMiB(s shape) int {
	total := s.MemoryMiB + s.MemoryMiB/64 + ownMiB + ownPerVCPUMiB*s.VCPUs
	if s.Accel == accelTCG {
		total += translatorMiB
	}
	return total
}

// remove takes a guest's groups away, whose processes are gone, and our own
// with the last one.
func (c *cgroups) remove(guest string) error {
	var failures []error
	for _, path := range c.groups(guest) {
		// The kernel may still be busy with the processes that just ended.
		var err error
		for range 50 {
			if err = unix.Rmdir(path); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failures = append(failures, fmt.Errorf("remove control group %s: %w", path, err))
			continue
		}
		c.mu.Lock()
		failures = append(failures, removeEmpty(filepath.Dir(path)))
		c.mu.Unlock()
	}
	return errors.Join(failures...)
}

// removeEmpty removes a group unless others are in it.
func removeEmpty(path string) error {
	err := unix.Rmdir(path)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
