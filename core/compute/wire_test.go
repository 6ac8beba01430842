package compute_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A host that others do not reach, or whose wire has become too small for the networks, has its guests and gets no new ones, by whichever way
// they come, until it fits again. Operators are told which and why; the owner only what was asked of a host.
func TestNoGuestGoesToAHostWhoseWireDoesNotFit(t *testing.T) {
	for name, bad := range map[string]struct {
		address string
		mtu     int
	}{
		"its wire is too small":         {"192.0.2.2", 1400},
		"it has another host's address": {"192.0.2.3", 1500},
		"it is of another family":       {"2001:db8::2", 1500},
		"it has no address":             {"", 1500},
	} {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t, 4)
			says := func(n int, address string, mtu int) {
				t.Helper()
				hello := host.Hello{Speaks: release.Own, Name: c.Hosts[n].Name, Capacity: cloudtest.Capacity, MTU: mtu}
				hello.Capacity.Driver = "real"
				if address != "" {
					hello.Address = netip.MustParseAddr(address)
				}
				c.Must(host.Arrive(c.Admin, c.State, c.Hosts[n].ID, hello))
			}
			hosts := &host.Service{State: c.State}
			for n, address := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"} {
				says(n, address, 1500)
			}
			// Only one has room beside the one that is looked at; the third has its address in one case.
			c.Must(hosts.SetDisabled(c.Admin, c.Hosts[2].ID, true, ""))
			c.Must(hosts.SetDisabled(c.Admin, c.Hosts[3].ID, true, ""))
			good, sick := c.Hosts[0], c.Hosts[1]
			stays := launchOn(c, compute.Launch{}, sick)
			came := launchOn(c, compute.Launch{}, sick)
			c.Settle()
			c.Must(c.Compute.Migrate(c.Admin, came, good.Name))
			c.Settle()
			if srv := c.Server(came); srv.HostID != good.ID || srv.Stage() != compute.Unsettled {
				t.Fatalf("a server that was moved is %v", srv.Standing())
			}

			says(1, bad.address, bad.mtu)
			before := c.Server(stays)
			for range 5 {
				if id := c.Launch(compute.Launch{})[0]; c.Server(id).HostID != good.ID {
					t.Errorf("a new server is on %v", c.Server(id).HostID)
				}
			}
			providers, err := c.Compute.Candidates(c.Admin, nil, 0)
			c.Must(err)
			if len(providers) != 1 || providers[0].Host.ID != good.ID {
				t.Errorf("%d hosts are shown as candidates", len(providers))
			}
			if err := c.Compute.Revert(c.Ctx, came); !fault.Is(err, fault.Conflict) {
				t.Errorf("a server goes back there: %v", err)
			}
			// When nothing else is left there is none.
			c.Must(hosts.SetDisabled(c.Admin, good.ID, true, ""))
			failed := c.Launch(compute.Launch{})[0]
			f := c.Server(failed).Failure
			if f == nil || !strings.Contains(f.Details, "1 of 4 were left out because none of them is reached by other hosts") {
				t.Fatalf("operators are told %+v", f)
			}
			why := lastOperation(c, failed).Why
			if !slices.ContainsFunc(why.Removed, func(r operation.Removed) bool { return slices.Equal(r.Examples, []string{sick.Name}) }) {
				t.Errorf("and %+v", why.Removed)
			}
			if text := told(c, failed); !strings.Contains(text, "There is none at present that") || !strings.Contains(text, "is reached by other hosts") || strings.ContainsAny(text, "0123456789") {
				t.Errorf("the owner is told %q", text)
			}
			room, err := c.Compute.Room(c.Admin, "1", "")
			c.Must(err)
			if len(room) != 1 || room[0].More != 0 || !slices.ContainsFunc(room[0].Why, func(e compute.RoomEnds) bool { return strings.HasPrefix(e.Constraint, "is reached by") && e.Hosts == 1 }) {
				t.Errorf("there is room: %+v", room)
			}
			// What runs there is left alone, and can be changed in its place.
			if now := c.Server(stays); now.HostID != before.HostID || now.Standing() != before.Standing() || now.Wish != before.Wish {
				t.Errorf("a server that runs there is %+v", now)
			}
			c.Must(c.Compute.Do(c.Ctx, stays, compute.HardRebooting))
			c.Settle()
			// It ends by itself.
			says(1, "192.0.2.2", 1500)
			if id := c.Launch(compute.Launch{})[0]; c.Server(id).HostID != sick.ID {
				t.Errorf("when it fits again a new server is on %v", c.Server(id).HostID)
			}
		})
	}
}
