package nova

import (
	"cmp"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// pageSize is the most that one answer lists.
const pageSize = 1000

// serverID reads the server's ID in the path. What is no UUID names nothing.
func serverID(r *http.Request) (resource.ID, error) { return pathID(r, "id", "Instance") }

func pathID(r *http.Request, part, noun string) (resource.ID, error) {
	id, err := resource.ParseID(r.PathValue(part))
	if err != nil {
		return id, fault.Errorf(fault.NotFound, "%s %s could not be found.", noun, r.PathValue(part))
	}
	return id, nil
}

func (s *server) showServer(w http.ResponseWriter, r *http.Request) error {
	id, err := serverID(r)
	if err != nil {
		return err
	}
	tx, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return s.writeServer(w, r, http.StatusOK, tx, srv, shown, nil)
}

func (s *server) deleteServer(w http.ResponseWriter, r *http.Request) error {
	id, err := serverID(r)
	if err != nil {
		return err
	}
	if err := s.compute.Delete(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}

func (s *server) listServers(w http.ResponseWriter, r *http.Request) error {
	return s.list(w, r, false)
}

func (s *server) listServersDetail(w http.ResponseWriter, r *http.Request) error {
	return s.list(w, r, true)
}

func (s *server) list(w http.ResponseWriter, r *http.Request, detail bool) error {
	q, none, err := s.serverQuery(r)
	if err != nil {
		return err
	}
	if none {
		return s.writeServers(w, r, compute.View{Tx: s.compute.State.Latest()}, detail)
	}
	view, err := s.compute.List(r.Context(), q)
	if err != nil {
		return err
	}
	return s.writeServers(w, r, view, detail)
}

// A filter turns the values of one parameter into a part of a query.
type filter struct {
	admin bool // of anybody else it is ignored
	first int  // the microversion that brought it
	add   func(f *filtering, values []string) error
}

// filtering is a query being put together from parameters.
type filtering struct {
	compute.Query
	s     *server
	r     *http.Request
	none  bool // nothing can match
	keeps []func(*compute.Server) bool
}

func (f *filtering) keep(fn func(*compute.Server) bool) { f.keeps = append(f.keeps, fn) }

// equal makes a filter on a text of a server.
func equal(of func(*compute.Server) string) func(*filtering, []string) error {
	return func(f *filtering, values []string) error {
		f.keep(func(s *compute.Server) bool { return slices.Contains(values, of(s)) })
		return nil
	}
}

// ignored is for parameters that Nova knows and that tell our servers nothing apart.
func ignored(*filtering, []string) error { return nil }

// filters are what a list of servers may be filtered by (Compute API, "List Servers").
var filters = map[string]filter{
	"all_tenants": {add: ignored}, "limit": {add: ignored}, "marker": {add: ignored}, "sort_key": {add: ignored}, "sort_dir": {add: ignored},
	"deleted":      {admin: true, add: func(f *filtering, values []string) error { f.none = f.none || boolish[values[0]]; return nil }},
	"soft_deleted": {admin: true, add: ignored}, "is_public": {add: ignored},
	"name": {add: func(f *filtering, values []string) error {
		return f.match("name", values[0], &f.NameIs)
	}},
	"display_name": {add: func(f *filtering, values []string) error {
		return f.match("display_name", values[0], &f.NameIs)
	}},
	"description": {add: func(f *filtering, values []string) error {
		return f.match("description", values[0], &f.DescriptionIs)
	}},
	"hostname": {add: func(f *filtering, values []string) error {
		return f.match("hostname", values[0], &f.HostnameIs)
	}},
	"status":     {add: (*filtering).status},
	"vm_state":   {add: func(f *filtering, values []string) error { f.Standings = standingsIn(values, nil); return nil }},
	"task_state": {add: func(f *filtering, values []string) error { f.Standings = standingsIn(nil, values); return nil }},
	"power_state": {add: func(f *filtering, values []string) error {
		asked := map[compute.Power]bool{}
		for power, number := range powerStates {
			asked[power] = slices.Contains(values, strconv.Itoa(number))
		}
		unseen := slices.Contains(values, "0")
		f.keep(func(s *compute.Server) bool {
			is, known := asked[s.Seen.Power]
			return is || !known && unseen
		})
		return nil
	}},
	"image": {add: func(f *filtering, values []string) error {
		id, err := resource.ParseID(values[0])
		f.ImageID, f.none = id, f.none || err != nil
		return nil
	}},
	"flavor": {add: func(f *filtering, values []string) error {
		if known, err := f.s.compute.Flavor(f.r.Context(), values[0]); err == nil {
			f.FlavorID = known.ID
			return nil
		}
		return equal(func(s *compute.Server) string { return s.Shape.Ref })(f, values)
	}},
	"host": {admin: true, add: (*filtering).host}, "node": {admin: true, add: (*filtering).host},
	"hypervisor_hostname": {admin: true, add: (*filtering).host},
	"reservation_id":      {add: func(f *filtering, values []string) error { f.Reservation = values[0]; return nil }},
	"uuid": {add: func(f *filtering, values []string) error {
		ids := []resource.ID{}
		for _, v := range values {
			if id, err := resource.ParseID(v); err == nil {
				ids = append(ids, id)
			}
		}
		f.among(ids)
		return nil
	}},
	"user_id":    {add: equal(func(s *compute.Server) string { return s.UserID.Hex() })},
	"project_id": {admin: true, add: (*filtering).project}, "tenant_id": {admin: true, add: (*filtering).project},
	"key_name":          {add: func(f *filtering, values []string) error { f.KeyName = values[0]; return nil }},
	"availability_zone": {add: (*filtering).zone},
	"config_drive": {add: func(f *filtering, values []string) error {
		want := boolish[values[0]]
		f.keep(func(s *compute.Server) bool { return s.ConfigDrive == want })
		return nil
	}},
	"access_ip_v4":     {add: equal(func(s *compute.Server) string { return s.AccessIPv4 })},
	"access_ip_v6":     {add: equal(func(s *compute.Server) string { return s.AccessIPv6 })},
	"launch_index":     {add: equal(func(s *compute.Server) string { return strconv.Itoa(s.LaunchIndex) })},
	"kernel_id":        {add: equal(func(s *compute.Server) string { return partID(s.Boot.Kernel) })},
	"ramdisk_id":       {add: equal(func(s *compute.Server) string { return partID(s.Boot.Initrd) })},
	"root_device_name": {add: equal(func(*compute.Server) string { return "/dev/vda" })},
	"instance_name":    {admin: true, add: equal(func(s *compute.Server) string { return instanceName(s.ID) })},
	"auto_disk_config": {add: ignored}, "progress": {add: ignored}, "block_device_mapping": {add: ignored}, "services": {add: ignored},
	"metadata": {add: ignored}, "system_metadata": {add: ignored}, "locked_by": {add: ignored}, "cell_name": {add: ignored},
	"created_at": {add: ignored}, "updated_at": {add: ignored}, "launched_at": {add: ignored}, "terminated_at": {add: ignored},
	"locked": {first: 73, add: func(f *filtering, values []string) error {
		if f.Locked = boolish[values[0]]; !f.Locked {
			f.keep(func(s *compute.Server) bool { return !s.Locked() })
		}
		return nil
	}},
	"ip":  {add: func(f *filtering, values []string) error { return f.ip("ip", values[0], true) }},
	"ip6": {add: func(f *filtering, values []string) error { return f.ip("ip6", values[0], false) }},
	"changes-since": {add: func(f *filtering, values []string) error {
		at, err := readTime("changes-since", values[0])
		f.ChangedSince = at
		return err
	}},
	"changes-before": {first: 66, add: func(f *filtering, values []string) error {
		at, err := readTime("changes-before", values[0])
		f.keep(func(s *compute.Server) bool { return !s.UpdatedAt.After(at) })
		return err
	}},
	"tags": {first: 26, add: func(f *filtering, values []string) error {
		f.AnyTag = strings.Split(values[0], ",")[:1] // the index finds those with the first
		return tagFilter(func(have, asked []string) bool { return len(asked) == countIn(have, asked) })(f, values)
	}},
	"tags-any": {first: 26, add: func(f *filtering, values []string) error {
		asked := strings.Split(values[0], ",")
		if f.AnyTag == nil {
			f.AnyTag = asked
			return nil
		}
		return tagFilter(func(have, asked []string) bool { return countIn(have, asked) > 0 })(f, values)
	}},
	"not-tags":     {first: 26, add: tagFilter(func(have, asked []string) bool { return countIn(have, asked) < len(asked) })},
	"not-tags-any": {first: 26, add: tagFilter(func(have, asked []string) bool { return countIn(have, asked) == 0 })},
}

func countIn(have, asked []string) int {
	n := 0
	for _, tag := range asked {
		if slices.Contains(have, tag) {
			n++
		}
	}
	return n
}

func tagFilter(holds func(have, asked []string) bool) func(*filtering, []string) error {
	return func(f *filtering, values []string) error {
		asked := strings.Split(values[0], ",")
		f.keep(func(s *compute.Server) bool { return holds(s.Tags, asked) })
		return nil
	}
}

func readTime(name, text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999-07", "2006-01-02 15:04:05.999999999", "2006-01-02"} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fault.Errorf(fault.Invalid, "Invalid input for query parameters %s. Value: %s. '%s' is not a 'date-time'", name, text, text)
}

// match keeps servers with a text that is like what is asked: one of the query's patterns.
func (f *filtering) match(parameter, asked string, is *func(string) bool) error {
	like, err := like(parameter, asked)
	if err != nil {
		return err
	}
	if before := *is; before != nil { // asked for by another name of the parameter, too
		*is = func(text string) bool { return before(text) && like(text) }
		return nil
	}
	*is = like
	return nil
}

// like tells texts that contain what is asked, or that it matches as a regular expression.
func like(parameter, asked string) (func(string) bool, error) {
	if len(asked) > 255 {
		return nil, fault.Errorf(fault.Invalid, "Invalid input for query parameters %s: it is too long.", parameter)
	}
	re, err := regexp.Compile(asked)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "Invalid input for query parameters %s. Value: %s. '%s' is not a 'regex'", parameter, asked, asked)
	}
	if regexp.QuoteMeta(asked) == asked {
		return func(text string) bool { return strings.Contains(text, asked) }, nil
	}
	// What a match surely contains is found sooner than the match, or its absence.
	part, whole := re.LiteralPrefix()
	if whole {
		return func(text string) bool { return strings.Contains(text, part) }, nil
	}
	begin := ""
	if rest, anchored := strings.CutPrefix(asked, "^"); anchored && !strings.Contains(rest, "|") {
		if re, err := regexp.Compile(rest); err == nil {
			begin, _ = re.LiteralPrefix()
		}
	}
	return func(text string) bool {
		return strings.HasPrefix(text, begin) && strings.Contains(text, part) && re.MatchString(text)
	}, nil
}

func (f *filtering) status(values []string) error {
	var names []string
	for _, v := range values {
		switch {
		case knownStatus(v):
			names = append(names, strings.ToUpper(v))
		case minorOf(f.r) >= 38:
			return fault.Errorf(fault.Invalid, "Invalid status value")
		}
	}
	if slices.Contains(names, "DELETED") && !identity.ActorOf(f.r.Context()).Admin() {
		return fault.Errorf(fault.Forbidden, "Only administrators may list deleted instances")
	}
	f.Standings = standingsOf(names)
	return nil
}

func (f *filtering) host(values []string) error {
	h, ok := host.ByName(f.s.compute.State.Latest(), values[0])
	if !ok {
		f.none = true
		return nil
	}
	f.HostID = h.ID
	return nil
}

func (f *filtering) project(values []string) error {
	if f.AllProjects {
		id, err := resource.ParseID(values[0])
		f.ProjectID, f.none = id, f.none || err != nil
	}
	return nil
}

func (f *filtering) zone(values []string) error {
	tx := f.s.compute.State.Latest()
	zones := compute.ZonesOf(tx)
	known := false
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		known = known || slices.Contains(values, zones.Of(h))
	}
	f.Unplaced = !known // a zone without hosts can only have been asked for
	f.keep(func(s *compute.Server) bool {
		zone := s.Zone
		if h, ok := host.Table().PeekOne(tx, s.HostID); ok {
			zone = zones.Of(h)
		}
		return slices.Contains(values, zone)
	})
	return nil
}

// among keeps those of these servers that are not left out yet.
func (f *filtering) among(ids []resource.ID) {
	if f.IDs != nil {
		ids = slices.DeleteFunc(ids, func(id resource.ID) bool { return !slices.Contains(f.IDs, id) })
	}
	f.IDs = ids
}

// ip keeps servers with an address: a whole one exactly, anything else as a regular expression.
func (f *filtering) ip(name, asked string, v4 bool) error {
	tx := f.s.compute.State.Latest()
	if a, err := netip.ParseAddr(asked); err == nil {
		ids := []resource.ID{}
		for p := range network.Ports().Peek(tx, "ip", state.Range{Prefix: state.KeyOf(a)}) {
			if id, err := resource.ParseID(p.DeviceID); err == nil {
				ids = append(ids, id)
			}
		}
		f.among(ids)
		return nil
	}
	re, err := regexp.Compile(asked)
	if err != nil || len(asked) > 255 {
		return fault.Errorf(fault.Invalid, "Invalid input for query parameters %s. Value: %s. '%s' is not a 'regex'", name, asked, asked)
	}
	f.keep(func(s *compute.Server) bool {
		for _, p := range compute.Ports(tx, s) {
			for _, fixed := range p.Fixed {
				if fixed.Address.Is4() == v4 && re.MatchString(fixed.Address.String()) {
					return true
				}
			}
		}
		return false
	})
	return nil
}

// serverQuery reads a list's parameters. none: nothing can match them.
func (s *server) serverQuery(r *http.Request) (q compute.Query, none bool, err error) {
	values := r.URL.Query()
	f := &filtering{s: s, r: r}
	admin := identity.ActorOf(r.Context()).Admin()
	if all := values.Get("all_tenants"); values.Has("all_tenants") {
		on, known := boolish[all]
		if !known && all != "" {
			return q, false, fault.Errorf(fault.Invalid, "Invalid input for query parameters all_tenants. Value: %s. It is not a 'boolean'", all)
		}
		f.AllProjects = on || all == ""
	}
	if f.Limit, f.Marker, err = paging(values); err != nil {
		return q, false, err
	}
	if values.Get("limit") == "0" {
		f.none = true
	}
	for _, name := range sortedParameters(values) {
		one, known := filters[name]
		if !known || one.first > minorOf(r) {
			if minorOf(r) >= 75 {
				return q, false, fault.Errorf(fault.Invalid, "Invalid input for query parameters %s. Additional properties are not allowed ('%s' was unexpected)", name, name)
			}
			continue
		}
		if one.admin && !admin {
			continue
		}
		if err := one.add(f, values[name]); err != nil {
			return q, false, err
		}
	}
	if err := f.order(values["sort_key"], values["sort_dir"]); err != nil {
		return q, false, err
	}
	if len(f.keeps) > 0 {
		f.Keep = func(s *compute.Server) bool {
			for _, keep := range f.keeps {
				if !keep(s) {
					return false
				}
			}
			return true
		}
	}
	return f.Query, f.none, nil
}

func sortedParameters(values url.Values) []string {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// paging reads limit and marker.
func paging(values url.Values) (limit int, marker resource.ID, err error) {
	limit = pageSize
	if text := values.Get("limit"); values.Has("limit") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || strings.HasPrefix(text, "+") {
			return 0, marker, fault.Errorf(fault.Invalid, "Invalid input for query parameters limit. Value: %s. '%s' is not a non-negative integer", text, text)
		}
		limit = min(n, pageSize)
	}
	if text := values.Get("marker"); text != "" {
		if marker, err = resource.ParseID(text); err != nil {
			return 0, marker, fault.Errorf(fault.Invalid, "marker [%s] not found", text)
		}
	}
	return limit, marker, nil
}

// sortKeys are what a list of servers may be sorted by.
var sortKeys = map[string]func(a, b *compute.Server) int{
	"created_at":   func(a, b *compute.Server) int { return a.CreatedAt.Compare(b.CreatedAt) },
	"updated_at":   func(a, b *compute.Server) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
	"launched_at":  func(a, b *compute.Server) int { return a.LaunchedAt.Compare(b.LaunchedAt) },
	"display_name": func(a, b *compute.Server) int { return strings.Compare(a.Name, b.Name) },
	"name":         func(a, b *compute.Server) int { return strings.Compare(a.Name, b.Name) },
	"uuid":         func(a, b *compute.Server) int { return slices.Compare(a.ID[:], b.ID[:]) },
	"vm_state":     func(a, b *compute.Server) int { return strings.Compare(vmStates[a.Stage()], vmStates[b.Stage()]) },
	"task_state":   func(a, b *compute.Server) int { return strings.Compare(taskStates[a.Task], taskStates[b.Task]) },
	"power_state": func(a, b *compute.Server) int {
		return cmp.Compare(powerStates[a.Seen.Power], powerStates[b.Seen.Power])
	},
	"host":       func(a, b *compute.Server) int { return slices.Compare(a.HostID[:], b.HostID[:]) },
	"hostname":   func(a, b *compute.Server) int { return strings.Compare(a.Hostname, b.Hostname) },
	"key_name":   func(a, b *compute.Server) int { return strings.Compare(keyOf(a), keyOf(b)) },
	"user_id":    func(a, b *compute.Server) int { return slices.Compare(a.UserID[:], b.UserID[:]) },
	"project_id": func(a, b *compute.Server) int { return slices.Compare(a.ProjectID[:], b.ProjectID[:]) },
	"image_ref": func(a, b *compute.Server) int {
		x, y := a.Boot.ImageID(), b.Boot.ImageID()
		return slices.Compare(x[:], y[:])
	},
	"instance_type_id":    func(a, b *compute.Server) int { return strings.Compare(a.Shape.Ref, b.Shape.Ref) },
	"launch_index":        func(a, b *compute.Server) int { return cmp.Compare(a.LaunchIndex, b.LaunchIndex) },
	"locked":              func(a, b *compute.Server) int { return cmp.Compare(boolInt(a.Locked()), boolInt(b.Locked())) },
	"access_ip_v4":        func(a, b *compute.Server) int { return strings.Compare(a.AccessIPv4, b.AccessIPv4) },
	"access_ip_v6":        func(a, b *compute.Server) int { return strings.Compare(a.AccessIPv6, b.AccessIPv6) },
	"availability_zone":   func(a, b *compute.Server) int { return strings.Compare(a.Zone, b.Zone) },
	"display_description": func(a, b *compute.Server) int { return strings.Compare(a.Description, b.Description) },
	"root_device_name":    func(a, b *compute.Server) int { return 0 },
	"progress":            func(a, b *compute.Server) int { return 0 },
	"config_drive":        func(a, b *compute.Server) int { return cmp.Compare(boolInt(a.ConfigDrive), boolInt(b.ConfigDrive)) },
	"auto_disk_config":    func(a, b *compute.Server) int { return cmp.Compare(boolInt(a.ManualDisk), boolInt(b.ManualDisk)) },
	"kernel_id":           func(a, b *compute.Server) int { return strings.Compare(partID(a.Boot.Kernel), partID(b.Boot.Kernel)) },
	"ramdisk_id":          func(a, b *compute.Server) int { return strings.Compare(partID(a.Boot.Initrd), partID(b.Boot.Initrd)) },
	"terminated_at":       func(a, b *compute.Server) int { return 0 },
	"node":                func(a, b *compute.Server) int { return slices.Compare(a.HostID[:], b.HostID[:]) },
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func keyOf(s *compute.Server) string {
	if s.Key == nil {
		return ""
	}
	return s.Key.Name
}

// order reads how a list is to be sorted: by creation, the newest first, when nothing is said.
func (f *filtering) order(keys, dirs []string) error {
	type by struct {
		compare func(a, b *compute.Server) int
		up      bool
	}
	var all []by
	for i, key := range keys {
		compare, ok := sortKeys[key]
		if !ok || f.locked(key) {
			return fault.Errorf(fault.Invalid, "Invalid input for query parameters sort_key. Value: %s. '%s' is not a key to sort by", key, key)
		}
		dir := "desc"
		if i < len(dirs) {
			dir = dirs[i]
		} else if len(dirs) > 0 {
			dir = dirs[len(dirs)-1]
		}
		all = append(all, by{compare, dir == "asc"})
	}
	for _, dir := range dirs {
		if dir != "asc" && dir != "desc" {
			return fault.Errorf(fault.Invalid, "Invalid input for query parameters sort_dir. Value: %s. It is not one of ['asc', 'desc']", dir)
		}
	}
	switch {
	case len(keys) == 0:
		f.Reverse = len(dirs) > 0 && dirs[0] == "asc"
	case len(keys) == 1 && keys[0] == "created_at":
		f.Reverse = all[0].up // IDs are in the order of creation
	default:
		f.Order = func(a, b *compute.Server) int {
			for _, one := range all {
				if c := one.compare(a, b); c != 0 {
					if !one.up {
						c = -c
					}
					return c
				}
			}
			return 0
		}
	}
	return nil
}

// locked reports whether a key came with a later microversion (2.73).
func (f *filtering) locked(key string) bool { return key == "locked" && minorOf(f.r) < 73 }
