package nova

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
)

// Up to 2.35 Nova speaks for the services that took over images and networks; up to 2.42 for hosts.
// Those who still ask get the answers of that time.

// proxies are the routes of that time.
func (s *server) proxies() map[string]openstack.Handler {
	routes := map[string]openstack.Handler{}
	add := func(last int, handlers map[string]openstack.Handler) {
		for pattern, handle := range handlers {
			routes[pattern] = func(w http.ResponseWriter, r *http.Request) error {
				if err := notAfter(r, last); err != nil {
					return err
				}
				return handle(w, r)
			}
		}
	}
	add(42, map[string]openstack.Handler{"GET /v2.1/os-hosts": s.listHosts, "GET /v2.1/os-hosts/{name}": s.showHost,
		"PUT /v2.1/os-hosts/{name}": s.updateHost, "GET /v2.1/os-hosts/{name}/{verb}": s.powerHost})
	if s.images != nil {
		add(35, map[string]openstack.Handler{
			"GET /v2.1/images": s.listImages, "GET /v2.1/images/detail": s.listImagesDetail, "GET /v2.1/images/{id}": s.showImage,
			"DELETE /v2.1/images/{id}": s.deleteImage,
		})
		add(38, map[string]openstack.Handler{
			"GET /v2.1/images/{id}/metadata": s.listImageMetadata, "POST /v2.1/images/{id}/metadata": s.addImageMetadata,
			"PUT /v2.1/images/{id}/metadata": s.replaceImageMetadata, "GET /v2.1/images/{id}/metadata/{key}": s.showImageMetadata,
			"PUT /v2.1/images/{id}/metadata/{key}": s.putImageMetadata, "DELETE /v2.1/images/{id}/metadata/{key}": s.deleteImageMetadata,
		})
	}
	if s.network != nil {
		add(35, map[string]openstack.Handler{
			"DELETE /v2.1/os-floating-ips/{id}":         s.deleteFloatingIP,
			"DELETE /v2.1/os-security-group-rules/{id}": s.deleteSecurityRule,
			"DELETE /v2.1/os-security-groups/{id}":      s.deleteSecurityGroup,
			"GET /v2.1/os-floating-ip-pools":            s.listFloatingPools,
			"GET /v2.1/os-floating-ips":                 s.listFloatingIPs,
			"GET /v2.1/os-floating-ips/{id}":            s.showFloatingIP,
			"GET /v2.1/os-networks":                     s.listNetworks,
			"GET /v2.1/os-networks/{id}":                s.showNetwork,
			"GET /v2.1/os-security-groups":              s.listSecurityGroups,
			"GET /v2.1/os-security-groups/{id}":         s.showSecurityGroup,
			"GET /v2.1/os-tenant-networks":              s.listTenantNetworks,
			"GET /v2.1/os-tenant-networks/{id}":         s.showTenantNetwork,
			"POST /v2.1/os-floating-ips":                s.createFloatingIP,
			"POST /v2.1/os-security-group-rules":        s.createSecurityRule,
			"POST /v2.1/os-security-groups":             s.createSecurityGroup,
			"PUT /v2.1/os-security-groups/{id}":         s.updateSecurityGroup,
		})
	}
	return routes
}

func (s *server) listHosts(w http.ResponseWriter, r *http.Request) error {
	tx, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	zones := compute.ZonesOf(tx)
	views := []map[string]string{}
	for _, h := range all {
		if zone := r.URL.Query().Get("zone"); zone == "" || zone == zones.Of(h) {
			views = append(views, map[string]string{"host_name": h.Name, "service": "compute", "zone": zones.Of(h)})
		}
	}
	return answer(w, http.StatusOK, map[string]any{"hosts": views})
}

func (s *server) showHost(w http.ResponseWriter, r *http.Request) error {
	tx, _, err := s.hosts(r, "host.get")
	if err != nil {
		return err
	}
	h, ok := host.ByName(tx, r.PathValue("name"))
	if !ok {
		return fault.Errorf(fault.NotFound, "Compute host %s could not be found.", r.PathValue("name"))
	}
	_, used := compute.Load(tx, h)
	line := func(project string, cpu, memory, disk int64) map[string]any {
		return map[string]any{"resource": map[string]any{"host": h.Name, "project": project, "cpu": cpu, "memory_mb": memory, "disk_gb": disk}}
	}
	return answer(w, http.StatusOK, map[string]any{"host": []any{
		line("(total)", int64(h.Capacity.VCPUs), int64(h.Capacity.MemoryMiB), int64(h.Capacity.DiskGiB)),
		line("(used_now)", used[0], used[1], used[2]), line("(used_max)", used[0], used[1], used[2])}})
}

var hostUpdate = object(may("status", pattern(0, 255, `^(?i)\s*(enable|disable)\s*$`)), may("maintenance_mode", pattern(0, 255, `^(?i)\s*(enable|disable)\s*$`)))

func (s *server) updateHost(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.update", resource.Meta{}); err != nil {
		return err
	}
	b, err := read(r, hostUpdate)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return wrong("body", map[string]any{}, "It does not have enough properties")
	}
	h, ok := host.ByName(s.compute.State.Latest(), r.PathValue("name"))
	if !ok {
		return fault.Errorf(fault.NotFound, "Compute host %s could not be found.", r.PathValue("name"))
	}
	if b.has("maintenance_mode") {
		return fault.Errorf(fault.Unsupported, "Virt driver does not implement host maintenance mode.").WithCode("not-implemented")
	}
	disable := strings.EqualFold(strings.TrimSpace(b.text("status")), "disable")
	hosts := host.Service{State: s.compute.State}
	if err := hosts.SetDisabled(r.Context(), h.ID, disable, ""); err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"host": h.Name, "status": map[bool]string{true: "disabled", false: "enabled"}[disable]})
}

// powerHost is for switching hosts themselves, which is not the cloud's to do.
func (s *server) powerHost(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.update", resource.Meta{}); err != nil {
		return err
	}
	switch r.PathValue("verb") {
	case "startup", "shutdown", "reboot":
		if _, ok := host.ByName(s.compute.State.Latest(), r.PathValue("name")); !ok {
			return fault.Errorf(fault.NotFound, "Compute host %s could not be found.", r.PathValue("name"))
		}
		return fault.Errorf(fault.Unsupported, "Virt driver does not implement host power management.").WithCode("not-implemented")
	}
	return absent()
}

// imageStates are what the old API calls an image's states.
var imageStates = map[image.State]string{image.Active: "ACTIVE", image.Queued: "SAVING", image.Receiving: "SAVING", image.Staging: "SAVING",
	image.Staged: "SAVING", image.Importing: "SAVING", image.Deleting: "DELETED", image.Deactivated: "UNKNOWN"}

func (s *server) imageView(r *http.Request, i *image.Image) map[string]any {
	progress := 0
	if i.State == image.Active {
		progress = 100
	}
	links := append(s.links(r, "images/"+i.ID.String()), map[string]string{"rel": "alternate",
		"type": "application/vnd.openstack.image", "href": strings.TrimSuffix(s.links(r, "")[1]["href"], s.prefix+"/") + "/image/images/" + i.ID.String()})
	return map[string]any{"id": i.ID.String(), "name": i.Name, "status": imageStates[i.State], "created": i.CreatedAt.UTC().Format("2006-01-02T15:04:05Z"),
		"updated": i.UpdatedAt.UTC().Format("2006-01-02T15:04:05Z"), "minDisk": i.MinDiskGiB, "minRam": i.MinMemoryMiB, "progress": progress,
		"metadata": orEmpty(i.Properties), "OS-EXT-IMG-SIZE:size": i.Bytes, "links": links}
}

func (s *server) showImage(w http.ResponseWriter, r *http.Request) error {
	i, err := s.imageOf(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"image": s.imageView(r, i)})
}

func (s *server) imageOf(r *http.Request) (*image.Image, error) {
	id, err := pathID(r, "id", "Image")
	if err != nil {
		return nil, err
	}
	return s.images.Get(r.Context(), id)
}

func (s *server) deleteImage(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r, "id", "Image")
	if err != nil {
		return err
	}
	if err := s.images.Delete(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}

func (s *server) listImages(w http.ResponseWriter, r *http.Request) error {
	return s.imageList(w, r, func(i *image.Image) map[string]any {
		full := s.imageView(r, i)
		return map[string]any{"id": full["id"], "name": full["name"], "links": full["links"]}
	})
}

func (s *server) listImagesDetail(w http.ResponseWriter, r *http.Request) error {
	return s.imageList(w, r, func(i *image.Image) map[string]any { return s.imageView(r, i) })
}

func (s *server) imageList(w http.ResponseWriter, r *http.Request, view func(*image.Image) map[string]any) error {
	values := r.URL.Query()
	limit, marker, err := paging(values)
	if err != nil {
		return err
	}
	q := image.Query{List: query.List{Limit: limit, Marker: marker}, Name: values.Get("name")}
	var keeps []func(*image.Image) bool
	if status := values.Get("status"); status != "" {
		keeps = append(keeps, func(i *image.Image) bool { return strings.EqualFold(imageStates[i.State], status) })
	}
	if text := values.Get("changes-since"); text != "" {
		at, err := readTime("changes-since", text)
		if err != nil {
			return err
		}
		keeps = append(keeps, func(i *image.Image) bool { return !i.UpdatedAt.Before(at) })
	}
	if typ := values.Get("type"); typ != "" {
		keeps = append(keeps, func(i *image.Image) bool { return i.Properties["image_type"] == typ })
	}
	if from := values.Get("server"); from != "" {
		from = from[strings.LastIndexByte(from, '/')+1:]
		keeps = append(keeps, func(i *image.Image) bool { return i.Properties["instance_uuid"] == from })
	}
	q.Keep = func(i *image.Image) bool {
		for _, keep := range keeps {
			if !keep(i) {
				return false
			}
		}
		return true
	}
	views := []map[string]any{}
	doc := map[string]any{"images": &views}
	if limit > 0 {
		page, err := s.images.List(r.Context(), q)
		if err != nil {
			return err
		}
		for _, i := range page.Items {
			views = append(views, view(i))
		}
		if page.More {
			doc["images_links"] = []any{link("next", openstack.NextLink(r, s.prefix, page.Items[len(page.Items)-1].ID.String()))}
		}
	}
	return answer(w, http.StatusOK, doc)
}

func (s *server) listImageMetadata(w http.ResponseWriter, r *http.Request) error {
	i, err := s.imageOf(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"metadata": orEmpty(i.Properties)})
}

func (s *server) showImageMetadata(w http.ResponseWriter, r *http.Request) error {
	i, err := s.imageOf(r)
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	value, ok := i.Properties[key]
	if !ok {
		return fault.Errorf(fault.NotFound, "Metadata item was not found")
	}
	return answer(w, http.StatusOK, map[string]any{"meta": map[string]string{key: value}})
}

// editImage changes an image's properties.
func (s *server) editImage(r *http.Request, edit func(m map[string]string) error) (map[string]string, error) {
	id, err := pathID(r, "id", "Image")
	if err != nil {
		return nil, err
	}
	i, err := s.images.Update(r.Context(), id, func(i *image.Image) error {
		if i.Properties == nil {
			i.Properties = map[string]string{}
		}
		return edit(i.Properties)
	})
	if err != nil {
		return nil, err
	}
	return i.Properties, nil
}

func (s *server) addImageMetadata(w http.ResponseWriter, r *http.Request) error {
	return s.setImageMetadata(w, r, false)
}

func (s *server) replaceImageMetadata(w http.ResponseWriter, r *http.Request) error {
	return s.setImageMetadata(w, r, true)
}

func (s *server) setImageMetadata(w http.ResponseWriter, r *http.Request, replace bool) error {
	b, err := read(r, object(need("metadata", metadata)))
	if err != nil {
		return err
	}
	all, err := s.editImage(r, func(m map[string]string) error {
		if replace {
			clear(m)
		}
		for k, v := range b.pairs("metadata") {
			m[k] = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"metadata": all})
}

func (s *server) putImageMetadata(w http.ResponseWriter, r *http.Request) error {
	b, err := read(r, object(need("meta", metadata)))
	if err != nil {
		return err
	}
	key, pair := r.PathValue("key"), b.pairs("meta")
	if _, ok := pair[key]; !ok || len(pair) != 1 {
		return fault.Errorf(fault.Invalid, "Request body and URI mismatch")
	}
	if _, err := s.editImage(r, func(m map[string]string) error { m[key] = pair[key]; return nil }); err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"meta": pair})
}

func (s *server) deleteImageMetadata(w http.ResponseWriter, r *http.Request) error {
	key := r.PathValue("key")
	_, err := s.editImage(r, func(m map[string]string) error {
		if _, ok := m[key]; !ok {
			return fault.Errorf(fault.NotFound, "Metadata item was not found")
		}
		delete(m, key)
		return nil
	})
	if err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}

// protocols are the names that the old API had.
var protocols = map[int]string{1: "icmp", 6: "tcp", 17: "udp"}

func securityGroupView(tx *state.Tx, g *network.Group) map[string]any {
	rules := []map[string]any{}
	for rule := range network.Rules().Peek(tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
		if rule.Ingress { // it had no others
			rules = append(rules, securityRuleView(tx, rule))
		}
	}
	return map[string]any{"id": g.ID.String(), "name": g.Name, "description": g.Description, "tenant_id": g.ProjectID.Hex(), "rules": rules}
}

func securityRuleView(tx *state.Tx, rule *network.Rule) map[string]any {
	view := map[string]any{"id": rule.ID.String(), "parent_group_id": rule.GroupID.String(), "group": map[string]string{}, "ip_range": map[string]string{},
		"ip_protocol": nil, "from_port": nil, "to_port": nil}
	if rule.Protocol != network.AnyProtocol {
		view["ip_protocol"] = protocols[rule.Protocol]
		view["from_port"], view["to_port"] = -1, -1
	}
	if rule.HasMin {
		view["from_port"] = rule.PortMin
	}
	if rule.HasMax {
		view["to_port"] = rule.PortMax
	}
	if g, ok := network.Groups().PeekOne(tx, rule.RemoteGroup); ok {
		view["group"] = map[string]string{"name": g.Name, "tenant_id": g.ProjectID.Hex()}
	} else if rule.RemotePrefix.IsValid() {
		view["ip_range"] = map[string]string{"cidr": rule.RemotePrefix.String()}
	} else if !rule.V6 {
		view["ip_range"] = map[string]string{"cidr": "0.0.0.0/0"}
	} else {
		view["ip_range"] = map[string]string{"cidr": "::/0"}
	}
	return view
}

func (s *server) listSecurityGroups(w http.ResponseWriter, r *http.Request) error {
	actor := identity.ActorOf(r.Context())
	q := network.Query{}
	if !(actor.Admin() && boolish[r.URL.Query().Get("all_tenants")]) {
		q.Where = []network.Condition{{Field: "project", Values: []string{actor.ProjectID.String()}}}
	}
	limit, _, err := paging(r.URL.Query())
	if err != nil {
		return err
	}
	q.Limit = limit
	page, err := s.network.Groups.List(r.Context(), q)
	if err != nil {
		return err
	}
	tx := s.compute.State.Latest()
	views := []map[string]any{}
	for _, g := range page.Items {
		views = append(views, securityGroupView(tx, g))
	}
	return answer(w, http.StatusOK, map[string]any{"security_groups": views})
}

// oldID reads the ID of a thing that had a number once: anything else is a bad request.
func oldID(r *http.Request, noun string) (resource.ID, error) {
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return id, fault.Errorf(fault.NotFound, "%s %s not found.", noun, r.PathValue("id"))
	}
	return id, nil
}

func (s *server) showSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Security group")
	if err != nil {
		return err
	}
	g, err := s.network.Groups.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"security_group": securityGroupView(s.compute.State.Latest(), g)})
}

var groupBody = object(need("name", name), need("description", orNull(text(0, 255))))

func (s *server) createSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "security_group", groupBody)
	if err != nil {
		return err
	}
	want := &network.Group{Meta: resource.Meta{Name: b.text("name"), ProjectID: identity.ActorOf(r.Context()).ProjectID},
		Description: b.text("description"), Stateful: true}
	made, err := s.network.Groups.Create(r.Context(), want)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"security_group": securityGroupView(s.compute.State.Latest(), made[0])})
}

func (s *server) updateSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "security_group", groupBody)
	if err != nil {
		return err
	}
	id, err := oldID(r, "Security group")
	if err != nil {
		return err
	}
	g, err := s.network.Groups.Update(r.Context(), id, 0, func(g *network.Group) error {
		g.Name, g.Description = b.text("name"), b.text("description")
		return nil
	})
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"security_group": securityGroupView(s.compute.State.Latest(), g)})
}

func (s *server) deleteSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Security group")
	if err != nil {
		return err
	}
	if err := s.network.Groups.Delete(r.Context(), id, 0); err != nil {
		return asBadRule(err)
	}
	return accepted(w, http.StatusAccepted)
}

var ruleBody = open(need("parent_group_id", anything), may("ip_protocol", orNull(either(text(0, 255), anyNumber))),
	may("from_port", anything), may("to_port", anything), may("cidr", orNull(text(0, 255))), may("group_id", orNull(text(0, 255))))

func (s *server) createSecurityRule(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "security_group_rule", ruleBody)
	if err != nil {
		return err
	}
	if _, err := resource.ParseID(b.text("parent_group_id")); err != nil {
		return fault.Errorf(fault.Invalid, "Security group id should be uuid")
	}
	rule, err := ruleOf(b)
	if err != nil {
		return err
	}
	parent, err := s.network.Groups.Get(r.Context(), rule.GroupID)
	if err != nil {
		return err
	}
	rule.ProjectID = parent.ProjectID
	made, err := s.network.Rules.Create(r.Context(), rule)
	if err != nil {
		return asBadRule(err)
	}
	return answer(w, http.StatusOK, map[string]any{"security_group_rule": securityRuleView(s.compute.State.Latest(), made[0])})
}

func asBadRule(err error) error {
	if f := fault.From(err); f != nil && f.Kind != fault.NotFound && f.Kind != fault.OverQuota {
		return &fault.Error{Kind: fault.Invalid, Code: f.Code, Message: f.Message}
	}
	return err
}

// ruleOf turns a rule as the old API has it into one of today.
func ruleOf(b body) (*network.Rule, error) {
	rule := &network.Rule{GroupID: b.id("parent_group_id"), Ingress: true, Protocol: network.AnyProtocol, RemoteGroup: b.id("group_id")}
	if b.has("group_id") && b["group_id"] != nil && rule.RemoteGroup.IsZero() {
		return nil, fault.Errorf(fault.Invalid, "Source group id should be uuid")
	}
	word := strings.ToLower(b.text("ip_protocol"))
	if word == "" && rule.RemoteGroup.IsZero() {
		return nil, fault.Errorf(fault.Invalid, "Invalid IP protocol None.")
	}
	for number, name := range protocols {
		if name == word {
			rule.Protocol, rule.ProtocolLabel = number, name
		}
	}
	if word != "" && rule.Protocol == network.AnyProtocol {
		return nil, fault.Errorf(fault.Invalid, "Invalid IP protocol %s.", word)
	}
	if cidr := b.text("cidr"); cidr != "" {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fault.Errorf(fault.Invalid, "Invalid cidr %s.", cidr)
		}
		rule.RemotePrefix, rule.V6 = prefix, prefix.Addr().Is6()
	}
	if rule.Protocol == network.AnyProtocol {
		return rule, nil
	}
	from, okFrom := asInt(b["from_port"])
	to, okTo := asInt(b["to_port"])
	least := int64(1)
	if word == "icmp" {
		least = -1
	}
	if !okFrom || !okTo || from < least || to < least || from > 65535 || to > 65535 || word != "icmp" && from > to {
		return nil, fault.Errorf(fault.Invalid, "Invalid port range %v:%v. Valid %s ports should be between %d-65535", b["from_port"], b["to_port"], strings.ToUpper(word), least)
	}
	rule.PortMin, rule.HasMin = int(from), from >= 0
	rule.PortMax, rule.HasMax = int(to), to >= 0
	return rule, nil
}

func (s *server) deleteSecurityRule(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Security group rule")
	if err != nil {
		return err
	}
	if err := s.network.Rules.Delete(r.Context(), id, 0); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func floatingView(tx *state.Tx, f *network.FloatingAddress) map[string]any {
	view := map[string]any{"id": f.ID.String(), "ip": f.Address.String(), "fixed_ip": nil, "instance_id": nil, "pool": ""}
	if n, ok := network.Networks().PeekOne(tx, f.NetworkID); ok {
		view["pool"] = n.Name
	}
	if p, ok := network.Ports().PeekOne(tx, f.TargetID); ok {
		view["fixed_ip"] = f.Fixed.String()
		if p.Owner == network.OwnerServer {
			view["instance_id"] = p.DeviceID
		}
	}
	return view
}

func (s *server) listFloatingIPs(w http.ResponseWriter, r *http.Request) error {
	mine := []network.Condition{{Field: "project", Values: []string{identity.ActorOf(r.Context()).ProjectID.String()}}}
	page, err := s.network.Floating.List(r.Context(), network.Query{Where: mine})
	if err != nil {
		return err
	}
	tx := s.compute.State.Latest()
	views := []map[string]any{}
	for _, f := range page.Items {
		views = append(views, floatingView(tx, f))
	}
	return answer(w, http.StatusOK, map[string]any{"floating_ips": views})
}

func (s *server) showFloatingIP(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Floating IP")
	if err != nil {
		return err
	}
	f, err := s.network.Floating.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"floating_ip": floatingView(s.compute.State.Latest(), f)})
}

// pools are the external networks that floating addresses come from.
func (s *server) pools(r *http.Request) ([]*network.Network, error) {
	page, err := s.network.Networks.List(r.Context(), network.Query{Where: []network.Condition{{Field: "external", Values: []string{"true"}}}})
	return page.Items, err
}

func (s *server) createFloatingIP(w http.ResponseWriter, r *http.Request) error {
	asked := ""
	if r.ContentLength != 0 {
		value, err := decode(r)
		if err != nil {
			return err
		}
		m, ok := value.(map[string]any)
		if !ok && value != nil {
			return fault.Errorf(fault.Invalid, "Malformed request body")
		}
		if asked, ok = m["pool"].(string); !ok && m["pool"] != nil {
			return fault.InvalidField("pool", "must be a name")
		}
	}
	pools, err := s.pools(r)
	if err != nil {
		return err
	}
	for _, pool := range pools {
		if asked != "" && asked != pool.Name && asked != pool.ID.String() {
			continue
		}
		want := &network.FloatingAddress{Meta: resource.Meta{ProjectID: identity.ActorOf(r.Context()).ProjectID}, NetworkID: pool.ID}
		made, err := s.network.Floating.Create(r.Context(), want)
		if err != nil {
			return err
		}
		return answer(w, http.StatusOK, map[string]any{"floating_ip": floatingView(s.compute.State.Latest(), made[0])})
	}
	return fault.Errorf(fault.NotFound, "Floating IP pool not found.")
}

func (s *server) deleteFloatingIP(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Floating IP")
	if err != nil {
		return err
	}
	if err := s.network.Floating.Delete(r.Context(), id, 0); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) listFloatingPools(w http.ResponseWriter, r *http.Request) error {
	pools, err := s.pools(r)
	if err != nil {
		return err
	}
	views := []map[string]string{}
	for _, n := range pools {
		views = append(views, map[string]string{"name": n.Name})
	}
	return answer(w, http.StatusOK, map[string]any{"floating_ip_pools": views})
}

// networkView has the fields that an older network service had, most of which say nothing now.
func networkView(n *network.Network) map[string]any {
	view := map[string]any{"id": n.ID.String(), "label": n.Name}
	for _, word := range []string{"bridge", "bridge_interface", "broadcast", "cidr", "cidr_v6", "created_at", "deleted", "deleted_at", "dhcp_server",
		"dhcp_start", "dns1", "dns2", "enable_dhcp", "gateway", "gateway_v6", "host", "injected", "mtu", "multi_host", "netmask", "netmask_v6",
		"priority", "project_id", "rxtx_base", "share_address", "updated_at", "vlan", "vpn_private_address", "vpn_public_address", "vpn_public_port"} {
		view[word] = nil
	}
	return view
}

func tenantNetworkView(n *network.Network) map[string]any {
	return map[string]any{"id": n.ID.String(), "label": n.Name, "cidr": "None"}
}

func (s *server) listNetworks(w http.ResponseWriter, r *http.Request) error {
	return s.networkList(w, r, networkView)
}

func (s *server) listTenantNetworks(w http.ResponseWriter, r *http.Request) error {
	return s.networkList(w, r, tenantNetworkView)
}

func (s *server) networkList(w http.ResponseWriter, r *http.Request, view func(*network.Network) map[string]any) error {
	page, err := s.network.Networks.List(r.Context(), network.Query{})
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, n := range page.Items {
		views = append(views, view(n))
	}
	return answer(w, http.StatusOK, map[string]any{"networks": views})
}

func (s *server) showNetwork(w http.ResponseWriter, r *http.Request) error {
	return s.networkOne(w, r, networkView)
}

func (s *server) showTenantNetwork(w http.ResponseWriter, r *http.Request) error {
	return s.networkOne(w, r, tenantNetworkView)
}

func (s *server) networkOne(w http.ResponseWriter, r *http.Request, view func(*network.Network) map[string]any) error {
	id, err := oldID(r, "Network")
	if err != nil {
		return err
	}
	n, err := s.network.Networks.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"network": view(n)})
}
