package ec2

import (
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
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

// idOfThing is the ID of any object.
func idOfThing[T any](thing *T) resource.ID { return any(thing).(resource.Object).GetMeta().ID }

// isVpc reports whether a network is one of the account's VPCs: its own, or shared with it; and no external one.
func (s *Server) isVpc(c *call, tx *state.Tx, n *network.Network) bool {
	return !n.External && (n.ProjectID == c.actor.ProjectID || s.Networks.Networks.Shown(tx, c.actor, n))
}

// networks lists the account's VPCs.
func (s *Server) networks(c *call) ([]*network.Network, error) {
	listed, err := s.Networks.Networks.List(c.ctx, network.Query{Where: []network.Condition{{Field: "external", Values: []string{"false"}}}})
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	return slices.DeleteFunc(listed.Items, func(n *network.Network) bool { return !s.isVpc(c, tx, n) }), err
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

// defaultVpc is the network of whoever names none: the project's only one, or its oldest; nil if there is none.
func (s *Server) defaultVpc(c *call, tx *state.Tx) *network.Network {
	for _, n := range network.DefaultNetworks(tx, c.actor.ProjectID) {
		return n
	}
	return nil
}

func vpcID(n *network.Network) string {
	if n == nil {
		return ""
	}
	return idOf("vpc", n.ID)
}

// vpc finds a network by EC2's ID.
func (s *Server) vpc(c *call, tx *state.Tx, id string) (*network.Network, error) {
	tail, ok := ownID("vpc", id)
	if !ok {
		return nil, refuse("InvalidVpcID.Malformed", "Invalid id: \"%s\" (expecting \"vpc-...\")", printable(id))
	}
	missing := refuse("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", id)
	n, ok := network.Networks().Lookup(tx, "tail", state.KeyOf(tail))
	if !ok || !s.isVpc(c, tx, n) {
		return nil, missing
	}
	n, err := s.Networks.Networks.Get(c.ctx, n.ID)
	if fault.Is(err, fault.NotFound) {
		err = missing
	}
	return n, err
}

// subnet finds a subnet by EC2's ID.
func (s *Server) subnet(c *call, tx *state.Tx, id string) (*network.Subnet, error) {
	tail, ok := ownID("subnet", id)
	if !ok {
		return nil, refuse("InvalidSubnetID.Malformed", "Invalid id: \"%s\" (expecting \"subnet-...\")", printable(id))
	}
	missing := refuse("InvalidSubnetID.NotFound", "The subnet ID '%s' does not exist", id)
	sub, ok := network.Subnets().Lookup(tx, "tail", state.KeyOf(tail))
	if !ok || !sub.CIDR.Addr().Is4() {
		return nil, missing
	}
	if n, ok := network.Networks().PeekOne(tx, sub.NetworkID); !ok || !s.isVpc(c, tx, n) {
		return nil, missing
	}
	sub, err := s.Networks.Subnets.Get(c.ctx, sub.ID)
	if fault.Is(err, fault.NotFound) {
		err = missing
	}
	return sub, err
}

var vpcFilters = known("cidr cidr-block cidr-block-association.cidr-block cidrBlock dhcp-options-id is-default isDefault owner-id state vpc-id")

func (s *Server) describeVpcs(c *call) (any, error) {
	filters, err := c.filters(vpcFilters)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	ids, preferred := c.in.texts("VpcId"), vpcID(s.defaultVpc(c, tx))
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
		tags := named(n.Name, n.Tags)
		item := vpcItem{ID: idOf("vpc", n.ID), OwnerID: n.ProjectID.Hex(), State: "available", DHCP: "default", Tenancy: "default", Tags: tagsOf(tags)}
		item.IsDefault = item.ID == preferred
		var cidrs []string
		for _, sub := range subnetsOf(tx, n) {
			cidrs = append(cidrs, sub.CIDR.String())
		}
		if len(cidrs) > 0 {
			item.CIDR = cidrs[0]
		}
		have := facts{"vpc-id": {item.ID}, "state": {item.State}, "owner-id": {item.OwnerID}, "dhcp-options-id": {item.DHCP},
			"cidr": {item.CIDR}, "cidr-block": {item.CIDR}, "cidrBlock": {item.CIDR}, "cidr-block-association.cidr-block": cidrs,
			"is-default": truth(item.IsDefault), "isDefault": truth(item.IsDefault)}
		if wanted(ids, item.ID) && keeps(filters, have, tags) {
			items = append(items, item)
		}
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Vpcs      set[vpcItem] `xml:"vpcSet"`
		NextToken string       `xml:"nextToken,omitempty"`
	}{set[vpcItem]{items}, next}, err
}

var subnetFilters = known("availability-zone availabilityZone available-ip-address-count cidr cidr-block cidrBlock default-for-az defaultForAz" +
	" map-public-ip-on-launch owner-id state subnet-id vpc-id")

func (i *subnetItem) facts() facts {
	return facts{"subnet-id": {i.ID}, "vpc-id": {i.VpcID}, "cidr": {i.CIDR}, "cidrBlock": {i.CIDR}, "cidr-block": {i.CIDR},
		"state": {i.State}, "owner-id": {i.OwnerID}, "availability-zone": {i.Zone}, "availabilityZone": {i.Zone},
		"default-for-az": truth(i.Default), "defaultForAz": truth(i.Default), "available-ip-address-count": number(i.Available),
		"map-public-ip-on-launch": truth(i.PublicIP)}
}

// free is how many addresses of a subnet are left: all but the network's own, the gateway, the broadcast and those in use.
func free(tx *state.Tx, sub *network.Subnet) int {
	return max(0, 1<<(32-sub.CIDR.Bits())-3-len(network.Ports().IDs(tx, "subnet", state.KeyOf(sub.ID))))
}

// describeSubnets: networks reach into every zone, so that a subnet is said to be in the first one.
func (s *Server) describeSubnets(c *call) (any, error) {
	filters, err := c.filters(subnetFilters)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	ids := c.in.texts("SubnetId")
	for _, id := range ids {
		if _, err := s.subnet(c, tx, id); err != nil {
			return nil, err
		}
	}
	all, err := s.networks(c)
	if err != nil {
		return nil, err
	}
	zones, err := s.Compute.ListZones(c.ctx, false)
	if err != nil {
		return nil, err
	}
	zone := ""
	if len(zones) > 0 {
		zone = zones[0].Name
	}
	preferred := vpcID(s.defaultVpc(c, tx))
	var items []subnetItem
	for _, n := range all {
		for i, sub := range subnetsOf(tx, n) {
			tags := named(sub.Name, sub.Tags)
			item := subnetItem{ID: idOf("subnet", sub.ID), OwnerID: sub.ProjectID.Hex(), State: "available", VpcID: idOf("vpc", n.ID),
				CIDR: sub.CIDR.String(), Zone: zone, Default: i == 0 && idOf("vpc", n.ID) == preferred, Tags: tagsOf(tags), Available: free(tx, sub)}
			if wanted(ids, item.ID) && keeps(filters, item.facts(), tags) {
				items = append(items, item)
			}
		}
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Subnets   set[subnetItem] `xml:"subnetSet"`
		NextToken string          `xml:"nextToken,omitempty"`
	}{set[subnetItem]{items}, next}, err
}

type regionItem struct {
	Name     string `xml:"regionName"`
	Endpoint string `xml:"regionEndpoint"`
	OptIn    string `xml:"optInStatus"`
}

func (s *Server) describeRegions(c *call) (any, error) {
	filters, err := c.filters(known("region-name endpoint opt-in-status"))
	if err != nil {
		return nil, err
	}
	if _, err := c.in.bool("AllRegions"); err != nil {
		return nil, err
	}
	for _, name := range c.in.texts("RegionName") {
		if name != s.Region {
			return nil, refuse("InvalidParameterValue", "Invalid region provided: [%s]", printable(name))
		}
	}
	var answer struct {
		Regions set[regionItem] `xml:"regionInfo"`
	}
	item := regionItem{s.Region, c.base + "/ec2", "opt-in-not-required"}
	if keeps(filters, facts{"region-name": {item.Name}, "endpoint": {item.Endpoint}, "opt-in-status": {item.OptIn}}, nil) {
		answer.Regions.Items = append(answer.Regions.Items, item)
	}
	return answer, nil
}

type zoneItem struct {
	Name     string        `xml:"zoneName"`
	ID       string        `xml:"zoneId"`
	State    string        `xml:"zoneState"`
	Region   string        `xml:"regionName"`
	OptIn    string        `xml:"optInStatus"`
	Type     string        `xml:"zoneType"`
	Messages set[struct{}] `xml:"messageSet"`
}

func (s *Server) describeZones(c *call) (any, error) {
	filters, err := c.filters(known("zone-name zone-id zone-type state region-name opt-in-status"))
	if err != nil {
		return nil, err
	}
	if _, err := c.in.bool("AllAvailabilityZones"); err != nil {
		return nil, err
	}
	zones, err := s.Compute.ListZones(c.ctx, false)
	if err != nil {
		return nil, err
	}
	names := append(c.in.texts("ZoneName"), c.in.texts("ZoneId")...)
	for _, name := range names {
		if !slices.ContainsFunc(zones, func(z compute.ZoneView) bool { return z.Name == name }) {
			return nil, refuse("InvalidParameterValue", "Invalid availability zone: [%s]", printable(name))
		}
	}
	var answer struct {
		Zones set[zoneItem] `xml:"availabilityZoneInfo"`
	}
	for _, z := range zones {
		item := zoneItem{Name: z.Name, ID: z.Name, State: "unavailable", Region: s.Region, OptIn: "opt-in-not-required", Type: "availability-zone"}
		if z.Up {
			item.State = "available"
		}
		have := facts{"zone-name": {item.Name}, "state": {item.State}, "region-name": {item.Region}, "zone-id": {item.ID},
			"zone-type": {item.Type}, "opt-in-status": {item.OptIn}}
		if wanted(names, z.Name) && keeps(filters, have, nil) {
			answer.Zones.Items = append(answer.Zones.Items, item)
		}
	}
	return answer, nil
}

type attributeValue struct {
	Value string `xml:"attributeValue"`
}

type attribute struct {
	Name   string              `xml:"attributeName"`
	Values set[attributeValue] `xml:"attributeValueSet"`
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
	preferred := vpcID(s.defaultVpc(c, tx))
	if preferred == "" {
		preferred = "none"
	}
	names := c.in.texts("AttributeName")
	var answer struct {
		Attributes set[attribute] `xml:"accountAttributeSet"`
	}
	for _, a := range [][2]string{{"supported-platforms", "VPC"}, {"default-vpc", preferred},
		{"max-instances", number(usages[compute.QuotaServers].Limit)[0]}} {
		if wanted(names, a[0]) {
			answer.Attributes.Items = append(answer.Attributes.Items, attribute{a[0], set[attributeValue]{[]attributeValue{{a[1]}}}})
		}
	}
	return answer, nil
}
