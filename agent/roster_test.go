package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// A neighbourhood is hosts of one cloud that speak with each other over TLS, on loopback, and what the controller tells one of them: here.
type neighbourhood struct {
	*testing.T
	st      *state.State
	hub     *host.Hub
	session *host.Session
	agent   *Agent
	store   *FileStore
	here    *Peers
	heard   chan resource.ID
	joined  byte
}

func neighbours(t *testing.T) *neighbourhood {
	t.Helper()
	a := newAuthority(t)
	n := &neighbourhood{T: t, st: a.State, hub: host.NewHub(a.State, host.Sources()...), here: peer(t, a), heard: make(chan resource.ID, 8)}
	store, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	n.store = store
	n.boot()
	n.join(n.here)
	n.session = n.hub.Connect(n.id(n.here))
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.here.Run(ctx, callee{awaits: func(resource.ID) bool { return true }, serve: func(from resource.ID, conn net.Conn) {
			n.heard <- from
			io.Copy(io.Discard, conn)
		}})
	}()
	t.Cleanup(func() { end(); <-ended })
	return n
}

func (n *neighbourhood) id(p *Peers) resource.ID { return p.remote.Identity.Host }

// boot is a new agent process of the host.
func (n *neighbourhood) boot() {
	n.Helper()
	a, err := New(n.store, time.Now(), RosterHandler(n.here.Sweep))
	if err != nil {
		n.Fatal(err)
	}
	n.agent, n.here.Admits = a, a.Admits
}

// join makes a machine one of the cloud's hosts.
func (n *neighbourhood) join(p *Peers) {
	n.Helper()
	n.joined++
	hello := host.Hello{Name: n.id(p).Hex(), Address: netip.AddrFrom4([4]byte{192, 0, 2, n.joined})}
	if err := host.Arrive(context.Background(), n.st, n.id(p), hello); err != nil {
		n.Fatal(err)
	}
}

func (n *neighbourhood) remove(p *Peers) {
	n.Helper()
	if err := n.st.Update(context.Background(), func(tx *state.Tx) error { return host.Remove(tx, n.id(p)) }); err != nil {
		n.Fatal(err)
	}
}

// tell has the host hear what there is to tell.
func (n *neighbourhood) tell() {
	n.Helper()
	if err := n.hub.Pump(); err != nil {
		n.Fatal(err)
	}
	for end := time.Now().Add(2 * rosterPace); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		d, err := n.session.Poll()
		if err != nil {
			n.Fatal(err)
		}
		if d != nil {
			n.deliver(*d)
			return
		}
	}
	n.Fatal("there is nothing to tell")
}

const rosterPace = time.Second // more than that of the controllers

func (n *neighbourhood) deliver(d host.Delivery) {
	n.Helper()
	if err := n.agent.Deliver(d, time.Now()); err != nil {
		n.Fatal(err)
	}
	for n.agent.Step(context.Background(), time.Now) {
	}
}

// calls has a host reach this one, and be heard or not.
func (n *neighbourhood) calls(p *Peers, heard bool) net.Conn {
	n.Helper()
	conn, err := p.Dial(context.Background(), n.here.Where())
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { conn.Close() })
	if !heard {
		n.cut(conn)
		return conn
	}
	select {
	case from := <-n.heard:
		if from != n.id(p) {
			n.Errorf("%s was heard instead", from)
		}
	case <-time.After(5 * time.Second):
		n.Error("it was not heard")
	}
	return conn
}

// cut expects the other end to end a connection.
func (n *neighbourhood) cut(conn net.Conn) {
	n.Helper()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		n.Errorf("it is heard: %v", err)
	}
	if len(n.heard) > 0 {
		n.Errorf("%s was heard", <-n.heard)
	}
}

// listens has a host take what comes, and say nothing.
func (n *neighbourhood) listens(p *Peers) {
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Run(ctx, callee{awaits: func(resource.ID) bool { return true }, serve: func(_ resource.ID, conn net.Conn) { io.Copy(io.Discard, conn) }})
	}()
	n.Cleanup(func() { end(); <-ended })
}

func TestARemovedHostIsShutOutByOtherHosts(t *testing.T) {
	n := neighbours(t)
	a := authorityOf(t, n)
	there, staying := peer(t, a), peer(t, a)
	n.calls(there, true).Close() // a controller of the release before tells nothing of hosts
	n.join(there)
	n.join(staying)
	n.listens(there)
	n.tell()
	in, stays := n.calls(there, true), n.calls(staying, true)
	out, err := n.here.Dial(t.Context(), there.Where())
	if err != nil {
		t.Fatal(err)
	}
	n.here.mu.Lock()
	if len(n.here.standing) != 3 && len(n.here.standing) != 4 { // the first may not have been seen to end
		t.Errorf("%d connections stand", len(n.here.standing))
	}
	n.here.mu.Unlock()

	n.remove(there)
	n.tell()
	n.cut(in)
	out.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := out.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection there stands: %v", err)
	}
	out.Close()
	n.calls(there, false)
	if conn, err := n.here.Dial(t.Context(), there.Where()); err == nil {
		conn.Close()
		t.Error("it is reached")
	}
	n.calls(staying, true)
	if _, err := stays.Write([]byte("x")); err != nil {
		t.Errorf("a host that stays is cut: %v", err)
	}

	// Nor when the agent has begun anew, and no controller is heard.
	n.session.Close()
	n.boot()
	n.calls(there, false)
	n.calls(staying, true)
	stays.Close()
}

func authorityOf(t *testing.T, n *neighbourhood) *host.Authority {
	t.Helper()
	a, err := host.OpenAuthority(t.Context(), n.st, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAMoveIsNotRefusedForARosterThatIsLate(t *testing.T) {
	n := neighbours(t)
	a := authorityOf(t, n)
	n.tell()
	source, target := peer(t, a), peer(t, a) // of whom it was told nothing yet
	n.listens(target)
	n.calls(source, false)
	order := func(id byte, body string) { // of the session that the roster comes in, before it
		n.deliver(host.Delivery{Items: []host.Item{{Key: host.Key{Kind: "guest", ID: resource.ID{id}}, Body: []byte(body)}}})
	}
	order(1, `{"Arrive":{"Move":1,"From":"`+n.id(source).String()+`"}}`)
	n.calls(source, true).Close()
	if conn, err := n.here.Dial(t.Context(), target.Where()); err == nil {
		conn.Close()
		t.Error("a host is reached that nobody has named")
	}
	order(2, `{"Leave":{"Move":1,"Where":"`+target.Where()+`"}}`)
	conn, err := n.here.Dial(t.Context(), target.Where())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	// Given up before they were in it: they are not heard of any more.
	order(1, `{}`)
	order(2, `{}`)
	n.calls(source, false)
	if conn, err := n.here.Dial(t.Context(), target.Where()); err == nil {
		conn.Close()
		t.Error("a host is reached that is not named any more")
	}
}

func TestAMachineInWhosePlaceAnotherHasJoinedIsShutOut(t *testing.T) {
	n := neighbours(t)
	other := resource.ID{7}
	n.deliver(host.Delivery{Items: []host.Item{{Key: host.RosterKey, Body: []byte(`{"` + other.String() + `":2}`)}}})
	for machine, admitted := range map[int]bool{-1: false, 1: false, 2: true, 3: true} { // the roster may be late
		if err := n.agent.Admits(other, machine); (err == nil) != admitted {
			t.Errorf("machine %d: %v", machine, err)
		}
	}
	n.deliver(host.Delivery{Items: []host.Item{{Key: host.RosterKey, Body: []byte(`[]`)}}})
	if n.agent.Admits(other, 2) == nil {
		t.Error("a roster that cannot be read admits everybody")
	}
}
