package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
	"golang.org/x/sys/unix"
)

// shapeOf is the machine that a wish asks for.
func (d *Driver) shapeOf(want compute.Guest, highestSlot int) shape {
	name := want.Machine
	if name == "" {
		name = "q35"
	}
	s := shape{
		Machine: d.hypervisor.machines[name].name, Accel: d.accel, CPU: "max",
		VCPUs: want.VCPUs, MemoryMiB: want.MemoryMiB, UEFI: want.UEFI,
		Kernel: want.Kernel != nil, Seed: want.Seed != "",
	}
	if d.accel == accelKVM {
		s.CPU = "host"
	}
	if s.Kernel {
		s.Initrd, s.Cmdline = want.Initrd != nil, want.Cmdline
	}
	s.Ports = min(highestSlot+1+sparePorts, s.maxPorts())
	for _, w := range want.Disks {
		s.SCSI = s.SCSI || w.Bus == "scsi"
	}
	return s
}

func (s shape) maxPorts() int {
	if s.pc() {
		return maxPortsPC
	}
	return maxPorts
}

// A cargo is the descriptors that a process will be started with.
type cargo struct{ files []*os.File }

// add takes a file over, unless it could not be opened, and gives its number.
func (c *cargo) add(f *os.File, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	c.files = append(c.files, f)
	return len(c.files) - 1, nil
}

func (c *cargo) close() {
	for _, f := range c.files {
		f.Close()
	}
}

// commandLine opens what the machine needs, and tells QEMU where it finds it.
func (g *guest) commandLine(s shape, incoming source) (in inmate, c *cargo, err error) {
	c = &cargo{}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	d := g.driver
	in = inmate{uid: g.rec.UID, bind: map[string]string{}}
	var failures []error
	open := func(path string, flags int) int { // and hand it over; the number is the one QEMU sees
		n, err := c.add(os.OpenFile(path, flags, 0o600))
		if err != nil {
			failures = append(failures, err)
		}
		return n
	}
	disk := func(path string) int { // likewise, of what may lie on shared storage
		n, err := c.add(g.openDisk(path, os.O_RDWR))
		failures = append(failures, err)
		return n
	}
	args := []string{d.binary}
	arg := func(a ...string) { args = append(args, a...) }
	share := func(set, fd int) { arg("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set)) }

	// visible gives the name under which QEMU can open a file of the host by itself.
	visible := func(name, outside string) string {
		if d.jail.files {
			in.bind["/guest/"+name] = outside
			return "/guest/" + name
		}
		// It may not come to the directory, but it may read the file.
		return fmt.Sprintf("/proc/self/fd/%d", open(outside, os.O_RDONLY))
	}

	open(os.DevNull, os.O_RDWR)
	complaints := open(filepath.Join(g.dir, stderrFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND)
	if len(failures) == 0 { // both standard output and standard error
		c.files = append(c.files, dup(c.files[complaints], &failures))
	}

	arg("-uuid", g.id.String(), "-name", "guest="+g.id.String()+",debug-threads=on")
	arg("-nodefaults", "-no-user-config", "-display", "none", "-S", "-msg", "timestamp=on", "-sandbox", sandbox)
	board := s.Machine + ",usb=off,vmport=off,dump-guest-core=off"
	if s.UEFI {
		board += ",pflash0=code,pflash1=vars"
		arg("-blockdev", text(object{"driver": "file", "node-name": "code", "filename": visible("firmware", d.firmware.Code), "read-only": true}))
		share(firmwareSet, disk(filepath.Join(g.disks(), firmwareFile)))
		arg("-blockdev", text(object{"driver": "file", "node-name": "vars", "filename": fdset(firmwareSet)}))
	}
	arg("-machine", board, "-cpu", s.CPU, "-smp", strconv.Itoa(s.VCPUs), "-m", strconv.Itoa(s.MemoryMiB)+"M", "-rtc", "base=utc")
	if s.Accel == accelKVM {
		arg("-accel", "kvm")
		in.nodes = []string{"/dev/kvm"}
	} else {
		arg("-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationMiB))
	}
	power := "ICH9-LPC"
	if s.pc() {
		power = "PIIX4_PM"
	}
	arg("-global", power+".disable_s3=1", "-global", power+".disable_s4=1")
	// A guest that switches itself off leaves its process waiting, so that
	// nobody has to have watched to know that it was no crash.
	arg("-action", "shutdown=pause,reboot=reset", "-boot", "strict=on")
	if smbios := d.smbios.argument(g.id); smbios != "" {
		arg("-smbios", smbios)
	}

	for _, monitor := range []string{monitorSocket, adminSocket} {
		n, err := c.add(listen(g.dir, monitor))
		failures = append(failures, err)
		arg("-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", monitor, n), "-mon", "chardev="+monitor+",mode=control")
	}
	n, err := c.add(listen(g.dir, serialSocket))
	failures = append(failures, err)
	share(consoleSet, open(filepath.Join(g.dir, consoleFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND))
	arg("-chardev", fmt.Sprintf("socket,id=serial,fd=%d,server=on,wait=off,logfile=%s,logappend=on", n, fdset(consoleSet)), "-serial", "chardev:serial")

	arg("-vnc", "none,share=force-shared", "-device", text(s.fixed("VGA", 0x1, nil)))
	arg("-object", text(object{"qom-type": "rng-builtin", "id": "rng"}), "-device", text(s.fixed("virtio-rng-pci", 0x3, object{"rng": "rng"})))
	for _, port := range s.ports() {
		arg("-device", text(port))
	}
	if s.SCSI {
		arg("-device", text(s.fixed("virtio-scsi-pci", 0x2, object{"id": "scsi"})))
	}
	ide := 0
	for _, dev := range g.rec.Devices {
		frontend := dev.frontend(s, ide)
		if dev.Kind == "disk" {
			share(diskSet(dev.Slot), disk(dev.file(g.disks())))
			if dev.Image.Path != "" {
				share(backingSet(dev.Slot), open(dev.Image.Path, os.O_RDONLY))
			}
			for _, node := range dev.blockdevs() {
				arg("-blockdev", text(node))
			}
			if dev.Bus == "ide" {
				ide++
			}
			if dev.Name == g.rec.Devices[0].Name && !s.Kernel {
				frontend["bootindex"] = 0
			}
			arg("-device", text(frontend))
			continue
		}
		netdev := object{"type": "tap", "id": dev.netdev()}
		n, err := c.add(openTap(dev.Tap))
		switch {
		case err == nil:
			netdev["fd"] = strconv.Itoa(n)
		case incoming == fromFile && errors.Is(err, errNoTap):
			// It is to be detached, but saved memory needs a card to go into.
			netdev = object{"type": "hubport", "id": dev.netdev(), "hubid": dev.Slot}
		default:
			failures = append(failures, fmt.Errorf("network port %s: %w", dev.Name, err))
		}
		arg("-netdev", text(netdev), "-device", text(frontend))
	}
	if s.Seed {
		share(seedSet, open(filepath.Join(g.dir, seedFile), os.O_RDONLY))
		arg("-blockdev", text(object{"driver": "file", "node-name": "seedf", "filename": fdset(seedSet), "read-only": true}))
		arg("-blockdev", text(object{"driver": "raw", "node-name": "seed", "file": "seedf", "read-only": true}))
		frontend := object{"driver": "virtio-blk-pci", "id": "seed", "drive": "seed"}
		s.place(frontend, s.Ports)
		arg("-device", text(frontend))
	}

	if s.Kernel {
		arg("-kernel", visible(kernelFile, filepath.Join(g.dir, kernelFile)))
		if s.Initrd {
			arg("-initrd", visible(initrdFile, filepath.Join(g.dir, initrdFile)))
		}
		arg("-append", s.Cmdline)
	}
	switch incoming {
	case fromPeer:
		arg("-incoming", "defer")
	case fromFile:
		arg("-incoming", fmt.Sprintf("fd:%d", open(filepath.Join(g.dir, memoryFile), os.O_RDONLY)))
	}
	in.argv, in.files = args, c.files
	return in, c, errors.Join(failures...)
}

func dup(f *os.File, failures *[]error) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		*failures = append(*failures, err)
		return nil
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// start makes a process for the guest, and lets its processors run if they are
// to. What QEMU refuses becomes the record's ending; an error is the host's fault.
func (g *guest) start(ctx context.Context, want compute.Guest) error {
	d := g.driver
	memory := fromNowhere
	var s shape
	if g.rec.Saved != nil {
		memory = fromFile
		s = *g.rec.Saved
		g.refreshTaps(want)
	} else {
		if err := g.prepare(ctx, want); err != nil {
			return err
		}
		s = d.shapeOf(want, g.rec.highestSlot())
	}
	if s.Seed {
		if err := keepSeed(want.Seed, filepath.Join(g.dir, seedFile), memory == fromFile); err != nil {
			return err
		}
	}
	return g.launch(ctx, &launch{Shape: s, Boot: bootID(), Incoming: memory == fromFile}, func() (inmate, *cargo, error) { return g.commandLine(s, memory) })
}

// launch starts the process of a launch, and waits for it to answer.
func (g *guest) launch(ctx context.Context, l *launch, line func() (inmate, *cargo, error)) error {
	g.rec.Launch = l
	if err := g.write("launch announced"); err != nil {
		return err
	}
	in, load, err := line()
	if err == nil {
		err = g.spawn(in)
		load.close() // were our copies open, we would not hear of the process's end
	}
	if err != nil {
		g.rec.Launch = nil
		return errors.Join(fmt.Errorf("start guest %s: %w", g.id, err), g.write("launch given up"))
	}
	return g.bringUp(ctx)
}

// A source is where a machine's memory comes from.
type source int

const (
	fromNowhere source = iota
	fromFile
	fromPeer // of another host
)

// keepSeed keeps the config drive as the guest finds it: the agent makes another one when what is to be on it changes.
func keepSeed(seed, path string, have bool) error {
	if _, err := os.Stat(path); have && err == nil {
		return nil
	}
	if err := remove(path); err != nil {
		return err
	}
	if os.Link(seed, path) == nil {
		return nil
	}
	body, err := os.ReadFile(seed)
	if err != nil {
		return err
	}
	return os.WriteFile(path, body, 0o600)
}

// spawn starts the process, and records and watches it.
func (g *guest) spawn(in inmate) error {
	d := g.driver
	p, err := d.jail.start(in)
	if err != nil {
		return err
	}
	d.step("process started")
	forked := time.Now()
	l := g.rec.Launch
	l.PID, l.StartedAt = p.pid, forked.UTC()
	if l.Ticks, err = startTicks(p.pid); err == nil {
		err = g.write("launch recorded")
	}
	if err != nil {
		go p.watch(func() {})
		return errors.Join(err, p.kill())
	}
	if err := d.cgroups.enter(g.id.String(), p.pid, l.Shape); err != nil {
		d.log.Warn("guest runs without all limits", "guest", g.id, "error", err)
	}
	var failures []error
	for resource, limit := range map[int]uint64{
		unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 4096, unix.RLIMIT_MEMLOCK: 8 << 20, unix.RLIMIT_NPROC: maxThreads + uint64(l.Shape.VCPUs),
	} {
		if resource == unix.RLIMIT_NPROC && !d.jail.identity {
			continue // it would count our own processes
		}
		if err := unix.Prlimit(p.pid, resource, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			failures = append(failures, fmt.Errorf("limit %d: %w", resource, err))
		}
	}
	if len(failures) > 0 { // without a user namespace that takes more than being root
		d.log.Warn("guest runs without all limits", "guest", g.id, "error", errors.Join(failures...))
	}
	d.step("limits set")
	g.hold(p)
	g.forked = forked
	return nil
}

// hold keeps a running process, and a monitor for it.
func (g *guest) hold(p *process) {
	d := g.driver
	g.proc = p
	g.monitor = &qmp.Monitor{
		Dial: func(ctx context.Context) (conn *net.UnixConn, err error) { return dial(ctx, g.dir, monitorSocket) },
		OnEvent: func(e qmp.Event) {
			switch e.Name {
			case "SHUTDOWN", "STOP", "RESUME", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR", "DEVICE_DELETED", "MIGRATION", "SUSPEND", "WAKEUP",
				"BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR":
				d.notify(g.id)
			}
		},
		OnEnd: func() { d.notify(g.id) },
	}
	d.watchers.Go(func() { p.watch(func() { d.notify(g.id) }) })
}

// How long a hypervisor may take to come up before Ensure returns, and before
// its silence means that something is wrong.
const (
	patience  = 3 * time.Second
	childhood = 30 * time.Second
)

// bringUp waits for a new process to answer. If that takes long, a later Ensure goes on.
func (g *guest) bringUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := g.monitor.Connect(ctx)
	if err != nil {
		if g.proc.exitWithin(100 * time.Millisecond) {
			return nil // the next look finds it refused, or crashed
		}
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("guest %s: %w", g.id, err)
	}
	g.answered = time.Now()
	g.driver.step("process answers")
	return nil
}

// refusal tells the operator why QEMU did not start.
func (g *guest) refusal(log *slog.Logger) {
	f, err := os.Open(filepath.Join(g.dir, stderrFile))
	if err != nil {
		log.Error("guest's hypervisor ended", "guest", g.id, "error", err)
		return
	}
	defer f.Close()
	log.Error("guest's hypervisor ended", "guest", g.id, "said", tail(f, 2000))
}
