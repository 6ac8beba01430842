package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) groupRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/groups":                               s.listGroups,
		"POST /v3/groups":                              s.createGroup,
		"GET /v3/groups/{group_id}":                    s.showGroup,
		"PATCH /v3/groups/{group_id}":                  s.updateGroup,
		"DELETE /v3/groups/{group_id}":                 s.deleteGroup,
		"GET /v3/groups/{group_id}/users":              s.groupUsers,
		"GET /v3/groups/{group_id}/users/{user_id}":    s.checkMember, // and HEAD
		"PUT /v3/groups/{group_id}/users/{user_id}":    s.addMember,
		"DELETE /v3/groups/{group_id}/users/{user_id}": s.removeMember,
	}
}

func (s *server) groupShape(r *http.Request, g *identity.Group) shape {
	out := shape{
		"id": spell(g.ID), "name": g.Name, "description": g.Description, "domain_id": spell(g.DomainID),
		"links": s.self(r, "groups", spell(g.ID)),
	}
	return withExtra(out, g.Extra)
}

func editGroup(in *fields) func(*identity.Group) error {
	return func(g *identity.Group) error {
		in.text("name", &g.Name)
		in.note("description", &g.Description)
		in.id("domain_id", &g.DomainID)
		in.extra(&g.Extra)
		return in.err
	}
}

func (s *server) createGroup(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "group")
	if err != nil {
		return err
	}
	if err := in.require("name"); err != nil {
		return err
	}
	g := &identity.Group{}
	if err := editGroup(in)(g); err != nil {
		return err
	}
	if g.DomainID.IsZero() {
		g.DomainID = s.callersDomain(r)
	}
	made, err := s.identity.CreateGroup(r.Context(), g)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "group", s.groupShape(r, made))
}

func (s *server) listGroups(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	all, err := s.identity.Groups(r.Context(), identity.GroupFilter{DomainID: optional(query.Get("domain_id")), Name: query.Get("name")})
	if err != nil {
		return err
	}
	items := []shape{}
	for _, g := range all {
		items = append(items, s.groupShape(r, g))
	}
	return s.writeList(w, r, "groups", items, "name", "domain_id")
}

func (s *server) showGroup(w http.ResponseWriter, r *http.Request) error {
	g, err := s.identity.Group(r.Context(), pathID(r, "group_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "group", s.groupShape(r, g))
}

func (s *server) updateGroup(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "group")
	if err != nil {
		return err
	}
	g, err := s.identity.UpdateGroup(r.Context(), pathID(r, "group_id"), editGroup(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "group", s.groupShape(r, g))
}

func (s *server) deleteGroup(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteGroup(r.Context(), pathID(r, "group_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) groupUsers(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Members(r.Context(), pathID(r, "group_id"))
	if err != nil {
		return err
	}
	return s.writeUsers(w, r, all)
}

func (s *server) checkMember(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.IsMember(r.Context(), pathID(r, "group_id"), pathID(r, "user_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) addMember(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.AddMember(r.Context(), pathID(r, "group_id"), pathID(r, "user_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) removeMember(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.RemoveMember(r.Context(), pathID(r, "group_id"), pathID(r, "user_id")); err != nil {
		return err
	}
	return noContent(w)
}
