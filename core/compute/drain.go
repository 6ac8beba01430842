package compute

import (
	"context"
	"fmt"

	"github.com/unkai-cloud/unkai/base/fault"
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

const mostAtOnce = 100

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
	Note     string // what else is to be known of its leaving; "" for nothing
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

// Why servers stay on a host in maintenance.
const (
	onHostAsleep = "It is suspended: its memory lies on the host."
	notConfirmed = "Its owner has not yet confirmed its new shape or host."
)

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
		l.Why = onHostAsleep
	case Shelved:
		if l.Why = "It is shelved, and not yet off, or about to leave the shelf."; srv.rests(tx) && !srv.isNewerThanShelf(tx) {
			l.Way, l.Why = IsOffloaded, ""
			if err := srv.offload(tx); err != nil {
				return l, err
			}
			return l, servers.Put(tx, srv)
		}
	case Unsettled:
		l.Why = notConfirmed
	default:
		l.Why = "It is " + string(srv.Stage()) + "."
	}
	if g, ok := groups.PeekOne(tx, srv.GroupID); ok && g.Policy == Together && l.Way != Stays {
		if c := companyOf(tx, g, &demand{self: srv.ID, leaves: srv.HostID}); c.held != "" {
			l.Way, l.Why = Stays, c.held
		}
	}
	if l.Way == Stays {
		return s.stopOrStay(ctx, tx, srv, d, l)
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
		if n, _ := srv.together(tx); n > 0 {
			l.Note = fmt.Sprintf("Its group keeps its servers on one host: they leave for the same one, and are apart until %d more have come.", n)
		}
		return l, nil
	}
	f := fault.From(err)
	if f == nil {
		return l, err
	}
	fresh, err := servers.Get(tx, srv.ID) // what was tried has left its traces
	if err != nil {
		return l, err
	}
	l.Way, l.Why = Stays, f.Message
	return s.stopOrStay(ctx, tx, fresh, d, l)
}

// stopOrStay stops the guest of a server that cannot leave, if that is what is to become of it.
func (s *Service) stopOrStay(ctx context.Context, tx *state.Tx, srv *Server, d *host.Drain, l Leaving) (Leaving, error) {
	if stage := srv.Stage(); !d.Stop || !srv.inMemory() || stage == Shelved || stage == Asleep { // those are off, or about to be
		return l, nil
	}
	moves[Stopping].wish(srv) // in whatever stage it is: a shape that nobody has confirmed can be confirmed, or taken back, when it is off
	if _, err := begin(ctx, tx, srv, Stopping, moves[Stopping].within); err != nil {
		return l, err
	}
	l.Way = IsStopped
	return l, servers.Put(tx, srv)
}

// inMemory reports whether the guest is more than its disks, or about to be: it may be starting again by itself.
func (s *Server) inMemory() bool {
	return s.Seen.Power == On || s.Seen.Power == Paused || s.Power == On || s.Power == Paused
}
