package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
)

// How a guest is sent. Its disks are mirrored to the other host while it runs; when they are in step, so is its memory. When
// little of that is left QEMU stops the processors and holds still ("pre-switchover"): the mirrors are ended, in step, and the
// rest goes. From then on the guest is here and there, and runs nowhere. One that is off has its disks sent in the same way
// by a process that is no machine.

// A trip is a guest that this driver has begun to send.
type trip struct {
	pipes        *pipes
	errand       chan errandResult // the luggage is on its way; nil before and after
	mirrored     bool              // mirrors have begun, and all of them have to be there
	memory       bool              // the memory has begun
	leavesOff    bool              // the mirrors are being ended
	mirrorsEnded bool              // and have ended well
	goesOn       bool              // the rest of the memory is on its way
	transit      compute.Transit   // how far it is
	clock        stopwatch         // how long it takes
	course       compute.Course    // of its memory
	pause        pause             // of its processors, by us
}

type errandResult struct {
	trouble string
	err     error
}

func (t *trip) end() { t.pipes.close() }

// Send implements compute.Mover.
func (d *Driver) Send(ctx context.Context, want compute.Guest) (compute.Observation, compute.Transit, error) {
	transit := compute.Transit{Move: want.Leave.Move}
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, transit, err
	}
	g := d.guest(want.ID)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.began, g.forked, g.answered = time.Now(), time.Time{}, time.Time{}
	if g.rec == nil || g.rec.Removing || g.rec.Way != nil && g.rec.Way.Incoming {
		d.forget(g)
		transit.Trouble = "The guest is not on its host."
		return compute.Observation{Power: compute.Off}, transit, nil
	}
	if w := g.rec.Way; w == nil || !w.Done { // else it may be the other host's by now
		var seen compute.Observation
		var err error
		if seen, transit.Trouble, err = g.stillMine(ctx, want); transit.Trouble != "" || err != nil {
			return seen, transit, err
		}
	}
	if w := g.rec.Way; w == nil || w.Move != want.Leave.Move {
		if w != nil {
			if err := g.turnBack(ctx); err != nil {
				return compute.Observation{}, transit, err
			}
		}
		g.rec.Way = &way{Move: want.Leave.Move, Live: want.Leave.Live, Kept: want.Leave.Kept}
		if err := g.write("departure announced"); err != nil {
			return compute.Observation{}, transit, err
		}
	}
	if err := g.depart(ctx, want); err != nil {
		return compute.Observation{}, transit, err
	}
	now, err := g.look(ctx)
	if err != nil {
		return compute.Observation{}, transit, err
	}
	if g.trip != nil {
		transit = g.trip.transit
	}
	transit.Move, transit.Done, transit.Trouble = want.Leave.Move, g.rec.Way.Done, g.rec.Way.Trouble
	return g.observe(now), transit, nil
}

// depart goes on as long as there is a next step that takes no waiting.
func (g *guest) depart(ctx context.Context, want compute.Guest) error {
	for time.Since(g.began) < patience {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("guest %s: %w", g.id, err)
		}
		w := g.rec.Way
		if w.Done || w.Trouble != "" {
			return nil
		}
		leave := g.leaveCold
		switch {
		case w.Live:
			leave = g.leaveLive
		case w.Kept:
			leave = g.leaveColdKept
		}
		p, trouble, err := leave(ctx, want)
		if err != nil {
			return err
		}
		if trouble != "" {
			return g.miss(ctx, trouble)
		}
		if p != again {
			return nil
		}
	}
	g.driver.notify(g.id)
	return nil
}

// miss gives the departure up: the guest runs on with what it has, which is all.
func (g *guest) miss(ctx context.Context, why string) error {
	g.driver.log.WarnContext(ctx, "a guest does not leave", "guest", g.id, "why", why)
	if err := g.turnBack(ctx); err != nil {
		return err
	}
	if g.rec.Way.Halted { // before anybody hears of it: the controller may be away
		if err := g.ask(ctx, "cont", nil, nil); err != nil {
			g.driver.log.WarnContext(ctx, "a guest that stays does not go on yet", "guest", g.id, "error", err)
		}
	}
	g.rec.Way.Trouble = why
	return g.write("departure given up")
}

const (
	brokenWay = "The way between the two hosts broke."
	endedOn   = "The guest ended on the way."
)

// leaveLive takes a guest that is in memory one step on.
func (g *guest) leaveLive(ctx context.Context, want compute.Guest) (progress, string, error) {
	now, lookErr := g.settle(ctx)
	switch now {
	case gone, shutDown, broken, panicked, prelaunch, incoming:
		return settled, endedOn, lookErr
	case starting, deaf:
		return waiting, "", lookErr
	case saved:
		return g.sent(ctx, want)
	}
	if p, trouble, err := g.carry(ctx, want); p != settled || trouble != "" || err != nil {
		return p, trouble, err
	}
	t := g.trip
	if want.Leave.Urgent && (now == running || now == asleep) {
		return again, "", g.halt(ctx)
	}
	if !t.memory {
		return again, "", g.letMemoryOut(ctx, want, now)
	}
	return g.switchOver(ctx, want)
}

// carry brings the luggage over and the disks into step. settled: they are.
func (g *guest) carry(ctx context.Context, want compute.Guest) (progress, string, error) {
	w, t := g.rec.Way, g.trip
	switch {
	case t == nil && w.Begun: // its connections ended with it
		return settled, "The agent of the guest's host was restarted on the way.", nil
	case t == nil:
		return g.setOut(ctx, want)
	case t.errand != nil:
		select {
		case done := <-t.errand:
			t.errand = nil
			if done.err != nil {
				g.driver.log.WarnContext(ctx, "the other host takes no guest in", "guest", g.id, "error", done.err)
				return settled, "The host that the guest goes to could not be reached.", nil
			}
			return again, done.trouble, nil
		default:
			return waiting, "", nil // it tells when it is done
		}
	case !t.mirrored && w.Kept: // the disks are there
		t.mirrored, t.leavesOff, t.mirrorsEnded = true, true, true
		return settled, "", nil
	case !t.mirrored:
		t.mirrored, t.clock.began = true, time.Now()
		for _, dev := range g.rec.Devices {
			if dev.Kind != "disk" {
				continue
			}
			if trouble, err := g.mirror(ctx, dev, want); trouble != "" || err != nil {
				return settled, trouble, err
			}
		}
		g.driver.step("mirrors begun")
		return again, "", nil
	case t.leavesOff:
		return settled, "", nil
	}
	jobs, err := g.mirrors(ctx)
	if err != nil {
		return settled, "", err
	}
	disks, ready := 0, 0
	t.transit.Disk = compute.Progress{}
	for _, dev := range g.rec.Devices {
		if dev.Kind != "disk" {
			continue
		}
		disks++
		job, ok := jobs[dev.mirrorJob()]
		if !ok || job.over() {
			return settled, brokenWay, nil
		}
		if job.Ready {
			ready++
		}
		t.transit.Disk.Total += job.Len
		t.transit.Disk.Sent += job.Offset
		t.transit.Disk.Left += job.Len - job.Offset
	}
	if ready < disks {
		g.comeAgain(time.Second)
		return waiting, "", nil
	}
	t.clock.disksInStep()
	return settled, "", nil
}

// setOut sends the luggage, which takes the other host a while.
func (g *guest) setOut(ctx context.Context, want compute.Guest) (progress, string, error) {
	if g.rec.Way.Live {
		if !g.rec.Launch.Up {
			return waiting, "", nil
		}
		plugged, err := g.plugged(ctx)
		if err != nil {
			return settled, "", err
		}
		for _, dev := range g.rec.Devices {
			if !plugged[dev.id()] || !dev.Leaving.IsZero() {
				return settled, "A device of the guest is still being attached or detached. Try again when that is done.", nil
			}
		}
	}
	l, files, err := g.pack(want)
	if err != nil {
		return settled, "", err
	}
	if g.rec.Way.Kept {
		if l.Proof, err = g.prove(ctx); err != nil {
			return settled, "", err
		}
	}
	g.rec.Way.Begun = true
	if err := g.write("departure begun"); err != nil {
		return settled, "", err
	}
	t := &trip{pipes: newPipes(), errand: make(chan errandResult, 1)}
	g.trip = t
	d, errand, where := g.driver, t.errand, want.Leave.Where
	h := hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forLuggage, Luggage: l}
	d.watchers.Go(func() {
		conn, trouble, err := d.hails(d.closing, where, loadTime, h, files...)
		if conn != nil {
			conn.Close()
		}
		errand <- errandResult{trouble, err}
		d.notify(g.id)
	})
	return waiting, "", nil
}

// turnedAway is what the owner is told when the other host does not answer as it should.
func (g *guest) turnedAway(ctx context.Context, trouble string, err error) string {
	g.driver.log.WarnContext(ctx, "the host that a guest goes to takes no more of it", "guest", g.id, "trouble", trouble, "error", err)
	if trouble == "" {
		return brokenWay
	}
	return trouble
}

// letMemoryOut begins to send the memory.
func (g *guest) letMemoryOut(ctx context.Context, want compute.Guest, now state) error {
	course, err := g.course(ctx)
	if err != nil {
		return err
	}
	if err := g.migrationSettings(ctx, true, course); err != nil {
		return err
	}
	peer, trouble, err := g.driver.hails(ctx, want.Leave.Where, peerTime, hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forMemory})
	if trouble != "" || err != nil {
		return g.miss(ctx, g.turnedAway(ctx, trouble, err))
	}
	here, there, err := socketPair()
	if err != nil {
		peer.Close()
		return err
	}
	defer there.Close()
	t := g.trip
	t.course = course
	t.pipes.group.Go(func() { t.pipes.join(here, peer) })
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := g.monitor.ExecuteWithFile(limited, there, "getfd", object{"fdname": "memory"}, nil); err != nil {
		return err
	}
	if course != compute.Rounds && (now == running || now == asleep) {
		if err := g.halt(limited); err != nil {
			return err
		}
	}
	err = g.monitor.Execute(limited, "migrate", object{"uri": "fd:memory"}, nil)
	var refusal *qmp.Error
	if errors.As(err, &refusal) {
		g.driver.log.WarnContext(ctx, "a guest's memory cannot be sent", "guest", g.id, "error", err)
		return g.miss(ctx, "The guest's hypervisor cannot send it as it is.")
	}
	t.memory = true
	g.driver.step("memory begun")
	return err
}

// A migration is how far the memory is.
type migration struct {
	Status   string
	Downtime int64 // milliseconds
	Total    int64 `json:"total-time"`
	RAM      struct {
		Total, Transferred, Remaining int64

		Rounds int64 `json:"dirty-sync-count"` // how often the marks of what was written were taken in
	}
}

// switchOver follows the memory, and ends the mirrors when the processors have stopped for the last of it.
func (g *guest) switchOver(ctx context.Context, want compute.Guest) (progress, string, error) {
	var m migration
	if err := g.ask(ctx, "query-migrate", nil, &m); err != nil {
		return settled, "", err
	}
	t := g.trip
	if m.RAM.Total > 0 {
		t.transit.Memory = compute.Progress{Total: m.RAM.Total, Sent: m.RAM.Transferred, Left: m.RAM.Remaining}
	}
	switch m.Status {
	case "setup":
		return soon(), "", nil
	case "active":
		if t.course == compute.OneRound && t.pause.on() && m.RAM.Rounds > 0 && !want.Leave.Urgent {
			return soon(), "", g.goOn(ctx)
		}
	case "pre-switchover":
		if t.course == compute.OneRound && m.RAM.Rounds > 1 {
			g.driver.log.ErrorContext(ctx, "this QEMU lost track of what an emulated guest wrote", "guest", g.id, "rounds", m.RAM.Rounds)
			return settled, "The guest's hypervisor cannot tell what the guest wrote meanwhile.", nil
		}
		ended, trouble, err := g.endMirrors(ctx)
		if err != nil || trouble != "" || !ended || t.goesOn {
			return soon(), trouble, err
		}
		g.driver.step("mirrors ended")
		t.goesOn = true
		return soon(), "", g.ask(ctx, "migrate-continue", object{"state": "pre-switchover"}, nil)
	case "device", "completed", "cancelling":
		return soon(), "", nil
	case "failed", "cancelled":
		return settled, brokenWay, nil
	}
	g.comeAgain(time.Second)
	return waiting, "", nil
}

// soon is again, when the guest stands still meanwhile.
func soon() progress {
	time.Sleep(2 * time.Millisecond)
	return again
}

// sent concludes a live departure: all is there, and the guest stopped.
func (g *guest) sent(ctx context.Context, want compute.Guest) (progress, string, error) {
	var m migration
	if err := g.ask(ctx, "query-migrate", nil, &m); err != nil {
		return settled, "", err
	}
	if m.Status != "completed" {
		return settled, brokenWay, nil
	}
	if g.trip != nil {
		g.trip.transit.Memory = compute.Progress{Total: m.RAM.Total, Sent: m.RAM.Transferred}
		g.trip.transit.Disk.Left = 0
		g.trip.transit.Passage = g.trip.passage(&m)
	}
	g.driver.log.InfoContext(ctx, "a guest is sent", "guest", g.id, "took_ms", m.Total, "stopped_ms", m.Downtime)
	g.sendLog(ctx, want)
	g.rec.Way.Done = true
	return settled, "", g.write("departure recorded")
}

// sendLog sends what the guest wrote to its console since it set out. Nothing depends on it.
func (g *guest) sendLog(ctx context.Context, want compute.Guest) {
	path := filepath.Join(g.dir, consoleFile)
	info, err := os.Stat(path)
	if err != nil || info.Size() <= g.rec.Way.Logged {
		return
	}
	body, _, err := readEnd(path, g.driver.logBytes, min(g.driver.logBytes, info.Size()-g.rec.Way.Logged), true)
	if err != nil {
		return
	}
	conn, trouble, err := g.driver.hails(ctx, want.Leave.Where, peerTime,
		hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forLog, Bytes: int64(len(body))}, body)
	if conn != nil {
		conn.Close()
	}
	if err != nil || trouble != "" {
		g.driver.log.WarnContext(ctx, "the end of a guest's console log did not go with it", "guest", g.id, "trouble", trouble, "error", err)
	}
}

// turnBack undoes what a departure has begun. The guest is then as it was: what was stopped for the move may still be.
func (g *guest) turnBack(ctx context.Context) error {
	if g.trip != nil {
		g.trip.end() // first, so that nothing waits for the other host any more
		g.trip = nil
	}
	if l := g.rec.Launch; l != nil && l.Ferry {
		return g.cut(ctx, "")
	}
	now, err := g.look(ctx)
	if now == gone || now == starting || err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		left, err := g.cancel(ctx)
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("guest %s: %d parts of its way do not end", g.id, left)
		}
	}
}

// cancel asks all that sends the guest to end, and says how much has not.
func (g *guest) cancel(ctx context.Context) (left int, err error) {
	var m migration
	if err := g.ask(ctx, "query-migrate", nil, &m); err != nil {
		return 0, err
	}
	switch m.Status {
	case "", "none", "completed", "failed", "cancelled":
	default:
		left++
		if err := g.ask(ctx, "migrate_cancel", nil, nil); err != nil {
			return left, err
		}
	}
	jobs, err := g.mirrors(ctx)
	if err != nil {
		return left, err
	}
	for name, job := range jobs {
		left++
		command, args := "block-job-cancel", object{"device": name, "force": true}
		if job.over() {
			command, args = "job-dismiss", object{"id": name}
		}
		err := g.ask(ctx, command, args, nil)
		var refusal *qmp.Error
		if err != nil && !errors.As(err, &refusal) { // it has just ended
			return left, err
		}
	}
	if left > 0 {
		return left, nil
	}
	return 0, g.dropMirrors(ctx)
}
