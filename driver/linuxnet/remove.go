package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// Remove takes a thing away with everything of it. The wish is forgotten last,
// so that a removal cut short is still Present.
func (d *Driver) Remove(ctx context.Context, thing network.Thing) error {
	switch thing.Kind {
	case segmentKind:
		return d.removeSegment(ctx, thing.ID)
	case attachmentKind:
		return d.removeAttachment(ctx, thing.ID)
	case filterKind:
		return d.removeFilter(ctx, thing.ID)
	case gatewayKind:
		return d.removeGateway(thing.ID)
	}
	return fmt.Errorf("remove %s %s: no such kind", thing.Kind, thing.ID)
}

func (d *Driver) removeSegment(ctx context.Context, id resource.ID) error {
	s := d.segment(id)
	defer d.release(s)
	s.want = nil
	if mounted(s.namespacePath()) {
		if err := s.converge(ctx); err != nil {
			return err
		}
	}
	if err := s.tidy(); err != nil {
		return err
	}
	if err := d.guardTunnel(ctx, id, nil); err != nil {
		return err
	}
	for physical := range d.options.Physical {
		if err := d.removePhysical(ctx, physical, id); err != nil {
			return err
		}
	}
	return d.store.forget(segmentKind, id)
}

func (d *Driver) removeAttachment(ctx context.Context, id resource.ID) error {
	d.mu.Lock()
	network, known := d.attachments[id]
	d.mu.Unlock()
	if !known {
		var err error
		if network, known, err = d.whereIs(id); err != nil || !known {
			return err
		}
	}
	s := d.segment(network)
	defer d.release(s)
	delete(s.attachments, id)
	if mounted(s.namespacePath()) {
		if err := s.removeTap(ctx, id); err != nil {
			return err
		}
	}
	if err := s.tidy(); err != nil {
		return err
	}
	if err := d.store.forget(attachmentKind, id); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.attachments, id)
	d.mu.Unlock()
	return nil
}

func (s *segment) removeTap(ctx context.Context, id resource.ID) error {
	ns, err := openNamespace(s.namespacePath())
	if err != nil {
		return err
	}
	defer ns.close()
	links, err := ns.links()
	if err != nil {
		return err
	}
	if tap := links[tapName(id)]; tap != nil {
		if err := ns.removeLink(tap); err != nil {
			return fmt.Errorf("remove tap of port %s: %w", id, err)
		}
	}
	delete(s.flags, tapName(id))
	return s.converge(ctx)
}

// whereIs asks the kernel for a tap that no wish is known of.
func (d *Driver) whereIs(id resource.ID) (resource.ID, bool, error) {
	var where resource.ID
	found := false
	err := d.eachSegment(func(network resource.ID, links map[string]netlink.Link) {
		if tap := links[tapName(id)]; tap != nil && tap.Attrs().Alias == attachmentAlias(id) {
			where, found = network, true
		}
	})
	return where, found, err
}

func (d *Driver) removeFilter(ctx context.Context, id resource.ID) error {
	d.mu.Lock()
	_, known := d.filters[id]
	delete(d.filters, id)
	d.mu.Unlock()
	if known {
		if err := d.refilter(ctx, id); err != nil {
			return err
		}
	}
	return d.store.forget(filterKind, id)
}

func (d *Driver) removeGateway(id resource.ID) error {
	g := d.gateway(id)
	defer g.mu.Unlock()
	if err := g.remove(); err != nil {
		return err
	}
	if err := d.store.forget(gatewayKind, id); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g.removed = true
	delete(d.gateways, id)
	return nil
}

// RemoveAll takes away everything that bears the prefix, whether a wish is
// known of it or not, and forgets all wishes.
func (d *Driver) RemoveAll(ctx context.Context) error {
	for _, s := range d.allSegments() {
		s.mu.Lock()
		s.stopServing()
		s.dropShortcut()
		s.removed = true
		s.mu.Unlock()
	}
	d.mu.Lock()
	d.segments, d.gateways = map[resource.ID]*segment{}, map[resource.ID]*gateway{}
	d.attachments, d.filters = map[resource.ID]resource.ID{}, map[resource.ID]network.Filter{}
	d.mu.Unlock()

	d.tunnelMu.Lock()
	d.tunnelHosts, d.tunnelApplied = map[resource.ID][]netip.Addr{}, ""
	d.tunnelMu.Unlock()

	var failed []error
	for _, kind := range []string{"-g-", "-s-"} {
		names, err := namespaces(d.prefix + kind)
		failed = append(failed, err)
		for _, name := range names {
			failed = append(failed, removeNamespace(name))
		}
	}
	d.physicalMu.Lock()
	defer d.physicalMu.Unlock()
	failed = append(failed, d.host.removeLinks(d.ours))
	tables, err := d.host.tables(ctx, "inet", d.prefix+"_")
	failed = append(failed, err)
	for _, table := range tables {
		failed = append(failed, d.host.nft(ctx, removeTable("inet", table)))
	}
	d.physicalApplied, d.physicalUsers = map[string]string{}, map[string]map[resource.ID]bool{}
	for _, kind := range kinds {
		dir := filepath.Join(d.store.dir, kind)
		failed = append(failed, os.RemoveAll(dir), os.MkdirAll(dir, 0o700))
	}
	return errors.Join(failed...)
}
