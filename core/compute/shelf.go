package compute

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Shelf is where what a server had on its root disk is while the server is shelved: in an image of its project. It is off then,
// and keeps its ports, addresses and quota; its host is rid of it, at once or in a while.
//
// A guest never runs twice, for it leaves its host only when the host has said that it is off, and to a wish that it is. The way
// back has two parts: the new host makes it ready and leaves it off, which can be given up at any moment; then it
// is that host's, as any server is its host's, and is started.
type Shelf struct {
	Image     ImageRef // its bytes stay as long as this names them, whatever becomes of the image
	At        time.Time
	Offloaded bool   // its host is rid of it, and no other has it for good yet
	Arch      string `json:",omitempty"` // of the host that it was on
	// It was to be started on the host that has its disks, and that was given up: it may have run, and its disks have what the image lacks.
	// So it leaves the shelf, off, once its host says that it is; only if that has died with them the image counts again.
	Outdated bool `json:",omitempty"`
}

const shelvedSuffix = "-shelved"

// Shelve has a server's root disk copied into an image, with these properties, and gives up what it takes of its host.
// What it has in memory, and on ephemeral disks, is lost.
func (s *Service) Shelve(ctx context.Context, id resource.ID, properties map[string]string) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		name := []rune(srv.Name)
		name = name[:min(len(name), MaxName-len(shelvedSuffix))]
		return s.snapshot(ctx, tx, srv, Shelving, ImageWanted{Name: string(name) + shelvedSuffix, Properties: properties})
	})
	return err
}

// shelve puts a server whose disk is in an image onto the shelf.
func (s *Service) shelve(tx *state.Tx, srv *Server, img *image.Image) error {
	srv.Snapshot, srv.Power = nil, Off
	srv.Shelf = &Shelf{Image: *refOf(img), At: tx.Now()}
	if h, ok := host.Table().PeekOne(tx, srv.HostID); ok {
		srv.Shelf.Arch = h.Capacity.Arch
	}
	if host.KeepingOf(tx).ShelvedStay == 0 {
		if err := srv.offload(tx); err != nil {
			return err
		}
	}
	return settle(tx, srv, operation.Succeeded, "")
}

// offload takes the server off its host, which is ordered to clear away what it has; disks on shared storage are erased. Nothing that
// isNewerThanShelf is offloaded.
func (s *Server) offload(tx *state.Tx) error {
	if err := host.Discard(tx, s.HostID, "guest", s.ID); err != nil {
		return err
	}
	if err := s.bequeath(tx, s.Storage, s.Epoch, s.HostID); err != nil {
		return err
	}
	s.Shelf.Offloaded, s.Shelf.Outdated = true, false
	s.lieAnew("")
	s.HostID, s.Stranded, s.Sworn = resource.ID{}, nil, 0
	s.Seen = Seen{Observation: Observation{Power: Off}, Wish: s.Wish, Since: tx.Now()}
	if err := dropConsoleTokens(tx, consoleTokens.IDs(tx, "server", state.KeyOf(s.ID))); err != nil {
		return err
	}
	return s.rebind(tx)
}

// rests reports whether the server is known to be off on its host, and to stay so.
func (s *Server) rests(tx *state.Tx) bool {
	if h, ok := host.Table().PeekOne(tx, s.HostID); !ok || s.endedOn(h) {
		return true
	}
	return (s.Seen.Power == Off || s.Seen.Power == Crashed) && !s.Seen.Busy && s.Seen.Wish >= s.Wish
}

const offloadVerb = "shelve-offload"

// Offload takes a shelved server off its host at once.
func (s *Service) Offload(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, "server.offload", id, func(tx *state.Tx, srv *Server) error {
		if srv.Stage() != Shelved || srv.Task != "" {
			return wrongState(srv, offloadVerb)
		}
		if !srv.rests(tx) {
			return fault.Errorf(fault.Conflict, "The server's host has not said that the server is off. Try again when it has, or is known to be dead.").WithCode("host-down")
		}
		if srv.isNewerThanShelf(tx) {
			return fault.Errorf(fault.Conflict, "The server may have run since it was shelved: its disks are newer than its image. It is about to leave the shelf; shelve it again then.").WithCode("shelf-outdated")
		}
		if err := srv.offload(tx); err != nil {
			return err
		}
		return record(ctx, tx, srv, offloadVerb)
	})
	return err
}

// isNewerThanShelf reports whether the server's disks are there and may have what its image lacks.
func (s *Server) isNewerThanShelf(tx *state.Tx) bool {
	if !s.Shelf.Outdated {
		return false
	}
	h, ok := host.Table().PeekOne(tx, s.HostID)
	return s.Storage != "" || ok && !s.endedOn(h)
}

// A Place says where a server is to come back from the shelf to. Only one that is on no host can be told.
type Place struct {
	Zone *string // from now on; "" for any; nil: as it was
	Host string  // its name, for operators; "" for any
}

// Unshelve brings a server back from the shelf, and starts it.
func (s *Service) Unshelve(ctx context.Context, id resource.ID, to Place) error {
	_, err := s.change(ctx, "server.operate", id, func(tx *state.Tx, srv *Server) error {
		stage := srv.Stage()
		switch {
		case !slices.Contains(moves[Unshelving].from, stage) || srv.Task != "":
			return wrongState(srv, string(Unshelving))
		case stage == Offloaded:
			return s.fetchFromShelf(ctx, tx, srv, to)
		case to != (Place{}):
			return fault.Errorf(fault.Conflict, "Server %s is on a host still, to which it comes back: no zone and no other host can be chosen.", srv.ID).WithCode("server-on-host")
		}
		srv.Power = On
		op, err := begin(ctx, tx, srv, Unshelving, moves[Unshelving].within)
		if err != nil {
			return err
		}
		return waitForHost(tx, srv, op)
	})
	return err
}

// fetchFromShelf has a host make a server ready that is on none.
func (s *Service) fetchFromShelf(ctx context.Context, tx *state.Tx, srv *Server, to Place) error {
	if to.Zone != nil {
		if *to.Zone != "" && !hasZone(tx, *to.Zone) {
			return fault.Errorf(fault.Invalid, "The requested availability zone is not available").WithCode("zone-not-found")
		}
		srv.Zone = *to.Zone
	}
	if to.Host != "" {
		if err := identity.Allow(ctx, "server.unshelve-to-host", srv.Meta); err != nil {
			return err
		}
	}
	d, err := s.demandOf(tx, srv, &srv.Shape, nil, to.Host)
	if err != nil {
		return err
	}
	d.moves, d.arch = false, srv.Shelf.Arch
	if h, ok := host.Table().PeekOne(tx, d.host); ok && srv.Zone != "" && ZonesOf(tx).Of(h) != srv.Zone {
		return fault.Errorf(fault.Conflict, "Host %q is not in the availability zone %q.", h.Name, srv.Zone).WithCode("host-not-in-zone")
	}
	chosen, why := s.place(tx, d)
	if chosen == nil {
		return noHost(ctx, why)
	}
	srv.Moves++
	srv.Epoch = srv.Moves + 1
	srv.HostID, srv.Seen = chosen.ID, Seen{}
	op, err := begin(ctx, tx, srv, Unshelving, moves[Unshelving].within)
	if err != nil {
		return err
	}
	srv.lieAnew(chosen.Capacity.Storage)
	if err := operation.Explain(tx, op, why); err != nil {
		return err
	}
	if err := srv.rebind(tx); err != nil {
		return err
	}
	return operation.Stepped(tx, op, "prepare", srv.HostID)
}

// ready takes in what the new host of a server that comes back from the shelf has made of it. Once it is there, it is that host's.
func (s *Server) ready(tx *state.Tx) error {
	switch {
	case s.Seen.Wish < s.Wish || s.Doomed():
		return servers.Put(tx, s)
	case s.Seen.stuck():
		if err := s.giveUp(tx, s.Seen.Trouble); err != nil {
			return err
		}
		return servers.Put(tx, s)
	case s.Seen.Power != Off || s.Seen.Busy:
		return servers.Put(tx, s)
	}
	from := s.Shelf.Image
	s.Root, s.Shelf.Offloaded, s.Power = &from, false, On
	s.Wish++
	op, err := operation.Get(tx, s.OperationID)
	if err != nil {
		return err
	}
	if err := operation.Prolong(tx, op, moves[s.Task].within); err != nil {
		return err
	}
	if err := operation.Stepped(tx, op, "start", s.HostID); err != nil {
		return err
	}
	return servers.Put(tx, s)
}

// backOnShelf undoes what was done to bring the server back.
func (s *Server) backOnShelf(tx *state.Tx) error {
	s.Power = Off
	if !s.Shelf.Offloaded {
		s.Shelf.Outdated = true // its host may have started it already, and is to end it
		return nil
	}
	return s.offload(tx)
}

// clearShelf takes away the image of a server that needs it no more.
func (s *Server) clearShelf(tx *state.Tx) error {
	if s.Shelf == nil {
		return nil
	}
	id := s.Shelf.Image.ID
	s.Shelf = nil
	return image.Drop(tx, id, "Its server is no longer shelved.")
}

// root is what the server's root disk lies over.
func (s *Server) root() *ImageRef {
	switch {
	case s.Shelf != nil && s.Shelf.Offloaded:
		return &s.Shelf.Image
	case s.Root != nil:
		return s.Root
	}
	return s.Boot.Image
}

// parts are the images, beside its own, that the server is made from, or would be.
func (s *Server) parts() []*ImageRef {
	all := []*ImageRef{s.Boot.Kernel, s.Boot.Initrd, s.Root}
	if s.Shelf != nil {
		all = append(all, &s.Shelf.Image)
	}
	return slices.DeleteFunc(all, func(ref *ImageRef) bool { return ref == nil })
}

// shelfAgain is how often the reconciler looks at what it has to wait for.
const shelfAgain = time.Minute

// shelfTask takes shelved servers off their hosts when it is time, and off the shelf what may have run since.
func (s *Service) shelfTask() reconcile.Task {
	return reconcile.Task{
		Name: "compute-shelf",
		All:  func(tx *state.Tx) []resource.ID { return servers.IDs(tx, "shelved", "") },
		Touched: func(e state.Event) []resource.ID {
			if srv, ok := e.After.(*Server); ok && srv.Shelf != nil && !srv.Shelf.Offloaded && srv.Task == "" {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: s.tidyShelf,
	}
}

func (s *Service) tidyShelf(ctx context.Context, id resource.ID) (next reconcile.Next, err error) {
	due := func(tx *state.Tx, srv *Server) bool {
		if srv.isNewerThanShelf(tx) {
			return srv.rests(tx)
		}
		stay := host.KeepingOf(tx).ShelvedStay
		return stay != host.ShelvedForever && srv.Shelf.At.Add(stay).Sub(s.State.Now()) <= 0 && srv.rests(tx)
	}
	srv, ok := servers.PeekOne(s.State.Latest(), id)
	switch {
	case !ok || srv.Stage() != Shelved || srv.Task != "":
		return next, nil
	case !due(s.State.Latest(), srv):
		next.After = shelfAgain
		if left := srv.Shelf.At.Add(host.KeepingOf(s.State.Latest()).ShelvedStay).Sub(s.State.Now()); left > 0 {
			next.After = min(left, shelfAgain)
		}
		return next, nil
	}
	ctx = identity.Internal(ctx)
	return next, s.State.Update(ctx, func(tx *state.Tx) error {
		srv, ok := servers.Find(tx, id)
		if !ok || srv.Stage() != Shelved || srv.Task != "" || !srv.rests(tx) {
			return nil
		}
		if srv.isNewerThanShelf(tx) {
			if err := srv.clearShelf(tx); err != nil {
				return err
			}
			return servers.Put(tx, srv)
		}
		if err := srv.offload(tx); err != nil {
			return err
		}
		if err := record(ctx, tx, srv, offloadVerb); err != nil {
			return err
		}
		return servers.Put(tx, srv)
	})
}

var _ = identity.Rules(map[string]identity.Rule{"server.offload": identity.Admin, "server.unshelve-to-host": identity.Admin})
