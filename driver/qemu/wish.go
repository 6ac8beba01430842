package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
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

// makeVariables gives the guest firmware variables of its own, as a guest first finds them, unless it has some.
func (g *guest) makeVariables(ctx context.Context) error {
	return g.amongDisks(ctx, func(dir *os.Root) error {
		if _, err := dir.Lstat(firmwareFile); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		data, err := os.ReadFile(g.driver.firmware.Vars)
		if err != nil {
			return err
		}
		return replace(dir, firmwareFile, data)
	})
}

// unmet is why no host of this kind can make a guest as wished, in words for
// its owner; "" if it can.
func (d *Driver) unmet(want compute.Guest) string {
	machineName, ports := want.Machine, maxPorts
	switch machineName {
	case "":
		machineName = "q35"
	case "pc":
		ports = maxPortsPC
	}
	board, ok := d.hypervisor.machines[machineName]
	if !ok {
		return fmt.Sprintf("There is no machine type %q here.", machineName)
	}
	if trouble := want.Check(board.maxVCPUs); trouble != "" {
		return trouble
	}
	ides := 0
	for _, disk := range want.Disks {
		if disk.Bus == "ide" {
			ides++
		}
	}
	switch {
	case want.UEFI && (d.firmware == Firmware{} || machineName != "q35"):
		return "UEFI is not offered on this host."
	case len(want.Disks)+len(want.NICs) > ports:
		return "The guest has too many disks and network ports."
	case ides > 4:
		return "A guest can have at most 4 IDE disks."
	}
	return ""
}
