// Package qemu makes guests real as QEMU processes on this machine. It knows
// what a guest is to be from core/compute and where its taps and its images
// are; how those came to be is not its business.
//
// Guests outlive it: they belong to no one but the host, and a driver that
// starts finds them again from what lies in their directories.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

// Options says where and how guests live. Only Dir has no default.
type Options struct {
	Dir    string // the driver's own directory; guests are in "guests" in it
	Disks  string // a folder that other hosts reach too, for guests' disks; "" for none
	Binary string // of QEMU; "" finds the one for this machine's architecture
	Accel  string // "kvm", "tcg", or "" for kvm where it works

	// AllowLooseJails lets guests run where this host cannot give them a file system of their own, or
	// not even a user: whoever breaks out of one then finds the host's files, or our own.
	AllowLooseJails bool

	// Each guest's process runs under a user ID of its own from this range.
	FirstUID, UIDs int

	Cgroup   string   // the name of the control group that holds the guests'
	SMBIOS   SMBIOS   // what guests read about the machine they are on
	Firmware Firmware // for UEFI; found by itself where Debian keeps it
	LogBytes int64    // how much of each guest's console is kept

	Log *slog.Logger
}

// A Driver is a compute.Driver, a compute.Consoler and a compute.Notifier.
type Driver struct {
	dir        string
	binary     string
	accel      string
	firstUID   int
	uids       int
	smbios     SMBIOS
	firmware   Firmware
	logBytes   int64
	log        *slog.Logger
	lock       *os.File // held as long as this driver is
	jail       *jail
	hypervisor *hypervisor
	cgroups    *cgroups
	peers      Peers // nil: guests stay where they are
	trials     trials
	pulse      gauge                                        // whether storage that is shared answers at all
	gauge      gauge                                        // of the room on storage that is shared
	level      gauge                                        // of how many percent of it are free
	storage    *storage                                     // that other hosts reach too; nil for none
	courseOf   func(accel string, major int) compute.Course // courseOf, but for tests

	// step is called between any two things that a crash could part. Tests end
	// the program there.
	step func(name string)

	mu      sync.Mutex
	guests  map[resource.ID]*guest      // guarded by mu; those with a directory
	awaited map[resource.ID]resource.ID // which guests are to come, and from which hosts; guarded by mu
	changed *changes

	closing  context.Context
	close    context.CancelFunc
	watchers sync.WaitGroup
}

var (
	_ compute.Driver   = (*Driver)(nil)
	_ compute.Consoler = (*Driver)(nil)
	_ compute.Notifier = (*Driver)(nil)
	_ compute.Mover    = (*Driver)(nil)
	_ compute.Eraser   = (*Driver)(nil)

	_ compute.Snapshotter = (*Driver)(nil)
)

// New finds out what this host can do, and adopts the guests that run on it.
func New(o Options) (*Driver, error) { return open(o, func(string) {}) }

func open(o Options, step func(string)) (d *Driver, err error) {
	d = &Driver{
		dir: o.Dir, binary: o.Binary, accel: o.Accel, firstUID: o.FirstUID, uids: o.UIDs,
		smbios: o.SMBIOS, firmware: o.Firmware.found(), logBytes: o.LogBytes, log: o.Log,
		courseOf: courseOf, step: step, guests: map[resource.ID]*guest{}, trials: trials{turn: make(chan struct{}, 1)}, gauge: gauge{patience: answerTime}, pulse: gauge{patience: hangsAfter}, level: gauge{patience: answerTime},
	}
	if d.dir == "" {
		return nil, errors.New("qemu: no directory given")
	}
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return nil, err
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	if d.firstUID == 0 {
		d.firstUID, d.uids = firstUID, 100_000
	}
	if d.logBytes == 0 {
		d.logBytes = 1 << 20
	}
	if o.Cgroup == "" {
		o.Cgroup = "unkai"
	}
	if d.binary == "" {
		d.binary = programs[runtime.GOARCH]
	}
	if d.binary, err = exec.LookPath(d.binary); err != nil {
		return nil, fmt.Errorf("qemu: find the hypervisor: %w", err)
	}
	if d.binary, err = filepath.EvalSymlinks(d.binary); err != nil {
		return nil, err
	}
	switch {
	case d.accel == "" && KVMWorks():
		d.accel = accelKVM
	case d.accel == "":
		d.accel = accelTCG
	case d.accel != accelKVM && d.accel != accelTCG:
		return nil, fmt.Errorf("qemu: unknown accelerator %q", d.accel)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(d.dir, "guests"), 0o700), os.MkdirAll(filepath.Join(d.dir, "jail"), 0o700)); err != nil {
		return nil, err
	}
	if d.lock, err = lockDir(d.dir); err != nil {
		return nil, err
	}
	d.closing, d.close = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if o.Disks != "" {
		if d.storage, err = openStorage(o.Disks, d.dir); err != nil {
			return nil, err
		}
	}
	var failures error
	d.jail, failures = findJail(filepath.Join(d.dir, "jail"), func(j *jail) (err error) {
		d.hypervisor, err = probe(d.closing, d.binary, j, d.firstUID)
		return err
	})
	switch {
	case d.jail == nil:
		return nil, fmt.Errorf("qemu: %w", failures)
	case d.jail.loose() && !o.AllowLooseJails:
		return nil, fmt.Errorf("qemu: guests can only be confined to %s here, which is refused unless it is allowed in so many words: %w", d.jail, failures)
	case failures != nil:
		d.log.Warn("guests are confined less than they could be", "confined to", d.jail.String(), "error", failures)
	}
	if d.cgroups, err = findCgroups(o.Cgroup); err != nil {
		d.log.Warn("not all control groups can be used", "error", err)
	}
	d.changed = newChanges(d.closing)
	d.watchers.Go(d.changed.deliver)
	if err := d.load(); err != nil {
		return nil, err
	}
	d.watchers.Go(d.trimLogs)
	return d, nil
}

// lockDir keeps a second driver away from the same guests.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("qemu: another driver works in %s: %w", dir, err)
	}
	return f, nil
}

// load finds the guests of the directory, and their processes.
func (d *Driver) load() error {
	ids, err := d.present()
	if err != nil {
		return err
	}
	for _, id := range ids {
		g := d.guest(id)
		if g.rec, err = readRecord(g.dir); err != nil {
			// The others must not suffer from it. Each call for this one says so again.
			d.log.Error("guest's record cannot be read", "guest", id, "error", err)
			continue
		}
		if g.rec == nil {
			continue
		}
		g.uid = g.rec.UID
		if g.rec.Launch == nil {
			continue
		}
		p, err := adopt(g.rec.Launch)
		if err != nil {
			return err
		}
		if p == nil {
			d.notify(id)
			continue
		}
		g.hold(p)
		d.watchers.Go(func() { // for its events; whoever needs an answer connects too
			ctx, cancel := context.WithTimeout(d.closing, answerTime)
			defer cancel()
			if err := g.connect(ctx); err != nil && d.closing.Err() == nil {
				d.log.Warn("guest's hypervisor does not answer", "guest", id, "error", err)
			}
			d.notify(id)
		})
	}
	return nil
}

// connect makes sure that events come.
func (g *guest) connect(ctx context.Context) error {
	g.mu.Lock()
	m := g.monitor
	g.mu.Unlock()
	if m == nil {
		return nil
	}
	return m.Connect(ctx)
}

// Close lets go of the guests, which run on.
func (d *Driver) Close() error {
	d.close()
	d.mu.Lock()
	guests := make([]*guest, 0, len(d.guests))
	for _, g := range d.guests {
		guests = append(guests, g)
	}
	d.mu.Unlock()
	for _, g := range guests {
		g.mu.Lock()
		if g.nudge != nil {
			g.nudge.Stop()
		}
		g.hangUp()
		g.cutWay()
		g.release()
		g.mu.Unlock()
	}
	d.watchers.Wait()
	// Not only closed: a process that is being forked just now holds the same file until it executes its program.
	return errors.Join(unix.Flock(int(d.lock.Fd()), unix.LOCK_UN), d.lock.Close())
}

// guest gives what is known of one, known or not.
func (d *Driver) guest(id resource.ID) *guest {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.guests[id]
	if g == nil {
		g = &guest{driver: d, id: id, dir: filepath.Join(d.dir, "guests", id.String())}
		d.guests[id] = g
	}
	return g
}

// forget drops a guest that has no directory any more.
func (d *Driver) forget(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g.rec == nil {
		delete(d.guests, g.id)
	}
}

// known gives a guest that the host holds, locked; the fault says that there is none.
func (d *Driver) known(id resource.ID) (*guest, error) {
	d.mu.Lock()
	g := d.guests[id]
	d.mu.Unlock()
	if g != nil {
		g.mu.Lock()
		if g.rec != nil && !g.rec.Removing {
			return g, nil
		}
		g.mu.Unlock()
	}
	return nil, fault.Missing("guest", id)
}
