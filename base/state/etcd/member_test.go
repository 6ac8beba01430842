package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/freeport"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

type note struct {
	resource.Meta
	Text string
}

var notes = state.NewTable("member-test-note", state.Index("text", func(n *note) state.Key { return state.KeyOf(n.Text) }))

// A crowd is several controllers' states, each on an etcd member of its own.
type crowd struct {
	t    *testing.T
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	mu   sync.Mutex
	live map[int]*controller // guarded by mu

	fault func(step string) error // of every engine
}

type controller struct {
	engine *Engine
	state  *state.State
	stop   context.CancelFunc
	done   chan struct{}
}

func newCrowd(t *testing.T) *crowd {
	c := &crowd{t: t, dir: t.TempDir(), live: map[int]*controller{}}
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	c.write("ca.pem", "CERTIFICATE", der)
	t.Cleanup(func() {
		for n := range c.live {
			c.kill(n)
		}
	})
	return c
}

func (c *crowd) write(name, kind string, der []byte) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// certificate makes one for this machine that is called role.
func (c *crowd) certificate(name, role string) (cert, key string) {
	c.t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: role}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"c1", "c2", "c3"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, own.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.write(name+".pem", "CERTIFICATE", der), c.write(name+".key", "PRIVATE KEY", private)
}

// member says how controller n is a member; existing: of the ones there are, when it joins.
func (c *crowd) member(n int, address string, existing map[string]string) *Member {
	name := fmt.Sprint("c", n)
	cert, key := c.certificate(name, "controller")
	return &Member{Name: name, Listen: address, URL: "https://" + address, CertFile: cert, KeyFile: key,
		CAFile: filepath.Join(c.dir, "ca.pem"), Role: "controller", Existing: existing}
}

func (c *crowd) start(n int, m *Member) *controller {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, err := Open(ctx, Options{Dir: filepath.Join(c.dir, fmt.Sprint("data", n)), Member: m, Fault: c.fault})
	if err != nil {
		c.t.Fatal(err)
	}
	s, err := state.OpenFollower(ctx, e, state.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	run, stop := context.WithCancel(context.Background())
	one := &controller{engine: e, state: s, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(one.done)
		err := Serve(run, e, s, func(ctx context.Context) { <-ctx.Done() })
		if !errors.Is(err, context.Canceled) {
			c.t.Errorf("controller %d ended with %v", n, err)
		}
	}()
	c.mu.Lock()
	c.live[n] = one
	c.mu.Unlock()
	return one
}

func (c *crowd) of(n int) *controller {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live[n]
}

// out takes a controller out of those that are asked.
func (c *crowd) out(n int) *controller {
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.live[n]
	delete(c.live, n)
	return one
}

// crash ends a controller's member as a power cut would, and then what is left of the controller.
func (c *crowd) crash(n int) {
	one := c.out(n)
	one.engine.HardStop()
	one.stop()
	<-one.done
	if err := one.state.Close(); err != nil {
		c.t.Error(err)
	}
}

// kill ends a controller, which hands its leadership to another.
func (c *crowd) kill(n int) {
	one := c.out(n)
	one.stop()
	<-one.done
	if err := one.state.Close(); err != nil {
		c.t.Error(err)
	}
}

// write writes on whichever controller leads, until one does it.
func (c *crowd) put(text string) time.Duration {
	c.t.Helper()
	began := time.Now()
	for {
		c.mu.Lock()
		all := make([]*controller, 0, len(c.live))
		for _, one := range c.live {
			all = append(all, one)
		}
		c.mu.Unlock()
		for _, one := range all {
			err := one.state.Update(c.t.Context(), func(tx *state.Tx) error {
				if _, ok := notes.Lookup(tx, "text", state.KeyOf(text)); ok {
					return nil // an answer was lost, and this is the second try
				}
				return notes.Put(tx, &note{Meta: resource.Meta{ID: tx.NewID()}, Text: text})
			})
			if err == nil {
				return time.Since(began)
			}
			if !fault.Is(err, fault.Unavailable) {
				c.t.Fatal(err)
			}
		}
		if time.Since(began) > 20*time.Second {
			c.t.Fatal("nobody leads")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestControllers has three take over from each other: what was acknowledged is there, once, on all of them.
func TestControllers(t *testing.T) {
	c := newCrowd(t)
	first := freeport.Address(t)
	one := c.start(1, c.member(1, first, nil))
	for n := range 50 {
		c.put(fmt.Sprint("alone ", n))
	}
	addresses := map[int]string{1: first}
	members := map[string]string{"c1": "https://" + first}
	for n := 2; n <= 3; n++ {
		addresses[n] = freeport.Address(t)
		if _, err := one.engine.AddMember(t.Context(), "https://"+addresses[n]); err != nil {
			t.Fatal(err)
		}
		members[fmt.Sprint("c", n)] = "https://" + addresses[n]
		c.start(n, c.member(n, addresses[n], members))
		c.vote(one.engine, n)
	}
	written := 50
	for round := range 4 {
		var leader int
		for range 20 {
			c.put(fmt.Sprint("note ", written))
			written++
		}
		for n, one := range c.live {
			if one.state.Leads() {
				leader = n
			}
		}
		end := c.kill
		if round%2 == 0 {
			end = c.crash
		}
		var ended sync.WaitGroup
		began := time.Now()
		ended.Go(func() { end(leader) })
		for c.of(leader) != nil { // from now on nobody asks it
			time.Sleep(time.Millisecond)
		}
		c.put(fmt.Sprint("note ", written))
		lost := time.Since(began)
		ended.Wait()
		written++
		t.Logf("round %d: controller %d is gone, and another writes after %v", round, leader, lost.Round(time.Millisecond))
		if lost > 5*time.Second { // 3 s are asked on a machine that does nothing else
			t.Errorf("after %v", lost)
		}
		c.start(leader, c.member(leader, addresses[leader], nil))
	}
	c.put("last")
	for n, one := range c.live {
		if err := one.state.Confirm(t.Context()); err != nil {
			t.Fatalf("controller %d: %v", n, err)
		}
		tx := one.state.Latest()
		if got := notes.Len(tx); got != written+1 {
			t.Errorf("controller %d has %d notes, want %d", n, got, written+1)
		}
		if wrong := state.Verify(tx); len(wrong) > 0 {
			t.Errorf("controller %d: %v", n, wrong)
		}
	}

	// Without a majority nothing is written, reads go on, and say that they may be old.
	for n, one := range c.live {
		if err := one.engine.Led(t.Context()); err != nil {
			t.Errorf("with all of them controller %d sees none that leads: %v", n, err)
		}
	}
	var left *controller
	for n := range addresses {
		if left == nil {
			left = c.live[n]
		} else {
			c.kill(n)
		}
	}
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		began := time.Now()
		err = left.state.Update(t.Context(), func(tx *state.Tx) error {
			return notes.Put(tx, &note{Meta: resource.Meta{ID: tx.NewID()}, Text: "never"})
		})
		if err == nil {
			t.Fatal("one of three writes alone")
		}
		if fault.From(err).Code == "not-leading" && time.Since(began) < 100*time.Millisecond {
			break // at once, from now on
		}
	}
	if !fault.Is(err, fault.Unavailable) || left.state.Leads() {
		t.Errorf("a write without a majority: %v", err)
	}
	began := time.Now()
	if err := left.state.Confirm(t.Context()); err == nil || time.Since(began) > time.Second {
		t.Errorf("a read without a majority is confirmed, %v, after %v", err, time.Since(began))
	}
	if err := left.engine.Led(t.Context()); err == nil {
		t.Error("without a majority it sees one that leads")
	}
	if got := notes.Len(left.state.Latest()); got != written+1 {
		t.Errorf("without a majority %d notes are read", got)
	}
}

// three starts controllers 1 to 3, one of which has stored a note.
func (c *crowd) three() {
	c.t.Helper()
	first := freeport.Address(c.t)
	one := c.start(1, c.member(1, first, nil))
	c.put("first")
	members := map[string]string{"c1": "https://" + first}
	for n := 2; n <= 3; n++ {
		address := freeport.Address(c.t)
		if _, err := one.engine.AddMember(c.t.Context(), "https://"+address); err != nil {
			c.t.Fatal(err)
		}
		members[fmt.Sprint("c", n)] = "https://" + address
		c.start(n, c.member(n, address, members))
		c.vote(one.engine, n)
	}
}

// leading waits until one leads.
func (c *crowd) leading() int {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for n := range 6 {
			if one := c.of(n); one != nil && one.state.Leads() {
				return n
			}
		}
	}
	c.t.Fatal("nobody leads")
	return 0
}

// A member that is gone costs the time that it is waited for, and nothing where it is known not to answer.
func TestTheLeadIsHandedOverWhereOneIsGone(t *testing.T) {
	c := newCrowd(t)
	c.three()
	at := c.leading()
	leader, gone, left := c.of(at), at%3+1, (at+1)%3+1
	id := func(n int) uint64 { return c.of(n).engine.Self() }
	dead, lives := id(gone), id(left)
	c.kill(gone)
	c.put("two are left")
	if err := leader.engine.HandOver(t.Context(), leader.state, []uint64{}); err == nil || !leader.state.Leads() {
		t.Errorf("nobody is to be asked: %v; leads: %v", err, leader.state.Leads())
	}
	began := time.Now()
	if err := leader.engine.HandOver(t.Context(), leader.state, []uint64{dead, lives}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < takesLead/2 || took > 3*takesLead {
		t.Errorf("one that is gone costs %v", took)
	}
	if now := c.leading(); now != left {
		t.Fatalf("%d leads", now)
	}
	if took := c.put("again"); took > 2*time.Second {
		t.Errorf("nothing is written for %v", took)
	}
	if now := c.of(left); now.engine.HandOver(t.Context(), now.state, []uint64{leader.engine.Self()}) != nil || c.leading() != at {
		t.Error("it is not handed back")
	}
}

// Whoever writes as the lead is handed over is either stored, or surely not, and may ask the next one.
func TestTheLeadIsHandedOverUnderLoad(t *testing.T) {
	c := newCrowd(t)
	c.fault = func(step string) error { // a disk that is busy
		if step == "encoded" {
			time.Sleep(time.Duration(mathrand.IntN(150)) * time.Millisecond)
		}
		return nil
	}
	c.three()
	var stored, refused atomic.Int64
	stored.Store(1)
	for range 6 {
		leader := c.of(c.leading())
		var writers sync.WaitGroup
		for range 32 {
			writers.Go(func() {
				for {
					ctx, writes := state.NoteWrites(t.Context())
					err := leader.state.Update(ctx, func(tx *state.Tx) error {
						return notes.Put(tx, &note{Meta: resource.Meta{ID: tx.NewID()}, Text: "many"})
					})
					if err == nil {
						stored.Add(1)
						continue
					}
					refused.Add(1)
					if fault.From(err).Code != "not-leading" || !writes.Refused() || writes.Stored() {
						t.Errorf("a write as the lead is handed over: %v; refused %v, stored %v", err, writes.Refused(), writes.Stored())
					}
					return
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
		if err := leader.engine.HandOver(t.Context(), leader.state, nil); err != nil {
			t.Fatal(err)
		}
		writers.Wait()
	}
	c.put("last")
	if err := c.of(1).state.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := notes.Len(c.of(1).state.Latest()); int64(got) != stored.Load()+1 {
		t.Errorf("%d notes are there, and %d were stored", got, stored.Load()+1)
	}
	t.Logf("%d stored, %d refused", stored.Load(), refused.Load())
}

// As the lead is handed over a follower still knows what is acknowledged: who asks is not told that the leader has changed.
func TestReadsAreSureAsTheLeadIsHandedOver(t *testing.T) {
	c := newCrowd(t)
	c.three()
	var sure atomic.Int64
	for range 8 {
		at := c.leading()
		leader, follower := c.of(at), c.of(at%3+1)
		done := make(chan struct{})
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if _, err := follower.engine.Head(t.Context()); err != nil {
						t.Error(err)
						return
					}
					sure.Add(1)
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		err := leader.engine.HandOver(t.Context(), leader.state, nil)
		time.Sleep(50 * time.Millisecond)
		close(done)
		readers.Wait()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d reads", sure.Load())
}

// TestStrangersAreNoMembers: the same authority signs hosts, which are not to speak with etcd.
func TestStrangersAreNoMembers(t *testing.T) {
	c := newCrowd(t)
	address := freeport.Address(t)
	one := c.start(1, c.member(1, address, nil))
	if _, err := one.engine.AddMember(t.Context(), "https://127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	m := c.member(2, freeport.Address(t), map[string]string{"c1": "https://" + address, "c2": "https://127.0.0.1:1"})
	m.CertFile, m.KeyFile = c.certificate("stranger", "some host")
	m.URL = "https://127.0.0.1:1"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if e, err := Open(ctx, Options{Dir: filepath.Join(c.dir, "stranger"), Member: m}); err == nil {
		e.Close()
		t.Fatal("a host became a member")
	}
}
