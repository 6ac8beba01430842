package nova

import (
	"net/http"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/core/image"
)

// imageStates are what the old API calls an image's states.
var imageStates = map[image.State]string{image.Active: "ACTIVE", image.Queued: "SAVING", image.Receiving: "SAVING", image.Staging: "SAVING",
	image.Staged: "SAVING", image.Importing: "SAVING", image.Deleting: "DELETED", image.Deactivated: "UNKNOWN"}

func (s *server) imageView(r *http.Request, i *image.Image) map[string]any {
	progress := 0
	if i.State == image.Active {
		progress = 100
	}
	links := append(s.links(r, "images/"+i.ID.String()), map[string]string{"rel": "alternate",
		"type": "application/vnd.openstack.image", "href": strings.TrimSuffix(s.links(r, "")[1]["href"], s.prefix+"/") + "/image/images/" + i.ID.String()})
	return map[string]any{"id": i.ID.String(), "name": i.Name, "status": imageStates[i.State], "created": i.CreatedAt.UTC().Format("2006-01-02T15:04:05Z"),
		"updated": i.UpdatedAt.UTC().Format("2006-01-02T15:04:05Z"), "minDisk": i.MinDiskGiB, "minRam": i.MinMemoryMiB, "progress": progress,
		"metadata": orEmpty(i.Properties), "OS-EXT-IMG-SIZE:size": i.Bytes, "links": links}
}

func (s *server) showImage(w http.ResponseWriter, r *http.Request) error {
	i, err := s.imageOf(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"image": s.imageView(r, i)})
}

func (s *server) imageOf(r *http.Request) (*image.Image, error) {
	id, err := pathID(r, "id", "Image")
	if err != nil {
		return nil, err
	}
	return s.images.Get(r.Context(), id)
}

func (s *server) deleteImage(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r, "id", "Image")
	if err != nil {
		return err
	}
	if err := s.images.Delete(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}

func (s *server) listImages(w http.ResponseWriter, r *http.Request) error {
	return s.imageList(w, r, func(i *image.Image) map[string]any {
		full := s.imageView(r, i)
		return map[string]any{"id": full["id"], "name": full["name"], "links": full["links"]}
	})
}

func (s *server) listImagesDetail(w http.ResponseWriter, r *http.Request) error {
	return s.imageList(w, r, func(i *image.Image) map[string]any { return s.imageView(r, i) })
}

func (s *server) imageList(w http.ResponseWriter, r *http.Request, view func(*image.Image) map[string]any) error {
	values := r.URL.Query()
	limit, marker, err := paging(values)
	if err != nil {
		return err
	}
	q := image.Query{List: query.List{Limit: limit, Marker: marker}, Name: values.Get("name")}
	var keeps []func(*image.Image) bool
	if status := values.Get("status"); status != "" {
		keeps = append(keeps, func(i *image.Image) bool { return strings.EqualFold(imageStates[i.State], status) })
	}
	if text := values.Get("changes-since"); text != "" {
		at, err := readTime("changes-since", text)
		if err != nil {
			return err
		}
		keeps = append(keeps, func(i *image.Image) bool { return !i.UpdatedAt.Before(at) })
	}
	if typ := values.Get("type"); typ != "" {
		keeps = append(keeps, func(i *image.Image) bool { return i.Properties["image_type"] == typ })
	}
	if from := values.Get("server"); from != "" {
		from = from[strings.LastIndexByte(from, '/')+1:]
		keeps = append(keeps, func(i *image.Image) bool { return i.Properties["instance_uuid"] == from })
	}
	q.Keep = func(i *image.Image) bool {
		for _, keep := range keeps {
			if !keep(i) {
				return false
			}
		}
		return true
	}
	views := []map[string]any{}
	doc := map[string]any{"images": &views}
	if limit > 0 {
		page, err := s.images.List(r.Context(), q)
		if err != nil {
			return err
		}
		for _, i := range page.Items {
			views = append(views, view(i))
		}
		if page.More {
			doc["images_links"] = []any{link("next", openstack.NextLink(r, s.prefix, page.Items[len(page.Items)-1].ID.String()))}
		}
	}
	return answer(w, http.StatusOK, doc)
}

func (s *server) listImageMetadata(w http.ResponseWriter, r *http.Request) error {
	i, err := s.imageOf(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"metadata": orEmpty(i.Properties)})
}

func (s *server) showImageMetadata(w http.ResponseWriter, r *http.Request) error {
	i, err := s.imageOf(r)
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	value, ok := i.Properties[key]
	if !ok {
		return fault.Errorf(fault.NotFound, "Metadata item was not found")
	}
	return answer(w, http.StatusOK, map[string]any{"meta": map[string]string{key: value}})
}

// editImage changes an image's properties.
func (s *server) editImage(r *http.Request, edit func(m map[string]string) error) (map[string]string, error) {
	id, err := pathID(r, "id", "Image")
	if err != nil {
		return nil, err
	}
	i, err := s.images.Update(r.Context(), id, func(i *image.Image) error {
		if i.Properties == nil {
			i.Properties = map[string]string{}
		}
		return edit(i.Properties)
	})
	if err != nil {
		return nil, err
	}
	return i.Properties, nil
}

func (s *server) addImageMetadata(w http.ResponseWriter, r *http.Request) error {
	return s.setImageMetadata(w, r, false)
}

func (s *server) replaceImageMetadata(w http.ResponseWriter, r *http.Request) error {
	return s.setImageMetadata(w, r, true)
}

func (s *server) setImageMetadata(w http.ResponseWriter, r *http.Request, replace bool) error {
	b, err := read(r, object(need("metadata", metadata)))
	if err != nil {
		return err
	}
	all, err := s.editImage(r, func(m map[string]string) error {
		if replace {
			clear(m)
		}
		for k, v := range b.pairs("metadata") {
			m[k] = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"metadata": all})
}

func (s *server) putImageMetadata(w http.ResponseWriter, r *http.Request) error {
	b, err := read(r, object(need("meta", metadata)))
	if err != nil {
		return err
	}
	key, pair := r.PathValue("key"), b.pairs("meta")
	if _, ok := pair[key]; !ok || len(pair) != 1 {
		return fault.Errorf(fault.Invalid, "Request body and URI mismatch")
	}
	if _, err := s.editImage(r, func(m map[string]string) error { m[key] = pair[key]; return nil }); err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"meta": pair})
}

func (s *server) deleteImageMetadata(w http.ResponseWriter, r *http.Request) error {
	key := r.PathValue("key")
	_, err := s.editImage(r, func(m map[string]string) error {
		if _, ok := m[key]; !ok {
			return fault.Errorf(fault.NotFound, "Metadata item was not found")
		}
		delete(m, key)
		return nil
	})
	if err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}
