package nova

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

var (
	tag       = pattern(1, 60, `^[^,/]*$`)
	deviceTag = pattern(1, 60, `^[^,/]*$`)
	certs     = orNull(distinct(list(text(1, 0), 1, 50)))
	accessV4  = either(address(32), oneOf(""))
	accessV6  = either(address(128), oneOf(""))
	hostName  = pattern(2, 255, `^[a-zA-Z0-9-._]*$`)
	// A host name as RFC 1123 has them; with a domain from 2.94 on.
	guestName = pattern(2, 63, `^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$`)
	adminPass = text(0, 0)
	files     = list(object(need("path", text(0, 0)), need("contents", base64Text(0))), 0, 0)
)

// networkWanted is one entry of a new server's networks.
var networkWanted = object(
	may("fixed_ip", address(0)),
	may("port", either(uuid, null)),
	may("uuid", uuid),
	since(32, until(36, may("tag", deviceTag))), since(42, may("tag", deviceTag)),
)

// blockDevice is one entry of block_device_mapping_v2.
var blockDevice = object(
	may("boot_index", orNull(number(-1, maxInt))),
	may("delete_on_termination", boolean),
	may("destination_type", oneOf("local", "volume")),
	may("device_name", text(1, 255)), may("device_type", text(0, 255)), may("disk_bus", text(0, 255)),
	may("guest_format", text(0, 255)), may("no_device", anything),
	may("source_type", oneOf("volume", "image", "snapshot", "blank")),
	may("uuid", orNull(text(1, 255))), may("image_id", uuid), may("volume_id", uuid), may("snapshot_id", uuid),
	may("volume_size", orNull(number(0, maxInt))),
	since(32, until(32, may("tag", deviceTag))), since(42, may("tag", deviceTag)),
	since(67, may("volume_type", orNull(text(0, 255)))),
)

// newServer is what may be asked of a new server.
var newServer = object(
	need("name", name),
	need("flavorRef", text(1, 255)),
	may("imageRef", either(uuid, oneOf(""))),
	may("adminPass", adminPass),
	may("metadata", metadata),
	since(1, until(36, may("networks", list(networkWanted, 0, 0)))),
	since(37, need("networks", either(list(networkWanted, 0, 0), oneOf("auto", "none")))),
	may("OS-DCF:diskConfig", oneOf("AUTO", "MANUAL")),
	may("accessIPv4", accessV4), may("accessIPv6", accessV6),
	since(1, until(56, may("personality", files))),
	may("availability_zone", orNull(name)),
	may("block_device_mapping", list(anything, 0, 0)), may("block_device_mapping_v2", list(blockDevice, 0, 0)),
	may("config_drive", orNull(boolean)),
	may("key_name", orNull(text(1, 255))),
	may("min_count", number(1, maxInt)), may("max_count", number(1, maxInt)), may("return_reservation_id", boolean),
	may("security_groups", list(object(may("name", name)), 0, 0)),
	may("user_data", orNull(base64Text(65535))),
	since(19, may("description", orNull(text(0, 255)))),
	since(52, may("tags", distinct(list(tag, 0, 50)))),
	since(63, may("trusted_image_certificates", certs)),
	since(74, may("host", hostName)), since(74, may("hypervisor_hostname", hostName)),
	since(90, may("hostname", guestName)),
)

// hints are what may be said to the scheduler; what it does not know is kept and lets pass.
var hints = open(
	may("group", uuid),
	may("different_host", either(uuid, list(uuid, 0, 0))), may("same_host", either(uuid, list(uuid, 0, 0))),
	may("query", anything), may("target_cell", name), may("different_cell", either(text(0, 0), list(text(0, 0), 0, 0))),
	may("build_near_host_ip", address(0)), may("cidr", pattern(0, 0, `^/[0-9a-f.:]+$`)),
)

var newServerBody = object(need("server", newServer), may("os:scheduler_hints", hints), may("OS-SCH-HNT:scheduler_hints", hints))

func (s *server) createServer(w http.ResponseWriter, r *http.Request) error {
	b, err := read(r, newServerBody)
	if err != nil {
		return err
	}
	asked := b.object("server")
	l, err := launchOf(asked, minorOf(r))
	if err != nil {
		return err
	}
	for _, word := range []string{"os:scheduler_hints", "OS-SCH-HNT:scheduler_hints"} {
		if h := b.object(word); h != nil {
			if err := hintsOf(h, &l); err != nil {
				return err
			}
		}
	}
	if l.AdminPassword == "" {
		l.AdminPassword = newPassword()
	}
	made, err := s.compute.Create(r.Context(), l)
	if err != nil {
		return err
	}
	if asked.bool("return_reservation_id") {
		return answer(w, http.StatusAccepted, map[string]string{"reservation_id": made.ReservationID})
	}
	return s.writeCreated(w, r, made, l)
}

func (s *server) writeCreated(w http.ResponseWriter, r *http.Request, made compute.Launched, l compute.Launch) error {
	id := made.Servers[0].String()
	links := s.links(r, "servers/"+id)
	var d doc
	d.open('{')
	d.object("server")
	d.str("id", id)
	d.array("links")
	for _, one := range links {
		d.item()
		d.str("rel", one["rel"])
		d.str("href", one["href"])
		d.end()
	}
	d.endArray()
	if l.ManualDisk {
		d.str("OS-DCF:diskConfig", "MANUAL")
	} else {
		d.str("OS-DCF:diskConfig", "AUTO")
	}
	d.array("security_groups")
	groups := l.Groups
	if groups == nil {
		groups = []string{"default"}
	}
	for _, g := range groups {
		d.item()
		d.str("name", g)
		d.end()
	}
	d.endArray()
	d.str("adminPass", l.AdminPassword)
	d.end()
	d.end()
	w.Header().Set("Location", links[0]["href"])
	return d.write(w, http.StatusAccepted)
}

// newPassword makes one of 12 letters and digits that are not mistaken for each other.
func newPassword() string {
	const letters = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	var raw [24]byte
	for {
		_, _ = rand.Read(raw[:]) // never fails (package crypto/rand)
		password := make([]byte, 0, 12)
		for _, c := range raw {
			if n := int(c); n < 256-256%len(letters) && len(password) < 12 {
				password = append(password, letters[n%len(letters)])
			}
		}
		if len(password) == 12 {
			return string(password)
		}
	}
}

// launchOf turns a request that has passed its rules into the core's words.
func launchOf(b body, minor int) (compute.Launch, error) {
	l := compute.Launch{
		Name: b.text("name"), Description: b.text("description"), Hostname: b.text("hostname"), Flavor: b.text("flavorRef"),
		ImageID: b.id("imageRef"), KeyName: b.text("key_name"), ConfigDrive: b.bool("config_drive"), AdminPassword: b.text("adminPass"),
		AccessIPv4: b.address("accessIPv4"), AccessIPv6: b.address("accessIPv6"), Metadata: b.pairs("metadata"), Tags: b.texts("tags"),
		ManualDisk: b.text("OS-DCF:diskConfig") == "MANUAL", Min: b.int("min_count", 1),
	}
	if minor < 90 {
		l.Name = strings.TrimSpace(l.Name)
	}
	if l.Max = b.int("max_count", l.Min); l.Max < l.Min {
		if b.has("min_count") {
			return l, fault.Errorf(fault.Invalid, "min_count must be <= max_count")
		}
		l.Min = l.Max
	}
	if b.has("trusted_image_certificates") {
		l.Trusted = b.texts("trusted_image_certificates")
	}
	if b.has("user_data") {
		data, err := decodeBase64(b.text("user_data"))
		if err != nil {
			return l, wrong("user_data", nil, "It is not a 'base64'")
		}
		l.UserData = data
	}
	var err error
	if l.Files, err = filesOf(b.list("personality")); err != nil {
		return l, err
	}
	if err := zoneOf(b, &l); err != nil {
		return l, err
	}
	if b.has("security_groups") {
		for _, item := range b.list("security_groups") {
			if m, ok := item.(map[string]any); ok {
				l.Groups = append(l.Groups, body(m).text("name"))
			}
		}
	}
	if err := disksOf(b); err != nil {
		return l, err
	}
	return l, nicsOf(b, &l)
}

func filesOf(items []any) ([]compute.File, error) {
	var files []compute.File
	for _, item := range items {
		m, _ := item.(map[string]any)
		data, err := decodeBase64(body(m).text("contents"))
		if err != nil {
			return nil, wrong("contents", nil, "It is not a 'base64'")
		}
		files = append(files, compute.File{Path: body(m).text("path"), Data: data})
	}
	return files, nil
}

// zoneOf reads a zone, or a zone with the host in it that an operator names ("zone:host").
func zoneOf(b body, l *compute.Launch) error {
	l.Zone = b.text("availability_zone")
	if zone, rest, ok := strings.Cut(l.Zone, ":"); ok {
		first, node, both := strings.Cut(rest, ":")
		if strings.Contains(node, ":") {
			return fault.Errorf(fault.Invalid, "Invalid availability zone: it must be zone:host:node.")
		}
		l.Zone, l.Host = zone, first
		if both && first == "" {
			l.Host = node
		}
	}
	for _, word := range []string{"host", "hypervisor_hostname"} {
		if h := b.text(word); h != "" {
			if l.Host != "" && l.Host != h {
				return fault.Errorf(fault.Invalid, "Compute host %s could not be found.", h)
			}
			l.Host = h
		}
	}
	return nil
}

// disksOf refuses what would need volumes. An entry that only repeats the image is fine.
func disksOf(b body) error {
	if len(b.list("block_device_mapping")) > 0 {
		return fault.Errorf(fault.Invalid, "Block Device Mapping is Invalid: servers here have no volumes.")
	}
	for _, item := range b.list("block_device_mapping_v2") {
		m, _ := item.(map[string]any)
		d := body(m)
		if d.text("source_type") != "image" || d.text("destination_type") == "volume" || d.int("boot_index", -1) != 0 ||
			d.text("uuid") != "" && d.text("uuid") != b.text("imageRef") {
			return fault.Errorf(fault.Invalid, "Block Device Mapping is Invalid: servers here boot from their image, and have no volumes.")
		}
	}
	return nil
}

func nicsOf(b body, l *compute.Launch) error {
	if word, ok := b["networks"].(string); ok {
		// "auto" is the project's only network.
		l.NoNetwork = word == "none"
		return nil
	}
	for _, item := range b.list("networks") {
		m, _ := item.(map[string]any)
		n := body(m)
		nic := compute.NICWanted{NetworkID: n.id("uuid"), PortID: n.id("port"), Tag: n.text("tag")}
		if nic.NetworkID.IsZero() && nic.PortID.IsZero() {
			return fault.Errorf(fault.Invalid, "Bad network format: missing 'uuid'")
		}
		if text := n.text("fixed_ip"); text != "" {
			if !nic.PortID.IsZero() {
				return fault.Errorf(fault.Invalid, "Specified Fixed IP '%s' cannot be used with port '%s': the two cannot be specified together.", text, nic.PortID)
			}
			a, err := netip.ParseAddr(text)
			if err != nil {
				return wrong("fixed_ip", text, "It is not an address")
			}
			nic.Address = a
		}
		l.NICs = append(l.NICs, nic)
	}
	return nil
}

// hintsOf reads what is said to the scheduler.
func hintsOf(b body, l *compute.Launch) error {
	l.GroupID = b.id("group")
	l.Apart, l.Beside = idsOf(b["different_host"]), idsOf(b["same_host"])
	l.Hints = map[string]string{}
	for k, v := range b {
		text, err := json.Marshal(v)
		if err != nil || len(k) > 255 || len(text) > 255 {
			return wrong("os:scheduler_hints", k, "It is too long")
		}
		l.Hints[k] = string(text)
	}
	return nil
}

func idsOf(value any) []resource.ID {
	var ids []resource.ID
	items, ok := value.([]any)
	if !ok {
		items = []any{value}
	}
	for _, item := range items {
		if s, ok := item.(string); ok {
			if id, err := resource.ParseID(s); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}
