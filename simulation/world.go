// Package simulation runs a whole cloud in one goroutine: the real core, control and agent
// code on a fake clock, an engine and machines in memory, and faults drawn from a seed. A seed
// reproduces a run exactly, so a failing one is a bug report.
//
// Nothing here reads the wall clock or starts a goroutine; every choice comes from one
// source of randomness.
package simulation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/rand/v2"
	"sort"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
	"github.com/unkai-cloud/unkai/driver/sim"
)

// Options of a run.
type Options struct {
	Seed  uint64
	Hosts int // 4 when 0
	Steps int // choices before the faults stop; 2,000 when 0
	// Trace, when set, is written a line for each choice.
	Trace io.Writer
}

// A Result is what a run came to.
type Result struct {
	Seed    uint64
	Print   string // a fingerprint of everything that happened
	Changes int    // objects written
	Asked   int    // requests of clients
	Refused int    // of these, with a fault
	Faults  map[string]int
	Settled time.Duration // simulated time from the last fault to rest
	For     string        // what was waited for last
}

// world is one cloud and everything around it.
type world struct {
	Options
	ctx    context.Context
	rng    *rand.Rand
	clock  time.Time
	engine *state.Memory
	print  hash.Hash
	blobs  *imagetest.Memory // outlives controllers, as their disks do

	// The controller. nil while it is down.
	control   *control
	followers []*follower
	nodes     []*node
	net       sim.Net
	storage   *sim.Storage // that machines share; nil for none
	marks     map[resource.ID]mark
	client    *client
	result    Result
	calm      bool // no more faults
	alarms    []alarm
}

// alarm is something to be called at a time.
type alarm struct {
	at time.Time
	f  func()
}

// after is time.AfterFunc on the world's clock.
func (w *world) after(d time.Duration, f func()) {
	w.alarms = append(w.alarms, alarm{w.clock.Add(d), f})
}

// ring calls what is due.
func (w *world) ring() {
	var later []alarm
	for _, a := range w.alarms {
		if a.at.After(w.clock) {
			later = append(later, a)
		} else {
			a.f()
		}
	}
	w.alarms = later
}

// begin of simulated time.
var begin = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(ctx context.Context, o Options) (*world, error) {
	if o.Hosts == 0 {
		o.Hosts = 4
	}
	if o.Steps == 0 {
		o.Steps = 2000
	}
	w := &world{Options: o, ctx: ctx, rng: rand.New(rand.NewPCG(o.Seed, 0x756e6b6169)), clock: begin,
		engine: state.NewMemory(100_000), print: sha256.New(), blobs: new(imagetest.Memory), result: Result{Seed: o.Seed, Faults: map[string]int{}},
		marks: map[resource.ID]mark{}}
	w.engine.Fault = w.commitFault
	w.calm = true
	if o.Seed%3 > 0 {
		w.storage = sim.NewStorage("shared")
	}
	if err := w.startControl(); err != nil {
		return nil, err
	}
	if err := w.follow(); err != nil {
		return nil, err
	}
	for n := range o.Hosts {
		w.nodes = append(w.nodes, w.newNode(n))
	}
	var err error
	if w.client, err = w.newClient(); err != nil {
		return nil, err
	}
	w.calm = false
	return w, nil
}

// level is what the state begins at: of every fourth seed that of the first release, until its operator finalises the upgrade.
func (w *world) level() int {
	if w.Seed%4 == 3 {
		return 1
	}
	return 0
}

func (w *world) now() time.Time { return w.clock }

// Read makes the world the source of IDs.
func (w *world) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
	return len(b), nil
}

// chance is true in p of 1,000 cases.
func (w *world) chance(p int) bool { return w.rng.IntN(1000) < p }

func (w *world) trace(format string, args ...any) {
	line := fmt.Sprintf("%10.3f ", w.clock.Sub(begin).Seconds()) + fmt.Sprintf(format, args...) + "\n"
	io.WriteString(w.print, line)
	if w.Trace != nil {
		io.WriteString(w.Trace, line)
	}
}

func (w *world) fault(name string) {
	w.result.Faults[name]++
	w.trace("fault: %s", name)
}

// Run runs one seed. An error says what promise was broken.
func Run(ctx context.Context, o Options) (Result, error) {
	w, err := newWorld(ctx, o)
	if err != nil {
		return Result{}, fmt.Errorf("build the world: %w", err)
	}
	for n := range w.Steps {
		if err := w.step(); err != nil {
			return w.result, fmt.Errorf("seed %d, step %d: %w", o.Seed, n, err)
		}
		if err := w.checkNoneTwice(); err != nil {
			return w.result, fmt.Errorf("seed %d, step %d: %w", o.Seed, n, err)
		}
		if n%10 == 0 {
			if err := w.checkFresh(); err != nil {
				return w.result, fmt.Errorf("seed %d, step %d: %w", o.Seed, n, err)
			}
			w.scribble()
		}
		if n%50 == 0 {
			if err := w.checkSafety(); err != nil {
				return w.result, fmt.Errorf("seed %d, step %d: %w", o.Seed, n, err)
			}
		}
	}
	err = w.settle()
	w.result.Print = hex.EncodeToString(w.print.Sum(nil)[:8])
	if err != nil {
		return w.result, fmt.Errorf("seed %d, after the faults: %w", o.Seed, err)
	}
	return w.result, nil
}

// step makes one choice.
func (w *world) step() error {
	switch n := w.rng.IntN(100); {
	case n < 12:
		w.client.ask()
	case n < 30:
		w.work()
	case n < 90:
		w.nodes[w.rng.IntN(len(w.nodes))].step()
	case n < 97:
		w.clock = w.clock.Add(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
	default:
		return w.harm()
	}
	w.bark()
	return w.mindControl()
}

// mindControl starts the controller again after a crash.
func (w *world) mindControl() error {
	if w.control.state.Broken() == nil {
		return nil
	}
	w.fault("controller restarted")
	return w.startControl()
}

// harm lets something go wrong.
func (w *world) harm() error {
	node := w.nodes[w.rng.IntN(len(w.nodes))]
	switch w.rng.IntN(13) {
	case 0:
		w.fault("agent crashed")
		node.restart()
	case 1:
		w.fault("controller crashed")
		return w.startControl()
	case 2:
		w.fault("link cut")
		node.cutUntil = w.clock.Add(time.Duration(1+w.rng.IntN(60)) * time.Second)
		if node.session != nil && w.rng.IntN(2) == 0 { // its kernel owes an answer before the session is over
			if err := w.control.hub.Observe(w.ctx, node.id, host.MuteReport(node.id, true)); err != nil {
				w.trace("%s: mute: %v", node.name, err)
			}
		}
		node.drop()
	case 3:
		w.fault("driver failing")
		node.failing, node.failUntil = 100+w.rng.IntN(900), w.clock.Add(time.Duration(1+w.rng.IntN(30))*time.Second)
	case 4:
		w.fault("driver slow")
		node.slow, node.slowUntil = time.Duration(w.rng.IntN(20))*time.Second, w.clock.Add(time.Minute)
	case 5:
		w.fault("machine rebooted")
		node.reboot()
	case 6:
		w.fault("link cut for long")
		node.cutUntil = w.clock.Add(time.Duration(60+w.rng.IntN(300)) * time.Second)
		node.drop()
		return w.pass(time.Duration(w.rng.IntN(300)) * time.Second)
	case 7:
		w.kill(node)
		return w.pass(time.Duration(w.rng.IntN(200)) * time.Second)
	case 8, 9:
		return w.disturb()
	default:
		w.haunt(node.machine)
	}
	return nil
}

// haunt has a guest do something of its own.
func (w *world) haunt(m *sim.Machine) {
	ids, err := m.Guests().Present(w.ctx)
	if err != nil || len(ids) == 0 {
		return
	}
	id := ids[w.rng.IntN(len(ids))]
	switch w.rng.IntN(4) {
	case 0:
		w.fault("guest crashed")
		m.Crash(id)
	case 1:
		w.fault("guest powered itself off")
		m.ShutDown(id)
	case 2:
		w.fault("guest restarted by itself")
		m.Restart(id)
	case 3:
		w.fault("guest listens no more")
		m.Deafen(id)
	}
}

// commitFault is the engine's: now and then a commit fails before, or its answer after.
func (w *world) commitFault(step string) error {
	if w.calm || !w.chance(2) {
		return nil
	}
	w.fault("commit failed " + step)
	return errors.New("simulated: the disk failed " + step + " the commit")
}

// node is one machine with its agent and its link.
type node struct {
	w         *world
	id        resource.ID
	name      string
	machine   *sim.Machine
	store     *memoryStore
	agent     *agent.Agent
	at        *follower // the controller that is asked; nil: the one that leads
	session   *host.Session
	sent      []host.Delivery // on their way
	cutUntil  time.Time
	failing   int // of 1,000 calls
	failUntil time.Time
	slow      time.Duration
	slowUntil time.Time
	resync    time.Time

	guests   *agent.Guests
	lease    *agent.Lease // outlives the agent, and not the machine's boot
	dog      *dog
	guardAt  time.Time
	renewAt  time.Time
	asks     []ask     // for the lease, on their way
	grants   []grant   // on their way
	dead     bool      // for ever
	offUntil time.Time // switched off
}

func (w *world) newNode(n int) *node {
	node := &node{w: w, name: fmt.Sprintf("host-%02d", n), store: &memoryStore{items: map[host.Key]json.RawMessage{}, held: map[host.Key]agent.Held{}}}
	node.id = resource.NewID(w.clock, w)
	node.machine = sim.New(compute.Capabilities{VCPUs: 4, MemoryMiB: 2048, DiskGiB: 100, MaxVCPUs: 4, Arch: "x86_64"})
	w.net.Join(node.machine)
	if w.Seed%3 == 1 || n%2 == 0 { // all of them, or every other
		node.machine.Storage = w.storage
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
	return node
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
	a.Lease = n.lease
	n.agent, n.guests = a, guests
}

// replace is a new machine in the place of one that died: nothing is left of what it had.
func (n *node) replace() {
	n.machine.Wipe()
	n.boot()
	n.store = &memoryStore{items: map[host.Key]json.RawMessage{}, held: map[host.Key]agent.Held{}}
	n.restart()
}

// lost reports whether a host cannot be heard, as far as the controller knows.
func (w *world) lost(id resource.ID) bool {
	h, ok := host.Table().PeekOne(w.control.state.Latest(), id)
	return ok && !h.Up()
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
		n.agent.Begin()
		hello := host.Hello{Name: n.name, Mark: n.agent.Mark(), Renews: true, Watchdog: true, Capacity: host.Capacity{Driver: "sim", VCPUs: 4, MemoryMiB: 2048, DiskGiB: 100, MaxVCPUs: 4, Moves: true, Where: n.machine.Where(), Snapshots: "raw", Arch: "x86_64"}}
		if n.machine.Storage != nil {
			hello.Capacity.Storage = n.machine.Storage.Name
		}
		if n.at != nil {
			n.session = n.at.arrive(n, hello)
		} else if host.Arrive(w.ctx, w.control.state, n.id, hello) == nil {
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
	if reports := n.agent.Reports(8); len(reports) > 0 {
		did = true
		n.report(reports)
	}
	return did
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

// memoryStore is an agent's disk.
type memoryStore struct {
	items map[host.Key]json.RawMessage
	held  map[host.Key]agent.Held
	mark  host.Mark
}

func (m *memoryStore) Load() (agent.Kept, error) {
	k := agent.Kept{Held: maps.Clone(m.held), Mark: m.mark}
	for key, body := range m.items {
		k.Items = append(k.Items, host.Item{Key: key, Body: body})
	}
	sort.Slice(k.Items, func(i, j int) bool { return k.Items[i].ID.String() < k.Items[j].ID.String() })
	return k, nil
}

func (m *memoryStore) Save(c agent.Change) error {
	for _, item := range c.Items {
		if item.Body == nil {
			delete(m.items, item.Key)
		} else {
			m.items[item.Key] = item.Body
		}
	}
	for key, h := range c.Held {
		if h == nil {
			delete(m.held, key)
		} else {
			m.held[key] = *h
		}
	}
	if c.Mark != (host.Mark{}) {
		m.mark = c.Mark
	}
	return nil
}

// control is one life of the controller.
type control struct {
	state      *state.State
	hub        *host.Hub
	reconciler *reconcile.Reconciler
	compute    *compute.Service
	images     *image.Service
	network    *network.Service
	operations *operation.Service
}

// work does what the controllers have to do; false if there was nothing.
func (w *world) work() bool {
	busy := w.control.work(w)
	for _, f := range w.followers {
		busy = f.work() || busy
	}
	return busy
}

// work does what the controller has to do; false if there was nothing.
func (c *control) work(w *world) bool {
	w.ring()
	if err := c.hub.Pump(); err != nil {
		w.trace("hub: %v", err)
	}
	if err := c.reconciler.Pump(w.clock); err != nil {
		w.trace("reconciler: %v", err)
	}
	return c.reconciler.Do(w.ctx, w.now)
}
