package compute

import (
	"context"
	"maps"
	"regexp"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Flavor is a size of servers.
type Flavor struct {
	resource.Meta

	// Asked for by the operator.
	Ref          string // what it is asked for by; unique, never changed
	Description  string
	VCPUs        int
	MemoryMiB    int
	RootGiB      int // 0: as large as the image
	EphemeralGiB int
	SwapMiB      int
	RxTxFactor   float64
	Private      bool // only the projects in Access may see it
	Disabled     bool // nothing new is made of it
	Extra        map[string]string
	Access       []resource.ID
}

var flavors = state.NewTable[Flavor]("flavor",
	state.Unique("ref", func(f *Flavor) state.Key { return state.KeyOf(f.Ref) }),
	state.Unique("name", func(f *Flavor) state.Key { return state.KeyOf(f.Name) }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"flavor.get": identity.Anyone, "flavor.list": identity.Anyone,
	"flavor.create": identity.Admin, "flavor.update": identity.Admin, "flavor.delete": identity.Admin,
	"flavor.access": identity.Admin,
})

// Flavors gives the native API and the auditor a look at every flavor.
func Flavors() *state.Table[Flavor] { return flavors }

// ShownTo reports whether an actor may see the flavor.
func (f *Flavor) ShownTo(a *identity.Actor) bool {
	return !f.Private || a.Admin() || slices.Contains(f.Access, a.ProjectID)
}

func missingFlavor(ref string) error {
	return fault.Errorf(fault.NotFound, "Flavor %s could not be found.", ref).WithCode("flavor-not-found")
}

// flavorFor finds a flavor by its ref, if the actor may see it.
func flavorFor(ctx context.Context, tx *state.Tx, ref string) (*Flavor, error) {
	f, ok := flavors.Lookup(tx, "ref", state.KeyOf(ref))
	if !ok || !f.ShownTo(identity.ActorOf(ctx)) {
		return nil, missingFlavor(ref)
	}
	return f, nil
}

// Flavor shows one flavor, asked for by its ref.
func (s *Service) Flavor(ctx context.Context, ref string) (*Flavor, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := identity.Allow(ctx, "flavor.get", resource.Meta{}); err != nil {
		return nil, err
	}
	return flavorFor(ctx, tx, ref)
}

// A FlavorQuery says which flavors are wanted.
type FlavorQuery struct {
	Limit        int
	Marker       string // a ref
	Reverse      bool
	Order        func(a, b *Flavor) int
	MinRootGiB   int
	MinMemoryMiB int
	Private      *bool // nil: all that the actor may see; false: those its project has access to are among them
}

// ListFlavors shows the flavors that the actor may see.
func (s *Service) ListFlavors(ctx context.Context, q FlavorQuery) (query.Page[Flavor], error) {
	none := query.Page[Flavor]{}
	tx, err := s.State.View(ctx)
	if err != nil {
		return none, err
	}
	if err := identity.Allow(ctx, "flavor.list", resource.Meta{}); err != nil {
		return none, err
	}
	list := query.List{Limit: q.Limit, Reverse: q.Reverse}
	if q.Marker != "" {
		m, err := flavorFor(ctx, tx, q.Marker)
		if err != nil {
			return none, fault.Errorf(fault.Invalid, "marker [%s] not found", q.Marker).WithCode("marker")
		}
		list.Marker = m.ID
	}
	actor := identity.ActorOf(ctx)
	keep := func(f *Flavor) bool {
		return f.RootGiB >= q.MinRootGiB && f.MemoryMiB >= q.MinMemoryMiB && f.ShownTo(actor) && !f.Disabled &&
			(q.Private == nil || f.Private == *q.Private || !*q.Private && slices.Contains(f.Access, actor.ProjectID))
	}
	order := q.Order
	if order == nil {
		order = func(a, b *Flavor) int { return 0 }
	}
	return query.Sorted(flavors.All(tx), list, func(f *Flavor) *resource.Meta { return &f.Meta }, order, keep), nil
}

// CreateFlavor adds a size. An empty ref is filled in with the ID.
func (s *Service) CreateFlavor(ctx context.Context, f Flavor) (*Flavor, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Flavor, error) {
		if err := identity.Allow(ctx, "flavor.create", resource.Meta{}); err != nil {
			return nil, err
		}
		f.Meta = resource.Meta{ID: tx.NewID(), Name: f.Name}
		if f.Ref == "" {
			f.Ref = f.ID.String()
		}
		if f.RxTxFactor == 0 {
			f.RxTxFactor = 1
		}
		if err := f.check(); err != nil {
			return nil, err
		}
		err := flavors.Put(tx, &f)
		if e := fault.From(err); e != nil && e.Kind == fault.Exists {
			if e.Code == "flavor-name-taken" {
				return nil, fault.Errorf(fault.Exists, "Flavor with name %s already exists.", f.Name).WithCode(e.Code)
			}
			return nil, fault.Errorf(fault.Exists, "Flavor with ID %s already exists.", f.Ref).WithCode(e.Code)
		}
		return &f, err
	})
}

func (f *Flavor) check() error {
	switch {
	case f.Name == "" || len(f.Name) > 255:
		return fault.InvalidField("name", "must be of 1 to 255 characters")
	case f.VCPUs < 1:
		return fault.InvalidField("vcpus", "must be at least 1")
	case f.MemoryMiB < 1:
		return fault.InvalidField("ram", "must be at least 1 MiB")
	case f.RootGiB < 0 || f.EphemeralGiB < 0 || f.SwapMiB < 0:
		return fault.InvalidField("disk", "must not be negative")
	}
	for k, v := range f.Extra {
		if err := checkExtra(k, v); err != nil {
			return err
		}
	}
	return nil
}

// changeFlavor runs a change of one flavor that an admin asks for.
func (s *Service) changeFlavor(ctx context.Context, action, ref string, change func(*Flavor) error) (*Flavor, error) {
	var out *Flavor
	err := s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, action, resource.Meta{}); err != nil {
			return err
		}
		f, err := flavorFor(ctx, tx, ref)
		if err != nil {
			return err
		}
		if err := change(f); err != nil {
			return err
		}
		out = f
		return flavors.Put(tx, f)
	})
	return out, err
}

// DescribeFlavor changes a flavor's description.
func (s *Service) DescribeFlavor(ctx context.Context, ref, description string) (*Flavor, error) {
	return s.changeFlavor(ctx, "flavor.update", ref, func(f *Flavor) error {
		f.Description = description
		return nil
	})
}

// DeleteFlavor takes a size away; servers made of it keep their copy.
func (s *Service) DeleteFlavor(ctx context.Context, ref string) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "flavor.delete", resource.Meta{}); err != nil {
			return err
		}
		f, err := flavorFor(ctx, tx, ref)
		if err != nil {
			return err
		}
		return flavors.Delete(tx, f.ID)
	})
}

var extraKey = regexp.MustCompile(`^[a-zA-Z0-9-_:. ]{1,255}$`)

// SetExtra adds to what a flavor asks of its host and driver.
func (s *Service) SetExtra(ctx context.Context, ref string, add map[string]string) (*Flavor, error) {
	return s.changeFlavor(ctx, "flavor.update", ref, func(f *Flavor) error {
		for k, v := range add {
			if !extraKey.MatchString(k) || len(v) > 255 {
				return fault.InvalidField("extra_specs", "must have keys of 1 to 255 letters, digits, '-', '_', ':', '.' and spaces, and values of at most 255 characters")
			}
			if err := checkExtra(k, v); err != nil {
				return err
			}
		}
		if f.Extra == nil {
			f.Extra = map[string]string{}
		}
		maps.Copy(f.Extra, add)
		return nil
	})
}

// DropExtra takes one such demand away.
func (s *Service) DropExtra(ctx context.Context, ref, key string) error {
	_, err := s.changeFlavor(ctx, "flavor.update", ref, func(f *Flavor) error {
		if _, ok := f.Extra[key]; !ok {
			return fault.Errorf(fault.NotFound, "Flavor %s has no extra specs with key %s.", ref, key)
		}
		delete(f.Extra, key)
		return nil
	})
	return err
}

// GrantFlavor lets a project see a private flavor.
func (s *Service) GrantFlavor(ctx context.Context, ref string, project resource.ID) (*Flavor, error) {
	return s.changeFlavor(ctx, "flavor.access", ref, func(f *Flavor) error {
		if slices.Contains(f.Access, project) {
			return fault.Errorf(fault.Exists, "Flavor access already exists for flavor %s and project %s combination.", ref, project.Hex())
		}
		f.Access = append(f.Access, project)
		return nil
	})
}

// RevokeFlavor hides a private flavor from a project again.
func (s *Service) RevokeFlavor(ctx context.Context, ref string, project resource.ID) (*Flavor, error) {
	return s.changeFlavor(ctx, "flavor.access", ref, func(f *Flavor) error {
		n := slices.Index(f.Access, project)
		if n < 0 {
			return fault.Errorf(fault.NotFound, "Flavor access not found for %s / %s combination.", ref, project.Hex())
		}
		f.Access = slices.Delete(f.Access, n, n+1)
		return nil
	})
}

// A Shape is a flavor as it was when a server was made of it.
type Shape struct {
	FlavorID     resource.ID
	Ref          string
	Name         string
	Description  string `json:",omitempty"`
	VCPUs        int
	MemoryMiB    int
	RootGiB      int
	ImageGiB     int               `json:",omitempty"` // of the disk in the image, which is the root disk's size if RootGiB is 0
	EphemeralGiB int               `json:",omitempty"`
	SwapMiB      int               `json:",omitempty"`
	Extra        map[string]string `json:",omitempty"`
}

func (f *Flavor) shape() Shape {
	return Shape{FlavorID: f.ID, Ref: f.Ref, Name: f.Name, Description: f.Description, VCPUs: f.VCPUs,
		MemoryMiB: f.MemoryMiB, RootGiB: f.RootGiB, EphemeralGiB: f.EphemeralGiB, SwapMiB: f.SwapMiB, Extra: f.Extra}
}

// load is what servers of this shape take of a host: processors, MiB of memory and GiB of disk.
func (s *Shape) load() state.Amounts {
	return state.Amounts{int64(s.VCPUs), int64(s.MemoryMiB), int64(s.rootGiB()+s.EphemeralGiB) + int64(s.SwapMiB+1023)/1024}
}

// rootGiB is how large the root disk can become.
func (s *Shape) rootGiB() int {
	if s.RootGiB == 0 {
		return s.ImageGiB
	}
	return s.RootGiB
}
