package openstack

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
)

// List reads limit and marker; a service reads its own filters and sort keys. A limit above most is cut to it.
func List(r *http.Request, most int) (query.List, error) {
	q := query.List{Limit: most}
	values := r.URL.Query()
	if s := values.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return q, fault.InvalidField("limit", "must be an integer of at least 0")
		}
		if n > 0 || !values.Has("limit") {
			q.Limit = min(n, most)
		}
	}
	if s := values.Get("marker"); s != "" {
		id, err := resource.ParseID(s)
		if err != nil {
			return q, fault.Errorf(fault.Invalid, "marker [%s] not found", s).WithCode("marker")
		}
		q.Marker = id
	}
	return q, nil
}

// NextLink is the address of the page after the one that ends with last.
func NextLink(r *http.Request, prefix string, last string) string {
	values := make(url.Values)
	for k, v := range r.URL.Query() {
		values[k] = v
	}
	values.Set("marker", last)
	return wire.BaseURL(r) + prefix + r.URL.Path + "?" + strings.ReplaceAll(values.Encode(), "+", "%20")
}
