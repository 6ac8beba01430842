package network

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Tasks are what the service has to do beside answering.
func (s *Service) Tasks() []reconcile.Task {
	return []reconcile.Task{s.homes(), s.ends()}
}

// homes finds a home for each router that has none, or whose home is gone, cannot be heard, has fallen mute, is not reached by other hosts, is
// being emptied or is not connected with the router's network outside, if there is a better one. What went out by that home begins anew: the
// next one takes over the address, and knows nothing of the connections.
func (s *Service) homes() reconcile.Task {
	return reconcile.Task{
		Name: "router-home",
		All:  strays,
		Touched: func(e state.Event) []resource.ID {
			if r, ok := e.After.(*Router); ok && r.HostID.IsZero() {
				return []resource.ID{e.ID}
			}
			if e.Kind != "host" {
				return nil
			}
			if was, now := sides[host.Host](e); was == nil || now == nil || goodHome(was) != goodHome(now) || !slices.Equal(was.Physical, now.Physical) || was.Address != now.Address {
				return []resource.ID{e.ID} // a host came or went, or its uplink or its address did: the step for it sees to all routers
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			tx := s.State.Latest()
			if routers.Has(tx, id) {
				return reconcile.Next{}, s.house(ctx, []resource.ID{id})
			}
			waiting := strays(tx)
			if _, there := host.Find(tx, id); !there {
				waiting = append(waiting, routers.IDs(tx, "host", state.KeyOf(id))...)
			}
			// Many at once, for all of their guests wait; not all at once, for so do others who write.
			for some := range slices.Chunk(waiting, 100) {
				if err := s.house(ctx, some); err != nil {
					return reconcile.Next{}, err
				}
			}
			return reconcile.Next{}, nil
		},
	}
}

// strays are the routers that have no home, or one that some host would do better than; whether that is in their zones is seen when
// they are settled. Only routers are looked at whose home lacks something.
func strays(tx *state.Tx) []resource.ID {
	ids := routers.IDs(tx, "homeless", "")
	under := host.UnderlayOf(tx)
	best := map[string]int{} // by uplink, how the host does that does best with it; "" for none
	silent := nowhere        // likewise, of the hosts that say nothing of uplinks
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		best[""] = max(best[""], suits(under, h, "", false))
		if !h.SaysUplinks() {
			silent = max(silent, suits(under, h, "", false))
		}
		for _, uplink := range h.Physical {
			best[uplink] = max(best[uplink], suits(under, h, uplink, false))
		}
	}
	spare := unheard // the best that one without the uplink does
	switch best[""] {
	case fit:
		spare = inland
	case leaving:
		spare = inlandOff
	case cutOff:
		spare = cutOff
	}
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if goodHome(h) && under.Reaches(h) && leadsEverywhere(h, best) {
			continue
		}
		for r := range routers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h.ID)}) {
			if uplink := uplinkOf(tx, r); suits(under, h, uplink, true) < max(best[uplink], silent, spare) {
				ids = append(ids, r.ID)
			}
		}
	}
	return ids
}

// leadsEverywhere reports whether a host has every uplink that a host has which can be heard.
func leadsEverywhere(h *host.Host, best map[string]int) bool {
	for uplink, how := range best {
		if uplink != "" && how > unheard && !h.Leads(uplink) {
			return false
		}
	}
	return true
}

// goodHome reports whether nothing of the host itself speaks against a router that has its home there.
func goodHome(h *host.Host) bool { return h.Up() && h.Mute.IsZero() && !h.Maintenance }

// house settles routers.
func (s *Service) house(ctx context.Context, ids []resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		for _, id := range ids {
			r, ok := routers.Find(tx, id)
			if !ok {
				continue
			}
			was := r.HostID
			if settle(tx, r); r.HostID == was {
				continue
			}
			if err := routers.Put(tx, r); err != nil {
				return err
			}
			if err := followHome(tx, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// again is how long an ended project's things wait for whoever still uses them.
const again = 5 * time.Second

// ends deletes everything of projects that are no more.
func (s *Service) ends() reconcile.Task {
	return reconcile.Task{
		Name: "network-project-end",
		All:  orphaned,
		Touched: func(e state.Event) []resource.ID {
			if _, ok := e.Before.(*identity.Project); ok && e.After == nil {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			left, err := s.Purge(ctx, id)
			if err != nil || left == 0 {
				return reconcile.Next{}, err
			}
			return reconcile.Next{After: again}, nil
		},
	}
}

// orphaned lists the projects that own something here and are no more.
func orphaned(tx *state.Tx) []resource.ID {
	seen := map[resource.ID]bool{{}: true}
	var gone []resource.ID
	look := func(projectID resource.ID) {
		if seen[projectID] {
			return
		}
		seen[projectID] = true
		if _, ok := identity.FindProject(tx, projectID); !ok {
			gone = append(gone, projectID)
		}
	}
	eachOwner(tx, networks, look)
	eachOwner(tx, subnets, look)
	eachOwner(tx, ports, look)
	eachOwner(tx, routers, look)
	eachOwner(tx, floatings, look)
	eachOwner(tx, groups, look)
	eachOwner(tx, pools, look)
	eachOwner(tx, scopes, look)
	eachOwner(tx, addressGroups, look)
	eachOwner(tx, shares, look)
	eachOwner(tx, quotas, look)
	return gone
}

func eachOwner[T any](tx *state.Tx, table *state.Table[T], look func(resource.ID)) {
	for thing := range table.Peek(tx, "", state.Range{}) {
		look(meta(thing).ProjectID)
	}
}

// Sweep purges every project that is no more. It gives back how many things are left because others
// still use them.
func (s *Service) Sweep(ctx context.Context) (left int, err error) {
	for _, id := range orphaned(s.State.Latest()) {
		n, err := s.Purge(ctx, id)
		if err != nil {
			return left, err
		}
		left += n
	}
	return left, nil
}

// Purge deletes everything of a project, each thing in its own transaction and what leans on others
// first. What servers or other projects still use stays, and is counted.
func (s *Service) Purge(ctx context.Context, projectID resource.ID) (left int, err error) {
	ctx = identity.Internal(ctx)
	p := purge{s: s, ctx: ctx, project: projectID}
	purgeKind(&p, &floatingNoun, floatingNoun.remove)
	purgeKind(&p, &portNoun, func(ctx context.Context, tx *state.Tx, port *Port) error {
		if port.Owner == OwnerServer {
			return networkInUse(port.NetworkID, port.ID) // its server goes first
		}
		return dropPort(ctx, tx, port.ID)
	})
	purgeKind(&p, &routerNoun, routerNoun.remove)
	purgeKind(&p, &shareNoun, shareNoun.remove)
	purgeKind(&p, &subnetNoun, subnetNoun.remove)
	purgeKind(&p, &networkNoun, networkNoun.remove)
	purgeKind(&p, &groupNoun, groupNoun.remove)
	purgeKind(&p, &addressGroupNoun, addressGroupNoun.remove)
	purgeKind(&p, &poolNoun, poolNoun.remove)
	purgeKind(&p, &scopeNoun, scopeNoun.remove)
	if p.err == nil {
		p.err = s.State.Update(ctx, func(tx *state.Tx) error {
			if !quotas.Has(tx, projectID) {
				return nil
			}
			return quotas.Delete(tx, projectID)
		})
	}
	return p.left, p.err
}

type purge struct {
	s       *Service
	ctx     context.Context
	project resource.ID
	left    int
	err     error
}

// purgeKind deletes a project's things of one kind. What is in use is no error.
func purgeKind[T any](p *purge, n *noun[T], remove func(context.Context, *state.Tx, *T) error) {
	for _, id := range n.table.IDs(p.s.State.Latest(), "by", facet(p.project, all, "")) {
		if p.err != nil {
			return
		}
		err := p.s.State.Update(p.ctx, func(tx *state.Tx) error {
			thing, ok := n.table.Find(tx, id)
			if !ok || meta(thing).ProjectID != p.project {
				return nil
			}
			return remove(p.ctx, tx, thing)
		})
		switch {
		case fault.Is(err, fault.Conflict):
			p.left++
		default:
			p.err = err
		}
	}
}
