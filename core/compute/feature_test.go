package compute_test

import (
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
)

// furnished is a cloud with two hosts of which the first has a trait and three licenses, and a flavor that asks for that.
func furnished(t *testing.T, extra map[string]string) (*cloudtest.Cloud, *host.Service) {
	t.Helper()
	c := cloudtest.New(t, 2)
	hosts := &host.Service{State: c.State}
	for _, name := range []string{"CUSTOM_GOLD", "CUSTOM_OLD"} {
		_, err := hosts.CreateTrait(c.Admin, name)
		c.Must(err)
	}
	_, err := hosts.CreateClass(c.Admin, "CUSTOM_LICENSE")
	c.Must(err)
	_, err = hosts.SetTraits(c.Admin, c.Hosts[0].ID, nil, []string{"CUSTOM_GOLD"})
	c.Must(err)
	_, err = c.Compute.SetInventory(c.Admin, c.Hosts[0].ID, nil, func(all map[string]host.Inventory) (map[string]host.Inventory, error) {
		all["CUSTOM_LICENSE"] = host.Inventory{Total: 3, Ratio: 1, Min: 1, Max: 2, Step: 1}
		return all, nil
	})
	c.Must(err)
	_, err = c.Compute.SetExtra(c.Admin, "42", extra)
	c.Must(err)
	return c, hosts
}

func launch(c *cloudtest.Cloud, name string) *compute.Server {
	return c.Server(c.Launch(compute.Launch{Name: name})[0])
}

var featureTests = map[string]struct {
	extra map[string]string
	on    int    // the host that it is put on; -1 for either, -2 for none
	why   string // a part of the explanation
}{
	"nothing asked":                {nil, -1, ""},
	"a trait":                      {map[string]string{"trait:CUSTOM_GOLD": "required"}, 0, ""},
	"not a trait":                  {map[string]string{"trait:CUSTOM_GOLD": "forbidden"}, 1, ""},
	"a trait that no host has":     {map[string]string{"trait:CUSTOM_OLD": "required"}, -2, "has the traits that the flavor requires"},
	"a trait that every host has":  {map[string]string{"trait:COMPUTE_NODE": "forbidden"}, -2, "is without the traits that the flavor forbids"},
	"licenses":                     {map[string]string{"resources:CUSTOM_LICENSE": "2"}, 0, ""},
	"no licenses":                  {map[string]string{"resources:CUSTOM_LICENSE": "0"}, -1, ""},
	"licenses in too large a part": {map[string]string{"resources:CUSTOM_LICENSE": "3"}, -2, "has the custom resources of the flavor"},
	"what no host has any of":      {map[string]string{"resources:VGPU": "1"}, -2, "has the custom resources of the flavor"},
	"both, on different hosts": {map[string]string{"resources:CUSTOM_LICENSE": "1", "trait:CUSTOM_GOLD": "forbidden"}, -2,
		"has the custom resources of the flavor"},
}

func TestFlavorsLeadToTraitsAndResources(t *testing.T) {
	for name, test := range featureTests {
		t.Run(name, func(t *testing.T) {
			c, _ := furnished(t, test.extra)
			srv := launch(c, "s")
			switch {
			case test.on == -2 && (srv.Failure == nil || !strings.Contains(srv.Failure.Message, test.why)):
				t.Errorf("it is on %v, failed with %+v", srv.HostID, srv.Failure)
			case test.on == -1 && srv.HostID.IsZero() || test.on >= 0 && srv.HostID != c.Hosts[test.on].ID:
				t.Errorf("it is on %v: %+v", srv.HostID, srv.Failure)
			}
		})
	}
}

// What servers claim is counted in the transaction that places them, and free again when they are gone.
func TestCustomResourcesAreCounted(t *testing.T) {
	c, hosts := furnished(t, map[string]string{"resources:CUSTOM_LICENSE": "2"})
	first, second := launch(c, "first"), launch(c, "second")
	if first.HostID != c.Hosts[0].ID || second.Failure == nil {
		t.Fatalf("of three licenses, two times two were given: %v, %v", first.HostID, second.HostID)
	}
	use := func() int64 {
		p, err := c.Compute.Provider(c.Admin, c.Hosts[0].ID)
		c.Must(err)
		return p.Used["CUSTOM_LICENSE"]
	}
	taken, count, err := c.Compute.Taken(c.Ctx, c.Project, c.User.UserID)
	c.Must(err)
	if use() != 2 || taken["CUSTOM_LICENSE"] != 2 || count != 1 {
		t.Errorf("%d are used on the host, and by the owner %v in %d servers", use(), taken, count)
	}
	drop := func(all map[string]host.Inventory) (map[string]host.Inventory, error) {
		delete(all, "CUSTOM_LICENSE")
		return all, nil
	}
	if _, err := c.Compute.SetInventory(c.Admin, c.Hosts[0].ID, nil, drop); !fault.Is(err, fault.Conflict) {
		t.Errorf("the inventory in use is taken away: %v", err)
	}
	if err := hosts.DeleteClass(c.Admin, "CUSTOM_LICENSE"); !fault.Is(err, fault.Conflict) {
		t.Errorf("the class in use is deleted: %v", err)
	}
	c.Must(c.Compute.Delete(c.Ctx, first.ID))
	c.Settle()
	if use() != 0 {
		t.Errorf("%d are used by nobody", use())
	}
	_, err = c.Compute.SetInventory(c.Admin, c.Hosts[0].ID, nil, drop)
	c.Must(err)
	c.Must(hosts.DeleteClass(c.Admin, "CUSTOM_LICENSE"))
	if found := audit.State(c.State.Latest()); len(found) > 0 {
		t.Errorf("the audit found %v", found)
	}
}

// A server that gets another shape goes on where it is only if that host has what the shape asks for, and else to one that has.
func TestReshapeHeedsTraitsAndResources(t *testing.T) {
	c, _ := furnished(t, map[string]string{"trait:CUSTOM_GOLD": "required", "resources:CUSTOM_LICENSE": "1"})
	for name, extra := range map[string]map[string]string{
		"more":      {"resources:CUSTOM_LICENSE": "2"},
		"too many":  {"resources:CUSTOM_LICENSE": "3"},
		"not there": {"trait:CUSTOM_OLD": "required"},
		"forbidden": {"trait:CUSTOM_GOLD": "forbidden"},
	} {
		_, err := c.Compute.CreateFlavor(c.Admin, compute.Flavor{Meta: resource.Meta{Name: name}, Ref: name, VCPUs: 1, MemoryMiB: 128, RootGiB: 1, Extra: extra})
		c.Must(err)
	}
	srv := launch(c, "s")
	c.Settle()
	for _, flavor := range []string{"too many", "not there"} { // on no host
		if err := c.Compute.Reshape(c.Ctx, srv.ID, flavor, nil); !fault.Is(err, fault.Exhausted) {
			t.Errorf("%s: %v", flavor, err)
		}
	}
	c.Must(c.Compute.Reshape(c.Ctx, srv.ID, "more", nil))
	held, err := c.Compute.Holding(c.Admin, srv.ID)
	c.Must(err)
	if held.Amounts["CUSTOM_LICENSE"] != 2 {
		t.Errorf("it holds %v", held.Amounts)
	}
	other := launch(c, "t")
	c.Settle()
	c.Must(c.Compute.Reshape(c.Ctx, other.ID, "forbidden", nil))
	if s, ok := compute.Servers().Find(c.State.Latest(), other.ID); !ok || s.Move == nil || s.Move.To != c.Hosts[1].ID {
		t.Errorf("it does not move to the host without the trait: %+v", s.Move)
	}
	if found := audit.State(c.State.Latest()); len(found) > 0 {
		t.Errorf("the audit found %v", found)
	}
}

func TestExtraThatLooksLikeADemandIsOne(t *testing.T) {
	c := cloudtest.New(t, 1)
	for _, extra := range [][2]string{{"trait:", "required"}, {"trait:CUSTOM_A", "wanted"}, {"resources:", "1"}, {"resources:VCPU", "2"},
		{"resources:CUSTOM_A", "-1"}, {"resources:CUSTOM_A", "x"}, {"resources:CUSTOM_A", "2147483648"}, {"resources1:CUSTOM_A", "1"}, {"trait_x:CUSTOM_A", "required"}} {
		if _, err := c.Compute.SetExtra(c.Admin, "42", map[string]string{extra[0]: extra[1]}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s=%s: %v", extra[0], extra[1], err)
		}
	}
}

// Aggregates that Placement made are gone with their last host; those of operators stay.
func TestMemberships(t *testing.T) {
	c := cloudtest.New(t, 2)
	a, err := c.Compute.CreateAggregate(c.Admin, "ssd", "")
	c.Must(err)
	made := c.Hosts[1].ID // any ID will do
	p, err := c.Compute.SetMemberships(c.Admin, c.Hosts[0].ID, nil, []resource.ID{a.ID, made})
	c.Must(err)
	if len(p.Aggregates) != 2 {
		t.Fatalf("the host is in %v", p.Aggregates)
	}
	stale := p.Generation() - 1
	if _, err := c.Compute.SetMemberships(c.Admin, c.Hosts[0].ID, &stale, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("an old generation is taken: %v", err)
	}
	before := p.Generation()
	_, err = c.Compute.RemoveHost(c.Admin, a.Number, c.Hosts[0].Name)
	c.Must(err)
	if p, err = c.Compute.Provider(c.Admin, c.Hosts[0].ID); err != nil || p.Generation() == before {
		t.Errorf("an aggregate that was left elsewhere is no change: %v", err)
	}
	_, err = c.Compute.SetMemberships(c.Admin, c.Hosts[0].ID, nil, nil)
	c.Must(err)
	if n := compute.Aggregates().Len(c.State.Latest()); n != 1 {
		t.Errorf("there are %d aggregates", n)
	}
}

// What is used of a host is what servers and migrations hold of it: also while a server is on its way, and may have to go back.
func TestHoldingsAreWhatIsUsed(t *testing.T) {
	c := cloudtest.New(t, 2)
	srv := launch(c, "s")
	c.Settle()
	from := c.HostOf(srv.ID)
	to := c.Hosts[0]
	if to == from {
		to = c.Hosts[1]
	}
	same := func(when string, consumers map[*cloudtest.Host]bool) {
		t.Helper()
		for h, migration := range consumers {
			p, all, err := c.Compute.HoldingsOn(c.Admin, h.ID)
			c.Must(err)
			sum := map[string]int64{}
			for _, held := range all {
				if one, err := c.Compute.Holding(c.Admin, held.Consumer); err != nil || one == nil || one.Provider.ID != h.ID || one.Migration != migration || (one.Consumer == srv.ID) == migration {
					t.Errorf("%s: %+v, %v", when, one, err)
				}
				for class, n := range held.Amounts {
					sum[class] += n
				}
			}
			for class, n := range p.Used {
				if sum[class] != n {
					t.Errorf("%s: %d %s of %s are used, and %d held", when, n, class, p.Host.Name, sum[class])
				}
			}
		}
	}
	same("at rest", map[*cloudtest.Host]bool{from: false, to: false})
	c.Must(c.Compute.Migrate(c.Admin, srv.ID, to.Name))
	same("on its way", map[*cloudtest.Host]bool{from: true, to: false})
	c.Settle()
	same("unconfirmed", map[*cloudtest.Host]bool{from: true, to: false})
	c.Must(c.Compute.Confirm(c.Ctx, srv.ID))
	c.Settle()
	same("confirmed", map[*cloudtest.Host]bool{from: false, to: false})
}
