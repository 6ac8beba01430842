// Package nova speaks OpenStack's Compute API v2.1 with its microversions. It decides nothing:
// what may be done, and what becomes of it, is package compute's business.
//
// Each noun has a file with its requests' rules and its answers' shape; what a microversion
// changes stands there beside the field that it changes. status.go maps the core's states to Nova's words.
package nova

import (
	"net/http"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
)

// Options of New.
type Options struct {
	Compute *compute.Service
	Auth    openstack.Verifier
	Images  *image.Service   // for the old proxies (below 2.36); nil: they are not there
	Network *network.Service // as above
	Prefix  string           // where clients find the service; "/compute" when ""
	// Consoles is the address of the console pages as clients reach it, without a trailing slash;
	// "" for where the request came in.
	Consoles string
}

// newest is the newest microversion that is honoured in full.
const newest = 93

type server struct {
	compute  *compute.Service
	images   *image.Service
	network  *network.Service
	prefix   string
	consoles string
}

// New makes the service. It expects its prefix to be stripped.
func New(o Options) *openstack.Service {
	s := &server{compute: o.Compute, images: o.Images, network: o.Network, prefix: o.Prefix, consoles: o.Consoles}
	if s.prefix == "" {
		s.prefix = "/compute"
	}
	service := &openstack.Service{Name: "compute", Auth: o.Auth, Errors: writeError,
		Micro: &openstack.Microversions{Type: "compute", Legacy: "X-OpenStack-Nova-API-Version", Min: v2(1), Max: v2(newest)}}
	for _, pattern := range []string{"GET /{$}", "GET /v2", "GET /v2/{$}", "GET /v2.1", "GET /v2.1/{$}"} {
		service.HandleOpen(pattern, s.showVersions)
	}
	for pattern, handle := range s.routes() {
		handle = traced(handle)
		service.Handle(pattern, handle)
		service.Handle(strings.Replace(pattern, " /v2.1/", " /v2/", 1), handle)
	}
	return service
}

// traced puts the request's ID where Nova's own clients look for it.
func traced(handle openstack.Handler) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("X-Compute-Request-Id", wire.RequestID(r.Context()))
		return handle(w, r)
	}
}

// routes are all that needs a token.
func (s *server) routes() map[string]openstack.Handler {
	routes := map[string]openstack.Handler{
		"DELETE /v2.1/flavors/{id}":                             s.deleteFlavor,
		"DELETE /v2.1/flavors/{id}/os-extra_specs/{key}":        s.deleteFlavorExtra,
		"DELETE /v2.1/os-aggregates/{id}":                       s.deleteAggregate,
		"DELETE /v2.1/os-keypairs/{name}":                       s.deleteKeyPair,
		"DELETE /v2.1/os-quota-sets/{id}":                       s.deleteQuota,
		"DELETE /v2.1/os-server-groups/{id}":                    s.deleteGroup,
		"DELETE /v2.1/os-services/{id}":                         s.deleteService,
		"DELETE /v2.1/servers/{id}":                             s.deleteServer,
		"DELETE /v2.1/servers/{id}/metadata/{key}":              s.deleteMetadata,
		"DELETE /v2.1/servers/{id}/migrations/{migration}":      s.deleteServerMigration,
		"DELETE /v2.1/servers/{id}/os-interface/{port}":         s.detachInterface,
		"DELETE /v2.1/servers/{id}/os-server-password":          s.deletePassword,
		"GET /v2.1/servers/{id}/os-server-password":             s.showPassword,
		"DELETE /v2.1/servers/{id}/tags":                        s.deleteTags,
		"DELETE /v2.1/servers/{id}/tags/{tag}":                  s.deleteTag,
		"GET /v2.1/extensions":                                  s.listExtensions,
		"GET /v2.1/extensions/{alias}":                          s.showExtension,
		"GET /v2.1/flavors":                                     s.listFlavors,
		"GET /v2.1/flavors/detail":                              s.listFlavorsDetail,
		"GET /v2.1/flavors/{id}":                                s.showFlavor,
		"GET /v2.1/flavors/{id}/os-extra_specs":                 s.listFlavorExtra,
		"GET /v2.1/flavors/{id}/os-extra_specs/{key}":           s.showFlavorExtra,
		"GET /v2.1/flavors/{id}/os-flavor-access":               s.listFlavorAccess,
		"GET /v2.1/limits":                                      s.showLimits,
		"GET /v2.1/os-aggregates":                               s.listAggregates,
		"GET /v2.1/os-aggregates/{id}":                          s.showAggregate,
		"GET /v2.1/os-availability-zone":                        s.listZones,
		"GET /v2.1/os-availability-zone/detail":                 s.listZonesDetail,
		"GET /v2.1/os-hypervisors":                              s.listHypervisors,
		"GET /v2.1/os-hypervisors/detail":                       s.listHypervisorsDetail,
		"GET /v2.1/os-hypervisors/statistics":                   s.showHypervisorStatistics,
		"GET /v2.1/os-hypervisors/{id}":                         s.showHypervisor,
		"GET /v2.1/os-hypervisors/{id}/{part}":                  s.showHypervisorPart,
		"GET /v2.1/os-instance_usage_audit_log":                 s.listAuditLog,
		"GET /v2.1/os-instance_usage_audit_log/{before}":        s.showAuditLog,
		"GET /v2.1/os-keypairs":                                 s.listKeyPairs,
		"GET /v2.1/os-keypairs/{name}":                          s.showKeyPair,
		"GET /v2.1/os-migrations":                               s.listMigrations,
		"GET /v2.1/os-quota-class-sets/{id}":                    s.showQuotaClass,
		"GET /v2.1/os-quota-sets/{id}":                          s.showQuota,
		"GET /v2.1/os-quota-sets/{id}/{part}":                   s.showQuotaPart,
		"GET /v2.1/os-server-groups":                            s.listGroups,
		"GET /v2.1/os-server-groups/{id}":                       s.showGroup,
		"GET /v2.1/os-services":                                 s.listServices,
		"GET /v2.1/os-simple-tenant-usage":                      s.listUsage,
		"GET /v2.1/os-simple-tenant-usage/{id}":                 s.showUsage,
		"GET /v2.1/servers":                                     s.listServers,
		"GET /v2.1/servers/detail":                              s.listServersDetail,
		"GET /v2.1/servers/{id}":                                s.showServer,
		"GET /v2.1/servers/{id}/diagnostics":                    s.showDiagnostics,
		"GET /v2.1/servers/{id}/ips":                            s.listAddresses,
		"GET /v2.1/servers/{id}/ips/{network}":                  s.showAddresses,
		"GET /v2.1/servers/{id}/metadata":                       s.listMetadata,
		"GET /v2.1/servers/{id}/metadata/{key}":                 s.showMetadata,
		"GET /v2.1/servers/{id}/migrations":                     s.listServerMigrations,
		"GET /v2.1/servers/{id}/migrations/{migration}":         s.showServerMigration,
		"GET /v2.1/servers/{id}/os-instance-actions":            s.listActions,
		"GET /v2.1/servers/{id}/os-instance-actions/{request}":  s.showAction,
		"GET /v2.1/servers/{id}/os-interface":                   s.listInterfaces,
		"GET /v2.1/servers/{id}/os-interface/{port}":            s.showInterface,
		"GET /v2.1/servers/{id}/os-security-groups":             s.listServerGroupsOfSecurity,
		"GET /v2.1/servers/{id}/os-virtual-interfaces":          s.listVirtualInterfaces,
		"GET /v2.1/servers/{id}/os-volume_attachments":          s.listAttachments,
		"GET /v2.1/servers/{id}/os-volume_attachments/{volume}": s.showAttachment,
		"GET /v2.1/servers/{id}/tags":                           s.listTags,
		"GET /v2.1/servers/{id}/tags/{tag}":                     s.showTag,
		"GET /v2.1/servers/{id}/topology":                       s.showTopology,
		"POST /v2.1/flavors":                                    s.createFlavor,
		"POST /v2.1/flavors/{id}/action":                        s.flavorAction,
		"POST /v2.1/flavors/{id}/os-extra_specs":                s.createFlavorExtra,
		"POST /v2.1/os-aggregates":                              s.createAggregate,
		"POST /v2.1/os-aggregates/{id}/action":                  s.aggregateAction,
		"POST /v2.1/os-keypairs":                                s.createKeyPair,
		"POST /v2.1/os-server-groups":                           s.createGroup,
		"POST /v2.1/os-server-external-events":                  s.externalEvents,
		"POST /v2.1/servers":                                    s.createServer,
		"POST /v2.1/servers/{id}/action":                        s.serverAction,
		"POST /v2.1/servers/{id}/metadata":                      s.addMetadata,
		"POST /v2.1/servers/{id}/migrations/{migration}/action": s.serverMigrationAction,
		"POST /v2.1/servers/{id}/os-interface":                  s.attachInterface,
		"POST /v2.1/servers/{id}/remote-consoles":               s.createConsole,
		"PUT /v2.1/flavors/{id}":                                s.updateFlavor,
		"PUT /v2.1/flavors/{id}/os-extra_specs/{key}":           s.updateFlavorExtra,
		"PUT /v2.1/os-aggregates/{id}":                          s.updateAggregate,
		"PUT /v2.1/os-quota-class-sets/{id}":                    s.updateQuotaClass,
		"PUT /v2.1/os-quota-sets/{id}":                          s.updateQuota,
		"PUT /v2.1/os-services/{id}":                            s.updateService,
		"PUT /v2.1/servers/{id}":                                s.updateServer,
		"PUT /v2.1/servers/{id}/metadata":                       s.replaceMetadata,
		"PUT /v2.1/servers/{id}/metadata/{key}":                 s.putMetadata,
		"PUT /v2.1/servers/{id}/tags":                           s.replaceTags,
		"PUT /v2.1/servers/{id}/tags/{tag}":                     s.putTag,
	}
	for pattern, handle := range s.proxies() {
		routes[pattern] = handle
	}
	return routes
}

// codes are Nova's names for statuses in error bodies.
var codes = map[int]string{
	400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod", 406: "notAcceptable", 409: "conflictingRequest",
	410: "gone", 413: "overLimit", 415: "badMediaType", 429: "overLimit", 501: "notImplemented", 503: "serviceUnavailable",
}

// statusOf differs from the usual statuses where Nova does.
func statusOf(status int, f *fault.Error) int {
	switch f.Code {
	case "microversion":
		return http.StatusNotAcceptable
	case "not-implemented":
		return http.StatusNotImplemented
	case "microversion-gone":
		return http.StatusNotFound
	}
	if f.Kind == fault.Exhausted {
		return http.StatusBadRequest
	}
	return status
}

func writeError(w http.ResponseWriter, r *http.Request, status int, f *fault.Error) {
	status = statusOf(status, f)
	if status == http.StatusUnauthorized {
		// keystonemiddleware answers this before Nova is asked.
		_ = wire.WriteJSON(w, status, map[string]any{"error": map[string]any{"code": status, "title": "Unauthorized", "message": "The request you have made requires authentication."}})
		return
	}
	name, ok := codes[status]
	if !ok {
		name = "computeFault"
	}
	// An error here means that the client is gone.
	_ = wire.WriteJSON(w, status, map[string]any{name: map[string]any{"code": status, "message": message(f)}})
}

// quotaWords are Nova's names for what there are quotas of.
var quotaWords = map[string]string{
	compute.QuotaServers: "instances", compute.QuotaCores: "cores", compute.QuotaMemory: "ram", compute.QuotaKeyPairs: "key_pairs",
	compute.QuotaGroups: "server_groups", compute.QuotaGroupMembers: "server_group_members", compute.QuotaMetadata: "metadata_items",
	compute.QuotaFiles: "injected_files", compute.QuotaFileBytes: "injected_file_content_bytes", compute.QuotaFilePath: "injected_file_path_bytes",
}

// message words a fault as Nova would where clients look for that.
func message(f *fault.Error) string {
	switch d := f.Details; f.Code {
	case "quota":
		if d["quota"] == compute.QuotaKeyPairs {
			return "Quota exceeded, too many key pairs."
		}
		word := quotaWords[d["quota"]]
		return "Quota exceeded for " + word + ": Requested " + d["requested"] + ", but already used " + d["used"] + " of " + d["limit"] + " " + word
	case "server-state":
		verb := verbs[d["verb"]]
		if verb == "" {
			verb = d["verb"]
		}
		if task := taskStates[compute.Task(d["task"])]; d["task"] != "" && task != "" {
			return "Cannot '" + verb + "' instance " + d["server"] + " while it is in task_state " + task
		}
		return "Cannot '" + verb + "' instance " + d["server"] + " while it is in vm_state " + vmStates[compute.Stage(d["stage"])]
	}
	return f.Message
}

// verbs are Nova's names, in its messages and in its action logs, for the core's.
var verbs = map[string]string{
	"create": "create", "reboot-hard": "reboot", "attach-interface": "attach_interface", "detach-interface": "detach_interface",
	"resize-revert": "revertResize", "reset": "reset_state", "live-migration": "os-migrateLive",
	"create-image": "createImage", "create-backup": "createBackup", "shelve-offload": "shelveOffload",
}

// showVersions answers what clients discover the service by. v2.0 is v2.1 without microversions, which lets
// unknown fields pass. The list and the one version differ in shape.
func (s *server) showVersions(w http.ResponseWriter, r *http.Request) error {
	base := wire.BaseURL(r) + s.prefix
	old := map[string]any{"id": "v2.0", "status": "SUPPORTED", "version": "", "min_version": "", "updated": "2011-01-21T11:33:21Z",
		"links": []map[string]string{link("self", base+"/v2/")}}
	doc := map[string]any{"id": "v2.1", "status": "CURRENT", "version": v2(newest).String(), "min_version": v2(1).String(),
		"updated": "2013-07-23T11:33:21Z", "links": []map[string]string{link("self", base+"/v2.1/")}}
	if r.URL.Path == "/" {
		return wire.WriteJSON(w, http.StatusOK, map[string]any{"versions": []any{old, doc}})
	}
	media := "application/vnd.openstack.compute+json;version=2.1"
	if legacy(r) {
		doc, media = old, "application/vnd.openstack.compute+json;version=2"
	}
	doc["links"] = append(doc["links"].([]map[string]string), map[string]string{"rel": "describedby", "type": "text/html",
		"href": "http://docs.openstack.org/"})
	doc["media-types"] = []map[string]string{{"base": "application/json", "type": media}}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"version": doc})
}

// legacy reports whether a request is in v2.0.
func legacy(r *http.Request) bool {
	return r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/")
}

// versionOf is the microversion of a request. v2.0 has none: it is 2.1 with a Major of 0, by which rules know it.
func versionOf(r *http.Request) version {
	if legacy(r) {
		return version{Major: 0, Minor: 1}
	}
	return openstack.MicroversionOf(r.Context())
}

// notBefore and notAfter keep a resource to the microversions that have it.
func notBefore(r *http.Request, minor int) error {
	if minorOf(r) < minor {
		return absent()
	}
	return nil
}

func notAfter(r *http.Request, minor int) error {
	if minorOf(r) > minor {
		return absent()
	}
	return nil
}

func absent() error {
	return fault.Errorf(fault.NotFound, "The resource could not be found.").WithCode("microversion-gone")
}

// minorOf is the minor microversion of a request.
func minorOf(r *http.Request) int { return versionOf(r).Minor }

// answer writes a document of maps.
func answer(w http.ResponseWriter, status int, v any) error { return wire.WriteJSON(w, status, v) }

// accepted answers without a body.
func accepted(w http.ResponseWriter, status int) error {
	w.WriteHeader(status)
	return nil
}

func link(rel, href string) map[string]string { return map[string]string{"rel": rel, "href": href} }

// links are those of a thing: with its version, and without.
func (s *server) links(r *http.Request, path string) []map[string]string {
	base := wire.BaseURL(r) + s.prefix
	return []map[string]string{link("self", base+pathOf(r)+path), link("bookmark", base+"/"+path)}
}

// pathOf is the version's part of the path.
func pathOf(r *http.Request) string {
	if legacy(r) {
		return "/v2/"
	}
	return "/v2.1/"
}
