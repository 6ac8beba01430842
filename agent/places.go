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

// strangers bounds the connections of who has not said yet who it is: of one address, and of one link. An IPv6 machine has a whole /64 of
// addresses, so many of them count as one link; but so has a link of hosts, and one there that is loud is not to silence the others.
type strangers struct {
	machines places[netip.Addr]
	links    places[netip.Prefix]
}

// enter takes a place until leave is called, if there is one.
func (s *strangers) enter(conn net.Conn) (leave func(), ok bool) {
	machine, link := callerOf(conn)
	if !s.machines.enter(machine) {
		return nil, false
	}
	if !s.links.enter(link) {
		s.machines.leave(machine)
		return nil, false
	}
	return func() { s.links.leave(link); s.machines.leave(machine) }, true
}

// callerOf is whose connection it is, as far as the network tells. An IPv4 address is a link of its own.
func callerOf(conn net.Conn) (machine netip.Addr, link netip.Prefix) {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return machine, link // all that are no machines of the network's are one
	}
	machine = at.Addr().Unmap()
	bits := 64
	if machine.Is4() {
		bits = 32
	}
	link, _ = machine.Prefix(bits) // without a zone
	return machine, link
}
