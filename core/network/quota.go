package network

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Quota is what limits of a project differ from the defaults. Its ID is the project's.
type Quota struct {
	resource.Meta

	Limits map[string]int // by noun; -1: no limit
}

// Unlimited is the limit of what has none.
const Unlimited = -1

// counted are the nouns that quotas bound: their default limits, and how many a project has.
var counted = map[string]struct {
	limit int
	count func(tx *state.Tx, projectID resource.ID) int64
}{
	"network":             {100, tallied(networks)},
	"subnet":              {100, tallied(subnets)},
	"port":                {500, tallied(ports)},
	"router":              {10, tallied(routers)},
	"floating-address":    {50, tallied(floatings)},
	"security-group":      {10, tallied(groups)},
	"security-group-rule": {100, tallied(rules)},
	"subnet-pool":         {Unlimited, tallied(pools)},
	"share":               {10, tallied(shares)},
}

func tallied[T any](table *state.Table[T]) func(*state.Tx, resource.ID) int64 {
	return func(tx *state.Tx, projectID resource.ID) int64 {
		n, _ := table.Sum(tx, "project", state.KeyOf(projectID))
		return n
	}
}

var quotas = state.NewTable[Quota]("network-quota")

var _ = identity.Rules(map[string]identity.Rule{
	"network-quota.read": identity.Reader, "network-quota.list": identity.Admin, "network-quota.update": identity.Admin,
})

// QuotaNouns lists what quotas bound, in order.
func QuotaNouns() []string { return slices.Sorted(maps.Keys(counted)) }

// A Use is a limit and what there is below it.
type Use struct {
	Limit int
	Used  int64
}

// DefaultLimits are those of a project that has none of its own.
func DefaultLimits() map[string]int {
	limits := map[string]int{}
	for noun, c := range counted {
		limits[noun] = c.limit
	}
	return limits
}

func limitOf(tx *state.Tx, projectID resource.ID, noun string) int {
	if q, ok := quotas.PeekOne(tx, projectID); ok {
		if limit, set := q.Limits[noun]; set {
			return limit
		}
	}
	return counted[noun].limit
}

// checkQuota asks whether a project may have one more. What belongs to no project is not bounded.
func checkQuota(tx *state.Tx, projectID resource.ID, noun string) error {
	if projectID.IsZero() {
		return nil
	}
	limit := limitOf(tx, projectID, noun)
	if limit == Unlimited || counted[noun].count(tx, projectID) < int64(limit) {
		return nil
	}
	return fault.Errorf(fault.OverQuota, "Quota exceeded for resources: ['%s'].", noun).
		WithCode("over-quota").With("quota", noun).With("limit", strconv.Itoa(limit))
}

// Usage tells a project's limits and what it has.
func Usage(tx *state.Tx, projectID resource.ID) map[string]Use {
	usage := map[string]Use{}
	for noun, c := range counted {
		usage[noun] = Use{limitOf(tx, projectID, noun), c.count(tx, projectID)}
	}
	return usage
}

// Quota tells a project's limits and what it has.
func (s *Service) Quota(ctx context.Context, projectID resource.ID) (map[string]Use, error) {
	if err := identity.Allow(ctx, "network-quota.read", resource.Meta{ProjectID: projectID}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return Usage(tx, projectID), nil
}

// Quotas lists the projects that have limits of their own.
func (s *Service) Quotas(ctx context.Context, q query.List) (query.Page[Quota], error) {
	if err := identity.Allow(ctx, "network-quota.list", resource.Meta{}); err != nil {
		return query.Page[Quota]{}, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return query.Page[Quota]{}, err
	}
	return query.Take(quotas.Range(tx, "", state.Range{After: q.Marker, Reverse: q.Reverse}), q.Limit, nil), nil
}

// SetQuota changes some of a project's limits.
func (s *Service) SetQuota(ctx context.Context, projectID resource.ID, limits map[string]int) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "network-quota.update", resource.Meta{ProjectID: projectID}); err != nil {
			return err
		}
		q, ok := quotas.Find(tx, projectID)
		if !ok {
			q = &Quota{Meta: resource.Meta{ID: projectID, ProjectID: projectID}, Limits: map[string]int{}}
		}
		for noun, limit := range limits {
			if _, known := counted[noun]; !known {
				return fault.InvalidField(noun, "has no quota")
			}
			if limit < Unlimited {
				return fault.InvalidField(noun, "must be at least %d", Unlimited)
			}
			q.Limits[noun] = limit
		}
		return quotas.Put(tx, q)
	})
}

// ResetQuota gives a project the default limits again.
func (s *Service) ResetQuota(ctx context.Context, projectID resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "network-quota.update", resource.Meta{ProjectID: projectID}); err != nil {
			return err
		}
		if !quotas.Has(tx, projectID) {
			return missing("Quota for project", "quota", projectID)
		}
		return quotas.Delete(tx, projectID)
	})
}
