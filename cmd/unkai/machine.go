package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/api/metadata"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/driver/linuxnet"
	"github.com/unkai-cloud/unkai/driver/qemu"
)

// machineOptions say how this machine is used as a host.
type machineOptions struct {
	Prefix          string `default:"unkai" help:"Begins the names of everything made in the kernel, so that two clouds on one machine do not meet. At most six letters."`
	Pool            string `default:"172.24.4.0/24" help:"The external network on this machine: floating addresses come from it, and the machine itself has its first address as long as nothing leads away from its bridge, PREFIX-public."`
	Name            string `help:"The host's name; the machine's own when empty."`
	AllowLooseJails bool   `help:"Run guests even where they can have no file system or no user of their own (see unkai doctor). Whoever breaks out of one then reads the host's files."`
	Zone            string `help:"The availability zone that a new host is in."`
	Watchdog        string `help:"A watchdog of the kernel's, such as /dev/watchdog. With one this machine stops guests that are restarted elsewhere when it cannot reach a controller for a minute, and is reset if it fails to: see docs/decisions/fencing.md." type:"path"`
	Alone           alone  `default:"5m" placeholder:"TIME" help:"After a boot of this machine guests wait for this long until a controller has told which of them are still this host's: what was lost with it may have been made anew elsewhere. Then they are started without. never: they wait."`
	SharedDisks     string `help:"A folder that other hosts reach too (NFS, CephFS, GFS2, ...), with locks: guests' disks are kept there. They then change hosts without being copied, and outlive this one. See docs/decisions/shared-storage.md." type:"path"`
	Moves           int    `default:"8704" help:"The TCP port at --address on which guests come in from other hosts (mutual TLS); 0 for none."`
	Wire            int    `placeholder:"MBIT" help:"How many megabits a second this machine sends to other hosts, as long as no move has told: for forecasts."`
	LongWay         bool   `help:"Have bridge and packet filter see every packet of guests, also of established connections, of which they otherwise see one a second: slower, and for looking into what they do."`
	Address         string `help:"This machine's address for the tunnels between hosts, at which they all reach it. An agent takes the one on its way to the controller; a cloud of one host needs none."`
}

// alone is for how long guests wait for a controller's word; negative: for ever. See agent.Word.
type alone time.Duration

// UnmarshalText reads a duration, or "never".
func (a *alone) UnmarshalText(text []byte) error {
	if string(text) == "never" {
		*a = -1
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err != nil || d < 0 {
		return fmt.Errorf("%q: want a time such as 5m, or never", text)
	}
	*a = alone(d)
	return nil
}

// pool is the external network's prefix and the machine's own address in it.
func (o machineOptions) pool() (prefix netip.Prefix, own netip.Prefix, err error) {
	prefix, err = netip.ParsePrefix(o.Pool)
	if err != nil || !prefix.Addr().Is4() || prefix.Bits() > 29 || prefix.Masked() != prefix {
		return prefix, own, fmt.Errorf("--pool %s: want an IPv4 network of at least eight addresses, such as 172.24.4.0/24", o.Pool)
	}
	return prefix, netip.PrefixFrom(prefix.Addr().Next(), prefix.Bits()), nil
}

// A machine is this machine as a host: its drivers, and the agent that calls them.
type machine struct {
	agent   *agent.Agent
	guests  *agent.Guests
	qemu    *qemu.Driver
	uploads *agent.Uploads
	store   *agent.FileStore
	network *linuxnet.Driver
	lease   *agent.Lease
	uplinks *agent.Uplinks               // nil before the work has begun
	peers   *agent.Peers                 // nil: guests stay here
	link    atomic.Pointer[agent.Remote] // to the controllers; nil before the work has begun
	options machineOptions
	dir     string
}

// tellPassword passes on the password that a guest has told. Nobody keeps it here: while no controller hears us, the guest is to try again.
func (m *machine) tellPassword(ctx context.Context, guest resource.ID, text string) error {
	link := m.link.Load()
	if link == nil {
		return errors.New("the work has not begun")
	}
	seen, err := json.Marshal(text)
	if err != nil {
		return err
	}
	return link.Observe(ctx, []host.Observation{{Key: host.Key{Kind: compute.PasswordKind, ID: guest}, Seen: seen}})
}

// smbios is what guests' cloud-init looks for to know what cloud it is in.
var smbios = qemu.SMBIOS{Manufacturer: "Unkai", Product: "OpenStack Nova", Version: version, Family: "Virtual Machine"}

// address is the machine's for tunnels; invalid if it has none.
func (o machineOptions) address() (netip.Addr, error) {
	if o.Address == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(o.Address)
	if err != nil {
		return a, fmt.Errorf("--address %s: want an IP address", o.Address)
	}
	return a.Unmap(), nil
}

func openNetwork(o machineOptions, md func(resource.ID) http.Handler) (*linuxnet.Driver, error) {
	_, own, err := o.pool()
	if err != nil {
		return nil, err
	}
	tunnel, err := o.address()
	if err != nil {
		return nil, err
	}
	return linuxnet.New(linuxnet.Options{
		Prefix: o.Prefix, Metadata: md, TunnelAddress: tunnel, LongWay: o.LongWay,
		Physical: map[string]linuxnet.Physical{"public": {Bridge: o.Prefix + "-public", HostAddresses: []netip.Prefix{own}, Masquerade: true}},
	})
}

func openQEMU(o machineOptions, dir string) (*qemu.Driver, error) {
	return qemu.New(qemu.Options{Dir: filepath.Join(dir, "qemu"), Disks: o.SharedDisks, SMBIOS: smbios, Cgroup: o.Prefix, AllowLooseJails: o.AllowLooseJails})
}

// wantsDir is where, in a machine's directory, lies what is wanted of it.
const wantsDir = "wants"

// name is the host's, if it is new.
func (o machineOptions) name() (string, error) {
	if o.Name != "" {
		return o.Name, nil
	}
	return os.Hostname()
}

// join makes this machine a host. What another cloud, or another time in this one, wanted of it is void.
func (o machineOptions) join(ctx context.Context, url, token, dir string) (*agent.Identity, error) {
	name, err := o.name()
	if err == nil {
		err = host.CheckNew(name, o.Zone) // before the token is used up
	}
	var address netip.Addr
	if err == nil {
		address, err = o.address()
	}
	if err == nil {
		err = host.CheckAddress(address)
	}
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(dir, wantsDir)); err != nil {
		return nil, err
	}
	// What decides whether it is let in; the rest it says when it comes.
	return agent.Join(ctx, url, token, dir, host.Hello{Name: name, Zone: o.Zone, Version: version, Address: address, MTU: wireMTU(ctx, address), Capacity: host.Capacity{Driver: qemu.Name}})
}

// openMachine takes up whatever an earlier process left in dir.
func openMachine(o machineOptions, dir string) (*machine, error) {
	m := &machine{options: o, dir: dir}
	// What lies here is guests' and of their owners: QEMU, which is neither us nor trusted, is handed descriptors.
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
		return nil, err
	}
	var err error
	if m.store, err = agent.OpenStore(filepath.Join(dir, wantsDir)); err != nil {
		return nil, err
	}
	if m.lease, err = openLease(o.Watchdog, dir); err != nil {
		return nil, err
	}
	m.lease.Wall = machineClock
	word, err := agent.OpenWord(filepath.Join(dir, "told-in-boot"), time.Duration(o.Alone))
	if err != nil {
		return nil, err
	}
	answers := metadata.New(func(port resource.ID) (compute.Guest, bool) { return m.agent.GuestOf(port) })
	answers.Tell = m.tellPassword
	if m.network, err = openNetwork(o, answers.For); err != nil {
		return nil, fmt.Errorf("open the network driver: %w", err)
	}
	if m.qemu, err = openQEMU(o, dir); err != nil {
		return nil, fmt.Errorf("open the guests' driver: %w", err)
	}
	taps := new(agent.Taps)
	drives := seeds{filepath.Join(dir, "seeds")}
	images := &agent.Images{Dir: filepath.Join(dir, "images"), Arrived: func(guests []resource.ID) {
		for _, id := range guests {
			m.agent.Touch(host.Key{Kind: "guest", ID: id}, time.Now())
		}
	}}
	if err := errors.Join(images.Open(), drives.open()); err != nil {
		return nil, err
	}
	m.uploads = &agent.Uploads{Ended: func(guest resource.ID) {
		m.agent.Touch(host.Key{Kind: "guest", ID: guest}, time.Now())
	}}
	m.guests = &agent.Guests{Driver: m.qemu, Uploads: m.uploads, Taps: taps, Lease: m.lease, Seed: drives.build, Unseed: drives.remove, Images: images}
	networks := &agent.Networks{Driver: m.network, Taps: taps, Wired: func(server resource.ID) {
		m.agent.Touch(host.Key{Kind: "guest", ID: server}, time.Now())
	}}
	roster := agent.RosterHandler(func() {
		if m.peers != nil {
			m.peers.Sweep()
		}
	})
	if m.agent, err = agent.New(m.store, time.Now(), slices.Concat([]agent.Handler{roster}, networks.Handlers(), m.guests.Handlers())...); err != nil {
		return nil, err
	}
	m.agent.Lease, m.agent.Word = m.lease, word
	return m, nil
}

// openLease takes up the host's lease, and the watchdog that enforces it if there is one.
func openLease(watchdog, dir string) (*agent.Lease, error) {
	file := filepath.Join(dir, "lease.json")
	if watchdog == "" {
		return agent.OpenLease(file, nil)
	}
	device, err := agent.OpenDevice(watchdog)
	if err != nil {
		return nil, err
	}
	return agent.OpenLease(file, device)
}

// guard looks after the lease until ctx ends.
func (m *machine) guard(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := m.guests.Guard(ctx, m.agent); err != nil && ctx.Err() == nil {
			slog.ErrorContext(ctx, "the watchdog does not work", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// hello is what the host says of itself.
func (m *machine) hello(ctx context.Context) (host.Hello, error) {
	c, err := m.qemu.Capabilities(ctx)
	if err != nil {
		return host.Hello{}, fmt.Errorf("look at this machine: %w", err)
	}
	name, err := m.options.name()
	if err != nil {
		return host.Hello{}, err
	}
	address, err := m.options.address()
	if err != nil {
		return host.Hello{}, err
	}
	physical, err := m.uplinks.Connected(time.Now())
	if err != nil {
		return host.Hello{}, fmt.Errorf("look at this machine's networks: %w", err)
	}
	is, err := speaks(m.dir)
	if err != nil { // it may be tried, in place of nobody knows what: so it says the least
		slog.WarnContext(ctx, "could not see whether an upgrade of this agent is decided on", "err", err)
		is = release.Span{Oldest: release.Own.Oldest, Newest: release.Own.Oldest}
	}
	capacity := capacityOf(c)
	capacity.WireMbps = max(0, m.options.Wire)
	return host.Hello{Name: name, Zone: m.options.Zone, Version: version, Speaks: is, Address: address, MTU: wireMTU(ctx, address), Physical: physical, Capacity: capacity, Mark: m.agent.Mark(),
		Renews: true, Watchdog: m.lease.Watchdog != nil}, nil
}

// wireMTU is what the wire carries that has the machine's address; 0 if that is not known, or there is none.
func wireMTU(ctx context.Context, address netip.Addr) int {
	if !address.IsValid() {
		return 0
	}
	_, mtu, err := wireOf(address)
	if err != nil {
		slog.WarnContext(ctx, "what the wire to other hosts carries is not known, and counts as 1500 bytes a packet", "err", err)
	}
	return mtu
}

func capacityOf(c compute.Capabilities) host.Capacity {
	return host.Capacity{Driver: c.Driver, Release: c.Version, VCPUs: c.VCPUs, MemoryMiB: c.MemoryMiB, DiskGiB: c.DiskGiB,
		MaxVCPUs: c.MaxVCPUs, Isolating: c.Isolating, Moves: c.Moves, Where: c.Where, Snapshots: c.Snapshots, Arch: c.Arch, CPUModel: c.CPUModel,
		Storage: c.Storage}
}

// join lets guests go to other hosts and come from them, if the machine has an address for that.
func (m *machine) join(link *agent.Remote) (err error) {
	address, err := m.options.address()
	if err != nil || !address.IsValid() || m.options.Moves == 0 {
		return err
	}
	p, err := link.Peers(netip.AddrPortFrom(address, uint16(m.options.Moves)).String())
	if err != nil {
		return err
	}
	p.Admits = m.agent.Admits
	m.peers = p
	m.qemu.Join(p)
	return nil
}

const agentWorkers = 8

// run is the host's work until ctx ends. Guests go on after it.
func (m *machine) run(ctx context.Context, url string, id *agent.Identity) error {
	m.uplinks = &agent.Uplinks{Look: m.network.Uplinks, Host: id.Host}
	link, err := agent.NewRemote(url, id, m.hello, m.qemu)
	if err != nil {
		return err
	}
	if err := m.join(link); err != nil {
		slog.ErrorContext(ctx, "guests stay on this host", "err", err) // and are served as ever
	}
	m.link.Store(link)
	m.guests.Images.Get = func(ctx context.Context, id resource.ID) (io.ReadCloser, error) { return link.Image(ctx, id) }
	m.uploads.Put = link.PutImage
	defer m.uploads.Close()
	var wg sync.WaitGroup
	if m.peers != nil {
		wg.Go(func() { m.peers.Run(ctx, m.qemu) })
	}
	wg.Go(func() { m.guests.Follow(ctx, m.agent) })
	wg.Go(func() { m.guard(ctx) })
	wg.Go(func() { m.uplinks.Run(ctx, m.agent) })
	wg.Go(func() { (&agent.Storage{Look: m.qemu.Away, Host: id.Host}).Run(ctx, m.agent) })
	wg.Go(func() { m.disks(id.Host).Run(ctx, m.agent) })
	wg.Go(func() { link.KeepCertificate(ctx) })
	wg.Go(func() { saySpeaks(ctx, m.dir, link) })
	if address, err := m.options.address(); err == nil && address.IsValid() {
		wg.Go(func() {
			sayWire(ctx, link, func() (int, error) {
				_, mtu, err := wireOf(address)
				return mtu, err
			})
		})
	}
	wg.Go(func() { m.guests.Images.Run(ctx) })
	wg.Go(func() {
		tick := time.NewTicker(time.Hour)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.guests.SweepImages(m.agent)
			case <-ctx.Done():
				return
			}
		}
	})
	m.agent.Run(ctx, link, agentWorkers)
	wg.Wait()
	return nil
}

// disks are those that nothing works without. Any of these may have a file system of its own.
func (m *machine) disks(id resource.ID) *agent.Disks {
	d := &agent.Disks{Host: id, Own: []string{m.dir, filepath.Join(m.dir, "images"), filepath.Join(m.dir, "qemu"), filepath.Join(m.dir, "qemu", "guests")}}
	if m.options.SharedDisks != "" {
		d.Shared = func(ctx context.Context) (int, error) { return m.qemu.Shared(ctx, agent.FreeAt) }
	}
	return d
}

// A greeter begins a host's sessions.
type greeter interface {
	Says() release.Span // what the host said in the present one, or the last; zero before the first
	Again()             // begins another one
}

// saySpeaks has the controllers told when an upgrade of this agent is decided on: until then it said that it works at no level at which
// what it may have to make way for does not. That is said when a session begins, so another one does.
func saySpeaks(ctx context.Context, dir string, link greeter) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		said := link.Says()
		if said == release.Own {
			return // nothing is more, and another trial is another process's
		}
		is, err := speaks(dir)
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "could not see whether the upgrade of this agent is decided on", "err", err)
		}
		if err == nil && !said.IsZero() && said != is {
			link.Again()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

const lookAtWire = 5 * time.Second

// sayWire has the controllers told when what the wire carries changes in the midst of a session, by another one. While that cannot be
// seen, as when the address is away for a moment, what was said last stands.
func sayWire(ctx context.Context, link interface {
	SaysMTU() (int, bool) // in the present session, or the last; false before the first
	Again()
}, look func() (int, error)) {
	tick := time.NewTicker(lookAtWire)
	defer tick.Stop()
	for logged := -1; ; {
		if mtu, err := look(); err == nil {
			if was, said := link.SaysMTU(); said && was != mtu {
				if mtu != logged {
					slog.WarnContext(ctx, "the wire to other hosts carries something else now; the controllers are told", "bytes a packet", mtu, "before", was)
				}
				logged = mtu
				link.Again()
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *machine) close() error {
	return errors.Join(m.network.Close(), m.qemu.Close(), m.store.Close())
}
