package etcd_test

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
)

// guest is as large, and as much indexed, as a server of the cloud.
type guest struct {
	resource.Meta
	HostID, ImageID, FlavorID resource.ID
	KeyName, Zone, State      string
	VCPUs, MemoryMiB, DiskGiB int64
	Metadata                  map[string]string
	Ports                     []guestPort
	UserData                  string
	LaunchedAt                time.Time
}

type guestPort struct {
	ID, NetworkID resource.ID
	MAC           string
	Addresses     []string
}

var guests = state.NewTable("bench-guest",
	state.Unique("name", func(g *guest) state.Key { return state.KeyOf(g.ProjectID, g.Name) }),
	state.Index("host", func(g *guest) state.Key { return state.KeyOf(g.HostID, g.State) }),
	state.Index("state", func(g *guest) state.Key { return state.KeyOf(g.ProjectID, g.State, g.CreatedAt) }),
	state.MultiIndex("address", func(g *guest) (keys []state.Key) {
		for _, p := range g.Ports {
			for _, a := range p.Addresses {
				keys = append(keys, state.KeyOf(p.NetworkID, a))
			}
		}
		return keys
	}),
	state.Tally("usage", func(g *guest) (state.Key, state.Amounts) {
		return state.KeyOf(g.ProjectID), state.Amounts{g.VCPUs, g.MemoryMiB, g.DiskGiB}
	}),
)

func putGuest(tx *state.Tx, n int) error {
	project, host := resource.ID{1, byte(n % 10)}, resource.ID{2, byte(n), byte(n >> 8 & 3)}
	return guests.Put(tx, &guest{
		Meta:   resource.Meta{ID: tx.NewID(), ProjectID: project, Name: "guest-" + strconv.Itoa(n)},
		HostID: host, ImageID: resource.ID{3}, FlavorID: resource.ID{4}, KeyName: "key", Zone: "nova", State: "active",
		VCPUs: 2, MemoryMiB: 2048, DiskGiB: 20, LaunchedAt: tx.Now(),
		Metadata: map[string]string{"role": "web", "owner": "team-" + strconv.Itoa(n%50)},
		Ports: []guestPort{{ID: tx.NewID(), NetworkID: resource.ID{5, byte(n % 10)}, MAC: fmt.Sprintf("fa:16:3e:%02x:%02x:%02x", n>>16&255, n>>8&255, n&255),
			Addresses: []string{fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)}}},
		UserData: strings.Repeat("#cloud-config ", 40),
	})
}

func openState(b testing.TB, dir string) *state.State {
	b.Helper()
	e, err := etcd.Open(b.Context(), etcd.Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	s, err := state.Open(b.Context(), e, state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// memoryMiB gives this process's live heap and what the system holds for it.
func memoryMiB(b testing.TB) (heap, resident float64) {
	b.Helper()
	debug.FreeOSMemory()
	return memoryMiBNow(b)
}

func memoryMiBNow(b testing.TB) (heap, resident float64) {
	b.Helper()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")))
			if err != nil {
				b.Fatal(err)
			}
			return float64(m.HeapAlloc) / (1 << 20), float64(n) / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0, 0
}

// cpuSeconds is what this process has used so far: on a busy machine it tells more
// than a clock.
func cpuSeconds(b testing.TB) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// BenchmarkRestart opens a state of 300,000 objects: 100,000 servers with what belongs to them.
func BenchmarkRestart(b *testing.B) {
	const objects = 300_000
	dir := b.TempDir()
	s := openState(b, dir)
	for n := 0; n < objects; {
		err := s.Update(b.Context(), func(tx *state.Tx) error {
			for range 50 {
				if err := putGuest(tx, n); err != nil {
					return err
				}
				n++
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	heap, resident := memoryMiB(b)
	b.Logf("after %d puts: heap %.0f MiB, resident %.0f MiB", objects, heap, resident)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	s = nil
	before, _ := memoryMiB(b)
	extra := 0
	for b.Loop() {
		cpu := cpuSeconds(b)
		s = openState(b, dir)
		b.StopTimer()
		b.ReportMetric(cpuSeconds(b)-cpu, "cpu-s")
		// The first commit is the sign to let the file's pages go.
		if err := s.Update(b.Context(), func(tx *state.Tx) error { return putGuest(tx, objects+extra) }); err != nil {
			b.Fatal(err)
		}
		extra++
		time.Sleep(200 * time.Millisecond)
		if n := guests.Len(s.Latest()); n != objects+extra {
			b.Fatalf("%d objects", n)
		}
		_, loaded := memoryMiBNow(b)
		heap, resident = memoryMiB(b)
		b.ReportMetric((heap-before)*(1<<20)/objects, "heap-B/object")
		b.ReportMetric(loaded, "RSS-loaded-MiB")
		b.ReportMetric(resident, "RSS-MiB")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkUpdate measures one transaction of three objects, durable on disk.
func BenchmarkUpdate(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := openState(b, b.TempDir())
			var next atomic.Int64
			took := make([][]time.Duration, writers)
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for {
						n := int(next.Add(1))
						if n > b.N {
							return
						}
						start := time.Now()
						err := s.Update(b.Context(), func(tx *state.Tx) error {
							for i := range 3 {
								if err := putGuest(tx, n*3+i); err != nil {
									return err
								}
							}
							return nil
						})
						if err != nil {
							b.Error(err)
							return
						}
						took[w] = append(took[w], time.Since(start))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			all := slices.Concat(took...)
			slices.Sort(all)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
