package compute

import (
	"context"
	"fmt"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Reshape gives a server another flavor, on the host where it is: a running guest is power-cycled to
// get it. If there is no room for it there, it moves to a host that has. What it was is held until its owner
// confirms; its disks grow only then, for they could not shrink again. manualDisk is as in Edit.
func (s *Service) Reshape(ctx context.Context, id resource.ID, flavor string, manualDisk *bool) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		stage := srv.Stage()
		if stage != Running && stage != Stopped || srv.Task != "" || srv.HostID.IsZero() {
			return wrongState(srv, string(Reshaping))
		}
		f, err := flavorFor(ctx, tx, flavor)
		if err != nil || f.Disabled {
			return fault.Errorf(fault.Invalid, "Flavor %s could not be found.", flavor).WithCode("flavor-not-found")
		}
		if f.ID == srv.Shape.FlavorID {
			return fault.Errorf(fault.Invalid, "When resizing, instances must change flavor!").WithCode("same-flavor")
		}
		shape := f.shape()
		shape.ImageGiB = srv.Shape.ImageGiB
		if err := srv.mayBecome(tx, &shape); err != nil {
			return err
		}
		if manualDisk != nil {
			srv.ManualDisk = *manualDisk
		}
		full := srv.goesSoon(tx)
		if full == nil {
			full = s.fitsWhereItIs(tx, srv, &shape)
		}
		if full != nil {
			err := s.depart(ctx, tx, srv, Reshaping, shape, "")
			if fault.From(err) != nil {
				return full // and there is no way to another
			}
			return err
		}
		if err := srv.chronicle(ctx, tx, Reshaping, srv.HostID, &shape); err != nil {
			return err
		}
		srv.Before = &Reshaped{Shape: srv.Shape, Power: srv.Power, HostID: srv.HostID, At: tx.Now()}
		srv.Shape = shape
		return srv.recast(ctx, tx, Reshaping)
	})
	return err
}

// mayBecome holds a new shape against the disks and the quota.
func (s *Server) mayBecome(tx *state.Tx, shape *Shape) error {
	if shape.rootGiB() < s.Shape.rootGiB() || shape.EphemeralGiB < s.Shape.EphemeralGiB || shape.SwapMiB < s.Shape.SwapMiB {
		return fault.Errorf(fault.Invalid, "Resize to a flavor with smaller disks is not possible: what is on them would be lost.").WithCode("flavor-disk")
	}
	for _, user := range []resource.ID{{}, s.UserID} {
		_, sums := used(tx, s.ProjectID, user)
		for _, q := range []struct {
			name string
			used int64
			more int
		}{{QuotaCores, sums[0], shape.VCPUs - s.Shape.VCPUs}, {QuotaMemory, sums[1], shape.MemoryMiB - s.Shape.MemoryMiB}} {
			if q.more <= 0 {
				continue
			}
			if err := roomFor(tx, s.ProjectID, user, q.name, q.used, q.more); err != nil {
				return err
			}
		}
	}
	return nil
}

// fitsWhereItIs asks of the server's host what a placement would ask, of what the new shape takes more than it has there.
func (s *Service) fitsWhereItIs(tx *state.Tx, srv *Server, shape *Shape) error {
	h, ok := host.Table().PeekOne(tx, srv.HostID)
	if !ok {
		return wrongState(srv, string(Reshaping))
	}
	d := shape.ask()
	d.stays = srv
	p := s.search(tx, d)
	if n := p.removes(h); n >= 0 {
		return fault.Errorf(fault.Exhausted, "No valid host was found. The server's host is none that %s.", p.asked[n].name).WithCode("no-host")
	}
	return nil
}

// recast makes the guest take its present shape. One that is off takes it when it starts.
func (s *Server) recast(ctx context.Context, tx *state.Tx, task Task) error {
	op, err := begin(ctx, tx, s, task, moves[task].within)
	if err != nil {
		return err
	}
	if s.Power == On {
		s.HardBoots = max(s.HardBoots, s.Seen.HardBoots) + 1
		return waitForHost(tx, s, op)
	}
	return s.conclude(tx, operation.Succeeded, "")
}

// recast is done when the guest was power-cycled, if it had to be.
func recast(want *Server, seen *Seen) bool {
	return seen.Power == want.Power && seen.HardBoots >= want.HardBoots
}

// conclude ends what is under way, and what a new shape left open.
func (s *Server) conclude(tx *state.Tx, outcome operation.Outcome, message string) error {
	end := Moved
	switch outcome {
	case operation.Failed:
		end = Aborted
	case operation.Cancelled:
		end = Cancelled
	}
	switch s.Task {
	case Reverting:
		s.Before = nil
		if outcome == operation.Succeeded {
			end = Reverted
		}
	case Reshaping, Migrating:
		if outcome != operation.Succeeded && s.Before != nil {
			s.Shape, s.Before = s.Before.Shape, nil
		}
	case LiveMigrating, Evacuating:
	case Unshelving:
		if outcome == operation.Succeeded {
			if err := s.clearShelf(tx); err != nil {
				return err
			}
		}
		return settle(tx, s, outcome, message)
	default:
		return settle(tx, s, outcome, message)
	}
	if err := s.inMigration(tx, end); err != nil {
		return err
	}
	return settle(tx, s, outcome, message)
}

// Confirm keeps a server's new shape: there is no way back then.
func (s *Service) Confirm(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		if srv.Stage() != Unsettled {
			return wrongState(srv, "resize-confirm")
		}
		srv.Before = nil
		if err := srv.inMigration(tx, Confirmed); err != nil {
			return err
		}
		return record(ctx, tx, srv, "resize-confirm")
	})
	return err
}

// Revert gives a server its old shape back, on the host where it had it. If that takes nothing now, a new shape is taken back where the
// server is: room for both is held there.
func (s *Service) Revert(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		if srv.Stage() != Unsettled {
			return wrongState(srv, string(Reverting))
		}
		if srv.Before == nil {
			return fmt.Errorf("server %s is unsettled and has no shape before", id)
		}
		if back := srv.Before.HostID; !back.IsZero() && back != srv.HostID {
			h, ok := host.Table().PeekOne(tx, back)
			closed := ok && (h.Disabled || h.Maintenance || !host.FitOf(tx).Has(h))
			switch {
			case !closed:
				return s.goBack(ctx, tx, srv, back)
			case srv.Before.Shape.FlavorID == srv.Shape.FlavorID:
				return fault.Errorf(fault.Conflict, "The host that the server came from takes no servers now. Try again when it does, or confirm.").WithCode("host-disabled")
			}
		}
		srv.Shape = srv.Before.Shape
		return srv.recast(ctx, tx, Reverting)
	})
	return err
}

// goBack sends a server to the host that it came from, where room is held for it. What was written to its disks
// since goes with it.
func (s *Service) goBack(ctx context.Context, tx *state.Tx, srv *Server, back resource.ID) error {
	for _, id := range []resource.ID{back, srv.HostID} {
		if h, ok := host.Table().PeekOne(tx, id); !ok || !h.Up() {
			return fault.Errorf(fault.Conflict, "One of the two hosts cannot be heard. Try again once it can, or confirm.").WithCode("host-down")
		}
	}
	if err := srv.mayRejoin(tx, back); err != nil {
		return err
	}
	_, err := s.setOut(ctx, tx, srv, Reverting, back, srv.Before.Shape)
	return err
}
