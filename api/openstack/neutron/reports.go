package neutron

import (
	"encoding/json"
	"math/big"
	"net/http"
	"strconv"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/network"
)

// reports are what is told and cannot be changed.
func (s *server) reports() []route {
	return []route{
		{"GET /v2.0/agents", s.agents},
		{"GET /v2.0/agents/{id}", s.agent},
		{"GET /v2.0/availability_zones", s.zones},
		{"GET /v2.0/extensions", s.extensions},
		{"GET /v2.0/extensions/{alias}", s.extension},
		{"GET /v2.0/network-ip-availabilities", s.availabilities},
		{"GET /v2.0/network-ip-availabilities/{id}", s.availability},
		{"GET /v2.0/service-providers", s.providers},
	}
}

// agents are the hosts: on each, one process does all that Neutron's agents do.
func (s *server) agents(w http.ResponseWriter, r *http.Request) error {
	c, err := s.call(r)
	if err != nil {
		return err
	}
	list := []object{}
	if c.actor.Admin() {
		for h := range host.Table().Peek(c.tx, "name", state.Range{}) {
			if o := agentShape(h); matches(o, r) {
				list = append(list, only(o, r.URL.Query()["fields"]))
			}
		}
	}
	return wire.WriteJSON(w, http.StatusOK, object{"agents": list})
}

func (s *server) agent(w http.ResponseWriter, r *http.Request) error {
	c, err := s.call(r)
	if err != nil {
		return err
	}
	id, _ := resource.ParseID(r.PathValue("id"))
	h, ok := host.Table().PeekOne(c.tx, id)
	if !ok || !c.actor.Admin() {
		return fault.Errorf(fault.NotFound, "Agent %s could not be found.", r.PathValue("id")).WithCode("=AgentNotFound")
	}
	return wire.WriteJSON(w, http.StatusOK, object{"agent": agentShape(h)})
}

// matches compares a shape with the query's parameters, as far as they name its attributes.
func matches(o object, r *http.Request) bool {
	for name, values := range r.URL.Query() {
		have, ok := o[name]
		if !ok || name == "fields" {
			continue
		}
		text, err := json.Marshal(have)
		if err != nil {
			return false
		}
		found := false
		for _, v := range values {
			found = found || string(text) == strconv.Quote(v) || string(text) == v || string(text) == boolText(v)[0]
		}
		if !found {
			return false
		}
	}
	return true
}

func agentShape(h *host.Host) object {
	return object{
		"id": h.ID.String(), "host": h.Name, "agent_type": "Unkai agent", "binary": "unkai", "topic": "N/A",
		"admin_state_up": !h.Disabled, "alive": h.Up(), "availability_zone": h.Zone, "description": nil,
		"created_at": agentStamp(h), "started_at": agentStamp(h), "heartbeat_timestamp": h.UpdatedAt.UTC().Format("2006-01-02 15:04:05"),
		"configurations": object{}, "resources_synced": nil, "resource_versions": object{},
	}
}

func agentStamp(h *host.Host) string { return h.Joined.UTC().Format("2006-01-02 15:04:05") }

func (s *server) zones(w http.ResponseWriter, r *http.Request) error {
	c, err := s.call(r)
	if err != nil {
		return err
	}
	list := []object{}
	for _, zone := range host.Zones(c.tx) {
		for _, what := range []string{"network", "router"} {
			if o := (object{"name": zone, "resource": what, "state": "available"}); matches(o, r) {
				list = append(list, o)
			}
		}
	}
	return wire.WriteJSON(w, http.StatusOK, object{"availability_zones": list})
}

func (s *server) providers(w http.ResponseWriter, r *http.Request) error {
	return wire.WriteJSON(w, http.StatusOK, object{"service_providers": []object{
		{"service_type": "L3_ROUTER_NAT", "name": "unkai", "default": true}}})
}

func (s *server) availabilities(w http.ResponseWriter, r *http.Request) error {
	c, err := s.call(r)
	if err != nil {
		return err
	}
	if err := network.MayCount(r.Context()); err != nil {
		return err
	}
	q, version := network.Query{}, ""
	for name, values := range r.URL.Query() {
		field, ok := map[string]string{"network_id": "id", "network_name": "name", "project_id": "project", "tenant_id": "project"}[name]
		switch {
		case ok && field == "name":
			q.Where = append(q.Where, network.Condition{Field: field, Values: values})
		case ok:
			q.Where = append(q.Where, network.Condition{Field: field, Values: idText(values[0])})
		case name == "ip_version":
			version = values[0]
		}
	}
	page, err := s.networks.Networks.List(r.Context(), q)
	if err != nil {
		return err
	}
	list := []object{}
	for _, n := range page.Items {
		list = append(list, availabilityShape(c, n, version))
	}
	return wire.WriteJSON(w, http.StatusOK, object{"network_ip_availabilities": list})
}

func (s *server) availability(w http.ResponseWriter, r *http.Request) error {
	c, err := s.call(r)
	if err != nil {
		return err
	}
	if err := network.MayCount(r.Context()); err != nil {
		return err
	}
	n, err := s.network().one(r)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, object{"network_ip_availability": availabilityShape(c, n, "")})
}

func availabilityShape(c *call, n *network.Network, version string) object {
	total, used := new(big.Int), int64(0)
	list := []object{}
	for _, o := range network.Occupancies(c.tx, n.ID) {
		v := ipVersion(o.Subnet.CIDR.Addr().Is6())
		if version != "" && version != strconv.Itoa(v) {
			continue
		}
		total.Add(total, o.Total)
		used += o.Used
		list = append(list, object{"subnet_id": o.Subnet.ID.String(), "subnet_name": o.Subnet.Name, "cidr": o.Subnet.CIDR.String(),
			"ip_version": v, "total_ips": o.Total, "used_ips": o.Used})
	}
	return object{"network_id": n.ID.String(), "network_name": n.Name, "project_id": projectText(n.ProjectID), "tenant_id": projectText(n.ProjectID),
		"total_ips": total, "used_ips": used, "subnet_ip_availability": list}
}
