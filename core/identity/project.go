package identity

import (
	"context"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Project owns things. A domain is the project at the root of a tree: it owns users and
// groups too, and the projects below it. Meta.ProjectID is the project's own ID.
type Project struct {
	resource.Meta

	DomainID resource.ID // zero: it is a domain
	ParentID resource.ID // zero: it is a domain

	// The owner's wish.
	Description string
	Enabled     bool
	Immutable   *bool // true: it cannot be changed or deleted until this is taken back
	Tags        []string
	Extra       Extra
}

var projects = state.NewTable("project",
	state.Unique("name", func(p *Project) state.Key { return state.KeyOf(p.DomainID, p.Name) }),
	state.Index("parent", func(p *Project) state.Key { return state.KeyOf(p.ParentID) }),
	state.Index("domain", func(p *Project) state.Key { return state.KeyOf(p.DomainID) }),
)

// IsDomain reports whether it is the root of a tree.
func (p *Project) IsDomain() bool { return p.DomainID.IsZero() }

// Domain is the domain that it is, or is in.
func (p *Project) Domain() resource.ID {
	if p.IsDomain() {
		return p.ID
	}
	return p.DomainID
}

func (p *Project) noun() string {
	if p.IsDomain() {
		return "domain"
	}
	return "project"
}

const (
	mostTags = 80
	tagChars = 255
)

func (p *Project) check() error {
	if err := checkName(p.Name, 64); err != nil {
		return err
	}
	if len(p.Tags) > mostTags {
		return fault.InvalidField("tags", "must be at most %d", mostTags)
	}
	seen := map[string]bool{}
	for _, tag := range p.Tags {
		switch {
		case tag == "" || len([]rune(tag)) > tagChars:
			return fault.InvalidField("tags", "must have 1 to %d characters each", tagChars)
		case strings.ContainsAny(tag, "/,"):
			return fault.InvalidField("tags", "must not contain a slash or a comma")
		case seen[tag]:
			return fault.InvalidField("tags", "must be different from each other: %q is there twice", tag)
		}
		seen[tag] = true
	}
	if err := checkTexts(text{"description", p.Description}); err != nil {
		return err
	}
	return p.Extra.check()
}

// FindProject is the project of an ID, whether it is a domain or not, for other domains' rules.
func FindProject(tx *state.Tx, id resource.ID) (*Project, bool) { return projects.Find(tx, id) }

// HasProject reports whether there is such a project.
func HasProject(tx *state.Tx, id resource.ID) bool { return projects.Has(tx, id) }

// HasUser reports whether there is such a user.
func HasUser(tx *state.Tx, id resource.ID) bool { return users.Has(tx, id) }

// Usable reports whether things may be made in a project: it is there, enabled, and so is its domain.
func Usable(tx *state.Tx, projectID resource.ID) bool {
	p, ok := projects.PeekOne(tx, projectID)
	return ok && p.Enabled && !p.IsDomain() && domainEnabled(tx, p.DomainID)
}

func domainEnabled(tx *state.Tx, id resource.ID) bool {
	d, ok := projects.PeekOne(tx, id)
	return ok && d.IsDomain() && d.Enabled
}

// ancestors gives a project's parents, the nearest first and its domain last.
func ancestors(tx *state.Tx, p *Project) []*Project {
	var all []*Project
	for at := p; !at.ParentID.IsZero() && len(all) < 64; {
		parent, ok := projects.PeekOne(tx, at.ParentID)
		if !ok {
			break
		}
		all = append(all, parent)
		at = parent
	}
	return all
}

// descendants gives what is below a project, children before grandchildren.
func descendants(tx *state.Tx, id resource.ID) []*Project {
	all := collect(projects.Each(tx, "parent", state.KeyOf(id)), nil)
	for i := 0; i < len(all); i++ {
		all = slices.AppendSeq(all, projects.Each(tx, "parent", state.KeyOf(all[i].ID)))
	}
	return all
}

// CreateProject makes a project or, when its DomainID is zero, a domain.
func (s *Service) CreateProject(ctx context.Context, p *Project) (*Project, error) {
	if err := mayManage(ctx, p.noun()+".create", p.DomainID); err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return create(ctx, s, projects, func(tx *state.Tx) (*Project, error) {
		made := *p
		made.ID = tx.NewID()
		made.ProjectID = made.ID
		if !made.IsDomain() {
			if err := s.place(tx, &made); err != nil {
				return nil, err
			}
		}
		return &made, nil
	})
}

// place checks where in its tree a new project is to stand.
func (s *Service) place(tx *state.Tx, p *Project) error {
	domain, ok := projects.PeekOne(tx, p.DomainID)
	if !ok || !domain.IsDomain() {
		return notFound("domain", p.DomainID.Hex())
	}
	if p.ParentID.IsZero() {
		p.ParentID = p.DomainID
	}
	parent, ok := projects.PeekOne(tx, p.ParentID)
	switch {
	case !ok:
		return notFound("project", p.ParentID.Hex())
	case parent.Domain() != p.DomainID:
		return fault.InvalidField("parent_id", "must be a project of the same domain")
	case !parent.Enabled:
		return fault.InvalidField("parent_id", "must be an enabled project")
	case 1+len(ancestors(tx, p)) > s.config.MaxDepth:
		return fault.Errorf(fault.Forbidden, "The tree of projects would be deeper than %d.", s.config.MaxDepth)
	}
	return nil
}

// Project gives one project or domain.
func (s *Service) Project(ctx context.Context, id resource.ID, domain bool) (*Project, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	noun := "project"
	if domain {
		noun = "domain"
	}
	p, ok := projects.Find(tx, id)
	if !ok || domain && !p.IsDomain() || leaving(tx, p.DomainID, p.ParentID) {
		return nil, missing(ctx, noun+".get", noun, id.Hex())
	}
	a := ActorOf(ctx)
	if a.ProjectID == id || domain && s.within(tx, a, id) {
		return p, nil
	}
	if a.reads(p.Domain()) || hasAny(tx, a.UserID, id) {
		return p, nil
	}
	return nil, refuse(noun + ".get")
}

// within reports whether the actor's scope is in a domain.
func (s *Service) within(tx *state.Tx, a *Actor, domain resource.ID) bool {
	if a.DomainID == domain {
		return true
	}
	p, ok := projects.PeekOne(tx, a.ProjectID)
	return ok && p.Domain() == domain
}

// A ProjectFilter says which projects are wanted; its zero fields want all.
type ProjectFilter struct {
	Domains  bool // domains, not projects
	DomainID resource.ID
	ParentID resource.ID
	Name     string
}

// Projects lists projects or domains. An admin or reader of a domain sees those of the domain.
func (s *Service) Projects(ctx context.Context, f ProjectFilter) ([]*Project, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	if !a.readsAll() {
		if !a.reads(a.DomainID) {
			return nil, refuse(f.noun() + ".list")
		}
		if f.Domains {
			own, ok := projects.Find(tx, a.DomainID)
			return slices.DeleteFunc([]*Project{own}, func(p *Project) bool { return !ok || !f.keep(p) }), nil
		}
		if !f.DomainID.IsZero() && f.DomainID != a.DomainID {
			return []*Project{}, nil
		}
		f.DomainID = a.DomainID
	}
	index, key := "", state.Key("")
	switch {
	case f.Domains && f.Name != "":
		index, key = "name", state.KeyOf(resource.ID{}, f.Name)
	case f.Domains:
		index, key = "domain", state.KeyOf(resource.ID{})
	case !f.ParentID.IsZero():
		index, key = "parent", state.KeyOf(f.ParentID)
	case !f.DomainID.IsZero() && f.Name != "":
		index, key = "name", state.KeyOf(f.DomainID, f.Name)
	case !f.DomainID.IsZero():
		index, key = "domain", state.KeyOf(f.DomainID)
	}
	return collect(projects.Each(tx, index, key), func(p *Project) bool { return f.keep(p) && !leaving(tx, p.DomainID, p.ParentID) }), nil
}

func (f ProjectFilter) noun() string {
	if f.Domains {
		return "domain"
	}
	return "project"
}

func (f ProjectFilter) keep(p *Project) bool {
	return p.IsDomain() == f.Domains && (f.DomainID.IsZero() || p.DomainID == f.DomainID) &&
		(f.ParentID.IsZero() || p.ParentID == f.ParentID) && (f.Name == "" || p.Name == f.Name)
}

// Shown gives those of some projects that the actor may see: it holds a role there, or reads their domain.
func (s *Service) Shown(ctx context.Context, all []*Project) ([]*Project, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	return slices.DeleteFunc(slices.Clone(all), func(p *Project) bool {
		return a.ProjectID != p.ID && !a.reads(p.Domain()) && !hasAny(tx, a.UserID, p.ID)
	}), nil
}

// Family gives a project's ancestors, nearest first, and all below it, whoever asks: see Shown.
func (s *Service) Family(ctx context.Context, id resource.ID) (above, below []*Project, err error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	p, ok := projects.PeekOne(tx, id)
	if !ok {
		return nil, nil, notFound("project", id.Hex())
	}
	return ancestors(tx, p), descendants(tx, id), nil
}

// UpdateProject changes what the owner may wish. domain says that a domain is meant.
func (s *Service) UpdateProject(ctx context.Context, id resource.ID, domain bool, change func(*Project) error) (*Project, error) {
	if err := s.mayUpdate(ctx, id, domain); err != nil {
		return nil, err
	}
	return editAs(ctx, s, projects, asked(domain), id, func(tx *state.Tx, p *Project) error {
		if err := s.manageProject(ctx, p, domain, "update"); err != nil {
			return err
		}
		was := *p
		if err := change(p); err != nil {
			return err
		}
		if isTrue(was.Immutable) && isTrue(p.Immutable) {
			return immutable(was.noun(), was.ID)
		}
		if err := p.check(); err != nil {
			return err
		}
		switch {
		case p.DomainID != was.DomainID:
			return fault.InvalidField("domain_id", "cannot be changed")
		case p.ParentID != was.ParentID:
			return fault.Errorf(fault.Forbidden, "The parent of a project cannot be changed.")
		case was.Enabled && !p.Enabled && id == DefaultDomain:
			return fault.Errorf(fault.Forbidden, "The default domain cannot be disabled.")
		case was.Enabled && !p.Enabled && !p.IsDomain():
			for child := range projects.Peek(tx, "parent", state.Range{Prefix: state.KeyOf(id)}) {
				if child.Enabled {
					return fault.Errorf(fault.Forbidden, "Project %s cannot be disabled: there are enabled projects below it.", id.Hex())
				}
			}
		case !was.Enabled && p.Enabled && !p.IsDomain():
			if parent, ok := projects.PeekOne(tx, p.ParentID); !ok || !parent.Enabled {
				return fault.Errorf(fault.Forbidden, "Project %s cannot be enabled: its parent is disabled.", id.Hex())
			}
		}
		return nil
	})
}

// mayUpdate asks before the transaction, which a repeated request does not run.
func (s *Service) mayUpdate(ctx context.Context, id resource.ID, domain bool) error {
	tx, err := s.State.View(ctx)
	if err != nil {
		return err
	}
	if p, ok := projects.PeekOne(tx, id); ok {
		return s.manageProject(ctx, p, domain, "update")
	}
	return nil // the transaction says so
}

// manageProject asks whether the actor may change a project that was found in the update.
func (s *Service) manageProject(ctx context.Context, p *Project, domain bool, verb string) error {
	if domain && !p.IsDomain() {
		return missingToChange(ctx, "domain."+verb, "domain", p.ID.Hex())
	}
	if p.IsDomain() {
		return mayManage(ctx, asked(domain)+"."+verb, resource.ID{})
	}
	return mayManage(ctx, asked(domain)+"."+verb, p.DomainID)
}

// asked is what somebody calls the thing, who may not be told what it is.
func asked(domain bool) string {
	if domain {
		return "domain"
	}
	return "project"
}

func isTrue(b *bool) bool { return b != nil && *b }

func immutable(noun string, id resource.ID) error {
	return fault.Errorf(fault.Forbidden, "Cannot change or delete the immutable %s %s.", noun, id.Hex())
}

// EnableTree enables or disables a project and all below it.
func (s *Service) EnableTree(ctx context.Context, id resource.ID, enabled bool) (*Project, error) {
	if err := s.mayUpdate(ctx, id, false); err != nil {
		return nil, err
	}
	return edit(ctx, s, projects, id, func(tx *state.Tx, p *Project) error {
		if err := s.manageProject(ctx, p, false, "update"); err != nil {
			return err
		}
		if p.IsDomain() {
			return fault.Errorf(fault.Forbidden, "A domain cannot be changed together with what is below it.")
		}
		if parent, ok := projects.PeekOne(tx, p.ParentID); enabled && (!ok || !parent.Enabled) {
			return fault.Errorf(fault.Forbidden, "Project %s cannot be enabled: its parent is disabled.", id.Hex())
		}
		p.Enabled = enabled
		for _, below := range descendants(tx, id) {
			below.Enabled = enabled
			if err := projects.Put(tx, below); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteProject deletes a project with what this package keeps for it, or a domain with all
// that is in it. cascade takes the (disabled) projects below along. It is gone at once; what is in a very
// large one follows (see Removal), and can be used no more.
func (s *Service) DeleteProject(ctx context.Context, id resource.ID, domain, cascade bool) error {
	return s.once(ctx, func(tx *state.Tx) error {
		p, ok := projects.Find(tx, id)
		if !ok {
			noun := "project"
			if domain {
				noun = "domain"
			}
			return missingToChange(ctx, noun+".delete", noun, id.Hex())
		}
		if err := s.manageProject(ctx, p, domain, "delete"); err != nil {
			return err
		}
		switch {
		case id == DefaultDomain:
			return fault.Errorf(fault.Forbidden, "The default domain cannot be deleted.")
		case isTrue(p.Immutable):
			return immutable(p.noun(), id)
		case p.IsDomain() && p.Enabled:
			return fault.Errorf(fault.Forbidden, "Cannot delete the enabled domain %s: disable it first.", id.Hex())
		case p.IsDomain():
			return remove(tx, projects, id)
		}
		below := descendants(tx, id)
		if len(below) > 0 && !cascade {
			return fault.Errorf(fault.Forbidden, "Project %s cannot be deleted: there are projects below it.", id.Hex())
		}
		for _, child := range below {
			if child.Enabled || p.Enabled {
				return fault.Errorf(fault.Forbidden, "Project %s cannot be deleted with all below it: disable them first.", id.Hex())
			}
		}
		return remove(tx, projects, id)
	})
}

// deleteEach deletes what an index finds.
func deleteEach[T any](tx *state.Tx, table *state.Table[T], index string, key state.Key) error {
	for _, id := range table.IDs(tx, index, key) {
		if err := table.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}
