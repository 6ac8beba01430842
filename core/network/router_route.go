package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

const maxRouterRoutes = 30

// checkRoutes keeps next hops within what the router's legs reach.
func checkRoutes(tx *state.Tx, r *Router) error {
	if len(r.Routes) > maxRouterRoutes {
		return invalid("routes-exhausted", "Unable to complete operation for %s. The number of routes exceeds the maximum %d.", r.ID, maxRouterRoutes)
	}
	var reach []netip.Prefix
	var own []netip.Addr
	for p := range ports.Peek(tx, "device", state.Range{Prefix: state.KeyOf(r.ID.String())}) {
		for _, f := range p.Fixed {
			if s, ok := subnets.PeekOne(tx, f.SubnetID); ok && p.Owner.internal() {
				reach, own = append(reach, s.CIDR), append(own, f.Address)
			}
		}
	}
	for i, route := range r.Routes {
		hop := func(p netip.Prefix) bool { return p.Contains(route.NextHop) }
		switch {
		case !route.Destination.IsValid() || !route.NextHop.IsValid() || route.Destination.Addr().Is4() != route.NextHop.Is4():
			return invalid("route", "Invalid format for routes: %s via %s.", route.Destination, route.NextHop)
		case slices.Contains(r.Routes[:i], route):
			return invalid("route", "Invalid format for routes: %s via %s stands twice.", route.Destination, route.NextHop)
		case !slices.ContainsFunc(reach, hop):
			return invalid("route-hop", "Invalid format for routes: the nexthop %s is not connected with router.", route.NextHop)
		case slices.Contains(own, route.NextHop):
			return invalid("route-hop", "Invalid format for routes: the nexthop %s is used by router.", route.NextHop)
		}
	}
	return nil
}

// AddRoutes and RemoveRoutes change some of a router's extra routes and leave the others.
func (s *Service) AddRoutes(ctx context.Context, routerID resource.ID, routes []Route) (*Router, error) {
	return s.Routers.Update(ctx, routerID, 0, func(r *Router) error {
		for _, route := range routes {
			if !slices.Contains(r.Routes, route) {
				r.Routes = append(r.Routes, route)
			}
		}
		return nil
	})
}

// RemoveRoutes takes some of a router's extra routes away.
func (s *Service) RemoveRoutes(ctx context.Context, routerID resource.ID, routes []Route) (*Router, error) {
	return s.Routers.Update(ctx, routerID, 0, func(r *Router) error {
		r.Routes = slices.DeleteFunc(r.Routes, func(route Route) bool { return slices.Contains(routes, route) })
		return nil
	})
}
