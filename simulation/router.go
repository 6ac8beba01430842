package simulation

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// outside is the physical network that leads away from the machines that are plugged into it.
const outside = "public"

// physical is what the machine is connected with, and says so when that has been for a while.
func (n *node) physical() []string {
	if n.uplink == "" || n.dark {
		return nil
	}
	return []string{n.uplink}
}

// plugged is what the machine is plugged into, and whether there is a carrier.
func (n *node) plugged() (map[string]bool, error) {
	if n.uplink == "" {
		return nil, nil
	}
	return map[string]bool{n.uplink: !n.dark}, nil
}

// replug has an operator plug a machine's uplink in or out, or the carrier come or go. Nobody tells the controller but the machine.
func (w *world) replug(n *node) {
	if w.chance(500) {
		w.fault("carrier came or went")
		n.dark = !n.dark
		return
	}
	if n.uplink == "" {
		w.fault("uplink plugged in")
		n.uplink = outside
		return
	}
	w.fault("uplink plugged out")
	n.uplink = ""
}

// addOutside makes the network that routers lead to.
func (c *client) addOutside() error {
	admin, s := identity.Internal(c.w.ctx), c.w.control.network
	operator := resource.NewID(c.w.clock, c.w)
	made, err := s.Networks.Create(admin, &network.Network{Meta: resource.Meta{Name: outside, ProjectID: operator}, AdminUp: true, Secured: true,
		External: true, Kind: network.Flat, Physical: outside})
	if err != nil {
		return err
	}
	c.outside = made[0].ID
	_, err = s.Subnets.Create(admin, &network.Subnet{Meta: resource.Meta{ProjectID: operator}, NetworkID: c.outside, CIDR: netip.MustParsePrefix("172.24.0.0/16")})
	return err
}

// route makes a router, with or without a way outside, puts one into a network, or takes one away.
func (c *client) route(p *project) (string, error) {
	w, s := c.w, c.w.control.network
	if len(p.routers) < 2 {
		want := &network.Router{Meta: resource.Meta{Name: "r", ProjectID: p.id}, AdminUp: true}
		if w.chance(800) {
			want.Gateway = &network.RouterGateway{NetworkID: c.outside, SNAT: true}
		}
		made, err := s.Routers.Create(p.ctx, want)
		if err == nil {
			p.routers = append(p.routers, made[0].ID)
		}
		return "router", err
	}
	at := w.rng.IntN(len(p.routers))
	id := p.routers[at]
	if w.chance(600) {
		subnet := network.Subnets().IDs(w.control.state.Latest(), "network", state.KeyOf(p.networks[w.rng.IntN(len(p.networks))]))[0]
		_, err := s.AddInterface(p.ctx, id, subnet, resource.ID{})
		return fmt.Sprintf("leg of %s in %s", id, subnet), err
	}
	for leg := range network.Ports().Peek(w.control.state.Latest(), "device", state.Range{Prefix: state.KeyOf(id.String())}) {
		if leg.Owner == network.OwnerRouter {
			_, err := s.RemoveInterface(p.ctx, id, resource.ID{}, leg.ID)
			return fmt.Sprintf("no leg of %s in %s", id, leg.NetworkID), err
		}
	}
	err := s.Routers.Delete(p.ctx, id, 0)
	if err == nil || fault.Is(err, fault.NotFound) { // whose answer was lost
		p.routers = slices.Delete(p.routers, at, at+1)
	}
	return "no router " + id.String(), err
}

// carries reports whether a host does as a router's home, as far as the controller can know.
func carries(h *host.Host, r *network.Router) bool {
	return h.Up() && h.Mute.IsZero() && !h.Maintenance && (r.Gateway == nil || slices.Contains(h.Physical, outside))
}

// misrouted names a router that has no home, or one that does not do while another would; "" when there is none. It is also
// misrouted if the controller does not know what the machine is connected with.
func (w *world) misrouted(tx *state.Tx) string {
	for _, n := range w.nodes {
		if h, ok := host.Find(tx, n.id); ok && n.session != nil && !slices.Equal(h.Physical, n.physical()) {
			return fmt.Sprintf("%s is connected with %q, and known to be with %q", n.name, n.physical(), h.Physical)
		}
	}
	for r := range network.Routers().Peek(tx, "", state.Range{}) {
		home, ok := host.Find(tx, r.HostID)
		if ok && carries(home, r) {
			continue
		}
		for h := range host.Table().Peek(tx, "", state.Range{}) {
			if !ok || carries(h, r) {
				return fmt.Sprintf("router %s is on host %s, and %s would do", r.ID, r.HostID, h.Name)
			}
		}
	}
	return ""
}

// A trail follows where routers go, change by change.
type trail struct {
	of    *control
	watch *state.Watcher
	hosts map[resource.ID]*host.Host // as they were when what is looked at now was changed
}

// begin takes up the trail where the controller's state is now.
func (t *trail) begin(c *control) {
	tx := c.state.Latest()
	t.of, t.watch, t.hosts = c, c.state.Watch(tx.Revision()), map[resource.ID]*host.Host{}
	for h := range host.Table().Each(tx, "", "") {
		t.hosts[h.ID] = h
	}
}

// checkSteady is that no router left a home that did.
func (w *world) checkSteady() error {
	if w.trail.of != w.control {
		w.trail.begin(w.control)
		return nil
	}
	events, err := w.trail.watch.Poll()
	if err != nil { // it was too long ago
		w.trail.begin(w.control)
		return nil
	}
	for _, e := range events {
		switch after := e.After.(type) {
		case *host.Host:
			w.trail.hosts[e.ID] = after
		case *network.Router:
			before, ok := e.Before.(*network.Router)
			if !ok || before.HostID == after.HostID {
				continue
			}
			if home := w.trail.hosts[before.HostID]; home != nil && carries(home, after) {
				return fmt.Errorf("router %s left %s, where it was well, for %s", e.ID, home.Name, after.HostID)
			}
		}
		if e.After == nil {
			delete(w.trail.hosts, e.ID)
		}
	}
	return nil
}
