package neutron

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/network"
)

// tags are the routes of extension standard-attr-tag.
func (s *server) tags() []route {
	return slices.Concat(
		tagRoutes(s.network(), func(n *network.Network) *[]string { return &n.Tags }),
		tagRoutes(s.subnet(), func(n *network.Subnet) *[]string { return &n.Tags }),
		tagRoutes(s.port(), func(p *network.Port) *[]string { return &p.Tags }),
		tagRoutes(s.router(), func(r *network.Router) *[]string { return &r.Tags }),
		tagRoutes(s.floatingIP(), func(f *network.FloatingAddress) *[]string { return &f.Tags }),
		tagRoutes(s.securityGroup(), func(g *network.Group) *[]string { return &g.Tags }),
		tagRoutes(s.securityGroupRule(), func(r *network.Rule) *[]string { return &r.Tags }),
		tagRoutes(s.subnetPool(), func(p *network.SubnetPool) *[]string { return &p.Tags }),
	)
}

// tagRoutes lie below each thing, under its path and, where that has a dash, also with an underscore.
func tagRoutes[T any](k *kind[T], at func(*T) *[]string) []route {
	var routes []route
	for _, path := range slices.Compact([]string{k.path, "/" + k.plural}) {
		base := "/v2.0" + path + "/{id}/tags"
		routes = append(routes,
			route{"DELETE " + base, k.changeTags(at, http.StatusNoContent, dropTags)},
			route{"DELETE " + base + "/{tag}", k.changeTags(at, http.StatusNoContent, dropTag)},
			route{"GET " + base, k.listTags(at)},
			route{"GET " + base + "/{tag}", k.hasTag(at)},
			route{"PUT " + base, k.setTags(at)},
			route{"PUT " + base + "/{tag}", k.changeTags(at, http.StatusCreated, addTag)},
		)
	}
	return routes
}

func addTag(r *http.Request, tags *[]string) error {
	if tag := r.PathValue("tag"); !slices.Contains(*tags, tag) {
		*tags = append(*tags, tag)
	}
	return nil
}

func dropTags(_ *http.Request, tags *[]string) error {
	*tags = nil
	return nil
}

func dropTag(r *http.Request, tags *[]string) error {
	at := slices.Index(*tags, r.PathValue("tag"))
	if at < 0 {
		return noTag(r)
	}
	*tags = slices.Delete(*tags, at, at+1)
	return nil
}

func noTag(r *http.Request) error {
	return fault.Errorf(fault.NotFound, "Tag %s could not be found.", r.PathValue("tag")).WithCode("tag-not-found")
}

func (k *kind[T]) changeTags(at func(*T) *[]string, status int, change func(*http.Request, *[]string) error) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := k.id(r, "id")
		if err != nil {
			return err
		}
		_, err = k.things.Update(r.Context(), id, 0, func(t *T) error { return change(r, at(t)) })
		if err != nil {
			return err
		}
		w.WriteHeader(status)
		return nil
	}
}

func (k *kind[T]) setTags(at func(*T) *[]string) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := k.id(r, "id")
		if err != nil {
			return err
		}
		body, err := decode(r)
		if err != nil {
			return err
		}
		raw, ok := body["tags"]
		if !ok || len(body) != 1 {
			return bad("InvalidInput", "Invalid input for operation: Invalid tags body.")
		}
		list, err := readList("tags", raw, func(name string, in json.RawMessage) (string, error) { return readText(name, in, 255) })
		if err != nil {
			return err
		}
		slices.Sort(list)
		list = slices.Compact(list)
		t, err := k.things.Update(r.Context(), id, 0, func(t *T) error { *at(t) = list; return nil })
		if err != nil {
			return err
		}
		return wire.WriteJSON(w, http.StatusOK, object{"tags": orEmpty(*at(t))})
	}
}

func (k *kind[T]) listTags(at func(*T) *[]string) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		t, err := k.one(r)
		if err != nil {
			return err
		}
		return wire.WriteJSON(w, http.StatusOK, object{"tags": orEmpty(*at(t))})
	}
}

func (k *kind[T]) hasTag(at func(*T) *[]string) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		t, err := k.one(r)
		if err != nil {
			return err
		}
		if !slices.Contains(*at(t), r.PathValue("tag")) {
			return noTag(r)
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func (k *kind[T]) one(r *http.Request) (*T, error) {
	id, err := k.id(r, "id")
	if err != nil {
		return nil, err
	}
	return k.things.Get(r.Context(), id)
}
