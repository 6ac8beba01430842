package sim

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A Net joins machines, so that guests can go from one to another.
type Net struct {
	mu       sync.Mutex
	machines map[string]*Machine // guarded by mu; by where they listen
}

// Join adds a machine before it is used.
func (n *Net) Join(m *Machine) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.machines == nil {
		n.machines = map[string]*Machine{}
	}
	m.Net, m.listens = n, fmt.Sprint("sim:", len(n.machines))
	n.machines[m.listens] = m
}

// Where is where the machine takes guests in; "" if it is on no net.
func (m *Machine) Where() string { return m.listens }

func (n *Net) at(where string) *Machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machines[where]
}

// A way is a guest's from one machine to another, as each of the two knows it.
type way struct {
	move     int
	incoming bool
	live     bool
	done     bool      // all of it is there; of one that leaves: it is stopped for good
	begun    time.Time // of the sending; zero before
	until    time.Time
	trouble  string
}

// breakOff is what the machine's power failure does to a way. The caller holds the machine's mu.
func (w *way) breakOff(g *guest) {
	switch {
	case w == nil || w.done && (!w.incoming || !w.live):
	case w.incoming:
		w.trouble = "The host that the guest goes to was restarted."
	default:
		w.trouble = "The guest's host was restarted."
	}
}

// mebibyte scales what is said of progress. What a simulated guest has of memory and disk is as its wish says.
const mebibyte = 1 << 20

// report is what the way looks like now.
func (w *way) report(now time.Time, want *compute.Guest) compute.Transit {
	t := compute.Transit{Move: w.move, Done: w.done, Trouble: w.trouble}
	if w.incoming || w.begun.IsZero() {
		return t
	}
	part := 1.0
	if took := w.until.Sub(w.begun); !w.done && took > 0 {
		part = min(1, float64(now.Sub(w.begun))/float64(took))
	}
	progress := func(mib int) compute.Progress {
		total := int64(mib) * mebibyte
		sent := int64(float64(total) * part)
		return compute.Progress{Total: total, Sent: sent, Left: total - sent}
	}
	if w.live {
		t.Memory = progress(want.MemoryMiB)
	}
	disks := 0
	if kept := want.Leave != nil && want.Leave.Kept || want.Arrive != nil && want.Arrive.Kept; !kept {
		for i := range want.Disks {
			disks += want.Disks[i].SizeMiB
		}
	}
	t.Disk = progress(disks)
	if w.live && w.done {
		t.Passage = compute.Passage{Bytes: t.Memory.Total + t.Disk.Total, Ms: w.until.Sub(w.begun).Milliseconds(), StoppedMs: 40}
	}
	return t
}

// Receive opens the machine to a guest.
func (d *Guests) Receive(ctx context.Context, want compute.Guest) (compute.Transit, error) {
	if err := ctx.Err(); err != nil {
		return compute.Transit{}, err
	}
	m := d.m
	if err := m.fault("guest.receive", want.ID); err != nil {
		return compute.Transit{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Net == nil {
		return compute.Transit{Move: want.Arrive.Move, Trouble: "This host is joined to no other."}, nil
	}
	if trouble := cmp.Or(want.Check(m.Capacity.MaxVCPUs), m.lacks(&want)); trouble != "" {
		return compute.Transit{Move: want.Arrive.Move, Trouble: trouble}, nil
	}
	g := m.guests[want.ID]
	if g == nil || g.way == nil || !g.way.incoming || g.way.move != want.Arrive.Move {
		m.unplugConsoles(want.ID)
		if g != nil {
			m.shut(want.ID, g)
		}
		g = &guest{power: compute.Off, epoch: want.Epoch, shared: want.Storage != "", way: &way{move: want.Arrive.Move, incoming: true, live: want.Arrive.Live}}
		m.guests[want.ID] = g
	}
	t := g.way.report(m.now(), &want)
	t.Where = m.listens
	return t, nil
}

// Send takes a guest to another machine, once the time for that is over.
func (d *Guests) Send(ctx context.Context, want compute.Guest) (compute.Observation, compute.Transit, error) {
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, compute.Transit{}, err
	}
	m := d.m
	if err := m.fault("guest.send", want.ID); err != nil {
		return compute.Observation{}, compute.Transit{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.guests[want.ID]
	if g == nil || g.way != nil && g.way.incoming {
		return compute.Observation{Power: compute.Off}, compute.Transit{Move: want.Leave.Move, Trouble: "The guest is not on its host."}, nil
	}
	m.settle(want.ID, g)
	if g.way == nil || g.way.move != want.Leave.Move {
		g.way = &way{move: want.Leave.Move, live: want.Leave.Live}
	}
	if !g.way.done {
		trouble, _ := m.stillOurs(g, &want)
		if g.way.trouble = cmp.Or(g.way.trouble, trouble); g.way.trouble == "" {
			m.further(g, &want)
		}
	}
	return m.observe(g), g.way.report(m.now(), &want), nil
}

// further takes a guest's way one step on. The caller holds mu, which is let go of meanwhile.
func (m *Machine) further(g *guest, want *compute.Guest) {
	w := g.way
	switch {
	case !w.live:
		if w.trouble = m.converge(g, want); w.trouble != "" || g.change != nil {
			return
		}
	case g.change != nil:
		return
	case g.power != compute.On && g.power != compute.Paused:
		w.trouble = "The guest ended on the way."
		return
	}
	if w.begun.IsZero() {
		w.begun = m.now()
		w.until = w.begun.Add(m.takes("move"))
	}
	if m.now().Before(w.until) && !want.Leave.Urgent {
		return
	}
	if err := m.fault("guest.handover", want.ID); err != nil {
		w.trouble = "The way between the two hosts broke."
		return
	}
	was := g.power
	w.done, w.until = true, m.now() // before the other machine has it
	if g.power == compute.On {
		g.power = compute.Paused
	}
	sent := *g
	m.disk(want.ID, g, func(d *disk) { sent.written = d.written })
	var peer *Machine
	if m.Net != nil {
		peer = m.Net.at(want.Leave.Where)
	}
	m.mu.Unlock()
	taken := peer != nil && peer != m && peer.take(want.ID, w.move, sent, want.Leave.Kept, want.Era)
	m.mu.Lock()
	if !taken {
		w.done, g.power, w.trouble = false, was, "The other host did not take the guest in."
		return
	}
	m.unplugConsoles(want.ID)
	m.shut(want.ID, g)
}

// take lets a guest in that is expected; false for any other.
func (m *Machine) take(id resource.ID, move int, sent guest, kept bool, era int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.guests[id]
	if g == nil || g.way == nil || !g.way.incoming || g.way.move != move || g.way.done || g.way.trouble != "" {
		return false
	}
	w := *g.way
	w.done = true
	sent.way, sent.change, sent.epoch, sent.shared, sent.claimed, sent.waits = &w, nil, g.epoch, g.shared, false, false
	if g.shared && !kept {
		if !m.copied(id, &sent, era) {
			return false
		}
	}
	m.guests[id] = &sent
	select {
	case m.changed <- id:
	default: // as in end
	}
	return true
}
