package network

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Pool is a range of addresses, both ends included, from which ports are given theirs.
type Pool struct{ First, Last netip.Addr }

// Holds reports whether the address is in the pool.
func (p Pool) Holds(a netip.Addr) bool { return p.First.Compare(a) <= 0 && a.Compare(p.Last) <= 0 }

// addressTaken reports whether a port of the network has the address.
func addressTaken(tx *state.Tx, networkID resource.ID, a netip.Addr) bool {
	for range ports.Peek(tx, "address", state.Range{Prefix: state.KeyOf(networkID, a)}) {
		return true
	}
	return false
}

// freeAddress chooses an address of the subnet that no port has. Addresses are given out upwards:
// one given back is not given to somebody else while there are others.
// but are addresses promised in this transaction that no port has yet.
func freeAddress(tx *state.Tx, s *Subnet, but []FixedAddress) (netip.Addr, bool) {
	for _, pool := range s.Pools {
		if a, ok := freeIn(tx, s.NetworkID, pool, but); ok {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func freeIn(tx *state.Tx, networkID resource.ID, pool Pool, but []FixedAddress) (netip.Addr, bool) {
	size := poolSize(pool)
	used := func(offset uint64) bool {
		a := plus(pool.First, offset)
		return slices.ContainsFunc(but, func(f FixedAddress) bool { return f.Address == a }) || addressTaken(tx, networkID, a)
	}
	last := uint64(0) // one more than the offset of the highest address in use, so that 0 means none
	if a, ok := highestUsed(tx, networkID, pool); ok {
		last = distance(pool.First, a) + 1
	}
	offset, ok := pickFree(tx, 1, size, last, func(n uint64) bool { return used(n - 1) })
	if !ok {
		return netip.Addr{}, false
	}
	return plus(pool.First, offset-1), true
}

// highestUsed is the highest address of the pool that a port has.
func highestUsed(tx *state.Tx, networkID resource.ID, pool Pool) (netip.Addr, bool) {
	// Everything of the network at or below the pool's last address, downwards.
	r := state.Range{Prefix: state.KeyOf(networkID), Reverse: true, After: maxID, AfterKey: state.KeyOf(networkID, pool.Last)}
	for p := range ports.Peek(tx, "address", r) {
		// The port may have several addresses: the one that led here is the highest of those in reach.
		var top netip.Addr
		for _, f := range p.Fixed {
			if f.Address.Compare(pool.Last) <= 0 && f.Address.BitLen() == pool.Last.BitLen() && (!top.IsValid() || top.Less(f.Address)) {
				top = f.Address
			}
		}
		if top.IsValid() && pool.Holds(top) {
			return top, true
		}
		return netip.Addr{}, false
	}
	return netip.Addr{}, false
}

// maxID is greater than every ID.
var maxID = resource.MustID("ffffffff-ffff-ffff-ffff-ffffffffffff")

// tries is how often a number is guessed before the search goes in order.
const tries = 24

// pickFree chooses a number between first and last, both included, that is not used: the one above
// the highest in use (0 for none), or, when that is past the end, one at random. Only in a range that
// is nearly full does it search step by step, from a random place on.
func pickFree(tx *state.Tx, first, last, highest uint64, used func(uint64) bool) (uint64, bool) {
	if first > last {
		return 0, false
	}
	if next := max(highest+1, first); next <= last && !used(next) {
		return next, true
	}
	span := last - first + 1
	start := first
	for range tries {
		start = first + random(tx)%span
		if !used(start) {
			return start, true
		}
	}
	for n := start; n <= last; n++ {
		if !used(n) {
			return n, true
		}
	}
	for n := first; n < start; n++ {
		if !used(n) {
			return n, true
		}
	}
	return 0, false
}

func random(tx *state.Tx) uint64 {
	var b [8]byte
	tx.Random(b[:])
	return binary.BigEndian.Uint64(b[:])
}

// poolSize is how many addresses the pool has, at most 2^63.
func poolSize(p Pool) uint64 {
	return min(distance(p.First, p.Last), 1<<63-1) + 1
}

// distance is b - a, at most 2^63.
func distance(a, b netip.Addr) uint64 {
	x, y := a.As16(), b.As16()
	d := new(big.Int).Sub(new(big.Int).SetBytes(y[:]), new(big.Int).SetBytes(x[:]))
	if d.Sign() < 0 {
		return 0
	}
	if d.BitLen() > 63 {
		return 1 << 63
	}
	return d.Uint64()
}

// plus is a + n.
func plus(a netip.Addr, n uint64) netip.Addr {
	raw := a.As16()
	low := binary.BigEndian.Uint64(raw[8:])
	sum := low + n
	binary.BigEndian.PutUint64(raw[8:], sum)
	if sum < low {
		binary.BigEndian.PutUint64(raw[:8], binary.BigEndian.Uint64(raw[:8])+1)
	}
	out := netip.AddrFrom16(raw)
	if a.Is4() {
		return out.Unmap()
	}
	return out
}

// count is how many addresses the pools have together.
func count(pools []Pool) *big.Int {
	total := new(big.Int)
	for _, p := range pools {
		x, y := p.First.As16(), p.Last.As16()
		d := new(big.Int).Sub(new(big.Int).SetBytes(y[:]), new(big.Int).SetBytes(x[:]))
		total.Add(total, d.Add(d, big.NewInt(1)))
	}
	return total
}

// lastAddress is the highest address of a prefix: the broadcast in IPv4.
func lastAddress(p netip.Prefix) netip.Addr { return netipx.PrefixLastIP(p) }

// defaultPools is all of the prefix but what nobody may have (the network's own address, and in IPv4
// the broadcast) and the gateway.
func defaultPools(prefix netip.Prefix, gateway netip.Addr) []Pool {
	r := netipx.RangeOfPrefix(prefix)
	first, last := r.From(), r.To()
	switch free := prefix.Addr().BitLen() - prefix.Bits(); {
	case prefix.Addr().Is4() && free >= 2:
		first, last = first.Next(), last.Prev()
	case prefix.Addr().Is6() && free >= 2:
		first = first.Next()
	}
	if !gateway.IsValid() || !(Pool{first, last}).Holds(gateway) {
		return []Pool{{first, last}}
	}
	var pools []Pool
	if first.Less(gateway) {
		pools = append(pools, Pool{first, gateway.Prev()})
	}
	if gateway.Less(last) {
		pools = append(pools, Pool{gateway.Next(), last})
	}
	return pools
}

// eui64 is the address that a host makes for itself from a prefix and its MAC address
// (RFC 4291, appendix A).
func eui64(prefix netip.Prefix, mac string) (netip.Addr, error) {
	m, err := parseMAC(mac)
	if err != nil {
		return netip.Addr{}, err
	}
	raw := prefix.Masked().Addr().As16()
	copy(raw[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	return netip.AddrFrom16(raw), nil
}

func parseMAC(s string) (m [6]byte, err error) {
	raw, err := net.ParseMAC(s)
	if err != nil || len(raw) != 6 || len(s) != 17 {
		return m, invalid("mac", "'%s' is not a valid MAC address.", s)
	}
	return [6]byte(raw), nil
}

// Our MAC addresses: unicast, locally administered, all with one prefix. The first one of a cloud is
// random, so that two clouds on one wire differ, and the others follow it, so that the IPv6 addresses
// made of them lie side by side.
const (
	macPrefix = "fa:16:3e:"
	lastMAC   = 1<<24 - 1
)

// newMAC makes an address that no port of the cloud has.
func newMAC(tx *state.Tx) (string, error) {
	spell := func(n uint64) string {
		return fmt.Sprintf(macPrefix+"%02x:%02x:%02x", byte(n>>16), byte(n>>8), byte(n))
	}
	used := func(n uint64) bool {
		_, taken := ports.Lookup(tx, "mac", state.KeyOf(spell(n)))
		return taken
	}
	highest := random(tx) % (lastMAC / 2)
	for p := range ports.Peek(tx, "mac", state.Range{Prefix: macPrefix, Reverse: true}) {
		if m, err := parseMAC(p.MAC); err == nil {
			highest = uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
		}
		break
	}
	n, ok := pickFree(tx, 1, lastMAC, highest, used)
	if !ok {
		return "", fault.Errorf(fault.Exhausted, "Unable to find a free MAC address.").WithCode("no-mac")
	}
	return spell(n), nil
}
