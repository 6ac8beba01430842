package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) trustRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/OS-TRUST/trusts":                            s.listTrusts,
		"POST /v3/OS-TRUST/trusts":                           s.createTrust,
		"GET /v3/OS-TRUST/trusts/{trust_id}":                 s.showTrust,
		"DELETE /v3/OS-TRUST/trusts/{trust_id}":              s.deleteTrust,
		"GET /v3/OS-TRUST/trusts/{trust_id}/roles":           s.trustRoles,
		"GET /v3/OS-TRUST/trusts/{trust_id}/roles/{role_id}": s.trustRole, // and HEAD
	}
}

func (s *server) trustShape(r *http.Request, t *identity.Trust) shape {
	out := shape{
		"id": spell(t.ID), "trustor_user_id": spell(t.TrustorID), "trustee_user_id": spell(t.TrusteeID),
		"project_id": orNull(t.InProjectID), "impersonation": t.Impersonate, "expires_at": stampOrNull(t.ExpiresAt),
		"remaining_uses": t.UsesLeft, "redelegation_count": t.Depth, "redelegated_trust_id": orNull(t.RedelegateOf), "deleted_at": nil,
		"links": s.self(r, "OS-TRUST/trusts", spell(t.ID)),
	}
	return out
}

// fullTrust is a trust with its roles.
func (s *server) fullTrust(r *http.Request, t *identity.Trust, roles []*identity.Role) shape {
	out := s.trustShape(r, t)
	items := []shape{}
	for _, role := range roles {
		items = append(items, s.roleShape(r, role))
	}
	out["roles"] = items
	out["roles_links"] = shape{"self": s.base(r) + "/v3/OS-TRUST/trusts/" + spell(t.ID) + "/roles", "previous": nil, "next": nil}
	return out
}

func (s *server) createTrust(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "trust")
	if err != nil {
		return err
	}
	if err := in.require("trustor_user_id", "trustee_user_id", "impersonation"); err != nil {
		return err
	}
	t := &identity.Trust{}
	in.id("trustor_user_id", &t.TrustorID)
	in.id("trustee_user_id", &t.TrusteeID)
	in.id("project_id", &t.InProjectID)
	in.flag("impersonation", &t.Impersonate)
	in.time("expires_at", &t.ExpiresAt)
	in.flag("allow_redelegation", &t.Redelegate)
	if raw, ok := in.take("remaining_uses"); ok && !isNull(raw) {
		uses := 0
		in.raw["remaining_uses"] = raw
		in.number("remaining_uses", &uses)
		t.UsesLeft = &uses
	}
	if raw, ok := in.raw["redelegation_count"]; ok && !isNull(raw) {
		in.number("redelegation_count", &t.Depth)
	}
	roles := roleRefs(in)
	if in.err != nil {
		return in.err
	}
	made, err := s.identity.CreateTrust(r.Context(), t, roles)
	if err != nil {
		return err
	}
	found, held, err := s.identity.Trust(r.Context(), made.ID)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "trust", s.fullTrust(r, found, held))
}

func (s *server) listTrusts(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	all, err := s.identity.Trusts(r.Context(), optional(query.Get("trustor_user_id")), optional(query.Get("trustee_user_id")))
	if err != nil {
		return err
	}
	items := []shape{}
	for _, t := range all {
		items = append(items, s.trustShape(r, t))
	}
	return s.writeList(w, r, "trusts", items)
}

func (s *server) showTrust(w http.ResponseWriter, r *http.Request) error {
	t, roles, err := s.identity.Trust(r.Context(), pathID(r, "trust_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "trust", s.fullTrust(r, t, roles))
}

func (s *server) deleteTrust(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteTrust(r.Context(), pathID(r, "trust_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) trustRoles(w http.ResponseWriter, r *http.Request) error {
	_, roles, err := s.identity.Trust(r.Context(), pathID(r, "trust_id"))
	if err != nil {
		return err
	}
	return s.writeRoles(w, r, roles)
}

func (s *server) trustRole(w http.ResponseWriter, r *http.Request) error {
	_, roles, err := s.identity.Trust(r.Context(), pathID(r, "trust_id"))
	if err != nil {
		return err
	}
	return s.writeRoleOf(w, r, roles)
}
