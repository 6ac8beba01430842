package nova

import (
	"hash/crc32"
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

var newKeyPair = object(
	since(1, until(91, need("name", pattern(1, 255, `^[a-zA-Z0-9-_ ]+$`)))),
	since(92, need("name", pattern(1, 255, `^[a-zA-Z0-9-_@. ]+$`))),
	since(1, until(91, may("public_key", text(0, 0)))), since(92, need("public_key", text(0, 0))),
	since(2, may("type", oneOf("ssh", "x509"))),
	since(10, may("user_id", text(1, 255))),
)

// userOf reads whose keys are meant; the zero user is whoever asks.
func userOf(r *http.Request, text string) (resource.ID, error) {
	if text == "" || minorOf(r) < 10 {
		return resource.ID{}, nil
	}
	id, err := resource.ParseID(text)
	if err != nil {
		return id, fault.Errorf(fault.NotFound, "User %s could not be found.", text)
	}
	return id, nil
}

func keyPairView(minor int, k *compute.KeyPair) map[string]any {
	view := map[string]any{"name": k.Name, "public_key": k.Public, "fingerprint": k.Fingerprint}
	if minor >= 2 {
		view["type"] = k.Type
	}
	return view
}

func isoTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000") }

func (s *server) showKeyPair(w http.ResponseWriter, r *http.Request) error {
	if err := onlyKnown(r, 75, "user_id"); err != nil {
		return err
	}
	user, err := userOf(r, r.URL.Query().Get("user_id"))
	if err != nil {
		return err
	}
	k, err := s.compute.KeyPair(r.Context(), user, r.PathValue("name"))
	if err != nil {
		return err
	}
	view := keyPairView(minorOf(r), k)
	view["user_id"], view["id"] = k.UserID.Hex(), int(crc32.ChecksumIEEE(k.ID[:])>>1)
	view["created_at"], view["updated_at"], view["deleted"], view["deleted_at"] = isoTime(k.CreatedAt), nil, false, nil
	return answer(w, http.StatusOK, map[string]any{"keypair": view})
}

func (s *server) listKeyPairs(w http.ResponseWriter, r *http.Request) error {
	if err := onlyKnown(r, 75, "user_id", "limit", "marker"); err != nil {
		return err
	}
	values := r.URL.Query()
	user, err := userOf(r, values.Get("user_id"))
	if err != nil {
		return err
	}
	limit, marker := 0, ""
	if minorOf(r) >= 35 {
		marker = values.Get("marker")
		values.Del("marker")
		if limit, _, err = paging(values); err != nil {
			return err
		}
	}
	page, err := s.compute.ListKeyPairs(r.Context(), user, limit, marker)
	if err != nil {
		return err
	}
	keys := []map[string]any{}
	for _, k := range page.Items {
		keys = append(keys, map[string]any{"keypair": keyPairView(minorOf(r), k)})
	}
	doc := map[string]any{"keypairs": keys}
	if page.More {
		doc["keypairs_links"] = []any{link("next", openstack.NextLink(r, s.prefix, page.Items[len(page.Items)-1].Name))}
	}
	return answer(w, http.StatusOK, doc)
}

func (s *server) createKeyPair(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "keypair", newKeyPair)
	if err != nil {
		return err
	}
	user, err := userOf(r, b.text("user_id"))
	if err != nil {
		return err
	}
	if !user.IsZero() && user != identity.ActorOf(r.Context()).UserID {
		if err := identity.Allow(r.Context(), "keypair.of-others", resource.Meta{}); err != nil {
			return err
		}
	}
	k := compute.KeyPair{Meta: resource.Meta{Name: b.text("name")}, UserID: user, Type: b.text("type"), Public: b.text("public_key")}
	private := ""
	if !b.has("public_key") {
		if k.Public, private, err = compute.GenerateKey(k.Type, compute.RSA, "Generated-by-Nova"); err != nil {
			return err
		}
	}
	made, err := s.compute.ImportKeyPair(r.Context(), k)
	if err != nil {
		return err
	}
	view := keyPairView(minorOf(r), made)
	view["user_id"] = made.UserID.Hex()
	if private != "" {
		view["private_key"] = private
	}
	status := http.StatusOK
	if minorOf(r) >= 2 {
		status = http.StatusCreated
	}
	return answer(w, status, map[string]any{"keypair": view})
}

func (s *server) deleteKeyPair(w http.ResponseWriter, r *http.Request) error {
	if err := onlyKnown(r, 75, "user_id"); err != nil {
		return err
	}
	user, err := userOf(r, r.URL.Query().Get("user_id"))
	if err != nil {
		return err
	}
	if err := s.compute.DeleteKeyPair(r.Context(), user, r.PathValue("name")); err != nil {
		return err
	}
	if minorOf(r) >= 2 {
		return accepted(w, http.StatusNoContent)
	}
	return accepted(w, http.StatusAccepted)
}
