package compute_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/network"
)

// TestNobodyPlugsAPortIntoAnothersServer: neither by asking, nor, were the rule broken, by what is kept.
func TestNobodyPlugsAPortIntoAnothersServer(t *testing.T) {
	c := cloudtest.New(t, 1)
	victim := c.Launch(compute.Launch{NICs: []compute.NICWanted{{NetworkID: c.NetworkID}}})[0]
	n := &network.Network{Meta: resource.Meta{ProjectID: c.Other, Name: "n"}, AdminUp: true, Secured: true}
	if _, err := c.Network.Networks.Create(c.OtherCtx, n); err != nil {
		t.Fatal(err)
	}
	l := c.Plain(compute.Launch{NICs: []compute.NICWanted{{NetworkID: n.ID}}})
	l.NoNetwork = false
	made, err := c.Compute.Create(c.OtherCtx, l)
	c.Must(err)
	c.Settle()
	port := network.PortsOf(c.State.Latest(), made.Servers[0])[0]
	_, err = c.Network.Ports.Update(c.OtherCtx, port.ID, 0, func(p *network.Port) error { p.DeviceID = victim.String(); return nil })
	if f := fault.From(err); f == nil || f.Code != "port-in-use" {
		t.Fatalf("got %v, want a refusal", err)
	}
	nics := len(c.HostOf(victim).Guests[victim].NICs)
	c.Must(c.State.Update(c.Admin, func(tx *state.Tx) error {
		return network.BindPort(tx, port.ID, victim, network.OwnerServer, "z", port.HostID)
	}))
	c.Settle()
	if now := len(c.HostOf(victim).Guests[victim].NICs); now != nics || len(compute.Ports(c.State.Latest(), c.Server(victim))) != nics {
		t.Errorf("the guest has %d NICs, %d before", now, nics)
	}
}

// provider makes a cloud of which the first so many hosts are connected with a physical network, and a network of the project on that.
func provider(t *testing.T, hosts, connected int) (*cloudtest.Cloud, resource.ID) {
	c := cloudtest.New(t, hosts)
	for n, h := range c.Hosts {
		hello := host.Hello{Speaks: release.Own, Name: h.Name, Capacity: cloudtest.Capacity}
		if n < connected {
			hello.Physical = []string{"public"}
		}
		c.Must(host.Arrive(c.Admin, c.State, h.ID, hello))
	}
	made, err := c.Network.Networks.Create(c.Admin, &network.Network{Meta: resource.Meta{Name: "provider", ProjectID: c.Project}, AdminUp: true, Secured: true, Kind: network.Flat, Physical: "public"})
	c.Must(err)
	_, err = c.Network.Subnets.Create(c.Ctx, &network.Subnet{Meta: resource.Meta{ProjectID: c.Project}, NetworkID: made[0].ID,
		CIDR: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("192.0.2.1"), DHCP: true})
	c.Must(err)
	return c, made[0].ID
}

// A server with a port in a provider's network is made on a host that is connected with it.
func TestProviderNetwork(t *testing.T) {
	c, id := provider(t, 4, 1)
	for range 8 {
		srv := c.Server(c.Launch(compute.Launch{NICs: []compute.NICWanted{{NetworkID: id}}})[0])
		if srv.HostID != c.Hosts[0].ID {
			t.Fatalf("it came to host %s, which is not connected with its network", srv.HostID)
		}
	}
	port := &network.Port{Meta: resource.Meta{ProjectID: c.Project}, NetworkID: id, AdminUp: true}
	ports, err := c.Network.Ports.Create(c.Ctx, port)
	c.Must(err)
	if srv := c.Server(c.Launch(compute.Launch{NICs: []compute.NICWanted{{PortID: ports[0].ID}}})[0]); srv.HostID != c.Hosts[0].ID {
		t.Errorf("with a port that there is it came to host %s", srv.HostID)
	}
	inland := launchOn(c, compute.Launch{NICs: []compute.NICWanted{{NetworkID: c.NetworkID}}}, c.Hosts[1])
	c.Settle()
	if _, err := c.Compute.Attach(c.Ctx, inland, compute.NICWanted{NetworkID: id}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a server elsewhere gets a port of it: %v", err)
	}
	if ports := compute.Ports(c.State.Latest(), c.Server(inland)); len(ports) != 1 {
		t.Errorf("it has %d ports now", len(ports))
	}
	c.Must(c.Compute.Delete(c.Ctx, inland))
	c.Settle()
	failed := c.Server(launchOn(c, compute.Launch{NICs: []compute.NICWanted{{NetworkID: id}}}, c.Hosts[1]))
	if failed.Failure == nil || !strings.Contains(failed.Failure.Message, "physical networks") {
		t.Errorf("an operator who names another host is told %+v", failed.Failure)
	}
}

// It stays on such hosts, by whichever way it goes.
func TestProviderNetworkOnTheWay(t *testing.T) {
	ways := map[string]func(c *cloudtest.Cloud, id resource.ID) error{
		"live": func(c *cloudtest.Cloud, id resource.ID) error { return c.Compute.LiveMigrate(c.Admin, id, "") },
		"cold": func(c *cloudtest.Cloud, id resource.ID) error { return c.Compute.Migrate(c.Admin, id, "") },
		"evacuate": func(c *cloudtest.Cloud, id resource.ID) error {
			c.Lose(c.Hosts[0])
			c.Bury(c.Hosts[0])
			return c.Compute.Evacuate(c.Admin, id, "", "")
		},
		"unshelve": func(c *cloudtest.Cloud, id resource.ID) error {
			c.Must(c.Compute.Shelve(c.Ctx, id, nil))
			c.Settle()
			c.Lose(c.Hosts[0])
			return c.Compute.Unshelve(c.Ctx, id, compute.Place{})
		},
		"drain": func(c *cloudtest.Cloud, id resource.ID) error {
			plan, err := c.Compute.PlanRetirement(c.Admin, c.Hosts[0].ID, compute.Retirement{})
			if err == nil && plan[0].To == "" {
				return fault.Errorf(fault.Exhausted, "%s", plan[0].Why)
			}
			_, err = c.Compute.Retire(c.Admin, c.Hosts[0].ID, compute.Retirement{})
			c.Must(err)
			return c.Compute.LiveMigrate(c.Admin, id, "")
		},
	}
	for name, way := range ways {
		for connected, want := range map[int]bool{1: false, 2: true} {
			t.Run(fmt.Sprint(name, " of ", connected), func(t *testing.T) {
				c, network := provider(t, 5, connected)
				id := launchOn(c, compute.Launch{NICs: []compute.NICWanted{{NetworkID: network}}}, c.Hosts[0])
				c.Settle()
				err := way(c, id)
				c.Settle()
				switch {
				case want && (err != nil || c.Server(id).HostID != c.Hosts[1].ID):
					t.Errorf("it does not go to the other host that is connected: %v, on %s", err, c.Server(id).HostID)
				case !want && (!fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "physical networks")):
					t.Errorf("there is no other host that is connected: %v", err)
				}
			})
		}
	}
}
