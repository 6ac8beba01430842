package qemu

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A road is two hosts and the wire between them.
type road struct {
	testing.TB
	*wire
	a, b     *host
	from, to *Driver
}

func newRoad(t testing.TB) *road {
	t.Helper()
	r := &road{TB: t, wire: &wire{}, a: newHost(t), b: newHost(t)}
	r.b.image.ID = r.a.image.ID
	r.from, r.to = r.wire.join(t, r.a, r.a.open(t)), r.wire.join(t, r.b, r.b.open(t))
	return r
}

// put makes a file on a host.
func (h *host) put(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// there is a wish as the new host gets it: with what is its own.
func (r *road) there(want compute.Guest, move int, live bool) compute.Guest {
	want.Disks = slices.Clone(want.Disks)
	for i := range want.Disks {
		if ref := want.Disks[i].Image; ref != nil {
			own := *ref
			own.Path = r.b.image.Path
			want.Disks[i].Image = &own
		}
	}
	want.NICs = slices.Clone(want.NICs)
	for i := range want.NICs {
		want.NICs[i].Tap = r.b.tap(r)
	}
	want.Arrive = &compute.Arrive{Move: move, Live: live}
	return want
}

func (r *road) receive(arriving compute.Guest) compute.Transit {
	r.Helper()
	got, err := r.to.Receive(r.Context(), arriving)
	if err != nil {
		r.Fatal(err)
	}
	return got
}

func (r *road) send(leaving compute.Guest) (compute.Observation, compute.Transit) {
	r.Helper()
	seen, got, err := r.from.Send(r.Context(), leaving)
	if err != nil {
		r.Fatal(err)
	}
	return seen, got
}

// goes takes a guest all the way, as far as both hosts are Done, or in trouble.
func (r *road) goes(want compute.Guest, move int, live, urgent bool) (arriving compute.Guest, trouble string) {
	r.Helper()
	arriving = r.there(want, move, live)
	leaving := want
	leaving.Leave = &compute.Leave{Move: move, Where: r.receive(arriving).Where, Live: live, Urgent: urgent}
	if !live {
		leaving.Power = compute.Off
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		there := r.receive(arriving)
		_, here := r.send(leaving)
		if there.Trouble != "" || here.Trouble != "" {
			return arriving, there.Trouble + here.Trouble
		}
		if there.Done && here.Done {
			return arriving, ""
		}
	}
	r.Fatal("it never arrives")
	return
}

// arrived lets a guest run where it has come to, and takes away what is left of it.
func (r *road) arrived(arriving compute.Guest) compute.Observation {
	r.Helper()
	arriving.Arrive = nil
	got := ensure(r, r.to, arriving, compute.On)
	if err := r.from.Remove(r.Context(), arriving.ID); err != nil {
		r.Error(err)
	}
	if left := r.a.leftovers(r); len(left) > 0 {
		r.Errorf("left over: %q", left)
	}
	return got
}

// What a guest has, goes along: disks of every kind and what is on them, cards in the slots that they have, the config drive as
// it was, firmware variables, the console's log.
func TestAGuestWithEverythingGoes(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("taps take root")
	}
	for name, change := range map[string]func(*compute.Guest){
		"q35": func(g *compute.Guest) {}, "pc": func(g *compute.Guest) { g.Machine = "pc" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoad(t)
			want := r.a.guest(t)
			change(&want)
			image := r.a.image
			want.Disks = append(want.Disks, compute.Disk{Name: "blank", SizeMiB: 3, Label: "data"}, compute.Disk{Name: "scsi", SizeMiB: 2, Bus: "scsi"},
				compute.Disk{Name: "copy", Image: &image, SizeMiB: 4})
			seed := bytes.Repeat([]byte("of this boot"), 5000)
			want.ConfigDrive, want.Seed = true, r.a.put(t, "seed", seed)
			ensure(t, r.from, want, compute.On)
			obeys(t, r.from, want.ID)
			// A card that comes later, and a disk that goes, leave slots as no wish would give them.
			want.NICs = []compute.NIC{{PortID: resource.NewID(time.Now(), nil), MAC: "52:54:00:00:02:01", MTU: 1400, Tap: r.a.tap(t)},
				{PortID: resource.NewID(time.Now(), nil), MAC: "52:54:00:00:02:02", Tap: r.a.tap(t)}}
			ensure(t, r.from, want, compute.On)
			if want.Machine == "" { // the test's guest lets go of nothing on the old board
				want.Disks = slices.Delete(want.Disks, 1, 2)
			}
			want.Disks = append(want.Disks, compute.Disk{Name: "late", SizeMiB: 2})
			ensure(t, r.from, want, compute.On)
			types(t, r.from, want.ID, "w")
			eventually(t, "its writing", func() bool { return strings.Contains(log(t, r.from, want.ID), "w.") })
			dir := func(d *Driver, name string) string { return filepath.Join(d.dir, "guests", want.ID.String(), name) }
			late := bytes.Repeat([]byte("0123456789abcdef"), mib/16)
			if err := os.WriteFile(dir(r.from, "disk-late.raw"), append(late, make([]byte, mib)...), 0o600); err != nil {
				t.Fatal(err)
			}
			first, err := r.from.Observe(t.Context(), want.ID)
			if err != nil {
				t.Fatal(err)
			}
			// The agent has made another one since; the guest is not to see it.
			want.Seed = r.b.put(t, "seed", []byte("of another boot"))
			arriving, trouble := r.goes(want, 1, true, false)
			if trouble != "" {
				t.Fatalf("it does not go: %s", trouble)
			}
			got := r.arrived(arriving)
			if !got.StartedAt.Equal(first.StartedAt) {
				t.Errorf("it was started again")
			}
			obeys(t, r.to, want.ID)
			if text := log(t, r.to, want.ID); !strings.Contains(text, "w.") {
				t.Errorf("its log has not come along: %q", text)
			}
			for name, content := range map[string][]byte{"disk-late.raw": append(late, make([]byte, mib)...), seedFile: seed} {
				if there, err := os.ReadFile(dir(r.to, name)); err != nil || !bytes.Equal(there, content) {
					t.Errorf("%s has not come as it was: %d bytes, %v", name, len(there), err)
				}
			}
			// It is a guest like others there: devices come and go, and it starts from its disk.
			arriving.Arrive = nil
			if want.Machine == "" {
				arriving.NICs = arriving.NICs[:1]
			}
			ensure(t, r.to, arriving, compute.On)
			arriving.HardBoots++
			ensure(t, r.to, arriving, compute.On)
			eventually(t, "a boot from what it wrote", func() bool {
				text := log(t, r.to, want.ID)
				return strings.HasPrefix(text[strings.LastIndex(text, "guest up\r\n"):], "guest up\r\nused")
			})
		})
	}
}

// A hurried guest stands still, and runs on.
func TestAHurriedGuestRunsOn(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	want := r.a.guest(t)
	first := ensure(t, r.from, want, compute.On)
	obeys(t, r.from, want.ID)
	arriving, trouble := r.goes(want, 1, true, true)
	if trouble != "" {
		t.Fatal(trouble)
	}
	if got := r.arrived(arriving); !got.StartedAt.Equal(first.StartedAt) {
		t.Error("it was started again")
	}
	obeys(t, r.to, want.ID)
}

// An emulated guest stands still whenever QEMU's marks of what it wrote are taken away, and is stopped for no longer than that.
func TestAnEmulatedGuestGoes(t *testing.T) {
	t.Parallel()
	for name, course := range map[string]compute.Course{"one round": compute.OneRound, "no round": compute.NoRound} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoad(t)
			var halts, goes int
			g := r.from.guest
			want := r.a.guest(t)
			first := ensure(t, r.from, want, compute.On)
			obeys(t, r.from, want.ID)
			r.from.courseOf = func(string, int) compute.Course { return course }
			r.from.step = func(step string) { // with the guest held
				switch step {
				case "processors halted":
					halts++
				case "processors go on":
					goes++
				case "mirrors ended":
					var m migration
					if err := g(want.ID).ask(t.Context(), "query-migrate", nil, &m); err != nil || m.RAM.Rounds != 1 {
						t.Errorf("the marks were taken away %d times before the processors were stopped for good, %v", m.RAM.Rounds, err)
					}
				}
			}
			arriving, trouble := r.goes(want, 1, true, false)
			if trouble != "" {
				t.Fatal(trouble)
			}
			if halts != 1 || goes > 0 && course == compute.NoRound { // with little memory it may be past the round before it could go on
				t.Errorf("it was halted %d times, and went on %d times", halts, goes)
			}
			if got := r.arrived(arriving); !got.StartedAt.Equal(first.StartedAt) {
				t.Error("it was started again")
			}
			obeys(t, r.to, want.ID)
		})
	}
}

func TestCourseOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		accel string
		major int
		want  compute.Course
	}{{accelKVM, 7, compute.Rounds}, {accelKVM, 10, compute.Rounds}, {accelTCG, 5, compute.OneRound}, {accelTCG, 7, compute.OneRound}, {accelTCG, 8, compute.NoRound}, {accelTCG, 10, compute.NoRound}} {
		if got := courseOf(c.accel, c.major); got != c.want {
			t.Errorf("%s, QEMU %d: %q", c.accel, c.major, got)
		}
	}
}

// When the way breaks, wherever it has got to, the guest has lost nothing and runs on.
func TestTheWayBreaks(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]func(*trip) bool{
		"while the disks are sent":    func(t *trip) bool { return t.mirrored },
		"while the memory is sent":    func(t *trip) bool { return t.memory },
		"while the mirrors are ended": func(t *trip) bool { return t.leavesOff },
	} {
		for _, live := range []bool{true, false} {
			if !live && name == "while the memory is sent" {
				continue
			}
			t.Run(name+map[bool]string{true: ", live", false: ", off"}[live], func(t *testing.T) {
				t.Parallel()
				r := newRoad(t)
				want := r.a.guest(t)
				first := ensure(t, r.from, want, compute.On)
				obeys(t, r.from, want.ID)
				g := r.from.guest(want.ID)
				broken := false
				r.from.step = func(string) { // with the guest held
					if g.trip != nil && at(g.trip) && !broken {
						broken = true
						g.trip.end()
					}
				}
				_, trouble := r.goes(want, 1, live, false)
				if !broken {
					t.Fatal("nothing broke")
				}
				if trouble == "" && name != "while the mirrors are ended" {
					t.Fatal("it arrived all the same")
				}
				if err := r.to.Remove(t.Context(), want.ID); err != nil {
					t.Error(err)
				}
				if left := r.b.leftovers(t); len(left) > 0 {
					t.Errorf("left over: %q", left)
				}
				got := ensure(t, r.from, want, compute.On)
				if live && !got.StartedAt.Equal(first.StartedAt) {
					t.Error("it was started again")
				}
				obeys(t, r.from, want.ID)
				// A memory that is saved after a move is saved as ever.
				want.Power = compute.Suspended
				ensure(t, r.from, want, compute.Suspended)
				want.Power = compute.On
				ensure(t, r.from, want, compute.On)
			})
		}
	}
}

// The agent of the new host alone dies, or that of the old one: both say so, and the guest runs on.
func TestOneAgentDiesOnTheWay(t *testing.T) {
	t.Parallel()
	for name, old := range map[string]bool{"that of the old host": true, "that of the new one": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoad(t)
			want := r.a.guest(t)
			first := ensure(t, r.from, want, compute.On)
			arriving := r.there(want, 1, true)
			leaving := want
			leaving.Leave = &compute.Leave{Move: 1, Where: r.receive(arriving).Where, Live: true}
			r.send(leaving)
			g := r.from.guest(want.ID)
			eventually(t, "the luggage at the other host", func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return len(g.trip.errand) > 0
			})
			if old {
				r.from = r.wire.join(t, r.a, r.a.reopen(t, r.from).(*Driver))
			} else {
				r.to = r.wire.join(t, r.b, r.b.reopen(t, r.to).(*Driver))
			}
			eventually(t, "trouble", func() bool {
				_, here := r.send(leaving)
				return r.receive(arriving).Trouble != "" || here.Trouble != ""
			})
			if err := r.to.Remove(t.Context(), want.ID); err != nil {
				t.Error(err)
			}
			if got := ensure(t, r.from, want, compute.On); !got.StartedAt.Equal(first.StartedAt) {
				t.Error("it was started again")
			}
			obeys(t, r.from, want.ID)
		})
	}
}

// A guest that was stopped for its way goes on when its agent is gone in the midst of it, though no controller is there to tell the next one that it stays.
func TestAHaltedGuestGoesOn(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	want := r.a.guest(t)
	first := ensure(t, r.from, want, compute.On)
	obeys(t, r.from, want.ID)
	leaving := want
	leaving.Leave = &compute.Leave{Move: 1, Where: r.receive(r.there(want, 1, true)).Where, Live: true}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.from.step = func(step string) {
		if step == "processors halted" {
			cancel() // it gets no further
		}
	}
	eventually(t, "that it is halted", func() bool {
		_, _, err := r.from.Send(ctx, leaving)
		return err != nil
	})
	if got, err := r.from.Observe(t.Context(), want.ID); err != nil || got.Power != compute.Paused {
		t.Fatalf("it is %+v, %v", got, err)
	}
	r.from = r.wire.join(t, r.a, r.a.reopen(t, r.from).(*Driver))
	seen, got := r.send(leaving)
	if got.Trouble == "" || seen.Power != compute.On || !seen.StartedAt.Equal(first.StartedAt) {
		t.Errorf("the next agent says %+v of a guest that is %+v", got, seen)
	}
	obeys(t, r.from, want.ID)
	if err := r.to.Remove(t.Context(), want.ID); err != nil {
		t.Error(err)
	}
}

// Whoever is not the host that the guest comes from, or sends something else than is wished, is turned away, and nothing is made.
func TestOnlyTheAwaitedIsLetIn(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	want := r.a.guest(t)
	ensure(t, r.from, want, compute.On)
	g := r.from.guest(want.ID)
	g.mu.Lock()
	g.rec.Way = &way{Move: 1, Live: true}
	good, bodies, err := g.pack(want)
	g.rec.Way = nil
	g.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	end := r.wire.ends[r.a]
	arriving := r.there(want, 1, true)
	where := r.receive(arriving).Where
	try := func(h hail, bodies ...[]byte) string {
		t.Helper()
		conn, trouble, err := r.from.hails(t.Context(), where, 5*time.Second, h, bodies...)
		if err != nil && !strings.Contains(err.Error(), "EOF") {
			t.Fatal(err)
		}
		if conn != nil {
			conn.Close()
			return ""
		}
		return trouble + "refused"
	}
	id := want.ID
	for name, h := range map[string]hail{
		"another guest":          {Guest: resource.NewID(time.Now(), nil), Move: 1, Purpose: forLuggage, Luggage: good},
		"another move":           {Guest: id, Move: 2, Purpose: forLuggage, Luggage: good},
		"a disk too early":       {Guest: id, Move: 1, Purpose: forDisk},
		"memory too early":       {Guest: id, Move: 1, Purpose: forMemory},
		"an end of what is live": {Guest: id, Move: 1, Purpose: forEnd},
		"nothing":                {Guest: id, Move: 1},
		"no luggage":             {Guest: id, Move: 1, Purpose: forLuggage},
	} {
		if try(h, bodies...) == "" {
			t.Errorf("let in: %s", name)
		}
	}
	end.is = resource.NewID(time.Now(), nil)
	if try(hail{Guest: id, Move: 1, Purpose: forLuggage, Luggage: good}, bodies...) == "" {
		t.Error("another host was let in")
	}
	end.is = resource.ID{}
	if left := r.b.leftovers(t); len(left) != 1 { // the directory
		t.Errorf("there is %q", left)
	}
	for name, change := range map[string]func(*luggage){
		"a machine that is not there": func(l *luggage) { l.Shape.Machine = "pc-q35-99.0" },
		"more memory":                 func(l *luggage) { l.Shape.MemoryMiB *= 2 },
		"a kernel":                    func(l *luggage) { l.Shape.Kernel = true },
		"another processor":           func(l *luggage) { l.Shape.CPU = "host" },
		"a disk that is not wished": func(l *luggage) {
			l.Devices = append(l.Devices, device{Kind: "disk", Name: "x", Slot: 7, Format: "raw", Bytes: mib})
		},
		"a disk by another name":           func(l *luggage) { l.Devices[0].Name = "../../x" },
		"a disk of another kind":           func(l *luggage) { l.Devices[0].Format = "raw" },
		"a disk over another image":        func(l *luggage) { l.Devices[0].Image.ID = resource.NewID(time.Now(), nil) },
		"a disk of no size":                func(l *luggage) { l.Devices[0].Bytes = -512 },
		"a disk that is too large":         func(l *luggage) { l.Devices[0].Bytes = 1 << 60 },
		"a slot that is not there":         func(l *luggage) { l.Devices[0].Slot = 1000 },
		"a file of another name":           func(l *luggage) { l.Files[0].Name = "record.json" },
		"a file that leads elsewhere":      func(l *luggage) { l.Files[0].Name = "../x" },
		"a file that is too large":         func(l *luggage) { l.Files[0].Bytes = 1 << 40 },
		"a config drive that is not there": func(l *luggage) { l.Shape.Seed = true },
	} {
		bad := *good
		bad.Devices, bad.Files = slices.Clone(good.Devices), slices.Clone(good.Files)
		change(&bad)
		again := arriving
		move := 10 + len(name)
		again.Arrive = &compute.Arrive{Move: move, Live: true}
		r.receive(again)
		if try(hail{Guest: id, Move: move, Purpose: forLuggage, Luggage: &bad}, bodies...) == "" {
			t.Errorf("let in: %s", name)
		}
		if p := r.to.guest(id).proc; p != nil {
			t.Errorf("%s: a process runs", name)
		}
	}
	if err := r.to.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
}
