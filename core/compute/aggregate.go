package compute

import (
	"context"
	"maps"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// An Aggregate is a set of hosts that an operator made, to give them a zone or to lead
// flavors to them. A host may be in several, but only in one zone.
type Aggregate struct {
	resource.Meta

	Number   int    // for dialects that want small numbers; unique, never used again
	Zone     string // of its hosts; "" leaves them in their own
	Metadata map[string]string
	Hosts    []resource.ID
}

var aggregates = state.NewTable[Aggregate]("aggregate",
	state.Unique("name", func(a *Aggregate) state.Key { return state.KeyOf(a.Name) }),
	state.Unique("number", func(a *Aggregate) state.Key { return state.KeyOf(a.Number) }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"aggregate.get": identity.Admin, "aggregate.list": identity.Admin, "aggregate.create": identity.Admin,
	"aggregate.update": identity.Admin, "aggregate.delete": identity.Admin,
	"zone.list": identity.Anyone, "zone.list-hosts": identity.Admin,
})

// Aggregates gives the native API and the auditor a look at every aggregate.
func Aggregates() *state.Table[Aggregate] { return aggregates }

func missingAggregate(n int) error {
	return fault.Errorf(fault.NotFound, "Aggregate %d could not be found.", n).WithCode("aggregate-not-found")
}

// Aggregate shows one aggregate, asked for by its number.
func (s *Service) Aggregate(ctx context.Context, number int) (*Aggregate, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := identity.Allow(ctx, "aggregate.get", resource.Meta{}); err != nil {
		return nil, err
	}
	a, ok := aggregates.Lookup(tx, "number", state.KeyOf(number))
	if !ok {
		return nil, missingAggregate(number)
	}
	return a, nil
}

// ListAggregates shows them all.
func (s *Service) ListAggregates(ctx context.Context) ([]*Aggregate, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := identity.Allow(ctx, "aggregate.list", resource.Meta{}); err != nil {
		return nil, err
	}
	return slices.Collect(aggregates.Each(tx, "number", "")), nil
}

// CreateAggregate makes an empty set of hosts.
func (s *Service) CreateAggregate(ctx context.Context, name, zone string) (*Aggregate, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Aggregate, error) {
		if err := identity.Allow(ctx, "aggregate.create", resource.Meta{}); err != nil {
			return nil, err
		}
		a, err := newAggregate(tx, tx.NewID(), name, zone)
		if err != nil {
			return nil, err
		}
		return a, putAggregate(tx, a)
	})
}

func newAggregate(tx *state.Tx, id resource.ID, name, zone string) (*Aggregate, error) {
	highest := 0 // of what an earlier release made
	for last := range aggregates.Peek(tx, "number", state.Range{Reverse: true}) {
		highest = last.Number
		break
	}
	number, err := state.NextNumber(tx, aggregates.Kind(), highest)
	if err != nil {
		return nil, err
	}
	return &Aggregate{Meta: resource.Meta{ID: id, Name: name}, Number: number, Zone: zone}, nil
}

func putAggregate(tx *state.Tx, a *Aggregate) error {
	if a.Name == "" || len(a.Name) > 255 {
		return fault.InvalidField("name", "must be of 1 to 255 characters")
	}
	err := aggregates.Put(tx, a)
	if fault.Is(err, fault.Exists) {
		return fault.Errorf(fault.Exists, "Aggregate %s already exists.", a.Name).WithCode("aggregate-name-taken")
	}
	return err
}

// ChangeAggregate runs a change of one aggregate that an admin asks for.
func (s *Service) changeAggregate(ctx context.Context, number int, change func(*state.Tx, *Aggregate) error) (*Aggregate, error) {
	var out *Aggregate
	err := s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "aggregate.update", resource.Meta{}); err != nil {
			return err
		}
		a, ok := aggregates.Lookup(tx, "number", state.KeyOf(number))
		if !ok {
			return missingAggregate(number)
		}
		if err := change(tx, a); err != nil {
			return err
		}
		out = a
		return putAggregate(tx, a)
	})
	return out, err
}

// UpdateAggregate renames an aggregate or gives it another zone. nil leaves as it is.
func (s *Service) UpdateAggregate(ctx context.Context, number int, name, zone *string) (*Aggregate, error) {
	return s.changeAggregate(ctx, number, func(tx *state.Tx, a *Aggregate) error {
		if name != nil {
			a.Name = *name
		}
		if zone != nil {
			return a.rezone(tx, *zone)
		}
		return nil
	})
}

// rezone gives the aggregate's hosts another zone, unless servers that asked for the present one run there.
func (a *Aggregate) rezone(tx *state.Tx, zone string) error {
	if zone == a.Zone {
		return nil
	}
	for _, id := range a.Hosts {
		if err := mayJoinZone(tx, a, id, zone); err != nil {
			return err
		}
		if h, ok := host.Find(tx, id); ok && zone == "" && strands(tx, a, h) {
			return fault.Errorf(fault.Conflict, "Cannot perform action on aggregate %d. Reason: One or more hosts contain instances in this zone.", a.Number)
		}
	}
	a.Zone = zone
	return nil
}

// strands reports whether a host with servers would be in another zone if it did not have this aggregate's.
func strands(tx *state.Tx, a *Aggregate, h *host.Host) bool {
	if a.Zone == "" || concerns(tx, h.ID) == 0 {
		return false
	}
	for other := range aggregates.Peek(tx, "", state.Range{}) {
		if other.ID != a.ID && other.Zone != "" && slices.Contains(other.Hosts, h.ID) {
			return other.Zone != a.Zone
		}
	}
	return h.Zone != a.Zone
}

// mayJoinZone refuses a host that is in another zone already, or whose servers would change theirs.
func mayJoinZone(tx *state.Tx, a *Aggregate, id resource.ID, zone string) error {
	h, ok := host.Find(tx, id)
	if !ok || zone == "" {
		return nil
	}
	for other := range aggregates.Peek(tx, "", state.Range{}) {
		if other.ID != a.ID && other.Zone != "" && other.Zone != zone && slices.Contains(other.Hosts, id) {
			return fault.Errorf(fault.Conflict, "Cannot perform action 'add_host_to_aggregate' on aggregate %d. Reason: Host already in availability zone %s.", a.Number, other.Zone)
		}
	}
	if now := ZonesOf(tx).Of(h); now != zone {
		if concerns(tx, id) > 0 {
			return fault.Errorf(fault.Conflict, "Cannot perform action on aggregate %d. Reason: One or more hosts contain instances in this zone.", a.Number)
		}
	}
	return nil
}

// SetAggregateMetadata adds pairs, of which a nil value takes its pair away, and if zone is not nil
// gives the aggregate that zone. A few keys mean something, and their values have to make sense.
func (s *Service) SetAggregateMetadata(ctx context.Context, number int, pairs map[string]*string, zone *string) (*Aggregate, error) {
	return s.changeAggregate(ctx, number, func(tx *state.Tx, a *Aggregate) error {
		for of, key := range ratioKeys {
			if text := pairs[key]; text != nil {
				if _, err := parseRatio(of, *text); err != nil {
					return err
				}
			}
		}
		if a.Metadata == nil {
			a.Metadata = map[string]string{}
		}
		for key, value := range pairs {
			if value != nil {
				a.Metadata[key] = *value
			} else {
				delete(a.Metadata, key)
			}
		}
		if zone != nil {
			return a.rezone(tx, *zone)
		}
		return nil
	})
}

func hostNamed(tx *state.Tx, name string) (*host.Host, error) {
	h, ok := host.ByName(tx, name)
	if !ok {
		return nil, fault.Errorf(fault.NotFound, "Compute host %s could not be found.", name).WithCode("host-not-found")
	}
	return h, nil
}

// AddHost puts a host into an aggregate.
func (s *Service) AddHost(ctx context.Context, number int, name string) (*Aggregate, error) {
	return s.changeAggregate(ctx, number, func(tx *state.Tx, a *Aggregate) error {
		h, err := hostNamed(tx, name)
		if err != nil {
			return err
		}
		if slices.Contains(a.Hosts, h.ID) {
			return fault.Errorf(fault.Exists, "Aggregate %d already has host %s.", number, name)
		}
		if err := mayJoinZone(tx, a, h.ID, a.Zone); err != nil {
			return err
		}
		a.Hosts = append(a.Hosts, h.ID)
		return host.Touch(tx, h.ID)
	})
}

// mayLeaveZone refuses to take a host out whose servers would change their zone.
func mayLeaveZone(tx *state.Tx, a *Aggregate, h *host.Host) error {
	if strands(tx, a, h) {
		return fault.Errorf(fault.Conflict, "Cannot remove host from aggregate %d. Reason: Host contains instances in zone %s.", a.Number, a.Zone)
	}
	return nil
}

// RemoveHost takes a host out of an aggregate.
func (s *Service) RemoveHost(ctx context.Context, number int, name string) (*Aggregate, error) {
	return s.changeAggregate(ctx, number, func(tx *state.Tx, a *Aggregate) error {
		h, err := hostNamed(tx, name)
		if err != nil {
			return err
		}
		n := slices.Index(a.Hosts, h.ID)
		if n < 0 {
			return fault.Errorf(fault.NotFound, "Host %s could not be found in aggregate %d.", name, number)
		}
		if err := mayLeaveZone(tx, a, h); err != nil {
			return err
		}
		a.Hosts = slices.Delete(a.Hosts, n, n+1)
		return host.Touch(tx, h.ID)
	})
}

// DeleteAggregate takes an empty aggregate away.
func (s *Service) DeleteAggregate(ctx context.Context, number int) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "aggregate.delete", resource.Meta{}); err != nil {
			return err
		}
		a, ok := aggregates.Lookup(tx, "number", state.KeyOf(number))
		if !ok {
			return missingAggregate(number)
		}
		if len(a.Hosts) > 0 {
			return fault.Errorf(fault.Conflict, "Cannot delete aggregate %d: it is not empty.", number).With("reason", "not empty")
		}
		return aggregates.Delete(tx, a.ID)
	})
}

// A ZoneView is a zone and what is in it.
type ZoneView struct {
	Name  string
	Up    bool         // it has a host that can take servers
	Hosts []*host.Host // only for operators
}

// ListZones shows the zones; with their hosts to an operator.
func (s *Service) ListZones(ctx context.Context, withHosts bool) ([]ZoneView, error) {
	action := "zone.list"
	if withHosts {
		action = "zone.list-hosts"
	}
	if err := identity.Allow(ctx, action, resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	zones := ZonesOf(tx)
	at := map[string]*ZoneView{}
	for h := range host.Table().Peek(tx, "name", state.Range{}) {
		name := zones.Of(h)
		z := at[name]
		if z == nil {
			z = &ZoneView{Name: name}
			at[name] = z
		}
		z.Up = z.Up || h.Up() && !h.Disabled
		if withHosts {
			z.Hosts = append(z.Hosts, h)
		}
	}
	var views []ZoneView
	for _, name := range slices.Sorted(maps.Keys(at)) {
		views = append(views, *at[name])
	}
	return views, nil
}
