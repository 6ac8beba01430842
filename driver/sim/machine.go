// Package sim is a whole machine in memory: guests and networks that behave as real ones
// do, take as long as they are told to, and fail when they are told to. It passes the same contract
// suites as the real drivers, and thousands of them fit into one process.
package sim

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/network"
)

// A Machine is one simulated host. What it holds outlives the agent that drives it, as
// real guests do; Reboot is what a power failure leaves.
type Machine struct {
	Capacity compute.Capabilities
	Now      func() time.Time // time.Now when nil
	// Takes says how long a change takes ("start", "stop", "suspend", "resume"); nothing when nil.
	Takes func(change string) time.Duration
	// Fault is asked before each call of a driver; its error is the call's. nil: all goes well.
	Fault func(call string, id resource.ID) error

	mu      sync.Mutex
	guests  map[resource.ID]*guest // guarded by mu
	things  map[network.Thing]bool // guarded by mu
	changed chan resource.ID
}

type guest struct {
	wish      compute.Guest // as of the last Ensure
	seen      compute.Observation
	target    compute.Power // what a change under way leads to
	busyUntil time.Time
	log       bytes.Buffer
}

// New makes a machine with this capacity.
func New(c compute.Capabilities) *Machine {
	c.Driver = "sim"
	return &Machine{Capacity: c, guests: map[resource.ID]*guest{}, things: map[network.Thing]bool{},
		changed: make(chan resource.ID, 1024)}
}

func (m *Machine) now() time.Time {
	if m.Now == nil {
		return time.Now()
	}
	return m.Now()
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
func (m *Machine) Crash(id resource.ID) { m.end(id, compute.Crashed, "The guest ended by itself.") }

// ShutDown ends a guest as when its own operating system powers it off.
func (m *Machine) ShutDown(id resource.ID) { m.end(id, compute.Off, "") }

func (m *Machine) end(id resource.ID, power compute.Power, trouble string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.guests[id]
	if g == nil || g.seen.Power != compute.On {
		return
	}
	g.target, g.busyUntil = "", time.Time{}
	g.seen.Power, g.seen.Trouble, g.seen.StartedAt = power, trouble, time.Time{}
	g.seen.Busy = false
	m.notify(id)
}

// Reboot is what is left after the machine's own power failed: disks, no running guest.
func (m *Machine) Reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.things)
	for _, g := range m.guests {
		g.target, g.busyUntil = "", time.Time{}
		if g.seen.Power != compute.Suspended {
			g.seen.Power, g.seen.StartedAt = compute.Off, time.Time{}
		}
	}
}

// notify tells that a guest changed. A full channel drops it: whoever is that far behind
// looks at everything from time to time. The caller holds mu.
func (m *Machine) notify(id resource.ID) {
	select {
	case m.changed <- id:
	default:
	}
}

// Guests is a Machine as a driver of guests.
type Guests struct{ m *Machine }

// Changed tells of guests that changed by themselves.
func (d *Guests) Changed() <-chan resource.ID { return d.m.changed }

// Ensure takes the guest one step nearer to the wish.
func (d *Guests) Ensure(_ context.Context, want compute.Guest) (compute.Observation, error) {
	if err := d.m.fault("guest.ensure", want.ID); err != nil {
		return compute.Observation{}, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g := d.m.guests[want.ID]
	if g == nil {
		g = &guest{seen: compute.Observation{Power: compute.Off, HardBoots: want.HardBoots, SoftBoots: want.SoftBoots, Rebuilds: want.Rebuilds}}
		d.m.guests[want.ID] = g
	}
	g.wish = want
	d.settle(g)
	if g.target == "" {
		d.step(g, want)
	}
	return g.seen, nil
}

// settle completes a change whose time is over. The caller holds mu.
func (d *Guests) settle(g *guest) {
	if g.target == "" || d.m.now().Before(g.busyUntil) {
		return
	}
	if g.target == compute.On && (g.seen.Power == compute.Off || g.seen.Power == compute.Crashed) {
		g.seen.StartedAt = d.m.now().UTC()
		fmt.Fprintf(&g.log, "[    0.000000] simulated guest %s starts\n%s login: ", g.wish.ID, g.wish.Metadata.Hostname)
	}
	if g.target == compute.Off || g.target == compute.Suspended {
		g.seen.StartedAt = time.Time{}
	}
	g.seen.Power, g.seen.Busy, g.seen.Trouble = g.target, false, ""
	g.target = ""
}

// step begins the next change that leads to the wish. The caller holds mu.
func (d *Guests) step(g *guest, want compute.Guest) {
	seen := &g.seen
	if seen.Rebuilds < want.Rebuilds {
		if seen.Power != compute.Off {
			d.begin(g, "stop", compute.Off)
			return
		}
		seen.Rebuilds = want.Rebuilds
		g.log.Reset()
	}
	boots := seen.HardBoots < want.HardBoots || seen.SoftBoots < want.SoftBoots
	if boots {
		if seen.Power == compute.On || seen.Power == compute.Paused {
			d.begin(g, "stop", compute.Off)
			return
		}
		seen.HardBoots, seen.SoftBoots = want.HardBoots, want.SoftBoots
	}
	if seen.Power == want.Power {
		return
	}
	switch want.Power {
	case compute.On:
		if seen.Power == compute.Paused || seen.Power == compute.Suspended {
			d.begin(g, "resume", compute.On)
		} else {
			d.begin(g, "start", compute.On)
		}
	case compute.Off:
		if seen.Power == compute.Crashed {
			seen.Power, seen.Trouble = compute.Off, ""
			return
		}
		d.begin(g, "stop", compute.Off)
	case compute.Paused, compute.Suspended:
		if seen.Power == compute.Off || seen.Power == compute.Crashed {
			d.begin(g, "start", compute.On)
		} else {
			d.begin(g, "suspend", want.Power)
		}
	}
}

func (d *Guests) begin(g *guest, change string, target compute.Power) {
	g.target, g.seen.Busy = target, true
	var takes time.Duration
	if d.m.Takes != nil {
		takes = d.m.Takes(change)
	}
	g.busyUntil = d.m.now().Add(takes)
	if takes == 0 {
		d.settle(g)
		if g.seen.Power != g.wish.Power || g.seen.HardBoots < g.wish.HardBoots || g.seen.SoftBoots < g.wish.SoftBoots || g.seen.Rebuilds < g.wish.Rebuilds {
			d.step(g, g.wish)
		}
	}
}

// Remove ends the guest and forgets it.
func (d *Guests) Remove(_ context.Context, id resource.ID) error {
	if err := d.m.fault("guest.remove", id); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	delete(d.m.guests, id)
	return nil
}

// Present lists the guests, in the order of their IDs.
func (d *Guests) Present(context.Context) ([]resource.ID, error) {
	if err := d.m.fault("guest.present", resource.ID{}); err != nil {
		return nil, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	ids := make([]resource.ID, 0, len(d.m.guests))
	for id := range d.m.guests {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, compareIDs)
	return ids, nil
}

func compareIDs(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) }

// Observe looks at a guest.
func (d *Guests) Observe(_ context.Context, id resource.ID) (compute.Observation, error) {
	if err := d.m.fault("guest.observe", id); err != nil {
		return compute.Observation{}, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g := d.m.guests[id]
	if g == nil {
		return compute.Observation{}, fault.Missing("guest", id)
	}
	d.settle(g)
	return g.seen, nil
}

// Capabilities is the machine's capacity.
func (d *Guests) Capabilities(context.Context) (compute.Capabilities, error) {
	return d.m.Capacity, d.m.fault("guest.capabilities", resource.ID{})
}

// ConsoleLog is what the guest has written so far.
func (d *Guests) ConsoleLog(_ context.Context, id resource.ID, max int) ([]byte, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g := d.m.guests[id]
	if g == nil {
		return nil, nil
	}
	log := g.log.Bytes()
	return bytes.Clone(log[len(log)-min(max, len(log)):]), nil
}

// Console answers like a guest that repeats what is typed; a VNC client is greeted as
// RFC 6143, section 7.1.1, has it, and no further.
func (d *Guests) Console(ctx context.Context, id resource.ID, kind string) (net.Conn, error) {
	seen, err := d.Observe(ctx, id)
	if err != nil {
		return nil, err
	}
	if seen.Power != compute.On {
		return nil, fmt.Errorf("guest %s is not running", id)
	}
	ours, theirs := net.Pipe()
	go func() { // ends with either side of the pipe
		defer ours.Close()
		if kind == "vnc" {
			io.WriteString(ours, "RFB 003.008\n")
		}
		io.Copy(ours, ours)
	}()
	return theirs, nil
}

// Networks is a Machine as a driver of networks.
type Networks struct{ m *Machine }

func (d *Networks) ensure(kind string, id resource.ID) error {
	if err := d.m.fault(kind+".ensure", id); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.m.things[network.Thing{Kind: kind, ID: id}] = true
	return nil
}

func (d *Networks) EnsureSegment(_ context.Context, want network.Segment) error {
	return d.ensure("segment", want.ID)
}

func (d *Networks) EnsureAttachment(_ context.Context, want network.Attachment) (network.Tap, error) {
	return network.Tap{Name: "sim-" + want.ID.Tail()[:10]}, d.ensure("attachment", want.ID)
}

func (d *Networks) EnsureFilter(_ context.Context, want network.Filter) error {
	return d.ensure("filter", want.ID)
}

func (d *Networks) EnsureGateway(_ context.Context, want network.Gateway) error {
	return d.ensure("gateway", want.ID)
}

// Remove forgets the thing.
func (d *Networks) Remove(_ context.Context, thing network.Thing) error {
	if err := d.m.fault(thing.Kind+".remove", thing.ID); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	delete(d.m.things, thing)
	return nil
}

// Present lists the things, in order.
func (d *Networks) Present(context.Context) ([]network.Thing, error) {
	if err := d.m.fault("network.present", resource.ID{}); err != nil {
		return nil, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	things := make([]network.Thing, 0, len(d.m.things))
	for t := range d.m.things {
		things = append(things, t)
	}
	slices.SortFunc(things, func(a, b network.Thing) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), compareIDs(a.ID, b.ID))
	})
	return things, nil
}
