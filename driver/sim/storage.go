package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A Storage is what several machines keep guests' disks on. It has claims and locks as the real one has: see driver/qemu.
type Storage struct {
	Name string

	mu    sync.Mutex
	disks map[resource.ID]*disk // guarded by mu
}

// A disk is what lies there of one guest.
type disk struct {
	era      int64 // with epoch, the decision by which a machine claimed it last
	epoch    int
	made     bool // it is noted beside the claim that there is one
	written  bool
	rebuilds int
	erasing  bool
	user     *Machine // whose hypervisor holds it open for writing; nil: nobody's
}

// NewStorage makes one that is empty.
func NewStorage(name string) *Storage { return &Storage{Name: name, disks: map[resource.ID]*disk{}} }

// Guests lists those that have disks there, in the order of their IDs.
func (s *Storage) Guests() []resource.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []resource.ID
	for id := range s.disks {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, compareIDs)
	return ids
}

// Written tells whether a guest's disk is no longer as its image is, and by which placement it was claimed last.
func (s *Storage) Written(id resource.ID) (written bool, epoch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.disks[id]; d != nil {
		written, epoch = d.written, d.epoch
	}
	return written, epoch
}

// Writing lists the guests with a process here that writes to disks on shared storage, in the order of their IDs. It asks no lock.
func (m *Machine) Writing() []resource.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []resource.ID
	for id, g := range m.guests {
		m.settle(id, g)
		if g.shared && g.way == nil && (g.power == compute.On || g.power == compute.Paused) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, compareIDs)
	return ids
}

const (
	notHere = "The storage that the guest's disks are on is not to be had on this host."
	givenUp = "The guest was given to another host."
	inUse   = "The guest's disk is still held by the host that had it before."
)

// lacks is why a guest cannot have its disks where its wish says; the caller holds mu.
func (m *Machine) lacks(want *compute.Guest) string {
	if want.Storage != "" && (m.Storage == nil || m.Storage.Name != want.Storage) {
		return notHere
	}
	return ""
}

// claim takes the disks of a guest up, or makes sure that they are its machine's still. The caller holds mu.
func (m *Machine) claim(g *guest, want *compute.Guest) (trouble string, lost bool) {
	if !g.shared {
		return "", false
	}
	if m.Storage == nil || want.Storage != "" && want.Storage != m.Storage.Name {
		return notHere, false
	}
	s, epoch := m.Storage, max(want.Epoch, g.epoch)
	s.mu.Lock()
	defer s.mu.Unlock()
	d, anew := s.disks[want.ID], want.Rebuilds > g.rebuilds
	if d == nil {
		if g.claimed { // and it was taken away since
			return "", true
		}
		if want.Kept && !anew {
			return "The guest's disks are not on the storage on which they should be.", false
		}
		s.disks[want.ID] = &disk{era: want.Era, epoch: epoch, rebuilds: g.rebuilds}
		g.claimed = true
		return "", false
	}
	later := d.era > want.Era || d.era == want.Era && d.epoch > epoch
	same := d.era == want.Era && d.epoch == epoch
	switch {
	case later || same && d.erasing:
		return "", true
	case d.erasing && g.claimed:
		return "", true
	case g.claimed:
	case d.erasing && want.Kept && !anew:
		return "The guest's disks were taken away.", false
	case d.erasing || !want.Kept && !same && d.era == want.Era:
		if d.user != nil {
			return inUse, false
		}
		*d = disk{rebuilds: g.rebuilds}
	case want.Kept || d.era != want.Era:
		if want.Kept && !d.made && !anew && d.rebuilds >= want.Rebuilds {
			return "The guest's root disk is not on the storage on which it should be.", false
		}
		g.rebuilds = min(d.rebuilds, g.rebuilds)
	}
	d.era, d.epoch, g.claimed = want.Era, epoch, true
	return "", false
}

// stillOurs is claim for a guest that is here: it ends if it is another machine's. The caller holds mu.
func (m *Machine) stillOurs(g *guest, want *compute.Guest) (trouble string, lost bool) {
	if trouble, lost = m.claim(g, want); lost {
		m.cut(want.ID, g)
		g.change, g.copy, trouble = nil, nil, givenUp
	}
	return trouble, lost
}

// copied lets in the disks of a guest that another machine has sent. The caller holds mu.
func (m *Machine) copied(id resource.ID, g *guest, era int64) bool {
	trouble, lost := m.claim(g, &compute.Guest{ID: id, Storage: m.Storage.Name, Era: era, Epoch: g.epoch, Rebuilds: g.rebuilds})
	m.disk(id, g, func(d *disk) { d.made, d.written = true, g.written })
	return trouble == "" && !lost
}

// open locks the disks for a guest's process; false if another machine's has them. The caller holds mu.
func (m *Machine) open(id resource.ID, g *guest) bool {
	if !g.shared || m.Storage == nil {
		return true
	}
	m.Storage.mu.Lock()
	defer m.Storage.mu.Unlock()
	d := m.Storage.disks[id]
	if d == nil || d.user != nil && d.user != m {
		return false
	}
	d.user = m
	return true
}

// shut lets go of the disks. The caller holds mu.
func (m *Machine) shut(id resource.ID, g *guest) {
	if !g.shared || m.Storage == nil {
		return
	}
	m.Storage.mu.Lock()
	defer m.Storage.mu.Unlock()
	if d := m.Storage.disks[id]; d != nil && d.user == m {
		d.user = nil
	}
}

// disk runs f with the guest's disk on shared storage, if it is there. The caller holds mu.
func (m *Machine) disk(id resource.ID, g *guest, f func(*disk)) {
	if !g.shared || m.Storage == nil {
		return
	}
	m.Storage.mu.Lock()
	defer m.Storage.mu.Unlock()
	if d := m.Storage.disks[id]; d != nil {
		f(d)
	}
}

// Erase takes away what a guest has left.
func (d *Guests) Erase(ctx context.Context, e compute.Erasure) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m := d.m
	if err := m.fault("guest.erase", e.GuestID); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.Storage
	if s == nil || s.Name != e.Storage {
		return fmt.Errorf("storage %s is not here", e.Storage)
	}
	if g := m.guests[e.GuestID]; g != nil && g.shared && g.epoch <= e.Epoch {
		return fmt.Errorf("guest %s is still on this host", e.GuestID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.disks[e.GuestID]
	if have == nil || have.era > e.Era || have.era == e.Era && have.epoch > e.Epoch {
		return nil
	}
	have.era, have.epoch, have.erasing = e.Era, e.Epoch, true
	if have.user != nil {
		return fmt.Errorf("the disks of guest %s are in use", e.GuestID)
	}
	delete(s.disks, e.GuestID)
	return nil
}
