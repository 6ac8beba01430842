package image

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Member is a project that a shared image is offered to. It may use the image at once; that it
// accepted only puts the image into its lists.
type Member struct {
	ProjectID resource.ID
	Answer    Answer
	CreatedAt time.Time
	UpdatedAt time.Time
}

// An Answer is what a member said to the offer.
type Answer string

const (
	Pending  Answer = "pending"
	Accepted Answer = "accepted"
	Rejected Answer = "rejected"
)

// member finds a project among the members; nil if it is none.
func (i *Image) member(project resource.ID) *Member {
	if project.IsZero() {
		return nil
	}
	for n := range i.Members {
		if i.Members[n].ProjectID == project {
			return &i.Members[n]
		}
	}
	return nil
}

// forget takes a project out of the members.
func (i *Image) forget(project resource.ID) {
	i.Members = slices.DeleteFunc(i.Members, func(m Member) bool { return m.ProjectID == project })
}

// owned reports whether the actor sees an image as its owner does.
func (i *Image) owned(a *identity.Actor) bool { return a.Admin() || a.ProjectID == i.ProjectID }

// Members lists the members that the actor may know of: all for the owner, itself for a member.
func (s *Service) Members(ctx context.Context, id resource.ID) ([]Member, error) {
	i, err := s.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if i.Visibility != Shared {
		return nil, unshared()
	}
	actor := identity.ActorOf(ctx)
	if i.owned(actor) {
		return i.Members, nil
	}
	return []Member{*i.member(actor.ProjectID)}, nil
}

func unshared() error {
	return fault.Errorf(fault.Forbidden, "Only shared images have members.")
}

func noMember(project resource.ID) error { return fault.Missing("Member", project.Hex()) }

// Member gives one of them.
func (s *Service) Member(ctx context.Context, id, project resource.ID) (Member, error) {
	members, err := s.Members(ctx, id)
	if err != nil {
		return Member{}, err
	}
	for _, m := range members {
		if m.ProjectID == project {
			return m, nil
		}
	}
	return Member{}, noMember(project)
}

// Share offers an image to a project.
func (s *Service) Share(ctx context.Context, id, project resource.ID) (Member, error) {
	var m Member
	_, err := s.change(ctx, id, "image.share", func(tx *state.Tx, i *Image) error {
		switch {
		case i.Visibility != Shared:
			return unshared()
		case i.member(project) != nil:
			return fault.Errorf(fault.Exists, "Project %s is a member of image %s already.", project.Hex(), id)
		case len(i.Members) >= maxMembers:
			return fault.Errorf(fault.TooLarge, "The limit has been exceeded on the number of allowed image members for this image. Attempted: %d, Maximum: %d", len(i.Members)+1, maxMembers)
		}
		m = Member{ProjectID: project, Answer: Pending, CreatedAt: tx.Now(), UpdatedAt: tx.Now()}
		i.Members = append(i.Members, m)
		return nil
	})
	return m, err
}

// Unshare takes the offer back.
func (s *Service) Unshare(ctx context.Context, id, project resource.ID) error {
	_, err := s.change(ctx, id, "image.share", func(_ *state.Tx, i *Image) error {
		if i.Visibility != Shared {
			return unshared()
		}
		if i.member(project) == nil {
			return noMember(project)
		}
		i.forget(project)
		return nil
	})
	return err
}

// Answer is the member's own word to the offer; nobody else gives it but an admin.
func (s *Service) Answer(ctx context.Context, id, project resource.ID, answer Answer) (Member, error) {
	var m Member
	_, err := s.change(ctx, id, "image.get", func(tx *state.Tx, i *Image) error {
		actor := identity.ActorOf(ctx)
		if i.Visibility != Shared {
			return unshared()
		}
		found := i.member(project)
		switch {
		case found == nil || !i.owned(actor) && project != actor.ProjectID:
			return noMember(project)
		case project != actor.ProjectID && !actor.Admin(), !actor.Has("member") && !actor.Admin():
			return fault.Errorf(fault.Forbidden, "Only a member of project %s can answer for it.", project.Hex())
		case answer != Pending && answer != Accepted && answer != Rejected:
			return fault.InvalidField("status", "must be one of pending, accepted, rejected")
		}
		found.Answer, found.UpdatedAt = answer, tx.Now()
		m = *found
		return nil
	})
	return m, err
}
