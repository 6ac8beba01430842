package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/operation"
)

// How often the reconciler looks again at what others have to end first.
const (
	inUseAgain   = 5 * time.Second
	runningAgain = 30 * time.Second
)

// settle takes one image a step nearer to rest: it undoes a transfer that nobody carries on,
// judges what is to be imported, and removes what was deleted. A step may run at any time.
func (s *Service) settle(ctx context.Context, id resource.ID) (reconcile.Next, error) {
	return s.settleWith(ctx, id, "The upload was interrupted. Nothing was kept; try again.")
}

func (s *Service) settleWith(ctx context.Context, id resource.ID, why string) (reconcile.Next, error) {
	// A transfer is known here before it is in the state, and until after its end is. So one that runs is judged by a state that is read
	// after it was seen, and one that is missed by a state that is read after it was missed.
	runs := s.transfers(id)
	tx := s.State.Latest()
	i, ok := images.Find(tx, id)
	if !ok {
		return reconcile.Next{}, nil
	}
	for _, r := range runs {
		if !r.blob.IsZero() && (r.blob != i.TransferID || i.State == Deleting) {
			r.cancel(errOvertaken) // the image does not want it any more
		}
	}
	switch i.State {
	case Receiving, Staging:
		if slices.ContainsFunc(s.transfers(id), func(r run) bool { return r.blob.IsZero() || r.blob == i.TransferID }) {
			return reconcile.Next{After: runningAgain}, nil
		}
		if now, ok := images.Find(s.State.Latest(), id); !ok || now.State != i.State || now.TransferID != i.TransferID {
			return s.settleWith(ctx, id, why) // it came to its end just now
		}
		return reconcile.Next{}, s.undo(ctx, i, why)
	case Importing:
		return reconcile.Next{}, s.importStaged(ctx, i)
	case Deleting:
		if s.config.InUse(tx, id) || s.holding() {
			return reconcile.Next{After: inUseAgain}, nil
		}
		return reconcile.Next{}, s.purge(ctx, i)
	}
	return reconcile.Next{}, nil
}

// transfers are those of this process that bring an image's bytes in, as they are now.
func (s *Service) transfers(id resource.ID) []run {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []run
	for r := range s.runs {
		if r.image == id {
			all = append(all, *r)
		}
	}
	return all
}

// undo takes an image back to Queued, with nothing left of the attempt.
func (s *Service) undo(ctx context.Context, was *Image, why string) error {
	if err := s.blobs.Remove(ctx, was.TransferID); err != nil {
		return fmt.Errorf("remove what is left of blob %s: %w", was.TransferID, err)
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		i, ok := images.Find(tx, was.ID)
		if !ok || i.TransferID != was.TransferID || i.State != was.State {
			return nil
		}
		return i.requeue(tx, why)
	})
}

// requeue writes an image as Queued, without bytes.
func (i *Image) requeue(tx *state.Tx, why string) error {
	if err := i.move(Queued); err != nil {
		return err
	}
	i.TransferID, i.BlobID, i.Trouble = resource.ID{}, resource.ID{}, why
	i.Bytes, i.VirtualBytes, i.Usable, i.MD5, i.SHA512 = 0, 0, false, "", ""
	if err := end(tx, i.ID, operation.Failed, why); err != nil {
		return err
	}
	return images.Put(tx, i)
}

// purge removes a deleted image's bytes, and then the image.
func (s *Service) purge(ctx context.Context, i *Image) error {
	for _, blob := range []resource.ID{i.BlobID, i.TransferID} {
		if blob.IsZero() {
			continue
		}
		// A transfer that still runs removes its own blob when it finds that the image is gone.
		if err := s.blobs.Remove(ctx, blob); err != nil {
			return fmt.Errorf("remove blob %s: %w", blob, err)
		}
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if now, ok := images.Find(tx, i.ID); !ok || now.State != Deleting {
			return nil
		}
		return images.Delete(tx, i.ID)
	})
}
