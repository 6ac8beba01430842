package compute

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Some hosts keep their guests' disks on storage that others reach, too. A server's Storage says which its disks are on: it is decided
// with its host, and the host is told. What is on it is of no host, so that none takes anything away there unless it is told so
// in an Estate.

// An Estate is what a server has left on shared storage. One of the hosts that reach it erases that, whichever can be heard.
type Estate struct {
	resource.Meta

	ServerID resource.ID
	Storage  string
	Era      int64 `json:",omitempty"` // see Guest
	Epoch    int   // of the last placement in which the server had it: what is there by a later one stays
	HostID   resource.ID
	Trouble  string `json:",omitempty"` // why the last host that tried could not
}

var estates = state.NewTable("estate",
	state.Since[Estate](2),
	state.Index("storage", func(e *Estate) state.Key { return state.KeyOf(e.Storage) }),
	state.Unique("server", func(e *Estate) state.Key { return state.KeyOf(e.ServerID, e.Storage) }),
)

var _ = identity.Rules(map[string]identity.Rule{"estate.get": identity.Admin, "estate.list": identity.Admin})

// Estates gives the native API and the auditor a look at every estate.
func Estates() *state.Table[Estate] { return estates }

// bequeath has erased what a placement of the server has on a storage; "" is none. on is the host that had it.
func (s *Server) bequeath(tx *state.Tx, storage string, epoch int, on resource.ID) error {
	if storage == "" {
		return nil
	}
	e, ok := estates.Lookup(tx, "server", state.KeyOf(s.ID, storage))
	if !ok {
		e = &Estate{Meta: resource.Meta{ID: tx.NewID()}, ServerID: s.ID, Storage: storage}
	}
	e.Era, e.Epoch, e.HostID = host.MarkOf(tx).Era, epoch, on
	return estates.Put(tx, e)
}

// heir is the host that erases an estate; zero if none can now.
func (e *Estate) heir(tx *state.Tx) resource.ID {
	if h, ok := host.Table().PeekOne(tx, e.HostID); ok && h.Up() && h.Capacity.Storage == e.Storage {
		return h.ID
	}
	for h := range host.Table().Peek(tx, "storage", state.Range{Prefix: state.KeyOf(e.Storage)}) {
		if h.Up() {
			return h.ID
		}
	}
	return resource.ID{}
}

// passOn gives an estate that a host cannot erase to the next that can be heard, in their order; to that host again if it is the only one.
func (e *Estate) passOn(tx *state.Tx, by resource.ID, why string) error {
	var up []resource.ID
	for h := range host.Table().Peek(tx, "storage", state.Range{Prefix: state.KeyOf(e.Storage)}) {
		if h.Up() {
			up = append(up, h.ID)
		}
	}
	at := slices.Index(up, by)
	if at < 0 {
		return nil
	}
	next := up[(at+1)%len(up)]
	if e.HostID == next && e.Trouble == why {
		return nil
	}
	e.HostID, e.Trouble = next, why
	return estates.Put(tx, e)
}

// final reports whether each host that reaches the storage has said that it has the guest no more. One that has not may come back with
// what was wanted of it once, and begin with the guest where nothing is.
func (e *Estate) final(tx *state.Tx) bool {
	for h := range host.Table().Peek(tx, "storage", state.Range{Prefix: state.KeyOf(e.Storage)}) {
		if host.Owes(tx, h.ID, "guest", e.ServerID) {
			return false
		}
	}
	return true
}

// forgetEstates lets go of what nobody can reach any more once a host has left the cloud.
func forgetEstates(tx *state.Tx) error {
	for e := range estates.Each(tx, "storage", "") {
		if len(host.Table().IDs(tx, "storage", state.KeyOf(e.Storage))) > 0 {
			continue
		}
		if err := estates.Delete(tx, e.ID); err != nil {
			return err
		}
	}
	return nil
}

// estateSource tells hosts what to erase on shared storage.
func (s *Service) estateSource() host.Source {
	return host.Source{
		Kind: "estate",
		All: func(tx *state.Tx, h resource.ID) (ids []resource.ID) {
			if on, ok := host.Table().PeekOne(tx, h); ok && on.Capacity.Storage != "" {
				ids = estates.IDs(tx, "storage", state.KeyOf(on.Capacity.Storage))
			}
			return ids
		},
		Want: func(tx *state.Tx, h, id resource.ID) (any, bool) {
			e, ok := estates.PeekOne(tx, id)
			if !ok || e.heir(tx) != h {
				return nil, false
			}
			return &Erasure{GuestID: e.ServerID, Storage: e.Storage, Era: e.Era, Epoch: e.Epoch, Final: e.final(tx)}, true
		},
		Touched: estatesTouched,
		Shared:  estatesShared,
		Observe: func(tx *state.Tx, h, id resource.ID, report json.RawMessage) error {
			var seen Erased
			if err := json.Unmarshal(report, &seen); err != nil {
				return fmt.Errorf("decode a report of what was erased: %w", err)
			}
			e, ok := estates.Find(tx, id)
			switch {
			case !ok || e.Era != seen.Era || e.Epoch != seen.Epoch:
				return nil // of an earlier one
			case seen.Trouble != "" && e.heir(tx) != h:
				return nil // another has its turn already
			case seen.Trouble != "":
				return e.passOn(tx, h, seen.Trouble)
			case seen.Final && e.final(tx):
				return estates.Delete(tx, id)
			case e.Trouble != "": // not the last word
				e.Trouble = ""
				return estates.Put(tx, e)
			}
			return nil
		},
	}
}

// Erased is what a host reports when there is nothing left of an estate, or when it cannot erase it.
type Erased struct {
	Era     int64 `json:",omitempty"`
	Epoch   int
	Final   bool   `json:",omitempty"`
	Trouble string `json:",omitempty"` // why it cannot, in words for operators
}

// estatesConcerned are the estates that a change may have something to do with: itself, who owes something, and the hosts that
// come and go: what one was to erase another is then.
func estatesConcerned(tx *state.Tx, e state.Event) (all []*Estate) {
	for _, obj := range []resource.Object{e.Before, e.After} {
		if left, ok := obj.(*Estate); ok {
			all = append(all, left)
		}
		if order, ok := obj.(*host.Leftover); ok && order.Kind == "guest" {
			all = slices.AppendSeq(all, estates.Peek(tx, "server", state.Range{Prefix: state.KeyOf(order.ThingID)}))
		}
	}
	was, _ := e.Before.(*host.Host)
	is, _ := e.After.(*host.Host)
	if was != nil && is != nil && was.Up() == is.Up() && was.Capacity.Storage == is.Capacity.Storage {
		return all
	}
	for _, h := range []*host.Host{was, is} {
		if h != nil && h.Capacity.Storage != "" {
			all = slices.AppendSeq(all, estates.Peek(tx, "storage", state.Range{Prefix: state.KeyOf(h.Capacity.Storage)}))
		}
	}
	return all
}

// estatesTouched tells those that are to erase something.
func estatesTouched(tx *state.Tx, e state.Event) (refs []host.Ref) {
	for _, left := range estatesConcerned(tx, e) {
		if heir := left.heir(tx); !heir.IsZero() {
			refs = append(refs, host.Ref{Host: heir, ID: left.ID})
		}
	}
	return refs
}

// estatesShared tells those that were to.
func estatesShared(tx *state.Tx, e state.Event) (ids []resource.ID) {
	for _, left := range estatesConcerned(tx, e) {
		ids = append(ids, left.ID)
	}
	return ids
}

// lieOn says where the guest's disks are to be.
func (g *Guest) lieOn(tx *state.Tx, storage string, kept bool) {
	g.Storage, g.Kept, g.Era = storage, kept, 0
	if storage != "" {
		g.Era = host.MarkOf(tx).Era
	}
}

// storageOf is the shared storage that a host keeps disks on; "" for its own.
func storageOf(tx *state.Tx, h resource.ID) string {
	if on, ok := host.Table().PeekOne(tx, h); ok {
		return on.Capacity.Storage
	}
	return ""
}

// lieAnew has the server's host make its disks, on storage that others reach, or its own: "".
func (s *Server) lieAnew(storage string) {
	s.Storage, s.Kept, s.Unrun = storage, false, 0
	if storage != "" {
		s.Unrun = s.Wish
	}
}

// ran takes in that the guest has run on disks that were made for it: from then on they hold what nothing else does.
func (s *Server) ran(seen *Seen) {
	if s.Unrun == 0 || seen.Wish < s.Unrun {
		return
	}
	if seen.Power == On || seen.Power == Paused || seen.Power == Suspended || !seen.StartedAt.IsZero() || seen.StartMs > 0 ||
		seen.Trouble == "" && seen.ended(s) {
		s.Unrun = 0
	}
}

// Lasts reports whether the server's disks outlive its host: they are on storage that others reach, and it has run on them there. What
// a host was to make, and has never said that it ran, may not be there, or half of it: the image is as good.
func (s *Server) Lasts() bool { return s.Storage != "" && s.Unrun == 0 }

// keeps reports whether the disks stay where they are.
func (m *Move) keeps(s *Server) bool { return m.Storage != "" && m.Storage == s.Storage }

// reachedBy reports whether another host reaches the disks where they are.
func (s *Server) reachedBy(h *host.Host) bool {
	return s.Storage != "" && h.Capacity.Storage == s.Storage
}

// diskAmount is where the disk stands in a load.
const diskAmount = 2

// storageShares is what the server takes of storage that hosts share: once, however many of them have to do with it.
func storageShares(s *Server) (shares []state.Share) {
	amounts := state.Amounts{}
	amounts[diskAmount] = s.taken()[diskAmount]
	if s.Storage != "" && !s.HostID.IsZero() {
		shares = append(shares, state.Share{Key: state.KeyOf(s.Storage), Amounts: amounts})
	}
	if s.Move != nil && s.Move.Storage != "" && s.Move.Storage != s.Storage {
		shares = append(shares, state.Share{Key: state.KeyOf(s.Move.Storage), Amounts: amounts})
	}
	return shares
}

// stored makes the disk that is taken of a host all that is taken of its storage, by whichever host's servers.
func stored(tx *state.Tx, h *host.Host, taken *state.Amounts) {
	if h.Capacity.Storage != "" && estates.Usable(tx) {
		_, sums := servers.Sum(tx, "storage", state.KeyOf(h.Capacity.Storage))
		taken[diskAmount] = sums[diskAmount]
	}
}

// on reports whether a host reaches the disks that the server has.
func (d *demand) on(h *host.Host) bool { return d.storage != "" && h.Capacity.Storage == d.storage }
