package network

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// BootstrapOptions say which networks a new cloud begins with.
type BootstrapOptions struct {
	Admin    resource.ID   // the project that owns the external network
	Projects []resource.ID // each gets a private network behind a router

	External ExternalOptions
}

// ExternalOptions describe the external network. The zero value is 172.24.4.0/24 on the physical
// network "public".
type ExternalOptions struct {
	Name     string
	Physical string
	CIDR     netip.Prefix
	Gateway  netip.Addr
	Pool     Pool // of floating addresses and gateways
}

func (o ExternalOptions) withDefaults() ExternalOptions {
	if o.Name == "" {
		o.Name = "public"
	}
	if o.Physical == "" {
		o.Physical = "public"
	}
	if !o.CIDR.IsValid() {
		o.CIDR = netip.MustParsePrefix("172.24.4.0/24")
	}
	if !o.Gateway.IsValid() {
		o.Gateway = o.CIDR.Masked().Addr().Next()
	}
	return o
}

// Bootstrap makes the external network and each project's private one, once: what was deleted since
// stays deleted. That a project has a default security group tells that it was seen to.
func Bootstrap(ctx context.Context, st *state.State, o BootstrapOptions) error {
	ctx = identity.Internal(ctx)
	return st.Update(ctx, func(tx *state.Tx) error {
		var projects []resource.ID
		for _, project := range o.Projects {
			if _, seen := DefaultGroup(tx, project); !seen {
				projects = append(projects, project)
			}
		}
		public, ok := DefaultExternal(tx)
		if _, seen := DefaultGroup(tx, o.Admin); !ok && !seen {
			var err error
			if public, err = bootstrapExternal(ctx, tx, o.Admin, o.External.withDefaults()); err != nil {
				return fmt.Errorf("make the external network: %w", err)
			}
		}
		for _, project := range projects {
			if err := bootstrapProject(ctx, tx, project, public); err != nil {
				return fmt.Errorf("make the private network of project %s: %w", project, err)
			}
		}
		return nil
	})
}

func bootstrapExternal(ctx context.Context, tx *state.Tx, owner resource.ID, o ExternalOptions) (resource.ID, error) {
	n := &Network{Meta: resource.Meta{ID: tx.NewID(), ProjectID: owner, Name: o.Name}, AdminUp: true, Secured: true,
		External: true, Default: true, Kind: Flat, Physical: o.Physical}
	if err := addNetwork(ctx, tx, n); err != nil {
		return n.ID, err
	}
	s := &Subnet{Meta: resource.Meta{ID: tx.NewID(), ProjectID: owner, Name: o.Name + "-subnet"}, NetworkID: n.ID,
		CIDR: o.CIDR.Masked(), Gateway: o.Gateway}
	if o.Pool != (Pool{}) {
		s.Pools = []Pool{o.Pool}
	}
	return n.ID, addSubnet(ctx, tx, s)
}

func bootstrapProject(ctx context.Context, tx *state.Tx, project, public resource.ID) error {
	n := &Network{Meta: resource.Meta{ID: tx.NewID(), ProjectID: project, Name: "private"}, AdminUp: true, Secured: true}
	if err := addNetwork(ctx, tx, n); err != nil {
		return err
	}
	r := &Router{Meta: resource.Meta{ID: tx.NewID(), ProjectID: project, Name: "router"}, AdminUp: true}
	if !public.IsZero() {
		r.Gateway = &RouterGateway{NetworkID: public, SNAT: true}
	}
	if err := addRouter(ctx, tx, r); err != nil {
		return err
	}
	for _, s := range []*Subnet{
		{Meta: resource.Meta{Name: "private-subnet"}, CIDR: netip.MustParsePrefix("10.0.0.0/22")},
		{Meta: resource.Meta{Name: "private-subnet-v6"}, CIDR: uniqueLocal(project), V6Mode: SLAAC, RAMode: SLAAC},
	} {
		s.ID, s.ProjectID, s.NetworkID, s.DHCP, s.Gateway = tx.NewID(), project, n.ID, true, AutoGateway
		if err := addSubnet(ctx, tx, s); err != nil {
			return err
		}
		if _, err := makeInterface(ctx, tx, r, s.ID); err != nil {
			return err
		}
	}
	return nil
}

// uniqueLocal is a project's own /64 (RFC 4193): its global ID is taken from the random part of the
// project's ID.
func uniqueLocal(project resource.ID) netip.Prefix {
	raw := [16]byte{0: 0xfd}
	copy(raw[1:6], project[11:])
	return netip.PrefixFrom(netip.AddrFrom16(raw), 64)
}
