package compute

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

const inMaintenance = "host-in-maintenance"

// yields refuses what would keep the server on a host in maintenance: anything more with one that is the next to leave, and to run again
// with one of which was said that it stays, and which does not run. The wish of the task is the server's already.
func (s *Server) yields(ctx context.Context, tx *state.Tx, task Task) error {
	h, ok := host.Table().PeekOne(tx, s.HostID)
	if !ok || h.Drain == nil || s.Move != nil || task == Deleting || identity.ActorOf(ctx).UserID.IsZero() {
		return nil
	}
	switch d := h.Drain; {
	case slices.Contains(d.Next, s.ID) && h.Up():
		return fault.Errorf(fault.Conflict, "The server's host is in maintenance, and the server is the next to leave it. Try again when it has (%s).", task).WithCode(inMaintenance)
	case s.Power == On && s.Seen.Power != On && (d.Over() || d.Stays(s.ID) != nil):
		return fault.Errorf(fault.Conflict, "The server's host is in maintenance: what does not run there cannot begin to. Try again when that is over (%s).", task).WithCode(inMaintenance)
	}
	return nil
}

// goesSoon refuses to have a server take more where it is when its host is in maintenance.
func (s *Server) goesSoon(tx *state.Tx) error {
	if h, ok := host.Table().PeekOne(tx, s.HostID); ok && h.Maintenance {
		return fault.Errorf(fault.Conflict, "The server's host is in maintenance, and no other has room for the new flavor.").WithCode(inMaintenance)
	}
	return nil
}
