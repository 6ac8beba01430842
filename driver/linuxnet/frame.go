package linuxnet

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// What the host answers itself it takes from the wire and puts there as whole
// Ethernet frames: a guest that asks for its address has none to talk to yet.

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
)

// A datagram is a frame taken apart: UDP, or ICMPv6 with no ports.
type datagram struct {
	fromMAC, toMAC   net.HardwareAddr
	from, to         netip.Addr
	protocol         byte
	fromPort, toPort uint16
	payload          []byte // of ICMPv6 and TCP the whole message
}

// parseFrame takes a frame apart. It refuses fragments and anything else that
// is not a plain UDP or ICMPv6 packet. Checksums are not looked at: a guest's
// may be left for hardware to fill in, and there is none.
func parseFrame(frame []byte) (datagram, bool) {
	var d datagram
	if len(frame) < 14 {
		return d, false
	}
	d.toMAC, d.fromMAC = frame[0:6], frame[6:12]
	packet := frame[14:]
	var ok bool
	switch binary.BigEndian.Uint16(frame[12:14]) {
	case etherIPv4:
		packet, ok = d.parseIPv4(packet)
	case etherIPv6:
		packet, ok = d.parseIPv6(packet)
	}
	if !ok {
		return d, false
	}
	switch d.protocol {
	case protocolICMPv6:
		d.payload = packet
		return d, len(packet) >= 4
	case protocolUDP:
		if len(packet) < 8 {
			return d, false
		}
		length := int(binary.BigEndian.Uint16(packet[4:6]))
		if length < 8 || length > len(packet) {
			return d, false
		}
		d.fromPort, d.toPort = binary.BigEndian.Uint16(packet[0:2]), binary.BigEndian.Uint16(packet[2:4])
		d.payload = packet[8:length]
		return d, true
	}
	return d, false
}

func (d *datagram) parseIPv4(packet []byte) ([]byte, bool) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return nil, false
	}
	header, total := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:4]))
	const moreFragmentsOrOffset = 0x3fff
	if header < 20 || total < header || total > len(packet) || binary.BigEndian.Uint16(packet[6:8])&moreFragmentsOrOffset != 0 {
		return nil, false
	}
	d.from, d.to = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
	d.protocol = packet[9]
	return packet[header:total], true
}

func (d *datagram) parseIPv6(packet []byte) ([]byte, bool) {
	if len(packet) < 40 || packet[0]>>4 != 6 {
		return nil, false
	}
	length := int(binary.BigEndian.Uint16(packet[4:6]))
	if length > len(packet)-40 {
		return nil, false
	}
	d.from, d.to = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	d.protocol = packet[6]
	return packet[40 : 40+length], true
}

// frame puts a datagram together, with its checksums.
func (d datagram) frame() []byte {
	body := d.payload
	if d.protocol == protocolUDP {
		body = make([]byte, 8, 8+len(d.payload))
		binary.BigEndian.PutUint16(body[0:], d.fromPort)
		binary.BigEndian.PutUint16(body[2:], d.toPort)
		binary.BigEndian.PutUint16(body[4:], uint16(8+len(d.payload)))
		body = append(body, d.payload...)
	}
	at := map[byte]int{protocolUDP: 6, protocolICMPv6: 2, protocolTCP: 16}[d.protocol]
	body[at], body[at+1] = 0, 0
	sum := checksum(body, d.pseudoHeader(len(body)))
	if sum == 0 {
		sum = 0xffff // zero means none (RFC 768)
	}
	binary.BigEndian.PutUint16(body[at:], sum)

	frame := make([]byte, 0, 14+40+len(body))
	frame = append(append(frame, d.toMAC...), d.fromMAC...)
	if d.from.Is4() {
		frame = binary.BigEndian.AppendUint16(frame, etherIPv4)
		header := make([]byte, 20)
		header[0], header[8], header[9] = 4<<4|5, 64, d.protocol
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(body)))
		copy(header[12:], d.from.AsSlice())
		copy(header[16:], d.to.AsSlice())
		binary.BigEndian.PutUint16(header[10:], checksum(header, 0))
		frame = append(frame, header...)
	} else {
		frame = binary.BigEndian.AppendUint16(frame, etherIPv6)
		const hopLimit = 255 // neighbour discovery asks for no less (RFC 4861)
		frame = append(frame, 6<<4, 0, 0, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(body)))
		frame = append(frame, d.protocol, hopLimit)
		frame = append(append(frame, d.from.AsSlice()...), d.to.AsSlice()...)
	}
	return append(frame, body...)
}

// pseudoHeader is the unfolded sum that UDP and ICMPv6 checksums begin with.
func (d datagram) pseudoHeader(length int) uint32 {
	sum := uint32(d.protocol) + uint32(length)
	for _, addr := range [][]byte{d.from.AsSlice(), d.to.AsSlice()} {
		for i := 0; i < len(addr); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(addr[i:]))
		}
	}
	return sum
}

// checksum is the Internet checksum (RFC 1071).
func checksum(data []byte, sum uint32) uint16 {
	for ; len(data) >= 2; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		sum += uint32(data[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// arpAnnouncement tells everybody on the wire who has an address from now on
// (RFC 5227, section 2.3).
func arpAnnouncement(mac net.HardwareAddr, addr netip.Addr) []byte {
	frame := make([]byte, 0, 42)
	frame = append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	frame = append(frame, mac...)
	frame = binary.BigEndian.AppendUint16(frame, etherARP)
	frame = append(frame, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request
	frame = append(append(frame, mac...), addr.AsSlice()...)
	return append(append(frame, 0, 0, 0, 0, 0, 0), addr.AsSlice()...)
}

var allNodes = netip.MustParseAddr("ff02::1")

// neighbourAnnouncement is the same for IPv6: an unsolicited neighbour
// advertisement with the override flag (RFC 4861, section 7.2.6).
func neighbourAnnouncement(mac net.HardwareAddr, addr netip.Addr, router bool) []byte {
	const isRouter, override = 0x80, 0x20
	message := []byte{136, 0, 0, 0, override, 0, 0, 0}
	if router {
		message[4] |= isRouter
	}
	message = append(message, addr.AsSlice()...)
	message = append(append(message, 2, 1), mac...)
	return datagram{
		fromMAC: mac, toMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, from: addr, to: allNodes,
		protocol: protocolICMPv6, payload: message,
	}.frame()
}
