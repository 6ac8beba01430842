package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/driver/linuxnet"
)

const (
	overlayRounds  = 10 // half of them in either order
	overlaySeconds = 2
	overlayLeast   = 0.9
)

// overlay: TCP between ports on two hosts through all that the driver sets up (security groups, anti-spoofing,
// connection tracking), beside a bare VXLAN over the same wire. In each round both have their turn, now one and now
// the other first. Who is second may be a tenth slower or faster for that alone, so each order has its median ratio, and their
// geometric mean counts, in which that has no part.
func (b *bench) overlay() (err error) {
	if _, missing := exec.LookPath("iperf3"); missing != nil || os.Geteuid() != 0 {
		fmt.Println("  overlay: not measured, which needs root and iperf3 (apt-get install iperf3)")
		return nil
	}
	if b.dir, err = os.MkdirTemp("", "unkai-bench-"); err != nil {
		return err
	}
	o := &overlay{ctx: b.ctx}
	defer func() { err = errors.Join(err, o.close(), os.RemoveAll(b.dir)) }()
	if err := o.build(b.dir); err != nil {
		return err
	}
	for _, family := range []struct{ name, bare, ours string }{
		{"IPv4", "10.98.0.2", "10.99.0.12"}, {"IPv6", "fd98::2", "fd99::c"},
	} {
		var bare, ours []float64
		var ratios [2][]float64 // by who is first
		for round := range overlayRounds {
			there, here := func() (err error) {
				gbit, err := o.stream("bare-a", "bare-b", family.bare)
				bare = append(bare, gbit)
				return err
			}, func() (err error) {
				gbit, err := o.stream("guest-a", "guest-b", family.ours)
				ours = append(ours, gbit)
				return err
			}
			if round%2 == 1 {
				there, here = here, there
			}
			if err := errors.Join(there(), here()); err != nil {
				return err
			}
			ratios[round%2] = append(ratios[round%2], ours[round]/bare[round])
		}
		for _, all := range [][]float64{bare, ours, ratios[0], ratios[1]} {
			slices.Sort(all)
		}
		second, first := ratios[0][len(ratios[0])/2], ratios[1][len(ratios[1])/2]
		ratio := math.Sqrt(second * first)
		b.note("overlay between two hosts by "+family.name, ">= 90 % of bare VXLAN", ratio >= overlayLeast,
			"%.0f %% (%.0f after the other, %.0f before it): %.2f Gbit/s, bare %.2f (medians of %d)", 100*ratio, 100*second, 100*first,
			ours[overlayRounds/2], bare[overlayRounds/2], overlayRounds)
	}
	return nil
}

// An overlay is two hosts as namespaces, joined by a wire, with a guest on each as a namespace of its own.
type overlay struct {
	ctx     context.Context
	drivers []*linuxnet.Driver
	spaces  []string
}

// overlaySpace is the full name of a namespace.
func overlaySpace(name string) string { return "ukb-" + name }

func (o *overlay) run(args ...string) error {
	out, err := exec.CommandContext(o.ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// ip runs ip(8) in a namespace once for each line.
func (o *overlay) ip(space string, lines ...string) error {
	for _, line := range lines {
		if err := o.run(append([]string{"ip", "-n", overlaySpace(space)}, strings.Fields(line)...)...); err != nil {
			return err
		}
	}
	return nil
}

func (o *overlay) space(name string) error {
	if err := o.run("ip", "netns", "add", overlaySpace(name)); err != nil {
		return err
	}
	o.spaces = append(o.spaces, overlaySpace(name))
	return o.ip(name, "link set lo up")
}

func (o *overlay) build(dir string) error {
	for _, name := range []string{"host-a", "host-b", "bare-a", "bare-b", "guest-a", "guest-b"} {
		if err := o.space(name); err != nil {
			return err
		}
	}
	if err := o.ip("host-a", "link add wire type veth peer name wire netns "+overlaySpace("host-b")); err != nil {
		return err
	}
	hosts := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	for n, side := range []string{"a", "b"} {
		own, far := hosts[n], hosts[1-n]
		err := o.ip("host-"+side, fmt.Sprintf("address add %s/24 dev wire", own), "link set wire up",
			// The bare one: the device alone, in a namespace of its own as a guest is.
			fmt.Sprintf("link add bare type vxlan id 98 local %s remote %s dstport 4790", own, far), "link set bare netns "+overlaySpace("bare-"+side))
		if err != nil {
			return err
		}
		err = o.ip("bare-"+side, "link set bare mtu 1450", fmt.Sprintf("address add 10.98.0.%d/24 dev bare", n+1),
			fmt.Sprintf("address add fd98::%d/64 dev bare nodad", n+1), "link set bare up")
		if err != nil {
			return err
		}
	}
	return o.guests(dir, hosts)
}

// guests makes a network on both hosts with a port on each.
func (o *overlay) guests(dir string, hosts []netip.Addr) error {
	id := func() resource.ID { return resource.NewID(time.Now(), nil) }
	v4, v6 := netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("fd99::/64")
	segment := network.Segment{ID: id(), ProjectID: id(), VNI: 99, MTU: 1450, Subnets: []network.SegmentSubnet{{ID: id(), CIDR: v4, MetadataOn: true}, {ID: id(), CIDR: v6}}}
	filter := network.Filter{ID: id(), Stateful: true}
	for _, rule := range []struct{ ingress, v6 bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		filter.Rules = append(filter.Rules, network.FilterRule{Ingress: rule.ingress, V6: rule.v6, PortMin: -1, PortMax: -1})
	}
	// Inward only from within the network, as a project's own group has it.
	filter.Rules[2].Remote, filter.Rules[3].Remote = []netip.Prefix{v4}, []netip.Prefix{v6}
	var ports []network.Attachment
	for n := range hosts {
		ports = append(ports, network.Attachment{
			ID: id(), NetworkID: segment.ID, ProjectID: segment.ProjectID, ServerID: id(), MAC: fmt.Sprintf("fa:16:3e:99:00:%02x", 11+n),
			PortSecurity: true, AdminUp: true, MTU: segment.MTU, Groups: []resource.ID{filter.ID},
			Addresses: []network.FixedAddress{
				{SubnetID: segment.Subnets[0].ID, Address: netip.AddrFrom4([4]byte{10, 99, 0, byte(11 + n)})},
				{SubnetID: segment.Subnets[1].ID, Address: netip.MustParseAddr(fmt.Sprintf("fd99::%x", 11+n))},
			},
		})
	}
	for n, side := range []string{"a", "b"} {
		d, err := linuxnet.New(linuxnet.Options{
			Prefix: "ukb" + side, StateDir: filepath.Join(dir, side), HostNetns: "/run/netns/" + overlaySpace("host-"+side), TunnelAddress: hosts[n],
		})
		if err != nil {
			return err
		}
		o.drivers = append(o.drivers, d)
		other := ports[1-n]
		segment.Neighbors = []network.Neighbor{{MAC: other.MAC, Host: hosts[1-n], Addresses: []netip.Addr{other.Addresses[0].Address, other.Addresses[1].Address}}}
		if err := errors.Join(d.EnsureSegment(o.ctx, segment), d.EnsureFilter(o.ctx, filter)); err != nil {
			return err
		}
		if err := o.plug(d, side, ports[n]); err != nil {
			return err
		}
	}
	return nil
}

// plug puts a guest's end of a pair of devices in the place of the port's tap: a tap needs a process that copies
// each packet, whose work is no part of the network's.
func (o *overlay) plug(d *linuxnet.Driver, side string, port network.Attachment) error {
	tap, err := d.EnsureAttachment(o.ctx, port)
	if err != nil {
		return err
	}
	space, guest := filepath.Base(tap.Netns), overlaySpace("guest-"+side)
	if err := errors.Join(
		o.run("ip", "-n", space, "link", "delete", tap.Name),
		o.run("ip", "-n", space, "link", "add", tap.Name, "type", "veth", "peer", "name", "eth0", "address", port.MAC, "netns", guest),
	); err != nil {
		return err
	}
	if _, err := d.EnsureAttachment(o.ctx, port); err != nil {
		return err
	}
	return o.ip("guest-"+side, fmt.Sprintf("link set eth0 mtu %d", port.MTU), fmt.Sprintf("address add %s/24 dev eth0", port.Addresses[0].Address),
		fmt.Sprintf("address add %s/64 dev eth0 nodad", port.Addresses[1].Address), "link set eth0 up")
}

// stream sends from one namespace to another for a while and answers how much arrived, in Gbit/s.
func (o *overlay) stream(from, to, address string) (float64, error) {
	ctx, cancel := context.WithTimeout(o.ctx, (overlaySeconds+20)*time.Second)
	defer cancel()
	server := exec.CommandContext(ctx, "ip", "netns", "exec", overlaySpace(to), "iperf3", "-s", "-1")
	if err := server.Start(); err != nil {
		return 0, err
	}
	var out []byte
	var err error
	for range 20 { // until the server listens
		time.Sleep(100 * time.Millisecond)
		out, err = exec.CommandContext(ctx, "ip", "netns", "exec", overlaySpace(from), "iperf3", "-c", address, "-t", fmt.Sprint(overlaySeconds), "-J").Output()
		if err == nil {
			break
		}
	}
	if err != nil {
		cancel()
		return 0, errors.Join(fmt.Errorf("iperf3 from %s to %s: %w: %s", from, address, err, out), server.Wait())
	}
	var report struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := errors.Join(server.Wait(), json.Unmarshal(out, &report)); err != nil {
		return 0, fmt.Errorf("iperf3 from %s to %s: %w", from, address, err)
	}
	return report.End.Received.BitsPerSecond / 1e9, nil
}

// close takes everything away again.
func (o *overlay) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o.ctx = ctx
	var failed []error
	for _, d := range o.drivers {
		failed = append(failed, d.RemoveAll(ctx), d.Close())
	}
	for _, name := range o.spaces {
		failed = append(failed, o.run("ip", "netns", "delete", name))
	}
	return errors.Join(failed...)
}
