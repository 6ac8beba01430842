package ec2

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/network"
)

type securityGroup struct {
	OwnerID     string       `xml:"ownerId"`
	ID          string       `xml:"groupId"`
	Name        string       `xml:"groupName"`
	Description string       `xml:"groupDescription"`
	VpcID       string       `xml:"vpcId,omitempty"`
	Ingress     []permission `xml:"ipPermissions>item"`
	Egress      []permission `xml:"ipPermissionsEgress>item"`
	Tags        *tagSet      `xml:"tagSet"`
}

// permission is EC2's IpPermission: a protocol, a range of ports, and whom it is about.
type permission struct {
	Protocol string      `xml:"ipProtocol"`
	From     *int        `xml:"fromPort"`
	To       *int        `xml:"toPort"`
	Groups   []groupPair `xml:"groups>item"`
	V4       []rangeV4   `xml:"ipRanges>item"`
	V6       []rangeV6   `xml:"ipv6Ranges>item"`
}

type groupPair struct {
	UserID string `xml:"userId"`
	ID     string `xml:"groupId"`
}

type rangeV4 struct {
	CIDR        string `xml:"cidrIp"`
	Description string `xml:"description,omitempty"`
}

type rangeV6 struct {
	CIDR        string `xml:"cidrIpv6"`
	Description string `xml:"description,omitempty"`
}

var protocols = map[string]int{"-1": network.AnyProtocol, "icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}

func protocolName(n int) string {
	for name, number := range protocols {
		if n == number {
			return name
		}
	}
	return strconv.Itoa(n)
}

// groupOf shows a group with its rules, each as a permission of its own family and source.
func (s *Server) groupOf(tx *state.Tx, g *network.Group, vpc string) securityGroup {
	item := securityGroup{OwnerID: g.ProjectID.Hex(), ID: idOf("sg", g.ID), Name: g.Name, Description: g.Description, VpcID: vpc,
		Tags: tagsOf(textTags(g.Tags))}
	for r := range network.Rules().Peek(tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
		p := permission{Protocol: protocolName(r.Protocol)}
		if r.Protocol != network.AnyProtocol {
			from, to := -1, -1
			if r.HasMin {
				from = r.PortMin
			}
			if r.HasMax {
				to = r.PortMax
			}
			if !r.HasMin && (r.Protocol == 6 || r.Protocol == 17) {
				from, to = 0, 65535
			}
			p.From, p.To = &from, &to
		}
		switch {
		case !r.RemoteGroup.IsZero():
			p.Groups = []groupPair{{r.ProjectID.Hex(), idOf("sg", r.RemoteGroup)}}
		case r.V6:
			p.V6 = []rangeV6{{prefixOr(r.RemotePrefix, "::/0"), r.Description}}
		default:
			p.V4 = []rangeV4{{prefixOr(r.RemotePrefix, "0.0.0.0/0"), r.Description}}
		}
		if r.Ingress {
			item.Ingress = merge(item.Ingress, p)
		} else {
			item.Egress = merge(item.Egress, p)
		}
	}
	return item
}

func prefixOr(p netip.Prefix, otherwise string) string {
	if !p.IsValid() {
		return otherwise
	}
	return p.String()
}

// merge adds a permission to those it differs from only in whom it is about.
func merge(all []permission, p permission) []permission {
	same := func(a, b *int) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }
	for i := range all {
		if a := &all[i]; a.Protocol == p.Protocol && same(a.From, p.From) && same(a.To, p.To) {
			for _, g := range p.Groups {
				if !slices.Contains(a.Groups, g) {
					a.Groups = append(a.Groups, g)
				}
			}
			a.V4, a.V6 = append(a.V4, p.V4...), append(a.V6, p.V6...)
			return all
		}
	}
	return append(all, p)
}

// group finds a security group that the actor may see, by EC2's ID.
func (s *Server) group(c *call, _ *state.Tx, id string) (*network.Group, error) {
	tail, ok := ownID("sg", id)
	if !ok {
		return nil, refuse("InvalidGroupId.Malformed", "Invalid id: \"%s\" (expecting \"sg-...\")", printable(id))
	}
	all, err := s.groups(c)
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		if g.ID.Tail() == tail {
			return g, nil
		}
	}
	return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
}

func (s *Server) groupNamed(c *call, name string) (*network.Group, error) {
	all, err := s.groups(c)
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		if g.Name == name {
			return g, nil
		}
	}
	return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", printable(name))
}

// groups lists those that the actor may see; the default one is made if it is not there yet.
func (s *Server) groups(c *call) ([]*network.Group, error) {
	if c.plan == nil {
		if err := s.Networks.EnsureDefaultGroup(c.ctx); err != nil {
			return nil, err
		}
	}
	listed, err := s.Networks.Groups.List(c.ctx, network.Query{Where: []network.Condition{{Field: "project", Values: []string{c.actor.ProjectID.String()}}}})
	return listed.Items, err
}

func (s *Server) describeSecurityGroups(c *call) (any, error) {
	filters, err := c.filters(known("group-id", "group-name", "description", "owner-id", "vpc-id"))
	if err != nil {
		return nil, err
	}
	all, err := s.groups(c)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	vpc := s.defaultVpc(c, tx)
	ids, names := c.list("GroupId"), c.list("GroupName")
	for _, id := range ids {
		if _, err := s.group(c, tx, id); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		if _, err := s.groupNamed(c, name); err != nil {
			return nil, err
		}
	}
	var items []securityGroup
	for _, g := range all {
		item := s.groupOf(tx, g, vpc)
		if len(ids) > 0 && !slices.Contains(ids, item.ID) || len(names) > 0 && !slices.Contains(names, item.Name) ||
			!keeps(filters, facts{"group-id": {item.ID}, "group-name": {item.Name}, "description": {item.Description},
				"owner-id": {item.OwnerID}, "vpc-id": {item.VpcID}}, textTags(g.Tags)) {
			continue
		}
		items = append(items, item)
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Items     []securityGroup `xml:"securityGroupInfo>item"`
		NextToken string          `xml:"nextToken,omitempty"`
	}{items, next}, err
}

func (s *Server) createSecurityGroup(c *call) (any, error) {
	name, description := c.form.Get("GroupName"), c.form.Get("GroupDescription")
	if name == "" || description == "" {
		return nil, refuse("MissingParameter", "The request must contain the parameters GroupName and GroupDescription")
	}
	if len(name) > 255 || len(description) > 255 || strings.HasPrefix(name, "sg-") {
		return nil, refuse("InvalidParameterValue", "Invalid value for GroupName or GroupDescription.")
	}
	if id := c.form.Get("VpcId"); id != "" {
		tx, err := s.State.View(c.ctx)
		if err != nil {
			return nil, err
		}
		if _, err := s.vpc(c, tx, id); err != nil {
			return nil, err
		}
	}
	all, err := s.groups(c)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(all, func(g *network.Group) bool { return g.Name == name }) {
		return nil, refuse("InvalidGroup.Duplicate", "The security group '%s' already exists", printable(name))
	}
	made, err := s.Networks.Groups.Create(c.ctx, &network.Group{Meta: resource.Meta{Name: name, ProjectID: c.actor.ProjectID},
		Description: description, Stateful: true, Tags: tagTexts(c.specifications("security-group"))})
	if err != nil {
		return nil, err
	}
	return struct {
		Value bool   `xml:"return"`
		ID    string `xml:"groupId"`
	}{true, idOf("sg", made[0].ID)}, nil
}

func (s *Server) deleteSecurityGroup(c *call) (any, error) {
	g, err := s.namedGroup(c)
	if err != nil {
		return nil, err
	}
	err = s.Networks.Groups.Delete(c.ctx, g.ID, 0)
	if g.Default && err != nil {
		return nil, refuse("CannotDelete", "the specified group: \"%s\" name: \"default\" cannot be deleted by a user", idOf("sg", g.ID))
	}
	if fault.Is(err, fault.Conflict) {
		return nil, refuse("DependencyViolation", "resource %s has a dependent object", idOf("sg", g.ID))
	}
	return done{Value: true}, err
}

// namedGroup is the group that GroupId or GroupName names.
func (s *Server) namedGroup(c *call) (*network.Group, error) {
	switch id, name := c.form.Get("GroupId"), c.form.Get("GroupName"); {
	case id != "":
		return s.group(c, nil, id)
	case name != "":
		return s.groupNamed(c, name)
	}
	return nil, refuse("MissingParameter", "The request must contain the parameter groupName or groupId")
}

// rules reads IpPermissions, or the older flat parameters, as rules of ours.
func (s *Server) rules(c *call, g *network.Group, ingress bool) ([]*network.Rule, error) {
	var all []*network.Rule
	add := func(at string, sources func() ([]network.Rule, error)) error {
		base, err := c.baseRule(at)
		if err != nil {
			return err
		}
		from, err := sources()
		if err != nil {
			return err
		}
		if len(from) == 0 {
			return refuse("MissingParameter", "The permission names nobody that it is about.")
		}
		for _, one := range from {
			r := base
			r.ProjectID, r.GroupID, r.Ingress = g.ProjectID, g.ID, ingress
			r.RemotePrefix, r.RemoteGroup, r.V6, r.Description = one.RemotePrefix, one.RemoteGroup, one.V6, one.Description
			if r.Protocol == 58 {
				r.V6 = true
			}
			all = append(all, &r)
		}
		return nil
	}
	for n := 1; c.form.Has(fmt.Sprintf("IpPermissions.%d.IpProtocol", n)); n++ {
		at := fmt.Sprintf("IpPermissions.%d.", n)
		if err := add(at, func() ([]network.Rule, error) { return s.sources(c, at) }); err != nil {
			return nil, err
		}
	}
	if c.form.Has("IpProtocol") {
		if err := add("", func() ([]network.Rule, error) { return flatSources(c) }); err != nil {
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter IpPermissions")
	}
	return all, nil
}

// baseRule reads the protocol and the ports of one permission.
func (c *call) baseRule(at string) (r network.Rule, err error) {
	text := strings.ToLower(c.form.Get(at + "IpProtocol"))
	number, ok := protocols[text]
	if !ok {
		if number, err = strconv.Atoi(text); err != nil || number < 0 || number > 255 {
			return r, refuse("InvalidPermission.Malformed", "Invalid value '%s' for IP protocol. Unknown protocol.", printable(text))
		}
	}
	r.Protocol = number
	if number == network.AnyProtocol {
		return r, nil
	}
	r.ProtocolLabel = text
	from, err := c.int(at+"FromPort", -1)
	if err != nil {
		return r, err
	}
	to, err := c.int(at+"ToPort", -1)
	if err != nil {
		return r, err
	}
	switch number {
	case 1, 58:
		r.HasMin, r.PortMin = from >= 0, max(from, 0)
		r.HasMax, r.PortMax = from >= 0 && to >= 0, max(to, 0)
	case 6, 17:
		if from < 0 || to < from || to > 65535 {
			return r, refuse("InvalidParameterValue", "Invalid range of ports: %d to %d.", from, to)
		}
		if from == 0 && to == 65535 {
			return r, nil
		}
		r.HasMin, r.PortMin, r.HasMax, r.PortMax = true, max(from, 1), true, to
	}
	return r, nil
}

func flatSources(c *call) ([]network.Rule, error) {
	p, err := parsePrefix(c.form.Get("CidrIp"))
	return []network.Rule{{RemotePrefix: p, V6: p.Addr().Is6()}}, err
}

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, refuse("InvalidParameterValue", "CIDR block %s is malformed", printable(text))
	}
	return p.Masked(), nil
}

// sources reads whom one permission is about.
func (s *Server) sources(c *call, at string) ([]network.Rule, error) {
	var all []network.Rule
	for n := 1; c.form.Has(fmt.Sprintf("%sIpRanges.%d.CidrIp", at, n)); n++ {
		one := fmt.Sprintf("%sIpRanges.%d.", at, n)
		p, err := parsePrefix(c.form.Get(one + "CidrIp"))
		if err != nil {
			return nil, err
		}
		all = append(all, network.Rule{RemotePrefix: p, Description: c.form.Get(one + "Description")})
	}
	for n := 1; c.form.Has(fmt.Sprintf("%sIpv6Ranges.%d.CidrIpv6", at, n)); n++ {
		one := fmt.Sprintf("%sIpv6Ranges.%d.", at, n)
		p, err := parsePrefix(c.form.Get(one + "CidrIpv6"))
		if err != nil {
			return nil, err
		}
		all = append(all, network.Rule{RemotePrefix: p, V6: true, Description: c.form.Get(one + "Description")})
	}
	for _, key := range []string{"UserIdGroupPairs", "Groups"} {
		for n := 1; ; n++ {
			one := fmt.Sprintf("%s%s.%d.", at, key, n)
			var g *network.Group
			var err error
			if id := c.form.Get(one + "GroupId"); id != "" {
				g, err = s.group(c, nil, id)
			} else if name := c.form.Get(one + "GroupName"); name != "" {
				g, err = s.groupNamed(c, name)
			} else {
				break
			}
			if err != nil {
				return nil, err
			}
			all = append(all, network.Rule{RemoteGroup: g.ID})
		}
	}
	return all, nil
}

// authorize adds rules to a group, all or none.
func authorize(ingress bool) action {
	return func(s *Server, c *call) (any, error) {
		g, err := s.namedGroup(c)
		if err != nil {
			return nil, err
		}
		rules, err := s.rules(c, g, ingress)
		if err != nil {
			return nil, err
		}
		if _, err := s.Networks.Rules.Create(c.ctx, rules...); err != nil {
			if fault.Is(err, fault.Exists) || fault.Is(err, fault.Conflict) {
				return nil, refuse("InvalidPermission.Duplicate", "the specified rule already exists")
			}
			return nil, err
		}
		return done{Value: true}, nil
	}
}

// revoke takes rules out of a group. A rule that is not there is an error, and nothing is done.
func revoke(ingress bool) action {
	return func(s *Server, c *call) (any, error) {
		g, err := s.namedGroup(c)
		if err != nil {
			return nil, err
		}
		rules, err := s.rules(c, g, ingress)
		if err != nil {
			return nil, err
		}
		tx, err := s.State.View(c.ctx)
		if err != nil {
			return nil, err
		}
		var ids []resource.ID
		for _, want := range rules {
			found := false
			for r := range network.Rules().Peek(tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
				if sameRule(r, want) {
					ids, found = append(ids, r.ID), true
				}
			}
			if !found {
				return nil, refuse("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
			}
		}
		for _, id := range ids {
			if err := s.Networks.Rules.Delete(c.ctx, id, 0); err != nil && !fault.Is(err, fault.NotFound) {
				return nil, err
			}
		}
		return done{Value: true}, nil
	}
}

// sameRule compares what a permission says; no prefix means everybody.
func sameRule(a, b *network.Rule) bool {
	everybody := func(r *network.Rule) netip.Prefix {
		if r.RemoteGroup.IsZero() && r.RemotePrefix.Bits() <= 0 {
			return netip.Prefix{}
		}
		return r.RemotePrefix
	}
	return a.Ingress == b.Ingress && a.Protocol == b.Protocol && a.HasMin == b.HasMin && a.HasMax == b.HasMax &&
		a.PortMin == b.PortMin && a.PortMax == b.PortMax && a.RemoteGroup == b.RemoteGroup && everybody(a) == everybody(b) &&
		(a.V6 == b.V6 || !a.RemoteGroup.IsZero())
}

func itoa(n int) string { return strconv.Itoa(n) }
