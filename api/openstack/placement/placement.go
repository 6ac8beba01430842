// Package placement speaks OpenStack's Placement API with its microversions 1.0 to 1.39. It is a view: its
// resource providers are the hosts, its consumers are the servers, and what is free is what the core's own placement
// counts with. What Placement would let a service write, and what follows from something else here, is refused.
//
// Each noun has a file. query.go reads the query language of lists and candidates.
package placement

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// Options of New.
type Options struct {
	Compute *compute.Service
	Auth    openstack.Verifier
	Prefix  string // where clients find the service; "/placement" when ""
}

// newest is the newest microversion that is honoured in full.
const newest = 39

type server struct {
	compute *compute.Service
	hosts   *host.Service
	prefix  string
}

type object = map[string]any

// New makes the service. It expects its prefix to be stripped.
func New(o Options) *openstack.Service {
	s := &server{compute: o.Compute, hosts: &host.Service{State: o.Compute.State}, prefix: o.Prefix}
	if s.prefix == "" {
		s.prefix = "/placement"
	}
	service := &openstack.Service{Name: "placement", Auth: o.Auth, Errors: writeError,
		Micro: &openstack.Microversions{Type: "placement", Min: openstack.Version{Major: 1}, Max: openstack.Version{Major: 1, Minor: newest}}}
	service.HandleOpen("GET /{$}", s.showVersions)
	for pattern, route := range s.routes() {
		service.Handle(pattern, route.from())
	}
	return service
}

// A route is there from a microversion on.
type route struct {
	since  int
	handle openstack.Handler
}

func (s *server) routes() map[string]route {
	return map[string]route{
		"DELETE /allocations/{consumer}":                       {0, s.deleteAllocations},
		"DELETE /resource_classes/{name}":                      {2, s.deleteClass},
		"DELETE /resource_providers/{uuid}":                    {0, s.deleteProvider},
		"DELETE /resource_providers/{uuid}/inventories":        {5, s.deleteInventories},
		"DELETE /resource_providers/{uuid}/inventories/{name}": {0, s.deleteInventory},
		"DELETE /resource_providers/{uuid}/traits":             {6, s.deleteProviderTraits},
		"DELETE /traits/{name}":                                {6, s.deleteTrait},
		"GET /allocation_candidates":                           {10, s.listCandidates},
		"GET /allocations/{consumer}":                          {0, s.showAllocations},
		"GET /resource_classes":                                {2, s.listClasses},
		"GET /resource_classes/{name}":                         {2, s.showClass},
		"GET /resource_providers":                              {0, s.listProviders},
		"GET /resource_providers/{uuid}":                       {0, s.showProvider},
		"GET /resource_providers/{uuid}/aggregates":            {1, s.showAggregates},
		"GET /resource_providers/{uuid}/allocations":           {0, s.showProviderAllocations},
		"GET /resource_providers/{uuid}/inventories":           {0, s.listInventories},
		"GET /resource_providers/{uuid}/inventories/{name}":    {0, s.showInventory},
		"GET /resource_providers/{uuid}/traits":                {6, s.showProviderTraits},
		"GET /resource_providers/{uuid}/usages":                {0, s.showProviderUsages},
		"GET /traits":                                          {6, s.listTraits},
		"GET /traits/{name}":                                   {6, s.showTrait},
		"GET /usages":                                          {9, s.showUsages},
		"POST /allocations":                                    {13, s.refuseAllocations},
		"POST /reshaper":                                       {30, s.refuseAllocations},
		"POST /resource_classes":                               {2, s.createClass},
		"POST /resource_providers":                             {0, s.createProvider},
		"POST /resource_providers/{uuid}/inventories":          {0, s.createInventory},
		"PUT /allocations/{consumer}":                          {0, s.refuseAllocations},
		"PUT /resource_classes/{name}":                         {2, s.putClass},
		"PUT /resource_providers/{uuid}":                       {0, s.updateProvider},
		"PUT /resource_providers/{uuid}/aggregates":            {1, s.setAggregates},
		"PUT /resource_providers/{uuid}/inventories":           {0, s.setInventories},
		"PUT /resource_providers/{uuid}/inventories/{name}":    {0, s.setInventory},
		"PUT /resource_providers/{uuid}/traits":                {6, s.setProviderTraits},
		"PUT /traits/{name}":                                   {6, s.putTrait},
	}
}

// from lets an older microversion find nothing.
func (x route) from() openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if minorOf(r) < x.since {
			return fault.Errorf(fault.NotFound, "The resource could not be found: it is there from microversion 1.%d on.", x.since)
		}
		return x.handle(w, r)
	}
}

func minorOf(r *http.Request) int { return openstack.MicroversionOf(r.Context()).Minor }

func (s *server) showVersions(w http.ResponseWriter, r *http.Request) error {
	return wire.WriteJSON(w, http.StatusOK, object{"versions": []any{object{"id": "v1.0", "status": "CURRENT",
		"min_version": "1.0", "max_version": fmt.Sprintf("1.%d", newest),
		"links": []any{object{"rel": "self", "href": wire.BaseURL(r) + s.prefix + "/"}}}}})
}

// answer writes a document that was last true, as it is, since a time.
func answer(w http.ResponseWriter, r *http.Request, status int, since time.Time, v any) error {
	stamp(w, r, since)
	return wire.WriteJSON(w, status, v)
}

// done answers without a document.
func done(w http.ResponseWriter, r *http.Request, status int, since time.Time) error {
	stamp(w, r, since)
	w.WriteHeader(status)
	return nil
}

// stamp keeps anybody from keeping the answer, from 1.15 on.
func stamp(w http.ResponseWriter, r *http.Request, since time.Time) {
	if minorOf(r) < 15 {
		return
	}
	w.Header().Set("Last-Modified", since.UTC().Format(http.TimeFormat))
	w.Header().Set("Cache-Control", "no-cache")
}

// now is when what is about nothing in particular was true last.
func (s *server) now() time.Time { return s.compute.State.Now() }

// codes are Placement's for the core's (Placement API, "Errors").
var codes = map[string]string{
	"host-changed":       "placement.concurrent_update",
	"host-in-use":        "placement.resource_provider.inuse",
	"inventory-in-use":   "placement.inventory.inuse",
	"provider-not-found": "placement.resource_provider.not_found",
	"query":              "placement.query.bad_value",
	"query-missing":      "placement.query.missing_value",
	"query-twice":        "placement.query.duplicate_key",
}

func writeError(w http.ResponseWriter, r *http.Request, status int, f *fault.Error) {
	e := object{"status": status, "title": http.StatusText(status), "detail": f.Message, "request_id": wire.RequestID(r.Context())}
	if f.Field != "" && r.ContentLength != 0 {
		e["detail"] = "JSON does not validate: " + f.Message
	}
	if f.Code == "microversion" {
		status = http.StatusNotAcceptable
		e["status"], e["title"] = status, http.StatusText(status)
		e["min_version"], e["max_version"] = "1.0", fmt.Sprintf("1.%d", newest)
	} else if coded(w) {
		e["code"] = "placement.undefined_code"
		if code, ok := codes[f.Code]; ok {
			e["code"] = code
		}
	}
	// The client went away if this fails, and there is nobody left to tell.
	_ = wire.WriteJSON(w, status, object{"errors": []any{e}})
}

// coded reports whether the microversion that was negotiated has error codes. The context that knows it ended with the handler;
// the answer's header still says it.
func coded(w http.ResponseWriter) bool {
	_, text, _ := strings.Cut(w.Header().Get("OpenStack-API-Version"), " ")
	v, ok := openstack.ParseVersion(text)
	return ok && v.AtLeast(1, 23)
}

// bad is a query that cannot be right.
func bad(format string, args ...any) error {
	return fault.Errorf(fault.Invalid, "Invalid query string parameters: "+format, args...).WithCode("query")
}

// ask reads a query of which only some parameters are known.
func ask(r *http.Request, known func(name string) bool) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, bad("they are not well formed")
	}
	for name := range values {
		if !known(name) {
			return nil, bad("Additional properties are not allowed (%.60q was unexpected)", name)
		}
	}
	return values, nil
}

// only knows these parameters.
func only(names ...string) func(string) bool {
	return func(name string) bool { return slices.Contains(names, name) }
}

// last is the value that holds of a parameter that may stand there several times.
func last(values url.Values, name string) string {
	if all := values[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}

func missingProvider(uuid string) error {
	return fault.Errorf(fault.NotFound, "No resource provider with uuid %.60s found", uuid).WithCode("provider-not-found")
}

// uuidOf is the provider that the path names.
func uuidOf(r *http.Request) (resource.ID, error) {
	id, err := resource.ParseID(r.PathValue("uuid"))
	if err != nil {
		return id, missingProvider(r.PathValue("uuid"))
	}
	return id, nil
}

// named says of a host that is not there what Placement says of a provider.
func named(r *http.Request, err error) error {
	if f := fault.From(err); f != nil && f.Kind == fault.NotFound && f.Code == "" {
		return missingProvider(r.PathValue("uuid"))
	}
	return err
}

// provider is the one that the path names.
func (s *server) provider(r *http.Request) (*compute.Provider, error) {
	id, err := uuidOf(r)
	if err != nil {
		if may := s.compute.MayProvide(r.Context()); may != nil {
			return nil, may // who may see none is told so, whatever the path says
		}
		return nil, err
	}
	p, err := s.compute.Provider(r.Context(), id)
	return p, named(r, err)
}
