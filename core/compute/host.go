package compute

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// DismissHost takes a machine out of the cloud: from then on it is refused, and can only join anew. One
// that still has servers stays; of a machine that is lost for good they have to be force-deleted first.
func (s *Service) DismissHost(ctx context.Context, id resource.ID) error {
	return s.dismiss(ctx, id, func(*host.Host) error { return nil })
}

// DismissLostHost is DismissHost for who may take a host for a mere record: one that can be heard stays.
func (s *Service) DismissLostHost(ctx context.Context, id resource.ID) error {
	return s.dismiss(ctx, id, func(h *host.Host) error {
		if h.Up() {
			return fault.Errorf(fault.Conflict, "Unable to delete resource provider %s: host %s is there and can be heard. Take it out of the cloud first.", id, h.Name).WithCode("host-in-use")
		}
		return nil
	})
}

func (s *Service) dismiss(ctx context.Context, id resource.ID, may func(*host.Host) error) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		h, ok := host.Find(tx, id)
		if !ok {
			return host.TurnAway(ctx, tx, id) // if it has joined, and did not come
		}
		if err := identity.Allow(ctx, "host.delete", h.Meta); err != nil {
			return err
		}
		if err := may(h); err != nil {
			return err
		}
		if n := concerns(tx, id); n > 0 {
			return fault.Errorf(fault.Conflict, "Host %s still has %d servers. Move or delete them first.", h.Name, n).WithCode("host-in-use")
		}
		for _, a := range slices.Collect(aggregates.Each(tx, "number", "")) {
			if !slices.Contains(a.Hosts, id) {
				continue
			}
			if err := leaveAggregate(tx, a, h); err != nil {
				return err
			}
		}
		if err := host.Remove(tx, id); err != nil {
			return err
		}
		return forgetEstates(tx)
	})
}
