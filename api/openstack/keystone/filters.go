package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/core/identity"
)

const (
	filterBase = "/v3/OS-EP-FILTER"
	groupBase  = filterBase + "/endpoint_groups"
)

func (s *server) filterRoutes() map[string]openstack.Handler {
	routes := map[string]openstack.Handler{
		"GET " + groupBase:                           s.listEndpointGroups,
		"POST " + groupBase:                          s.createEndpointGroup,
		"GET " + groupBase + "/{group_id}":           s.showEndpointGroup, // and HEAD
		"PATCH " + groupBase + "/{group_id}":         s.updateEndpointGroup,
		"DELETE " + groupBase + "/{group_id}":        s.deleteEndpointGroup,
		"GET " + groupBase + "/{group_id}/endpoints": s.groupEndpoints,
		"GET " + groupBase + "/{group_id}/projects":  s.shownProjects,

		"GET " + filterBase + "/endpoints/{endpoint_id}/projects":      s.shownProjects,
		"GET " + filterBase + "/projects/{project_id}/endpoints":       s.shownEndpoints,
		"GET " + filterBase + "/projects/{project_id}/endpoint_groups": s.listEndpointGroups,
	}
	for _, one := range []string{
		filterBase + "/projects/{project_id}/endpoints/{endpoint_id}",
		groupBase + "/{group_id}/projects/{project_id}",
	} {
		routes["PUT "+one] = s.showEndpointTo
		routes["GET "+one] = s.endpointShownTo // and HEAD
		routes["DELETE "+one] = s.showEndpointTo
	}
	return routes
}

func (s *server) endpointGroupShape(r *http.Request, g *identity.EndpointGroup) shape {
	filters := shape{}
	for name, raw := range g.Filters {
		filters[name] = raw
	}
	return shape{"id": spell(g.ID), "name": g.Name, "description": g.Description, "filters": filters,
		"links": s.self(r, "OS-EP-FILTER/endpoint_groups", spell(g.ID))}
}

func editEndpointGroup(in *fields) func(*identity.EndpointGroup) error {
	return func(g *identity.EndpointGroup) error {
		in.text("name", &g.Name)
		in.note("description", &g.Description)
		if _, given := in.raw["filters"]; given {
			g.Filters = in.sub("filters").raw
		}
		return in.err
	}
}

func (s *server) createEndpointGroup(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "endpoint_group")
	if err != nil {
		return err
	}
	if err := in.require("name", "filters"); err != nil {
		return err
	}
	g := &identity.EndpointGroup{}
	if err := editEndpointGroup(in)(g); err != nil {
		return err
	}
	made, err := s.identity.CreateEndpointGroup(r.Context(), g)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "endpoint_group", s.endpointGroupShape(r, made))
}

// listEndpointGroups lists all, or those of the project in the path.
func (s *server) listEndpointGroups(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.EndpointGroups(r.Context(), optional(r.PathValue("project_id")))
	if err != nil {
		return err
	}
	items := []shape{}
	for _, g := range all {
		items = append(items, s.endpointGroupShape(r, g))
	}
	return s.writeList(w, r, "endpoint_groups", items, "name")
}

func (s *server) showEndpointGroup(w http.ResponseWriter, r *http.Request) error {
	g, err := s.identity.EndpointGroup(r.Context(), pathID(r, "group_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "endpoint_group", s.endpointGroupShape(r, g))
}

func (s *server) updateEndpointGroup(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "endpoint_group")
	if err != nil {
		return err
	}
	g, err := s.identity.UpdateEndpointGroup(r.Context(), pathID(r, "group_id"), editEndpointGroup(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "endpoint_group", s.endpointGroupShape(r, g))
}

func (s *server) deleteEndpointGroup(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteEndpointGroup(r.Context(), pathID(r, "group_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) groupEndpoints(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.EndpointsIn(r.Context(), pathID(r, "group_id"))
	if err != nil {
		return err
	}
	return s.writeEndpoints(w, r, all)
}

func filterOf(r *http.Request) identity.EndpointFilter {
	return identity.EndpointFilter{InProjectID: optional(r.PathValue("project_id")),
		EndpointID: optional(r.PathValue("endpoint_id")), GroupID: optional(r.PathValue("group_id"))}
}

func (s *server) showEndpointTo(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.ShowEndpoint(r.Context(), filterOf(r), r.Method == http.MethodPut); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) endpointShownTo(w http.ResponseWriter, r *http.Request) error {
	f := filterOf(r)
	if err := s.identity.EndpointShown(r.Context(), f); err != nil {
		return err
	}
	if f.GroupID.IsZero() || r.Method == http.MethodHead {
		return noContent(w)
	}
	return write(w, http.StatusOK, "endpoint_group", shape{"endpoint_group_id": spell(f.GroupID), "project_id": spell(f.InProjectID)})
}

func (s *server) shownEndpoints(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.EndpointsShown(r.Context(), pathID(r, "project_id"))
	if err != nil {
		return err
	}
	return s.writeEndpoints(w, r, all)
}

func (s *server) shownProjects(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.ProjectsShown(r.Context(), filterOf(r))
	if err != nil {
		return err
	}
	return s.writeProjects(w, r, all)
}
