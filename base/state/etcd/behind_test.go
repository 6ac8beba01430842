package etcd

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/freeport"
)

// A cable is what lies between two members, and can be pulled: what is sent is held up, not refused.
type cable struct {
	pulled sync.RWMutex
}

// to answers where a member can be reached over the cable that listens at an address.
func (c *cable) to(t *testing.T, listens string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			go c.join(here, listens)
		}
	}()
	return l.Addr().String()
}

func (c *cable) join(here net.Conn, listens string) {
	defer here.Close()
	there, err := net.Dial("tcp", listens)
	if err != nil {
		return
	}
	defer there.Close()
	over := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader) {
		defer func() { over <- struct{}{} }()
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			c.pulled.RLock()
			_, err = to.Write(buffer[:n])
			c.pulled.RUnlock()
			if err != nil {
				return
			}
		}
	}
	go pass(there, here)
	go pass(here, there)
	<-over
}

// A member that was away while more was written than farBehind, and is sent all of it at once, can write again, though nobody else does.
func TestBehindWhereNobodyWrites(t *testing.T) {
	c, line := newCrowd(t), &cable{}
	listens := [2]string{freeport.Address(t), freeport.Address(t)}
	urls := [2]string{line.to(t, listens[0]), line.to(t, listens[1])}
	m := c.member(1, urls[0], nil)
	m.Listen = listens[0]
	one := c.start(1, m)
	c.put("something")
	if _, err := one.engine.AddMember(t.Context(), "https://"+urls[1]); err != nil {
		t.Fatal(err)
	}
	m = c.member(2, urls[1], map[string]string{"c1": "https://" + urls[0], "c2": "https://" + urls[1]})
	m.Listen = listens[1]
	two := c.start(2, m) // which has no vote: the other writes without it

	line.pulled.Lock()
	before := two.engine.server.etcd.Server.AppliedIndex()
	for one.engine.server.etcd.Server.AppliedIndex() < before+farBehind+memberCatchUp+2*snapshotEvery {
		var writers sync.WaitGroup
		for range 200 {
			writers.Go(func() {
				if _, err := one.engine.client.Delete(t.Context(), "nothing"); err != nil { // an entry that changes nothing
					t.Error(err)
				}
			})
		}
		writers.Wait()
	}
	line.pulled.Unlock()
	written := one.engine.server.etcd.Server.CommittedIndex()
	for end := time.Now().Add(20 * time.Second); two.engine.server.etcd.Server.CommittedIndex() < written; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the member was not told of what was written")
		}
	}

	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := two.engine.client.Delete(ctx, "nothing")
		cancel()
		if err == nil {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the member cannot write: %v", err)
		}
	}
}
