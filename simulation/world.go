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
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
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
	Reached map[string]int // what is rare, and to be seen by some seeds
	Settled time.Duration  // simulated time from the last fault to rest
	For     string         // what was waited for last
}

// world is one cloud and everything around it.
type world struct {
	Options
	ctx    context.Context
	rng    *rand.Rand
	clock  time.Time
	engine *engine
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
	parted    map[resource.ID]bool // groups of servers that are to be together, and are not
	joiners   []*joiner
	spent     []string // tokens that were used, as far as somebody knows
	audit     audit.Series
	running   map[resource.ID]string // scratch of checkNoneTwice
	writing   map[resource.ID]string // and of checkOneWriter
	together  int64                  // the revision that checkTogether saw last
	trail     trail
	result    Result
	calm      bool // no more faults
	alarms    []alarm
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
		engine: &engine{Memory: state.NewMemory(100_000), turned: map[turn]bool{}}, print: sha256.New(), blobs: new(imagetest.Memory), result: Result{Seed: o.Seed, Faults: map[string]int{}, Reached: map[string]int{}},
		running: map[resource.ID]string{}, writing: map[resource.ID]string{}, marks: map[resource.ID]mark{}, parted: map[resource.ID]bool{}}
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
		node, err := w.newNode(n)
		if err != nil {
			return nil, err
		}
		w.nodes = append(w.nodes, node)
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
		if err := errors.Join(w.checkNoneTwice(), w.checkSteady()); err != nil {
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
	w.insist()
	w.bark()
	return w.mindControl()
}
