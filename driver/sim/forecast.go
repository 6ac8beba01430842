package sim

import (
	"context"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

var _ compute.Weigher = (*Guests)(nil)

// Weigh answers what a guest of its kind has: each its own, and the same each time, so that it takes no memory.
func (d *Guests) Weigh(ctx context.Context, id resource.ID, where string) (compute.Burden, error) {
	if err := ctx.Err(); err != nil {
		return compute.Burden{}, err
	}
	m := d.m
	if err := m.fault("guest.weigh", id); err != nil {
		return compute.Burden{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g, err := m.known(id)
	if err != nil {
		return compute.Burden{}, err
	}
	m.settle(id, g)
	kind := int64(id[len(id)-1])
	b := compute.Burden{Disk: (1 + kind) * 4 * mebibyte}
	if m.Net != nil && m.Net.at(where) != nil {
		b.Wire = 1e8
	}
	if g.power != compute.On && g.power != compute.Paused {
		return b, nil
	}
	b.Live, b.Memory, b.Used, b.Limit, b.Seen, b.Seconds = true, 512*mebibyte, (64+kind)*mebibyte, 200, true, 1
	if g.power == compute.On {
		b.Dirty, b.DiskWrites = kind*mebibyte/4, kind<<10
	}
	return b, nil
}
