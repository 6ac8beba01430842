package compute

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Move is a server's way to another host. Until it has moved, the server is its old host's, and a move
// that fails leaves it there as it was.
//
// A guest never runs twice, whatever is lost, late or repeated: the new host takes all of it in, and does not
// run it; the old host sends it, stops it, and lets go of it; and both say so. When both have, one transaction
// gives the server to the new host, which only then runs it, and orders the old one to clear away what it still
// has. Before that transaction the move can be given up at any moment: the old host then runs the guest on, with
// the memory and the disks that it still has.
type Move struct {
	Number int // of the server's moves; hosts name it in what they report
	To     resource.ID
	Live   bool  // memory and all, while it runs
	Urgent bool  // an operator wants it over: what is still missing goes with the guest stopped
	Was    Shape // the server's shape if it stays
	Since  time.Time
	// What the disks are on there, if several hosts reach it. If it is what they are on already they stay where they are.
	Storage string `json:",omitempty"`

	// Reported by the hosts.
	Here  Transit // by that which the server is on
	There Transit // by that which it goes to
}

// A Transit is what one of the two hosts of a move reports of it.
type Transit struct {
	Move  int    `json:",omitempty"` // its number; 0: none is under way
	Where string `json:",omitempty"` // where the new host takes the guest in, in words for the old host's driver
	// Of the new host: it has all of the guest, and runs it when it is told to. Of the old one: the guest is
	// stopped, and it does not run it again unless it is told that the move was given up.
	Done    bool     `json:",omitempty"`
	Memory  Progress `json:",omitzero"`
	Disk    Progress `json:",omitzero"`
	Passage Passage  `json:",omitzero"`  // of a running guest that is Done, from its old host
	Trouble string   `json:",omitempty"` // why it cannot be, in words for the owner
}

// Progress is how much was sent, in bytes. A running guest changes what was sent already: Sent may end above Total.
type Progress struct{ Total, Sent, Left int64 }

// Moving tells whether the server is on its way, or about to be.
func (s *Server) Moving() bool { return s.Move != nil }

// beside is another host than its own on which the server holds room: where it goes, or where it came from and may
// have to go back to. Zero if there is none.
func (s *Server) beside() resource.ID {
	switch {
	case s.Move != nil:
		return s.Move.To
	case s.Before != nil && s.Before.HostID != s.HostID:
		return s.Before.HostID
	}
	return resource.ID{}
}

// Load is how many servers a host has, and what is taken of it: by them, and by those that hold room there for a move.
func Load(tx *state.Tx, h *host.Host) (count int64, taken state.Amounts) {
	count, taken = servers.SumOf(tx, "load", h.ID)
	_, more := servers.SumOf(tx, "beside", h.ID)
	for i := range taken {
		taken[i] += more[i]
	}
	stored(tx, h, &taken)
	return count, taken
}

// concerns counts the servers that a host has, or holds room for.
func concerns(tx *state.Tx, h resource.ID) int64 {
	here, _ := servers.SumOf(tx, "load", h)
	beside, _ := servers.SumOf(tx, "beside", h)
	return here + beside
}

// A move is given up when nothing of it has come further for stillness, and after longest in any case. Once the old host has let
// go, the new one has all of it and need only say so: the guest stands still meanwhile.
const (
	stillness = slowly
	lastWord  = 2 * time.Minute
	longest   = 24 * time.Hour
)

// Migrate takes a server to another host with its disks, which a running guest is stopped for. It is started
// there, and its owner confirms that it is well, or has it taken back. Host names where to, by its name;
// "" for any.
func (s *Service) Migrate(ctx context.Context, id resource.ID, toHost string) error {
	_, err := s.change(ctx, "server.move", id, func(tx *state.Tx, srv *Server) error {
		if err := srv.mayMove(Migrating); err != nil {
			return err
		}
		return s.depart(ctx, tx, srv, Migrating, srv.Shape, toHost)
	})
	return err
}

// LiveMigrate takes a server's guest to another host while it runs.
func (s *Service) LiveMigrate(ctx context.Context, id resource.ID, toHost string) error {
	_, err := s.change(ctx, "server.move", id, func(tx *state.Tx, srv *Server) error {
		if err := srv.mayMove(LiveMigrating); err != nil {
			return err
		}
		return s.depart(ctx, tx, srv, LiveMigrating, srv.Shape, toHost)
	})
	return err
}

// mayMove refuses what cannot be done to the server as it stands.
func (s *Server) mayMove(task Task) error {
	if !slices.Contains(moves[task].from, s.Stage()) || s.Task != "" || s.HostID.IsZero() || s.Stage() == Unsettled {
		return wrongState(s, string(task))
	}
	return nil
}

// depart finds a server another host, and sets it on its way there.
func (s *Service) depart(ctx context.Context, tx *state.Tx, srv *Server, task Task, shape Shape, toHost string) error {
	from, ok := host.Table().PeekOne(tx, srv.HostID)
	if !ok || !from.Up() {
		return fault.Errorf(fault.Conflict, "The server's host cannot be heard, so that nothing can leave it. A host that is lost for good can be evacuated.").WithCode("host-down")
	}
	if !from.Capacity.Moves {
		return fault.Errorf(fault.Conflict, "The server's host cannot send its guests to other hosts.").WithCode("host-cannot-move")
	}
	d, err := s.demandOf(tx, srv, &shape, from, toHost)
	if err != nil {
		return err
	}
	chosen, why := s.place(tx, d)
	if chosen == nil {
		return noHost(ctx, why)
	}
	op, err := s.setOut(ctx, tx, srv, task, chosen.ID, shape)
	if err != nil {
		return err
	}
	return operation.Explain(tx, op, why)
}

// demandOf is what a server asks of another host than the one it is on.
func (s *Service) demandOf(tx *state.Tx, srv *Server, shape *Shape, from *host.Host, toHost string) (demand, error) {
	d := shape.ask()
	d.load = srv.taken()
	for i, n := range shape.load() {
		d.load[i] = max(d.load[i], n)
	}
	d.zone, d.self, d.leaves, d.moves = srv.Zone, srv.ID, srv.HostID, true
	d.storage, d.stored = srv.Storage, srv.taken()[diskAmount]
	if from != nil {
		d.arch = from.Capacity.Arch
	}
	for _, p := range Ports(tx, srv) {
		d.physical = onPhysical(tx, d.physical, p.NetworkID)
	}
	if !srv.GroupID.IsZero() {
		d.group, _ = groups.PeekOne(tx, srv.GroupID)
	}
	if toHost == "" {
		return d, nil
	}
	h, ok := host.ByName(tx, toHost)
	switch {
	case !ok:
		return d, fault.Errorf(fault.Invalid, "Compute host %s could not be found.", toHost).WithCode("host-not-found")
	case h.ID == srv.HostID:
		return d, fault.Errorf(fault.Invalid, "Unable to migrate instance (%s) to current host (%s).", srv.ID, toHost).WithCode("same-host")
	}
	d.host = h.ID
	return d, nil
}

// setOut begins a move to a host that has room.
func (s *Service) setOut(ctx context.Context, tx *state.Tx, srv *Server, task Task, to resource.ID, shape Shape) (*operation.Operation, error) {
	if task != Reverting {
		if err := srv.chronicle(ctx, tx, task, to, &shape); err != nil {
			return nil, err
		}
	}
	if task == Migrating || task == Reshaping {
		srv.Before = &Reshaped{Shape: srv.Shape, Power: srv.Power, HostID: srv.HostID, At: tx.Now()}
	}
	srv.Moves++
	srv.Move = &Move{Number: srv.Moves, To: to, Live: task == LiveMigrating, Was: srv.Shape, Since: tx.Now(), Storage: storageOf(tx, to)}
	srv.Shape = shape
	if err := network.ExpectPorts(tx, srv.ID, to); err != nil {
		return nil, err
	}
	op, err := begin(ctx, tx, srv, task, stillness)
	if err != nil {
		return nil, err
	}
	return op, operation.Stepped(tx, op, "prepare", to)
}

// HurryMove ends a live move soon: what is still missing goes with the guest stopped.
func (s *Service) HurryMove(ctx context.Context, id resource.ID, number int) error {
	_, err := s.change(ctx, "server.move", id, func(tx *state.Tx, srv *Server) error {
		if err := srv.onLiveWay(tx, number, Sending); err != nil {
			return err
		}
		srv.Move.Urgent = true
		return record(ctx, tx, srv, "live_migration_force_complete")
	})
	return err
}

// AbortMove gives a live move up, and leaves the guest where it is.
func (s *Service) AbortMove(ctx context.Context, id resource.ID, number int) error {
	_, err := s.change(ctx, "server.move", id, func(tx *state.Tx, srv *Server) error {
		if err := srv.onLiveWay(tx, number, Preparing, Sending); err != nil {
			return err
		}
		if err := srv.stay(tx, operation.Cancelled, "It was cancelled by an operator."); err != nil {
			return err
		}
		return record(ctx, tx, srv, "live_migration_cancel")
	})
	return err
}

// onLiveWay makes sure that a migration is the server's live move that is under way, and stands so.
func (s *Server) onLiveWay(tx *state.Tx, number int, so ...MigrationState) error {
	m, ok := migrations.Lookup(tx, "number", state.KeyOf(number))
	switch {
	case !ok || m.ServerID != s.ID:
		return fault.Errorf(fault.NotFound, "Migration %d for server %s could not be found.", number, s.ID).WithCode("migration-not-found")
	case m.ID != s.MigrationID || s.Move == nil || !s.Move.Live || !slices.Contains(so, m.State):
		return fault.Errorf(fault.Invalid, "Migration %d state of instance %s is %s. It must be running and live.", number, s.ID, m.State).WithCode("migration-state")
	}
	return nil
}

// travel takes in what a host reports of the server's move.
func (s *Server) travel(tx *state.Tx, by resource.ID, t Transit) error {
	m := s.Move
	if m == nil || t.Move != m.Number {
		return nil // of a move that is over
	}
	side := &m.Here
	if by == m.To {
		side = &m.There
	}
	further, forgot := *side != t, side.Done && !t.Done
	*side = t
	switch {
	case !further:
		return nil
	case t.Trouble != "":
		return s.stay(tx, operation.Failed, t.Trouble)
	case forgot:
		return s.stay(tx, operation.Failed, "One of its two hosts lost what it had of the move.")
	case m.Here.Done && m.There.Done:
		if why := s.partsGroup(tx); why != "" {
			return s.stay(tx, operation.Failed, why)
		}
		return s.handOver(tx)
	}
	return s.noteWay(tx)
}

// noteWay says in the operation how far the move is. As long as it comes further, it has time.
func (s *Server) noteWay(tx *state.Tx) error {
	op, err := operation.Get(tx, s.OperationID)
	if err != nil {
		return err
	}
	within := stillness
	if s.Move.Here.Done {
		within = lastWord
	}
	if left := s.Move.Since.Add(longest).Sub(tx.Now()); left > 0 {
		if err := operation.Prolong(tx, op, min(left, within)); err != nil {
			return err
		}
	}
	if s.Move.There.Where != "" && len(op.Steps) == 1 {
		if err := s.inMigration(tx, Sending); err != nil {
			return err
		}
		if err := operation.Stepped(tx, op, "send", s.HostID); err != nil {
			return err
		}
	}
	return operation.Note(tx, op, op.WaitingFor, s.Move.Here.percent())
}

// percent is how much of all is there.
func (t *Transit) percent() int {
	total := t.Memory.Total + t.Disk.Total
	if total <= 0 {
		return 0
	}
	return int(max(0, 100*(total-t.Memory.Left-t.Disk.Left)/total))
}

// handOver gives the server to the host that has all of it now: the moment of the move.
func (s *Server) handOver(tx *state.Tx) error {
	if err := host.Discard(tx, s.HostID, "guest", s.ID); err != nil {
		return err
	}
	if err := s.keepPassage(tx); err != nil {
		return err
	}
	kept := s.Move.keeps(s)
	if !kept {
		if err := s.bequeath(tx, s.Storage, s.Epoch, s.HostID); err != nil {
			return err
		}
	}
	s.Storage, s.Kept = s.Move.Storage, kept
	if !kept {
		s.Unrun = 0 // they have come
	}
	s.HostID, s.Epoch, s.Move = s.Move.To, s.Move.Number+1, nil
	s.Wish++
	s.Sworn = s.Wish
	if err := s.rebind(tx); err != nil {
		return err
	}
	if err := s.inMigration(tx, Finishing); err != nil {
		return err
	}
	op, err := operation.Get(tx, s.OperationID)
	if err != nil {
		return err
	}
	if err := operation.Prolong(tx, op, moves[s.Task].within); err != nil {
		return err
	}
	return operation.Stepped(tx, op, "finish", s.HostID)
}

// rebind takes the server's ports to its host.
func (s *Server) rebind(tx *state.Tx) error {
	for _, p := range network.PortsOf(tx, s.ID) {
		if p.Owner != network.OwnerServer {
			continue
		}
		if err := network.BindPort(tx, p.ID, s.ID, p.Owner, zoneLabel(tx, s), s.HostID); err != nil {
			return err
		}
	}
	return nil
}

// stay gives the move up: the server is on its host as it was, and the other one clears away what came to it.
func (s *Server) stay(tx *state.Tx, outcome operation.Outcome, why string) error {
	if err := s.turnBack(tx); err != nil {
		return err
	}
	end := Aborted
	if outcome == operation.Cancelled {
		end = Cancelled
	}
	if s.Task == Reverting {
		end = Moved // back to where it was unconfirmed
	} else {
		s.Before = nil
	}
	if err := s.inMigration(tx, end); err != nil {
		return err
	}
	s.Wish++
	return settle(tx, s, outcome, why)
}

// turnBack takes back all that a move, or a snapshot under way, has changed of the server itself; none is nothing.
func (s *Server) turnBack(tx *state.Tx) error {
	if err := s.dropSnapshot(tx); err != nil || s.Move == nil {
		return err
	}
	if err := host.Discard(tx, s.Move.To, "guest", s.ID); err != nil {
		return err
	}
	if !s.Move.keeps(s) {
		if err := s.bequeath(tx, s.Move.Storage, s.Move.Number+1, s.Move.To); err != nil {
			return err
		}
	}
	s.Shape, s.Move = s.Move.Was, nil
	return network.ExpectPorts(tx, s.ID, resource.ID{})
}

// Evacuate makes a server anew on another host when its own is lost for good. What was on its disks is lost with
// it: the root disk is as its image; unless they are on shared storage, from where one of the hosts takes them up that reach
// it. If the lost host comes back, it is told to take away what it has.
func (s *Service) Evacuate(ctx context.Context, id resource.ID, toHost, adminPassword string) error {
	_, err := s.change(ctx, "server.move", id, func(tx *state.Tx, srv *Server) error {
		_, err := s.evacuate(ctx, tx, srv, toHost, adminPassword)
		return err
	})
	return err
}

func (s *Service) evacuate(ctx context.Context, tx *state.Tx, srv *Server, toHost, adminPassword string) (*operation.Operation, error) {
	if srv.Doomed() || srv.HostID.IsZero() || srv.LaunchedAt.IsZero() || srv.Shelf != nil {
		return nil, wrongState(srv, string(Evacuating))
	}
	from, ok := host.Table().PeekOne(tx, srv.HostID)
	if ok {
		if err := srv.mayLeaveLost(from); err != nil {
			return nil, err
		}
	}
	if err := srv.turnBack(tx); err != nil {
		return nil, err
	}
	if err := srv.conclude(tx, operation.Cancelled, "The server's host was evacuated."); err != nil {
		return nil, err
	}
	srv.Before = nil
	if err := servers.Put(tx, srv); err != nil { // what it held elsewhere is free, also for itself
		return nil, err
	}
	d, err := s.demandOf(tx, srv, &srv.Shape, from, toHost)
	if err != nil {
		return nil, err
	}
	d.moves = false // nothing is sent
	d.reaches = srv.Lasts()
	chosen, why := s.place(tx, d)
	if chosen == nil {
		return nil, noHost(ctx, why)
	}
	if adminPassword != "" && !srv.Lasts() {
		srv.AdminPassword = adminPassword
	}
	return s.startAnew(ctx, tx, srv, chosen.ID, why)
}

// mayLeaveLost refuses to have the server run elsewhere as well as on its host, which may only be cut off: then there would be two of it, and
// what the first one wrote since would be thrown away when its host is back. Disks on shared storage cannot be had twice: the new host waits
// until nobody has them open.
func (s *Server) mayLeaveLost(from *host.Host) error {
	switch {
	case from.Up():
		return fault.Errorf(fault.Invalid, "Compute service of %s is still in use.", from.Name).WithCode("host-up")
	case s.endedOn(from) || s.Lasts():
		return nil
	case from.Dead():
		return fault.Errorf(fault.Conflict, "Host %[1]s is known to be dead by its lease alone, and this server is not run under that: it may run there still, and there would be two of it, with one address. "+
			"Make sure that the host is off, and say so: `unkai host fenced %[1]s --sure`, or `openstack compute service set --down %[1]s nova-compute`. Then it can be evacuated.", from.Name).WithCode("host-not-dead")
	}
	return fault.Errorf(fault.Conflict, "Host %[1]s cannot be heard since %[2]s, and may run the server still: there would be two of it, with one address. Make sure that the host is off, and say so: "+
		"`unkai host fenced %[1]s --sure`, or `openstack compute service set --down %[1]s nova-compute`. Then it can be evacuated.",
		from.Name, from.Lost.UTC().Format(time.RFC3339)).WithCode("host-not-dead")
}

// startAnew has another host make the server's guest.
func (s *Service) startAnew(ctx context.Context, tx *state.Tx, srv *Server, to resource.ID, why *operation.Why) (*operation.Operation, error) {
	if err := srv.chronicle(ctx, tx, Evacuating, to, &srv.Shape); err != nil {
		return nil, err
	}
	if err := host.Discard(tx, srv.HostID, "guest", srv.ID); err != nil {
		return nil, err
	}
	left, had, from := srv.Storage, srv.Epoch, srv.HostID
	srv.Moves++
	srv.Epoch = srv.Moves + 1
	srv.HostID, srv.Seen, srv.Failure, srv.Sworn, srv.Stranded = to, Seen{}, nil, 0, nil
	if srv.Power == Suspended {
		srv.Power = Off // what it had in memory is gone
	}
	op, err := begin(ctx, tx, srv, Evacuating, createWithin)
	if err != nil {
		return nil, err
	}
	if srv.Kept = srv.Lasts(); !srv.Kept && estates.Usable(tx) {
		srv.lieAnew(storageOf(tx, to))
		if left != srv.Storage {
			if err := srv.bequeath(tx, left, had, from); err != nil {
				return nil, err
			}
		}
	}
	if err := srv.rebind(tx); err != nil {
		return nil, err
	}
	return op, operation.Explain(tx, op, why)
}

var _ = identity.Rules(map[string]identity.Rule{"server.move": identity.Admin})
