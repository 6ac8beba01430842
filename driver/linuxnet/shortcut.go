package linuxnet

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A frame of an established connection goes past bridge and packet filter if the last ones like it were let through within a second: a
// program on each port of the bridge sees what comes out of it, and which connection tracking knows, and one sends what comes in by the
// same port, from and to the same addresses and ports, there directly. So the filter alone decides, and is asked again each second; and at
// once when it changes, by a number that what was seen before does not bear. Connection tracking sees those frames that open and end
// connections, and of the others one a second. Where the kernel has no such programs everything goes the long way.
// How, and why: docs/decisions/linuxnet-filtering.md.

//go:embed shortcut.o
var shortcutObject []byte

// A shortcut is that of one segment. The programs stay on the devices without this process.
type shortcut struct {
	Take       *ebpf.Program `ebpf:"unkai_take"`
	Learn      *ebpf.Program `ebpf:"unkai_learn"`
	Generation *ebpf.Map     `ebpf:"generation"`

	count uint32 // the generation
}

// shortcutSpec is read once; each segment has programs and maps of its own.
var shortcutSpec = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // of kernels before 5.11
		return nil, err
	}
	return ebpf.LoadCollectionSpecFromReader(bytes.NewReader(shortcutObject))
})

func newShortcut() (*shortcut, error) {
	spec, err := shortcutSpec()
	if err != nil {
		return nil, err
	}
	c := &shortcut{}
	if err := spec.LoadAndAssign(c, nil); err != nil {
		return nil, err
	}
	return c, nil
}

// canShorten reports whether the kernel takes the programs. If not it is said once, and nothing else is different.
func (d *Driver) canShorten() bool {
	d.express = hasExpress()
	if d.options.LongWay {
		return false
	}
	c, err := newShortcut()
	if err != nil {
		d.log.Info("the kernel does not take what sends packets of established connections past bridge and packet filter: they go the long way", "error", err)
		return false
	}
	c.close()
	return true
}

// close lets go of what the kernel goes on with.
func (c *shortcut) close() {
	c.Take.Close()
	c.Learn.Close()
	c.Generation.Close() // none of them holds anything back that could be lost
}

// forget has every frame go the long way once.
func (c *shortcut) forget() error {
	if c.count++; uint16(c.count) == 0 { // what a packet bears that no program has seen
		c.count++
	}
	return c.Generation.Put(uint32(0), c.count)
}

// trackingSettings are what tracking has to know where it does not see all packets. It cannot tell then which sequence numbers are due, so the receiver
// alone judges them; and an acknowledgement that it did not see is none that is missing: such a connection may rest as long as any other.
// (net/netfilter/nf_conntrack_proto_tcp.c)
var trackingSettings = []setting{
	{"netfilter/nf_conntrack_tcp_be_liberal", "1"},
	{"netfilter/nf_conntrack_tcp_timeout_unacknowledged", "432000"},
	{"netfilter/nf_conntrack_tcp_timeout_max_retrans", "432000"},
}

// setTracking writes the settings. They are not taken back when a later process has everything go the long way: connections of before go on. The caller
// is in the segment's namespace.
func (d *Driver) setTracking() error {
	if !d.shortcuts {
		return nil
	}
	// Linux 5.14; before, a reset with less than half of the numbers between it and what tracking saw last passes all the same.
	if err := set([]setting{{"netfilter/nf_conntrack_tcp_ignore_invalid_rst", "1"}}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return set(trackingSettings)
}

// shorten gives the bridge's ports the programs, or takes those of an earlier process away. It is no error of the network if its ports get none, but
// it is one if there are programs that do not hear of what changes.
func (s *segment) shorten(ns *namespace, links map[string]netlink.Link) error {
	if s.shortcut == nil && s.driver.shortcuts {
		c, err := newShortcut()
		if err != nil {
			s.driver.log.Warn("established connections go the long way until the network is next looked at", "network", s.id, "error", err)
		} else {
			s.shortcut, s.shortened = c, nil
		}
	}
	there := map[int]bool{}
	for name, device := range links {
		if !isPort(name) {
			continue
		}
		index := device.Attrs().Index
		if !s.shortened[index] {
			if err := s.shortcut.attach(ns, device, s.driver.express); err != nil {
				if left := (*shortcut)(nil).attach(ns, device, s.driver.express); left != nil && s.driver.shortcuts {
					return fmt.Errorf("programs of port %s: %w", name, errors.Join(err, left))
				}
				s.driver.log.Warn("established connections by this port go the long way until the network is next looked at", "network", s.id, "port", name, "error", err)
				continue
			}
		}
		there[index] = true
	}
	s.shortened = there
	return nil
}

// attach puts the programs on a device, in the place of those of an earlier process; nil has none to put, and takes those away. Which of the two
// ways an earlier process went is not known.
func (c *shortcut) attach(ns *namespace, device netlink.Link, express bool) error {
	learn, take := (*ebpf.Program)(nil), (*ebpf.Program)(nil)
	if c != nil {
		learn, take = c.Learn, c.Take
	}
	if c != nil && !express {
		if err := attachClassifiers(ns, device, learn, take); err != nil {
			return err
		}
		learn, take = nil, nil
	}
	err := ns.do(func() error {
		return errors.Join(replaceExpress(device, ebpf.AttachTCXEgress, "unkai_learn", learn), replaceExpress(device, ebpf.AttachTCXIngress, "unkai_take", take))
	})
	if express && err != nil { // otherwise the kernel has none, or shows none
		return err
	}
	if c != nil && !express {
		return nil
	}
	if err := ns.QdiscDel(classifiers(device)); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove clsact: %w", err)
	}
	return nil
}

// classifiers are what holds tc's programs of a device. Nobody else has any on ours.
func classifiers(device netlink.Link) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: device.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func attachClassifiers(ns *namespace, device netlink.Link, learn, take *ebpf.Program) error {
	if err := ns.QdiscAdd(classifiers(device)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact: %w", err)
	}
	for _, side := range []struct {
		parent  uint32
		name    string
		program *ebpf.Program
	}{{netlink.HANDLE_MIN_EGRESS, "unkai_learn", learn}, {netlink.HANDLE_MIN_INGRESS, "unkai_take", take}} {
		err := ns.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: device.Attrs().Index, Parent: side.parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:          side.program.FD(), Name: side.name, DirectAction: true,
		})
		if err != nil {
			return fmt.Errorf("program %s: %w", side.name, err)
		}
	}
	return nil
}

// hasExpress reports whether the kernel runs programs on packets without tc's classifiers (tcx, Linux 6.6), which takes half as long.
func hasExpress() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress}) // of the loopback device
	return err == nil
}

// replaceExpress puts a program in the place of the one with its name; nil: there is to be none. The caller is in the device's namespace.
func replaceExpress(device netlink.Link, side ebpf.AttachType, name string, program *ebpf.Program) error {
	index := device.Attrs().Index
	there, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: side})
	if err != nil {
		return fmt.Errorf("list programs: %w", err)
	}
	var old *ebpf.Program
	for _, one := range there.Programs {
		p, err := ebpf.NewProgramFromID(one.ID)
		if err != nil {
			return fmt.Errorf("look at program %d: %w", one.ID, err)
		}
		defer p.Close()
		if info, err := p.Info(); err != nil {
			return fmt.Errorf("look at program %d: %w", one.ID, err)
		} else if info.Name == name {
			old = p
		}
	}
	options := link.RawAttachProgramOptions{Target: index, Program: program, Attach: side}
	switch {
	case program == nil && old == nil:
		return nil
	case program == nil:
		options.Program = old
		err = link.RawDetachProgram(link.RawDetachProgramOptions(options))
	case old == nil:
		err = link.RawAttachProgram(options)
	default:
		options.Anchor = link.ReplaceProgram(old)
		err = link.RawAttachProgram(options)
	}
	if err != nil {
		return fmt.Errorf("program %s: %w", name, err)
	}
	return nil
}
