package linuxnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// What is committed was made of what is beside it.
func TestShortcutIsMadeOfItsSource(t *testing.T) {
	source := must(os.ReadFile("shortcut.c"))(t)
	object := must(elf.NewFile(bytes.NewReader(shortcutObject)))(t)
	digest := sha256.Sum256(source)
	made := must(object.Section(".source").Data())(t)
	if is := hex.EncodeToString(digest[:]); is+"\x00" != string(made) {
		t.Errorf("shortcut.o was made of another shortcut.c: make shortcut")
	}
}

// shortened makes a machine whose kernel has what it takes.
func shortened(t *testing.T, change ...func(*Options)) *machine {
	t.Helper()
	m := newMachine(t, change...)
	if !m.options.LongWay && !m.shortcuts {
		t.Skip("the kernel has no shortcut")
	}
	return m
}

// A tc program's answers (linux/pkt_cls.h).
const (
	unspecified = 0xffffffff
	redirected  = 7
)

// skb is what a program sees of a packet beside its bytes, as a test gives it (struct __sk_buff of linux/bpf.h).
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority, Ingress, Index, TCIndex uint32
	CB                                                                                                             [5]uint32
	Hash, Class, Data, DataEnd, NAPI, Family, RemoteV4, LocalV4                                                    uint32
	RemoteV6, LocalV6                                                                                              [4]uint32
	RemotePort, LocalPort, DataMeta                                                                                uint32
	Flow, Time                                                                                                     uint64
	WireLen, Segments                                                                                              uint32
	Socket                                                                                                         uint64
	SegmentSize, _                                                                                                 uint32
	HardwareTime                                                                                                   uint64
}

// tcpFrame is a TCP segment's frame.
func tcpFrame(from, to string, flags byte, length int) []byte {
	header := make([]byte, 20+length)
	binary.BigEndian.PutUint16(header[0:], 4000)
	binary.BigEndian.PutUint16(header[2:], 80)
	header[12], header[13] = 5<<4, flags
	return datagram{
		fromMAC: net.HardwareAddr{0xfa, 0x16, 0x3e, 0, 0, 1}, toMAC: net.HardwareAddr{0xfa, 0x16, 0x3e, 0, 0, 2},
		from: netip.MustParseAddr(from), to: netip.MustParseAddr(to), protocol: protocolTCP, payload: header,
	}.frame()
}

// What was let through once takes the shortcut, and nothing else.
func TestWhatTakesTheShortcut(t *testing.T) {
	m := shortened(t)
	const ack, psh, syn, fin, rst, urg = 0x10, 0x08, 0x02, 0x01, 0x04, 0x20
	v4 := tcpFrame("10.5.0.1", "10.5.0.2", ack|psh, 100)
	v6 := tcpFrame("fd05::1", "fd05::2", ack, 100)
	udp4 := udp("fa:16:3e:00:00:01", "fa:16:3e:00:00:02", "10.5.0.1", "10.5.0.2", 5000, 53, "question")
	with := func(frame []byte, change func(f []byte)) []byte {
		frame = bytes.Clone(frame)
		change(frame)
		return frame
	}
	at := func(offset int, value ...byte) func([]byte) { return func(f []byte) { copy(f[offset:], value) } }
	const ip, tcp4, tcp6 = 14, 34, 54
	established := skb{Mark: markEstablished}
	var ports []uint32
	ns := must(openNamespace(netnsDir + "/" + m.host))(t)
	defer ns.close()
	for _, name := range []string{"one", "two"} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		ok(t, ns.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}))
		link := must(ns.LinkByName(name))(t)
		ok(t, ns.LinkSetUp(link))
		ports = append(ports, uint32(link.Attrs().Index))
	}
	for name, test := range map[string]struct {
		learned []byte
		as      skb
		then    func(*shortcut) // between the two
		by      int             // the port that it came in by first
		frame   []byte
		is      skb
		taken   bool
	}{
		"the same again":              {learned: v4, as: established, frame: v4, taken: true},
		"IPv6":                        {learned: v6, as: established, frame: v6, taken: true},
		"UDP":                         {learned: udp4, as: established, frame: udp4, taken: true},
		"only an acknowledgement":     {learned: v4, as: established, frame: with(v4, at(tcp4+13, ack)), taken: true},
		"a shorter one":               {learned: v4, as: established, frame: tcpFrame("10.5.0.1", "10.5.0.2", ack, 10), taken: true},
		"nothing was seen":            {frame: v4},
		"what begins":                 {learned: v4, as: skb{Mark: 0x5b565700}, frame: v4},
		"what belongs to nothing":     {learned: v4, as: skb{Mark: markInvalid}, frame: v4},
		"what the host itself sent":   {learned: v4, as: skb{Mark: markEstablished, Ingress: 1}, by: -1, frame: v4},
		"by another port":             {learned: v4, as: established, by: 1, frame: v4},
		"rules have changed":          {learned: v4, as: established, then: func(c *shortcut) { ok(t, c.forget()) }, frame: v4},
		"a second later":              {learned: v4, as: established, then: func(*shortcut) { time.Sleep(1100 * time.Millisecond) }, frame: v4},
		"a longer one":                {learned: v4, as: established, frame: tcpFrame("10.5.0.1", "10.5.0.2", ack, 101)},
		"another sender's hardware":   {learned: v4, as: established, frame: with(v4, at(6+5, 9))},
		"another receiver's hardware": {learned: v4, as: established, frame: with(v4, at(5, 9))},
		"to a group":                  {learned: with(v4, at(0, 0xff)), as: established, frame: with(v4, at(0, 0xff))},
		"another sender":              {learned: v4, as: established, frame: with(v4, at(ip+12+3, 9))},
		"another receiver":            {learned: v4, as: established, frame: with(v4, at(ip+16+3, 9))},
		"another sender, IPv6":        {learned: v6, as: established, frame: with(v6, at(ip+8+15, 9))},
		"another receiver, IPv6":      {learned: v6, as: established, frame: with(v6, at(ip+24+15, 9))},
		"from another TCP port":       {learned: v4, as: established, frame: with(v4, at(tcp4+1, 9))},
		"to another TCP port":         {learned: v4, as: established, frame: with(v4, at(tcp4+3, 9))},
		"to another TCP port, IPv6":   {learned: v6, as: established, frame: with(v6, at(tcp6+3, 9))},
		"as if it were UDP":           {learned: v4, as: established, frame: with(v4, at(ip+9, unix.IPPROTO_UDP))},
		"SYN":                         {learned: v4, as: established, frame: with(v4, at(tcp4+13, syn))},
		"SYN and ACK":                 {learned: v4, as: established, frame: with(v4, at(tcp4+13, syn|ack))},
		"FIN":                         {learned: v4, as: established, frame: with(v4, at(tcp4+13, fin|ack))},
		"RST":                         {learned: v4, as: established, frame: with(v4, at(tcp4+13, rst|ack))},
		"RST, IPv6":                   {learned: v6, as: established, frame: with(v6, at(tcp6+13, rst|ack))},
		"URG":                         {learned: v4, as: established, frame: with(v4, at(tcp4+13, urg|ack))},
		"no ACK":                      {learned: v4, as: established, frame: with(v4, at(tcp4+13, psh))},
		"the first of fragments":      {learned: v4, as: established, frame: with(v4, at(ip+6, 0x20))},
		"a later fragment":            {learned: v4, as: established, frame: with(v4, at(ip+7, 8))},
		"options":                     {learned: v4, as: established, frame: with(v4, at(ip, 0x46))},
		"an extension header":         {learned: v6, as: established, frame: with(v6, at(ip+6, 0))},
		"another version in IPv4":     {learned: v4, as: established, frame: with(v4, at(ip, 0x65))},
		"another version in IPv6":     {learned: v6, as: established, frame: with(v6, at(ip, 0x40))},
		"a tag":                       {learned: v4, as: established, frame: tagged(v4)},
		"ARP":                         {learned: with(v4, at(12, 8, 6)), as: established, frame: with(v4, at(12, 8, 6))},
		"shorter than it says":        {learned: v4, as: established, frame: v4[:len(v4)-1]},
		"shorter than it says, IPv6":  {learned: v6, as: established, frame: v6[:len(v6)-1]},
		"a TCP header too short":      {learned: v4, as: established, frame: with(v4, at(tcp4+12, 4<<4))},
		"cut off in the TCP header":   {learned: v4, as: established, frame: v4[:tcp4+19]},
		"longer segments than seen":   {learned: v4, as: established, frame: v4, is: skb{Segments: 2, SegmentSize: 101}},
		"segments as long as seen":    {learned: v4, as: established, frame: v4, is: skb{Segments: 2, SegmentSize: 100}, taken: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := must(newShortcut())(t)
			defer c.close()
			run := func(p *ebpf.Program, frame []byte, as skb) uint32 {
				t.Helper()
				var answer uint32
				ok(t, ns.do(func() (err error) { answer, err = p.Run(&ebpf.RunOptions{Data: frame, Context: as}); return err }))
				return answer
			}
			if test.learned != nil {
				test.as.Index, test.as.Ingress = ports[1], ports[0]
				switch test.by {
				case 1:
					test.as.Ingress = ports[1]
				case -1:
					test.as.Ingress = 0
				}
				if answer := run(c.Learn, test.learned, test.as); answer != unspecified {
					t.Fatalf("what is let out is stopped: %d", answer)
				}
			}
			if test.then != nil {
				test.then(c)
			}
			test.is.Index = ports[0]
			if answer := run(c.Take, test.frame, test.is); answer != redirected && answer != unspecified || (answer == redirected) != test.taken {
				t.Errorf("the answer is %d", answer)
			}
		})
	}
	t.Run("flooded", func(t *testing.T) {
		run := func(p *ebpf.Program, as skb) (answer uint32) {
			t.Helper()
			ok(t, ns.do(func() (err error) { answer, err = p.Run(&ebpf.RunOptions{Data: v4, Context: as}); return err }))
			return answer
		}
		c := must(newShortcut())(t)
		defer c.close()
		for range 3 {
			for _, out := range ports {
				run(c.Learn, skb{Mark: markEstablished, Ingress: ports[0], Index: out})
			}
		}
		if answer := run(c.Take, skb{Index: ports[0]}); answer != unspecified {
			t.Errorf("what is sent to several is sent to one: %d", answer)
		}
	})
	t.Run("what came in before a change", func(t *testing.T) {
		c := must(newShortcut())(t)
		defer c.close()
		ok(t, c.forget())
		ok(t, ns.do(func() error {
			_, err := c.Learn.Run(&ebpf.RunOptions{Data: v4, Context: skb{Mark: markEstablished, Ingress: ports[0], Index: ports[1]}})
			return err
		}))
		var answer uint32
		ok(t, ns.do(func() (err error) {
			answer, err = c.Take.Run(&ebpf.RunOptions{Data: v4, Context: skb{Index: ports[0]}})
			return err
		}))
		if answer != unspecified {
			t.Errorf("it is learned from: %d", answer)
		}
	})
}

// A probe counts what a network's bridge forwards, or drops it, behind the driver's back.
type probe struct {
	t  testing.TB
	ns *namespace
}

func probeOf(t testing.TB, m *machine, id resource.ID) probe {
	t.Helper()
	ns := must(openNamespace(netnsDir + "/" + m.options.Prefix + "-s-" + id.String()))(t)
	t.Cleanup(ns.close)
	p := probe{t, ns}
	p.rule("counter")
	return p
}

func (p probe) rule(what string) {
	p.t.Helper()
	ok(p.t, p.ns.nft(context.Background(), removeTable("bridge", "probe")+fmt.Sprintf(
		"table bridge probe {\nchain forwarding {\ntype filter hook forward priority filter - 1; policy accept;\nmeta l4proto { tcp, udp } %s\n}\n}\n", what)))
}

var packetsCounted = regexp.MustCompile(`packets (\d+)`)

func (p probe) count() int {
	p.t.Helper()
	out, err := runIn(p.ns, "nft", "list", "table", "bridge", "probe")
	ok(p.t, err)
	return must(strconv.Atoi(packetsCounted.FindStringSubmatch(out)[1]))(p.t)
}

// A connection's packets go past bridge and filter, and the filter says how long they may.
func TestShortcut(t *testing.T) {
	for name, way := range map[string]struct{ long bool }{"short": {}, "long": {long: true}} {
		t.Run(name, func(t *testing.T) {
			m := shortened(t, func(o *Options) { o.LongWay = way.long })
			ctx := context.Background()
			n := newTenant(100)
			group := outgoing(rule(true, false), rule(true, true))
			ok(t, m.EnsureFilter(ctx, group))
			ok(t, m.EnsureSegment(ctx, n.segment))
			a, b := n.port(group.ID), n.port(group.ID)
			ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
			echo(t, gb.namespace, 80)
			p := probeOf(t, m, n.segment.ID)
			const words = 200
			for _, address := range []string{b.Addresses[0].Address.String(), "[" + b.Addresses[1].Address.String() + "]"} {
				conn := ga.connect(address + ":80")
				if conn == nil {
					t.Fatalf("%s is not reached", address)
				}
				defer conn.Close()
				lineFrom(conn)
				before, began := p.count(), time.Now()
				for range words {
					if !echoes(conn) {
						t.Fatalf("%s: the connection broke", address)
					}
				}
				// One a second and direction, and a few at the beginning.
				seen, most := p.count()-before, 10+4*int(time.Since(began).Seconds())
				if short := seen <= most; short == way.long {
					t.Errorf("%s: bridge and filter saw %d packets of %d words and as many answers", address, seen, words)
				}
				if way.long {
					continue
				}
				p.rule("drop")
				if !echoes(conn) {
					t.Errorf("%s: the connection did not go past the filter", address)
				}
				for end := time.Now().Add(3 * time.Second); echoes(conn); {
					if time.Now().After(end) {
						t.Fatalf("%s: the filter was not asked again", address)
					}
				}
				p.rule("counter")
			}
		})
	}
}

// When a call returns that leaves a connection no way, none of its packets takes the shortcut: rules, addresses, ports and networks that go.
func TestTheShortcutEndsWithItsReason(t *testing.T) {
	m := shortened(t)
	ctx := context.Background()
	n := newTenant(100)
	group, own := outgoing(rule(true, false), rule(true, true)), outgoing()
	ok(t, m.EnsureFilter(ctx, group))
	ok(t, m.EnsureFilter(ctx, own))
	ok(t, m.EnsureSegment(ctx, n.segment))
	a, b := n.port(own.ID), n.port(group.ID)
	ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
	echo(t, gb.namespace, 80)
	local := must(net.ParseMAC(b.MAC))(t)
	for name, change := range map[string]struct{ undo, do func() error }{
		"its rule":            {func() error { return m.EnsureFilter(ctx, group) }, func() error { f := group; f.Rules = outgoing().Rules; return m.EnsureFilter(ctx, f) }},
		"its group":           {func() error { _, err := m.EnsureAttachment(ctx, b); return err }, func() error { p := b; p.Groups = nil; _, err := m.EnsureAttachment(ctx, p); return err }},
		"its sender is off":   {func() error { _, err := m.EnsureAttachment(ctx, a); return err }, func() error { p := a; p.AdminUp = false; _, err := m.EnsureAttachment(ctx, p); return err }},
		"its receiver is off": {func() error { _, err := m.EnsureAttachment(ctx, b); return err }, func() error { p := b; p.AdminUp = false; _, err := m.EnsureAttachment(ctx, p); return err }},
		"the address goes":    {func() error { _, err := m.EnsureAttachment(ctx, a); return err }, func() error { p := a; p.Addresses = p.Addresses[1:]; _, err := m.EnsureAttachment(ctx, p); return err }},
		"the network goes":    {func() error { return m.EnsureSegment(ctx, n.segment) }, func() error { return m.Remove(ctx, network.Thing{Kind: segmentKind, ID: n.segment.ID}) }},
	} {
		conn := ga.connect(b.Addresses[0].Address.String() + ":80")
		for end := time.Now().Add(5 * time.Second); conn == nil && time.Now().Before(end); {
			conn = ga.connect(b.Addresses[0].Address.String() + ":80")
		}
		if conn == nil {
			t.Fatalf("%s: not connected", name)
		}
		lineFrom(conn)
		for range 20 {
			if !echoes(conn) {
				t.Fatalf("%s: it broke at once", name)
			}
		}
		word := 0
		arrives := func() bool {
			word++
			said := fmt.Sprintf("%s, word %d", name, word)
			return gb.hears(func(frame []byte) bool { return bytes.Equal(frame[:6], local) && bytes.Contains(frame, []byte(said)) }, silence,
				func() { conn.Write([]byte(said)) })
		}
		if !arrives() {
			t.Errorf("%s: what is looked for is not seen before either", name)
		}
		ok(t, change.do())
		if arrives() {
			t.Errorf("%s: a packet took the shortcut afterwards", name)
		}
		ok(t, conn.(*net.TCPConn).SetLinger(0)) // or it would say its last word again
		conn.Close()
		ok(t, change.undo())
	}
}

// A process that begins anew puts its programs in the place of those that it finds, or takes them away; either way of putting them there does.
func TestShortcutsOfAnEarlierProcess(t *testing.T) {
	for name, express := range map[string]bool{"express": true, "classifiers": false} {
		t.Run(name, func(t *testing.T) {
			m := shortened(t)
			if express && !m.express {
				t.Skip("the kernel has no tcx")
			}
			m.express = express
			ctx := context.Background()
			n := newTenant(100)
			group := outgoing(rule(true, false), rule(true, true))
			ok(t, m.EnsureFilter(ctx, group))
			ok(t, m.EnsureSegment(ctx, n.segment))
			a, b := n.port(group.ID), n.port(group.ID)
			ga, gb := m.plug(a, static(a)...), m.plug(b, static(b)...)
			echo(t, gb.namespace, 80)
			p := probeOf(t, m, n.segment.ID)
			conn := ga.connect(b.Addresses[0].Address.String() + ":80")
			if conn == nil {
				t.Fatal("not connected")
			}
			defer conn.Close()
			lineFrom(conn)
			const words = 100
			seen := func() int {
				t.Helper()
				before := p.count()
				for range words {
					if !echoes(conn) {
						t.Fatal("the connection broke")
					}
				}
				return p.count() - before
			}
			if all := seen(); all > 20 {
				t.Errorf("the filter saw %d packets", all)
			}
			for _, long := range []bool{false, true, false} {
				m.options.LongWay = long
				m.restart()
				m.express = express
				ok(t, m.EnsureSegment(ctx, n.segment))
				if all := seen(); (all <= 20) == long {
					t.Errorf("a new process, the long way: %v: the filter saw %d packets", long, all)
				}
				out, err := runIn(p.ns, "tc", "filter", "show", "dev", tapName(a.ID), "ingress")
				ok(t, err)
				if there := len(out) > 0; there != (!express && !long) {
					t.Errorf("the long way: %v: classifiers: %q", long, out)
				}
			}
		})
	}
}
