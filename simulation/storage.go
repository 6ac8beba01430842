package simulation

import (
	"errors"
	"fmt"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// checkOneWriter is that no disk is open for writing on two machines, by what the machines do and not by what the storage says of it.
func (w *world) checkOneWriter() error {
	writes := map[resource.ID]string{}
	for _, n := range w.nodes {
		for _, id := range n.machine.Writing() {
			if other := writes[id]; other != "" {
				return fmt.Errorf("the disk of guest %s is open for writing on %s and %s", id, other, n.name)
			}
			writes[id] = n.name
		}
	}
	return nil
}

// checkStorage is that the disks that are shared are those of servers that have some there: none is lost, and none is left.
func (w *world) checkStorage(tx *state.Tx) (wrong error) {
	if w.storage == nil {
		return nil
	}
	there := w.storage.Guests()
	for s := range compute.Servers().Peek(tx, "", state.Range{}) {
		if s.Storage != "" && s.Failure == nil && !s.LaunchedAt.IsZero() && !slices.Contains(there, s.ID) {
			wrong = errors.Join(wrong, fmt.Errorf("server %s has lost its disks", s.ID))
		}
	}
	for _, id := range there {
		if s, ok := compute.Servers().PeekOne(tx, id); !ok || s.Storage == "" {
			wrong = errors.Join(wrong, fmt.Errorf("disks are left of guest %s, which has none on that storage", id))
		}
	}
	for e := range compute.Estates().Peek(tx, "", state.Range{}) {
		if w.owed(tx, e.ServerID) {
			continue // it is erased, and will be again when the dead host is taken out of the cloud
		}
		wrong = errors.Join(wrong, fmt.Errorf("what server %s has left on %s is not erased", e.ServerID, e.Storage))
	}
	return wrong
}

// owed reports whether a host that is dead was told to take a guest away.
func (w *world) owed(tx *state.Tx, id resource.ID) bool {
	for _, n := range w.nodes {
		if n.dead && host.Owes(tx, n.id, "guest", id) {
			return true
		}
	}
	return false
}

// checkKept is that what a guest has written is there as long as it was not rebuilt, or lost with a host's own disk.
func (w *world) checkKept() error {
	tx := w.control.state.Latest()
	for id, mark := range w.marks {
		s, ok := compute.Servers().PeekOne(tx, id)
		if !ok || s.Storage == "" || s.Rebuilds != mark.rebuilds || s.Storage != mark.storage || s.Doomed() {
			delete(w.marks, id)
			continue
		}
		if !w.storage.Written(id) {
			return fmt.Errorf("what guest %s has written is lost", id)
		}
	}
	return nil
}

// A mark is what was written to a guest's disk.
type mark struct {
	storage  string
	rebuilds int
}

// scribble has guests write that run and whose disks are shared.
func (w *world) scribble() {
	if w.storage == nil {
		return
	}
	tx := w.control.state.Latest()
	for _, n := range w.nodes {
		for _, id := range n.machine.Writing() {
			s, ok := compute.Servers().PeekOne(tx, id)
			if !ok || s.HostID != n.id || s.Storage == "" || s.Task != "" || s.Seen.Rebuilds != s.Rebuilds {
				continue
			}
			if n.machine.Write(id); w.storage.Written(id) {
				w.marks[id] = mark{s.Storage, s.Rebuilds}
			}
		}
	}
}
