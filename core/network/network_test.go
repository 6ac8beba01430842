package network_test

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// bench is a cloud with two projects and an operator.
type bench struct {
	testing.TB
	*network.Service
	st            *state.State
	admin         context.Context
	ours, theirs  context.Context
	our, their    resource.ID
	adminsProject resource.ID
}

func open(t testing.TB) *bench {
	st, err := state.Open(context.Background(), state.NewMemory(0), state.Options{Random: rand.NewChaCha8([32]byte{1})})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{TB: t, st: st, Service: network.New(st)}
	b.our, b.their, b.adminsProject = resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil)
	b.ours, b.theirs, b.admin = as(b.our, "member", "reader"), as(b.their, "member", "reader"), as(b.adminsProject, "admin", "manager", "member", "reader")
	return b
}

func as(project resource.ID, roles ...string) context.Context {
	return identity.As(context.Background(), &identity.Actor{UserID: project, ProjectID: project, Roles: roles})
}

func must[T any](b *bench) func(T, error) T {
	return func(v T, err error) T {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
}

func one[T any](b *bench, c network.Collection[T], ctx context.Context, want T) *T {
	b.Helper()
	made, err := c.Create(ctx, &want)
	if err != nil {
		b.Fatal(err)
	}
	return made[0]
}

func owned(project resource.ID, name string) resource.Meta {
	return resource.Meta{ProjectID: project, Name: name}
}

func (b *bench) network(ctx context.Context, project resource.ID) *network.Network {
	return one(b, b.Networks, ctx, network.Network{Meta: owned(project, "n"), AdminUp: true, Secured: true})
}

func (b *bench) subnet(ctx context.Context, n *network.Network, cidr string) *network.Subnet {
	return one(b, b.Subnets, ctx, network.Subnet{Meta: owned(n.ProjectID, "s"), NetworkID: n.ID,
		CIDR: netip.MustParsePrefix(cidr), Gateway: network.AutoGateway, DHCP: true})
}

func (b *bench) port(ctx context.Context, n *network.Network) *network.Port {
	return one(b, b.Ports, ctx, network.Port{Meta: owned(n.ProjectID, "p"), NetworkID: n.ID, AdminUp: true, PortSecurity: true, VNIC: network.NormalVNIC})
}

func (b *bench) refuses(kind fault.Kind, code string, err error) {
	b.Helper()
	f := fault.From(err)
	if f == nil || f.Kind != kind || f.Code != code {
		b.Fatalf("got %v (%+v), want kind %v and code %q", err, f, kind, code)
	}
}

func TestPortGetsAddressMACAndDefaultGroup(t *testing.T) {
	b := open(t)
	n := b.network(b.ours, b.our)
	b.subnet(b.ours, n, "10.0.0.0/24")
	p := b.port(b.ours, n)
	if len(p.Fixed) != 1 || p.Fixed[0].Address != netip.MustParseAddr("10.0.0.2") {
		t.Fatalf("addresses %v, want 10.0.0.2", p.Fixed)
	}
	q := b.port(b.ours, n)
	if q.Fixed[0].Address != netip.MustParseAddr("10.0.0.3") || q.MAC == p.MAC {
		t.Fatalf("second port: %v %s", q.Fixed, q.MAC)
	}
	g := must[*network.Group](b)(b.Groups.Get(b.ours, p.Groups[0]))
	if g.Name != "default" || g.ProjectID != b.our {
		t.Fatalf("group %+v", g)
	}
	if _, err := b.Ports.Get(b.theirs, p.ID); !fault.Is(err, fault.NotFound) {
		t.Fatalf("another project reads the port: %v", err)
	}
	b.refuses(fault.Conflict, "network-in-use", b.Networks.Delete(b.ours, n.ID, 0))
}
