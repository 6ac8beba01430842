package compute

import (
	"fmt"
	"net"
	"regexp"
)

var (
	diskNames   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	diskLabels  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,15}$`)
	diskSerials = regexp.MustCompile(`^[!-~]{0,36}$`)
)

// Check says why nobody can make such a guest where one may have up to maxVCPUs processors, in
// words for its owner; "" if it can be made as far as anybody knows. A driver adds what its own
// kind of guest cannot have.
func (g *Guest) Check(maxVCPUs int) (trouble string) {
	switch {
	case g.Machine != "" && g.Machine != "q35" && g.Machine != "pc":
		return fmt.Sprintf("There is no machine type %q here.", g.Machine)
	case g.VCPUs < 1 || g.VCPUs > maxVCPUs:
		return fmt.Sprintf("A guest can have from 1 to %d processors here, not %d.", maxVCPUs, g.VCPUs)
	case g.MemoryMiB < 16 || g.MemoryMiB > 64<<20:
		return fmt.Sprintf("A guest cannot have %d MiB of memory.", g.MemoryMiB)
	case g.Kernel == nil && (g.Initrd != nil || g.Cmdline != ""):
		return "An initial RAM disk and a command line need a kernel."
	case len(g.Disks) == 0:
		return "A guest needs a root disk."
	}
	if trouble := checkKernel(g.Kernel, g.Initrd, g.MemoryMiB); trouble != "" {
		return trouble
	}
	switch g.Power {
	case On, Off, Paused, Suspended:
	default:
		return fmt.Sprintf("A guest cannot be made %q.", g.Power)
	}
	names := map[string]bool{}
	for i := range g.Disks {
		d := &g.Disks[i]
		if names[d.Name] {
			return fmt.Sprintf("The disk name %q cannot be used.", d.Name)
		}
		names[d.Name] = true
		if trouble := d.check(); trouble != "" {
			return trouble
		}
	}
	for i := range g.NICs {
		n := &g.NICs[i]
		if n.PortID.IsZero() || names[n.PortID.String()] {
			return "Each network card needs a port of its own."
		}
		names[n.PortID.String()] = true
		if trouble := n.check(); trouble != "" {
			return trouble
		}
	}
	return ""
}

func (d *Disk) check() (trouble string) {
	switch {
	case !diskNames.MatchString(d.Name):
		return fmt.Sprintf("The disk name %q cannot be used.", d.Name)
	case !diskSerials.MatchString(d.Serial):
		return fmt.Sprintf("The serial number %q cannot be used.", d.Serial)
	case d.Image == nil && d.SizeMiB <= 0 || d.SizeMiB < 0 || d.SizeMiB > 1<<30:
		return fmt.Sprintf("Disk %s cannot have %d MiB.", d.Name, d.SizeMiB)
	case d.Image != nil && d.Image.Format != "raw" && d.Image.Format != "qcow2":
		return fmt.Sprintf("An image of format %q cannot be used.", d.Image.Format)
	case d.Label != "" && !diskLabels.MatchString(d.Label):
		return fmt.Sprintf("The label %q cannot be used.", d.Label)
	}
	switch d.Bus {
	case "", "virtio", "scsi", "ide":
		return ""
	}
	return fmt.Sprintf("There is no disk bus %q here.", d.Bus)
}

func (n *NIC) check() (trouble string) {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return fmt.Sprintf("The MAC address %q cannot be used.", n.MAC)
	}
	switch n.Model {
	case "", "virtio", "e1000":
		return ""
	}
	return fmt.Sprintf("There is no network card %q here.", n.Model)
}

// checkKernel holds what is booted directly against the memory that it is put into. Hosts copy it for
// each guest, beside the disks that are counted.
func checkKernel(kernel, initrd *ImageRef, memoryMiB int) (trouble string) {
	var bytes int64
	for _, ref := range []*ImageRef{kernel, initrd} {
		if ref != nil {
			bytes += ref.Bytes
		}
	}
	if bytes > int64(memoryMiB)<<20 {
		return "The kernel and its initial RAM disk are larger than the guest's memory."
	}
	return ""
}
