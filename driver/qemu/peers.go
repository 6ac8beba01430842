package qemu

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// Peers reaches the drivers of other hosts of the cloud. Nobody else can read what goes over its connections, and either
// end is sure which host the other is. The hypervisors themselves know no network and no key: what they send each
// other they hand to us.
type Peers interface {
	// Where is how others reach this host; "" if they cannot.
	Where() string
	// Dial reaches a host by its Where. The connection can be closed for writing alone.
	Dial(ctx context.Context, where string) (net.Conn, error)
}

// Join lets guests go to other hosts, and come from them. It is called before anything else.
func (d *Driver) Join(p Peers) { d.peers = p }

func (d *Driver) where() string {
	if d.peers == nil {
		return ""
	}
	return d.peers.Where()
}

// A hail begins each connection from the host that a guest leaves to the one that it goes to.
type hail struct {
	Guest   resource.ID
	Move    int
	Purpose purpose
	Luggage *luggage `json:",omitempty"`
	Bytes   int64    `json:",omitempty"` // of what follows, if that is known
}

// A purpose says what a connection is for.
type purpose string

const (
	forLuggage purpose = "luggage" // what the guest is made of, before anything else
	forDisk    purpose = "disk"    // one disk, from one hypervisor to the other
	forMemory  purpose = "memory"  // its memory, likewise
	forLog     purpose = "log"     // what it wrote to its console meanwhile
	forTrial   purpose = "trial"   // nothing: how fast the wire is
	forEnd     purpose = "end"     // the disks are all there, and there is no memory
)

// A welcome answers a hail.
type welcome struct {
	Trouble string `json:",omitempty"` // why not, in words for the owner
}

// How long peers wait for each other, and how much one says at a time.
const (
	peerTime   = 3 * time.Second
	loadTime   = 40 * time.Second
	maxHail    = 4 << 20
	maxLuggage = 64 << 20 // of each file
)

// tell writes one message.
func tell(conn net.Conn, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

// hear reads one message, and nothing beyond it.
func hear(conn net.Conn, v any) error {
	var length [4]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxHail {
		return fmt.Errorf("a message of %d bytes", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(conn, text); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// hails dials the host that a guest goes to. trouble is that host's word for the owner.
func (d *Driver) hails(ctx context.Context, where string, within time.Duration, h hail, more ...[]byte) (conn net.Conn, trouble string, err error) {
	if d.peers == nil {
		return nil, "This host is joined to no other.", nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if conn, err = d.peers.Dial(ctx, where); err != nil {
		return nil, "", fmt.Errorf("reach the host that the guest goes to: %w", err)
	}
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	err = tell(conn, h)
	for _, part := range more {
		if err == nil {
			_, err = conn.Write(part)
		}
	}
	var w welcome
	if err == nil {
		err = hear(conn, &w)
	}
	if err != nil || w.Trouble != "" {
		conn.Close()
		return nil, w.Trouble, err
	}
	conn.SetDeadline(time.Time{})
	return conn, "", nil
}

// Pipes are the connections of one guest's move in this process. They end together.
type pipes struct {
	mu    sync.Mutex
	ended bool               // guarded by mu
	conns map[io.Closer]bool // guarded by mu
	group sync.WaitGroup     // of what this side began
	sent  atomic.Int64       // bytes that went to the other host
}

func newPipes() *pipes { return &pipes{conns: map[io.Closer]bool{}} }

// keep takes a connection over; one that comes too late is closed.
func (p *pipes) keep(c io.Closer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *pipes) drop(c io.Closer) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// close cuts all connections, and waits for what passes bytes between them.
func (p *pipes) close() {
	p.mu.Lock()
	p.ended = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.group.Wait()
}

// join passes bytes between a hypervisor and another host until both have said all, or one of them is gone.
func (p *pipes) join(hypervisor, peer net.Conn) {
	defer p.drop(hypervisor)
	defer p.drop(peer)
	if !p.keep(hypervisor) || !p.keep(peer) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { pass(hypervisor, peer) })
	pass(counted{peer, &p.sent}, hypervisor)
	back.Wait()
}

// pass copies one way. A side that ends in the middle ends the other, too: half a connection is none.
func pass(to, from net.Conn) {
	_, err := io.CopyBuffer(onlyWriter{to}, onlyReader{from}, make([]byte, 256<<10))
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		err = half.CloseWrite()
	}
	if err != nil { // also if somebody has closed one of them: the other is not to wait for what does not come any more
		to.Close()
		from.Close()
	}
}

// counted counts what is written to a connection.
type counted struct {
	net.Conn
	bytes *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}

func (c counted) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Without these, io.Copy would splice between sockets with buffers of its own choice, and smaller ones.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)
