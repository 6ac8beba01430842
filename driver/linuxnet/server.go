package linuxnet

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// A server answers the guests of one segment: DHCP, router solicitations and
// metadata. Its sockets are in the segment's namespace, it is not.
type server struct {
	driver  *Driver
	device  int // the bridge's index, by which a new bridge is told from the old
	socket  *os.File
	web     []*listener
	known   atomic.Pointer[knowledge]
	changed chan struct{} // what is announced has changed
	done    chan struct{}
	running sync.WaitGroup

	// The answering goroutine's own.
	panics int // of parsers
	logAt  int // how many are worth another line
}

// knowledge is what a server answers from. It is never changed, only replaced.
type knowledge struct {
	mac       net.HardwareAddr // the bridge's, from which answers come
	segment   network.Segment
	lease     time.Duration
	ports     map[string]network.Attachment // by hardware address, those that are up
	byAddress map[netip.Addr]resource.ID    // whose an address is, link-local ones too
}

func (s *segment) knowledge() *knowledge {
	k := &knowledge{
		mac: s.mac(), segment: *s.want, lease: s.driver.options.Lease,
		ports: map[string]network.Attachment{}, byAddress: map[netip.Addr]resource.ID{},
	}
	k.segment.Neighbors = nil // not asked about, and long
	k.segment.Subnets = slices.Clone(s.want.Subnets)
	for id, attachment := range s.attachments {
		mac, err := net.ParseMAC(attachment.MAC)
		if err != nil || !attachment.AdminUp {
			continue
		}
		k.ports[mac.String()] = attachment
		k.byAddress[linkLocal(mac)] = id
		for _, fixed := range attachment.Addresses {
			k.byAddress[fixed.Address] = id
		}
	}
	return k
}

// serve starts the segment's server, or tells it what is new.
func (s *segment) serve(ns *namespace, bridge netlink.Link) error {
	if s.want == nil {
		s.stopServing()
		return nil
	}
	k := s.knowledge()
	if s.server != nil && s.server.device == bridge.Attrs().Index {
		s.server.learn(k)
		return nil
	}
	s.stopServing()
	v := &server{
		driver: s.driver, device: bridge.Attrs().Index,
		changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
	v.known.Store(k)
	if err := ns.do(v.open); err != nil {
		v.closeSockets()
		return fmt.Errorf("answer guests of network %s: %w", s.id, err)
	}
	v.running.Add(2)
	go v.answer()
	go v.announce()
	for _, l := range v.web {
		v.running.Add(1)
		go func() {
			defer v.running.Done()
			if err := s.driver.web.Serve(l); err != nil && !l.closed() {
				s.driver.log.Error("metadata service ended", "network", s.id, "error", err)
			}
		}()
	}
	s.server = v
	return nil
}

// resume starts the server of a segment that is as it should be already.
func (s *segment) resume() error {
	ns, err := openNamespace(s.namespacePath())
	if err != nil {
		return err
	}
	defer ns.close()
	bridge, err := ns.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge of network %s: %w", s.id, err)
	}
	return s.serve(ns, bridge)
}

func (s *segment) stopServing() {
	if s.server == nil {
		return
	}
	close(s.server.done)
	s.server.closeSockets()
	s.server.running.Wait()
	s.server = nil
}

// open makes the server's sockets. Its thread is in the segment's namespace.
func (v *server) open() (err error) {
	if v.socket, err = packetSocket(v.device, questions); err != nil {
		return err
	}
	for _, address := range []string{metadataV4, metadataV6} {
		l, err := listenTCP(netip.AddrPortFrom(netip.MustParseAddr(address), 80), v.device)
		if err != nil {
			return fmt.Errorf("metadata service: %w", err)
		}
		v.web = append(v.web, &listener{Listener: l, server: v, open: map[net.Conn]resource.ID{}})
	}
	return nil
}

func (v *server) closeSockets() {
	if v.socket != nil {
		v.socket.Close()
	}
	for _, l := range v.web {
		l.Close()
	}
}

// learn replaces what the server knows, and announces what that changes.
func (v *server) learn(k *knowledge) {
	before := v.known.Swap(k)
	if !reflect.DeepEqual(before.advertisements(), k.advertisements()) {
		select {
		case v.changed <- struct{}{}:
		default:
		}
	}
}

// answer reads questions from the bridge and writes answers to it until the
// socket is closed.
func (v *server) answer() {
	defer v.running.Done()
	buffer := make([]byte, 65536)
	for {
		n, err := v.socket.Read(buffer)
		if err != nil {
			select {
			case <-v.done:
				return
			default:
			}
			// The device is down for a moment, or memory is short.
			v.driver.log.Warn("reading guests' questions", "network", v.known.Load().segment.ID, "error", err)
			select {
			case <-v.done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		frame := buffer[:n]
		if answer, ok := v.contain(frame, func() ([]byte, bool) { return v.answerTo(frame) }); ok {
			v.write(answer)
		}
	}
}

// contain answers a frame. What guests send goes through parsers that others wrote, and one that panics must
// not end the service of all guests of the host: such a frame stays without an answer. The first one is
// logged, and then each time that there are ten times as many.
func (v *server) contain(frame []byte, answer func() ([]byte, bool)) (reply []byte, ok bool) {
	defer func() {
		why := recover()
		if why == nil {
			return
		}
		reply, ok = nil, false
		if v.panics++; v.panics >= v.logAt {
			v.logAt = 10 * v.panics
			v.driver.log.Error("a guest's question could not be answered", "panic", why, "times", v.panics,
				"frame", hex.EncodeToString(frame[:min(len(frame), 1500)]), "stack", string(debug.Stack()))
		}
	}()
	return answer()
}

// answerTo is the frame that answers a frame.
func (v *server) answerTo(frame []byte) ([]byte, bool) {
	question, ok := parseFrame(frame)
	if !ok {
		return nil, false
	}
	k := v.known.Load()
	port, ok := k.ports[question.fromMAC.String()]
	if !ok {
		return nil, false // not ours to answer
	}
	reply, ok := k.reply(port, question)
	if !ok {
		return nil, false
	}
	return reply.frame(), true
}

// reply answers a question of a port.
func (k *knowledge) reply(port network.Attachment, question datagram) (datagram, bool) {
	switch {
	case question.protocol == protocolICMPv6 && question.payload[0] == routerSolicitation:
		for _, advertisement := range k.advertisements() {
			return advertisement.to(port), true
		}
	case question.protocol == protocolUDP && question.toPort == 67:
		return k.replyDHCPv4(port, question)
	case question.protocol == protocolUDP && question.toPort == 547:
		return k.replyDHCPv6(port, question)
	}
	return datagram{}, false
}

func (v *server) send(d datagram) { v.write(d.frame()) }

func (v *server) write(frame []byte) {
	if _, err := v.socket.Write(frame); err != nil {
		select {
		case <-v.done:
		default:
			v.driver.log.Warn("answering a guest", "network", v.known.Load().segment.ID, "error", err)
		}
	}
}

// announceEvery is shorter than a router's lifetime by enough to lose two.
const announceEvery = routerLifetime / 4

// announce sends router advertisements unasked, to each guest of this host by
// its own address: guests elsewhere hear it from their own host.
func (v *server) announce() {
	defer v.running.Done()
	ticker := time.NewTicker(announceEvery)
	defer ticker.Stop()
	for {
		k := v.known.Load()
		for _, advertisement := range k.advertisements() {
			for _, port := range k.ports {
				v.send(advertisement.to(port))
			}
		}
		select {
		case <-v.done:
			return
		case <-v.changed:
		case <-ticker.C:
		}
	}
}

// subnetOf finds the subnet of a port's address.
func (k *knowledge) subnetOf(fixed network.FixedAddress) (network.SegmentSubnet, bool) {
	for _, subnet := range k.segment.Subnets {
		if subnet.ID == fixed.SubnetID {
			return subnet, true
		}
	}
	return network.SegmentSubnet{}, false
}

func (k *knowledge) mtu(port network.Attachment) int {
	if port.MTU != 0 {
		return port.MTU
	}
	return k.segment.MTU
}

// answersDHCPv6: the subnet gives addresses, or at least options, by DHCPv6.
func answersDHCPv6(subnet network.SegmentSubnet) bool {
	return subnet.CIDR.Addr().Is6() && subnet.DHCP && strings.HasPrefix(subnet.V6Mode, "dhcpv6-")
}

// announces: the subnet is announced by router advertisements, and there is a
// router to announce.
func announces(subnet network.SegmentSubnet) bool {
	return subnet.CIDR.Addr().Is6() && subnet.RAMode != "" && subnet.RouterMAC != ""
}
