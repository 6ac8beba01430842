package keystone

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) catalogRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/regions":                s.listRegions,
		"POST /v3/regions":               s.createRegion,
		"GET /v3/regions/{region_id}":    s.showRegion,
		"PUT /v3/regions/{region_id}":    s.createRegion,
		"PATCH /v3/regions/{region_id}":  s.updateRegion,
		"DELETE /v3/regions/{region_id}": s.deleteRegion,

		"GET /v3/services":                 s.listServices,
		"POST /v3/services":                s.createService,
		"GET /v3/services/{service_id}":    s.showService,
		"PATCH /v3/services/{service_id}":  s.updateService,
		"DELETE /v3/services/{service_id}": s.deleteService,

		"GET /v3/endpoints":                  s.listEndpoints,
		"POST /v3/endpoints":                 s.createEndpoint,
		"GET /v3/endpoints/{endpoint_id}":    s.showEndpoint,
		"PATCH /v3/endpoints/{endpoint_id}":  s.updateEndpoint,
		"DELETE /v3/endpoints/{endpoint_id}": s.deleteEndpoint,
	}
}

func (s *server) regionShape(r *http.Request, region *identity.Region) shape {
	out := shape{"id": region.Name, "description": region.Description, "parent_region_id": textOrNull(region.Parent),
		"links": s.self(r, "regions", region.Name)}
	return withExtra(out, region.Extra)
}

func editRegion(in *fields) func(*identity.Region) error {
	return func(region *identity.Region) error {
		if name := region.Name; in.note("id", &region.Name) && name != "" && region.Name != name {
			return fault.Errorf(fault.Invalid, "The region's ID in the body must be that of the URL.")
		}
		in.note("description", &region.Description)
		in.note("parent_region_id", &region.Parent)
		in.extra(&region.Extra)
		return in.err
	}
}

func (s *server) createRegion(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "region")
	if err != nil {
		return err
	}
	region := &identity.Region{}
	region.Name = r.PathValue("region_id")
	if err := editRegion(in)(region); err != nil {
		return err
	}
	made, err := s.identity.CreateRegion(r.Context(), region)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "region", s.regionShape(r, made))
}

func (s *server) listRegions(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Regions(r.Context())
	if err != nil {
		return err
	}
	items := []shape{}
	for _, region := range all {
		items = append(items, s.regionShape(r, region))
	}
	return s.writeList(w, r, "regions", items, "parent_region_id")
}

func (s *server) showRegion(w http.ResponseWriter, r *http.Request) error {
	region, err := s.identity.Region(r.Context(), r.PathValue("region_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "region", s.regionShape(r, region))
}

func (s *server) updateRegion(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "region")
	if err != nil {
		return err
	}
	region, err := s.identity.UpdateRegion(r.Context(), r.PathValue("region_id"), editRegion(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "region", s.regionShape(r, region))
}

func (s *server) deleteRegion(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteRegion(r.Context(), r.PathValue("region_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) serviceShape(r *http.Request, o *identity.Offer) shape {
	out := shape{"id": spell(o.ID), "name": o.Name, "type": o.Type, "enabled": o.Enabled, "links": s.self(r, "services", spell(o.ID))}
	if o.Description != "" {
		out["description"] = o.Description
	}
	return withExtra(out, o.Extra)
}

func editService(in *fields) func(*identity.Offer) error {
	return func(o *identity.Offer) error {
		in.text("type", &o.Type)
		in.note("name", &o.Name)
		in.note("description", &o.Description)
		in.flag("enabled", &o.Enabled)
		in.extra(&o.Extra)
		return in.err
	}
}

func (s *server) createService(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "service")
	if err != nil {
		return err
	}
	if err := in.require("type"); err != nil {
		return err
	}
	o := &identity.Offer{Enabled: true}
	if err := editService(in)(o); err != nil {
		return err
	}
	made, err := s.identity.CreateOffer(r.Context(), o)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "service", s.serviceShape(r, made))
}

func (s *server) listServices(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Offers(r.Context())
	if err != nil {
		return err
	}
	items := []shape{}
	for _, o := range all {
		items = append(items, s.serviceShape(r, o))
	}
	return s.writeList(w, r, "services", items, "type", "name")
}

func (s *server) showService(w http.ResponseWriter, r *http.Request) error {
	o, err := s.identity.Offer(r.Context(), pathID(r, "service_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "service", s.serviceShape(r, o))
}

func (s *server) updateService(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "service")
	if err != nil {
		return err
	}
	o, err := s.identity.UpdateOffer(r.Context(), pathID(r, "service_id"), editService(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "service", s.serviceShape(r, o))
}

func (s *server) deleteService(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteOffer(r.Context(), pathID(r, "service_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) endpointShape(r *http.Request, e *identity.Endpoint) shape {
	out := shape{
		"id": spell(e.ID), "service_id": spell(e.OfferID), "interface": e.Interface, "url": identity.Resolve(e.URL, wire.BaseURL(r)),
		"region": textOrNull(e.Region), "region_id": textOrNull(e.Region), "enabled": e.Enabled, "links": s.self(r, "endpoints", spell(e.ID)),
	}
	return withExtra(out, e.Extra)
}

func editEndpoint(in *fields) func(*identity.Endpoint) error {
	return func(e *identity.Endpoint) error {
		in.id("service_id", &e.OfferID)
		in.text("interface", &e.Interface)
		in.text("url", &e.URL)
		in.note("region", &e.Region) // the older name of the same
		in.note("region_id", &e.Region)
		in.flag("enabled", &e.Enabled)
		in.extra(&e.Extra)
		if in.err == nil && !absolute(e.URL) {
			in.wrong("url", "a URL")
		}
		return in.err
	}
}

// namesRegion reports whether the older attribute is there: it names a region that is made if need be.
func namesRegion(in *fields) bool {
	old, ok := in.raw["region"]
	return ok && !isNull(old)
}

// absolute reports whether an endpoint's URL is one: what came from us as "/compute" may stay so.
func absolute(text string) bool {
	if text == "" || text[0] == '/' || text[0] == ':' {
		return text != ""
	}
	u, err := url.Parse(stripSubstitutions(text))
	return err == nil && u.Scheme != "" && u.Host != ""
}

func (s *server) createEndpoint(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "endpoint")
	if err != nil {
		return err
	}
	if err := in.require("service_id", "interface", "url"); err != nil {
		return err
	}
	newRegion := namesRegion(in)
	e := &identity.Endpoint{Enabled: true}
	if err := editEndpoint(in)(e); err != nil {
		return err
	}
	made, err := s.identity.CreateEndpoint(r.Context(), e, newRegion)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "endpoint", s.endpointShape(r, made))
}

func (s *server) listEndpoints(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Endpoints(r.Context())
	if err != nil {
		return err
	}
	return s.writeEndpoints(w, r, all)
}

func (s *server) writeEndpoints(w http.ResponseWriter, r *http.Request, all []*identity.Endpoint) error {
	items := []shape{}
	for _, e := range all {
		items = append(items, s.endpointShape(r, e))
	}
	return s.writeList(w, r, "endpoints", items, "interface", "service_id", "region_id", "region")
}

func (s *server) showEndpoint(w http.ResponseWriter, r *http.Request) error {
	e, err := s.identity.Endpoint(r.Context(), pathID(r, "endpoint_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "endpoint", s.endpointShape(r, e))
}

func (s *server) updateEndpoint(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "endpoint")
	if err != nil {
		return err
	}
	e, err := s.identity.UpdateEndpoint(r.Context(), pathID(r, "endpoint_id"), namesRegion(in), editEndpoint(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "endpoint", s.endpointShape(r, e))
}

func (s *server) deleteEndpoint(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteEndpoint(r.Context(), pathID(r, "endpoint_id")); err != nil {
		return err
	}
	return noContent(w)
}

// stripSubstitutions takes out what the catalog fills in, e.g. $(project_id)s, which no URL may hold.
func stripSubstitutions(text string) string {
	for _, open := range []string{"$(", "%("} {
		for {
			before, rest, ok := strings.Cut(text, open)
			if !ok {
				break
			}
			_, after, closed := strings.Cut(rest, ")s")
			if !closed {
				break
			}
			text = before + after
		}
	}
	return text
}
