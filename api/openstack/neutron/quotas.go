package neutron

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// quotaWords are Neutron's names of what quotas bound.
var quotaWords = map[string]string{
	"network": "network", "subnet": "subnet", "port": "port", "router": "router", "floating-address": "floatingip",
	"security-group": "security_group", "security-group-rule": "security_group_rule", "subnet-pool": "subnetpool",
	"share": "rbac_policy",
}

func (s *server) quotas() []route {
	return []route{
		{"DELETE /v2.0/quotas/{id}", s.resetQuota},
		{"GET /v2.0/quotas", s.listQuotas},
		{"GET /v2.0/quotas/{id}", s.showQuota},
		{"GET /v2.0/quotas/{id}/default", s.defaultQuota},
		{"GET /v2.0/quotas/{id}/details", s.quotaDetails},
		{"GET /v2.0/quotas/{id}/details.json", s.quotaDetails},
		{"GET /v2.0/quotas/tenant", s.tenant},
		{"GET /v2.0/quotas/project", s.tenant},
		{"PUT /v2.0/quotas/{id}", s.setQuota},
	}
}

// quotaProject is the project in the path. Projects are not Neutron's: any ID will do.
func quotaProject(r *http.Request) (resource.ID, error) {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return id, fault.Errorf(fault.NotFound, "Quota for tenant %s could not be found.", r.PathValue("id")).WithCode("quota-not-found")
	}
	return id, nil
}

func limitsShape(usage map[string]network.Use) object {
	o := object{}
	for noun, use := range usage {
		o[quotaWords[noun]] = use.Limit
	}
	return o
}

func (s *server) listQuotas(w http.ResponseWriter, r *http.Request) error {
	q, err := openstack.List(r, 0)
	if err != nil {
		return err
	}
	page, err := s.networks.Quotas(r.Context(), query.List{Limit: q.Limit, Marker: q.Marker})
	if err != nil {
		return err
	}
	list := make([]object, len(page.Items))
	for i, quota := range page.Items {
		usage, err := s.networks.Quota(r.Context(), quota.ID)
		if err != nil {
			return err
		}
		list[i] = limitsShape(usage)
		list[i]["project_id"], list[i]["tenant_id"] = projectText(quota.ID), projectText(quota.ID)
	}
	return wire.WriteJSON(w, http.StatusOK, object{"quotas": list})
}

func (s *server) showQuota(w http.ResponseWriter, r *http.Request) error {
	project, err := quotaProject(r)
	if err != nil {
		return err
	}
	return s.writeQuota(w, r, project)
}

func (s *server) writeQuota(w http.ResponseWriter, r *http.Request, project resource.ID) error {
	usage, err := s.networks.Quota(r.Context(), project)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, object{"quota": limitsShape(usage)})
}

func (s *server) quotaDetails(w http.ResponseWriter, r *http.Request) error {
	project, err := quotaProject(r)
	if err != nil {
		return err
	}
	usage, err := s.networks.Quota(r.Context(), project)
	if err != nil {
		return err
	}
	o := object{}
	for noun, use := range usage {
		// Nothing is ever reserved: what is checked is written in the same transaction.
		o[quotaWords[noun]] = object{"used": use.Used, "limit": use.Limit, "reserved": 0}
	}
	return wire.WriteJSON(w, http.StatusOK, object{"quota": o})
}

func (s *server) defaultQuota(w http.ResponseWriter, r *http.Request) error {
	if _, err := quotaProject(r); err != nil {
		return err
	}
	o := object{}
	for noun, limit := range network.DefaultLimits() {
		o[quotaWords[noun]] = limit
	}
	return wire.WriteJSON(w, http.StatusOK, object{"quota": o})
}

// tenant tells who asks, as a project.
func (s *server) tenant(w http.ResponseWriter, r *http.Request) error {
	id := projectText(identity.ActorOf(r.Context()).ProjectID)
	return wire.WriteJSON(w, http.StatusOK, object{"tenant": object{"tenant_id": id, "project_id": id}})
}

func (s *server) setQuota(w http.ResponseWriter, r *http.Request) error {
	project, err := quotaProject(r)
	if err != nil {
		return err
	}
	outer, err := decode(r)
	if err != nil {
		return err
	}
	body, err := (&kind[network.Quota]{name: "quota"}).inner(outer)
	if err != nil {
		return err
	}
	nouns := map[string]string{}
	for noun, word := range quotaWords {
		nouns[word] = noun
	}
	limits := map[string]int{}
	for word, raw := range body {
		noun, ok := nouns[word]
		if !ok {
			if word == "tenant_id" || word == "project_id" || word == "force" || word == "check_limit" {
				continue
			}
			return bad("HTTPBadRequest", "Unrecognized attribute(s) '%s'", word)
		}
		if limits[noun], err = readInt(word, raw); err != nil {
			return err
		}
		if limits[noun] < network.Unlimited {
			return invalid(word, "'%d' must be at least -1", limits[noun])
		}
	}
	if err := s.networks.SetQuota(r.Context(), project, limits); err != nil {
		return err
	}
	return s.writeQuota(w, r, project)
}

func (s *server) resetQuota(w http.ResponseWriter, r *http.Request) error {
	project, err := quotaProject(r)
	if err != nil {
		return err
	}
	if err := s.networks.ResetQuota(r.Context(), project); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
