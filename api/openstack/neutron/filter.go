package neutron

import (
	"maps"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A filter reads a query's parameter as a condition on one of the core's fields.
type filter struct {
	field string
	read  func(string) []string // nil: as it is
	mode  network.Mode

	noSort bool // not a sort key
}

// common are the filters of every kind; own are the kind's.
func common(own map[string]filter) map[string]filter {
	fs := map[string]filter{
		"id": {field: "id", read: idText}, "name": {field: "name"},
		"project_id": {field: "project", read: idText}, "tenant_id": {field: "project", read: idText},
		"created_at": {field: "created"}, "updated_at": {field: "updated"}, "revision_number": {field: "revision"},
	}
	maps.Copy(fs, own)
	return fs
}

// tagged are the filters of kinds with tags (extension standard-attr-tag).
func tagged(own map[string]filter) map[string]filter {
	split := func(s string) []string { return strings.Split(s, ",") }
	fs := common(map[string]filter{
		"tags":         {field: "tag", read: split, mode: network.All, noSort: true},
		"tags-any":     {field: "tag", read: split, noSort: true},
		"not-tags":     {field: "tag", read: split, mode: network.NotAll, noSort: true},
		"not-tags-any": {field: "tag", read: split, mode: network.None, noSort: true},
		"description":  {field: "description"},
	})
	maps.Copy(fs, own)
	return fs
}

// Readers of filters' values.

func idText(s string) []string {
	if id, err := resource.ParseID(s); err == nil {
		return []string{id.String()}
	}
	return []string{s}
}

func boolText(s string) []string {
	b, err := parseBool("", s)
	if err != nil {
		return []string{s}
	}
	return []string{strconv.FormatBool(b)}
}

func lowerText(s string) []string { return []string{strings.ToLower(s)} }
