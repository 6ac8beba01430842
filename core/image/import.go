package image

import (
	"context"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// importWithin bounds the judging of staged bytes: it reads a few MiB at most.
const importWithin = 10 * time.Minute

// Import makes an image of what was staged. It returns before that is done.
func (s *Service) Import(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, id, "image.upload", func(tx *state.Tx, i *Image) error {
		if err := i.move(Importing); err != nil {
			return err
		}
		i.Imported = true
		_, err := operation.Begin(tx, "import", images.Kind(), &i.Meta, identity.ActorOf(ctx), importWithin)
		return err
	})
	return err
}

// Copy brings an active image to every store. There is one, so it is done at once; the
// operation is there to be looked at.
func (s *Service) Copy(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, id, "image.copy", func(tx *state.Tx, i *Image) error {
		if i.State != Active {
			return fault.Errorf(fault.Conflict, "Only images with status active can be copied; %s is %s.", id, i.State).WithCode("image-state")
		}
		i.Imported = true
		o, err := operation.Begin(tx, "copy", images.Kind(), &i.Meta, identity.ActorOf(ctx), importWithin)
		if err != nil {
			return err
		}
		return operation.End(tx, o, operation.Succeeded, "")
	})
	return err
}

func (s *Service) importStaged(ctx context.Context, was *Image) error {
	b, err := s.blobs.Open(ctx, was.BlobID)
	if err != nil {
		return fmt.Errorf("open the staged blob of image %s: %w", was.ID, err)
	}
	verdict, refused := judge(was, b, was.Bytes)
	if err := b.Close(); err != nil {
		return fmt.Errorf("close the staged blob of image %s: %w", was.ID, err)
	}
	if refused != nil && fault.From(refused) == nil {
		return refused
	}
	err = s.State.Update(ctx, func(tx *state.Tx) error {
		i, ok := images.Find(tx, was.ID)
		if !ok || i.State != Importing || i.BlobID != was.BlobID {
			return nil
		}
		if refused != nil {
			return i.requeue(tx, trouble(refused))
		}
		if err := i.move(Active); err != nil {
			return err
		}
		i.VirtualBytes, i.Usable = verdict.VirtualBytes, verdict.Usable
		if err := end(tx, i.ID, operation.Succeeded, ""); err != nil {
			return err
		}
		return images.Put(tx, i)
	})
	if err == nil && refused != nil && !s.holding() { // or the next sweep finds it
		return s.blobs.Remove(ctx, was.BlobID)
	}
	return err
}
