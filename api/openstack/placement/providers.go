package placement

import (
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// below are what stands below a provider, and since which microversion it is linked to.
var below = []struct {
	rel   string
	since int
}{{"inventories", 0}, {"usages", 0}, {"aggregates", 1}, {"traits", 6}, {"allocations", 11}}

func (s *server) providerView(r *http.Request, p *compute.Provider) object {
	uuid := p.Host.ID.String()
	href := s.prefix + "/resource_providers/" + uuid
	links := []any{object{"rel": "self", "href": href}}
	for _, b := range below {
		if minorOf(r) >= b.since {
			links = append(links, object{"rel": b.rel, "href": href + "/" + b.rel})
		}
	}
	view := object{"uuid": uuid, "name": p.Host.Name, "generation": p.Generation(), "links": links}
	if minorOf(r) >= 14 {
		view["parent_provider_uuid"], view["root_provider_uuid"] = nil, uuid
	}
	return view
}

// providerFilters are by the microversion that brought them.
var providerFilters = map[string]int{"name": 0, "uuid": 0, "member_of": 3, "resources": 4, "in_tree": 14, "required": 18}

func (s *server) listProviders(w http.ResponseWriter, r *http.Request) error {
	minor := minorOf(r)
	values, err := ask(r, func(name string) bool { since, ok := providerFilters[name]; return ok && minor >= since })
	if err != nil {
		return err
	}
	g, err := readGroup(values, "", minor)
	if err != nil {
		return err
	}
	need := g.Need
	need.Name = last(values, "name")
	if values.Has("uuid") {
		id, err := resource.ParseID(last(values, "uuid"))
		if err != nil {
			return bad("Expected 'uuid' parameter to be a format of uuid. Got: %.60s", last(values, "uuid"))
		}
		if !need.ID.IsZero() && need.ID != id {
			return answer(w, r, http.StatusOK, s.now(), object{"resource_providers": []any{}})
		}
		need.ID = id
	}
	found, err := s.compute.Providers(r.Context(), []compute.Need{need}, 0)
	if err != nil {
		return err
	}
	views, newest := []any{}, time.Time{}
	for _, p := range found {
		views = append(views, s.providerView(r, p))
		if p.Host.UpdatedAt.After(newest) {
			newest = p.Host.UpdatedAt
		}
	}
	if newest.IsZero() {
		newest = s.now()
	}
	return answer(w, r, http.StatusOK, newest, object{"resource_providers": views})
}

func (s *server) showProvider(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, s.providerView(r, p))
}

// A providerWish is what a client would have a provider be.
type providerWish struct {
	Name   *string `json:"name"`
	UUID   *string `json:"uuid"`
	Parent *string `json:"parent_provider_uuid"`
}

func readProvider(r *http.Request) (providerWish, error) {
	var wish providerWish
	if err := openstack.DecodeStrict(r, &wish); err != nil {
		return wish, err
	}
	if wish.Name == nil || *wish.Name == "" || len([]rune(*wish.Name)) > 200 {
		return wish, fault.InvalidField("name", "must be of 1 to 200 characters")
	}
	return wish, nil
}

// createProvider says who makes providers: hosts that join.
func (s *server) createProvider(w http.ResponseWriter, r *http.Request) error {
	if err := s.compute.MayProvide(r.Context()); err != nil {
		return err
	}
	wish, err := readProvider(r)
	if err != nil {
		return err
	}
	return fault.Errorf(fault.Conflict, "A resource provider is a host here, and a host becomes one by joining the cloud: %.200s cannot be made otherwise.", *wish.Name)
}

// updateProvider agrees to what is so already. A host is named by itself, and is below no other.
func (s *server) updateProvider(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	wish, err := readProvider(r)
	if err != nil {
		return err
	}
	switch {
	case wish.UUID != nil:
		return fault.Errorf(fault.Invalid, "Additional properties are not allowed ('uuid' was unexpected)")
	case wish.Parent != nil:
		return fault.Errorf(fault.Invalid, "A host is a provider without a parent: it cannot be put below %.60s.", *wish.Parent)
	case *wish.Name != p.Host.Name:
		return fault.Errorf(fault.Conflict, "Host %s names itself: it cannot be renamed here.", p.Host.Name)
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, s.providerView(r, p))
}

func (s *server) deleteProvider(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	if err := s.compute.DismissLostHost(r.Context(), p.Host.ID); err != nil {
		return named(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) aggregatesView(r *http.Request, p *compute.Provider) object {
	list := []string{}
	for _, id := range p.Aggregates {
		list = append(list, id.String())
	}
	view := object{"aggregates": list}
	if minorOf(r) >= 19 {
		view["resource_provider_generation"] = p.Generation()
	}
	return view
}

func (s *server) showAggregates(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, s.aggregatesView(r, p))
}

func (s *server) setAggregates(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	var wish struct {
		Aggregates *[]string `json:"aggregates"`
		Generation *int64    `json:"resource_provider_generation"`
	}
	into := any(&wish)
	if minorOf(r) < 19 {
		into = &wish.Aggregates
	}
	if err := openstack.DecodeStrict(r, into); err != nil {
		return err
	}
	switch {
	case wish.Aggregates == nil:
		return fault.InvalidField("aggregates", "must be a list of UUIDs")
	case minorOf(r) >= 19 && wish.Generation == nil:
		return fault.InvalidField("resource_provider_generation", "is a required property")
	}
	seen := map[resource.ID]bool{}
	ids := []resource.ID{}
	for _, text := range *wish.Aggregates {
		id, err := resource.ParseID(text)
		if err != nil {
			return fault.InvalidField("aggregates", "must hold UUIDs: '%.60s' is not a 'uuid'", text)
		}
		if seen[id] {
			return fault.InvalidField("aggregates", "must hold each UUID once, and has %s twice", id)
		}
		seen[id] = true
		ids = append(ids, id)
	}
	if p, err = s.compute.SetMemberships(r.Context(), p.Host.ID, wish.Generation, ids); err != nil {
		return named(r, err)
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, s.aggregatesView(r, p))
}
