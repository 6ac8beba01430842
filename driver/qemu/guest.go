package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
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

// comeAgain has the agent told in a while.
func (g *guest) comeAgain(in time.Duration) {
	if g.nudge != nil {
		g.nudge.Stop()
	}
	g.nudge = time.AfterFunc(in, func() { g.driver.notify(g.id) })
}
