package network

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Router passes packets between networks, and to the world through its gateway.
type Router struct {
	resource.Meta

	// Asked for by the owner.
	Description string
	Tags        []string
	AdminUp     bool
	Gateway     *RouterGateway // nil: none
	Routes      []Route
	ZoneHints   []string

	// Asked for by an operator.
	Distributed bool
	Redundant   bool // kept on several hosts, one of which answers
	NoNDPProxy  bool

	// Found out by the control plane.
	HostID resource.ID // its home; its ports are bound there
}

var routerFields = common(fields[Router]{
	"description": {text: func(r *Router) []string { return []string{r.Description} }, by: true, sparse: true},
	"tag":         {text: func(r *Router) []string { return r.Tags }, by: true},
	"up":          {text: func(r *Router) []string { return oneBool(r.AdminUp) }, by: true, single: true},
	"distributed": {text: func(r *Router) []string { return oneBool(r.Distributed) }, by: true, single: true},
	"redundant":   {text: func(r *Router) []string { return oneBool(r.Redundant) }, by: true, single: true},
	"status":      {text: func(r *Router) []string { return []string{string(r.Status())} }},
	"external": {text: func(r *Router) []string {
		if r.Gateway == nil {
			return nil
		}
		return []string{r.Gateway.NetworkID.String()}
	}, by: true},
})

var routers = state.NewTable[Router]("router",
	facets(routerFields),
	state.Index("host", func(r *Router) state.Key { return nonZero(r.HostID) }),
	state.Index("homeless", func(r *Router) state.Key { // those that no host has yet
		if !r.HostID.IsZero() {
			return ""
		}
		return state.KeyOf(true)
	}),
	state.Tally("project", func(r *Router) (state.Key, state.Amounts) { return state.KeyOf(r.ProjectID), state.Amounts{} }),
	state.Tally("host-load", func(r *Router) (state.Key, state.Amounts) { return nonZero(r.HostID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"router.create": identity.Member, "router.read": identity.Reader,
	"router.update": identity.Member, "router.delete": identity.Member,
	"router.set-distributed": identity.Admin, "router.set-redundant": identity.Admin,
	"router.set-snat": identity.Admin, "router.set-external-address": identity.Admin,
})

var routerNoun = noun[Router]{name: "router", title: "Router", table: routers, fields: routerFields, tallied: true}

func init() {
	routerNoun.add, routerNoun.change, routerNoun.remove = addRouter, changeRouter, removeRouter
}

// Status tells whether the router is served. A router does from its making on what it is asked to.
func (r *Router) Status() Status { return Active }

// Routers gives other domains and the native API a look at every router.
func Routers() *state.Table[Router] { return routers }

func addRouter(ctx context.Context, tx *state.Tx, r *Router) error {
	if err := mayCreate(ctx, "router.create", r.ProjectID); err != nil {
		return err
	}
	if err := mayWishRouter(ctx, &Router{Meta: resource.Meta{ProjectID: r.ProjectID}}, r); err != nil {
		return err
	}
	if err := checkTexts(&r.Meta, r.Description, r.Tags); err != nil {
		return err
	}
	if err := checkQuota(tx, r.ProjectID, "router"); err != nil {
		return err
	}
	settle(tx, r)
	if err := plugGateway(ctx, tx, r); err != nil {
		return err
	}
	if err := checkRoutes(tx, r); err != nil {
		return err
	}
	return routers.Put(tx, r)
}

// mayWishRouter asks for what only an operator may set. was has no ID when the router is new.
func mayWishRouter(ctx context.Context, was, now *Router) error {
	if was.Distributed != now.Distributed {
		if err := identity.Allow(ctx, "router.set-distributed", was.Meta); err != nil {
			return err
		}
	}
	if was.Redundant != now.Redundant {
		if err := identity.Allow(ctx, "router.set-redundant", was.Meta); err != nil {
			return err
		}
	}
	old := RouterGateway{SNAT: true}
	if was.Gateway != nil {
		old = *was.Gateway
	}
	if now.Gateway == nil {
		return nil
	}
	if old.SNAT != now.Gateway.SNAT {
		if err := identity.Allow(ctx, "router.set-snat", was.Meta); err != nil {
			return err
		}
	}
	if now.Gateway.Fixed != nil && !slices.Equal(old.Fixed, now.Gateway.Fixed) {
		return identity.Allow(ctx, "router.set-external-address", was.Meta)
	}
	return nil
}

func changeRouter(ctx context.Context, tx *state.Tx, was, now *Router) error {
	if err := mayWishRouter(ctx, was, now); err != nil {
		return err
	}
	if err := checkTexts(&now.Meta, now.Description, now.Tags); err != nil {
		return err
	}
	if now.Distributed != was.Distributed && was.AdminUp {
		return invalid("router-up", "A router must be turned off before it becomes distributed or no longer is.")
	}
	if err := changeGateway(ctx, tx, was, now); err != nil {
		return err
	}
	if !slices.Equal(was.Routes, now.Routes) {
		if err := checkRoutes(tx, now); err != nil {
			return err
		}
	}
	return routers.Put(tx, now)
}

func removeRouter(ctx context.Context, tx *state.Tx, r *Router) error {
	for p := range ports.Peek(tx, "device", state.Range{Prefix: state.KeyOf(r.ID.String())}) {
		if p.Owner == OwnerRouter {
			return fault.Errorf(fault.Conflict, "Router %s still has ports.", r.ID).WithCode("router-in-use")
		}
	}
	if r.Gateway != nil {
		now := *r
		if err := unplugGateway(tx, r, &now); err != nil {
			return fault.Errorf(fault.Conflict, "Router %s still has floating addresses.", r.ID).WithCode("router-in-use")
		}
	}
	return routers.Delete(tx, r.ID)
}
