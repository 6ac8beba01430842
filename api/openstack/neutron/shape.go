package neutron

import (
	"fmt"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
)

// object is a JSON object on its way out.
type object map[string]any

// only keeps the fields that were asked for.
func only(o object, fields []string) object {
	if len(fields) == 0 {
		return o
	}
	for name := range o {
		if !slices.Contains(fields, name) {
			delete(o, name)
		}
	}
	return o
}

// standard are the attributes that every shape begins with.
func standard(m *resource.Meta, description string, tags []string) object {
	if tags == nil {
		tags = []string{}
	}
	o := owned(m)
	o["description"], o["tags"] = description, tags
	o["created_at"], o["updated_at"] = stamp(m.CreatedAt), stamp(m.UpdatedAt)
	o["revision_number"] = m.Revision
	return o
}

func owned(m *resource.Meta) object {
	project := projectText(m.ProjectID)
	return object{"id": m.ID.String(), "name": m.Name, "project_id": project, "tenant_id": project}
}

// projectText spells a project's ID as Keystone does; what belongs to none has the empty text.
func projectText(id resource.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.Hex()
}

func idOrNull(id resource.ID) any {
	if id.IsZero() {
		return nil
	}
	return id.String()
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.String()
	}
	return out
}
