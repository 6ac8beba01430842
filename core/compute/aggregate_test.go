package compute_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
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

// A resize asks of the server's own host what it asks of others: a flavor that leads to an aggregate's hosts takes the server there.
func TestReshapeIntoAggregate(t *testing.T) {
	c := cloudtest.New(t, 2)
	a, err := c.Compute.CreateAggregate(c.Admin, "ssd", "")
	c.Must(err)
	yes := "true"
	_, err = c.Compute.SetAggregateMetadata(c.Admin, a.Number, map[string]*string{"ssd": &yes}, nil)
	c.Must(err)
	_, err = c.Compute.AddHost(c.Admin, a.Number, c.Hosts[1].Name)
	c.Must(err)
	for name, vcpus := range map[string]int{"ssd": 1, "ssd.larger": 2} {
		_, err = c.Compute.CreateFlavor(c.Admin, compute.Flavor{Meta: resource.Meta{Name: name}, Ref: name, VCPUs: vcpus, MemoryMiB: 256, RootGiB: 2,
			Extra: map[string]string{"aggregate_instance_extra_specs:ssd": "true"}})
		c.Must(err)
	}
	id := launchOn(c, compute.Launch{}, c.Hosts[0])
	c.Settle()
	c.Must(c.Compute.Reshape(c.Ctx, id, "ssd", nil))
	c.Settle()
	if c.Server(id).HostID != c.Hosts[1].ID {
		t.Fatalf("a flavor for the aggregate runs outside it: %v", c.Server(id).Standing())
	}
	c.Must(c.Compute.Confirm(c.Ctx, id))
	c.Must(c.Compute.Reshape(c.Ctx, id, "ssd.larger", nil))
	if c.Server(id).Moving() {
		t.Error("it leaves a host that is in the aggregate")
	}
	c.Settle()
	c.Must(c.Compute.Confirm(c.Ctx, id))
	_, err = c.Compute.RemoveHost(c.Admin, a.Number, c.Hosts[1].Name)
	c.Must(err)
	if err := c.Compute.Reshape(c.Ctx, id, "ssd", nil); !fault.Is(err, fault.Exhausted) {
		t.Errorf("no host is in the aggregate: %v", err)
	}
}

// A zone cannot be taken away from under servers; neither for another one nor for none.
func TestZoneStaysUnderServers(t *testing.T) {
	c := cloudtest.New(t, 2)
	first, err := c.Compute.CreateAggregate(c.Admin, "first", "z1")
	c.Must(err)
	for _, h := range c.Hosts {
		_, err = c.Compute.AddHost(c.Admin, first.Number, h.Name)
		c.Must(err)
	}
	id := launchOn(c, compute.Launch{Zone: "z1"}, c.Hosts[0])
	c.Settle()
	none, other := "", "z2"
	for _, zone := range []string{none, other} {
		if _, err := c.Compute.UpdateAggregate(c.Admin, first.Number, nil, &zone); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "contain instances in this zone") {
			t.Errorf("to %q it is changed: %v", zone, err)
		}
		if _, err := c.Compute.SetAggregateMetadata(c.Admin, first.Number, nil, &zone); !fault.Is(err, fault.Conflict) {
			t.Errorf("to %q its metadata change it: %v", zone, err)
		}
	}
	if a, _ := compute.Aggregates().PeekOne(c.State.Latest(), first.ID); a.Zone != "z1" {
		t.Errorf("the zone is %q", a.Zone)
	}
	c.Must(c.Compute.LiveMigrate(c.Admin, id, ""))
	c.Settle()

	// Another aggregate's zone that is the same holds it, and no host need be in the first one then.
	second, err := c.Compute.CreateAggregate(c.Admin, "second", "z1")
	c.Must(err)
	_, err = c.Compute.AddHost(c.Admin, second.Number, c.HostOf(id).Name)
	c.Must(err)
	_, err = c.Compute.UpdateAggregate(c.Admin, first.Number, nil, &none)
	c.Must(err)
	if _, err := c.Compute.RemoveHost(c.Admin, second.Number, c.HostOf(id).Name); !fault.Is(err, fault.Conflict) {
		t.Errorf("the host leaves the zone: %v", err)
	}
	c.Must(c.Compute.Delete(c.Ctx, id))
	c.Settle()
	_, err = c.Compute.UpdateAggregate(c.Admin, second.Number, nil, &none)
	c.Must(err)
}

// TestLoweredRatio: a host of which more is promised by now than may be takes no new servers, and nothing becomes of those it has.
func TestLoweredRatio(t *testing.T) {
	lower := map[string]func(c *cloudtest.Cloud, ratio float64) error{
		"of the cloud": func(c *cloudtest.Cloud, ratio float64) error {
			_, err := (&host.Service{State: c.State}).SetKeeping(c.Admin, func(k *host.Keeping) { k.MemoryRatio = ratio })
			return err
		},
		"of an aggregate": func(c *cloudtest.Cloud, ratio float64) error {
			text := fmt.Sprint(ratio)
			all, err := c.Compute.ListAggregates(c.Admin)
			c.Must(err)
			_, err = c.Compute.SetAggregateMetadata(c.Admin, all[0].Number, map[string]*string{"ram_allocation_ratio": &text}, nil)
			return err
		},
	}
	for name, lower := range lower {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t, 1)
			a, err := c.Compute.CreateAggregate(c.Admin, "a", "")
			c.Must(err)
			_, err = c.Compute.AddHost(c.Admin, a.Number, c.Hosts[0].Name)
			c.Must(err)
			id := launchOn(c, compute.Launch{}, c.Hosts[0])
			c.Settle()
			before := c.Server(id)
			c.Must(lower(c, 0.001))
			c.Settle()
			if after := c.Server(id); after.Revision != before.Revision || after.HostID != before.HostID {
				t.Errorf("a server that runs became %+v", after)
			}
			refused := c.Server(c.Launch(compute.Launch{})[0])
			if !refused.HostID.IsZero() {
				t.Error("a host of which too much is promised takes a new server")
			}
			if why := refused.Failure.Message; !strings.Contains(why, "has the memory") {
				t.Errorf("its owner is told %q", why)
			}
			c.Must(c.Compute.Do(c.Ctx, id, compute.Stopping)) // what it is to do is as before
			c.Settle()
			c.Must(c.Compute.Do(c.Ctx, id, compute.Starting))
			c.Settle()
			c.Must(lower(c, 1))
			if srv := c.Server(c.Launch(compute.Launch{})[0]); srv.HostID.IsZero() {
				t.Errorf("with a ratio that there is room by, none is found: %v", srv.Failure)
			}
		})
	}
}
