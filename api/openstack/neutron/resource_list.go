package neutron

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

func (k *kind[T]) list(s *server, w http.ResponseWriter, r *http.Request) error {
	if k.prepare != nil {
		if err := k.prepare(r.Context()); err != nil {
			return err
		}
	}
	q, err := k.query(r)
	if err != nil {
		return err
	}
	page, err := k.things.List(r.Context(), q)
	if err != nil {
		return err
	}
	c, err := s.call(r)
	if err != nil {
		return err
	}
	if q.Reverse {
		slices.Reverse(page.Items)
	}
	fields := r.URL.Query()["fields"]
	list := make([]object, len(page.Items))
	for i, t := range page.Items {
		list[i] = only(k.shape(c, t), fields)
	}
	answer := object{k.plural: list}
	if q.Limit > 0 {
		if links := pageLinks(r, page.Items, q, page.More); len(links) > 0 {
			answer[k.plural+"_links"] = links
		}
	}
	return wire.WriteJSON(w, http.StatusOK, answer)
}

// pageLinks lead to the pages beside this one.
func pageLinks[T any](r *http.Request, items []*T, q network.Query, more bool) []object {
	var links []object
	if len(items) == 0 {
		return nil
	}
	id := func(t *T) string { return any(t).(resource.Object).GetMeta().ID.String() }
	link := func(rel, marker string, back bool) {
		values := r.URL.Query()
		values.Del("page_reverse")
		if back {
			values.Set("page_reverse", "True")
		}
		values.Set("marker", marker)
		links = append(links, object{"rel": rel, "href": wire.BaseURL(r) + prefix + r.URL.Path + "?" + values.Encode()})
	}
	if !q.Reverse && more || q.Reverse && !q.Marker.IsZero() {
		link("next", id(items[len(items)-1]), false)
	}
	if !q.Reverse && !q.Marker.IsZero() || q.Reverse && more {
		link("previous", id(items[0]), true)
	}
	return links
}

// control are the parameters of a list that are no filters.
var control = []string{"limit", "marker", "page_reverse", "fields", "sort_key", "sort_dir"}

func (k *kind[T]) query(r *http.Request) (network.Query, error) {
	var q network.Query
	values := r.URL.Query()
	list, err := openstack.List(r, 0)
	if err != nil {
		return q, err
	}
	if s := values.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return q, bad("HTTPBadRequest", "Bad limit '%s': it must be an integer of at least 0.", s)
		}
		list.Limit = n
	}
	q.List = list
	if s := values.Get("page_reverse"); s != "" {
		if q.Reverse, err = parseBool("page_reverse", s); err != nil {
			return q, err
		}
	}
	if q.Sort, err = k.sort(values["sort_key"], values["sort_dir"]); err != nil {
		return q, err
	}
	q.Where = slices.Clone(k.fixed)
	if k.within != nil {
		q.Where = append(q.Where, network.Condition{Field: "floating", Values: []string{r.PathValue("parent")}})
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if slices.Contains(control, name) {
			continue
		}
		conditions, err := k.conditions(name, values[name])
		if err != nil {
			return q, err
		}
		q.Where = append(q.Where, conditions...)
	}
	return q, nil
}

func (k *kind[T]) sort(keys, dirs []string) ([]network.Order, error) {
	if len(keys) != len(dirs) && len(dirs) > 0 {
		return nil, bad("HTTPBadRequest", "The number of sort_keys and sort_dirs must be same")
	}
	var orders []network.Order
	for i, key := range keys {
		f, ok := k.filters[key]
		if !ok || f.noSort {
			return nil, bad("HTTPBadRequest", "'%s' is an invalid attribute for sort keys", key)
		}
		o := network.Order{Field: f.field}
		if len(dirs) > 0 {
			switch dirs[i] {
			case "asc":
			case "desc":
				o.Reverse = true
			default:
				return nil, bad("HTTPBadRequest", "'%s' is an invalid value for sort_dirs, value must be one of asc, desc", dirs[i])
			}
		}
		if o.Field == "id" && !o.Reverse && i == len(keys)-1 {
			continue // ties go by ID anyway
		}
		orders = append(orders, o)
	}
	return orders, nil
}

// conditions reads one filter. Several values of one name are alternatives.
func (k *kind[T]) conditions(name string, values []string) ([]network.Condition, error) {
	if name == "fixed_ips" && k.name == "port" {
		return fixedIPConditions(values)
	}
	f, ok := k.filters[name]
	if !ok {
		return nil, bad("HTTPBadRequest", "['%s'] is invalid attribute for filtering", name)
	}
	c := network.Condition{Field: f.field, Mode: f.mode}
	for _, v := range values {
		if f.read == nil {
			c.Values = append(c.Values, v)
			continue
		}
		c.Values = append(c.Values, f.read(v)...)
	}
	return []network.Condition{c}, nil
}

// fixedIPConditions reads fixed_ips=ip_address=…, subnet_id=… and ip_address_substr=….
func fixedIPConditions(values []string) ([]network.Condition, error) {
	parts := map[string]*network.Condition{
		"ip_address":        {Field: "address"},
		"subnet_id":         {Field: "subnet"},
		"ip_address_substr": {Field: "address", Mode: network.Contains},
	}
	for _, v := range values {
		name, value, ok := strings.Cut(v, "=")
		part := parts[name]
		if !ok || part == nil {
			return nil, bad("HTTPBadRequest", "'%s' is an invalid filter for fixed_ips", v)
		}
		if name == "ip_address" {
			value = addressText(value)
		}
		part.Values = append(part.Values, value)
	}
	var list []network.Condition
	for _, name := range []string{"ip_address", "subnet_id", "ip_address_substr"} {
		if len(parts[name].Values) > 0 {
			list = append(list, *parts[name])
		}
	}
	return list, nil
}
