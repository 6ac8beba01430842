package network_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// TestANewMemberIsToldAlone: in a network and a group of ten thousand, a host hears of the one that is new and not
// of all again.
func TestANewMemberIsToldAlone(t *testing.T) {
	const members, bound = 10_000, 24_000 // of a segment and a group at most two pieces each
	b := open(t)
	ctx := identity.Internal(t.Context())
	if err := b.SetQuota(ctx, b.our, map[string]int{"port": network.Unlimited}); err != nil {
		t.Fatal(err)
	}
	n := b.network(b.ours, b.our)
	b.subnet(b.ours, n, "10.0.0.0/14")
	var hosts []resource.ID
	for i := range 3 {
		hosts = append(hosts, resource.NewID(time.Now(), nil))
		hello := host.Hello{Name: fmt.Sprint("h", i), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})}
		if err := host.Arrive(ctx, b.st, hosts[i], hello); err != nil {
			t.Fatal(err)
		}
	}
	add := func(from, to int) {
		t.Helper()
		err := b.st.Update(ctx, func(tx *state.Tx) error {
			for i := from; i < to; i++ {
				// Every fifth address: no two of them make one prefix.
				at := netip.AddrFrom4([4]byte{10, byte(i * 5 >> 16), byte(i * 5 >> 8), byte(i * 5)})
				_, err := network.AddPort(ctx, tx, network.PortWanted{ProjectID: b.our, NetworkID: n.ID, Address: at, DeviceID: tx.NewID(),
					Owner: network.OwnerServer, Label: "z", HostID: hosts[i%len(hosts)]})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := 2; i < members; i += 500 {
		add(i, min(i+500, members))
	}

	now := time.Now()
	hub := host.NewHub(b.st, b.Sources()...)
	hub.Now = func() time.Time { return now }
	var sessions []*host.Session
	for _, id := range hosts {
		s := hub.Connect(id)
		s.Differences()
		if _, err := s.Poll(); err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	for _, s := range sessions {
		if _, err := s.Poll(); err != nil { // what the connecting itself touched
			t.Fatal(err)
		}
	}
	add(members, members+1)
	if err := hub.Pump(); err != nil {
		t.Fatal(err)
	}
	for i, s := range sessions {
		d, err := s.Poll()
		if err != nil || d == nil {
			t.Fatalf("host %d is told nothing: %v", i, err)
		}
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		whole := 0
		for _, item := range d.Items {
			for _, source := range b.Sources() {
				if body, ok := source.Want(b.st.Latest(), hosts[i], item.ID); ok && source.Kind == item.Kind {
					long, err := json.Marshal(body)
					if err != nil {
						t.Fatal(err)
					}
					whole += len(long)
				}
			}
		}
		t.Logf("host %d: %d bytes of %d", i, len(text), whole)
		if len(text) > bound {
			t.Errorf("host %d is sent %d bytes for one member more", i, len(text))
		}
	}
}
