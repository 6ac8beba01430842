package ec2

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// instanceState is EC2's (API Reference, "InstanceState").
type instanceState struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

var (
	pending      = instanceState{0, "pending"}
	running      = instanceState{16, "running"}
	shuttingDown = instanceState{32, "shutting-down"}
	terminated   = instanceState{48, "terminated"}
	stopping     = instanceState{64, "stopping"}
	stopped      = instanceState{80, "stopped"}
)

// stateOf maps a server's standing to EC2's states, which know neither pause nor failure: a
// paused guest still runs, one that is asleep or failed does not.
func stateOf(s compute.Standing) instanceState {
	switch s.Task {
	case compute.Creating, compute.Starting, compute.Resuming, compute.Rebuilding:
		return pending
	case compute.Stopping, compute.Suspending:
		return stopping
	case compute.Deleting:
		return shuttingDown
	}
	switch s.Stage {
	case compute.Building:
		return pending
	case compute.Running, compute.Frozen:
		return running
	}
	return stopped
}

// instance is EC2's Instance, as far as we have what it says.
type instance struct {
	ID             string        `xml:"instanceId"`
	ImageID        string        `xml:"imageId"`
	State          instanceState `xml:"instanceState"`
	PrivateDNS     string        `xml:"privateDnsName"`
	PublicDNS      string        `xml:"dnsName"`
	Reason         string        `xml:"reason"`
	KeyName        string        `xml:"keyName,omitempty"`
	LaunchIndex    int           `xml:"amiLaunchIndex"`
	Type           string        `xml:"instanceType"`
	LaunchTime     string        `xml:"launchTime"`
	Zone           string        `xml:"placement>availabilityZone"`
	Tenancy        string        `xml:"placement>tenancy"`
	Kernel         string        `xml:"kernelId,omitempty"`
	Ramdisk        string        `xml:"ramdiskId,omitempty"`
	Monitoring     string        `xml:"monitoring>state"`
	SubnetID       string        `xml:"subnetId,omitempty"`
	VpcID          string        `xml:"vpcId,omitempty"`
	PrivateIP      string        `xml:"privateIpAddress,omitempty"`
	PublicIP       string        `xml:"ipAddress,omitempty"`
	StateReason    *stateReason  `xml:"stateReason"`
	Architecture   string        `xml:"architecture,omitempty"`
	RootType       string        `xml:"rootDeviceType"`
	RootName       string        `xml:"rootDeviceName"`
	Virtualization string        `xml:"virtualizationType"`
	ClientToken    string        `xml:"clientToken,omitempty"`
	Hypervisor     string        `xml:"hypervisor"`
	Groups         []groupItem   `xml:"groupSet>item"`
	Interfaces     []nic         `xml:"networkInterfaceSet>item"`
	Tags           *tagSet       `xml:"tagSet"`
}

type stateReason struct {
	Code    string `xml:"code"`
	Message string `xml:"message"`
}

type groupItem struct {
	ID   string `xml:"groupId"`
	Name string `xml:"groupName"`
}

type nic struct {
	ID        string      `xml:"networkInterfaceId"`
	SubnetID  string      `xml:"subnetId,omitempty"`
	VpcID     string      `xml:"vpcId"`
	OwnerID   string      `xml:"ownerId"`
	Status    string      `xml:"status"`
	MAC       string      `xml:"macAddress"`
	PrivateIP string      `xml:"privateIpAddress,omitempty"`
	Groups    []groupItem `xml:"groupSet>item"`
	Index     int         `xml:"attachment>deviceIndex"`
	Attached  string      `xml:"attachment>status"`
	PublicIP  string      `xml:"association>publicIp,omitempty"`
}

type reservation struct {
	ID      string      `xml:"reservationId"`
	OwnerID string      `xml:"ownerId"`
	Groups  []groupItem `xml:"groupSet>item"`
	Items   []instance  `xml:"instancesSet>item"`
}

const timeFormat = "2006-01-02T15:04:05.000Z"

// instanceOf shows a server.
func instanceOf(tx *state.Tx, s *compute.Server) instance {
	i := instance{ID: idOf("i", s.ID), ImageID: idOf("ami", s.Boot.ImageID()), State: stateOf(s.Standing()),
		LaunchIndex: s.LaunchIndex, Type: s.Shape.Name, LaunchTime: s.CreatedAt.UTC().Format(timeFormat), Tenancy: "default",
		Monitoring: "disabled", RootType: "ebs", RootName: "/dev/vda", Virtualization: "hvm", Hypervisor: "xen",
		Architecture: "x86_64", Zone: zoneOf(tx, s)}
	if s.Key != nil {
		i.KeyName = s.Key.Name
	}
	if s.Boot.Kernel != nil {
		i.Kernel = idOf("aki", s.Boot.Kernel.ID)
	}
	if s.Boot.Initrd != nil {
		i.Ramdisk = idOf("ari", s.Boot.Initrd.ID)
	}
	if s.Failure != nil {
		i.StateReason = &stateReason{"Server.InternalError", s.Failure.Message}
		i.Reason = s.Failure.Message
	}
	i.Tags = tagsOf(withName(s))
	for n, p := range network.PortsOf(tx, s.ID) {
		one := nicOf(tx, p, n)
		i.Interfaces = append(i.Interfaces, one)
		if n == 0 {
			i.SubnetID, i.VpcID, i.PrivateIP, i.PublicIP, i.Groups = one.SubnetID, one.VpcID, one.PrivateIP, one.PublicIP, one.Groups
			if one.PrivateIP != "" {
				i.PrivateDNS = "ip-" + strings.ReplaceAll(one.PrivateIP, ".", "-")
			}
		}
	}
	return i
}

// withName are a server's key-value pairs, and its name where EC2's clients look for it.
func withName(s *compute.Server) map[string]string {
	tags := map[string]string{}
	for k, v := range s.Metadata {
		tags[k] = v
	}
	if _, own := tags["Name"]; !own && s.Name != "" {
		tags["Name"] = s.Name
	}
	return tags
}

func nicOf(tx *state.Tx, p *network.Port, n int) nic {
	one := nic{ID: idOf("eni", p.ID), VpcID: idOf("vpc", p.NetworkID), OwnerID: p.ProjectID.Hex(), Status: "in-use",
		MAC: p.MAC, Index: n, Attached: "attached"}
	for _, f := range p.Fixed {
		if f.Address.Is4() {
			one.SubnetID, one.PrivateIP = idOf("subnet", f.SubnetID), f.Address.String()
			break
		}
	}
	for _, f := range network.FloatingOf(tx, p.ID) {
		one.PublicIP = f.Address.String()
		break
	}
	for _, id := range p.Groups {
		if g, ok := network.Groups().PeekOne(tx, id); ok {
			one.Groups = append(one.Groups, groupItem{idOf("sg", id), g.Name})
		}
	}
	return one
}

func zoneOf(tx *state.Tx, s *compute.Server) string {
	if h, ok := host.Table().PeekOne(tx, s.HostID); ok {
		return compute.ZonesOf(tx).Of(h)
	}
	return s.Zone
}

// server finds one of the actor's servers by EC2's ID.
func (s *Server) server(c *call, tx *state.Tx, id string) (*compute.Server, error) {
	tail, ok := ownID("i", id)
	if !ok {
		return nil, refuse("InvalidInstanceID.Malformed", "Invalid id: \"%s\"", printable(id))
	}
	srv, ok := compute.Servers().Lookup(tx, "tail", state.KeyOf(tail))
	if !ok || identity.Allow(c.ctx, "server.get", srv.Meta) != nil {
		return nil, refuse("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
	}
	return srv, nil
}

// servers finds all that a request names; it must name one at least.
func (s *Server) servers(c *call) ([]*compute.Server, error) {
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	ids := c.list("InstanceId")
	if len(ids) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter InstanceId")
	}
	var all []*compute.Server
	for _, id := range ids {
		srv, err := s.server(c, tx, id)
		if err != nil {
			return nil, err
		}
		all = append(all, srv)
	}
	return all, nil
}

var instanceFilters = known("instance-id", "instance-state-name", "instance-state-code", "image-id", "instance-type", "key-name",
	"availability-zone", "private-ip-address", "ip-address", "vpc-id", "subnet-id", "reservation-id", "group-id", "group-name",
	"instance.group-id", "instance.group-name", "owner-id", "client-token", "architecture", "network-interface.subnet-id", "launch-time", "root-device-type")

func instanceFacts(i *instance, reservationID, owner string) facts {
	f := facts{"instance-id": {i.ID}, "instance-state-name": {i.State.Name}, "instance-state-code": {fmt.Sprint(i.State.Code)},
		"image-id": {i.ImageID}, "instance-type": {i.Type}, "key-name": {i.KeyName}, "availability-zone": {i.Zone},
		"private-ip-address": {i.PrivateIP}, "ip-address": {i.PublicIP}, "reservation-id": {reservationID}, "owner-id": {owner},
		"client-token": {i.ClientToken}, "architecture": {i.Architecture}, "launch-time": {i.LaunchTime}, "root-device-type": {i.RootType}}
	for _, n := range i.Interfaces {
		f["vpc-id"] = append(f["vpc-id"], n.VpcID)
		f["subnet-id"] = append(f["subnet-id"], n.SubnetID)
		f["network-interface.subnet-id"] = f["subnet-id"]
		for _, g := range n.Groups {
			f["group-id"], f["group-name"] = append(f["group-id"], g.ID), append(f["group-name"], g.Name)
			f["instance.group-id"], f["instance.group-name"] = f["group-id"], f["group-name"]
		}
	}
	return f
}

type describeInstancesAnswer struct {
	Items     []reservation `xml:"reservationSet>item"`
	NextToken string        `xml:"nextToken,omitempty"`
}

func (s *Server) describeInstances(c *call) (any, error) {
	filters, err := c.filters(instanceFilters)
	if err != nil {
		return nil, err
	}
	shown, err := s.shown(c, c.list("InstanceId"), filters)
	if err != nil {
		return nil, err
	}
	shown, next, err := page(c, shown, 5, 1000)
	if err != nil {
		return nil, err
	}
	answer := describeInstancesAnswer{NextToken: next}
	at := map[string]int{}
	for _, i := range shown {
		n, ok := at[i.reservation]
		if !ok {
			n = len(answer.Items)
			at[i.reservation] = n
			answer.Items = append(answer.Items, reservation{ID: i.reservation, OwnerID: i.owner})
		}
		answer.Items[n].Items = append(answer.Items[n].Items, i.instance)
	}
	return answer, nil
}

// shownInstance is an instance with what EC2 puts around it.
type shownInstance struct {
	instance
	reservation, owner string
}

// terminatedFor is how long an instance is still shown once it is gone.
const terminatedFor = time.Hour

// shown lists the actor's instances, those that were just terminated too.
func (s *Server) shown(c *call, ids []string, filters []filter) ([]shownInstance, error) {
	view, err := s.Compute.List(c.ctx, compute.Query{})
	if err != nil {
		return nil, err
	}
	var all []shownInstance
	for _, srv := range view.Servers {
		all = append(all, shownInstance{instanceOf(view.Tx, srv), "r-" + strings.TrimPrefix(srv.ReservationID, "r-"), srv.ProjectID.Hex()})
	}
	for _, o := range operation.Deleted(view.Tx, c.actor.ProjectID, compute.Servers().Kind(), s.Now().Add(-terminatedFor)) {
		all = append(all, shownInstance{instance{ID: idOf("i", o.TargetID), State: terminated, LaunchTime: o.TargetID.Time().Format(timeFormat),
			Tenancy: "default", Monitoring: "disabled", RootType: "ebs", RootName: "/dev/vda", Virtualization: "hvm", Hypervisor: "xen",
			StateReason: &stateReason{"Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown"}},
			"r-" + o.TargetID.Tail()[9:], o.ProjectID.Hex()})
	}
	for _, id := range ids {
		if _, ok := ownID("i", id); !ok {
			return nil, refuse("InvalidInstanceID.Malformed", "Invalid id: \"%s\"", printable(id))
		}
		if !slices.ContainsFunc(all, func(i shownInstance) bool { return i.ID == id }) {
			return nil, refuse("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
		}
	}
	return slices.DeleteFunc(all, func(i shownInstance) bool {
		tags := map[string]string{}
		if i.Tags != nil {
			for _, t := range i.Tags.Items {
				tags[t.Key] = t.Value
			}
		}
		return len(ids) > 0 && !slices.Contains(ids, i.ID) || !keeps(filters, instanceFacts(&i.instance, i.reservation, i.owner), tags)
	}), nil
}

type instanceStatus struct {
	ID     string        `xml:"instanceId"`
	Zone   string        `xml:"availabilityZone"`
	State  instanceState `xml:"instanceState"`
	System string        `xml:"systemStatus>status"`
	Status string        `xml:"instanceStatus>status"`
}

func (s *Server) describeInstanceStatus(c *call) (any, error) {
	filters, err := c.filters(known("instance-state-name", "instance-state-code", "availability-zone"))
	if err != nil {
		return nil, err
	}
	shown, err := s.shown(c, c.list("InstanceId"), filters)
	if err != nil {
		return nil, err
	}
	answer := struct {
		Items     []instanceStatus `xml:"instanceStatusSet>item"`
		NextToken string           `xml:"nextToken,omitempty"`
	}{}
	if c.form.Get("IncludeAllInstances") != "true" {
		shown = slices.DeleteFunc(shown, func(i shownInstance) bool { return i.State != running })
	}
	shown, answer.NextToken, err = page(c, shown, 5, 1000)
	for _, i := range shown {
		how := "not-applicable"
		if i.State == running {
			how = "ok"
		}
		answer.Items = append(answer.Items, instanceStatus{i.ID, i.Zone, i.State, how, how})
	}
	return answer, err
}

// runInstances asks for MinCount to MaxCount servers.
func (s *Server) runInstances(c *call) (any, error) {
	l, err := s.launch(c)
	if err != nil {
		return nil, err
	}
	made, err := s.Compute.Create(c.ctx, *l)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	answer := reservation{ID: "r-" + strings.TrimPrefix(made.ReservationID, "r-"), OwnerID: c.actor.ProjectID.Hex()}
	for _, id := range made.Servers {
		if srv, ok := compute.Servers().PeekOne(tx, id); ok {
			i := instanceOf(tx, srv)
			i.ClientToken = c.form.Get("ClientToken")
			answer.Items = append(answer.Items, i)
		}
	}
	return answer, nil
}

// unsupported are parameters of RunInstances that would be lost if they were not refused.
var unsupported = []string{"BlockDeviceMapping.1.Ebs.VolumeSize", "BlockDeviceMapping.1.DeviceName", "IamInstanceProfile.Name", "IamInstanceProfile.Arn",
	"InstanceMarketOptions.MarketType", "LaunchTemplate.LaunchTemplateId", "LaunchTemplate.LaunchTemplateName", "HibernationOptions.Configured",
	"LicenseSpecification.1.LicenseConfigurationArn", "ElasticGpuSpecification.1.Type", "SecondaryPrivateIpAddressCount", "Placement.GroupName", "Placement.HostId"}

func (s *Server) launch(c *call) (*compute.Launch, error) {
	for _, name := range unsupported {
		if v := c.form.Get(name); v != "" && v != "false" {
			return nil, refuse("UnsupportedOperation", "The parameter %s is not supported here.", name)
		}
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	l := &compute.Launch{Name: "instance", KeyName: c.form.Get("KeyName"), Zone: c.form.Get("Placement.AvailabilityZone"), Strict: true}
	for _, count := range []struct {
		name string
		to   *int
	}{{"MinCount", &l.Min}, {"MaxCount", &l.Max}} {
		if *count.to, err = c.int(count.name, 0); err != nil {
			return nil, err
		}
		if *count.to < 1 {
			return nil, refuse("MissingParameter", "The request must contain the parameter %s", count.name)
		}
	}
	if l.Min > l.Max {
		return nil, refuse("InvalidParameterCombination", "MinCount must not be larger than MaxCount")
	}
	im, err := s.image(c, tx, c.form.Get("ImageId"))
	if err != nil {
		return nil, err
	}
	l.ImageID = im.ID
	if l.Flavor, err = s.flavor(c, tx, c.form.Get("InstanceType")); err != nil {
		return nil, err
	}
	if text := c.form.Get("UserData"); text != "" {
		if l.UserData, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, refuse("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data")
		}
	}
	l.Metadata = c.specifications("instance")
	if name := l.Metadata["Name"]; name != "" {
		l.Name = name
	}
	return l, s.launchNetwork(c, tx, l)
}

// launchNetwork reads where the instance is plugged in: SubnetId and SecurityGroupId, or the
// same of its first network interface.
func (s *Server) launchNetwork(c *call, tx *state.Tx, l *compute.Launch) error {
	at := "NetworkInterface.1."
	subnet, groups, address := c.form.Get("SubnetId"), c.list("SecurityGroupId"), c.form.Get("PrivateIpAddress")
	if c.form.Has(at + "DeviceIndex") {
		if c.form.Has("NetworkInterface.2.DeviceIndex") || c.form.Has(at+"NetworkInterfaceId") {
			return refuse("UnsupportedOperation", "Only one new network interface is supported at launch.")
		}
		subnet, groups, address = c.form.Get(at+"SubnetId"), c.list(at+"SecurityGroupId"), c.form.Get(at+"PrivateIpAddress")
	}
	for _, id := range groups {
		g, err := s.group(c, tx, id)
		if err != nil {
			return err
		}
		l.Groups = append(l.Groups, g.ID.String())
	}
	for _, name := range c.list("SecurityGroup") {
		g, err := s.groupNamed(c, name)
		if err != nil {
			return err
		}
		l.Groups = append(l.Groups, g.ID.String())
	}
	if subnet != "" {
		sub, err := s.subnet(c, tx, subnet)
		if err != nil {
			return err
		}
		nic := compute.NICWanted{NetworkID: sub.NetworkID}
		if address != "" {
			if nic.Address, err = netip.ParseAddr(address); err != nil || !sub.CIDR.Contains(nic.Address) {
				return refuse("InvalidParameterValue", "Address %s does not fall within the subnet's address range", printable(address))
			}
		}
		l.NICs = []compute.NICWanted{nic}
	}
	return nil
}

type stateChange struct {
	ID       string        `xml:"instanceId"`
	Current  instanceState `xml:"currentState"`
	Previous instanceState `xml:"previousState"`
}

type stateChanges struct {
	Items []stateChange `xml:"instancesSet>item"`
}

// change asks the same of every instance that the request names, and tells how each changes. What
// is so already is left as it is.
func (s *Server) change(c *call, do func(*compute.Server) error) (any, error) {
	all, err := s.servers(c)
	if err != nil {
		return nil, err
	}
	var answer stateChanges
	for _, srv := range all {
		if err := do(srv); err != nil {
			return nil, err
		}
		one := stateChange{ID: idOf("i", srv.ID), Previous: stateOf(srv.Standing()), Current: terminated}
		tx, err := s.State.View(c.ctx)
		if err != nil {
			return nil, err
		}
		if now, ok := compute.Servers().PeekOne(tx, srv.ID); ok {
			one.Current = stateOf(now.Standing())
		}
		answer.Items = append(answer.Items, one)
	}
	return answer, nil
}

func (s *Server) startInstances(c *call) (any, error) {
	return s.change(c, func(srv *compute.Server) error {
		switch stateOf(srv.Standing()) {
		case running, pending:
			return identity.Allow(c.ctx, "server.operate", srv.Meta)
		}
		if srv.Stage() == compute.Asleep {
			return incorrect(s.Compute.Do(c.ctx, srv.ID, compute.Resuming), srv, "started")
		}
		return incorrect(s.Compute.Do(c.ctx, srv.ID, compute.Starting), srv, "started")
	})
}

func (s *Server) stopInstances(c *call) (any, error) {
	return s.change(c, func(srv *compute.Server) error {
		switch stateOf(srv.Standing()) {
		case stopped, stopping:
			return identity.Allow(c.ctx, "server.operate", srv.Meta)
		}
		return incorrect(s.Compute.Do(c.ctx, srv.ID, compute.Stopping), srv, "stopped")
	})
}

func (s *Server) terminateInstances(c *call) (any, error) {
	return s.change(c, func(srv *compute.Server) error {
		if srv.Doomed() {
			return nil
		}
		return s.Compute.Delete(c.ctx, srv.ID)
	})
}

// incorrect says in EC2's words that a state is in the way.
func incorrect(err error, srv *compute.Server, how string) error {
	if fault.Is(err, fault.Conflict) {
		return refuse("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be %s.", idOf("i", srv.ID), how)
	}
	return err
}

func (s *Server) rebootInstances(c *call) (any, error) {
	all, err := s.servers(c)
	if err != nil {
		return nil, err
	}
	for _, srv := range all {
		if err := incorrect(s.Compute.Do(c.ctx, srv.ID, compute.SoftRebooting), srv, "rebooted"); err != nil {
			return nil, err
		}
	}
	return done{Value: true}, nil
}

func (s *Server) getConsoleOutput(c *call) (any, error) {
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	srv, err := s.server(c, tx, c.form.Get("InstanceId"))
	if err != nil {
		return nil, err
	}
	log, err := s.Compute.ConsoleLog(c.ctx, srv.ID, 64<<10)
	if err != nil {
		return nil, err
	}
	return struct {
		ID     string `xml:"instanceId"`
		Time   string `xml:"timestamp"`
		Output string `xml:"output"`
	}{idOf("i", srv.ID), s.Now().UTC().Format(timeFormat), base64.StdEncoding.EncodeToString(log)}, nil
}
