package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) limitRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/registered_limits":               s.listDefaultLimits,
		"POST /v3/registered_limits":              s.createDefaultLimits,
		"GET /v3/registered_limits/{limit_id}":    s.showDefaultLimit,
		"PATCH /v3/registered_limits/{limit_id}":  s.updateDefaultLimit,
		"DELETE /v3/registered_limits/{limit_id}": s.deleteDefaultLimit,
		"GET /v3/limits":                          s.listLimits,
		"POST /v3/limits":                         s.createLimits,
		"GET /v3/limits/model":                    s.limitModel,
		"GET /v3/limits/{limit_id}":               s.showLimit,
		"PATCH /v3/limits/{limit_id}":             s.updateLimit,
		"DELETE /v3/limits/{limit_id}":            s.deleteLimit,
	}
}

func (s *server) defaultLimitShape(r *http.Request, l *identity.DefaultLimit) shape {
	return shape{"id": spell(l.ID), "service_id": spell(l.OfferID), "region_id": textOrNull(l.Region), "resource_name": l.Resource,
		"default_limit": l.Default, "description": textOrNull(l.Description), "links": s.self(r, "registered_limits", spell(l.ID))}
}

func editDefaultLimit(in *fields) func(*identity.DefaultLimit) error {
	return func(l *identity.DefaultLimit) error {
		in.id("service_id", &l.OfferID)
		in.note("region_id", &l.Region)
		in.text("resource_name", &l.Resource)
		in.number("default_limit", &l.Default)
		in.note("description", &l.Description)
		return in.err
	}
}

// many reads {"noun": [{…}, …]}.
func many(r *http.Request, noun string, required ...string) ([]*fields, error) {
	var outer fields
	if err := openstack.Decode(r, &outer.raw); err != nil {
		return nil, err
	}
	if err := outer.require(noun); err != nil {
		return nil, err
	}
	all := outer.list(noun)
	for _, in := range all {
		if err := in.require(required...); err != nil {
			return nil, err
		}
	}
	return all, outer.err
}

func (s *server) createDefaultLimits(w http.ResponseWriter, r *http.Request) error {
	all, err := many(r, "registered_limits", "service_id", "resource_name", "default_limit")
	if err != nil {
		return err
	}
	var want []*identity.DefaultLimit
	for _, in := range all {
		l := &identity.DefaultLimit{}
		if err := editDefaultLimit(in)(l); err != nil {
			return err
		}
		want = append(want, l)
	}
	made, err := s.identity.CreateDefaultLimits(r.Context(), want)
	if err != nil {
		return err
	}
	return s.writeDefaultLimits(w, r, http.StatusCreated, made)
}

func (s *server) writeDefaultLimits(w http.ResponseWriter, r *http.Request, status int, all []*identity.DefaultLimit) error {
	items := []shape{}
	for _, l := range all {
		items = append(items, s.defaultLimitShape(r, l))
	}
	if status == http.StatusOK {
		return s.writeList(w, r, "registered_limits", items, "service_id", "region_id", "resource_name")
	}
	return write(w, status, "registered_limits", items)
}

func (s *server) listDefaultLimits(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.DefaultLimits(r.Context())
	if err != nil {
		return err
	}
	return s.writeDefaultLimits(w, r, http.StatusOK, all)
}

func (s *server) showDefaultLimit(w http.ResponseWriter, r *http.Request) error {
	l, err := s.identity.DefaultLimit(r.Context(), pathID(r, "limit_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "registered_limit", s.defaultLimitShape(r, l))
}

func (s *server) updateDefaultLimit(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "registered_limit")
	if err != nil {
		return err
	}
	l, err := s.identity.UpdateDefaultLimit(r.Context(), pathID(r, "limit_id"), editDefaultLimit(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "registered_limit", s.defaultLimitShape(r, l))
}

func (s *server) deleteDefaultLimit(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteDefaultLimit(r.Context(), pathID(r, "limit_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) limitShape(r *http.Request, l *identity.Limit) shape {
	out := shape{"id": spell(l.ID), "project_id": nil, "domain_id": nil, "service_id": spell(l.OfferID), "region_id": textOrNull(l.Region),
		"resource_name": l.Resource, "resource_limit": l.Most, "description": textOrNull(l.Description), "links": s.self(r, "limits", spell(l.ID))}
	if l.OfDomain {
		out["domain_id"] = spell(l.OwnerID)
	} else {
		out["project_id"] = spell(l.OwnerID)
	}
	return out
}

func (s *server) createLimits(w http.ResponseWriter, r *http.Request) error {
	all, err := many(r, "limits", "service_id", "resource_name", "resource_limit")
	if err != nil {
		return err
	}
	var want []*identity.Limit
	for _, in := range all {
		l := &identity.Limit{}
		var domain resource.ID
		in.id("project_id", &l.OwnerID)
		if in.id("domain_id", &domain); !domain.IsZero() {
			l.OwnerID, l.OfDomain = domain, true
		}
		in.id("service_id", &l.OfferID)
		in.note("region_id", &l.Region)
		in.text("resource_name", &l.Resource)
		in.number("resource_limit", &l.Most)
		in.note("description", &l.Description)
		if l.OwnerID.IsZero() {
			in.wrong("project_id", "the ID of a project, unless domain_id is given")
		}
		if in.err != nil {
			return in.err
		}
		want = append(want, l)
	}
	made, err := s.identity.CreateLimits(r.Context(), want)
	if err != nil {
		return err
	}
	items := []shape{}
	for _, l := range made {
		items = append(items, s.limitShape(r, l))
	}
	return write(w, http.StatusCreated, "limits", items)
}

func (s *server) listLimits(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Limits(r.Context())
	if err != nil {
		return err
	}
	items := []shape{}
	for _, l := range all {
		items = append(items, s.limitShape(r, l))
	}
	return s.writeList(w, r, "limits", items, "service_id", "region_id", "resource_name", "project_id", "domain_id")
}

// limitModel says that a project's limit stands for itself (Identity API v3, "Unified limits", flat model).
func (s *server) limitModel(w http.ResponseWriter, r *http.Request) error {
	return write(w, http.StatusOK, "model", shape{"name": "flat",
		"description": "Limit enforcement and validation does not take project hierarchy into consideration."})
}

func (s *server) showLimit(w http.ResponseWriter, r *http.Request) error {
	l, err := s.identity.Limit(r.Context(), pathID(r, "limit_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "limit", s.limitShape(r, l))
}

func (s *server) updateLimit(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "limit")
	if err != nil {
		return err
	}
	l, err := s.identity.UpdateLimit(r.Context(), pathID(r, "limit_id"), func(l *identity.Limit) error {
		in.number("resource_limit", &l.Most)
		in.note("description", &l.Description)
		return in.err
	})
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "limit", s.limitShape(r, l))
}

func (s *server) deleteLimit(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteLimit(r.Context(), pathID(r, "limit_id")); err != nil {
		return err
	}
	return noContent(w)
}
