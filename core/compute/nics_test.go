package compute_test

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
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
