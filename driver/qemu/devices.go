package qemu

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/unkai-cloud/unkai/core/compute"
)

// What follows describes devices to QEMU in the JSON that its command line and
// its monitor both read, so that a device is the same however it came.
type object = map[string]any

// On q35 each device has a root port of its own, which is what makes it
// removable; spare ports are there for more. On pc the bus itself is enough.
const (
	sparePorts = 8
	maxPorts   = 39
	maxPortsPC = 24
	firstPort  = 0x4 // the first address on the root bus that ports or devices take
)

// Numbers of the sets through which QEMU opens files that we opened.
const (
	consoleSet  = 1
	seedSet     = 2
	firmwareSet = 3
)

func diskSet(slot int) int    { return 100 + 2*slot }
func backingSet(slot int) int { return 101 + 2*slot }

func fdset(set int) string { return "/dev/fdset/" + strconv.Itoa(set) }

// Names of a device's parts in QEMU.
func (d device) id() string     { return d.Kind + strconv.Itoa(d.Slot) }
func (d device) node() string   { return "d" + strconv.Itoa(d.Slot) }
func (d device) netdev() string { return "n" + strconv.Itoa(d.Slot) }
func (d device) nodes() []string {
	return []string{d.node(), d.node() + "f", d.node() + "b", d.node() + "bf"}
}

// file is the disk's file in its guest's directory.
func (d device) file(dir string) string { return filepath.Join(dir, "disk-"+d.Name+"."+d.Format) }

// blockdevs are the layers of a disk, lowest first.
func (d device) blockdevs() []object {
	file := object{"driver": "file", "node-name": d.node() + "f", "filename": fdset(diskSet(d.Slot)), "discard": "unmap", "locking": "on"}
	if d.Format == "raw" {
		return []object{file, {"driver": "raw", "node-name": d.node(), "file": d.node() + "f", "discard": "unmap"}}
	}
	top := object{"driver": "qcow2", "node-name": d.node(), "file": d.node() + "f", "discard": "unmap", "backing": nil}
	if d.Image.Path == "" {
		return []object{file, top}
	}
	base := object{"driver": d.Image.Format, "node-name": d.node() + "b", "file": d.node() + "bf", "read-only": true}
	if d.Image.Format == "qcow2" {
		base["backing"] = nil // whatever the image may say
	}
	top["backing"] = d.node() + "b"
	return []object{
		{"driver": "file", "node-name": d.node() + "bf", "filename": fdset(backingSet(d.Slot)), "read-only": true},
		base, file, top,
	}
}

// frontend is what the guest sees of the device. ide counts IDE disks.
func (d device) frontend(s shape, ide int) object {
	f := object{"id": d.id()}
	switch {
	case d.Kind == "nic":
		f["driver"], f["netdev"], f["mac"], f["romfile"] = "virtio-net-pci", d.netdev(), d.MAC, ""
		if d.Model == "e1000" {
			f["driver"] = "e1000"
		} else if d.MTU > 0 {
			f["host_mtu"] = d.MTU
		}
		s.place(f, d.Slot)
		return f
	case d.Bus == "scsi":
		f["driver"], f["bus"], f["scsi-id"], f["lun"] = "scsi-hd", "scsi.0", d.Slot, 0
	case d.Bus == "ide" && s.pc():
		f["driver"], f["bus"], f["unit"] = "ide-hd", fmt.Sprintf("ide.%d", ide/2), ide%2
	case d.Bus == "ide":
		f["driver"], f["bus"] = "ide-hd", fmt.Sprintf("ide.%d", ide)
	default:
		f["driver"] = "virtio-blk-pci"
		s.place(f, d.Slot)
	}
	f["drive"] = d.node()
	if d.Serial != "" {
		f["serial"] = d.Serial
	}
	return f
}

// pc tells the old board from q35.
func (s shape) pc() bool { return len(s.Machine) >= 4 && s.Machine[:4] == "pc-i" || s.Machine == "pc" }

// place gives a PCI device its slot; the slot beyond the last is the config drive's.
func (s shape) place(f object, slot int) {
	if s.pc() {
		f["bus"], f["addr"] = "pci.0", fmt.Sprintf("0x%x", firstPort+1+slot)
		return
	}
	f["bus"] = "port" + strconv.Itoa(slot)
}

// ports are the root ports of the machine, one for each slot.
func (s shape) ports() []object {
	if s.pc() {
		return nil
	}
	// The config drive comes last, so that it is not the guest's first disk.
	ports := make([]object, s.Ports+1)
	for i := range ports {
		ports[i] = object{
			"driver": "pcie-root-port", "id": "port" + strconv.Itoa(i), "bus": "pcie.0", "chassis": i + 1,
			"addr": fmt.Sprintf("0x%x.0x%x", firstPort+i/8, i%8), "multifunction": true,
		}
	}
	return ports
}

// fixed puts a device of the machine itself onto the root bus.
func (s shape) fixed(driver string, addr int, more object) object {
	f := object{"driver": driver, "bus": "pcie.0", "addr": fmt.Sprintf("0x%x", addr)}
	if s.pc() {
		f["bus"], f["addr"] = "pci.0", fmt.Sprintf("0x%x", addr+1) // 0x1 is the board's own
	}
	for k, v := range more {
		f[k] = v
	}
	return f
}

// text is an object as QEMU reads it from its command line.
func text(o object) string {
	data, err := json.Marshal(o)
	if err != nil {
		panic("qemu: " + err.Error()) // these hold only strings, numbers and truth values
	}
	return string(data)
}

// matches tells whether the wish is still for the card that is there.
func (d device) matches(n compute.NIC) bool { return d.MAC == n.MAC && d.Model == n.Model }

// wanted is the device that a wish still has; false for none.
func (d device) wanted(want compute.Guest) bool {
	if d.Kind == "nic" {
		for _, n := range want.NICs {
			if n.PortID.String() == d.Name {
				return d.matches(n)
			}
		}
		return false
	}
	for _, w := range want.Disks {
		if w.Name == d.Name {
			return true
		}
	}
	return false
}

// takeDisk copies from a wished disk what may change while the machine is off.
func (d *device) takeDisk(w compute.Disk) {
	d.Serial, d.Bus, d.Label = w.Serial, w.Bus, w.Label
	if w.Image != nil && w.Image.ID == d.Image.ID {
		d.Image.Path = w.Image.Path // the cache may have moved it
	}
}

// takeNIC does so from a wished network card.
func (d *device) takeNIC(n compute.NIC) {
	d.MAC, d.Model, d.MTU, d.Tap = n.MAC, n.Model, n.MTU, n.Tap
}
