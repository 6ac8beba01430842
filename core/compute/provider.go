package compute

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Provider is a host seen as what has so much of each resource class, and of which so much is used.
// It is derived whenever somebody asks: from the host, and from the tallies over the servers.
type Provider struct {
	Host       *host.Host
	Aggregates []resource.ID
	Inventory  map[string]host.Inventory
	Used       map[string]int64 // of every class in Inventory
}

// Generation changes whenever the host does, and what operators say of it: not with each server.
func (p *Provider) Generation() int64 { return p.Host.Revision }

// inventory is what a host offers: what it reports, as much of it as placement promises, and what operators added.
func inventory(h *host.Host, ratios host.Ratios) map[string]host.Inventory {
	all := map[string]host.Inventory{}
	for i, class := range loadClasses {
		has := []int{h.Capacity.VCPUs, h.Capacity.MemoryMiB, h.Capacity.DiskGiB}[i]
		if has < 1 {
			continue // none at all, which is no inventory
		}
		v := host.Inventory{Total: int64(has), Ratio: ratios[i], Min: 1, Step: 1}
		v.Max = max(1, v.Capacity())
		if most := int64(h.Capacity.MaxVCPUs); class == host.ClassVCPU && most > 0 {
			v.Max = most
		}
		all[class] = v
	}
	maps.Copy(all, h.Offers)
	return all
}

// loadClasses are the resource classes of a load, in its order.
var loadClasses = [...]string{host.ClassVCPU, host.ClassMemory, host.ClassDisk}

// memberships are the aggregates of each host that is in any.
func memberships(tx *state.Tx) map[resource.ID][]resource.ID {
	in := map[resource.ID][]resource.ID{}
	for a := range aggregates.Peek(tx, "number", state.Range{}) {
		for _, id := range a.Hosts {
			in[id] = append(in[id], a.ID)
		}
	}
	return in
}

func provider(tx *state.Tx, h *host.Host, in map[resource.ID][]resource.ID, policy overcommit) *Provider {
	p := &Provider{Host: h, Aggregates: in[h.ID], Inventory: inventory(h, policy.of(h)), Used: map[string]int64{}}
	_, load := Load(tx, h)
	for i, class := range loadClasses {
		if _, ok := p.Inventory[class]; ok {
			p.Used[class] = load[i]
		}
	}
	for class := range h.Offers {
		p.Used[class] = claimed(tx, h.ID, class)
	}
	return p
}

// Provider shows one host so to an operator.
func (s *Service) Provider(ctx context.Context, id resource.ID) (*Provider, error) {
	if err := identity.Allow(ctx, "host.get", resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	h, ok := host.Find(tx, id)
	if !ok {
		return nil, fault.Missing("host", id)
	}
	return provider(tx, h, memberships(tx), s.overcommits(tx)), nil
}

// A Need is what somebody asks of one provider.
type Need struct {
	Name        string // of the host; "" for any
	ID          resource.ID
	Amounts     map[string]int64
	Required    [][]string // of each list, one trait at least
	Forbidden   []string   // traits
	MemberOf    [][]resource.ID
	NotMemberOf []resource.ID
}

// check refuses names that nothing has.
func (n *Need) check(tx *state.Tx) error {
	for class := range n.Amounts {
		if !host.ClassExists(tx, class) {
			return fault.Errorf(fault.Invalid, "Invalid resource class in resources parameter: No such resource class %.60s.", class).WithCode("need")
		}
	}
	for _, t := range append(slices.Concat(n.Required...), n.Forbidden...) {
		if !host.TraitExists(tx, t) {
			return fault.Errorf(fault.Invalid, "No such trait(s): %.60s.", t).WithCode("need")
		}
	}
	return nil
}

// Meets reports whether the provider has what is needed.
func (p *Provider) Meets(n *Need) bool {
	if n.Name != "" && p.Host.Name != n.Name || !n.ID.IsZero() && p.Host.ID != n.ID {
		return false
	}
	in := func(id resource.ID) bool { return slices.Contains(p.Aggregates, id) }
	for _, any := range n.MemberOf {
		if !slices.ContainsFunc(any, in) {
			return false
		}
	}
	for _, any := range n.Required {
		if !slices.ContainsFunc(any, p.Host.HasTrait) {
			return false
		}
	}
	return !slices.ContainsFunc(n.NotMemberOf, in) && !slices.ContainsFunc(n.Forbidden, p.Host.HasTrait) && p.fits(n.Amounts)
}

func (p *Provider) fits(amounts map[string]int64) bool {
	for class, n := range amounts {
		if v, ok := p.Inventory[class]; !ok || !v.Fits(p.Used[class], n) {
			return false
		}
	}
	return true
}

// Providers shows an operator the hosts that have, each alone, all that is needed, in the order of their names: at most
// so many, or all for 0. Several needs are for one server, so that a host must have room for all of them at once.
func (s *Service) Providers(ctx context.Context, needs []Need, most int) ([]*Provider, error) {
	return s.providers(ctx, needs, most, func(host.Fit, *host.Host) bool { return true })
}

// Candidates are the Providers on which a server could be put now.
func (s *Service) Candidates(ctx context.Context, needs []Need, most int) ([]*Provider, error) {
	return s.providers(ctx, needs, most, func(fit host.Fit, h *host.Host) bool {
		return h.Up() && !h.Maintenance && !h.Disabled && fit.Has(h)
	})
}

func (s *Service) providers(ctx context.Context, needs []Need, most int, keep func(host.Fit, *host.Host) bool) ([]*Provider, error) {
	if err := identity.Allow(ctx, "host.list", resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	sum := map[string]int64{}
	for i := range needs {
		if err := needs[i].check(tx); err != nil {
			return nil, err
		}
		for class, n := range needs[i].Amounts {
			sum[class] += n
		}
	}
	var found []*Provider
	in, fit, policy := memberships(tx), host.FitOf(tx), s.overcommits(tx)
	for h := range host.Table().Range(tx, "name", state.Range{}) {
		if !keep(fit, h) {
			continue
		}
		p := provider(tx, h, in, policy)
		meets := p.fits(sum)
		for i := range needs {
			meets = meets && p.Meets(&needs[i])
		}
		if meets {
			if found = append(found, p); len(found) == most {
				break
			}
		}
	}
	return found, nil
}

// A Holding is what one server takes of one host: of that which it is on, or on its way to; and, as long as it can be taken back, of that
// which it leaves or has left, which its migration holds.
type Holding struct {
	Consumer   resource.ID // the server's ID, or the migration's
	Migration  bool
	ServerID   resource.ID
	ProjectID  resource.ID
	UserID     resource.ID
	Generation int64 // changes whenever the server does
	Since      time.Time
	Provider   *host.Host
	Amounts    map[string]int64 // only what it takes any of
}

// holdings are a server's.
func holdings(tx *state.Tx, srv *Server) (all []*Holding) {
	own, back := srv.HostID, srv.beside()
	if srv.Move != nil {
		own, back = back, own
	}
	for _, id := range []resource.ID{own, back} {
		h, ok := host.Find(tx, id)
		if !ok {
			continue
		}
		held := &Holding{Consumer: srv.ID, ServerID: srv.ID, ProjectID: srv.ProjectID, UserID: srv.UserID, Generation: srv.Revision, Since: srv.UpdatedAt, Provider: h,
			Amounts: maps.Clone(srv.claimsOn(id))}
		if id == back {
			held.Consumer, held.Migration = srv.MigrationID, true
		}
		if held.Amounts == nil {
			held.Amounts = map[string]int64{}
		}
		load := srv.taken()
		for i, class := range loadClasses {
			if load[i] > 0 {
				held.Amounts[class] = load[i]
			}
		}
		all = append(all, held)
	}
	return all
}

// Holding shows an operator what a server, or a migration, holds; nil if there is no such thing, or it holds nothing.
func (s *Service) Holding(ctx context.Context, consumer resource.ID) (*Holding, error) {
	if err := identity.Allow(ctx, "host.get", resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	server := consumer
	if m, ok := migrations.PeekOne(tx, consumer); ok {
		server = m.ServerID
	}
	srv, ok := servers.PeekOne(tx, server)
	if !ok {
		return nil, nil
	}
	for _, held := range holdings(tx, srv) {
		if held.Consumer == consumer {
			return held, nil
		}
	}
	return nil, nil
}

// HoldingsOn shows an operator what each server and migration holds of a host. Together they are what is used of it, but of storage that hosts
// share: each of those says how full that is, and the servers' parts are with the host that each is on.
func (s *Service) HoldingsOn(ctx context.Context, id resource.ID) (*Provider, []*Holding, error) {
	if err := identity.Allow(ctx, "host.get", resource.Meta{}); err != nil {
		return nil, nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	h, ok := host.Find(tx, id)
	if !ok {
		return nil, nil, fault.Missing("host", id)
	}
	var all []*Holding
	seen := map[resource.ID]bool{}
	for _, index := range []string{"host", "arriving", "came"} {
		for srv := range servers.Peek(tx, index, state.Range{Prefix: state.KeyOf(id)}) {
			if seen[srv.ID] {
				continue
			}
			seen[srv.ID] = true
			for _, held := range holdings(tx, srv) {
				if held.Provider.ID == id {
					all = append(all, held)
				}
			}
		}
	}
	return provider(tx, h, memberships(tx), s.overcommits(tx)), all, nil
}

var _ = identity.Rules(map[string]identity.Rule{"resource-use.get": identity.Reader})

// Taken is what the servers of a project that have a host take, or those of one user there, by resource class; and how
// many they are. Unlike quota it leaves out those for which there is no host yet.
func (s *Service) Taken(ctx context.Context, project, user resource.ID) (amounts map[string]int64, count int64, err error) {
	if err := identity.Allow(ctx, "resource-use.get", resource.Meta{ProjectID: project}); err != nil {
		return nil, 0, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, 0, err
	}
	if project.IsZero() {
		return nil, 0, nil
	}
	count, load := used(tx, project, user)
	for srv := range servers.Peek(tx, "unplaced", state.Range{Prefix: state.KeyOf(project)}) {
		if !user.IsZero() && srv.UserID != user {
			continue
		}
		count--
		for i, n := range srv.taken() {
			load[i] -= n
		}
	}
	amounts = map[string]int64{}
	for i, class := range loadClasses {
		if load[i] > 0 {
			amounts[class] = load[i]
		}
	}
	for c := range host.ResourceClasses().Peek(tx, "", state.Range{}) {
		key := projectClaim(project, c.Name)
		if !user.IsZero() {
			key = userClaim(project, user, c.Name)
		}
		if _, sums := servers.Sum(tx, "claims", key); sums[0] > 0 {
			amounts[c.Name] = sums[0]
		}
	}
	return amounts, count, nil
}

// MayProvide asks whether the actor may change providers and holdings at all, so that who may is told why something cannot
// be, and nobody else anything.
func (s *Service) MayProvide(ctx context.Context) error {
	return identity.Allow(ctx, "host.update", resource.Meta{})
}

// SetInventory changes what of custom resource classes a host offers: change is given all that it offers now, what it
// reports included, and gives what it is to offer. What it reports must stay as it is, and what servers hold must stay.
// generation is the one that the caller knows; nil for whatever it is.
func (s *Service) SetInventory(ctx context.Context, id resource.ID, generation *int64, change func(map[string]host.Inventory) (map[string]host.Inventory, error)) (*Provider, error) {
	var out *Provider
	_, err := host.Change(ctx, s.State, id, generation, func(tx *state.Tx, h *host.Host) error {
		policy := s.overcommits(tx)
		now := inventory(h, policy.of(h))
		next, err := change(maps.Clone(now))
		if err != nil {
			return err
		}
		if err := mayOffer(tx, h, now, next); err != nil {
			return err
		}
		h.Offers = nil
		for class, v := range next {
			if host.Custom(class) {
				if h.Offers == nil {
					h.Offers = map[string]host.Inventory{}
				}
				h.Offers[class] = v
			}
		}
		out = provider(tx, h, memberships(tx), s.overcommits(tx))
		return nil
	})
	return out, err
}

// mayOffer refuses a change of what a host offers that is not an operator's to make.
func mayOffer(tx *state.Tx, h *host.Host, now, next map[string]host.Inventory) error {
	for _, class := range slices.Sorted(maps.Keys(next)) {
		v := next[class]
		if v == now[class] {
			continue
		}
		switch {
		case !host.ClassExists(tx, class):
			return fault.Errorf(fault.Invalid, "Unknown resource class in inventory for resource provider %s: No such resource class %.60s.", h.ID, class)
		case host.Custom(class):
			if err := v.Check(class); err != nil {
				return err
			}
		case slices.Contains(loadClasses[:], class):
			return fault.Errorf(fault.Conflict, "The inventory of %s is what host %s reports of itself, and is overcommitted as the cloud's policy says (unkai host keeping), or the metadata of an aggregate (%s): it cannot be changed here.", class, h.Name, ratioKeys[slices.Index(loadClasses[:], class)]).WithCode("derived")
		default:
			return fault.Errorf(fault.Conflict, "No guest is given any %s here, so that a host cannot offer it. Custom resource classes can be counted.", class).WithCode("derived")
		}
	}
	for _, class := range slices.Sorted(maps.Keys(now)) {
		if _, stays := next[class]; stays {
			continue
		}
		if !host.Custom(class) {
			return fault.Errorf(fault.Conflict, "The inventory of %s is what host %s reports of itself: it cannot be taken away.", class, h.Name).WithCode("derived")
		}
		if n := claimed(tx, h.ID, class); n > 0 {
			return fault.Errorf(fault.Conflict, "Inventory for '%s' on resource provider '%s' in use: servers hold %d of it.", class, h.ID, n).WithCode("inventory-in-use")
		}
	}
	return nil
}

// SetMemberships puts a host into exactly these aggregates. One that is not there yet is made, named by its ID; and
// taken away again with its last host.
func (s *Service) SetMemberships(ctx context.Context, id resource.ID, generation *int64, want []resource.ID) (*Provider, error) {
	var out *Provider
	_, err := host.Change(ctx, s.State, id, generation, func(tx *state.Tx, h *host.Host) error {
		if err := identity.Allow(ctx, "aggregate.update", resource.Meta{}); err != nil {
			return err
		}
		for _, a := range slices.Collect(aggregates.Each(tx, "number", "")) {
			if slices.Contains(a.Hosts, id) && !slices.Contains(want, a.ID) {
				if err := leaveAggregate(tx, a, h); err != nil {
					return err
				}
			}
		}
		for _, to := range want {
			if to.IsZero() {
				return fault.InvalidField("aggregates", "must not hold the UUID of nothing")
			}
			if err := joinAggregate(tx, to, h); err != nil {
				return err
			}
		}
		out = provider(tx, h, memberships(tx), s.overcommits(tx))
		return nil
	})
	return out, err
}

func leaveAggregate(tx *state.Tx, a *Aggregate, h *host.Host) error {
	if err := mayLeaveZone(tx, a, h); err != nil {
		return err
	}
	a.Hosts = slices.DeleteFunc(a.Hosts, func(id resource.ID) bool { return id == h.ID })
	if len(a.Hosts) == 0 && a.Name == a.ID.String() && a.Zone == "" && len(a.Metadata) == 0 {
		return aggregates.Delete(tx, a.ID)
	}
	return putAggregate(tx, a)
}

func joinAggregate(tx *state.Tx, id resource.ID, h *host.Host) error {
	a, ok := aggregates.Find(tx, id)
	if !ok {
		var err error
		if a, err = newAggregate(tx, id, id.String(), ""); err != nil {
			return err
		}
	}
	if slices.Contains(a.Hosts, h.ID) {
		return nil
	}
	if err := mayJoinZone(tx, a, h.ID, a.Zone); err != nil {
		return err
	}
	a.Hosts = append(a.Hosts, h.ID)
	return putAggregate(tx, a)
}
