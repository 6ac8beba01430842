package sim

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// Networks is a Machine as a driver of networks. It moves no packets.
type Networks struct{ m *Machine }

var _ network.Driver = (*Networks)(nil)

var kinds = []string{"segment", "attachment", "filter", "gateway"}

func (d *Networks) ensure(ctx context.Context, kind string, id resource.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.m.fault(kind+".ensure", id); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.m.things[network.Thing{Kind: kind, ID: id}] = struct{}{}
	return nil
}

// EnsureSegment implements network.Driver.
func (d *Networks) EnsureSegment(ctx context.Context, want network.Segment) error {
	return d.ensure(ctx, "segment", want.ID)
}

// EnsureAttachment implements network.Driver.
func (d *Networks) EnsureAttachment(ctx context.Context, want network.Attachment) (network.Tap, error) {
	if err := d.ensure(ctx, "attachment", want.ID); err != nil {
		return network.Tap{}, err
	}
	return network.Tap{Name: "sim-" + want.ID.Tail()[:10]}, nil
}

// EnsureFilter implements network.Driver.
func (d *Networks) EnsureFilter(ctx context.Context, want network.Filter) error {
	return d.ensure(ctx, "filter", want.ID)
}

// EnsureGateway implements network.Driver.
func (d *Networks) EnsureGateway(ctx context.Context, want network.Gateway) error {
	return d.ensure(ctx, "gateway", want.ID)
}

// Remove forgets the thing.
func (d *Networks) Remove(ctx context.Context, thing network.Thing) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !slices.Contains(kinds, thing.Kind) {
		return fmt.Errorf("remove %s %s: a network has nothing of this kind", thing.Kind, thing.ID)
	}
	if err := d.m.fault(thing.Kind+".remove", thing.ID); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	delete(d.m.things, thing)
	return nil
}

// Present lists the things, in order.
func (d *Networks) Present(ctx context.Context) ([]network.Thing, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := d.m.fault("network.present", resource.ID{}); err != nil {
		return nil, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	things := make([]network.Thing, 0, len(d.m.things))
	for t := range d.m.things {
		things = append(things, t)
	}
	slices.SortFunc(things, func(a, b network.Thing) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), compareIDs(a.ID, b.ID))
	})
	return things, nil
}
