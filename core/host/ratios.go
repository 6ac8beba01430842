package host

import (
	"github.com/unkai-cloud/unkai/base/fault"
)

// Ratios are how much more of processors, memory and disk the guests of a host may have than there is. What is 0 is not said.
type Ratios [3]float64

// mostRatios are what nobody can mean to exceed. Processors wait for each other; where memory or disk that was promised runs out guests die.
var mostRatios = Ratios{100, 10, 10}

// CheckRatio refuses a ratio, of processors, memory or disk by its place in Ratios, that no host could keep.
func CheckRatio(field string, of int, ratio float64) error {
	if !(ratio > 0 && ratio <= mostRatios[of]) { // nor is NaN
		return fault.InvalidField(field, "must be a number above 0 and at most %v", mostRatios[of])
	}
	return nil
}

// Or takes what is not said from others.
func (r Ratios) Or(others Ratios) Ratios {
	for i := range r {
		if r[i] == 0 {
			r[i] = others[i]
		}
	}
	return r
}

// Of is how much of each a host with that capacity may promise in all.
func (r Ratios) Of(c *Capacity) [3]int64 {
	return [3]int64{int64(float64(c.VCPUs) * r[0]), int64(float64(c.MemoryMiB) * r[1]), int64(float64(c.DiskGiB) * r[2])}
}
