package host

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Keeping is what an operator says of the whole cloud about where guests are kept, and about keeping them alive. Until somebody says something it is
// DefaultKeeping.
type Keeping struct {
	resource.Meta

	// A lease that has run out counts as a host's death, where a watchdog enforces it on the host.
	Leases bool
	// When more than this part of the hosts, in percent, is lost at once it is rather we who are cut off: nothing is
	// fenced and nothing restarted then. One host is never too many.
	StormPercent int
	// How many servers at most are on their way from lost hosts at any moment.
	AtOnce int
	// A guest that was on when its host lost power is left off when the host is back.
	StayOff bool
	// A guest that crashed stays so, unless its owner says otherwise of it.
	StayCrashed bool
	// How long a shelved guest stays on its host, off, before the host is rid of it: at once when 0.
	ShelvedStay time.Duration `json:",omitempty"`
	// New servers fill one host after the other, as far as nothing else is asked; otherwise they are spread.
	Pack bool `json:",omitempty" since:"2,soft"`
	// How much more of each the guests of a host may have than there is; as by default when 0. An aggregate may say otherwise of its hosts.
	CPURatio    float64 `json:",omitempty" since:"2,soft"`
	MemoryRatio float64 `json:",omitempty" since:"2,soft"`
	DiskRatio   float64 `json:",omitempty" since:"2,soft"`
}

// ShelvedForever, as a Keeping's ShelvedStay, leaves a shelved guest on its host until somebody says otherwise of it.
const ShelvedForever = time.Duration(-1)

// DefaultKeeping is how guests are kept alive until an operator says otherwise.
var DefaultKeeping = Keeping{StormPercent: 25, AtOnce: 10}

var keepings = state.NewTable[Keeping]("keeping", state.Since[Keeping](2))

var _ = identity.Rules(map[string]identity.Rule{"keeping.get": identity.Admin, "keeping.list": identity.Admin})

// KeepingOf is what the operator has said.
func KeepingOf(tx *state.Tx) Keeping {
	for k := range keepings.Peek(tx, "", state.Range{}) {
		return *k
	}
	return DefaultKeeping
}

// Ratios are those of hosts of which no aggregate says otherwise.
func (k *Keeping) Ratios() Ratios { return Ratios{k.CPURatio, k.MemoryRatio, k.DiskRatio} }

// KeepingKind is what changes of it are events of.
func KeepingKind() string { return keepings.Kind() }

// SetKeeping changes it.
func (s *Service) SetKeeping(ctx context.Context, change func(*Keeping)) (*Keeping, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Keeping, error) {
		if err := identity.Allow(ctx, "host.update", resource.Meta{}); err != nil {
			return nil, err
		}
		k := KeepingOf(tx)
		change(&k)
		switch {
		case k.StormPercent < 0 || k.StormPercent > 100:
			return nil, fault.InvalidField("storm_percent", "must be from 0 to 100")
		case k.AtOnce < 1 || k.AtOnce > 1000:
			return nil, fault.InvalidField("at_once", "must be from 1 to 1000")
		case k.ShelvedStay < 0:
			k.ShelvedStay = ShelvedForever
		}
		for of, field := range []string{"cpu_ratio", "memory_ratio", "disk_ratio"} {
			if ratio := k.Ratios()[of]; ratio != 0 {
				if err := CheckRatio(field, of, ratio); err != nil {
					return nil, err
				}
			}
		}
		if k.ID.IsZero() {
			k.ID = tx.NewID()
		}
		return &k, keepings.Put(tx, &k)
	})
}

// Storm reports whether so many hosts are lost, and nobody knows what became of them, that it looks as if we were cut off
// ourselves. A host that was emptied may be off on purpose, and is not missed; one that is known to be dead not any more.
func Storm(tx *state.Tx, missed func(*state.Tx, *Host) bool) (lost, of int, is bool) {
	for h := range hosts.Peek(tx, "", state.Range{}) {
		if !missed(tx, h) {
			continue
		}
		of++
		if !h.Up() && !h.Dead() {
			lost++
		}
	}
	return lost, of, lost > 1 && lost*100 > of*KeepingOf(tx).StormPercent
}
