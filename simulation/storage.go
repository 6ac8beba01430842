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
	clear(w.writing)
	for _, n := range w.nodes {
		for _, id := range n.machine.Writing() {
			if other := w.writing[id]; other != "" {
				return fmt.Errorf("the disk of guest %s is open for writing on %s and %s", id, other, n.name)
			}
			w.writing[id] = n.name
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
		if s.Storage != "" && s.Failure == nil && !s.LaunchedAt.IsZero() && s.Stage() != compute.Offloaded && !slices.Contains(there, s.ID) {
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
		if !ok || s.Doomed() || marked(s) != mark {
			delete(w.marks, id)
			continue
		}
		if written, _ := w.storage.Written(id); !written {
			return fmt.Errorf("what guest %s has written is lost", id)
		}
	}
	return nil
}

// checkFresh is that nobody comes back from the shelf over what was erased.
func (w *world) checkFresh() error {
	if w.storage == nil {
		return nil
	}
	for s := range compute.Servers().Peek(w.control.state.Latest(), "standing", state.Range{Prefix: state.KeyOf(resource.ID{}, string(compute.Offloaded))}) {
		if s.Storage == "" {
			continue
		}
		if written, epoch := w.storage.Written(s.ID); written && epoch == s.Epoch {
			return fmt.Errorf("server %s is made ready from its shelf over the disk that it had before", s.ID)
		}
	}
	return nil
}

// A mark is what was written to a guest's disk: where, and of which of the disks that the server had one after the other.
type mark struct {
	storage  string
	rebuilds int
	root     resource.ID // the image of its shelf that the disk lies over; zero for its own
}

// marked is the mark of what a server writes now.
func marked(s *compute.Server) mark {
	m := mark{storage: s.Storage, rebuilds: s.Rebuilds}
	switch {
	case s.Shelf != nil && s.Shelf.Offloaded:
		m.storage = "" // what it had is erased, and what it is to have is being made
	case s.Root != nil:
		m.root = s.Root.ID
	}
	return m
}

// scribble has guests write that run and whose disks are shared. What is written while the cloud has never heard that it runs is nobody's loss: see Server.Lasts.
func (w *world) scribble() {
	if w.storage == nil {
		return
	}
	tx := w.control.state.Latest()
	for _, n := range w.nodes {
		for _, id := range n.machine.Writing() {
			s, ok := compute.Servers().PeekOne(tx, id)
			if !ok || s.HostID != n.id || !s.Lasts() || s.Task != "" || s.Seen.Rebuilds != s.Rebuilds {
				continue
			}
			n.machine.Write(id)
			if written, _ := w.storage.Written(id); written {
				w.marks[id] = marked(s)
			}
		}
	}
}
