package image

import (
	"context"
	"fmt"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Download gives an image's bytes to an actor that may have them. The blob is nil when there are none yet.
func (s *Service) Download(ctx context.Context, id resource.ID) (*Image, Blob, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	i, err := find(ctx, tx, id, "image.download")
	if err != nil {
		return nil, nil, err
	}
	switch {
	case i.State == Deactivated && !identity.ActorOf(ctx).Admin():
		return nil, nil, fault.Errorf(fault.Forbidden, "The requested image has been deactivated. Image data download is forbidden.")
	case i.State != Active && i.State != Deactivated:
		return i, nil, nil
	}
	b, err := s.open(ctx, i)
	return i, b, err
}

// Open gives an image's bytes to the cloud itself: to a host that makes a guest from it. An image that was
// deleted while something is still to be made from it can be opened, too.
func (s *Service) Open(ctx context.Context, id resource.ID) (Blob, error) {
	i, ok := images.PeekOne(s.State.Latest(), id)
	if !ok || i.BlobID.IsZero() {
		return nil, missing(id)
	}
	return s.open(ctx, i)
}

// open gives an image's bytes. An image that was just deleted has none any more; one that is still there
// must have them.
func (s *Service) open(ctx context.Context, i *Image) (Blob, error) {
	b, err := s.blobs.Open(ctx, i.BlobID)
	if !fault.Is(err, fault.NotFound) {
		return b, err
	}
	if now, ok := images.PeekOne(s.State.Latest(), i.ID); ok && now.BlobID == i.BlobID && now.State != Deleting {
		return nil, fmt.Errorf("image %s has lost its blob %s", i.ID, i.BlobID)
	}
	return nil, missing(i.ID)
}
