package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A segment is one network on this host: a namespace with a bridge, into which
// the guests' taps, the routers' legs and the way to other hosts are plugged.
// The namespace is there as soon as anything of the network is, the bridge only
// while the segment itself is wanted.
type segment struct {
	driver *Driver
	id     resource.ID

	mu          sync.Mutex
	removed     bool             // no longer in the driver's map: look it up again
	want        *network.Segment // nil: not wanted, or not yet
	attachments map[resource.ID]network.Attachment

	// What this process has made sure of since it started.
	fresh    bool   // the namespace is new: there are no rules and no connections in it
	prepared bool   // its settings are made
	applied  string // the packet filter that is in force
	swept    bool   // every connection has been held against the policies
	policies map[claim]bound
	flags    map[string]portFlags
	bounded  bool                       // the bridge learns so many addresses and no more
	resolved map[resource.ID]resolution // by the port of a router's leg
	server   *server
	shortcut *shortcut // nil: none

	shortened map[int]bool // the ports that have its programs, or none if there are none, by the devices' indexes
}

func (s *segment) namespaceName() string { return s.driver.prefix + "-s-" + s.id.String() }
func (s *segment) namespacePath() string { return filepath.Join(netnsDir, s.namespaceName()) }

// mac is the bridge's hardware address. It is the same on every host, so that a
// guest that moves keeps its neighbour entries.
func (s *segment) mac() net.HardwareAddr { return localMAC("bridge", s.id.String()) }

func tapName(id resource.ID) string { return tapPrefix + id.Hex()[18:] }
func legName(id resource.ID) string { return legPrefix + id.Hex()[18:] }

// segmentSettings make a namespace bridge without taking part: its frames go
// through connection tracking, and it routes, learns and announces nothing.
var segmentSettings = []setting{
	{"bridge/bridge-nf-call-iptables", "1"},
	{"bridge/bridge-nf-call-ip6tables", "1"},
	{"bridge/bridge-nf-call-arptables", "0"},
	{"ipv4/ip_forward", "0"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/arp_ignore", "1"},
	{"ipv4/conf/default/arp_ignore", "1"},
	{"ipv6/conf/all/forwarding", "0"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/default/addr_gen_mode", "1"}, // no link-local addresses of its own
}

// flowSettings forget a connection that nobody answered sooner than the kernel would.
var flowSettings = []setting{
	{"netfilter/nf_conntrack_tcp_timeout_syn_sent", "30"},
	{"netfilter/nf_conntrack_tcp_timeout_syn_recv", "30"},
	{"netfilter/nf_conntrack_udp_timeout", "20"},
	{"netfilter/nf_conntrack_icmp_timeout", "10"},
	{"netfilter/nf_conntrack_icmpv6_timeout", "10"},
	{"netfilter/nf_conntrack_generic_timeout", "60"},
}

// converge makes the kernel match what is wanted of the segment, and leaves
// alone what does already. The rules come before the ports they are for.
func (s *segment) converge(ctx context.Context) (err error) {
	ns, made, err := makeNamespace(s.namespaceName())
	if err != nil {
		return err
	}
	defer ns.close()
	if made {
		s.forgetKernel()
	}
	defer func() {
		// Whatever has changed has done so now, also if not all of it could.
		if s.shortcut != nil {
			err = errors.Join(err, s.shortcut.forget())
		}
	}()
	links, err := ns.links()
	if err != nil {
		return err
	}
	if s.shortcut == nil { // an earlier process's programs go before anything changes that they would not hear of
		if err := s.shorten(ns, links); err != nil {
			return err
		}
	}
	if err := s.guardPorts(ctx, ns); err != nil {
		return err
	}
	if err := s.makePorts(ns, links); err != nil {
		return err
	}
	if s.want == nil {
		s.stopServing()
		if err := s.unplug(ns, links); err != nil {
			return err
		}
	} else if err := s.plug(ctx, ns, links); err != nil {
		return err
	}
	if err := s.cutConnections(ns); err != nil {
		return err
	}
	if err := s.shorten(ns, links); err != nil {
		return err
	}
	return s.serve(ns, links[bridgeName])
}

// forgetKernel forgets what this process knew of a namespace that is gone.
func (s *segment) forgetKernel() {
	s.fresh, s.prepared, s.applied = true, false, ""
	s.swept, s.policies = true, nil
	s.flags = map[string]portFlags{}
	s.resolved = map[resource.ID]resolution{}
	s.stopServing()
	s.dropShortcut()
}

func (s *segment) dropShortcut() {
	if s.shortcut != nil {
		s.shortcut.close()
		s.shortcut = nil
	}
	s.shortened = nil
}

// routed reports whether a router is to be in the network on this host.
func (s *segment) routed() bool {
	return s.want != nil && slices.ContainsFunc(s.want.Neighbors, func(n network.Neighbor) bool { return !n.Host.IsValid() })
}

// announce tells switches outside where a guest is now that came from another host: it was not here when it last said so
// itself. Within an overlay every host is told from the state.
func (s *segment) announce(attachment network.Attachment) error {
	if s.want == nil || s.want.Physical == "" {
		return nil
	}
	mac, err := net.ParseMAC(attachment.MAC)
	if err != nil {
		return err
	}
	ns, err := openNamespace(s.namespacePath())
	if err != nil {
		return err
	}
	defer ns.close()
	uplink, err := ns.LinkByName(uplinkName)
	if err != nil {
		return fmt.Errorf("find uplink of network %s: %w", s.id, err)
	}
	var list []announcement
	for _, fixed := range attachment.Addresses {
		list = append(list, announcement{device: uplink.Attrs().Index, mac: mac, addr: fixed.Address, guest: true})
	}
	return sendAnnouncements(ns, list)
}

// strangersAway reports whether there may be hardware addresses on other hosts that are not known.
func (s *segment) strangersAway() bool {
	return slices.ContainsFunc(s.want.Neighbors, func(n network.Neighbor) bool {
		return n.Host.IsValid() && n.Host != s.driver.options.TunnelAddress && (n.Open || len(n.MACs) > 0)
	})
}

// tidy takes the namespace away when nothing is left that needs it.
func (s *segment) tidy() error {
	if s.want != nil || len(s.attachments) > 0 {
		return nil
	}
	path := s.namespacePath()
	if mounted(path) {
		ns, err := openNamespace(path)
		if err != nil {
			return err
		}
		links, err := ns.links()
		ns.close()
		if err != nil {
			return err
		}
		for name := range links {
			if strings.HasPrefix(name, legPrefix) || strings.HasPrefix(name, tapPrefix) {
				return nil // of a gateway, or of an attachment that only the kernel still knows
			}
		}
	}
	s.stopServing()
	return removeNamespace(s.namespaceName())
}
