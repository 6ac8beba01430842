package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/base/resource"
)

// portFlags is how a bridge treats one of its ports.
type portFlags struct {
	learning, flood, suppress bool
}

// makePorts makes the namespace's settings and the taps that are missing, and
// adds them to links.
func (s *segment) makePorts(ns *namespace, links map[string]netlink.Link) error {
	var missing []string
	for id := range s.attachments {
		if name := tapName(id); links[name] == nil {
			missing = append(missing, name)
		}
	}
	if s.prepared && len(missing) == 0 {
		return s.setPorts(ns, links)
	}
	err := ns.do(func() error {
		if !s.prepared {
			if err := errors.Join(set(segmentSettings), set(flowSettings), s.driver.setTracking()); err != nil {
				return err
			}
		}
		for _, name := range missing {
			if err := makeTap(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ports of network %s: %w", s.id, err)
	}
	s.prepared = true
	for _, name := range missing {
		link, err := ns.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find tap %s: %w", name, err)
		}
		links[name] = link
		delete(s.flags, name)
	}
	return s.setPorts(ns, links)
}

// setPorts names each tap's attachment beside it, and sets its MTU.
func (s *segment) setPorts(ns *namespace, links map[string]netlink.Link) error {
	for id, attachment := range s.attachments {
		tap := links[tapName(id)]
		if alias := attachmentAlias(id); tap.Attrs().Alias != alias {
			if err := ns.LinkSetAlias(tap, alias); err != nil {
				return fmt.Errorf("name tap of port %s: %w", id, err)
			}
		}
		if err := setMTU(ns, tap, attachment.MTU); err != nil {
			return err
		}
		if err := setUp(ns, tap); err != nil {
			return err
		}
	}
	return nil
}

func attachmentAlias(id resource.ID) string { return "attachment " + id.String() }

// unplug takes the bridge and the ways out of the host away. Taps and legs stay
// for when the segment comes back, and reach nothing.
func (s *segment) unplug(ns *namespace, links map[string]netlink.Link) error {
	for _, name := range []string{vxlanName, uplinkName, bridgeName} {
		if link := links[name]; link != nil {
			if err := ns.removeLink(link); err != nil {
				return fmt.Errorf("remove %s of network %s: %w", name, s.id, err)
			}
			delete(links, name)
			delete(s.flags, name)
		}
	}
	for name := range s.flags { // they left the bridge, and their flags with it
		delete(s.flags, name)
	}
	return nil
}

// plug makes the bridge and connects everything to it.
func (s *segment) plug(ctx context.Context, ns *namespace, links map[string]netlink.Link) error {
	bridge, err := s.makeBridge(ns, links)
	if err != nil {
		return err
	}
	if err := s.makeTunnel(ctx, ns, links); err != nil {
		return err
	}
	if err := s.makeUplink(ctx, ns, links); err != nil {
		return err
	}
	for name, link := range links {
		flags, ours := s.portFlags(name)
		if !ours {
			continue
		}
		if link.Attrs().MasterIndex != bridge.Attrs().Index {
			if err := ns.LinkSetMaster(link, bridge); err != nil {
				return fmt.Errorf("plug %s into network %s: %w", name, s.id, err)
			}
			delete(s.flags, name)
		}
		if err := s.setFlags(ns, link, flags); err != nil {
			return err
		}
		if strings.HasPrefix(name, legPrefix) {
			if err := setMTU(ns, link, s.want.MTU); err != nil {
				return err
			}
		}
		if err := setUp(ns, link); err != nil {
			return err
		}
	}
	if err := s.forward(ns, links); err != nil {
		return err
	}
	if err := s.neighbours(ns, bridge); err != nil {
		return err
	}
	return s.resolve(ctx, links)
}

func (s *segment) makeBridge(ns *namespace, links map[string]netlink.Link) (netlink.Link, error) {
	bridge := links[bridgeName]
	if bridge == nil {
		snooping := false // nobody here queries for groups, so nobody would stay a member
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = bridgeName, s.mac()
		if err := ns.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return nil, fmt.Errorf("make bridge of network %s: %w", s.id, err)
		}
		var err error
		if bridge, err = ns.LinkByName(bridgeName); err != nil {
			return nil, fmt.Errorf("find bridge of network %s: %w", s.id, err)
		}
		links[bridgeName] = bridge
	}
	if err := setMTU(ns, bridge, s.want.MTU); err != nil {
		return nil, err
	}
	if bounded, err := s.driver.boundLearning(ns, bridge); err != nil {
		return nil, fmt.Errorf("bridge of network %s: %w", s.id, err)
	} else if s.bounded = bounded; !bounded {
		s.driver.log.Debug("the kernel cannot bound what a bridge learns", "network", s.id)
	}
	if err := setUp(ns, bridge); err != nil {
		return nil, err
	}
	addresses := []netip.Prefix{netip.MustParsePrefix(metadataV4 + "/32"), netip.MustParsePrefix(metadataV6 + "/64")}
	if _, err := setAddresses(ns, bridge, addresses); err != nil {
		return nil, fmt.Errorf("addresses of network %s: %w", s.id, err)
	}
	var routes []netlink.Route
	for _, subnet := range s.want.Subnets {
		if subnet.CIDR.Addr().Is4() {
			routes = append(routes, netlink.Route{
				Dst: ipNet(subnet.CIDR.Masked()), Scope: netlink.SCOPE_LINK, LinkIndex: bridge.Attrs().Index,
			})
		}
	}
	if err := setRoutes(ns, bridge, routes); err != nil {
		return nil, fmt.Errorf("routes of network %s: %w", s.id, err)
	}
	return bridge, nil
}

// makeTunnel makes the way to the other hosts. The device stands here; because
// it is made by a socket of the host's namespace, its packets travel there.
func (s *segment) makeTunnel(ctx context.Context, ns *namespace, links map[string]netlink.Link) error {
	tunnel := s.driver.options.TunnelAddress
	// The kernel keeps the address that a tunnel was made with, and an operator may have given the host another since.
	if old, ok := links[vxlanName].(*netlink.Vxlan); ok && addrOf(old.SrcAddr) != tunnel {
		if err := ns.LinkDel(old); err != nil {
			return fmt.Errorf("remove tunnel of network %s, which is from %s: %w", s.id, old.SrcAddr, err)
		}
		delete(links, vxlanName)
	}
	if !tunnel.IsValid() || s.want.Physical != "" {
		return nil
	}
	if err := s.driver.guardTunnel(ctx, s.id, s.tunnelHosts()); err != nil {
		return err
	}
	if links[vxlanName] == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Namespace = vxlanName, s.want.MTU, ns.fd()
		err := s.driver.host.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: s.want.VNI, SrcAddr: tunnel.AsSlice(), Port: s.driver.options.TunnelPort,
		})
		if err != nil {
			return fmt.Errorf("make tunnel of network %s: %w", s.id, err)
		}
		link, err := ns.LinkByName(vxlanName)
		if err != nil {
			return fmt.Errorf("find tunnel of network %s: %w", s.id, err)
		}
		links[vxlanName] = link
		delete(s.flags, vxlanName)
	}
	return setMTU(ns, links[vxlanName], s.want.MTU)
}

// makeUplink connects a provider network with the host's bridge for it.
func (s *segment) makeUplink(ctx context.Context, ns *namespace, links map[string]netlink.Link) error {
	if s.want.Physical == "" {
		return nil
	}
	bridge, err := s.driver.ensurePhysical(ctx, s.want)
	if err != nil {
		return err
	}
	name := s.driver.hostName(s.id)
	if links[uplinkName] == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = uplinkName, s.want.MTU
		err := ns.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: s.driver.host.fd(), PeerMTU: uint32(s.want.MTU)})
		if err != nil {
			return fmt.Errorf("make uplink of network %s: %w", s.id, err)
		}
		link, err := ns.LinkByName(uplinkName)
		if err != nil {
			return fmt.Errorf("find uplink of network %s: %w", s.id, err)
		}
		links[uplinkName] = link
		delete(s.flags, uplinkName)
	}
	peer, err := s.driver.host.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find uplink of network %s on the host: %w", s.id, err)
	}
	if peer.Attrs().Alias == "" {
		if err := s.driver.host.LinkSetAlias(peer, s.driver.hostAlias()); err != nil {
			return fmt.Errorf("name uplink of network %s on the host: %w", s.id, err)
		}
	}
	if peer.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := s.driver.host.LinkSetMaster(peer, bridge); err != nil {
			return fmt.Errorf("plug network %s into %s: %w", s.id, bridge.Attrs().Name, err)
		}
	}
	if err := setMTU(s.driver.host, peer, s.want.MTU); err != nil {
		return err
	}
	if err := setUp(s.driver.host, peer); err != nil {
		return err
	}
	return setMTU(ns, links[uplinkName], s.want.MTU)
}

// isPort reports whether a device of the namespace is for the bridge, plugged in or not, wanted or not.
func isPort(name string) bool {
	return name == vxlanName || name == uplinkName || strings.HasPrefix(name, legPrefix) || strings.HasPrefix(name, tapPrefix)
}

// portFlags says how the bridge is to treat a port, and whether it is a port.
// It learns only where addresses are not known: outside, and behind a guest
// without port security, if that cannot fill the host's memory. What is not
// learned is flooded where it may be, and nowhere else.
func (s *segment) portFlags(name string) (portFlags, bool) {
	switch {
	case name == vxlanName:
		return portFlags{flood: s.strangersAway(), suppress: true}, true
	case name == uplinkName:
		return portFlags{learning: true, flood: true}, true
	case strings.HasPrefix(name, legPrefix):
		return portFlags{}, true
	case strings.HasPrefix(name, tapPrefix):
		for id, attachment := range s.attachments {
			if tapName(id) == name {
				open := !attachment.PortSecurity
				return portFlags{learning: open && s.bounded, flood: open}, true
			}
		}
	}
	return portFlags{}, false
}

func (s *segment) setFlags(ns *namespace, link netlink.Link, want portFlags) error {
	name := link.Attrs().Name
	if have, known := s.flags[name]; known && have == want {
		return nil
	}
	for _, flag := range []struct {
		on  bool
		set func(netlink.Link, bool) error
	}{{want.learning, ns.LinkSetLearning}, {want.flood, ns.LinkSetFlood}, {want.suppress, ns.LinkSetBrNeighSuppress}} {
		if err := flag.set(link, flag.on); err != nil {
			return fmt.Errorf("set flags of bridge port %s: %w", name, err)
		}
	}
	s.flags[name] = want
	return nil
}
