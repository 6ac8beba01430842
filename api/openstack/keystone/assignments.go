package keystone

import (
	"net/http"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

// assignmentRoutes are the same four verbs in every combination of holder, scope and inheritance.
func (s *server) assignmentRoutes() map[string]openstack.Handler {
	routes := map[string]openstack.Handler{"GET /v3/role_assignments": s.listHoldings}
	for _, holder := range []string{"users/{user_id}", "groups/{group_id}"} {
		for _, base := range []string{
			"/v3/projects/{project_id}/" + holder + "/roles", "/v3/domains/{domain_id}/" + holder + "/roles", "/v3/system/" + holder + "/roles",
			"/v3/OS-INHERIT/projects/{project_id}/" + holder + "/roles", "/v3/OS-INHERIT/domains/{domain_id}/" + holder + "/roles",
		} {
			one, list := base+"/{role_id}", base
			if strings.Contains(base, "OS-INHERIT") {
				one, list = one+"/inherited_to_projects", list+"/inherited_to_projects"
			}
			routes["PUT "+one] = s.grant
			routes["GET "+one] = s.granted // and HEAD
			routes["DELETE "+one] = s.revoke
			routes["GET "+list] = s.grants
		}
	}
	return routes
}

// assignmentOf reads an assignment from the path.
func assignmentOf(r *http.Request) identity.Assignment {
	a := identity.Assignment{
		HolderID:  optional(r.PathValue("user_id")),
		RoleID:    optional(r.PathValue("role_id")),
		Inherited: strings.HasPrefix(r.URL.Path, "/v3/OS-INHERIT/"),
		Scope:     identity.Scope{ProjectID: optional(r.PathValue("project_id")), DomainID: optional(r.PathValue("domain_id"))},
	}
	a.Scope.System = a.Scope == identity.Scope{}
	if group := r.PathValue("group_id"); group != "" {
		a.HolderID, a.OfGroup = idOf(group), true
	}
	return a
}

func (s *server) grant(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.Grant(r.Context(), assignmentOf(r)); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) revoke(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.Revoke(r.Context(), assignmentOf(r)); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) granted(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.Granted(r.Context(), assignmentOf(r)); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) grants(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Grants(r.Context(), assignmentOf(r))
	if err != nil {
		return err
	}
	return s.writeRoles(w, r, all)
}

// listHoldings is GET /v3/role_assignments.
func (s *server) listHoldings(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	flag := func(name string) bool { return query.Has(name) && truth(query.Get(name)) }
	f := identity.HoldingFilter{
		UserID: optional(query.Get("user.id")), GroupID: optional(query.Get("group.id")), RoleID: optional(query.Get("role.id")),
		Scope:     identity.Scope{ProjectID: optional(query.Get("scope.project.id")), DomainID: optional(query.Get("scope.domain.id"))},
		Effective: flag("effective"), Subtree: flag("include_subtree"),
	}
	scopes := 0
	for _, name := range []string{"scope.project.id", "scope.domain.id", "scope.system"} {
		if query.Get(name) != "" {
			scopes++
		}
	}
	f.Scope.System = query.Get("scope.system") != ""
	if inherited := query.Get("scope.OS-INHERIT:inherited_to"); inherited != "" {
		if inherited != "projects" {
			return fault.Errorf(fault.Invalid, "scope.OS-INHERIT:inherited_to must be projects.")
		}
		yes := true
		f.Inherited = &yes
	}
	switch {
	case scopes > 1:
		return fault.Errorf(fault.Invalid, "Specify a domain, a project or the system, not more than one of them.")
	case !f.UserID.IsZero() && !f.GroupID.IsZero():
		return fault.Errorf(fault.Invalid, "Specify a user or a group, not both.")
	case f.Effective && !f.GroupID.IsZero():
		return fault.Errorf(fault.Invalid, "Combining effective and group filter will always result in an empty list.")
	case f.Effective && isSet(f.Inherited) && !f.Scope.DomainID.IsZero():
		return fault.Errorf(fault.Invalid, "Combining effective, domain and inherited filters will always result in an empty list.")
	case f.Subtree && f.Scope.ProjectID.IsZero():
		return fault.Errorf(fault.Invalid, "scope.project.id must be specified if include_subtree is also specified.")
	}
	all, err := s.identity.Holdings(r.Context(), f)
	if err != nil {
		return err
	}
	shower := &holdingShower{server: s, r: r, names: flag("include_names"), seen: map[resource.ID]shape{}}
	items := []shape{}
	for _, h := range all {
		items = append(items, shower.shape(h))
	}
	return s.writeList(w, r, "role_assignments", items)
}

func isSet(b *bool) bool { return b != nil && *b }

// holdingShower writes assignments, with names if they are wanted.
type holdingShower struct {
	*server
	r     *http.Request
	names bool
	seen  map[resource.ID]shape
}

func (x *holdingShower) shape(h identity.Holding) shape {
	holder, scope := shape{"id": spell(h.UserID)}, shape{}
	noun, scopePath := "user", ""
	if !h.GroupID.IsZero() {
		noun, holder = "group", shape{"id": spell(h.GroupID)}
	}
	out := shape{"role": x.named("role", h.RoleID, shape{"id": spell(h.RoleID)}), noun: x.named(noun, idOf(holder["id"].(string)), holder), "scope": scope}
	at := h.Scope
	if h.From != (identity.Scope{}) {
		at = h.From
	}
	switch {
	case h.Scope.System:
		scope["system"] = shape{"all": true}
	case !h.Scope.DomainID.IsZero():
		scope["domain"] = x.named("domain", h.Scope.DomainID, shape{"id": spell(h.Scope.DomainID)})
	default:
		scope["project"] = x.named("project", h.Scope.ProjectID, shape{"id": spell(h.Scope.ProjectID)})
	}
	switch {
	case at.System:
		scopePath = "system"
	case !at.DomainID.IsZero():
		scopePath = "domains/" + spell(at.DomainID)
	default:
		scopePath = "projects/" + spell(at.ProjectID)
	}
	role, path := h.RoleID, scopePath+"/"+noun+"s/"+holder["id"].(string)+"/roles/"
	if !h.PriorRoleID.IsZero() {
		role = h.PriorRoleID
	}
	if !h.MemberOf.IsZero() {
		path = scopePath + "/groups/" + spell(h.MemberOf) + "/roles/"
	}
	base := x.base(x.r) + "/v3/"
	links := shape{"assignment": base + path + spell(role)}
	if h.Inherited || h.From != (identity.Scope{}) {
		scope["OS-INHERIT:inherited_to"] = "projects"
		links["assignment"] = base + "OS-INHERIT/" + path + spell(role) + "/inherited_to_projects"
	}
	if !h.MemberOf.IsZero() {
		links["membership"] = base + "groups/" + spell(h.MemberOf) + "/users/" + spell(h.UserID)
	}
	if !h.PriorRoleID.IsZero() {
		links["prior_role"] = base + "prior_role/" + spell(h.PriorRoleID) + "/implies/" + spell(h.RoleID)
	}
	out["links"] = links
	return out
}

// named adds the name, and the domain's, to a reference.
func (x *holdingShower) named(noun string, id resource.ID, ref shape) shape {
	if !x.names {
		return ref
	}
	if old, ok := x.seen[id]; ok {
		return old
	}
	name, domain := x.identity.NameOf(x.r.Context(), noun, id)
	ref["name"] = name
	if noun != "domain" && !domain.IsZero() {
		domainName, _ := x.identity.NameOf(x.r.Context(), "domain", domain)
		ref["domain"] = shape{"id": spell(domain), "name": domainName}
	}
	x.seen[id] = ref
	return ref
}
