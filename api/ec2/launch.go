package ec2

import (
	"encoding/base64"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
)

// launching is RunInstances. What says in other words how instances are here anyway is let pass, what cannot be
// had is refused.
var launching = &action{
	run: (*Server).runInstances,
	takes: known("ClientToken ImageId InstanceType KeyName MaxCount MinCount Placement.AvailabilityZone PrivateIpAddress" +
		" SecurityGroup.N SecurityGroupId.N SubnetId UserData " + tagged +
		" NetworkInterface.N.DeviceIndex NetworkInterface.N.PrivateIpAddress NetworkInterface.N.SecurityGroupId.N NetworkInterface.N.SubnetId"),
	only: map[string]string{
		"DisableApiStop": "false", "DisableApiTermination": "false", "EbsOptimized": "false", "EnclaveOptions.Enabled": "false",
		"HibernationOptions.Configured": "false", "InstanceInitiatedShutdownBehavior": "stop", "MetadataOptions.HttpEndpoint": "enabled",
		"MetadataOptions.HttpTokens": "optional", "Monitoring.Enabled": "false", "NetworkInterface.N.AssociatePublicIpAddress": "false",
		"NetworkInterface.N.DeleteOnTermination": "true", "Placement.Tenancy": "default",
	},
	lacks: known("AdditionalInfo BlockDeviceMapping.* CapacityReservationSpecification.* CpuOptions.* CreditSpecification.*" +
		" ElasticGpuSpecification.* ElasticInferenceAccelerator.* EnablePrimaryIpv6 IamInstanceProfile.* InstanceMarketOptions.*" +
		" Ipv6Address.* Ipv6AddressCount KernelId LaunchTemplate.* LicenseSpecification.* MaintenanceOptions.* MetadataOptions.*" +
		" NetworkInterface.* Operator.* Placement.* PrivateDnsNameOptions.* RamdiskId"),
}

// What one request may bring along.
const (
	maxUserData = 16 << 10 // bytes, before they are encoded
	maxLaunch   = 1000
)

// runInstances asks for MinCount to MaxCount servers.
func (s *Server) runInstances(c *call) (any, error) {
	made, err := together(s, c, func(c *call, tx *state.Tx) (compute.Launched, error) {
		l, err := s.launch(c, tx)
		if err != nil {
			return compute.Launched{}, err
		}
		return s.Compute.Create(c.ctx, *l)
	})
	if err != nil {
		return nil, launchProblem(err)
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	answer := reservation{ID: reservationID(made.ReservationID), OwnerID: c.actor.ProjectID.Hex()}
	for _, id := range made.Servers {
		f, err := s.find(c, tx, idOf("i", id))
		if err != nil {
			continue // the request came before, and what it made is forgotten by now
		}
		answer.Items.Items = append(answer.Items.Items, f.show(tx).instance)
	}
	return answer, nil
}

// launchProblem words what is wrong with a launch as EC2 does.
func launchProblem(err error) error {
	p := fault.From(err)
	if p == nil {
		return err
	}
	switch p.Code {
	case "flavor-memory", "flavor-disk":
		return refuse("InvalidParameterCombination", "%s", p.Message)
	case "addresses-exhausted":
		return refuse("InsufficientFreeAddressesInSubnet", "%s", p.Message)
	}
	return err
}

// launch reads what is asked for.
func (s *Server) launch(c *call, tx *state.Tx) (*compute.Launch, error) {
	l := &compute.Launch{Name: unnamed, SameName: true, Zone: c.in.text("Placement.AvailabilityZone"), Strict: true,
		RequestKey: c.in.text("ClientToken")}
	for _, read := range []func(*call, *state.Tx, *compute.Launch) error{readCounts, s.readSource, s.readKey, readUserData,
		readTags, s.readZone, s.readNetwork} {
		if err := read(c, tx, l); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func readCounts(c *call, _ *state.Tx, l *compute.Launch) error {
	for _, count := range []struct {
		name string
		to   *int
	}{{"MinCount", &l.Min}, {"MaxCount", &l.Max}} {
		if _, err := c.in.must(count.name); err != nil {
			return err
		}
		var err error
		if *count.to, err = c.in.int(count.name, 0); err != nil {
			return err
		}
		if *count.to < 1 || *count.to > maxLaunch {
			return refuse("InvalidParameterValue", "Value (%d) for parameter %s is invalid. It must be from 1 to %d.", *count.to, count.name, maxLaunch)
		}
	}
	if l.Min > l.Max {
		return refuse("InvalidParameterValue", "MinCount must not be larger than MaxCount")
	}
	return nil
}

// readSource reads the image and the type. EC2's default is m1.small, where there is one.
func (s *Server) readSource(c *call, tx *state.Tx, l *compute.Launch) error {
	id, err := c.in.must("ImageId")
	if err != nil {
		return err
	}
	im, err := s.image(c, tx, id, "ami")
	if err != nil {
		return err
	}
	l.ImageID = im.ID
	name := c.in.text("InstanceType")
	if name == "" {
		name = "m1.small"
	}
	f, ok := compute.Flavors().Lookup(tx, "name", state.KeyOf(name))
	if !ok || f.Disabled || !f.ShownTo(c.actor) {
		return refuse("InvalidParameterValue", "Invalid value '%s' for InstanceType.", printable(name))
	}
	l.Flavor = f.Ref
	return nil
}

func (s *Server) readKey(c *call, _ *state.Tx, l *compute.Launch) error {
	l.KeyName = c.in.text("KeyName")
	if l.KeyName == "" {
		return nil
	}
	_, err := s.Compute.KeyPair(c.ctx, resource.ID{}, l.KeyName)
	return keyProblem(err, l.KeyName)
}

func readUserData(c *call, _ *state.Tx, l *compute.Launch) (err error) {
	if l.UserData, err = base64.StdEncoding.DecodeString(c.in.text("UserData")); err != nil {
		return refuse("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data")
	}
	if len(l.UserData) > maxUserData {
		return refuse("InvalidParameterValue", "User data is limited to %d bytes", maxUserData)
	}
	return nil
}

func readTags(c *call, _ *state.Tx, l *compute.Launch) (err error) {
	if l.Metadata, err = c.specifications("instance"); err != nil {
		return err
	}
	if name := l.Metadata["Name"]; name != "" {
		l.Name = name
	}
	delete(l.Metadata, "Name")
	return nil
}

func (s *Server) readZone(c *call, _ *state.Tx, l *compute.Launch) error {
	if l.Zone == "" {
		return nil
	}
	zones, err := s.Compute.ListZones(c.ctx, false)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(zones, func(z compute.ZoneView) bool { return z.Name == l.Zone }) {
		return refuse("InvalidParameterValue", "Invalid availability zone: [%s]", printable(l.Zone))
	}
	return nil
}

// readNetwork reads where the instances are plugged in: at their only network interface, or by the
// parameters that mean the same without one.
func (s *Server) readNetwork(c *call, tx *state.Tx, l *compute.Launch) error {
	at := c.in
	if given := c.in.list("NetworkInterface"); len(given) > 0 {
		if len(given) > 1 || given[0].text("DeviceIndex") != "0" {
			return refuse("UnsupportedOperation", "One network interface, with the device index 0, is supported at launch.")
		}
		for _, name := range []string{"SubnetId", "PrivateIpAddress", "SecurityGroupId", "SecurityGroup"} {
			if c.in.at(name) != nil {
				return refuse("InvalidParameterCombination", "Network interfaces and an instance-level %s may not be specified on the same request", name)
			}
		}
		at = given[0]
	}
	if err := s.readGroups(c, tx, at, l); err != nil {
		return err
	}
	nic := compute.NICWanted{}
	if id := at.text("SubnetId"); id != "" {
		sub, err := s.subnet(c, tx, id)
		if err != nil {
			return err
		}
		nic.NetworkID, nic.SubnetID = sub.NetworkID, sub.ID
		if text := at.text("PrivateIpAddress"); text != "" {
			if nic.Address, err = netip.ParseAddr(text); err != nil || !sub.CIDR.Contains(nic.Address) {
				return refuse("InvalidParameterValue", "Address %s does not fall within the subnet's address range", printable(text))
			}
			if l.Max > 1 {
				return refuse("InvalidParameterCombination", "A private IP address can be given to one instance only")
			}
		}
	} else if at.has("PrivateIpAddress") {
		return refuse("InvalidParameterCombination", "PrivateIpAddress needs SubnetId")
	} else if n := s.defaultVpc(c, tx); n != nil {
		nic.NetworkID = n.ID
	} else {
		return refuse("VPCIdNotSpecified", "No default VPC for this user")
	}
	l.NICs = []compute.NICWanted{nic}
	return nil
}

// readGroups reads the security groups by their IDs, or, without a subnet, by their names.
func (s *Server) readGroups(c *call, tx *state.Tx, at *param, l *compute.Launch) error {
	ids, names := at.texts("SecurityGroupId"), at.texts("SecurityGroup")
	if len(names) > 0 && at.has("SubnetId") {
		return refuse("InvalidParameterCombination", "The parameter groupName cannot be used with the parameter subnet")
	}
	for _, id := range ids {
		g, err := s.group(c, tx, id)
		if err != nil {
			return err
		}
		l.Groups = append(l.Groups, g.ID.String())
	}
	for _, name := range names {
		g, err := s.groupNamed(c, tx, name)
		if err != nil {
			return err
		}
		l.Groups = append(l.Groups, g.ID.String())
	}
	return nil
}
