package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A record is what the driver remembers beside each guest, so that it can go on
// after its own death. It is written before what it announces is begun and
// after what it states is done; everything between is found out by looking.
type record struct {
	Version  int
	UID      int  // whom the guest's process runs as; its own among all guests
	Removing bool // Remove has begun, and nothing but its end can follow
	Epoch    int  // of the wish that it was made for; 0 if that said nothing

	Storage string   `json:",omitempty"` // that its disks are on; "" for beside this record
	Claim   decision `json:",omitzero"`  // by which they are this host's; see claim

	// Carried out so far.
	HardBoots, SoftBoots, Rebuilds int

	Devices []device
	Kernel  resource.ID // which images the copies beside this file are of
	Initrd  resource.ID

	Copy   *snapshot `json:",omitempty"` // of the root disk; nil for none
	Way    *way      // to another host, or from one; nil for none
	Launch *launch   // the present process, or the one being started; nil for none
	Ended  ending    // why there is none though the owner never said so; "" for no such thing
	Stop   *stop     // a request to the guest's operating system that is under way
	Saving bool      // memory is being written out by the present process
	Saved  *shape    // memory lies on disk, of a machine of this shape

	OursMs, StartMs float64 // of the last start
}

const recordVersion = 1

// An ending is how a process came to its end without being told to.
type ending string

const (
	byGuest ending = "guest"   // its operating system switched it off
	byCrash ending = "crash"   // the hypervisor died or could not go on
	refused ending = "refused" // the hypervisor would not start it
	byHost  ending = "host"    // the host's power ended
	unsound ending = "unsound" // saved memory could not be loaded; it is still there
)

// A launch is one QEMU process.
type launch struct {
	Shape shape
	// The process, once it runs: its number, and what tells it from another
	// that got the same number later.
	PID       int
	Ticks     uint64 // when it started, in clock ticks since the host's boot
	Boot      string // the host's boot
	StartedAt time.Time
	Incoming  bool // it began by loading saved memory
	Up        bool // its start is complete
	Inert     bool // its disks are shared, and not taken up yet: it came live, and has not run here
	Ferry     bool // it is no machine: it only holds the disks of one that is off, while they are sent
}

// A shape is what of a machine cannot change while it is in memory.
type shape struct {
	Machine   string // with its version: "pc-q35-7.2"
	Accel     string
	CPU       string
	VCPUs     int
	MemoryMiB int
	Ports     int // slots for devices
	UEFI      bool
	Kernel    bool // booted directly, with these:
	Initrd    bool
	Cmdline   string
	Seed      bool // has a config drive
	SCSI      bool // has a SCSI controller
}

// A stop is a soft stop or reboot that the guest was asked for.
type stop struct {
	Reboot    bool
	Deadline  time.Time
	Resetting bool // the guest has stopped, and is being started anew
}

// A device is a disk or network card of a guest, in a slot of its own.
type device struct {
	Kind string // "disk" or "nic"
	Name string // a disk's name, or a port's ID
	Slot int

	// Of a disk.
	Format string    `json:",omitempty"` // "qcow2" or "raw"
	Bytes  int64     `json:",omitempty"`
	Made   bool      `json:",omitempty"` // its file is complete, and must never be made again by itself
	Serial string    `json:",omitempty"`
	Bus    string    `json:",omitempty"`
	Label  string    `json:",omitempty"`
	Image  imageFile `json:",omitzero"`

	// Of a network card.
	MAC   string      `json:",omitempty"`
	Model string      `json:",omitempty"`
	MTU   int         `json:",omitempty"`
	Tap   compute.Tap `json:",omitzero"`

	Leaving time.Time `json:",omitzero"` // when the guest was first asked to let it go
}

// An imageFile is the image that a disk is laid over.
type imageFile struct {
	ID     resource.ID
	Path   string
	Format string
}

// Names of the files in a guest's directory.
const (
	recordFile    = "record.json"
	consoleFile   = "console.log"
	stderrFile    = "qemu.log"
	monitorSocket = "qmp.sock"
	adminSocket   = "qmp-admin.sock" // for the operator's own tools
	serialSocket  = "serial.sock"
	memoryFile    = "memory"
	kernelFile    = "kernel"
	initrdFile    = "initrd"
	firmwareFile  = "firmware-vars"
	seedFile      = "seed.iso" // the config drive, as the guest found it when it was started
	exportSocket  = "nbd.sock" // on which disks come in
)

// outlived reports whether the record is of an earlier placement of the guest, which was elsewhere since.
func (r *record) outlived(want compute.Guest) bool {
	return r != nil && !r.Removing && r.Epoch != 0 && r.Epoch < want.Epoch
}

// readRecord gives nil if there is none.
func readRecord(dir string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, recordFile), err)
	}
	if r.Version > recordVersion {
		return nil, fmt.Errorf("%s is of version %d, newer than this program's %d", filepath.Join(dir, recordFile), r.Version, recordVersion)
	}
	return &r, nil
}

// write replaces the record in one step that a crash cannot tear.
func (r *record) write(dir string) error {
	r.Version = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, recordFile)
	if err := writeFile(path+".new", data); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// writeFile is os.WriteFile for what must survive a power failure.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// disk finds a disk by its name; nil if there is none.
func (r *record) disk(name string) *device { return r.find("disk", name) }

func (r *record) find(kind, name string) *device {
	for i := range r.Devices {
		if r.Devices[i].Kind == kind && r.Devices[i].Name == name {
			return &r.Devices[i]
		}
	}
	return nil
}

// freeSlot is the lowest slot that no device has.
func (r *record) freeSlot() int {
	for slot := 0; ; slot++ {
		free := true
		for _, d := range r.Devices {
			free = free && d.Slot != slot
		}
		if free {
			return slot
		}
	}
}

// highestSlot is -1 if there are no devices.
func (r *record) highestSlot() int {
	highest := -1
	for _, d := range r.Devices {
		highest = max(highest, d.Slot)
	}
	return highest
}
