package compute

import (
	"context"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Relocation is an operator's wish to have a server on another host.
type Relocation struct {
	To  string // the host's name; "" for whichever suits
	Off bool   // it is switched off for the way, also if it runs
}

// Relocate takes a server to another host: one that is in memory while it runs.
func (s *Service) Relocate(ctx context.Context, id resource.ID, r Relocation) (*operation.Operation, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*operation.Operation, error) {
		srv, err := s.relocate(ctx, tx, id, r)
		if err != nil {
			return nil, err
		}
		return operation.Get(tx, srv.OperationID)
	})
}

func (s *Service) relocate(ctx context.Context, tx *state.Tx, id resource.ID, r Relocation) (*Server, error) {
	srv, err := serverFor(ctx, tx, "server.move", id)
	if err != nil {
		return nil, err
	}
	if err := unlocked(ctx, srv); err != nil {
		return nil, err
	}
	task := Migrating
	if stage := srv.Stage(); !r.Off && (stage == Running || stage == Frozen) {
		task = LiveMigrating
	}
	if err := srv.mayMove(task); err != nil {
		return nil, err
	}
	if err := s.depart(ctx, tx, srv, task, srv.Shape, r.To); err != nil {
		return nil, err
	}
	return srv, servers.Put(tx, srv)
}

// ForecastMove tells what Relocate would take, and does nothing.
func (s *Service) ForecastMove(ctx context.Context, id resource.ID, r Relocation) (*Forecast, error) {
	plan := ctx
	if !state.Planning(ctx) {
		plan = state.WithPlan(ctx, new(state.Plan))
	}
	var was *Server
	var from, to *host.Host
	f, err := state.Do(plan, s.State, func(tx *state.Tx) (*Forecast, error) {
		var err error
		if was, err = serverFor(ctx, tx, "server.move", id); err != nil {
			return nil, err
		}
		srv, err := s.relocate(ctx, tx, id, r)
		if err != nil {
			return nil, err
		}
		from, _ = host.Table().PeekOne(tx, srv.HostID)
		to, _ = host.Table().PeekOne(tx, srv.Move.To)
		return &Forecast{From: from.Name, To: to.Name, Live: srv.Move.Live, Kept: srv.Move.keeps(srv), Wire: wireBetween(tx, from, to)}, nil
	})
	if err != nil {
		return nil, err
	}
	f.Burden, f.Unknown = s.weigh(ctx, from, to, was)
	f.foretell()
	return f, nil
}

// How many servers are looked at at once, and for how long at most one, and all of a host. What is not seen in time is guessed.
const (
	weighAtOnce = 16
	weighWithin = 10 * time.Second
	weighAll    = 45 * time.Second
)

// ForecastRetirement is PlanRetirement with what each way would take if nothing else were on the wire.
func (s *Service) ForecastRetirement(ctx context.Context, id resource.ID, r Retirement) ([]Leaving, error) {
	all, err := s.PlanRetirement(ctx, id, r)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	from, ok := host.Table().PeekOne(tx, id)
	if !ok {
		return all, nil
	}
	ctx, cancel := context.WithTimeout(ctx, weighAll)
	defer cancel()
	var group sync.WaitGroup
	places := make(chan struct{}, weighAtOnce)
	for i := range all {
		l := &all[i]
		srv, ok := servers.PeekOne(tx, l.ServerID)
		to, found := host.ByName(tx, l.To)
		if !ok || !found || l.Way != GoesLive && l.Way != GoesCold {
			continue
		}
		l.Forecast = &Forecast{From: from.Name, To: to.Name, Live: l.Way == GoesLive, Kept: srv.reachedBy(to), Wire: wireBetween(tx, from, to)}
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			l.Forecast.Burden, l.Forecast.Unknown = s.weigh(ctx, from, to, srv)
			l.Forecast.foretell()
		})
	}
	group.Wait()
	return all, nil
}
