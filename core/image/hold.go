package image

import (
	"context"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Hold keeps the bytes of every image there is, also of those that are deleted, until the function that it gives is called: who
// copies a moment of the state has the bytes of that moment, too. It is for the cloud itself.
func (s *Service) Hold() (release func()) {
	s.holds.Add(1)
	return func() { s.holds.Add(-1) }
}

// holding reports whether bytes are to stay. Whoever removes some asks right before: what was let go of in the state
// before somebody held it is not theirs.
func (s *Service) holding() bool { return s.holds.Load() > 0 }

// A Stored image is one that has bytes.
type Stored struct {
	ImageID, BlobID resource.ID
	Needed          bool // it is none without them; not so one that is being deleted
}

// StoredAt lists what has bytes at a moment.
func StoredAt(tx *state.Tx) []Stored {
	var all []Stored
	for i := range images.Peek(tx, "", state.Range{}) {
		if !i.BlobID.IsZero() {
			all = append(all, Stored{i.ID, i.BlobID, i.State != Deleting})
		}
	}
	return all
}

// Bytes gives what is stored of an image, by its blob. It is for the cloud itself.
func (s *Service) Bytes(ctx context.Context, blob resource.ID) (Blob, error) {
	return s.blobs.Open(ctx, blob)
}
