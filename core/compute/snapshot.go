package compute

import (
	"context"
	"maps"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Copying is what a host reports of a snapshot.
type Copying struct {
	Number  int    `json:",omitempty"` // the snapshot's; 0: none is under way
	Done    bool   `json:",omitempty"` // its bytes are in the image, and durable there
	Percent int    `json:",omitempty"`
	Trouble string `json:",omitempty"` // why it cannot be, in words for the owner
}

// An ImageWanted is an image that is to be made of a server.
type ImageWanted struct {
	Name       string
	Properties map[string]string // beside those of the server's own image
	Counted    int               // how many of the properties are held against the quota of a server's metadata; 0: none

	backup *image.Backup
}

// CreateImage asks for an image of a server's root disk as it is at one moment soon, and answers the image's ID before there is
// anything in it. A running guest runs on, and notices nothing.
func (s *Service) CreateImage(ctx context.Context, id resource.ID, w ImageWanted) (resource.ID, error) {
	return s.createImage(ctx, id, Imaging, w)
}

func (s *Service) createImage(ctx context.Context, id resource.ID, task Task, w ImageWanted) (resource.ID, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (resource.ID, error) { // a lock forbids nothing that leaves the server as it is
		srv, err := serverFor(ctx, tx, "server.operate", id)
		if err != nil {
			return resource.ID{}, err
		}
		if err := s.snapshot(ctx, tx, srv, task, w); err != nil {
			return resource.ID{}, err
		}
		return srv.Snapshot.ImageID, servers.Put(tx, srv)
	})
}

// snapshot begins to copy the server's root disk into a new image, which is its project's.
func (s *Service) snapshot(ctx context.Context, tx *state.Tx, srv *Server, task Task, w ImageWanted) error {
	if err := srv.mayBeCopied(task); err != nil {
		return err
	}
	if err := w.roomFor(tx, srv); err != nil {
		return err
	}
	h, ok := host.Table().PeekOne(tx, srv.HostID)
	switch {
	case !ok || !h.Up():
		return fault.Errorf(fault.Conflict, "The server's host cannot be heard, so that nobody can copy the server's disk. Try again when it is back.").WithCode("host-down")
	case h.Capacity.Snapshots == "" || s.config.Images == nil:
		return fault.Errorf(fault.Unsupported, "The server's host cannot make an image of it.").WithCode("not-implemented")
	}
	request := image.Request{ProjectID: srv.ProjectID, Name: w.Name, Backup: w.backup, Spec: image.Spec{
		Format: h.Capacity.Snapshots, Container: "bare", Visibility: image.Private, MinDiskGiB: srv.Shape.RootGiB,
		Boot: srv.Boot.again(), Properties: map[string]string{},
	}}
	if of, ok := image.Table().PeekOne(tx, srv.Boot.ImageID()); ok {
		request.MinMemoryMiB = of.MinMemoryMiB
		maps.Copy(request.Properties, of.Properties)
	}
	maps.Copy(request.Properties, w.Properties)
	img, err := s.config.Images.Add(ctx, tx, request)
	if err != nil {
		return err
	}
	srv.Snapshots++
	srv.Snapshot = &Snapshot{Number: srv.Snapshots, ImageID: img.ID}
	op, err := begin(ctx, tx, srv, task, moves[task].within)
	if err != nil {
		return err
	}
	return operation.Stepped(tx, op, "copy", srv.HostID)
}

// mayBeCopied refuses to copy the server's disk as it stands.
func (s *Server) mayBeCopied(task Task) error {
	if !slices.Contains(moves[task].from, s.Stage()) || s.Task != "" || s.HostID.IsZero() {
		return wrongState(s, string(task))
	}
	return nil
}

func (w *ImageWanted) roomFor(tx *state.Tx, srv *Server) error {
	if w.Counted == 0 {
		return nil
	}
	return roomFor(tx, srv.ProjectID, srv.UserID, QuotaMetadata, 0, w.Counted)
}

// again is how an image says what a server's own image has said of its machine.
func (b *Boot) again() image.Boot {
	i := image.Boot{Cmdline: b.Cmdline, Machine: b.Machine, DiskBus: b.DiskBus, NICModel: b.NICModel}
	if b.UEFI {
		i.Firmware = "uefi"
	}
	if b.Kernel != nil {
		i.KernelID = b.Kernel.ID
	}
	if b.Initrd != nil {
		i.InitrdID = b.Initrd.ID
	}
	return i
}

// copied takes in what a host reports of a server while its disk is copied.
func (s *Service) copied(tx *state.Tx, srv *Server, seen Seen, c Copying) error {
	news := !seen.same(&srv.Seen)
	srv.Seen = seen
	mine := c.Number == srv.Snapshot.Number
	var err error
	switch {
	case seen.Wish < srv.Wish: // it has not heard of it yet
	case mine && c.Trouble != "":
		news, err = true, srv.giveUp(tx, c.Trouble)
	case mine && c.Done:
		news, err = true, s.keepCopy(tx, srv)
	case seen.stuck():
		news, err = true, srv.giveUp(tx, seen.Trouble)
	case srv.Task != Shelving && seen.ended(srv):
		news, err = true, srv.giveUp(tx, "The guest ended by itself.")
	case mine:
		err = srv.noteCopy(tx, c.Percent)
	}
	if err != nil || !news {
		return err
	}
	if srv.Task == "" { // the same report may say that the guest has ended meanwhile, and nothing says it again
		if err := srv.advance(tx); err != nil {
			return err
		}
	}
	return servers.Put(tx, srv)
}

// noteCopy says in the operation how far the copy is. As long as it comes further, it has time.
func (s *Server) noteCopy(tx *state.Tx, percent int) error {
	op, err := operation.Get(tx, s.OperationID)
	if err != nil || op.Percent == percent {
		return err
	}
	if left := op.CreatedAt.Add(longest).Sub(tx.Now()); left > 0 {
		if err := operation.Prolong(tx, op, min(left, stillness)); err != nil {
			return err
		}
	}
	return operation.Note(tx, op, op.WaitingFor, percent)
}

// keepCopy ends what was asked for with a snapshot, whose bytes are in the image now.
func (s *Service) keepCopy(tx *state.Tx, srv *Server) error {
	img, ok := image.Table().PeekOne(tx, srv.Snapshot.ImageID)
	switch {
	case !ok || !img.Whole():
		return srv.giveUp(tx, "The image was taken away before it was complete.")
	case !img.Usable:
		return srv.giveUp(tx, "What is in the image is no copy of the server's disk.")
	case srv.Task != Shelving:
		srv.Snapshot = nil
		if b := img.Backup; b != nil {
			if err := image.Rotate(tx, srv.ProjectID, *b); err != nil {
				return err
			}
		}
		return settle(tx, srv, operation.Succeeded, "")
	case srv.Seen.Power != Off && srv.Seen.Power != Crashed:
		return nil // it says more
	}
	return s.shelve(tx, srv, img)
}

// dropSnapshot gives a snapshot that is under way up; none is nothing. Nothing of its image is left.
func (s *Server) dropSnapshot(tx *state.Tx) error {
	if s.Snapshot == nil {
		return nil
	}
	id := s.Snapshot.ImageID
	s.Snapshot = nil
	return image.Drop(tx, id, "The snapshot was given up.")
}

// putBack gives up what is under way with a snapshot, or to bring the server back from the shelf. It is as it was then.
func (s *Server) putBack(tx *state.Tx, outcome operation.Outcome, why string) error {
	if err := s.dropSnapshot(tx); err != nil {
		return err
	}
	if s.Task == Unshelving {
		if err := s.backOnShelf(tx); err != nil {
			return err
		}
	}
	s.Wish++
	return settle(tx, s, outcome, why)
}

// Makes reports whether a host is to make the snapshot that an image is for. Nobody else's image is a host to fill.
func Makes(tx *state.Tx, h, id resource.ID) bool {
	for srv := range servers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h)}) {
		if srv.Snapshot != nil && srv.Snapshot.ImageID == id {
			return true
		}
	}
	return false
}
