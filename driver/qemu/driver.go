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
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

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
	gauge      gauge                                        // of the room on storage that is shared
	storage    *storage                                     // that other hosts reach too; nil for none
	courseOf   func(accel string, major int) compute.Course // courseOf, but for tests

	// step is called between any two things that a crash could part. Tests end
	// the program there.
	step func(name string)

	mu      sync.Mutex
	guests  map[resource.ID]*guest // guarded by mu; those with a directory
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
		courseOf: courseOf, step: step, guests: map[resource.ID]*guest{}, trials: trials{turn: make(chan struct{}, 1)}, gauge: gauge{patience: answerTime},
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

// A Promise is what an operator may expect of guests on this host.
type Promise struct {
	Confined string // how tightly
	Loose    bool   // only if that is allowed
	Moves    bool   // the hypervisor is new enough to send guests to other hosts
	Version  string // of it
}

// Examine finds out, for an operator, what to expect of this host. The error is why guests cannot be confined more tightly.
func Examine(ctx context.Context) (Promise, error) {
	nothing := Promise{Confined: "nothing", Loose: true}
	binary, err := exec.LookPath(programs[runtime.GOARCH])
	if err != nil {
		return nothing, err
	}
	dir, err := os.MkdirTemp("", "unkai-jail")
	if err != nil {
		return nothing, err
	}
	defer os.Remove(dir)
	var h *hypervisor
	j, err := findJail(dir, func(j *jail) (err error) {
		h, err = probe(ctx, binary, j, firstUID)
		return err
	})
	if j == nil {
		return nothing, err
	}
	return Promise{Confined: j.String(), Loose: j.loose(), Moves: h.moves, Version: h.version}, err
}

// programs are QEMU's names, by Go's word for the architecture.
var programs = map[string]string{"amd64": "qemu-system-x86_64"}

// firstUID is beyond what systemd and subordinate IDs use.
const firstUID = 1_900_000_000

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

// Ensure implements compute.Driver.
func (d *Driver) Ensure(ctx context.Context, want compute.Guest) (compute.Observation, error) {
	return d.ensure(ctx, want, false)
}

// ensure is Ensure that may leave the guest its copy.
func (d *Driver) ensure(ctx context.Context, want compute.Guest, copied bool) (compute.Observation, error) {
	began := time.Now()
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, err
	}
	g := d.guest(want.ID)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.began, g.forked, g.answered = began, time.Time{}, time.Time{}

	trouble := d.unmet(want)
	if g.rec.outlived(want) {
		d.log.InfoContext(ctx, "taking away what is left of a guest that was elsewhere since", "guest", want.ID)
		if err := g.removeAll(ctx); err != nil {
			return compute.Observation{}, err
		}
	}
	if g.rec != nil && !g.rec.Removing && g.rec.Copy != nil {
		if l := g.rec.Launch; copied && l != nil && l.Ferry {
			if err := g.cut(ctx, ""); err != nil {
				return compute.Observation{}, err
			}
		} else if !copied {
			if err := g.endCopy(ctx); err != nil {
				return compute.Observation{}, err
			}
		}
	}
	if g.rec != nil && g.rec.Way != nil {
		if trouble, err := g.endWay(ctx); err != nil || trouble != "" {
			return compute.Observation{Power: compute.Crashed, Trouble: trouble, Isolating: d.accel == accelKVM}, err
		}
	}
	if g.rec == nil || g.rec.Removing {
		if trouble != "" {
			d.forget(g)
			return compute.Observation{Power: compute.Crashed, Trouble: trouble, Isolating: d.accel == accelKVM}, nil
		}
		if err := g.unrecorded(); err != nil {
			return compute.Observation{}, err
		}
		if err := g.create(ctx, want, nil); err != nil {
			d.forget(g)
			return compute.Observation{}, err
		}
	}
	if trouble == "" {
		var err error
		if trouble, err = g.mine(ctx, want); errors.Is(err, errClaimed) {
			return g.lose(ctx)
		} else if err != nil {
			return compute.Observation{}, err
		}
	}
	busy := false
	if trouble == "" {
		var err error
		if busy, trouble, err = g.converge(ctx, want); err != nil {
			return compute.Observation{}, err
		}
	} else {
		var err error
		if g.seen, err = g.look(ctx); err != nil {
			return compute.Observation{}, err
		}
	}
	o := g.observe(g.seen)
	o.Busy = o.Busy || busy
	if trouble != "" {
		o.Trouble = trouble
	}
	return o, nil
}

// unrecorded makes sure that what lies in the directory of a guest without a record is nobody's: its
// disks may be all that its owner has. A removal that was begun takes the record away last.
func (g *guest) unrecorded() error {
	if g.rec != nil && g.rec.Removing {
		return nil
	}
	if _, err := readRecord(g.dir); err != nil {
		return err
	}
	disks, err := filepath.Glob(filepath.Join(g.dir, "disk-*"))
	if err != nil {
		return err
	}
	for _, path := range disks {
		if !strings.HasSuffix(path, ".new") {
			return fmt.Errorf("guest %s has lost its record, and still has %s", g.id, path)
		}
	}
	return nil
}

// converge goes on as long as there is a next step that takes no waiting.
func (g *guest) converge(ctx context.Context, want compute.Guest) (busy bool, trouble string, err error) {
	for time.Since(g.began) < patience+answerTime {
		if err := ctx.Err(); err != nil {
			return false, "", fmt.Errorf("guest %s: %w", g.id, err)
		}
		p, trouble, err := g.step(ctx, want)
		if err != nil || p == settled {
			return false, trouble, err
		}
		if p == waiting {
			return true, trouble, nil
		}
	}
	g.driver.notify(g.id)
	return true, "", nil
}

// create makes the directory and the record of a new guest, or of one that comes from another host.
func (g *guest) create(ctx context.Context, want compute.Guest, from *way) error {
	if err := g.removeAll(ctx); err != nil { // what a broken-off Remove, or create, left
		return err
	}
	uid, err := g.driver.freeUID(g)
	if err != nil {
		return err
	}
	rec := &record{UID: uid, Epoch: want.Epoch, Storage: want.Storage, HardBoots: want.HardBoots, SoftBoots: want.SoftBoots, Rebuilds: want.Rebuilds, Way: from}
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return err
	}
	g.driver.step("directory made")
	if err := rec.write(g.dir); err != nil {
		return err
	}
	g.rec, g.claimedAt = rec, time.Time{}
	g.driver.step("guest recorded")
	return nil
}

// freeUID finds a user ID that no other guest has.
func (d *Driver) freeUID(except *guest) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := map[int]bool{}
	for _, g := range d.guests {
		taken[g.uid] = g != except
	}
	for uid := d.firstUID; uid < d.firstUID+d.uids; uid++ {
		if !taken[uid] {
			except.uid = uid
			return uid, nil
		}
	}
	return 0, fmt.Errorf("all %d user IDs for guests are taken", d.uids)
}

// owns tells whether a process of this user can be a guest's.
func (d *Driver) owns(uid int) bool {
	return uid == os.Geteuid() || uid >= d.firstUID && uid < d.firstUID+d.uids
}

// Remove implements compute.Driver.
func (d *Driver) Remove(ctx context.Context, id resource.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g := d.guest(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nudge != nil {
		g.nudge.Stop()
	}
	if err := g.removeAll(ctx); err != nil {
		return fmt.Errorf("remove guest %s: %w", id, err)
	}
	d.forget(g)
	return nil
}

// removeAll ends the guest and leaves nothing of it. The record goes last but
// for its directory, so that whatever is left can be found.
func (g *guest) removeAll(ctx context.Context) error {
	d := g.driver
	if _, err := os.Lstat(g.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	g.cutWay()
	if g.rec != nil {
		g.rec.Removing = true
		if err := g.write("removal announced"); err != nil {
			return err
		}
		g.hangUp()
		if g.proc != nil && g.proc.alive() {
			if err := g.proc.kill(); err != nil {
				return err
			}
		}
		g.release()
	}
	if g.rec == nil || g.rec.Launch != nil && g.rec.Launch.PID == 0 {
		if err := g.killStrays(ctx); err != nil {
			return err
		}
	}
	d.step("process removed")
	if err := d.cgroups.remove(g.id.String()); err != nil {
		return err
	}
	d.step("control groups removed")
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == recordFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(g.dir, e.Name())); err != nil {
			return err
		}
		d.step("file removed")
	}
	if err := remove(filepath.Join(g.dir, recordFile)); err != nil {
		return err
	}
	g.rec = nil
	d.step("record removed")
	if err := os.Remove(g.dir); err != nil {
		return err
	}
	d.step("directory removed")
	return nil
}

// haltGrace is how many seconds a guest that nobody wants may take to stop.
const haltGrace = 30

// Halt implements compute.Driver.
func (d *Driver) Halt(ctx context.Context, id resource.ID) (busy bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	g := d.guest(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rec == nil || g.rec.Removing {
		if err := g.unrecorded(); err != nil {
			return false, err
		}
		d.forget(g)
		return false, fault.Missing("guest", id)
	}
	if w := g.rec.Way; w != nil && w.Incoming && !w.Done {
		return false, fault.Missing("guest", id) // what has come of it is worth nothing
	}
	if lost, err := g.lost(ctx); lost || err != nil {
		if err == nil {
			_, err = g.lose(ctx)
		}
		return false, err
	}
	for {
		// Not a wish like others: of one that names no disks, a guest that is off would have none.
		now, lookErr := g.settle(ctx)
		g.seen = now
		if now == gone {
			return false, lookErr
		}
		p, _, err := g.toOff(ctx, compute.Guest{ID: id, Power: compute.Off, GraceSeconds: haltGrace}, now)
		if err != nil || p == waiting {
			return true, err
		}
	}
}

// Present implements compute.Driver.
func (d *Driver) Present(ctx context.Context) ([]resource.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.present()
}

func (d *Driver) present() ([]resource.ID, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, "guests"))
	if err != nil {
		return nil, err
	}
	var ids []resource.ID
	for _, e := range entries {
		if id, err := resource.ParseID(e.Name()); err == nil && e.Name() == id.String() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Running are the guests that have a process that lives.
func (d *Driver) Running(ctx context.Context) (all []resource.ID, err error) {
	ids, err := d.present()
	for _, id := range ids {
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		g, err := d.known(id)
		if err != nil {
			continue
		}
		if g.proc != nil && g.proc.alive() {
			all = append(all, id)
		}
		g.mu.Unlock()
	}
	return all, err
}

// Observe implements compute.Driver. A guest that the host does not hold is a
// fault of kind NotFound.
func (d *Driver) Observe(ctx context.Context, id resource.ID) (compute.Observation, error) {
	if err := ctx.Err(); err != nil {
		return compute.Observation{}, err
	}
	g, err := d.known(id)
	if err != nil {
		return compute.Observation{}, err
	}
	defer g.mu.Unlock()
	now, err := g.look(ctx)
	if err != nil {
		return compute.Observation{}, err
	}
	return g.observe(now), nil
}

// Capabilities implements compute.Driver.
func (d *Driver) Capabilities(ctx context.Context) (compute.Capabilities, error) {
	if err := ctx.Err(); err != nil {
		return compute.Capabilities{}, err
	}
	var memory unix.Sysinfo_t
	if err := unix.Sysinfo(&memory); err != nil {
		return compute.Capabilities{}, fmt.Errorf("ask for the host's memory: %w", err)
	}
	storage := ""
	gib, err := 0, error(nil)
	if d.storage == nil {
		gib, err = room(d.dir)
	} else {
		storage = d.storage.id
		var away error
		if gib, away = d.gauge.read(ctx, func() (int, error) { return room(d.storage.dir) }); ctx.Err() != nil {
			err = ctx.Err()
		} else if away != nil {
			d.log.WarnContext(ctx, "the shared storage cannot be looked at; what it has room for is as it was last", "dir", d.storage.dir, "error", away)
		}
	}
	if err != nil {
		return compute.Capabilities{}, err
	}
	return compute.Capabilities{
		Driver:    "qemu",
		Version:   d.hypervisor.version,
		VCPUs:     runtime.NumCPU(),
		MemoryMiB: int(memory.Totalram * uint64(memory.Unit) / mib),
		DiskGiB:   gib,
		Isolating: d.accel == accelKVM,
		Arch:      map[string]string{"amd64": "x86_64"}[runtime.GOARCH],
		CPUModel:  cpuModel(),
		MaxVCPUs:  d.hypervisor.machines["q35"].maxVCPUs,
		Snapshots: "qcow2",
		Moves:     d.where() != "" && d.hypervisor.moves,
		Where:     d.where(),
		Storage:   storage,
	}, nil
}
