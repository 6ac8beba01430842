package glance

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// statuses are Glance's words for our states ("Image statuses").
var statuses = map[image.State]string{
	image.Queued: "queued", image.Receiving: "saving", image.Staging: "uploading", image.Staged: "uploading",
	image.Importing: "importing", image.Active: "active", image.Deactivated: "deactivated", image.Deleting: "deleted",
}

// view is an image as Glance shows it.
func view(i *image.Image) map[string]any {
	path := "/v2/images/" + i.ID.String()
	v := map[string]any{
		"id": i.ID.String(), "name": orNull(i.Name), "status": statuses[i.State], "visibility": string(i.Visibility),
		"owner": orNull(hexOf(i.ProjectID)), "protected": i.Protected, "os_hidden": i.Hidden,
		"disk_format": orNull(i.Format), "container_format": orNull(i.Container),
		"min_disk": i.MinDiskGiB, "min_ram": i.MinMemoryMiB, "tags": i.Tags,
		"size": nil, "virtual_size": nil, "checksum": nil, "os_hash_algo": nil, "os_hash_value": nil,
		"created_at": stamp(i.CreatedAt), "updated_at": stamp(i.UpdatedAt),
		"self": path, "file": path + "/file", "schema": "/v2/schemas/image",
	}
	if i.Tags == nil {
		v["tags"] = []string{}
	}
	if i.State == image.Active || i.State == image.Deactivated {
		v["size"], v["checksum"] = i.Bytes, i.MD5
		v["os_hash_algo"], v["os_hash_value"] = "sha512", i.SHA512
		v["stores"] = store
		if i.VirtualBytes > 0 {
			v["virtual_size"] = i.VirtualBytes
		}
	}
	if i.Imported {
		v["os_glance_importing_to_stores"], v["os_glance_failed_import"] = "", ""
		switch {
		case i.State == image.Importing:
			v["os_glance_importing_to_stores"] = store
		case i.State == image.Queued && i.Trouble != "":
			v["os_glance_failed_import"] = store
		}
	}
	for key, value := range properties(i) {
		if _, taken := v[key]; !taken {
			v[key] = value
		}
	}
	return v
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// hexOf is how projects are spelled.
func hexOf(id resource.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.Hex()
}

// machine are the properties that say something about a guest's machine: those whose
// value we know are kept in the core's own words, any other as they came.
var machine = map[string]struct {
	get func(*image.Boot) string
	set func(*image.Boot, string) bool // false: not a value that we know
}{
	"kernel_id":        idProperty(func(b *image.Boot) *resource.ID { return &b.KernelID }),
	"ramdisk_id":       idProperty(func(b *image.Boot) *resource.ID { return &b.InitrdID }),
	"os_command_line":  wordProperty(func(b *image.Boot) *string { return &b.Cmdline }),
	"hw_firmware_type": wordProperty(func(b *image.Boot) *string { return &b.Firmware }, "bios", "uefi"),
	"hw_machine_type":  wordProperty(func(b *image.Boot) *string { return &b.Machine }, "pc", "q35"),
	"hw_disk_bus":      wordProperty(func(b *image.Boot) *string { return &b.DiskBus }, "virtio", "scsi", "ide"),
	"hw_vif_model":     wordProperty(func(b *image.Boot) *string { return &b.NICModel }, "virtio", "e1000"),
}

type machineProperty = struct {
	get func(*image.Boot) string
	set func(*image.Boot, string) bool
}

func idProperty(field func(*image.Boot) *resource.ID) machineProperty {
	return machineProperty{
		func(b *image.Boot) string {
			if id := *field(b); !id.IsZero() {
				return id.String()
			}
			return ""
		},
		func(b *image.Boot, s string) bool {
			id, err := resource.ParseID(s)
			if err != nil || id.IsZero() || id.String() != s {
				return false
			}
			*field(b) = id
			return true
		},
	}
}

// wordProperty is one of some words; any word if none is given.
func wordProperty(field func(*image.Boot) *string, words ...string) machineProperty {
	return machineProperty{
		func(b *image.Boot) string { return *field(b) },
		func(b *image.Boot, s string) bool {
			if s == "" || len(words) > 0 && !slices.Contains(words, s) {
				return false
			}
			*field(b) = s
			return true
		},
	}
}

// properties is everything that an image says beyond Glance's own attributes.
func properties(i *image.Image) map[string]string {
	all := maps.Clone(i.Properties)
	if all == nil {
		all = map[string]string{}
	}
	for key, p := range machine {
		if value := p.get(&i.Boot); value != "" {
			all[key] = value
		}
	}
	return all
}

// setProperties takes properties apart into what we know and the rest.
func setProperties(s *image.Spec, all map[string]string) {
	s.Boot, s.Properties = image.Boot{}, map[string]string{}
	for key, value := range all {
		if p, ok := machine[key]; !ok || !p.set(&s.Boot, value) {
			s.Properties[key] = value
		}
	}
}

// Attributes that nobody writes, and those that only Glance itself does.
var (
	readOnly = []string{"created_at", "updated_at", "status", "checksum", "size", "virtual_size", "direct_url", "os_hash_algo", "os_hash_value", "deleted", "deleted_at"}
	reserved = []string{"self", "file", "schema", "stores", "locations"}
)

func writable(name string) error {
	switch {
	case slices.Contains(readOnly, name):
		return fault.Errorf(fault.Forbidden, "Attribute '%s' is read-only.", name)
	case slices.Contains(reserved, name) || strings.HasPrefix(name, "os_glance"):
		return fault.Errorf(fault.Forbidden, "Attribute '%s' is reserved.", name)
	}
	return nil
}

// attributes are those that an owner writes, and what a value does to the image.
var attributes = map[string]func(i *image.Image, value json.RawMessage) error{
	"name":             func(i *image.Image, v json.RawMessage) error { return text(v, "name", &i.Name) },
	"disk_format":      func(i *image.Image, v json.RawMessage) error { return text(v, "disk_format", &i.Format) },
	"container_format": func(i *image.Image, v json.RawMessage) error { return text(v, "container_format", &i.Container) },
	"visibility": func(i *image.Image, v json.RawMessage) error {
		var s string
		err := decode(v, "visibility", "a string", &s)
		i.Visibility = image.Visibility(s)
		return err
	},
	"protected": func(i *image.Image, v json.RawMessage) error {
		return decode(v, "protected", "a boolean", &i.Protected)
	},
	"os_hidden": func(i *image.Image, v json.RawMessage) error { return decode(v, "os_hidden", "a boolean", &i.Hidden) },
	"min_disk": func(i *image.Image, v json.RawMessage) error {
		return decode(v, "min_disk", "an integer", &i.MinDiskGiB)
	},
	"min_ram": func(i *image.Image, v json.RawMessage) error {
		return decode(v, "min_ram", "an integer", &i.MinMemoryMiB)
	},
	"tags": func(i *image.Image, v json.RawMessage) error {
		i.Tags = nil
		return decode(v, "tags", "a list of strings", &i.Tags)
	},
	"owner": func(i *image.Image, v json.RawMessage) error {
		var s string
		if err := text(v, "owner", &s); err != nil {
			return err
		}
		id, err := resource.ParseID(s)
		if err != nil {
			return fault.InvalidField("owner", "must be the ID of a project")
		}
		i.ProjectID = id
		return nil
	},
}

func decode(raw json.RawMessage, name, what string, into any) error {
	if string(raw) == "null" || json.Unmarshal(raw, into) != nil {
		return fault.Errorf(fault.Invalid, "Provided object does not match schema 'image': the value of '%s' is not %s.", name, what)
	}
	return nil
}

// text reads a string or null.
func text(raw json.RawMessage, name string, into *string) error {
	*into = ""
	if string(raw) == "null" {
		return nil
	}
	return decode(raw, name, "a string", into)
}

// fields of a JSON object, as they came.
type fields = map[string]json.RawMessage

func readObject(r *http.Request) (fields, error) {
	var body fields
	if err := openstack.Decode(r, &body); err != nil {
		return nil, err
	}
	if body == nil {
		return nil, fault.Errorf(fault.Invalid, "Malformed request body: a JSON object is expected.")
	}
	return body, nil
}

func (s *server) createImage(w http.ResponseWriter, r *http.Request) error {
	body, err := readObject(r)
	if err != nil {
		return err
	}
	var i image.Image
	all := map[string]string{}
	for key, value := range body {
		if err := writable(key); err != nil {
			return err
		}
		switch set := attributes[key]; {
		case key == "id":
			var id string
			if err := decode(value, key, "a UUID", &id); err != nil {
				return err
			}
			if i.ID, err = resource.ParseID(id); err != nil || i.ID.IsZero() {
				return fault.InvalidField("id", "must be a UUID")
			}
		case set != nil:
			if err := set(&i, value); err != nil {
				return err
			}
		default:
			var p string
			if err := decode(value, key, "a string", &p); err != nil {
				return err
			}
			all[key] = p
		}
	}
	setProperties(&i.Spec, all)
	made, err := s.images.Create(r.Context(), image.Request{ID: i.ID, ProjectID: i.ProjectID, Name: i.Name, Spec: i.Spec})
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Location", wire.BaseURL(r)+prefix+"/v2/images/"+made.ID.String())
	h.Set("OpenStack-image-import-methods", strings.Join(importMethods, ","))
	h.Set("OpenStack-image-store-ids", store)
	return wire.WriteJSON(w, http.StatusCreated, view(made))
}

func (s *server) showImage(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	i, err := s.images.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, view(i))
}

func (s *server) deleteImage(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	if err := s.images.Delete(r.Context(), id); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) deactivate(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	if err := s.images.Deactivate(r.Context(), id); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) reactivate(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	if err := s.images.Reactivate(r.Context(), id); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) addTag(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	tag := r.PathValue("tag")
	if _, err := s.images.Update(r.Context(), id, func(i *image.Image) error {
		i.Tags = append(i.Tags, tag)
		return nil
	}); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) deleteTag(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	tag := r.PathValue("tag")
	if _, err := s.images.Update(r.Context(), id, func(i *image.Image) error {
		n := slices.Index(i.Tags, tag)
		if n < 0 {
			return fault.Missing("Tag", tag)
		}
		i.Tags = slices.Delete(i.Tags, n, n+1)
		return nil
	}); err != nil {
		return err
	}
	return noContent(w)
}
