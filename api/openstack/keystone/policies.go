package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) documentRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/policies":                s.listPolicies,
		"POST /v3/policies":               s.createPolicy,
		"GET /v3/policies/{policy_id}":    s.showPolicy,
		"PATCH /v3/policies/{policy_id}":  s.updatePolicy,
		"DELETE /v3/policies/{policy_id}": s.deletePolicy,
	}
}

func (s *server) policyShape(r *http.Request, d *identity.Document) shape {
	return withExtra(shape{"id": spell(d.ID), "type": d.Type, "blob": d.Blob, "links": s.self(r, "policies", spell(d.ID))}, d.Extra)
}

func editPolicy(in *fields) func(*identity.Document) error {
	return func(d *identity.Document) error {
		in.text("type", &d.Type)
		in.text("blob", &d.Blob)
		in.extra(&d.Extra)
		return in.err
	}
}

func (s *server) createPolicy(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "policy")
	if err != nil {
		return err
	}
	if err := in.require("type", "blob"); err != nil {
		return err
	}
	d := &identity.Document{}
	if err := editPolicy(in)(d); err != nil {
		return err
	}
	made, err := s.identity.CreateDocument(r.Context(), d)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "policy", s.policyShape(r, made))
}

func (s *server) listPolicies(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Documents(r.Context())
	if err != nil {
		return err
	}
	items := []shape{}
	for _, d := range all {
		items = append(items, s.policyShape(r, d))
	}
	return s.writeList(w, r, "policies", items, "type")
}

func (s *server) showPolicy(w http.ResponseWriter, r *http.Request) error {
	d, err := s.identity.Document(r.Context(), pathID(r, "policy_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "policy", s.policyShape(r, d))
}

func (s *server) updatePolicy(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "policy")
	if err != nil {
		return err
	}
	d, err := s.identity.UpdateDocument(r.Context(), pathID(r, "policy_id"), editPolicy(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "policy", s.policyShape(r, d))
}

func (s *server) deletePolicy(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteDocument(r.Context(), pathID(r, "policy_id")); err != nil {
		return err
	}
	return noContent(w)
}
