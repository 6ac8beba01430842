package nova

import (
	"fmt"
	"maps"
	"net/http"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

var (
	imageBody  = object(need("name", strictName), may("metadata", metadata))
	backupBody = object(need("name", strictName), need("backup_type", text(0, 255)), need("rotation", number(0, maxInt)), may("metadata", metadata))
)

// imageProperties are what Nova says in an image that it makes of a server.
func (s *server) imageProperties(r *http.Request, id resource.ID, kind string) (map[string]string, error) {
	_, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return nil, err
	}
	properties := map[string]string{"image_type": kind, "instance_uuid": id.String(), "user_id": identity.ActorOf(r.Context()).UserID.Hex()}
	if base := srv.Boot.ImageID(); !base.IsZero() {
		properties["base_image_ref"] = base.String()
	}
	return properties, nil
}

// imageWanted is what is asked for in the body of an action that makes an image.
func (s *server) imageWanted(r *http.Request, id resource.ID, b body, kind string) (compute.ImageWanted, error) {
	properties, err := s.imageProperties(r, id, kind)
	if err != nil {
		return compute.ImageWanted{}, err
	}
	asked := b.pairs("metadata")
	maps.Copy(properties, asked)
	w := compute.ImageWanted{Name: b.text("name"), Properties: properties}
	if minorOf(r) < 39 { // from then on it is Glance's quota that counts
		w.Counted = len(asked)
	}
	return w, nil
}

func (s *server) createImage(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	wanted, err := s.imageWanted(r, id, b, "snapshot")
	if err != nil {
		return err
	}
	made, err := s.compute.CreateImage(r.Context(), id, wanted)
	if err != nil {
		return tooMuchMetadata(err)
	}
	return imageMade(w, r, made)
}

// createBackup answers no image's address if none is kept. From 2.45 on there has to be an ID: it is of no image then, as it is in Nova
// once the backup that it makes has been rotated away.
func (s *server) createBackup(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	wanted, err := s.imageWanted(r, id, b, "backup")
	if err != nil {
		return err
	}
	wanted.Properties["backup_type"] = b.text("backup_type")
	keep := b.int("rotation", 0)
	made, err := s.compute.CreateBackup(r.Context(), id, compute.BackupWanted{ImageWanted: wanted, Type: b.text("backup_type"), Keep: keep})
	switch {
	case err != nil:
		return tooMuchMetadata(err)
	case keep == 0 && minorOf(r) < 45:
		return accepted(w, http.StatusAccepted)
	}
	return imageMade(w, r, made)
}

func imageMade(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	if minorOf(r) >= 45 {
		return answer(w, http.StatusAccepted, map[string]string{"image_id": id.String()})
	}
	w.Header().Set("Location", fmt.Sprintf("%s/image/images/%s", wire.BaseURL(r), id))
	return accepted(w, http.StatusAccepted)
}

// tooMuchMetadata words the fault for more metadata than the quota allows as Nova does of images.
func tooMuchMetadata(err error) error {
	if f := fault.From(err); f != nil && f.Details["quota"] == compute.QuotaMetadata {
		return fault.Errorf(fault.Forbidden, "Image metadata limit exceeded")
	}
	return err
}
