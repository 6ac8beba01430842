package image

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Operations lists what was done to an image that the actor can see, the newest first.
func (s *Service) Operations(ctx context.Context, id resource.ID) ([]*operation.Operation, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := find(ctx, tx, id, "image.get"); err != nil {
		return nil, err
	}
	return operation.Of(tx, id), nil
}

// Recent lists what was done to images in the whole cloud, for its operator: the newest first, at most max.
func (s *Service) Recent(ctx context.Context, max int) ([]*operation.Operation, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := identity.Allow(ctx, "image.diagnose", resource.Meta{}); err != nil {
		return nil, err
	}
	var found []*operation.Operation
	for o := range operation.Table().Range(tx, "", state.Range{Reverse: true}) {
		if o.TargetKind == images.Kind() {
			found = append(found, o)
		}
		if len(found) == max {
			break
		}
	}
	return found, nil
}

// Operation gives one of them.
func (s *Service) Operation(ctx context.Context, id resource.ID) (*operation.Operation, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := identity.Allow(ctx, "image.diagnose", resource.Meta{}); err != nil {
		return nil, err
	}
	o, err := operation.Get(tx, id)
	if err == nil && o.TargetKind != images.Kind() {
		return nil, fault.Missing("operation", id)
	}
	return o, err
}

// Cancel takes back a transfer or an import: the image waits for its bytes again.
func (s *Service) Cancel(ctx context.Context, tx *state.Tx, o *operation.Operation) error {
	i, err := find(ctx, tx, o.TargetID, "image.upload")
	if err != nil {
		return err
	}
	switch i.State {
	case Receiving, Staging, Importing:
	default:
		return operation.NotCancellable("Nothing of it is under way any more.")
	}
	if err := operation.End(tx, o, operation.Cancelled, "It was cancelled."); err != nil {
		return err
	}
	return i.requeue(tx, "The transfer was cancelled.")
}

// Expire is what happens to an image whose operation has run out of time.
func (s *Service) Expire(tx *state.Tx, o *operation.Operation) error {
	i, ok := images.Find(tx, o.TargetID)
	if !ok {
		return nil
	}
	switch i.State {
	case Receiving, Staging, Importing:
		return i.requeue(tx, "It was not done in the time it is given.")
	}
	return nil
}

// end settles the operation under way on an image.
func end(tx *state.Tx, id resource.ID, outcome operation.Outcome, message string) error {
	if o := operation.Active(tx, id); o != nil {
		return operation.End(tx, o, outcome, message)
	}
	return nil
}
