package glance

import (
	"net/http"
	"sync"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/image"
)

// document is a part of a JSON schema.
type document = map[string]any

func (s *server) schema(w http.ResponseWriter, r *http.Request) error {
	found := schemas()[r.PathValue("name")]
	if found == nil {
		return fault.Errorf(fault.NotFound, "The resource could not be found.")
	}
	return wire.WriteJSON(w, http.StatusOK, found)
}

// property is a schema of one value. types beyond the first mean "or".
func property(description string, types ...string) document {
	d := document{"description": description}
	if len(types) == 1 {
		d["type"] = types[0]
	} else {
		d["type"] = types
	}
	return d
}

func fixed(d document) document {
	d["readOnly"] = true
	return d
}

func among(d document, words ...any) document {
	d["enum"] = words
	return d
}

// words gives a list's texts, and null.
func words(list []string) []any {
	all := []any{nil}
	for _, s := range list {
		all = append(all, s)
	}
	return all
}

// collection is the schema of a list of what another schema describes.
func collection(name, list string, item document) document {
	return document{
		"name": name,
		"properties": document{
			list:    document{"type": "array", "items": item},
			"first": document{"type": "string"}, "next": document{"type": "string"}, "schema": document{"type": "string"},
		},
		"links": []document{{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}, {"rel": "describedby", "href": "{schema}"}},
	}
}

// schemas are the answers to /v2/schemas, by name ("Image schemas", "Metadata definition schemas").
var schemas = sync.OnceValue(func() map[string]document {
	img := imageSchema()
	mem := document{"name": "member", "properties": document{
		"created_at": property("Date and time of image member creation", "string"),
		"image_id":   document{"description": "An identifier for the image", "type": "string", "pattern": uuidPattern},
		"member_id":  property("An identifier for the image member (tenantId)", "string"),
		"status":     among(property("The status of this image member", "string"), "pending", "accepted", "rejected"),
		"updated_at": property("Date and time of last modification of image member", "string"),
		"schema":     fixed(document{"type": "string"}),
	}}
	tsk := document{"name": "task", "properties": document{
		"id": fixed(document{"type": "string", "pattern": uuidPattern}), "type": document{"type": "string"},
		"status": among(property("The current status of this task", "string"), "pending", "processing", "success", "failure"),
		"owner":  document{"type": "string"}, "user_id": document{"type": "string"}, "request_id": document{"type": "string"}, "image_id": document{"type": "string"},
		"input": property("The parameters required by task", "null", "object"), "result": property("The result of current task", "null", "object"),
		"message":    property("Human-readable informative message", "null", "string"),
		"created_at": document{"type": "string"}, "updated_at": document{"type": "string"}, "expires_at": document{"type": []string{"null", "string"}},
		"self": fixed(document{"type": "string"}), "schema": fixed(document{"type": "string"}),
	}}
	all := map[string]document{
		"image": img, "images": collection("images", "images", img),
		"member": mem, "members": collection("members", "members", mem),
		"task": tsk, "tasks": collection("tasks", "tasks", tsk),
	}
	for path, d := range metadefSchemas() {
		all["metadefs/"+path] = d
	}
	return all
})

const uuidPattern = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"

func imageSchema() document {
	text := document{"type": "string", "maxLength": 255}
	return document{
		"name": "image",
		"properties": document{
			"id":               document{"type": "string", "pattern": uuidPattern, "description": "An identifier for the image"},
			"name":             document{"type": []string{"null", "string"}, "maxLength": 255, "description": "Descriptive name for the image"},
			"status":           fixed(among(property("Status of the image", "string"), "queued", "saving", "active", "killed", "deleted", "uploading", "importing", "pending_delete", "deactivated")),
			"visibility":       among(property("Scope of image accessibility", "string"), "community", "public", "private", "shared"),
			"protected":        property("If true, image will not be deletable.", "boolean"),
			"os_hidden":        property("If true, image will not appear in default image list response.", "boolean"),
			"checksum":         fixed(property("md5 hash of image contents.", "null", "string")),
			"os_hash_algo":     fixed(property("Algorithm to calculate the os_hash_value", "null", "string")),
			"os_hash_value":    fixed(property("Hexdigest of the image contents using the algorithm specified by the os_hash_algo", "null", "string")),
			"owner":            property("Owner of the image", "null", "string"),
			"size":             fixed(property("Size of image file in bytes", "null", "integer")),
			"virtual_size":     fixed(property("Virtual size of image in bytes", "null", "integer")),
			"container_format": among(property("Format of the container", "null", "string"), words(image.Containers)...),
			"disk_format":      among(property("Format of the disk", "null", "string"), words(image.Formats)...),
			"created_at":       fixed(property("Date and time of image registration", "string")),
			"updated_at":       fixed(property("Date and time of the last image modification", "string")),
			"tags":             document{"type": "array", "items": text, "description": "List of strings related to the image"},
			"min_ram":          property("Amount of ram (in MB) required to boot image.", "integer"),
			"min_disk":         property("Amount of disk space (in GB) required to boot image.", "integer"),
			"self":             fixed(property("An image self url", "string")),
			"file":             fixed(property("An image file url", "string")),
			"schema":           fixed(property("An image schema url", "string")),
			"stores":           fixed(property("Store in which image data resides.", "string")),
			"kernel_id":        document{"type": []string{"null", "string"}, "is_base": false, "description": "ID of image stored in Glance that should be used as the kernel when booting an AMI-style image."},
			"ramdisk_id":       document{"type": []string{"null", "string"}, "is_base": false, "description": "ID of image stored in Glance that should be used as the ramdisk when booting an AMI-style image."},
			"architecture":     document{"type": "string", "is_base": false, "description": "Operating system architecture"},
			"os_distro":        document{"type": "string", "is_base": false, "description": "Common name of operating system distribution"},
			"os_version":       document{"type": "string", "is_base": false, "description": "Operating system version as specified by the distributor."},
			"instance_uuid":    document{"type": "string", "is_base": false, "description": "Which server this image was made from."},
		},
		"additionalProperties": document{"type": "string"},
		"links":                []document{{"rel": "self", "href": "{self}"}, {"rel": "enclosure", "href": "{file}"}, {"rel": "describedby", "href": "{schema}"}},
	}
}

func metadefSchemas() map[string]document {
	str, boolean := document{"type": "string"}, document{"type": "boolean"}
	stamps := func(d document) document {
		for _, key := range []string{"created_at", "updated_at"} {
			d[key] = fixed(document{"type": "string", "format": "date-time"})
		}
		return d
	}
	prop := document{"name": "property", "required": []string{"name", "title", "type"}, "additionalProperties": false, "properties": document{
		"name": str, "title": str, "description": str, "operators": document{"type": "array", "items": str},
		"type": among(document{"type": "string"}, "array", "boolean", "integer", "number", "object", "string", nil), "readonly": boolean,
		"enum": document{"type": "array"}, "default": document{}, "items": document{"type": "object"},
		"minimum": document{"type": "number"}, "maximum": document{"type": "number"}, "minLength": document{"type": "integer"},
		"maxLength": document{"type": "integer"}, "minItems": document{"type": "integer"}, "maxItems": document{"type": "integer"},
		"uniqueItems": boolean, "additionalItems": boolean, "pattern": document{"type": "string", "format": "regex"},
	}}
	object := document{"name": "object", "required": []string{"name"}, "additionalProperties": false, "properties": stamps(document{
		"name": str, "description": str, "required": document{"type": "array", "items": str}, "properties": document{"type": "object"},
		"self": fixed(document{"type": "string"}), "schema": fixed(document{"type": "string"}),
	})}
	tag := document{"name": "tag", "required": []string{"name"}, "additionalProperties": false, "properties": stamps(document{"name": str})}
	kind := document{"name": "resource_type_association", "required": []string{"name"}, "additionalProperties": false, "properties": stamps(document{
		"name": str, "prefix": str, "properties_target": str,
	})}
	namespace := document{"name": "namespace", "required": []string{"namespace"}, "additionalProperties": false, "properties": stamps(document{
		"namespace": document{"type": "string", "maxLength": 80}, "display_name": document{"type": "string", "maxLength": 80},
		"description": document{"type": "string", "maxLength": 500}, "visibility": among(document{"type": "string"}, "public", "private"),
		"protected": boolean, "owner": document{"type": "string", "maxLength": 255}, "self": fixed(document{"type": "string"}), "schema": fixed(document{"type": "string"}),
		"resource_type_associations": document{"type": "array"}, "properties": document{"type": "object"}, "objects": document{"type": "array"}, "tags": document{"type": "array"},
	})}
	return map[string]document{
		"namespace": namespace, "namespaces": collection("namespaces", "namespaces", namespace),
		"object": object, "objects": collection("objects", "objects", object),
		"property": prop, "properties": collection("properties", "properties", prop),
		"tag": tag, "tags": collection("tags", "tags", tag),
		"resource_type": kind, "resource_types": collection("resource_type_associations", "resource_type_associations", kind),
	}
}
