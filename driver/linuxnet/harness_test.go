package linuxnet

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A machine is a host for tests: a driver whose "host's own" namespace is one
// made for the test, and guests plugged into its taps.
type machine struct {
	*Driver
	t       testing.TB
	options Options
	host    string // the name of its namespace
}

// newMachine makes a machine that leaves nothing behind, and checks that.
func newMachine(t testing.TB, change ...func(*Options)) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	var random [2]byte
	rand.Read(random[:])
	prefix := "t" + hex.EncodeToString(random[:])
	m := &machine{t: t, host: prefix + "-host"}
	ns, _, err := makeNamespace(m.host)
	if err != nil {
		t.Fatal(err)
	}
	ns.close()
	m.options = Options{
		Prefix: prefix, StateDir: t.TempDir(), HostNetns: netnsDir + "/" + m.host,
		Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}
	for _, f := range change {
		f(&m.options)
	}
	m.open()
	t.Cleanup(m.check)
	return m
}

type testLog struct{ t testing.TB }

func (l testLog) Write(line []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

func (m *machine) open() {
	m.t.Helper()
	driver, err := New(m.options)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Driver = driver
}

// restart ends the driver and starts another in its place.
func (m *machine) restart() {
	m.t.Helper()
	if err := m.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
}

// check removes everything and looks for what is left.
func (m *machine) check() {
	if err := m.RemoveAll(context.Background()); err != nil {
		m.t.Error(err)
	}
	if left, err := m.Present(context.Background()); err != nil || len(left) > 0 {
		m.t.Errorf("left behind: %v, %v", left, err)
	}
	if err := m.Close(); err != nil {
		m.t.Error(err)
	}
	if names, err := namespaces(m.options.Prefix + "-"); err != nil || len(names) != 1 || names[0] != m.host {
		m.t.Errorf("namespaces left behind: %v, %v", names, err)
	}
	ns, err := openNamespace(netnsDir + "/" + m.host)
	if err != nil {
		m.t.Fatal(err)
	}
	links, err := ns.links()
	if err != nil {
		m.t.Error(err)
	}
	for name, link := range links {
		if strings.HasPrefix(link.Attrs().Alias, m.options.Prefix+" ") {
			m.t.Errorf("device left behind: %s", name)
		}
	}
	if tables, err := ns.tables(context.Background(), "inet", m.options.Prefix); err != nil || len(tables) > 0 {
		m.t.Errorf("tables left behind: %v, %v", tables, err)
	}
	ns.close()
	if err := removeNamespace(m.host); err != nil {
		m.t.Error(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newID() resource.ID { return resource.NewID(time.Now(), nil) }

// A tapFile is a guest's end of a tap.
func openTap(ns *namespace, name string) (*os.File, error) {
	var file *os.File
	err := ns.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	return file, err
}

// A guest is a namespace that stands for a virtual machine: its eth0 is
// connected with the port's tap by copying frames, as QEMU does.
type guest struct {
	*namespace
	t    testing.TB
	name string
	mac  net.HardwareAddr
	tap  *os.File
	eth0 netlink.Link

	mu   sync.Mutex
	seen func(frame []byte) // guarded by mu; every frame that reaches the guest
}

// plug starts a guest on a port. With addresses it has them from the start.
func (m *machine) plug(port network.Attachment, addresses ...string) *guest {
	m.t.Helper()
	tap := must(m.EnsureAttachment(context.Background(), port))(m.t)
	return m.boot(tap, port.MAC, addresses...)
}

func (m *machine) boot(tap network.Tap, mac string, addresses ...string) *guest {
	t := m.t
	t.Helper()
	hardware := must(net.ParseMAC(mac))(t)
	g := &guest{t: t, name: "x" + m.options.Prefix + "-" + newID().Tail(), mac: hardware}
	var err error
	if g.namespace, _, err = makeNamespace(g.name); err != nil {
		t.Fatal(err)
	}
	ok(t, g.do(func() error {
		return errors.Join(set([]setting{
			{"ipv6/conf/all/accept_dad", "0"}, {"ipv6/conf/default/accept_dad", "0"}, {"ipv4/conf/all/rp_filter", "1"},
		}), makeTap("eth0"))
	}))
	g.eth0 = must(g.LinkByName("eth0"))(t)
	ok(t, g.LinkSetHardwareAddr(g.eth0, hardware))
	lo := must(g.LinkByName("lo"))(t)
	ok(t, g.LinkSetUp(lo))
	inside := must(openTap(g.namespace, "eth0"))(t)
	far := must(openNamespace(tap.Netns))(t)
	g.tap = must(openTap(far, tap.Name))(t)
	defer far.close()
	ok(t, g.LinkSetUp(g.eth0))
	awaitCarrier(t, far, tap.Name)
	awaitCarrier(t, g.namespace, "eth0")
	for _, text := range addresses {
		prefix := netip.MustParsePrefix(text)
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		ok(t, g.AddrReplace(g.eth0, addr))
		if prefix.Addr().Is6() {
			g.awaitSolicited(prefix.Addr())
		}
	}
	var copying sync.WaitGroup
	copying.Add(2)
	go func() { defer copying.Done(); g.copy(inside, g.tap, true) }()
	go func() { defer copying.Done(); g.copy(g.tap, inside, false) }()
	t.Cleanup(func() {
		g.tap.Close()
		inside.Close()
		copying.Wait()
		g.close()
		if err := removeNamespace(g.name); err != nil {
			t.Error(err)
		}
	})
	return g
}

// awaitSolicited waits until neighbour solicitations for an address are heard,
// which the kernel sees to after it has returned.
func (g *guest) awaitSolicited(addr netip.Addr) {
	g.t.Helper()
	b := addr.As16()
	group := "ff0200000000000000000001ff" + hex.EncodeToString(b[13:])
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var groups []byte
		ok(g.t, g.do(func() (err error) { groups, err = os.ReadFile("/proc/thread-self/net/igmp6"); return err }))
		if bytes.Contains(groups, []byte(group)) {
			return
		}
	}
	g.t.Fatalf("%s is not ready", addr)
}

// awaitCarrier waits until the kernel has noticed that somebody holds a tap
// open, which it does at its leisure. Until then a bridge drops its frames.
func awaitCarrier(t testing.TB, ns *namespace, name string) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		link := must(ns.LinkByName(name))(t)
		if link.Attrs().OperState != netlink.OperUp {
			continue
		}
		if link.Attrs().MasterIndex == 0 {
			return
		}
		if must(ns.LinkByIndex(link.Attrs().MasterIndex))(t).Attrs().OperState != netlink.OperUp {
			continue
		}
		if state, err := runIn(ns, "bridge", "link", "show", "dev", name); err == nil && strings.Contains(state, "state forwarding") {
			return
		}
	}
	t.Fatalf("%s did not come up", name)
}

// copy moves frames until a side is closed, inward those that reach the guest.
func (g *guest) copy(to io.Writer, from io.Reader, inward bool) {
	buffer := make([]byte, 65536)
	for {
		n, err := from.Read(buffer)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil { // the device is down or gone for the moment
			if errors.Is(err, unix.EBADFD) {
				return
			}
			time.Sleep(time.Millisecond)
			continue
		}
		frame := buffer[:n]
		if inward {
			g.mu.Lock()
			if g.seen != nil {
				g.seen(bytes.Clone(frame))
			}
			g.mu.Unlock()
		}
		if _, err := to.Write(frame); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// watch calls f with every frame that reaches the guest from now on.
func (g *guest) watch(f func(frame []byte)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = f
}

// send puts a frame on the wire as the guest.
func (g *guest) send(frame []byte) {
	g.t.Helper()
	if _, err := g.tap.Write(frame); err != nil {
		g.t.Fatal(err)
	}
}

// hears reports whether a frame that matches reaches the guest when f is done.
func (g *guest) hears(match func(frame []byte) bool, within time.Duration, f func()) bool {
	heard := make(chan bool, 1)
	g.watch(func(frame []byte) {
		if match(frame) {
			select {
			case heard <- true:
			default:
			}
		}
	})
	defer g.watch(nil)
	f()
	select {
	case <-heard:
		return true
	case <-time.After(within):
		return false
	}
}

// routeVia gives the guest a default route.
func (g *guest) routeVia(gateway string) {
	g.t.Helper()
	addr := netip.MustParseAddr(gateway)
	ok(g.t, g.RouteReplace(&netlink.Route{LinkIndex: g.eth0.Attrs().Index, Gw: addr.AsSlice(), Dst: ipNet(everything(addr))}))
}

// run executes a program in the guest.
func (g *guest) run(args ...string) (string, error) { return runIn(g.namespace, args...) }

func runIn(ns *namespace, args ...string) (string, error) {
	var out []byte
	err := ns.do(func() error {
		var err error
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	return string(out), err
}

// silence is how long a test waits for what should not come.
const silence = 300 * time.Millisecond

func (g *guest) pings(address string) bool { return pings(g.namespace, address) }

func pings(ns *namespace, address string) bool {
	_, err := runIn(ns, "ping", "-n", "-c1", "-W1", "-i0.2", address)
	return err == nil
}

// connects opens a TCP connection; nil if it does not come about.
func (g *guest) connect(address string) net.Conn { return connect(g.namespace, address) }

func connect(ns *namespace, address string) net.Conn {
	var conn net.Conn
	err := ns.do(func() (err error) {
		conn, err = net.DialTimeout("tcp", address, 400*time.Millisecond)
		return err
	})
	if err != nil {
		return nil
	}
	return conn
}

// echo serves TCP on all addresses of a namespace: what comes in goes back,
// after a line with the address that it was asked from.
func echo(t testing.TB, ns *namespace, port int) {
	t.Helper()
	for _, wildcard := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		var l net.Listener
		ok(t, ns.do(func() (err error) {
			l, err = listenTCP(netip.AddrPortFrom(wildcard, uint16(port)), 0)
			return err
		}))
		var running sync.WaitGroup
		running.Add(1)
		go func() {
			defer running.Done()
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				running.Add(1)
				go func() {
					defer running.Done()
					defer conn.Close()
					fmt.Fprintln(conn, peer(conn))
					io.Copy(conn, conn)
				}()
				t.Cleanup(func() { conn.Close() })
			}
		}()
		t.Cleanup(func() { l.Close(); running.Wait() })
	}
}

// asks connects to an echo service and answers who it took us for; "" if it
// cannot be reached.
func asks(ns *namespace, address string) string {
	conn := connect(ns, address)
	if conn == nil {
		return ""
	}
	defer conn.Close()
	return lineFrom(conn)
}

// reaches asks again where an answer is expected: on a busy machine a device
// that is new takes a moment, and a lost first packet a second.
func reaches(ns *namespace, address string) string {
	for try := 0; ; try++ {
		if who := asks(ns, address); who != "" || try == 5 {
			return who
		}
	}
}

func lineFrom(conn net.Conn) string {
	conn.SetDeadline(time.Now().Add(time.Second))
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := conn.Read(b); err != nil || b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

// echoes reports whether a connection to an echo service still works.
func echoes(conn net.Conn) bool {
	conn.SetDeadline(time.Now().Add(time.Second))
	word := newID().Tail()
	if _, err := conn.Write([]byte(word)); err != nil {
		return false
	}
	back := make([]byte, len(word))
	_, err := io.ReadFull(conn, back)
	return err == nil && string(back) == word
}

// A tenant is a network with a subnet of each family and groups, for tests.
type tenant struct {
	segment network.Segment
	v4, v6  resource.ID
	next    int
}

func newTenant(vni int) *tenant {
	n := &tenant{v4: newID(), v6: newID(), next: 10}
	n.segment = network.Segment{
		ID: newID(), ProjectID: newID(), VNI: vni, MTU: 1450,
		Subnets: []network.SegmentSubnet{
			{ID: n.v4, CIDR: netip.MustParsePrefix("10.5.0.0/24"), Gateway: netip.MustParseAddr("10.5.0.1"), DHCP: true, MetadataOn: true},
			{ID: n.v6, CIDR: netip.MustParsePrefix("fd05::/64"), Gateway: netip.MustParseAddr("fd05::1"), MetadataOn: true},
		},
	}
	return n
}

// port makes a port with an address of each family.
func (n *tenant) port(groups ...resource.ID) network.Attachment {
	n.next++
	return network.Attachment{
		ID: newID(), NetworkID: n.segment.ID, ProjectID: n.segment.ProjectID, ServerID: newID(),
		MAC: fmt.Sprintf("fa:16:3e:00:00:%02x", n.next), PortSecurity: true, AdminUp: true, MTU: 1450, Groups: groups,
		Hostname: fmt.Sprintf("guest-%d", n.next), DNSDomain: "example.org.",
		Addresses: []network.FixedAddress{
			{SubnetID: n.v4, Address: netip.MustParseAddr(fmt.Sprintf("10.5.0.%d", n.next))},
			{SubnetID: n.v6, Address: netip.MustParseAddr(fmt.Sprintf("fd05::%x", n.next))},
		},
	}
}

// static lists a port's addresses with their prefix lengths.
func static(port network.Attachment) []string {
	var list []string
	for _, fixed := range port.Addresses {
		bits := 24
		if fixed.Address.Is6() {
			bits = 64
		}
		list = append(list, fmt.Sprintf("%s/%d", fixed.Address, bits))
	}
	return list
}

// rule lets everything of one direction and family through.
func rule(ingress, v6 bool) network.FilterRule {
	return network.FilterRule{Ingress: ingress, V6: v6, PortMin: -1, PortMax: -1}
}

// outgoing is a group that lets everything out, like a new project's own.
func outgoing(more ...network.FilterRule) network.Filter {
	return network.Filter{ID: newID(), Stateful: true, Rules: append([]network.FilterRule{rule(false, false), rule(false, true)}, more...)}
}

func neighbour(g *guest, address, mac string) *netlink.Neigh {
	hardware, _ := net.ParseMAC(mac)
	return &netlink.Neigh{LinkIndex: g.eth0.Attrs().Index, IP: net.ParseIP(address), HardwareAddr: hardware, State: netlink.NUD_PERMANENT}
}

func addAddress(t *testing.T, g *guest, text string) {
	t.Helper()
	ok(t, g.AddrReplace(g.eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(text))}))
}

// getFrom fetches a page from one of the guest's addresses.
func getFrom(g *guest, from, url string) string {
	out, err := g.run("curl", "-s", "-m", "1", "--interface", from, url)
	if err != nil {
		return "unreachable"
	}
	return out
}
