package ec2

import (
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
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
// paused guest still runs, one that is asleep or failed does not. One with a new shape to confirm runs with it.
func stateOf(s compute.Standing) instanceState {
	switch s.Task {
	case compute.Creating, compute.Starting, compute.Resuming, compute.Rebuilding, compute.Unshelving:
		return pending
	case compute.Stopping, compute.Suspending, compute.Shelving:
		return stopping
	case compute.Deleting:
		return shuttingDown
	}
	switch s.Stage {
	case compute.Building:
		return pending
	case compute.Running, compute.Frozen, compute.Unsettled:
		return running
	}
	return stopped
}

// instance is EC2's Instance, as far as we have what it says.
type instance struct {
	ID             string         `xml:"instanceId"`
	ImageID        string         `xml:"imageId,omitempty"`
	State          instanceState  `xml:"instanceState"`
	PrivateDNS     string         `xml:"privateDnsName"`
	PublicDNS      string         `xml:"dnsName"`
	Reason         string         `xml:"reason"`
	KeyName        string         `xml:"keyName,omitempty"`
	LaunchIndex    int            `xml:"amiLaunchIndex"`
	Type           string         `xml:"instanceType,omitempty"`
	LaunchTime     string         `xml:"launchTime"`
	Zone           string         `xml:"placement>availabilityZone"`
	Tenancy        string         `xml:"placement>tenancy"`
	Kernel         string         `xml:"kernelId,omitempty"`
	Ramdisk        string         `xml:"ramdiskId,omitempty"`
	Monitoring     string         `xml:"monitoring>state"`
	SubnetID       string         `xml:"subnetId,omitempty"`
	VpcID          string         `xml:"vpcId,omitempty"`
	PrivateIP      string         `xml:"privateIpAddress,omitempty"`
	PublicIP       string         `xml:"ipAddress,omitempty"`
	StateReason    *stateReason   `xml:"stateReason"`
	Architecture   string         `xml:"architecture,omitempty"`
	RootType       string         `xml:"rootDeviceType"`
	RootName       string         `xml:"rootDeviceName"`
	Virtualization string         `xml:"virtualizationType"`
	ClientToken    string         `xml:"clientToken,omitempty"`
	Hypervisor     string         `xml:"hypervisor"`
	Groups         set[groupItem] `xml:"groupSet"`
	Interfaces     set[nic]       `xml:"networkInterfaceSet"`
	Tags           *tagSet        `xml:"tagSet"`
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
	ID        string         `xml:"networkInterfaceId"`
	SubnetID  string         `xml:"subnetId,omitempty"`
	VpcID     string         `xml:"vpcId"`
	OwnerID   string         `xml:"ownerId"`
	Status    string         `xml:"status"`
	MAC       string         `xml:"macAddress"`
	PrivateIP string         `xml:"privateIpAddress,omitempty"`
	Groups    set[groupItem] `xml:"groupSet"`
	Index     int            `xml:"attachment>deviceIndex"`
	Attached  string         `xml:"attachment>status"`
	PublicIP  string         `xml:"association>publicIp,omitempty"`
}

const timeFormat = "2006-01-02T15:04:05.000Z"

// blank is what we say of every instance.
func blank() instance {
	return instance{Tenancy: "default", Monitoring: "disabled", RootType: "ebs", RootName: "/dev/vda", Virtualization: "hvm",
		Hypervisor: "xen", Architecture: "x86_64"}
}

// instanceOf shows a server.
func instanceOf(tx *state.Tx, s *compute.Server) instance {
	i := blank()
	i.ID, i.ImageID, i.State = idOf("i", s.ID), idOf("ami", s.Boot.ImageID()), stateOf(s.Standing())
	i.LaunchIndex, i.Type, i.LaunchTime = s.LaunchIndex, s.Shape.Name, s.CreatedAt.UTC().Format(timeFormat)
	i.Zone, i.ClientToken, i.Tags = zoneOf(tx, s), s.RequestKey, tagsOf(instanceTags(s))
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
	for n, p := range compute.Ports(tx, s) {
		one := nicOf(tx, p, n)
		i.Interfaces.Items = append(i.Interfaces.Items, one)
		if n == 0 {
			i.SubnetID, i.VpcID, i.PrivateIP, i.PublicIP, i.Groups = one.SubnetID, one.VpcID, one.PrivateIP, one.PublicIP, one.Groups
			if one.PrivateIP != "" {
				i.PrivateDNS = "ip-" + strings.ReplaceAll(one.PrivateIP, ".", "-")
			}
		}
	}
	return i
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
			one.Groups.Items = append(one.Groups.Items, groupItem{idOf("sg", id), g.Name})
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

// goneOf shows an instance that was terminated, as it is still shown for a while.
func goneOf(o *operation.Operation) instance {
	const how = "Client.UserInitiatedShutdown"
	i := blank()
	i.ID, i.State, i.LaunchTime = idOf("i", o.TargetID), terminated, o.TargetID.Time().Format(timeFormat)
	i.Architecture, i.Reason = "", "User initiated"
	i.StateReason = &stateReason{how, how + ": User initiated shutdown"}
	return i
}

// terminatedFor is how long an instance is still shown once it is gone.
const terminatedFor = time.Hour

// gone lists the operations that took the account's instances away of late, the newest first.
func (s *Server) gone(c *call, tx *state.Tx) []*operation.Operation {
	return operation.Deleted(tx, c.actor.ProjectID, compute.Servers().Kind(), c.now.Add(-terminatedFor))
}

// A found is one instance that a request names: a server, or what took it away.
type found struct {
	server *compute.Server
	gone   *operation.Operation
}

// find looks one instance up by EC2's ID.
func (s *Server) find(c *call, tx *state.Tx, id string) (found, error) {
	tail, ok := ownID("i", id)
	if !ok {
		return found{}, refuse("InvalidInstanceID.Malformed", "Invalid id: \"%s\"", printable(id))
	}
	if srv, ok := compute.Servers().Lookup(tx, "tail", state.KeyOf(tail)); ok && srv.ProjectID == c.actor.ProjectID {
		return found{server: srv}, identity.Allow(c.ctx, "server.get", srv.Meta)
	}
	for _, o := range s.gone(c, tx) {
		if o.TargetID.Tail() == tail {
			return found{gone: o}, nil
		}
	}
	return found{}, refuse("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
}

// server is find for what must not be gone.
func (s *Server) server(c *call, tx *state.Tx, id string) (*compute.Server, error) {
	f, err := s.find(c, tx, id)
	if err == nil && f.server == nil {
		err = refuse("IncorrectInstanceState", "The instance '%s' is terminated.", id)
	}
	return f.server, err
}

// change asks the same of every instance that the request names, in one transaction, and tells how each
// changes.
func (s *Server) change(c *call, do func(*call, found) error) (stateChanges, error) {
	ids := slices.Compact(slices.Sorted(slices.Values(c.in.texts("InstanceId"))))
	if len(ids) == 0 {
		return stateChanges{}, refuse("MissingParameter", "The request must contain the parameter InstanceId")
	}
	return together(s, c, func(c *call, tx *state.Tx) (stateChanges, error) {
		var all []found
		for _, id := range ids {
			f, err := s.find(c, tx, id)
			if err != nil {
				return stateChanges{}, err
			}
			all = append(all, f)
		}
		var answer stateChanges
		for n, f := range all {
			if err := do(c, f); err != nil {
				return stateChanges{}, err
			}
			one := stateChange{ID: ids[n], Previous: terminated, Current: terminated}
			if f.server != nil {
				one.Previous = stateOf(f.server.Standing())
				if now, ok := compute.Servers().PeekOne(tx, f.server.ID); ok {
					one.Current = stateOf(now.Standing())
				}
			}
			answer.Changes.Items = append(answer.Changes.Items, one)
		}
		return answer, nil
	})
}

type stateChange struct {
	ID       string        `xml:"instanceId"`
	Current  instanceState `xml:"currentState"`
	Previous instanceState `xml:"previousState"`
}

type stateChanges struct {
	Changes set[stateChange] `xml:"instancesSet"`
}

// operate asks for a move of an instance's power, unless it stands already so that there is nothing
// to do.
func (s *Server) operate(c *call, f found, how string, task compute.Task, already ...instanceState) error {
	switch {
	case f.gone != nil:
		return refuse("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be %s.", idOf("i", f.gone.TargetID), how)
	case slices.Contains(already, stateOf(f.server.Standing())):
		return identity.Allow(c.ctx, "server.operate", f.server.Meta)
	}
	do := func() error { return s.Compute.Do(c.ctx, f.server.ID, task) }
	if task == compute.Unshelving {
		do = func() error { return s.Compute.Unshelve(c.ctx, f.server.ID, compute.Place{}) }
	}
	err := do()
	if p := fault.From(err); p != nil && p.Code == "server-state" {
		return refuse("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be %s.", idOf("i", f.server.ID), how)
	}
	return err
}

func (s *Server) startInstances(c *call) (any, error) {
	return s.change(c, func(c *call, f found) error {
		task := compute.Starting
		if f.server != nil {
			switch f.server.Stage() {
			case compute.Asleep:
				task = compute.Resuming
			case compute.Shelved, compute.Offloaded: // here it is a stopped one
				task = compute.Unshelving
			}
		}
		return s.operate(c, f, "started", task, running, pending)
	})
}

// stopInstances: Force changes nothing. A guest that does not stop by itself is made to soon anyway.
func (s *Server) stopInstances(c *call) (any, error) {
	if _, err := c.in.bool("Force"); err != nil {
		return nil, err
	}
	return s.change(c, func(c *call, f found) error { return s.operate(c, f, "stopped", compute.Stopping, stopped, stopping) })
}

func (s *Server) rebootInstances(c *call) (any, error) {
	_, err := s.change(c, func(c *call, f found) error { return s.operate(c, f, "rebooted", compute.SoftRebooting) })
	return done{Value: true}, err
}

// terminateInstances: what is terminated already is so again.
func (s *Server) terminateInstances(c *call) (any, error) {
	return s.change(c, func(c *call, f found) error {
		if f.gone != nil {
			return nil
		}
		return s.Compute.Delete(c.ctx, f.server.ID)
	})
}

// getConsoleOutput gives the newest part of what the guest wrote. A guest that never ran wrote nothing.
func (s *Server) getConsoleOutput(c *call) (any, error) {
	id, err := c.in.must("InstanceId")
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	srv, err := s.server(c, tx, id)
	if err != nil {
		return nil, err
	}
	const most = 64 << 10 // bytes, as EC2 keeps
	log, err := s.Compute.ConsoleLog(c.ctx, srv.ID, most)
	if p := fault.From(err); p != nil && p.Code == "server-not-ready" {
		err = nil
	}
	return struct {
		ID     string `xml:"instanceId"`
		Time   string `xml:"timestamp"`
		Output string `xml:"output"`
	}{idOf("i", srv.ID), s.Now().UTC().Format(timeFormat), base64.StdEncoding.EncodeToString(log)}, err
}

// instanceTags are a server's key-value pairs, with its name where EC2's clients look for it.
func instanceTags(s *compute.Server) map[string]string {
	tags := maps.Clone(s.Metadata)
	if tags == nil {
		tags = map[string]string{}
	}
	if tags["Name"] = s.Name; s.Name == unnamed {
		delete(tags, "Name")
	}
	return tags
}

// unnamed is the name of an instance without the tag Name.
const unnamed = "instance"

func number(n int) []string { return []string{strconv.Itoa(n)} }
