package network_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// BenchmarkFilter derives a group of 10,000 ports whose members may all reach each other.
func BenchmarkFilter(b *testing.B) {
	c := open(b)
	n := c.network(c.ours, c.our)
	c.subnet(c.ours, n, "10.0.0.0/16")
	ctx := identity.Internal(b.Context())
	if err := c.SetQuota(ctx, c.our, map[string]int{"port": network.Unlimited}); err != nil {
		b.Fatal(err)
	}
	for range 20 {
		ports := make([]*network.Port, 500)
		for i := range ports {
			ports[i] = &network.Port{Meta: resource.Meta{ProjectID: c.our, Name: fmt.Sprint(i)}, NetworkID: n.ID, AdminUp: true, PortSecurity: true, VNIC: network.NormalVNIC}
		}
		if _, err := c.Ports.Create(ctx, ports...); err != nil {
			b.Fatal(err)
		}
	}
	tx := c.st.Latest()
	var group resource.ID
	for g := range network.Groups().Peek(tx, "default", state.Range{Prefix: state.KeyOf(c.our)}) {
		group = g.ID
	}
	for b.Loop() {
		if f, ok := network.FilterFor(tx, group); !ok || len(f.Rules) != 4 {
			b.Fatal("no filter")
		}
	}
}

// BenchmarkHosts plugs 10,000 servers' ports of one network and one group into 1,000 hosts, which are
// told all along what to make of it.
func BenchmarkHosts(b *testing.B) {
	for b.Loop() {
		plugIn(b, 1000, 10_000, false)
	}
}

// BenchmarkNeighbors does so with 2,000 in 500 hosts, each of which has to know where all the others are.
func BenchmarkNeighbors(b *testing.B) {
	for b.Loop() {
		plugIn(b, 500, 2000, true)
	}
}

func plugIn(b *testing.B, hosts, ports int, reached bool) {
	c := open(b)
	n := c.network(c.ours, c.our)
	c.subnet(c.ours, n, "10.0.0.0/16")
	ctx, cancel := context.WithCancel(identity.Internal(b.Context()))
	if err := c.SetQuota(ctx, c.our, map[string]int{"port": network.Unlimited}); err != nil {
		b.Fatal(err)
	}
	hub := host.NewHub(c.st, c.Sources()...)
	var ids []resource.ID
	var told, wg = new(atomic.Int64), new(sync.WaitGroup)
	for i := range hosts {
		id := resource.NewID(time.Now(), nil)
		hello := host.Hello{Name: fmt.Sprint("h", i)}
		if reached {
			hello.Address = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		}
		if err := host.Arrive(ctx, c.st, id, hello); err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
		session := hub.Connect(id)
		wg.Go(func() {
			for {
				d, err := session.Next(ctx)
				if err != nil {
					return
				}
				told.Add(int64(len(d.Items)))
			}
		})
	}
	wg.Go(func() { hub.Run(ctx) })
	begin := time.Now()
	var makers sync.WaitGroup
	for maker := range 16 {
		makers.Go(func() {
			for i := maker; i < ports; i += 16 {
				err := c.st.Update(ctx, func(tx *state.Tx) error {
					_, err := network.AddPort(ctx, tx, network.PortWanted{ProjectID: c.our, NetworkID: n.ID, DeviceID: tx.NewID(),
						Owner: network.OwnerServer, Label: "z", HostID: ids[i%hosts]})
					return err
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	makers.Wait()
	b.ReportMetric(time.Since(begin).Seconds(), "s-to-make")
	for last := int64(-1); last != told.Load(); time.Sleep(200 * time.Millisecond) {
		last = told.Load()
	}
	b.ReportMetric(time.Since(begin).Seconds(), "s-to-tell")
	b.ReportMetric(float64(told.Load()), "items")
	cancel()
	wg.Wait()
}
