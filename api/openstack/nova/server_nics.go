package nova

import (
	"net/http"
	"net/netip"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/network"
)

// oneWithView is one, with the view it was read in.
func (s *server) oneWithView(r *http.Request) (*state.Tx, *compute.Server, error) {
	id, err := serverID(r)
	if err != nil {
		return nil, nil, err
	}
	return s.compute.Get(r.Context(), id)
}

func (s *server) listAddresses(w http.ResponseWriter, r *http.Request) error {
	tx, srv, err := s.oneWithView(r)
	if err != nil {
		return err
	}
	v := s.viewer(r, tx, updated)
	v.full = false
	v.open('{')
	v.addresses(compute.Ports(v.tx, srv))
	v.end()
	return v.write(w, http.StatusOK)
}

func (s *server) showAddresses(w http.ResponseWriter, r *http.Request) error {
	tx, srv, err := s.oneWithView(r)
	if err != nil {
		return err
	}
	v := s.viewer(r, tx, updated)
	v.full = false
	found := false
	name := r.PathValue("network")
	v.open('{')
	v.sep()
	v.b = append(appendString(v.b, name), ':', '[')
	v.comma = false
	for _, p := range compute.Ports(tx, srv) {
		if v.network(p.NetworkID) == name {
			found = true
			v.portAddresses(p)
		}
	}
	v.endArray()
	v.end()
	if !found {
		return fault.Errorf(fault.NotFound, "Instance is not a member of specified network")
	}
	return v.write(w, http.StatusOK)
}

// portStates are Neutron's words, as it answers for ports.
var portStates = map[network.Status]string{network.Active: "ACTIVE", network.Build: "BUILD", network.Down: "DOWN"}

func interfaceView(minor int, srv *compute.Server, p *network.Port) map[string]any {
	fixed := []map[string]string{}
	for _, f := range p.Fixed {
		fixed = append(fixed, map[string]string{"subnet_id": f.SubnetID.String(), "ip_address": f.Address.String()})
	}
	view := map[string]any{"port_state": portStates[p.Status()], "fixed_ips": fixed, "net_id": p.NetworkID.String(),
		"port_id": p.ID.String(), "mac_addr": p.MAC}
	if minor >= 70 {
		view["tag"] = nil
		for _, plug := range srv.Plugs {
			if plug.PortID == p.ID {
				view["tag"] = orNil(plug.Tag)
			}
		}
	}
	return view
}

func (s *server) listInterfaces(w http.ResponseWriter, r *http.Request) error {
	tx, srv, err := s.oneWithView(r)
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, p := range compute.Ports(tx, srv) {
		views = append(views, interfaceView(minorOf(r), srv, p))
	}
	return answer(w, http.StatusOK, map[string]any{"interfaceAttachments": views})
}

func (s *server) showInterface(w http.ResponseWriter, r *http.Request) error {
	tx, srv, err := s.oneWithView(r)
	if err != nil {
		return err
	}
	for _, p := range compute.Ports(tx, srv) {
		if p.ID.String() == r.PathValue("port") {
			return answer(w, http.StatusOK, map[string]any{"interfaceAttachment": interfaceView(minorOf(r), srv, p)})
		}
	}
	return fault.Errorf(fault.NotFound, "Instance %s does not have a port with id %s", srv.ID, r.PathValue("port"))
}

var newInterface = object(
	may("net_id", uuid), may("port_id", uuid),
	may("fixed_ips", list(object(need("ip_address", address(0))), 1, 1)),
	since(49, may("tag", deviceTag)),
)

func (s *server) attachInterface(w http.ResponseWriter, r *http.Request) error {
	b := body{}
	if r.ContentLength != 0 {
		var err error
		if b, err = read(r, object(may("interfaceAttachment", newInterface))); err != nil {
			return err
		}
		b = b.object("interfaceAttachment")
	}
	id, err := serverID(r)
	if err != nil {
		return err
	}
	nic := compute.NICWanted{NetworkID: b.id("net_id"), PortID: b.id("port_id"), Tag: b.text("tag")}
	fixed := b.list("fixed_ips")
	switch {
	case !nic.NetworkID.IsZero() && !nic.PortID.IsZero():
		return fault.Errorf(fault.Invalid, "Must not input both network_id and port_id")
	case len(fixed) > 0 && nic.NetworkID.IsZero():
		return fault.Errorf(fault.Invalid, "Must input network_id when request IP address")
	case len(fixed) > 0:
		m, _ := fixed[0].(map[string]any)
		if nic.Address, err = netip.ParseAddr(body(m).text("ip_address")); err != nil {
			return wrong("ip_address", nil, "It is not an address")
		}
	}
	p, err := s.compute.Attach(r.Context(), id, nic)
	if err != nil {
		return attachFault(err)
	}
	_, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"interfaceAttachment": interfaceView(minorOf(r), srv, p)})
}

// attachFault gives Nova's status for what keeps a port from being attached.
func attachFault(err error) error {
	if f := fault.From(err); f != nil && (f.Code == "port-in-use" || f.Code == "address-in-use") {
		return &fault.Error{Kind: fault.Invalid, Code: f.Code, Message: f.Message}
	}
	return err
}

func (s *server) detachInterface(w http.ResponseWriter, r *http.Request) error {
	id, err := serverID(r)
	if err != nil {
		return err
	}
	port, err := pathID(r, "port", "Port id")
	if err != nil {
		return err
	}
	if err := s.compute.Detach(r.Context(), id, port); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

// listVirtualInterfaces is what listInterfaces was before; it was for another network service.
func (s *server) listVirtualInterfaces(w http.ResponseWriter, r *http.Request) error {
	if err := notAfter(r, 43); err != nil {
		return err
	}
	if _, err := s.one(r); err != nil {
		return err
	}
	return fault.Errorf(fault.Invalid, "Listing virtual interfaces is not supported by this cloud.")
}

// securityGroupViews are those of a server as the old proxy shows them.
func (s *server) listServerGroupsOfSecurity(w http.ResponseWriter, r *http.Request) error {
	tx, srv, err := s.oneWithView(r)
	if err != nil {
		return err
	}
	views := []map[string]any{}
	seen := map[resource.ID]bool{}
	for _, p := range compute.Ports(tx, srv) {
		for _, id := range p.Groups {
			if g, ok := network.Groups().PeekOne(tx, id); ok && !seen[id] {
				seen[id] = true
				views = append(views, securityGroupView(tx, g))
			}
		}
	}
	return answer(w, http.StatusOK, map[string]any{"security_groups": views})
}

// addFixedIP gives a server another port on a network (below 2.44).
func (s *server) addFixedIP(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	networkID := b.id("networkId")
	if networkID.IsZero() {
		return fault.Errorf(fault.Invalid, "Network %s could not be found.", b.text("networkId"))
	}
	if _, err := s.compute.Attach(r.Context(), id, compute.NICWanted{NetworkID: networkID}); err != nil {
		return attachFault(err)
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) removeFixedIP(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	tx, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return err
	}
	for _, p := range compute.Ports(tx, srv) {
		for _, f := range p.Fixed {
			if f.Address.String() == b.text("address") {
				if err := s.compute.Detach(r.Context(), id, p.ID); err != nil {
					return err
				}
				return accepted(w, http.StatusAccepted)
			}
		}
	}
	return fault.Errorf(fault.Invalid, "Fixed IP %s is not associated with the server.", b.text("address"))
}

// remoteConsole pairs are the protocols and types that 2.6 knows, and the core's word for those we have.
var remoteConsoles = map[string]map[string]string{
	"vnc": {"novnc": compute.VNC, "xvpvnc": ""}, "spice": {"spice-html5": ""}, "rdp": {"rdp-html5": ""},
	"serial": {"serial": compute.Serial}, "mks": {"webmks": ""},
}

var newConsole = object(
	need("protocol", oneOf("vnc", "spice", "rdp", "serial", "mks")),
	need("type", oneOf("novnc", "xvpvnc", "spice-html5", "rdp-html5", "serial", "webmks")),
)

func (s *server) createConsole(w http.ResponseWriter, r *http.Request) error {
	if err := notBefore(r, 6); err != nil {
		return err
	}
	b, err := wrapped(r, "remote_console", newConsole)
	if err != nil {
		return err
	}
	id, err := serverID(r)
	if err != nil {
		return err
	}
	protocol, typ := b.text("protocol"), b.text("type")
	kind, known := remoteConsoles[protocol][typ]
	if !known || protocol == "mks" && minorOf(r) < 8 {
		return fault.Errorf(fault.Invalid, "Invalid input for field/attribute remote_console: %s has no type %s.", protocol, typ)
	}
	url, err := s.consoleURL(r, id, kind)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"remote_console": map[string]string{"protocol": protocol, "type": typ, "url": url}})
}

func (s *server) oldConsole(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	kind := map[string]string{"novnc": compute.VNC, "serial": compute.Serial}[b.text("type")]
	url, err := s.consoleURL(r, id, kind)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"console": map[string]string{"type": b.text("type"), "url": url}})
}

func (s *server) noConsole(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	_, err := s.consoleURL(r, id, "")
	return err
}

// consoleURL opens a console and says where it is. "" is a kind that there is none of.
func (s *server) consoleURL(r *http.Request, id resource.ID, kind string) (string, error) {
	if kind == "" {
		if _, _, err := s.compute.Get(r.Context(), id); err != nil {
			return "", err
		}
		return "", fault.Errorf(fault.Invalid, "Unavailable console type: this cloud has novnc and serial consoles.")
	}
	token, err := s.compute.OpenConsole(r.Context(), id, kind)
	if err != nil {
		return "", err
	}
	return consoleAddress(s.consoleBase(r), kind, token), nil
}

// floatingOf finds a floating address that the actor may see, by the address itself.
func (s *server) floatingOf(r *http.Request, text string) (*network.FloatingAddress, error) {
	if s.network == nil {
		return nil, absent()
	}
	page, err := s.network.Floating.List(r.Context(), network.Query{Where: []network.Condition{{Field: "address", Values: []string{text}}}})
	if err != nil {
		return nil, err
	}
	if len(page.Items) == 0 {
		return nil, fault.Errorf(fault.NotFound, "floating IP not found")
	}
	return page.Items[0], nil
}

// addFloatingIP leads a floating address to a server (below 2.44).
func (s *server) addFloatingIP(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	tx, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return err
	}
	f, err := s.floatingOf(r, b.text("address"))
	if err != nil {
		return err
	}
	for _, p := range compute.Ports(tx, srv) {
		for _, fixed := range p.Fixed {
			if !fixed.Address.Is4() || b.has("fixed_address") && fixed.Address.String() != b.text("fixed_address") {
				continue
			}
			edit := func(f *network.FloatingAddress) error { f.TargetID, f.Fixed = p.ID, fixed.Address; return nil }
			if _, err := s.network.Floating.Update(r.Context(), f.ID, 0, edit); err != nil {
				return asBadRequest(err)
			}
			return accepted(w, http.StatusAccepted)
		}
	}
	return fault.Errorf(fault.Invalid, "No fixed IPs associated to instance")
}

func asBadRequest(err error) error {
	if f := fault.From(err); f != nil && (f.Kind == fault.NotFound || f.Kind == fault.Conflict) {
		return &fault.Error{Kind: fault.Invalid, Code: f.Code, Message: f.Message}
	}
	return err
}

func (s *server) removeFloatingIP(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	tx, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return err
	}
	f, err := s.floatingOf(r, b.text("address"))
	if err != nil {
		return err
	}
	for _, p := range compute.Ports(tx, srv) {
		if f.TargetID != p.ID {
			continue
		}
		edit := func(f *network.FloatingAddress) error { f.TargetID, f.Fixed = resource.ID{}, netip.Addr{}; return nil }
		if _, err := s.network.Floating.Update(r.Context(), f.ID, 0, edit); err != nil {
			return err
		}
		return accepted(w, http.StatusAccepted)
	}
	return fault.Errorf(fault.Conflict, "Floating IP %s is not associated with instance %s.", b.text("address"), id)
}
