package simulation

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// client is the tenants: a few projects that make, change and delete things at random, and
// remember what they were promised.
type client struct {
	w        *world
	projects []*project
	image    resource.ID
	serial   int
	outside  resource.ID     // the network that leads there
	seated   bool            // the cloud has seats, and hosts may offer some
	backed   map[series]bool // backups of which one at least is whole
	stubborn *project        // whose owner resists maintenance; nil for none
	until    time.Time       // he does
	broken   error           // a promise that an answer broke
}

type project struct {
	id       resource.ID
	ctx      context.Context
	networks []resource.ID
	routers  []resource.ID
	groups   []resource.ID // of servers, one that keeps them apart and one that keeps them together
	// servers that were promised and whose deletion was not asked for.
	servers map[resource.ID]bool
	order   []resource.ID
}

func (w *world) newClient() (*client, error) {
	c := &client{w: w, backed: map[series]bool{}}
	admin := identity.Internal(w.ctx)
	if err := compute.Bootstrap(admin, w.control.state); err != nil {
		return nil, err
	}
	if w.level() == 0 {
		if err := c.newest(); err != nil {
			return nil, err
		}
	}
	images := w.control.images
	i, err := images.Create(admin, image.Request{Name: "small", ProjectID: resource.NewID(w.clock, w),
		Spec: image.Spec{Format: "raw", Container: "bare", Visibility: image.Public}})
	if err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	c.image = i.ID
	if err := images.Upload(admin, i.ID, bytes.NewReader(make([]byte, 1<<20)), 1<<20); err != nil {
		return nil, fmt.Errorf("fill the image: %w", err)
	}
	if err := c.addOutside(); err != nil {
		return nil, fmt.Errorf("make the network outside: %w", err)
	}
	for range 3 {
		actor := &identity.Actor{UserID: resource.NewID(w.clock, w), ProjectID: resource.NewID(w.clock, w), Roles: []string{"member", "reader"}}
		p := &project{id: actor.ProjectID, ctx: identity.As(w.ctx, actor), servers: map[resource.ID]bool{}}
		c.projects = append(c.projects, p)
		if err := c.addNetwork(p); err != nil {
			return nil, fmt.Errorf("make a network: %w", err)
		}
		for _, policy := range []compute.Policy{compute.Apart, compute.Together} {
			g, err := w.control.compute.CreateGroup(p.ctx, compute.Group{Meta: resource.Meta{Name: string(policy)}, Policy: policy})
			if err != nil {
				return nil, fmt.Errorf("make a group: %w", err)
			}
			p.groups = append(p.groups, g.ID)
		}
	}
	return c, nil
}

// newest makes what the newest level has: leases that count, a custom resource, and a flavor that needs it.
func (c *client) newest() error {
	admin := identity.Internal(c.w.ctx)
	if _, err := (&host.Service{State: c.w.control.state}).SetKeeping(admin, func(k *host.Keeping) { k.Leases = true }); err != nil {
		return fmt.Errorf("let leases count: %w", err)
	}
	if _, err := (&host.Service{State: c.w.control.state}).CreateClass(admin, seat); err != nil && !fault.Is(err, fault.Exists) {
		return fmt.Errorf("make a resource class: %w", err)
	}
	if _, err := c.w.control.compute.CreateFlavor(admin, compute.Flavor{Meta: resource.Meta{Name: "seated"}, Ref: "seated", VCPUs: 1, MemoryMiB: 128, RootGiB: 1,
		Extra: map[string]string{"resources:" + seat: "1", "trait:COMPUTE_NODE": "required"}}); err != nil && !fault.Is(err, fault.Exists) {
		return fmt.Errorf("make a flavor: %w", err)
	}
	c.seated = true
	if c.w.Seed%2 == 0 {
		if _, err := (&host.Service{State: c.w.control.state}).SetKeeping(admin, func(k *host.Keeping) { k.ShelvedStay = time.Minute }); err != nil {
			return fmt.Errorf("let shelved servers stay: %w", err)
		}
	}
	return nil
}

// finalise ends the upgrade with which a seed began.
func (c *client) finalise() (string, error) {
	if _, _, err := state.Finalise(identity.Internal(c.w.ctx), c.w.control.state, "simulated", func(*state.Tx, int) error { return nil }); err != nil {
		return "finalise", err
	}
	return "finalise", c.newest()
}

func (c *client) addNetwork(p *project) error {
	s := c.w.control.network
	c.serial++
	made, err := s.Networks.Create(p.ctx, &network.Network{Meta: resource.Meta{Name: fmt.Sprint("net-", c.serial), ProjectID: p.id}, AdminUp: true, Secured: true})
	if err != nil {
		return err
	}
	_, err = s.Subnets.Create(p.ctx, &network.Subnet{Meta: resource.Meta{ProjectID: p.id}, NetworkID: made[0].ID,
		CIDR: netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", c.serial/250, c.serial%250)), DHCP: true})
	if err == nil {
		p.networks = append(p.networks, made[0].ID)
	}
	return err
}

// seat is a custom resource of which the operator gives hosts a few, or none.
const seat = "CUSTOM_SEAT"

// offer changes how many seats a host has. Those that are taken cannot all be taken away.
func (c *client) offer() (string, error) {
	n := c.w.nodes[c.w.rng.IntN(len(c.w.nodes))]
	seats := int64(c.w.rng.IntN(4))
	_, err := c.w.control.compute.SetInventory(identity.Internal(c.w.ctx), n.id, nil, func(all map[string]host.Inventory) (map[string]host.Inventory, error) {
		delete(all, seat)
		if seats > 0 {
			all[seat] = host.Inventory{Total: seats, Ratio: 1, Min: 1, Max: 1, Step: 1}
		}
		return all, nil
	})
	return fmt.Sprintf("%d seats on %s", seats, n.name), err
}

// ask makes one request.
func (c *client) ask() {
	p := c.projects[c.w.rng.IntN(len(c.projects))]
	c.w.result.Asked++
	what, err := c.request(p)
	switch {
	case err == nil:
		c.w.trace("asked: %s", what)
	case fault.From(err) != nil:
		c.w.result.Refused++
		c.w.reach(err)
		c.w.trace("asked: %s: refused: %v", what, err)
	default:
		c.w.trace("asked: %s: failed: %v", what, err)
	}
}

func (c *client) request(p *project) (string, error) {
	w := c.w
	if !c.seated && w.chance(5) {
		return c.finalise()
	}
	if w.chance(30) {
		return c.offer()
	}
	if w.chance(40) {
		return c.route(p)
	}
	if w.chance(60) {
		return c.enter()
	}
	if w.chance(200) {
		if what, err := c.waver(p); what != "" {
			return what, err
		}
	}
	n := w.rng.IntN(100)
	if n < 30 || len(p.order) == 0 {
		flavor := "42"
		if c.seated && w.chance(250) {
			flavor = "seated"
		}
		return c.create(p, flavor)
	}
	if n < 33 && len(p.networks) < 5 {
		return "network", c.addNetwork(p)
	}
	if n < 43 {
		return c.cancel(p)
	}
	at := w.rng.IntN(len(p.order))
	id := p.order[at]
	if len(w.bequeathed(p)) > 0 && w.chance(500) {
		return c.shelf(p, id)
	}
	if n < 58 {
		remove := w.control.compute.Delete
		if w.chance(200) {
			remove = w.control.compute.ForceDelete
		}
		p.renounce(id)
		return "delete " + id.String(), remove(p.ctx, id)
	}
	if n < 75 {
		return c.move(id)
	}
	if n < 83 {
		return c.keep(p, id)
	}
	if n < 93 {
		return c.shelf(p, id)
	}
	tasks := []compute.Task{compute.Starting, compute.Stopping, compute.SoftRebooting, compute.HardRebooting,
		compute.Pausing, compute.Unpausing, compute.Suspending, compute.Resuming}
	task := tasks[w.rng.IntN(len(tasks))]
	return string(task) + " " + id.String(), w.control.compute.Do(p.ctx, id, task)
}

// move has an operator take a server to another host, its owner settle what became of it, or somebody hurry it or
// give it up.
func (c *client) move(id resource.ID) (string, error) {
	w, admin := c.w, identity.Internal(c.w.ctx)
	if other := w.cutOff(); !other.IsZero() && w.chance(400) {
		return "evacuate " + other.String() + ", which runs", c.evacuate(other)
	}
	s := w.control.compute
	number := 0
	if srv, ok := compute.Servers().PeekOne(w.control.state.Latest(), id); ok {
		if m, ok := compute.Migrations().PeekOne(w.control.state.Latest(), srv.MigrationID); ok {
			number = m.Number
		}
	}
	asks := []struct {
		what string
		ask  func() error
	}{
		{"migrate", func() error { return s.Migrate(admin, id, "") }},
		{"migrate", func() error { return s.Migrate(admin, id, w.nodes[w.rng.IntN(len(w.nodes))].name) }},
		{"migrate live", func() error { return s.LiveMigrate(admin, id, "") }},
		{"migrate live", func() error { return s.LiveMigrate(admin, id, w.nodes[w.rng.IntN(len(w.nodes))].name) }},
		{"resize", func() error { return s.Reshape(admin, id, []string{"42", "84", "1"}[w.rng.IntN(3)], nil) }},
		{"confirm", func() error { return s.Confirm(admin, id) }},
		{"revert", func() error { return s.Revert(admin, id) }},
		{"hurry the move of", func() error { return s.HurryMove(admin, id, number) }},
		{"abort the move of", func() error { return s.AbortMove(admin, id, number) }},
		{"evacuate", func() error { return c.evacuate(id) }},
		{"forecast the move of", func() error { return c.forecast(id) }},
	}
	a := asks[w.rng.IntN(len(asks))]
	return a.what + " " + id.String(), a.ask()
}

// forecast has an operator ask what a move would take, which has to be told of whatever is under way, and to change nothing.
func (c *client) forecast(id resource.ID) error {
	w := c.w
	before := w.control.state.Latest().Revision()
	f, err := w.control.compute.ForecastMove(identity.Internal(w.ctx), id, compute.Relocation{Off: w.chance(200)})
	if now := w.control.state.Latest().Revision(); now != before {
		c.broken = fmt.Errorf("the forecast of a move of %s changed something", id)
	}
	if err != nil {
		return err
	}
	if f.To == f.From || f.Seconds.Least <= 0 || f.Outcome == "" || f.Seconds.Most != 0 && f.Seconds.Most < f.Seconds.Least {
		c.broken = fmt.Errorf("the forecast of a move of %s says %+v", id, f)
	}
	w.trace("forecast: %s, %.1f s, %s", f.Wire.Basis, f.Seconds.Expected, f.Outcome)
	return nil
}

// evacuate has an operator make a server anew elsewhere. Now and then he asks for that while the host is merely lost, and may run the guest
// still: it is done only where the disks are shared. Else he makes sure that the host is dead, and says so: here it loses all that it has, and
// hears of the cloud again only with its agent's memory gone.
func (c *client) evacuate(id resource.ID) error {
	w, admin := c.w, identity.Internal(c.w.ctx)
	tx := w.control.state.Latest()
	srv, ok := compute.Servers().PeekOne(tx, id)
	if !ok || !w.lost(srv.HostID) {
		return w.control.compute.Evacuate(admin, id, "", "")
	}
	h, known := host.Table().PeekOne(tx, srv.HostID)
	// Of a host that is known to be dead he sees to it that it stays so, where it may be switched on again and start what it had unasked.
	if (!known || !h.Dead() || srv.Lasts() || w.alone() < 0) && w.chance(800) {
		w.fault("evacuated on a guess")
		err := w.control.compute.Evacuate(admin, id, "", "")
		if err == nil && known && !h.Dead() && !srv.Lasts() {
			c.broken = fmt.Errorf("server %s was evacuated from %s, which may run it still", id, h.Name)
		}
		return err
	}
	for _, n := range w.nodes {
		if n.id == srv.HostID && !n.dead {
			w.fault("machine replaced")
			n.replace()
		}
	}
	if _, err := (&host.Service{State: w.control.state}).Vouch(admin, srv.HostID); err != nil {
		return err
	}
	return w.control.compute.Evacuate(admin, id, "", "")
}

// cutOff is a server whose host cannot be heard, and runs it still; zero if there is none.
func (w *world) cutOff() resource.ID {
	tx := w.control.state.Latest()
	for _, n := range w.nodes {
		if n.dead || !w.lost(n.id) {
			continue
		}
		for _, id := range n.machine.Running() {
			if srv, ok := compute.Servers().PeekOne(tx, id); ok && srv.HostID == n.id {
				return id
			}
		}
	}
	return resource.ID{}
}

// renounce lets a server go: whatever is answered, it may be gone from now on.
func (p *project) renounce(id resource.ID) {
	delete(p.servers, id)
	p.order = slices.DeleteFunc(p.order, func(other resource.ID) bool { return other == id })
}

// cancel takes back something that is under way.
func (c *client) cancel(p *project) (string, error) {
	tx := c.w.control.state.Latest()
	var running []*operation.Operation
	for o := range operation.Table().Peek(tx, "deadline", state.Range{}) {
		if o.ProjectID == p.id {
			running = append(running, o)
		}
	}
	if len(running) == 0 {
		return "cancel nothing", nil
	}
	o := running[c.w.rng.IntN(len(running))]
	if o.Verb == string(compute.Creating) {
		p.renounce(o.TargetID)
	}
	ctx := p.ctx
	if c.w.chance(500) {
		ctx = identity.Internal(c.w.ctx) // an operator
	}
	_, err := c.w.control.operations.Cancel(ctx, o.ID)
	return "cancel " + o.Verb + " " + o.TargetID.String(), err
}

// create asks for a server; now and then as a plan, or twice with the same key.
func (c *client) create(p *project, flavor string) (string, error) {
	w := c.w
	c.serial++
	launch := compute.Launch{Name: fmt.Sprint("server-", c.serial), Flavor: flavor, ImageID: c.image,
		NICs: []compute.NICWanted{{NetworkID: p.networks[w.rng.IntN(len(p.networks))]}}, Max: 1 + w.rng.IntN(2)}
	if w.chance(400) {
		launch.Hints = map[string]string{"unkai_restart_elsewhere": "true"}
	}
	if w.chance(250) {
		launch.GroupID = p.groups[w.rng.IntN(len(p.groups))]
	}
	if w.chance(100) {
		before := w.control.state.Latest().Revision()
		_, err := w.control.compute.Create(state.WithPlan(p.ctx, new(state.Plan)), launch)
		if w.control.state.Latest().Revision() != before {
			panic("a plan changed the state")
		}
		return "plan of " + launch.Name, err
	}
	key := &state.Once{Scope: "client", Key: launch.Name, Hash: launch.Name}
	made, err := w.control.compute.Create(state.WithOnce(p.ctx, key), launch)
	if err == nil && w.chance(100) {
		again, err := w.control.compute.Create(state.WithOnce(p.ctx, &state.Once{Scope: key.Scope, Key: key.Key, Hash: key.Hash}), launch)
		if err == nil && fmt.Sprint(again) != fmt.Sprint(made) {
			panic("the same request had two effects")
		}
	}
	if err != nil {
		return "create " + launch.Name, err // nothing was promised
	}
	var ids []string
	for _, id := range made.Servers {
		p.servers[id] = true
		p.order = append(p.order, id)
		ids = append(ids, id.String())
	}
	return "create " + strings.Join(ids, " "), nil
}
