package ec2

import (
	"slices"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/network"
)

type vpcItem struct {
	ID        string  `xml:"vpcId"`
	OwnerID   string  `xml:"ownerId"`
	State     string  `xml:"state"`
	CIDR      string  `xml:"cidrBlock"`
	DHCP      string  `xml:"dhcpOptionsId"`
	Tenancy   string  `xml:"instanceTenancy"`
	IsDefault bool    `xml:"isDefault"`
	Tags      *tagSet `xml:"tagSet"`
}

type subnetItem struct {
	ID        string  `xml:"subnetId"`
	OwnerID   string  `xml:"ownerId"`
	State     string  `xml:"state"`
	VpcID     string  `xml:"vpcId"`
	CIDR      string  `xml:"cidrBlock"`
	Available int     `xml:"availableIpAddressCount"`
	Zone      string  `xml:"availabilityZone"`
	Default   bool    `xml:"defaultForAz"`
	PublicIP  bool    `xml:"mapPublicIpOnLaunch"`
	Tags      *tagSet `xml:"tagSet"`
}

// networks lists what instances may be plugged into: not the external networks.
func (s *Server) networks(c *call) ([]*network.Network, error) {
	listed, err := s.Networks.Networks.List(c.ctx, network.Query{Where: []network.Condition{{Field: "external", Values: []string{"false"}}}})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(listed.Items, func(n *network.Network) bool {
		return n.ProjectID != c.actor.ProjectID && !n.Shared
	}), nil
}

// subnetsOf are a network's subnets of IPv4, the oldest first.
func subnetsOf(tx *state.Tx, n *network.Network) []*network.Subnet {
	var all []*network.Subnet
	for sub := range network.Subnets().Each(tx, "network", state.KeyOf(n.ID)) {
		if sub.CIDR.Addr().Is4() {
			all = append(all, sub)
		}
	}
	return all
}

// defaultVpc is the network of whoever names none: the project's only one, or its oldest.
func (s *Server) defaultVpc(c *call, tx *state.Tx) string {
	for _, n := range network.DefaultNetworks(tx, c.actor.ProjectID) {
		return idOf("vpc", n.ID)
	}
	return ""
}

func (s *Server) vpc(c *call, _ *state.Tx, id string) (*network.Network, error) {
	tail, ok := ownID("vpc", id)
	if !ok {
		return nil, refuse("InvalidVpcID.Malformed", "Invalid id: \"%s\" (expecting \"vpc-...\")", printable(id))
	}
	all, err := s.networks(c)
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if n.ID.Tail() == tail {
			return n, nil
		}
	}
	return nil, refuse("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", id)
}

func (s *Server) subnet(c *call, tx *state.Tx, id string) (*network.Subnet, error) {
	tail, ok := ownID("subnet", id)
	if !ok {
		return nil, refuse("InvalidSubnetID.Malformed", "Invalid id: \"%s\" (expecting \"subnet-...\")", printable(id))
	}
	all, err := s.networks(c)
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		for _, sub := range subnetsOf(tx, n) {
			if sub.ID.Tail() == tail {
				return sub, nil
			}
		}
	}
	return nil, refuse("InvalidSubnetID.NotFound", "The subnet ID '%s' does not exist", id)
}

func (s *Server) describeVpcs(c *call) (any, error) {
	filters, err := c.filters(known("vpc-id", "cidr", "cidr-block", "isDefault", "is-default", "state", "owner-id"))
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	ids, preferred := c.list("VpcId"), s.defaultVpc(c, tx)
	for _, id := range ids {
		if _, err := s.vpc(c, tx, id); err != nil {
			return nil, err
		}
	}
	all, err := s.networks(c)
	if err != nil {
		return nil, err
	}
	var items []vpcItem
	for _, n := range all {
		item := vpcItem{ID: idOf("vpc", n.ID), OwnerID: n.ProjectID.Hex(), State: "available", DHCP: "default", Tenancy: "default",
			Tags: tagsOf(named(n.Name, n.Tags))}
		item.IsDefault = item.ID == preferred
		if subs := subnetsOf(tx, n); len(subs) > 0 {
			item.CIDR = subs[0].CIDR.String()
		}
		def := "false"
		if item.IsDefault {
			def = "true"
		}
		if (len(ids) == 0 || slices.Contains(ids, item.ID)) && keeps(filters, facts{"vpc-id": {item.ID}, "cidr": {item.CIDR},
			"cidr-block": {item.CIDR}, "isDefault": {def}, "is-default": {def}, "state": {item.State}, "owner-id": {item.OwnerID}}, named(n.Name, n.Tags)) {
			items = append(items, item)
		}
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Items     []vpcItem `xml:"vpcSet>item"`
		NextToken string    `xml:"nextToken,omitempty"`
	}{items, next}, err
}

func (s *Server) describeSubnets(c *call) (any, error) {
	filters, err := c.filters(known("subnet-id", "vpc-id", "cidr", "cidrBlock", "cidr-block", "state", "owner-id", "availability-zone", "availabilityZone", "default-for-az", "defaultForAz"))
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	ids := c.list("SubnetId")
	for _, id := range ids {
		if _, err := s.subnet(c, tx, id); err != nil {
			return nil, err
		}
	}
	all, err := s.networks(c)
	if err != nil {
		return nil, err
	}
	zone := ""
	if zones, err := s.Compute.ListZones(c.ctx, false); err == nil && len(zones) > 0 {
		zone = zones[0].Name
	}
	preferred := s.defaultVpc(c, tx)
	var items []subnetItem
	for _, n := range all {
		for i, sub := range subnetsOf(tx, n) {
			item := subnetItem{ID: idOf("subnet", sub.ID), OwnerID: sub.ProjectID.Hex(), State: "available", VpcID: idOf("vpc", n.ID),
				CIDR: sub.CIDR.String(), Zone: zone, Default: i == 0 && idOf("vpc", n.ID) == preferred, Tags: tagsOf(named(sub.Name, sub.Tags)),
				Available: max(0, 1<<(32-sub.CIDR.Bits())-3-len(network.Ports().IDs(tx, "subnet", state.KeyOf(sub.ID))))}
			def := "false"
			if item.Default {
				def = "true"
			}
			if (len(ids) == 0 || slices.Contains(ids, item.ID)) && keeps(filters, facts{"subnet-id": {item.ID}, "vpc-id": {item.VpcID},
				"cidr": {item.CIDR}, "cidrBlock": {item.CIDR}, "cidr-block": {item.CIDR}, "state": {item.State}, "owner-id": {item.OwnerID},
				"availability-zone": {item.Zone}, "availabilityZone": {item.Zone}, "default-for-az": {def}, "defaultForAz": {def}}, named(sub.Name, sub.Tags)) {
				items = append(items, item)
			}
		}
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Items     []subnetItem `xml:"subnetSet>item"`
		NextToken string       `xml:"nextToken,omitempty"`
	}{items, next}, err
}

// named are tags with the thing's name, where EC2's clients look for it.
func named(name string, texts []string) map[string]string {
	tags := textTags(texts)
	if _, own := tags["Name"]; !own && name != "" {
		tags["Name"] = name
	}
	return tags
}

type regionItem struct {
	Name     string `xml:"regionName"`
	Endpoint string `xml:"regionEndpoint"`
	OptIn    string `xml:"optInStatus"`
}

func (s *Server) describeRegions(c *call) (any, error) {
	filters, err := c.filters(known("region-name", "endpoint", "opt-in-status"))
	if err != nil {
		return nil, err
	}
	item := regionItem{s.Region, c.base + "/ec2", "opt-in-not-required"}
	var items []regionItem
	for _, name := range c.list("RegionName") {
		if name != s.Region {
			return nil, refuse("InvalidParameterValue", "Invalid region '%s'", printable(name))
		}
	}
	if keeps(filters, facts{"region-name": {item.Name}, "endpoint": {item.Endpoint}, "opt-in-status": {item.OptIn}}, nil) {
		items = append(items, item)
	}
	return struct {
		Items []regionItem `xml:"regionInfo>item"`
	}{items}, nil
}

type zoneItem struct {
	Name   string `xml:"zoneName"`
	ID     string `xml:"zoneId"`
	State  string `xml:"zoneState"`
	Region string `xml:"regionName"`
	OptIn  string `xml:"optInStatus"`
	Type   string `xml:"zoneType"`
}

func (s *Server) describeZones(c *call) (any, error) {
	filters, err := c.filters(known("zone-name", "state", "region-name", "zone-id", "zone-type"))
	if err != nil {
		return nil, err
	}
	zones, err := s.Compute.ListZones(c.ctx, false)
	if err != nil {
		return nil, err
	}
	want := c.list("ZoneName")
	var items []zoneItem
	for _, z := range zones {
		item := zoneItem{z.Name, z.Name, "unavailable", s.Region, "opt-in-not-required", "availability-zone"}
		if z.Up {
			item.State = "available"
		}
		if (len(want) == 0 || slices.Contains(want, z.Name)) && keeps(filters, facts{"zone-name": {item.Name}, "state": {item.State},
			"region-name": {item.Region}, "zone-id": {item.ID}, "zone-type": {item.Type}}, nil) {
			items = append(items, item)
		}
	}
	for _, name := range want {
		if !slices.ContainsFunc(items, func(z zoneItem) bool { return z.Name == name }) {
			return nil, refuse("InvalidParameterValue", "Invalid availability zone: [%s]", printable(name))
		}
	}
	return struct {
		Items []zoneItem `xml:"availabilityZoneInfo>item"`
	}{items}, nil
}

// describeAccountAttributes tells clients that there is no EC2-Classic, and the quota.
func (s *Server) describeAccountAttributes(c *call) (any, error) {
	usages, err := s.Compute.Usages(c.ctx, c.actor.ProjectID, c.actor.UserID)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	type value struct {
		Value string `xml:"attributeValue"`
	}
	type attribute struct {
		Name   string  `xml:"attributeName"`
		Values []value `xml:"attributeValueSet>item"`
	}
	preferred := s.defaultVpc(c, tx)
	if preferred == "" {
		preferred = "none"
	}
	all := []attribute{{"supported-platforms", []value{{"VPC"}}}, {"default-vpc", []value{{preferred}}},
		{"max-instances", []value{{itoa(usages[compute.QuotaServers].Limit)}}}}
	want := c.list("AttributeName")
	return struct {
		Items []attribute `xml:"accountAttributeSet>item"`
	}{slices.DeleteFunc(all, func(a attribute) bool { return len(want) > 0 && !slices.Contains(want, a.Name) })}, nil
}
