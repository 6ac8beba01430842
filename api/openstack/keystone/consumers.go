package keystone

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) consumerRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/OS-OAUTH1/consumers":                  s.listConsumers,
		"POST /v3/OS-OAUTH1/consumers":                 s.createConsumer,
		"GET /v3/OS-OAUTH1/consumers/{consumer_id}":    s.showConsumer,
		"PATCH /v3/OS-OAUTH1/consumers/{consumer_id}":  s.updateConsumer,
		"DELETE /v3/OS-OAUTH1/consumers/{consumer_id}": s.deleteConsumer,
	}
}

func (s *server) consumerShape(r *http.Request, c *identity.Consumer) shape {
	return withExtra(shape{"id": spell(c.ID), "description": textOrNull(c.Description),
		"links": s.self(r, "OS-OAUTH1/consumers", spell(c.ID))}, c.Extra)
}

func editConsumer(in *fields) func(*identity.Consumer) error {
	return func(c *identity.Consumer) error {
		in.note("description", &c.Description)
		if _, given := in.take("secret"); given {
			return fault.Errorf(fault.Invalid, "The secret of a consumer cannot be chosen.")
		}
		in.extra(&c.Extra)
		return in.err
	}
}

func (s *server) createConsumer(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "consumer")
	if err != nil {
		return err
	}
	c := &identity.Consumer{}
	if err := editConsumer(in)(c); err != nil {
		return err
	}
	made, err := s.identity.CreateConsumer(r.Context(), c)
	if err != nil {
		return err
	}
	out := s.consumerShape(r, made)
	out["secret"] = made.Secret // shown this once
	return write(w, http.StatusCreated, "consumer", out)
}

func (s *server) listConsumers(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.Consumers(r.Context())
	if err != nil {
		return err
	}
	items := []shape{}
	for _, c := range all {
		items = append(items, s.consumerShape(r, c))
	}
	return s.writeList(w, r, "consumers", items)
}

func (s *server) showConsumer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.identity.Consumer(r.Context(), pathID(r, "consumer_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "consumer", s.consumerShape(r, c))
}

func (s *server) updateConsumer(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "consumer")
	if err != nil {
		return err
	}
	c, err := s.identity.UpdateConsumer(r.Context(), pathID(r, "consumer_id"), editConsumer(in))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "consumer", s.consumerShape(r, c))
}

func (s *server) deleteConsumer(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteConsumer(r.Context(), pathID(r, "consumer_id")); err != nil {
		return err
	}
	return noContent(w)
}
