package nova

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// What a server is shown for. Each microversion's fields are in all of them or in some.
type occasion int

const (
	shown    occasion = iota // GET of one
	listed                   // in a detailed list
	updated                  // the answer to PUT
	reformed                 // the answer to a rebuild
)

// A viewer writes servers as one request is to see them. It remembers what many servers share.
type viewer struct {
	doc
	tx    *state.Tx
	minor int
	admin bool
	on    occasion
	full  bool // the extended fields are shown, too

	v21, bare string // the addresses of things, with the version and without
	zones     compute.ZoneMap
	hosts     map[resource.ID]*host.Host
	hostIDs   map[hostOf]opaque
	networks  map[resource.ID]string
	groups    map[resource.ID]string
}

type hostOf struct{ project, host resource.ID }

func (s *server) viewer(r *http.Request, tx *state.Tx, on occasion) *viewer {
	base := wire.BaseURL(r) + s.prefix
	v := &viewer{tx: tx, minor: minorOf(r), admin: identity.ActorOf(r.Context()).Admin(), on: on,
		v21: base + pathOf(r), bare: base + "/", zones: compute.ZonesOf(tx),
		hosts: map[resource.ID]*host.Host{}, hostIDs: map[hostOf]opaque{}, networks: map[resource.ID]string{}, groups: map[resource.ID]string{}}
	v.full = on == shown || on == listed || v.minor >= 75
	return v
}

// links writes the two links of a server.
func (v *viewer) links(id resource.ID) {
	v.array("links")
	v.link("self", v.v21, "servers/", id)
	v.link("bookmark", v.bare, "servers/", id)
	v.endArray()
}

// brief writes what a list without detail shows.
func (v *viewer) brief(s *compute.Server) {
	v.item()
	v.id("id", s.ID)
	v.str("name", s.Name)
	v.links(s.ID)
	v.end()
}

// server writes one server.
func (v *viewer) server(s *compute.Server) {
	at := s.Standing()
	status := statusOfServer(at)
	v.id("id", s.ID)
	v.str("name", s.Name)
	v.str("status", status)
	v.hex("tenant_id", s.ProjectID)
	v.hex("user_id", s.UserID)
	v.time("created", s.CreatedAt)
	v.time("updated", s.UpdatedAt)
	v.str("accessIPv4", s.AccessIPv4)
	v.str("accessIPv6", s.AccessIPv6)
	v.hostID(s)
	v.metadata(s.Metadata)
	v.image(s)
	v.flavor(&s.Shape)
	v.links(s.ID)
	ports := compute.Ports(v.tx, s)
	v.addresses(ports)
	if s.ManualDisk {
		v.str("OS-DCF:diskConfig", "MANUAL")
	} else {
		v.str("OS-DCF:diskConfig", "AUTO")
	}
	if progressing[status] {
		v.int("progress", 0)
	}
	if s.Failure != nil && status == "ERROR" {
		v.fault(s.Failure)
	}
	if v.full {
		v.extended(s, at, ports)
	}
	v.versioned(s)
}

func (v *viewer) metadata(m map[string]string) {
	v.object("metadata")
	v.pairs(m)
	v.end()
}

// pairs writes members whose names need escapes.
func (v *viewer) pairs(m map[string]string) {
	for _, k := range sortedKeysOf(m) {
		v.sep()
		v.b = append(appendString(v.b, k), ':')
		v.comma = false
		v.value(m[k])
	}
}

func (v *viewer) image(s *compute.Server) {
	if s.Boot.Image == nil {
		v.str("image", "")
		return
	}
	v.object("image")
	v.id("id", s.Boot.Image.ID)
	v.array("links")
	v.link("bookmark", v.bare, "images/", s.Boot.Image.ID)
	v.endArray()
	v.end()
}

func (v *viewer) flavor(f *compute.Shape) {
	v.object("flavor")
	if v.minor < 47 {
		v.str("id", f.Ref)
		v.array("links")
		v.item()
		v.str("rel", "bookmark")
		v.str("href", v.bare+"flavors/"+f.Ref)
		v.end()
		v.endArray()
		v.end()
		return
	}
	v.int("vcpus", f.VCPUs)
	v.int("ram", f.MemoryMiB)
	v.int("disk", f.RootGiB)
	v.int("ephemeral", f.EphemeralGiB)
	v.int("swap", f.SwapMiB)
	v.str("original_name", f.Name)
	v.object("extra_specs")
	v.pairs(f.Extra)
	v.end()
	v.end()
}

func sortedKeysOf(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// addresses writes a server's addresses by the names of their networks.
func (v *viewer) addresses(ports []*network.Port) {
	v.object("addresses")
	var done []string
	for i, p := range ports {
		name := v.network(p.NetworkID)
		if slices.Contains(done, name) {
			continue
		}
		done = append(done, name)
		v.sep()
		v.b = append(appendString(v.b, name), ':', '[')
		v.comma = false
		for _, other := range ports[i:] {
			if v.network(other.NetworkID) == name {
				v.portAddresses(other)
			}
		}
		v.endArray()
	}
	v.end()
}

func (v *viewer) portAddresses(p *network.Port) {
	floating := network.FloatingOf(v.tx, p.ID)
	for _, f := range p.Fixed {
		v.address(f.Address.Is4(), f.Address.String(), "fixed", p.MAC)
		for _, out := range floating {
			if out.Fixed == f.Address {
				v.address(out.Address.Is4(), out.Address.String(), "floating", p.MAC)
			}
		}
	}
}

func (v *viewer) address(v4 bool, address, typ, mac string) {
	v.item()
	if v4 {
		v.int("version", 4)
	} else {
		v.int("version", 6)
	}
	v.str("addr", address)
	if v.full {
		v.str("OS-EXT-IPS:type", typ)
		v.str("OS-EXT-IPS-MAC:mac_addr", mac)
	}
	v.end()
}

func (v *viewer) network(id resource.ID) string {
	name, ok := v.networks[id]
	if !ok {
		if n, found := network.Networks().PeekOne(v.tx, id); found {
			name = n.Name
		}
		v.networks[id] = name
	}
	return name
}

func (v *viewer) fault(f *compute.Failure) {
	v.object("fault")
	v.int("code", f.Code)
	v.time("created", f.At)
	v.str("message", f.Message)
	if v.admin && f.Details != "" {
		v.str("details", f.Details)
	}
	v.end()
}

func (v *viewer) host(id resource.ID) *host.Host {
	h, ok := v.hosts[id]
	if !ok {
		h, _ = host.Table().PeekOne(v.tx, id)
		v.hosts[id] = h
	}
	return h
}

// An opaque tells an owner which of its servers share a host, and nothing else of it.
type opaque [sha256.Size224]byte

func (o opaque) String() string { return string(appendHex(nil, o[:])) }

func (v *viewer) hostID(s *compute.Server) {
	h := v.host(s.HostID)
	if h == nil {
		v.str("hostId", "")
		return
	}
	at := hostOf{s.ProjectID, s.HostID}
	sum, ok := v.hostIDs[at]
	if !ok {
		sum = hostIDFor(s.ProjectID, h)
		v.hostIDs[at] = sum
	}
	v.key("hostId")
	v.b = append(appendHex(append(v.b, '"'), sum[:]), '"')
	v.comma = true
}

func hostIDFor(project resource.ID, h *host.Host) opaque {
	var room [128]byte
	return sha256.Sum224(append(appendHex(room[:0], project[:]), h.Name...))
}

// extended writes what Nova's early extensions added.
func (v *viewer) extended(s *compute.Server, at compute.Standing, ports []*network.Port) {
	h := v.host(s.HostID)
	zone := s.Zone
	if h != nil {
		zone = v.zones.Of(h)
	}
	v.str("OS-EXT-AZ:availability_zone", zone)
	if s.ConfigDrive {
		v.str("config_drive", "True")
	} else {
		v.str("config_drive", "")
	}
	v.keyName(s)
	v.opt("OS-EXT-STS:task_state", taskStates[at.Task])
	v.str("OS-EXT-STS:vm_state", vmStates[at.Stage])
	v.int("OS-EXT-STS:power_state", powerStates[s.Seen.Power])
	if s.LaunchedAt.IsZero() {
		v.null("OS-SRV-USG:launched_at")
	} else {
		v.format("OS-SRV-USG:launched_at", s.LaunchedAt, "2006-01-02T15:04:05.000000")
	}
	v.null("OS-SRV-USG:terminated_at")
	v.array("os-extended-volumes:volumes_attached")
	v.endArray()
	v.securityGroups(ports)
	if v.admin {
		v.inside(s, h)
	}
	if v.minor >= 90 && !v.admin {
		v.str("OS-EXT-SRV-ATTR:hostname", s.Hostname)
	}
}

func (v *viewer) keyName(s *compute.Server) {
	if s.Key == nil {
		v.null("key_name")
	} else {
		v.str("key_name", s.Key.Name)
	}
}

// securityGroups are left out when there are none.
func (v *viewer) securityGroups(ports []*network.Port) {
	var done []resource.ID
	for _, p := range ports {
		for _, id := range p.Groups {
			if slices.Contains(done, id) {
				continue
			}
			if done = append(done, id); len(done) == 1 {
				v.array("security_groups")
			}
			name, ok := v.groups[id]
			if !ok {
				if g, found := network.Groups().PeekOne(v.tx, id); found {
					name = g.Name
				}
				v.groups[id] = name
			}
			v.item()
			v.str("name", name)
			v.end()
		}
	}
	if done != nil {
		v.endArray()
	}
}

// inside writes what only operators see.
func (v *viewer) inside(s *compute.Server, h *host.Host) {
	name := ""
	if h != nil {
		name = h.Name
	}
	v.opt("OS-EXT-SRV-ATTR:host", name)
	v.opt("OS-EXT-SRV-ATTR:hypervisor_hostname", name)
	v.str("OS-EXT-SRV-ATTR:instance_name", instanceName(s.ID))
	if v.minor >= 3 {
		v.str("OS-EXT-SRV-ATTR:reservation_id", s.ReservationID)
		v.int("OS-EXT-SRV-ATTR:launch_index", s.LaunchIndex)
		v.str("OS-EXT-SRV-ATTR:hostname", s.Hostname)
		v.str("OS-EXT-SRV-ATTR:kernel_id", partID(s.Boot.Kernel))
		v.str("OS-EXT-SRV-ATTR:ramdisk_id", partID(s.Boot.Initrd))
		v.str("OS-EXT-SRV-ATTR:root_device_name", "/dev/vda")
		if v.on != reformed { // there it has a name of its own (2.57)
			v.userData("OS-EXT-SRV-ATTR:user_data", s)
		}
	}
	if v.minor >= 16 {
		v.str("host_status", hostStatus(h))
	}
}

func (v *viewer) userData(name string, s *compute.Server) {
	if len(s.UserData) == 0 {
		v.null(name)
	} else {
		v.str(name, base64.StdEncoding.EncodeToString(s.UserData))
	}
}

// instanceName is what the guest is called on its host.
func instanceName(id resource.ID) string { return string(appendHex([]byte("instance-"), id[10:])) }

func partID(ref *compute.ImageRef) string {
	if ref == nil {
		return ""
	}
	return ref.ID.String()
}

func hostStatus(h *host.Host) string {
	switch {
	case h == nil:
		return ""
	case !h.Up():
		return "UNKNOWN"
	case h.Disabled || h.Maintenance:
		return "MAINTENANCE"
	}
	return "UP"
}

// versioned writes what microversions added for every occasion.
func (v *viewer) versioned(s *compute.Server) {
	if v.minor >= 9 {
		v.bool("locked", s.Locked())
	}
	if v.minor >= 19 {
		v.opt("description", s.Description)
	}
	if v.minor >= 26 {
		v.array("tags")
		for _, tag := range s.Tags {
			v.sep()
			v.value(tag)
		}
		v.endArray()
	}
	if v.on == reformed && !v.full && v.minor >= 54 {
		v.keyName(s)
	}
	if v.on == reformed && v.minor >= 57 {
		v.userData("user_data", s)
	}
	if v.minor >= 63 {
		if len(s.Trusted) == 0 {
			v.null("trusted_image_certificates")
		} else {
			v.array("trusted_image_certificates")
			for _, id := range s.Trusted {
				v.sep()
				v.value(id)
			}
			v.endArray()
		}
	}
	if v.minor >= 71 && v.on != listed {
		v.array("server_groups")
		if !s.GroupID.IsZero() {
			v.sep()
			v.value(s.GroupID.String())
		}
		v.endArray()
	}
	if v.minor >= 73 {
		if s.Lock == nil {
			v.null("locked_reason")
		} else {
			v.opt("locked_reason", s.Lock.Reason)
		}
	}
}

// writeServer answers with one server.
func (s *server) writeServer(w http.ResponseWriter, r *http.Request, status int, tx *state.Tx, srv *compute.Server, on occasion, also func(*viewer)) error {
	v := s.viewer(r, tx, on)
	v.open('{')
	v.object("server")
	v.server(srv)
	if also != nil {
		also(v)
	}
	v.end()
	v.end()
	return v.write(w, status)
}

// writeServers answers with a list.
func (s *server) writeServers(w http.ResponseWriter, r *http.Request, view compute.View, detail bool) error {
	v := s.viewer(r, view.Tx, listed)
	size := 200
	if detail {
		size = 2600
	}
	v.borrow(size*len(view.Servers) + 256)
	v.open('{')
	v.array("servers")
	for _, srv := range view.Servers {
		if !detail {
			v.brief(srv)
			continue
		}
		v.item()
		v.server(srv)
		v.end()
	}
	v.endArray()
	if view.More && len(view.Servers) > 0 {
		v.array("servers_links")
		v.item()
		v.str("rel", "next")
		v.str("href", openstack.NextLink(r, s.prefix, view.Servers[len(view.Servers)-1].ID.String()))
		v.end()
		v.endArray()
	}
	v.end()
	return v.write(w, http.StatusOK)
}
