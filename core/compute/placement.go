package compute

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A demand is what a server asks of the host that it is put on.
type demand struct {
	load      state.Amounts
	zone      string      // "" for any
	host      resource.ID // an operator named it; zero for any
	arch      string      // "" for any
	isolating bool
	labels    map[string]string // of an aggregate that the host must be in
	required  []string          // traits
	forbidden []string
	claims    map[string]int64 // of custom resource classes
	group     *Group
	apart     map[resource.ID]bool // hosts to keep off
	beside    map[resource.ID]bool // hosts to keep to; nil for any
	leaves    resource.ID          // the host that the server is on already; zero for none
	self      resource.ID          // the server, of one that there is
	moves     bool                 // it is sent there by another host
	storage   string               // that its disks are on; "" for none that hosts share
	stored    int64                // what it takes of that already
	reaches   bool                 // the host has to reach them there
	physical  []string             // networks that its ports lie on
	stays     *Server              // it is on the host that is asked, and takes more of it, or less; nil: it comes there
}

// isolatingKey is the flavor's demand for hardware that separates guests; aggregateKey begins
// its demands for hosts in aggregates with such metadata.
const (
	isolatingKey = "unkai:isolating"
	aggregateKey = "aggregate_instance_extra_specs:"
)

// ask makes the demands that lie in the shape itself.
func (s *Shape) ask() demand {
	d := demand{load: s.load(), isolating: strings.EqualFold(s.Extra[isolatingKey], "true"), claims: s.claims()}
	d.required, d.forbidden = s.traits()
	for k, v := range s.Extra {
		if label, ok := strings.CutPrefix(k, aggregateKey); ok {
			if d.labels == nil {
				d.labels = map[string]string{}
			}
			d.labels[label] = v
		}
	}
	return d
}

// A placing is one search for a host.
type placing struct {
	demand
	tx      *state.Tx
	policy  overcommit
	zones   ZoneMap
	fit     host.Fit
	labeled []map[resource.ID]bool // hosts of each aggregate with the labels
	company *company               // of the group; nil without one
	asked   []constraint
	dice    dice
	pack    bool          // the cloud's servers fill one host after the other
	used    state.Amounts // of the host that is looked at
	total   state.Amounts // of it
	loaded  bool          // used and total are known
	short   shortage      // what the host that is looked at lacks
}

// A shortage is how much of what a host lacks; none if the unit is "".
type shortage struct {
	amount int64
	unit   string
}

func (s shortage) String() string {
	if s.unit == "" {
		return ""
	}
	return fmt.Sprint(s.amount, " ", s.unit)
}

// A constraint keeps a host or removes it.
type constraint struct {
	name string
	asks func(p *placing) bool // whether this search has it at all; nil: always
	keep func(p *placing, h *host.Host) bool
}

// The constraints that a host meets or not by what others have there, and by how it is just now. The rest follows from the request, from what
// else its project has, and from how the cloud is made.
const (
	isHeard       = "can be heard"
	takesNew      = "takes new servers"
	isWired       = "is reached by other hosts with packets as large as networks have"
	hasCustom     = "has the custom resources of the flavor"
	hasProcessors = "has the processors"
	hasMemory     = "has the memory"
	hasDisk       = "has the disk"
	hasRoomForAll = "has room for all of the group that have to leave with the server"
)

// passing reports whether it is one of those.
func (c *constraint) passing() bool {
	switch c.name {
	case isHeard, takesNew, isWired, hasCustom, hasProcessors, hasMemory, hasDisk, hasRoomForAll:
		return true
	}
	return false
}

// constraints in the order they are applied: the cheap ones first, capacity last, so that what
// came nearest is a host that was only too full.
var constraints = []constraint{
	{"is the host that was named", func(p *placing) bool { return !p.host.IsZero() },
		func(p *placing, h *host.Host) bool { return h.ID == p.host }},
	{"is another than the present one", func(p *placing) bool { return !p.leaves.IsZero() },
		func(p *placing, h *host.Host) bool { return h.ID != p.leaves }},
	{isHeard, (*placing).arrives, func(_ *placing, h *host.Host) bool { return h.Up() }},
	{takesNew, (*placing).arrives, func(p *placing, h *host.Host) bool { return !h.Maintenance && !h.Disabled }},
	{isWired, func(p *placing) bool { return p.arrives() && p.fit.Asks() }, func(p *placing, h *host.Host) bool { return p.fit.Has(h) }},
	{"can take in servers from other hosts", func(p *placing) bool { return p.moves },
		func(_ *placing, h *host.Host) bool { return h.Capacity.Moves }},
	{"reaches the server's disks", func(p *placing) bool { return p.reaches },
		func(p *placing, h *host.Host) bool { return h.Capacity.Storage == p.storage }},
	{"is connected with the physical networks of the server's ports", func(p *placing) bool { return p.physical != nil }, (*placing).connects},
	{"is in the zone", func(p *placing) bool { return p.zone != "" },
		func(p *placing, h *host.Host) bool { return p.zones.Of(h) == p.zone }},
	{"has the architecture", func(p *placing) bool { return p.arch != "" },
		func(p *placing, h *host.Host) bool { return h.Capacity.Arch == "" || h.Capacity.Arch == p.arch }},
	{"separates guests by hardware", func(p *placing) bool { return p.isolating },
		func(_ *placing, h *host.Host) bool { return h.Capacity.Isolating }},
	{"is in an aggregate for the flavor", func(p *placing) bool { return p.labels != nil },
		func(p *placing, h *host.Host) bool {
			return slices.ContainsFunc(p.labeled, func(in map[resource.ID]bool) bool { return in[h.ID] })
		}},
	{"has the traits that the flavor requires", func(p *placing) bool { return p.required != nil }, (*placing).hasRequired},
	{"is without the traits that the flavor forbids", func(p *placing) bool { return p.forbidden != nil },
		func(p *placing, h *host.Host) bool { return !p.hasForbidden(h) }},
	{"is away from the servers that were named", func(p *placing) bool { return p.apart != nil },
		func(p *placing, h *host.Host) bool { return !p.apart[h.ID] }},
	{"is beside the servers that were named", func(p *placing) bool { return p.beside != nil },
		func(p *placing, h *host.Host) bool { return p.beside[h.ID] }},
	{"keeps a group together of which one is on its way, or cannot leave", func(p *placing) bool { return p.company != nil && p.company.held != "" },
		func(*placing, *host.Host) bool { return false }},
	{"suits the group", func(p *placing) bool { return p.group != nil }, (*placing).suitsGroup},
	{"can run so many processors in one guest", nil, func(p *placing, h *host.Host) bool {
		return h.Capacity.MaxVCPUs == 0 || p.load[0] <= int64(h.Capacity.MaxVCPUs)
	}},
	{hasCustom, func(p *placing) bool { return p.claims != nil }, (*placing).offers},
	{hasProcessors, nil, func(p *placing, h *host.Host) bool { return p.room(h, 0) }},
	{hasMemory, nil, func(p *placing, h *host.Host) bool { return p.room(h, 1) }},
	{hasDisk, nil, func(p *placing, h *host.Host) bool { return p.room(h, 2) }},
	{hasRoomForAll, func(p *placing) bool { return p.company != nil && p.company.whole }, (*placing).follows},
}

// arrives reports whether the server is not on the host yet.
func (p *placing) arrives() bool { return p.stays == nil }

// connects keeps hosts that say that they are connected with all the physical networks.
func (p *placing) connects(h *host.Host) bool {
	return !slices.ContainsFunc(p.physical, func(name string) bool { return !h.Leads(name) })
}

var units = [...]string{"processors", "MiB of memory", "GiB of disk"}

func (p *placing) room(h *host.Host, what int) bool {
	if !p.loaded {
		_, p.used = Load(p.tx, h)
		p.total = p.policy.total(h)
		p.loaded = true
	}
	load := p.load[what]
	if p.stays != nil {
		load -= p.stays.taken()[what]
	}
	if what == diskAmount && p.on(h) {
		load -= p.stored
	}
	if load <= 0 {
		return true // it takes no more of it, however much is promised of it already
	}
	lack := p.used[what] + load - p.total[what]
	if lack > 0 {
		p.short = shortage{lack, units[what]}
	}
	return lack <= 0
}

// score judges the host that is looked at, and fits: how much of it is left free, from 0 to 1, then by the group.
func (p *placing) score(h *host.Host) float64 {
	score, counted := 0.0, 0
	for i := range units {
		if total := p.total[i]; total > 0 {
			score += float64(total-p.used[i]-p.load[i]) / float64(total)
			counted++
		}
	}
	score /= float64(max(1, counted))
	if p.pack {
		score = 1 - score
	}
	if p.on(h) {
		score++ // its disks need not be sent
	}
	if p.company != nil {
		score += p.companionship(h)
	}
	return score
}

const (
	examples = 3 // of removed hosts
	best     = 3 // scores that are kept
)

// enough hosts are looked at for one decision when there are many more: every so-manieth, from a random one on, and those few that
// have something for this server that others have not. The best of them is about as good as the best of all, and a decision takes no longer
// with thousands. Only when none of them fits, all are looked at.
const enough = 250

// newest servers' hosts are looked at where hosts are filled one after the other. Several: servers of several sizes fill several hosts at a time.
const newest = 32

// search makes ready to look at hosts.
func (s *Service) search(tx *state.Tx, d demand) *placing {
	keeping := host.KeepingOf(tx)
	p := &placing{demand: d, tx: tx, policy: s.overcommit(tx, &keeping), pack: keeping.Pack}
	p.lookAround()
	for _, c := range constraints {
		if c.asks == nil || c.asks(p) {
			p.asked = append(p.asked, c)
		}
	}
	return p
}

// removes is the number, among those that are asked, of the first constraint that removes a host; -1 if it fits.
func (p *placing) removes(h *host.Host) int {
	p.loaded, p.short = false, shortage{}
	for n := range p.asked {
		if !p.asked[n].keep(p, h) {
			return n
		}
	}
	return -1
}

// place chooses a host for a demand, and explains it; nil if none fits. It reads no server, or but the newest.
func (s *Service) place(tx *state.Tx, d demand) (*host.Host, *operation.Why) {
	p := s.search(tx, d)
	p.dice = newDice(tx)
	all := host.Table().Len(tx)
	if step := all / enough; step > 1 && d.host.IsZero() {
		chosen, why := p.among(p.sample(all, step))
		if chosen != nil {
			why.Of = all
			return chosen, why
		}
	}
	return p.among(host.Table().Peek(tx, "", state.Range{}))
}

// sample gives every so-manieth host of all, and before them the special ones.
func (p *placing) sample(all, step int) iter.Seq[*host.Host] {
	special := p.special(all)
	return func(yield func(*host.Host) bool) {
		for _, h := range special {
			if !yield(h) {
				return
			}
		}
		for n := p.dice.below(step); n < all; n += step {
			h, ok := host.Table().PeekAt(p.tx, n)
			if ok && !slices.Contains(special, h) && !yield(h) {
				return
			}
		}
	}
}

// special are hosts that have something for the server: some of its group, servers that it is to be beside, or its disks; and where hosts are filled
// one after the other, those that the newest servers were put on. Without them each decision would begin to fill one of its own sample.
func (p *placing) special(all int) (hosts []*host.Host) {
	add := func(h *host.Host, ok bool) {
		if ok && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	if p.company != nil {
		for _, id := range p.company.with {
			add(host.Table().PeekOne(p.tx, id))
		}
	}
	for n, id := range slices.SortedFunc(maps.Keys(p.beside), func(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) }) {
		if n < fewHosts {
			add(host.Table().PeekOne(p.tx, id))
		}
	}
	if p.pack {
		looked := 0
		for srv := range servers.Peek(p.tx, "", state.Range{Reverse: true}) {
			if looked++; looked > newest {
				break
			}
			add(host.Table().PeekOne(p.tx, srv.HostID))
		}
	}
	if p.storage == "" {
		return hosts
	}
	// Of those that reach the disks others each time: from a random host on, and round.
	from, _ := host.Table().PeekAt(p.tx, p.dice.below(all))
	reach, most := state.KeyOf(p.storage), len(hosts)+fewHosts
	for _, part := range []state.Range{{Prefix: reach, AfterKey: reach, After: from.ID}, {Prefix: reach}} {
		for h := range host.Table().Peek(p.tx, "storage", part) {
			if add(h, true); len(hosts) >= most {
				return hosts
			}
		}
	}
	return hosts
}

// among chooses one of some hosts.
func (p *placing) among(hosts iter.Seq[*host.Host]) (*host.Host, *operation.Why) {
	removed := make([]operation.Removed, len(p.asked))
	why := &operation.Why{Asked: p.questions()}
	var chosen *host.Host
	var top []operation.Score
	ties, furthest := 0, -1
	for h := range hosts {
		why.Looked++
		if n := p.removes(h); n >= 0 {
			r := &removed[n]
			r.Count++
			if len(r.Examples) < examples {
				r.Examples = append(r.Examples, h.Name)
			}
			if n > furthest {
				furthest = n
				why.Ended = p.asked[n].name
				why.Nearest = nearest(p.asked[n].name, p.short.String())
			}
			continue
		}
		score := p.score(h)
		switch {
		case chosen == nil || score > top[0].Score:
			chosen, ties = h, 1
		case score == top[0].Score:
			if ties++; p.dice.below(ties) == 0 {
				chosen = h
			}
		}
		top = rank(top, h.Name, score)
	}
	for n, r := range removed {
		if r.Count > 0 {
			r.Constraint = p.asked[n].name
			why.Removed = append(why.Removed, r)
		}
	}
	why.Scores = top
	if chosen != nil {
		why.Chosen, why.Ended, why.Nearest = chosen.Name, "", ""
	} else if why.Looked == 0 {
		why.Nearest = "There are no hosts yet."
	} else {
		why.Alone = p.alone()
	}
	return chosen, why
}

// questions names what is asked of each host.
func (p *placing) questions() []string {
	names := make([]string, len(p.asked))
	for n := range p.asked {
		names[n] = p.asked[n].name
	}
	return names
}

// alone names the constraints that leave no host, whatever others have and whichever hosts are lost; none if some host meets all that do not
// depend on it.
func (p *placing) alone() (names []string) {
	removed := make([]bool, len(p.asked))
	for h := range host.Table().Peek(p.tx, "", state.Range{}) {
		n := slices.IndexFunc(p.asked, func(c constraint) bool { return !c.passing() && !c.keep(p, h) })
		if n < 0 {
			return nil
		}
		removed[n] = true
	}
	for n := range p.asked {
		if removed[n] {
			names = append(names, p.asked[n].name)
		}
	}
	return names
}

func nearest(constraint, short string) string {
	if short != "" {
		return "The host that came nearest lacks " + short + "."
	}
	return "No host that " + constraint + " was left."
}

// rank keeps the best few scores, the best first.
func rank(top []operation.Score, name string, score float64) []operation.Score {
	if len(top) == best && score <= top[best-1].Score {
		return top
	}
	at := len(top)
	for at > 0 && score > top[at-1].Score {
		at--
	}
	top = slices.Insert(top, at, operation.Score{Name: name, Score: score})
	return top[:min(len(top), best)]
}

// lookAround learns what the constraints need besides the hosts themselves.
func (p *placing) lookAround() {
	if p.group != nil {
		p.company = companyOf(p.tx, p.group, &p.demand)
	}
	p.fit = host.FitOf(p.tx)
	g := groupingOf(p.tx)
	p.zones = ZoneMap{g.zones}
	if p.labels != nil {
		p.labeled = g.labeled(p.labels)
	}
}

// dice are cheap random numbers from one draw of the transaction's (SplitMix64).
type dice struct{ at uint64 }

func newDice(tx *state.Tx) dice {
	var b [8]byte
	tx.Random(b[:])
	return dice{binary.LittleEndian.Uint64(b[:])}
}

func (d *dice) below(n int) int {
	d.at += 0x9e3779b97f4a7c15
	z := d.at
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return int((z ^ z>>31) % uint64(n))
}
