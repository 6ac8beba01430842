// Package glance speaks OpenStack's Image API v2 (https://docs.openstack.org/api-ref/image/v2/).
package glance

import (
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// prefix is where the service lies on the shared listener.
const prefix = "/image"

// Options of New.
type Options struct {
	Images *image.Service
	Auth   openstack.Verifier
}

type server struct {
	images *image.Service
}

// A route is one line of the service.
type route struct {
	pattern string
	handle  openstack.Handler
}

// New makes the service.
func New(o Options) *openstack.Service {
	s := &server{images: o.Images}
	service := &openstack.Service{Name: "image", Auth: o.Auth, Errors: writeError}
	for _, r := range []route{
		{"GET /{$}", versionsChoice},
		{"GET /versions", versions},
		{"GET /versions/{$}", versions},
	} {
		service.HandleOpen(r.pattern, r.handle)
	}
	for _, r := range s.routes() {
		service.Handle(r.pattern, r.handle)
	}
	return service
}

func (s *server) routes() []route {
	return []route{
		{"DELETE /v2/cache", noCache},
		{"DELETE /v2/cache/{id}", noCache},
		{"DELETE /v2/images/{id}", s.deleteImage},
		{"DELETE /v2/images/{id}/members/{member}", s.deleteMember},
		{"DELETE /v2/images/{id}/tags/{tag}", s.deleteTag},
		{"DELETE /v2/metadefs/namespaces/{namespace}", s.deleteNamespace},
		{"DELETE /v2/metadefs/namespaces/{namespace}/{part}", s.clearDefinitions},
		{"DELETE /v2/metadefs/namespaces/{namespace}/{part}/{name}", s.deleteDefinition},
		{"DELETE /v2/stores/{store}/{id}", s.deleteFromStore},
		{"GET /v2/cache", noCache},
		{"GET /v2/images", s.listImages},
		{"GET /v2/images/{id}", s.showImage},
		{"GET /v2/images/{id}/file", s.download},
		{"GET /v2/images/{id}/members", s.listMembers},
		{"GET /v2/images/{id}/members/{member}", s.showMember},
		{"GET /v2/images/{id}/tasks", s.listImageTasks},
		{"GET /v2/info/import", s.importInfo},
		{"GET /v2/info/stores", s.stores},
		{"GET /v2/info/stores/detail", s.storesDetail},
		{"GET /v2/info/usage", s.usage},
		{"GET /v2/metadefs/namespaces", s.listNamespaces},
		{"GET /v2/metadefs/namespaces/{namespace}", s.showNamespace},
		{"GET /v2/metadefs/namespaces/{namespace}/{part}", s.listDefinitions},
		{"GET /v2/metadefs/namespaces/{namespace}/{part}/{name}", s.showDefinition},
		{"GET /v2/metadefs/resource_types", s.listResourceTypes},
		{"GET /v2/schemas/{name...}", s.schema},
		{"GET /v2/tasks", s.listTasks},
		{"GET /v2/tasks/{id}", s.showTask},
		{"PATCH /v2/images/{id}", s.updateImage},
		{"POST /v2/images", s.createImage},
		{"POST /v2/images/{id}/actions/deactivate", s.deactivate},
		{"POST /v2/images/{id}/actions/reactivate", s.reactivate},
		{"POST /v2/images/{id}/import", s.importImage},
		{"POST /v2/images/{id}/members", s.createMember},
		{"POST /v2/metadefs/namespaces", s.createNamespace},
		{"POST /v2/metadefs/namespaces/{namespace}/{part}", s.createDefinition},
		{"POST /v2/metadefs/namespaces/{namespace}/{part}/{name}", s.createTagDefinition},
		{"PUT /v2/cache/{id}", noCache},
		{"PUT /v2/images/{id}/file", s.upload},
		{"PUT /v2/images/{id}/members/{member}", s.updateMember},
		{"PUT /v2/images/{id}/stage", s.stage},
		{"PUT /v2/images/{id}/tags/{tag}", s.addTag},
		{"PUT /v2/metadefs/namespaces/{namespace}", s.updateNamespace},
		{"PUT /v2/metadefs/namespaces/{namespace}/{part}/{name}", s.updateDefinition},
	}
}

// writeError writes an error as WebOb does for Glance: JSON for who asks for it, else a page, from
// which the clients take the text.
func writeError(w http.ResponseWriter, r *http.Request, status int, f *fault.Error) {
	switch {
	case f.Code == "media-type":
		status = http.StatusUnsupportedMediaType
	case f.Kind == fault.OverQuota || f.Kind == fault.Exhausted:
		status = http.StatusRequestEntityTooLarge
	}
	title := http.StatusText(status)
	code := statusLine(status)
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		// The client went away if this fails, and there is nobody left to tell.
		_ = wire.WriteJSON(w, status, map[string]string{"message": f.Message, "code": code, "title": title})
		return
	}
	page := "<html>\n <head>\n  <title>" + code + "</title>\n </head>\n <body>\n  <h1>" + code + "</h1>\n  " +
		html.EscapeString(f.Message) + "<br /><br />\n\n\n </body>\n</html>"
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(page))
}

// imageID reads the image's ID from the path. What is no UUID names no image.
func imageID(r *http.Request) (resource.ID, error) {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return id, fault.Missing("Image", r.PathValue("id"))
	}
	return id, nil
}

// stamp is Glance's spelling of a time.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func statusLine(status int) string {
	return strconv.Itoa(status) + " " + http.StatusText(status)
}

func noContent(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}
