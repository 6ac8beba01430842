package host

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A ResourceClass is a countable thing of an operator's own that hosts offer and flavors ask for. Its name begins with
// CUSTOM_; those of everybody are in standardClasses, and not kept.
type ResourceClass struct{ resource.Meta }

var classes = state.NewTable("resource-class",
	state.Since[ResourceClass](2),
	state.Unique("name", func(c *ResourceClass) state.Key { return state.KeyOf(c.Name) }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"resource-class.get": identity.Admin, "resource-class.list": identity.Admin, "resource-class.create": identity.Admin,
	"resource-class.delete": identity.Admin,
})

// ResourceClasses gives the native API and the auditor a look at every class that operators made.
func ResourceClasses() *state.Table[ResourceClass] { return classes }

// The classes of what every host offers.
const (
	ClassVCPU   = "VCPU"
	ClassMemory = "MEMORY_MB"
	ClassDisk   = "DISK_GB"
)

// standardClasses are OpenStack's (os-resource-classes 1.1.0).
var standardClasses = []string{ClassVCPU, ClassMemory, ClassDisk, "PCI_DEVICE", "SRIOV_NET_VF", "NUMA_SOCKET", "NUMA_CORE",
	"NUMA_THREAD", "NUMA_MEMORY_MB", "IPV4_ADDRESS", "VGPU", "VGPU_DISPLAY_HEAD", "NET_BW_EGR_KILOBIT_PER_SEC",
	"NET_BW_IGR_KILOBIT_PER_SEC", "PCPU", "MEM_ENCRYPTION_CONTEXT", "FPGA", "PGPU", "NET_PACKET_RATE_KILOPACKET_PER_SEC",
	"NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC", "NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC"}

// ClassExists reports whether there is such a class.
func ClassExists(tx *state.Tx, name string) bool {
	if slices.Contains(standardClasses, name) {
		return true
	}
	_, ok := classes.Lookup(tx, "name", state.KeyOf(name))
	return ok
}

// ListClasses shows the names of all classes to an operator: the standard ones, then the custom ones in order.
func (s *Service) ListClasses(ctx context.Context) ([]string, error) {
	if err := identity.Allow(ctx, "resource-class.list", resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	names := slices.Clone(standardClasses)
	for c := range classes.Peek(tx, "name", state.Range{}) {
		names = append(names, c.Name)
	}
	return names, nil
}

// CheckClass answers whether there is such a class: a fault if not.
func (s *Service) CheckClass(ctx context.Context, name string) error {
	if err := identity.Allow(ctx, "resource-class.get", resource.Meta{}); err != nil {
		return err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return err
	}
	if !ClassExists(tx, name) {
		return missingClass(name)
	}
	return nil
}

func missingClass(name string) error {
	return fault.Errorf(fault.NotFound, "No such resource class: %s.", name).WithCode("resource-class-not-found")
}

// CreateClass adds a class; made says whether it was not there already.
func (s *Service) CreateClass(ctx context.Context, name string) (made bool, err error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (bool, error) {
		if err := identity.Allow(ctx, "resource-class.create", resource.Meta{}); err != nil {
			return false, err
		}
		if !Custom(name) {
			return false, notCustom("resource class", name)
		}
		if ClassExists(tx, name) {
			return false, nil
		}
		return true, classes.Put(tx, &ResourceClass{Meta: resource.Meta{ID: tx.NewID(), Name: name}})
	})
}

// RenameClass gives a class that no host offers another name.
func (s *Service) RenameClass(ctx context.Context, name, to string) error {
	return s.changeClass(ctx, "resource-class.create", "update", name, func(tx *state.Tx, c *ResourceClass) error {
		if !Custom(to) {
			return notCustom("resource class", to)
		}
		if to != name && ClassExists(tx, to) {
			return fault.Errorf(fault.Exists, "Resource class already exists: %s.", to)
		}
		c.Name = to
		return classes.Put(tx, c)
	})
}

// DeleteClass takes a class away that no host offers.
func (s *Service) DeleteClass(ctx context.Context, name string) error {
	return s.changeClass(ctx, "resource-class.delete", "delete", name, func(tx *state.Tx, c *ResourceClass) error {
		return classes.Delete(tx, c.ID)
	})
}

func (s *Service) changeClass(ctx context.Context, action, verb, name string, change func(*state.Tx, *ResourceClass) error) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, action, resource.Meta{}); err != nil {
			return err
		}
		if slices.Contains(standardClasses, name) {
			return fault.Errorf(fault.Invalid, "Cannot %s standard resource class %s.", verb, name)
		}
		c, ok := classes.Lookup(tx, "name", state.KeyOf(name))
		if !ok {
			return missingClass(name)
		}
		for h := range hosts.Peek(tx, "", state.Range{}) {
			if _, offered := h.Offers[name]; offered {
				return fault.Errorf(fault.Conflict, "The resource class %s is in use: host %s has an inventory of it.", name, h.Name)
			}
		}
		return change(tx, c)
	})
}
