package agent

import (
	"net"
	"net/netip"
	"sync"
)

// places bounds how many connections there are at a time, of one caller and of all.
type places[K comparable] struct {
	each, all int

	mu    sync.Mutex
	taken map[K]int // guarded by mu
	sum   int       // of taken; guarded by mu
}

// enter takes a place, if there is one.
func (p *places[K]) enter(who K) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sum >= p.all || p.taken[who] >= p.each {
		return false
	}
	if p.taken == nil {
		p.taken = map[K]int{}
	}
	p.taken[who]++
	p.sum++
	return true
}

// leave gives a place back.
func (p *places[K]) leave(who K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum--
	if p.taken[who]--; p.taken[who] == 0 {
		delete(p.taken, who)
	}
}

// callerOf is whose connection it is, as far as the network tells: an IPv6 machine has a whole /64 of addresses.
func callerOf(conn net.Conn) string {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	if a := at.Addr().Unmap(); a.Is4() {
		return a.String()
	}
	prefix, err := at.Addr().WithZone("").Prefix(64)
	if err != nil {
		return at.Addr().String()
	}
	return prefix.String()
}
