package linuxnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// An entry sends frames for a hardware address to a port of the bridge.
type entry struct {
	port int // the device's index
	mac  string
}

// A remote sends frames for a hardware address through the tunnel to a host.
type remote struct {
	mac  string
	host netip.Addr
}

// ntfSticky keeps an entry where it is though the address be seen elsewhere. It
// also tells our entries from the kernel's (NTF_STICKY in linux/neighbour.h).
const ntfSticky = 0x40

// everybody is the tunnel's address for frames to all, and to nobody known.
const everybody = "00:00:00:00:00:00"

// forward programs where frames go. Nothing has to be learned by flooding, and
// a guest without port security cannot take another's address.
func (s *segment) forward(ns *namespace, links map[string]netlink.Link) error {
	entries, remotes := map[entry]bool{}, map[remote]bool{}
	local := map[string]bool{}
	add := func(link netlink.Link, mac string) {
		if link != nil && mac != "" {
			mac = strings.ToLower(mac)
			entries[entry{link.Attrs().Index, mac}] = true
			local[mac] = true
		}
	}
	for id, attachment := range s.attachments {
		if attachment.Arriving {
			continue // it is where the neighbours say
		}
		add(links[tapName(id)], attachment.MAC)
		for _, pair := range attachment.AllowedPairs {
			// An address that several ports may use, say of a virtual router, is
			// known to belong to none of them: it is flooded.
			if pair.MAC != "" && s.users(pair.MAC) == 1 {
				add(links[tapName(id)], pair.MAC)
			}
		}
	}
	for name, link := range links {
		if leg, ok := parseLeg(link.Attrs().Alias); ok && strings.HasPrefix(name, legPrefix) {
			add(link, leg.mac)
		}
	}
	tunnel := links[vxlanName]
	if tunnel != nil {
		for _, neighbour := range s.want.Neighbors {
			mac := strings.ToLower(neighbour.MAC)
			if !neighbour.Host.IsValid() || neighbour.Host == s.driver.options.TunnelAddress || local[mac] || !s.driver.reaches(neighbour.Host) {
				continue
			}
			entries[entry{tunnel.Attrs().Index, mac}] = true
			remotes[remote{mac, neighbour.Host}] = true
			remotes[remote{everybody, neighbour.Host}] = true
		}
	}
	return s.program(ns, tunnel, entries, remotes)
}

// reaches reports whether a tunnel of this host's leads to another: only to an address of the same family, and the kernel refuses
// an entry for any other. Controllers let no host in that has one; where there is one all the same it is told of once, and
// everything else is done as ever.
func (d *Driver) reaches(host netip.Addr) bool {
	own := d.options.TunnelAddress
	if host.Is4() == own.Is4() {
		return true
	}
	if _, told := d.unreached.LoadOrStore(host, true); !told {
		d.log.Error("another host is not reached: its address for tunnels is of another family than this host's", "own", own, "its", host)
	}
	return false
}

// users counts the ports that may send from a hardware address.
func (s *segment) users(mac string) int {
	n := 0
	for _, attachment := range s.attachments {
		if slices.ContainsFunc(sources(attachment), func(src source) bool { return strings.EqualFold(src.MAC, mac) }) {
			n++
		}
	}
	return n
}

// program compares the kernel's forwarding tables with what is wanted.
func (s *segment) program(ns *namespace, tunnel netlink.Link, entries map[entry]bool, remotes map[remote]bool) error {
	have, err := dump(func() ([]netlink.Neigh, error) { return ns.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list forwarding entries of network %s: %w", s.id, err)
	}
	presentEntries, presentRemotes := map[entry]bool{}, map[remote]bool{}
	for _, found := range have {
		mac := found.HardwareAddr.String()
		switch {
		case found.Flags&unix.NTF_SELF != 0 && tunnel != nil && found.LinkIndex == tunnel.Attrs().Index:
			r := remote{mac, addrOf(found.IP)}
			if presentRemotes[r] = true; remotes[r] {
				continue
			}
		case found.Flags&ntfSticky != 0:
			e := entry{found.LinkIndex, mac}
			if presentEntries[e] = true; entries[e] {
				continue
			}
			found.Flags = unix.NTF_MASTER
		default:
			continue // learned, or a device's own
		}
		found.Family = unix.AF_BRIDGE
		if err := ns.NeighDel(&found); err != nil {
			return fmt.Errorf("remove forwarding entry %s of network %s: %w", mac, s.id, err)
		}
	}
	for e := range entries {
		if presentEntries[e] {
			continue
		}
		mac, err := net.ParseMAC(e.mac)
		if err != nil {
			return fmt.Errorf("forwarding entry of network %s: %w", s.id, err)
		}
		err = ns.NeighSet(&netlink.Neigh{
			Family: unix.AF_BRIDGE, LinkIndex: e.port, HardwareAddr: mac,
			State: netlink.NUD_NOARP, Flags: unix.NTF_MASTER | ntfSticky,
		})
		if err != nil {
			return fmt.Errorf("add forwarding entry %s to network %s: %w", e.mac, s.id, err)
		}
	}
	for r := range remotes {
		if presentRemotes[r] {
			continue
		}
		mac, err := net.ParseMAC(r.mac)
		if err != nil {
			return fmt.Errorf("tunnel entry of network %s: %w", s.id, err)
		}
		err = ns.NeighAppend(&netlink.Neigh{
			Family: unix.AF_BRIDGE, LinkIndex: tunnel.Attrs().Index, HardwareAddr: mac, IP: r.host.AsSlice(),
			State: netlink.NUD_NOARP | netlink.NUD_PERMANENT, Flags: unix.NTF_SELF,
		})
		if err != nil {
			return fmt.Errorf("add tunnel entry %s to network %s: %w", r.mac, s.id, err)
		}
	}
	return nil
}

// neighbours tells the bridge who has which address: for its own answers to
// guests, which a false neighbour then cannot draw to itself, and for answering
// in the name of guests on other hosts.
func (s *segment) neighbours(ns *namespace, bridge netlink.Link) error {
	want := map[netip.Addr]string{}
	if s.driver.options.TunnelAddress.IsValid() {
		for _, neighbour := range s.want.Neighbors {
			mac, err := net.ParseMAC(neighbour.MAC)
			if err != nil {
				return fmt.Errorf("neighbour in network %s: %w", s.id, err)
			}
			want[linkLocal(mac)] = mac.String()
			for _, addr := range neighbour.Addresses {
				want[addr] = mac.String()
			}
		}
	}
	for _, attachment := range s.attachments {
		mac, err := net.ParseMAC(attachment.MAC)
		if err != nil {
			return fmt.Errorf("port %s: %w", attachment.ID, err)
		}
		want[linkLocal(mac)] = mac.String()
		for _, fixed := range attachment.Addresses {
			want[fixed.Address] = mac.String()
		}
	}
	have, err := dump(func() ([]netlink.Neigh, error) { return ns.NeighList(bridge.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours of network %s: %w", s.id, err)
	}
	present := map[netip.Addr]bool{}
	for _, found := range have {
		if found.State&netlink.NUD_PERMANENT == 0 || found.Family == unix.AF_BRIDGE {
			continue
		}
		addr := addrOf(found.IP)
		if mac, wanted := want[addr]; wanted && mac == found.HardwareAddr.String() {
			present[addr] = true
			continue
		} else if wanted {
			continue // replaced below
		}
		if err := ns.NeighDel(&found); err != nil {
			return fmt.Errorf("remove neighbour %s of network %s: %w", addr, s.id, err)
		}
	}
	for addr, text := range want {
		if present[addr] {
			continue
		}
		mac, err := net.ParseMAC(text)
		if err != nil {
			return fmt.Errorf("neighbour %s of network %s: %w", addr, s.id, err)
		}
		err = ns.NeighSet(&netlink.Neigh{
			LinkIndex: bridge.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s to network %s: %w", addr, s.id, err)
		}
	}
	return nil
}

// maxLearned is how many hardware addresses a bridge learns: outside, and from guests that may send from
// any.
const maxLearned = 1024

// iflaBrFDBMaxLearned is IFLA_BR_FDB_MAX_LEARNED of linux/if_link.h.
const iflaBrFDBMaxLearned = 49

// boundLearning bounds what a bridge learns, and reports whether the kernel (from 6.7 on) can.
func (d *Driver) boundLearning(ns *namespace, bridge netlink.Link) (bool, error) {
	bounded := false
	err := ns.do(func() error {
		message := nl.NewIfInfomsg(unix.AF_UNSPEC)
		message.Index = int32(bridge.Attrs().Index)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(iflaBrFDBMaxLearned, nl.Uint32Attr(maxLearned))
		request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		request.AddData(message)
		request.AddData(info)
		if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return fmt.Errorf("bound what %s learns: %w", bridge.Attrs().Name, err)
		}
		// An older kernel takes no notice of what it does not know.
		message = nl.NewIfInfomsg(unix.AF_UNSPEC)
		message.Index = int32(bridge.Attrs().Index)
		request = nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
		request.AddData(message)
		answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return fmt.Errorf("look at what %s learns: %w", bridge.Attrs().Name, err)
		}
		for _, answer := range answers {
			value, err := findAttributes(answer[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO, nl.IFLA_INFO_DATA, iflaBrFDBMaxLearned)
			if err != nil {
				return fmt.Errorf("look at what %s learns: %w", bridge.Attrs().Name, err)
			}
			bounded = bounded || len(value) == 4 && nl.NativeEndian().Uint32(value) == maxLearned
		}
		return nil
	})
	return bounded, err
}

// findAttributes follows a path of nested attributes; nil if it leads nowhere.
func findAttributes(data []byte, path ...uint16) ([]byte, error) {
	for _, kind := range path {
		attributes, err := nl.ParseRouteAttr(data)
		if err != nil {
			return nil, err
		}
		data = nil
		for _, attribute := range attributes {
			if attribute.Attr.Type&^unix.NLA_F_NESTED == kind {
				data = attribute.Value
			}
		}
	}
	return data, nil
}
