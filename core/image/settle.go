package image

import (
	"context"
	"fmt"
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
	tx := s.State.Latest()
	i, ok := images.Find(tx, id)
	if !ok {
		return reconcile.Next{}, nil
	}
	s.stop(i)
	switch i.State {
	case Receiving, Staging:
		if s.running(i) {
			return reconcile.Next{After: runningAgain}, nil
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

// running reports whether this process brings the image's bytes in.
func (s *Service) running(i *Image) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.runs {
		if r.image == i.ID && (r.blob.IsZero() || r.blob == i.TransferID) {
			return true
		}
	}
	return false
}

// stop ends the transfers of this process that the image does not want any more.
func (s *Service) stop(i *Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.runs {
		if r.image == i.ID && !r.blob.IsZero() && (r.blob != i.TransferID || i.State == Deleting) {
			r.cancel(errOvertaken)
		}
	}
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
