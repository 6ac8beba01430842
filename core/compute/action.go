package compute

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A move is something that can be done to a server as it stands.
type move struct {
	from   []Stage // only then
	over   []Task  // it may take the place of these; of others never
	within time.Duration
	wish   func(*Server)                       // what is asked for
	done   func(want *Server, seen *Seen) bool // whether the host has done it
	boots  bool                                // the guest's operating system starts: after that it may end at once
	final  string                              // why there is no way back once it was asked for; "" if there is
}

func power(p Power) func(*Server) { return func(s *Server) { s.Power = p } }

func seenAs(p Power) func(*Server, *Seen) bool {
	return func(_ *Server, seen *Seen) bool { return seen.Power == p }
}

func powerCycle(s *Server) {
	s.Power, s.HardBoots, s.Failure = On, max(s.HardBoots, s.Seen.HardBoots)+1, nil
}

func powerCycled(want *Server, seen *Seen) bool {
	return seen.Power == On && seen.HardBoots >= want.HardBoots
}

const (
	quickly = 5 * time.Minute
	slowly  = 15 * time.Minute
)

// moves is what can be done, and when. What is done to a server's image or shape is not only a
// wish: see Rebuild and Reshape.
var moves = map[Task]move{
	Creating: {boots: true, done: func(want *Server, seen *Seen) bool { return seen.Power == want.Power }},
	// A guest that ended by itself starts only for a reboot if its host has not learnt meanwhile that it was to be off.
	Starting: {from: []Stage{Stopped}, within: quickly, boots: true, wish: powerCycle, done: powerCycled},
	Stopping: {from: []Stage{Running, Failed}, within: quickly, wish: power(Off),
		done: func(_ *Server, seen *Seen) bool { return seen.Power == Off || seen.Power == Crashed }},
	SoftRebooting: {from: []Stage{Running}, within: quickly, boots: true,
		wish: func(s *Server) { s.SoftBoots = max(s.SoftBoots, s.Seen.SoftBoots) + 1 },
		done: func(want *Server, seen *Seen) bool { return seen.Power == On && seen.SoftBoots >= want.SoftBoots }},
	HardRebooting: {from: []Stage{Running, Stopped, Frozen, Asleep, Failed}, over: []Task{SoftRebooting, HardRebooting}, within: quickly, boots: true,
		wish: powerCycle, done: powerCycled},
	Pausing:    {from: []Stage{Running}, within: quickly, wish: power(Paused), done: seenAs(Paused)},
	Unpausing:  {from: []Stage{Frozen}, within: quickly, wish: power(On), done: seenAs(On)},
	Suspending: {from: []Stage{Running}, within: slowly, wish: power(Suspended), done: seenAs(Suspended)},
	Resuming:   {from: []Stage{Asleep}, within: slowly, wish: power(On), done: seenAs(On)},
	Rebuilding: {from: []Stage{Running, Stopped, Failed}, within: slowly, boots: true,
		final: "A rebuild cannot be cancelled: the old disk may be gone already.",
		wish:  func(s *Server) { s.Rebuilds, s.Failure = max(s.Rebuilds, s.Seen.Rebuilds)+1, nil },
		done: func(want *Server, seen *Seen) bool {
			return seen.Power == want.Power && seen.Rebuilds >= want.Rebuilds
		}},
	Reshaping: {within: slowly, boots: true, done: recast, final: "A resize cannot be cancelled. Revert it once it is done."},
	Reverting: {within: slowly, boots: true, done: recast, final: "The way back cannot be cancelled. Resize again once it is done."},
	// What leads to another host ends there: see Move.
	Migrating: {from: []Stage{Running, Stopped}, within: slowly, boots: true, final: alreadyMoved,
		done: func(want *Server, seen *Seen) bool { return seen.Power == want.Power }},
	LiveMigrating: {from: []Stage{Running, Frozen}, within: slowly, boots: true, final: alreadyMoved,
		done: func(want *Server, seen *Seen) bool { return seen.Power == want.Power }},
	Evacuating: {within: createWithin, boots: true, final: "The server has left its lost host already.",
		done: func(want *Server, seen *Seen) bool { return seen.Power == want.Power }},
	// What copies the disk ends when the copy is in its image: see Snapshot.
	Imaging:   {from: []Stage{Running, Stopped, Frozen, Asleep}, within: slowly},
	BackingUp: {from: []Stage{Running, Stopped, Frozen, Asleep}, within: slowly},
	Shelving:  {from: []Stage{Running, Stopped, Frozen, Asleep}, within: slowly},
	Unshelving: {from: []Stage{Shelved, Offloaded}, within: createWithin, boots: true,
		done: func(want *Server, seen *Seen) bool { return seen.Power == want.Power }},
	Deleting: {within: quickly}, // it ends with the server
}

const alreadyMoved = "The server is on its new host already."

// wrongState is the fault for what cannot be done to a server as it stands.
func wrongState(s *Server, verb string) error {
	about := "it is " + string(s.Stage())
	if s.Task != "" {
		about = "this is under way: " + string(s.Task)
	}
	return fault.Errorf(fault.Conflict, "Server %s cannot do this now (%s): %s.", s.ID, verb, about).WithCode("server-state").
		With("server", s.ID.String()).With("verb", verb).With("stage", string(s.Stage())).With("task", string(s.Task))
}

// serverFor gives a server that the actor may take the action on.
func serverFor(ctx context.Context, tx *state.Tx, action string, id resource.ID) (*Server, error) {
	srv, ok := servers.Find(tx, id)
	if !ok {
		return nil, missingServer(id)
	}
	if err := identity.Allow(ctx, action, srv.Meta); err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, missingServer(id)
		}
		return nil, err
	}
	return srv, nil
}

func missingServer(id any) error {
	return fault.Errorf(fault.NotFound, "Instance %v could not be found.", id).WithCode("server-not-found")
}

// unlocked refuses what a lock keeps the actor from.
func unlocked(ctx context.Context, srv *Server) error {
	if srv.Lock == nil || identity.ActorOf(ctx).Admin() {
		return nil
	}
	return fault.Errorf(fault.Conflict, "Instance %s is locked", srv.ID).WithCode("server-locked")
}

// change runs a change of one server, in one transaction, that a lock would forbid.
func (s *Service) change(ctx context.Context, action string, id resource.ID, fn func(*state.Tx, *Server) error) (*Server, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Server, error) {
		srv, err := serverFor(ctx, tx, action, id)
		if err != nil {
			return nil, err
		}
		if err := unlocked(ctx, srv); err != nil {
			return nil, err
		}
		if err := fn(tx, srv); err != nil {
			return nil, err
		}
		return srv, servers.Put(tx, srv)
	})
}

// Do asks for one of the plain moves: those of power. It answers before it is done.
func (s *Service) Do(ctx context.Context, id resource.ID, task Task) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		return s.start(ctx, tx, srv, task)
	})
	return err
}

// start begins a move if the server stands so that it can be.
func (s *Service) start(ctx context.Context, tx *state.Tx, srv *Server, task Task) error {
	m := moves[task]
	if !slices.Contains(m.from, srv.Stage()) || srv.Task != "" && !slices.Contains(m.over, srv.Task) || srv.HostID.IsZero() {
		return wrongState(srv, string(task))
	}
	if srv.Task != "" {
		if err := settle(tx, srv, operation.Cancelled, "Something else was asked for."); err != nil {
			return err
		}
	}
	if task == Rebuilding { // a host may have carried out more than a restored state knows of: what is asked for now comes after all that
		srv.Rebuilds = max(srv.Rebuilds, int(host.MarkOf(tx).Era))
	}
	m.wish(srv)
	op, err := begin(ctx, tx, srv, task, m.within)
	if err != nil {
		return err
	}
	return waitForHost(tx, srv, op)
}

// Delete asks for a server to be taken away, whatever is under way with it.
func (s *Service) Delete(ctx context.Context, id resource.ID) error { return s.remove(ctx, id, false) }

// ForceDelete is Delete that does not wait for a host that cannot be heard: it takes the guest
// away when it comes back.
func (s *Service) ForceDelete(ctx context.Context, id resource.ID) error {
	return s.remove(ctx, id, true)
}

func (s *Service) remove(ctx context.Context, id resource.ID, force bool) error {
	_, err := state.Do(ctx, s.State, func(tx *state.Tx) (struct{}, error) {
		srv, err := serverFor(ctx, tx, "server.delete", id)
		if err == nil {
			err = unlocked(ctx, srv)
		}
		if err == nil {
			err = s.doom(ctx, tx, srv, force)
		}
		return struct{}{}, err
	})
	return err
}

func (s *Service) doom(ctx context.Context, tx *state.Tx, srv *Server, force bool) error {
	var op *operation.Operation
	if !srv.Doomed() {
		if err := srv.turnBack(tx); err != nil {
			return err
		}
		if err := settle(tx, srv, operation.Cancelled, "The server was deleted."); err != nil {
			return err
		}
		var err error
		if op, err = begin(ctx, tx, srv, Deleting, moves[Deleting].within); err != nil {
			return err
		}
		srv.DeletedAt = tx.Now()
	}
	h, ok := host.Table().PeekOne(tx, srv.HostID)
	if !ok || h.Dead() || force && !h.Up() {
		return s.abandon(tx, srv, "")
	}
	if op == nil {
		return nil // it is on its way already
	}
	if err := waitForHost(tx, srv, op); err != nil {
		return err
	}
	return servers.Put(tx, srv)
}

// abandon buries a server whose host cannot be asked: it is to take the guest away as soon as it can.
func (s *Service) abandon(tx *state.Tx, srv *Server, message string) error {
	if err := host.Discard(tx, srv.HostID, "guest", srv.ID); err != nil {
		return err
	}
	return s.bury(tx, srv, message)
}

// bury takes away what is left of a server that no host has.
func (s *Service) bury(tx *state.Tx, srv *Server, message string) error {
	if err := s.unplugAll(tx, srv); err != nil {
		return err
	}
	if err := dropConsoleTokens(tx, consoleTokens.IDs(tx, "server", state.KeyOf(srv.ID))); err != nil {
		return err
	}
	if err := settle(tx, srv, operation.Succeeded, message); err != nil {
		return err
	}
	if err := remember(tx, srv); err != nil {
		return err
	}
	if err := srv.forgetMigrations(tx); err != nil {
		return err
	}
	if err := srv.clearShelf(tx); err != nil {
		return err
	}
	if err := srv.bequeath(tx, srv.Storage, srv.Epoch, srv.HostID); err != nil {
		return err
	}
	return servers.Delete(tx, srv.ID)
}

// LockServer keeps everybody but operators from changing a server.
func (s *Service) LockServer(ctx context.Context, id resource.ID, reason string) error {
	actor := identity.ActorOf(ctx)
	return s.relock(ctx, id, func(srv *Server) error {
		if srv.Lock == nil || srv.Lock.Reason != reason {
			srv.Lock = &Lock{ByUserID: actor.UserID, ByAdmin: actor.Admin() && actor.ProjectID != srv.ProjectID, Reason: reason}
		}
		return nil
	})
}

// Unlock lets a server be changed again. What an operator locked only an operator unlocks.
func (s *Service) Unlock(ctx context.Context, id resource.ID) error {
	return s.relock(ctx, id, func(srv *Server) error {
		if srv.Lock != nil && srv.Lock.ByAdmin {
			if err := identity.Allow(ctx, "server.override-lock", srv.Meta); err != nil {
				return err
			}
		}
		srv.Lock = nil
		return nil
	})
}

func (s *Service) relock(ctx context.Context, id resource.ID, fn func(*Server) error) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		srv, err := serverFor(ctx, tx, "server.lock", id)
		if err != nil {
			return err
		}
		if err := fn(srv); err != nil {
			return err
		}
		return servers.Put(tx, srv)
	})
}

// Reset settles by an operator's word how a server stands: as failed, or as it was last seen.
func (s *Service) Reset(ctx context.Context, id resource.ID, failed bool) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		srv, err := serverFor(ctx, tx, "server.reset", id)
		if err != nil {
			return err
		}
		if srv.Doomed() || !failed && srv.LaunchedAt.IsZero() {
			return wrongState(srv, "reset")
		}
		const why = "An operator settled the server's state."
		moving := srv.Move != nil || srv.Snapshot != nil || srv.Shelf != nil
		if !moving { // else what was seen is of what the host takes back
			srv.fallBack()
		}
		if srv.Move != nil {
			if err := srv.stay(tx, operation.Cancelled, why); err != nil {
				return err
			}
		} else if srv.Snapshot != nil || srv.Task == Unshelving {
			if err := srv.putBack(tx, operation.Cancelled, why); err != nil {
				return err
			}
		} else if err := srv.conclude(tx, operation.Cancelled, why); err != nil {
			return err
		}
		srv.Failure = nil
		if failed {
			srv.fail(tx, 500, "An operator marked the server as failed.")
		}
		return servers.Put(tx, srv)
	})
}

// A Rebuild is a request to make a server's root disk anew. A nil field stays as it is.
type Rebuild struct {
	ImageID       resource.ID
	Name          *string
	Description   *string
	Hostname      *string
	Metadata      map[string]string
	AccessIPv4    *string
	AccessIPv6    *string
	AdminPassword string
	KeyName       **string // points at nil: no key any more
	UserData      *[]byte
	Files         []File
	Trusted       *[]string
	ManualDisk    *bool
}

// Rebuild makes a server anew from an image; its identity, address and shape stay.
func (s *Service) Rebuild(ctx context.Context, id resource.ID, r Rebuild) (*Server, error) {
	return s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		f := &Flavor{MemoryMiB: srv.Shape.MemoryMiB, RootGiB: srv.Shape.rootGiB()}
		b := &builder{service: s, tx: tx, ctx: ctx, Launch: Launch{ImageID: r.ImageID, Metadata: r.Metadata, Files: r.Files},
			actor: identity.ActorOf(ctx), flavor: f}
		if err := s.start(ctx, tx, srv, Rebuilding); err != nil {
			return err
		}
		if err := b.prepareBoot(); err != nil {
			return err
		}
		if err := b.checkParts(srv.ProjectID, srv.UserID); err != nil {
			return err
		}
		if r.KeyName != nil {
			if name := *r.KeyName; name != nil {
				b.KeyName = *name
			}
			if err := b.prepareKey(); err != nil {
				return err
			}
			srv.Key = b.key
		}
		srv.Boot, srv.Root = b.boot, nil
		return r.apply(srv)
	})
}

func (r *Rebuild) apply(srv *Server) error {
	e := Edit{Name: r.Name, Description: r.Description, Hostname: r.Hostname, AccessIPv4: r.AccessIPv4,
		AccessIPv6: r.AccessIPv6, ManualDisk: r.ManualDisk}
	if err := e.apply(srv); err != nil {
		return err
	}
	if r.Metadata != nil {
		if err := checkMetadata(r.Metadata); err != nil {
			return err
		}
		srv.Metadata = r.Metadata
	}
	srv.AdminPassword, srv.Files = r.AdminPassword, r.Files
	if r.UserData != nil {
		srv.UserData = *r.UserData
	}
	if r.Trusted != nil {
		srv.Trusted = *r.Trusted
	}
	return nil
}

// An Edit changes what an owner may change at will. A nil field stays as it is.
type Edit struct {
	Name, Description, Hostname, AccessIPv4, AccessIPv6 *string
	ManualDisk                                          *bool
}

func (e *Edit) apply(srv *Server) error {
	if e.Name != nil {
		if strings.TrimSpace(*e.Name) == "" || len([]rune(*e.Name)) > MaxName {
			return fault.InvalidField("name", "must be of 1 to %d characters", MaxName)
		}
		srv.Name = *e.Name
	}
	for _, f := range []struct{ from, to *string }{{e.Description, &srv.Description}, {e.Hostname, &srv.Hostname},
		{e.AccessIPv4, &srv.AccessIPv4}, {e.AccessIPv6, &srv.AccessIPv6}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	if e.ManualDisk != nil {
		srv.ManualDisk = *e.ManualDisk
	}
	return nil
}

// Update renames and redescribes a server.
func (s *Service) Update(ctx context.Context, id resource.ID, e Edit) (*Server, error) {
	return s.edit(ctx, id, func(_ *state.Tx, srv *Server) error { return e.apply(srv) })
}

// edit is change for what does not touch the guest itself; a lock does not forbid it.
func (s *Service) edit(ctx context.Context, id resource.ID, fn func(*state.Tx, *Server) error) (*Server, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Server, error) {
		srv, err := serverFor(ctx, tx, "server.update", id)
		if err != nil {
			return nil, err
		}
		if err := fn(tx, srv); err != nil {
			return nil, err
		}
		return srv, servers.Put(tx, srv)
	})
}

// SetMetadata adds pairs to a server's metadata, or replaces it all.
func (s *Service) SetMetadata(ctx context.Context, id resource.ID, pairs map[string]string, replace bool) (map[string]string, error) {
	if err := checkMetadata(pairs); err != nil {
		return nil, err
	}
	srv, err := s.change(ctx, "server.update", id, func(tx *state.Tx, srv *Server) error {
		if replace || srv.Metadata == nil {
			srv.Metadata = map[string]string{}
		}
		for k, v := range pairs {
			srv.Metadata[k] = v
		}
		return roomFor(tx, srv.ProjectID, srv.UserID, QuotaMetadata, 0, len(srv.Metadata))
	})
	if err != nil {
		return nil, err
	}
	return srv.Metadata, nil
}

// DropMetadata takes one pair away.
func (s *Service) DropMetadata(ctx context.Context, id resource.ID, key string) error {
	_, err := s.change(ctx, "server.update", id, func(_ *state.Tx, srv *Server) error {
		if _, ok := srv.Metadata[key]; !ok {
			return fault.Errorf(fault.NotFound, "Metadata item was not found").WithCode("metadata-not-found")
		}
		delete(srv.Metadata, key)
		return nil
	})
	return err
}

// SetTags replaces a server's tags.
func (s *Service) SetTags(ctx context.Context, id resource.ID, tags []string) ([]string, error) {
	if err := checkTags(tags); err != nil {
		return nil, err
	}
	srv, err := s.change(ctx, "server.update", id, func(_ *state.Tx, srv *Server) error {
		srv.Tags = slices.Clone(tags)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return srv.Tags, nil
}

// AddTag adds one; false if the server had it already.
func (s *Service) AddTag(ctx context.Context, id resource.ID, tag string) (added bool, err error) {
	_, err = s.change(ctx, "server.update", id, func(_ *state.Tx, srv *Server) error {
		added = !slices.Contains(srv.Tags, tag)
		if added {
			srv.Tags = append(srv.Tags, tag)
		}
		return checkTags(srv.Tags)
	})
	return added, err
}

// DropTag takes one away.
func (s *Service) DropTag(ctx context.Context, id resource.ID, tag string) error {
	_, err := s.change(ctx, "server.update", id, func(_ *state.Tx, srv *Server) error {
		n := slices.Index(srv.Tags, tag)
		if n < 0 {
			return fault.Errorf(fault.NotFound, "Server %s has no tag '%s'", id, tag).WithCode("tag-not-found")
		}
		srv.Tags = slices.Delete(srv.Tags, n, n+1)
		return nil
	})
	return err
}
