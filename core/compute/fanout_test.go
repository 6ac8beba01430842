package compute_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// An ear is a controller's hub to which all hosts are connected. It counts how many are woken, and how often it is derived what one
// is to have.
type ear struct {
	state   *state.State
	follows bool
	hub     *host.Hub
	hosts   []*cloudtest.Host
	all     []*host.Session
	derived int
	ahead   time.Duration
	later   []func()
}

func listen(c *cloudtest.Cloud, st *state.State, follows bool) *ear {
	e := &ear{state: st, follows: follows, hosts: c.Hosts}
	sources := slices.Concat(network.New(st).Sources(), compute.New(st, compute.Config{}).Sources(), host.Sources())
	for n := range sources {
		want := sources[n].Want
		sources[n].Want = func(tx *state.Tx, h, id resource.ID) (any, bool) {
			e.derived++
			return want(tx, h, id)
		}
	}
	e.hub = host.NewHub(st, sources...)
	e.hub.Now = func() time.Time { return c.Clock.Add(e.ahead) }
	e.hub.After = func(_ time.Duration, f func()) { e.later = append(e.later, f) }
	for _, h := range c.Hosts {
		e.all = append(e.all, e.hub.Connect(h.ID))
	}
	return e
}

// hear has everybody told what there is to tell, and answers who was woken and how often something was derived.
func (e *ear) hear(t *testing.T) (woken map[string]bool, derived int) {
	t.Helper()
	if e.follows {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nobody waits for what comes
		if err := e.state.Follow(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if err := e.hub.Pump(); err != nil {
		t.Fatal(err)
	}
	woken = map[string]bool{}
	for {
		quiet := true
		for n, s := range e.all {
			if len(s.Wake()) == 0 {
				continue
			}
			<-s.Wake()
			woken[e.hosts[n].Name], quiet = true, false
			if _, err := s.Poll(); err != nil {
				t.Fatal(err)
			}
		}
		if quiet && len(e.later) == 0 {
			break
		}
		e.ahead += time.Minute
		later := e.later
		e.later = nil
		for _, f := range later {
			f()
		}
	}
	derived, e.derived = e.derived, 0
	return woken, derived
}

// concerned is how many hosts have a server in the network of TestNobodyIsWokenForOthers.
const concerned = 5

// TestNobodyIsWokenForOthers: what is done with a server, or with the network, router and group that it is in, wakes hosts that have part in
// it, at whichever controller they have their sessions. It costs no more among many hosts than among a few.
func TestNobodyIsWokenForOthers(t *testing.T) {
	few, names := fanOut(t, concerned+2)
	many, _ := fanOut(t, 60)
	for _, name := range names {
		t.Logf("%-32s %3d derived", name, few[name])
		if few[name] != many[name] {
			t.Errorf("%s: among few hosts it is derived %d times what one is to have, among many %d", name, few[name], many[name])
		}
	}
	for _, name := range []string{"a server", "at a follower: a server", "at a follower: a router's leg"} {
		if few[name] == 0 {
			t.Errorf("nobody is told of %s", name)
		}
	}
}

// fanOut does with a cloud of so many hosts what a cloud is there for, and answers how often something was derived for each step.
func fanOut(t *testing.T, hosts int) (derived map[string]int, names []string) {
	c := cloudtest.New(t, hosts)
	hello := func(n int) host.Hello {
		hello := host.Hello{Name: c.Hosts[n].Name, Capacity: cloudtest.Capacity, Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)})}
		if n < 2 {
			hello.Physical = []string{"public"}
		}
		return hello
	}
	for n := range c.Hosts {
		c.Must(host.Arrive(c.Admin, c.State, c.Hosts[n].ID, hello(n)))
	}
	c.Must(network.Bootstrap(c.Admin, c.State, network.BootstrapOptions{Admin: c.Other}))
	public, _ := network.DefaultExternal(c.State.Latest())
	operator := identity.As(t.Context(), &identity.Actor{UserID: c.User.UserID, ProjectID: c.Project, Roles: []string{"admin", "member", "reader"}})
	launch := func(n int) resource.ID {
		made, err := c.Compute.Create(operator, c.Plain(compute.Launch{Host: c.Hosts[n].Name}))
		c.Must(err)
		c.Settle()
		return made.Servers[0]
	}
	for n := range concerned - 1 {
		launch(n)
	}
	follower, err := state.OpenFollower(t.Context(), c.Engine, state.Options{})
	c.Must(err)
	ears := map[string]*ear{"": listen(c, c.State, false), "at a follower: ": listen(c, follower, true)}
	for _, e := range ears {
		if woken, _ := e.hear(t); len(woken) != hosts {
			t.Fatalf("of %d hosts %d were told what they are to have", hosts, len(woken))
		}
	}
	derived = map[string]int{}
	after := func(name string, err error) {
		t.Helper()
		c.Must(err)
		c.Settle()
		for where, e := range ears {
			woken, n := e.hear(t)
			derived[where+name] = n
			names = append(names, where+name)
			for h := range woken {
				for _, other := range c.Hosts[concerned:] {
					if h == other.Name {
						t.Errorf("%s%s wakes %s, which has part in nothing", where, name, h)
					}
				}
			}
		}
	}
	project := func(name string) resource.Meta { return resource.Meta{Name: name, ProjectID: c.Project} }

	id := launch(concerned - 1)
	after("a server", nil)
	after("a server's stop", c.Compute.Do(c.Ctx, id, compute.Stopping))
	after("a server's start", c.Compute.Do(c.Ctx, id, compute.Starting))
	after("a server's image", second(c.Compute.CreateImage(c.Ctx, id, compute.ImageWanted{Name: "copy"})))
	after("a server's shelf", c.Compute.Shelve(c.Ctx, id, nil))
	after("a server from the shelf", c.Compute.Unshelve(operator, id, compute.Place{Host: c.Hosts[0].Name}))
	after("a server's move", c.Compute.LiveMigrate(operator, id, c.Hosts[concerned-1].Name))
	after("a server's keep", second(c.Compute.SetKeep(c.Ctx, id, func(k *compute.Keep) { k.Elsewhere = true })))
	text, err := json.Marshal("secret")
	c.Must(err)
	after("a told password", c.Hub.Observe(c.Admin, c.HostOf(id).ID, []host.Observation{{Key: host.Key{Kind: compute.PasswordKind, ID: id}, Seen: text}}))

	made, err := c.Network.Networks.Create(c.Ctx, &network.Network{Meta: project("another"), AdminUp: true, Secured: true})
	after("a network", err)
	subnets, err := c.Network.Subnets.Create(c.Ctx, &network.Subnet{Meta: project("another"), NetworkID: made[0].ID, CIDR: netip.MustParsePrefix("10.9.0.0/24"),
		Gateway: network.AutoGateway, DHCP: true})
	after("a subnet", err)
	routers, err := c.Network.Routers.Create(operator, &network.Router{Meta: project("router"), AdminUp: true, Gateway: &network.RouterGateway{NetworkID: public, SNAT: true}})
	after("a router", err)
	router := routers[0].ID
	after("a router's leg where nobody is", second(c.Network.AddInterface(c.Ctx, router, subnets[0].ID, resource.ID{})))
	subnet := network.Subnets().IDs(c.State.Latest(), "network", state.KeyOf(c.NetworkID))[0]
	after("a router's leg", second(c.Network.AddInterface(c.Ctx, router, subnet, resource.ID{})))
	floating, err := c.Network.Floating.Create(c.Ctx, &network.FloatingAddress{Meta: project(""), NetworkID: public})
	after("a floating address", err)
	port := network.Ports().IDs(c.State.Latest(), "device", state.KeyOf(id.String()))[0]
	after("a floating address's aim", second(c.Network.Floating.Update(c.Ctx, floating[0].ID, 0, func(f *network.FloatingAddress) error { f.TargetID = port; return nil })))
	after("a router's name", second(c.Network.Routers.Update(c.Ctx, router, 0, func(r *network.Router) error { r.AdminUp = false; return nil })))
	group, _ := network.DefaultGroup(c.State.Latest(), c.Project)
	after("a rule", second(c.Network.Rules.Create(c.Ctx, &network.Rule{Meta: project(""), GroupID: group, Ingress: true, Protocol: 6, ProtocolLabel: "tcp"})))
	after("an MTU", second(c.Network.Networks.Update(c.Ctx, c.NetworkID, 0, func(n *network.Network) error { n.MTU = 1300; return nil })))
	after("another router's leg", second(c.Network.RemoveInterface(c.Ctx, router, subnets[0].ID, resource.ID{})))
	another := hello(1)
	another.Address = netip.MustParseAddr("198.51.100.1")
	after("a host's new address", host.Arrive(c.Admin, c.State, c.Hosts[1].ID, another))
	after("a host's uplink", c.Hub.Observe(c.Admin, c.Hosts[2].ID, host.UplinkReport(c.Hosts[2].ID, []string{"public"})))
	after("a host that falls mute", c.Hub.Observe(c.Admin, c.Hosts[1].ID, host.MuteReport(c.Hosts[1].ID, true)))
	c.Lose(c.Hosts[hosts-1])
	after("a lost host that had nothing", nil)
	after("a server's end", c.Compute.Delete(c.Ctx, id))
	return derived, names
}

func second[T any](_ T, err error) error { return err }
