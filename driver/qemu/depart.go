package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
	"golang.org/x/sys/unix"
)

// How a guest is sent. Its disks are mirrored to the other host while it runs; when they are in step, so is its memory. When
// little of that is left QEMU stops the processors and holds still ("pre-switchover"): the mirrors are ended, in step, and the
// rest goes. From then on the guest is here and there, and runs nowhere. One that is off has its disks sent in the same way
// by a process that is no machine.

// A trip is a guest that this driver has begun to send.
type trip struct {
	pipes     *pipes
	errand    chan errandResult // the luggage is on its way; nil before and after
	mirrored  bool              // mirrors have begun, and all of them have to be there
	memory    bool              // the memory has begun
	leavesOff bool              // the mirrors are being ended
	goesOn    bool              // the rest of the memory is on its way
	transit   compute.Transit   // how far it is
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
	if w := g.rec.Way; w == nil || w.Move != want.Leave.Move {
		if w != nil {
			if err := g.turnBack(ctx); err != nil {
				return compute.Observation{}, transit, err
			}
		}
		g.rec.Way = &way{Move: want.Leave.Move, Live: want.Leave.Live}
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
		if w.Live {
			leave = g.leaveLive
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
		return again, "", g.ask(ctx, "stop", nil, nil)
	}
	if !t.memory {
		return again, "", g.letMemoryOut(ctx, want)
	}
	return g.switchOver(ctx)
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
	case !t.mirrored:
		t.mirrored = true
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
		if !ok {
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
	l, files, err := g.pack()
	if err != nil {
		return settled, "", err
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

func (d device) mirrorJob() string  { return "move" + fmt.Sprint(d.Slot) }
func (d device) mirrorNode() string { return "m" + fmt.Sprint(d.Slot) }

// mirror has a disk written to the other host too, from now on, and what is in it already. What is in its image is there.
func (g *guest) mirror(ctx context.Context, dev device, want compute.Guest) (trouble string, err error) {
	h := hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forDisk, Slot: dev.Slot}
	peer, trouble, err := g.driver.hails(ctx, want.Leave.Where, peerTime, h)
	if trouble != "" || err != nil {
		return g.turnedAway(ctx, trouble, err), nil
	}
	name := fmt.Sprintf("unkai-%s-%d", g.id, dev.Slot)
	if err := g.meet(name, peer); err != nil {
		peer.Close()
		return "", err
	}
	err = g.ask(ctx, "blockdev-add", object{"driver": "nbd", "node-name": dev.mirrorNode(), "export": dev.node(), "discard": "unmap",
		"server": object{"type": "unix", "path": name, "abstract": true}}, nil)
	if err != nil {
		g.driver.log.WarnContext(ctx, "a guest's disk cannot be sent", "guest", g.id, "error", err)
		return brokenWay, nil
	}
	sync := "full"
	if dev.Image.Path != "" {
		sync = "top"
	}
	return "", g.ask(ctx, "blockdev-mirror", object{"job-id": dev.mirrorJob(), "device": dev.node(), "target": dev.mirrorNode(), "sync": sync,
		"filter-node-name": dev.mirrorNode() + "t"}, nil)
}

// turnedAway is what the owner is told when the other host does not answer as it should.
func (g *guest) turnedAway(ctx context.Context, trouble string, err error) string {
	g.driver.log.WarnContext(ctx, "the host that a guest goes to takes no more of it", "guest", g.id, "trouble", trouble, "error", err)
	if trouble == "" {
		return brokenWay
	}
	return trouble
}

// meet waits, in the hypervisor's own network, for it to come to a socket of this name, and connects it with another host. Nobody
// else is in there; where a hypervisor has no network of its own, whoever else comes is turned away.
func (g *guest) meet(name string, peer net.Conn) error {
	var l net.Listener
	err := inNetworkOf(g.proc.pid, g.driver.jail.identity, func() (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: "@" + name, Net: "unix"})
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for guest %s: %w", g.id, err)
	}
	pid, p := g.proc.pid, g.trip.pipes
	if !p.keep(l) {
		return errors.New("the way was given up")
	}
	p.group.Go(func() {
		defer p.drop(l)
		l.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second))
		for {
			conn, err := l.Accept()
			if err != nil {
				peer.Close()
				return
			}
			if peerOf(conn.(*net.UnixConn)) != pid {
				conn.Close()
				continue
			}
			l.Close()
			p.join(conn, peer)
			return
		}
	})
	return nil
}

// inNetworkOf runs f in the network namespace of a process, if it has one of its own.
func inNetworkOf(pid int, own bool, f func() error) (err error) {
	if !own {
		return f()
	}
	onSpareThread(func() {
		var ns *os.File
		if ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter the namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}

// peerOf is the process at the other end of a local connection.
func peerOf(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// A mirrorJob is how far one of QEMU's jobs is.
type mirrorJob struct {
	Device      string
	Len, Offset int64
	Ready       bool
}

func (g *guest) mirrors(ctx context.Context) (map[string]mirrorJob, error) {
	var all []mirrorJob
	if err := g.ask(ctx, "query-block-jobs", nil, &all); err != nil {
		return nil, err
	}
	jobs := map[string]mirrorJob{}
	for _, job := range all {
		if strings.HasPrefix(job.Device, "move") {
			jobs[job.Device] = job
		}
	}
	return jobs, nil
}

// letMemoryOut begins to send the memory.
func (g *guest) letMemoryOut(ctx context.Context, want compute.Guest) error {
	if err := g.migrationSettings(ctx, true); err != nil {
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
	t.pipes.group.Go(func() { t.pipes.join(here, peer) })
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := g.monitor.ExecuteWithFile(limited, there, "getfd", object{"fdname": "memory"}, nil); err != nil {
		return err
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
	RAM      struct{ Total, Transferred, Remaining int64 }
}

// switchOver follows the memory, and ends the mirrors when the processors have stopped for the last of it.
func (g *guest) switchOver(ctx context.Context) (progress, string, error) {
	var m migration
	if err := g.ask(ctx, "query-migrate", nil, &m); err != nil {
		return settled, "", err
	}
	t := g.trip
	if m.RAM.Total > 0 {
		t.transit.Memory = compute.Progress{Total: m.RAM.Total, Sent: m.RAM.Transferred, Left: m.RAM.Remaining}
	}
	switch m.Status {
	case "pre-switchover":
		left, err := g.endMirrors(ctx)
		if err != nil || left > 0 || t.goesOn {
			return soon(), "", err
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

// endMirrors ends the mirrors, which are in step, with the last of what was written, and says how many are left.
func (g *guest) endMirrors(ctx context.Context) (left int, err error) {
	jobs, err := g.mirrors(ctx)
	if err != nil {
		return 0, err
	}
	t := g.trip
	if !t.leavesOff {
		for name := range jobs {
			if err := g.ask(ctx, "block-job-cancel", object{"device": name}, nil); err != nil {
				return len(jobs), err
			}
		}
		t.leavesOff = true
		return len(jobs), nil
	}
	if len(jobs) > 0 {
		return len(jobs), nil
	}
	return 0, g.dropMirrors(ctx)
}

// dropMirrors takes the other ends of mirrors away that have ended.
func (g *guest) dropMirrors(ctx context.Context) error {
	for _, dev := range g.rec.Devices {
		if dev.Kind != "disk" {
			continue
		}
		err := g.ask(ctx, "blockdev-del", object{"node-name": dev.mirrorNode()}, nil)
		var refusal *qmp.Error
		if err != nil && !(errors.As(err, &refusal) && strings.Contains(refusal.Desc, "ind node")) {
			return err
		}
	}
	return nil
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

// leaveCold takes a guest one step on that is off, or is to be first.
func (g *guest) leaveCold(ctx context.Context, want compute.Guest) (progress, string, error) {
	if l := g.rec.Launch; l == nil || !l.Ferry {
		if g.rec.Way.Begun {
			return settled, "The agent of the guest's host was restarted on the way.", nil
		}
		p, trouble, err := g.step(ctx, want)
		if p != settled || trouble != "" || err != nil {
			return p, trouble, err
		}
		if g.rec.Launch != nil {
			return waiting, "", nil
		}
		if err := g.launch(ctx, &launch{Boot: bootID(), Ferry: true}, g.ferryLine); err != nil {
			return settled, "", err
		}
		return again, "", nil
	}
	now, err := g.settle(ctx)
	switch {
	case now == starting:
		return waiting, "", g.bringUp(ctx)
	case now == gone || err != nil:
		g.refusal(g.driver.log)
		return settled, brokenWay, err
	}
	if p, trouble, err := g.carry(ctx, want); p != settled || trouble != "" || err != nil {
		return p, trouble, err
	}
	if left, err := g.endMirrors(ctx); err != nil || left > 0 {
		return soon(), "", err
	}
	conn, trouble, err := g.driver.hails(ctx, want.Leave.Where, 2*peerTime, hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forEnd})
	if trouble != "" || err != nil {
		return settled, g.turnedAway(ctx, trouble, err), nil
	}
	conn.Close()
	if err := g.cut(ctx, ""); err != nil {
		return settled, "", err
	}
	g.rec.Way.Done = true
	return settled, "", g.write("departure recorded")
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
	for name := range jobs {
		left++
		err := g.ask(ctx, "block-job-cancel", object{"device": name, "force": true}, nil)
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

// ferryLine tells QEMU to hold a guest's disks and be no machine.
func (g *guest) ferryLine() (in inmate, c *cargo, err error) {
	c = &cargo{}
	d := g.driver
	in = inmate{uid: g.rec.UID}
	var failures []error
	add := func(f *os.File, err error) int {
		n, err := c.add(f, err)
		failures = append(failures, err)
		return n
	}
	args := []string{d.binary, "-uuid", g.id.String(), "-name", "guest=" + g.id.String(), "-machine", "none", "-nodefaults", "-no-user-config",
		"-display", "none", "-S", "-msg", "timestamp=on", "-sandbox", sandbox}
	add(os.OpenFile(os.DevNull, os.O_RDWR, 0))
	complaints := add(os.OpenFile(filepath.Join(g.dir, stderrFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600))
	if errors.Join(failures...) == nil {
		c.files = append(c.files, dup(c.files[complaints], &failures))
	}
	for _, monitor := range []string{monitorSocket, adminSocket} {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", monitor, add(listen(g.dir, monitor))), "-mon", "chardev="+monitor+",mode=control")
	}
	for _, dev := range g.rec.Devices {
		if dev.Kind != "disk" {
			continue
		}
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", add(os.OpenFile(dev.file(g.dir), os.O_RDWR, 0)), diskSet(dev.Slot)))
		if dev.Image.Path != "" {
			args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", add(os.OpenFile(dev.Image.Path, os.O_RDONLY, 0)), backingSet(dev.Slot)))
		}
		for _, node := range dev.blockdevs() {
			args = append(args, "-blockdev", text(node))
		}
	}
	in.argv, in.files = args, c.files
	if err := errors.Join(failures...); err != nil {
		c.close()
		return in, nil, err
	}
	return in, c, nil
}
