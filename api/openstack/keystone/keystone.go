// Package keystone speaks the Identity API, version 3. It decides nothing: core/identity does.
package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Options of New.
type Options struct {
	Identity *identity.Service
	Prefix   string // where the service is mounted; "/identity" when ""
}

type server struct {
	identity *identity.Service
	prefix   string
}

// New makes the service. The caller strips the prefix before it hands a request over.
func New(o Options) *openstack.Service {
	if o.Prefix == "" {
		o.Prefix = "/identity"
	}
	s := &server{identity: o.Identity, prefix: o.Prefix}
	svc := &openstack.Service{Name: "identity", Auth: o.Identity, Errors: writeError}
	for pattern, h := range s.open() {
		svc.HandleOpen(pattern, h)
	}
	for _, table := range []map[string]openstack.Handler{
		s.tokenRoutes(), s.projectRoutes(), s.userRoutes(), s.groupRoutes(), s.roleRoutes(), s.assignmentRoutes(),
		s.catalogRoutes(), s.credentialRoutes(), s.applicationRoutes(), s.trustRoutes(), s.filterRoutes(),
		s.documentRoutes(), s.limitRoutes(), s.consumerRoutes(), s.oauthRoutes(), s.configRoutes(),
		s.signatureRoutes(),
	} {
		for pattern, h := range table {
			svc.Handle(pattern, h)
			svc.Handle(pattern+"/{$}", h) // clients put a slash at the end as they like
		}
	}
	return svc
}

func (s *server) open() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /{$}":                          s.versions,
		"GET /v3":                           s.version,
		"GET /v3/{$}":                       s.version,
		"POST /v3/auth/tokens":              s.authenticate,
		"POST /v3/users/{user_id}/password": s.changePassword,
		"POST /v3/OS-OAUTH1/request_token":  s.createRequestToken,
		"POST /v3/OS-OAUTH1/access_token":   s.createAccessToken,
	}
}

// writeError is Keystone's shape of an error (Identity API v3, "Errors").
func writeError(w http.ResponseWriter, r *http.Request, status int, f *fault.Error) {
	w.Header().Set("Vary", "X-Auth-Token")
	_ = wire.WriteJSON(w, status, map[string]any{ // a client that is gone needs no answer
		"error": map[string]any{"code": status, "title": http.StatusText(status), "message": f.Message},
	})
}

// base is the address of the service itself, as this client has reached it.
func (s *server) base(r *http.Request) string { return wire.BaseURL(r) + s.prefix }

func (s *server) versionDocument(r *http.Request) map[string]any {
	return map[string]any{
		"id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
		"links":       []any{map[string]any{"rel": "self", "href": s.base(r) + "/v3/"}},
		"media-types": []any{map[string]any{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}},
	}
}

func (s *server) versions(w http.ResponseWriter, r *http.Request) error {
	return wire.WriteJSON(w, http.StatusMultipleChoices, map[string]any{
		"versions": map[string]any{"values": []any{s.versionDocument(r)}},
	})
}

func (s *server) version(w http.ResponseWriter, r *http.Request) error {
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"version": s.versionDocument(r)})
}
