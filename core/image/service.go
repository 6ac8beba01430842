package image

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Bounds of what an owner may write.
const (
	maxText       = 255
	maxProperties = 128
	maxTags       = 128
	maxMembers    = 128
	maxValue      = 8 << 10 // bytes of one property's value
)

// Config is what an operator may choose, and what others have to say. The zero value is sound.
type Config struct {
	MaxBytes int64         // of one image; 1 TiB when 0
	Within   time.Duration // the longest that an upload may take; 24 hours when 0
	// Limits of a project; nil: those that an operator registered, or else built-in ones.
	Limits func(tx *state.Tx, project resource.ID) Limits
	// InUse reports whether something is still to be made from an image: its bytes then
	// outlive its deletion. nil: nothing ever is.
	InUse func(tx *state.Tx, id resource.ID) bool
	// Founded is when the cloud began. Blobs that are older are another's, whose state may only be missing, and are never swept. nil: none is.
	Founded func(tx *state.Tx) time.Time
}

// A Service answers for images. Its methods may be called from any number of goroutines.
type Service struct {
	State  *state.State
	blobs  Blobs
	config Config
	holds  atomic.Int64 // see Hold

	mu     sync.Mutex
	runs   map[*run]bool         // transfers of this process; guarded by mu
	coming map[resource.ID]int64 // bytes that have come in them, by project; guarded by mu
	older  int                   // blobs that are older than the cloud, of which the log has told; guarded by mu
}

// New makes the service.
func New(s *state.State, blobs Blobs, c Config) *Service {
	if c.MaxBytes == 0 {
		c.MaxBytes = 1 << 40
	}
	if c.Within == 0 {
		c.Within = 24 * time.Hour
	}
	if c.Limits == nil {
		c.Limits = limitsOf
	}
	if c.InUse == nil {
		c.InUse = func(*state.Tx, resource.ID) bool { return false }
	}
	if c.Founded == nil {
		c.Founded = func(*state.Tx) time.Time { return time.Time{} }
	}
	return &Service{State: s, blobs: blobs, config: c, runs: map[*run]bool{}, coming: map[resource.ID]int64{}}
}

// A Request asks for a new image. ID and ProjectID may be left to the service.
type Request struct {
	ID        resource.ID
	ProjectID resource.ID // the owner; the actor's own when zero
	Name      string
	Spec
	Backup *Backup // nil: it is none
}

// Create makes an image that has no bytes yet.
func (s *Service) Create(ctx context.Context, r Request) (*Image, error) {
	id, err := state.Do(ctx, s.State, func(tx *state.Tx) (resource.ID, error) {
		i, err := s.Add(ctx, tx, r)
		if err != nil {
			return resource.ID{}, err
		}
		return i.ID, nil
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, id)
}

// Add is Create in another domain's transaction.
func (s *Service) Add(ctx context.Context, tx *state.Tx, r Request) (*Image, error) {
	i, err := s.add(ctx, tx, r)
	if err != nil {
		return nil, err
	}
	return i, images.Put(tx, i)
}

func (s *Service) add(ctx context.Context, tx *state.Tx, r Request) (*Image, error) {
	actor := identity.ActorOf(ctx)
	i := &Image{Meta: resource.Meta{ID: r.ID, ProjectID: r.ProjectID, Name: r.Name}, Spec: r.Spec, State: Queued, Backup: r.Backup}
	if i.ProjectID.IsZero() {
		i.ProjectID = actor.ProjectID
	}
	if err := identity.Allow(ctx, "image.create", resource.Meta{ProjectID: actor.ProjectID}); err != nil {
		return nil, err
	}
	if i.ProjectID != actor.ProjectID {
		if err := identity.Allow(ctx, "image.give", resource.Meta{ProjectID: actor.ProjectID}); err != nil {
			return nil, err
		}
		i.Stray = stray(tx, i.ProjectID)
	}
	if i.Visibility == "" {
		i.Visibility = Shared
	}
	if err := i.checkVisibility(ctx); err != nil {
		return nil, err
	}
	if err := i.check(); err != nil {
		return nil, err
	}
	if i.ID.IsZero() {
		i.ID = tx.NewID()
	} else if images.Has(tx, i.ID) {
		return nil, fault.Errorf(fault.Exists, "Image ID %s already exists!", i.ID)
	}
	return i, s.roomFor(tx, i.ProjectID, 1, 0)
}

// stray reports whether a project is none of this cloud's.
func stray(tx *state.Tx, project resource.ID) bool {
	_, known := identity.FindProject(tx, project)
	return !known
}

// checkVisibility asks whether the actor may show an image to others so widely.
func (i *Image) checkVisibility(ctx context.Context) error {
	switch i.Visibility {
	case Private, Shared:
		return nil
	case Public:
		return identity.Allow(ctx, "image.publicize", i.Meta)
	case Community:
		return identity.Allow(ctx, "image.communitize", i.Meta)
	}
	return fault.InvalidField("visibility", "must be one of public, private, shared, community")
}

// check holds what the owner wrote against the rules that need no table, and tidies it.
func (i *Image) check() error {
	switch {
	case !text(i.Name):
		return fault.InvalidField("name", "must be text of at most %d characters", maxText)
	case i.Format != "" && !slices.Contains(Formats, i.Format):
		return fault.InvalidField("disk_format", "'%s' is not one of %v", i.Format, Formats)
	case i.Container != "" && !slices.Contains(Containers, i.Container):
		return fault.InvalidField("container_format", "'%s' is not one of %v", i.Container, Containers)
	case i.MinDiskGiB < 0 || i.MinDiskGiB > 1<<31-1:
		return fault.InvalidField("min_disk", "must be between 0 and %d", 1<<31-1)
	case i.MinMemoryMiB < 0 || i.MinMemoryMiB > 1<<31-1:
		return fault.InvalidField("min_ram", "must be between 0 and %d", 1<<31-1)
	case len(i.Properties) > maxProperties:
		return fault.Errorf(fault.TooLarge, "The limit has been exceeded on the number of allowed image properties. Attempted: %d, Maximum: %d", len(i.Properties), maxProperties)
	}
	for key, value := range i.Properties {
		if key == "" || !text(key) || !utf8.ValidString(value) || len(value) > maxValue {
			return fault.Errorf(fault.Invalid, "The image property '%.64s' must have a name of 1 to %d characters and a value of at most %d bytes.", key, maxText, maxValue)
		}
	}
	for _, tag := range i.Tags {
		if tag == "" || !text(tag) {
			return fault.InvalidField("tags", "must each have 1 to %d characters", maxText)
		}
	}
	slices.Sort(i.Tags)
	i.Tags = slices.Compact(i.Tags)
	if len(i.Tags) > maxTags {
		return fault.Errorf(fault.TooLarge, "The limit has been exceeded on the number of allowed image tags. Attempted: %d, Maximum: %d", len(i.Tags), maxTags)
	}
	return nil
}

// text reports whether s is text that may be kept as a name.
func text(s string) bool {
	return utf8.ValidString(s) && utf8.RuneCountInString(s) <= maxText
}

// Get gives an image that the actor can see.
func (s *Service) Get(ctx context.Context, id resource.ID) (*Image, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return find(ctx, tx, id, "image.get")
}

// Update changes what the owner may change: edit is given a copy, and its name, owner and Spec
// count. It runs in the transaction and must be pure.
func (s *Service) Update(ctx context.Context, id resource.ID, edit func(*Image) error) (*Image, error) {
	return s.change(ctx, id, "image.update", func(tx *state.Tx, i *Image) error {
		next := *i
		if err := edit(&next); err != nil {
			return err
		}
		if i.State != Queued && (next.Format != i.Format || next.Container != i.Container) {
			return fault.Errorf(fault.Forbidden, "disk_format and container_format can only be replaced for a queued image.")
		}
		if next.Visibility != i.Visibility {
			if err := next.checkVisibility(ctx); err != nil {
				return err
			}
		}
		if next.ProjectID != i.ProjectID {
			if err := identity.Allow(ctx, "image.give", i.Meta); err != nil {
				return err
			}
			if err := s.roomFor(tx, next.ProjectID, 1, i.Bytes); err != nil {
				return err
			}
			i.Stray = stray(tx, next.ProjectID)
		}
		i.Name, i.ProjectID, i.Spec = next.Name, next.ProjectID, next.Spec
		return i.check()
	})
}

// change runs one transaction on an image that the actor may take the action on.
func (s *Service) change(ctx context.Context, id resource.ID, action string, fn func(*state.Tx, *Image) error) (*Image, error) {
	var i *Image
	err := s.State.Update(ctx, func(tx *state.Tx) error {
		var err error
		if i, err = find(ctx, tx, id, action); err != nil {
			return err
		}
		if err := fn(tx, i); err != nil {
			return err
		}
		return images.Put(tx, i)
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// Deactivate keeps an image from being used and given out.
func (s *Service) Deactivate(ctx context.Context, id resource.ID) error {
	return s.switchTo(ctx, id, Active, Deactivated)
}

// Reactivate takes Deactivate back.
func (s *Service) Reactivate(ctx context.Context, id resource.ID) error {
	return s.switchTo(ctx, id, Deactivated, Active)
}

func (s *Service) switchTo(ctx context.Context, id resource.ID, from, to State) error {
	_, err := s.change(ctx, id, "image.deactivate", func(_ *state.Tx, i *Image) error {
		if i.State == to {
			return nil
		}
		if i.State != from {
			return fault.Errorf(fault.Forbidden, "Image %s is %s; it cannot become %s.", id, i.State, to)
		}
		return i.move(to)
	})
	return err
}

// Delete takes an image away, whatever is being done to it. From then on nobody sees it; its
// bytes go as soon as nothing is to be made from them any more.
func (s *Service) Delete(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, id, "image.delete", func(tx *state.Tx, i *Image) error {
		if i.Protected {
			return fault.Errorf(fault.Forbidden, "Image %s is protected and cannot be deleted.", id)
		}
		return i.remove(tx, "The image was deleted.")
	})
	if err != nil || state.Planning(ctx) {
		return err
	}
	// The reconciler would do the rest, too; this way the room is free when we answer.
	_, err = s.settle(context.WithoutCancel(ctx), id)
	return err
}
