package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) credentialRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/credentials":                    s.listCredentials,
		"POST /v3/credentials":                   s.createCredential,
		"GET /v3/credentials/{credential_id}":    s.showCredential,
		"PATCH /v3/credentials/{credential_id}":  s.updateCredential,
		"DELETE /v3/credentials/{credential_id}": s.deleteCredential,

		"GET /v3/users/{user_id}/credentials/OS-EC2":             s.listAccessKeys,
		"POST /v3/users/{user_id}/credentials/OS-EC2":            s.createAccessKey,
		"GET /v3/users/{user_id}/credentials/OS-EC2/{access}":    s.showAccessKey,
		"DELETE /v3/users/{user_id}/credentials/OS-EC2/{access}": s.deleteAccessKey,
	}
}

func (s *server) credentialShape(r *http.Request, c *identity.Credential) shape {
	return shape{"id": spell(c.ID), "type": c.Type, "blob": c.Blob, "user_id": spell(c.UserID), "project_id": orNull(c.InProjectID),
		"links": s.self(r, "credentials", spell(c.ID))}
}

func editCredential(in *fields) func(*identity.Credential) error {
	return func(c *identity.Credential) error {
		in.text("type", &c.Type)
		in.text("blob", &c.Blob)
		in.id("user_id", &c.UserID)
		in.id("project_id", &c.InProjectID)
		return in.err
	}
}

func (s *server) createCredential(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "credential")
	if err != nil {
		return err
	}
	if err := in.require("type", "blob"); err != nil {
		return err
	}
	c := &identity.Credential{UserID: identity.ActorOf(r.Context()).UserID}
	if err := editCredential(in)(c); err != nil {
		return err
	}
	made, err := s.identity.CreateCredential(r.Context(), c)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "credential", s.credentialShape(r, made))
}

func (s *server) listCredentials(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	all, err := s.identity.Credentials(r.Context(), optional(query.Get("user_id")), query.Get("type"))
	if err != nil {
		return err
	}
	items := []shape{}
	for _, c := range all {
		items = append(items, s.credentialShape(r, c))
	}
	return s.writeList(w, r, "credentials", items, "user_id", "type")
}

func (s *server) showCredential(w http.ResponseWriter, r *http.Request) error {
	c, err := s.identity.Credential(r.Context(), pathID(r, "credential_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "credential", s.credentialShape(r, c))
}

func (s *server) updateCredential(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "credential")
	if err != nil {
		return err
	}
	c, err := s.identity.UpdateCredential(r.Context(), pathID(r, "credential_id"), editCredential(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "credential", s.credentialShape(r, c))
}

func (s *server) deleteCredential(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteCredential(r.Context(), pathID(r, "credential_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) accessKeyShape(r *http.Request, c *identity.Credential) shape {
	return shape{"access": c.Access, "secret": c.Secret, "user_id": spell(c.UserID), "tenant_id": spell(c.InProjectID), "trust_id": nil,
		"links": shape{"self": s.base(r) + "/v3/users/" + spell(c.UserID) + "/credentials/OS-EC2/" + c.Access}}
}

func (s *server) createAccessKey(w http.ResponseWriter, r *http.Request) error {
	// Keystone takes the attributes without a noun around them.
	var in struct {
		Tenant string `json:"tenant_id"`
	}
	if err := openstack.Decode(r, &in); err != nil {
		return err
	}
	if in.Tenant == "" {
		return fault.Errorf(fault.Invalid, "'tenant_id' is a required property")
	}
	c, err := s.identity.CreateAccessKey(r.Context(), pathID(r, "user_id"), idOf(in.Tenant))
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "credential", s.accessKeyShape(r, c))
}

func (s *server) listAccessKeys(w http.ResponseWriter, r *http.Request) error {
	user := pathID(r, "user_id")
	if _, err := s.identity.User(r.Context(), user); err != nil {
		return err
	}
	all, err := s.identity.Credentials(r.Context(), user, "ec2")
	if err != nil {
		return err
	}
	items := []shape{}
	for _, c := range all {
		items = append(items, s.accessKeyShape(r, c))
	}
	return s.writeList(w, r, "credentials", items)
}

func (s *server) accessKey(r *http.Request) (*identity.Credential, error) {
	return s.identity.AccessKey(r.Context(), pathID(r, "user_id"), r.PathValue("access"))
}

func (s *server) showAccessKey(w http.ResponseWriter, r *http.Request) error {
	c, err := s.accessKey(r)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "credential", s.accessKeyShape(r, c))
}

func (s *server) deleteAccessKey(w http.ResponseWriter, r *http.Request) error {
	c, err := s.accessKey(r)
	if err != nil {
		return err
	}
	if err := s.identity.DeleteCredential(r.Context(), c.ID); err != nil {
		return err
	}
	return noContent(w)
}

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
