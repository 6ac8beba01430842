package network_test

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/network"
)

// plugged makes a port as a server of a project gets it.
func (b *bench) plugged(project resource.ID, want network.PortWanted) (*network.Port, error) {
	ctx := as(project, "member", "reader")
	return state.Do(ctx, b.st, func(tx *state.Tx) (*network.Port, error) {
		want.ProjectID, want.DeviceID, want.Owner, want.Label, want.HostID = project, tx.NewID(), network.OwnerServer, "z", tx.NewID()
		return network.AddPort(ctx, tx, want)
	})
}

// userEdits are what the owner of a bound port may ask about who uses it, all of which are refused.
var userEdits = map[string]network.Edit[network.Port]{
	"another device":       func(p *network.Port) error { p.DeviceID = p.NetworkID.String(); return nil },
	"no device":            func(p *network.Port) error { p.DeviceID = ""; return nil },
	"no owner":             func(p *network.Port) error { p.Owner = network.OwnerNone; return nil },
	"another kind":         func(p *network.Port) error { p.Owner = network.OwnerRouter; return nil },
	"another zone":         func(p *network.Port) error { p.OwnerLabel = "y"; return nil },
	"another host":         func(p *network.Port) error { p.HostID = p.NetworkID; return nil },
	"a host of no cloud":   func(p *network.Port) error { p.HostLabel = "elsewhere"; return nil },
	"that it was not made": func(p *network.Port) error { p.Adopted = !p.Adopted; return nil },
}

func TestWhoUsesAPortChangesWithTheUserAlone(t *testing.T) {
	b := open(t)
	n := b.network(b.theirs, b.their)
	b.subnet(b.theirs, n, "10.0.0.0/24")
	given := b.port(b.theirs, n)
	made := must[*network.Port](b)(b.plugged(b.their, network.PortWanted{NetworkID: n.ID}))
	must[*network.Port](b)(b.plugged(b.their, network.PortWanted{PortID: given.ID}))
	r := one(b, b.Routers, b.theirs, network.Router{Meta: owned(b.their, "r"), AdminUp: true})
	leg := must[*network.Interface](b)(b.AddInterface(b.theirs, r.ID, made.Fixed[0].SubnetID, resource.ID{}))
	for name, edit := range userEdits {
		for _, id := range []resource.ID{made.ID, given.ID, leg.PortID} {
			_, err := b.Ports.Update(b.admin, id, 0, edit)
			if id == leg.PortID && name == "another kind" {
				continue // it is a router's already
			}
			b.refuses(fault.Conflict, "port-in-use", err)
		}
	}
	// The words may be said again, and everything else may change.
	now, err := b.Ports.Update(b.theirs, made.ID, 0, func(p *network.Port) error { p.Name = "mine"; return nil })
	if err != nil || now.DeviceID != made.DeviceID || now.Name != "mine" {
		t.Fatalf("port %+v, %v", now, err)
	}
}

func TestWordsOfClientsAreNoOwners(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	victim := resource.MustID("01020304-0506-0708-090a-0b0c0d0e0f10")
	want := network.Port{Meta: owned(b.our, "p"), NetworkID: n.ID, PortSecurity: true, VNIC: network.NormalVNIC, DeviceID: victim.String()}
	said := one(b, b.Ports, b.ours, want)
	for _, owner := range []network.Owner{network.OwnerServer, network.OwnerRouter, network.OwnerDHCP} {
		want := want
		want.Owner = owner
		_, err := b.Ports.Create(b.ours, &want)
		b.refuses(fault.Forbidden, "", err)
		_, err = b.Ports.Update(b.ours, said.ID, 0, func(p *network.Port) error { p.Owner = owner; return nil })
		b.refuses(fault.Conflict, "port-in-use", err)
	}
	if got := network.PortsOf(b.st.Latest(), victim); len(got) != 0 {
		t.Fatalf("a port is the server's because a client said so: %+v", got)
	}
	if _, err := b.Ports.Update(b.ours, said.ID, 0, func(p *network.Port) error { p.DeviceID = ""; return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestServersTakeTheirOwnProjectsPorts(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	p := b.port(b.ours, n)
	err := b.st.Update(b.admin, func(tx *state.Tx) error {
		_, err := network.AddPort(b.admin, tx, network.PortWanted{ProjectID: b.their, PortID: p.ID, DeviceID: tx.NewID(), Owner: network.OwnerServer})
		return err
	})
	b.refuses(fault.Invalid, "port-not-usable", err)
}
