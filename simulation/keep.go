package simulation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// dog is a machine's watchdog.
type dog struct {
	w      *world
	armed  bool
	petted time.Time
}

func (d *dog) Arm() error {
	d.armed, d.petted = true, d.w.clock
	return nil
}

func (d *dog) Disarm() error {
	d.armed = false
	return nil
}

// bark has watchdogs reset machines whose agents have not petted them in time.
func (w *world) bark() {
	for _, n := range w.nodes {
		if n.answers() && n.dog.armed && w.clock.Sub(n.dog.petted) > agent.WatchdogTime {
			w.fault("watchdog reset a machine")
			n.reboot()
		}
	}
}

// pass lets time go by in which nobody asks for anything, and what goes on goes on.
func (w *world) pass(d time.Duration) error {
	for until := w.clock.Add(d); w.clock.Before(until); w.clock = w.nextMoment() {
		w.bark()
		for range 200 { // else it comes later
			busy := w.work()
			for _, n := range w.nodes {
				busy = n.step() || busy
			}
			if err := errors.Join(w.mindControl(), w.checkNoneTwice()); err != nil {
				return err
			}
			if !busy {
				break
			}
		}
	}
	return nil
}

// boot is what begins anew with a machine.
func (n *node) boot() {
	n.dog = &dog{w: n.w}
	n.lease = &agent.Lease{Watchdog: n.dog, Clock: n.w.now}
	n.word = &agent.Word{After: n.w.alone(), Clock: n.w.now}
	n.guardAt, n.renewAt = time.Time{}, time.Time{}
}

// alone is for how long guests wait for a controller's word after a boot: where it is not for ever, an operator sees to it that a machine which he
// evacuates servers from stays off.
func (w *world) alone() time.Duration {
	if w.Seed%2 == 0 {
		return -1
	}
	return 2 * time.Minute
}

// reboot is a machine that lost power for a moment.
func (n *node) reboot() {
	n.machine.Reboot()
	n.boot()
	n.restart()
}

// answers reports whether the machine is on, starting it if it was switched off for long enough.
func (n *node) answers() bool {
	if n.dead || n.w.clock.Before(n.offUntil) {
		return false
	}
	if !n.offUntil.IsZero() {
		n.offUntil = time.Time{}
		n.reboot()
	}
	return true
}

// kill ends a machine for ever, if enough others are left.
func (w *world) kill(n *node) {
	for _, other := range w.nodes {
		if other.dead || len(w.nodes) < 3 {
			return
		}
	}
	w.fault("machine died for ever")
	n.machine.Reboot()
	n.drop()
	n.dead = true
}

func (w *world) node(id resource.ID) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// An ask is for a lease, and a grant is one: on its way.
type ask struct {
	asked   time.Time
	arrival int
}

type grant struct {
	asked  time.Time
	answer host.LeaseAnswer
}

// guard is the part of the agent that looks after its lease.
func (n *node) guard() {
	if n.w.clock.Before(n.guardAt) {
		return
	}
	n.guardAt = n.w.clock.Add(time.Second)
	if err := n.guests.Guard(n.w.ctx, n.agent); err != nil {
		panic(err) // the dog in memory does not fail
	}
}

// renew asks for the lease, now and then of another controller than the session's. What is asked and answered may be late, or lost.
func (n *node) renew() {
	w := n.w
	if len(n.grants) > 0 && (w.calm || w.chance(500)) {
		if err := n.lease.Granted(n.grants[0].asked, n.grants[0].answer); err != nil {
			panic(err) // nothing is kept in a file
		}
		n.grants = n.grants[1:]
	}
	if n.agent.Current() && !w.clock.Before(n.renewAt) {
		n.renewAt = w.clock.Add(host.RenewEvery)
		n.asks = append(n.asks, ask{n.lease.Asks(), n.agent.Arrival()})
	}
	if len(n.asks) == 0 || !w.calm && w.chance(300) {
		return
	}
	a := n.asks[0]
	n.asks = n.asks[1:]
	hub := n.hub()
	if k := len(w.followers); k > 0 && w.chance(100) {
		hub = w.followers[w.rng.IntN(k)].hub
	}
	answer, err := hub.Renew(w.ctx, n.id, a.arrival)
	if err != nil {
		w.trace("%s: lease: %v", n.name, err)
		return
	}
	if !w.calm && w.chance(20) {
		w.fault("lease lost")
		return
	}
	n.grants = append(n.grants, grant{a.asked, answer})
}

// fencer switches machines off.
type fencer struct{ w *world }

func (f fencer) Off(_ context.Context, h *host.Host) error {
	w := f.w
	if !w.calm && w.chance(300) {
		w.fault("fencing failed")
		return errors.New("simulated: the machine's switch does not answer")
	}
	n := w.node(h.ID)
	w.fault("machine switched off")
	n.machine.Reboot()
	n.drop()
	n.offUntil = w.clock.Add(time.Duration(1+w.rng.IntN(120)) * time.Second)
	if w.calm {
		n.offUntil = w.clock.Add(time.Second)
	}
	return nil
}

// provide gives every other host something that switches it off. The rest is known to be dead by its lease alone.
func (w *world) provide(n *node) {
	if n.name[len(n.name)-1]%2 != 0 {
		return
	}
	h, ok := host.Find(w.control.state.Latest(), n.id)
	if !ok || h.Fencing.Driver != "" {
		return
	}
	if err := w.control.state.Update(w.ctx, func(tx *state.Tx) error {
		h, _ := host.Find(tx, n.id)
		h.Fencing.Driver = "sim"
		return host.Table().Put(tx, h)
	}); err != nil {
		w.trace("%s: provide: %v", n.name, err)
	}
}

// patience is how long an operator leaves a host in maintenance that has died, and from which something is to be restarted elsewhere.
const patience = prompt - 20*time.Second

// enableAll ends all maintenance, but for a while that of dead machines from which something is to be restarted elsewhere: that has to be, whatever
// they were in. An operator does not wait for what will not be: in a storm, or when nothing is awaited any more.
func (w *world) enableAll(calm time.Time) error {
	s := host.Service{State: w.control.state}
	tx := w.control.state.Latest()
	_, _, storm := compute.Storm(tx)
	for h := range host.Table().Each(tx, "name", "") {
		if !h.Disabled && !h.Maintenance {
			continue
		}
		if n := w.node(h.ID); n != nil && n.dead && !storm && w.clock.Sub(calm) < patience && compute.Awaited(tx, h.ID) && (host.KeepingOf(tx).Leases || h.Fencing.Driver != "") {
			continue
		}
		if err := s.SetDisabled(identity.Internal(w.ctx), h.ID, false, ""); err != nil {
			return fmt.Errorf("enable %s: %w", h.Name, err)
		}
	}
	return nil
}

// keep has an operator or an owner ask for something about how guests are kept alive.
func (c *client) keep(p *project, id resource.ID) (string, error) {
	w, admin := c.w, identity.Internal(c.w.ctx)
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	hosts := host.Service{State: w.control.state}
	switch w.rng.IntN(12) {
	case 0, 3:
		c.stubborn, c.until = c.projects[w.rng.IntN(len(c.projects))], w.clock.Add(time.Duration(w.rng.IntN(60))*time.Second)
		_, err := w.control.compute.Retire(admin, n.id, compute.Retirement{Stop: w.chance(300), AtOnce: 1 + w.rng.IntN(3)})
		return "maintenance of " + n.name, err
	case 1:
		before := w.control.state.Latest().Revision()
		_, err := w.control.compute.PlanRetirement(admin, n.id, compute.Retirement{Stop: w.chance(300)})
		if w.control.state.Latest().Revision() != before {
			panic("a plan changed the state")
		}
		return "plan of the maintenance of " + n.name, err
	case 2:
		return "enable " + n.name, hosts.SetDisabled(admin, n.id, false, "")
	case 4:
		if !n.dead { // an operator looks before he gives his word
			return "look at " + n.name, nil
		}
		_, err := hosts.Vouch(admin, n.id)
		return "vouch for the death of " + n.name, err
	case 5, 6:
		return c.resist(p)
	default:
		elsewhere, priority := w.chance(700), w.rng.IntN(3)
		_, err := w.control.compute.SetKeep(p.ctx, id, func(k *compute.Keep) { k.Elsewhere, k.Priority = elsewhere, priority })
		return fmt.Sprintf("keep %s, elsewhere too: %v", id, elsewhere), err
	}
}

// insist has an owner resist again and again for a while after a maintenance has begun: what is refused then is refused for a moment only, which
// nobody meets who asks now and then.
func (w *world) insist() {
	c := w.client
	if c.stubborn == nil || !w.chance(200) {
		return
	}
	if w.clock.After(c.until) {
		c.stubborn = nil
		return
	}
	what, err := c.resist(c.stubborn)
	w.trace("insisted: %s: %v", what, err)
}

// resist has an owner keep what is his busy on hosts in maintenance, or run it again there.
func (c *client) resist(p *project) (string, error) {
	w := c.w
	tx := w.control.state.Latest()
	asked, refused := 0, 0
	for _, id := range p.order {
		srv, ok := compute.Servers().PeekOne(tx, id)
		if !ok {
			continue
		}
		if h, ok := host.Table().PeekOne(tx, srv.HostID); !ok || !h.Maintenance {
			continue
		}
		task := []compute.Task{compute.Starting, compute.HardRebooting, compute.Resuming, compute.Stopping}[w.rng.IntN(4)]
		asked++
		if err := w.control.compute.Do(p.ctx, id, task); fault.From(err) != nil {
			refused++
			w.reach(err)
		} else if err != nil {
			return "resist maintenance", err
		}
	}
	return fmt.Sprintf("%d things of hosts in maintenance, %d of them refused", asked, refused), nil
}

// refusals are what owners are told for the sake of a host's maintenance, by what is said.
var refusals = map[string]string{"the server is the next to leave it": "the next to leave refused", "what does not run there cannot begin to": "a start in maintenance refused",
	"no other has room for the new flavor": "a resize in maintenance refused"}

// reach counts a refusal that is rare.
func (w *world) reach(err error) {
	f := fault.From(err)
	if f == nil || f.Code != "host-in-maintenance" {
		return
	}
	for said, what := range refusals {
		if strings.Contains(f.Message, said) {
			w.result.Reached[what]++
		}
	}
}

// unkept says which server is not kept alive as it should be; "" for none.
func (w *world) unkept(tx *state.Tx) string {
	for srv := range compute.Servers().Peek(tx, "", state.Range{}) {
		n := w.node(srv.HostID)
		if !srv.Crash.Restart.IsZero() && (n == nil || !n.dead) {
			return fmt.Sprintf("server %s has crashed and is to be started again", srv.ID)
		}
		if n == nil || !n.dead || !srv.Keep.Elsewhere || srv.Power != compute.On || srv.LaunchedAt.IsZero() || srv.Doomed() {
			continue
		}
		h, _ := host.Table().PeekOne(tx, n.id)
		if !h.Dead() && !host.KeepingOf(tx).Leases && h.Fencing.Driver == "" {
			continue // nobody could know: the operator has not come to that since the upgrade
		}
		if !h.Dead() {
			return fmt.Sprintf("host %s is dead, and nobody knows it", n.name)
		}
		if h.Fenced.How != host.ByWord && srv.Seen.Wish < srv.Sworn {
			continue // an operator has to say it
		}
		err := w.control.compute.Evacuate(state.WithPlan(identity.Internal(w.ctx), new(state.Plan)), srv.ID, "", "")
		if !fault.Is(err, fault.Exhausted) {
			return fmt.Sprintf("server %s of the dead host %s could be elsewhere: %v", srv.ID, n.name, err)
		}
		if srv.Stranded == nil {
			return fmt.Sprintf("server %s of the dead host %s waits, and does not say why", srv.ID, n.name)
		}
	}
	return ""
}
