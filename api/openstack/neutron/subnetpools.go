package neutron

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func (s *server) subnetPool() *kind[network.SubnetPool] {
	type P = network.SubnetPool
	return &kind[P]{
		name: "subnetpool", plural: "subnetpools", path: "/subnetpools", things: s.networks.Pools,
		fresh: func(*identity.Actor) *P { return new(P) },
		attributes: append(named(func(p *P) *string { return &p.Description }),
			attribute[P]{name: "prefixes", post: true, put: true, required: true, parse: parsePrefixes},
			nullableNumber("default_prefixlen", func(p *P) *int { return &p.DefaultBits }),
			nullableNumber("min_prefixlen", func(p *P) *int { return &p.MinBits }),
			nullableNumber("max_prefixlen", func(p *P) *int { return &p.MaxBits }),
			attribute[P]{name: "default_quota", post: true, put: true, parse: parsePoolQuota},
			boolAttr("shared", func(p *P) *bool { return &p.Shared }).create(),
			boolAttr("is_default", func(p *P) *bool { return &p.Default }),
			idAttr("address_scope_id", func(p *P) *resource.ID { return &p.ScopeID }),
		),
		shape: func(c *call, p *P) object {
			o := standard(&p.Meta, p.Description, p.Tags)
			o["prefixes"] = texts(p.Prefixes)
			o["ip_version"] = ipVersion(p.V6())
			o["default_prefixlen"] = strconv.Itoa(p.DefaultBits)
			o["min_prefixlen"], o["max_prefixlen"] = strconv.Itoa(p.MinBits), strconv.Itoa(p.MaxBits)
			o["default_quota"] = nil
			if p.Quota > 0 {
				o["default_quota"] = p.Quota
			}
			o["shared"] = p.Shared || network.SharedTo(c.tx, p.ID, c.actor.ProjectID)
			o["is_default"] = p.Default
			o["address_scope_id"] = idOrNull(p.ScopeID)
			return o
		},
		filters: tagged(map[string]filter{
			"shared": {field: "shared", read: boolText}, "is_default": {field: "default", read: boolText},
			"ip_version": {field: "version"}, "address_scope_id": {field: "scope", read: idText},
			"default_prefixlen": {field: "default-bits"}, "min_prefixlen": {field: "min-bits"}, "max_prefixlen": {field: "max-bits"},
			"default_quota": {field: "quota"},
		}),
	}
}

func ipVersion(v6 bool) int {
	if v6 {
		return 6
	}
	return 4
}

// parsePrefixes reads a list of prefixes, or a single one. An update adds to those there are.
func parsePrefixes(_ *call, in json.RawMessage) (func(*network.SubnetPool) error, error) {
	if len(in) > 0 && in[0] == '"' {
		in = json.RawMessage("[" + string(in) + "]")
	}
	list, err := readList("prefixes", in, func(name string, in json.RawMessage) (netip.Prefix, error) { return readPrefix(name, in, true) })
	return func(p *network.SubnetPool) error { p.Prefixes = list; return nil }, err
}

func nullableNumber[T any](name string, at func(*T) *int) attribute[T] {
	a := nullableInt(name, at)
	parse := a.parse
	a.parse = func(c *call, in json.RawMessage) (func(*T) error, error) {
		if n, err := readInt(name, in); err == nil && n < 0 {
			return nil, invalid(name, "'%d' should be non-negative", n)
		}
		return parse(c, in)
	}
	return a
}

func parsePoolQuota(_ *call, in json.RawMessage) (func(*network.SubnetPool) error, error) {
	n := 0
	var err error
	if !isNull(in) {
		n, err = readInt("default_quota", in)
	}
	return func(p *network.SubnetPool) error { p.Quota = int64(n); return nil }, err
}

func (s *server) addressScope() *kind[network.AddressScope] {
	type A = network.AddressScope
	return &kind[A]{
		name: "address_scope", plural: "address_scopes", path: "/address-scopes", things: s.networks.Scopes,
		fresh: func(*identity.Actor) *A { return new(A) },
		attributes: []attribute[A]{
			textAttr("name", func(a *A) *string { return &a.Name }).must(),
			{name: "ip_version", post: true, required: true, parse: func(_ *call, in json.RawMessage) (func(*A) error, error) {
				n, err := readInt("ip_version", in)
				if err == nil && n != 4 && n != 6 {
					err = invalid("ip_version", "'%d' is not in [4, 6]", n)
				}
				return func(a *A) error { a.V6 = n == 6; return nil }, err
			}},
			boolAttr("shared", func(a *A) *bool { return &a.Shared }),
		},
		shape: func(c *call, a *A) object {
			o := owned(&a.Meta)
			o["ip_version"] = ipVersion(a.V6)
			o["shared"] = a.Shared || network.SharedTo(c.tx, a.ID, c.actor.ProjectID)
			return o
		},
		filters: common(map[string]filter{
			"shared":     {field: "shared", read: boolText},
			"ip_version": {field: "v6", read: func(s string) []string { return boolText(strconv.FormatBool(s == "6")) }},
		}),
	}
}

func (s *server) addressGroup() *kind[network.AddressGroup] {
	type G = network.AddressGroup
	return &kind[G]{
		name: "address_group", plural: "address_groups", path: "/address-groups", things: s.networks.Addresses,
		fresh: func(*identity.Actor) *G { return new(G) },
		attributes: append(named(func(g *G) *string { return &g.Description }),
			listAttr("addresses", readAddressOrPrefix, func(g *G) *[]netip.Prefix { return &g.Prefixes }).create(),
		),
		shape: func(c *call, g *G) object {
			o := standard(&g.Meta, g.Description, nil)
			delete(o, "tags")
			o["addresses"] = texts(g.Prefixes)
			o["shared"] = g.Shared || network.SharedTo(c.tx, g.ID, c.actor.ProjectID)
			return o
		},
		filters: common(map[string]filter{
			"description": {field: "description"}, "shared": {field: "shared", read: boolText},
			"addresses": {field: "prefix", noSort: true, read: prefixTexts},
		}),
	}
}

func readAddressOrPrefix(name string, in json.RawMessage) (netip.Prefix, error) {
	p, err := readPrefix(name, in, true)
	return p.Masked(), err
}

// changeAddresses adds addresses to an address group, or removes them.
func (s *server) changeAddresses(add bool) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		k := s.addressGroup()
		id, err := k.id(r, "id")
		if err != nil {
			return err
		}
		body, err := decode(r)
		if err != nil {
			return err
		}
		list, err := readList("addresses", body["addresses"], readAddressOrPrefix)
		if err != nil {
			return err
		}
		g, err := s.networks.Addresses.Update(r.Context(), id, 0, func(g *network.AddressGroup) error {
			for _, p := range list {
				at := slices.Index(g.Prefixes, p)
				switch {
				case add && at >= 0:
					return bad("AddressesAlreadyExist", "Addresses %s already exist in the address group %s.", p, id)
				case add:
					g.Prefixes = append(g.Prefixes, p)
				case at < 0:
					return bad("AddressesNotFound", "Addresses %s not found in the address group %s.", p, id)
				default:
					g.Prefixes = slices.Delete(g.Prefixes, at, at+1)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return k.answer(s, w, r, http.StatusOK, g)
	}
}
