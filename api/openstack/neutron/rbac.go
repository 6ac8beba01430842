package neutron

import (
	"encoding/json"
	"maps"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// Neutron's words for what can be shared, and how.
var (
	sharedKinds = map[string]network.SharedKind{
		"network": network.SharedNetwork, "security_group": network.SharedGroup, "subnetpool": network.SharedPool,
		"address_scope": network.SharedScope, "address_group": network.SharedSet,
	}
	shareActions = map[string]network.ShareAction{"access_as_shared": network.ShareUse, "access_as_external": network.ShareExternal}
)

func (s *server) rbacPolicy() *kind[network.Share] {
	type S = network.Share
	return &kind[S]{
		name: "rbac_policy", plural: "rbac_policies", path: "/rbac-policies", things: s.networks.Shares,
		fresh: func(*identity.Actor) *S { return new(S) },
		attributes: []attribute[S]{
			word("object_type", sharedKinds, func(s *S) *network.SharedKind { return &s.Kind }),
			idAttr("object_id", func(s *S) *resource.ID { return &s.ObjectID }).create().must(),
			word("action", shareActions, func(s *S) *network.ShareAction { return &s.Action }),
			target("target_tenant").must(), target("target_project"),
		},
		shape: func(_ *call, s *S) object {
			o := owned(&s.Meta)
			delete(o, "name")
			o["object_type"], o["action"] = wordOf(sharedKinds, s.Kind), wordOf(shareActions, s.Action)
			o["object_id"] = s.ObjectID.String()
			o["target_tenant"] = "*"
			if !s.Target.IsZero() {
				o["target_tenant"] = projectText(s.Target)
			}
			return o
		},
		filters: map[string]filter{
			"id": {field: "id", read: idText}, "project_id": {field: "project", read: idText}, "tenant_id": {field: "project", read: idText},
			"object_type":   {field: "kind", read: func(v string) []string { return []string{string(sharedKinds[v])} }},
			"action":        {field: "action", read: func(v string) []string { return []string{string(shareActions[v])} }},
			"object_id":     {field: "object", read: idText},
			"target_tenant": {field: "target", read: targetText}, "target_project": {field: "target", read: targetText},
		},
	}
}

// word is an attribute whose values have words of their own.
func word[T any, V ~string](name string, words map[string]V, at func(*T) *V) attribute[T] {
	return attribute[T]{name: name, post: true, required: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		s, err := readText(name, in, 64)
		if err != nil {
			return nil, err
		}
		v, ok := words[s]
		if !ok {
			return nil, bad("HTTPBadRequest", "Invalid input for %s: '%s' is not one of its values.", name, s)
		}
		return func(t *T) error { *at(t) = v; return nil }, nil
	}}
}

func wordOf[V comparable](words map[string]V, v V) string {
	for w := range maps.Keys(words) {
		if words[w] == v {
			return w
		}
	}
	return ""
}

// target reads a project's ID, or "*" for every project.
func target(name string) attribute[network.Share] {
	return attribute[network.Share]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*network.Share) error, error) {
		if string(in) == `"*"` {
			return func(s *network.Share) error { s.Target = resource.ID{}; return nil }, nil
		}
		id, err := readID(name, in)
		return func(s *network.Share) error { s.Target = id; return nil }, err
	}}
}

func targetText(s string) []string {
	if s == "*" {
		return []string{""}
	}
	return idText(s)
}
