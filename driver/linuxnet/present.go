package linuxnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// Present lists what wishes are kept for and what the kernel holds.
func (d *Driver) Present(ctx context.Context) ([]network.Thing, error) {
	present := map[network.Thing]bool{}
	for _, kind := range kinds {
		entries, err := os.ReadDir(filepath.Join(d.store.dir, kind))
		if err != nil {
			return nil, fmt.Errorf("list kept wishes: %w", err)
		}
		for _, entry := range entries {
			if id, err := resource.ParseID(strings.TrimSuffix(entry.Name(), ".json")); err == nil {
				present[network.Thing{Kind: kind, ID: id}] = true
			}
		}
	}
	err := d.eachSegment(func(id resource.ID, links map[string]netlink.Link) {
		plugs := 0 // what an unwanted segment stays for
		for name, link := range links {
			if strings.HasPrefix(name, tapPrefix) || strings.HasPrefix(name, legPrefix) {
				plugs++
			}
			if text, ok := strings.CutPrefix(link.Attrs().Alias, "attachment "); ok {
				if port, err := resource.ParseID(text); err == nil {
					present[network.Thing{Kind: attachmentKind, ID: port}] = true
				}
			}
		}
		if links[bridgeName] != nil || plugs == 0 {
			present[network.Thing{Kind: segmentKind, ID: id}] = true
		}
	})
	if err != nil {
		return nil, err
	}
	names, err := namespaces(d.prefix + "-g-")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if id, err := resource.ParseID(strings.TrimPrefix(name, d.prefix+"-g-")); err == nil {
			present[network.Thing{Kind: gatewayKind, ID: id}] = true
		}
	}
	things := make([]network.Thing, 0, len(present))
	for thing := range present {
		things = append(things, thing)
	}
	slices.SortFunc(things, func(a, b network.Thing) int {
		if c := slices.Compare(a.ID[:], b.ID[:]); c != 0 {
			return c
		}
		return strings.Compare(a.Kind, b.Kind)
	})
	return things, ctx.Err()
}

// eachSegment shows every segment's namespace and the devices in it.
func (d *Driver) eachSegment(use func(network resource.ID, links map[string]netlink.Link)) error {
	names, err := namespaces(d.prefix + "-s-")
	if err != nil {
		return err
	}
	for _, name := range names {
		id, err := resource.ParseID(strings.TrimPrefix(name, d.prefix+"-s-"))
		if err != nil {
			continue
		}
		path := filepath.Join(netnsDir, name)
		if !mounted(path) {
			use(id, nil) // a process died before it made the namespace, or after it removed it
			continue
		}
		ns, err := openNamespace(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		links, err := ns.links()
		ns.close()
		if err != nil {
			return err
		}
		use(id, links)
	}
	return nil
}
