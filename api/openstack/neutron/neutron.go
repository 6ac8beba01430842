package neutron

import (
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/core/network"
)

// prefix is where the service lies on the shared listener.
const prefix = "/network"

// Options of New.
type Options struct {
	Networks *network.Service
	Auth     openstack.Verifier
}

type server struct {
	networks *network.Service
	shown    []shownResource // for the version document
}

type shownResource struct{ name, collection string }

// A route is one line of the service.
type route struct {
	pattern string
	handle  openstack.Handler
}

// New makes the service. The caller strips the prefix before it hands a request over.
func New(o Options) *openstack.Service {
	s := &server{networks: o.Networks}
	service := &openstack.Service{Name: "network", Auth: o.Auth, Errors: writeError}
	for _, r := range slices.Concat(
		serve(s, s.network()), serve(s, s.subnet()), serve(s, s.port()), serve(s, s.router()), serve(s, s.floatingIP()),
		serve(s, s.forwarding()), serve(s, s.securityGroup()), serve(s, s.securityGroupRule()), serve(s, s.rbacPolicy()),
		serve(s, s.subnetPool()), serve(s, s.addressScope()), serve(s, s.addressGroup()),
		s.actions(), s.quotas(), s.reports(), s.tags(),
	) {
		service.Handle(r.pattern, r.handle)
	}
	for _, r := range s.documents() {
		service.HandleOpen(r.pattern, r.handle)
	}
	return service
}

// documents are what clients ask before they have a token.
func (s *server) documents() []route {
	return []route{
		{"GET /{$}", s.versions},
		{"GET /v2.0", s.resources},
		{"GET /v2.0/{$}", s.resources},
	}
}

func (s *server) versions(w http.ResponseWriter, r *http.Request) error {
	return wire.WriteJSON(w, http.StatusOK, object{"versions": []object{{
		"id": "v2.0", "status": "CURRENT",
		"links": []object{{"rel": "self", "href": wire.BaseURL(r) + prefix + "/v2.0/"}},
	}}})
}

func (s *server) resources(w http.ResponseWriter, r *http.Request) error {
	list := []object{}
	for _, shown := range s.shown {
		list = append(list, object{"name": shown.name, "collection": shown.collection, "links": []object{
			{"rel": "self", "href": wire.BaseURL(r) + prefix + "/v2.0/" + shown.collection}}})
	}
	return wire.WriteJSON(w, http.StatusOK, object{"resources": list})
}
