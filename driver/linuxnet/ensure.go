package linuxnet

import (
	"context"
	"errors"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// EnsureSegment makes the network's bridge, with everything that is plugged in.
func (d *Driver) EnsureSegment(ctx context.Context, want network.Segment) error {
	s := d.segment(want.ID)
	defer d.release(s)
	if err := d.store.save(segmentKind, want.ID, want); err != nil {
		return err
	}
	s.want = &want
	return s.converge(ctx)
}

// EnsureAttachment makes the port's tap and plugs it in.
func (d *Driver) EnsureAttachment(ctx context.Context, want network.Attachment) (network.Tap, error) {
	s := d.segment(want.NetworkID)
	defer d.release(s)
	if err := d.store.save(attachmentKind, want.ID, want); err != nil {
		return network.Tap{}, err
	}
	d.mu.Lock()
	d.attachments[want.ID] = want.NetworkID
	d.mu.Unlock()
	arrived := s.attachments[want.ID].Arriving && !want.Arriving
	s.attachments[want.ID] = want
	for _, own := range want.DHCPOptions {
		if err := checkOption(own); err != nil {
			d.log.WarnContext(ctx, "port's DHCP option left out", "port", want.ID, "error", err)
		}
	}
	if err := s.converge(ctx); err != nil {
		return network.Tap{}, err
	}
	if arrived {
		if err := s.announce(want); err != nil {
			d.log.WarnContext(ctx, "port's move not announced", "port", want.ID, "error", err)
		}
	}
	return network.Tap{Netns: s.namespacePath(), Name: tapName(want.ID)}, nil
}

// EnsureFilter puts a security group in force on every port that is in it.
func (d *Driver) EnsureFilter(ctx context.Context, want network.Filter) error {
	if err := d.keepFilter(want); err != nil {
		return err
	}
	return d.refilter(ctx, want.ID)
}

func (d *Driver) keepFilter(want network.Filter) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.store.save(filterKind, want.ID, want); err != nil {
		return err
	}
	d.filters[want.ID] = want
	return nil
}

// refilter brings the segments up to date that have ports in a group.
func (d *Driver) refilter(ctx context.Context, id resource.ID) error {
	var failed []error
	for network := range d.allSegments() {
		s := d.segment(network)
		if s.uses(id) {
			failed = append(failed, s.converge(ctx))
		}
		d.release(s)
	}
	return errors.Join(failed...)
}

// EnsureGateway makes a router with its legs, addresses and mappings.
func (d *Driver) EnsureGateway(ctx context.Context, want network.Gateway) error {
	g := d.gateway(want.ID)
	defer g.mu.Unlock()
	if err := d.store.save(gatewayKind, want.ID, want); err != nil {
		return err
	}
	g.want = &want
	return g.converge(ctx)
}
