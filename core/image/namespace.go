package image

import (
	"context"
	"encoding/json"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Namespace is a part of the vocabulary that images, flavors and the like are described
// with: for people and consoles, who offer its words; nothing here acts upon it.
type Namespace struct {
	resource.Meta // its Name is unique in the whole cloud

	Title       string
	Description string
	Visibility  Visibility // Public or Private
	Protected   bool

	Kinds      []Definition // what its words are for, each with the JSON of how
	Objects    []Definition // groups of properties
	Properties []Definition
	Tags       []Definition
}

// A Definition is one word of a Namespace, and its description as JSON.
type Definition struct {
	Name      string
	Body      json.RawMessage
	CreatedAt time.Time
	UpdatedAt time.Time
}

const (
	maxDefinitions     = 1000
	maxDefinitionBytes = 64 << 10
)

var namespaces = state.NewTable[Namespace]("image-namespace",
	state.Unique("name", func(n *Namespace) state.Key { return state.KeyOf(n.Name) }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"image-namespace.get":    identity.Reader,
	"image-namespace.create": identity.Admin,
	"image-namespace.update": identity.Admin,
	"image-namespace.delete": identity.Admin,
})

func (n *Namespace) check() error {
	if n.Visibility != Public && n.Visibility != Private {
		return fault.InvalidField("visibility", "must be one of public, private")
	}
	if n.Name == "" || len(n.Name) > 80 || len(n.Title) > 80 || len(n.Description) > 500 {
		return fault.Errorf(fault.Invalid, "A namespace must have a name of 1 to 80 bytes, a display name of at most 80 and a description of at most 500.")
	}
	for _, list := range [][]Definition{n.Kinds, n.Objects, n.Properties, n.Tags} {
		seen := map[string]bool{}
		for _, d := range list {
			switch {
			case d.Name == "" || len(d.Name) > 255:
				return fault.Errorf(fault.Invalid, "A definition must have a name of 1 to 255 bytes.")
			case seen[d.Name]:
				return fault.Errorf(fault.Exists, "%s is defined in namespace %s already.", d.Name, n.Name)
			case len(d.Body) > maxDefinitionBytes || len(list) > maxDefinitions:
				return fault.Errorf(fault.TooLarge, "A namespace may have %d definitions of %d bytes of each sort.", maxDefinitions, maxDefinitionBytes)
			}
			seen[d.Name] = true
		}
	}
	return nil
}

func findNamespace(ctx context.Context, tx *state.Tx, name, action string) (*Namespace, error) {
	n, ok := namespaces.Lookup(tx, "name", state.KeyOf(name))
	if !ok {
		return nil, fault.Missing("Metadata definition namespace", name)
	}
	if err := identity.AllowShared(ctx, action, n.Meta, n.Visibility == Public); err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, fault.Missing("Metadata definition namespace", name)
		}
		return nil, err
	}
	return n, nil
}

// Namespaces lists those that the actor can see, in the order of their making.
func (s *Service) Namespaces(ctx context.Context) ([]*Namespace, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	actor := identity.ActorOf(ctx)
	var all []*Namespace
	for n := range namespaces.All(tx) {
		if n.Visibility == Public || n.ProjectID == actor.ProjectID || actor.Admin() {
			all = append(all, n)
		}
	}
	return all, nil
}

// Namespace gives one by its name.
func (s *Service) Namespace(ctx context.Context, name string) (*Namespace, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return findNamespace(ctx, tx, name, "image-namespace.get")
}

// CreateNamespace adds one. Its owner is the actor's project if it names none.
func (s *Service) CreateNamespace(ctx context.Context, n *Namespace) (*Namespace, error) {
	actor := identity.ActorOf(ctx)
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Namespace, error) {
		if err := identity.Allow(ctx, "image-namespace.create", resource.Meta{ProjectID: actor.ProjectID}); err != nil {
			return nil, err
		}
		if _, taken := namespaces.Lookup(tx, "name", state.KeyOf(n.Name)); taken {
			return nil, fault.Errorf(fault.Exists, "The metadata definition namespace %s already exists.", n.Name)
		}
		n.ID = tx.NewID()
		if n.ProjectID.IsZero() {
			n.ProjectID = actor.ProjectID
		}
		for _, list := range [][]Definition{n.Kinds, n.Objects, n.Properties, n.Tags} {
			for at := range list {
				list[at].CreatedAt, list[at].UpdatedAt = tx.Now(), tx.Now()
			}
		}
		if err := n.check(); err != nil {
			return nil, err
		}
		return n, namespaces.Put(tx, n)
	})
}

// UpdateNamespace changes one and what it defines. edit runs in the transaction and must be
// pure; it is given the transaction's time.
func (s *Service) UpdateNamespace(ctx context.Context, name string, edit func(n *Namespace, now time.Time) error) (*Namespace, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Namespace, error) {
		n, err := findNamespace(ctx, tx, name, "image-namespace.update")
		if err != nil {
			return nil, err
		}
		meta := n.Meta
		if err := edit(n, tx.Now()); err != nil {
			return nil, err
		}
		meta.Name, meta.ProjectID = n.Name, n.ProjectID
		n.Meta = meta
		if err := n.check(); err != nil {
			return nil, err
		}
		if other, taken := namespaces.Lookup(tx, "name", state.KeyOf(n.Name)); taken && other.ID != n.ID {
			return nil, fault.Errorf(fault.Exists, "The metadata definition namespace %s already exists.", n.Name)
		}
		return n, namespaces.Put(tx, n)
	})
}

// DeleteNamespace takes one away with all that it defines.
func (s *Service) DeleteNamespace(ctx context.Context, name string) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		n, err := findNamespace(ctx, tx, name, "image-namespace.delete")
		if err != nil {
			return err
		}
		if n.Protected {
			return fault.Errorf(fault.Forbidden, "Metadata definition namespace %s is protected and cannot be deleted.", name)
		}
		return namespaces.Delete(tx, n.ID)
	})
}
