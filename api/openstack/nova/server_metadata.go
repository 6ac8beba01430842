package nova

import (
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// one reads the server in the path, if the actor may see it.
func (s *server) one(r *http.Request) (*compute.Server, error) {
	id, err := serverID(r)
	if err != nil {
		return nil, err
	}
	_, srv, err := s.compute.Get(r.Context(), id)
	return srv, err
}

func (s *server) listMetadata(w http.ResponseWriter, r *http.Request) error {
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"metadata": orEmpty(srv.Metadata)})
}

func (s *server) showMetadata(w http.ResponseWriter, r *http.Request) error {
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	value, ok := srv.Metadata[key]
	if !ok {
		return fault.Errorf(fault.NotFound, "Metadata item was not found")
	}
	return answer(w, http.StatusOK, map[string]any{"meta": map[string]string{key: value}})
}

func (s *server) addMetadata(w http.ResponseWriter, r *http.Request) error {
	return s.setMetadata(w, r, false)
}

func (s *server) replaceMetadata(w http.ResponseWriter, r *http.Request) error {
	return s.setMetadata(w, r, true)
}

func (s *server) setMetadata(w http.ResponseWriter, r *http.Request, replace bool) error {
	b, err := read(r, object(need("metadata", metadata)))
	if err != nil {
		return err
	}
	id, err := serverID(r)
	if err != nil {
		return err
	}
	all, err := s.compute.SetMetadata(r.Context(), id, b.pairs("metadata"), replace)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"metadata": orEmpty(all)})
}

func (s *server) putMetadata(w http.ResponseWriter, r *http.Request) error {
	b, err := read(r, object(need("meta", metadata)))
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	pair := b.pairs("meta")
	if _, ok := pair[key]; !ok || len(pair) != 1 {
		return fault.Errorf(fault.Invalid, "Request body and URI mismatch")
	}
	id, err := serverID(r)
	if err != nil {
		return err
	}
	if _, err := s.compute.SetMetadata(r.Context(), id, pair, false); err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"meta": pair})
}

func (s *server) deleteMetadata(w http.ResponseWriter, r *http.Request) error {
	id, err := serverID(r)
	if err != nil {
		return err
	}
	if err := s.compute.DropMetadata(r.Context(), id, r.PathValue("key")); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}

// tags came with 2.26.
func (s *server) tagged(r *http.Request) (resource.ID, error) {
	if err := notBefore(r, 26); err != nil {
		return resource.ID{}, err
	}
	return serverID(r)
}

func (s *server) listTags(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.tagged(r); err != nil {
		return err
	}
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"tags": orNone(srv.Tags)})
}

func orNone(tags []string) []string {
	if tags == nil {
		return []string{}
	}
	return tags
}

func (s *server) showTag(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.tagged(r); err != nil {
		return err
	}
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	if !slices.Contains(srv.Tags, r.PathValue("tag")) {
		return fault.Errorf(fault.NotFound, "Server %s has no tag '%s'", srv.ID, r.PathValue("tag"))
	}
	return accepted(w, http.StatusNoContent)
}

func (s *server) replaceTags(w http.ResponseWriter, r *http.Request) error {
	id, err := s.tagged(r)
	if err != nil {
		return err
	}
	b, err := read(r, object(need("tags", distinct(list(tag, 0, 50)))))
	if err != nil {
		return err
	}
	tags, err := s.compute.SetTags(r.Context(), id, b.texts("tags"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"tags": orNone(tags)})
}

func (s *server) putTag(w http.ResponseWriter, r *http.Request) error {
	id, err := s.tagged(r)
	if err != nil {
		return err
	}
	added, err := s.compute.AddTag(r.Context(), id, r.PathValue("tag"))
	if err != nil {
		return err
	}
	if !added {
		return accepted(w, http.StatusNoContent)
	}
	w.Header().Set("Location", s.links(r, "servers/"+id.String()+"/tags/"+r.PathValue("tag"))[0]["href"])
	return accepted(w, http.StatusCreated)
}

func (s *server) deleteTags(w http.ResponseWriter, r *http.Request) error {
	id, err := s.tagged(r)
	if err != nil {
		return err
	}
	if _, err := s.compute.SetTags(r.Context(), id, nil); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}

func (s *server) deleteTag(w http.ResponseWriter, r *http.Request) error {
	id, err := s.tagged(r)
	if err != nil {
		return err
	}
	if err := s.compute.DropTag(r.Context(), id, r.PathValue("tag")); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}
