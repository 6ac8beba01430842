package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) applicationRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/users/{user_id}/application_credentials":                    s.listApplications,
		"POST /v3/users/{user_id}/application_credentials":                   s.createApplication,
		"GET /v3/users/{user_id}/application_credentials/{credential_id}":    s.showApplication,
		"DELETE /v3/users/{user_id}/application_credentials/{credential_id}": s.deleteApplication,
		"GET /v3/users/{user_id}/access_rules":                               s.listRules,
		"GET /v3/users/{user_id}/access_rules/{rule_id}":                     s.showRule,
		"DELETE /v3/users/{user_id}/access_rules/{rule_id}":                  s.deleteRule,
	}
}

func rulesShape(all []*identity.AccessRule) []shape {
	out := []shape{}
	for _, rule := range all {
		out = append(out, ruleShape(rule))
	}
	return out
}

func ruleShape(rule *identity.AccessRule) shape {
	return shape{"id": spell(rule.ID), "service": rule.Service, "method": rule.Method, "path": rule.Path}
}

func (s *server) applicationShape(r *http.Request, c *identity.ApplicationCredential) (shape, error) {
	rules, roles, err := s.identity.RulesOf(r.Context(), c)
	if err != nil {
		return nil, err
	}
	held := []shape{}
	for _, role := range roles {
		held = append(held, shape{"id": spell(role.ID), "name": role.Name, "domain_id": orNull(role.DomainID)})
	}
	out := shape{
		"id": spell(c.ID), "name": c.Name, "description": textOrNull(c.Description), "project_id": spell(c.InProjectID),
		"user_id": spell(c.UserID), "roles": held, "unrestricted": c.Unrestricted, "system": nil, "expires_at": nil,
		"links": s.self(r, "users/"+spell(c.UserID)+"/application_credentials", spell(c.ID)),
	}
	if !c.ExpiresAt.IsZero() {
		out["expires_at"] = c.ExpiresAt.UTC().Format("2006-01-02T15:04:05.000000") // without a zone, unlike any other time
	}
	if rules != nil {
		out["access_rules"] = rulesShape(rules)
	}
	return out, nil
}

func (s *server) createApplication(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "application_credential")
	if err != nil {
		return err
	}
	if err := in.require("name"); err != nil {
		return err
	}
	var want identity.NewApplicationCredential
	in.text("name", &want.Name)
	in.note("description", &want.Description)
	in.note("secret", &want.Secret)
	in.flag("unrestricted", &want.Unrestricted)
	in.time("expires_at", &want.ExpiresAt)
	var project resource.ID
	if in.id("project_id", &project); !project.IsZero() && project != identity.ActorOf(r.Context()).ProjectID {
		return fault.Errorf(fault.Forbidden, "An application credential can be made for the token's own project only.")
	}
	want.Roles = roleRefs(in)
	raw, limited := in.raw["access_rules"]
	want.Limited = limited && !isNull(raw)
	for _, rule := range in.list("access_rules") {
		var id resource.ID
		if rule.id("id", &id); !id.IsZero() {
			want.RuleIDs = append(want.RuleIDs, id)
			continue
		}
		var one identity.AccessRule
		rule.text("service", &one.Service)
		rule.text("method", &one.Method)
		rule.text("path", &one.Path)
		in.join(rule)
		want.Rules = append(want.Rules, one)
	}
	if in.err != nil {
		return in.err
	}
	c, secret, err := s.identity.CreateApplicationCredential(r.Context(), pathID(r, "user_id"), want)
	if err != nil {
		return err
	}
	out, err := s.applicationShape(r, c)
	if err != nil {
		return err
	}
	out["secret"] = secret
	return write(w, http.StatusCreated, "application_credential", out)
}

// roleRefs reads a list of roles by ID or name.
func roleRefs(in *fields) []identity.RoleRef {
	var refs []identity.RoleRef
	for _, role := range in.list("roles") {
		var ref identity.RoleRef
		role.id("id", &ref.ID)
		role.text("name", &ref.Name)
		if ref == (identity.RoleRef{}) {
			in.wrong("roles", "a list of roles, each with an id or a name")
		}
		in.join(role)
		refs = append(refs, ref)
	}
	return refs
}

func (s *server) listApplications(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.ApplicationCredentialsOf(r.Context(), pathID(r, "user_id"))
	if err != nil {
		return err
	}
	items := []shape{}
	for _, c := range all {
		out, err := s.applicationShape(r, c)
		if err != nil {
			return err
		}
		items = append(items, out)
	}
	return s.writeList(w, r, "application_credentials", items, "name")
}

func (s *server) showApplication(w http.ResponseWriter, r *http.Request) error {
	c, err := s.identity.ApplicationCredential(r.Context(), pathID(r, "user_id"), pathID(r, "credential_id"))
	if err != nil {
		return err
	}
	out, err := s.applicationShape(r, c)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "application_credential", out)
}

func (s *server) deleteApplication(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteApplicationCredential(r.Context(), pathID(r, "user_id"), pathID(r, "credential_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) listRules(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.AccessRulesOf(r.Context(), pathID(r, "user_id"))
	if err != nil {
		return err
	}
	items := []shape{}
	for _, rule := range all {
		out := ruleShape(rule)
		out["links"] = s.self(r, "users/"+spell(rule.UserID)+"/access_rules", spell(rule.ID))
		items = append(items, out)
	}
	return s.writeList(w, r, "access_rules", items, "service", "method", "path")
}

func (s *server) showRule(w http.ResponseWriter, r *http.Request) error {
	rule, err := s.identity.AccessRule(r.Context(), pathID(r, "user_id"), pathID(r, "rule_id"))
	if err != nil {
		return err
	}
	out := ruleShape(rule)
	out["links"] = s.self(r, "users/"+spell(rule.UserID)+"/access_rules", spell(rule.ID))
	return write(w, http.StatusOK, "access_rule", out)
}

func (s *server) deleteRule(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteAccessRule(r.Context(), pathID(r, "user_id"), pathID(r, "rule_id")); err != nil {
		return err
	}
	return noContent(w)
}
