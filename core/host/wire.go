package host

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Hosts reach each other at their addresses: guests' packets between hosts are carried there, and guests move there. All are of one family,
// each is one host's, and each host has one, unless it is the only one. A new host that would break that is refused. One that is in is
// not, whatever it says: it would count as lost, and its guests with it, for what they may not even need. It is told of instead; see
// docs/decisions/distributed-routing.md.

// Simulated is the driver of hosts that are no machines, and have no address.
const Simulated = "sim"

// PlainMTU is what a wire carries of which nobody has said anything.
const PlainMTU = 1500

// WireMTU is the largest packet that the wire carries by which the host reaches others.
func (h *Host) WireMTU() int {
	if h.MTU == 0 {
		return PlainMTU
	}
	return h.MTU
}

// tunnels reports whether others have to reach the host. That simulated ones do is simulated, too.
func (h *Host) tunnels() bool {
	return h.Address.IsValid() || h.Capacity.Driver != "" && h.Capacity.Driver != Simulated
}

// addressKey is what hosts are found by that others have to reach; those without an address come first.
func addressKey(h *Host) state.Key {
	switch {
	case !h.tunnels():
		return ""
	case h.Address.IsValid():
		return state.KeyOf(true, h.Address.Unmap())
	default:
		return state.KeyOf(false)
	}
}

// CheckAddress refuses an address at which no other machine can reach this one. None at all is another question.
func CheckAddress(a netip.Addr) error {
	if a.IsValid() && (a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})) {
		return fault.Errorf(fault.Invalid, "Other hosts cannot reach this one at %s. Give it an address for tunnels that is its own and that they can reach, with --address.", a)
	}
	return nil
}

// An Underlay is that over which hosts reach each other.
type Underlay struct {
	Known bool // a host has an address
	V6    bool // of which family: that of the first host that has one
}

// UnderlayOf tells it, as far as the hosts there are decide it.
func UnderlayOf(tx *state.Tx) Underlay {
	known := false
	for h := range hosts.Peek(tx, "address", state.Range{Reverse: true}) {
		known = h.Address.IsValid()
		break
	}
	if !known {
		return Underlay{} // as in a simulated cloud, however many hosts it has
	}
	for h := range hosts.Peek(tx, "", state.Range{}) {
		if h.Address.IsValid() {
			return Underlay{true, !h.Address.Unmap().Is4()}
		}
	}
	return Underlay{}
}

// Reaches reports whether other hosts reach one; where none has an address, each is by itself, or simulated.
func (u Underlay) Reaches(h *Host) bool {
	return !u.Known || h.Address.IsValid() && h.Address.Unmap().Is4() != u.V6
}

// Apart says why other hosts do not reach a host of the cloud, and what to do; "" if they do, or if there are none that have to.
func (h *Host) Apart(tx *state.Tx) string {
	if !h.tunnels() {
		return ""
	}
	if !h.Address.IsValid() {
		if other := h.another(tx, ""); other != nil {
			return fmt.Sprintf("Host %s has no address at which others, such as %s, reach it: its agent is to be started with --address.", h.Name, other.Name)
		}
		return ""
	}
	if other := h.another(tx, addressKey(h)); other != nil {
		return fmt.Sprintf("Host %s says that its address is %s, and so does host %s: one of the two is to be started with another --address, which is its own. "+
			"If %s is no more, take it out (unkai controller remove %s); if it is this machine, join as it (unkai controller token --as %s).", h.Name, h.Address, other.Name, other.Name, other.Name, other.Name)
	}
	if u := UnderlayOf(tx); !u.Reaches(h) {
		family := "IPv4"
		if u.V6 {
			family = "IPv6"
		}
		return fmt.Sprintf("Host %s has the address %s, and the hosts of this cloud reach each other over %s: its agent is to be started with --address and an %s address.", h.Name, h.Address, family, family)
	}
	return ""
}

// another gives another host that has to be reached, of those with this key; nil if there is none.
func (h *Host) another(tx *state.Tx, key state.Key) *Host {
	for other := range hosts.Peek(tx, "address", state.Range{Prefix: key}) {
		if other.ID != h.ID {
			return other
		}
	}
	return nil
}

// A Wiring is what a domain has to do with the wires between hosts. Both are pure.
type Wiring struct {
	// First adapts what was made before any host had an address, and so before anybody knew what the wires carry.
	First func(tx *state.Tx, h *Host) error
	// Narrow says why the wire of a host does not carry what there is, and what to do; "" if it does.
	Narrow func(tx *state.Tx, h *Host) string
}

var wirings []Wiring

// Wire adds one, before the program begins its work.
func Wire(w Wiring) { wirings = append(wirings, w) }

// Narrow says why the wire by which the host reaches others does not carry what there is; "" if it does.
func (h *Host) Narrow(tx *state.Tx) string {
	for _, w := range wirings {
		if why := w.Narrow(tx, h); why != "" {
			return why
		}
	}
	return ""
}

// wire sees to it that a host that was just put in, or said something new, and the others reach each other.
func (h *Host) wire(tx *state.Tx, isNew, first bool) error {
	if first {
		for _, w := range wirings {
			if err := w.First(tx, h); err != nil {
				return err
			}
		}
	}
	if !isNew {
		return nil
	}
	if err := CheckAddress(h.Address); err != nil {
		return err
	}
	if why := h.Apart(tx); why != "" {
		return fault.Errorf(fault.Conflict, "%s", why)
	}
	for other := range hosts.Peek(tx, "address", state.Range{Prefix: state.KeyOf(false)}) {
		if other.ID != h.ID && h.tunnels() {
			return fault.Errorf(fault.Conflict, "%s Host %s can join after that, or when %s was taken out (unkai controller remove %s).", other.Apart(tx), h.Name, other.Name, other.Name)
		}
	}
	if why := h.Narrow(tx); why != "" {
		return fault.Errorf(fault.Conflict, "%s", why)
	}
	return nil
}

// warn logs what is wrong with the wire of a host that is in.
func warn(ctx context.Context, tx *state.Tx, id resource.ID) {
	h, ok := hosts.PeekOne(tx, id)
	if !ok {
		return
	}
	for _, why := range []string{h.Apart(tx), h.Narrow(tx)} {
		if why != "" {
			slog.WarnContext(ctx, "a host's wire does not do", "host", h.Name, "why", why)
		}
	}
}
