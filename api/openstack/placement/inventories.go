package placement

import (
	"math"
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// An inventory is one as clients write it. What they leave out has Placement's defaults.
type inventory struct {
	Total    *int64   `json:"total"`
	Reserved *int64   `json:"reserved"`
	Min      *int64   `json:"min_unit"`
	Max      *int64   `json:"max_unit"`
	Step     *int64   `json:"step_size"`
	Ratio    *float64 `json:"allocation_ratio"`
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

func (v *inventory) read(r *http.Request, class string) (host.Inventory, error) {
	if v.Total == nil {
		return host.Inventory{}, fault.InvalidField("total", "of %.60s is a required property", class)
	}
	made := host.Inventory{Total: *v.Total, Reserved: or(v.Reserved, 0), Ratio: or(v.Ratio, 1), Min: or(v.Min, 1),
		Max: or(v.Max, math.MaxInt32), Step: or(v.Step, 1)}
	if minorOf(r) < 26 && made.Reserved >= made.Total {
		return made, fault.InvalidField("reserved", "of %.60s must be less than the total", class)
	}
	return made, nil
}

func inventoryView(v host.Inventory) object {
	return object{"total": v.Total, "reserved": v.Reserved, "min_unit": v.Min, "max_unit": v.Max, "step_size": v.Step, "allocation_ratio": v.Ratio}
}

func inventoriesView(p *compute.Provider) object {
	all := object{}
	for class, v := range p.Inventory {
		all[class] = inventoryView(v)
	}
	return object{"resource_provider_generation": p.Generation(), "inventories": all}
}

func oneView(p *compute.Provider, class string) object {
	view := inventoryView(p.Inventory[class])
	view["resource_provider_generation"] = p.Generation()
	return view
}

func (s *server) listInventories(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, inventoriesView(p))
}

func (s *server) showInventory(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	class := r.PathValue("name")
	if _, ok := p.Inventory[class]; !ok {
		return noInventory(p.Host.ID, class)
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, oneView(p, class))
}

func noInventory(id resource.ID, class string) error {
	return fault.Errorf(fault.NotFound, "No inventory of class %.60s for %s", class, id).WithCode("inventory-not-found")
}

// change runs a change of what a provider offers.
func (s *server) change(r *http.Request, id resource.ID, generation *int64, change func(all map[string]host.Inventory) (map[string]host.Inventory, error)) (*compute.Provider, error) {
	p, err := s.compute.SetInventory(r.Context(), id, generation, change)
	return p, named(r, err)
}

func (s *server) setInventories(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	var wish struct {
		Generation  *int64                `json:"resource_provider_generation"`
		Inventories *map[string]inventory `json:"inventories"`
	}
	if err := openstack.DecodeStrict(r, &wish); err != nil {
		return err
	}
	if wish.Generation == nil || wish.Inventories == nil {
		return fault.InvalidField("inventories", "and resource_provider_generation are required properties")
	}
	next := map[string]host.Inventory{}
	for class, v := range *wish.Inventories {
		if next[class], err = v.read(r, class); err != nil {
			return err
		}
	}
	p, err = s.change(r, p.Host.ID, wish.Generation, func(map[string]host.Inventory) (map[string]host.Inventory, error) { return next, nil })
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, inventoriesView(p))
}

// An inventoryWish is one inventory and what it is to be for.
type inventoryWish struct {
	inventory
	Generation *int64  `json:"resource_provider_generation"`
	Class      *string `json:"resource_class"`
}

func (s *server) createInventory(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	var wish inventoryWish
	if err := openstack.DecodeStrict(r, &wish); err != nil {
		return err
	}
	if wish.Class == nil {
		return fault.InvalidField("resource_class", "is a required property")
	}
	class := *wish.Class
	v, err := wish.read(r, class)
	if err != nil {
		return err
	}
	p, err = s.change(r, p.Host.ID, wish.Generation, func(all map[string]host.Inventory) (map[string]host.Inventory, error) {
		if _, there := all[class]; there {
			return nil, fault.Errorf(fault.Conflict, "Update conflict: there is an inventory of %.60s already.", class).WithCode("host-changed")
		}
		all[class] = v
		return all, nil
	})
	if err != nil {
		return err
	}
	w.Header().Set("Location", s.prefix+r.URL.Path+"/"+class)
	return answer(w, r, http.StatusCreated, p.Host.UpdatedAt, oneView(p, class))
}

func (s *server) setInventory(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	var wish inventoryWish
	if err := openstack.DecodeStrict(r, &wish); err != nil {
		return err
	}
	class := r.PathValue("name")
	switch {
	case wish.Class != nil && *wish.Class != class:
		return fault.InvalidField("resource_class", "must be the one in the path")
	case wish.Generation == nil:
		return fault.InvalidField("resource_provider_generation", "is a required property")
	}
	v, err := wish.read(r, class)
	if err != nil {
		return err
	}
	p, err = s.change(r, p.Host.ID, wish.Generation, func(all map[string]host.Inventory) (map[string]host.Inventory, error) {
		if _, there := all[class]; !there {
			return nil, fault.Errorf(fault.Invalid, "No inventory record with resource class %.60s for resource provider %s", class, p.Host.ID)
		}
		all[class] = v
		return all, nil
	})
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, p.Host.UpdatedAt, oneView(p, class))
}

func (s *server) deleteInventories(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	if _, err = s.change(r, p.Host.ID, nil, func(map[string]host.Inventory) (map[string]host.Inventory, error) { return nil, nil }); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) deleteInventory(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	class := r.PathValue("name")
	_, err = s.change(r, p.Host.ID, nil, func(all map[string]host.Inventory) (map[string]host.Inventory, error) {
		if _, there := all[class]; !there {
			return nil, fault.Errorf(fault.NotFound, "No inventory of class %.60s found for delete: %s has none", class, p.Host.ID).WithCode("inventory-not-found")
		}
		delete(all, class)
		return all, nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
