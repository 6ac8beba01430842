package compute

import (
	"context"
	"strconv"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Quota is what somebody may have: a project, one user in a project, or, with neither, everybody
// who has none of their own. What it does not name falls to the next wider one.
type Quota struct {
	resource.Meta // ProjectID is whom it is for

	UserID resource.ID
	Limits map[string]int // by the names below; Unlimited for no limit
}

// Unlimited is the limit that is none.
const Unlimited = -1

// What there are quotas of.
const (
	QuotaServers      = "servers"
	QuotaCores        = "cores"
	QuotaMemory       = "memory" // MiB
	QuotaKeyPairs     = "keypairs"
	QuotaGroups       = "groups"
	QuotaGroupMembers = "group-members"
	QuotaMetadata     = "metadata" // pairs of one server
	QuotaFiles        = "files"    // injected into one server
	QuotaFileBytes    = "file-bytes"
	QuotaFilePath     = "file-path-bytes"

	// What once was this domain's and is the network's now: kept for whoever still writes it here, and
	// without effect.
	QuotaFixed         = "fixed-addresses"
	QuotaFloating      = "floating-addresses"
	QuotaSecurity      = "security-groups"
	QuotaSecurityRules = "security-rules"
)

var builtinLimits = map[string]int{
	QuotaServers: 50, QuotaCores: 100, QuotaMemory: 200 * 1024, QuotaKeyPairs: 100, QuotaGroups: 10,
	QuotaGroupMembers: 10, QuotaMetadata: 128, QuotaFiles: 5, QuotaFileBytes: 10240, QuotaFilePath: 255,
	QuotaFixed: Unlimited, QuotaFloating: Unlimited, QuotaSecurity: Unlimited, QuotaSecurityRules: Unlimited,
}

var quotas = state.NewTable[Quota]("compute-quota",
	state.Unique("whom", func(q *Quota) state.Key { return whom(q.ProjectID, q.UserID) }),
)

func whom(project, user resource.ID) state.Key { return state.KeyOf(project, user) }

var _ = identity.Rules(map[string]identity.Rule{
	"compute-quota.get": identity.Reader, "compute-quota.set": identity.Admin, "compute-quota.defaults": identity.Anyone,
})

// Quotas gives the auditor a look at every quota.
func Quotas() *state.Table[Quota] { return quotas }

// limitOf is the limit that holds for a user of a project; the zero user for the project's own.
func limitOf(tx *state.Tx, project, user resource.ID, name string) int {
	for _, key := range []state.Key{whom(project, user), whom(project, resource.ID{}), whom(resource.ID{}, resource.ID{})} {
		for q := range quotas.Peek(tx, "whom", state.Range{Prefix: key}) {
			if n, ok := q.Limits[name]; ok {
				return n
			}
		}
	}
	return builtinLimits[name]
}

// LimitOf is limitOf for a dialect that shows a project its own limits.
func LimitOf(tx *state.Tx, project resource.ID, name string) int {
	return limitOf(tx, project, resource.ID{}, name)
}

// roomFor refuses what goes over a limit.
func roomFor(tx *state.Tx, project, user resource.ID, name string, used int64, more int) error {
	limit := limitOf(tx, project, user, name)
	if limit < 0 || used+int64(more) <= int64(limit) {
		return nil
	}
	return overQuota(name, more, used, limit)
}

func overQuota(name string, more int, used int64, limit int) error {
	return fault.Errorf(fault.OverQuota, "The quota of %s is reached: %d more were asked for, and %d of %d are in use.", name, more, used, limit).
		WithCode("quota").With("quota", name).With("requested", strconv.Itoa(more)).
		With("used", strconv.FormatInt(used, 10)).With("limit", strconv.Itoa(limit))
}

// A Usage is what of a quota is in use.
type Usage struct{ Limit, Used int }

// Usages shows a project's, or one of its users', limits and what is in use. The zero project is the actor's.
func (s *Service) Usages(ctx context.Context, project, user resource.ID) (map[string]Usage, error) {
	if project.IsZero() {
		project = identity.ActorOf(ctx).ProjectID
	}
	if err := identity.Allow(ctx, "compute-quota.get", resource.Meta{ProjectID: project}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]Usage{}
	for name := range builtinLimits {
		all[name] = Usage{Limit: limitOf(tx, project, user, name)}
	}
	count, sums := used(tx, project, user)
	fill := func(name string, n int64) { all[name] = Usage{all[name].Limit, int(n)} }
	fill(QuotaServers, count)
	fill(QuotaCores, sums[0])
	fill(QuotaMemory, sums[1])
	held, _ := groups.Sum(tx, "project-count", state.KeyOf(project))
	fill(QuotaGroups, held)
	return all, nil
}

// used is what the servers of a project, or of a user in it, take.
func used(tx *state.Tx, project, user resource.ID) (int64, state.Amounts) {
	if user.IsZero() {
		return servers.Sum(tx, "use", state.KeyOf(project))
	}
	return servers.Sum(tx, "user", state.KeyOf(project, user))
}

// DefaultLimits are those of projects without a quota of their own.
func (s *Service) DefaultLimits(ctx context.Context) (map[string]int, error) {
	if err := identity.Allow(ctx, "compute-quota.defaults", resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	limits := map[string]int{}
	for name := range builtinLimits {
		limits[name] = limitOf(tx, resource.ID{}, resource.ID{}, name)
	}
	return limits, nil
}

// SetQuota changes limits of a project, of a user in it, or with neither the defaults. Without
// force a limit cannot be set below what is in use.
func (s *Service) SetQuota(ctx context.Context, project, user resource.ID, limits map[string]int, force bool) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "compute-quota.set", resource.Meta{ProjectID: project}); err != nil {
			return err
		}
		q, ok := quotas.Lookup(tx, "whom", whom(project, user))
		if !ok {
			q = &Quota{Meta: resource.Meta{ID: tx.NewID(), ProjectID: project}, UserID: user}
		}
		if q.Limits == nil {
			q.Limits = map[string]int{}
		}
		count, sums := used(tx, project, user)
		inUse := map[string]int64{QuotaServers: count, QuotaCores: sums[0], QuotaMemory: sums[1]}
		for name, n := range limits {
			switch most := limitOf(tx, project, resource.ID{}, name); {
			case n < Unlimited:
				return fault.InvalidField(name, "must be at least -1")
			case !force && n >= 0 && int64(n) < inUse[name]:
				return fault.Errorf(fault.Invalid, "Quota limit %d for %s must be greater than or equal to already used and reserved %d.", n, name, inUse[name]).
					With("quota", name)
			case !user.IsZero() && most >= 0 && (n > most || n < 0):
				return fault.Errorf(fault.Invalid, "Quota limit %d for %s must be less than or equal to %d.", n, name, most).With("quota", name)
			}
			q.Limits[name] = n
		}
		return quotas.Put(tx, q)
	})
}

// ResetQuota lets a project, or a user in it, fall back to the next wider limits.
func (s *Service) ResetQuota(ctx context.Context, project, user resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "compute-quota.set", resource.Meta{ProjectID: project}); err != nil {
			return err
		}
		ids := quotas.IDs(tx, "whom", whom(project, user))
		if user.IsZero() {
			ids = quotas.IDs(tx, "whom", state.KeyOf(project)) // with all of its users
		}
		for _, id := range ids {
			if err := quotas.Delete(tx, id); err != nil {
				return err
			}
		}
		return nil
	})
}
