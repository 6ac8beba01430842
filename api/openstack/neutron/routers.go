package neutron

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func (s *server) router() *kind[network.Router] {
	type R = network.Router
	return &kind[R]{
		name: "router", plural: "routers", path: "/routers", things: s.networks.Routers,
		fresh: func(*identity.Actor) *R { return &R{AdminUp: true} },
		attributes: append(named(func(r *R) *string { return &r.Description }),
			boolAttr("admin_state_up", func(r *R) *bool { return &r.AdminUp }),
			attribute[R]{name: "external_gateway_info", post: true, put: true, parse: parseExternalGateway},
			listAttr("routes", readRoute, func(r *R) *[]network.Route { return &r.Routes }),
			boolAttr("distributed", func(r *R) *bool { return &r.Distributed }),
			boolAttr("ha", func(r *R) *bool { return &r.Redundant }),
			listAttr("availability_zone_hints", readShortText, func(r *R) *[]string { return &r.ZoneHints }).create(),
		),
		shape: routerShape,
		filters: tagged(map[string]filter{
			"admin_state_up": {field: "up", read: boolText}, "distributed": {field: "distributed", read: boolText},
			"ha": {field: "redundant", read: boolText}, "status": {field: "status", read: statusText},
		}),
	}
}

// parseExternalGateway reads {"network_id": …, "enable_snat": …, "external_fixed_ips": […]}; null
// and {} take the gateway away.
func parseExternalGateway(_ *call, in json.RawMessage) (func(*network.Router) error, error) {
	const name = "external_gateway_info"
	none := func(r *network.Router) error { r.Gateway = nil; return nil }
	if isNull(in) {
		return none, nil
	}
	o, err := readObject(name, in, "network_id", "enable_snat", "external_fixed_ips")
	if err != nil {
		return nil, err
	}
	if len(o) == 0 {
		return none, nil
	}
	if raw, ok := o["network_id"]; ok && isNull(raw) {
		return none, nil
	}
	want := network.RouterGateway{SNAT: true}
	if want.NetworkID, err = readID(name, o["network_id"]); err != nil {
		return nil, err
	}
	snat, snatGiven := o["enable_snat"]
	if snatGiven {
		if want.SNAT, err = readBool(name, snat); err != nil {
			return nil, err
		}
	}
	if raw, ok := o["external_fixed_ips"]; ok && !isNull(raw) {
		if want.Fixed, err = readList(name, raw, readFixed); err != nil {
			return nil, err
		}
		if len(want.Fixed) == 0 {
			want.Fixed = nil
		}
	}
	return func(r *network.Router) error {
		gateway := want
		if r.Gateway != nil && r.Gateway.NetworkID == want.NetworkID && !snatGiven {
			gateway.SNAT = r.Gateway.SNAT
		}
		r.Gateway = &gateway
		return nil
	}, nil
}

func routerShape(c *call, r *network.Router) object {
	o := standard(&r.Meta, r.Description, r.Tags)
	o["admin_state_up"] = r.AdminUp
	o["status"] = statuses[r.Status()]
	o["routes"] = routesShape(r.Routes)
	o["external_gateway_info"] = nil
	if g := r.Gateway; g != nil {
		o["external_gateway_info"] = object{"network_id": g.NetworkID.String(), "enable_snat": g.SNAT, "external_fixed_ips": fixedShape(g.Fixed)}
	}
	o["availability_zone_hints"] = orEmpty(r.ZoneHints)
	o["availability_zones"] = network.ZonesOfRouter(c.tx, r)
	o["flavor_id"] = nil
	if c.actor.Admin() {
		o["distributed"], o["ha"] = r.Distributed, r.Redundant
	}
	return o
}

// actions are the routes that are no resource's own.
func (s *server) actions() []route {
	return []route{
		{"PUT /v2.0/address-groups/{id}/add_addresses", s.changeAddresses(true)},
		{"PUT /v2.0/address-groups/{id}/remove_addresses", s.changeAddresses(false)},
		{"PUT /v2.0/routers/{id}/add_extraroutes", s.changeRoutes(s.networks.AddRoutes)},
		{"PUT /v2.0/routers/{id}/add_router_interface", s.changeInterface(s.networks.AddInterface)},
		{"PUT /v2.0/routers/{id}/remove_extraroutes", s.changeRoutes(s.networks.RemoveRoutes)},
		{"PUT /v2.0/routers/{id}/remove_router_interface", s.changeInterface(s.networks.RemoveInterface)},
	}
}

func (s *server) changeInterface(change func(ctx context.Context, router, subnet, port resource.ID) (*network.Interface, error)) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		router, err := s.router().id(r, "id")
		if err != nil {
			return err
		}
		body, err := decode(r)
		if err != nil {
			return err
		}
		var subnet, port resource.ID
		for name, raw := range body {
			switch name {
			case "subnet_id":
				subnet, err = readID(name, raw)
			case "port_id":
				port, err = readID(name, raw)
			default:
				err = bad("HTTPBadRequest", "Unrecognized attribute(s) '%s'", name)
			}
			if err != nil {
				return err
			}
		}
		i, err := change(r.Context(), router, subnet, port)
		if err != nil {
			return err
		}
		return wire.WriteJSON(w, http.StatusOK, interfaceShape(i))
	}
}

func interfaceShape(i *network.Interface) object {
	o := object{"id": i.RouterID.String(), "project_id": projectText(i.ProjectID), "tenant_id": projectText(i.ProjectID),
		"network_id": i.NetworkID.String(), "port_id": i.PortID.String(), "subnet_ids": texts(i.SubnetIDs), "tags": orEmpty(i.Tags)}
	if n := len(i.SubnetIDs); n > 0 {
		o["subnet_id"] = i.SubnetIDs[n-1].String()
	}
	return o
}

func (s *server) changeRoutes(change func(context.Context, resource.ID, []network.Route) (*network.Router, error)) openstack.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		k := s.router()
		id, err := k.id(r, "id")
		if err != nil {
			return err
		}
		outer, err := decode(r)
		if err != nil {
			return err
		}
		body, err := k.inner(outer)
		if err != nil {
			return err
		}
		for name := range body {
			if name != "routes" {
				return bad("HTTPBadRequest", "Unrecognized attribute(s) '%s'", name)
			}
		}
		routes, err := readList("routes", body["routes"], readRoute)
		if err != nil {
			return err
		}
		router, err := change(r.Context(), id, routes)
		if err != nil {
			return err
		}
		return k.answer(s, w, r, http.StatusOK, router)
	}
}
