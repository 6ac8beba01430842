package sim

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// guest is what the machine holds of one guest. There may be 100,000, so of the wish it keeps
// only what was carried out.
type guest struct {
	power                          compute.Power
	ended                          bool // by itself: only a reboot, a rebuild or the wish to be off undoes it
	deaf                           bool // obeys no soft stop
	written                        bool // its root disk differs from its image
	hardBoots, softBoots, rebuilds int  // carried out
	boots                          int  // of its operating system
	epoch                          int  // of its placement
	lostPower                      bool // with the machine
	shared                         bool // its disks are on the machine's Storage
	claimed                        bool // and were its own there
	waits                          bool // for another machine to let go of them
	devices                        uint64
	startedAt                      time.Time
	startTook                      time.Duration
	change                         *change  // nil when nothing is under way
	copy                           *copying // of its root disk; nil for none
	way                            *way     // from here to another machine, or from there; nil for none
}

// change is something that takes time.
type change struct {
	to      compute.Power
	until   time.Time
	took    time.Duration
	soft    bool   // the guest itself is to stop, and may be cut off
	devices uint64 // what is plugged in then
}

// Guests is a Machine as a driver of guests.
type Guests struct{ m *Machine }

var (
	_ compute.Driver   = (*Guests)(nil)
	_ compute.Consoler = (*Guests)(nil)
	_ compute.Notifier = (*Guests)(nil)
	_ compute.Mover    = (*Guests)(nil)
	_ compute.Eraser   = (*Guests)(nil)

	_ compute.Snapshotter = (*Guests)(nil)
)

// Changed tells of guests that changed by themselves.
func (d *Guests) Changed() <-chan resource.ID { return d.m.changed }

// Ensure takes the guest one step nearer to the wish, and more if they take no time.
func (d *Guests) Ensure(ctx context.Context, want compute.Guest) (compute.Observation, error) {
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, err
	}
	m := d.m
	if err := m.fault("guest.ensure", want.ID); err != nil {
		return compute.Observation{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	trouble := cmp.Or(want.Check(m.Capacity.MaxVCPUs), m.lacks(&want))
	g := m.guests[want.ID]
	if g != nil && g.epoch != 0 && g.epoch < want.Epoch {
		m.unplugConsoles(want.ID) // it was elsewhere since
		m.shut(want.ID, g)
		delete(m.guests, want.ID)
		g = nil
	}
	if g == nil {
		if trouble != "" {
			return compute.Observation{Power: compute.Crashed, Trouble: trouble, Isolating: m.Capacity.Isolating}, nil
		}
		g = &guest{power: compute.Off, hardBoots: want.HardBoots, softBoots: want.SoftBoots, rebuilds: want.Rebuilds, epoch: want.Epoch, shared: want.Storage != ""}
		m.guests[want.ID] = g
	}
	m.settle(want.ID, g)
	if g.way != nil && g.way.incoming && !g.way.done {
		return compute.Observation{Power: compute.Crashed, Trouble: "The guest has not arrived.", Isolating: m.Capacity.Isolating}, nil
	}
	g.copy = nil // nobody asks for one
	if trouble == "" {
		var lost bool
		if trouble, lost = m.stillOurs(g, &want); lost {
			return compute.Observation{Power: compute.Off, Trouble: trouble, Isolating: m.Capacity.Isolating}, nil
		}
	}
	g.waits = false
	if trouble == "" && (g.power == compute.On || g.power == compute.Paused) && !m.open(want.ID, g) {
		g.waits, trouble = true, inUse
	} else {
		g.way = nil // it is ours
	}
	if trouble == "" {
		m.disk(want.ID, g, func(d *disk) { d.made = true })
		trouble = m.converge(g, &want)
	}
	seen := m.observe(g)
	seen.Busy = seen.Busy || g.waits
	if trouble != "" {
		seen.Trouble = trouble
	}
	return seen, nil
}

// converge takes steps until one takes time, or nothing is left to do. The caller holds mu.
func (m *Machine) converge(g *guest, want *compute.Guest) (trouble string) {
	for {
		m.reconsider(g, want)
		if g.change != nil {
			return ""
		}
		more, trouble := m.step(g, want)
		if !more {
			return trouble
		}
		m.settle(want.ID, g)
	}
}

// reconsider lets a new wish shorten a soft stop: a reboot cuts it off, and a guest that does
// not listen is left alone when it is wanted again.
func (m *Machine) reconsider(g *guest, want *compute.Guest) {
	if g.change == nil || !g.change.soft {
		return
	}
	switch {
	case want.HardBoots > g.hardBoots || want.Rebuilds > g.rebuilds:
		g.change = nil
		m.become(want.ID, g, compute.Off)
	case g.deaf && want.Power == compute.On && want.SoftBoots <= g.softBoots:
		g.change = nil
	}
}

// step does, or begins, the next thing that leads to the wish. The caller holds mu.
func (m *Machine) step(g *guest, want *compute.Guest) (more bool, trouble string) {
	process := g.power == compute.On || g.power == compute.Paused
	switch {
	case want.Rebuilds > g.rebuilds:
		m.cut(want.ID, g)
		g.written = false
		m.disk(want.ID, g, func(d *disk) { d.written, d.rebuilds = false, want.Rebuilds })
		g.hardBoots, g.softBoots, g.rebuilds = max(g.hardBoots, want.HardBoots), max(g.softBoots, want.SoftBoots), want.Rebuilds
		return true, ""
	case want.HardBoots > g.hardBoots:
		if g.power != compute.Suspended || want.Power != compute.Suspended { // else there is nothing to power-cycle
			m.cut(want.ID, g)
		}
		g.hardBoots, g.softBoots = want.HardBoots, max(g.softBoots, want.SoftBoots)
		return true, ""
	case want.SoftBoots > g.softBoots && g.power == compute.On && want.Power == compute.On:
		return m.stop(g, want), ""
	case want.SoftBoots > g.softBoots:
		g.softBoots, g.ended = want.SoftBoots, false
		if g.power == compute.Crashed || process && want.Power == compute.On {
			m.become(want.ID, g, compute.Off)
		}
		return true, ""
	case g.power != want.Power:
		return m.toPower(g, want, process)
	case process && g.devices != devicesOf(want):
		return m.begin(g, "plug", change{to: g.power, devices: devicesOf(want)}), ""
	}
	g.ended = g.ended && want.Power != compute.Off
	return false, ""
}

// toPower begins the change to another power.
func (m *Machine) toPower(g *guest, want *compute.Guest, process bool) (more bool, trouble string) {
	next := change{to: compute.On, devices: devicesOf(want)}
	if want.Power == compute.Paused {
		next.to = compute.Paused
	}
	switch {
	case want.Power == compute.Off && g.power == compute.On && want.GraceSeconds > 0:
		return m.stop(g, want), ""
	case want.Power == compute.Off:
		m.cut(want.ID, g)
		return true, ""
	case g.ended || g.lostPower && want.StayOff:
		return false, ""
	case want.Power == compute.Suspended && !process:
		return false, "Only a running guest can be suspended."
	case want.Power == compute.Suspended:
		return m.begin(g, "suspend", change{to: compute.Suspended, devices: g.devices}), ""
	case !process && !m.open(want.ID, g):
		g.waits = true
		return false, inUse
	case g.power == compute.Suspended:
		return m.begin(g, "resume", next), ""
	case !process:
		return m.begin(g, "start", next), ""
	case next.to == compute.On:
		return m.begin(g, "resume", next), ""
	}
	return m.begin(g, "pause", next), ""
}

func (m *Machine) begin(g *guest, name string, c change) bool {
	c.took = m.takes(name)
	c.until = m.now().Add(c.took)
	g.change = &c
	return true
}

// stop asks the guest itself to stop. Who does not listen, or takes too long, is cut off.
func (m *Machine) stop(g *guest, want *compute.Guest) bool {
	grace := time.Duration(want.GraceSeconds) * time.Second
	c := change{to: compute.Off, soft: true, took: grace}
	if !g.deaf {
		c.took = min(m.takes("stop"), grace)
	}
	c.until = m.now().Add(c.took)
	g.change = &c
	return true
}

// cut takes the power away, whatever the guest's end was before.
func (m *Machine) cut(id resource.ID, g *guest) {
	g.ended, g.lostPower = false, false
	m.become(id, g, compute.Off)
}

// settle completes a change whose time is over. The caller holds mu.
func (m *Machine) settle(id resource.ID, g *guest) {
	c := g.change
	if c == nil || m.now().Before(c.until) {
		return
	}
	g.change = nil
	if c.to == compute.On || c.to == compute.Paused {
		switch g.power {
		case compute.Off, compute.Crashed:
			g.boot()
			fallthrough
		case compute.Suspended:
			g.startedAt, g.startTook = m.now().UTC(), max(c.took, time.Microsecond)
		}
		g.devices = c.devices
	}
	m.become(id, g, c.to)
}

// become is the moment in which a guest's power changes. The caller holds mu.
func (m *Machine) become(id resource.ID, g *guest, power compute.Power) {
	g.power = power
	g.lostPower = g.lostPower && power == compute.Off
	if power != compute.On && power != compute.Paused {
		g.startedAt = time.Time{}
		m.unplugConsoles(id)
		m.shut(id, g)
	}
}

// boot is what the guest's operating system does when it starts.
func (g *guest) boot() { g.boots, g.deaf = g.boots+1, false }

func (m *Machine) observe(g *guest) compute.Observation {
	seen := compute.Observation{
		Power: g.power, HardBoots: g.hardBoots, SoftBoots: g.softBoots, Rebuilds: g.rebuilds, StartedAt: g.startedAt,
		Isolating: m.Capacity.Isolating, Busy: g.change != nil, StartMs: float64(g.startTook) / float64(time.Millisecond),
	}
	if g.power == compute.Crashed {
		seen.Trouble = "The guest ended unexpectedly. Start or reboot the guest to run it again."
	}
	return seen
}

var deviceSeed = maphash.MakeSeed()

// devicesOf is a digest of what is plugged into the guest's machine.
func devicesOf(g *compute.Guest) uint64 {
	var h maphash.Hash
	h.SetSeed(deviceSeed)
	number := func(n int) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(n))
		h.Write(b[:])
	}
	word := func(s string) {
		number(len(s))
		h.WriteString(s)
	}
	for i := range g.Disks {
		word(g.Disks[i].Name)
		word(g.Disks[i].Serial)
		word(g.Disks[i].Bus)
		number(g.Disks[i].SizeMiB)
	}
	for i := range g.NICs {
		h.Write(g.NICs[i].PortID[:])
		word(g.NICs[i].MAC)
		word(g.NICs[i].Model)
		number(g.NICs[i].MTU)
	}
	return h.Sum64()
}

// Remove ends the guest and forgets it.
func (d *Guests) Remove(ctx context.Context, id resource.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.m.fault("guest.remove", id); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.m.unplugConsoles(id)
	if g := d.m.guests[id]; g != nil {
		d.m.shut(id, g)
	}
	delete(d.m.guests, id)
	return nil
}

// haltGrace is how long a guest that nobody wants may take to stop.
const haltGrace = 30

// Halt ends the guest and keeps it.
func (d *Guests) Halt(ctx context.Context, id resource.ID) (busy bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	m := d.m
	if err := m.fault("guest.halt", id); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g, err := m.known(id)
	if err != nil {
		return false, err
	}
	switch {
	case g.way != nil && g.way.incoming && !g.way.done:
		return false, fault.Missing("guest", id) // what has come of it is worth nothing
	case g.change != nil:
	case g.power == compute.On:
		m.stop(g, &compute.Guest{ID: id, GraceSeconds: haltGrace})
	case g.power == compute.Paused:
		m.cut(id, g)
	}
	m.settle(id, g)
	return g.change != nil, nil
}

// Present lists the guests, in the order of their IDs.
func (d *Guests) Present(ctx context.Context) ([]resource.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
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

// Observe looks at a guest.
func (d *Guests) Observe(ctx context.Context, id resource.ID) (compute.Observation, error) {
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, err
	}
	if err := d.m.fault("guest.observe", id); err != nil {
		return compute.Observation{}, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g, err := d.m.known(id)
	if err != nil {
		return compute.Observation{}, err
	}
	return d.m.observe(g), nil
}

// known gives a guest as it is now. The caller holds mu.
func (m *Machine) known(id resource.ID) (*guest, error) {
	g := m.guests[id]
	if g == nil {
		return nil, fault.Missing("guest", id)
	}
	m.settle(id, g)
	return g, nil
}

// Capabilities is the machine's capacity.
func (d *Guests) Capabilities(ctx context.Context) (compute.Capabilities, error) {
	if err := ctx.Err(); err != nil {
		return compute.Capabilities{}, err
	}
	c := d.m.Capacity
	c.Moves, c.Snapshots = d.m.Net != nil, "raw"
	if d.m.Storage != nil {
		c.Storage = d.m.Storage.Name
	}
	return c, d.m.fault("guest.capabilities", resource.ID{})
}
