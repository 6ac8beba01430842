package compute

import (
	"context"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Cancellers take back what was asked of servers.
func (s *Service) Cancellers() map[string]operation.Canceller {
	return map[string]operation.Canceller{servers.Kind(): s.cancel, host.Table().Kind(): cancelDrain}
}

// cancel takes back what is under way with a server. One that is being made goes, as if it had been
// deleted; of any other the wish becomes what was last seen, and its host undoes what it has done since.
func (s *Service) cancel(ctx context.Context, tx *state.Tx, o *operation.Operation) error {
	action := "server.operate"
	switch Task(o.Verb) {
	case Creating:
		action = "server.delete"
	case Migrating, LiveMigrating, Evacuating:
		action = "server.move" // an operator's wish is an operator's to take back
	case Stopping:
		if o.UserID.IsZero() {
			action = "server.move" // so is what is done for his maintenance
		}
	}
	srv, err := serverFor(ctx, tx, action, o.TargetID)
	if err != nil {
		return err
	}
	if err := unlocked(ctx, srv); err != nil {
		return err
	}
	if srv.OperationID != o.ID {
		return operation.NotCancellable("Nothing of it is under way any more.")
	}
	if final := moves[srv.Task].final; final != "" && srv.Move == nil {
		return operation.NotCancellable(final)
	}
	by := "It was cancelled by its owner."
	if a := identity.ActorOf(ctx); a.ProjectID != srv.ProjectID {
		by = "It was cancelled by an operator."
	}
	if srv.Move != nil {
		if err := srv.stay(tx, operation.Cancelled, by); err != nil {
			return err
		}
		return servers.Put(tx, srv)
	}
	if srv.Snapshot != nil || srv.Task == Unshelving {
		if err := srv.putBack(tx, operation.Cancelled, by); err != nil {
			return err
		}
		return servers.Put(tx, srv)
	}
	if srv.Task == Creating {
		if err := settle(tx, srv, operation.Cancelled, by); err != nil {
			return err
		}
		return s.doom(ctx, tx, srv, false)
	}
	if srv.LaunchedAt.IsZero() {
		srv.fail(tx, 500, "It never ran, and what would have started it was cancelled.")
	}
	srv.fallBack()
	if err := srv.conclude(tx, operation.Cancelled, by); err != nil {
		return err
	}
	return servers.Put(tx, srv)
}
