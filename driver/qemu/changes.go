package qemu

import (
	"context"
	"sync"

	"github.com/unkai-cloud/unkai/base/resource"
)

// changes hands out the IDs of guests to look at, each once however often it
// was told of, and never keeps waiting who tells.
type changes struct {
	ctx  context.Context // ends the delivery
	out  chan resource.ID
	wake chan struct{}

	mu      sync.Mutex
	pending map[resource.ID]bool // guarded by mu
	order   []resource.ID        // guarded by mu
}

func newChanges(ctx context.Context) *changes {
	return &changes{ctx: ctx, out: make(chan resource.ID), wake: make(chan struct{}, 1), pending: map[resource.ID]bool{}}
}

func (c *changes) tell(id resource.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending[id] {
		return
	}
	c.pending[id] = true
	c.order = append(c.order, id)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *changes) take() (resource.ID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.order) == 0 {
		return resource.ID{}, false
	}
	id := c.order[0]
	c.order = c.order[1:]
	delete(c.pending, id)
	return id, true
}

// deliver runs until its context ends.
func (c *changes) deliver() {
	defer close(c.out)
	for {
		id, ok := c.take()
		if !ok {
			select {
			case <-c.wake:
			case <-c.ctx.Done():
				return
			}
			continue
		}
		select {
		case c.out <- id:
		case <-c.ctx.Done():
			return
		}
	}
}

func (d *Driver) notify(id resource.ID) { d.changed.tell(id) }

// Changed implements compute.Notifier.
func (d *Driver) Changed() <-chan resource.ID { return d.changed.out }
