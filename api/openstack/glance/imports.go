package glance

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/operation"
)

// store is the name of the one place where bytes are kept.
const store = "default"

// importMethods are those that are offered. The others fetch an address that a tenant names
// from inside of the cloud.
var importMethods = []string{"glance-direct", "copy-image"}

// methods are the names of our operations as imports.
var methods = map[string]string{"import": "glance-direct", "copy": "copy-image"}

func (s *server) importInfo(w http.ResponseWriter, _ *http.Request) error {
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"import-methods": map[string]any{
		"description": "Import methods available.", "type": "array", "value": importMethods,
	}})
}

func (s *server) stores(w http.ResponseWriter, _ *http.Request) error {
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"stores": []map[string]any{
		{"id": store, "description": "The cloud's own store", "default": "true"},
	}})
}

func (s *server) storesDetail(w http.ResponseWriter, r *http.Request) error {
	if err := s.admin(r); err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"stores": []map[string]any{
		{"id": store, "description": "The cloud's own store", "default": "true", "type": "file", "weight": 0, "properties": map[string]any{}},
	}})
}

// usage shows a project what it has of its limits ("Quota usage"). Sizes are in MiB, begun ones counted.
// An operator sets the limits as unified limits of service type image (Identity API).
func (s *server) usage(w http.ResponseWriter, r *http.Request) error {
	u, err := s.images.Usage(r.Context())
	if err != nil {
		return err
	}
	of := func(limit, used, unit int64) map[string]int64 {
		most := max(limit, 0) / unit
		if limit == 0 {
			most = -1
		}
		return map[string]int64{"limit": most, "usage": (used + unit - 1) / unit}
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"usage": map[string]any{
		"image_count_total":     of(u.Limits.Images, u.Images, 1),
		"image_size_total":      of(u.Limits.Bytes, u.Bytes, 1<<20),
		"image_count_uploading": of(u.Limits.Transfers, u.Transfers, 1),
	}})
}

// admin asks for what only an operator may know.
func (s *server) admin(r *http.Request) error {
	return identity.Allow(r.Context(), "image.diagnose", resource.Meta{})
}

func (s *server) deleteFromStore(w http.ResponseWriter, r *http.Request) error {
	if err := s.admin(r); err != nil {
		return err
	}
	id, err := imageID(r)
	if err != nil {
		return err
	}
	i, err := s.images.Get(r.Context(), id)
	if err != nil {
		return err
	}
	if r.PathValue("store") != store || i.State != image.Active {
		return fault.Errorf(fault.NotFound, "Image %s is not stored on store %.64s.", id, r.PathValue("store"))
	}
	return fault.Errorf(fault.Forbidden, "Cannot delete image %s from its only store.", id)
}

func noCache(http.ResponseWriter, *http.Request) error {
	return fault.Errorf(fault.NotFound, "Caching via API is not supported at this site.")
}

func (s *server) importImage(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	var body struct {
		Method *struct {
			Name string `json:"name"`
		} `json:"method"`
		Stores   []string `json:"stores"`
		All      *bool    `json:"all_stores"`
		MustFull *bool    `json:"all_stores_must_succeed"`
	}
	if err := openstack.Decode(r, &body); err != nil {
		return err
	}
	switch {
	case body.Method == nil || body.Method.Name == "":
		return fault.Errorf(fault.Invalid, "Import request requires a 'method' field with a 'name'.")
	case body.All != nil && *body.All && len(body.Stores) > 0:
		return fault.Errorf(fault.Invalid, "The all_stores parameter can't be used with the stores parameter.")
	}
	for _, at := range append(body.Stores, r.Header.Values("X-Image-Meta-Store")...) {
		if at != store {
			return fault.Errorf(fault.Invalid, "Store '%.64s' is not known.", at)
		}
	}
	switch body.Method.Name {
	case "glance-direct":
		err = s.images.Import(r.Context(), id)
	case "copy-image":
		err = s.images.Copy(r.Context(), id)
	default:
		err = fault.Errorf(fault.Invalid, "Unknown import method name '%.64s'.", body.Method.Name)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// taskStatuses are Glance's words for how an operation stands.
var taskStatuses = map[operation.Outcome]string{
	operation.Running: "processing", operation.Succeeded: "success", operation.Failed: "failure", operation.Cancelled: "failure",
}

type task struct {
	ID        string         `json:"id"`
	Type      string         `json:"type"`
	Status    string         `json:"status"`
	Owner     string         `json:"owner"`
	UserID    string         `json:"user_id"`
	RequestID string         `json:"request_id"`
	ImageID   string         `json:"image_id"`
	Input     map[string]any `json:"input"`
	Result    map[string]any `json:"result"`
	Message   string         `json:"message"`
	CreatedAt string         `json:"created_at"`
	UpdatedAt string         `json:"updated_at"`
	ExpiresAt *string        `json:"expires_at"`
	Self      string         `json:"self"`
	Schema    string         `json:"schema"`
}

func taskView(o *operation.Operation) task {
	t := task{
		ID: o.ID.String(), Type: "api_image_import", Status: taskStatuses[o.Outcome], Owner: hexOf(o.AsProject),
		UserID: hexOf(o.UserID), RequestID: o.RequestID, ImageID: o.TargetID.String(), Message: o.Message,
		Input: map[string]any{"image_id": o.TargetID.String(), "import_req": map[string]any{
			"method": map[string]any{"name": methods[o.Verb]},
		}},
		CreatedAt: stamp(o.CreatedAt), UpdatedAt: stamp(o.UpdatedAt),
		Self: "/v2/tasks/" + o.ID.String(), Schema: "/v2/schemas/task",
	}
	if o.Outcome == operation.Succeeded {
		t.Result = map[string]any{"image_id": o.TargetID.String()}
	}
	return t
}

func (s *server) listImageTasks(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	done, err := s.images.Operations(r.Context(), id)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"tasks": tasks(done)})
}

func tasks(operations []*operation.Operation) []task {
	list := []task{}
	for _, o := range operations {
		if methods[o.Verb] != "" {
			list = append(list, taskView(o))
		}
	}
	return list
}

func (s *server) listTasks(w http.ResponseWriter, r *http.Request) error {
	all, err := s.images.Recent(r.Context(), pageMost)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"tasks": tasks(all), "first": "/v2/tasks", "schema": "/v2/schemas/tasks"})
}

func (s *server) showTask(w http.ResponseWriter, r *http.Request) error {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return fault.Missing("Task", r.PathValue("id"))
	}
	o, err := s.images.Operation(r.Context(), id)
	if err != nil {
		return err
	}
	if methods[o.Verb] == "" {
		return fault.Missing("Task", id)
	}
	return wire.WriteJSON(w, http.StatusOK, taskView(o))
}
