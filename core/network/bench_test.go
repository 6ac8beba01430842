package network_test

import (
	"fmt"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
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
