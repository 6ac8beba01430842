package linuxnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpflink "github.com/cilium/ebpf/link"
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

// turned is the frame that answers one of IPv4 and TCP, as far as the shortcut looks.
func turned(f []byte) []byte {
	b := bytes.Clone(f)
	copy(b[0:], f[6:12])
	copy(b[6:], f[0:6])
	copy(b[26:], f[30:34])
	copy(b[30:], f[26:30])
	copy(b[34:], f[36:38])
	copy(b[36:], f[34:36])
	return b
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
	cut := skb{Mark: markEstablished, Segments: 2, SegmentSize: 100}
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
		"the same again":               {learned: v4, as: established, frame: v4, taken: true},
		"IPv6":                         {learned: v6, as: established, frame: v6, taken: true},
		"UDP":                          {learned: udp4, as: established, frame: udp4, taken: true},
		"only an acknowledgement":      {learned: v4, as: established, frame: with(v4, at(tcp4+13, ack)), taken: true},
		"a shorter one":                {learned: v4, as: established, frame: tcpFrame("10.5.0.1", "10.5.0.2", ack, 10), taken: true},
		"nothing was seen":             {frame: v4},
		"what begins":                  {learned: v4, as: skb{Mark: 0x5b565700}, frame: v4},
		"what belongs to nothing":      {learned: v4, as: skb{Mark: markInvalid}, frame: v4},
		"what the host itself sent":    {learned: v4, as: skb{Mark: markEstablished, Ingress: 1}, by: -1, frame: v4},
		"by another port":              {learned: v4, as: established, by: 1, frame: v4},
		"rules have changed":           {learned: v4, as: established, then: func(c *shortcut) { ok(t, c.forget()) }, frame: v4},
		"a second later":               {learned: v4, as: established, then: func(*shortcut) { time.Sleep(1100 * time.Millisecond) }, frame: v4},
		"a longer one":                 {learned: v4, as: established, frame: tcpFrame("10.5.0.1", "10.5.0.2", ack, 101)},
		"another sender's hardware":    {learned: v4, as: established, frame: with(v4, at(6+5, 9))},
		"another receiver's hardware":  {learned: v4, as: established, frame: with(v4, at(5, 9))},
		"to a group":                   {learned: with(v4, at(0, 0xff)), as: established, frame: with(v4, at(0, 0xff))},
		"another sender":               {learned: v4, as: established, frame: with(v4, at(ip+12+3, 9))},
		"another receiver":             {learned: v4, as: established, frame: with(v4, at(ip+16+3, 9))},
		"another sender, IPv6":         {learned: v6, as: established, frame: with(v6, at(ip+8+15, 9))},
		"another receiver, IPv6":       {learned: v6, as: established, frame: with(v6, at(ip+24+15, 9))},
		"from another TCP port":        {learned: v4, as: established, frame: with(v4, at(tcp4+1, 9))},
		"to another TCP port":          {learned: v4, as: established, frame: with(v4, at(tcp4+3, 9))},
		"to another TCP port, IPv6":    {learned: v6, as: established, frame: with(v6, at(tcp6+3, 9))},
		"as if it were UDP":            {learned: v4, as: established, frame: with(v4, at(ip+9, unix.IPPROTO_UDP))},
		"SYN":                          {learned: v4, as: established, frame: with(v4, at(tcp4+13, syn))},
		"SYN and ACK":                  {learned: v4, as: established, frame: with(v4, at(tcp4+13, syn|ack))},
		"FIN":                          {learned: v4, as: established, frame: with(v4, at(tcp4+13, fin|ack))},
		"RST":                          {learned: v4, as: established, frame: with(v4, at(tcp4+13, rst|ack))},
		"RST, IPv6":                    {learned: v6, as: established, frame: with(v6, at(tcp6+13, rst|ack))},
		"URG":                          {learned: v4, as: established, frame: with(v4, at(tcp4+13, urg|ack))},
		"no ACK":                       {learned: v4, as: established, frame: with(v4, at(tcp4+13, psh))},
		"the first of fragments":       {learned: v4, as: established, frame: with(v4, at(ip+6, 0x20))},
		"a later fragment":             {learned: v4, as: established, frame: with(v4, at(ip+7, 8))},
		"options":                      {learned: v4, as: established, frame: with(v4, at(ip, 0x46))},
		"an extension header":          {learned: v6, as: established, frame: with(v6, at(ip+6, 0))},
		"another version in IPv4":      {learned: v4, as: established, frame: with(v4, at(ip, 0x65))},
		"another version in IPv6":      {learned: v6, as: established, frame: with(v6, at(ip, 0x40))},
		"a tag":                        {learned: v4, as: established, frame: tagged(v4)},
		"ARP":                          {learned: with(v4, at(12, 8, 6)), as: established, frame: with(v4, at(12, 8, 6))},
		"shorter than it says":         {learned: v4, as: established, frame: v4[:len(v4)-1]},
		"shorter than it says, IPv6":   {learned: v6, as: established, frame: v6[:len(v6)-1]},
		"a TCP header too short":       {learned: v4, as: established, frame: with(v4, at(tcp4+12, 4<<4))},
		"cut off in the TCP header":    {learned: v4, as: established, frame: v4[:tcp4+19]},
		"a TCP header past the end":    {learned: v4, as: established, frame: with(tcpFrame("10.5.0.1", "10.5.0.2", ack, 39), at(tcp4+12, 15<<4))},
		"a TCP header at the end":      {learned: v4, as: established, frame: with(tcpFrame("10.5.0.1", "10.5.0.2", ack, 40), at(tcp4+12, 15<<4)), taken: true},
		"less than its headers":        {learned: v4, as: established, frame: with(v4, at(ip+2, 0, 39))},
		"its headers alone":            {learned: v4, as: established, frame: with(v4, at(ip+2, 0, 40)), taken: true},
		"less than its headers, IPv6":  {learned: v6, as: established, frame: with(v6, at(ip+4, 0, 19))},
		"its headers alone, IPv6":      {learned: v6, as: established, frame: with(v6, at(ip+4, 0, 20)), taken: true},
		"UDP less than its header":     {learned: udp4, as: established, frame: with(udp4, at(tcp4+4, 0, 7))},
		"UDP past the end":             {learned: udp4, as: established, frame: with(udp4, at(tcp4+4, 0, 17))},
		"longer segments than seen":    {learned: v4, as: cut, frame: v4, is: skb{Segments: 2, SegmentSize: 101}},
		"segments as long as seen":     {learned: v4, as: cut, frame: v4, is: skb{Segments: 2, SegmentSize: 100}, taken: true},
		"a packet where segments were": {learned: v4, as: cut, frame: v4},
		"segments where packets were":  {learned: v4, as: established, frame: v4, is: skb{Segments: 2, SegmentSize: 10}},
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
	// What begins or ends a connection has the next of either side go the long way.
	for name, flags := range map[string]byte{"SYN": syn, "FIN": fin | ack, "RST": rst, "RST and ACK": rst | ack} {
		t.Run("after "+name, func(t *testing.T) {
			c := must(newShortcut())(t)
			defer c.close()
			run := func(p *ebpf.Program, frame []byte, as skb) (answer uint32) {
				t.Helper()
				ok(t, ns.do(func() (err error) { answer, err = p.Run(&ebpf.RunOptions{Data: frame, Context: as}); return err }))
				return answer
			}
			forth, back, other := v4, turned(v4), with(v4, at(tcp4+1, 9))
			run(c.Learn, forth, skb{Mark: markEstablished, Ingress: ports[0], Index: ports[1]})
			run(c.Learn, other, skb{Mark: markEstablished, Ingress: ports[0], Index: ports[1]})
			run(c.Learn, back, skb{Mark: markEstablished, Ingress: ports[1], Index: ports[0]})
			if f, b := run(c.Take, forth, skb{Index: ports[0]}), run(c.Take, back, skb{Index: ports[1]}); f != redirected || b != redirected {
				t.Fatalf("before: %d and %d", f, b)
			}
			run(c.Take, with(forth, at(tcp4+13, flags)), skb{Index: ports[0]})
			if f, b := run(c.Take, forth, skb{Index: ports[0]}), run(c.Take, back, skb{Index: ports[1]}); f != unspecified || b != unspecified {
				t.Errorf("after: %d and %d", f, b)
			}
			if o := run(c.Take, other, skb{Index: ports[0]}); o != redirected {
				t.Errorf("another connection: %d", o)
			}
		})
	}
	// The kernel may give an entry to another flow while it is read: no byte of it is believed without the others.
	t.Run("half another's", func(t *testing.T) {
		var all struct {
			Take  *ebpf.Program `ebpf:"unkai_take"`
			Learn *ebpf.Program `ebpf:"unkai_learn"`
			Ways  *ebpf.Map     `ebpf:"ways"`
		}
		ok(t, must(shortcutSpec())(t).LoadAndAssign(&all, nil))
		defer all.Take.Close()
		defer all.Learn.Close()
		defer all.Ways.Close()
		run := func(p *ebpf.Program, as skb) (answer uint32) {
			t.Helper()
			ok(t, ns.do(func() (err error) { answer, err = p.Run(&ebpf.RunOptions{Data: v4, Context: as}); return err }))
			return answer
		}
		learn := func() (key, value []byte) {
			t.Helper()
			run(all.Learn, skb{Mark: markEstablished, Ingress: ports[0], Index: ports[1]})
			entries := all.Ways.Iterate()
			if !entries.Next(&key, &value) {
				t.Fatal("nothing was learned", entries.Err())
			}
			return key, value
		}
		_, value := learn()
		for i := range value {
			key, value := learn()
			if answer := run(all.Take, skb{Index: ports[0]}); answer != redirected {
				t.Fatalf("before byte %d: %d", i, answer)
			}
			value[i] ^= 1
			ok(t, all.Ways.Put(key, value))
			if answer := run(all.Take, skb{Index: ports[0]}); answer != unspecified {
				t.Errorf("byte %d: %d", i, answer)
			}
			ok(t, all.Ways.Delete(key))
		}
	})
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

// A pair is two guests of one network that may speak with each other: the second is an echo service.
type pair struct {
	probe
	n      *tenant
	a, b   network.Attachment
	ga, gb *guest
}

func pairOf(t testing.TB, m *machine) pair {
	t.Helper()
	ctx := context.Background()
	p := pair{n: newTenant(100)}
	group := outgoing(rule(true, false), rule(true, true))
	ok(t, m.EnsureFilter(ctx, group))
	ok(t, m.EnsureSegment(ctx, p.n.segment))
	p.a, p.b = p.n.port(group.ID), p.n.port(group.ID)
	p.ga, p.gb = m.plug(p.a, static(p.a)...), m.plug(p.b, static(p.b)...)
	for _, g := range []*guest{p.ga, p.gb} {
		ok(t, g.LinkSetMTU(g.eth0, p.n.segment.MTU))
	}
	echo(t, p.gb.namespace, 80)
	p.probe = probeOf(t, m, p.n.segment.ID)
	return p
}

// connect has the first guest connect with the second, by IPv4 if nothing else is said.
func (p pair) connect(address ...string) net.Conn {
	p.t.Helper()
	to := append(address, p.b.Addresses[0].Address.String())[0]
	conn := p.ga.connect(to + ":80")
	if conn == nil {
		p.t.Fatalf("%s is not reached", to)
	}
	p.t.Cleanup(func() { conn.Close() })
	lineFrom(conn)
	return conn
}

// seen says how many packets of so many words, and as many answers, bridge and filter see.
func (p pair) seen(conn net.Conn, words int) int {
	p.t.Helper()
	before := p.count()
	for range words {
		if !echoes(conn) {
			p.t.Fatal("the connection broke")
		}
	}
	return p.count() - before
}

// A connection's packets go past bridge and filter, and the filter says how long they may.
func TestShortcut(t *testing.T) {
	for name, way := range map[string]struct{ long bool }{"short": {}, "long": {long: true}} {
		t.Run(name, func(t *testing.T) {
			m := shortened(t, func(o *Options) { o.LongWay = way.long })
			p := pairOf(t, m)
			const words = 200
			for _, address := range []string{p.b.Addresses[0].Address.String(), "[" + p.b.Addresses[1].Address.String() + "]"} {
				conn, began := p.connect(address), time.Now()
				seen := p.seen(conn, words)
				// One a second and direction, and a few at the beginning.
				most := 10 + 4*int(time.Since(began).Seconds())
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

// Tracking does not see all packets of a connection, and must judge neither it by that nor how long it may rest.
func TestTrackingOfWhatTakesTheShortcut(t *testing.T) {
	for name, way := range map[string]struct{ long bool }{"short": {}, "long": {long: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			m := shortened(t, func(o *Options) { o.LongWay = way.long })
			p := pairOf(t, m)
			conn := p.connect()
			tracked := func() *netlink.ConntrackFlow {
				t.Helper()
				for _, flow := range must(p.ns.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET))(t) {
					if flow.Forward.DstPort == 80 && flow.Forward.SrcPort == uint16(conn.LocalAddr().(*net.TCPAddr).Port) {
						return flow
					}
				}
				return nil
			}
			transfer := func() {
				t.Helper()
				go conn.Write(make([]byte, 4<<20))
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				_, err := io.CopyN(io.Discard, conn, 4<<20)
				ok(t, err)
			}
			const days = 24 * 3600
			for range 2 {
				transfer()
				time.Sleep(1500 * time.Millisecond)
				if !echoes(conn) { // the first after a while, which tracking sees
					t.Fatal("the connection broke")
				}
				time.Sleep(silence) // until the answer is acknowledged
				if is := tracked(); is == nil || is.TimeOut < 4*days {
					t.Errorf("it is forgotten when it rests: %+v", is)
				}
			}
			// A reset whose number is not due is the receiver's to judge where tracking cannot know which are.
			var last []byte
			if !p.gb.hears(func(frame []byte) bool { last = frame; return bytes.Contains(frame, []byte("captured")) }, silence, func() { conn.Write([]byte("captured")) }) {
				t.Fatal("no packet of the connection is heard")
			}
			header := bytes.Clone(last[34:54])
			binary.BigEndian.PutUint32(header[4:], binary.BigEndian.Uint32(header[4:])-1<<30)
			header[12], header[13] = 5<<4, 0x14 // RST, ACK
			reset := datagram{
				fromMAC: p.ga.mac, toMAC: p.gb.mac, from: p.a.Addresses[0].Address, to: p.b.Addresses[0].Address, protocol: protocolTCP, payload: header,
			}.frame()
			arrived := p.gb.hears(func(frame []byte) bool { return len(frame) > 47 && frame[23] == protocolTCP && frame[47]&4 != 0 }, silence, func() { p.ga.send(reset) })
			if arrived == way.long {
				t.Errorf("a reset that is not due arrived: %v", arrived)
			}
			lineFrom(conn) // what was said to capture it comes back
			if !echoes(conn) {
				t.Error("the connection broke by it")
			}
			time.Sleep(silence)
			if is := tracked(); is == nil || is.TimeOut < 4*days {
				t.Errorf("it is forgotten for it: %+v", is)
			}
			// An end is an end.
			ok(t, conn.(*net.TCPConn).SetLinger(0))
			conn.Close()
			for end := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				is := tracked()
				if is == nil || is.TimeOut <= 10 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("it has been reset, and stays: %+v", is)
				}
			}
		})
	}
}

// A port that cannot have the programs goes the long way, and has them when it is looked at again.
func TestAPortThatCouldNotHaveTheShortcut(t *testing.T) {
	m := shortened(t)
	if !m.express {
		t.Skip("what fills a port are programs of tcx")
	}
	ctx := context.Background()
	p := pairOf(t, m)
	seen := func() int { t.Helper(); return p.seen(p.connect(), 100) }
	if all := seen(); all > 20 {
		t.Fatalf("the filter saw %d packets", all)
	}
	tap := must(p.ns.LinkByName(tapName(p.a.ID)))(t)
	ok(t, (*shortcut)(nil).attach(p.ns, tap, true))
	var fillers []*ebpf.Program
	for { // as many as the kernel takes
		one := must(ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "Apache-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
		}))(t)
		defer one.Close()
		if p.ns.do(func() error {
			return bpflink.RawAttachProgram(bpflink.RawAttachProgramOptions{Target: tap.Attrs().Index, Program: one, Attach: ebpf.AttachTCXIngress})
		}) != nil {
			break
		}
		fillers = append(fillers, one)
	}
	m.restart()
	ok(t, m.EnsureSegment(ctx, p.n.segment))
	if all := seen(); all < 100 {
		t.Errorf("without a program on one port the filter saw %d packets", all)
	}
	ok(t, p.ns.do(func() error {
		return bpflink.RawDetachProgram(bpflink.RawDetachProgramOptions{Target: tap.Attrs().Index, Program: fillers[0], Attach: ebpf.AttachTCXIngress})
	}))
	ok(t, m.EnsureSegment(ctx, p.n.segment))
	if all := seen(); all > 20 {
		t.Errorf("it is tried again: the filter saw %d packets", all)
	}
}

// What an earlier process left hears of nothing that changes: it is gone before anything does, also if the rest fails.
func TestTheFirstLookThatFails(t *testing.T) {
	m := shortened(t)
	if !m.express {
		t.Skip("programs are listed by tcx")
	}
	ctx := context.Background()
	n := newTenant(100)
	group := outgoing()
	ok(t, m.EnsureFilter(ctx, group))
	ok(t, m.EnsureSegment(ctx, n.segment))
	a := n.port(group.ID)
	m.plug(a, static(a)...)
	ns := must(openNamespace(netnsDir + "/" + m.options.Prefix + "-s-" + n.segment.ID.String()))(t)
	defer ns.close()
	tap := must(ns.LinkByName(tapName(a.ID)))(t).Attrs().Index
	programs := func() (ids []ebpf.ProgramID) {
		t.Helper()
		for _, side := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			ok(t, ns.do(func() error {
				there, err := bpflink.QueryPrograms(bpflink.QueryOptions{Target: tap, Attach: side})
				if err != nil {
					return err
				}
				for _, one := range there.Programs {
					ids = append(ids, one.ID)
				}
				return nil
			}))
		}
		return ids
	}
	before := programs()
	if len(before) != 2 {
		t.Fatalf("programs: %v", before)
	}
	m.restart()
	broken := n.segment
	broken.MTU = 1 << 20
	if err := m.EnsureSegment(ctx, broken); err == nil {
		t.Fatal("what was to fail did not")
	}
	after := programs()
	if len(after) != 2 || slices.Contains(before, after[0]) || slices.Contains(before, after[1]) {
		t.Errorf("the programs were %v and are %v", before, after)
	}
	ok(t, m.EnsureSegment(ctx, n.segment))
	if again := programs(); !slices.Equal(after, again) {
		t.Errorf("the programs were %v and are %v, of one process", after, again)
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
			p := pairOf(t, m)
			conn := p.connect()
			seen := func() int { t.Helper(); return p.seen(conn, 100) }
			if all := seen(); all > 20 {
				t.Errorf("the filter saw %d packets", all)
			}
			for _, long := range []bool{false, true, false} {
				m.options.LongWay = long
				m.restart()
				m.express = express
				ok(t, m.EnsureSegment(ctx, p.n.segment))
				if all := seen(); (all <= 20) == long {
					t.Errorf("a new process, the long way: %v: the filter saw %d packets", long, all)
				}
				out, err := runIn(p.ns, "tc", "filter", "show", "dev", tapName(p.a.ID), "ingress")
				ok(t, err)
				if there := len(out) > 0; there != (!express && !long) {
					t.Errorf("the long way: %v: classifiers: %q", long, out)
				}
			}
		})
	}
}
