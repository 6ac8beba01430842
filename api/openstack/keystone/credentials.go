package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
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
	return shape{"id": spell(c.ID), "type": c.Type, "blob": textOrNull(c.Blob), "user_id": spell(c.UserID), "project_id": orNull(c.InProjectID),
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
	return shape{"access": c.Access, "secret": textOrNull(c.Secret), "user_id": spell(c.UserID), "tenant_id": spell(c.InProjectID), "trust_id": nil,
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

func (s *server) showAccessKey(w http.ResponseWriter, r *http.Request) error {
	c, err := s.identity.AccessKey(r.Context(), pathID(r, "user_id"), r.PathValue("access"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "credential", s.accessKeyShape(r, c))
}

func (s *server) deleteAccessKey(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteAccessKey(r.Context(), pathID(r, "user_id"), r.PathValue("access")); err != nil {
		return err
	}
	return noContent(w)
}
