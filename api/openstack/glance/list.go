package glance

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// How many images a page has when the client does not say, and at most.
const (
	pageDefault = 25
	pageMost    = 1000
)

func (s *server) listImages(w http.ResponseWriter, r *http.Request) error {
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	page, err := s.images.List(r.Context(), q)
	if err != nil {
		return err
	}
	list := make([]map[string]any, len(page.Items))
	for n, i := range page.Items {
		list[n] = view(i)
	}
	values := r.URL.Query()
	values.Del("marker")
	answer := map[string]any{"images": list, "first": withQuery("/v2/images", values), "schema": "/v2/schemas/images"}
	if page.More {
		values.Set("marker", page.Items[len(page.Items)-1].ID.String())
		answer["next"] = withQuery("/v2/images", values)
	}
	return wire.WriteJSON(w, http.StatusOK, answer)
}

func withQuery(path string, values url.Values) string {
	if len(values) == 0 {
		return path
	}
	return path + "?" + values.Encode()
}

// A condition is one filter.
type condition func(*image.Image) bool

// paging are the parameters that filter nothing.
var paging = []string{"limit", "marker", "sort", "sort_key", "sort_dir"}

func readQuery(r *http.Request) (image.Query, error) {
	var q image.Query
	values := r.URL.Query()
	var err error
	if q.List, err = openstack.List(r, pageMost); err != nil {
		return q, err
	}
	if values.Get("limit") == "" {
		q.Limit = pageDefault
	}
	if q.Sort, err = readSort(values); err != nil {
		return q, err
	}
	var conditions []condition
	for name, given := range values {
		if slices.Contains(paging, name) {
			continue
		}
		for _, value := range given {
			c, err := readFilter(&q, name, value)
			if err != nil {
				return q, err
			}
			if c != nil {
				conditions = append(conditions, c)
			}
		}
	}
	q.Keep = func(i *image.Image) bool {
		for _, c := range conditions {
			if !c(i) {
				return false
			}
		}
		return true
	}
	return q, nil
}

// filters are the parameters with a meaning of their own. They narrow the query itself, or give a
// condition. Any other parameter is a property.
var filters = map[string]func(q *image.Query, value string) (condition, error){
	"visibility": func(q *image.Query, v string) (condition, error) {
		q.Visibility = image.Visibility(v)
		switch q.Visibility {
		case image.Public, image.Private, image.Shared, image.Community, image.All:
			return nil, nil
		}
		return nil, fault.Errorf(fault.Invalid, "Invalid visibility value: %.64s", v)
	},
	"member_status": func(q *image.Query, v string) (condition, error) {
		q.Answer = image.Answer(v)
		switch q.Answer {
		case image.Pending, image.Accepted, image.Rejected, image.All:
			return nil, nil
		}
		return nil, fault.Errorf(fault.Invalid, "Invalid status: %.64s", v)
	},
	"owner": func(q *image.Query, v string) (condition, error) {
		id, err := resource.ParseID(v)
		if err != nil {
			return never, nil
		}
		q.Owner = id
		return nil, nil
	},
	"os_hidden": func(q *image.Query, v string) (condition, error) {
		hidden, err := boolean("os_hidden", v)
		q.Hidden = hidden
		return nil, err
	},
	"tag": func(q *image.Query, v string) (condition, error) {
		q.Tags = append(q.Tags, v)
		return nil, nil
	},
	"name": func(q *image.Query, v string) (condition, error) {
		if v != "" && !strings.HasPrefix(v, "in:") {
			q.Name = v
			return nil, nil
		}
		return oneOf("name", v, func(i *image.Image) string { return i.Name })
	},
	"id":               texts("id", func(i *image.Image) string { return i.ID.String() }),
	"status":           texts("status", func(i *image.Image) string { return statuses[i.State] }),
	"disk_format":      texts("disk_format", func(i *image.Image) string { return i.Format }),
	"container_format": texts("container_format", func(i *image.Image) string { return i.Container }),
	"checksum":         texts("checksum", func(i *image.Image) string { return i.MD5 }),
	"os_hash_value":    texts("os_hash_value", func(i *image.Image) string { return i.SHA512 }),
	"os_hash_algo": texts("os_hash_algo", func(i *image.Image) string {
		if i.SHA512 == "" {
			return ""
		}
		return "sha512"
	}),
	"protected": func(_ *image.Query, v string) (condition, error) {
		want, err := boolean("protected", v)
		return func(i *image.Image) bool { return i.Protected == want }, err
	},
	"size":         numbers("size", size, func(have, want int64) bool { return have == want }),
	"size_min":     numbers("size_min", size, func(have, want int64) bool { return have >= want }),
	"size_max":     numbers("size_max", size, func(have, want int64) bool { return have <= want }),
	"virtual_size": numbers("virtual_size", func(i *image.Image) int64 { return i.VirtualBytes }, func(have, want int64) bool { return have == want }),
	"min_disk":     numbers("min_disk", func(i *image.Image) int64 { return int64(i.MinDiskGiB) }, func(have, want int64) bool { return have == want }),
	"min_ram":      numbers("min_ram", func(i *image.Image) int64 { return int64(i.MinMemoryMiB) }, func(have, want int64) bool { return have == want }),
	"created_at":   times("created_at", func(i *image.Image) time.Time { return i.CreatedAt }),
	"updated_at":   times("updated_at", func(i *image.Image) time.Time { return i.UpdatedAt }),
}

func size(i *image.Image) int64 { return i.Bytes }

func never(*image.Image) bool { return false }

func readFilter(q *image.Query, name, value string) (condition, error) {
	if f := filters[name]; f != nil {
		return f(q, value)
	}
	return func(i *image.Image) bool {
		if have, ok := i.Properties[name]; ok {
			return have == value
		}
		p, ok := machine[name]
		return ok && p.get(&i.Boot) == value && value != ""
	}, nil
}

func boolean(name, value string) (bool, error) {
	switch strings.ToLower(value) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fault.InvalidField(name, "must be true or false")
}

// texts is a filter on one value, or with "in:" on any of several.
func texts(name string, of func(*image.Image) string) func(*image.Query, string) (condition, error) {
	return func(_ *image.Query, value string) (condition, error) { return oneOf(name, value, of) }
}

func oneOf(name, value string, of func(*image.Image) string) (condition, error) {
	list, several := strings.CutPrefix(value, "in:")
	if !several {
		return func(i *image.Image) bool { return of(i) == value }, nil
	}
	words, err := splitQuoted(list)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "The filter %s has an invalid list: %v.", name, err)
	}
	return func(i *image.Image) bool { return slices.Contains(words, of(i)) }, nil
}

// splitQuoted splits at commas that are not within double quotes; a backslash keeps what
// follows it.
func splitQuoted(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	quoted, kept := false, false
	for _, c := range s {
		switch {
		case kept:
			word.WriteRune(c)
			kept = false
		case c == '\\' && quoted:
			kept = true
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			words = append(words, word.String())
			word.Reset()
		default:
			word.WriteRune(c)
		}
	}
	if quoted || kept {
		return nil, fault.Errorf(fault.Invalid, "a quote is not closed")
	}
	return append(words, word.String()), nil
}

func numbers(name string, of func(*image.Image) int64, holds func(have, want int64) bool) func(*image.Query, string) (condition, error) {
	return func(_ *image.Query, value string) (condition, error) {
		want, err := strconv.ParseInt(value, 10, 64)
		if err != nil || want < 0 {
			return nil, fault.InvalidField(name, "must be an integer of at least 0")
		}
		return func(i *image.Image) bool { return holds(of(i), want) }, nil
	}
}

// comparisons of times, by the sign of have-want.
var comparisons = map[string]func(c int) bool{
	"gt": func(c int) bool { return c > 0 }, "gte": func(c int) bool { return c >= 0 },
	"lt": func(c int) bool { return c < 0 }, "lte": func(c int) bool { return c <= 0 },
	"eq": func(c int) bool { return c == 0 }, "neq": func(c int) bool { return c != 0 },
}

// times is a filter with an operator, "eq" without one. Times compare as they are shown, by the second.
func times(name string, of func(*image.Image) time.Time) func(*image.Query, string) (condition, error) {
	return func(_ *image.Query, value string) (condition, error) {
		holds := comparisons["eq"]
		if op, rest, ok := strings.Cut(value, ":"); ok && comparisons[op] != nil {
			holds, value = comparisons[op], rest
		}
		want, err := parseTime(value)
		if err != nil {
			return nil, fault.Errorf(fault.Invalid, "Invalid time format: the filter %s does not take '%.64s'.", name, value)
		}
		return func(i *image.Image) bool { return holds(of(i).Truncate(time.Second).Compare(want)) }, nil
	}
}

func parseTime(s string) (t time.Time, err error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err = time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return t, err
}

// sortFields are the core's names for the keys that lists can be sorted by.
var sortFields = map[string]string{
	"name": "name", "status": "state", "container_format": "container", "disk_format": "format", "size": "bytes", "id": "id",
	"created_at": "created", "updated_at": "updated", "visibility": "visibility", "owner": "owner",
	"min_disk": "min-disk", "min_ram": "min-memory", "virtual_size": "virtual",
}

// readSort reads "sort=name:asc,size" or sort_key and sort_dir. The direction is down
// unless it is given.
func readSort(values url.Values) ([]image.Order, error) {
	keys, dirs := values["sort_key"], values["sort_dir"]
	if sort := values.Get("sort"); sort != "" {
		if len(keys)+len(dirs) > 0 {
			return nil, fault.Errorf(fault.Invalid, "Old and new sorting syntax cannot be combined")
		}
		for one := range strings.SplitSeq(sort, ",") {
			key, dir, given := strings.Cut(strings.TrimSpace(one), ":")
			if !given {
				dir = "desc"
			}
			keys, dirs = append(keys, key), append(dirs, dir)
		}
	}
	switch {
	case len(keys) == 0 && len(dirs) == 0:
		return nil, nil
	case len(keys) == 0:
		keys = []string{"created_at"}
	}
	switch len(dirs) {
	case 0:
		dirs = slices.Repeat([]string{"desc"}, len(keys))
	case 1:
		dirs = slices.Repeat(dirs, len(keys)) // one direction is for all keys
	}
	return pairs(keys, dirs)
}

func pairs(keys, dirs []string) ([]image.Order, error) {
	if len(keys) != len(dirs) {
		return nil, fault.Errorf(fault.Invalid, "Number of sort dirs does not match the number of sort keys")
	}
	orders := make([]image.Order, len(keys))
	for n, key := range keys {
		field, ok := sortFields[key]
		if !ok {
			return nil, fault.Errorf(fault.Invalid, "Invalid sort key: %.64s. It must be one of the following: name, status, container_format, disk_format, size, id, created_at, updated_at.", key)
		}
		if dirs[n] != "asc" && dirs[n] != "desc" {
			return nil, fault.Errorf(fault.Invalid, "Invalid sort direction: %.64s", dirs[n])
		}
		orders[n] = image.Order{Field: field, Reverse: dirs[n] == "desc"}
	}
	return orders, nil
}
