package compute

import (
	"iter"
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
	return c
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
