package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// rewrite changes a guest's record as no driver would, between two drivers.
func (h *host) rewrite(t *testing.T, d *Driver, id resource.ID, change func(*record)) *Driver {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(d.dir, "guests", id.String())
	rec, err := readRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	change(rec)
	if err := rec.write(dir); err != nil {
		t.Fatal(err)
	}
	return h.open(t)
}

func TestHostRestarted(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	first := ensure(t, d, want, compute.On)
	g := d.guest(want.ID)
	if err := g.proc.kill(); err != nil {
		t.Fatal(err)
	}
	// That was the host's end, and the guest's number may now be anybody's.
	d = h.rewrite(t, d, want.ID, func(r *record) { r.Launch.Boot, r.Launch.PID = "another", 1 })
	if o, err := d.Observe(t.Context(), want.ID); err != nil || o.Power != compute.Off || o.Trouble != "" {
		t.Errorf("observed %+v, %v", o, err)
	}
	if again := ensure(t, d, want, compute.On); !again.StartedAt.After(first.StartedAt) {
		t.Error("not started again")
	}
}

// A host that lost power has no processes, no control groups and no sockets; disks and records are left.
func TestGuestsComeBackWithTheirHost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	wants := map[string]compute.Guest{}
	for _, name := range []string{"on", "off", "suspended", "stays off"} {
		want := h.guest(t)
		ensure(t, d, want, compute.On)
		switch name {
		case "off":
			want.Power, want.GraceSeconds = compute.Off, 0
			ensure(t, d, want, compute.Off)
		case "suspended":
			want.Power = compute.Suspended
			ensure(t, d, want, compute.Suspended)
		case "stays off":
			want.StayOff = true
		}
		wants[name] = want
	}
	for _, want := range wants {
		if p := d.guest(want.ID).proc; p != nil {
			if err := p.kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.cgroups.remove(want.ID.String()); err != nil {
			t.Fatal(err)
		}
		for _, socket := range []string{monitorSocket, adminSocket, serialSocket} {
			if err := remove(filepath.Join(d.dir, "guests", want.ID.String(), socket)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, want := range wants {
		d = h.rewrite(t, d, want.ID, func(r *record) {
			if r.Launch != nil {
				r.Launch.Boot, r.Launch.PID = "another", 1
			}
		})
	}
	ensure(t, d, wants["on"], compute.On)
	ensure(t, d, wants["off"], compute.Off)
	ensure(t, d, wants["suspended"], compute.Suspended)
	for range 2 { // and is so still when it is looked at again
		if o := ensure(t, d, wants["stays off"], compute.Off); o.Busy {
			t.Errorf("observed %+v", o)
		}
	}
	again := wants["stays off"]
	again.HardBoots++
	ensure(t, d, again, compute.On)
}

// A process that has the number of a dead guest's is not that guest.
func TestNumberUsedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	ensure(t, d, want, compute.On)
	if err := d.guest(want.ID).proc.kill(); err != nil {
		t.Fatal(err)
	}
	d = h.rewrite(t, d, want.ID, func(r *record) { r.Launch.PID = os.Getpid() })
	if o, err := d.Observe(t.Context(), want.ID); err != nil || o.Power != compute.Crashed {
		t.Errorf("observed %+v, %v", o, err)
	}
	if err := d.Remove(t.Context(), want.ID); err != nil { // and we live on
		t.Error(err)
	}
}

func TestSavedMemoryIsSpoilt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	ensure(t, d, want, compute.On)
	want.Power = compute.Suspended
	ensure(t, d, want, compute.Suspended)
	memory := filepath.Join(d.dir, "guests", want.ID.String(), memoryFile)
	if err := os.WriteFile(memory, bytes.Repeat([]byte("spoilt"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	want.Power = compute.On
	var o compute.Observation
	eventually(t, "the end of the attempt", func() bool {
		var err error
		if o, err = d.Ensure(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		return !o.Busy
	})
	if o.Power != compute.Crashed || !strings.Contains(o.Trouble, "memory") {
		t.Errorf("observed %+v", o)
	}
	if _, err := os.Stat(memory); err != nil {
		t.Errorf("the memory is gone, and somebody might have saved it: %v", err)
	}
	want.HardBoots++
	ensure(t, d, want, compute.On)
	if _, err := os.Stat(memory); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a reboot the old memory is still there: %v", err)
	}
}

func TestDiskIsLost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	ensure(t, d, want, compute.On)
	want.Power, want.GraceSeconds = compute.Off, 0
	ensure(t, d, want, compute.Off)
	disk := filepath.Join(d.dir, "guests", want.ID.String(), "disk-root.qcow2")
	if err := os.Rename(disk, disk+".elsewhere"); err != nil {
		t.Fatal(err)
	}
	want.Power = compute.On
	if o, err := d.Ensure(t.Context(), want); err == nil {
		t.Fatalf("a guest's disk was lost, and it started with another: %+v", o)
	}
	if err := os.Rename(disk+".elsewhere", disk); err != nil {
		t.Fatal(err)
	}
	ensure(t, d, want, compute.On)
}

// What the host lacks for a moment is an error, and the next attempt finds it.
func TestHostLacksSomething(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("taps take root")
	}
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	tap := h.tap(t)
	want.NICs = []compute.NIC{{PortID: want.ID, MAC: "52:54:00:00:00:01", Tap: compute.Tap{Netns: tap.Netns, Name: "notyet"}}}
	want.Disks[0].Image.Path += ".notyet"
	fails := func(lack string) {
		t.Helper()
		if o, err := d.Ensure(t.Context(), want); err == nil || !strings.Contains(err.Error(), lack) {
			t.Errorf("without %s: %+v, %v", lack, o, err)
		}
	}
	fails("image")
	want.Disks[0].Image.Path = h.image.Path
	fails("tap")
	// Asking for the tap must not have made one.
	want.NICs[0].Tap.Netns = "/run/netns/nowhere"
	fails("tap")
	want.NICs[0].Tap = tap
	ensure(t, d, want, compute.On)
}

func TestHypervisorRefuses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	// A firmware that is no firmware: nothing we could have known before.
	d.firmware = Firmware{h.file(t, "code", []byte("x")).Path, h.file(t, "vars", []byte("y")).Path}
	want.UEFI = true
	for range 2 {
		o, err := d.Ensure(t.Context(), want)
		if err != nil || o.Power != compute.Crashed || o.Busy || o.Trouble != endings[refused].trouble {
			t.Fatalf("observed %+v, %v", o, err)
		}
	}
	d.firmware = Firmware{}
	if o, err := d.Ensure(t.Context(), want); err != nil || !strings.Contains(o.Trouble, "UEFI") {
		t.Errorf("without firmware: %+v, %v", o, err)
	}
	want.UEFI = false
	want.HardBoots++
	ensure(t, d, want, compute.On)
}

// A hypervisor that hangs holds nobody up, and can be got rid of.
func TestHypervisorHangs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	pid := runs(t, h, d, want)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if o, err := d.Ensure(t.Context(), want); err == nil {
		t.Errorf("observed %+v", o)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Ensure took %v", took)
	}
	want.HardBoots++
	ensure(t, d, want, compute.On)
	if now := runs(t, h, d, want); now == pid {
		t.Error("it is still the same process")
	}
}

func TestRecordIsSpoilt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want, other := h.guest(t), h.guest(t)
	want.Power = compute.Off
	ensure(t, d, want, compute.Off)
	ensure(t, d, other, compute.On)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "guests", want.ID.String(), recordFile), []byte(`{"UID": `), 0o600); err != nil {
		t.Fatal(err)
	}
	d = h.open(t)
	if _, err := d.Ensure(t.Context(), want); err == nil {
		t.Error("a guest of which nothing is known was made anew over its disks")
	}
	ensure(t, d, other, compute.On)
	if err := d.Remove(t.Context(), want.ID); err != nil {
		t.Error(err)
	}
	ensure(t, d, want, compute.Off)
}

func TestOneDriverForADirectory(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	if second, err := New(h.options(t)); err == nil {
		second.Close()
		t.Fatal("two drivers have the same guests")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for id := range d.Changed() {
		t.Errorf("told of %s after its end", id)
	}
}

func TestConsoleLogIsBounded(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	o := h.options(t)
	o.LogBytes = 64 << 10
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.clear(t, d) })
	want := h.guest(t)
	ensure(t, d, want, compute.On)
	h.booted(t, d, want.ID)
	types(t, d, want.ID, "f")
	path := filepath.Join(d.dir, "guests", want.ID.String(), consoleFile)
	var info syscall.Stat_t
	eventually(t, "a long log that was cut", func() bool {
		if err := syscall.Stat(path, &info); err != nil {
			t.Fatal(err)
		}
		return info.Size > 3*o.LogBytes && info.Blocks*512 < info.Size-o.LogBytes
	})
	types(t, d, want.ID, " ")
	eventually(t, "an end of the flood", func() bool {
		before := info.Size
		time.Sleep(50 * time.Millisecond)
		if err := syscall.Stat(path, &info); err != nil {
			t.Fatal(err)
		}
		return info.Size == before
	})
	got, err := d.ConsoleLog(t.Context(), want.ID, 1<<30)
	if err != nil || len(got) != int(o.LogBytes) || bytes.IndexByte(got, 0) >= 0 {
		t.Errorf("%d bytes, of them zero: %d; %v", len(got), bytes.Count(got, []byte{0}), err)
	}
	if part, err := d.ConsoleLog(t.Context(), want.ID, 100); err != nil || len(part) != 100 || !bytes.HasSuffix(got, part) {
		t.Errorf("the last part: %q, %v", part, err)
	}
}

func TestTrim(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	var whole []byte
	appendTo := func(data []byte) {
		t.Helper()
		whole = append(whole, data...)
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	const keep = 10_000
	for i := range 40 {
		appendTo(bytes.Repeat([]byte{byte('a' + i%26)}, 3001))
		if err := trim(path, keep); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if last := min(keep, len(whole)); len(got) != len(whole) || !bytes.Equal(got[len(got)-last:], whole[len(whole)-last:]) {
			t.Fatalf("after %d bytes the last %d are not as they were", len(whole), last)
		}
		var info syscall.Stat_t
		if err := syscall.Stat(path, &info); err != nil || info.Blocks*512 > 2*keep+8192 {
			t.Fatalf("it takes %d bytes, %v", info.Blocks*512, err)
		}
	}
}

// One who does not read must not hold the guest up for ever.
func TestSerialConsoleIsTakenOver(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	ensure(t, d, want, compute.On)
	h.booted(t, d, want.ID)
	first, err := d.Console(t.Context(), want.ID, "serial")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	io.WriteString(first, "f") // and never reads what comes
	time.Sleep(50 * time.Millisecond)
	types(t, d, want.ID, " ")
	first.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, first); err != nil {
		t.Errorf("the first one was not cut off: %v", err)
	}
}

// QEMU closes the console when its guest is removed, and nobody hangs on it.
func TestConsolesEndWithTheGuest(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	ensure(t, d, want, compute.On)
	var wg sync.WaitGroup
	for _, kind := range []string{"vnc", "serial"} {
		conn, err := d.Console(t.Context(), want.ID, kind)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		wg.Go(func() {
			defer conn.Close()
			if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v", kind, err)
			}
		})
	}
	if err := d.Remove(context.Background(), want.ID); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
