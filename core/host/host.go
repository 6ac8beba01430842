// Package host keeps the machines of the cloud, and tells each what it is to make real.
// What the things are is the business of the domains that register a Source.
package host

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Host is one machine, or a whole remote cloud that acts as one.
type Host struct {
	resource.Meta

	// Asked for by the operator.
	Zone           string
	Disabled       bool // no guest is placed here; of routers it says nothing
	DisabledReason string
	Maintenance    bool                 // its guests are taken elsewhere, and nobody misses it; always Disabled
	Drain          *Drain               `json:",omitempty" since:"2"` // how, in maintenance
	Fencing        Fencing              `json:",omitzero" since:"2"`
	Traits         []string             `json:",omitempty" since:"2"` // besides those that follow from what it reports; see AllTraits
	Offers         map[string]Inventory `json:",omitempty" since:"2"` // of custom resource classes, by their names

	// Reported by the host when it connects.
	Capacity Capacity
	Address  netip.Addr   // for other hosts: tunnels, moves
	MTU      int          `json:",omitempty" since:"2,soft"` // of the link that has the address; 0: it did not say
	Version  string       // of Unkai on it
	Speaks   release.Span `since:"2,soft"`
	Physical []string     `since:"2,soft"`                   // the physical networks that it is connected with, by name
	Watchdog bool         `json:",omitempty" since:"2,soft"` // enforces its lease

	// Found out by the control plane.
	Refused Refusal   `json:",omitzero" since:"2,soft"` // why it was not let in when it came last
	Lost    time.Time // since when it cannot be heard; zero while it can
	Mute    time.Time `json:",omitzero" since:"2,soft"` // since when its machine answers nothing at all, in the midst of a session; never with Lost
	Away    Away      `json:",omitzero" since:"2,soft"` // its shared storage cannot be reached; never with Lost
	// Of what file systems of its too little is left: that of its own data and its guests' disks, and that which it shares; never with Lost.
	Disk       Shortage `json:",omitzero" since:"2,soft"`
	SharedDisk Shortage `json:",omitzero" since:"2,soft"`
	Clock      ClockOff `json:",omitzero" since:"2,soft"` // never with Lost
	Fenced     Fenced   `json:",omitzero" since:"2,soft"` // how it is known, since it is lost, that it runs nothing any more
	// How often it came, or came back after it was lost. What a host was told before does not count after that.
	Arrivals int `json:",omitempty" since:"2,soft"`
	Joined   time.Time
	// Until when the certificate is valid that it showed last; zero if that is not known.
	CertificateEnds time.Time `json:",omitzero" since:"2,soft"`
	// How often a machine has joined as this host anew. Certificates say it too: those of the machines before are worth nothing.
	Machine int  `json:",omitempty" since:"2"`
	Ahead   Mark // of a state that the host has seen and we have not, while it refuses ours; zero otherwise
}

// A Capacity is what a host offers in all. Overcommit is the placement's business.
type Capacity struct {
	Driver    string // of its guests: "qemu", "sim", …
	Release   string // of the hypervisor
	VCPUs     int
	MemoryMiB int
	DiskGiB   int
	MaxVCPUs  int
	Isolating bool   // guests are separated by hardware
	Moves     bool   `since:"2,soft"`                   // guests can go to other hosts, and come from them
	Where     string `since:"2,soft"`                   // it takes them in, in words for the other host's driver
	WireMbps  int    `since:"2,soft"`                   // how fast it reaches other hosts, as its operator says; 0: nobody has said
	Snapshots string `json:",omitempty" since:"2,soft"` // the format of the copies that it makes of guests' disks; "" if it makes none
	Arch      string
	CPUModel  string
	Storage   string `json:",omitempty" since:"2,soft"` // names that on which its guests' disks are, to hosts that reach the same one; "" for its own
}

// Up reports whether the host can be heard.
func (h *Host) Up() bool { return h.Lost.IsZero() }

// Dead reports whether the host is lost and known to run nothing: what was on it may be started elsewhere. One that is dead by its lease may run
// what is not run under that.
func (h *Host) Dead() bool { return !h.Up() && !h.Fenced.At.IsZero() }

// DefaultZone is the zone of hosts that name none.
const DefaultZone = "nova"

var hosts = state.NewTable[Host]("host",
	state.Unique("name", func(h *Host) state.Key { return state.KeyOf(h.Name) }),
	state.Index("address", addressKey),
	state.Tally("family", familyOf),
	state.Index("width", widthKey),
	state.Index("zone", func(h *Host) state.Key { return state.KeyOf(h.Zone) }),
	state.Index("storage", func(h *Host) state.Key {
		if h.Capacity.Storage == "" {
			return ""
		}
		return state.KeyOf(h.Capacity.Storage)
	}),
)

var _ = identity.Rules(map[string]identity.Rule{
	"host.get": identity.Admin, "host.list": identity.Admin, "host.update": identity.Admin,
})

// Table gives placement, the native API and the auditor a look at every host.
func Table() *state.Table[Host] { return hosts }

// Find gives a host of this ID.
func Find(tx *state.Tx, id resource.ID) (*Host, bool) { return hosts.Find(tx, id) }

// ByName gives the host of this name.
func ByName(tx *state.Tx, name string) (*Host, bool) {
	return hosts.Lookup(tx, "name", state.KeyOf(name))
}

// Zones lists the zones there are, each once, in order.
func Zones(tx *state.Tx) []string {
	var zones []string
	for h := range hosts.Peek(tx, "zone", state.Range{}) {
		if len(zones) == 0 || zones[len(zones)-1] != h.Zone {
			zones = append(zones, h.Zone)
		}
	}
	return zones
}

// A Service answers operators' questions about hosts.
type Service struct{ State *state.State }

// Get shows one host to an operator.
func (s *Service) Get(ctx context.Context, id resource.ID) (*Host, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	h, ok := hosts.Find(tx, id)
	if !ok {
		return nil, fault.Missing("host", id)
	}
	return h, identity.Allow(ctx, "host.get", h.Meta)
}

// List shows the hosts to an operator, in the order of their names.
func (s *Service) List(ctx context.Context, q query.List) (query.Page[Host], error) {
	if err := identity.Allow(ctx, "host.list", resource.Meta{}); err != nil {
		return query.Page[Host]{}, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return query.Page[Host]{}, err
	}
	r := state.Range{Reverse: q.Reverse}
	if h, ok := hosts.Find(tx, q.Marker); ok {
		r.After, r.AfterKey = h.ID, state.KeyOf(h.Name)
	}
	return query.Take(hosts.Range(tx, "name", r), q.Limit, nil), nil
}

// SetDisabled keeps new guests off a host, or lets them on it again, which ends its maintenance.
func (s *Service) SetDisabled(ctx context.Context, id resource.ID, disabled bool, reason string) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		h, ok := hosts.Find(tx, id)
		if !ok {
			return fault.Missing("host", id)
		}
		if err := identity.Allow(ctx, "host.update", h.Meta); err != nil {
			return err
		}
		h.Disabled, h.DisabledReason = disabled, reason
		if !disabled {
			if err := h.resume(tx); err != nil {
				return err
			}
		}
		return hosts.Put(tx, h)
	})
}

// Arrive records that a host with this ID is here and can be heard. A host that is
// new is added, in the zone it names; one that knows of a newer state is turned away. It is for hosts
// within this process; see Authority.Arrive.
func Arrive(ctx context.Context, s *state.State, id resource.ID, hello Hello) error {
	return arrive(ctx, s, id, hello, func(*state.Tx) error { return nil })
}

// arrive records a host that is allowed to.
func arrive(ctx context.Context, s *state.State, id resource.ID, hello Hello, allowed func(*state.Tx) error) error {
	err := hello.check()
	refused := false
	if err == nil {
		hello.Address = hello.Address.Unmap()
		err = s.Update(ctx, func(tx *state.Tx) (err error) {
			if err := allowed(tx); err != nil {
				return err
			}
			refused, err = note(tx, id, hello)
			return err
		})
	}
	switch {
	case err != nil:
		refuse(ctx, s, id, hello.Name, err)
		return err
	case refused:
		return ahead(hello.Mark)
	}
	warn(ctx, s.Latest(), id)
	return nil
}

// errTried ends what was only tried.
var errTried = errors.New("only tried")

// wouldCome tells why a new machine would be refused if it said this of itself now. It changes nothing.
func wouldCome(tx *state.Tx, id resource.ID, says Hello) error {
	if err := says.check(); err != nil {
		return err
	}
	says.Address, says.Mark = says.Address.Unmap(), Mark{}
	err := tx.Try(func() error {
		if _, err := note(tx, id, says); err != nil {
			return err
		}
		return errTried
	})
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}

func ahead(m Mark) error {
	return fault.Errorf(fault.Conflict, "The host was told of a newer state, at %v. Was a backup restored? `unkai controller restored` says so to the hosts.", m)
}

// Expected reports whether all that a host says of itself is known already: then it may be sent what it is to make real without
// asking the controller that leads.
func Expected(tx *state.Tx, id resource.ID, hello Hello) bool {
	hello.Address = hello.Address.Unmap()
	h, ok := hosts.PeekOne(tx, id)
	return ok && !MarkOf(tx).Before(hello.Mark) && !news(h, hello)
}

func news(h *Host, hello Hello) bool {
	return !h.Up() || h.Capacity != hello.Capacity || h.Address != hello.Address || h.MTU != hello.MTU || h.Version != hello.Version || h.Speaks != hello.Speaks ||
		!slices.Equal(h.Physical, hello.Physical) || h.Watchdog != hello.Watchdog || h.Ahead != (Mark{}) || !h.Mute.IsZero() || h.Refused != (Refusal{}) ||
		!hello.CertificateEnds.IsZero() && !hello.CertificateEnds.Equal(h.CertificateEnds)
}

// note writes down what a host says of itself.
func note(tx *state.Tx, id resource.ID, hello Hello) (refused bool, err error) {
	h, ok := hosts.Find(tx, id)
	if MarkOf(tx).Before(hello.Mark) {
		if !ok {
			return true, ahead(hello.Mark)
		}
		if h.Ahead == hello.Mark {
			return true, nil
		}
		h.Ahead = hello.Mark
		return true, hosts.Put(tx, h)
	}
	if !ok {
		if err := CheckNew(hello.Name, hello.Zone); err != nil {
			return false, err
		}
		if _, taken := ByName(tx, hello.Name); taken {
			return false, fault.Errorf(fault.Exists, "Another host is named %s.", hello.Name)
		}
		h = &Host{Meta: resource.Meta{ID: id, Name: hello.Name}, Zone: hello.Zone, Joined: tx.Now()}
		if h.Zone == "" {
			h.Zone = DefaultZone
		}
	} else if !news(h, hello) {
		return false, nil
	}
	if !ok || !h.Up() {
		h.Arrivals++
	}
	if hello.Capacity.Storage == "" || hello.Version != h.Version { // which may be a release that does not say how it is
		h.Away, h.SharedDisk = Away{}, Shortage{}
	}
	if hello.Version != h.Version {
		h.Disk, h.Clock = Shortage{}, ClockOff{}
	}
	h.Capacity, h.Address, h.Version, h.Speaks, h.Physical = hello.Capacity, hello.Address, hello.Version, hello.Speaks, hello.Physical
	h.Watchdog, h.MTU = hello.Watchdog, hello.MTU
	if !hello.CertificateEnds.IsZero() {
		h.CertificateEnds = hello.CertificateEnds.UTC()
	}
	h.Lost, h.Mute, h.Fenced, h.Ahead, h.Refused = time.Time{}, time.Time{}, Fenced{}, Mark{}, Refusal{}
	first := h.Address.IsValid() && !UnderlayOf(tx).Known
	if err := hosts.Put(tx, h); err != nil {
		return false, err
	}
	return false, h.wire(tx, !ok, first)
}

// Lose records that a host cannot be heard any more. What runs on it is unknown from then
// on, not stopped.
func Lose(ctx context.Context, s *state.State, id resource.ID) error {
	return s.Update(ctx, func(tx *state.Tx) error {
		h, ok := hosts.Find(tx, id)
		if !ok || !h.Up() {
			return nil
		}
		h.Lost, h.Mute, h.Away, h.Fenced = tx.Now(), time.Time{}, Away{}, Fenced{}
		h.Disk, h.SharedDisk, h.Clock = Shortage{}, Shortage{}, ClockOff{}
		h.Fencing.Trouble, h.Fencing.Failures, h.Fencing.TriedAt = "", 0, time.Time{}
		return hosts.Put(tx, h)
	})
}
