package simulation

import (
	"fmt"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// control is one life of the controller.
type control struct {
	state      *state.State
	hub        *host.Hub
	reconciler *reconcile.Reconciler
	compute    *compute.Service
	images     *image.Service
	network    *network.Service
	operations *operation.Service
	authority  *host.Authority
}

// startControl is a new controller process on the same engine.
func (w *world) startControl() error {
	for _, n := range w.nodes {
		if n.at == nil {
			n.drop()
		}
	}
	calm := w.calm
	w.calm = true // opening is tried until it works; what fails are commits of running controllers
	defer func() { w.calm = calm }()
	st, err := state.Open(w.ctx, w.engine, state.Options{Now: w.now, Random: w, History: 4096, Level: w.level()})
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	if w.control != nil {
		w.result.Changes += int(w.control.state.Latest().Revision())
	}
	c := &control{state: st, images: image.New(st, w.blobs, image.Config{InUse: compute.UsesImage}), network: network.New(st)}
	c.compute = compute.New(st, compute.Config{Images: c.images, Hosts: reach{w}})
	cancellers, expirers := c.compute.Cancellers(), c.compute.Expirers()
	cancellers[image.Table().Kind()], expirers[image.Table().Kind()] = c.images.Cancel, c.images.Expire
	c.operations = &operation.Service{State: st, Cancellers: cancellers}
	c.hub = host.NewHub(st, slices.Concat(c.network.Sources(), c.compute.Sources(), host.Sources())...)
	c.hub.Now, c.hub.After = w.now, w.after
	reaper := &operation.Reaper{State: st, Now: w.now, Expirers: expirers}
	fence := &host.Fence{State: st, Now: w.now, Awaited: compute.Awaited, Missed: compute.Missed, Fencers: map[string]host.Fencer{"sim": fencer{w}}}
	tasks := append(host.Forget(st, w.now), reaper.Task(), c.hub.Liveness(w.now), fence.Task(), imageTask(c.images))
	for _, t := range append(c.network.Tasks(), c.compute.Reconcilers()...) {
		if !strings.HasSuffix(t.Name, "-end") { // our projects are nowhere
			tasks = append(tasks, t)
		}
	}
	if c.authority, err = host.OpenAuthority(w.ctx, st, w.clock); err != nil {
		return fmt.Errorf("open the authority: %w", err)
	}
	c.reconciler = reconcile.New(st, w.clock, tasks...)
	w.control = c
	return nil
}

// mindControl starts the controller again after a crash.
func (w *world) mindControl() error {
	if w.control.state.Broken() == nil {
		return nil
	}
	w.fault("controller restarted")
	return w.startControl()
}

// lost reports whether a host cannot be heard, as far as the controller knows.
func (w *world) lost(id resource.ID) bool {
	h, ok := host.Table().PeekOne(w.control.state.Latest(), id)
	return ok && !h.Up()
}

// work does what the controllers have to do; false if there was nothing.
func (w *world) work() bool {
	busy := w.control.work(w)
	for _, f := range w.followers {
		busy = f.work() || busy
	}
	return busy
}

// work does what the controller has to do; false if there was nothing.
func (c *control) work(w *world) bool {
	w.ring()
	if err := c.hub.Pump(); err != nil {
		w.trace("hub: %v", err)
	}
	if err := c.reconciler.Pump(w.clock); err != nil {
		w.trace("reconciler: %v", err)
	}
	return c.reconciler.Do(w.ctx, w.now)
}
