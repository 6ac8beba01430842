package glance

import (
	"encoding/json"
	"mime"
	"net/http"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/image"
)

// A change is one line of a patch.
type change struct {
	op    string // "add", "replace" or "remove"
	name  string // of the attribute or property
	under string // what follows the name in the path, e.g. "-" in a list
	value json.RawMessage
}

// The two spellings of a patch (api-ref "HTTP PATCH media types"), and who reads them.
var patches = map[string]func(map[string]json.RawMessage) (op, path string, err error){
	"application/openstack-images-v2.1-json-patch": func(line map[string]json.RawMessage) (op, path string, err error) {
		for key, into := range map[string]*string{"op": &op, "path": &path} {
			if line[key] == nil || json.Unmarshal(line[key], into) != nil {
				return "", "", fault.Errorf(fault.Invalid, "Unable to find '%s' in JSON Schema change", key)
			}
		}
		return op, path, nil
	},
	"application/openstack-images-v2.0-json-patch": func(line map[string]json.RawMessage) (op, path string, err error) {
		for _, key := range []string{"add", "replace", "remove"} {
			if line[key] == nil {
				continue
			}
			if op != "" || json.Unmarshal(line[key], &path) != nil {
				return "", "", fault.Errorf(fault.Invalid, "Operation objects must contain only one member named \"add\", \"remove\", or \"replace\", a path.")
			}
			op = key
		}
		if op == "" {
			return "", "", fault.Errorf(fault.Invalid, "Operation objects must contain exactly one member named \"add\", \"remove\", or \"replace\".")
		}
		return op, path, nil
	},
}

const acceptPatch = "application/openstack-images-v2.1-json-patch, application/openstack-images-v2.0-json-patch"

func (s *server) updateImage(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	changes, err := readPatch(w, r)
	if err != nil {
		return err
	}
	i, err := s.images.Update(r.Context(), id, func(i *image.Image) error {
		for _, c := range changes {
			if err := c.apply(i); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, view(i))
}

func readPatch(w http.ResponseWriter, r *http.Request) ([]change, error) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	read := patches[media]
	if err != nil || read == nil {
		w.Header().Set("Accept-Patch", acceptPatch)
		return nil, fault.Errorf(fault.Invalid, "The server accepts a patch as %s.", acceptPatch).WithCode("media-type")
	}
	var lines []map[string]json.RawMessage
	if err := openstack.Decode(r, &lines); err != nil {
		return nil, fault.Errorf(fault.Invalid, "Request body must be a JSON array of operation objects.")
	}
	changes := make([]change, len(lines))
	for n, line := range lines {
		op, path, err := read(line)
		if err != nil {
			return nil, err
		}
		if changes[n], err = parseChange(op, path, line["value"]); err != nil {
			return nil, err
		}
	}
	return changes, nil
}

func parseChange(op, path string, value json.RawMessage) (change, error) {
	var c change
	if op != "add" && op != "replace" && op != "remove" {
		return c, fault.Errorf(fault.Invalid, "Operations must be one of add, replace, remove; '%.32s' is not.", op)
	}
	if !strings.HasPrefix(path, "/") || len(path) < 2 || strings.HasSuffix(path, "/") || strings.Contains(path, "//") {
		return c, fault.Errorf(fault.Invalid, "Pointer '%.255s' does not start with \"/\", or ends with it.", path)
	}
	name, under, deep := strings.Cut(path[1:], "/")
	for _, part := range []*string{&name, &under} {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(*part), "~") {
			return c, fault.Errorf(fault.Invalid, "Pointer '%.255s' contains \"~\" not part of a recognized escape sequence.", path)
		}
		*part = strings.NewReplacer("~1", "/", "~0", "~").Replace(*part)
	}
	if deep && name != "tags" && name != "locations" {
		return c, fault.Errorf(fault.Invalid, "Invalid JSON pointer for this resource: '%.255s'", path)
	}
	if op != "remove" && value == nil {
		return c, fault.Errorf(fault.Invalid, "Operation \"%s\" requires a member named \"value\".", op)
	}
	return change{op, name, under, value}, nil
}

// apply changes an image, or says why it cannot.
func (c change) apply(i *image.Image) error {
	if err := writable(c.name); err != nil {
		return err
	}
	if c.name == "id" {
		return fault.Errorf(fault.Forbidden, "Attribute 'id' is read-only.")
	}
	set, known := attributes[c.name]
	switch {
	case c.under != "":
		return c.applyTag(i)
	case known && c.op == "remove":
		return fault.Errorf(fault.Forbidden, "Property %s may not be removed.", c.name)
	case known:
		return set(i, c.value)
	}
	all := properties(i)
	if _, ok := all[c.name]; !ok && c.op != "add" {
		return fault.Errorf(fault.Conflict, "Property %s does not exist.", c.name)
	}
	if c.op == "remove" {
		delete(all, c.name)
	} else {
		var value string
		if err := decode(c.value, c.name, "a string", &value); err != nil {
			return err
		}
		all[c.name] = value
	}
	setProperties(&i.Spec, all)
	return nil
}

// applyTag appends one tag: the only thing that can be done inside of a list.
func (c change) applyTag(i *image.Image) error {
	if c.op != "add" || c.under != "-" {
		return fault.Errorf(fault.Invalid, "Invalid JSON pointer for this resource: '/%s/%.255s'", c.name, c.under)
	}
	var tag string
	if err := decode(c.value, "tags", "a string", &tag); err != nil {
		return err
	}
	i.Tags = append(i.Tags, tag)
	return nil
}
