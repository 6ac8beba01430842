package compute

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// A Burden is what a guest would have to take along to another host, as its own host finds it. Sizes are in bytes.
type Burden struct {
	Live   bool  // it is in memory; else only its disks go
	Memory int64 // of the machine
	Used   int64 // of that, what the guest ever touched: the rest is not sent
	Disk   int64 // of its disks, what is not in their images
	Limit  int64 // for how many milliseconds the driver would have it stand still for the last of its memory, as far as it can tell
	Course Course

	// How much of it the guest writes anew in a second, seen over a moment.
	Seen       bool // what follows was; else it is not known
	Dirty      int64
	DiskWrites int64
	Seconds    float64 // how long that moment was
	Pages      int     // of its memory that were looked at; 0: all

	// Wire is how many bytes a second went to the other host, when that was tried just now; 0: it was not. A move is not faster.
	Wire int64
}

// A Course is how a driver sends the memory of a running guest.
type Course string

const (
	Rounds   Course = ""          // again and again what it wrote meanwhile, until little is left, for which it is stopped
	OneRound Course = "one-round" // all of it once while it runs; what it wrote meanwhile when it is stopped
	NoRound  Course = "standing"  // all of it while it is stopped
)

const mostBytes = 1 << 50 // that anybody is believed

// sane is the burden as it can be: a host may say anything.
func (b Burden) sane() Burden {
	for _, n := range []*int64{&b.Memory, &b.Used, &b.Disk, &b.Dirty, &b.DiskWrites, &b.Wire} {
		*n = max(0, min(*n, mostBytes))
	}
	b.Used = min(b.Used, b.Memory)
	if b.Course != OneRound && b.Course != NoRound {
		b.Course = Rounds
	}
	b.Limit, b.Seconds, b.Pages = max(0, min(b.Limit, 60_000)), max(0, min(b.Seconds, 60)), max(0, b.Pages)
	return b
}

// A Weigher is a Driver that can tell what a guest would take along. It looks at it for a second or two, which the guest does
// not notice, and changes nothing. Where is where the other host takes guests in, by its Capabilities: how fast it is reached
// is then tried; "" for nowhere.
type Weigher interface {
	Weigh(ctx context.Context, id resource.ID, where string) (Burden, error)
}

// A Passage is what sending a running guest came to.
type Passage struct {
	Bytes     int64 // of its memory and its disks that went over the wire
	Ms        int64 // for how long they did
	StoppedMs int64 // for how long its processors stood still for the last of its memory
}

// telling is how much has to be sent, for how long, before it says something of the wire.
const (
	tellingBytes = 4 << 20
	tellingMs    = 100
)

// speed is how many bytes passed in a second; 0 if too few did to tell.
func (p *Passage) speed() int64 {
	if p.Bytes < tellingBytes || p.Ms < tellingMs {
		return 0
	}
	return p.Bytes * 1000 / p.Ms
}

// keepPassage writes down what the move that ends came to.
func (s *Server) keepPassage(tx *state.Tx) error {
	p := s.Move.Here.Passage
	m, ok := migrations.Find(tx, s.MigrationID)
	if !ok || !s.Move.Live || p == (Passage{}) {
		return nil
	}
	m.Passage = Passage{max(0, min(p.Bytes, mostBytes)), max(0, p.Ms), max(0, p.StoppedMs)}
	return migrations.Put(tx, m)
}

// A Basis is where it is known from how fast two hosts reach each other.
type Basis string

const (
	ByTrial    Basis = "tried"    // it was tried just now
	ByPair     Basis = "pair"     // recent moves between the two
	ByHost     Basis = "host"     // recent moves from the one to others
	ByWord     Basis = "declared" // their operators say so
	Assumption Basis = "assumed"
)

// A Wire is how fast one host sends guests to another, in bytes a second.
type Wire struct {
	Basis                 Basis
	Moves                 int // that it is known from
	Least, Expected, Most int64
	StoppedMs             int64     // for how long the guests of these stood still for the last of their memory; the median
	AroundMs              int64     // what these moves took beside the sending; the median
	Moved                 int64     // bytes in a second; the median of these
	Newest                time.Time // of these
}

const (
	assumedSpeed = 1e9 / 8 // of a wire that nobody knows anything of
	recent       = 9       // moves that are looked back at
)

// wireBetween looks back at how fast moves were.
func wireBetween(tx *state.Tx, from, to *host.Host) Wire {
	for _, look := range []struct {
		basis Basis
		key   state.Key
	}{{ByPair, state.KeyOf(from.ID, to.ID)}, {ByHost, state.KeyOf(from.ID)}} {
		var speeds, stopped, around []int64
		var newest time.Time
		for m := range migrations.Peek(tx, "passage", state.Range{Prefix: look.key, Reverse: true}) {
			speeds, stopped = append(speeds, m.Passage.speed()), append(stopped, m.Passage.StoppedMs)
			if m.State == Moved {
				around = append(around, max(1, m.UpdatedAt.Sub(m.CreatedAt).Milliseconds()-m.Passage.Ms))
			}
			if m.UpdatedAt.After(newest) {
				newest = m.UpdatedAt
			}
			if len(speeds) == recent {
				break
			}
		}
		if n := len(speeds); n > 0 {
			slices.Sort(speeds)
			slices.Sort(stopped)
			w := Wire{Basis: look.basis, Moves: n, Least: speeds[0], Expected: speeds[n/2], Most: speeds[n-1], StoppedMs: stopped[n/2], Moved: speeds[n/2], Newest: newest}
			if len(around) > 0 {
				slices.Sort(around)
				w.AroundMs = around[len(around)/2]
			}
			if n < 3 || look.basis == ByHost { // what few have seen may be off
				w.Least, w.Most = w.Least*2/3, w.Most*3/2
			}
			return w
		}
	}
	says := from.Capacity.WireMbps
	if other := to.Capacity.WireMbps; other > 0 && (says == 0 || other < says) {
		says = other
	}
	if says > 0 {
		bytes := int64(says) * 1e6 / 8
		return Wire{Basis: ByWord, Least: bytes / 2, Expected: bytes * 8 / 10, Most: bytes}
	}
	return Wire{Basis: Assumption, Least: assumedSpeed / 5, Expected: assumedSpeed * 8 / 10, Most: assumedSpeed * 5}
}

// tried takes in how fast the wire was just now: a move is as fast as moves are, if the wire is.
func (w *Wire) tried(speed int64) {
	switch {
	case speed == 0:
	case w.Basis == ByPair || w.Basis == ByHost:
		w.Least, w.Expected, w.Most = min(w.Least, speed*2/3), min(w.Expected, speed), min(w.Most, speed*5/4)
	default:
		w.Basis, w.Least, w.Expected, w.Most = ByTrial, speed/3, speed*2/3, speed*5/4
	}
}

// weigh asks a server's host. unknown says why that is not to be had; what can be is then guessed from the server's shape.
func (s *Service) weigh(ctx context.Context, from, to *host.Host, srv *Server) (b Burden, unknown string) {
	err := unreachable()
	if s.config.Hosts != nil {
		ctx, cancel := context.WithTimeout(ctx, weighWithin)
		defer cancel()
		if b, err = s.config.Hosts.Weigh(ctx, from.ID, srv.ID, to.Capacity.Where); err == nil {
			return b.sane(), ""
		}
	}
	unknown = "Its host could not be asked."
	if f := fault.From(err); f != nil {
		unknown = "Its host could not be asked: " + f.Message
	}
	b = Burden{Live: srv.Seen.Power == On || srv.Seen.Power == Paused, Memory: int64(srv.Shape.MemoryMiB) << 20}
	b.Used = b.Memory
	for _, d := range srv.disks() {
		b.Disk += int64(d.SizeMiB) << 20
	}
	return b, unknown
}
