package nova

import (
	"net/http"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *server) shelve(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	properties, err := s.imageProperties(r, id, "snapshot")
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
