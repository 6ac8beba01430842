package nova

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// Up to 2.35 Nova speaks for the services that took over images and networks; up to 2.42 for hosts.
// Those who still ask get the answers of that time.

// proxies are the routes of that time.
func (s *server) proxies() map[string]openstack.Handler {
	routes := map[string]openstack.Handler{}
	add := func(last int, handlers map[string]openstack.Handler) {
		for pattern, handle := range handlers {
			routes[pattern] = func(w http.ResponseWriter, r *http.Request) error {
				if err := notAfter(r, last); err != nil {
					return err
				}
				return handle(w, r)
			}
		}
	}
	add(42, map[string]openstack.Handler{"GET /v2.1/os-hosts": s.listHosts, "GET /v2.1/os-hosts/{name}": s.showHost,
		"PUT /v2.1/os-hosts/{name}": s.updateHost, "GET /v2.1/os-hosts/{name}/{verb}": s.powerHost})
	if s.images != nil {
		add(35, map[string]openstack.Handler{
			"GET /v2.1/images": s.listImages, "GET /v2.1/images/detail": s.listImagesDetail, "GET /v2.1/images/{id}": s.showImage,
			"DELETE /v2.1/images/{id}": s.deleteImage,
		})
		add(38, map[string]openstack.Handler{
			"GET /v2.1/images/{id}/metadata": s.listImageMetadata, "POST /v2.1/images/{id}/metadata": s.addImageMetadata,
			"PUT /v2.1/images/{id}/metadata": s.replaceImageMetadata, "GET /v2.1/images/{id}/metadata/{key}": s.showImageMetadata,
			"PUT /v2.1/images/{id}/metadata/{key}": s.putImageMetadata, "DELETE /v2.1/images/{id}/metadata/{key}": s.deleteImageMetadata,
		})
	}
	if s.network != nil {
		add(35, map[string]openstack.Handler{
			"DELETE /v2.1/os-floating-ips/{id}":         s.deleteFloatingIP,
			"DELETE /v2.1/os-security-group-rules/{id}": s.deleteSecurityRule,
			"DELETE /v2.1/os-security-groups/{id}":      s.deleteSecurityGroup,
			"GET /v2.1/os-floating-ip-pools":            s.listFloatingPools,
			"GET /v2.1/os-floating-ips":                 s.listFloatingIPs,
			"GET /v2.1/os-floating-ips/{id}":            s.showFloatingIP,
			"GET /v2.1/os-networks":                     s.listNetworks,
			"GET /v2.1/os-networks/{id}":                s.showNetwork,
			"GET /v2.1/os-security-groups":              s.listSecurityGroups,
			"GET /v2.1/os-security-groups/{id}":         s.showSecurityGroup,
			"GET /v2.1/os-tenant-networks":              s.listTenantNetworks,
			"GET /v2.1/os-tenant-networks/{id}":         s.showTenantNetwork,
			"POST /v2.1/os-floating-ips":                s.createFloatingIP,
			"POST /v2.1/os-security-group-rules":        s.createSecurityRule,
			"POST /v2.1/os-security-groups":             s.createSecurityGroup,
			"PUT /v2.1/os-security-groups/{id}":         s.updateSecurityGroup,
		})
	}
	return routes
}

// oldID reads the ID of a thing that had a number once: anything else is a bad request.
func oldID(r *http.Request, noun string) (resource.ID, error) {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return id, fault.Errorf(fault.NotFound, "%s %s not found.", noun, r.PathValue("id"))
	}
	return id, nil
}
