package compute_test

import (
	"testing"

	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

// TestAggregateNumbers are given once: who still knows the number of an aggregate that is gone must not meet another.
func TestAggregateNumbers(t *testing.T) {
	c := cloudtest.New(t, 0)
	given := map[int]bool{}
	for _, name := range []string{"a", "b", "c", "d"} {
		a, err := c.Compute.CreateAggregate(c.Admin, name, "")
		c.Must(err)
		if given[a.Number] {
			t.Errorf("%s has the number %d, which another had", name, a.Number)
		}
		given[a.Number] = true
		if name != "b" {
			c.Must(c.Compute.DeleteAggregate(c.Admin, a.Number))
		}
	}
}
