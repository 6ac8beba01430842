package ec2

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/network"
)

// permission is EC2's IpPermission: a protocol, a range of ports, and whom it is about. A rule of ours is about
// one of those, and one family.
type permission struct {
	Protocol string         `xml:"ipProtocol"`
	From     *int           `xml:"fromPort"`
	To       *int           `xml:"toPort"`
	Groups   set[groupPair] `xml:"groups"`
	V4       set[rangeV4]   `xml:"ipRanges"`
	V6       set[rangeV6]   `xml:"ipv6Ranges"`
	Prefixes set[struct{}]  `xml:"prefixListIds"`
}

type groupPair struct {
	UserID      string `xml:"userId"`
	ID          string `xml:"groupId"`
	Description string `xml:"description,omitempty"`
}

type rangeV4 struct {
	CIDR        string `xml:"cidrIp"`
	Description string `xml:"description,omitempty"`
}

type rangeV6 struct {
	CIDR        string `xml:"cidrIpv6"`
	Description string `xml:"description,omitempty"`
}

// Protocols that EC2 has names for (API Reference, "IpPermission"); others go by their numbers.
const (
	icmp   = 1
	tcp    = 6
	udp    = 17
	icmpv6 = 58
)

var protocols = map[string]int{"-1": network.AnyProtocol, "icmp": icmp, "tcp": tcp, "udp": udp, "icmpv6": icmpv6}

func protocolName(n int) string {
	for name, number := range protocols {
		if n == number {
			return name
		}
	}
	return strconv.Itoa(n)
}

// permissionsOf are the rules of a group for one direction, in an order of what they say.
func permissionsOf(tx *state.Tx, g *network.Group, ingress bool) []permission {
	var rules []*network.Rule
	for r := range network.Rules().Peek(tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
		if r.Ingress == ingress {
			rules = append(rules, r)
		}
	}
	slices.SortFunc(rules, func(a, b *network.Rule) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.PortMin, b.PortMin), cmp.Compare(a.PortMax, b.PortMax),
			strings.Compare(peer(a), peer(b)))
	})
	var all []permission
	for _, r := range rules {
		all = merge(all, permissionOf(r))
	}
	return all
}

func permissionOf(r *network.Rule) permission {
	p := permission{Protocol: protocolName(r.Protocol)}
	switch r.Protocol {
	case tcp, udp:
		from, to := 0, 65535
		if r.HasMin {
			from, to = r.PortMin, r.PortMax
		}
		p.From, p.To = &from, &to
	case icmp, icmpv6: // type and code
		from, to := -1, -1
		if r.HasMin {
			from = r.PortMin
		}
		if r.HasMax {
			to = r.PortMax
		}
		p.From, p.To = &from, &to
	}
	switch {
	case !r.RemoteGroup.IsZero():
		p.Groups.Items = []groupPair{{r.ProjectID.Hex(), idOf("sg", r.RemoteGroup), r.Description}}
	case r.V6:
		p.V6.Items = []rangeV6{{prefixOr(r.RemotePrefix, "::/0"), r.Description}}
	default:
		p.V4.Items = []rangeV4{{prefixOr(r.RemotePrefix, "0.0.0.0/0"), r.Description}}
	}
	return p
}

func prefixOr(p netip.Prefix, otherwise string) string {
	if !p.IsValid() {
		return otherwise
	}
	return p.String()
}

// merge adds a permission to those it differs from only in whom it is about. A rule about a group for
// each family is one permission.
func merge(all []permission, p permission) []permission {
	same := func(a, b *int) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }
	for i := range all {
		if a := &all[i]; a.Protocol == p.Protocol && same(a.From, p.From) && same(a.To, p.To) {
			for _, g := range p.Groups.Items {
				if !slices.Contains(a.Groups.Items, g) {
					a.Groups.Items = append(a.Groups.Items, g)
				}
			}
			a.V4.Items, a.V6.Items = append(a.V4.Items, p.V4.Items...), append(a.V6.Items, p.V6.Items...)
			return all
		}
	}
	return append(all, p)
}

// wantedRules reads IpPermissions, or the older flat parameters. Of each source that they are about it gives the
// rules of ours that say the same: one, or one for each family.
func (s *Server) wantedRules(c *call, tx *state.Tx, g *network.Group, ingress bool) ([][]*network.Rule, error) {
	given := c.in.list("IpPermissions")
	flat := c.in.has("IpProtocol") || c.in.has("CidrIp") || c.in.has("SourceSecurityGroupName")
	if flat == (len(given) > 0) {
		if flat {
			return nil, refuse("InvalidParameterCombination", "The parameter IpPermissions cannot be used with the parameter IpProtocol")
		}
		return nil, refuse("MissingParameter", "The request must contain the parameter IpPermissions")
	}
	if flat {
		given = []*param{c.in}
	}
	var all [][]*network.Rule
	for _, p := range given {
		base, err := readRule(p)
		if err != nil {
			return nil, err
		}
		base.ProjectID, base.GroupID, base.Ingress = g.ProjectID, g.ID, ingress
		rules, err := s.readSources(c, tx, p, base)
		if err != nil {
			return nil, err
		}
		if len(rules) == 0 {
			return nil, refuse("MissingParameter", "A permission must contain IpRanges, Ipv6Ranges or UserIdGroupPairs")
		}
		all = append(all, rules...)
	}
	return all, nil
}

// readRule reads the protocol and the ports of one permission.
func readRule(p *param) (r network.Rule, err error) {
	text, err := p.must("IpProtocol")
	if err != nil {
		return r, err
	}
	text = strings.ToLower(text)
	number, ok := protocols[text]
	if !ok {
		if number, err = strconv.Atoi(text); err != nil || number < 0 || number > 255 {
			return r, refuse("InvalidPermission.Malformed", "Invalid value '%s' for IP protocol. Unknown protocol.", printable(text))
		}
		text = protocolName(number)
	}
	r.Protocol = number
	if number == network.AnyProtocol {
		return r, nil // for all ports, whatever is said of them
	}
	r.ProtocolLabel = text
	from, err := p.int("FromPort", -1)
	if err != nil {
		return r, err
	}
	to, err := p.int("ToPort", -1)
	if err != nil {
		return r, err
	}
	switch number {
	case icmp, icmpv6:
		if from < -1 || from > 255 || to < -1 || to > 255 || from < 0 && to >= 0 {
			return r, refuse("InvalidParameterValue", "Invalid ICMP type and code: %d and %d.", from, to)
		}
		r.HasMin, r.PortMin = from >= 0, max(from, 0)
		r.HasMax, r.PortMax = to >= 0, max(to, 0)
	case tcp, udp:
		if from < 0 || to > 65535 || to < from || to == 0 {
			return r, refuse("InvalidParameterValue", "Invalid range of ports: %d to %d.", from, to)
		}
		if from > 1 || to < 65535 {
			r.HasMin, r.PortMin, r.HasMax, r.PortMax = true, max(from, 1), true, to
		}
	}
	return r, nil
}

// readSources makes the rules of each source that a permission is about.
func (s *Server) readSources(c *call, tx *state.Tx, p *param, base network.Rule) ([][]*network.Rule, error) {
	var all [][]*network.Rule
	prefix := func(text, description string, v6 bool) error {
		is, err := netip.ParsePrefix(text)
		if err != nil || is.Addr().Is6() != v6 || is.Addr().Is4In6() {
			return refuse("InvalidParameterValue", "CIDR block %s is malformed", printable(text))
		}
		if !v6 && base.Protocol == icmpv6 {
			return refuse("InvalidParameterValue", "The protocol icmpv6 goes with IPv6 addresses only.")
		}
		r := base
		r.RemotePrefix, r.V6, r.Description = is.Masked(), v6, description
		all = append(all, []*network.Rule{&r})
		return nil
	}
	if p.has("CidrIp") {
		if err := prefix(p.text("CidrIp"), "", false); err != nil {
			return nil, err
		}
	}
	for _, one := range p.list("IpRanges") {
		if err := prefix(one.text("CidrIp"), one.text("Description"), false); err != nil {
			return nil, err
		}
	}
	for _, one := range p.list("Ipv6Ranges") {
		if err := prefix(one.text("CidrIpv6"), one.text("Description"), true); err != nil {
			return nil, err
		}
	}
	pairs := slices.Concat(p.list("UserIdGroupPairs"), p.list("Groups"))
	if name := p.text("SourceSecurityGroupName"); name != "" {
		pairs = append(pairs, groupNameAs(name, p.text("SourceSecurityGroupOwnerId")))
	}
	for _, pair := range pairs {
		g, err := s.pairedGroup(c, tx, pair)
		if err != nil {
			return nil, err
		}
		var both []*network.Rule
		for _, v6 := range []bool{false, true} {
			if v6 && base.Protocol == icmp || !v6 && base.Protocol == icmpv6 {
				continue
			}
			r := base
			r.RemoteGroup, r.V6, r.Description = g.ID, v6, pair.text("Description")
			both = append(both, &r)
		}
		all = append(all, both)
	}
	return all, nil
}

// groupNameAs gives the older parameters the form of the newer ones.
func groupNameAs(name, owner string) *param {
	return &param{parts: map[string]*param{"GroupName": {value: name, given: true}, "UserId": {value: owner, given: owner != ""}}}
}

// pairedGroup is the group of one UserIdGroupPair.
func (s *Server) pairedGroup(c *call, tx *state.Tx, pair *param) (*network.Group, error) {
	var g *network.Group
	var err error
	id := pair.text("GroupId")
	if id == "" {
		if id, err = pair.must("GroupName"); err != nil {
			return nil, err
		}
		g, err = s.groupNamed(c, tx, id)
	} else {
		g, err = s.group(c, tx, id)
	}
	if err != nil {
		return nil, err
	}
	if owner := pair.text("UserId"); owner != "" && owner != g.ProjectID.Hex() {
		return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", printable(id))
	}
	return g, nil
}

// authorize adds rules to a group, all or none.
func authorize(ingress bool) func(*Server, *call) (any, error) {
	return func(s *Server, c *call) (any, error) {
		return together(s, c, func(c *call, tx *state.Tx) (done, error) {
			g, err := s.namedGroup(c, tx)
			if err != nil {
				return done{}, err
			}
			rules, err := s.wantedRules(c, tx, g, ingress)
			if err != nil {
				return done{}, err
			}
			for _, r := range slices.Concat(rules...) {
				if len(rulesLike(tx, r)) > 0 {
					return done{}, refuse("InvalidPermission.Duplicate", "the specified rule \"peer: %s, %s\" already exists",
						peer(r), protocolName(r.Protocol))
				}
				if _, err := s.Networks.Rules.Create(c.ctx, r); err != nil {
					return done{}, err
				}
			}
			return done{Value: true}, nil
		})
	}
}

func peer(r *network.Rule) string {
	if !r.RemoteGroup.IsZero() {
		return idOf("sg", r.RemoteGroup)
	}
	return r.RemotePrefix.String()
}

// revoke takes rules out of a group, all or none. A source that no rule is about is an error; one of its families
// may be missing, since other dialects make rules for one alone.
func revoke(ingress bool) func(*Server, *call) (any, error) {
	return func(s *Server, c *call) (any, error) {
		return together(s, c, func(c *call, tx *state.Tx) (done, error) {
			g, err := s.namedGroup(c, tx)
			if err != nil {
				return done{}, err
			}
			rules, err := s.wantedRules(c, tx, g, ingress)
			if err != nil {
				return done{}, err
			}
			for _, source := range rules {
				var doomed []resource.ID
				for _, r := range source {
					doomed = append(doomed, rulesLike(tx, r)...)
				}
				if len(doomed) == 0 {
					return done{}, refuse("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
				}
				for _, id := range doomed {
					if err := s.Networks.Rules.Delete(c.ctx, id, 0); err != nil {
						return done{}, err
					}
				}
			}
			return done{Value: true}, nil
		})
	}
}

// rulesLike are the rules of a group that say the same as one; no prefix means everybody.
func rulesLike(tx *state.Tx, want *network.Rule) []resource.ID {
	everybody := func(r *network.Rule) netip.Prefix {
		if r.RemotePrefix.Bits() <= 0 {
			return netip.Prefix{}
		}
		return r.RemotePrefix
	}
	var ids []resource.ID
	for r := range network.Rules().Peek(tx, "group", state.Range{Prefix: state.KeyOf(want.GroupID)}) {
		if r.Ingress == want.Ingress && r.V6 == want.V6 && r.Protocol == want.Protocol && r.RemoteGroup == want.RemoteGroup && r.RemoteSet.IsZero() &&
			everybody(r) == everybody(want) && r.HasMin == want.HasMin && r.HasMax == want.HasMax && r.PortMin == want.PortMin && r.PortMax == want.PortMax {
			ids = append(ids, r.ID)
		}
	}
	return ids
}
