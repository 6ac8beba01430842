package linuxnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// packetSocket opens a socket for whole frames of one device. The caller is in
// the device's namespace; the socket may be used from anywhere. With a nil
// filter it only sends.
func packetSocket(device int, filter []bpf.Instruction) (*os.File, error) {
	// Protocol 0 receives nothing until bind, when the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "packet socket")
	address := &unix.SockaddrLinklayer{Ifindex: device}
	if filter != nil {
		if err := attach(fd, filter); err != nil {
			file.Close()
			return nil, err
		}
		address.Protocol = 0x0300 // ETH_P_ALL, as the network writes it
	}
	if err := unix.Bind(fd, address); err != nil {
		file.Close()
		return nil, fmt.Errorf("bind packet socket: %w", err)
	}
	return file, nil
}

func attach(fd int, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble packet filter: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("attach packet filter: %w", err)
	}
	return nil
}

// listenTCP listens on an address; one without a zone's name is in the zone of
// the device. The caller is in the namespace that it is for. The net package's
// own Listen would find out here, once and for the whole process, what the
// network can do.
func listenTCP(address netip.AddrPort, device int) (net.Listener, error) {
	var family int
	var name unix.Sockaddr
	if address.Addr().Is4() {
		family, name = unix.AF_INET, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
	} else {
		family, name = unix.AF_INET6, &unix.SockaddrInet6{Port: int(address.Port()), Addr: address.Addr().As16(), ZoneId: uint32(device)}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), address.String())
	defer file.Close() // the listener has its own
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, fmt.Errorf("set up socket: %w", err)
	}
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, fmt.Errorf("set up socket: %w", err)
		}
	}
	if err := unix.Bind(fd, name); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return net.FileListener(file)
}

// questions lets through what the host answers: DHCP requests of both
// versions and router solicitations. Everything else stays in the kernel.
var questions = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipTrue: 6},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv4, SkipTrue: 13},
	// IPv4: UDP to port 67.
	bpf.LoadAbsolute{Off: 23, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolUDP, SkipTrue: 11},
	bpf.LoadMemShift{Off: 14},
	bpf.LoadIndirect{Off: 16, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 67, SkipTrue: 7, SkipFalse: 8},
	// IPv6: UDP to port 547, or ICMPv6 of type 133.
	bpf.LoadAbsolute{Off: 20, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocolICMPv6, SkipTrue: 3},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolUDP, SkipTrue: 5},
	bpf.LoadAbsolute{Off: 56, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 547, SkipTrue: 2, SkipFalse: 3},
	bpf.LoadAbsolute{Off: 54, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 133, SkipTrue: 1},
	bpf.RetConstant{Val: 65535},
	bpf.RetConstant{Val: 0},
}

// An announcement says that an address is now reached by a device.
type announcement struct {
	device int
	mac    net.HardwareAddr
	addr   netip.Addr
	// It is within an overlay, where the leg is on other hosts too: this host's guests are told alone.
	within bool
	// A guest's port has it, and no router's leg.
	guest bool
}

// sendAnnouncements corrects what neighbours remember of addresses that moved.
func sendAnnouncements(ns *namespace, list []announcement) error {
	if len(list) == 0 {
		return nil
	}
	return ns.do(func() error {
		for _, a := range list {
			if err := a.send(); err != nil {
				return fmt.Errorf("announce %s: %w", a.addr, err)
			}
		}
		return nil
	})
}

func (a announcement) send() error {
	socket, err := packetSocket(a.device, nil)
	if err != nil {
		return err
	}
	defer socket.Close()
	var text []byte
	if a.addr.Is4() {
		text = arpAnnouncement(a.mac, a.addr)
	} else {
		text = neighbourAnnouncement(a.mac, a.addr, !a.guest)
	}
	if a.within && a.addr.Is4() {
		text[21] = 2 // spelled as an answer, by which the bridge tells it from a question
	}
	_, err = socket.Write(text)
	return err
}
