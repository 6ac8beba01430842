package compute

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Migration tells of one change of a server's host or shape, for operators: what is under way, and what
// became of earlier ones. It goes with its server.
type Migration struct {
	resource.Meta

	Number    int // for dialects that want small numbers; unique, never used again
	ServerID  resource.ID
	UserID    resource.ID
	Task      Task // Migrating, LiveMigrating, Reshaping or Evacuating
	From, To  resource.ID
	OldFlavor resource.ID
	NewFlavor resource.ID

	State   MigrationState
	Passage Passage `json:",omitzero"` // of a live one, once it is over
}

// A MigrationState is how a Migration stands.
type MigrationState string

const (
	Preparing MigrationState = "preparing" // the new host makes ready
	Sending   MigrationState = "sending"
	Finishing MigrationState = "finishing" // the server is the new host's
	Moved     MigrationState = "moved"     // and runs there; or waits for its owner's word
	Confirmed MigrationState = "confirmed"
	Reverted  MigrationState = "reverted"
	Aborted   MigrationState = "failed"
	Cancelled MigrationState = "cancelled"
)

// Over reports whether nothing of it is under way any more.
func (s MigrationState) Over() bool { return s != Preparing && s != Sending && s != Finishing }

var migrations = state.NewTable("migration",
	state.Since[Migration](2),
	state.Unique("number", func(m *Migration) state.Key { return state.KeyOf(m.Number) }),
	state.Index("server", func(m *Migration) state.Key { return state.KeyOf(m.ServerID) }),
	// Those that tell how fast a host sends to another.
	state.Index("passage", func(m *Migration) state.Key {
		if m.Passage.speed() == 0 {
			return ""
		}
		return state.KeyOf(m.From, m.To)
	}),
)

// Migrations gives the native API and the auditor a look at every migration.
func Migrations() *state.Table[Migration] { return migrations }

// keepMigrations is how many are kept of one server.
const keepMigrations = 50

// chronicle begins the record of a change. The caller puts the server.
func (s *Server) chronicle(ctx context.Context, tx *state.Tx, task Task, to resource.ID, shape *Shape) error {
	if !migrations.Usable(tx) {
		return nil // what goes on where it is goes on without a record
	}
	number, err := state.NextNumber(tx, migrations.Kind(), 0)
	if err != nil {
		return err
	}
	if all := migrations.IDs(tx, "server", state.KeyOf(s.ID)); len(all) >= keepMigrations {
		if err := migrations.Delete(tx, all[0]); err != nil {
			return err
		}
	}
	m := &Migration{Meta: resource.Meta{ID: tx.NewID(), ProjectID: s.ProjectID}, Number: number, ServerID: s.ID,
		UserID: identity.ActorOf(ctx).UserID, Task: task, From: s.HostID, To: to,
		OldFlavor: s.Shape.FlavorID, NewFlavor: shape.FlavorID, State: Preparing}
	s.MigrationID = m.ID
	return migrations.Put(tx, m)
}

// inMigration records how the change under way stands.
func (s *Server) inMigration(tx *state.Tx, to MigrationState) error {
	m, ok := migrations.Find(tx, s.MigrationID)
	if !ok || m.State == to {
		return nil
	}
	m.State = to
	return migrations.Put(tx, m)
}

// forgetMigrations goes with the server.
func (s *Server) forgetMigrations(tx *state.Tx) error {
	for _, id := range migrations.IDs(tx, "server", state.KeyOf(s.ID)) {
		if err := migrations.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// A MigrationQuery says which migrations are wanted, the newest first. Zero fields keep all.
type MigrationQuery struct {
	ServerID      resource.ID
	ProjectID     resource.ID
	UserID        resource.ID
	Since, Before time.Time // of the last change
	Keep          func(*Migration) bool
	After         int // those with smaller numbers
	Most          int
}

// ListMigrations lists migrations for operators.
func (s *Service) ListMigrations(ctx context.Context, q MigrationQuery) (tx *state.Tx, found []*Migration, more bool, err error) {
	if err := identity.Allow(ctx, "migration.list", resource.Meta{}); err != nil {
		return nil, nil, false, err
	}
	if tx, err = s.State.View(ctx); err != nil {
		return nil, nil, false, err
	}
	index, r := "number", state.Range{Reverse: true}
	if !q.ServerID.IsZero() {
		if _, err := serverFor(ctx, tx, "server.get", q.ServerID); err != nil {
			return nil, nil, false, err
		}
		index, r.Prefix = "server", state.KeyOf(q.ServerID)
	}
	for m := range migrations.Peek(tx, index, r) {
		if q.keeps(m) {
			if q.Most > 0 && len(found) == q.Most {
				return tx, found, true, nil
			}
			found = append(found, m)
		}
	}
	return tx, found, false, nil
}

func (q *MigrationQuery) keeps(m *Migration) bool {
	return (q.After == 0 || m.Number < q.After) &&
		(q.ProjectID.IsZero() || m.ProjectID == q.ProjectID) && (q.UserID.IsZero() || m.UserID == q.UserID) &&
		!m.UpdatedAt.Before(q.Since) && (q.Before.IsZero() || !m.UpdatedAt.After(q.Before)) && (q.Keep == nil || q.Keep(m))
}

var _ = identity.Rules(map[string]identity.Rule{"migration.list": identity.Admin, "migration.get": identity.Admin})
