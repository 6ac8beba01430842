package nova

import (
	"fmt"
	"net/http"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

// snapshotProperties are what Nova says in an image that it makes of a server.
func (s *server) snapshotProperties(r *http.Request, id resource.ID) (map[string]string, error) {
	_, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return nil, err
	}
	properties := map[string]string{"image_type": "snapshot", "instance_uuid": id.String(), "user_id": identity.ActorOf(r.Context()).UserID.Hex()}
	if base := srv.Boot.ImageID(); !base.IsZero() {
		properties["base_image_ref"] = base.String()
	}
	return properties, nil
}

func (s *server) createImage(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	properties, err := s.snapshotProperties(r, id)
	if err != nil {
		return err
	}
	for k, v := range b.pairs("metadata") {
		properties[k] = v
	}
	made, err := s.compute.CreateImage(r.Context(), id, compute.ImageWanted{Name: b.text("name"), Properties: properties})
	if err != nil {
		return err
	}
	if minorOf(r) >= 45 {
		return answer(w, http.StatusAccepted, map[string]string{"image_id": made.String()})
	}
	w.Header().Set("Location", fmt.Sprintf("%s/image/images/%s", wire.BaseURL(r), made))
	return accepted(w, http.StatusAccepted)
}

func (s *server) shelve(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	properties, err := s.snapshotProperties(r, id)
	if err != nil {
		return err
	}
	if err := s.compute.Shelve(r.Context(), id, properties); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) shelveOffload(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	if err := s.compute.Offload(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

var unshelveBody = orNull(object(
	since(77, until(90, need("availability_zone", name))),
	since(91, may("availability_zone", orNull(text(0, 255)))),
	since(91, may("host", text(1, 255))),
))

// unshelveRule lets be what was never looked at before 2.77.
func unshelveRule(v version, path string, value any) error {
	if v.Minor < 77 {
		return nil
	}
	return unshelveBody(v, path, value)
}

func (s *server) unshelve(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	var to compute.Place
	if minor := minorOf(r); minor >= 77 {
		if b.has("availability_zone") {
			zone := b.text("availability_zone")
			to.Zone = &zone
		}
		to.Host = b.text("host")
	}
	if err := s.compute.Unshelve(r.Context(), id, to); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}
