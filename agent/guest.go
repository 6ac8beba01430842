package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// Guests makes guests real: it brings the images here, waits for the network, builds the
// config drive, and hands the rest to a driver.
type Guests struct {
	Driver compute.Driver
	Images *Images // nil: the driver needs no image files
	Taps   *Taps   // nil: the driver needs no taps
	Lease  *Lease  // nil: guests need none
	// Uploads bring copies of guests' disks to a controller; nil: none are made.
	Uploads Uploader
	// Seed builds a config drive and answers its path; nil: guests get none.
	Seed func(compute.Guest) (string, error)
	// Unseed takes the config drive away.
	Unseed func(resource.ID) error

	waiting sync.Once // it is said once
}

// How soon to look again at a guest that is busy, or that waits for something.
const (
	whileBusy     = 100 * time.Millisecond
	whileUnwired  = 250 * time.Millisecond
	whileFetching = 2 * time.Second // its arrival wakes us
	whileMoving   = 500 * time.Millisecond
	whileWell     = 30 * time.Second
)

// Handler is what an Agent calls for guests.
func (g *Guests) Handler() Handler {
	return Handler{Kind: "guest", Ensure: g.ensure, Remove: g.remove, Halt: g.halt, Present: g.Driver.Present}
}

var guests = sync.Pool{New: func() any { return new(compute.Guest) }}

func (g *Guests) ensure(ctx context.Context, _ resource.ID, body json.RawMessage) (any, time.Duration, error) {
	want := guests.Get().(*compute.Guest) // nobody keeps it: drivers are given copies
	defer func() {
		*want = compute.Guest{}
		guests.Put(want)
	}()
	// As encoding/json would, in a third of the time: each guest is decoded again whenever it is looked at.
	if err := jsonv2.Unmarshal(body, want); err != nil {
		return nil, 0, fmt.Errorf("decode what is wanted: %w", err)
	}
	if want.Arrive == nil { // else it does not run here
		if mine, report, again, err := g.underLease(ctx, want); !mine {
			return report, again, err
		}
		if mine, report, again, err := g.unasked(ctx, want); !mine {
			return report, again, err
		}
	}
	switch {
	case want.Arrive != nil:
		return g.receive(ctx, want)
	case want.Leave != nil:
		return g.send(ctx, want)
	case want.Snapshot != nil:
		return g.snapshot(ctx, want)
	}
	if g.Uploads != nil {
		g.Uploads.Forget(want.ID)
	}
	if again, err := g.prepare(ctx, want); err != nil || again > 0 {
		return g.wait(ctx, want, again, err)
	}
	seen, err := g.Driver.Ensure(ctx, *want)
	if err != nil {
		return nil, 0, err
	}
	report := compute.Seen{Observation: seen, Wish: want.Wish}
	if seen.Busy {
		return report, whileBusy, nil
	}
	return report, whileWell, nil
}

// wait reports a guest whose parts are not all here yet, or will never be.
func (g *Guests) wait(ctx context.Context, want *compute.Guest, again time.Duration, why error) (any, time.Duration, error) {
	var never *ImageError
	if why != nil && !errors.As(why, &never) {
		return nil, 0, why
	}
	seen, err := g.seen(ctx, want.ID)
	if err != nil {
		return nil, 0, err
	}
	if never != nil {
		seen.Trouble, seen.Busy = never.Message, false
	} else {
		seen.Busy = true
	}
	return compute.Seen{Observation: seen, Wish: want.Wish}, again, nil
}

// seen is what there is of a guest; one that is not there is off.
func (g *Guests) seen(ctx context.Context, id resource.ID) (compute.Observation, error) {
	seen, err := g.Driver.Observe(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return compute.Observation{Power: compute.Off}, nil
	}
	return seen, err
}

// runs reports whether a guest's virtual machine is there.
func (g *Guests) runs(ctx context.Context, id resource.ID) (bool, error) {
	seen, err := g.seen(ctx, id)
	return seen.Power == compute.On || seen.Power == compute.Paused || !seen.StartedAt.IsZero(), err
}

// prepare sees to what the driver needs, and never waits for it: while something is missing it
// says how soon to look again.
func (g *Guests) prepare(ctx context.Context, want *compute.Guest) (again time.Duration, err error) {
	if again := g.wire(want); again > 0 {
		return again, nil
	}
	return g.gather(want)
}

// wire finds the taps of the guest's ports.
func (g *Guests) wire(want *compute.Guest) (again time.Duration) {
	if g.Taps != nil {
		for i := range want.NICs {
			tap, ok := g.Taps.Of(want.NICs[i].PortID)
			if !ok {
				return whileUnwired
			}
			want.NICs[i].Tap = tap
		}
	}
	return 0
}

// gather sees to the files that a guest is made from.
func (g *Guests) gather(want *compute.Guest) (again time.Duration, err error) {
	if g.Images != nil {
		refs := imagesOf(want)
		asked := make([]compute.ImageRef, len(refs))
		for i, ref := range refs {
			asked[i] = *ref
		}
		paths, err := g.Images.Find(want.ID, asked...)
		if err != nil || paths == nil {
			return whileFetching, err
		}
		for i, ref := range refs {
			ref.Path = paths[i]
		}
	}
	if want.ConfigDrive && g.Seed != nil {
		if want.Seed, err = g.Seed(*want); err != nil {
			return 0, fmt.Errorf("build the config drive: %w", err)
		}
	}
	return 0, nil
}

// receive takes in a guest that is another host's still: its files first, for the disks that come lie over them. One that is
// running needs its taps, too, and will find them so when it runs here.
func (g *Guests) receive(ctx context.Context, want *compute.Guest) (any, time.Duration, error) {
	report := func(t compute.Transit, again time.Duration) (any, time.Duration, error) {
		t.Move = want.Arrive.Move
		return compute.Seen{Observation: compute.Observation{Power: compute.Off, Busy: !t.Done}, Wish: want.Wish, Transit: t}, again, nil
	}
	mover, ok := g.Driver.(compute.Mover)
	if !ok {
		return report(compute.Transit{Trouble: "The other host cannot take in guests."}, whileWell)
	}
	again, err := g.gather(want)
	if want.Arrive.Live && err == nil && again == 0 {
		again = g.wire(want)
	}
	var never *ImageError
	switch {
	case errors.As(err, &never):
		return report(compute.Transit{Trouble: never.Message}, whileWell)
	case err != nil:
		return nil, 0, err
	case again > 0:
		return report(compute.Transit{}, again)
	}
	t, err := mover.Receive(ctx, *want)
	if err != nil {
		return nil, 0, err
	}
	if t.Done {
		return report(t, whileWell)
	}
	return report(t, whileMoving)
}

// send has a guest go to another host.
func (g *Guests) send(ctx context.Context, want *compute.Guest) (any, time.Duration, error) {
	report := compute.Seen{Wish: want.Wish, Transit: compute.Transit{Trouble: "The guest's host cannot send it to another."}}
	again := whileMoving
	if mover, ok := g.Driver.(compute.Mover); ok {
		if !want.Leave.Live { // it may have to be taken care of first, as ever
			wait, err := g.prepare(ctx, want)
			if never := new(ImageError); err != nil && !errors.As(err, &never) || wait > 0 {
				return g.wait(ctx, want, wait, err)
			}
		}
		var err error
		if report.Observation, report.Transit, err = mover.Send(ctx, *want); err != nil {
			return nil, 0, err
		}
		if report.Transit.Done {
			again = whileWell
		}
	} else if seen, err := g.Driver.Observe(ctx, want.ID); err != nil {
		return nil, 0, err
	} else {
		report.Observation = seen
	}
	report.Transit.Move = want.Leave.Move
	return report, again, nil
}

// imagesOf lists what a guest is made from.
func imagesOf(g *compute.Guest) []*compute.ImageRef {
	refs := []*compute.ImageRef{g.Kernel, g.Initrd}
	for i := range g.Disks {
		refs = append(refs, g.Disks[i].Image)
	}
	return slices.DeleteFunc(refs, func(ref *compute.ImageRef) bool { return ref == nil })
}

func (g *Guests) remove(ctx context.Context, id resource.ID) error {
	if g.Images != nil {
		g.Images.Forget(id)
	}
	if g.Uploads != nil {
		g.Uploads.Forget(id)
	}
	if err := g.Driver.Remove(ctx, id); err != nil {
		return err
	}
	if g.Unseed != nil {
		return g.Unseed(id)
	}
	return nil
}

// halt stops a guest whose owner nobody here knows. Its disks stay.
func (g *Guests) halt(ctx context.Context, id resource.ID) (again time.Duration, err error) {
	if g.Images != nil {
		g.Images.Forget(id)
	}
	busy, err := g.Driver.Halt(ctx, id)
	if busy {
		again = whileBusy
	}
	return again, err
}

// Follow passes on what the driver notices by itself, until ctx ends.
func (g *Guests) Follow(ctx context.Context, a *Agent) {
	n, ok := g.Driver.(compute.Notifier)
	if !ok {
		return
	}
	for {
		select {
		case id, open := <-n.Changed():
			if !open {
				return
			}
			a.Touch(host.Key{Kind: "guest", ID: id}, time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// Taps knows where the guests' ports are.
type Taps struct {
	mu   sync.Mutex
	taps map[resource.ID]compute.Tap // guarded by mu
}

// Of is the tap of a port; false while there is none.
func (t *Taps) Of(port resource.ID) (compute.Tap, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tap, ok := t.taps[port]
	return tap, ok
}

func (t *Taps) set(port resource.ID, tap compute.Tap) (news bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taps == nil {
		t.taps = map[resource.ID]compute.Tap{}
	}
	was, ok := t.taps[port]
	t.taps[port] = tap
	return !ok || was != tap
}

func (t *Taps) drop(port resource.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.taps, port)
}

// SweepImages lets cached images go that no guest here is made from.
func (g *Guests) SweepImages(a *Agent) {
	keep := map[resource.ID]bool{}
	known := true
	note := func(body json.RawMessage) {
		var want compute.Guest
		if json.Unmarshal(body, &want) != nil {
			known = false
			return
		}
		for _, ref := range imagesOf(&want) {
			keep[ref.ID] = true
		}
	}
	a.mu.Lock()
	for key, body := range a.wants {
		if key.Kind == "guest" {
			note(body)
		}
	}
	for key, held := range a.held { // what its disks lie over may be a stranger's only copy
		if key.Kind == "guest" {
			note(held.Body)
		}
	}
	confirmed := a.confirmed && len(a.removing) == 0
	a.mu.Unlock()
	if !confirmed || !known {
		return
	}
	if err := g.Images.Sweep(keep, 24*time.Hour); err != nil && !errors.Is(err, os.ErrNotExist) {
		slog.Warn("could not clean the image cache", "err", err)
	}
}
