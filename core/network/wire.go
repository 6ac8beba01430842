package network

import (
	"fmt"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// Packets of an overlay go from host to host within those of the wire, which therefore has to carry more than the network says that it does:
// what is too large for it is dropped, and nobody told. So no network is made whose packets the wire of any host does not carry, and no host
// joins whose wire does not carry what there is: see docs/decisions/distributed-routing.md.

// Costs of VXLAN in bytes of each packet, by what it is carried over.
const (
	overheadV4 = 50
	overheadV6 = 70
)

func overhead(under host.Underlay) int {
	if under.V6 {
		return overheadV6
	}
	return overheadV4
}

// OverlayMTU is how large a packet of a network between hosts may be where the wire carries packets of so many bytes.
func OverlayMTU(wire int, v6 bool) int { return wire - overhead(host.Underlay{V6: v6}) }

func init() { // of functions that reach the tables
	host.Wire(host.Wiring{First: fitFirst, Narrow: narrow, Needs: needs})
}

// largestMTU is what fits a network's packets: for an overlay through the tunnel to any host.
func largestMTU(tx *state.Tx, n *Network) int {
	if n.Kind != Overlay {
		return physicalMTU
	}
	wire := 0
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if h.Address.IsValid() && (wire == 0 || h.WireMTU() < wire) {
			wire = h.WireMTU()
		}
	}
	if wire == 0 {
		wire = host.PlainMTU
	}
	// A host that says less is in trouble, and told of; it is not to keep everybody from making networks.
	return max(wire-overhead(host.UnderlayOf(tx)), minMTUv6)
}

// fitFirst makes the networks fit that were made before any host had an address, such as those that a cloud begins with: the first that
// has one tells what wires carry. Where there are guests the network stays as they were told that it is.
func fitFirst(tx *state.Tx, h *host.Host) error {
	most := max(h.WireMTU()-overhead(host.UnderlayOf(tx)), minMTUv6)
	var large []*Network
	for n := range networks.Peek(tx, "overlay-mtu", state.Range{Reverse: true}) {
		if n.MTU <= most {
			break
		}
		if !guestsOn(tx, n) {
			large = append(large, n)
		}
	}
	for _, n := range large {
		now, _ := networks.Find(tx, n.ID)
		now.MTU = most
		if err := networks.Put(tx, now); err != nil {
			return err
		}
	}
	return nil
}

// guestsOn reports whether servers have ports in a network.
func guestsOn(tx *state.Tx, n *Network) bool {
	for p := range ports.Peek(tx, "network", state.Range{Prefix: state.KeyOf(n.ID)}) {
		if p.Owner == OwnerServer {
			return true
		}
	}
	return false
}

// needs is how large a packet a wire has to carry for the networks that there are.
func needs(tx *state.Tx, under host.Underlay) int {
	most := minMTUv6 // any network may have IPv6 one day
	for n := range networks.Peek(tx, "overlay-mtu", state.Range{Reverse: true}) {
		most = max(most, n.MTU)
		break
	}
	return most + overhead(under)
}

// narrow says why a host's wire does not carry the networks that there are.
func narrow(tx *state.Tx, h *host.Host) string {
	under := host.UnderlayOf(tx)
	if !h.Address.IsValid() || !under.Reaches(h) {
		return "" // nothing goes there
	}
	need := needs(tx, under)
	if h.WireMTU() >= need {
		return ""
	}
	said := ""
	if h.MTU == 0 {
		said = " (it did not say, and that counts as so much)"
	}
	why := fmt.Sprintf("Host %s has a wire for packets of up to %d bytes at %s%s, and %d are needed for networks with an MTU of %d: what is larger does not arrive. "+
		"Raise the MTU of that link, and of the switches between the hosts, to %d or more", h.Name, h.WireMTU(), h.Address, said, need, need-overhead(under), need)
	if fits := h.WireMTU() - overhead(under); fits >= minMTUv6 {
		why += fmt.Sprintf("; or lower that of the networks that have more than %d (openstack network set --mtu %d), whose guests have to ask for their addresses anew", fits, fits)
	}
	return why + "."
}
