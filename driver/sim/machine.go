// Package sim is a whole machine in memory: guests and networks that behave as real ones
// do, take as long as they are told to, and fail when they are told to. It passes the same contract
// suites as the real drivers, and thousands of them fit into one process.
//
// Nothing happens by itself: a change whose time is over is completed when somebody next looks.
// So a machine with its Now and Takes given is as reproducible as they are.
package sim

import (
	"bytes"
	"cmp"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/network"
)

// A Machine is one simulated host. What it holds outlives the agent that drives it, as
// real guests do; Reboot is what a power failure leaves.
type Machine struct {
	Capacity compute.Capabilities
	Now      func() time.Time // time.Now when nil
	// Takes says how long a change takes ("start", "stop", "pause", "suspend", "resume",
	// "plug", "move", "copy"); nothing when nil.
	Takes func(change string) time.Duration
	// CopyMiBps is how fast a disk is copied, all of it, for its copy is raw: that comes to what Takes says of a "copy". 0: at once.
	CopyMiBps int
	// Fault is asked before each call of a driver; its error is the call's. nil: all goes well.
	Fault func(call string, id resource.ID) error
	// Net is how guests get to other machines, and from there; nil: they do not.
	Net     *Net
	Storage *Storage // that guests' disks are on, if they are not this machine's own
	listens string   // where others of the net find it

	mu       sync.Mutex
	guests   map[resource.ID]*guest     // guarded by mu
	things   map[network.Thing]struct{} // guarded by mu
	consoles map[outlet]net.Conn        // guarded by mu; the guests' ends
	changed  chan resource.ID
}

// New makes a machine with this capacity.
func New(c compute.Capabilities) *Machine {
	c.Driver, c.Version = "sim", cmp.Or(c.Version, "1")
	return &Machine{Capacity: c, guests: map[resource.ID]*guest{}, things: map[network.Thing]struct{}{},
		consoles: map[outlet]net.Conn{}, changed: make(chan resource.ID, 128)}
}

func (m *Machine) now() time.Time {
	if m.Now == nil {
		return time.Now()
	}
	return m.Now()
}

func (m *Machine) takes(change string) time.Duration {
	if m.Takes == nil {
		return 0
	}
	return m.Takes(change)
}

func (m *Machine) fault(call string, id resource.ID) error {
	if m.Fault == nil {
		return nil
	}
	return m.Fault(call, id)
}

// Guests is the machine's compute.Driver, compute.Consoler and compute.Notifier.
func (m *Machine) Guests() *Guests { return &Guests{m} }

// Networks is the machine's network.Driver.
func (m *Machine) Networks() *Networks { return &Networks{m} }

// Crash ends a guest as when its process dies.
func (m *Machine) Crash(id resource.ID) {
	m.toRunning(id, func(g *guest) { m.end(id, g, compute.Crashed) })
}

// ShutDown ends a guest as when its own operating system powers it off.
func (m *Machine) ShutDown(id resource.ID) {
	m.toRunning(id, func(g *guest) { m.end(id, g, compute.Off) })
}

// Restart has a guest's operating system boot again, by its own will.
func (m *Machine) Restart(id resource.ID) { m.toRunning(id, (*guest).boot) }

// Deafen keeps a guest from obeying a soft stop until it boots again.
func (m *Machine) Deafen(id resource.ID) { m.toRunning(id, func(g *guest) { g.deaf = true }) }

// Write has a guest write to its root disk.
func (m *Machine) Write(id resource.ID) {
	m.toRunning(id, func(g *guest) {
		g.written = true
		m.disk(id, g, func(d *disk) { d.written = true })
	})
}

// Written tells whether a guest's root disk is no longer as its image is.
func (m *Machine) Written(id resource.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.guests[id]
	if g == nil {
		return false
	}
	written := g.written
	m.disk(id, g, func(d *disk) { written = d.written })
	return written
}

// Running lists the guests whose processors run, whatever a driver of the machine could tell now, in the order of their IDs.
func (m *Machine) Running() []resource.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []resource.ID
	for id, g := range m.guests {
		m.settle(id, g)
		if g.power == compute.On {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, compareIDs)
	return ids
}

// toRunning does something to a guest if its processors run.
func (m *Machine) toRunning(id resource.ID, do func(*guest)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.guests[id]; g != nil {
		m.settle(id, g)
		if g.power == compute.On {
			do(g)
		}
	}
}

// end is how a guest ends by itself. The caller holds mu.
func (m *Machine) end(id resource.ID, g *guest, power compute.Power) {
	g.change, g.ended = nil, true
	m.become(id, g, power)
	select {
	case m.changed <- id:
	default: // who is that far behind looks at everything from time to time
	}
}

// Reboot is what is left after the machine's own power failed: disks, no running guest.
func (m *Machine) Reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.things)
	for id, g := range m.guests {
		g.change, g.copy = nil, nil
		g.way.breakOff(g)
		m.shut(id, g)
		if g.power == compute.On || g.power == compute.Paused {
			m.become(id, g, compute.Off)
			g.lostPower = true
		}
	}
}

// Wipe is what is left after another machine was put in its place: nothing.
func (m *Machine) Wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, g := range m.guests {
		m.unplugConsoles(id)
		m.shut(id, g)
	}
	clear(m.guests)
	clear(m.things)
}

func compareIDs(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) }
