package qemu

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/computetest"
)

// guestImage is the operating system of our test guests; see guest.S beside it.
//
//go:embed testdata/guest.bin
var guestImage []byte

const testCgroup = "unkai-qemu-test"

// A host is a directory for drivers in a test, with an image and taps.
type host struct {
	dir     string
	disks   string // that other hosts reach too; "" for none
	storage string // what that is called
	image   compute.ImageRef
	cgroup  string
	netns   string // "" until a tap is asked for
	taps    int
	seen    map[resource.ID]int // boots that a test has waited for
}

func newHost(t testing.TB) *host {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("QEMU is not installed")
	}
	h := &host{dir: t.TempDir(), cgroup: fmt.Sprintf("%s-%d-%d", testCgroup, os.Getpid(), hosts.Add(1)), seen: map[resource.ID]int{}}
	path := filepath.Join(h.dir, "image.raw")
	if err := os.WriteFile(path, append(guestImage, make([]byte, mib-len(guestImage))...), 0o600); err != nil {
		t.Fatal(err)
	}
	h.image = compute.ImageRef{ID: resource.NewID(time.Now(), nil), Format: "raw", Bytes: mib, Path: path}
	return h
}

var hosts atomic.Int64

func (h *host) options(t testing.TB) Options {
	return Options{
		Dir: filepath.Join(h.dir, "qemu"), Disks: h.disks, Cgroup: h.cgroup, Accel: accelTCG, AllowLooseJails: true,
		SMBIOS: SMBIOS{Manufacturer: "Unkai, tested", Product: "Test Machine"},
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// open starts a driver. With the test, guests end that it has left.
func (h *host) open(t testing.TB) *Driver {
	t.Helper()
	d, err := New(h.options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.clear(t, d) })
	return d
}

// clear removes all guests, and makes sure that nothing is left.
func (h *host) clear(t testing.TB, d *Driver) {
	t.Helper()
	if d.closing.Err() != nil {
		return // another one has taken over
	}
	ids, err := d.present()
	if err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		if err := d.Remove(context.Background(), id); err != nil {
			t.Error(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

func (h *host) reopen(t testing.TB, d compute.Driver) compute.Driver {
	t.Helper()
	if err := d.(*Driver).Close(); err != nil {
		t.Fatal(err)
	}
	return h.open(t)
}

func (h *host) guest(t testing.TB) compute.Guest {
	image := h.image
	return compute.Guest{
		ID: resource.NewID(time.Now(), nil), Name: "a guest, of \"tests\"", VCPUs: 1, MemoryMiB: 32,
		Disks: []compute.Disk{{Name: "root", Image: &image, Serial: "serial-0"}},
		Power: compute.On, GraceSeconds: 3, Storage: h.storage,
	}
}

// tap makes a tap device in a namespace of the test's own.
func (h *host) tap(t testing.TB) compute.Tap {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("taps take root")
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	if h.netns == "" {
		h.netns = fmt.Sprintf("uqt%d-%d", os.Getpid(), hosts.Add(1))
		run("netns", "add", h.netns)
		t.Cleanup(func() { run("netns", "del", h.netns) })
	}
	h.taps++
	name := fmt.Sprintf("tap%d", h.taps)
	run("-n", h.netns, "tuntap", "add", name, "mode", "tap")
	return compute.Tap{Netns: "/run/netns/" + h.netns, Name: name}
}

// leftovers lists directories, processes and control groups of guests.
func (h *host) leftovers(t testing.TB) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{
		filepath.Join(h.dir, "qemu", "guests", "*"), "/sys/fs/cgroup/*/" + h.cgroup, "/sys/fs/cgroup/*/" + h.cgroup + "/*-*", "/sys/fs/cgroup/" + h.cgroup + "/*-*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range processes {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(line, []byte("\x00-uuid\x00")) {
			continue
		}
		// Whose it is can be told from its stderr, which is in the guest's directory.
		if target, err := os.Readlink(filepath.Join(filepath.Dir(path), "fd", "2")); err == nil && strings.HasPrefix(target, h.dir+"/") {
			left = append(left, filepath.Dir(path)+": "+string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return left
}

// types sends a character to the guest's operating system.
func types(t testing.TB, d compute.Driver, id resource.ID, command string) {
	t.Helper()
	conn, err := d.(*Driver).Console(t.Context(), id, "serial")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, command); err != nil {
		t.Fatal(err)
	}
	// The echo says that it has been read.
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, len(command))); err != nil {
		t.Fatalf("the guest does not take %q: %v", command, err)
	}
}

func log(t testing.TB, d compute.Driver, id resource.ID) string {
	t.Helper()
	log, err := d.(*Driver).ConsoleLog(t.Context(), id, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// booted waits for a boot that nobody has waited for: for its second line, which
// is the last thing the guest does before it obeys.
func (h *host) booted(t testing.TB, d compute.Driver, id resource.ID) {
	t.Helper()
	eventually(t, "a booted guest", func() bool {
		log := log(t, d, id)
		boots := strings.Count(log, "guest up\r\n")
		h.seen[id] = min(h.seen[id], boots) // fewer than before: it was made anew
		if boots <= h.seen[id] || strings.Count(log[strings.LastIndex(log, "guest up\r\n"):], "\n") < 2 {
			return false
		}
		h.seen[id] = boots
		return true
	})
}

func contract(h func(testing.TB) *host) computetest.Options {
	return computetest.Options{
		Parallel: true,
		Guest:    func(t testing.TB) compute.Guest { return h(t).guest(t) },
		Reopen:   func(t testing.TB, d compute.Driver) compute.Driver { return h(t).reopen(t, d) },
		Booted:   func(t testing.TB, d compute.Driver, id resource.ID) { h(t).booted(t, d, id) },
		ShutDown: func(t testing.TB, d compute.Driver, id resource.ID) {
			types(t, d, id, "o")
		},
		Reboot: func(t testing.TB, d compute.Driver, id resource.ID) {
			types(t, d, id, "r")
		},
		GoDeaf: func(t testing.TB, d compute.Driver, id resource.ID) { types(t, d, id, "d") },
		Crash: func(t testing.TB, d compute.Driver, id resource.ID) {
			g := d.(*Driver).guest(id)
			g.mu.Lock()
			p := g.proc
			g.mu.Unlock()
			if err := p.kill(); err != nil {
				t.Fatal(err)
			}
		},
		Impressed: func(t testing.TB, d compute.Driver, id resource.ID) {
			before := strings.Count(log(t, d, id), "w.")
			types(t, d, id, "w")
			eventually(t, "its writing", func() bool { return strings.Count(log(t, d, id), "w.") > before })
		},
		Fresh: func(t testing.TB, d compute.Driver, id resource.ID) bool {
			log := log(t, d, id)
			return strings.HasPrefix(log[strings.LastIndex(log, "guest up\r\n"):], "guest up\r\nfresh")
		},
		NIC: func(t testing.TB) compute.NIC {
			return compute.NIC{PortID: resource.NewID(time.Now(), nil), MAC: fmt.Sprintf("52:54:00:00:00:%02x", hosts.Add(1)%256), MTU: 1450, Tap: h(t).tap(t)}
		},
		Disk: func(t testing.TB) compute.Disk {
			id := resource.NewID(time.Now(), nil).String()
			return compute.Disk{Name: id, Serial: id[:20], SizeMiB: 3, Label: "data"}
		},
		Leftovers: func(t testing.TB) []string { return h(t).leftovers(t) },
	}
}

func TestDriver(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	byCase := map[string]*host{} // guarded by mu
	of := func(t testing.TB) *host {
		mu.Lock()
		defer mu.Unlock()
		return byCase[t.Name()]
	}
	computetest.TestDriver(t, func(t testing.TB) compute.Driver {
		h := newHost(t)
		mu.Lock()
		byCase[t.Name()] = h
		mu.Unlock()
		return h.open(t)
	}, contract(of))
}
