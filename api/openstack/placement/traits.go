package placement

import (
	"net/http"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
)

func (s *server) listTraits(w http.ResponseWriter, r *http.Request) error {
	values, err := ask(r, only("name", "associated"))
	if err != nil {
		return err
	}
	keep, err := traitFilter(values.Has("name"), last(values, "name"))
	if err != nil {
		return err
	}
	associated, all := false, true
	if values.Has("associated") {
		switch strings.ToLower(last(values, "associated")) {
		case "true":
			associated = true
		case "false":
			all = false
		default:
			return bad(`"associated" must be true or false.`)
		}
	}
	names, err := s.hosts.ListTraits(r.Context(), associated)
	if err != nil {
		return err
	}
	if !all { // those that no host has
		used, err := s.hosts.ListTraits(r.Context(), true)
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(used, name) })
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !keep(name) })
	if names == nil {
		names = []string{}
	}
	return answer(w, r, http.StatusOK, s.now(), object{"traits": names})
}

// traitFilter reads which names are asked for: startswith:PREFIX or in:NAME,NAME.
func traitFilter(asked bool, text string) (func(string) bool, error) {
	if !asked {
		return func(string) bool { return true }, nil
	}
	if prefix, ok := strings.CutPrefix(text, "startswith:"); ok {
		return func(name string) bool { return strings.HasPrefix(name, prefix) }, nil
	}
	if list, ok := strings.CutPrefix(text, "in:"); ok {
		return only(strings.Split(list, ",")...), nil
	}
	return nil, bad("Badly formatted name parameter. Expected name query string parameter in form: ?name=[in|startswith]:[name1,name2|prefix]. Got: %.60q", text)
}

func (s *server) showTrait(w http.ResponseWriter, r *http.Request) error {
	if err := s.hosts.CheckTrait(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	return done(w, r, http.StatusNoContent, s.now())
}

func (s *server) putTrait(w http.ResponseWriter, r *http.Request) error {
	made, err := s.hosts.CreateTrait(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	w.Header().Set("Location", s.prefix+"/traits/"+r.PathValue("name"))
	if made {
		return done(w, r, http.StatusCreated, s.now())
	}
	return done(w, r, http.StatusNoContent, s.now())
}

func (s *server) deleteTrait(w http.ResponseWriter, r *http.Request) error {
	if err := s.hosts.DeleteTrait(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) showProviderTraits(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, object{"traits": p.Host.AllTraits(), "resource_provider_generation": p.Generation()})
}

// setProviderTraits gives a host the operator's traits. Those that it reports are among them in any case, as the answer says.
func (s *server) setProviderTraits(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	var wish struct {
		Traits     *[]string `json:"traits"`
		Generation *int64    `json:"resource_provider_generation"`
	}
	if err := openstack.DecodeStrict(r, &wish); err != nil {
		return err
	}
	if wish.Traits == nil || wish.Generation == nil {
		return fault.InvalidField("traits", "and resource_provider_generation are required properties")
	}
	h, err := s.hosts.SetTraits(r.Context(), p.Host.ID, wish.Generation, *wish.Traits)
	if err != nil {
		return named(r, err)
	}
	return answer(w, r, http.StatusOK, h.UpdatedAt, object{"traits": h.AllTraits(), "resource_provider_generation": h.Revision})
}

// deleteProviderTraits takes the operator's traits from a host. Those that it reports stay.
func (s *server) deleteProviderTraits(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	if _, err := s.hosts.SetTraits(r.Context(), p.Host.ID, nil, nil); err != nil {
		return named(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
