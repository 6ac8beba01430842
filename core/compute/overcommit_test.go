package compute

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// labels is the metadata of an aggregate.
type labels = map[string]string

// TestOvercommit: whoever says something of how much a host may promise, all that reads it come to the same.
func TestOvercommit(t *testing.T) {
	tests := map[string]struct {
		policy     host.Ratios
		aggregates []labels // that the host is in
		want       host.Ratios
		total      state.Amounts
	}{
		"nobody says anything":               {want: host.Ratios{8, 1, 1}, total: state.Amounts{64, 8192, 100}},
		"the operator says it of the cloud":  {policy: host.Ratios{2, 1.5, 0.5}, want: host.Ratios{2, 1.5, 0.5}, total: state.Amounts{16, 12288, 50}},
		"of a part, and the rest is default": {policy: host.Ratios{0, 1.25, 0}, want: host.Ratios{8, 1.25, 1}, total: state.Amounts{64, 10240, 100}},
		"an aggregate, for less":             {policy: host.Ratios{16, 2, 2}, aggregates: []labels{{"cpu_allocation_ratio": "1"}}, want: host.Ratios{1, 2, 2}, total: state.Amounts{8, 16384, 200}},
		"an aggregate, for more": {aggregates: []labels{{"cpu_allocation_ratio": "16.0", "ram_allocation_ratio": " 1.5 ", "disk_allocation_ratio": "2e0"}},
			want: host.Ratios{16, 1.5, 2}, total: state.Amounts{128, 12288, 200}},
		"of several the lowest, of each": {aggregates: []labels{{"cpu_allocation_ratio": "4", "ram_allocation_ratio": "1.5"}, {"other": "x"},
			{"cpu_allocation_ratio": "3", "ram_allocation_ratio": "2", "disk_allocation_ratio": "1.1"}}, want: host.Ratios{3, 1.5, 1.1}, total: state.Amounts{24, 12288, 110}},
		"what an earlier release let in, and cannot be meant": {policy: host.Ratios{2}, aggregates: []labels{{"cpu_allocation_ratio": "lots"}, {"ram_allocation_ratio": "NaN"}, {"disk_allocation_ratio": "1e9"}},
			want: host.Ratios{2, 1, 1}, total: state.Amounts{16, 8192, 100}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			st := openState(t)
			id := addHosts(t, st, 2, oneHost)[0]
			other := resource.ID{}
			s, admin := New(st, Config{}), identity.Internal(context.Background())
			if _, err := (&host.Service{State: st}).SetKeeping(admin, func(k *host.Keeping) {
				k.CPURatio, k.MemoryRatio, k.DiskRatio = test.policy[0], test.policy[1], test.policy[2]
			}); err != nil {
				t.Fatal(err)
			}
			update(t, st, func(tx *state.Tx) error {
				for n, labels := range test.aggregates {
					if err := aggregates.Put(tx, &Aggregate{Meta: resource.Meta{ID: tx.NewID(), Name: fmt.Sprint("a", n)}, Number: n, Metadata: labels, Hosts: []resource.ID{id}}); err != nil {
						return err
					}
				}
				for h := range host.Table().Peek(tx, "", state.Range{}) {
					if h.ID != id {
						other = h.ID
					}
				}
				return nil
			})
			tx := st.Latest()
			h, _ := host.Find(tx, id)
			if got := s.RatiosOf(tx, h); got != test.want {
				t.Errorf("it is told as %v", got)
			}
			o, _ := host.Find(tx, other)
			if got := s.RatiosOf(tx, o); got != test.policy.Or(DefaultRatios) {
				t.Errorf("a host that is in none has %v", got)
			}
			p, err := s.Provider(admin, id)
			if err != nil {
				t.Fatal(err)
			}
			for i, class := range loadClasses {
				v := p.Inventory[class]
				if v.Ratio != test.want[i] || v.Capacity() != test.total[i] {
					t.Errorf("the inventory of %s is %+v", class, v)
				}
				one := demand{host: id}
				one.load[i] = 1
				if more, _ := s.search(tx, one).times(h); more != test.total[i] {
					t.Errorf("there is said to be room for %d %s", more, class)
				}
				update(t, st, func(tx *state.Tx) error {
					for _, over := range []int64{0, 1} {
						d := demand{host: id}
						if d.load[i] = test.total[i] + over; i == 0 {
							h, _ := host.Find(tx, id)
							h.Capacity.MaxVCPUs = 0
							if err := host.Table().Put(tx, h); err != nil {
								return err
							}
						}
						chosen, why := s.place(tx, d)
						if (chosen != nil) != (over == 0) || over == 1 && why.Nearest != "The host that came nearest lacks 1 "+units[i]+"." {
							t.Errorf("%d of %s, and %d there may be: %v, %+v", d.load[i], class, test.total[i], chosen, why)
						}
					}
					return nil
				})
			}
		})
	}
}

// TestRatiosThatCannotBeMeant are refused when they are said, and nothing is changed.
func TestRatiosThatCannotBeMeant(t *testing.T) {
	st := openState(t)
	s, admin := New(st, Config{}), identity.Internal(context.Background())
	a, err := s.CreateAggregate(admin, "a", "")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		key, value string
		refused    string // what is said; "" if it is not
	}{
		"no number":              {"cpu_allocation_ratio", "many", "cpu_allocation_ratio must be a number above 0 and at most 100"},
		"nothing":                {"ram_allocation_ratio", "", "ram_allocation_ratio must be a number above 0 and at most 10"},
		"not a number":           {"disk_allocation_ratio", "NaN", "disk_allocation_ratio must be a number above 0 and at most 10"},
		"without an end":         {"cpu_allocation_ratio", "+Inf", "cpu_allocation_ratio must be a number above 0 and at most 100"},
		"zero":                   {"ram_allocation_ratio", "0.0", "ram_allocation_ratio must be a number above 0 and at most 10"},
		"below zero":             {"disk_allocation_ratio", "-1", "disk_allocation_ratio must be a number above 0 and at most 10"},
		"too many processors":    {"cpu_allocation_ratio", "100.1", "cpu_allocation_ratio must be a number above 0 and at most 100"},
		"too much memory":        {"ram_allocation_ratio", "16", "ram_allocation_ratio must be a number above 0 and at most 10"},
		"the most of processors": {"cpu_allocation_ratio", "100", ""},
		"less than there is":     {"ram_allocation_ratio", "0.9", ""},
		"what means nothing":     {"gpu_allocation_ratio", "many", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			more := "yes"
			_, err := s.SetAggregateMetadata(admin, a.Number, map[string]*string{test.key: &test.value, name: &more}, nil)
			is, _ := s.Aggregate(admin, a.Number)
			switch {
			case test.refused == "":
				if err != nil || is.Metadata[test.key] != test.value {
					t.Errorf("%v, and it is %v", err, is.Metadata)
				}
			case !fault.Is(err, fault.Invalid) || err.Error() != test.refused || is.Metadata[name] != "":
				t.Errorf("%v, and it is %v", err, is.Metadata)
			}
		})
	}
	hosts := &host.Service{State: st}
	for name, wrong := range map[string]func(*host.Keeping){
		"cpu_ratio":    func(k *host.Keeping) { k.CPURatio = math.NaN() },
		"memory_ratio": func(k *host.Keeping) { k.MemoryRatio = 10.5 },
		"disk_ratio":   func(k *host.Keeping) { k.DiskRatio = math.Inf(-1) },
	} {
		if k, err := hosts.SetKeeping(admin, wrong); !fault.Is(err, fault.Invalid) || err.(*fault.Error).Field != name {
			t.Errorf("%s is taken: %v, %v", name, k, err)
		}
	}
}
