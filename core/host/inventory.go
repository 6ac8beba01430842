package host

import (
	"math"

	"github.com/unkai-cloud/unkai/base/fault"
)

// An Inventory is how much of a resource class a host offers, and in what portions.
type Inventory struct {
	Total    int64
	Reserved int64   // of the total, for others than servers
	Ratio    float64 // how much more than there is may be promised
	Min, Max int64   // of one portion
	Step     int64   // portions are multiples of it
}

// Capacity is what may be promised in all.
func (v *Inventory) Capacity() int64 { return int64(float64(v.Total-v.Reserved) * v.Ratio) }

// Fits reports whether a portion is of the right size, and there is room for it beside what is used.
func (v *Inventory) Fits(used, amount int64) bool {
	return amount >= v.Min && amount <= v.Max && amount%v.Step == 0 && amount <= v.Capacity()-used
}

// most is the largest amount there can be: Placement's, and small enough to be added up.
const most = math.MaxInt32

// Check refuses what is no inventory.
func (v *Inventory) Check(class string) error {
	for _, field := range []struct {
		name     string
		n, least int64
	}{{"total", v.Total, 1}, {"reserved", v.Reserved, 0}, {"min_unit", v.Min, 1}, {"max_unit", v.Max, 1}, {"step_size", v.Step, 1}} {
		if field.n < field.least || field.n > most {
			return fault.InvalidField(field.name, "of %s must be from %d to %d", class, field.least, most)
		}
	}
	switch {
	case v.Reserved > v.Total:
		return fault.InvalidField("reserved", "of %s must not be more than the total of %d", class, v.Total)
	case v.Min > v.Max:
		return fault.InvalidField("min_unit", "of %s must not be more than max_unit", class)
	case !(v.Ratio > 0 && v.Ratio <= 1e6):
		return fault.InvalidField("allocation_ratio", "of %s must be above 0 and at most a million", class)
	}
	return nil
}
