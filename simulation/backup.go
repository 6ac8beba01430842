package simulation

import (
	"fmt"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/image"
)

// series are the backups of one type of one server. Nobody but the rotation takes one away here.
type series struct {
	server resource.ID
	kind   string
}

// backUp has an owner ask for a backup of a server, of which there is one already if there is one of any, or that none is kept.
func (c *client) backUp(p *project) (string, error) {
	var idle, again []series
	for _, id := range p.order {
		srv, ok := compute.Servers().PeekOne(c.w.control.state.Latest(), id)
		if !ok || srv.Task != "" || srv.LaunchedAt.IsZero() || srv.Failure != nil {
			continue
		}
		for _, kind := range []string{"daily", "weekly"} {
			idle = append(idle, series{id, kind})
			if c.backed[series{id, kind}] {
				again = append(again, series{id, kind})
			}
		}
	}
	if len(again) > 0 {
		idle = again
	}
	if len(idle) == 0 {
		return "back up nothing", nil
	}
	s := idle[c.w.rng.IntN(len(idle))]
	id, keep := s.server, min(c.w.rng.IntN(6), 2)
	_, err := c.w.control.compute.CreateBackup(p.ctx, id, compute.BackupWanted{
		ImageWanted: compute.ImageWanted{Name: "backup"}, Type: s.kind, Keep: keep})
	if keep == 0 { // whatever is answered, they may be gone
		delete(c.backed, s)
	}
	return fmt.Sprintf("back up %s %s, %d of which are kept", id, s.kind, keep), err
}

// checkBackups is that of a server of which there was a whole backup there still is one, and that once the newest is taken in there are
// not more than it was to leave.
func (w *world) checkBackups(tx *state.Tx) error {
	whole, newest := map[series]int{}, map[series]*image.Image{}
	for i := range image.Table().Peek(tx, "backup", state.Range{}) {
		s := series{i.Backup.ServerID, i.Backup.Type}
		if srv, ok := compute.Servers().PeekOne(tx, s.server); !i.Whole() || ok && srv.Snapshot != nil && srv.Snapshot.ImageID == i.ID {
			continue
		}
		whole[s]++
		newest[s] = i // they come in order
	}
	for s, n := range whole {
		if most := newest[s].Backup.Keep; n > most {
			return fmt.Errorf("there are %d %s backups of server %s, of which %d were to be kept", n, s.kind, s.server, most)
		}
		w.client.backed[s] = true
	}
	for s := range w.client.backed {
		if whole[s] == 0 {
			return fmt.Errorf("the last %s backup of server %s is lost", s.kind, s.server)
		}
	}
	return nil
}
