package qemu

import (
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A guest's memory is told from all else that its process has mapped.
func TestWhatAGuestTouched(t *testing.T) {
	t.Parallel()
	const smaps = `55d0c0000000-55d0c0e00000 r--p 00000000 fd:00 1 /usr/bin/qemu-system-x86_64
Size:              14336 kB
Rss:                9000 kB
7f00a0000000-7f00a4000000 rwxp 00000000 00:00 0
Size:              65536 kB
Rss:               65000 kB
7f00b0000000-7f00b8000000 rw-p 00000000 00:00 0
Size:             131072 kB
KernelPageSize:        4 kB
Rss:               50000 kB
Pss:               50000 kB
Swap:               1000 kB
7f00c0000000-7f00e0000000 r--p 00000000 fd:00 2 /usr/share/Rss: 7 kB
Size:             524288 kB
Rss:              400000 kB
`
	for memory, want := range map[int64]int64{128 << 20: 51000 << 10, 64 << 20: 65000 << 10, 1 << 40: 1 << 40} {
		if got, err := touchedIn(strings.NewReader(smaps), memory); err != nil || got != min(want, memory) {
			t.Errorf("of %d bytes %d were touched, %v", memory, got, err)
		}
	}
}

// The wire to another host is tried by the way that a guest would take, and by nobody who is no host.
func TestTheWireIsTried(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	speed, err := r.from.tryWire(t.Context(), r.to.where())
	if err != nil || speed <= 0 {
		t.Fatalf("it is %d bytes a second, %v", speed, err)
	}
	if again, err := r.from.tryWire(t.Context(), r.to.where()); err != nil || again != speed {
		t.Errorf("a moment later it is %d, %v; and was %d", again, err, speed)
	}
	if _, err := r.from.tryWire(t.Context(), "127.0.0.1:1"); err == nil {
		t.Error("where nobody listens it is reached")
	}
	if left := r.b.leftovers(t); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// A guest is weighed as it is: running, standing still, off, and gone.
func TestAGuestIsWeighed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.open(t)
	want := h.guest(t)
	ensure(t, d, want, compute.On)
	obeys(t, d, want.ID)
	b, err := d.Weigh(t.Context(), want.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	if memory := int64(want.MemoryMiB) << 20; !b.Live || b.Memory != memory || b.Used <= 0 || b.Used > memory || b.Limit != downtimeMs || b.Disk <= 0 {
		t.Errorf("running it is %+v", b)
	}
	if !b.Seen || b.Seconds < 1 || b.Pages <= 0 || b.Dirty > b.Memory {
		t.Errorf("seen is %+v", b)
	}
	want.Power = compute.Paused
	ensure(t, d, want, compute.Paused)
	if b, err := d.Weigh(t.Context(), want.ID, ""); err != nil || !b.Live || !b.Seen || b.Dirty != 0 {
		t.Errorf("paused it is %+v, %v", b, err)
	}
	want.Power = compute.Off
	ensure(t, d, want, compute.Off)
	if off, err := d.Weigh(t.Context(), want.ID, ""); err != nil || off.Live || off.Disk <= 0 || off.Memory != 0 {
		t.Errorf("off it is %+v, %v", off, err)
	}
	if _, err := d.Weigh(t.Context(), resource.ID{}, ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
}
