package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/driver/qemu"
)

type doctorCommand struct {
	Address string `help:"The address at which other hosts are to reach this one; the link on the way to anywhere else is looked at when empty."`
}

// A finding is one thing that the doctor looked at.
type finding struct {
	what string
	well bool
	need bool   // a host cannot work without it
	say  string // what it means, or what would mend it
}

// Run prints what was found; it fails when a host could not work here.
func (d doctorCommand) Run() error {
	missing := 0
	for _, f := range append(examine(), d.wire()) {
		mark := "ok     "
		if !f.well {
			mark = "absent "
			if f.need {
				mark = "MISSING"
				missing++
			}
		}
		fmt.Printf("%s  %-22s %s\n", mark, f.what, f.say)
	}
	if missing > 0 {
		return fmt.Errorf("%d things are missing that a host needs; `unkai up --sim 1` works without them", missing)
	}
	return nil
}

func examine() []finding {
	found := []finding{
		{"root", os.Geteuid() == 0, true, "a host makes namespaces, bridges and taps; run it as root"},
		kvm(),
		program("qemu-system-x86_64", "qemu-system-x86", true, "guests"),
		program("qemu-img", "qemu-utils", true, "disks"),
		program("nft", "nftables", true, "security groups, NAT"),
		program("ip", "iproute2", false, "for people; the agent speaks netlink itself"),
		device("/dev/net/tun", true, "modprobe tun"),
		module("bridge", true), module("vxlan", false), module("br_netfilter", true), module("nf_tables", true),
		cgroup(),
		userns(),
	}
	return append(found, hypervisor()...)
}

// hypervisor tries, with the hypervisor itself, how tightly guests can be held, and whether they can go to other hosts.
func hypervisor() []finding {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := qemu.Examine(ctx)
	say := "guests are confined to " + found.Confined
	if found.Loose {
		say += "; a host refuses that without --allow-loose-jails"
	}
	if err != nil {
		say += " (" + strings.ReplaceAll(err.Error(), "\n", "; ") + ")"
	}
	moves := "guests can go to other hosts, and come from them, if those reach this one at its --address (TCP port 8704, --moves)"
	if !found.Moves {
		moves = "guests stay on this host: QEMU 5.2 or newer is needed to move them, and this is " + cmp.Or(found.Version, "none that runs")
	}
	return []finding{{"confinement", !found.Loose, true, say}, {"moves", found.Moves, false, moves}}
}

// wire tells what the link to other hosts carries.
func (d doctorCommand) wire() finding {
	name, mtu, err := outwards()
	v6 := false
	if d.Address != "" {
		address, bad := machineOptions{Address: d.Address}.address()
		if bad == nil {
			bad = host.CheckAddress(address)
		}
		if bad == nil {
			name, mtu, bad = wireOf(address)
		}
		err, v6 = bad, address.Is6()
	}
	if err != nil {
		return finding{"wire", false, false, "the link to other hosts is not known (" + err.Error() + "); a cloud of one host needs none"}
	}
	return judgeWire(name, mtu, v6)
}

// judgeWire says what networks a link carries.
func judgeWire(name string, mtu int, v6 bool) finding {
	most, plain := network.OverlayMTU(mtu, v6), network.OverlayMTU(host.PlainMTU, v6)
	say := fmt.Sprintf("packets of up to %d bytes on %s: networks between hosts have at most %d", mtu, name, most)
	if full := 2*host.PlainMTU - plain; mtu < full {
		say += fmt.Sprintf("; an MTU of %d, of the switches too, makes it %d", full, host.PlainMTU)
	}
	if most < plain {
		say += fmt.Sprintf(". Networks that were made for hosts of %d do not work here, and where there are any this one is refused", host.PlainMTU)
	}
	return finding{"wire", most >= plain, false, say}
}

func kvm() finding {
	if !qemu.KVMWorks() {
		return finding{"kvm", false, false, "guests are emulated (TCG): slow, and not isolated by hardware. Enable virtualization in the firmware, modprobe kvm_intel or kvm_amd"}
	}
	return finding{"kvm", true, false, "guests run at full speed, isolated by hardware"}
}

func program(name, pkg string, need bool, what string) finding {
	path, err := exec.LookPath(name)
	if err != nil {
		return finding{name, false, need, what + "; apt-get install " + pkg}
	}
	return finding{name, true, need, path}
}

func device(path string, need bool, mend string) finding {
	if _, err := os.Stat(path); err != nil {
		return finding{path, false, need, mend}
	}
	return finding{path, true, need, ""}
}

// module looks for a kernel feature, built in or loadable.
func module(name string, need bool) finding {
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		return finding{name, true, need, "in the kernel"}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		dir := "/lib/modules/" + unix.ByteSliceToString(u.Release[:])
		for _, list := range []string{"modules.builtin", "modules.dep"} {
			text, err := os.ReadFile(filepath.Join(dir, list))
			if err == nil && strings.Contains(string(text), "/"+name+".ko") {
				return finding{name, true, need, "as a module"}
			}
		}
	}
	if builtIn(name) {
		return finding{name, true, need, "in the kernel"}
	}
	return finding{name, false, need, "modprobe " + name + ", or a kernel with it"}
}

// builtIn knows a feature by what it shows where there is no list of modules.
func builtIn(name string) bool {
	switch name {
	case "bridge", "vxlan":
		return linkKind(name)
	case "br_netfilter":
		_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
		return err == nil
	case "nf_tables":
		return exec.Command("nft", "list", "tables").Run() == nil
	}
	return false
}

func cgroup() finding {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return finding{"cgroup", true, false, "version 2"}
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil {
		return finding{"cgroup", true, false, "version 1"}
	}
	return finding{"cgroup", false, false, "guests' memory and processors are not limited; mount /sys/fs/cgroup"}
}

func userns() finding {
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return finding{"user namespaces", false, false, "guests run as an unprivileged user, but not in a user namespace"}
	}
	return finding{"user namespaces", true, false, ""}
}
