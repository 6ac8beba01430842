package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/api/relay"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/alert"
	"github.com/unkai-cloud/unkai/core/host"
)

// watch is what a controller remembers of the others, to tell who has been silent for how long.
type watch struct {
	mu     sync.Mutex
	looked time.Time            // guarded by mu
	silent map[string]time.Time // since when, by name; guarded by mu
}

const (
	probeWithin = 2 * time.Second
	unsureFor   = 5 * time.Second // after which a controller that cannot be sure lets its hosts go
)

// health is what this controller says of itself.
func (k *cluster) health(ctx context.Context) relay.Health {
	m := k.cloud.machine(ctx)
	return relay.Health{Revision: k.cloud.state.Latest().Revision(), Leads: k.cloud.state.Leads(), Hosts: k.cloud.hub.Sessions(), Machine: &m, Clock: machineClock()}
}

// probe asks every controller how it is: who does not answer has no entry.
func (k *cluster) probe(ctx context.Context) map[string]relay.Health {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	found := map[string]relay.Health{k.Name: k.health(ctx)}
	for c := range host.Controllers().All(k.cloud.state.Latest()) {
		if c.Name == k.Name {
			continue
		}
		wg.Go(func() {
			asked := machineClock()
			h, err := relay.Ask(ctx, k.transport, c.Link)
			if err != nil {
				slog.DebugContext(ctx, "a controller does not say how it is", "controller", c.Name, "err", err)
				return
			}
			if h.Machine != nil {
				h.Machine.Controller, h.Machine.Off = c.Name, clocksOff(asked, h.Clock, machineClock())
			}
			mu.Lock()
			defer mu.Unlock()
			found[c.Name] = h
		})
	}
	wg.Wait()
	return found
}

// clocksOff is by how much the other's clock, which was read between two moments of ours, is surely wrong, or ours.
func clocksOff(before, other, after time.Time) time.Duration {
	switch {
	case other.Before(before):
		return other.Sub(before)
	case other.After(after):
		return other.Sub(after)
	}
	return 0
}

// machines is how those of the controllers are that answer, and for how long each other one has not, as far as this one has looked.
func (k *cluster) machines(ctx context.Context) (machines []alert.Machine, all []alert.Silence) {
	answer := k.probe(ctx)
	w := &k.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if now.Sub(w.looked) > time.Minute {
		w.silent = map[string]time.Time{} // another has led, and looked
	}
	w.looked = now
	for c := range host.Controllers().Peek(k.cloud.state.Latest(), "name", state.Range{}) {
		if h, ok := answer[c.Name]; ok {
			delete(w.silent, c.Name)
			if h.Machine != nil {
				machines = append(machines, *h.Machine)
			}
			continue
		}
		if w.silent[c.Name].IsZero() {
			w.silent[c.Name] = now
		}
		all = append(all, alert.Silence{Controller: c.Name, For: now.Sub(w.silent[c.Name])})
	}
	return machines, all
}

// controllers is what `unkai status` shows of all controllers: also of those that were let in and never came.
func (k *cluster) controllers(ctx context.Context) []controllerHealth {
	answer := k.probe(ctx)
	var newest int64
	for _, h := range answer {
		newest = max(newest, h.Revision)
	}
	leader := k.engine.Leader()
	members := map[uint64]bool{}
	var all []controllerHealth
	for c := range host.Controllers().Peek(k.cloud.state.Latest(), "name", state.Range{}) {
		h, ok := answer[c.Name]
		members[c.Member] = true
		all = append(all, controllerHealth{Name: c.Name, Link: c.Link, URL: c.URL, Version: c.Version, Speaks: c.Speaks, Leads: leader != 0 && c.Member == leader,
			Answers: ok, Behind: newest - h.Revision, Hosts: h.Hosts})
	}
	if k.Etcd != nil {
		return all // there nobody is let in
	}
	for _, m := range k.engine.Known() {
		if !members[m.ID] {
			all = append(all, controllerHealth{Name: m.URL, Joining: true})
		}
	}
	return all
}

// report tells the one that leads which hosts are heard here. It lets them go when that does not know for too long: it would
// take them for lost.
func (k *cluster) report(ctx context.Context) error {
	tick := time.NewTicker(host.ReportEvery)
	defer tick.Stop()
	for {
		if k.cloud.state.Leads() {
			k.hosts.Known(time.Now())
		} else if err := k.hosts.Report(ctx, k.cloud.hub.Here()); err != nil && ctx.Err() == nil && !k.hosts.Told() {
			if n := k.cloud.hub.Sessions(); n > 0 {
				slog.WarnContext(ctx, "this controller cannot reach the one that leads, and lets its hosts go", "hosts", n, "err", err)
			}
			k.cloud.hub.EndAll()
		}
		select {
		case <-tick.C:
		case <-k.cloud.hub.Moved():
		case <-ctx.Done():
			return nil
		}
	}
}

// release lets this controller's hosts go for as long as it cannot be sure of what is wanted of them: they find one that can.
func (k *cluster) release(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	sure := time.Now()
	for {
		switch err := k.cloud.state.Confirm(ctx); {
		case err == nil:
			sure = time.Now()
		case ctx.Err() == nil && time.Since(sure) > unsureFor:
			if n := k.cloud.hub.Sessions(); n > 0 {
				slog.WarnContext(ctx, "this controller cannot reach most of the others, and lets its hosts go", "hosts", n, "err", err)
			}
			k.cloud.hub.EndAll()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
