package nova

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

var newFlavor = object(
	need("name", name),
	may("id", orNull(either(pattern(1, 255, `^[a-zA-Z0-9. _-]+$`), number(0, 1<<62)))),
	need("ram", number(1, maxInt)), need("vcpus", number(1, maxInt)), need("disk", number(0, maxInt)),
	may("OS-FLV-EXT-DATA:ephemeral", number(0, maxInt)), may("swap", number(0, maxInt)),
	may("rxtx_factor", factor), may("os-flavor-access:is_public", boolean),
	since(55, may("description", orNull(text(0, 65535)))),
)

// factor is for a positive number, or a text of one.
func factor(_ version, path string, value any) error {
	if f, ok := asFloat(value); !ok || f <= 0 || f > 3.40282e+38 {
		return wrong(path, value, "It is not a positive number")
	}
	return nil
}

func asFloat(value any) (float64, bool) {
	var s string
	switch value := value.(type) {
	case interface{ String() string }: // json.Number
		s = value.String()
	case string:
		s = value
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}

// flavorView is a flavor as a microversion shows it.
func (s *server) flavorView(r *http.Request, f *compute.Flavor) map[string]any {
	minor := minorOf(r)
	var swap any = f.SwapMiB
	if f.SwapMiB == 0 && minor < 75 {
		swap = ""
	}
	view := map[string]any{
		"id": f.Ref, "name": f.Name, "ram": f.MemoryMiB, "disk": f.RootGiB, "vcpus": f.VCPUs, "swap": swap,
		"OS-FLV-EXT-DATA:ephemeral": f.EphemeralGiB, "OS-FLV-DISABLED:disabled": f.Disabled, "os-flavor-access:is_public": !f.Private,
		"rxtx_factor": f.RxTxFactor, "links": s.links(r, "flavors/"+url.PathEscape(f.Ref)),
	}
	if minor >= 55 {
		view["description"] = orNil(f.Description)
	}
	if minor >= 61 {
		view["extra_specs"] = orEmpty(f.Extra)
	}
	return view
}

func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func (s *server) showFlavor(w http.ResponseWriter, r *http.Request) error {
	f, err := s.compute.Flavor(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"flavor": s.flavorView(r, f)})
}

func (s *server) listFlavors(w http.ResponseWriter, r *http.Request) error {
	return s.flavorList(w, r, func(f *compute.Flavor) map[string]any {
		view := map[string]any{"id": f.Ref, "name": f.Name, "links": s.links(r, "flavors/"+url.PathEscape(f.Ref))}
		if minorOf(r) >= 55 {
			view["description"] = orNil(f.Description)
		}
		return view
	})
}

func (s *server) listFlavorsDetail(w http.ResponseWriter, r *http.Request) error {
	return s.flavorList(w, r, func(f *compute.Flavor) map[string]any { return s.flavorView(r, f) })
}

func (s *server) flavorList(w http.ResponseWriter, r *http.Request, view func(*compute.Flavor) map[string]any) error {
	q, err := flavorQuery(r)
	if err != nil {
		return err
	}
	page := query.Page[compute.Flavor]{}
	if q.Limit > 0 {
		if page, err = s.compute.ListFlavors(r.Context(), q); err != nil {
			return err
		}
	}
	flavors := make([]map[string]any, 0, len(page.Items))
	for _, f := range page.Items {
		flavors = append(flavors, view(f))
	}
	body := map[string]any{"flavors": flavors}
	if page.More {
		body["flavors_links"] = []any{link("next", openstack.NextLink(r, s.prefix, page.Items[len(page.Items)-1].Ref))}
	}
	return answer(w, http.StatusOK, body)
}

// flavorOrders are what flavors may be sorted by.
var flavorOrders = map[string]func(a, b *compute.Flavor) int{
	"flavorid": func(a, b *compute.Flavor) int { return strings.Compare(a.Ref, b.Ref) }, "id": func(a, b *compute.Flavor) int { return strings.Compare(a.Ref, b.Ref) },
	"name":      func(a, b *compute.Flavor) int { return strings.Compare(a.Name, b.Name) },
	"memory_mb": func(a, b *compute.Flavor) int { return a.MemoryMiB - b.MemoryMiB },
	"vcpus":     func(a, b *compute.Flavor) int { return a.VCPUs - b.VCPUs },
	"root_gb":   func(a, b *compute.Flavor) int { return a.RootGiB - b.RootGiB }, "ephemeral_gb": func(a, b *compute.Flavor) int { return a.EphemeralGiB - b.EphemeralGiB },
	"swap":        func(a, b *compute.Flavor) int { return a.SwapMiB - b.SwapMiB },
	"rxtx_factor": func(a, b *compute.Flavor) int { return 0 }, "vcpu_weight": func(a, b *compute.Flavor) int { return 0 },
	"is_public":  func(a, b *compute.Flavor) int { return boolInt(!a.Private) - boolInt(!b.Private) },
	"disabled":   func(a, b *compute.Flavor) int { return boolInt(a.Disabled) - boolInt(b.Disabled) },
	"created_at": func(a, b *compute.Flavor) int { return a.CreatedAt.Compare(b.CreatedAt) }, "updated_at": func(a, b *compute.Flavor) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
	"description": func(a, b *compute.Flavor) int { return strings.Compare(a.Description, b.Description) },
}

// boolTexts are the texts that oslo's strict reading takes for booleans, in any case.
var boolTexts = map[string]bool{"t": true, "true": true, "on": true, "y": true, "yes": true, "1": true,
	"f": false, "false": false, "off": false, "n": false, "no": false, "0": false}

func flavorQuery(r *http.Request) (q compute.FlavorQuery, err error) {
	values := r.URL.Query()
	known := []string{"limit", "marker", "is_public", "minRam", "minDisk", "sort_key", "sort_dir"}
	if err := onlyKnown(r, 75, known...); err != nil {
		return q, err
	}
	paged := url.Values{"limit": values["limit"]}
	if len(values["limit"]) == 0 {
		paged = url.Values{}
	}
	if q.Limit, _, err = paging(paged); err != nil {
		return q, err
	}
	q.Marker = values.Get("marker")
	for word, into := range map[string]*int{"minRam": &q.MinMemoryMiB, "minDisk": &q.MinRootGiB} {
		if text := values.Get(word); text != "" {
			if *into, err = strconv.Atoi(text); err != nil {
				return q, fault.Errorf(fault.Invalid, "Invalid %s filter [%s]", word, text)
			}
		}
	}
	private := false
	q.Private = &private
	if identity.ActorOf(r.Context()).Admin() {
		switch text := values.Get("is_public"); {
		case strings.EqualFold(text, "none"):
			q.Private = nil
		case text != "":
			public, ok := boolTexts[strings.ToLower(text)]
			if !ok {
				return q, fault.Errorf(fault.Invalid, "Invalid is_public filter [%s]", text)
			}
			private = !public
		}
	}
	key := values.Get("sort_key")
	if key == "" {
		key = "flavorid"
	}
	order, ok := flavorOrders[key]
	if !ok {
		return q, fault.Errorf(fault.Invalid, "Invalid input for query parameters sort_key. Value: %s.", key)
	}
	q.Order = order
	switch dir := values.Get("sort_dir"); dir {
	case "", "asc":
	case "desc":
		q.Reverse = true
	default:
		return q, fault.Errorf(fault.Invalid, "Invalid input for query parameters sort_dir. Value: %s.", dir)
	}
	return q, nil
}

// onlyKnown refuses unknown parameters from a microversion on, as 2.75 does nearly everywhere.
func onlyKnown(r *http.Request, from int, known ...string) error {
	if minorOf(r) < from {
		return nil
	}
	for _, one := range sortedParameters(r.URL.Query()) {
		found := false
		for _, k := range known {
			found = found || k == one
		}
		if !found {
			return fault.Errorf(fault.Invalid, "Invalid input for query parameters %s. Additional properties are not allowed ('%s' was unexpected)", one, one)
		}
	}
	return nil
}

func (s *server) createFlavor(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "flavor", newFlavor)
	if err != nil {
		return err
	}
	f := compute.Flavor{Meta: resource.Meta{Name: strings.TrimSpace(b.text("name"))}, Ref: b.text("id"), Description: b.text("description"),
		VCPUs: b.int("vcpus", 0), MemoryMiB: b.int("ram", 0), RootGiB: b.int("disk", 0), EphemeralGiB: b.int("OS-FLV-EXT-DATA:ephemeral", 0),
		SwapMiB: b.int("swap", 0), Private: b.has("os-flavor-access:is_public") && !b.bool("os-flavor-access:is_public")}
	if n, ok := b["id"].(json.Number); ok {
		f.Ref = n.String()
	}
	if strings.TrimSpace(f.Ref) != f.Ref {
		return wrong("id", f.Ref, "It must not begin or end with a space")
	}
	if f.Ref == "auto" {
		f.Ref = ""
	}
	if value, ok := asFloat(b["rxtx_factor"]); ok {
		f.RxTxFactor = value
	}
	made, err := s.compute.CreateFlavor(r.Context(), f)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"flavor": s.flavorView(r, made)})
}

func (s *server) updateFlavor(w http.ResponseWriter, r *http.Request) error {
	if err := notBefore(r, 55); err != nil {
		return err
	}
	b, err := wrapped(r, "flavor", object(need("description", orNull(text(0, 65535)))))
	if err != nil {
		return err
	}
	f, err := s.compute.DescribeFlavor(r.Context(), r.PathValue("id"), b.text("description"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"flavor": s.flavorView(r, f)})
}

func (s *server) deleteFlavor(w http.ResponseWriter, r *http.Request) error {
	if err := s.compute.DeleteFlavor(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

// extraSpecs are a flavor's demands: numbers count as texts.
var extraSpecs = pairs(`^[a-zA-Z0-9-_:. ]{1,255}$`, either(text(0, 255), anyNumber))

func anyNumber(_ version, path string, value any) error {
	if _, ok := value.(interface{ Float64() (float64, error) }); !ok {
		return wrong(path, value, "It is not of type 'string', 'number'")
	}
	return nil
}

func (s *server) listFlavorExtra(w http.ResponseWriter, r *http.Request) error {
	f, err := s.compute.Flavor(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"extra_specs": orEmpty(f.Extra)})
}

func (s *server) showFlavorExtra(w http.ResponseWriter, r *http.Request) error {
	f, err := s.compute.Flavor(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	value, ok := f.Extra[key]
	if !ok {
		return fault.Errorf(fault.NotFound, "Flavor %s has no extra specs with key %s.", f.Ref, key)
	}
	return answer(w, http.StatusOK, map[string]string{key: value})
}

func (s *server) createFlavorExtra(w http.ResponseWriter, r *http.Request) error {
	b, err := read(r, object(need("extra_specs", extraSpecs)))
	if err != nil {
		return err
	}
	specs := b.pairs("extra_specs")
	if _, err := s.compute.SetExtra(r.Context(), r.PathValue("id"), specs); err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"extra_specs": specs})
}

func (s *server) updateFlavorExtra(w http.ResponseWriter, r *http.Request) error {
	b, err := read(r, extraSpecs)
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	if _, ok := b[key]; !ok || len(b) != 1 {
		return fault.Errorf(fault.Invalid, "Request body contains too many items")
	}
	specs := body{"extra": map[string]any(b)}.pairs("extra")
	if _, err := s.compute.SetExtra(r.Context(), r.PathValue("id"), specs); err != nil {
		return err
	}
	return answer(w, http.StatusOK, specs)
}

func (s *server) deleteFlavorExtra(w http.ResponseWriter, r *http.Request) error {
	if err := s.compute.DropExtra(r.Context(), r.PathValue("id"), r.PathValue("key")); err != nil {
		return err
	}
	return accepted(w, http.StatusOK)
}

func (s *server) listFlavorAccess(w http.ResponseWriter, r *http.Request) error {
	f, err := s.compute.Flavor(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := identity.Allow(r.Context(), "flavor.access", resource.Meta{}); err != nil {
		return err
	}
	if !f.Private {
		return fault.Errorf(fault.NotFound, "Access list not available for public flavors.")
	}
	return answer(w, http.StatusOK, accessView(f))
}

func accessView(f *compute.Flavor) map[string]any {
	list := []map[string]string{}
	for _, project := range f.Access {
		list = append(list, map[string]string{"flavor_id": f.Ref, "tenant_id": project.Hex()})
	}
	return map[string]any{"flavor_access": list}
}

var tenantAccess = object(need("tenant", text(1, 255)))

func (s *server) flavorAction(w http.ResponseWriter, r *http.Request) error {
	b, err := read(r, object(may("addTenantAccess", tenantAccess), may("removeTenantAccess", tenantAccess)))
	if err != nil {
		return err
	}
	if len(b) != 1 {
		return fault.Errorf(fault.Invalid, "Malformed request body: it must name one action.")
	}
	change, word := s.compute.GrantFlavor, "addTenantAccess"
	if b.has("removeTenantAccess") {
		change, word = s.compute.RevokeFlavor, "removeTenantAccess"
	}
	project, err := resource.ParseID(b.object(word).text("tenant"))
	if err != nil {
		if err := identity.Allow(r.Context(), "flavor.access", resource.Meta{}); err != nil {
			return err
		}
		return fault.Errorf(fault.Invalid, "Project ID %s is not a valid project.", b.object(word).text("tenant"))
	}
	if f, err := s.compute.Flavor(r.Context(), r.PathValue("id")); err == nil && !f.Private && minorOf(r) >= 7 && word == "addTenantAccess" {
		return fault.Errorf(fault.Conflict, "Can not add access to a public flavor.")
	}
	f, err := change(r.Context(), r.PathValue("id"), project)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, accessView(f))
}
