// Package linuxnet makes networks real with what the Linux kernel has: a
// namespace with a bridge for each network, a namespace for each router,
// nftables for what may pass, VXLAN between hosts. It answers DHCP, router
// solicitations and metadata on the host itself. It decides nothing: what is
// wanted comes from core/network.
package linuxnet

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// Options is what a driver has to know about its host.
type Options struct {
	// Prefix begins the name of everything the driver makes outside namespaces
	// of its own, so that several drivers do not meet in one kernel. At most
	// six lower-case letters and digits; "" is "unkai".
	Prefix string
	// StateDir keeps the wishes that the kernel is to hold. It should not outlive
	// a reboot. "" is /run/<prefix>-network.
	StateDir string
	// HostNetns is the path of the namespace that counts as the host's own: where
	// physical networks and the tunnels' packets are. "" is this process's.
	HostNetns string
	// TunnelAddress is this host's address for VXLAN. Without it networks end at
	// this host.
	TunnelAddress netip.Addr
	TunnelPort    int // UDP; 0 is 4789
	// Physical networks by name.
	Physical map[string]Physical
	// Metadata answers HTTP requests that come from a port. nil, or a nil
	// handler: there is none, 404.
	Metadata func(port resource.ID) http.Handler `json:"-"`
	// Lease is for how long DHCP gives an address; 0 is a day. Guests keep their
	// address without this process for that long.
	Lease time.Duration
	// LongWay: bridge and packet filter see every packet, also of established
	// connections.
	LongWay bool
	Log     *slog.Logger `json:"-"` // nil is slog.Default
}

// A Driver is a network.Driver on this kernel.
type Driver struct {
	options Options
	prefix  string
	host    *namespace
	store   store
	log     *slog.Logger
	web     *http.Server

	visitors       atomic.Int64 // open connections to the metadata service
	shortcuts      bool         // established connections may take them
	express        bool         // their programs need no classifiers
	flowLimit      int          // connections that one guest may have at a time
	neighbourLimit int          // neighbours that the kernel keeps for all namespaces

	closing    chan struct{}
	background sync.WaitGroup

	physicalMu      sync.Mutex
	physicalApplied map[string]string               // the rules in force; guarded by physicalMu
	physicalUsers   map[string]map[resource.ID]bool // guarded by physicalMu

	unreached sync.Map // the addresses of hosts that were told of, for no tunnel leads there

	tunnelMu      sync.Mutex
	tunnelHosts   map[resource.ID][]netip.Addr // by segment; guarded by tunnelMu
	tunnelApplied string                       // the rules in force; guarded by tunnelMu

	mu          sync.Mutex
	segments    map[resource.ID]*segment       // guarded by mu
	gateways    map[resource.ID]*gateway       // guarded by mu
	attachments map[resource.ID]resource.ID    // the network of each; guarded by mu
	filters     map[resource.ID]network.Filter // guarded by mu
}

var _ network.Driver = (*Driver)(nil)

var prefixes = regexp.MustCompile(`^[a-z][a-z0-9]{0,5}$`)

// New takes up what an earlier driver with the same prefix left, and answers
// the guests that it finds wanted. Close ends it; what it made stays.
func New(options Options) (*Driver, error) {
	if options.Prefix == "" {
		options.Prefix = "unkai"
	}
	if !prefixes.MatchString(options.Prefix) {
		return nil, fmt.Errorf("network prefix %q: want at most six lower-case letters and digits", options.Prefix)
	}
	if options.StateDir == "" {
		options.StateDir = "/run/" + options.Prefix + "-network"
	}
	if options.TunnelPort == 0 {
		options.TunnelPort = 4789
	}
	if options.Lease == 0 {
		options.Lease = 24 * time.Hour
	}
	options.TunnelAddress = options.TunnelAddress.Unmap()
	if options.Log == nil {
		options.Log = slog.Default()
	}
	if options.HostNetns == "" {
		options.HostNetns = "/proc/thread-self/ns/net"
	}
	if err := checkKernel(); err != nil {
		return nil, err
	}
	host, err := openNamespace(options.HostNetns)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		options: options, prefix: options.Prefix, host: host, store: store{options.StateDir}, log: options.Log,
		closing: make(chan struct{}), physicalApplied: map[string]string{}, physicalUsers: map[string]map[resource.ID]bool{},
		tunnelHosts: map[resource.ID][]netip.Addr{}, segments: map[resource.ID]*segment{}, gateways: map[resource.ID]*gateway{},
		attachments: map[resource.ID]resource.ID{}, filters: map[resource.ID]network.Filter{},
	}
	d.neighbourLimit = d.raiseNeighbourLimits()
	d.flowLimit = flowLimit()
	d.shortcuts = d.canShorten()
	d.web = d.metadataServer()
	if err := d.takeUp(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// checkKernel loads what filtering depends on, where it is a module.
func checkKernel() error {
	const setting = "/proc/sys/net/bridge/bridge-nf-call-"
	if _, err := os.Stat(setting + "iptables"); err == nil {
		return nil
	}
	out, err := exec.Command("modprobe", "br_netfilter").CombinedOutput()
	if _, missing := os.Stat(setting + "iptables"); missing != nil {
		return fmt.Errorf("the kernel has no br_netfilter, which stateful security groups need (modprobe: %v %s)", err, strings.TrimSpace(string(out)))
	}
	// It is wanted in our namespaces, where it is switched on. The machine's own
	// bridges are to go on as they did before it was loaded.
	for _, family := range []string{"iptables", "ip6tables", "arptables"} {
		if err := os.WriteFile(setting+family, []byte("0"), 0); err != nil {
			return fmt.Errorf("leave the machine's own bridges alone: %w", err)
		}
	}
	return nil
}

// takeUp reads the wishes of the process before, and answers guests again.
func (d *Driver) takeUp() error {
	err := errors.Join(
		load(d.store, filterKind, func(id resource.ID, wish network.Filter) { d.filters[id] = wish }),
		load(d.store, segmentKind, func(id resource.ID, wish network.Segment) { d.find(id).want = &wish }),
		load(d.store, attachmentKind, func(id resource.ID, wish network.Attachment) {
			d.find(wish.NetworkID).attachments[id] = wish
			d.attachments[id] = wish.NetworkID
		}),
		load(d.store, gatewayKind, func(id resource.ID, wish network.Gateway) { d.findGateway(id).want = &wish }),
	)
	if err != nil {
		return err
	}
	for id, s := range d.segments {
		s.policies = s.bounds() // in force until a wish says otherwise
		if hosts := s.tunnelHosts(); hosts != nil {
			d.tunnelHosts[id] = hosts
		}
		if s.want == nil || !mounted(s.namespacePath()) {
			continue
		}
		// Only what died with the process starts again here; what the kernel holds
		// is compared when the wish is repeated.
		if err := s.resume(); err != nil {
			d.log.Warn("network not served until it is wanted again", "network", id, "error", err)
		}
	}
	return nil
}

// later runs something a second from now, unless the driver is closed before.
func (d *Driver) later(f func()) {
	d.background.Add(1)
	go func() {
		defer d.background.Done()
		select {
		case <-d.closing:
		case <-time.After(time.Second):
			f()
		}
	}()
}

// Close stops answering guests and lets everything else run on. Nothing may be
// asked of the driver at the same time, or afterwards.
func (d *Driver) Close() error {
	close(d.closing)
	d.background.Wait()
	for _, s := range d.allSegments() {
		s.mu.Lock()
		s.stopServing()
		s.dropShortcut()
		s.mu.Unlock()
	}
	err := d.web.Close()
	d.host.close()
	return err
}

// find gives the segment of an ID, which may be wanted or not. d.mu is held, or
// nobody else is there yet.
func (d *Driver) find(id resource.ID) *segment {
	s := d.segments[id]
	if s == nil {
		s = &segment{driver: d, id: id, attachments: map[resource.ID]network.Attachment{}, flags: map[string]portFlags{}, resolved: map[resource.ID]resolution{}}
		d.segments[id] = s
	}
	return s
}

func (d *Driver) findGateway(id resource.ID) *gateway {
	g := d.gateways[id]
	if g == nil {
		g = &gateway{driver: d, id: id}
		d.gateways[id] = g
	}
	return g
}

// allSegments is a copy of the map of segments.
func (d *Driver) allSegments() map[resource.ID]*segment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.segments)
}

// segment gives the segment of an ID, locked.
func (d *Driver) segment(id resource.ID) *segment {
	for {
		d.mu.Lock()
		s := d.find(id)
		d.mu.Unlock()
		s.mu.Lock()
		if !s.removed {
			return s
		}
		s.mu.Unlock()
	}
}

// release unlocks a segment, and forgets it when nothing of it is left.
func (d *Driver) release(s *segment) {
	defer s.mu.Unlock()
	if s.want != nil || len(s.attachments) > 0 || mounted(s.namespacePath()) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.removed = true
	s.dropShortcut()
	delete(d.segments, s.id)
}

func (d *Driver) gateway(id resource.ID) *gateway {
	for {
		d.mu.Lock()
		g := d.findGateway(id)
		d.mu.Unlock()
		g.mu.Lock()
		if !g.removed {
			return g
		}
		g.mu.Unlock()
	}
}

func (d *Driver) filter(id resource.ID) (network.Filter, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	filter, here := d.filters[id]
	return filter, here
}
