package simulation

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
)

// A Size is what a host has, or a server asks for.
type Size struct{ VCPUs, MemoryMiB, DiskGiB int }

// A Question is what an operator wants to know of a cloud that is not there.
type Question struct {
	Seed                  uint64
	Hosts, Racks, Servers int
	Host, Flavor          Size
	Pack                  bool
	Ratios                host.Ratios      // as a cloud does where 0
	Elsewhere             bool             // each server is to be restarted elsewhere, leases count, and each host has a watchdog; by default a cloud restarts nothing
	Fault                 string           // "rack:K" or "host:NAME" dies; "" for none
	Drain                 string           // in the same form, or a host's name
	Fit                   *Size            // how many more of it?
	AtOnce                int              // restarts elsewhere at any moment; as a cloud does when 0
	Boot                  time.Duration    // that a guest takes to start, of simulated time
	Now                   func() time.Time // to tell how fast it was; nil: nobody wants to know
}

// An Answer is what became of it. But for PerSecond it is the same for the same question.
type Answer struct {
	Hosts, Placed int
	NoRoom        string             `json:",omitempty"` // why not all were placed
	PerSecond     float64            `json:",omitempty"`
	PerHost       [3]int64           // servers: the least, the median, the most
	FullPercent   [3]float64         // of what a host has least of
	Fit           []compute.ZoneRoom `json:",omitempty"`
	Drain         *Drained           `json:",omitempty"`
	Fault         *Cost              `json:",omitempty"`
}

// Drained is what the maintenance of some hosts would do.
type Drained struct {
	Hosts, Servers int
	Ways           map[compute.Way]int
	To             map[string]int // servers by zone
	ToHosts        int
	Stay           map[string]int // servers by the reason
}

// Stays is how many servers stay.
func (d *Drained) Stays() (n int) {
	for _, servers := range d.Stay {
		n += servers
	}
	return n
}

// A trial is one cloud with stand-ins for hosts: they are placed on and observed as real ones, and each guest does as it is told.
type trial struct {
	Question
	ctx     context.Context
	random  *rand.ChaCha8
	clock   time.Time
	state   *state.State
	compute *compute.Service
	hub     *host.Hub
	hosts   []resource.ID
	image   resource.ID
}

func rackName(n int) string { return fmt.Sprintf("rack-%03d", n) }

// Ask builds the cloud that a question is about, and looks.
func Ask(ctx context.Context, q Question) (*Answer, error) {
	if q.Hosts < 1 || q.Racks < 1 || q.Racks > q.Hosts || q.Servers < 0 {
		return nil, fmt.Errorf("there must be hosts, and at most as many racks")
	}
	if q.Boot < 0 || q.Boot >= quiet {
		return nil, fmt.Errorf("a guest must start within %v", quiet)
	}
	t := &trial{Question: q, ctx: identity.Internal(ctx), clock: begin, random: choices(q.Seed, 0)}
	var err error
	t.state, err = state.Open(ctx, state.NewMemory(1), state.Options{Now: func() time.Time { return t.clock }, Random: t.random, History: 4096, HistoryBytes: 8 << 20})
	if err != nil {
		return nil, err
	}
	defer t.state.Close()
	t.compute = compute.New(t.state, compute.Config{})
	t.hub = host.NewHub(t.state, t.compute.Sources()...)
	t.hub.Now, t.hub.After = func() time.Time { return t.clock }, func(time.Duration, func()) {}
	if err := t.furnish(); err != nil {
		return nil, err
	}
	a := &Answer{Hosts: q.Hosts}
	if err := t.place(a); err != nil {
		return nil, err
	}
	t.fullness(a)
	if q.Fit != nil {
		if a.Fit, err = t.compute.Room(t.ctx, "fit", ""); err != nil {
			return nil, err
		}
	}
	if q.Drain != "" {
		if a.Drain, err = t.drain(); err != nil {
			return nil, err
		}
	}
	if q.Fault != "" {
		a.Fault, err = t.fail()
	}
	return a, err
}

// choices are random bytes of a seed. What is planned draws from its own, so that the rest does not depend on it.
func choices(seed uint64, which byte) *rand.ChaCha8 {
	key := [32]byte{31: which}
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// furnish makes hosts, flavors and an image.
func (t *trial) furnish() error {
	for n := range t.Hosts {
		id := resource.NewID(t.clock, t.random)
		t.hosts = append(t.hosts, id)
		hello := host.Hello{Speaks: release.Own, Name: fmt.Sprintf("host-%04d", n+1), Zone: rackName(1 + n*t.Racks/t.Hosts), Watchdog: t.Elsewhere, Capacity: host.Capacity{Driver: "sim",
			VCPUs: t.Host.VCPUs, MemoryMiB: t.Host.MemoryMiB, DiskGiB: t.Host.DiskGiB, Moves: true, Arch: "x86_64"}}
		if err := host.Arrive(t.ctx, t.state, id, hello); err != nil {
			return err
		}
	}
	if _, err := (&host.Service{State: t.state}).SetKeeping(t.ctx, func(k *host.Keeping) {
		k.Leases, k.Pack = t.Elsewhere, t.Pack
		k.CPURatio, k.MemoryRatio, k.DiskRatio = t.Ratios[0], t.Ratios[1], t.Ratios[2]
		if t.AtOnce > 0 {
			k.AtOnce = t.AtOnce
		}
	}); err != nil {
		return err
	}
	var extra map[string]string
	if t.Elsewhere {
		extra = map[string]string{"unkai:restart_elsewhere": "true"}
	}
	fit := t.Flavor
	if t.Fit != nil {
		fit = *t.Fit
	}
	for n, s := range []Size{t.Flavor, fit} {
		ref := [...]string{"one", "fit"}[n]
		if _, err := t.compute.CreateFlavor(t.ctx, compute.Flavor{Meta: resource.Meta{Name: ref}, Ref: ref, VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, RootGiB: s.DiskGiB, Extra: extra}); err != nil {
			return err
		}
	}
	return t.state.Update(t.ctx, func(tx *state.Tx) error {
		t.image = tx.NewID()
		return image.Table().Put(tx, &image.Image{Meta: resource.Meta{ID: t.image, Name: "image"}, Spec: image.Spec{Format: "raw", Container: "bare", Visibility: image.Public},
			State: image.Active, Usable: true, Bytes: 1 << 20, VirtualBytes: 1 << 20, SHA512: "00"})
	})
}

// batch is how many servers one request asks for.
const batch = 1000

// place makes the servers as their owner would, until one finds no host.
func (t *trial) place(a *Answer) error {
	owner := &identity.Actor{UserID: resource.NewID(t.clock, t.random), ProjectID: resource.NewID(t.clock, t.random), Roles: []string{"member", "reader"}}
	limits := map[string]int{compute.QuotaServers: compute.Unlimited, compute.QuotaCores: compute.Unlimited, compute.QuotaMemory: compute.Unlimited}
	if err := t.compute.SetQuota(t.ctx, owner.ProjectID, resource.ID{}, limits, true); err != nil {
		return err
	}
	ctx := identity.As(t.ctx, owner)
	began, asked := t.wall(), 0
	on := map[resource.ID][]resource.ID{}
	for asked < t.Servers && a.NoRoom == "" {
		n := min(batch, t.Servers-asked)
		asked += n
		t.clock = t.clock.Add(time.Second)
		made, err := t.compute.Create(ctx, compute.Launch{Name: "server", SameName: true, Flavor: "one", ImageID: t.image, NoNetwork: true, Min: n, Max: n})
		if err != nil {
			return err
		}
		tx := t.state.Latest()
		for _, id := range made.Servers {
			switch srv, _ := compute.Servers().PeekOne(tx, id); {
			case !srv.HostID.IsZero():
				on[srv.HostID] = append(on[srv.HostID], id)
				a.Placed++
			case a.NoRoom == "":
				a.NoRoom = srv.Failure.Message
			}
		}
	}
	if took := t.wall().Sub(began); took > 0 {
		a.PerSecond = float64(asked) / took.Seconds()
	}
	t.clock = t.clock.Add(t.Boot)
	for _, h := range t.hosts {
		if err := t.run(h, on[h]); err != nil {
			return err
		}
	}
	return nil
}

func (t *trial) wall() time.Time {
	if t.Now == nil {
		return time.Time{}
	}
	return t.Now()
}

// run has a host report that guests do what they are to do.
func (t *trial) run(h resource.ID, guests []resource.ID) error {
	tx := t.state.Latest()
	var reports []host.Observation
	for _, id := range guests {
		srv, _ := compute.Servers().PeekOne(tx, id)
		text, err := json.Marshal(compute.Seen{Observation: compute.Observation{Power: srv.Power, StartedAt: t.clock}, Wish: srv.Wish})
		if err != nil {
			return err
		}
		reports = append(reports, host.Observation{Key: host.Key{Kind: "guest", ID: id}, Seen: text})
	}
	if len(reports) == 0 {
		return nil
	}
	return t.hub.Observe(t.ctx, h, reports)
}

func (t *trial) fullness(a *Answer) {
	tx := t.state.Latest()
	var counts []int64
	var full []float64
	for _, id := range t.hosts {
		h, _ := host.Table().PeekOne(tx, id)
		n, used := compute.Load(tx, h)
		have := t.compute.RatiosOf(tx, h).Of(&h.Capacity)
		most := 0.0
		for i := range have {
			most = max(most, 100*float64(used[i])/float64(max(1, have[i])))
		}
		counts, full = append(counts, n), append(full, most)
	}
	slices.Sort(counts)
	slices.Sort(full)
	for i, at := range []int{0, len(full) / 2, len(full) - 1} {
		a.PerHost[i], a.FullPercent[i] = counts[at], full[at]
	}
}

// named are the hosts of a rack, or one host.
func (t *trial) named(what string) ([]resource.ID, error) {
	tx, found := t.state.Latest(), []resource.ID(nil)
	kind, name, ok := strings.Cut(what, ":")
	if !ok {
		kind, name = "host", what
	}
	switch kind {
	case "rack":
		var n int
		if _, err := fmt.Sscan(name, &n); err == nil {
			found = host.Table().IDs(tx, "zone", state.KeyOf(rackName(n)))
		}
	case "host":
		if h, ok := host.ByName(tx, name); ok {
			found = append(found, h.ID)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: want rack:K from 1 to %d, or host:NAME from host-0001 to host-%04d", what, t.Racks, t.Hosts)
	}
	return found, nil
}

// drain plans the maintenance of some hosts at once.
func (t *trial) drain() (*Drained, error) {
	ids, err := t.named(t.Drain)
	if err != nil {
		return nil, err
	}
	ctx := state.WithPlan(t.ctx, &state.Plan{Random: choices(t.Seed, 1)})
	for _, id := range ids { // none of them for another's servers
		if err := (&host.Service{State: t.state}).SetDisabled(ctx, id, true, "drained together"); err != nil {
			return nil, err
		}
	}
	d := &Drained{Hosts: len(ids), Ways: map[compute.Way]int{}, To: map[string]int{}, Stay: map[string]int{}}
	hosts := map[string]bool{}
	for _, id := range ids {
		all, err := t.compute.PlanRetirement(ctx, id, compute.Retirement{})
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			d.Servers++
			d.Ways[l.Way]++
			if h, ok := host.ByName(t.state.Latest(), l.To); ok {
				d.To[h.Zone]++
				hosts[l.To] = true
			} else {
				d.Stay[l.Why]++
			}
		}
	}
	d.ToHosts = len(hosts)
	return d, nil
}

// Sorted are a tally's keys, the largest first.
func Sorted[K cmp.Ordered](tally map[K]int) []K {
	var keys []K
	for k := range tally {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b K) int { return cmp.Or(tally[b]-tally[a], cmp.Compare(a, b)) })
	return keys
}
