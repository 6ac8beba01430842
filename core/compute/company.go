package compute

import (
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// A company is the rest of a server's group, as its placement sees it. Decisions count from the moment at which they are taken: a
// server that is on its way to a host, or may have to go back to one, keeps those away from there that are to be apart from it; and
// those that are to be together with it go where it goes.
type company struct {
	group resource.ID
	self  *Server              // as it is stored; nil for one that is new
	with  []resource.ID        // hosts that members are on, or soon will be; not of those that are to be apart
	only  map[resource.ID]bool // of Together: the hosts that bind; nil for any
	rest  state.Amounts        // what those take that have to leave the same host, and will want to follow
	left  bool                 // there are such
	whole bool                 // of Together: all of them have to find room where the server goes, or none leaves
	held  string               // of Together: why it may go nowhere, in words for its owner; "" if it may
}

// fewHosts is how many hosts are looked at for their own sake, in a cloud of which not every one is.
const fewHosts = 64

// bound is where the server is for those that are to be together with it.
func (s *Server) bound() resource.ID {
	if s.Move != nil {
		return s.Move.To
	}
	return s.HostID
}

// Hosts are those on which the server is, or may come to be: its own, and another one on which it holds room.
func (s *Server) Hosts() []resource.ID {
	return slices.DeleteFunc([]resource.ID{s.HostID, s.beside()}, resource.ID.IsZero)
}

// keptApart counts a server for those that are to be apart from it.
func keptApart(s *Server) (shares []state.Share) {
	if s.GroupID.IsZero() {
		return nil
	}
	for _, h := range s.Hosts() {
		shares = append(shares, state.Share{Key: state.KeyOf(s.GroupID, h)})
	}
	return shares
}

// companyOf looks at a server's group.
func companyOf(tx *state.Tx, g *Group, d *demand) *company {
	c := &company{group: g.ID}
	c.self, _ = servers.PeekOne(tx, d.self)
	if g.Policy != Together && g.Policy != SoftTogether {
		return c
	}
	leaves := !d.leaves.IsZero() && mustLeave(tx, d.leaves)
	for h := range c.hosts(tx) {
		if leaves && mustLeave(tx, h) {
			continue // it does not stay there either
		}
		if c.with = append(c.with, h); len(c.with) == fewHosts {
			break
		}
	}
	if g.Policy == Together && len(c.with) > 0 {
		c.only = map[resource.ID]bool{}
		for _, h := range c.with {
			c.only[h] = true
		}
	}
	if leaves {
		c.follow(tx, d.leaves)
	}
	if g.Policy == Together {
		c.bind(tx, d.leaves, leaves)
	}
	return c
}

// bind sees to it that no decision parts those that are to be together. While one of them is on its way, nobody knows where it will be: it
// may be there, or stay. And a host that is emptied is left by all of them or by none; once one has left, the others follow as they can. From
// a host that is lost each goes for itself: who orders that, or has ordered it before, wants it back before he wants it beside others.
func (c *company) bind(tx *state.Tx, from resource.ID, leaves bool) {
	if !leaves {
		for srv := range servers.Peek(tx, "group", state.Range{Prefix: state.KeyOf(c.group)}) {
			if srv.Move != nil && (c.self == nil || srv.ID != c.self.ID) {
				c.held = "Its group keeps its servers on one host, and one of them is on its way to another. Try again when that is over."
				return
			}
		}
		return
	}
	h, ok := host.Table().PeekOne(tx, from)
	if !ok || !h.Up() || len(c.with) > 0 {
		return
	}
	c.whole = c.left
	for srv := range servers.Peek(tx, "company", state.Range{Prefix: state.KeyOf(c.group, from)}) {
		if c.self != nil && srv.ID == c.self.ID {
			continue
		}
		if why := srv.staysBehind(tx, h); why != "" {
			c.held = "Its group keeps its servers on one host, and another one of them cannot leave. " + why
			return
		}
	}
}

// staysBehind tells why a server could not follow those of its group that leave a host in maintenance; "" if it can, or what is under way
// with it goes before.
func (s *Server) staysBehind(tx *state.Tx, h *host.Host) string {
	if s.Task != "" {
		return ""
	}
	switch stage := s.Stage(); stage {
	case Shelved:
		return ""
	case Running, Frozen, Stopped:
		if h.Drain != nil {
			return cameBack(tx, s, h)
		}
		return ""
	case Asleep:
		return onHostAsleep
	case Unsettled:
		return notConfirmed
	default:
		return "It is " + string(stage) + "."
	}
}

// together counts the others of its group that are to be where the server is, and are there, by how they stand.
func (s *Server) together(tx *state.Tx) (others int, as map[Stage]int) {
	if g, ok := groups.PeekOne(tx, s.GroupID); !ok || g.Policy != Together {
		return 0, nil
	}
	as = map[Stage]int{}
	for srv := range servers.Peek(tx, "group", state.Range{Prefix: state.KeyOf(s.GroupID)}) {
		if srv.ID != s.ID && srv.HostID == s.HostID && !srv.Doomed() {
			others++
			as[srv.Stage()]++
		}
	}
	return others, as
}

// standsAs says how a server stands as far as it hangs on that whether it can leave a host in maintenance: its stage, and after a space those of
// the others that leave with it or not at all.
func (s *Server) standsAs(tx *state.Tx) string {
	text := string(s.Stage())
	_, as := s.together(tx)
	for _, stage := range slices.Sorted(maps.Keys(as)) {
		text += fmt.Sprintf(" %d %s", as[stage], stage)
	}
	return text
}

// follows reports whether all that have to leave a host with the server would find room on another one, too.
func (p *placing) follows(h *host.Host) bool {
	for i := range units {
		if i == diskAmount && p.on(h) {
			continue // they lie there already
		}
		p.room(h, i) // so that it is known
		all := p.load[i] + p.company.rest[i]
		if lack := p.used[i] + all - p.total[i]; all > 0 && lack > 0 {
			p.short = shortage{lack, units[i]}
			return false
		}
	}
	return true
}

// partsGroup tells why the host that a server of a group that is to be together is about to be given to is the wrong one by now; "" if it is not.
// The host that it leaves may be emptied no more, and those of the group that have not left stay there then.
func (s *Server) partsGroup(tx *state.Tx) string {
	g, ok := groups.PeekOne(tx, s.GroupID)
	if !ok || g.Policy != Together || mustLeave(tx, s.HostID) {
		return ""
	}
	stay := false
	for srv := range servers.Peek(tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
		switch {
		case srv.ID == s.ID:
		case srv.HostID == s.Move.To:
			return "" // it is apart from some in either case
		case srv.bound() == s.HostID:
			stay = true
		}
	}
	if !stay {
		return ""
	}
	return "The server's group keeps its servers on one host, and others of it stay on the one that it was to leave."
}

// mustLeave reports whether what is on a host is to go elsewhere: it is lost, or in maintenance.
func mustLeave(tx *state.Tx, id resource.ID) bool {
	h, ok := host.Table().PeekOne(tx, id)
	return !ok || !h.Up() || h.Maintenance
}

// hosts are those that members are bound to, each once.
func (c *company) hosts(tx *state.Tx) iter.Seq[resource.ID] {
	var last resource.ID
	for i := range last {
		last[i] = 0xff
	}
	return func(yield func(resource.ID) bool) {
		r := state.Range{Prefix: state.KeyOf(c.group)}
		for {
			var found resource.ID
			for srv := range servers.Peek(tx, "company", r) {
				if c.self == nil || srv.ID != c.self.ID {
					found = srv.bound()
					break
				}
			}
			if found.IsZero() || !yield(found) {
				return
			}
			r.AfterKey, r.After = state.KeyOf(c.group, found), last // on to the next host
		}
	}
}

// follow adds up what has to leave a host, too.
func (c *company) follow(tx *state.Tx, from resource.ID) {
	for srv := range servers.Peek(tx, "company", state.Range{Prefix: state.KeyOf(c.group, from)}) {
		if c.self != nil && srv.ID == c.self.ID {
			continue
		}
		c.left = true
		for i, n := range srv.taken() {
			c.rest[i] += n
		}
	}
}

// on is how many other members count on a host.
func (c *company) on(tx *state.Tx, h resource.ID) int {
	n, _ := servers.Sum(tx, "apart", state.KeyOf(c.group, h))
	if c.self != nil && slices.Contains(c.self.Hosts(), h) {
		n--
	}
	return int(n)
}

// suitsGroup keeps hosts that the group's policy allows.
func (p *placing) suitsGroup(h *host.Host) bool {
	switch p.group.Policy {
	case Together:
		return p.company.only == nil || p.company.only[h.ID]
	case Apart:
		return p.company.on(p.tx, h.ID) < max(1, p.group.MaxPerHost)
	}
	return true
}

// companionship judges a host by the group: by how many of it are there, and whether all that have to leave with the server could follow.
func (p *placing) companionship(h *host.Host) float64 {
	score := 0.0
	switch p.group.Policy {
	case SoftTogether:
		score = float64(p.company.on(p.tx, h.ID))
	case SoftApart:
		score = -float64(p.company.on(p.tx, h.ID))
	}
	if p.company.left {
		for i := range units {
			if p.used[i]+p.load[i]+p.company.rest[i] > p.total[i] {
				return score
			}
		}
		score += 2 // more than disks that need not be sent
	}
	return score
}

// mayRejoin refuses to take a server back to where it came from if those that are to be together with it would be left behind.
func (s *Server) mayRejoin(tx *state.Tx, back resource.ID) error {
	g, ok := groups.PeekOne(tx, s.GroupID)
	if !ok || g.Policy != Together {
		return nil
	}
	c := companyOf(tx, g, &demand{self: s.ID, leaves: s.HostID})
	if c.only == nil || c.only[back] {
		return nil
	}
	return fault.Errorf(fault.Conflict, "The server's group keeps its servers on one host, and others are on another than the one that it came from: it cannot go back there. Confirm, and it stays.").WithCode("group-left-behind")
}
