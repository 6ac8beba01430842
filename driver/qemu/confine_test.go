package qemu

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

// runs makes a guest that runs, and gives its process.
func runs(t *testing.T, h *host, d *Driver, want compute.Guest) int {
	t.Helper()
	ensure(t, d, want, compute.On)
	g := d.guest(want.ID)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.proc.pid
}

// ensure is what an agent does with a wish that comes true.
func ensure(t testing.TB, d *Driver, want compute.Guest, power compute.Power) compute.Observation {
	t.Helper()
	var got compute.Observation
	eventually(t, string(power), func() bool {
		var err error
		if got, err = d.Ensure(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		return !got.Busy
	})
	if got.Power != power || got.Trouble != "" {
		t.Fatalf("observed %+v", got)
	}
	return got
}

func TestGuestsAreConfined(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("confining takes root")
	}
	h := newHost(t)
	d := h.open(t)
	if !d.jail.user || !d.jail.files || !d.jail.identity {
		t.Skipf("this host allows only for: %s", d.jail)
	}
	one, other := h.guest(t), h.guest(t)
	one.NICs = []compute.NIC{{PortID: one.ID, MAC: "52:54:00:00:00:01", Tap: h.tap(t)}}
	pid, otherPID := runs(t, h, d, one), runs(t, h, d, other)
	proc := func(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	read := func(pid int, name string) string {
		t.Helper()
		data, err := os.ReadFile(proc(pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}

	status := map[string]string{}
	for line := range strings.Lines(read(pid, "status")) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	uid := strings.Repeat(strconv.Itoa(d.firstUID)+" ", 3) + strconv.Itoa(d.firstUID)
	for name, want := range map[string]string{
		"Uid": uid, "Gid": uid, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if status[name] != want {
			t.Errorf("%s is %q, want %q", name, status[name], want)
		}
	}
	if strings.Contains(read(otherPID, "status"), "\nUid:\t"+strconv.Itoa(d.firstUID)+"\t") {
		t.Error("two guests have the same user")
	}

	for _, ns := range []string{"mnt", "pid", "ipc", "net", "uts", "user"} {
		ours, err1 := os.Readlink("/proc/self/ns/" + ns)
		its, err2 := os.Readlink(proc(pid, "ns/"+ns))
		others, err3 := os.Readlink(proc(otherPID, "ns/"+ns))
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatal(err1, err2, err3)
		}
		if its == ours || its == others {
			t.Errorf("its %s namespace is shared: %s; ours %s, another guest's %s", ns, its, ours, others)
		}
	}
	// Its network has nothing but a loopback that is down, though it has a card.
	if links := strings.Count(read(pid, "net/dev"), ":"); links != 1 {
		t.Errorf("there are links in its network namespace:\n%s", read(pid, "net/dev"))
	}

	entries, err := os.ReadDir(proc(pid, "root"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "dev"}, e.Name()) {
			t.Errorf("it sees /%s", e.Name())
		}
	}
	for _, inside := range []string{"etc/passwd", "proc/self", "sys/kernel", "root", "tmp", "dev/kvm", "dev/net/tun", h.dir} {
		if _, err := os.Lstat(proc(pid, "root/"+inside)); err == nil {
			t.Errorf("it sees %s", inside)
		}
	}
	for _, inside := range []string{"", "usr", "etc", "dev"} {
		if err := os.WriteFile(proc(pid, "root/"+inside+"/x"), nil, 0o600); err == nil {
			t.Errorf("even we can write to its /%s", inside)
		}
	}
	// Nothing of the host's is mounted there but programs, so that nothing is
	// kept alive that its owner wants gone.
	if mounts := read(pid, "mountinfo"); strings.Contains(mounts, h.dir) || strings.Count(mounts, "\n") > 12 {
		t.Errorf("its mounts:\n%s", mounts)
	}

	limits := strings.Join(strings.Fields(read(pid, "limits")), " ")
	for _, want := range []string{"Max core file size 0 0", "Max open files 4096 4096", "Max processes 257 257"} {
		if !strings.Contains(limits, want) {
			t.Errorf("no %q in its limits:\n%s", want, limits)
		}
	}
	fds, err := filepath.Glob(proc(pid, "fd/*"))
	if err != nil || len(fds) < 5 {
		t.Fatal(fds, err)
	}
	for _, fd := range fds {
		var info unix.Stat_t
		if err := unix.Stat(fd, &info); err == nil && info.Mode&unix.S_IFMT == unix.S_IFDIR {
			target, _ := os.Readlink(fd)
			t.Errorf("it was given the directory %s", target)
		}
	}

	if out, err := os.ReadFile("/proc/self/mountinfo"); len(d.cgroups.groups("x")) == 0 && (err != nil || bytes.Contains(out, []byte("memory"))) {
		t.Errorf("no control groups are used, %v:\n%s", err, out)
	}
	for _, path := range d.cgroups.groups(one.ID.String()) {
		procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil || string(bytes.TrimSpace(procs)) != strconv.Itoa(pid) {
			t.Errorf("in its group %s: %q, %v", path, procs, err)
		}
		limit, err := os.ReadFile(filepath.Join(path, "memory.limit_in_bytes"))
		if err == nil && string(bytes.TrimSpace(limit)) != strconv.Itoa(hostMemoryMiB(shape{MemoryMiB: one.MemoryMiB, VCPUs: 1, Accel: accelTCG})*mib) {
			t.Errorf("its memory is limited to %s", limit)
		}
	}
	// What belongs to guests is for nobody else to read.
	if info, err := os.Stat(filepath.Join(d.dir, "guests")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("guests' directory: %v, %v", info, err)
	}
}

// A QEMU that runs as nobody in particular must still start where the host
// forbids the rest.
func TestLooserJails(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("tighter jails take root")
	}
	for _, j := range []jail{{files: true, identity: true}, {identity: true}, {}} {
		t.Run(j.String(), func(t *testing.T) {
			h := newHost(t)
			d := h.open(t)
			j.mountpoint = d.jail.mountpoint
			d.jail = &j
			want := kernelGuest(t, h)
			ensure(t, d, want, compute.On)
			eventually(t, "its kernel", func() bool { return strings.Contains(log(t, d, want.ID), "done") })
		})
	}
}

// Looser jails are only used where an operator has said so.
func TestLooseJailsAreRefused(t *testing.T) {
	for _, c := range []struct {
		jail
		loose bool
	}{{jail{files: true, user: true, identity: true}, false}, {jail{files: true, identity: true}, false}, {jail{identity: true}, true}, {jail{}, true}} {
		if c.jail.loose() != c.loose {
			t.Errorf("%s: loose is %v", &c.jail, c.jail.loose())
		}
	}
	h := newHost(t)
	o := h.options(t)
	o.AllowLooseJails = false
	d, err := New(o)
	if found, _ := Examine(t.Context()); !found.Loose {
		if err != nil {
			t.Fatalf("confined to %s, and refused: %v", found.Confined, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	} else if err == nil {
		d.Close()
		t.Errorf("confined to %s, and not refused", found.Confined)
	}
}

func TestFindJail(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("there is no choice without root")
	}
	tries := 0
	j, loose := findJail("/x", func(j *jail) error {
		if tries++; tries < 3 {
			return unix.EPERM
		}
		return nil
	})
	if j == nil || j.files || j.user || !j.identity || loose == nil {
		t.Errorf("found %v, %v", j, loose)
	}
	if j, err := findJail("/x", func(*jail) error { return unix.EPERM }); j != nil || err == nil {
		t.Errorf("found %v, %v", j, err)
	}
}

func TestControlGroupsOfVersion2(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	group := filepath.Join(root, "ours", "guest")
	if err := os.MkdirAll(group, 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(dir, name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(filepath.Dir(group), "cgroup.controllers", "cpuset cpu io memory hugetlb pids")
	put(filepath.Dir(group), "cgroup.subtree_control", "")
	for _, name := range []string{"memory.max", "cpu.weight", "pids.max", "cgroup.procs"} {
		put(group, name, "")
	}
	c := &cgroups{name: "ours", unified: root}
	if err := c.enter("guest", 4711, shape{VCPUs: 2, MemoryMiB: 1024, Accel: accelKVM}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"memory.max": strconv.Itoa((1024 + 16 + 192 + 16) * mib), "cpu.weight": "200", "pids.max": "258", "cgroup.procs": "4711", "../cgroup.subtree_control": "+memory +cpu +pids",
	} {
		if got, err := os.ReadFile(filepath.Join(group, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if err := os.RemoveAll(filepath.Join(root, "ours")); err != nil {
		t.Fatal(err)
	}
	if err := c.remove("guest"); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}

// If a guest were started from the first thread, the agent itself would seem to
// be in jail.
func TestSpareThreads(t *testing.T) {
	mounts, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			onSpareThread(func() {
				if unix.Gettid() == unix.Getpid() {
					t.Error("this is the first thread")
				} else if os.Geteuid() == 0 {
					if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
	wg.Wait()
	if now, err := os.Readlink("/proc/self/ns/mnt"); err != nil || now != mounts {
		t.Errorf("we were in %s, and are in %s, %v", mounts, now, err)
	}
}
