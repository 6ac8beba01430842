package linuxnet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// asksDHCP sends a message and gives the answer; nil if there is none.
func (g *guest) asksDHCP(message *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	frame := datagram{
		fromMAC: g.mac, toMAC: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		from: netip.IPv4Unspecified(), to: broadcastV4,
		protocol: protocolUDP, fromPort: 68, toPort: 67, payload: message.ToBytes(),
	}.frame()
	var answer *dhcpv4.DHCPv4
	g.hears(func(frame []byte) bool {
		d, ok := parseFrame(frame)
		if !ok || d.toPort != 68 {
			return false
		}
		reply, err := dhcpv4.FromBytes(d.payload)
		if err != nil || reply.TransactionID != message.TransactionID {
			return false
		}
		answer = reply
		return true
	}, silence, func() { g.send(frame) })
	return answer
}

func TestDHCPv4(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	n.segment.Subnets[0].RouterMAC = "fa:16:3e:00:00:01"
	n.segment.Subnets[0].DNS = []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("192.0.2.54")}
	n.segment.Subnets[0].Routes = []network.Route{{Destination: netip.MustParsePrefix("10.99.0.0/16"), NextHop: netip.MustParseAddr("10.5.0.9")}}
	port := n.port()
	port.DHCPOptions = []network.DHCPOption{
		{Name: "bootfile-name", Value: "pxelinux.0", Version: 4},
		{Name: "server-ip-address", Value: "192.0.2.7", Version: 4},
		{Name: "42", Value: "192.0.2.8,192.0.2.9", Version: 4},
		{Name: "no-such-option", Value: "x", Version: 4},
	}
	ok(t, m.EnsureSegment(ctx, n.segment))
	g := m.plug(port)

	discover := must(dhcpv4.NewDiscovery(g.mac))(t)
	offer := g.asksDHCP(discover)
	if offer == nil {
		t.Fatal("no offer")
	}
	want := map[string][2]any{
		"type":      {offer.MessageType(), dhcpv4.MessageTypeOffer},
		"address":   {offer.YourIPAddr.String(), "10.5.0.11"},
		"mask":      {net.IP(offer.SubnetMask()).String(), "255.255.255.0"},
		"router":    {fmt.Sprint(offer.Router()), "[10.5.0.1]"},
		"DNS":       {fmt.Sprint(offer.DNS()), "[192.0.2.53 192.0.2.54]"},
		"name":      {offer.HostName(), "guest-11"},
		"domain":    {offer.DomainName(), "example.org"},
		"MTU":       {fmt.Sprint(offer.Options.Get(dhcpv4.OptionInterfaceMTU)), fmt.Sprint([]byte{1450 >> 8, 1450 & 255})},
		"lease":     {offer.IPAddressLeaseTime(0), 24 * time.Hour},
		"server":    {offer.ServerIdentifier().String(), "10.5.0.1"},
		"boot file": {offer.BootFileNameOption(), "pxelinux.0"},
		"next":      {offer.ServerIPAddr.String(), "192.0.2.7"},
		"time":      {fmt.Sprint(offer.NTPServers()), "[192.0.2.8 192.0.2.9]"},
		"routes": {fmt.Sprint(offer.ClasslessStaticRoute()),
			"[route to 169.254.169.254/32 via 10.5.0.1 route to 10.99.0.0/16 via 10.5.0.9 route to 0.0.0.0/0 via 10.5.0.1]"},
	}
	for what, pair := range want {
		if pair[0] != pair[1] {
			t.Errorf("%s: %v, want %v", what, pair[0], pair[1])
		}
	}

	request := func(change ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		return must(dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(g.mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)}, change...)...))(t)
	}
	asking := func(address string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(address)))
	}
	server := func(address string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(address)))
	}
	stranger := dhcpv4.WithHwAddr(net.HardwareAddr{2, 3, 4, 5, 6, 7})
	for name, c := range map[string]struct {
		message *dhcpv4.DHCPv4
		want    string
	}{
		"selecting":                         {request(asking("10.5.0.11"), server("10.5.0.1")), "ACK 10.5.0.11"},
		"selecting another server":          {request(asking("10.5.0.11"), server("10.5.0.200")), "none"},
		"after a reboot":                    {request(asking("10.5.0.11")), "ACK 10.5.0.11"},
		"after a reboot on another network": {request(asking("192.168.0.5")), "NAK 0.0.0.0"},
		"another's address":                 {request(asking("10.5.0.12")), "NAK 0.0.0.0"},
		"renewing":                          {request(dhcpv4.WithClientIP(net.IP{10, 5, 0, 11})), "ACK 10.5.0.11"},
		"renewing another's address":        {request(dhcpv4.WithClientIP(net.IP{10, 5, 0, 12})), "NAK 0.0.0.0"},
		"with another's hardware address":   {request(asking("10.5.0.11"), stranger), "none"},
		"wanting only options":              {request(dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(net.IP{10, 5, 0, 11})), "ACK 0.0.0.0"},
		"giving the address back":           {request(dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease), dhcpv4.WithClientIP(net.IP{10, 5, 0, 11})), "none"},
		"an answer instead of a question":   {offer, "none"},
		"a question without a kind (BOOTP)": {must(dhcpv4.New(dhcpv4.WithHwAddr(g.mac)))(t), "none"},
	} {
		t.Run(name, func(t *testing.T) {
			answer := g.asksDHCP(c.message)
			have := "none"
			if answer != nil {
				have = fmt.Sprint(answer.MessageType(), " ", answer.YourIPAddr)
			}
			if have != c.want {
				t.Errorf("answered %s, want %s", have, c.want)
			}
		})
	}

	// Another guest hears nothing of it, and gets its own.
	other := n.port()
	o := m.plug(other)
	if o.hears(func(frame []byte) bool { d, ok := parseFrame(frame); return ok && (d.toPort == 67 || d.toPort == 68) }, silence, func() { g.asksDHCP(discover) }) {
		t.Error("another guest heard the question or the answer")
	}
	if answer := o.asksDHCP(must(dhcpv4.NewDiscovery(o.mac))(t)); answer == nil || answer.YourIPAddr.String() != "10.5.0.12" {
		t.Errorf("the second guest was answered %v", answer)
	}

	// A new process goes on answering without a word from anybody.
	m.restart()
	if answer := g.asksDHCP(request(dhcpv4.WithClientIP(net.IP{10, 5, 0, 11}))); answer == nil || answer.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("after a restart a renewal was answered %v", answer)
	}

	n.segment.Subnets[0].DHCP = false
	ok(t, m.EnsureSegment(ctx, n.segment))
	if answer := g.asksDHCP(discover); answer != nil {
		t.Errorf("without DHCP in the subnet the answer was %v", answer)
	}
}

// TestDHCPClient lets a real client configure a guest and ask for metadata.
func TestDHCPClient(t *testing.T) {
	m := newMachine(t, func(o *Options) { o.Metadata = whoami })
	ctx := context.Background()
	n := newTenant(100)
	port := n.port()
	ok(t, m.EnsureSegment(ctx, n.segment))
	g := m.plug(port)
	script := filepath.Join(t.TempDir(), "script")
	ok(t, os.WriteFile(script, []byte(`#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
set -- $staticroutes
while [ $# -ge 2 ]; do
	if [ $2 = 0.0.0.0 ]; then ip route add $1 dev $interface; else ip route add $1 via $2 dev $interface; fi
	shift 2
done
`), 0o755))
	if out, err := g.run("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-O", "121", "-s", script); err != nil {
		t.Fatalf("udhcpc: %v\n%s", err, out)
	}
	if have := g.get("http://169.254.169.254/who"); have != "200 "+port.ID.String() {
		t.Errorf("metadata: %s, want the port's ID %s", have, port.ID)
	}
}

// whoami answers with the ID of the port that asked.
func whoami(port resource.ID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, port.String()) })
}

// get fetches a page as the guest: status and body, or "unreachable".
func (g *guest) get(url string) string {
	client := http.Client{
		Timeout: time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, kind, address string) (conn net.Conn, err error) {
			err = g.do(func() error {
				conn, err = (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext(ctx, kind, address)
				return err
			})
			return conn, err
		}},
	}
	response, err := client.Get(url)
	if err != nil {
		return "unreachable"
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "unreadable"
	}
	return fmt.Sprint(response.StatusCode, " ", strings.TrimSpace(string(body)))
}

func TestMetadata(t *testing.T) {
	m := newMachine(t, func(o *Options) { o.Metadata = whoami })
	ctx := context.Background()
	n := newTenant(100)
	ok(t, m.EnsureSegment(ctx, n.segment))
	a, b := n.port(), n.port()
	ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
	zone := fmt.Sprint(ga.eth0.Attrs().Index)
	v4, v6 := "http://169.254.169.254/", "http://[fe80::a9fe:a9fe%25"+zone+"]/"

	// By way of a router that does not even exist: the request never gets there.
	ok(t, ga.NeighSet(neighbour(ga, "10.5.0.1", "fa:16:3e:00:00:01")))
	ga.routeVia("10.5.0.1")
	gb.routeVia("10.5.0.11") // another guest in the way sees nothing either
	for _, c := range []struct {
		what, url, want string
		guest           *guest
	}{
		{"IPv4 through a router", v4, "200 " + a.ID.String(), ga},
		{"IPv4 through another guest", v4, "200 " + b.ID.String(), gb},
		{"IPv6", v6, "200 " + a.ID.String(), ga},
		{"another port of the address", "http://169.254.169.254:81/", "unreachable", ga},
		{"ssh of the address", "http://169.254.169.254:22/", "unreachable", ga},
	} {
		if have := c.guest.get(c.url); have != c.want {
			t.Errorf("%s: %s, want %s", c.what, have, c.want)
		}
	}

	// The asker cannot be another: the address decides, and it is guarded.
	a.PortSecurity = false
	must(m.EnsureAttachment(ctx, a))(t)
	addAddress(t, ga, "10.5.0.12/32")
	if have := getFrom(ga, "10.5.0.12", v4); have != "unreachable" {
		t.Errorf("with another's address: %s", have)
	}
	a.PortSecurity = true
	must(m.EnsureAttachment(ctx, a))(t)

	m.restart()
	if have := ga.get(v4); have != "200 "+a.ID.String() {
		t.Errorf("after a restart: %s", have)
	}
	for i := range n.segment.Subnets {
		n.segment.Subnets[i].MetadataOn = false
	}
	ok(t, m.EnsureSegment(ctx, n.segment))
	if have := ga.get(v4); have != "unreachable" {
		t.Errorf("without metadata: %s", have)
	}
}

// TestOneGuestCannotTakeAllConnections: a segment's other guests are served
// while one holds as many connections as it can get.
func TestOneGuestCannotTakeAllConnections(t *testing.T) {
	m := newMachine(t, func(o *Options) { o.Metadata = whoami })
	ctx := context.Background()
	n := newTenant(100)
	ok(t, m.EnsureSegment(ctx, n.segment))
	a, b := n.port(), n.port()
	ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
	ga.routeVia("10.5.0.12")
	gb.routeVia("10.5.0.11")
	held := 0
	for range connectionsPerPort + 10 {
		conn := ga.connect("169.254.169.254:80")
		if conn == nil {
			t.Fatal("not connected")
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF && !strings.Contains(err.Error(), "reset") {
			held++
		}
	}
	if held != connectionsPerPort {
		t.Errorf("%d connections were held, want %d", held, connectionsPerPort)
	}
	// Its other address is no other guest.
	if have := ga.get("http://[fe80::a9fe:a9fe%25eth0]/"); strings.HasPrefix(have, "200") {
		t.Errorf("by its other address it was answered %s", have)
	}
	if have := gb.get("http://169.254.169.254/"); have != "200 "+b.ID.String() {
		t.Errorf("the other guest: %s", have)
	}
	if have := gb.get("http://[fe80::a9fe:a9fe%25eth0]/"); have != "200 "+b.ID.String() {
		t.Errorf("the other guest by IPv6: %s", have)
	}
}

func TestRouterAdvertisements(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	v6 := &n.segment.Subnets[1]
	v6.RouterMAC, v6.RAMode, v6.V6Mode, v6.DHCP = "fa:16:3e:00:00:01", "slaac", "slaac", true
	v6.DNS = []netip.Addr{netip.MustParseAddr("2001:db8::53")}
	ok(t, m.EnsureSegment(ctx, n.segment))
	port := n.port()
	port.Addresses[1].Address = netip.MustParseAddr("fd05::f816:3eff:fe00:b")
	g := m.plug(port)
	// The guest's own kernel asks and configures itself.
	deadline := time.Now().Add(8 * time.Second)
	for {
		out, _ := g.run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global")
		routes, _ := g.run("ip", "-6", "route", "show", "default")
		if strings.Contains(out, "fd05::f816:3eff:fe00:b/64") && strings.Contains(routes, "via fe80::f816:3eff:fe00:1 dev eth0") && strings.Contains(routes, "mtu 1450") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest has %q and %q", out, routes)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// A changed subnet is announced at once.
	v6.RAMode, v6.V6Mode = "dhcpv6-stateful", "dhcpv6-stateful"
	var flags byte
	if !g.hears(func(frame []byte) bool {
		d, ok := parseFrame(frame)
		if !ok || d.protocol != protocolICMPv6 || d.payload[0] != routerAdvertisement {
			return false
		}
		flags = d.payload[5]
		return true
	}, time.Second, func() { ok(t, m.EnsureSegment(ctx, n.segment)) }) {
		t.Fatal("the change was not announced")
	}
	if flags != flagManaged|flagOther {
		t.Errorf("flags are %x", flags)
	}
	v6.RouterMAC = ""
	ok(t, m.EnsureSegment(ctx, n.segment))
	solicitation := icmpv6(port.MAC, "33:33:00:00:00:02", "fe80::f816:3eff:fe00:b", "ff02::2", []byte{133, 0, 0, 0, 0, 0, 0, 0})
	if g.hears(func(frame []byte) bool {
		d, ok := parseFrame(frame)
		return ok && d.protocol == protocolICMPv6 && d.payload[0] == routerAdvertisement
	},
		silence, func() { g.send(solicitation) }) {
		t.Error("a router was announced, though there is none")
	}
}

// asksDHCPv6 sends a message and gives the answer; nil if there is none.
func (g *guest) asksDHCPv6(message *dhcpv6.Message) *dhcpv6.Message {
	frame := datagram{
		fromMAC: g.mac, toMAC: net.HardwareAddr{0x33, 0x33, 0, 1, 0, 2}, from: linkLocal(g.mac), to: netip.MustParseAddr("ff02::1:2"),
		protocol: protocolUDP, fromPort: 546, toPort: 547, payload: message.ToBytes(),
	}.frame()
	var answer *dhcpv6.Message
	g.hears(func(frame []byte) bool {
		d, ok := parseFrame(frame)
		if !ok || d.toPort != 546 {
			return false
		}
		reply, err := dhcpv6.MessageFromBytes(d.payload)
		if err != nil || reply.TransactionID != message.TransactionID {
			return false
		}
		answer = reply
		return true
	}, silence, func() { g.send(frame) })
	return answer
}

func TestDHCPv6(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	v6 := &n.segment.Subnets[1]
	v6.RouterMAC, v6.RAMode, v6.V6Mode, v6.DHCP = "fa:16:3e:00:00:01", "dhcpv6-stateful", "dhcpv6-stateful", true
	v6.DNS = []netip.Addr{netip.MustParseAddr("2001:db8::53")}
	ok(t, m.EnsureSegment(ctx, n.segment))
	port := n.port()
	port.DHCPOptions = []network.DHCPOption{{Name: "bootfile-url", Value: "http://boot/", Version: 6}}
	g := m.plug(port)

	solicit := must(dhcpv6.NewSolicit(g.mac))(t)
	advertise := g.asksDHCPv6(solicit)
	if advertise == nil || advertise.Type() != dhcpv6.MessageTypeAdvertise {
		t.Fatalf("answered %v", advertise)
	}
	reply := g.asksDHCPv6(must(dhcpv6.NewRequestFromAdvertise(advertise))(t))
	if reply == nil || reply.Type() != dhcpv6.MessageTypeReply {
		t.Fatalf("answered %v", reply)
	}
	given := reply.Options.OneIANA().Options.OneAddress()
	if given == nil || given.IPv6Addr.String() != "fd05::b" || given.ValidLifetime != 24*time.Hour {
		t.Errorf("given %v", given)
	}
	if fmt.Sprint(reply.Options.DNS()) != "[2001:db8::53]" || reply.Options.BootFileURL() != "http://boot/" || reply.Options.DomainSearchList().String() != "[example.org]" {
		t.Errorf("options are %v", reply)
	}

	quick := must(dhcpv6.NewSolicit(g.mac, dhcpv6.WithRapidCommit))(t)
	if answer := g.asksDHCPv6(quick); answer == nil || answer.Type() != dhcpv6.MessageTypeReply || answer.Options.OneIANA() == nil {
		t.Errorf("to a solicit with rapid commit the answer was %v", answer)
	}
	renew := must(dhcpv6.NewRequestFromAdvertise(advertise))(t)
	renew.MessageType = dhcpv6.MessageTypeRenew
	stale := &dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("fd05::77"), PreferredLifetime: time.Hour, ValidLifetime: time.Hour}
	renew.Options.OneIANA().Options.Add(stale)
	if answer := g.asksDHCPv6(renew); answer == nil {
		t.Error("a renewal was not answered")
	} else {
		for _, addr := range answer.Options.OneIANA().Options.Addresses() {
			if (addr.ValidLifetime > 0) != (addr.IPv6Addr.String() == "fd05::b") {
				t.Errorf("renewed %v for %v", addr.IPv6Addr, addr.ValidLifetime)
			}
		}
	}
	elsewhere := must(dhcpv6.NewRequestFromAdvertise(advertise))(t)
	elsewhere.UpdateOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{1, 2, 3, 4, 5, 6}}))
	if answer := g.asksDHCPv6(elsewhere); answer != nil {
		t.Errorf("a request to another server was answered %v", answer)
	}
	information := must(dhcpv6.NewMessage())(t)
	information.MessageType = dhcpv6.MessageTypeInformationRequest
	if answer := g.asksDHCPv6(information); answer == nil || len(answer.Options.DNS()) != 1 || answer.Options.OneIANA() != nil {
		t.Errorf("to an information request the answer was %v", answer)
	}

	v6.V6Mode, v6.RAMode = "dhcpv6-stateless", "dhcpv6-stateless"
	ok(t, m.EnsureSegment(ctx, n.segment))
	if answer := g.asksDHCPv6(solicit); answer == nil || answer.Options.OneIANA().Options.Status().StatusCode != iana.StatusNoAddrsAvail {
		t.Errorf("in a stateless subnet a solicit was answered %v", answer)
	}
	v6.V6Mode, v6.RAMode = "slaac", "slaac"
	ok(t, m.EnsureSegment(ctx, n.segment))
	if answer := g.asksDHCPv6(information); answer != nil {
		t.Errorf("in a slaac subnet the answer was %v", answer)
	}
}

// TestGarbage: nothing a guest sends stops its host from answering.
func TestGarbage(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	n := newTenant(100)
	v6 := &n.segment.Subnets[1]
	v6.RouterMAC, v6.RAMode, v6.V6Mode, v6.DHCP = "fa:16:3e:00:00:01", "dhcpv6-stateful", "dhcpv6-stateful", true
	ok(t, m.EnsureSegment(ctx, n.segment))
	g := m.plug(n.port())
	for length := range 64 {
		junk := bytes.Repeat([]byte{byte(length * 37)}, length)
		g.send(udp(g.mac.String(), "ff:ff:ff:ff:ff:ff", "0.0.0.0", "255.255.255.255", 68, 67, string(junk)))
		g.send(udp(g.mac.String(), "33:33:00:01:00:02", linkLocal(g.mac).String(), "ff02::1:2", 546, 547, string(junk)))
		whole := udp(g.mac.String(), "ff:ff:ff:ff:ff:ff", "0.0.0.0", "255.255.255.255", 68, 67, string(bytes.Repeat([]byte{1}, 64)))
		g.send(whole[:14+length])
	}
	if g.asksDHCP(must(dhcpv4.NewDiscovery(g.mac))(t)) == nil || g.asksDHCPv6(must(dhcpv6.NewSolicit(g.mac))(t)) == nil {
		t.Error("no answer after garbage")
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add(udp("fa:16:3e:00:00:0b", "ff:ff:ff:ff:ff:ff", "0.0.0.0", "255.255.255.255", 68, 67, "word"))
	f.Add(icmpv6("fa:16:3e:00:00:0b", "33:33:00:00:00:02", "fe80::1", "ff02::2", []byte{133, 0, 0, 0, 0, 0, 0, 0}))
	n := newTenant(1)
	v6 := &n.segment.Subnets[1]
	v6.RouterMAC, v6.RAMode, v6.V6Mode, v6.DHCP = "fa:16:3e:00:00:01", "dhcpv6-stateful", "dhcpv6-stateful", true
	port := n.port()
	s := &segment{driver: &Driver{}, want: &n.segment, attachments: map[resource.ID]network.Attachment{port.ID: port}}
	k := s.knowledge()
	f.Fuzz(func(t *testing.T, frame []byte) {
		question, ok := parseFrame(frame)
		if !ok {
			return
		}
		if reply, ok := k.reply(port, question); ok {
			if back, ok := parseFrame(reply.frame()); !ok || back.toPort != reply.toPort {
				t.Errorf("the answer to %x is no frame", frame)
			}
		}
	})
}
