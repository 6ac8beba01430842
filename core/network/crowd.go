package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"go4.org/netipx"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A crowd knows the addresses of the members of security groups, what hosts enforce of these, and who is in networks: see roll. It is derived
// from the ports like everything that hosts are told, but carried along with the changes: a rule about ten thousand
// members would else be derived from all of them, for each host, whenever one comes or goes.
type crowd struct {
	state *state.State

	mu    sync.Mutex
	watch *state.Watcher             // guarded by mu
	known map[resource.ID]*following // the groups that were asked for; guarded by mu
	rolls map[resource.ID]*roll      // of the networks that were asked for; guarded by mu
	// The filters that were asked for, spelled, which are the same on all hosts. What is in here is never changed; guarded by mu.
	filters map[resource.ID]json.RawMessage
}

// following is the addresses of one group's members.
type following struct {
	since int64                // the revision that it was read at: older changes are in it
	count map[netip.Prefix]int // how many members have an address or may use a prefix
	wide  [2]int               // how many of those are more than one address
	sets  [2]*netipx.IPSet     // of IPv4 and of IPv6; nil: to be made anew
}

func newCrowd(s *state.State) *crowd { return &crowd{state: s} }

// members is what the function of this name gives, as of what was followed. The caller holds mu.
func (c *crowd) members(groupID resource.ID, v6 bool) []netip.Prefix {
	f := c.known[groupID]
	if f == nil {
		f = read(c.state.Latest(), groupID)
		c.known[groupID] = f
	}
	set := f.set(v6)
	if set == nil || len(set.Ranges()) == 0 {
		return []netip.Prefix{}
	}
	return set.Prefixes()
}

// filterText is the JSON of FilterFor, as of now.
func (c *crowd) filterText(groupID resource.ID) (json.RawMessage, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.follow()
	if text, ok := c.filters[groupID]; ok {
		return text, true, nil
	}
	f, ok := filterFor(c.state.Latest(), groupID, c.members)
	if !ok {
		return nil, false, nil
	}
	text, err := json.Marshal(f)
	if err != nil {
		return nil, false, fmt.Errorf("encode group %s: %w", groupID, err)
	}
	c.filters[groupID] = text
	return text, true, nil
}

// follow takes in what has changed. The caller holds mu.
func (c *crowd) follow() {
	for c.watch != nil {
		events, err := c.watch.Poll()
		if errors.Is(err, state.ErrCompacted) {
			c.watch = nil // too much was missed
			break
		}
		if err != nil || len(events) == 0 {
			return
		}
		tx := c.state.Latest()
		for _, e := range events {
			for _, id := range sharedFilters(tx, e) {
				delete(c.filters, id)
			}
			switch e.Kind {
			case ports.Kind():
				c.take(e)
			case groups.Kind():
				if e.After == nil {
					delete(c.known, e.ID)
				}
			}
			c.call(e)
		}
	}
	c.watch = c.state.Watch(c.state.Latest().Revision())
	c.known, c.rolls, c.filters = map[resource.ID]*following{}, map[resource.ID]*roll{}, map[resource.ID]json.RawMessage{}
}

func (c *crowd) take(e state.Event) {
	was, now := sides[Port](e)
	if sameMembership(was, now) {
		return
	}
	add := func(p *Port, by int) {
		if p == nil {
			return
		}
		for _, id := range p.Groups {
			if f := c.known[id]; f != nil && e.Revision > f.since {
				f.add(p, by)
			}
		}
	}
	add(was, -1)
	add(now, 1)
}

// read takes in a whole group.
func read(tx *state.Tx, groupID resource.ID) *following {
	f := &following{since: tx.Revision(), count: map[netip.Prefix]int{}}
	for p := range ports.Peek(tx, "group", state.Range{Prefix: state.KeyOf(groupID)}) {
		f.add(p, 1)
	}
	return f
}

// add counts what a port has, or takes it back.
func (f *following) add(p *Port, by int) {
	for _, fixed := range p.Fixed {
		f.addPrefix(netip.PrefixFrom(fixed.Address, fixed.Address.BitLen()), by)
	}
	for _, pair := range p.AllowedPairs {
		f.addPrefix(pair.Address.Masked(), by)
	}
}

func (f *following) addPrefix(p netip.Prefix, by int) {
	before := f.count[p]
	after := before + by
	if after == 0 {
		delete(f.count, p)
	} else {
		f.count[p] = after
	}
	at := 0
	if p.Addr().Is6() {
		at = 1
	}
	if (before == 0) == (after == 0) {
		return
	}
	if !p.IsSingleIP() {
		f.wide[at] += by
	}
	if f.sets[at] == nil {
		return
	}
	var b netipx.IPSetBuilder
	b.AddSet(f.sets[at])
	switch {
	case after != 0:
		b.AddPrefix(p)
	case f.wide[at] == 0 && p.IsSingleIP():
		b.RemovePrefix(p)
	default:
		f.sets[at] = nil // others may cover what goes: only the count of all tells what is left
		return
	}
	set, err := b.IPSet()
	if err != nil {
		set = nil
	}
	f.sets[at] = set
}

// set is the addresses of one IP version as ranges.
func (f *following) set(v6 bool) *netipx.IPSet {
	at := 0
	if v6 {
		at = 1
	}
	if f.sets[at] == nil {
		var b netipx.IPSetBuilder
		for p := range f.count {
			if p.Addr().Is6() == v6 {
				b.AddPrefix(p)
			}
		}
		set, err := b.IPSet()
		if err != nil {
			return nil
		}
		f.sets[at] = set
	}
	return f.sets[at]
}
