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
// not, whatever it says: it would count as lost, and its guests with it, for what they may not even need. It is told of instead, and no
// guest is placed there as long as that is so; see docs/decisions/distributed-routing.md.

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
	V6    bool // of which family: that of most hosts that have one; of the one that is here for longest, if it is half of them
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
	v4, _ := hosts.Sum(tx, "family", state.KeyOf(false))
	v6, _ := hosts.Sum(tx, "family", state.KeyOf(true))
	if v4 != v6 {
		return Underlay{true, v6 > v4} // one host that says something else now is not to have all others count as apart
	}
	var eldest *Host
	for h := range hosts.Peek(tx, "", state.Range{}) {
		if h.Address.IsValid() && (eldest == nil || h.Joined.Before(eldest.Joined)) {
			eldest = h
		}
	}
	return Underlay{true, !eldest.Address.Unmap().Is4()}
}

// familyOf counts the hosts of each family.
func familyOf(h *Host) (state.Key, state.Amounts) {
	if !h.Address.IsValid() {
		return "", state.Amounts{}
	}
	return state.KeyOf(!h.Address.Unmap().Is4()), state.Amounts{}
}

// widthKey puts the hosts that can be heard in the order of what their wires carry.
func widthKey(h *Host) state.Key {
	if !h.Address.IsValid() || !h.Up() {
		return ""
	}
	return state.KeyOf(h.WireMTU())
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
	if err := CheckAddress(h.Address); err != nil && h.another(tx, "") != nil {
		return fmt.Sprintf("Host %s: %s", h.Name, fault.From(err).Message)
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
	// Needs is how large a packet a wire has to carry for that.
	Needs func(tx *state.Tx, under Underlay) int
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

// A Fit tells which hosts may have new guests by their addresses and wires, as they are in one transaction. What runs somewhere is another question.
type Fit struct {
	tx    *state.Tx
	under Underlay
	needs int // bytes in a packet; 0 if no wire of a host that can be heard carries them
}

// FitOf makes ready to ask about many hosts.
func FitOf(tx *state.Tx) Fit {
	f := Fit{tx: tx, under: UnderlayOf(tx)}
	if !f.under.Known {
		return f
	}
	for _, w := range wirings {
		f.needs = max(f.needs, w.Needs(tx, f.under))
	}
	// Where no wire carries it the networks are too large, and no host is worse than the others, as in a cloud that was made by a release which did
	// not look. To have guests nowhere would be no help to anybody.
	widest := 0
	for h := range hosts.Peek(tx, "width", state.Range{Reverse: true}) {
		widest = h.WireMTU()
		break
	}
	if widest < f.needs {
		f.needs = 0
	}
	return f
}

// Asks reports whether there is anything to ask: not in a simulated cloud, nor where a host is alone and has no address.
func (f Fit) Asks() bool { return f.under.Known }

// Has reports whether a host may have new guests.
func (f Fit) Has(h *Host) bool { return f.reached(h) && !f.narrow(h) }

// reached reports whether other hosts reach it. One that has an address in common with another may be reached or not.
func (f Fit) reached(h *Host) bool {
	switch {
	case !f.under.Known || !h.tunnels():
		return true
	case CheckAddress(h.Address) != nil:
		return h.another(f.tx, "") == nil // it is alone
	}
	return f.under.Reaches(h) && h.another(f.tx, addressKey(h)) == nil
}

// narrow reports whether a wire is known to carry too little: an agent of the release before does not say what its does.
func (f Fit) narrow(h *Host) bool { return h.Address.IsValid() && h.MTU != 0 && h.MTU < f.needs }

// Unfit says why a host of the cloud has no new guests because of its address or its wire, and what to do; "" if it may have them.
func (h *Host) Unfit(tx *state.Tx) string {
	switch f := FitOf(tx); {
	case !f.reached(h):
		return h.Apart(tx)
	case f.narrow(h):
		return h.Narrow(tx)
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
