package linuxnet

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A claim is that a port sends from an address and is sent to at it: one of its own, or of an allowed pair. Several ports may share
// one, as those do that stand in for each other.
type claim struct {
	port resource.ID
	at   netip.Prefix
}

// A bound is what holds a port.
type bound struct {
	policy
	open bool // no port security
}

func (b bound) equal(other bound) bool { return b.open == other.open && equal(b.policy, other.policy) }

// permits reports whether the port may take part in a connection.
func (b bound) permits(ingress bool, t tuple) bool { return b.open || b.policy.permits(ingress, t) }

// bounds is what holds the segment's ports, by their claims. A port that is down has none.
func (s *segment) bounds() map[claim]bound {
	all := map[claim]bound{}
	for id, attachment := range s.attachments {
		if !attachment.AdminUp {
			continue
		}
		b := bound{policy: s.policy(attachment), open: !attachment.PortSecurity}
		for _, source := range sources(attachment) {
			for _, prefix := range source.Prefixes {
				all[claim{id, prefix}] = b
			}
		}
	}
	return all
}

// A judge says which connections may not begin any more. Connections tell their addresses and not their ports. So what goes by a single
// address ends when no port that has it would let it begin, and when one that has it did let it and does not now. A pair that
// is a range of addresses, maybe of all, does not mean that what goes by one of them is its port's: the port has a say only
// when it did let it begin, and does not now.
type judge struct {
	holders map[netip.Addr][]bound  // of single addresses
	at      map[netip.Addr][]change // single addresses to look at, with what was changed there
	ranges  []rangeChange
}

// A change is of what holds a port.
type change struct{ before, now bound }

type rangeChange struct {
	at netip.Prefix
	change
}

func (c change) equal(other change) bool {
	return c.before.equal(other.before) && c.now.equal(other.now)
}

// revokes reports whether a connection could begin before the change, and cannot after it.
func (c change) revokes(ingress bool, t tuple) bool {
	return c.before.permits(ingress, t) && !c.now.permits(ingress, t)
}

// judgeOf compares what holds ports now with what did. all: every address is to be looked at.
func judgeOf(before, now map[claim]bound, all bool) *judge {
	j := &judge{holders: map[netip.Addr][]bound{}, at: map[netip.Addr][]change{}}
	there := map[resource.ID]bool{}
	for c, b := range now {
		there[c.port] = true
		if c.at.IsSingleIP() {
			if addr := c.at.Addr(); !slices.ContainsFunc(j.holders[addr], b.equal) {
				j.holders[addr] = append(j.holders[addr], b)
			}
			if all {
				j.at[c.at.Addr()] = j.at[c.at.Addr()]
			}
		}
	}
	for c, was := range before {
		is, still := now[c]
		switch {
		case still && is.equal(was):
		case !c.at.IsSingleIP():
			if !still { // its port sends from there no more, and says nothing of what others do
				continue
			}
			next := rangeChange{c.at, change{was, is}}
			if !slices.ContainsFunc(j.ranges, func(r rangeChange) bool { return r.at == next.at && r.equal(next.change) }) {
				j.ranges = append(j.ranges, next)
			}
		case still || there[c.port]: // a port that lost an address lets nothing begin there
			j.at[c.at.Addr()] = append(j.at[c.at.Addr()], change{was, is})
		default: // of one that is gone nothing is left; it may be another's soon
			j.at[c.at.Addr()] = j.at[c.at.Addr()]
		}
	}
	return j
}

// families are those of the connections to look at.
func (j *judge) families() []netlink.InetFamily {
	found := map[netlink.InetFamily]bool{}
	for addr := range j.at {
		found[familyOf(addr)] = true
	}
	for _, r := range j.ranges {
		found[familyOf(r.at.Addr())] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// ends reports whether a connection has to end.
func (j *judge) ends(t tuple) bool {
	if t.Destination == metadataAddr || t.Destination == metadataAddr6 { // answered here, whatever the rules
		return false
	}
	return j.endsAt(t.Source, false, t) || j.endsAt(t.Destination, true, t)
}

func (j *judge) endsAt(addr netip.Addr, ingress bool, t tuple) bool {
	if changes, concerned := j.at[addr]; concerned {
		permits := func(b bound) bool { return b.permits(ingress, t) }
		revokes := func(c change) bool { return c.revokes(ingress, t) }
		if !slices.ContainsFunc(j.holders[addr], permits) || slices.ContainsFunc(changes, revokes) {
			return true
		}
	}
	return slices.ContainsFunc(j.ranges, func(r rangeChange) bool { return r.at.Contains(addr) && r.revokes(ingress, t) })
}

// cutConnections ends the connections that may not begin any more: those of
// ports whose rules have changed, or of addresses which have gone and may soon be
// another's. A new process looks at all of them once, as the last one may have
// died before it did.
func (s *segment) cutConnections(ns *namespace) error {
	now := s.bounds()
	j := judgeOf(s.policies, now, !s.swept)
	for _, family := range j.families() {
		if err := ns.cut(family, func(flow *netlink.ConntrackFlow) bool { return j.ends(tupleOf(flow)) }); err != nil {
			return err
		}
	}
	s.swept, s.policies = true, now
	return nil
}

func familyOf(addr netip.Addr) netlink.InetFamily {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func equal(a, b policy) bool {
	return a.Stateful == b.Stateful && slices.EqualFunc(a.Rules, b.Rules, func(x, y network.FilterRule) bool {
		return x.Ingress == y.Ingress && x.V6 == y.V6 && x.Protocol == y.Protocol && x.PortMin == y.PortMin &&
			x.PortMax == y.PortMax && (x.Remote == nil) == (y.Remote == nil) && slices.Equal(x.Remote, y.Remote)
	})
}
