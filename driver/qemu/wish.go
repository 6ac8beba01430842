package qemu

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// SMBIOS is what a guest reads about its machine. Some guests only then set
// themselves up when they read there what they know.
type SMBIOS struct{ Manufacturer, Product, Version, Family string }

// argument is QEMU's spelling; "" if there is nothing to say.
func (s SMBIOS) argument(id resource.ID) string {
	if s == (SMBIOS{}) {
		return ""
	}
	a := "type=1"
	for _, f := range []struct{ name, value string }{
		{"manufacturer", s.Manufacturer}, {"product", s.Product}, {"version", s.Version}, {"family", s.Family}, {"serial", id.String()}, {"uuid", id.String()},
	} {
		if f.value != "" {
			a += "," + f.name + "=" + strings.ReplaceAll(f.value, ",", ",,")
		}
	}
	return a
}

// Firmware are the two files of a UEFI firmware: its code, and its variables as
// a guest first finds them.
type Firmware struct{ Code, Vars string }

// found fills in where Debian and its kin keep the firmware.
func (f Firmware) found() Firmware {
	if f != (Firmware{}) {
		return f
	}
	for _, size := range []string{"_4M", ""} {
		f = Firmware{"/usr/share/OVMF/OVMF_CODE" + size + ".fd", "/usr/share/OVMF/OVMF_VARS" + size + ".fd"}
		if _, err := os.Stat(f.Code); err == nil {
			return f
		}
	}
	return Firmware{}
}

// variables makes a guest's own copy, unless it has one.
func (f Firmware) variables(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	from, err := os.Open(f.Vars)
	if err != nil {
		return err
	}
	defer from.Close()
	data, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	if err := writeFile(path+".new", data); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

var (
	diskNames  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	diskLabels = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,15}$`)
	serials    = regexp.MustCompile(`^[!-~]{0,36}$`)
)

// unmet is why no host of this kind can make a guest as wished, in words for
// its owner; "" if it can.
func (d *Driver) unmet(want compute.Guest) string {
	machineName := want.Machine
	if machineName == "" {
		machineName = "q35"
	}
	board, ok := d.hypervisor.machines[machineName]
	switch {
	case machineName != "q35" && machineName != "pc" || !ok:
		return fmt.Sprintf("There is no machine type %q here.", want.Machine)
	case want.VCPUs < 1 || want.VCPUs > board.maxVCPUs:
		return fmt.Sprintf("A guest can have from 1 to %d processors here, not %d.", board.maxVCPUs, want.VCPUs)
	case want.MemoryMiB < 16 || want.MemoryMiB > 64<<20:
		return fmt.Sprintf("A guest cannot have %d MiB of memory.", want.MemoryMiB)
	case want.UEFI && (d.firmware == Firmware{} || machineName != "q35"):
		return "UEFI is not offered on this host."
	case want.Kernel == nil && (want.Initrd != nil || want.Cmdline != ""):
		return "An initial RAM disk and a command line need a kernel."
	case len(want.Disks) == 0:
		return "A guest needs a root disk."
	case len(want.Disks)+len(want.NICs) > map[bool]int{true: maxPortsPC, false: maxPorts}[machineName == "pc"]:
		return "The guest has too many disks and network ports."
	}
	switch want.Power {
	case compute.On, compute.Off, compute.Paused, compute.Suspended:
	default:
		return fmt.Sprintf("A guest cannot be made %q.", want.Power)
	}
	seen := map[string]bool{}
	ides := 0
	for _, disk := range want.Disks {
		switch {
		case !diskNames.MatchString(disk.Name) || seen[disk.Name]:
			return fmt.Sprintf("The disk name %q cannot be used.", disk.Name)
		case !serials.MatchString(disk.Serial):
			return fmt.Sprintf("The serial number %q cannot be used.", disk.Serial)
		case disk.Image == nil && disk.SizeMiB <= 0 || disk.SizeMiB < 0 || disk.SizeMiB > 1<<30:
			return fmt.Sprintf("Disk %s cannot have %d MiB.", disk.Name, disk.SizeMiB)
		case disk.Image != nil && disk.Image.Format != "raw" && disk.Image.Format != "qcow2":
			return fmt.Sprintf("An image of format %q cannot be used.", disk.Image.Format)
		case disk.Label != "" && !diskLabels.MatchString(disk.Label):
			return fmt.Sprintf("The label %q cannot be used.", disk.Label)
		}
		switch disk.Bus {
		case "", "virtio", "scsi":
		case "ide":
			ides++
		default:
			return fmt.Sprintf("There is no disk bus %q here.", disk.Bus)
		}
		seen[disk.Name] = true
	}
	if ides > 4 {
		return "A guest can have at most 4 IDE disks."
	}
	for _, nic := range want.NICs {
		mac, err := net.ParseMAC(nic.MAC)
		switch {
		case err != nil || len(mac) != 6 || mac[0]&1 != 0:
			return fmt.Sprintf("The MAC address %q cannot be used.", nic.MAC)
		case nic.Model != "" && nic.Model != "virtio" && nic.Model != "e1000":
			return fmt.Sprintf("There is no network card %q here.", nic.Model)
		case nic.PortID.IsZero() || seen[nic.PortID.String()]:
			return "Each network card needs a port of its own."
		}
		seen[nic.PortID.String()] = true
	}
	return ""
}
