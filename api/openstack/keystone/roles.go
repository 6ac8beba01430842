package keystone

import (
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) roleRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/roles":                                   s.listRoles,
		"POST /v3/roles":                                  s.createRole,
		"GET /v3/roles/{role_id}":                         s.showRole,
		"PATCH /v3/roles/{role_id}":                       s.updateRole,
		"DELETE /v3/roles/{role_id}":                      s.deleteRole,
		"GET /v3/roles/{role_id}/implies":                 s.listImplied,
		"GET /v3/roles/{role_id}/implies/{implied_id}":    s.showImplied, // and HEAD
		"PUT /v3/roles/{role_id}/implies/{implied_id}":    s.imply,
		"DELETE /v3/roles/{role_id}/implies/{implied_id}": s.unimply,
		"GET /v3/role_inferences":                         s.listInferences,
	}
}

func (s *server) roleShape(r *http.Request, role *identity.Role) shape {
	out := shape{
		"id": spell(role.ID), "name": role.Name, "description": textOrNull(role.Description), "domain_id": orNull(role.DomainID),
		"options": immutableOption(role.Immutable), "links": s.self(r, "roles", spell(role.ID)),
	}
	return withExtra(out, role.Extra)
}

func editRole(in *fields) func(*identity.Role) error {
	return func(role *identity.Role) error {
		in.text("name", &role.Name)
		in.note("description", &role.Description)
		in.id("domain_id", &role.DomainID)
		options := in.sub("options")
		options.option("immutable", &role.Immutable)
		in.join(options)
		in.extra(&role.Extra)
		return in.err
	}
}

func (s *server) createRole(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "role")
	if err != nil {
		return err
	}
	if err := in.require("name"); err != nil {
		return err
	}
	role := &identity.Role{}
	if err := editRole(in)(role); err != nil {
		return err
	}
	made, err := s.identity.CreateRole(r.Context(), role)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "role", s.roleShape(r, made))
}

func (s *server) listRoles(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Roles(r.Context(), optional(r.URL.Query().Get("domain_id")))
	if err != nil {
		return err
	}
	return s.writeRoles(w, r, all)
}

func (s *server) writeRoles(w http.ResponseWriter, r *http.Request, all []*identity.Role) error {
	items := []shape{}
	for _, role := range all {
		items = append(items, s.roleShape(r, role))
	}
	return s.writeList(w, r, "roles", items, "name", "domain_id")
}

// writeRoleOf answers the role of the path if it is one of these.
func (s *server) writeRoleOf(w http.ResponseWriter, r *http.Request, roles []*identity.Role) error {
	id := pathID(r, "role_id")
	at := slices.IndexFunc(roles, func(role *identity.Role) bool { return role.ID == id })
	if at < 0 {
		return fault.Errorf(fault.NotFound, "Could not find role: %s.", r.PathValue("role_id"))
	}
	return write(w, http.StatusOK, "role", s.roleShape(r, roles[at]))
}

func (s *server) showRole(w http.ResponseWriter, r *http.Request) error {
	role, err := s.identity.Role(r.Context(), pathID(r, "role_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "role", s.roleShape(r, role))
}

func (s *server) updateRole(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "role")
	if err != nil {
		return err
	}
	role, err := s.identity.UpdateRole(r.Context(), pathID(r, "role_id"), editRole(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "role", s.roleShape(r, role))
}

func (s *server) deleteRole(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteRole(r.Context(), pathID(r, "role_id")); err != nil {
		return err
	}
	return noContent(w)
}

// briefRole is how a role stands in an inference.
func (s *server) briefRole(r *http.Request, role *identity.Role) shape {
	return shape{"id": spell(role.ID), "name": role.Name, "description": textOrNull(role.Description),
		"domain_id": orNull(role.DomainID), "links": s.self(r, "roles", spell(role.ID))}
}

func (s *server) inferenceShape(r *http.Request, in *identity.Inference) shape {
	implied := []shape{}
	for _, role := range in.Implied {
		implied = append(implied, s.briefRole(r, role))
	}
	return shape{"prior_role": s.briefRole(r, in.Prior), "implies": implied}
}

func (s *server) listImplied(w http.ResponseWriter, r *http.Request) error {
	in, err := s.identity.Inference(r.Context(), pathID(r, "role_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "role_inference", s.inferenceShape(r, in))
}

func (s *server) listInferences(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Inferences(r.Context())
	if err != nil {
		return err
	}
	items := []shape{}
	for _, in := range all {
		items = append(items, s.inferenceShape(r, in))
	}
	return s.writeList(w, r, "role_inferences", items)
}

func (s *server) writeImplied(w http.ResponseWriter, r *http.Request, status int) error {
	pair, err := s.identity.Implied(r.Context(), pathID(r, "role_id"), pathID(r, "implied_id"))
	if err != nil {
		return err
	}
	return write(w, status, "role_inference", shape{"prior_role": s.briefRole(r, pair[0]), "implies": s.briefRole(r, pair[1])})
}

func (s *server) showImplied(w http.ResponseWriter, r *http.Request) error {
	if r.Method == http.MethodHead {
		if _, err := s.identity.Implied(r.Context(), pathID(r, "role_id"), pathID(r, "implied_id")); err != nil {
			return err
		}
		return noContent(w)
	}
	return s.writeImplied(w, r, http.StatusOK)
}

func (s *server) imply(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.Imply(r.Context(), pathID(r, "role_id"), pathID(r, "implied_id")); err != nil {
		return err
	}
	return s.writeImplied(w, r, http.StatusCreated)
}

func (s *server) unimply(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.Unimply(r.Context(), pathID(r, "role_id"), pathID(r, "implied_id")); err != nil {
		return err
	}
	return noContent(w)
}
