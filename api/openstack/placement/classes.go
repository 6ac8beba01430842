package placement

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
)

func (s *server) classView(name string) object {
	return object{"name": name, "links": []any{object{"rel": "self", "href": s.prefix + "/resource_classes/" + name}}}
}

func (s *server) listClasses(w http.ResponseWriter, r *http.Request) error {
	names, err := s.hosts.ListClasses(r.Context())
	if err != nil {
		return err
	}
	views := []any{}
	for _, name := range names {
		views = append(views, s.classView(name))
	}
	return answer(w, r, http.StatusOK, s.now(), object{"resource_classes": views})
}

func (s *server) showClass(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if err := s.hosts.CheckClass(r.Context(), name); err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, s.now(), s.classView(name))
}

func readClass(r *http.Request) (string, error) {
	var wish struct {
		Name *string `json:"name"`
	}
	if err := openstack.DecodeStrict(r, &wish); err != nil {
		return "", err
	}
	if wish.Name == nil {
		return "", fault.InvalidField("name", "is a required property")
	}
	return *wish.Name, nil
}

func (s *server) createClass(w http.ResponseWriter, r *http.Request) error {
	name, err := readClass(r)
	if err != nil {
		return err
	}
	made, err := s.hosts.CreateClass(r.Context(), name)
	if err != nil {
		return err
	}
	if !made {
		return fault.Errorf(fault.Exists, "Conflicting resource class already exists: %s", name)
	}
	w.Header().Set("Location", s.prefix+"/resource_classes/"+name)
	return done(w, r, http.StatusCreated, s.now())
}

// putClass makes sure that there is a class; before 1.7 it renames one.
func (s *server) putClass(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if minorOf(r) < 7 {
		to, err := readClass(r)
		if err != nil {
			return err
		}
		if err := s.hosts.RenameClass(r.Context(), name, to); err != nil {
			return err
		}
		return answer(w, r, http.StatusOK, s.now(), s.classView(to))
	}
	made, err := s.hosts.CreateClass(r.Context(), name)
	if err != nil {
		return err
	}
	w.Header().Set("Location", s.prefix+"/resource_classes/"+name)
	if made {
		return done(w, r, http.StatusCreated, s.now())
	}
	return done(w, r, http.StatusNoContent, s.now())
}

func (s *server) deleteClass(w http.ResponseWriter, r *http.Request) error {
	if err := s.hosts.DeleteClass(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
