// Package networktest is the contract of network.Driver: what every driver
// promises, the simulated one too. How packets are moved is a driver's own
// business and is tested beside it.
package networktest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// Options is what a driver can show of itself beyond the interface.
type Options struct {
	// Reopen ends the driver as a crash would and opens it again on the same
	// host. nil: the cases about that are skipped.
	Reopen func(t *testing.T, d network.Driver) network.Driver
	// Reaches reports whether a new TCP connection from one port to another's
	// first address comes about. Both are attached, of one network. nil: the cases
	// about what passes are skipped.
	Reaches func(t *testing.T, d network.Driver, from, to network.Attachment, tcpPort int) bool
}

// TestDriver runs the contract. open gives a driver on a host that holds
// nothing, and takes it away when its test ends.
func TestDriver(t *testing.T, open func(t *testing.T) network.Driver, options Options) {
	for name, run := range cases {
		t.Run(name, func(t *testing.T) { run(&bench{T: t, driver: open(t), options: options}) })
	}
}

var cases = map[string]func(*bench){
	"a host starts with nothing":                       startsEmpty,
	"what is ensured is present, and nothing else":     presentIsExact,
	"ensuring again changes nothing":                   ensureRepeats,
	"a wish may change":                                wishChanges,
	"an attachment may come before all it needs":       attachmentFirst,
	"a gateway may come before its networks":           gatewayFirst,
	"a network goes before its ports":                  segmentGoesFirst,
	"each port has a tap of its own":                   tapsDiffer,
	"removing what is not there is no error":           removeNothing,
	"an unknown kind of thing is an error":             removeUnknownKind,
	"calls for different things come together":         concurrent,
	"calls for the same thing come together":           concurrentSame,
	"an interrupted call is made good by the next one": interrupted,
	"a new process finds what is there":                reopened,
	"a new process can remove what it finds":           reopenedRemoves,

	"no group lets nothing in":                                   noGroup,
	"a group that is not there lets nothing in":                  missingGroup,
	"a rule lets in what it names":                               ruleNames,
	"a rule is about its remotes":                                ruleRemotes,
	"a removed rule lets nothing in any more":                    ruleRemoved,
	"a removed group lets nothing in any more":                   groupRemoved,
	"groups add up":                                              groupsAddUp,
	"what may not leave does not":                                egressDenied,
	"without port security everything passes":                    portSecurityOff,
	"a port that is down reaches nobody":                         adminDown,
	"rules are in force before the driver is reopened and after": rulesOutliveProcess,
}

// A bench is one case's driver with helpers.
type bench struct {
	*testing.T
	driver  network.Driver
	options Options
}

var ids struct {
	sync.Mutex
	last time.Time
}

// newID makes IDs that sort in the order they were made.
func newID() resource.ID {
	ids.Lock()
	defer ids.Unlock()
	now := time.Now()
	if !now.After(ids.last.Add(time.Millisecond)) {
		now = ids.last.Add(time.Millisecond)
	}
	ids.last = now
	return resource.NewID(now, nil)
}

// A Cloud is a network with things in it, for cases and for drivers' own tests.
type Cloud struct {
	Segment network.Segment
	subnet  resource.ID
	ports   int
}

// NewCloud makes a network; its number tells several apart.
func NewCloud(number int) *Cloud {
	c := &Cloud{subnet: newID()}
	c.Segment = network.Segment{
		ID: newID(), ProjectID: newID(), VNI: 4000 + number, MTU: 1450,
		Subnets: []network.SegmentSubnet{{
			ID: c.subnet, CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(number), 0}), 24),
			Gateway: netip.AddrFrom4([4]byte{10, 77, byte(number), 1}), DHCP: true, MetadataOn: true,
		}},
	}
	return c
}

// Port makes a port of the network in some groups.
func (c *Cloud) Port(groups ...resource.ID) network.Attachment {
	c.ports++
	last := byte(9 + c.ports)
	third := c.Segment.Subnets[0].CIDR.Addr().As4()[2]
	return network.Attachment{
		ID: newID(), NetworkID: c.Segment.ID, ProjectID: c.Segment.ProjectID, ServerID: newID(),
		MAC: fmt.Sprintf("fa:16:3e:77:%02x:%02x", third, last), AdminUp: true, PortSecurity: true, Groups: groups, MTU: 1450,
		Addresses: []network.FixedAddress{{SubnetID: c.subnet, Address: netip.AddrFrom4([4]byte{10, 77, third, last})}},
		Hostname:  fmt.Sprintf("host-%d", last),
	}
}

// Gateway makes a router with a leg in the network.
func (c *Cloud) Gateway() network.Gateway {
	subnet := c.Segment.Subnets[0]
	return network.Gateway{
		ID: newID(), ProjectID: c.Segment.ProjectID, AdminUp: true,
		Interfaces: []network.GatewayInterface{{
			PortID: newID(), NetworkID: c.Segment.ID, MAC: fmt.Sprintf("fa:16:3e:77:%02x:01", subnet.CIDR.Addr().As4()[2]), AdminUp: true,
			Addresses: []netip.Prefix{netip.PrefixFrom(subnet.Gateway, subnet.CIDR.Bits())},
		}},
	}
}

// Group makes a security group that lets everything out and what its rules say in.
func Group(rules ...network.FilterRule) network.Filter {
	out := network.FilterRule{PortMin: -1, PortMax: -1}
	out6 := out
	out6.V6 = true
	return network.Filter{ID: newID(), Stateful: true, Rules: append([]network.FilterRule{out, out6}, rules...)}
}

// TCP is a rule that lets connections to one port in, from anywhere or from remotes.
func TCP(port int, remotes ...netip.Prefix) network.FilterRule {
	return network.FilterRule{Ingress: true, Protocol: 6, PortMin: port, PortMax: port, Remote: remotes}
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) segment(want network.Segment) {
	b.Helper()
	b.ok(b.driver.EnsureSegment(b.Context(), want))
}

func (b *bench) attach(want network.Attachment) network.Tap {
	b.Helper()
	tap, err := b.driver.EnsureAttachment(b.Context(), want)
	b.ok(err)
	if tap.Name == "" {
		b.Fatalf("the tap of port %s has no name", want.ID)
	}
	return tap
}

func (b *bench) filter(want network.Filter) {
	b.Helper()
	b.ok(b.driver.EnsureFilter(b.Context(), want))
}

func (b *bench) gateway(want network.Gateway) {
	b.Helper()
	b.ok(b.driver.EnsureGateway(b.Context(), want))
}

func (b *bench) remove(kind string, id resource.ID) {
	b.Helper()
	b.ok(b.driver.Remove(b.Context(), network.Thing{Kind: kind, ID: id}))
}

func (b *bench) reopen() {
	b.Helper()
	if b.options.Reopen == nil {
		b.Skip("this driver cannot be reopened")
	}
	b.driver = b.options.Reopen(b.T, b.driver)
}

// holds checks that exactly these things are present.
func (b *bench) holds(want ...network.Thing) {
	b.Helper()
	have, err := b.driver.Present(b.Context())
	b.ok(err)
	for _, thing := range have {
		if !slices.Contains(want, thing) {
			b.Errorf("present, though nobody wants it: %s %s", thing.Kind, thing.ID)
		}
	}
	for i, thing := range want {
		if !slices.Contains(have, thing) {
			b.Errorf("not present: %s %s", thing.Kind, thing.ID)
		}
		if slices.Contains(want[:i], thing) {
			b.Fatalf("the case lists %s %s twice", thing.Kind, thing.ID)
		}
	}
	if len(have) > len(want) && !b.Failed() {
		b.Errorf("present more than once: %v", have)
	}
}

func thing(kind string, id resource.ID) network.Thing { return network.Thing{Kind: kind, ID: id} }

func startsEmpty(b *bench) { b.holds() }

func presentIsExact(b *bench) {
	cloud := NewCloud(1)
	group := Group()
	port, gateway := cloud.Port(group.ID), cloud.Gateway()
	b.segment(cloud.Segment)
	b.holds(thing("segment", cloud.Segment.ID))
	b.filter(group)
	b.attach(port)
	b.gateway(gateway)
	b.holds(thing("segment", cloud.Segment.ID), thing("filter", group.ID), thing("attachment", port.ID), thing("gateway", gateway.ID))
	b.remove("gateway", gateway.ID)
	b.holds(thing("segment", cloud.Segment.ID), thing("filter", group.ID), thing("attachment", port.ID))
	b.remove("attachment", port.ID)
	b.remove("filter", group.ID)
	b.holds(thing("segment", cloud.Segment.ID))
	b.remove("segment", cloud.Segment.ID)
	b.holds()
}

func ensureRepeats(b *bench) {
	cloud := NewCloud(1)
	group := Group(TCP(80))
	port, gateway := cloud.Port(group.ID), cloud.Gateway()
	var first network.Tap
	for round := range 3 {
		b.segment(cloud.Segment)
		b.filter(group)
		tap := b.attach(port)
		b.gateway(gateway)
		if round == 0 {
			first = tap
		} else if tap != first {
			b.Errorf("the tap was %v and is now %v", first, tap)
		}
	}
	b.holds(thing("segment", cloud.Segment.ID), thing("filter", group.ID), thing("attachment", port.ID), thing("gateway", gateway.ID))
}

func wishChanges(b *bench) {
	cloud := NewCloud(1)
	group := Group()
	port, gateway := cloud.Port(group.ID), cloud.Gateway()
	b.segment(cloud.Segment)
	b.filter(group)
	tap := b.attach(port)
	b.gateway(gateway)

	cloud.Segment.MTU = 1400
	cloud.Segment.Subnets[0].DNS = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	cloud.Segment.Neighbors = []network.Neighbor{{MAC: "fa:16:3e:99:99:99", Addresses: []netip.Addr{netip.MustParseAddr("10.77.1.99")}}}
	port.MTU, port.Hostname, port.Groups = 1400, "renamed", nil
	port.AllowedPairs = []network.AddressPair{{Address: netip.MustParsePrefix("10.77.1.200/32")}, {MAC: "fa:16:3e:88:88:88", Address: netip.MustParsePrefix("10.78.0.0/16")}}
	group.Rules = append(group.Rules, TCP(443))
	gateway.Interfaces[0].AdminUp = false
	gateway.Routes = []network.Route{{Destination: netip.MustParsePrefix("10.79.0.0/16"), NextHop: netip.MustParseAddr("10.77.1.254")}}
	b.segment(cloud.Segment)
	b.filter(group)
	if now := b.attach(port); now != tap {
		b.Errorf("the tap was %v and is now %v", tap, now)
	}
	b.gateway(gateway)
	gateway.Interfaces[0].AdminUp = true
	b.gateway(gateway)
	gateway.Interfaces = nil
	b.gateway(gateway)
	b.holds(thing("segment", cloud.Segment.ID), thing("filter", group.ID), thing("attachment", port.ID), thing("gateway", gateway.ID))
}

func attachmentFirst(b *bench) {
	cloud := NewCloud(1)
	group := Group()
	port := cloud.Port(group.ID)
	tap := b.attach(port)
	b.holds(thing("attachment", port.ID))
	b.segment(cloud.Segment)
	b.filter(group)
	if now := b.attach(port); now != tap {
		b.Errorf("the tap was %v and is now %v", tap, now)
	}
	b.remove("attachment", port.ID)
	b.holds(thing("segment", cloud.Segment.ID), thing("filter", group.ID))
}

func gatewayFirst(b *bench) {
	cloud := NewCloud(1)
	gateway := cloud.Gateway()
	b.gateway(gateway)
	b.holds(thing("gateway", gateway.ID))
	b.segment(cloud.Segment)
	b.gateway(gateway)
	b.holds(thing("gateway", gateway.ID), thing("segment", cloud.Segment.ID))
	b.remove("segment", cloud.Segment.ID)
	b.holds(thing("gateway", gateway.ID))
	b.remove("gateway", gateway.ID)
	b.holds()
}

func segmentGoesFirst(b *bench) {
	cloud := NewCloud(1)
	port := cloud.Port()
	b.segment(cloud.Segment)
	tap := b.attach(port)
	b.remove("segment", cloud.Segment.ID)
	b.holds(thing("attachment", port.ID))
	b.segment(cloud.Segment)
	if now := b.attach(port); now != tap {
		b.Errorf("the tap was %v and is now %v", tap, now)
	}
	b.remove("segment", cloud.Segment.ID)
	b.remove("attachment", port.ID)
	b.holds()
}

func tapsDiffer(b *bench) {
	seen := map[network.Tap]bool{}
	for number := 1; number <= 2; number++ {
		cloud := NewCloud(number)
		b.segment(cloud.Segment)
		for range 3 {
			tap := b.attach(cloud.Port())
			if seen[tap] {
				b.Errorf("two ports share %v", tap)
			}
			seen[tap] = true
		}
	}
}

func removeNothing(b *bench) {
	for _, kind := range []string{"segment", "attachment", "filter", "gateway"} {
		b.remove(kind, newID())
	}
	b.holds()
}

func removeUnknownKind(b *bench) {
	if err := b.driver.Remove(b.Context(), thing("volume", newID())); err == nil {
		b.Error("no error")
	}
}

// together runs calls at once and reports their errors.
func (b *bench) together(calls []func() error) {
	b.Helper()
	failed := make([]error, len(calls))
	var running sync.WaitGroup
	for i, call := range calls {
		running.Add(1)
		go func() { defer running.Done(); failed[i] = call() }()
	}
	running.Wait()
	b.ok(errors.Join(failed...))
}

func concurrent(b *bench) {
	var calls []func() error
	var want []network.Thing
	for number := 1; number <= 3; number++ {
		cloud := NewCloud(number)
		group, gateway := Group(TCP(22)), cloud.Gateway()
		calls = append(calls,
			func() error { return b.driver.EnsureSegment(b.Context(), cloud.Segment) },
			func() error { return b.driver.EnsureFilter(b.Context(), group) },
			func() error { return b.driver.EnsureGateway(b.Context(), gateway) })
		want = append(want, thing("segment", cloud.Segment.ID), thing("filter", group.ID), thing("gateway", gateway.ID))
		for range 4 {
			port := cloud.Port(group.ID)
			calls = append(calls, func() error { _, err := b.driver.EnsureAttachment(b.Context(), port); return err })
			want = append(want, thing("attachment", port.ID))
		}
	}
	b.together(calls)
	b.holds(want...)
	var removals []func() error
	for _, thing := range want {
		removals = append(removals, func() error { return b.driver.Remove(b.Context(), thing) })
	}
	b.together(removals)
	b.holds()
}

func concurrentSame(b *bench) {
	cloud := NewCloud(1)
	port := cloud.Port()
	var calls []func() error
	for range 4 {
		calls = append(calls,
			func() error { return b.driver.EnsureSegment(b.Context(), cloud.Segment) },
			func() error { _, err := b.driver.EnsureAttachment(b.Context(), port); return err },
			func() error { _, err := b.driver.Present(b.Context()); return err })
	}
	b.together(calls)
	b.holds(thing("segment", cloud.Segment.ID), thing("attachment", port.ID))
	var removals []func() error
	for range 4 {
		removals = append(removals,
			func() error { return b.driver.Remove(b.Context(), thing("attachment", port.ID)) },
			func() error { return b.driver.Remove(b.Context(), thing("segment", cloud.Segment.ID)) })
	}
	b.together(removals)
	b.holds()
}

func interrupted(b *bench) {
	cloud := NewCloud(1)
	group := Group()
	port, gateway := cloud.Port(group.ID), cloud.Gateway()
	for _, patience := range []time.Duration{0, 2 * time.Millisecond, 10 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		// Whether these come to an end is not what the case is about.
		_ = b.driver.EnsureSegment(ctx, cloud.Segment)
		_ = b.driver.EnsureFilter(ctx, group)
		_, _ = b.driver.EnsureAttachment(ctx, port)
		_ = b.driver.EnsureGateway(ctx, gateway)
		cancel()
	}
	b.segment(cloud.Segment)
	b.filter(group)
	b.attach(port)
	b.gateway(gateway)
	want := []network.Thing{thing("segment", cloud.Segment.ID), thing("filter", group.ID), thing("attachment", port.ID), thing("gateway", gateway.ID)}
	b.holds(want...)
	for _, thing := range want {
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		_ = b.driver.Remove(ctx, thing)
		b.remove(thing.Kind, thing.ID)
	}
	b.holds()
}

func reopened(b *bench) {
	cloud := NewCloud(1)
	group := Group()
	port, gateway := cloud.Port(group.ID), cloud.Gateway()
	b.segment(cloud.Segment)
	b.filter(group)
	tap := b.attach(port)
	b.gateway(gateway)
	b.reopen()
	b.holds(thing("segment", cloud.Segment.ID), thing("filter", group.ID), thing("attachment", port.ID), thing("gateway", gateway.ID))
	if now := b.attach(port); now != tap {
		b.Errorf("the tap was %v and is now %v", tap, now)
	}
}

func reopenedRemoves(b *bench) {
	cloud := NewCloud(1)
	group := Group()
	port, gateway := cloud.Port(group.ID), cloud.Gateway()
	b.gateway(gateway)
	b.segment(cloud.Segment)
	b.filter(group)
	b.attach(port)
	b.reopen()
	have, err := b.driver.Present(b.Context())
	b.ok(err)
	for _, thing := range have {
		b.remove(thing.Kind, thing.ID)
	}
	b.holds()
	b.reopen()
	b.holds()
}

// reaches checks whether a connection comes about.
func (b *bench) reaches(want bool, from, to network.Attachment, port int) {
	b.Helper()
	if b.options.Reaches == nil {
		b.Skip("this driver moves no packets")
	}
	have := b.options.Reaches(b.T, b.driver, from, to, port)
	for try := 0; try < 3 && want && !have; try++ { // the machine may be busy
		have = b.options.Reaches(b.T, b.driver, from, to, port)
	}
	if have != want {
		b.Errorf("TCP port %d of %s from %s: reached is %v, want %v", port, to.Hostname, from.Hostname, have, want)
	}
}

// pair makes two attached ports of one network.
func (b *bench) pair(fromGroups, toGroups []resource.ID) (cloud *Cloud, from, to network.Attachment) {
	b.Helper()
	if b.options.Reaches == nil {
		b.Skip("this driver moves no packets")
	}
	cloud = NewCloud(1)
	b.segment(cloud.Segment)
	from, to = cloud.Port(fromGroups...), cloud.Port(toGroups...)
	b.attach(from)
	b.attach(to)
	return cloud, from, to
}

func noGroup(b *bench) {
	out := Group()
	b.filter(out)
	_, from, to := b.pair([]resource.ID{out.ID}, nil)
	b.reaches(false, from, to, 80)
}

func missingGroup(b *bench) {
	out, late := Group(), Group(TCP(80))
	b.filter(out)
	_, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{late.ID})
	b.reaches(false, from, to, 80)
	b.filter(late)
	b.reaches(true, from, to, 80)
}

func ruleNames(b *bench) {
	out, in := Group(), Group(TCP(80))
	b.filter(out)
	b.filter(in)
	_, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{in.ID})
	b.reaches(true, from, to, 80)
	b.reaches(false, from, to, 81)
	b.reaches(false, to, from, 80)
}

func ruleRemotes(b *bench) {
	out := Group()
	in := Group(TCP(80, netip.MustParsePrefix("10.77.1.10/32")), TCP(81, netip.MustParsePrefix("192.0.2.0/24")))
	nobody := TCP(82)
	nobody.Remote = []netip.Prefix{}
	in.Rules = append(in.Rules, nobody)
	b.filter(out)
	b.filter(in)
	cloud, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{in.ID})
	other := cloud.Port(out.ID)
	b.attach(other)
	b.reaches(true, from, to, 80)
	b.reaches(false, other, to, 80)
	b.reaches(false, from, to, 81)
	b.reaches(false, from, to, 82)
}

func ruleRemoved(b *bench) {
	out, in := Group(), Group(TCP(80), TCP(81))
	b.filter(out)
	b.filter(in)
	_, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{in.ID})
	b.reaches(true, from, to, 80)
	in.Rules = in.Rules[:len(in.Rules)-1]
	b.filter(in)
	b.reaches(true, from, to, 80)
	b.reaches(false, from, to, 81)
}

func groupRemoved(b *bench) {
	out, in := Group(), Group(TCP(80))
	b.filter(out)
	b.filter(in)
	_, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{in.ID})
	b.reaches(true, from, to, 80)
	b.remove("filter", in.ID)
	b.reaches(false, from, to, 80)
}

func groupsAddUp(b *bench) {
	out, one, two := Group(), Group(TCP(80)), Group(TCP(81))
	for _, group := range []network.Filter{out, one, two} {
		b.filter(group)
	}
	_, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{one.ID, two.ID})
	b.reaches(true, from, to, 80)
	b.reaches(true, from, to, 81)
	b.reaches(false, from, to, 82)
	to.Groups = []resource.ID{two.ID}
	b.attach(to)
	b.reaches(false, from, to, 80)
	b.reaches(true, from, to, 81)
}

func egressDenied(b *bench) {
	in := Group(TCP(80))
	out := network.Filter{ID: newID(), Stateful: true, Rules: []network.FilterRule{{Protocol: 6, PortMin: 443, PortMax: 443}}}
	b.filter(in)
	b.filter(out)
	_, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{in.ID})
	b.reaches(false, from, to, 80)
}

func portSecurityOff(b *bench) {
	out := Group()
	b.filter(out)
	_, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{out.ID})
	b.reaches(false, from, to, 80)
	to.PortSecurity, to.Groups = false, nil
	b.attach(to)
	b.reaches(true, from, to, 80)
	to.PortSecurity = true
	b.attach(to)
	b.reaches(false, from, to, 80)
}

func adminDown(b *bench) {
	open := Group(TCP(80))
	b.filter(open)
	_, from, to := b.pair([]resource.ID{open.ID}, []resource.ID{open.ID})
	b.reaches(true, from, to, 80)
	to.AdminUp = false
	b.attach(to)
	b.reaches(false, from, to, 80)
	b.reaches(false, to, from, 80)
	to.AdminUp = true
	b.attach(to)
	b.reaches(true, from, to, 80)
}

func rulesOutliveProcess(b *bench) {
	out, in := Group(), Group(TCP(80))
	b.filter(out)
	b.filter(in)
	cloud, from, to := b.pair([]resource.ID{out.ID}, []resource.ID{in.ID})
	b.reopen()
	b.reaches(true, from, to, 80)
	b.reaches(false, from, to, 81)
	// The wishes come again one by one; none of them alone may open or close more.
	b.attach(to)
	b.reaches(true, from, to, 80)
	b.reaches(false, from, to, 81)
	b.segment(cloud.Segment)
	b.filter(in)
	b.reaches(true, from, to, 80)
	b.reaches(false, from, to, 81)
}
