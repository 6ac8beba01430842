package linuxnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
)

// VXLAN believes whoever sends to its port: what the packet says of network and sender is taken for true.
// So the host takes such packets from the cloud's other hosts alone, and passes none on: a guest's packets
// that left under this host's address would be believed elsewhere.

func (d *Driver) tunnelTable() string {
	return fmt.Sprintf("%s_tunnel_%d", d.prefix, d.options.TunnelPort)
}

// tunnelHosts are the other hosts that a segment is on, as far as this one reaches them; nil if it has no tunnel.
func (s *segment) tunnelHosts() []netip.Addr {
	own := s.driver.options.TunnelAddress
	if s.want == nil || s.want.Physical != "" || !own.IsValid() {
		return nil
	}
	hosts := []netip.Addr{}
	for _, neighbour := range s.want.Neighbors {
		if neighbour.Host.IsValid() && neighbour.Host != own && s.driver.reaches(neighbour.Host) {
			hosts = append(hosts, neighbour.Host)
		}
	}
	slices.SortFunc(hosts, netip.Addr.Compare)
	return slices.Compact(hosts)
}

// guardTunnel says with which hosts a segment has to do; nil when it has no tunnel any more.
func (d *Driver) guardTunnel(ctx context.Context, segment resource.ID, hosts []netip.Addr) error {
	d.tunnelMu.Lock()
	defer d.tunnelMu.Unlock()
	if hosts == nil {
		delete(d.tunnelHosts, segment)
	} else {
		d.tunnelHosts[segment] = hosts
	}
	rules := ""
	if len(d.tunnelHosts) > 0 {
		var all []netip.Addr
		for _, hosts := range d.tunnelHosts {
			all = append(all, hosts...)
		}
		slices.SortFunc(all, netip.Addr.Compare)
		rules = renderTunnel(d.tunnelTable(), d.options.TunnelPort, slices.Compact(all))
	}
	if d.tunnelApplied == rules {
		return nil
	}
	if err := d.host.nft(ctx, removeTable("inet", d.tunnelTable())+rules); err != nil {
		return fmt.Errorf("packet filter of the tunnels: %w", err)
	}
	d.tunnelApplied = rules
	return nil
}

// renderTunnel writes the host's rules for the tunnels' port.
func renderTunnel(table string, port int, hosts []netip.Addr) string {
	var v4, v6 []string
	for _, addr := range hosts {
		if addr.Is4() {
			v4 = append(v4, addr.String())
		} else {
			v6 = append(v6, addr.String())
		}
	}
	elements := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return "\n\t\telements = { " + strings.Join(list, ", ") + " }"
	}
	return fmt.Sprintf(tunnelTable, table, port, elements(v4), elements(v6))
}

const tunnelTable = `table inet %[1]s {
	set hosts4 {
		type ipv4_addr%[3]s
	}
	set hosts6 {
		type ipv6_addr%[4]s
	}
	chain input {
		type filter hook input priority filter; policy accept;
		udp dport != %[2]d accept
		ip saddr @hosts4 accept
		ip6 saddr @hosts6 accept
		udp dport %[2]d drop
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		udp dport %[2]d drop
	}
}
`
