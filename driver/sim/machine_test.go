package sim

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/computetest"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/network/networktest"
)

func machine(takes func(string) time.Duration) *Machine {
	m := New(compute.Capabilities{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 100, MaxVCPUs: 8, Arch: "x86_64"})
	m.Takes = takes
	return m
}

func wish() compute.Guest {
	return compute.Guest{ID: resource.NewID(time.Now(), nil), Name: "g", VCPUs: 1, MemoryMiB: 64, Power: compute.On,
		GraceSeconds: 1, Disks: []compute.Disk{{Name: "root", SizeMiB: 1}}}
}

func to(do func(*Machine, resource.ID)) func(testing.TB, compute.Driver, resource.ID) {
	return func(_ testing.TB, d compute.Driver, id resource.ID) { do(d.(*Guests).m, id) }
}

func TestGuests(t *testing.T) {
	var serial atomic.Int32
	for name, takes := range map[string]func(string) time.Duration{
		"changes take time": func(string) time.Duration { return 5 * time.Millisecond },
		"changes take none": nil,
	} {
		t.Run(name, func(t *testing.T) {
			computetest.TestDriver(t, func(testing.TB) compute.Driver { return machine(takes).Guests() }, computetest.Options{
				Guest:     func(testing.TB) compute.Guest { return wish() },
				Reopen:    func(_ testing.TB, d compute.Driver) compute.Driver { return d.(*Guests).m.Guests() },
				ShutDown:  to((*Machine).ShutDown),
				Reboot:    to((*Machine).Restart),
				GoDeaf:    to((*Machine).Deafen),
				Crash:     to((*Machine).Crash),
				Impressed: to((*Machine).Write),
				Fresh:     func(_ testing.TB, d compute.Driver, id resource.ID) bool { return !d.(*Guests).m.Written(id) },
				NIC: func(testing.TB) compute.NIC {
					n := serial.Add(1)
					return compute.NIC{PortID: resource.NewID(time.Now(), nil), MAC: fmt.Sprintf("52:54:00:00:00:%02x", n)}
				},
				Disk: func(testing.TB) compute.Disk {
					return compute.Disk{Name: fmt.Sprint("disk-", serial.Add(1)), SizeMiB: 1}
				},
				Parallel: true,
			})
		})
	}
}

func TestMoves(t *testing.T) { testMoves(t, false) }

func TestSharedDisks(t *testing.T) { testMoves(t, true) }

func testMoves(t *testing.T, shared bool) {
	var byCase sync.Map
	for name, takes := range map[string]func(string) time.Duration{
		"changes take time": func(string) time.Duration { return 5 * time.Millisecond },
		"changes take none": nil,
	} {
		t.Run(name, func(t *testing.T) {
			open := func(t testing.TB) (from, to compute.Driver) {
				joined, a, b := new(Net), machine(takes), machine(takes)
				if shared {
					a.Storage = NewStorage("shared")
					b.Storage = a.Storage
					byCase.Store(t.Name(), a.Storage)
				}
				joined.Join(a)
				joined.Join(b)
				return a.Guests(), b.Guests()
			}
			o := computetest.MoverOptions{Options: computetest.Options{
				Guest: func(testing.TB) compute.Guest {
					want := wish()
					if shared {
						want.Storage = "shared"
					}
					return want
				},
				Reopen:    func(_ testing.TB, d compute.Driver) compute.Driver { return d.(*Guests).m.Guests() },
				Crash:     to((*Machine).Crash),
				Impressed: to((*Machine).Write),
				Fresh:     func(_ testing.TB, d compute.Driver, id resource.ID) bool { return !d.(*Guests).m.Written(id) },
				Parallel:  true,
			}, LeftoversOf: func(t testing.TB, d compute.Driver) []string {
				ids, err := d.Present(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return left(ids)
			}}
			if shared {
				o.Dies = func(_ testing.TB, d compute.Driver) { d.(*Guests).m.Reboot() }
				o.Disks = func(t testing.TB) []resource.ID {
					s, _ := byCase.Load(t.Name())
					return s.(*Storage).Guests()
				}
			}
			computetest.TestMover(t, open, o)
		})
	}
}

func left(ids []resource.ID) (texts []string) {
	for _, id := range ids {
		texts = append(texts, id.String())
	}
	return texts
}

// A power failure ends what is on its way; what was sent already is not sent twice.
func TestPowerFailureWhileAGuestMoves(t *testing.T) {
	for name, test := range map[string]struct {
		done  bool // it had all been sent
		fails bool // on the machine where it leaves
		here  bool // the guest's way ends in trouble there
		there bool
	}{
		"of the old host, on the way":       {fails: true, here: true},
		"of the new host, on the way":       {there: true},
		"of the old host, when it was sent": {done: true, fails: true},
		"of the new host, when it was sent": {done: true, there: true},
	} {
		t.Run(name, func(t *testing.T) {
			joined, from, to := new(Net), machine(nil), machine(nil)
			joined.Join(from)
			joined.Join(to)
			want := wish()
			ensure(t, from, want)
			arriving, leaving := want, want
			arriving.Arrive = &compute.Arrive{Move: 1, Live: true}
			receive := func() compute.Transit {
				got, err := to.Guests().Receive(t.Context(), arriving)
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			leaving.Leave = &compute.Leave{Move: 1, Where: receive().Where, Live: true}
			send := func() compute.Transit {
				_, got, err := from.Guests().Send(t.Context(), leaving)
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			if !test.done {
				from.Takes = func(string) time.Duration { return time.Hour }
			}
			if got := send(); got.Done != test.done {
				t.Fatalf("at first it is %+v", got)
			}
			if test.fails {
				from.Reboot()
			} else {
				to.Reboot()
			}
			if got := send(); (got.Trouble != "") != test.here || got.Done != test.done {
				t.Errorf("the old host says %+v", got)
			}
			if got := receive(); (got.Trouble != "") != test.there {
				t.Errorf("the new host says %+v", got)
			}
		})
	}
}

func TestNetworks(t *testing.T) {
	networktest.TestDriver(t, func(*testing.T) network.Driver { return machine(nil).Networks() }, networktest.Options{
		Reopen: func(_ *testing.T, d network.Driver) network.Driver { return d.(*Networks).m.Networks() },
	})
}

// ensure asks until nothing is under way.
func ensure(t *testing.T, m *Machine, want compute.Guest) compute.Observation {
	t.Helper()
	for range 1000 {
		seen, err := m.Guests().Ensure(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		if !seen.Busy {
			return seen
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it never settles")
	return compute.Observation{}
}

func TestPowerFailure(t *testing.T) {
	m := machine(nil)
	runs, asleep, ended := wish(), wish(), wish()
	ensure(t, m, runs)
	ensure(t, m, asleep)
	asleep.Power = compute.Suspended
	ensure(t, m, asleep)
	ensure(t, m, ended)
	m.ShutDown(ended.ID)

	m.Reboot()
	for _, c := range []struct {
		want        compute.Guest
		first, then compute.Power
	}{{runs, compute.Off, compute.On}, {asleep, compute.Suspended, compute.Suspended}, {ended, compute.Off, compute.Off}} {
		seen, err := m.Guests().Observe(t.Context(), c.want.ID)
		if err != nil || seen.Power != c.first || !seen.StartedAt.IsZero() {
			t.Errorf("wished %s, after the power failed: %+v, %v", c.want.Power, seen, err)
		}
		if seen := ensure(t, m, c.want); seen.Power != c.then {
			t.Errorf("wished %s, it came back as %+v", c.want.Power, seen)
		}
	}
}

// TestTimeIsGiven: with a clock that stands still nothing gets done, however long one waits.
func TestTimeIsGiven(t *testing.T) {
	clock := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	m := machine(func(string) time.Duration { return time.Second })
	m.Now = func() time.Time { return clock }
	want := wish()
	look := func() compute.Observation {
		seen, err := m.Guests().Ensure(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	look()
	clock = clock.Add(time.Second - 1)
	if seen := look(); !seen.Busy || seen.Power != compute.Off {
		t.Errorf("before its time: %+v", seen)
	}
	clock = clock.Add(1)
	if seen := look(); seen.Busy || seen.Power != compute.On || !seen.StartedAt.Equal(clock) || seen.StartMs != 1000 {
		t.Errorf("at its time: %+v", seen)
	}
}

// TestGuestsAreSmall: a process holds 100,000 of them.
func TestGuestsAreSmall(t *testing.T) {
	const guests, most = 5_000, 512 // bytes of each
	m := machine(nil)
	heap := func() uint64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	for range guests {
		want := wish()
		want.Metadata.UserData = make([]byte, 16<<10)
		if seen := ensure(t, m, want); seen.Power != compute.On {
			t.Fatalf("%+v", seen)
		}
	}
	if each := (heap() - before) / guests; each > most {
		t.Errorf("a guest takes %d bytes", each)
	}
	runtime.KeepAlive(m)
}
