package linuxnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/unkai-cloud/unkai/core/network"
)

// replyDHCPv6 answers one message (RFC 8415, section 18.3). As with version 4
// there are no leases to keep.
func (k *knowledge) replyDHCPv6(port network.Attachment, question datagram) (datagram, bool) {
	request, err := dhcpv6.MessageFromBytes(question.payload)
	if err != nil || !question.from.IsLinkLocalUnicast() || !k.servesDHCPv6(port) {
		return datagram{}, false
	}
	// On every host the same: a guest that moves keeps its server.
	self := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: k.mac}
	if server := request.Options.ServerID(); server != nil && !server.Equal(self) {
		return datagram{}, false
	}
	client := request.Options.ClientID()
	if client == nil && request.Type() != dhcpv6.MessageTypeInformationRequest {
		return datagram{}, false
	}
	reply, err := dhcpv6.NewMessage()
	if err != nil {
		return datagram{}, false
	}
	reply.TransactionID, reply.MessageType = request.TransactionID, dhcpv6.MessageTypeReply
	if client != nil {
		reply.AddOption(dhcpv6.OptClientID(client))
	}
	reply.AddOption(dhcpv6.OptServerID(self))
	switch request.Type() {
	case dhcpv6.MessageTypeSolicit:
		if request.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			dhcpv6.WithRapidCommit(reply)
		} else {
			reply.MessageType = dhcpv6.MessageTypeAdvertise
		}
		k.giveAddresses(reply, request, port)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		k.giveAddresses(reply, request, port)
	case dhcpv6.MessageTypeConfirm:
		reply.AddOption(k.confirm(request, port))
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		reply.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
	case dhcpv6.MessageTypeInformationRequest:
	default:
		return datagram{}, false
	}
	k.giveOptions(reply, port)
	return datagram{
		fromMAC: k.mac, toMAC: slices.Clone(question.fromMAC), from: netip.MustParseAddr(metadataV6), to: question.from,
		protocol: protocolUDP, fromPort: 547, toPort: question.fromPort, payload: reply.ToBytes(),
	}, true
}

func (k *knowledge) servesDHCPv6(port network.Attachment) bool {
	return slices.ContainsFunc(port.Addresses, func(fixed network.FixedAddress) bool {
		subnet, ok := k.subnetOf(fixed)
		return ok && answersDHCPv6(subnet)
	})
}

// stateful lists the addresses that DHCPv6 gives a port.
func (k *knowledge) stateful(port network.Attachment) []netip.Addr {
	var list []netip.Addr
	for _, fixed := range port.Addresses {
		if subnet, ok := k.subnetOf(fixed); ok && answersDHCPv6(subnet) && subnet.V6Mode == "dhcpv6-stateful" {
			list = append(list, fixed.Address)
		}
	}
	return list
}

// giveAddresses answers each association of the client with all the port has,
// and takes back any other address that it names.
func (k *knowledge) giveAddresses(reply, request *dhcpv6.Message, port network.Attachment) {
	addresses := k.stateful(port)
	for i, asked := range request.Options.IANA() {
		answer := &dhcpv6.OptIANA{IaId: asked.IaId, T1: k.lease / 2, T2: k.lease * 4 / 5}
		if len(addresses) == 0 || i > 0 { // the addresses are the first association's
			answer.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
			reply.AddOption(answer)
			continue
		}
		for _, addr := range addresses {
			answer.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: addr.AsSlice(), PreferredLifetime: k.lease, ValidLifetime: k.lease})
		}
		for _, old := range asked.Options.Addresses() {
			if !slices.Contains(addresses, addrOf(old.IPv6Addr)) {
				answer.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: old.IPv6Addr})
			}
		}
		reply.AddOption(answer)
	}
}

// confirm tells a client whether its addresses are still right here.
func (k *knowledge) confirm(request *dhcpv6.Message, port network.Attachment) dhcpv6.Option {
	addresses := k.stateful(port)
	for _, asked := range request.Options.IANA() {
		for _, addr := range asked.Options.Addresses() {
			if !slices.Contains(addresses, addrOf(addr.IPv6Addr)) {
				return &dhcpv6.OptStatusCode{StatusCode: iana.StatusNotOnLink}
			}
		}
	}
	return &dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess}
}

func (k *knowledge) giveOptions(reply *dhcpv6.Message, port network.Attachment) {
	var resolvers []netip.Addr
	for _, fixed := range port.Addresses {
		subnet, ok := k.subnetOf(fixed)
		if !ok || !answersDHCPv6(subnet) {
			continue
		}
		for _, resolver := range subnet.DNS {
			if resolver.Is6() && !slices.Contains(resolvers, resolver) {
				resolvers = append(resolvers, resolver)
			}
		}
	}
	if len(resolvers) > 0 {
		reply.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionDNSRecursiveNameServer, OptionData: addresses6(resolvers)})
	}
	if domain := strings.TrimSuffix(port.DNSDomain, "."); domain != "" {
		dhcpv6.WithDomainSearchList(domain)(reply)
	}
	for _, own := range port.DHCPOptions {
		if own.Version != 6 {
			continue
		}
		if code, value, err := parseOptionV6(own); err == nil {
			reply.UpdateOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionCode(code), OptionData: value})
		}
	}
}

func addresses6(list []netip.Addr) []byte {
	var out []byte
	for _, addr := range list {
		if addr.Is6() {
			out = append(out, addr.AsSlice()...)
		}
	}
	return out
}

// optionsV6 are dnsmasq's names for options of version 6.
var optionsV6 = map[string]struct {
	code uint16
	kind string
}{
	"sip-server-domain": {21, "domains"}, "sip-server": {22, "addresses"}, "dns-server": {23, "addresses"},
	"domain-search": {24, "domains"}, "nis-server": {27, "addresses"}, "nis+-server": {28, "addresses"},
	"nis-domain": {29, "domains"}, "nis+-domain": {30, "domains"}, "sntp-server": {31, "addresses"},
	"information-refresh-time": {32, "uint32"}, "ntp-server": {56, "text"}, "bootfile-url": {59, "text"},
	"bootfile-param": {60, "text"},
}

func parseOptionV6(own network.DHCPOption) (code uint16, value []byte, err error) {
	name := strings.TrimPrefix(own.Name, "option6:")
	known, named := optionsV6[name]
	if !named {
		number, err := strconv.ParseUint(name, 10, 16)
		if err != nil || number == 0 {
			return 0, nil, fmt.Errorf("DHCPv6 option %q: no such name", own.Name)
		}
		known.code, known.kind = uint16(number), "text"
		for _, other := range optionsV6 {
			if other.code == known.code {
				known.kind = other.kind
			}
		}
	}
	switch addresses := addresses6(parseAddresses(own.Value)); {
	case known.kind == "addresses", known.kind == "text" && !named && len(addresses) > 0:
		value = addresses
	default:
		value = writeOption(known.kind, own.Value)
	}
	if value == nil {
		return 0, nil, fmt.Errorf("DHCPv6 option %q: %q is no value for it", own.Name, own.Value)
	}
	return known.code, value, nil
}

// checkOption says why a port's option cannot be given.
func checkOption(own network.DHCPOption) error {
	if own.Version == 6 {
		_, _, err := parseOptionV6(own)
		return err
	}
	_, _, err := parseOptionV4(own)
	return err
}
