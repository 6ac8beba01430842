package compute

import (
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// ratioKeys are the metadata of an aggregate that say how much more of processors, memory and disk its hosts may promise than they have,
// in the words of Nova's operators.
var ratioKeys = [...]string{"cpu_allocation_ratio", "ram_allocation_ratio", "disk_allocation_ratio"}

// ratioOf is one of an aggregate's ratios: 0 if it says nothing of it, or nothing that can be meant.
func (a *Aggregate) ratioOf(of int) float64 {
	text, ok := a.Metadata[ratioKeys[of]]
	if !ok {
		return 0
	}
	ratio, err := parseRatio(of, text)
	if err != nil {
		return 0 // written before it meant anything
	}
	return ratio
}

func parseRatio(of int, text string) (float64, error) {
	ratio, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		ratio = 0 // which is refused as well
	}
	return ratio, host.CheckRatio(ratioKeys[of], of, ratio)
}

// An overcommit is how much more than they have hosts may promise, by the operator's policy.
type overcommit struct {
	all  host.Ratios
	some map[resource.ID]host.Ratios // those of which aggregates say otherwise; nil if there are none
}

// overcommit reads it.
func (s *Service) overcommit(tx *state.Tx, k *host.Keeping) overcommit {
	return overcommit{s.Ratios(k), groupingOf(tx).ratios}
}

func (s *Service) overcommits(tx *state.Tx) overcommit {
	k := host.KeepingOf(tx)
	return s.overcommit(tx, &k)
}

// of are a host's ratios.
func (o *overcommit) of(h *host.Host) host.Ratios {
	if o.some != nil {
		if said, ok := o.some[h.ID]; ok {
			return said.Or(o.all)
		}
	}
	return o.all
}

// total is what of a host may be promised in all.
func (o *overcommit) total(h *host.Host) state.Amounts {
	n := o.of(h).Of(&h.Capacity)
	return state.Amounts{n[0], n[1], n[2]}
}

// Ratios tells what applies to hosts of which no aggregate says otherwise.
func (s *Service) Ratios(k *host.Keeping) host.Ratios { return k.Ratios().Or(s.config.Ratios) }

// RatiosOf tells what applies to a host.
func (s *Service) RatiosOf(tx *state.Tx, h *host.Host) host.Ratios {
	policy := s.overcommits(tx)
	return policy.of(h)
}
