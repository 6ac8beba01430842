package image

import (
	"context"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Task is what the service has to do beside answering. Its steps are for images, and for
// projects that have ended.
func (s *Service) Task() reconcile.Task {
	return reconcile.Task{
		Name: "image",
		All:  func(tx *state.Tx) []resource.ID { return append(images.IDs(tx, "unsettled", ""), ended(tx)...) },
		Touched: func(e state.Event) []resource.ID {
			if i, ok := e.After.(*Image); ok && i.State != Active && i.State != Deactivated {
				return []resource.ID{e.ID}
			}
			if _, ok := e.Before.(*identity.Project); ok && e.After == nil {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			tx := s.State.Latest()
			if images.Has(tx, id) {
				return s.settle(ctx, id)
			}
			if _, there := identity.FindProject(tx, id); there {
				return reconcile.Next{}, nil
			}
			return reconcile.Next{}, s.end(ctx, id)
		},
	}
}

// ended lists the projects that had images here and are no more.
func ended(tx *state.Tx) []resource.ID {
	seen := map[resource.ID]bool{}
	var gone []resource.ID
	for i := range images.Peek(tx, "", state.Range{}) {
		if seen[i.ProjectID] || i.Stray || i.Visibility == Public || i.State == Deleting {
			continue
		}
		seen[i.ProjectID] = true
		if _, there := identity.FindProject(tx, i.ProjectID); !there {
			gone = append(gone, i.ProjectID)
		}
	}
	return gone
}

// end deletes what a project had that is no more, and takes it out of what was shared with it. What an admin
// has made public belongs to everybody, and stays.
func (s *Service) end(ctx context.Context, project resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		for _, id := range images.IDs(tx, "owner", state.KeyOf(project)) {
			i, err := images.Get(tx, id)
			if err != nil {
				return err
			}
			if i.Visibility == Public {
				continue
			}
			if err := i.remove(tx, "The project was deleted."); err != nil {
				return err
			}
		}
		for _, id := range images.IDs(tx, "member", state.KeyOf(project)) {
			i, err := images.Get(tx, id)
			if err != nil {
				return err
			}
			i.forget(project)
			if err := images.Put(tx, i); err != nil {
				return err
			}
		}
		return nil
	})
}

// remove writes an image as one that is being deleted.
func (i *Image) remove(tx *state.Tx, why string) error {
	if err := i.move(Deleting); err != nil {
		return err
	}
	if err := operation.EndAll(tx, i.ID, operation.Cancelled, why); err != nil {
		return err
	}
	return images.Put(tx, i)
}

// Drop takes away an image that another domain has made for itself, unless its owner has said that it is to stay. One that is
// gone is nothing.
func Drop(tx *state.Tx, id resource.ID, why string) error {
	i, ok := images.Find(tx, id)
	if !ok || i.State == Deleting || i.Protected && !i.BlobID.IsZero() {
		return nil
	}
	return i.remove(tx, why)
}
