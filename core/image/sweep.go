package image

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Sweep removes blobs that no image has: what a crash left behind between the two. Call it
// at the start, and whenever you like. It gives back what it removed. What is older than the cloud it leaves.
func (s *Service) Sweep(ctx context.Context) ([]resource.ID, error) {
	present, err := s.blobs.Present(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the blobs: %w", err)
	}
	// Looked at after the list: whatever was committed before has its image by now, or its transfer runs here.
	held := s.held()
	founded, older := s.config.Founded(s.State.Latest()), 0
	var removed []resource.ID
	for _, id := range present {
		if held[id] || s.holding() {
			continue
		}
		if id.Time().Before(founded) {
			older++
			continue
		}
		if err := s.blobs.Remove(ctx, id); err != nil {
			return removed, fmt.Errorf("remove orphaned blob %s: %w", id, err)
		}
		removed = append(removed, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if older > s.older {
		slog.WarnContext(ctx, "images' bytes that no image has are older than this cloud, and are kept: is the state of the cloud that they are from missing? (unkai audit names them)",
			"blobs", older, "founded", founded)
	}
	s.older = older
	return removed, nil
}

// held is every blob that an image has, or that is being written here.
func (s *Service) held() map[resource.ID]bool {
	held := map[resource.ID]bool{}
	s.mu.Lock()
	for r := range s.runs {
		held[r.blob] = true
	}
	s.mu.Unlock()
	for i := range images.Peek(s.State.Latest(), "", state.Range{}) {
		held[i.BlobID], held[i.TransferID] = true, true
	}
	return held
}

// Audit tells what is not as it should be while nothing is under way: blobs that no image has,
// and images without their blob.
func (s *Service) Audit(ctx context.Context) ([]string, error) {
	tx := s.State.Latest()
	present, err := s.blobs.Present(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the blobs: %w", err)
	}
	held, founded := s.held(), s.config.Founded(tx)
	there := map[resource.ID]bool{}
	var found []string
	for _, id := range present {
		there[id] = true
		switch {
		case held[id]:
		case id.Time().Before(founded):
			found = append(found, fmt.Sprintf("blob %s belongs to no image and is older than this cloud: it is kept until somebody removes it by hand", id))
		default:
			found = append(found, fmt.Sprintf("blob %s belongs to no image", id))
		}
	}
	for i := range images.Peek(tx, "", state.Range{}) {
		switch i.State {
		case Staged, Importing, Active, Deactivated:
			if spread, ok := s.blobs.(Spread); !there[i.BlobID] && !(ok && spread.Elsewhere(ctx, i.BlobID)) {
				found = append(found, fmt.Sprintf("image %s is %s, and its blob %s is not there", i.ID, i.State, i.BlobID))
			}
		case Receiving, Staging:
			if operation.Active(tx, i.ID) == nil {
				found = append(found, fmt.Sprintf("image %s is %s, and no operation says why", i.ID, i.State))
			}
		}
	}
	return found, nil
}
