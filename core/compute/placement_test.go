package compute

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

func openState(t testing.TB) *state.State {
	t.Helper()
	st, err := state.Open(context.Background(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func addHosts(t testing.TB, st *state.State, n int, capacity host.Capacity) []resource.ID {
	t.Helper()
	var ids []resource.ID
	for i := range n {
		id := resource.NewID(time.Now(), nil)
		ids = append(ids, id)
		if err := host.Arrive(context.Background(), st, id, host.Hello{Name: fmt.Sprintf("n%04d", i), Capacity: capacity}); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

// packed says whether servers fill one host after the other.
func packed(t testing.TB, st *state.State, pack bool) {
	t.Helper()
	if _, err := (&host.Service{State: st}).SetKeeping(identity.Internal(context.Background()), func(k *host.Keeping) { k.Pack = pack }); err != nil {
		t.Fatal(err)
	}
}

func update(t testing.TB, st *state.State, fn func(*state.Tx) error) {
	t.Helper()
	if err := st.Update(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

var oneHost = host.Capacity{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 100, Arch: "x86_64", MaxVCPUs: 16}

// Every demand that removes a host says so, and one that fits is met.
func TestConstraints(t *testing.T) {
	tests := map[string]struct {
		change func(*host.Host)
		demand demand
		by     string // the constraint that removes the only host; "" if it fits
	}{
		"fits":         {nil, demand{load: state.Amounts{1, 1, 1}}, ""},
		"fits exactly": {nil, demand{load: state.Amounts{8, 8192, 100}}, ""},
		"processors":   {nil, demand{load: state.Amounts{9, 1, 1}}, "has the processors"},
		"memory":       {nil, demand{load: state.Amounts{1, 8193, 1}}, "has the memory"},
		"disk":         {nil, demand{load: state.Amounts{1, 1, 101}}, "has the disk"},
		"disk, of which less than nothing is left": {func(h *host.Host) { h.Capacity.DiskGiB = -5 }, demand{load: state.Amounts{1, 1, 1}}, "has the disk"},
		"none of that disk":                        {func(h *host.Host) { h.Capacity.DiskGiB = -5 }, demand{load: state.Amounts{1, 1, 0}}, ""},
		"one guest's processor":                    {nil, demand{load: state.Amounts{17, 1, 1}}, "can run so many processors in one guest"},
		"lost":                                     {func(h *host.Host) { h.Lost = time.Now() }, demand{}, "can be heard"},
		"disabled":                                 {func(h *host.Host) { h.Disabled = true }, demand{}, "takes new servers"},
		"maintained":                               {func(h *host.Host) { h.Maintenance = true }, demand{}, "takes new servers"},
		"another zone":                             {nil, demand{zone: "elsewhere"}, "is in the zone"},
		"its zone":                                 {nil, demand{zone: "nova"}, ""},
		"another host":                             {nil, demand{host: resource.NewID(time.Now(), nil)}, "is the host that was named"},
		"another architecture":                     {nil, demand{arch: "aarch64"}, "has the architecture"},
		"emulation":                                {nil, demand{isolating: true}, "separates guests by hardware"},
		"isolation":                                {func(h *host.Host) { h.Capacity.Isolating = true }, demand{isolating: true}, ""},
		"no aggregate":                             {nil, demand{labels: map[string]string{"ssd": "true"}}, "is in an aggregate for the flavor"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			st := openState(t)
			id := addHosts(t, st, 1, oneHost)[0]
			s := New(st, Config{Ratios: host.Ratios{1}})
			update(t, st, func(tx *state.Tx) error {
				if test.change == nil {
					return nil
				}
				h, _ := host.Find(tx, id)
				test.change(h)
				return host.Table().Put(tx, h)
			})
			update(t, st, func(tx *state.Tx) error {
				chosen, why := s.place(tx, test.demand)
				switch {
				case test.by == "" && (chosen == nil || why.Chosen != chosen.Name):
					t.Errorf("nothing was chosen: %+v", why)
				case test.by != "" && (chosen != nil || len(why.Removed) != 1 || why.Removed[0].Constraint != test.by || why.Removed[0].Count != 1):
					t.Errorf("chosen %v, removed by %+v", chosen, why.Removed)
				}
				return nil
			})
		})
	}
}

func TestNearestFit(t *testing.T) {
	st := openState(t)
	addHosts(t, st, 3, oneHost)
	s := New(st, Config{})
	update(t, st, func(tx *state.Tx) error {
		_, why := s.place(tx, demand{load: state.Amounts{1, 9000, 1}})
		if want := "The host that came nearest lacks 808 MiB of memory."; why.Nearest != want {
			t.Errorf("the nearest fit is %q", why.Nearest)
		}
		if want := "No valid host was found. The host that came nearest lacks 808 MiB of memory. Of the hosts, 3 of 3 were left out because none of them has the memory."; explainAll(why) != want {
			t.Errorf("explained to operators by %q", explainAll(why))
		}
		if want := "No valid host was found. There is none at present that can be heard, takes new servers, can run so many processors in one guest, has the processors, has the memory, has the disk, all of it."; explain(why) != want {
			t.Errorf("explained to the owner by %q", explain(why))
		}
		return nil
	})
}

func TestPolicies(t *testing.T) {
	tests := map[string]struct {
		group  Group
		hosts  int
		placed int // of four servers
		used   int // hosts
	}{
		"apart on three hosts":       {Group{Policy: Apart}, 3, 3, 3},
		"apart by two on one host":   {Group{Policy: Apart, MaxPerHost: 2}, 1, 2, 1},
		"together":                   {Group{Policy: Together}, 3, 4, 1},
		"softly together":            {Group{Policy: SoftTogether}, 3, 4, 1},
		"softly apart on three":      {Group{Policy: SoftApart}, 3, 4, 3},
		"softly apart on many hosts": {Group{Policy: SoftApart}, 9, 4, 4},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			st := openState(t)
			addHosts(t, st, test.hosts, oneHost)
			s := New(st, Config{})
			update(t, st, func(tx *state.Tx) error {
				g := test.group
				g.ID, g.Name = tx.NewID(), "g"
				placed, on := 0, map[resource.ID]bool{}
				for range 4 {
					chosen, _ := s.place(tx, demand{group: &g})
					if chosen == nil {
						continue
					}
					placed++
					on[chosen.ID] = true
					srv := &Server{Meta: resource.Meta{ID: tx.NewID()}, GroupID: g.ID, HostID: chosen.ID}
					if err := servers.Put(tx, srv); err != nil {
						return err
					}
				}
				if placed != test.placed || len(on) != test.used {
					t.Errorf("%d were placed on %d hosts", placed, len(on))
				}
				return nil
			})
		})
	}
}

func TestTiesAreSpread(t *testing.T) {
	st := openState(t)
	addHosts(t, st, 4, oneHost)
	s := New(st, Config{})
	chosen := map[string]int{}
	update(t, st, func(tx *state.Tx) error {
		for range 400 {
			h, _ := s.place(tx, demand{load: state.Amounts{1, 1, 1}})
			chosen[h.Name]++
		}
		return nil
	})
	for name, n := range chosen {
		if n < 50 || n > 150 {
			t.Errorf("of 400 equal choices %s was taken %d times", name, n)
		}
	}
	if len(chosen) != 4 {
		t.Errorf("chosen were %v", chosen)
	}
}

// Whatever comes and goes, no host is promised more than it has, what the tally says equals a
// recount, and a server is refused only when really nothing fits.
func TestCapacityHolds(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		st := openState(t)
		ids := addHosts(t, st, rapid.IntRange(1, 5).Draw(r, "hosts"), oneHost)
		s := New(st, Config{Ratios: host.Ratios{2}})
		packed(t, st, rapid.Bool().Draw(r, "pack"))
		var live []resource.ID
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			update(t, st, func(tx *state.Tx) error {
				if len(live) > 0 && rapid.IntRange(0, 3).Draw(r, "delete") == 0 {
					n := rapid.IntRange(0, len(live)-1).Draw(r, "which")
					id := live[n]
					live = append(live[:n], live[n+1:]...)
					return servers.Delete(tx, id)
				}
				shape := Shape{VCPUs: rapid.IntRange(1, 8).Draw(r, "vcpus"), MemoryMiB: rapid.IntRange(1, 8192).Draw(r, "mib"),
					RootGiB: rapid.IntRange(0, 100).Draw(r, "gib"), SwapMiB: rapid.IntRange(0, 2000).Draw(r, "swap")}
				chosen, why := s.place(tx, shape.ask())
				if chosen == nil {
					for _, id := range ids {
						if fits(s, tx, id, shape.load()) {
							r.Fatalf("refused although %s fits: %+v", id, why)
						}
					}
					return nil
				}
				srv := &Server{Meta: resource.Meta{ID: tx.NewID()}, Shape: shape, HostID: chosen.ID}
				live = append(live, srv.ID)
				return servers.Put(tx, srv)
			})
			tx := st.Latest()
			for _, id := range ids {
				count := recount(tx, id)
				if _, sums := servers.Sum(tx, "load", state.KeyOf(id)); sums != count {
					r.Fatalf("the tally says %v, a recount %v", sums, count)
				}
				h, _ := host.Find(tx, id)
				policy := s.overcommits(tx)
				for i, most := range policy.total(h) {
					if count[i] > most {
						r.Fatalf("host %s has promised %d of %d %s", id, count[i], most, units[min(i, 2)])
					}
				}
			}
		}
	})
}

func recount(tx *state.Tx, id resource.ID) (sum state.Amounts) {
	for srv := range servers.All(tx) {
		if srv.HostID == id {
			for i, n := range srv.Shape.load() {
				sum[i] += n
			}
		}
	}
	return sum
}

func fits(s *Service, tx *state.Tx, id resource.ID, load state.Amounts) bool {
	h, _ := host.Find(tx, id)
	used := recount(tx, id)
	policy := s.overcommits(tx)
	for i, most := range policy.total(h) {
		if i < 3 && used[i]+load[i] > most {
			return false
		}
	}
	return true
}

// Of many hosts some are looked at, as long as one of them fits; and all, when none does.
func TestManyHosts(t *testing.T) {
	st := openState(t)
	ids := addHosts(t, st, 3*enough, oneHost)
	s := New(st, Config{Ratios: host.Ratios{1}})
	update(t, st, func(tx *state.Tx) error {
		chosen, why := s.place(tx, demand{load: state.Amounts{1, 1, 1}})
		if chosen == nil || why.Looked != enough || why.Of != 3*enough || why.Chosen != chosen.Name {
			t.Errorf("of many alike %v was chosen: %+v", chosen, why)
		}
		only := ids[enough+7]
		if chosen, why = s.place(tx, demand{load: state.Amounts{1, 1, 1}, beside: map[resource.ID]bool{only: true}}); chosen == nil || chosen.ID != only {
			t.Errorf("the only one that fits was not found: %+v", why)
		}
		if chosen, why = s.place(tx, demand{load: state.Amounts{9, 1, 1}}); chosen != nil || why.Looked != 3*enough || why.Of != 0 ||
			why.Removed[0].Count != 3*enough || why.Nearest != "The host that came nearest lacks 1 processors." {
			t.Errorf("where none fits: %+v", why)
		}
		return nil
	})
	chosen := map[resource.ID]int{}
	for range 200 {
		update(t, st, func(tx *state.Tx) error {
			h, _ := s.place(tx, demand{})
			chosen[h.ID]++
			return nil
		})
	}
	if len(chosen) < 150 {
		t.Errorf("200 decisions among %d hosts alike chose only %d of them", len(ids), len(chosen))
	}
}

// TestPackingManyHosts: where only a sample is looked at one host is filled after the other, too, but for the odd ones.
func TestPackingManyHosts(t *testing.T) {
	for name, sizes := range map[string][]int{"servers alike": {1}, "of several sizes": {1, 1, 1, 2, 4}} {
		t.Run(name, func(t *testing.T) {
			st := openState(t)
			addHosts(t, st, 16*enough, oneHost)
			packed(t, st, true)
			s := New(st, Config{Ratios: host.Ratios{4}})
			on, taken := map[resource.ID]bool{}, 0
			for n := range 4 {
				update(t, st, func(tx *state.Tx) error {
					for m := range 25 {
						shape := Shape{VCPUs: sizes[(n*25+m)%len(sizes)], MemoryMiB: 16}
						chosen, _ := s.place(tx, shape.ask())
						on[chosen.ID] = true
						taken += shape.VCPUs
						if err := servers.Put(tx, &Server{Meta: resource.Meta{ID: tx.NewID()}, Shape: shape, HostID: chosen.ID}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if least := (taken + 31) / 32; len(on) > least+least/10+1 {
				t.Errorf("%d hosts were begun, and %d are enough", len(on), least)
			}
		})
	}
}

// One decision with its explanation, and its worst of a hundred, by how many hosts there are.
func BenchmarkPlace(b *testing.B) {
	for _, hosts := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprint(hosts), func(b *testing.B) {
			st := openState(b)
			ids := addHosts(b, st, hosts, host.Capacity{VCPUs: 64, MemoryMiB: 1 << 18, DiskGiB: 4000, Arch: "x86_64"})
			s := New(st, Config{})
			update(b, st, func(tx *state.Tx) error {
				for n := range 20_000 {
					srv := &Server{Meta: resource.Meta{ID: tx.NewID()}, Shape: Shape{VCPUs: 1, MemoryMiB: 128}, HostID: ids[n%len(ids)]}
					if err := servers.Put(tx, srv); err != nil {
						return err
					}
				}
				return nil
			})
			update(b, st, func(tx *state.Tx) error {
				var took []time.Duration
				for b.Loop() {
					began := time.Now()
					if _, why := s.place(tx, demand{load: state.Amounts{1, 128, 1}}); why.Chosen == "" {
						b.Fatal("nothing fits")
					}
					took = append(took, time.Since(began))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
				return nil
			})
		})
	}
}

// Several constraints at once, of which few of many hosts meet all.
func BenchmarkPlaceConstrained(b *testing.B) {
	for name, d := range map[string]demand{
		"zone":      {load: state.Amounts{1, 128, 1}, zone: "z1"},
		"aggregate": {load: state.Amounts{1, 128, 1}, labels: map[string]string{"disk": "ssd"}},
		"rare": {load: state.Amounts{1, 128, 1}, zone: "z1", arch: "x86_64", labels: map[string]string{"rare": "true"}, required: []string{"CUSTOM_FAST", "COMPUTE_NODE"},
			group: &Group{Policy: Apart}},
		"none": {load: state.Amounts{1, 1 << 30, 1}, zone: "z1", required: []string{"CUSTOM_FAST", "COMPUTE_NODE"}},
	} {
		b.Run(name, func(b *testing.B) {
			st := openState(b)
			ids := addHosts(b, st, 5000, host.Capacity{VCPUs: 64, MemoryMiB: 1 << 18, DiskGiB: 4000, Arch: "x86_64"})
			s := New(st, Config{})
			update(b, st, func(tx *state.Tx) error {
				all := []*Aggregate{{Meta: resource.Meta{Name: "z0"}, Zone: "z0"}, {Meta: resource.Meta{Name: "z1"}, Zone: "z1"},
					{Meta: resource.Meta{Name: "ssd"}, Metadata: map[string]string{"disk": "ssd"}}, {Meta: resource.Meta{Name: "rare"}, Metadata: map[string]string{"rare": "true"}}}
				for n, id := range ids {
					all[n%2].Hosts = append(all[n%2].Hosts, id)
					if n%3 == 0 {
						all[2].Hosts = append(all[2].Hosts, id)
					}
					if n%1001 == 0 {
						all[3].Hosts = append(all[3].Hosts, id)
					}
					h, _ := host.Find(tx, id)
					h.Traits = []string{"CUSTOM_FAST"}
					if err := host.Table().Put(tx, h); err != nil {
						return err
					}
				}
				for n, a := range all {
					a.ID, a.Number = tx.NewID(), n
					if err := aggregates.Put(tx, a); err != nil {
						return err
					}
				}
				return nil
			})
			update(b, st, func(tx *state.Tx) error {
				for b.Loop() {
					if _, why := s.place(tx, d); (why.Chosen == "") != (name == "none") {
						b.Fatal(why)
					}
				}
				return nil
			})
		})
	}
}
