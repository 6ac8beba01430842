package compute_test

import (
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

func TestHoursOfAUse(t *testing.T) {
	at := func(hour float64) time.Time {
		return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(hour * float64(time.Hour)))
	}
	tests := map[string]struct {
		use         compute.Use
		from, until float64
		want        float64
	}{
		"all of it":              {compute.Use{From: at(3), Until: at(5)}, 0, 24, 2},
		"its beginning":          {compute.Use{From: at(3), Until: at(5)}, 0, 3.5, 0.5},
		"its end":                {compute.Use{From: at(3), Until: at(5)}, 4, 24, 1},
		"a part":                 {compute.Use{From: at(3), Until: at(5)}, 3.5, 4, 0.5},
		"before it":              {compute.Use{From: at(3), Until: at(5)}, 0, 3, 0},
		"after it":               {compute.Use{From: at(3), Until: at(5)}, 5, 24, 0},
		"one that has not ended": {compute.Use{From: at(3)}, 0, 24, 21},
	}
	for name, test := range tests {
		if got := test.use.Hours(at(test.from), at(test.until)); got != test.want {
			t.Errorf("%s: %v hours, want %v", name, got, test.want)
		}
	}
}

// What was used is known for a month after the server, whether its project is asked for or all.
func TestUsesAreForgottenAfterAWhile(t *testing.T) {
	c := cloudtest.New(t, 1)
	var ran []resource.ID
	for range 3 {
		ran = append(ran, c.Launch(compute.Launch{})...)
	}
	c.Settle()
	c.Hosts[0].Lazy = true
	never := c.Launch(compute.Launch{})[0]
	c.Must(c.Compute.Delete(c.Ctx, never))
	c.Hosts[0].Lazy = false
	c.Settle()
	c.Clock = c.Clock.Add(time.Hour)
	c.Must(c.Compute.Delete(c.Ctx, ran[0]))
	c.Settle()
	c.Clock = c.Clock.Add(20 * 24 * time.Hour)
	c.Must(c.Compute.Delete(c.Ctx, ran[1]))
	c.Settle()
	count := func() (found int) {
		t.Helper()
		ever := compute.Span{Until: c.Clock}
		all, more, err := c.Compute.Uses(c.Admin, ever)
		c.Must(err)
		ever.ProjectID = c.Project
		own, more2, err := c.Compute.Uses(c.Ctx, ever)
		c.Must(err)
		if len(own) != len(all) || more || more2 {
			t.Errorf("%d uses of the project, %d of all", len(own), len(all))
		}
		ever.ProjectID = c.Other
		if foreign, _, err := c.Compute.Uses(c.OtherCtx, ever); err != nil || len(foreign) != 0 {
			t.Errorf("another project has %d, %v", len(foreign), err)
		}
		return len(all)
	}
	for _, step := range []struct{ days, want int }{{0, 3}, {11, 3}, {2, 2}, {18, 2}, {2, 1}, {400, 1}} {
		c.Clock = c.Clock.Add(time.Duration(step.days) * 24 * time.Hour)
		_, err := c.Compute.Forget(c.Admin, 10)
		c.Must(err)
		if got := count(); got != step.want {
			t.Errorf("after %d more days: %d uses, want %d", step.days, got, step.want)
		}
	}
}
