// Package linuxnet makes networks real with what the Linux kernel has: a
// namespace with a bridge for each network, a namespace for each router,
// nftables for what may pass, VXLAN between hosts. It answers DHCP, router
// solicitations and metadata on the host itself. It decides nothing: what is
// wanted comes from core/network.
package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

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
	Log   *slog.Logger `json:"-"` // nil is slog.Default
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
	flowLimit      int          // connections that one guest may have at a time
	neighbourLimit int          // neighbours that the kernel keeps for all namespaces

	closing    chan struct{}
	background sync.WaitGroup

	physicalMu      sync.Mutex
	physicalApplied map[string]string               // the rules in force; guarded by physicalMu
	physicalUsers   map[string]map[resource.ID]bool // guarded by physicalMu

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
		if s.want == nil || !mounted(filepath.Join(netnsDir, s.namespaceName())) {
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
	if s.want != nil || len(s.attachments) > 0 || mounted(filepath.Join(netnsDir, s.namespaceName())) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.removed = true
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

// EnsureSegment makes the network's bridge, with everything that is plugged in.
func (d *Driver) EnsureSegment(ctx context.Context, want network.Segment) error {
	s := d.segment(want.ID)
	defer d.release(s)
	if err := d.store.save(segmentKind, want.ID, want); err != nil {
		return err
	}
	s.want = &want
	return s.converge(ctx)
}

// EnsureAttachment makes the port's tap and plugs it in.
func (d *Driver) EnsureAttachment(ctx context.Context, want network.Attachment) (network.Tap, error) {
	s := d.segment(want.NetworkID)
	defer d.release(s)
	if err := d.store.save(attachmentKind, want.ID, want); err != nil {
		return network.Tap{}, err
	}
	d.mu.Lock()
	d.attachments[want.ID] = want.NetworkID
	d.mu.Unlock()
	arrived := s.attachments[want.ID].Arriving && !want.Arriving
	s.attachments[want.ID] = want
	for _, own := range want.DHCPOptions {
		if err := checkOption(own); err != nil {
			d.log.WarnContext(ctx, "port's DHCP option left out", "port", want.ID, "error", err)
		}
	}
	if err := s.converge(ctx); err != nil {
		return network.Tap{}, err
	}
	if arrived {
		if err := s.announce(want); err != nil {
			d.log.WarnContext(ctx, "port's move not announced", "port", want.ID, "error", err)
		}
	}
	return network.Tap{Netns: filepath.Join(netnsDir, s.namespaceName()), Name: tapName(want.ID)}, nil
}

// EnsureFilter puts a security group in force on every port that is in it.
func (d *Driver) EnsureFilter(ctx context.Context, want network.Filter) error {
	if err := d.keepFilter(want); err != nil {
		return err
	}
	return d.refilter(ctx, want.ID)
}

func (d *Driver) keepFilter(want network.Filter) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.store.save(filterKind, want.ID, want); err != nil {
		return err
	}
	d.filters[want.ID] = want
	return nil
}

// refilter brings the segments up to date that have ports in a group.
func (d *Driver) refilter(ctx context.Context, id resource.ID) error {
	var failed []error
	for network := range d.allSegments() {
		s := d.segment(network)
		if s.uses(id) {
			failed = append(failed, s.converge(ctx))
		}
		d.release(s)
	}
	return errors.Join(failed...)
}

// EnsureGateway makes a router with its legs, addresses and mappings.
func (d *Driver) EnsureGateway(ctx context.Context, want network.Gateway) error {
	g := d.gateway(want.ID)
	defer g.mu.Unlock()
	if err := d.store.save(gatewayKind, want.ID, want); err != nil {
		return err
	}
	g.want = &want
	return g.converge(ctx)
}

// Remove takes a thing away with everything of it. The wish is forgotten last,
// so that a removal cut short is still Present.
func (d *Driver) Remove(ctx context.Context, thing network.Thing) error {
	switch thing.Kind {
	case segmentKind:
		return d.removeSegment(ctx, thing.ID)
	case attachmentKind:
		return d.removeAttachment(ctx, thing.ID)
	case filterKind:
		return d.removeFilter(ctx, thing.ID)
	case gatewayKind:
		return d.removeGateway(thing.ID)
	}
	return fmt.Errorf("remove %s %s: no such kind", thing.Kind, thing.ID)
}

func (d *Driver) removeSegment(ctx context.Context, id resource.ID) error {
	s := d.segment(id)
	defer d.release(s)
	s.want = nil
	if mounted(filepath.Join(netnsDir, s.namespaceName())) {
		if err := s.converge(ctx); err != nil {
			return err
		}
	}
	if err := s.tidy(); err != nil {
		return err
	}
	if err := d.guardTunnel(ctx, id, nil); err != nil {
		return err
	}
	for physical := range d.options.Physical {
		if err := d.removePhysical(ctx, physical, id); err != nil {
			return err
		}
	}
	return d.store.forget(segmentKind, id)
}

func (d *Driver) removeAttachment(ctx context.Context, id resource.ID) error {
	d.mu.Lock()
	network, known := d.attachments[id]
	d.mu.Unlock()
	if !known {
		var err error
		if network, known, err = d.whereIs(id); err != nil || !known {
			return err
		}
	}
	s := d.segment(network)
	defer d.release(s)
	delete(s.attachments, id)
	if mounted(filepath.Join(netnsDir, s.namespaceName())) {
		if err := s.removeTap(ctx, id); err != nil {
			return err
		}
	}
	if err := s.tidy(); err != nil {
		return err
	}
	if err := d.store.forget(attachmentKind, id); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.attachments, id)
	d.mu.Unlock()
	return nil
}

func (s *segment) removeTap(ctx context.Context, id resource.ID) error {
	ns, err := openNamespace(filepath.Join(netnsDir, s.namespaceName()))
	if err != nil {
		return err
	}
	defer ns.close()
	links, err := ns.links()
	if err != nil {
		return err
	}
	if tap := links[tapName(id)]; tap != nil {
		if err := ns.removeLink(tap); err != nil {
			return fmt.Errorf("remove tap of port %s: %w", id, err)
		}
	}
	delete(s.flags, tapName(id))
	return s.converge(ctx)
}

// whereIs asks the kernel for a tap that no wish is known of.
func (d *Driver) whereIs(id resource.ID) (resource.ID, bool, error) {
	var where resource.ID
	found := false
	err := d.eachSegment(func(network resource.ID, links map[string]netlink.Link) {
		if tap := links[tapName(id)]; tap != nil && tap.Attrs().Alias == attachmentAlias(id) {
			where, found = network, true
		}
	})
	return where, found, err
}

// eachSegment shows every segment's namespace and the devices in it.
func (d *Driver) eachSegment(use func(network resource.ID, links map[string]netlink.Link)) error {
	names, err := namespaces(d.prefix + "-s-")
	if err != nil {
		return err
	}
	for _, name := range names {
		id, err := resource.ParseID(strings.TrimPrefix(name, d.prefix+"-s-"))
		if err != nil {
			continue
		}
		path := filepath.Join(netnsDir, name)
		if !mounted(path) {
			use(id, nil) // a process died before it made the namespace, or after it removed it
			continue
		}
		ns, err := openNamespace(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		links, err := ns.links()
		ns.close()
		if err != nil {
			return err
		}
		use(id, links)
	}
	return nil
}

func (d *Driver) removeFilter(ctx context.Context, id resource.ID) error {
	d.mu.Lock()
	_, known := d.filters[id]
	delete(d.filters, id)
	d.mu.Unlock()
	if known {
		if err := d.refilter(ctx, id); err != nil {
			return err
		}
	}
	return d.store.forget(filterKind, id)
}

func (d *Driver) removeGateway(id resource.ID) error {
	g := d.gateway(id)
	defer g.mu.Unlock()
	if err := g.remove(); err != nil {
		return err
	}
	if err := d.store.forget(gatewayKind, id); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g.removed = true
	delete(d.gateways, id)
	return nil
}

// Present lists what wishes are kept for and what the kernel holds.
func (d *Driver) Present(ctx context.Context) ([]network.Thing, error) {
	present := map[network.Thing]bool{}
	for _, kind := range kinds {
		entries, err := os.ReadDir(filepath.Join(d.store.dir, kind))
		if err != nil {
			return nil, fmt.Errorf("list kept wishes: %w", err)
		}
		for _, entry := range entries {
			if id, err := resource.ParseID(strings.TrimSuffix(entry.Name(), ".json")); err == nil {
				present[network.Thing{Kind: kind, ID: id}] = true
			}
		}
	}
	err := d.eachSegment(func(id resource.ID, links map[string]netlink.Link) {
		plugs := 0 // what an unwanted segment stays for
		for name, link := range links {
			if strings.HasPrefix(name, tapPrefix) || strings.HasPrefix(name, legPrefix) {
				plugs++
			}
			if text, ok := strings.CutPrefix(link.Attrs().Alias, "attachment "); ok {
				if port, err := resource.ParseID(text); err == nil {
					present[network.Thing{Kind: attachmentKind, ID: port}] = true
				}
			}
		}
		if links[bridgeName] != nil || plugs == 0 {
			present[network.Thing{Kind: segmentKind, ID: id}] = true
		}
	})
	if err != nil {
		return nil, err
	}
	names, err := namespaces(d.prefix + "-g-")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if id, err := resource.ParseID(strings.TrimPrefix(name, d.prefix+"-g-")); err == nil {
			present[network.Thing{Kind: gatewayKind, ID: id}] = true
		}
	}
	things := make([]network.Thing, 0, len(present))
	for thing := range present {
		things = append(things, thing)
	}
	slices.SortFunc(things, func(a, b network.Thing) int {
		if c := slices.Compare(a.ID[:], b.ID[:]); c != 0 {
			return c
		}
		return strings.Compare(a.Kind, b.Kind)
	})
	return things, ctx.Err()
}

// RemoveAll takes away everything that bears the prefix, whether a wish is
// known of it or not, and forgets all wishes.
func (d *Driver) RemoveAll(ctx context.Context) error {
	for _, s := range d.allSegments() {
		s.mu.Lock()
		s.stopServing()
		s.removed = true
		s.mu.Unlock()
	}
	d.mu.Lock()
	d.segments, d.gateways = map[resource.ID]*segment{}, map[resource.ID]*gateway{}
	d.attachments, d.filters = map[resource.ID]resource.ID{}, map[resource.ID]network.Filter{}
	d.mu.Unlock()

	d.tunnelMu.Lock()
	d.tunnelHosts, d.tunnelApplied = map[resource.ID][]netip.Addr{}, ""
	d.tunnelMu.Unlock()

	var failed []error
	for _, kind := range []string{"-g-", "-s-"} {
		names, err := namespaces(d.prefix + kind)
		failed = append(failed, err)
		for _, name := range names {
			failed = append(failed, removeNamespace(name))
		}
	}
	d.physicalMu.Lock()
	defer d.physicalMu.Unlock()
	failed = append(failed, d.host.removeLinks(d.ours))
	tables, err := d.host.tables(ctx, "inet", d.prefix+"_")
	failed = append(failed, err)
	for _, table := range tables {
		failed = append(failed, d.host.nft(ctx, removeTable("inet", table)))
	}
	d.physicalApplied, d.physicalUsers = map[string]string{}, map[string]map[resource.ID]bool{}
	for _, kind := range kinds {
		dir := filepath.Join(d.store.dir, kind)
		failed = append(failed, os.RemoveAll(dir), os.MkdirAll(dir, 0o700))
	}
	return errors.Join(failed...)
}
