// Package audit derives again, from the objects alone, what must hold at every moment, and
// says where it does not: indexes and tallies that a recount contradicts, orphans, things
// that are under way without an owner or an end. It repairs nothing: a finding is a bug.
package audit

import (
	"fmt"
	"net/netip"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Finding is one contradiction.
type Finding struct {
	Kind string
	ID   resource.ID
	What string
}

func (f Finding) String() string { return fmt.Sprintf("%s %s: %s", f.Kind, f.ID, f.What) }

type auditor struct {
	tx       *state.Tx
	findings []Finding
}

func (a *auditor) find(kind string, id resource.ID, format string, args ...any) {
	a.findings = append(a.findings, Finding{kind, id, fmt.Sprintf(format, args...)})
}

// State audits everything at the moment that tx shows.
func State(tx *state.Tx) []Finding {
	a := &auditor{tx: tx}
	for _, wrong := range state.Verify(tx) {
		a.findings = append(a.findings, Finding{Kind: "index", What: wrong})
	}
	for _, wrong := range identity.Audit(tx) {
		a.findings = append(a.findings, Finding{Kind: "identity", What: wrong})
	}
	for _, wrong := range network.Audit(tx) {
		a.findings = append(a.findings, Finding{Kind: "network", What: wrong})
	}
	a.operations()
	a.servers()
	a.images()
	a.ports()
	a.addresses()
	a.floating()
	return a.findings
}

// operations: what runs has a target and a deadline.
func (a *auditor) operations() {
	for o := range operation.Table().Peek(a.tx, "deadline", state.Range{}) {
		if o.Deadline.IsZero() {
			a.find("operation", o.ID, "%s runs without a deadline", o.Verb)
		}
		there := true
		switch o.TargetKind {
		case compute.Servers().Kind():
			there = compute.Servers().Has(a.tx, o.TargetID)
		case image.Table().Kind():
			there = image.Table().Has(a.tx, o.TargetID)
		}
		if !there {
			a.find("operation", o.ID, "%s runs, but its %s %s is gone", o.Verb, o.TargetKind, o.TargetID)
		}
	}
}

// servers: what is under way has its operation; what they refer to is there; no host holds more
// than it was given.
func (a *auditor) servers() {
	for s := range compute.Servers().Peek(a.tx, "", state.Range{}) {
		o, known := operation.Table().PeekOne(a.tx, s.OperationID)
		switch {
		case s.Task != "" && (!known || o.Outcome != operation.Running):
			a.find("server", s.ID, "%s is under way, but no operation of it runs", s.Task)
		case s.Task == "" && known && o.Outcome == operation.Running:
			a.find("server", s.ID, "nothing is under way, but its operation %s runs", o.Verb)
		}
		if s.Doomed() && s.Task != compute.Deleting {
			a.find("server", s.ID, "is to be deleted, and nobody does it")
		}
		if !s.HostID.IsZero() && !host.Table().Has(a.tx, s.HostID) {
			a.find("server", s.ID, "is on host %s, which is not there", s.HostID)
		}
		if s.Task == "" && s.HostID.IsZero() && s.Failure == nil {
			a.find("server", s.ID, "is on no host, and nobody looks for one")
		}
		if s.Task == "" && s.Stage() == compute.Building {
			a.find("server", s.ID, "is being built, and nobody does it")
		}
	}
}

func (a *auditor) images() {
	for i := range image.Table().Peek(a.tx, "", state.Range{}) {
		switch i.State {
		case image.Receiving, image.Staging, image.Importing:
			if operation.Active(a.tx, i.ID) == nil {
				a.find("image", i.ID, "is %s, but no operation of it runs", i.State)
			}
		}
	}
}

// ports: each has its network, and what uses it is there.
func (a *auditor) ports() {
	for p := range network.Ports().Peek(a.tx, "", state.Range{}) {
		if !network.Networks().Has(a.tx, p.NetworkID) {
			a.find("port", p.ID, "its network %s is gone", p.NetworkID)
		}
		for _, g := range p.Groups {
			if !network.Groups().Has(a.tx, g) {
				a.find("port", p.ID, "its security group %s is gone", g)
			}
		}
		device, err := resource.ParseID(p.DeviceID)
		if err != nil {
			continue // whatever a client wrote
		}
		switch p.Owner {
		case network.OwnerServer:
			if !p.HostID.IsZero() && !compute.Servers().Has(a.tx, device) {
				a.find("port", p.ID, "is on a host for server %s, which is gone", device)
			}
		case network.OwnerRouter, network.OwnerGateway:
			if !network.Routers().Has(a.tx, device) {
				a.find("port", p.ID, "its router %s is gone", device)
			}
		}
	}
}

// addresses: each is of its subnet, of its network, and nobody else's.
func (a *auditor) addresses() {
	type place struct {
		network resource.ID
		address netip.Addr
	}
	taken := map[place]resource.ID{}
	for p := range network.Ports().Peek(a.tx, "", state.Range{}) {
		for _, f := range p.Fixed {
			at := place{p.NetworkID, f.Address}
			if other, twice := taken[at]; twice {
				a.find("port", p.ID, "has address %s, as port %s has", f.Address, other)
			}
			taken[at] = p.ID
			s, ok := network.Subnets().PeekOne(a.tx, f.SubnetID)
			switch {
			case !ok:
				a.find("port", p.ID, "has address %s of subnet %s, which is gone", f.Address, f.SubnetID)
			case s.NetworkID != p.NetworkID:
				a.find("port", p.ID, "has address %s of a subnet of another network", f.Address)
			case !s.CIDR.Contains(f.Address):
				a.find("port", p.ID, "has address %s, outside of its subnet %s", f.Address, s.CIDR)
			}
		}
	}
}

// floating: what one leads to is there.
func (a *auditor) floating() {
	for f := range network.FloatingAddresses().Peek(a.tx, "", state.Range{}) {
		if !f.PortID.IsZero() && !network.Ports().Has(a.tx, f.PortID) {
			a.find("floating-address", f.ID, "its port %s is gone", f.PortID)
		}
		if !f.TargetID.IsZero() && !network.Ports().Has(a.tx, f.TargetID) {
			a.find("floating-address", f.ID, "leads to port %s, which is gone", f.TargetID)
		}
	}
}
