package simulation

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/driver/sim"
)

// node is one machine with its agent and its link.
type node struct {
	w         *world
	id        resource.ID
	name      string
	machine   *sim.Machine
	store     *memoryStore
	agent     *agent.Agent
	cert      *x509.Certificate
	at        *follower // the controller that is asked; nil: the one that leads
	session   *host.Session
	sent      []host.Delivery // on their way
	cutUntil  time.Time
	failing   int // of 1,000 calls
	failUntil time.Time
	slow      time.Duration
	slowUntil time.Time
	resync    time.Time

	uplink  string // the physical network that it is plugged into; "" for none
	dark    bool   // without a carrier there
	uplinks *agent.Uplinks

	guests   *agent.Guests
	lease    *agent.Lease // outlives the agent, and not the machine's boot
	word     *agent.Word  // the same
	dog      *dog
	guardAt  time.Time
	renewAt  time.Time
	asks     []ask     // for the lease, on their way
	grants   []grant   // on their way
	dead     bool      // for ever
	offUntil time.Time // switched off
}

func (w *world) newNode(n int) (*node, error) {
	node := &node{w: w, name: fmt.Sprintf("host-%02d", n), store: newMemoryStore()}
	if err := node.first(); err != nil {
		return nil, fmt.Errorf("have %s join: %w", node.name, err)
	}
	node.machine = sim.New(compute.Capabilities{VCPUs: 4, MemoryMiB: 2048, DiskGiB: 100, MaxVCPUs: 4, Arch: "x86_64"})
	w.net.Join(node.machine)
	if w.Seed%3 == 1 || n%2 == 0 { // all of them, or every other
		node.machine.Storage = w.storage
	}
	if n%(1+int(w.Seed%4)) == 0 { // all of them, every other, …
		node.uplink = outside
	}
	node.machine.Now = w.now
	node.machine.Takes = func(string) time.Duration {
		if w.clock.Before(node.slowUntil) {
			return node.slow
		}
		return time.Duration(w.rng.IntN(500)) * time.Millisecond
	}
	node.machine.Fault = func(call string, _ resource.ID) error {
		if w.clock.Before(node.failUntil) && w.rng.IntN(1000) < node.failing {
			return fmt.Errorf("simulated: %s failed", call)
		}
		return nil
	}
	node.boot()
	node.restart()
	return node, nil
}

// restart is a new agent process on the same machine.
func (n *node) restart() {
	n.drop()
	n.asks, n.grants = nil, nil
	taps := new(agent.Taps)
	guests := &agent.Guests{Driver: n.machine.Guests(), Taps: taps, Lease: n.lease, Uploads: uploads{n}}
	networks := &agent.Networks{Driver: n.machine.Networks(), Taps: taps, Wired: func(server resource.ID) {
		n.agent.Touch(host.Key{Kind: "guest", ID: server}, n.w.clock)
	}}
	a, err := agent.New(n.store, n.w.clock, append(networks.Handlers(), guests.Handlers()...)...)
	if err != nil {
		panic(err) // a store in memory does not fail
	}
	a.Lease, a.Word = n.lease, n.word
	n.agent, n.guests = a, guests
	n.uplinks = &agent.Uplinks{Host: n.id, Look: n.plugged}
}

// replace is a new machine in the place of one that died: nothing is left of what it had.
func (n *node) replace() {
	n.machine.Wipe()
	n.boot()
	n.store = newMemoryStore()
	n.restart()
}

// drop ends the session; what was on its way is lost.
func (n *node) drop() {
	if n.session != nil {
		n.session.Close()
	}
	n.session, n.sent = nil, nil
	n.turn()
}

// step does one thing on this machine; false if there was nothing to do.
func (n *node) step() bool {
	if !n.answers() {
		return false
	}
	n.guard()
	select {
	case id := <-n.machine.Guests().Changed():
		n.agent.Touch(host.Key{Kind: "guest", ID: id}, n.w.clock)
		return true
	default:
	}
	did := n.converse()
	if n.w.clock.After(n.resync) {
		n.resync = n.w.clock.Add(time.Minute)
		if err := n.agent.Resync(n.w.ctx, n.w.clock); err != nil {
			n.w.trace("%s: resync: %v", n.name, err)
		}
	}
	return n.agent.Step(n.w.ctx, n.w.now) || did
}

// converse moves messages between the agent and the controller.
func (n *node) converse() bool {
	w := n.w
	if w.clock.Before(n.cutUntil) {
		return false
	}
	if n.session != nil {
		select {
		case <-n.session.Over():
			n.drop()
			return true
		default:
		}
	}
	if n.session == nil {
		if !n.known() {
			n.turn()
			return false
		}
		n.agent.Begin()
		physical, err := n.uplinks.Connected(w.clock)
		if err != nil {
			panic(err) // it can always look
		}
		hello := host.Hello{Speaks: release.Own, Name: n.name, Mark: n.agent.Mark(), Renews: true, Watchdog: true, Physical: physical, Capacity: host.Capacity{Driver: "sim", VCPUs: 4, MemoryMiB: 2048, DiskGiB: 100, MaxVCPUs: 4, Moves: true, Where: n.machine.Where(), Snapshots: "raw", Arch: "x86_64"}}
		if n.machine.Storage != nil {
			hello.Capacity.Storage = n.machine.Storage.Name
		}
		if n.at != nil {
			n.session = n.at.arrive(n, hello)
		} else if w.control.authority.Arrive(w.ctx, n.id, hello) == nil {
			n.session = w.control.hub.Connect(n.id)
		}
		if n.session == nil {
			n.turn()
			return false
		}
		n.session.Renews()
		w.provide(n)
		w.trace("%s connected", n.name)
		return true
	}
	did := false
	select {
	case <-n.session.Wake():
		d, err := n.session.Poll()
		if err != nil {
			w.trace("%s: poll: %v", n.name, err)
		} else if d != nil {
			n.sent = append(n.sent, *d)
			did = true
		}
	default:
	}
	if len(n.sent) > 0 && (w.calm || w.chance(700)) { // else it is delayed
		d := n.sent[0]
		n.sent = n.sent[1:]
		if err := n.agent.Deliver(overTheWire(d), w.clock); err != nil {
			panic(err) // a store in memory does not fail, and no controller forgets
		}
		did = true
	}
	n.renew()
	if err := n.uplinks.Tell(n.agent, w.clock); err != nil {
		w.trace("%s: uplinks: %v", n.name, err)
	}
	if reports := n.agent.Reports(8); len(reports) > 0 {
		did = true
		n.report(reports)
	}
	return did
}

// known reports whether the controller that is asked takes the machine for its host. When all is calm it joins again if it is not.
func (n *node) known() bool {
	w, asked := n.w, n.w.control.state
	if n.at != nil {
		asked = n.at.state
	}
	_, err := (&host.Authority{State: asked}).Check(n.cert, w.clock)
	if err == nil {
		return true
	}
	if n == w.estranged() && w.calm {
		if err := n.rejoin(); err != nil {
			w.trace("%s: join again: %v", n.name, err)
		}
	}
	return false
}

// overTheWire gives a message as the other side reads it.
func overTheWire[T any](m T) T {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // what is sent can be encoded
	}
	var read T
	if err := json.Unmarshal(text, &read); err != nil {
		panic(err)
	}
	return read
}

// report brings reports to the controller; now and then they, or the answer, are lost.
func (n *node) report(reports []host.Observation) {
	w := n.w
	if !w.calm && w.chance(20) {
		w.fault("report lost")
		n.agent.Unsent(reports)
		return
	}
	if n.at != nil && (w.clock.Before(n.at.mute) || w.clock.Before(n.at.alone)) {
		n.agent.Unsent(reports)
		return
	}
	err := w.control.hub.Observe(w.ctx, n.id, overTheWire(reports))
	if err == nil && !w.calm && w.chance(20) {
		w.fault("answer lost")
		err = errors.New("simulated: the answer is lost")
	}
	if err != nil {
		n.agent.Unsent(reports)
		return
	}
	n.agent.Sent(reports)
}
