package qemu

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/computetest"
)

// wire joins the drivers of a test, over loopback and without encryption.
type wire struct {
	mu   sync.Mutex
	ends map[*host]*wireEnd // guarded by mu
}

// A wireEnd is one host on it, over all its drivers.
type wireEnd struct {
	wire   *wire
	is     resource.ID // who this host is to others
	listen net.Listener

	mu     sync.Mutex
	driver *Driver // guarded by mu
}

func (w *wireEnd) Where() string { return w.listen.Addr().String() }

func (w *wireEnd) Dial(ctx context.Context, where string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", where)
	if err != nil {
		return nil, err
	}
	_, err = conn.Write(w.is[:])
	return conn, err
}

func (w *wireEnd) serve() {
	for {
		conn, err := w.listen.Accept()
		if err != nil {
			return
		}
		go func() {
			var from resource.ID
			if _, err := conn.Read(from[:]); err != nil {
				conn.Close()
				return
			}
			w.mu.Lock()
			d := w.driver
			w.mu.Unlock()
			d.Serve(from, conn)
		}()
	}
}

// join puts a host's driver on the wire.
func (w *wire) join(t testing.TB, h *host, d *Driver) *Driver {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.ends[h]
	if end == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		end = &wireEnd{wire: w, listen: l}
		if w.ends == nil {
			w.ends = map[*host]*wireEnd{}
		}
		w.ends[h] = end
		go end.serve()
		t.Cleanup(func() { l.Close() })
	}
	end.mu.Lock()
	end.driver = d
	end.mu.Unlock()
	d.Join(end)
	return d
}

// hostOf is the host of a driver among some.
func hostOf(d compute.Driver, all []*host) *host {
	n := slices.IndexFunc(all, func(h *host) bool { return filepath.Join(h.dir, "qemu") == d.(*Driver).dir })
	return all[n]
}

// obeys waits until the guest answers what is typed.
func obeys(t testing.TB, d compute.Driver, id resource.ID) {
	t.Helper()
	eventually(t, "a guest that obeys", func() bool {
		conn, err := d.(*Driver).Console(t.Context(), id, "serial")
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := conn.Write([]byte("z")); err != nil { // which it says of itself never
			return false
		}
		for answer := make([]byte, 1); ; {
			if _, err := conn.Read(answer); err != nil {
				return false
			}
			if answer[0] == 'z' {
				return true
			}
		}
	})
}

func TestMover(t *testing.T) {
	t.Parallel()
	testMover(t, false)
}

func testMover(t *testing.T, shared bool) {
	var mu sync.Mutex
	byCase := map[string][]*host{} // guarded by mu
	w := &wire{}
	of := func(t testing.TB, d compute.Driver) *host {
		mu.Lock()
		defer mu.Unlock()
		return hostOf(d, byCase[t.Name()])
	}
	first := func(t testing.TB) *host {
		mu.Lock()
		defer mu.Unlock()
		return byCase[t.Name()][0]
	}
	o := contract(first)
	o.Booted, o.Leftovers = obeys, nil
	o.Impressed = func(t testing.TB, d compute.Driver, id resource.ID) {
		before := strings.Count(log(t, d, id), "w.")
		eventually(t, "its writing", func() bool { // what is typed as a connection ends may get lost
			types(t, d, id, "w")
			return strings.Count(log(t, d, id), "w.") > before
		})
	}
	o.Reopen = func(t testing.TB, d compute.Driver) compute.Driver {
		h := of(t, d)
		return w.join(t, h, h.reopen(t, d).(*Driver))
	}
	m := computetest.MoverOptions{Options: o, LeftoversOf: func(t testing.TB, d compute.Driver) []string { return of(t, d).leftovers(t) }}
	if shared {
		m.Disks = func(t testing.TB) (ids []resource.ID) {
			found, err := filepath.Glob(filepath.Join(first(t).disks, "guests", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range found {
				id, err := resource.ParseID(filepath.Base(path))
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, id)
			}
			return ids
		}
		m.Dies = func(t testing.TB, d compute.Driver) {
			ids, err := d.Present(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				o.Crash(t, d, id)
			}
		}
	}
	computetest.TestMover(t, func(t testing.TB) (from, to compute.Driver) {
		a, b := newHost(t), newHost(t)
		b.image.ID = a.image.ID
		if shared {
			a.disks = t.TempDir()
			b.disks = a.disks
		}
		mu.Lock()
		byCase[t.Name()] = []*host{a, b}
		mu.Unlock()
		from = w.join(t, a, a.open(t))
		if shared {
			a.storage = from.(*Driver).storage.id
		}
		return from, w.join(t, b, b.open(t))
	}, m)
}

// Whoever closes one of two connections ends both: an agent that is told to end must not wait for a hypervisor that is silent.
func TestAClosedPeerEndsTheWay(t *testing.T) {
	hypervisor, silent, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	peer, far, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	ended := make(chan struct{})
	go func() {
		newPipes().join(hypervisor, peer)
		close(ended)
	}()
	peer.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for the hypervisor")
	}
}
