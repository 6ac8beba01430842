package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
)

// An arrival is a guest that this driver takes in.
type arrival struct {
	want  compute.Guest // as of the last Receive
	pipes *pipes
}

// Receive implements compute.Mover.
func (d *Driver) Receive(ctx context.Context, want compute.Guest) (compute.Transit, error) {
	if err := ctx.Err(); err != nil {
		return compute.Transit{}, err
	}
	t := compute.Transit{Move: want.Arrive.Move, Where: d.where()}
	if t.Trouble = cmp.Or(d.unmet(want), d.lacks(want.Storage)); t.Where == "" && t.Trouble == "" {
		t.Trouble = "This host cannot be reached by others."
	}
	g := d.guest(want.ID)
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.Trouble != "" {
		d.forget(g)
		return t, nil
	}
	g.began = time.Now()
	if r := g.rec; r == nil || r.Removing || r.Way == nil || !r.Way.Incoming || r.Way.Move != want.Arrive.Move {
		w := &way{Move: want.Arrive.Move, Incoming: true, Live: want.Arrive.Live, Kept: want.Arrive.Kept, From: want.Arrive.From}
		if err := g.create(ctx, want, w); err != nil {
			d.forget(g)
			return t, err
		}
	}
	w := g.rec.Way
	if g.arriving == nil && !w.Begun {
		g.arriving = &arrival{pipes: newPipes()}
		d.await(g.id, w.From)
	}
	if g.arriving != nil {
		g.arriving.want = want
	}
	if err := g.arrive(ctx); err != nil {
		return t, err
	}
	t.Done, t.Trouble = w.Done, w.Trouble
	return t, nil
}

// arrive finds out how far the guest has come.
func (g *guest) arrive(ctx context.Context) error {
	w := g.rec.Way
	if w.Trouble != "" || w.Done && !w.Live || !w.Begun {
		return nil
	}
	now, err := g.settle(ctx)
	switch {
	case now == gone && w.Live:
		return g.strand(ctx, "The host that the guest goes to could not take it in, or was restarted.")
	case err != nil || w.Done:
		return err
	}
	if w.Live && now != incoming && now != starting {
		var migration struct{ Status string }
		if err := g.ask(ctx, "query-migrate", nil, &migration); err != nil {
			return err
		}
		if migration.Status == "completed" {
			err := g.ask(ctx, "nbd-server-stop", nil, nil)
			var refusal *qmp.Error
			if err != nil && !errors.As(err, &refusal) { // it has been stopped
				return err
			}
			g.driver.step("guest arrived")
			w.Done = true
			return g.write("arrival recorded")
		}
	}
	if g.arriving == nil { // an agent before us had the connections
		return g.strand(ctx, "The agent of the host that the guest goes to was restarted on the way.")
	}
	return nil
}

// strand gives up to take the guest in. What has come of it goes with the guest, when that is ordered away.
func (g *guest) strand(ctx context.Context, why string) error {
	g.driver.log.WarnContext(ctx, "a guest does not arrive", "guest", g.id, "why", why)
	g.cutWay()
	g.rec.Way.Trouble = why
	if err := g.cut(ctx, ""); err != nil {
		return err
	}
	return nil
}

// await takes note that a guest is to come from a host, until cutWay.
func (d *Driver) await(guest, from resource.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.awaited == nil {
		d.awaited = map[resource.ID]resource.ID{}
	}
	d.awaited[guest] = from
}

// Awaits reports whether any guest is to come from a host.
func (d *Driver) Awaits(from resource.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, host := range d.awaited {
		if host == from {
			return true
		}
	}
	return false
}

// Serve takes a connection from another host, which Peers has made sure of, until it ends.
func (d *Driver) Serve(from resource.ID, conn net.Conn) {
	defer conn.Close()
	within := peerTime // to ask for a trial, and nothing else
	if d.Awaits(from) {
		within = loadTime
	}
	conn.SetDeadline(time.Now().Add(within))
	ctx, cancel := context.WithTimeout(d.closing, loadTime)
	defer cancel()
	var h hail
	if err := hear(conn, &h); err != nil {
		d.log.Warn("another host said what cannot be understood", "host", from, "error", err)
		return
	}
	if h.Purpose == forTrial {
		d.beTried(conn)
		return
	}
	way, hypervisor, trouble, err := d.admit(ctx, from, conn, h)
	if err != nil {
		d.log.Error("a guest cannot be taken in", "guest", h.Guest, "from", from, "for", h.Purpose, "error", err)
		trouble = "The host that the guest goes to could not take it in."
	}
	if err := tell(conn, welcome{trouble}); err != nil || trouble != "" || hypervisor == nil {
		if hypervisor != nil {
			hypervisor.Close()
		}
		return
	}
	conn.SetDeadline(time.Time{})
	way.join(hypervisor, conn) // which ends at once if the guest has gone meanwhile
}

const notAwaited = "The guest is not awaited on the host that it was sent to."

// admit does what a hail asks for. hypervisor is what its connection is to lead to, and way those of the guest's move; nil for nothing.
func (d *Driver) admit(ctx context.Context, from resource.ID, conn net.Conn, h hail) (way *pipes, hypervisor net.Conn, trouble string, err error) {
	d.mu.Lock()
	g := d.guests[h.Guest]
	d.mu.Unlock()
	if g == nil {
		return nil, nil, notAwaited, nil
	}
	awaited := func() bool {
		r := g.rec
		return r != nil && !r.Removing && r.Way != nil && r.Way.Incoming && r.Way.Move == h.Move && r.Way.From == from && r.Way.Trouble == "" && g.arriving != nil
	}
	g.mu.Lock()
	ok := awaited()
	g.mu.Unlock()
	if !ok {
		return nil, nil, notAwaited, nil
	}
	// What the other host sends is waited for before the guest is held.
	var files map[string][]byte
	var log []byte
	switch {
	case h.Purpose == forLuggage && h.Luggage != nil:
		files, err = h.Luggage.unpack(conn)
	case h.Purpose == forLog && h.Bytes >= 0 && h.Bytes <= d.logBytes:
		log = make([]byte, h.Bytes)
		_, err = io.ReadFull(conn, log)
	}
	if err != nil {
		return nil, nil, "", fmt.Errorf("hear what the other host sends: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.began = time.Now()
	switch w := g.rec.way(); {
	case !awaited():
		return nil, nil, notAwaited, nil
	case h.Purpose == forLuggage && files != nil && !w.Begun:
		trouble, err := g.makeRoom(ctx, h.Luggage, files)
		if trouble != "" || err != nil {
			err = errors.Join(err, g.strand(ctx, "The host that the guest goes to could not take it in."))
		}
		return nil, nil, trouble, err
	case h.Purpose == forLog && w.Begun:
		return nil, nil, "", g.appendLog(log)
	case h.Purpose == forEnd && w.Begun && !w.Done && w.Kept && !w.Live:
		return nil, nil, "", g.arrivedKept()
	case w.Done || !w.Begun || g.proc == nil:
		return nil, nil, notAwaited, nil
	case h.Purpose == forDisk:
		hypervisor, err := dial(ctx, g.dir, exportSocket)
		if err != nil {
			return nil, nil, "", err
		}
		return g.arriving.pipes, hypervisor, "", nil
	case h.Purpose == forMemory && w.Live:
		hypervisor, err := g.letMemoryIn(ctx)
		return g.arriving.pipes, hypervisor, "", err
	case h.Purpose == forEnd && !w.Live:
		if err := g.cut(ctx, ""); err != nil { // the disks are tidy then
			return nil, nil, "", err
		}
		w.Done = true
		err := g.write("arrival recorded")
		d.notify(g.id)
		return nil, nil, "", err
	}
	return nil, nil, notAwaited, nil
}

// way is nil for a record that is gone, too.
func (r *record) way() *way {
	if r == nil {
		return nil
	}
	return r.Way
}

// makeRoom makes what the guest comes into: its disks, and a machine that waits for its memory, or, for one that is off, a
// process that only takes the disks in.
func (g *guest) makeRoom(ctx context.Context, l *luggage, files map[string][]byte) (trouble string, err error) {
	d, r, want := g.driver, g.rec, g.arriving.want
	if r.Way.Live {
		if trouble := d.unfit(l, want); trouble != "" {
			return trouble, nil
		}
		if l.Shape.Seed && files[seedFile] == nil {
			return "The guest's config drive did not come with it.", nil
		}
	}
	if files[firmwareFile] != nil && !r.Way.hasVariables(want) {
		return "", errors.New("firmware variables came with a guest that brings none")
	}
	if trouble := r.takeDevices(l, want); trouble != "" {
		return trouble, nil
	}
	r.HardBoots, r.SoftBoots, r.Rebuilds = l.HardBoots, l.SoftBoots, l.Rebuilds
	r.Way.Begun, r.Way.StartedAt = true, l.StartedAt
	if err := g.write("room planned"); err != nil {
		return "", err
	}
	if r.Way.Kept {
		trouble, err = g.findDisks(ctx, l.Proof)
	} else {
		trouble, err = g.mine(ctx, want)
	}
	if trouble != "" || err != nil {
		return trouble, err
	}
	for name, body := range files {
		if name == firmwareFile {
			err = g.amongDisks(ctx, func(dir *os.Root) error { return replace(dir, name, body) })
		} else {
			err = writeFile(filepath.Join(g.dir, name), body)
		}
		if err != nil {
			return "", err
		}
	}
	for i := range r.Devices {
		if dev := &r.Devices[i]; dev.Kind == "disk" && !dev.Made {
			blank := *dev
			blank.Label = "" // what is in it comes
			if err := g.makeDisk(ctx, &blank); err != nil {
				return "", err
			}
			dev.Made = true
		}
	}
	if !r.Way.Kept {
		if err := g.noteDisks(ctx, r.Rebuilds); err != nil {
			return "", err
		}
	}
	if want.Kernel != nil {
		if err := g.copyKernel(want); err != nil {
			return "", err
		}
	}
	if want.UEFI && !r.Way.Kept {
		if err := g.makeVariables(ctx); err != nil {
			return "", err
		}
	}
	d.step("room made")
	if r.Way.Kept && !r.Way.Live {
		return "", nil
	}
	launched := &launch{Shape: l.Shape, Boot: bootID(), Incoming: true}
	line := func() (inmate, *cargo, error) { return g.commandLine(l.Shape, fromPeer) }
	if !r.Way.Live {
		launched = &launch{Boot: bootID(), Ferry: true}
		line = g.ferryLine
	}
	if err := g.launch(ctx, launched, line); err != nil {
		return "", err
	}
	if err := g.await(ctx); err != nil {
		return "", err
	}
	if r.Way.Kept {
		return "", nil
	}
	return "", g.export(ctx, true)
}

// await waits until a process answers that was just started.
func (g *guest) await(ctx context.Context) error {
	for deadline := time.Now().Add(childhood); ; {
		now, err := g.look(ctx)
		switch {
		case now == gone:
			g.refusal(g.driver.log)
			return fmt.Errorf("guest %s: the process has ended", g.id)
		case now != starting:
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("guest %s: the process does not answer", g.id)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// export has the process take disks in, or only offer them, on a socket that only we can come to.
func (g *guest) export(ctx context.Context, writable bool) error {
	l, err := listen(g.dir, exportSocket)
	if err != nil {
		return err
	}
	defer l.Close()
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := g.monitor.ExecuteWithFile(limited, l, "getfd", object{"fdname": "nbd"}, nil); err != nil {
		return err
	}
	if err := g.ask(ctx, "nbd-server-start", object{"addr": object{"type": "fd", "data": object{"str": "nbd"}}}, nil); err != nil {
		return err
	}
	for _, dev := range g.rec.Devices {
		if dev.Kind != "disk" {
			continue
		}
		if err := g.ask(ctx, "block-export-add", object{"type": "nbd", "id": "export-" + dev.node(), "node-name": dev.node(), "name": dev.node(), "writable": writable}, nil); err != nil {
			return err
		}
	}
	g.driver.step("disks exported")
	return nil
}

// letMemoryIn has the machine read its memory from a connection.
func (g *guest) letMemoryIn(ctx context.Context) (net.Conn, error) {
	if err := g.ask(ctx, "migrate-set-capabilities", object{"capabilities": []object{
		{"capability": "events", "state": true}, {"capability": "late-block-activate", "state": g.rec.Way.Kept}}}, nil); err != nil {
		return nil, err
	}
	here, there, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer there.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err = g.monitor.ExecuteWithFile(ctx, there, "getfd", object{"fdname": "memory"}, nil); err == nil {
		err = g.monitor.Execute(ctx, "migrate-incoming", object{"uri": "fd:memory"}, nil)
	}
	if err != nil {
		here.Close()
		return nil, err
	}
	g.driver.step("memory let in")
	return here, nil
}

func (g *guest) appendLog(text []byte) error {
	f, err := os.OpenFile(filepath.Join(g.dir, consoleFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// endWay makes the guest this host's, whichever way it was on: one that has arrived begins to run, one that was to leave
// stays. trouble is why there is no guest to run.
func (g *guest) endWay(ctx context.Context) (trouble string, err error) {
	w := g.rec.Way
	switch {
	case !w.Incoming:
		if err := g.turnBack(ctx); err != nil {
			return "", err
		}
	case !w.Done:
		return "The guest has not arrived.", nil
	case w.Live && g.rec.Launch != nil:
		g.rec.Launch.StartedAt, g.rec.Launch.Inert = w.StartedAt, w.Kept
	}
	g.cutWay()
	g.rec.Way = nil
	return "", g.write("way ended")
}

// cutWay ends the connections of a move, if this process has any.
func (g *guest) cutWay() {
	if g.arriving != nil {
		g.arriving.pipes.close()
		g.arriving = nil
		g.driver.mu.Lock()
		delete(g.driver.awaited, g.id)
		g.driver.mu.Unlock()
	}
	if g.trip != nil {
		g.trip.end()
		g.trip = nil
	}
}
