package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
	"golang.org/x/sys/unix"
)

// A guest is what the driver holds of one guest. The record says what was
// decided, the process is asked what is: each step of a call compares the two
// with the wish afresh, which is why it does not matter where the last one broke off.
type guest struct {
	driver *Driver
	id     resource.ID
	dir    string
	uid    int // guarded by the driver's mu; 0 until it has one

	mu      sync.Mutex // held throughout each call
	rec     *record    // nil while there is none
	proc    *process   // nil while there is none
	monitor *qmp.Monitor
	nudge   *time.Timer // tells the agent to come again

	// Of the present call, and the start it makes.
	began, forked, answered time.Time

	seen      state      // what the process was doing at the last step
	pressed   *stop      // for which this driver has asked the guest
	saveBegan bool       // this driver, not one before it, had the memory written
	flushed   chan error // gets the outcome of flushing saved memory; nil while none is under way
	askedLast time.Time  // when the guest was last asked to let a device go
	trip      *trip      // this driver has begun to send it; nil if not
	arriving  *arrival   // this driver takes it in; nil if not
	claimedAt time.Time  // when the claim on its disks was looked at last

	consoles sync.Mutex
	serial   *serialConsole // guarded by consoles
}

// A state is what a guest's process is doing: one of QEMU's run states, or one of these.
type state string

const (
	gone       state = ""         // there is no process
	deaf       state = "deaf"     // there is one, and it does not answer
	starting   state = "starting" // it does not answer yet
	prelaunch  state = "prelaunch"
	incoming   state = "inmigrate"
	running    state = "running"
	asleep     state = "suspended" // in ACPI's S3
	paused     state = "paused"
	finishing  state = "finish-migrate"
	saved      state = "postmigrate"
	shutDown   state = "shutdown"
	storageErr state = "io-error"
	broken     state = "internal-error"
	panicked   state = "guest-panicked"
)

// answerTime is how long a running hypervisor may take to answer.
const answerTime = 2 * time.Second

// look asks what the process is doing. The error is why it is deaf.
func (g *guest) look(ctx context.Context) (state, error) {
	if g.proc == nil || !g.proc.alive() {
		return gone, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var status struct{ Status state }
	err := g.monitor.Execute(ctx, "query-status", nil, &status)
	switch {
	case err == nil:
		return status.Status, nil
	case g.proc.exitWithin(50 * time.Millisecond):
		return gone, nil
	case !g.rec.Launch.Up && time.Since(g.rec.Launch.StartedAt) < childhood:
		return starting, nil
	}
	return deaf, fmt.Errorf("guest %s: %w", g.id, err)
}

// end is how the recorded process came to its end, if that has not been written
// down yet. It is "" if that was our doing.
func (g *guest) end() ending {
	l := g.rec.Launch
	switch {
	case l == nil || l.PID == 0 || l.Ferry || g.rec.Ended != "" || g.rec.Saved != nil && (l.Up || l.Boot != bootID()):
		return g.rec.Ended
	case l.Boot != bootID():
		return byHost
	case l.Up:
		return byCrash
	case l.Incoming && g.rec.Saved != nil:
		return unsound
	case l.Incoming:
		return byCrash
	default:
		return refused
	}
}

// settle writes down that a process has ended.
func (g *guest) settle(ctx context.Context) (state, error) {
	now, err := g.look(ctx)
	if now != gone || g.rec.Launch == nil {
		return now, err
	}
	if g.proc != nil {
		g.release()
	} else if err := g.killStrays(ctx); err != nil {
		return gone, err
	}
	g.rec.Ended = g.end()
	if g.rec.Ended == refused || g.rec.Ended == byCrash || g.rec.Ended == unsound {
		g.refusal(g.driver.log)
	}
	g.rec.Launch, g.rec.Stop, g.rec.Saving = nil, nil, false
	return gone, g.write("end recorded")
}

// release lets go of a process.
func (g *guest) release() {
	if g.proc != nil {
		g.monitor.Close()
		g.proc.close()
		g.proc, g.monitor = nil, nil
	}
}

// killStrays ends processes that were started and not written down.
func (g *guest) killStrays(ctx context.Context) error {
	pids, err := strays(g.id.String(), g.dir, g.driver.owns)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		p, err := hold(pid, pidfd)
		if err != nil {
			return err
		}
		g.driver.log.InfoContext(ctx, "ending a stray process of a guest", "guest", g.id, "pid", pid)
		go p.watch(func() {})
		err = p.kill()
		p.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// write keeps the record, and is a step.
func (g *guest) write(step string) error {
	if err := g.rec.write(g.dir); err != nil {
		return fmt.Errorf("guest %s: keep record: %w", g.id, err)
	}
	g.driver.step(step)
	return nil
}

// ask runs a command that takes no time.
func (g *guest) ask(ctx context.Context, command string, args, result any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := g.monitor.Execute(ctx, command, args, result); err != nil {
		return fmt.Errorf("guest %s: %w", g.id, err)
	}
	return nil
}

// cut takes the power away. The ending is kept if the process leaves one.
func (g *guest) cut(ctx context.Context, end ending) error {
	if end != "" && g.rec.Ended != end {
		g.rec.Ended = end
		if err := g.write("ending recorded"); err != nil {
			return err
		}
	}
	if g.proc != nil && g.proc.alive() {
		// Asked to quit, QEMU leaves its disks tidy; a power failure would not.
		if g.seen == deaf || g.ask(ctx, "quit", nil, nil) != nil || !g.proc.exitWithin(3*time.Second) {
			if err := g.proc.kill(); err != nil {
				return err
			}
		}
		g.driver.step("process ended")
	} else if g.rec.Launch != nil && g.proc == nil {
		if err := g.killStrays(ctx); err != nil {
			return err
		}
	}
	g.release()
	g.rec.Ended, g.rec.Launch, g.rec.Stop, g.rec.Saving = end, nil, nil, false
	return g.write("power cut")
}

// A progress says how a call goes on after one step.
type progress int

const (
	again   progress = iota // at once: there is more to do
	waiting                 // something goes on by itself
	settled                 // nothing more can be done now
)

// step takes the guest one step nearer to the wish. trouble is what keeps it
// from being as wished, though the guest itself is all right.
func (g *guest) step(ctx context.Context, want compute.Guest) (p progress, trouble string, err error) {
	now, lookErr := g.settle(ctx)
	g.seen = now
	if lookErr != nil && now == gone {
		return settled, "", lookErr
	}
	switch r := g.rec; {
	case want.Rebuilds > r.Rebuilds:
		return again, "", g.rebuild(ctx, want)
	case want.HardBoots > r.HardBoots:
		return again, "", g.powerCycle(ctx, want)
	case now == deaf && want.Power != compute.Off:
		return settled, "", lookErr
	case now == starting:
		if want.Power == compute.Off {
			return again, "", g.cut(ctx, "")
		}
		if time.Since(g.began) > patience {
			return waiting, "", nil
		}
		return again, "", g.bringUp(ctx)
	case want.SoftBoots > r.SoftBoots || r.Stop != nil && r.Stop.Reboot:
		return g.softBoot(ctx, want, now)
	case now == shutDown && (want.Power == compute.Off || r.Stop != nil):
		// We asked for it; if the owner has changed his mind, it starts again.
		return again, "", g.cut(ctx, "")
	case now == shutDown:
		return again, "", g.cut(ctx, byGuest)
	case now == broken || now == panicked:
		return again, "", g.cut(ctx, byCrash)
	}
	switch want.Power {
	case compute.On:
		return g.toOn(ctx, want, now)
	case compute.Off:
		return g.toOff(ctx, want, now)
	case compute.Paused:
		return g.toPaused(ctx, want, now)
	default:
		return g.toSuspended(ctx, want, now)
	}
}

func (g *guest) toOn(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	switch now {
	case gone:
		return g.comeBack(ctx, want)
	case incoming:
		return waiting, "", nil
	case saved, finishing:
		return g.keepOrDropMemory(ctx)
	case storageErr:
		return settled, "", g.ask(ctx, "cont", nil, nil) // there may be room again
	case prelaunch, paused:
		if g.rec.Saving {
			return g.keepOrDropMemory(ctx)
		}
		return again, "", g.run(ctx, want)
	}
	if g.rec.Saving || g.rec.Saved != nil {
		if err := g.dropMemory("memory running again"); err != nil {
			return settled, "", err
		}
	}
	if !g.rec.Launch.Up {
		return again, "", g.up()
	}
	if g.rec.Stop != nil { // the guest was asked to stop and is wanted again, but may yet do it
		if left := time.Until(g.rec.Stop.Deadline); left > 0 {
			g.comeAgain(left)
			return waiting, "", nil
		}
		g.rec.Stop = nil
		if err := g.write("stop forgotten"); err != nil {
			return settled, "", err
		}
	}
	return g.devices(ctx, want)
}

// comeBack starts a guest that has no process, unless it ended by itself.
func (g *guest) comeBack(ctx context.Context, want compute.Guest) (progress, string, error) {
	switch {
	case g.rec.Ended == byHost && !want.StayOff:
		g.rec.Ended = ""
	case g.rec.Ended != "":
		return settled, "", nil
	}
	if trouble, err := g.occupied(); trouble != "" || err != nil {
		g.comeAgain(time.Second)
		return waiting, trouble, err
	}
	return again, "", g.start(ctx, want)
}

// run lets the processors go on, or go for the first time.
func (g *guest) run(ctx context.Context, want compute.Guest) error {
	if g.rec.Saved != nil {
		// From here on the saved memory is older than the disks.
		if err := g.dropMemory("saved memory used up"); err != nil {
			return err
		}
	}
	if !g.rec.Launch.Up {
		if err := g.grow(ctx, want); err != nil {
			return err
		}
	}
	if err := g.ask(ctx, "cont", nil, nil); err != nil {
		return err
	}
	g.driver.step("processors running")
	g.rec.Launch.Inert = false
	if g.rec.Launch.Up {
		return nil
	}
	return g.up()
}

// up notes that a start is complete, and how long it took.
func (g *guest) up() error {
	g.rec.Launch.Up = true
	g.rec.OursMs, g.rec.StartMs = 0, 0
	if !g.forked.IsZero() && !g.answered.IsZero() { // else an agent before us began it
		total, theirs := time.Since(g.began), g.answered.Sub(g.forked)
		g.rec.StartMs = float64(total.Microseconds()) / 1000
		g.rec.OursMs = float64((total - theirs).Microseconds()) / 1000
	}
	return g.write("start complete")
}

func (g *guest) toOff(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	r := g.rec
	if now == gone {
		if r.Ended != "" || r.Saved != nil {
			r.Ended = ""
			return again, "", g.dropMemory("off")
		}
		if !r.fits(want) {
			return settled, "", g.prepare(ctx, want)
		}
		return settled, "", nil
	}
	if now != running || r.Stop == nil && want.GraceSeconds <= 0 {
		return again, "", g.cut(ctx, "")
	}
	if r.Stop == nil {
		r.Stop = &stop{Deadline: time.Now().Add(time.Duration(want.GraceSeconds) * time.Second).UTC()}
		if err := g.write("stop announced"); err != nil {
			return settled, "", err
		}
	}
	if err := g.press(ctx); err != nil {
		return settled, "", err
	}
	if !time.Now().Before(r.Stop.Deadline) {
		return again, "", g.cut(ctx, "")
	}
	g.comeAgain(time.Until(r.Stop.Deadline))
	return waiting, "", nil
}

func (g *guest) toPaused(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	switch now {
	case gone:
		return g.comeBack(ctx, want)
	case incoming:
		return waiting, "", nil
	case saved, finishing:
		if now == saved && !g.rec.Saving && g.rec.Saved == nil {
			return settled, "", nil // its memory went to another host, and it stayed
		}
		return g.keepOrDropMemory(ctx)
	case running, asleep:
		if !g.rec.Launch.Up {
			return again, "", g.up()
		}
		return again, "", g.ask(ctx, "stop", nil, nil)
	}
	if g.rec.Saving {
		return g.keepOrDropMemory(ctx)
	}
	if g.rec.Saved != nil {
		if err := g.dropMemory("saved memory used up"); err != nil {
			return settled, "", err
		}
	}
	if !g.rec.Launch.Up {
		if err := g.grow(ctx, want); err != nil {
			return settled, "", err
		}
		return again, "", g.up()
	}
	if err := g.takeUp(ctx); err != nil {
		return settled, "", err
	}
	return g.devices(ctx, want)
}

// powerCycle does a hard reboot's first half. The second is that the guest is wished on.
func (g *guest) powerCycle(ctx context.Context, want compute.Guest) error {
	if err := g.cut(ctx, ""); err != nil {
		return err
	}
	if want.Power != compute.Suspended {
		if err := g.dropMemory("memory lost by reboot"); err != nil {
			return err
		}
	}
	g.rec.HardBoots, g.rec.SoftBoots = want.HardBoots, max(g.rec.SoftBoots, want.SoftBoots)
	return g.write("power-cycled")
}

// softBoot has the guest's operating system stop, and starts it anew in the
// same process; or power-cycles it when it does not listen.
func (g *guest) softBoot(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	r := g.rec
	carriedOut := func() error {
		r.Stop, r.SoftBoots = nil, max(r.SoftBoots, want.SoftBoots)
		return g.write("soft boot carried out")
	}
	switch {
	case want.Power != compute.On:
		return again, "", carriedOut() // its processors are about to be stopped, or have been
	case now == gone, now != running && r.Stop == nil:
		if err := g.cut(ctx, ""); err != nil {
			return settled, "", err
		}
		return again, "", carriedOut()
	case r.Stop == nil || !r.Stop.Reboot:
		r.Stop = &stop{Reboot: true, Deadline: time.Now().Add(time.Duration(want.GraceSeconds) * time.Second).UTC()}
		return again, "", g.write("reboot announced")
	case r.Stop.Resetting && now == running:
		return again, "", carriedOut()
	case r.Stop.Resetting && now == prelaunch:
		return again, "", g.ask(ctx, "cont", nil, nil)
	case now == shutDown:
		if !r.Stop.Resetting {
			r.Stop.Resetting = true
			if err := g.write("reset announced"); err != nil {
				return settled, "", err
			}
		}
		return again, "", g.reset(ctx)
	case !time.Now().Before(r.Stop.Deadline):
		if err := g.cut(ctx, ""); err != nil {
			return settled, "", err
		}
		return again, "", carriedOut()
	case now == running:
		if err := g.press(ctx); err != nil {
			return settled, "", err
		}
	}
	g.comeAgain(time.Until(r.Stop.Deadline))
	return waiting, "", nil
}

// press presses the guest's power button, unless this driver has done so for
// the present stop. A second time, after another agent, does no harm.
func (g *guest) press(ctx context.Context) error {
	if g.pressed == g.rec.Stop {
		return nil
	}
	if err := g.ask(ctx, "system_powerdown", nil, nil); err != nil {
		return err
	}
	g.pressed = g.rec.Stop
	g.driver.step("guest asked to stop")
	return nil
}

// reset makes a machine that has shut down ready to run again. QEMU answers
// before it has done so.
func (g *guest) reset(ctx context.Context) error {
	if err := g.ask(ctx, "system_reset", nil, nil); err != nil {
		return err
	}
	g.driver.step("machine reset")
	for until := time.Now().Add(answerTime); time.Now().Before(until); time.Sleep(2 * time.Millisecond) {
		now, err := g.look(ctx)
		if err != nil || now != shutDown {
			return err
		}
	}
	return fmt.Errorf("guest %s: the machine is not reset", g.id)
}

// rebuild throws the root disk away and makes it anew from the wished image.
func (g *guest) rebuild(ctx context.Context, want compute.Guest) error {
	if err := g.cut(ctx, ""); err != nil {
		return err
	}
	if err := g.dropMemory("memory lost by rebuild"); err != nil {
		return err
	}
	if trouble, err := g.occupied(); trouble != "" || err != nil {
		return errors.Join(err, fmt.Errorf("guest %s is not rebuilt: %s", g.id, trouble))
	}
	root := g.rec.disk(want.Disks[0].Name)
	if root == nil && g.rec.Storage != "" { // on another host it has one, perhaps
		root = g.rec.newOr(nil, "disk", want.Disks[0].Name)
	}
	if root != nil {
		files := []string{firmwareFile}
		for _, root.Format = range []string{"raw", "qcow2"} {
			files = append(files, root.file(""))
		}
		if err := g.removeDisks(ctx, files...); err != nil {
			return err
		}
		g.driver.step("root disk thrown away")
		root.Made = false
		if err := root.plan(want.Disks[0]); err != nil {
			return err
		}
		if err := g.makeDisk(ctx, root); err != nil {
			return err
		}
		g.driver.step("root disk made anew")
	}
	r := g.rec
	if err := g.noteDisks(ctx, want.Rebuilds); err != nil {
		return err
	}
	r.Rebuilds, r.HardBoots, r.SoftBoots = want.Rebuilds, max(r.HardBoots, want.HardBoots), max(r.SoftBoots, want.SoftBoots)
	return g.write("rebuilt")
}

// prepare makes the guest's devices as wished, while there is no machine.
func (g *guest) prepare(ctx context.Context, want compute.Guest) error {
	r := g.rec
	kept := r.Devices[:0:0]
	for _, dev := range r.Devices {
		if dev.wanted(want) {
			dev.Leaving = time.Time{}
			kept = append(kept, dev)
		} else if dev.Kind == "disk" {
			if err := g.removeDisks(ctx, dev.file(g.disks())); err != nil {
				return err
			}
		}
	}
	r.Devices = kept
	planned := make([]device, 0, len(want.Disks)+len(want.NICs))
	for _, w := range want.Disks {
		dev := r.newOr(r.disk(w.Name), "disk", w.Name)
		if err := dev.plan(w); err != nil {
			return err
		}
		planned = append(planned, *dev)
	}
	for _, n := range want.NICs {
		dev := r.newOr(r.find("nic", n.PortID.String()), "nic", n.PortID.String())
		dev.takeNIC(n)
		planned = append(planned, *dev)
	}
	r.Devices = planned // in the order of the wish: the root disk first
	if err := g.write("disks planned"); err != nil {
		return err
	}
	for i := range r.Devices {
		if r.Devices[i].Kind == "disk" {
			if err := g.makeDisk(ctx, &r.Devices[i]); err != nil {
				return err
			}
			g.driver.step("disk made")
		}
	}
	if err := g.noteDisks(ctx, r.Rebuilds); err != nil {
		return err
	}
	if want.Kernel != nil {
		if err := g.copyKernel(want); err != nil {
			return err
		}
	}
	if want.UEFI {
		return g.makeVariables(ctx)
	}
	return nil
}

func (g *guest) copyKernel(want compute.Guest) error {
	r := g.rec
	err := copyImage(want.Kernel, filepath.Join(g.dir, kernelFile), r.UID, &r.Kernel)
	if err == nil && want.Initrd != nil {
		err = copyImage(want.Initrd, filepath.Join(g.dir, initrdFile), r.UID, &r.Initrd)
	}
	return err
}

// fits tells whether the devices that are there are the wished ones.
func (r *record) fits(want compute.Guest) bool {
	for _, dev := range r.Devices {
		if !dev.wanted(want) || dev.Kind == "disk" && !dev.Made {
			return false
		}
	}
	return len(r.Devices) == len(want.Disks)+len(want.NICs)
}

// newOr gives the device that is there, or adds one in a slot of its own.
func (r *record) newOr(dev *device, kind, name string) *device {
	if dev == nil {
		r.Devices = append(r.Devices, device{Kind: kind, Name: name, Slot: r.freeSlot()})
		dev = &r.Devices[len(r.Devices)-1]
	}
	return dev
}

// refreshTaps learns where the taps are of cards that saved memory knows.
func (g *guest) refreshTaps(want compute.Guest) {
	for i := range g.rec.Devices {
		dev := &g.rec.Devices[i]
		if dev.Kind != "nic" {
			continue
		}
		dev.Tap = compute.Tap{}
		for _, n := range want.NICs {
			if n.PortID.String() == dev.Name && dev.matches(n) {
				dev.Tap = n.Tap
			}
		}
	}
}

// comeAgain has the agent told in a while.
func (g *guest) comeAgain(in time.Duration) {
	if g.nudge != nil {
		g.nudge.Stop()
	}
	g.nudge = time.AfterFunc(in, func() { g.driver.notify(g.id) })
}

// observe says what there is, of a process that is doing as look said.
func (g *guest) observe(now state) compute.Observation {
	r := g.rec
	o := compute.Observation{
		HardBoots: r.HardBoots, SoftBoots: r.SoftBoots, Rebuilds: r.Rebuilds,
		Isolating: g.driver.accel == accelKVM, OursMs: r.OursMs, StartMs: r.StartMs,
	}
	if now != gone {
		o.StartedAt = r.Launch.StartedAt
		o.Isolating = r.Launch.Shape.Accel == accelKVM
		o.Busy = r.Stop != nil || r.Saving || !r.Launch.Up
	}
	switch now {
	case gone:
		o.Power, o.Trouble = endings[g.end()].power, endings[g.end()].trouble
		if r.Saved != nil && o.Power == compute.Off {
			o.Power = compute.Suspended
		}
	case running, asleep:
		o.Power = compute.On
	case shutDown:
		o.Power = compute.Off
	case broken, panicked:
		o.Power, o.Trouble = compute.Crashed, endings[byCrash].trouble
	case storageErr:
		o.Power, o.Trouble = compute.Paused, "The guest is held because its disk could not be written: the host's storage is full or fails."
	case starting, incoming:
		o.Power = compute.Off
		if r.Saved != nil {
			o.Power = compute.Suspended
		}
	default:
		o.Power = compute.Paused
		if !r.Launch.Up && r.Stop == nil {
			o.Power = compute.Off
		}
	}
	return o
}

// endings is how an ending looks to the owner.
var endings = map[ending]struct {
	power   compute.Power
	trouble string
}{
	"":      {compute.Off, ""},
	byGuest: {compute.Off, ""},
	byHost:  {compute.Off, ""},
	byCrash: {compute.Crashed, "The guest's virtual machine ended unexpectedly. Start or reboot the guest to run it again."},
	refused: {compute.Crashed, "The host's hypervisor could not start the guest. Start or reboot the guest to try again."},
	unsound: {compute.Crashed, "The guest's saved memory could not be loaded. Reboot the guest to start it without."},
}

// remove is os.Remove for what may be gone already.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
