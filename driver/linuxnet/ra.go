package linuxnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/core/network"
)

const (
	routerSolicitation  = 133
	routerAdvertisement = 134

	routerLifetime    = 30 * time.Minute
	prefixValid       = 24 * time.Hour
	prefixPreferred   = 4 * time.Hour
	flagManaged       = 0x80
	flagOther         = 0x40
	flagOnLink        = 0x80
	flagAutonomous    = 0x40
	optionSourceMAC   = 1
	optionPrefix      = 3
	optionMTU         = 5
	optionDNS         = 25 // RFC 8106
	resolversLifetime = 3 * announceEvery
)

// An advertisement is what one router says to its network (RFC 4861, section
// 4.2). The router's leg does not say it; every host says it for the router.
type advertisement struct {
	router  string // hardware address
	message []byte
}

// to addresses the advertisement to one port, at the link layer only.
func (a advertisement) to(port network.Attachment) datagram {
	mac, _ := net.ParseMAC(a.router)   // checked when the advertisement was made
	guest, _ := net.ParseMAC(port.MAC) // checked when the port became known
	return datagram{
		fromMAC: mac, toMAC: guest, from: linkLocal(mac), to: allNodes,
		protocol: protocolICMPv6, payload: slices.Clone(a.message),
	}
}

// advertisements are one for each router that announces subnets here.
func (k *knowledge) advertisements() []advertisement {
	byRouter := map[string][]network.SegmentSubnet{}
	var routers []string
	for _, subnet := range k.segment.Subnets {
		if !announces(subnet) {
			continue
		}
		if byRouter[subnet.RouterMAC] == nil {
			routers = append(routers, subnet.RouterMAC)
		}
		byRouter[subnet.RouterMAC] = append(byRouter[subnet.RouterMAC], subnet)
	}
	var list []advertisement
	for _, router := range routers {
		mac, err := net.ParseMAC(router)
		if err != nil {
			continue
		}
		list = append(list, advertisement{router, k.advertise(mac, byRouter[router])})
	}
	return list
}

func (k *knowledge) advertise(router net.HardwareAddr, subnets []network.SegmentSubnet) []byte {
	var flags byte
	var lifetime time.Duration
	var options []byte
	var resolvers []netip.Addr
	for _, subnet := range subnets {
		prefixFlags := byte(flagOnLink)
		switch subnet.RAMode {
		case "slaac":
			prefixFlags |= flagAutonomous
		case "dhcpv6-stateless":
			prefixFlags |= flagAutonomous
			flags |= flagOther
		case "dhcpv6-stateful":
			flags |= flagManaged | flagOther
		}
		if subnet.Gateway.IsValid() {
			lifetime = routerLifetime
		}
		options = append(options, optionPrefix, 4, byte(subnet.CIDR.Bits()), prefixFlags)
		options = binary.BigEndian.AppendUint32(options, uint32(prefixValid.Seconds()))
		options = binary.BigEndian.AppendUint32(options, uint32(prefixPreferred.Seconds()))
		options = append(options, 0, 0, 0, 0)
		options = append(options, subnet.CIDR.Masked().Addr().AsSlice()...)
		for _, resolver := range subnet.DNS {
			if resolver.Is6() {
				resolvers = append(resolvers, resolver)
			}
		}
	}
	if len(resolvers) > 0 {
		options = append(options, optionDNS, byte(1+2*len(resolvers)), 0, 0)
		options = binary.BigEndian.AppendUint32(options, uint32(resolversLifetime.Seconds()))
		for _, resolver := range resolvers {
			options = append(options, resolver.AsSlice()...)
		}
	}
	if k.segment.MTU > 0 {
		options = append(options, optionMTU, 1, 0, 0)
		options = binary.BigEndian.AppendUint32(options, uint32(k.segment.MTU))
	}
	options = append(append(options, optionSourceMAC, 1), router...)

	const hopLimit = 64
	message := []byte{routerAdvertisement, 0, 0, 0, hopLimit, flags}
	message = binary.BigEndian.AppendUint16(message, uint16(lifetime.Seconds()))
	message = append(message, make([]byte, 8)...) // reachable time and retransmission: the guest's own choice
	return append(message, options...)
}
