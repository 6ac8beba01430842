package network

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strconv"

	"go4.org/netipx"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A SubnetPool is a stock of prefixes from which subnets are cut so that none overlap.
type SubnetPool struct {
	resource.Meta

	Description string
	Tags        []string
	Prefixes    []netip.Prefix
	DefaultBits int // length of a prefix that nobody chose
	MinBits     int // bounds of lengths; the smaller number is the larger prefix
	MaxBits     int
	Quota       int64 // of each project, in /32s or /64s; 0: none
	ScopeID     resource.ID

	// Asked for by an operator.
	Shared  bool
	Default bool // for whoever names none
}

// V6 reports whether the pool is of IPv6 prefixes.
func (p *SubnetPool) V6() bool { return len(p.Prefixes) > 0 && p.Prefixes[0].Addr().Is6() }

var poolFields = common(fields[SubnetPool]{
	"description": {text: func(p *SubnetPool) []string { return []string{p.Description} }},
	"tag":         {text: func(p *SubnetPool) []string { return p.Tags }, by: true},
	"shared":      {text: func(p *SubnetPool) []string { return oneBool(p.Shared) }, by: true, single: true},
	"default":     {text: func(p *SubnetPool) []string { return oneBool(p.Default) }, by: true, single: true},
	"scope":       {text: func(p *SubnetPool) []string { return oneID(p.ScopeID) }, index: "scope", key: idKey},
	"version": {text: func(p *SubnetPool) []string {
		if p.V6() {
			return []string{"6"}
		}
		return []string{"4"}
	}, by: true, single: true},
	"default-bits": {text: func(p *SubnetPool) []string { return []string{strconv.Itoa(p.DefaultBits)} }},
	"min-bits":     {text: func(p *SubnetPool) []string { return []string{strconv.Itoa(p.MinBits)} }},
	"max-bits":     {text: func(p *SubnetPool) []string { return []string{strconv.Itoa(p.MaxBits)} }},
	"quota":        {text: func(p *SubnetPool) []string { return []string{strconv.FormatInt(p.Quota, 10)} }},
})

var pools = state.NewTable[SubnetPool]("subnet-pool",
	facets(poolFields),
	state.Index("scope", func(p *SubnetPool) state.Key { return nonZero(p.ScopeID) }),
	state.Tally("project", func(p *SubnetPool) (state.Key, state.Amounts) { return state.KeyOf(p.ProjectID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"subnet-pool.create": identity.Member, "subnet-pool.read": identity.Reader,
	"subnet-pool.update": identity.Member, "subnet-pool.delete": identity.Member,
	"subnet-pool.set-shared": identity.Admin, "subnet-pool.set-default": identity.Admin,
})

var poolNoun = noun[SubnetPool]{
	tallied: true,
	name:    "subnet-pool", title: "Subnet pool", table: pools, fields: poolFields,
	shown: func(tx *state.Tx, a *identity.Actor, p *SubnetPool) bool {
		return p.Shared || sharedWith(tx, p.ID, a.ProjectID)
	},
	others: func(tx *state.Tx, a *identity.Actor) []span {
		return append(sharedSpans(tx, SharedPool, a.ProjectID), span{index: "by", key: facet(resource.ID{}, "shared", "true")})
	},
}

func init() { poolNoun.add, poolNoun.change, poolNoun.remove = addPool, changePool, removePool }

// Pools gives other domains and the native API a look at every subnet pool.
func Pools() *state.Table[SubnetPool] { return pools }

func addPool(ctx context.Context, tx *state.Tx, p *SubnetPool) error {
	if err := mayCreate(ctx, "subnet-pool.create", p.ProjectID); err != nil {
		return err
	}
	if err := mayWishPool(ctx, &SubnetPool{Meta: resource.Meta{ProjectID: p.ProjectID}}, p); err != nil {
		return err
	}
	if p.MinBits == 0 {
		p.MinBits = 8
		if p.V6() {
			p.MinBits = 64
		}
	}
	if p.MaxBits == 0 {
		p.MaxBits = 32
		if p.V6() {
			p.MaxBits = 128
		}
	}
	if p.DefaultBits == 0 {
		p.DefaultBits = p.MinBits
	}
	if err := checkPool(ctx, tx, p); err != nil {
		return err
	}
	if err := checkQuota(tx, p.ProjectID, "subnet-pool"); err != nil {
		return err
	}
	if err := pools.Put(tx, p); err != nil {
		return err
	}
	return syncShare(tx, SharedPool, &p.Meta, ShareUse, false, p.Shared)
}

func changePool(ctx context.Context, tx *state.Tx, was, now *SubnetPool) error {
	if err := mayWishPool(ctx, was, now); err != nil {
		return err
	}
	if err := checkPool(ctx, tx, now); err != nil {
		return err
	}
	for _, old := range was.Prefixes {
		if !slices.ContainsFunc(now.Prefixes, func(n netip.Prefix) bool { return n.Bits() <= old.Bits() && n.Contains(old.Addr()) }) {
			return invalid("pool-prefix-kept", "The prefixes that the subnet pool has must be among the new ones.")
		}
	}
	if was.ScopeID != now.ScopeID {
		for s := range subnets.Peek(tx, "pool", state.Range{Prefix: state.KeyOf(was.ID)}) {
			return invalid("pool-scope", "The address scope of a subnet pool cannot change while subnet %s is cut from it.", s.ID)
		}
	}
	if err := pools.Put(tx, now); err != nil {
		return err
	}
	return syncShare(tx, SharedPool, &now.Meta, ShareUse, was.Shared, now.Shared)
}

func removePool(ctx context.Context, tx *state.Tx, p *SubnetPool) error {
	for range subnets.Peek(tx, "pool", state.Range{Prefix: state.KeyOf(p.ID)}) {
		return fault.Errorf(fault.Conflict, "Unable to delete subnet pool: Subnet pool has existing allocations.").WithCode("pool-in-use")
	}
	if err := dropShares(tx, p.ID); err != nil {
		return err
	}
	return pools.Delete(tx, p.ID)
}

func mayWishPool(ctx context.Context, was, now *SubnetPool) error {
	if was.Shared != now.Shared {
		if err := identity.Allow(ctx, "subnet-pool.set-shared", was.Meta); err != nil {
			return err
		}
	}
	if was.Default != now.Default {
		return identity.Allow(ctx, "subnet-pool.set-default", was.Meta)
	}
	return nil
}

func checkPool(ctx context.Context, tx *state.Tx, p *SubnetPool) error {
	if err := checkTexts(&p.Meta, p.Description, p.Tags); err != nil {
		return err
	}
	if len(p.Prefixes) == 0 {
		return invalid("pool-prefix", "Unspecified prefixes: a subnet pool needs at least one.")
	}
	all, err := canonical(p.Prefixes)
	if err != nil {
		return err
	}
	p.Prefixes = all
	most := p.Prefixes[0].Addr().BitLen()
	switch {
	case p.MinBits < 0 || p.MaxBits > most:
		return invalid("pool-bits", "Prefix lengths must be between 0 and %d.", most)
	case p.MinBits > p.MaxBits:
		return invalid("pool-bits", "Illegal prefix bounds: the minimum prefix length %d is above the maximum %d.", p.MinBits, p.MaxBits)
	case p.DefaultBits < p.MinBits:
		return invalid("pool-default-bits", "Illegal prefix bounds: the default prefix length %d is below the minimum %d.", p.DefaultBits, p.MinBits)
	case p.DefaultBits > p.MaxBits:
		return invalid("pool-default-bits", "Illegal prefix bounds: the default prefix length %d is above the maximum %d.", p.DefaultBits, p.MaxBits)
	case p.Quota < 0:
		return fault.InvalidField("quota", "must be at least 0")
	}
	if p.Default {
		for other := range pools.Peek(tx, "by", state.Range{Prefix: facet(resource.ID{}, "default", "true")}) {
			if other.ID != p.ID && other.V6() == p.V6() {
				return invalid("pool-default", "There is a default subnet pool for this IP family already.")
			}
		}
	}
	return checkPoolScope(ctx, tx, p)
}

// canonical merges prefixes into the fewest, and refuses a mixture of versions.
func canonical(prefixes []netip.Prefix) ([]netip.Prefix, error) {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is6() != prefixes[0].Addr().Is6() {
			return nil, invalid("pool-version", "Cannot mix IPv4 and IPv6 prefixes in a subnet pool.")
		}
		b.AddPrefix(p.Masked())
	}
	set, err := b.IPSet()
	if err != nil {
		return nil, invalid("pool-prefix", "The prefixes of the subnet pool are not valid.")
	}
	return set.Prefixes(), nil
}

func checkPoolScope(ctx context.Context, tx *state.Tx, p *SubnetPool) error {
	if p.ScopeID.IsZero() {
		return nil
	}
	scope, err := visibleOne(ctx, tx, &scopeNoun, p.ScopeID)
	if err != nil {
		return err
	}
	if scope.V6 != p.V6() {
		return invalid("pool-scope", "Subnet pool %s cannot be in address scope %s: they are of different IP versions.", p.ID, scope.ID)
	}
	for other := range pools.Peek(tx, "scope", state.Range{Prefix: state.KeyOf(scope.ID)}) {
		if other.ID == p.ID {
			continue
		}
		for _, a := range other.Prefixes {
			if slices.ContainsFunc(p.Prefixes, a.Overlaps) {
				return fault.Errorf(fault.Conflict, "Address scope %s conflicts: subnet pools %s and %s overlap.", scope.ID, p.ID, other.ID).WithCode("scope-conflict")
			}
		}
	}
	return nil
}

// DefaultPool is the pool of an IP version for whoever names none.
func DefaultPool(tx *state.Tx, v6 bool) (*SubnetPool, bool) {
	for p := range pools.Each(tx, "by", facet(resource.ID{}, "default", "true")) {
		if p.V6() == v6 {
			return p, true
		}
	}
	return nil, false
}

// cutFromPool gives a subnet its prefix out of its pool, or checks the one that it asks for.
func cutFromPool(ctx context.Context, tx *state.Tx, s *Subnet) error {
	p, err := visibleOne(ctx, tx, &poolNoun, s.PoolID)
	if err != nil {
		return err
	}
	if s.CIDR.IsValid() && s.CIDR.Addr().Is6() != p.V6() {
		return invalid("invalid-input", "Invalid input for operation: Cannot allocate an IP version of subnet from subnet pool %s of another.", p.ID)
	}
	bits := s.CIDR.Bits()
	specific := s.CIDR.IsValid() && !s.CIDR.Addr().IsUnspecified()
	if bits <= 0 {
		bits = p.DefaultBits
	}
	if bits < p.MinBits {
		return invalid("pool-bits-min", "Unable to allocate subnet with prefix length %d, minimum allowed prefix is %d.", bits, p.MinBits)
	}
	if bits > p.MaxBits {
		return invalid("pool-bits-max", "Unable to allocate subnet with prefix length %d, maximum allowed prefix is %d.", bits, p.MaxBits)
	}
	if p.Quota > 0 {
		_, used := subnets.Sum(tx, "pool-project", state.KeyOf(p.ID, s.ProjectID))
		if used[0]+prefixUnits(netip.PrefixFrom(p.Prefixes[0].Addr(), bits)) > p.Quota {
			return fault.Errorf(fault.OverQuota, "The project's quota of the subnet pool is exceeded.").WithCode("pool-quota")
		}
	}
	if !specific {
		cut, ok := freePrefix(tx, p, bits)
		if !ok {
			return fault.Errorf(fault.Exhausted, "Failed to allocate subnet: Insufficient prefix space to allocate subnet size /%d.", bits).WithCode("pool-exhausted")
		}
		s.CIDR = cut
		return nil
	}
	s.CIDR = s.CIDR.Masked()
	if !slices.ContainsFunc(p.Prefixes, func(whole netip.Prefix) bool { return whole.Bits() <= bits && whole.Contains(s.CIDR.Addr()) }) ||
		overlapsCut(tx, p.ID, s.CIDR) {
		return fault.Errorf(fault.Conflict, "Failed to allocate subnet: Cannot allocate requested subnet from the available set of prefixes.").WithCode("pool-exhausted")
	}
	return nil
}

// overlapsCut reports whether a prefix overlaps one that was cut from the pool. Those never overlap each
// other, so only the last one that begins before the wanted one ends has to be looked at.
func overlapsCut(tx *state.Tx, poolID resource.ID, want netip.Prefix) bool {
	r := state.Range{Prefix: state.KeyOf(poolID), Reverse: true, After: maxID, AfterKey: state.KeyOf(poolID, lastAddress(want))}
	for s := range subnets.Peek(tx, "pool-address", r) {
		return s.CIDR.Overlaps(want)
	}
	return false
}

// freePrefix is the first prefix of this length that nothing cut from the pool overlaps. It walks
// what was cut in the order of addresses, from gap to gap.
func freePrefix(tx *state.Tx, p *SubnetPool, bits int) (netip.Prefix, bool) {
	wholes := slices.Clone(p.Prefixes)
	slices.SortFunc(wholes, func(a, b netip.Prefix) int { return cmp.Or(b.Bits()-a.Bits(), a.Addr().Compare(b.Addr())) })
	for _, whole := range wholes {
		if whole.Bits() > bits {
			continue
		}
		at := netip.PrefixFrom(whole.Addr(), bits)
		for s := range subnets.Peek(tx, "pool-address", state.Range{Prefix: state.KeyOf(p.ID)}) {
			last := lastAddress(s.CIDR)
			if last.Less(at.Addr()) {
				continue
			}
			if lastAddress(at).Less(s.CIDR.Addr()) {
				break // the gap before this one is wide enough
			}
			if last.Less(lastAddress(at)) {
				last = lastAddress(at)
			}
			if at = netip.PrefixFrom(last.Next(), bits); !at.IsValid() || !whole.Contains(at.Addr()) {
				break
			}
		}
		if at.IsValid() && whole.Contains(at.Addr()) {
			return at, true
		}
	}
	return netip.Prefix{}, false
}

// An AddressScope is a space in which addresses do not overlap: pools of one scope can be
// routed between each other without translation.
type AddressScope struct {
	resource.Meta

	V6     bool
	Shared bool
}

var scopeFields = common(fields[AddressScope]{
	"v6":     {text: func(s *AddressScope) []string { return oneBool(s.V6) }, by: true, single: true},
	"shared": {text: func(s *AddressScope) []string { return oneBool(s.Shared) }, by: true, single: true},
})

var scopes = state.NewTable[AddressScope]("address-scope",
	facets(scopeFields),
)

var _ = identity.Rules(map[string]identity.Rule{
	"address-scope.create": identity.Member, "address-scope.read": identity.Reader,
	"address-scope.update": identity.Member, "address-scope.delete": identity.Member,
	"address-scope.set-shared": identity.Admin,
})

var scopeNoun = noun[AddressScope]{
	name: "address-scope", title: "Address scope", table: scopes, fields: scopeFields,
	shown: func(tx *state.Tx, a *identity.Actor, s *AddressScope) bool {
		return s.Shared || sharedWith(tx, s.ID, a.ProjectID)
	},
	others: func(tx *state.Tx, a *identity.Actor) []span {
		return append(sharedSpans(tx, SharedScope, a.ProjectID), span{index: "by", key: facet(resource.ID{}, "shared", "true")})
	},
}

func init() { scopeNoun.add, scopeNoun.change, scopeNoun.remove = addScope, changeScope, removeScope }

// Scopes gives other domains and the native API a look at every address scope.
func Scopes() *state.Table[AddressScope] { return scopes }

func addScope(ctx context.Context, tx *state.Tx, s *AddressScope) error {
	if err := mayCreate(ctx, "address-scope.create", s.ProjectID); err != nil {
		return err
	}
	if s.Shared {
		if err := identity.Allow(ctx, "address-scope.set-shared", resource.Meta{ProjectID: s.ProjectID}); err != nil {
			return err
		}
	}
	if err := checkTexts(&s.Meta, "", nil); err != nil {
		return err
	}
	if err := scopes.Put(tx, s); err != nil {
		return err
	}
	return syncShare(tx, SharedScope, &s.Meta, ShareUse, false, s.Shared)
}

func changeScope(ctx context.Context, tx *state.Tx, was, now *AddressScope) error {
	if was.Shared != now.Shared {
		if err := identity.Allow(ctx, "address-scope.set-shared", was.Meta); err != nil {
			return err
		}
		if was.Shared {
			return invalid("scope-unshare", "Unable to update address scope %s : Shared address scope can't be unshared.", was.ID)
		}
	}
	if was.V6 != now.V6 {
		return fault.InvalidField("version", "of an address scope cannot be changed")
	}
	if err := checkTexts(&now.Meta, "", nil); err != nil {
		return err
	}
	if err := scopes.Put(tx, now); err != nil {
		return err
	}
	return syncShare(tx, SharedScope, &now.Meta, ShareUse, was.Shared, now.Shared)
}

func removeScope(ctx context.Context, tx *state.Tx, s *AddressScope) error {
	for range pools.Peek(tx, "scope", state.Range{Prefix: state.KeyOf(s.ID)}) {
		return fault.Errorf(fault.Conflict, "There are one or more subnet pools in use on the address scope %s.", s.ID).WithCode("scope-in-use")
	}
	if err := dropShares(tx, s.ID); err != nil {
		return err
	}
	return scopes.Delete(tx, s.ID)
}

// scopesOf are the address scopes of a network's subnets.
func scopesOf(tx *state.Tx, networkID resource.ID) (v4, v6 resource.ID) {
	for s := range subnets.Peek(tx, "network", state.Range{Prefix: state.KeyOf(networkID)}) {
		p, ok := pools.PeekOne(tx, s.PoolID)
		switch {
		case !ok:
		case p.V6():
			v6 = p.ScopeID
		default:
			v4 = p.ScopeID
		}
	}
	return v4, v6
}

// checkScopes keeps all subnets of one IP version of a network in the same pool's scope.
func checkScopes(tx *state.Tx, n *Network, s *Subnet) error {
	for other := range subnets.Peek(tx, "network", state.Range{Prefix: state.KeyOf(n.ID)}) {
		if other.CIDR.Addr().Is6() == s.CIDR.Addr().Is6() && other.PoolID != s.PoolID {
			a, aok := pools.PeekOne(tx, other.PoolID)
			b, bok := pools.PeekOne(tx, s.PoolID)
			if aok && !a.ScopeID.IsZero() || bok && !b.ScopeID.IsZero() {
				if !aok || !bok || a.ScopeID != b.ScopeID {
					return invalid("scope-mixed", "Subnets hosted on the same network must be allocated from the same address scope.")
				}
			}
		}
	}
	return nil
}

// An AddressGroup is a set of prefixes that security group rules can be about.
type AddressGroup struct {
	resource.Meta

	Description string
	Prefixes    []netip.Prefix
	Shared      bool
}

var addressGroupFields = common(fields[AddressGroup]{
	"description": {text: func(g *AddressGroup) []string { return []string{g.Description} }},
	"shared":      {text: func(g *AddressGroup) []string { return oneBool(g.Shared) }, by: true, single: true},
	"prefix": {text: func(g *AddressGroup) []string {
		texts := make([]string, len(g.Prefixes))
		for i, p := range g.Prefixes {
			texts[i] = p.String()
		}
		return texts
	}, by: true},
})

var addressGroups = state.NewTable[AddressGroup]("address-group",
	facets(addressGroupFields),
)

var _ = identity.Rules(map[string]identity.Rule{
	"address-group.create": identity.Member, "address-group.read": identity.Reader,
	"address-group.update": identity.Member, "address-group.delete": identity.Member,
})

var addressGroupNoun = noun[AddressGroup]{
	name: "address-group", title: "Address group", table: addressGroups, fields: addressGroupFields,
	shown: func(tx *state.Tx, a *identity.Actor, g *AddressGroup) bool {
		return g.Shared || sharedWith(tx, g.ID, a.ProjectID)
	},
	others: func(tx *state.Tx, a *identity.Actor) []span {
		return append(sharedSpans(tx, SharedSet, a.ProjectID), span{index: "by", key: facet(resource.ID{}, "shared", "true")})
	},
}

func init() {
	addressGroupNoun.add, addressGroupNoun.change, addressGroupNoun.remove = addAddressGroup, changeAddressGroup, removeAddressGroup
}

// AddressGroups gives other domains and the native API a look at every address group.
func AddressGroups() *state.Table[AddressGroup] { return addressGroups }

func addAddressGroup(ctx context.Context, tx *state.Tx, g *AddressGroup) error {
	if err := mayCreate(ctx, "address-group.create", g.ProjectID); err != nil {
		return err
	}
	g.Shared = false
	return putAddressGroup(tx, g)
}

func changeAddressGroup(ctx context.Context, tx *state.Tx, was, now *AddressGroup) error {
	return putAddressGroup(tx, now)
}

func putAddressGroup(tx *state.Tx, g *AddressGroup) error {
	if err := checkTexts(&g.Meta, g.Description, nil); err != nil {
		return err
	}
	for i, p := range g.Prefixes {
		if !p.IsValid() || slices.Contains(g.Prefixes[:i], p) {
			return invalid("invalid-input", "Invalid input for operation: %s stands twice, or is no prefix.", p)
		}
	}
	return addressGroups.Put(tx, g)
}

func removeAddressGroup(ctx context.Context, tx *state.Tx, g *AddressGroup) error {
	for range rules.Peek(tx, "remote-set", state.Range{Prefix: state.KeyOf(g.ID)}) {
		return fault.Errorf(fault.Conflict, "Address group %s is in use on one or more security group rules.", g.ID).WithCode("address-group-in-use")
	}
	if err := dropShares(tx, g.ID); err != nil {
		return err
	}
	return addressGroups.Delete(tx, g.ID)
}
