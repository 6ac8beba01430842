package host

import (
	"context"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Trait is a word of an operator's own for what some hosts have and others do not. Its name begins with CUSTOM_;
// those of everybody are in standardTraits, and not kept.
type Trait struct{ resource.Meta }

var traits = state.NewTable("trait",
	state.Since[Trait](2),
	state.Unique("name", func(t *Trait) state.Key { return state.KeyOf(t.Name) }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"trait.get": identity.Admin, "trait.list": identity.Admin, "trait.create": identity.Admin, "trait.delete": identity.Admin,
})

// Traits gives the native API and the auditor a look at every trait that operators made.
func Traits() *state.Table[Trait] { return traits }

// customPrefix begins the names of what operators make.
const customPrefix = "CUSTOM_"

// Custom reports whether a name is one that operators may give.
func Custom(name string) bool {
	rest, ok := strings.CutPrefix(name, customPrefix)
	return ok && rest != "" && len(name) <= 255 && capitals(rest)
}

// capitals reports whether a name is made of capital letters, digits and underscores.
func capitals(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return name != ""
}

// TraitExists reports whether there is such a trait.
func TraitExists(tx *state.Tx, name string) bool {
	if _, ok := slices.BinarySearch(standardTraits, name); ok {
		return true
	}
	_, ok := traits.Lookup(tx, "name", state.KeyOf(name))
	return ok
}

// reportedPrefixes begin the names of what hosts say of themselves, so that nobody else can.
var reportedPrefixes = []string{"COMPUTE_", "HW_ARCH_"}

// archTraits are by what a host reports as its architecture.
var archTraits = map[string][]string{
	"aarch64": {"COMPUTE_ARCH_AARCH64", "HW_ARCH_AARCH64"},
	"ppc64le": {"COMPUTE_ARCH_PPC64LE", "HW_ARCH_PPC64LE"},
	"riscv64": {"COMPUTE_ARCH_RISCV64"},
	"s390x":   {"COMPUTE_ARCH_S390X", "HW_ARCH_S390X"},
	"x86_64":  {"COMPUTE_ARCH_X86_64", "HW_ARCH_X86_64"},
}

// driverTraits are by what runs a host's guests: only what it does for every one of them.
var driverTraits = map[string][]string{
	"qemu": {"COMPUTE_FIRMWARE_BIOS", "COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_IMAGE_TYPE_RAW", "COMPUTE_NET_ATTACH_INTERFACE",
		"COMPUTE_NET_VIF_MODEL_VIRTIO", "COMPUTE_STORAGE_BUS_VIRTIO"},
}

var (
	nodeTraits     = []string{"COMPUTE_NODE"}
	disabledTraits = []string{"COMPUTE_STATUS_DISABLED"} // nothing new is placed on it
)

// reported are the traits that follow from what the host reports and how it stands, by where they are from.
func (h *Host) reported() [4][]string {
	all := [4][]string{nodeTraits, archTraits[h.Capacity.Arch], driverTraits[h.Capacity.Driver]}
	if !h.Up() || h.Disabled || h.Maintenance {
		all[3] = disabledTraits
	}
	return all
}

// ReportedTraits are those that follow from what the host reports and how it stands.
func (h *Host) ReportedTraits() []string {
	from := h.reported()
	all := slices.Concat(from[:]...)
	slices.Sort(all)
	return all
}

// AllTraits are the reported ones and those that operators gave it, in order and each once.
func (h *Host) AllTraits() []string {
	all := append(h.ReportedTraits(), h.Traits...)
	slices.Sort(all)
	return slices.Compact(all)
}

// HasTrait reports whether the host has a trait.
func (h *Host) HasTrait(name string) bool {
	if slices.Contains(h.Traits, name) {
		return true
	}
	for _, from := range h.reported() {
		if slices.Contains(from, name) {
			return true
		}
	}
	return false
}

// ListTraits shows the names of all traits, in order, to an operator; if associated, of those that some host has.
func (s *Service) ListTraits(ctx context.Context, associated bool) ([]string, error) {
	if err := identity.Allow(ctx, "trait.list", resource.Meta{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	if associated {
		for h := range hosts.Peek(tx, "", state.Range{}) {
			names = append(names, h.AllTraits()...)
		}
	} else {
		names = slices.Clone(standardTraits)
		for t := range traits.Peek(tx, "", state.Range{}) {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// CheckTrait answers whether there is such a trait: a fault if not.
func (s *Service) CheckTrait(ctx context.Context, name string) error {
	if err := identity.Allow(ctx, "trait.get", resource.Meta{}); err != nil {
		return err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return err
	}
	if !TraitExists(tx, name) {
		return missingTrait(name)
	}
	return nil
}

func missingTrait(name string) error {
	return fault.Errorf(fault.NotFound, "No such trait: %s.", name).WithCode("trait-not-found")
}

// CreateTrait adds a trait; made says whether it was not there already.
func (s *Service) CreateTrait(ctx context.Context, name string) (made bool, err error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (bool, error) {
		if err := identity.Allow(ctx, "trait.create", resource.Meta{}); err != nil {
			return false, err
		}
		if !Custom(name) {
			return false, notCustom("trait", name)
		}
		if TraitExists(tx, name) {
			return false, nil
		}
		return true, traits.Put(tx, &Trait{Meta: resource.Meta{ID: tx.NewID(), Name: name}})
	})
}

func notCustom(noun, name string) error {
	return fault.InvalidField("name", "of a custom %s must begin with CUSTOM_ and have only A to Z, 0 to 9 and _; %.60q does not", noun, name)
}

// DeleteTrait takes a trait away that no host has.
func (s *Service) DeleteTrait(ctx context.Context, name string) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "trait.delete", resource.Meta{}); err != nil {
			return err
		}
		if _, ok := slices.BinarySearch(standardTraits, name); ok {
			return fault.Errorf(fault.Invalid, "Cannot delete standard trait %s.", name)
		}
		t, ok := traits.Lookup(tx, "name", state.KeyOf(name))
		if !ok {
			return missingTrait(name)
		}
		for h := range hosts.Peek(tx, "", state.Range{}) {
			if slices.Contains(h.Traits, name) {
				return fault.Errorf(fault.Conflict, "The trait %s is in use by a resource provider.", name)
			}
		}
		return traits.Delete(tx, t.ID)
	})
}

// SetTraits gives a host exactly these traits, besides those that it reports. generation is the revision of the
// host that the caller knows; nil for whatever it is.
func (s *Service) SetTraits(ctx context.Context, id resource.ID, generation *int64, names []string) (*Host, error) {
	return Change(ctx, s.State, id, generation, func(tx *state.Tx, h *Host) error {
		reported := h.ReportedTraits()
		h.Traits = nil
		for _, name := range names {
			switch {
			case !TraitExists(tx, name):
				return fault.Errorf(fault.Invalid, "No such trait %.60s.", name)
			case slices.Contains(reported, name) || slices.Contains(h.Traits, name):
			case slices.ContainsFunc(reportedPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }):
				return fault.Errorf(fault.Conflict, "%s is what a host reports, or how it stands, and %s does not have it. Nobody else can give it.", name, h.Name)
			default:
				h.Traits = append(h.Traits, name)
			}
		}
		slices.Sort(h.Traits)
		return nil
	})
}

// Change runs a change of one host that an operator asks for, if its revision is still the one that the
// caller knows; nil for whatever it is.
func Change(ctx context.Context, s *state.State, id resource.ID, generation *int64, change func(*state.Tx, *Host) error) (*Host, error) {
	var out *Host
	err := s.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "host.update", resource.Meta{}); err != nil {
			return err
		}
		h, ok := hosts.Find(tx, id)
		if !ok {
			return fault.Missing("host", id)
		}
		if generation != nil && *generation != h.Revision {
			return fault.Errorf(fault.Conflict, "resource provider generation conflict: it is %d now, and not %d. Please update the generation and try again.", h.Revision, *generation).
				WithCode("host-changed")
		}
		if err := change(tx, h); err != nil {
			return err
		}
		out = h
		return hosts.Put(tx, h)
	})
	return out, err
}

// Touch gives a host a new revision: something changed that belongs to it and is kept elsewhere.
func Touch(tx *state.Tx, id resource.ID) error {
	h, ok := hosts.Find(tx, id)
	if !ok {
		return nil
	}
	return hosts.Put(tx, h)
}
