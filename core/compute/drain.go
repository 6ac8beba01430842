package compute

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Retirement is an operator's wish to empty a host.
type Retirement struct {
	Reason string // "" for one of ours
	Stop   bool   // what cannot go elsewhere is stopped, and stays
	AtOnce int    // how many are on their way at any moment; 2 when 0
}

const (
	drainEvery  = 2 * time.Second
	drainWithin = 30 * time.Minute // without anything of it coming further
	mostAtOnce  = 100
)

func (r *Retirement) check() error {
	if r.AtOnce == 0 {
		r.AtOnce = 2
	}
	switch {
	case r.AtOnce < 0 || r.AtOnce > mostAtOnce:
		return fault.InvalidField("at_once", "must be from 1 to %d", mostAtOnce)
	case len(r.Reason) > 255:
		return fault.InvalidField("reason", "must be at most 255 bytes long")
	case r.Reason == "":
		r.Reason = "maintenance"
	}
	return nil
}

// Retire begins a host's maintenance: nothing new comes to it, and its servers are taken elsewhere, a few at a time. It ends when
// the host is enabled again.
func (s *Service) Retire(ctx context.Context, id resource.ID, r Retirement) (*operation.Operation, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*operation.Operation, error) {
		h, err := s.retire(ctx, tx, id, r)
		if err != nil {
			return nil, err
		}
		return operation.Get(tx, h.Drain.OperationID)
	})
}

func (s *Service) retire(ctx context.Context, tx *state.Tx, id resource.ID, r Retirement) (*host.Host, error) {
	h, ok := host.Find(tx, id)
	if !ok {
		return nil, fault.Missing("host", id)
	}
	if err := identity.Allow(ctx, "host.update", h.Meta); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	op, err := operation.Begin(tx, host.DrainVerb, host.Table().Kind(), &h.Meta, identity.ActorOf(ctx), drainWithin)
	if err != nil {
		return nil, err
	}
	if err := h.Retire(r.Reason, host.Drain{OperationID: op.ID, Stop: r.Stop, AtOnce: r.AtOnce, Begun: tx.Now(), Servers: len(servers.IDs(tx, "host", state.KeyOf(id)))}); err != nil {
		return nil, err
	}
	return h, host.Table().Put(tx, h)
}

// A Way is how a server leaves a host in maintenance.
type Way string

const (
	GoesLive    Way = "live"    // while it runs
	GoesCold    Way = "cold"    // it is off
	IsStopped   Way = "stop"    // it stays, off
	IsOffloaded Way = "offload" // it is shelved, and leaves its host for none
	Waits       Way = "wait"    // something else is under way with it first
	Stays       Way = "stay"    // it cannot leave
)

// A Leaving is what a host's maintenance would do to one server.
type Leaving struct {
	ServerID resource.ID
	Project  resource.ID
	Name     string
	Way      Way
	To       string // the host's name
	Why      string // it does not leave
	Forecast *Forecast
}

// PlanRetirement tells what Retire would do, server by server as each would find the cloud after those before it, and does nothing.
func (s *Service) PlanRetirement(ctx context.Context, id resource.ID, r Retirement) ([]Leaving, error) {
	if !state.Planning(ctx) {
		ctx = state.WithPlan(ctx, new(state.Plan))
	}
	return state.Do(ctx, s.State, func(tx *state.Tx) ([]Leaving, error) {
		h, err := s.retire(ctx, tx, id, r)
		if err != nil {
			return nil, err
		}
		all := []Leaving{}
		for _, id := range servers.IDs(tx, "host", state.KeyOf(h.ID)) {
			srv, err := servers.Get(tx, id)
			if err != nil {
				return nil, err
			}
			if srv.Doomed() {
				continue
			}
			l, err := s.leave(ctx, tx, srv, h.Drain)
			if err != nil {
				return nil, err
			}
			all = append(all, l)
		}
		return all, nil
	})
}

// leave begins what gets a server off a host in maintenance, and tells what. It puts the server.
func (s *Service) leave(ctx context.Context, tx *state.Tx, srv *Server, d *host.Drain) (Leaving, error) {
	l := Leaving{ServerID: srv.ID, Project: srv.ProjectID, Name: srv.Name, Way: Stays}
	if srv.Task != "" {
		l.Way, l.Why = Waits, "This is under way with it: "+string(srv.Task)+"."
		return l, nil
	}
	task := LiveMigrating
	switch srv.Stage() {
	case Running, Frozen:
		l.Way = GoesLive
	case Stopped:
		l.Way, task = GoesCold, Migrating
	case Asleep:
		l.Why = "It is suspended: its memory lies on the host."
	case Shelved:
		if l.Why = "It is shelved, and not yet off."; srv.rests(tx) {
			l.Way, l.Why = IsOffloaded, ""
			if err := srv.offload(tx); err != nil {
				return l, err
			}
			return l, servers.Put(tx, srv)
		}
	case Unsettled:
		l.Why = "Its owner has not yet confirmed its new shape or host."
	default:
		l.Why = "It is " + string(srv.Stage()) + "."
	}
	if l.Way == Stays {
		return l, nil
	}
	err := tx.Try(func() error {
		if err := s.depart(ctx, tx, srv, task, srv.Shape, ""); err != nil {
			return err
		}
		return servers.Put(tx, srv)
	})
	if err == nil {
		if to, ok := host.Table().PeekOne(tx, srv.Move.To); ok {
			l.To = to.Name
		}
		return l, nil
	}
	f := fault.From(err)
	if f == nil {
		return l, err
	}
	l.Way, l.Why = Stays, f.Message
	if !d.Stop || srv.Stage() != Running {
		return l, nil
	}
	fresh, err := servers.Get(tx, srv.ID) // what was tried has left its traces
	if err != nil {
		return l, err
	}
	if err := s.start(ctx, tx, fresh, Stopping); err != nil {
		return l, err
	}
	l.Way = IsStopped
	return l, servers.Put(tx, fresh)
}

// drainTask empties hosts in maintenance.
func (s *Service) drainTask() reconcile.Task {
	return reconcile.Task{
		Name: "compute-drain",
		All:  func(tx *state.Tx) []resource.ID { return host.Table().IDs(tx, "name", "") },
		Touched: func(e state.Event) []resource.ID {
			if h, ok := e.After.(*host.Host); ok && h.Drain != nil {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			h, ok := host.Table().PeekOne(s.State.Latest(), id)
			if !ok || h.Drain == nil || h.Drain.Over() {
				return reconcile.Next{}, nil
			}
			return reconcile.Next{After: drainEvery}, s.drain(identity.Internal(ctx), id)
		},
	}
}

// drain takes a host in maintenance a step further.
func (s *Service) drain(ctx context.Context, id resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		h, ok := host.Find(tx, id)
		if !ok || h.Drain == nil || h.Drain.Over() {
			return nil
		}
		op, err := operation.Get(tx, h.Drain.OperationID)
		if err != nil {
			return err
		}
		if !h.Up() {
			return operation.Note(tx, op, "the host, which cannot be heard since "+h.Lost.Format(time.RFC3339), op.Percent)
		}
		if err := confirmDrained(tx, h); err != nil {
			return err
		}
		left, togo, err := s.drainOnce(ctx, tx, h)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			h.Drain.Left = append(h.Drain.Left, left...)
			if err := host.Table().Put(tx, h); err != nil {
				return err
			}
		}
		if togo == 0 {
			return endDrain(tx, h, op)
		}
		if op.Deadline.Sub(tx.Now()) < drainWithin/2 { // whatever is under way has its own end
			if err := operation.Prolong(tx, op, drainWithin); err != nil {
				return err
			}
		}
		percent := 0
		if h.Drain.Servers > 0 {
			percent = max(0, 100*(h.Drain.Servers-togo)/h.Drain.Servers)
		}
		return operation.Note(tx, op, fmt.Sprintf("%d servers that are still to leave", togo), percent)
	})
}

// drainOnce has as many servers leave as may at once. left are those that cannot, togo is how many may still.
func (s *Service) drainOnce(ctx context.Context, tx *state.Tx, h *host.Host) (left []host.Left, togo int, err error) {
	d := h.Drain
	moving, tries := 0, 0
	var still []*Server
	for srv := range servers.Each(tx, "host", state.KeyOf(h.ID)) {
		switch {
		case slices.ContainsFunc(d.Left, func(l host.Left) bool { return l.ID == srv.ID }):
		case srv.Task != "":
			moving++
		default:
			still = append(still, srv)
		}
	}
	for srv := range servers.Peek(tx, "came", state.Range{Prefix: state.KeyOf(h.ID)}) {
		if srv.Task != "" { // it is the other host's, and is to be settled there
			moving++
		}
	}
	for _, srv := range still {
		if moving >= d.AtOnce || tries == drainTries {
			togo++
			continue
		}
		tries++
		why := cameBack(tx, srv, h)
		switch {
		case why == "":
			l, err := s.leave(ctx, tx, srv, d)
			if err != nil {
				return nil, 0, err
			}
			if l.Way != Stays {
				moving++
				continue
			}
			why = l.Why
		case d.Stop && srv.Stage() == Running:
			if err := s.start(ctx, tx, srv, Stopping); err != nil {
				return nil, 0, err
			}
			if err := servers.Put(tx, srv); err != nil {
				return nil, 0, err
			}
			moving++
			continue
		}
		left = append(left, host.Left{ID: srv.ID, Why: why})
	}
	return left, togo + moving, nil
}

// drainTries is how many servers one transaction looks for a host for.
const drainTries = 20

// cameBack tells why a server's way off a host in maintenance failed; "" if it did not.
func cameBack(tx *state.Tx, srv *Server, h *host.Host) string {
	m, ok := migrations.PeekOne(tx, srv.MigrationID)
	if !ok || m.From != h.ID || m.CreatedAt.Before(h.Drain.Begun) || m.State != Aborted && m.State != Cancelled {
		return ""
	}
	for _, o := range operation.Of(tx, srv.ID) {
		if o.Verb == string(m.Task) {
			return "It was not moved: " + o.Message
		}
	}
	return "It was not moved."
}

// confirmDrained settles what was off when it left: nobody else is asked whether that was right.
func confirmDrained(tx *state.Tx, h *host.Host) error {
	for srv := range servers.Each(tx, "came", state.KeyOf(h.ID)) {
		m, ok := migrations.PeekOne(tx, srv.MigrationID)
		if !ok || srv.Stage() != Unsettled || m.Task != Migrating || !m.UserID.IsZero() || m.CreatedAt.Before(h.Drain.Begun) {
			continue
		}
		srv.Before = nil
		if err := srv.inMigration(tx, Confirmed); err != nil {
			return err
		}
		if err := servers.Put(tx, srv); err != nil {
			return err
		}
	}
	return nil
}

// endDrain settles what became of emptying a host. What stayed is said.
func endDrain(tx *state.Tx, h *host.Host, op *operation.Operation) error {
	for _, id := range servers.IDs(tx, "came", state.KeyOf(h.ID)) {
		srv, err := servers.Get(tx, id)
		if err != nil {
			return err
		}
		if srv.Task == "" { // else it is on its way to be settled
			h.Drain.Left = append(h.Drain.Left, host.Left{ID: id, Why: "It may come back: its owner has not yet confirmed its new shape or host."})
		}
	}
	running := 0
	for _, l := range h.Drain.Left {
		if srv, ok := servers.PeekOne(tx, l.ID); ok && srv.HostID == h.ID && (srv.Seen.Power == On || srv.Seen.Power == Paused) {
			running++
		}
	}
	h.Drain.Drained = tx.Now()
	if err := host.Table().Put(tx, h); err != nil {
		return err
	}
	switch n := len(h.Drain.Left); {
	case n == 0:
		return operation.End(tx, op, operation.Succeeded, "")
	case h.Drain.Stop && running == 0:
		return operation.End(tx, op, operation.Succeeded, fmt.Sprintf("%d servers stayed, and are off.", n))
	default:
		return operation.End(tx, op, operation.Failed, fmt.Sprintf("%d servers stayed, and %d of them run: the host says why.", n, running))
	}
}

// expireDrain ends what nothing came of in time.
func expireDrain(tx *state.Tx, o *operation.Operation) error {
	h, ok := host.Find(tx, o.TargetID)
	if !ok || h.Drain == nil || h.Drain.OperationID != o.ID {
		return nil
	}
	for srv := range servers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h.ID)}) {
		if !slices.ContainsFunc(h.Drain.Left, func(l host.Left) bool { return l.ID == srv.ID }) {
			h.Drain.Left = append(h.Drain.Left, host.Left{ID: srv.ID, Why: "It was not moved in time."})
		}
	}
	return endDrain(tx, h, o)
}

// cancelDrain leaves a host's servers where they are now. The host takes nothing new until it is enabled.
func cancelDrain(ctx context.Context, tx *state.Tx, o *operation.Operation) error {
	if err := identity.Allow(ctx, "host.update", resource.Meta{}); err != nil {
		return err
	}
	return host.CancelDrain(tx, o)
}
