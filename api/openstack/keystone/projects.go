package keystone

import (
	"net/http"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) projectRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/projects":                              s.listProjects,
		"POST /v3/projects":                             s.createProject,
		"GET /v3/projects/{project_id}":                 s.showProject,
		"PATCH /v3/projects/{project_id}":               s.updateProject,
		"PATCH /v3/projects/{project_id}/cascade":       s.cascadeProject,
		"DELETE /v3/projects/{project_id}":              s.deleteProject,
		"DELETE /v3/projects/{project_id}/cascade":      s.deleteProject,
		"GET /v3/projects/{project_id}/tags":            s.listTags,
		"PUT /v3/projects/{project_id}/tags":            s.replaceTags,
		"DELETE /v3/projects/{project_id}/tags":         s.clearTags,
		"GET /v3/projects/{project_id}/tags/{value}":    s.showTag,
		"PUT /v3/projects/{project_id}/tags/{value}":    s.addTag,
		"DELETE /v3/projects/{project_id}/tags/{value}": s.removeTag,
		"GET /v3/users/{user_id}/projects":              s.userProjects,

		"GET /v3/domains":                s.listDomains,
		"POST /v3/domains":               s.createDomain,
		"GET /v3/domains/{domain_id}":    s.showDomain,
		"PATCH /v3/domains/{domain_id}":  s.updateDomain,
		"DELETE /v3/domains/{domain_id}": s.deleteDomain,
	}
}

func (s *server) projectShape(r *http.Request, p *identity.Project) shape {
	out := shape{
		"id": spell(p.ID), "name": p.Name, "description": p.Description, "enabled": p.Enabled, "is_domain": p.IsDomain(),
		"domain_id": orNull(p.DomainID), "parent_id": orNull(p.ParentID), "tags": append([]string{}, p.Tags...),
		"options": immutableOption(p.Immutable), "links": s.self(r, "projects", spell(p.ID)),
	}
	return withExtra(out, p.Extra)
}

func (s *server) domainShape(r *http.Request, p *identity.Project) shape {
	out := shape{
		"id": spell(p.ID), "name": p.Name, "description": p.Description, "enabled": p.Enabled,
		"tags": append([]string{}, p.Tags...), "options": immutableOption(p.Immutable), "links": s.self(r, "domains", spell(p.ID)),
	}
	return withExtra(out, p.Extra)
}

func immutableOption(b *bool) shape {
	if b == nil {
		return shape{}
	}
	return shape{"immutable": *b}
}

// editProject reads the attributes that a project and a domain have in common.
func editProject(in *fields) func(*identity.Project) error {
	return func(p *identity.Project) error {
		in.text("name", &p.Name)
		in.note("description", &p.Description)
		in.flag("enabled", &p.Enabled)
		in.texts("tags", &p.Tags)
		options := in.sub("options")
		options.option("immutable", &p.Immutable)
		in.join(options)
		in.extra(&p.Extra)
		return in.err
	}
}

func (s *server) createProject(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "project")
	if err != nil {
		return err
	}
	if err := in.require("name"); err != nil {
		return err
	}
	p := &identity.Project{Enabled: true}
	var domain bool
	in.flag("is_domain", &domain)
	in.id("domain_id", &p.DomainID)
	in.id("parent_id", &p.ParentID)
	if err := editProject(in)(p); err != nil {
		return err
	}
	switch {
	case domain && (!p.DomainID.IsZero() || !p.ParentID.IsZero()):
		return fault.Errorf(fault.Invalid, "A project that acts as a domain cannot have a domain or a parent.")
	case !domain && p.DomainID.IsZero():
		if p.DomainID, err = s.domainOf(r, p.ParentID); err != nil {
			return err
		}
	}
	made, err := s.identity.CreateProject(r.Context(), p)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "project", s.projectShape(r, made))
}

// domainOf is the domain of a new project whose request names none: that of its parent, or
// the caller's own.
func (s *server) domainOf(r *http.Request, parent resource.ID) (resource.ID, error) {
	if !parent.IsZero() {
		p, err := s.identity.Project(r.Context(), parent, false)
		if err != nil {
			return resource.ID{}, err
		}
		return p.Domain(), nil
	}
	return s.callersDomain(r), nil
}

// callersDomain is the domain that the caller's token is for, or is in.
func (s *server) callersDomain(r *http.Request) resource.ID {
	a := identity.ActorOf(r.Context())
	if !a.DomainID.IsZero() {
		return a.DomainID
	}
	if p, err := s.identity.Project(r.Context(), a.ProjectID, false); err == nil {
		return p.Domain()
	}
	return identity.DefaultDomain
}

func (s *server) listProjects(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	domains := query.Has("is_domain") && truth(query.Get("is_domain"))
	all, err := s.identity.Projects(r.Context(), identity.ProjectFilter{
		Domains: domains, DomainID: optional(query.Get("domain_id")), ParentID: optional(query.Get("parent_id")), Name: query.Get("name"),
	})
	if err != nil {
		return err
	}
	return s.writeProjects(w, r, all)
}

func (s *server) writeProjects(w http.ResponseWriter, r *http.Request, all []*identity.Project) error {
	items := []shape{}
	for _, p := range all {
		if taggedAsAsked(p.Tags, r) {
			items = append(items, s.projectShape(r, p))
		}
	}
	return s.writeList(w, r, "projects", items, "name", "enabled", "domain_id", "parent_id", "is_domain")
}

// taggedAsAsked applies the four tag filters (API-SIG guideline "Tags").
func taggedAsAsked(tags []string, r *http.Request) bool {
	query := r.URL.Query()
	has := func(tag string) bool { return slices.Contains(tags, tag) }
	all := func(want []string) bool { return !slices.ContainsFunc(want, func(t string) bool { return !has(t) }) }
	any := func(want []string) bool { return slices.ContainsFunc(want, has) }
	for name, ok := range map[string]func([]string) bool{
		"tags": all, "tags-any": any,
		"not-tags":     func(want []string) bool { return !all(want) },
		"not-tags-any": func(want []string) bool { return !any(want) },
	} {
		if query.Has(name) && !ok(strings.Split(query.Get(name), ",")) {
			return false
		}
	}
	return true
}

func (s *server) showProject(w http.ResponseWriter, r *http.Request) error {
	p, err := s.identity.Project(r.Context(), pathID(r, "project_id"), false)
	if err != nil {
		return err
	}
	out := s.projectShape(r, p)
	query := r.URL.Query()
	above, below, err := s.identity.Family(r.Context(), p.ID)
	if err != nil {
		return err
	}
	switch {
	case query.Has("parents_as_list"):
		if out["parents"], err = s.familyShape(r, above); err != nil {
			return err
		}
	case query.Has("parents_as_ids"):
		out["parents"] = parentIDs(above)
	}
	switch {
	case query.Has("subtree_as_list"):
		if out["subtree"], err = s.familyShape(r, below); err != nil {
			return err
		}
	case query.Has("subtree_as_ids"):
		out["subtree"] = subtreeIDs(below, p.ID)
	}
	return write(w, http.StatusOK, "project", out)
}

// familyShape shows of a project's family what the caller may see; of the others there are IDs alone.
func (s *server) familyShape(r *http.Request, family []*identity.Project) ([]shape, error) {
	shown, err := s.identity.Shown(r.Context(), family)
	items := []shape{}
	for _, p := range shown {
		if !p.IsDomain() {
			items = append(items, shape{"project": s.projectShape(r, p)})
		}
	}
	return items, err
}

// parentIDs nests the ancestors, the nearest outside: {"parent": {"grandparent": {"domain": null}}}.
func parentIDs(above []*identity.Project) any {
	var inner any
	for i := len(above) - 1; i >= 0; i-- {
		inner = shape{spell(above[i].ID): inner}
	}
	return inner
}

func subtreeIDs(below []*identity.Project, of resource.ID) any {
	out := shape{}
	for _, p := range below {
		if p.ParentID == of {
			out[spell(p.ID)] = subtreeIDs(below, p.ID)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func (s *server) updateProject(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "project")
	if err != nil {
		return err
	}
	p, err := s.identity.UpdateProject(r.Context(), pathID(r, "project_id"), false, func(p *identity.Project) error {
		domain := p.IsDomain()
		in.id("domain_id", &p.DomainID)
		in.id("parent_id", &p.ParentID)
		if in.flag("is_domain", &domain); domain != p.IsDomain() {
			return fault.Errorf(fault.Invalid, "Whether a project acts as a domain cannot be changed.")
		}
		return editProject(in)(p)
	})
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "project", s.projectShape(r, p))
}

func (s *server) cascadeProject(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "project")
	if err != nil {
		return err
	}
	var enabled bool
	if !in.flag("enabled", &enabled) || in.err != nil || len(in.raw) > 0 {
		return fault.Errorf(fault.Invalid, "Only enabled can be changed together with all projects below.")
	}
	p, err := s.identity.EnableTree(r.Context(), pathID(r, "project_id"), enabled)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "project", s.projectShape(r, p))
}

func (s *server) deleteProject(w http.ResponseWriter, r *http.Request) error {
	cascade := strings.HasSuffix(r.URL.Path, "/cascade")
	if err := s.identity.DeleteProject(r.Context(), pathID(r, "project_id"), false, cascade); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) listTags(w http.ResponseWriter, r *http.Request) error {
	p, err := s.identity.Project(r.Context(), pathID(r, "project_id"), false)
	if err != nil {
		return err
	}
	return s.writeTags(w, r, p)
}

func (s *server) writeTags(w http.ResponseWriter, r *http.Request, p *identity.Project) error {
	return write(w, http.StatusOK, "tags", append([]string{}, p.Tags...))
}

func (s *server) changeTags(r *http.Request, change func(tags []string) ([]string, error)) (*identity.Project, error) {
	return s.identity.UpdateProject(r.Context(), pathID(r, "project_id"), false, func(p *identity.Project) (err error) {
		p.Tags, err = change(p.Tags)
		return err
	})
}

func (s *server) replaceTags(w http.ResponseWriter, r *http.Request) error {
	var in struct{ Tags *[]string }
	if err := openstack.Decode(r, &in); err != nil {
		return err
	}
	if in.Tags == nil {
		return fault.Errorf(fault.Invalid, "'tags' is a required property")
	}
	p, err := s.changeTags(r, func([]string) ([]string, error) { return *in.Tags, nil })
	if err != nil {
		return err
	}
	return s.writeTags(w, r, p)
}

func (s *server) clearTags(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.changeTags(r, func([]string) ([]string, error) { return nil, nil }); err != nil {
		return err
	}
	return noContent(w)
}

func noTag(value string) error {
	return fault.Errorf(fault.NotFound, "Could not find project tag: %s.", value)
}

func (s *server) showTag(w http.ResponseWriter, r *http.Request) error {
	p, err := s.identity.Project(r.Context(), pathID(r, "project_id"), false)
	if err != nil {
		return err
	}
	if !slices.Contains(p.Tags, r.PathValue("value")) {
		return noTag(r.PathValue("value"))
	}
	return noContent(w)
}

func (s *server) addTag(w http.ResponseWriter, r *http.Request) error {
	value := r.PathValue("value")
	_, err := s.changeTags(r, func(tags []string) ([]string, error) {
		if slices.Contains(tags, value) {
			return tags, nil
		}
		return append(tags, value), nil
	})
	if err != nil {
		return err
	}
	w.Header().Set("Location", s.base(r)+r.URL.EscapedPath())
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *server) removeTag(w http.ResponseWriter, r *http.Request) error {
	value := r.PathValue("value")
	_, err := s.changeTags(r, func(tags []string) ([]string, error) {
		at := slices.Index(tags, value)
		if at < 0 {
			return nil, noTag(value)
		}
		return slices.Delete(tags, at, at+1), nil
	})
	if err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) userProjects(w http.ResponseWriter, r *http.Request) error {
	return s.scopes(w, r, pathID(r, "user_id"), false)
}

// scopes lists the projects or domains in which a user holds a role.
func (s *server) scopes(w http.ResponseWriter, r *http.Request, user resource.ID, domains bool) error {
	all, err := s.identity.ScopesOf(r.Context(), user, domains)
	if err != nil {
		return err
	}
	if !domains {
		return s.writeProjects(w, r, all)
	}
	return s.writeDomains(w, r, all)
}

func (s *server) listDomains(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Projects(r.Context(), identity.ProjectFilter{Domains: true, Name: r.URL.Query().Get("name")})
	if err != nil {
		return err
	}
	return s.writeDomains(w, r, all)
}

func (s *server) writeDomains(w http.ResponseWriter, r *http.Request, all []*identity.Project) error {
	items := []shape{}
	for _, p := range all {
		items = append(items, s.domainShape(r, p))
	}
	return s.writeList(w, r, "domains", items, "name", "enabled")
}

func (s *server) createDomain(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "domain")
	if err != nil {
		return err
	}
	if err := in.require("name"); err != nil {
		return err
	}
	p := &identity.Project{Enabled: true}
	if err := editProject(in)(p); err != nil {
		return err
	}
	made, err := s.identity.CreateProject(r.Context(), p)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "domain", s.domainShape(r, made))
}

func (s *server) showDomain(w http.ResponseWriter, r *http.Request) error {
	p, err := s.identity.Project(r.Context(), pathID(r, "domain_id"), true)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "domain", s.domainShape(r, p))
}

func (s *server) updateDomain(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "domain")
	if err != nil {
		return err
	}
	p, err := s.identity.UpdateProject(r.Context(), pathID(r, "domain_id"), true, editProject(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "domain", s.domainShape(r, p))
}

func (s *server) deleteDomain(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteProject(r.Context(), pathID(r, "domain_id"), true, false); err != nil {
		return err
	}
	return noContent(w)
}
