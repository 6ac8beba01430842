package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Audit tells what is wrong with what is kept, in words for an operator: things whose owner is gone,
// addresses that two have, counts that are off. Nothing should ever be.
func Audit(tx *state.Tx) []string {
	a := audit{tx: tx}
	a.networks()
	a.ports()
	a.routers()
	a.floating()
	a.groups()
	a.shares()
	recount(&a, networks)
	recount(&a, subnets)
	recount(&a, ports)
	recount(&a, routers)
	recount(&a, floatings)
	recount(&a, groups)
	recount(&a, rules)
	recount(&a, pools)
	recount(&a, shares)
	return a.found
}

type audit struct {
	tx    *state.Tx
	found []string
}

func (a *audit) wrong(format string, args ...any) {
	a.found = append(a.found, fmt.Sprintf(format, args...))
}

func (a *audit) networks() {
	for s := range subnets.Peek(a.tx, "", state.Range{}) {
		if !networks.Has(a.tx, s.NetworkID) {
			a.wrong("subnet %s is of network %s, which is not there", s.ID, s.NetworkID)
		}
		if !s.PoolID.IsZero() && !pools.Has(a.tx, s.PoolID) {
			a.wrong("subnet %s is cut from pool %s, which is not there", s.ID, s.PoolID)
		}
		for other := range subnets.Peek(a.tx, "network", state.Range{Prefix: state.KeyOf(s.NetworkID)}) {
			if other.ID != s.ID && other.CIDR.Overlaps(s.CIDR) {
				a.wrong("subnets %s and %s of one network overlap", s.ID, other.ID)
			}
		}
	}
	for p := range pools.Peek(a.tx, "", state.Range{}) {
		var last netip.Prefix
		for s := range subnets.Peek(a.tx, "pool-address", state.Range{Prefix: state.KeyOf(p.ID)}) {
			if last.IsValid() && last.Overlaps(s.CIDR) {
				a.wrong("subnet %s, cut from pool %s, overlaps the one before it", s.ID, p.ID)
			}
			last = s.CIDR
		}
	}
}

func (a *audit) ports() {
	type place struct {
		network resource.ID
		address netip.Addr
	}
	taken := map[place]resource.ID{}
	for p := range ports.Peek(a.tx, "", state.Range{}) {
		n, ok := networks.PeekOne(a.tx, p.NetworkID)
		if !ok || n.ProjectID != p.NetworkOwner {
			a.wrong("port %s is of network %s, which is not there or has another owner", p.ID, p.NetworkID)
		}
		for _, f := range p.Fixed {
			s, ok := subnets.PeekOne(a.tx, f.SubnetID)
			if !ok || s.NetworkID != p.NetworkID || !s.CIDR.Contains(f.Address) {
				a.wrong("port %s has address %s, which is not of its subnet %s", p.ID, f.Address, f.SubnetID)
			}
			at := place{p.NetworkID, f.Address}
			if other, twice := taken[at]; twice {
				a.wrong("ports %s and %s have the same address %s", other, p.ID, f.Address)
			}
			taken[at] = p.ID
		}
		for _, id := range p.Groups {
			if !groups.Has(a.tx, id) {
				a.wrong("port %s is in security group %s, which is not there", p.ID, id)
			}
		}
		a.owner(p)
	}
}

// owner checks that the router or floating address that a port is for is there.
func (a *audit) owner(p *Port) {
	id, err := resource.ParseID(p.DeviceID)
	missing := false
	switch p.Owner {
	case OwnerRouter:
		r, ok := routers.PeekOne(a.tx, id)
		missing = !ok || r.HostID != p.HostID
	case OwnerGateway:
		r, ok := routers.PeekOne(a.tx, id)
		missing = !ok || r.Gateway == nil || r.Gateway.PortID != p.ID || r.HostID != p.HostID
	case OwnerFloating:
		f, ok := floatings.PeekOne(a.tx, id)
		missing = !ok || f.PortID != p.ID
	default:
		return
	}
	if err != nil || missing {
		a.wrong("port %s is for %s %s, which is not there, does not know it or is elsewhere", p.ID, p.Owner, p.DeviceID)
	}
}

func (a *audit) routers() {
	for r := range routers.Peek(a.tx, "", state.Range{}) {
		if r.Gateway == nil {
			continue
		}
		p, ok := ports.PeekOne(a.tx, r.Gateway.PortID)
		if !ok || p.Owner != OwnerGateway || p.NetworkID != r.Gateway.NetworkID || !slices.Equal(p.Fixed, r.Gateway.Fixed) {
			a.wrong("router %s has a gateway by port %s, which is not there or is not as it says", r.ID, r.Gateway.PortID)
		}
	}
}

func (a *audit) floating() {
	for f := range floatings.Peek(a.tx, "", state.Range{}) {
		holds := slices.ContainsFunc[[]FixedAddress]
		if p, ok := ports.PeekOne(a.tx, f.PortID); !ok || !holds(p.Fixed, func(x FixedAddress) bool { return x.Address == f.Address }) {
			a.wrong("floating address %s is held by port %s, which is not there or has another address", f.Address, f.PortID)
		}
		if f.TargetID.IsZero() {
			continue
		}
		if p, ok := ports.PeekOne(a.tx, f.TargetID); !ok || !holds(p.Fixed, func(x FixedAddress) bool { return x.Address == f.Fixed }) {
			a.wrong("floating address %s leads to %s of port %s, which is not there", f.Address, f.Fixed, f.TargetID)
		}
		if r, ok := routers.PeekOne(a.tx, f.RouterID); !ok || r.Gateway == nil || r.Gateway.NetworkID != f.NetworkID {
			a.wrong("floating address %s goes through router %s, which is not there or has no gateway", f.Address, f.RouterID)
		}
	}
	for w := range forwards.Peek(a.tx, "", state.Range{}) {
		f, held := floatings.PeekOne(a.tx, w.FloatingID)
		p, there := ports.PeekOne(a.tx, w.TargetID)
		if !held || !there || !slices.ContainsFunc(p.Fixed, func(x FixedAddress) bool { return x.Address == w.Fixed }) {
			a.wrong("port forward %s is of floating address %s to %s of port %s, one of which is not there", w.ID, w.FloatingID, w.Fixed, w.TargetID)
			continue
		}
		if r, ok := routers.PeekOne(a.tx, w.RouterID); !ok || r.Gateway == nil || r.Gateway.NetworkID != f.NetworkID {
			a.wrong("port forward %s goes through router %s, which is not there or has no gateway", w.ID, w.RouterID)
		}
	}
}

func (a *audit) groups() {
	for r := range rules.Peek(a.tx, "", state.Range{}) {
		if !groups.Has(a.tx, r.GroupID) || !r.RemoteGroup.IsZero() && !groups.Has(a.tx, r.RemoteGroup) || !r.RemoteSet.IsZero() && !addressGroups.Has(a.tx, r.RemoteSet) {
			a.wrong("security group rule %s is of or about a group that is not there", r.ID)
		}
	}
}

func (a *audit) shares() {
	for s := range shares.Peek(a.tx, "", state.Range{}) {
		there := map[SharedKind]func(*state.Tx, resource.ID) bool{
			SharedNetwork: networks.Has, SharedGroup: groups.Has, SharedPool: pools.Has, SharedScope: scopes.Has, SharedSet: addressGroups.Has,
		}[s.Kind]
		if there == nil || !there(a.tx, s.ObjectID) {
			a.wrong("share %s is of %s %s, which is not there", s.ID, s.Kind, s.ObjectID)
		}
	}
	for n := range networks.Peek(a.tx, "", state.Range{}) {
		for action, flag := range map[ShareAction]bool{ShareUse: n.Shared, ShareExternal: n.External} {
			if _, ok := shares.Lookup(a.tx, "same", state.KeyOf(n.ID, string(action), resource.ID{})); ok != flag {
				a.wrong("network %s and its shares differ about %s", n.ID, action)
			}
		}
	}
}

// recount compares what quotas are read from with what there is.
func recount[T any](a *audit, table *state.Table[T]) {
	counts := map[resource.ID]int64{}
	for thing := range table.Peek(a.tx, "", state.Range{}) {
		counts[meta(thing).ProjectID]++
	}
	for project, n := range counts {
		if have, _ := table.Sum(a.tx, "project", state.KeyOf(project)); have != n {
			a.wrong("project %s has %d of kind %s, but %d are counted", project, n, table.Kind(), have)
		}
	}
}
