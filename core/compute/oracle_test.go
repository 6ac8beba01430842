package compute

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// An oracle says which hosts meet a demand, by reading everything there is, and knows nothing of constraints, tallies or samples.
type oracle struct {
	tx       *state.Tx
	config   Config
	hosts    []*host.Host
	grouped  map[resource.ID]int // servers of the group by host
	zones    map[resource.ID]string
	in       map[resource.ID][]*Aggregate
	taken    map[resource.ID]state.Amounts
	occupied map[resource.ID]map[string]int64
}

func consult(tx *state.Tx, config Config, group *Group) *oracle {
	o := &oracle{tx: tx, config: config, grouped: map[resource.ID]int{}, zones: map[resource.ID]string{}, in: map[resource.ID][]*Aggregate{},
		taken: map[resource.ID]state.Amounts{}, occupied: map[resource.ID]map[string]int64{}}
	for a := range aggregates.All(tx) {
		for _, id := range a.Hosts {
			o.in[id] = append(o.in[id], a)
			if a.Zone != "" {
				o.zones[id] = a.Zone
			}
		}
	}
	for srv := range servers.All(tx) {
		if group != nil && srv.GroupID == group.ID {
			o.grouped[srv.HostID]++
		}
		at := []resource.ID{srv.HostID}
		if srv.Move != nil {
			at = append(at, srv.Move.To)
		}
		for _, id := range at {
			sum := o.taken[id]
			sum[0] += int64(srv.Shape.VCPUs)
			sum[1] += int64(srv.Shape.MemoryMiB)
			sum[2] += int64(srv.Shape.RootGiB)
			o.taken[id] = sum
			if o.occupied[id] == nil {
				o.occupied[id] = map[string]int64{}
			}
			if srv.Shape.Extra["resources:CUSTOM_GPU"] == "1" {
				o.occupied[id]["CUSTOM_GPU"]++
			}
		}
	}
	o.hosts = slices.Collect(host.Table().All(tx))
	return o
}

func (o *oracle) fits(h *host.Host, d *demand) bool {
	has := func(trait string) bool { return slices.Contains(h.AllTraits(), trait) }
	zone := h.Zone
	if z := o.zones[h.ID]; z != "" {
		zone = z
	}
	labeled := d.labels == nil
	for _, a := range o.in[h.ID] {
		all := true
		for k, v := range d.labels {
			all = all && a.Metadata[k] == v
		}
		labeled = labeled || all
	}
	switch {
	case !h.Lost.IsZero(), h.Disabled, h.Maintenance:
		return false
	case !d.host.IsZero() && h.ID != d.host, h.ID == d.leaves, d.moves && !h.Capacity.Moves:
		return false
	case d.zone != "" && zone != d.zone, d.arch != "" && h.Capacity.Arch != "" && h.Capacity.Arch != d.arch, d.isolating && !h.Capacity.Isolating:
		return false
	case !labeled, slices.ContainsFunc(d.required, func(t string) bool { return !has(t) }), slices.ContainsFunc(d.forbidden, has):
		return false
	case d.apart[h.ID], d.beside != nil && !d.beside[h.ID]:
		return false
	case h.Capacity.MaxVCPUs > 0 && d.load[0] > int64(h.Capacity.MaxVCPUs):
		return false
	}
	if g := d.group; g != nil {
		if g.Policy == Apart && o.grouped[h.ID] >= max(1, g.MaxPerHost) || g.Policy == Together && len(o.grouped) > 0 && o.grouped[h.ID] == 0 {
			return false
		}
	}
	if n := d.claims["CUSTOM_GPU"]; n > 0 && o.occupied[h.ID]["CUSTOM_GPU"]+n > h.Offers["CUSTOM_GPU"].Total {
		return false
	}
	used, have := o.taken[h.ID], o.have(h)
	for i := range have {
		if d.load[i] > 0 && used[i]+d.load[i] > int64(have[i]) {
			return false
		}
	}
	return true
}

// have is what a host may promise: the least that its aggregates say, or else as the cloud is set up.
func (o *oracle) have(h *host.Host) [3]float64 {
	have := [3]float64{float64(h.Capacity.VCPUs), float64(h.Capacity.MemoryMiB), float64(h.Capacity.DiskGiB)}
	for i, key := range []string{"cpu_allocation_ratio", "ram_allocation_ratio", "disk_allocation_ratio"} {
		least := math.Inf(1)
		for _, a := range o.in[h.ID] {
			if text, ok := a.Metadata[key]; ok {
				var ratio float64
				fmt.Sscan(text, &ratio)
				least = min(least, ratio)
			}
		}
		if math.IsInf(least, 1) {
			least = o.config.Ratios.Or(DefaultRatios)[i]
		}
		have[i] = math.Floor(have[i] * least)
	}
	return have
}

// worth is how good a host is for the demand, by the promise that the emptiest, or the fullest, is taken, after what a group prefers.
func (o *oracle) worth(h *host.Host, d *demand) float64 {
	used, have := o.taken[h.ID], o.have(h)
	free := 0.0
	for i := range have {
		free += (have[i] - float64(used[i]+d.load[i])) / have[i] / 3
	}
	if host.KeepingOf(o.tx).Pack {
		free = 1 - free
	}
	switch {
	case d.group != nil && d.group.Policy == SoftTogether:
		free += float64(o.grouped[h.ID])
	case d.group != nil && d.group.Policy == SoftApart:
		free -= float64(o.grouped[h.ID])
	}
	return free
}

// TestPlacementIsWhatAFullScanComesTo holds decisions among many hosts, of which a part is looked at, and few, of which all are,
// against the oracle: what is chosen fits, nothing is chosen only if nothing fits, where all are looked at it is the best, and the
// explanation accounts for each host.
func TestPlacementIsWhatAFullScanComesTo(t *testing.T) {
	chosen, refused := 0, 0
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 7))
		many := []int{40, 2*enough + 37, 4*enough + 1}[seed%3]
		config := Config{Ratios: host.Ratios{2}}
		st := openState(t)
		packed(t, st, seed%2 == 1)
		s := New(st, config)
		groups := scatter(t, st, r, many)
		for range 40 {
			update(t, st, func(tx *state.Tx) error {
				d, gpu := wish(r, tx, groups)
				o := consult(tx, config, d.group)
				h, why := s.place(tx, d)
				var fit []*host.Host
				for _, h := range o.hosts {
					if o.fits(h, &d) {
						fit = append(fit, h)
					}
				}
				removed := 0
				for _, r := range why.Removed {
					removed += r.Count
				}
				if h == nil {
					refused++
					if len(fit) > 0 || why.Looked != many || removed != many || why.Chosen != "" {
						t.Fatalf("seed %d: of %d hosts that fit none was chosen for %+v: %+v", seed, len(fit), d, why)
					}
					return nil
				}
				chosen++
				if !slices.ContainsFunc(fit, func(f *host.Host) bool { return f.ID == h.ID }) || why.Chosen != h.Name || removed >= why.Looked || len(why.Scores) == 0 {
					t.Fatalf("seed %d: %s was chosen for %+v: %+v", seed, h.Name, d, why)
				}
				if why.Looked == many {
					best := slices.MaxFunc(fit, func(a, b *host.Host) int { return cmp.Compare(o.worth(a, &d), o.worth(b, &d)) })
					if o.worth(best, &d)-o.worth(h, &d) > 1e-9 || removed != many-len(fit) {
						t.Fatalf("seed %d: %s was chosen, and %s is better: %+v", seed, h.Name, best.Name, why)
					}
				}
				return servers.Put(tx, occupant(tx, h.ID, d, gpu))
			})
		}
	}
	if chosen < 200 || refused < 50 {
		t.Errorf("%d were placed and %d refused, which proves little", chosen, refused)
	}
}

// scatter makes hosts of many kinds, some of them taken, in aggregates, and groups of servers.
func scatter(t *testing.T, st *state.State, r *rand.Rand, many int) (groups []*Group) {
	t.Helper()
	update(t, st, func(tx *state.Tx) error {
		var ids []resource.ID
		for n := range many {
			h := &host.Host{Meta: resource.Meta{ID: tx.NewID(), Name: fmt.Sprint("n", n)}, Zone: fmt.Sprint("z", r.IntN(3)),
				Capacity: host.Capacity{VCPUs: 4 + r.IntN(4), MemoryMiB: 4096, DiskGiB: 50 + r.IntN(50), MaxVCPUs: r.IntN(6), Moves: r.IntN(4) > 0,
					Isolating: r.IntN(3) > 0, Arch: []string{"x86_64", "aarch64", ""}[r.IntN(3)]},
				Disabled: r.IntN(12) == 0, Maintenance: r.IntN(12) == 0}
			if r.IntN(10) == 0 {
				h.Lost = time.Unix(1e9, 0)
			}
			if r.IntN(3) == 0 {
				h.Traits = []string{"CUSTOM_FAST"}
			}
			if r.IntN(8) == 0 {
				h.Offers = map[string]host.Inventory{"CUSTOM_GPU": {Total: int64(1 + r.IntN(2)), Ratio: 1, Min: 1, Max: 4, Step: 1}}
			}
			ids = append(ids, h.ID)
			if err := host.Table().Put(tx, h); err != nil {
				return err
			}
		}
		for n := range 4 {
			a := &Aggregate{Meta: resource.Meta{ID: tx.NewID(), Name: fmt.Sprint("a", n)}, Number: n, Metadata: map[string]string{"disk": []string{"ssd", "hdd"}[n%2]}}
			for _, id := range ids {
				if r.IntN([]int{2, 20, 200, 7}[n]) == 0 {
					a.Hosts = append(a.Hosts, id)
				}
			}
			if n == 3 {
				a.Zone = "z9"
			}
			if n%2 == 1 {
				a.Metadata["cpu_allocation_ratio"], a.Metadata["ram_allocation_ratio"] = []string{"1.5", "3"}[n/2], []string{"2", "0.5"}[n/2]
			}
			if err := aggregates.Put(tx, a); err != nil {
				return err
			}
		}
		for _, policy := range []Policy{Together, Apart, SoftTogether, SoftApart} {
			groups = append(groups, &Group{Meta: resource.Meta{ID: tx.NewID(), Name: string(policy)}, Policy: policy, MaxPerHost: r.IntN(3)})
		}
		for range 2 * many {
			d, gpu := wish(r, tx, nil)
			srv := occupant(tx, ids[r.IntN(len(ids))], d, gpu)
			if r.IntN(5) == 0 {
				srv.Move = &Move{To: ids[r.IntN(len(ids))], Was: srv.Shape}
			}
			if srv.Move != nil && srv.Move.To == srv.HostID {
				srv.Move = nil
			}
			if err := servers.Put(tx, srv); err != nil {
				return err
			}
		}
		return nil
	})
	return groups
}

// wish is a demand with some constraints at once.
func wish(r *rand.Rand, tx *state.Tx, groups []*Group) (d demand, gpu bool) {
	d.load = state.Amounts{int64(1 + r.IntN(4)), int64(128 << r.IntN(5)), int64(r.IntN(20))}
	one := func() *host.Host {
		h, _ := host.Table().PeekAt(tx, r.IntN(host.Table().Len(tx)))
		return h
	}
	for range r.IntN(4) {
		switch r.IntN(11) {
		case 0:
			d.zone = []string{"z0", "z1", "z9", "z7"}[r.IntN(4)]
		case 1:
			d.arch = []string{"x86_64", "aarch64", "riscv64"}[r.IntN(3)]
		case 2:
			d.isolating = true
		case 3:
			d.labels = map[string]string{"disk": []string{"ssd", "hdd", "tape"}[r.IntN(3)]}
		case 4:
			d.required = []string{"CUSTOM_FAST", "COMPUTE_NODE"}[:1+r.IntN(2)]
		case 5:
			d.forbidden = []string{"CUSTOM_FAST"}
		case 6:
			d.claims, gpu = map[string]int64{"CUSTOM_GPU": 1}, true
		case 7:
			if groups != nil {
				d.group = groups[r.IntN(len(groups))]
			}
		case 8:
			d.moves, d.leaves = true, one().ID
		case 9:
			if r.IntN(4) == 0 {
				d.host = one().ID
			}
		case 10:
			d.apart = map[resource.ID]bool{one().ID: true}
			if r.IntN(2) == 0 {
				d.apart, d.beside = nil, map[resource.ID]bool{one().ID: true, one().ID: true}
			}
		}
	}
	return d, gpu
}

// occupant is a server with what a demand asked for.
func occupant(tx *state.Tx, on resource.ID, d demand, gpu bool) *Server {
	srv := &Server{Meta: resource.Meta{ID: tx.NewID()}, HostID: on, Shape: Shape{VCPUs: int(d.load[0]), MemoryMiB: int(d.load[1]), RootGiB: int(d.load[2])}}
	if d.group != nil {
		srv.GroupID = d.group.ID
	}
	if gpu {
		srv.Shape.Extra = map[string]string{"resources:CUSTOM_GPU": "1"}
	}
	return srv
}
