package linuxnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/unkai-cloud/unkai/core/network"
)

var (
	metadataAddr  = netip.MustParseAddr(metadataV4)
	metadataAddr6 = netip.MustParseAddr(metadataV6)
	broadcastV4   = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// An offer is an address that DHCP gives a port, with its subnet.
type offer struct {
	address netip.Addr
	subnet  network.SegmentSubnet
}

// offers lists what a port may be given, the first by preference.
func (k *knowledge) offers(port network.Attachment) []offer {
	var list []offer
	for _, fixed := range port.Addresses {
		if subnet, ok := k.subnetOf(fixed); ok && fixed.Address.Is4() && subnet.DHCP {
			list = append(list, offer{fixed.Address, subnet})
		}
	}
	return list
}

// serverID is the address under which a guest renews. Whatever it is, requests
// are caught before they leave the host; it only has to be one that the guest
// can send to.
func (o offer) serverID() netip.Addr {
	if o.subnet.Gateway.IsValid() && o.subnet.RouterMAC != "" {
		return o.subnet.Gateway
	}
	return metadataAddr
}

// replyDHCPv4 answers one message (RFC 2131, section 4.3). There are no leases
// to keep: a port's addresses are its own whether it asks or not.
func (k *knowledge) replyDHCPv4(port network.Attachment, question datagram) (datagram, bool) {
	request, err := dhcpv4.FromBytes(question.payload)
	if err != nil || request.OpCode != dhcpv4.OpcodeBootRequest || !bytes.Equal(request.ClientHWAddr, question.fromMAC) {
		return datagram{}, false
	}
	offers := k.offers(port)
	if len(offers) == 0 {
		return datagram{}, false
	}
	chosen := offers[0]
	kind := dhcpv4.MessageTypeAck
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
		if i := find(offers, addrOf(request.RequestedIPAddress())); i >= 0 {
			chosen = offers[i]
		}
	case dhcpv4.MessageTypeRequest:
		asked := addrOf(request.RequestedIPAddress())
		if !asked.IsValid() {
			asked = addrOf(request.ClientIPAddr) // renewing or rebinding
		}
		if i := find(offers, asked); i >= 0 {
			chosen = offers[i]
		} else {
			kind = dhcpv4.MessageTypeNak
		}
		if server := addrOf(request.ServerIdentifier()); server.IsValid() && server != chosen.serverID() && server != metadataAddr {
			return datagram{}, false // it took another server's offer
		}
	case dhcpv4.MessageTypeInform:
		if i := find(offers, addrOf(request.ClientIPAddr)); i >= 0 {
			chosen = offers[i]
		}
	default: // Release and Decline change nothing here
		return datagram{}, false
	}
	reply, err := dhcpv4.NewReplyFromRequest(request, dhcpv4.WithMessageType(kind))
	if err != nil {
		return datagram{}, false
	}
	server := chosen.serverID()
	reply.UpdateOption(dhcpv4.OptServerIdentifier(server.AsSlice()))
	if kind != dhcpv4.MessageTypeNak {
		k.fill(reply, request, port, chosen)
	}
	return datagram{
		fromMAC: k.mac, toMAC: slices.Clone(question.fromMAC), from: server, to: destination(request, reply, kind),
		protocol: protocolUDP, fromPort: 67, toPort: 68, payload: reply.ToBytes(),
	}, true
}

func find(offers []offer, addr netip.Addr) int {
	return slices.IndexFunc(offers, func(o offer) bool { return o.address == addr })
}

// destination is where the client can hear the reply (RFC 2131, section 4.1).
func destination(request, reply *dhcpv4.DHCPv4, kind dhcpv4.MessageType) netip.Addr {
	if kind == dhcpv4.MessageTypeNak {
		return broadcastV4
	}
	if client := addrOf(request.ClientIPAddr); client.IsValid() && !client.IsUnspecified() {
		return client
	}
	if request.IsBroadcast() {
		return broadcastV4
	}
	return addrOf(reply.YourIPAddr)
}

// fill writes the address and the options.
func (k *knowledge) fill(reply, request *dhcpv4.DHCPv4, port network.Attachment, o offer) {
	option := func(code dhcpv4.OptionCode, value []byte) {
		if len(value) > 0 {
			reply.UpdateOption(dhcpv4.OptGeneric(code, value))
		}
	}
	if request.MessageType() != dhcpv4.MessageTypeInform {
		reply.YourIPAddr = o.address.AsSlice()
		reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(k.lease))
		reply.UpdateOption(dhcpv4.OptRenewTimeValue(k.lease / 2))
		reply.UpdateOption(dhcpv4.OptRebindingTimeValue(k.lease * 7 / 8))
	}
	option(dhcpv4.OptionSubnetMask, net.CIDRMask(o.subnet.CIDR.Bits(), 32))
	option(dhcpv4.OptionBroadcastAddress, lastOf(o.subnet.CIDR).AsSlice())
	if o.subnet.Gateway.IsValid() {
		option(dhcpv4.OptionRouter, o.subnet.Gateway.AsSlice())
	}
	option(dhcpv4.OptionDomainNameServer, addressList(o.subnet.DNS))
	option(dhcpv4.OptionHostName, []byte(port.Hostname))
	option(dhcpv4.OptionDomainName, []byte(strings.TrimSuffix(port.DNSDomain, ".")))
	if mtu := k.mtu(port); mtu > 0 {
		option(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(mtu)))
	}
	routes := o.routes()
	option(dhcpv4.OptionClasslessStaticRoute, routes)
	const microsofts = 249 // the same, from before it was standardised
	option(dhcpv4.GenericOptionCode(microsofts), routes)
	for _, own := range port.DHCPOptions {
		if own.Version != 6 {
			setOwnOption(reply, own)
		}
	}
}

// routes is option 121. A client that reads it ignores option 3, so it has the
// default route as well (RFC 3442).
func (o offer) routes() []byte {
	var list dhcpv4.Routes
	add := func(to netip.Prefix, via netip.Addr) {
		if to.Addr().Is4() && via.Is4() {
			list = append(list, &dhcpv4.Route{Dest: ipNet(to.Masked()), Router: via.AsSlice()})
		}
	}
	if o.subnet.MetadataOn {
		via := netip.IPv4Unspecified() // on the link
		if o.subnet.Gateway.IsValid() && o.subnet.RouterMAC != "" {
			via = o.subnet.Gateway
		}
		add(netip.PrefixFrom(metadataAddr, 32), via)
	}
	for _, route := range o.subnet.Routes {
		add(route.Destination, route.NextHop)
	}
	if len(list) > 0 && o.subnet.Gateway.IsValid() {
		add(netip.PrefixFrom(netip.IPv4Unspecified(), 0), o.subnet.Gateway)
	}
	if len(list) == 0 {
		return nil
	}
	return list.ToBytes()
}

func lastOf(prefix netip.Prefix) netip.Addr {
	first := prefix.Masked().Addr().As4()
	number := binary.BigEndian.Uint32(first[:]) | ^uint32(0)>>prefix.Bits()
	var last [4]byte
	binary.BigEndian.PutUint32(last[:], number)
	return netip.AddrFrom4(last)
}

func addressList(addresses []netip.Addr) []byte {
	var out []byte
	for _, addr := range addresses {
		if addr.Is4() {
			out = append(out, addr.AsSlice()...)
		}
	}
	return out
}

// optionsV4 are dnsmasq's names for options, and how their values are written.
var optionsV4 = map[string]struct {
	code uint8
	kind string
}{
	"netmask": {1, "addresses"}, "time-offset": {2, "uint32"}, "router": {3, "addresses"},
	"dns-server": {6, "addresses"}, "log-server": {7, "addresses"}, "lpr-server": {9, "addresses"},
	"hostname": {12, "text"}, "boot-file-size": {13, "uint16"}, "domain-name": {15, "text"},
	"swap-server": {16, "addresses"}, "root-path": {17, "text"}, "extension-path": {18, "text"},
	"ip-forward-enable": {19, "uint8"}, "default-ttl": {23, "uint8"}, "mtu": {26, "uint16"},
	"broadcast": {28, "addresses"}, "arp-timeout": {35, "uint32"}, "tcp-ttl": {37, "uint8"},
	"nis-domain": {40, "text"}, "nis-server": {41, "addresses"}, "ntp-server": {42, "addresses"},
	"vendor-encap": {43, "text"}, "netbios-ns": {44, "addresses"}, "netbios-dd": {45, "addresses"},
	"netbios-nodetype": {46, "uint8"}, "netbios-scope": {47, "text"}, "x-windows-fs": {48, "addresses"},
	"x-windows-dm": {49, "addresses"}, "lease-time": {51, "uint32"}, "T1": {58, "uint32"}, "T2": {59, "uint32"},
	"vendor-class": {60, "text"}, "nis+-domain": {64, "text"}, "nis+-server": {65, "addresses"},
	"tftp-server": {66, "text"}, "bootfile-name": {67, "text"}, "mobile-ip-home": {68, "addresses"},
	"smtp-server": {69, "addresses"}, "pop3-server": {70, "addresses"}, "nntp-server": {71, "addresses"},
	"irc-server": {74, "addresses"}, "user-class": {77, "text"}, "posix-timezone": {100, "text"},
	"tzdb-timezone": {101, "text"}, "domain-search": {119, "domains"}, "classless-static-route": {121, "routes"},
	"tftp-server-address": {150, "addresses"}, "server-ip-address": {255, "addresses"},
}

// setOwnOption writes an option that the port's owner asked for. One that makes
// no sense is left out: parseOptionV4 says why, when the port is made.
func setOwnOption(reply *dhcpv4.DHCPv4, own network.DHCPOption) {
	code, value, err := parseOptionV4(own)
	if err != nil {
		return
	}
	const serverAddress = 255 // dnsmasq's number for the field of the header
	if code == serverAddress {
		reply.ServerIPAddr = value
		return
	}
	if code == dhcpv4.OptionBootfileName.Code() {
		reply.BootFileName = string(value)
	}
	if code == dhcpv4.OptionTFTPServerName.Code() {
		reply.ServerHostName = string(value)
	}
	reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), value))
}

// parseOptionV4 reads an option by name or number. Of an option known only by
// its number, a list of addresses is written as addresses, else the text.
func parseOptionV4(own network.DHCPOption) (code uint8, value []byte, err error) {
	name := strings.TrimPrefix(own.Name, "option:")
	kind := ""
	if known, ok := optionsV4[name]; ok {
		code, kind = known.code, known.kind
	} else if number, err := strconv.ParseUint(name, 10, 8); err == nil && number > 0 && number < 255 {
		code, kind = uint8(number), "text"
		for _, known := range optionsV4 {
			if known.code == code {
				kind = known.kind
			}
		}
		if value := addressList(parseAddresses(own.Value)); kind == "text" && len(value) > 0 {
			return code, value, nil
		}
	} else {
		return 0, nil, fmt.Errorf("DHCP option %q: no such name", own.Name)
	}
	value = writeOption(kind, own.Value)
	if value == nil || len(value) > 255 {
		return 0, nil, fmt.Errorf("DHCP option %q: %q is no value for it", own.Name, own.Value)
	}
	return code, value, nil
}

func writeOption(kind, text string) []byte {
	switch kind {
	case "text":
		return []byte(text)
	case "addresses":
		return addressList(parseAddresses(text))
	case "domains":
		return domainList(text)
	case "routes":
		return routeList(text)
	}
	bits, _ := strconv.Atoi(strings.TrimPrefix(kind, "uint")) // from the table above
	number, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		return nil
	}
	return binary.BigEndian.AppendUint64(nil, number)[8-bits/8:]
}

// parseAddresses reads a list of addresses; nil if any is none.
func parseAddresses(text string) []netip.Addr {
	var list []netip.Addr
	for _, word := range strings.Split(text, ",") {
		addr, err := netip.ParseAddr(strings.Trim(strings.TrimSpace(word), "[]"))
		if err != nil {
			return nil
		}
		list = append(list, addr)
	}
	return list
}

func domainList(text string) []byte {
	labels := rfc1035label.NewLabels()
	for _, name := range strings.Split(text, ",") {
		labels.Labels = append(labels.Labels, strings.TrimSpace(name))
	}
	return labels.ToBytes()
}

// routeList reads "destination,via,destination,via".
func routeList(text string) []byte {
	words := strings.Split(text, ",")
	var list dhcpv4.Routes
	for i := 0; i+1 < len(words); i += 2 {
		to, err := netip.ParsePrefix(strings.TrimSpace(words[i]))
		via, err2 := netip.ParseAddr(strings.TrimSpace(words[i+1]))
		if err != nil || err2 != nil || !to.Addr().Is4() || !via.Is4() {
			return nil
		}
		list = append(list, &dhcpv4.Route{Dest: ipNet(to.Masked()), Router: via.AsSlice()})
	}
	if len(words)%2 != 0 || len(list) == 0 {
		return nil
	}
	return list.ToBytes()
}
