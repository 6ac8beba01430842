package compute

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/image"
)

// A BackupWanted is an image of a server that is to be the newest of several.
type BackupWanted struct {
	ImageWanted
	Type string // which of the server's backups it belongs to: "daily", "weekly"
	Keep int    // of that type, this one included; 0: make none, and take all away
}

// CreateBackup is CreateImage after which the server's oldest backups of the type go, so that as many are left as are to be kept. They
// go in the transaction that takes in that the new one is whole: until then, and if it fails, all stay. Where none is kept none is made,
// and the ID that is answered is of no image.
func (s *Service) CreateBackup(ctx context.Context, id resource.ID, w BackupWanted) (resource.ID, error) {
	switch {
	case w.Keep < 0:
		return resource.ID{}, fault.InvalidField("rotation", "must be at least 0")
	case len([]rune(w.Type)) > MaxName:
		return resource.ID{}, fault.InvalidField("backup_type", "must be of at most %d characters", MaxName)
	}
	b := image.Backup{ServerID: id, Type: w.Type, Keep: w.Keep}
	if w.Keep > 0 {
		w.backup = &b
		return s.createImage(ctx, id, BackingUp, w.ImageWanted)
	}
	return state.Do(ctx, s.State, func(tx *state.Tx) (resource.ID, error) {
		srv, err := serverFor(ctx, tx, "server.operate", id)
		if err != nil {
			return resource.ID{}, err
		}
		if err := srv.mayBeCopied(BackingUp); err != nil {
			return resource.ID{}, err
		}
		if err := w.roomFor(tx, srv); err != nil {
			return resource.ID{}, err
		}
		if err := image.Rotate(tx, srv.ProjectID, b); err != nil {
			return resource.ID{}, err
		}
		return tx.NewID(), record(ctx, tx, srv, string(BackingUp))
	})
}
