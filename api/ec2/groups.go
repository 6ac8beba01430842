package ec2

import (
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/network"
)

type securityGroup struct {
	OwnerID     string          `xml:"ownerId"`
	ID          string          `xml:"groupId"`
	Name        string          `xml:"groupName"`
	Description string          `xml:"groupDescription"`
	VpcID       string          `xml:"vpcId,omitempty"`
	Ingress     set[permission] `xml:"ipPermissions"`
	Egress      set[permission] `xml:"ipPermissionsEgress"`
	Tags        *tagSet         `xml:"tagSet"`
}

// groupOf shows a group with its rules.
func (s *Server) groupOf(tx *state.Tx, g *network.Group, vpc string) securityGroup {
	item := securityGroup{OwnerID: g.ProjectID.Hex(), ID: idOf("sg", g.ID), Name: g.Name, Description: g.Description, VpcID: vpc,
		Tags: tagsOf(textTags(g.Tags))}
	item.Ingress.Items, item.Egress.Items = permissionsOf(tx, g, true), permissionsOf(tx, g, false)
	return item
}

// facts: a group is in every VPC of the account, and is said to be in the default one.
func (g *securityGroup) facts() facts {
	f := facts{"group-id": {g.ID}, "group-name": {g.Name}, "description": {g.Description}, "owner-id": {g.OwnerID}, "vpc-id": {g.VpcID}}
	for prefix, all := range map[string][]permission{"": g.Ingress.Items, "egress.": g.Egress.Items} {
		prefix += "ip-permission."
		for _, p := range all {
			f.add(prefix, "protocol", p.Protocol)
			if p.From != nil && p.To != nil {
				f.add(prefix, "from-port", strconv.Itoa(*p.From), "to-port", strconv.Itoa(*p.To))
			}
			for _, to := range p.V4.Items {
				f.add(prefix, "cidr", to.CIDR)
			}
			for _, to := range p.V6.Items {
				f.add(prefix, "ipv6-cidr", to.CIDR)
			}
			for _, to := range p.Groups.Items {
				f.add(prefix, "group-id", to.ID, "user-id", to.UserID)
			}
		}
	}
	return f
}

var groupFilters = known("description group-id group-name owner-id vpc-id" +
	" ip-permission.cidr ip-permission.from-port ip-permission.group-id ip-permission.ipv6-cidr ip-permission.protocol" +
	" ip-permission.to-port ip-permission.user-id egress.ip-permission.cidr egress.ip-permission.from-port egress.ip-permission.group-id" +
	" egress.ip-permission.ipv6-cidr egress.ip-permission.protocol egress.ip-permission.to-port egress.ip-permission.user-id")

// group finds a security group of the account, or one that is shared with it, by EC2's ID.
func (s *Server) group(c *call, tx *state.Tx, id string) (*network.Group, error) {
	tail, ok := ownID("sg", id)
	if !ok {
		return nil, refuse("InvalidGroupId.Malformed", "Invalid id: \"%s\" (expecting \"sg-...\")", printable(id))
	}
	missing := refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
	g, ok := network.Groups().Lookup(tx, "tail", state.KeyOf(tail))
	if !ok || g.ProjectID != c.actor.ProjectID && !s.Networks.Groups.Shown(tx, c.actor, g) {
		return nil, missing
	}
	g, err := s.Networks.Groups.Get(c.ctx, g.ID)
	if fault.Is(err, fault.NotFound) {
		err = missing
	}
	return g, err
}

// groupNamed finds a security group of the account by its name, which in other dialects several may have.
func (s *Server) groupNamed(c *call, _ *state.Tx, name string) (*network.Group, error) {
	all, err := s.groups(c, network.Condition{Field: "name", Values: []string{name}})
	switch {
	case err != nil:
		return nil, err
	case len(all) == 0:
		return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", printable(name))
	case len(all) > 1:
		return nil, refuse("InvalidParameterValue", "Several security groups have the name '%s': use the ID", printable(name))
	}
	return all[0], nil
}

// groups lists those of the account; the default one is made if it is not there yet.
func (s *Server) groups(c *call, where ...network.Condition) ([]*network.Group, error) {
	if !c.past {
		if err := s.Networks.EnsureDefaultGroup(c.ctx); err != nil {
			return nil, err
		}
	}
	own := network.Condition{Field: "project", Values: []string{c.actor.ProjectID.String()}}
	listed, err := s.Networks.Groups.List(c.ctx, network.Query{Where: append(where, own)})
	return listed.Items, err
}

// namedGroup is the group that GroupId or GroupName names.
func (s *Server) namedGroup(c *call, tx *state.Tx) (*network.Group, error) {
	switch id, name := c.in.text("GroupId"), c.in.text("GroupName"); {
	case id != "" && name != "":
		return nil, refuse("InvalidParameterCombination", "The parameters GroupId and GroupName cannot be used together")
	case id != "":
		return s.group(c, tx, id)
	case name != "":
		return s.groupNamed(c, tx, name)
	}
	return nil, refuse("MissingParameter", "The request must contain the parameter GroupName or GroupId")
}

func (s *Server) describeSecurityGroups(c *call) (any, error) {
	filters, err := c.filters(groupFilters)
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
	ids, names := c.in.texts("GroupId"), c.in.texts("GroupName")
	for _, id := range ids {
		g, err := s.group(c, tx, id)
		if err != nil {
			return nil, err
		}
		if g.ProjectID != c.actor.ProjectID { // one that is shared with the account is shown when it is named
			all = append(all, g)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(g *network.Group) bool { return g.Name == name }) {
			return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", printable(name))
		}
	}
	vpc := vpcID(s.defaultVpc(c, tx))
	var items []securityGroup
	for _, g := range all {
		item := s.groupOf(tx, g, vpc)
		if wanted(ids, item.ID) && wanted(names, item.Name) && keeps(filters, item.facts(), textTags(g.Tags)) {
			items = append(items, item)
		}
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Groups    set[securityGroup] `xml:"securityGroupInfo"`
		NextToken string             `xml:"nextToken,omitempty"`
	}{set[securityGroup]{items}, next}, err
}

type createdGroup struct {
	Value bool    `xml:"return"`
	ID    string  `xml:"groupId"`
	Tags  *tagSet `xml:"tagSet"`
}

func (s *Server) createSecurityGroup(c *call) (any, error) {
	name, err := c.in.must("GroupName")
	if err != nil {
		return nil, err
	}
	description, err := c.in.must("GroupDescription")
	if err != nil {
		return nil, err
	}
	if len(name) > 255 || len(description) > 255 || strings.HasPrefix(name, "sg-") {
		return nil, refuse("InvalidParameterValue", "Names and descriptions of groups have at most 255 characters, and names do not begin with sg-.")
	}
	tags, err := c.specifications("security-group")
	if err != nil {
		return nil, err
	}
	return together(s, c, func(c *call, tx *state.Tx) (createdGroup, error) {
		if id := c.in.text("VpcId"); id != "" {
			if _, err := s.vpc(c, tx, id); err != nil {
				return createdGroup{}, err
			}
		}
		same, err := s.groups(c, network.Condition{Field: "name", Values: []string{name}})
		if err != nil {
			return createdGroup{}, err
		}
		if len(same) > 0 {
			return createdGroup{}, refuse("InvalidGroup.Duplicate", "The security group '%s' already exists", printable(name))
		}
		made, err := s.Networks.Groups.Create(c.ctx, &network.Group{Meta: resource.Meta{Name: name, ProjectID: c.actor.ProjectID},
			Description: description, Stateful: true, Tags: tagTexts(tags)})
		if err != nil {
			return createdGroup{}, err
		}
		return createdGroup{true, idOf("sg", made[0].ID), tagsOf(tags)}, nil
	})
}

func (s *Server) deleteSecurityGroup(c *call) (any, error) {
	return together(s, c, func(c *call, tx *state.Tx) (done, error) {
		g, err := s.namedGroup(c, tx)
		if err != nil {
			return done{}, err
		}
		return done{Value: true}, s.Networks.Groups.Delete(c.ctx, g.ID, 0)
	})
}
