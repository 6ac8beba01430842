package qemu

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A way is a guest's from one host to another, as either of the two knows it.
type way struct {
	Move     int
	Incoming bool        `json:",omitempty"`
	Live     bool        `json:",omitempty"`
	Kept     bool        `json:",omitempty"` // both hosts reach the disks where they are
	From     resource.ID `json:",omitzero"`  // the host that it comes from
	// Something of it is on its way: over connections that end with this agent.
	Begun bool `json:",omitempty"`
	// All of it is there, and it does not run; of one that leaves: it is stopped, and does not run again unless it stays.
	Done      bool      `json:",omitempty"`
	Trouble   string    `json:",omitempty"`
	StartedAt time.Time `json:",omitzero"`  // when its process started, where it ran before
	Halted    bool      `json:",omitempty"` // its processors ran before we stopped them for the way, and go on if it stays
	Logged    int64     `json:",omitempty"` // how much of the console's log was sent
}

// The luggage is what the new host has to know of a guest, beside the wish, to make room for all that comes: how the
// machine looks that its memory is of, and the small files that go with it.
type luggage struct {
	HardBoots, SoftBoots, Rebuilds int

	Shape     shape     // of the machine, of one that comes live
	StartedAt time.Time // likewise
	Processor string    // of the host, if the guest sees it
	Devices   []device
	Proof     string `json:",omitempty"` // of disks that stay where they are: what is written beside them
	Files     []parcel
}

// A parcel is one file; its bytes follow the hail.
type parcel struct {
	Name  string
	Bytes int64
}

// hasVariables reports whether a guest's firmware variables go with it as a file: live they go with its memory, and what lies with
// disks that are kept stays there.
func (w *way) hasVariables(want compute.Guest) bool { return want.UEFI && !w.Live && !w.Kept }

// pack gathers what goes with the guest.
func (g *guest) pack(want compute.Guest) (*luggage, [][]byte, error) {
	r := g.rec
	l := &luggage{HardBoots: r.HardBoots, SoftBoots: r.SoftBoots, Rebuilds: r.Rebuilds}
	for _, dev := range r.Devices {
		dev.Tap, dev.Image.Path, dev.Leaving = compute.Tap{}, "", time.Time{}
		l.Devices = append(l.Devices, dev)
	}
	names := []string{consoleFile}
	if r.Way.Live {
		l.Shape, l.StartedAt = r.Launch.Shape, r.Launch.StartedAt
		if l.Shape.Accel == accelKVM {
			l.Processor = cpuModel()
		}
		if l.Shape.Seed {
			names = append(names, seedFile) // the guest may have read half of it: it is to stay as it was
		}
	}
	if r.Way.hasVariables(want) {
		names = append(names, firmwareFile)
	}
	var bodies [][]byte
	for _, name := range names {
		body, end, err := g.readFile(name)
		switch {
		case os.IsNotExist(err) && name != seedFile:
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("pack what goes with guest %s: %w", g.id, err)
		}
		if name == consoleFile {
			r.Way.Logged = end
		}
		l.Files = append(l.Files, parcel{name, int64(len(body))})
		bodies = append(bodies, body)
	}
	return l, bodies, nil
}

// readFile reads one of the guest's small files.
func (g *guest) readFile(name string) (body []byte, end int64, err error) {
	if name != firmwareFile {
		return readEnd(filepath.Join(g.dir, name), maxLuggage, g.driver.logBytes, name == consoleFile)
	}
	f, err := g.openDisk(name, os.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	return endOf(f, maxLuggage, 0, false)
}

// readEnd reads a file, of a log only the end; end is how long it is.
func readEnd(path string, most, tail int64, isLog bool) (body []byte, end int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	return endOf(f, most, tail, isLog)
}

func endOf(f *os.File, most, tail int64, isLog bool) (body []byte, end int64, err error) {
	if end, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, 0, err
	}
	from := int64(0)
	if isLog {
		from = max(0, end-tail)
	}
	if end-from > most {
		return nil, 0, fmt.Errorf("%s has %d bytes", f.Name(), end)
	}
	body = make([]byte, end-from)
	n, err := f.ReadAt(body, from)
	if err == io.EOF {
		err = nil
	}
	return body[:n], from + int64(n), err
}

// unpack reads the files that follow a hail, and refuses what no guest has.
func (l *luggage) unpack(conn net.Conn) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, p := range l.Files {
		if !slices.Contains([]string{consoleFile, seedFile, firmwareFile}, p.Name) || files[p.Name] != nil || p.Bytes < 0 || p.Bytes > maxLuggage {
			return nil, fmt.Errorf("a file %q of %d bytes", p.Name, p.Bytes)
		}
		body := make([]byte, p.Bytes)
		if _, err := io.ReadFull(conn, body); err != nil {
			return nil, err
		}
		files[p.Name] = body
	}
	return files, nil
}

// unfit is why the machine that a guest's memory is of cannot be made here; "" if it can. The other host is not to
// make us build anything but what is wished.
func (d *Driver) unfit(l *luggage, want compute.Guest) string {
	s := l.Shape
	cpu := map[string]string{accelKVM: "host", accelTCG: "max"}[d.accel]
	switch {
	case d.hypervisor.machines[s.Machine].maxVCPUs == 0:
		return fmt.Sprintf("The other host's hypervisor does not know the guest's machine (%.64s).", s.Machine)
	case s.Accel != d.accel || s.CPU != cpu || l.Processor != "" && l.Processor != cpuModel():
		return "The other host's processors are of another kind."
	case s.VCPUs != want.VCPUs || s.MemoryMiB != want.MemoryMiB, s.UEFI != want.UEFI, s.Kernel != (want.Kernel != nil),
		s.Initrd != (want.Kernel != nil && want.Initrd != nil), s.Kernel && s.Cmdline != want.Cmdline:
		return "The guest has to be stopped and started once before it can go to another host: it runs as something else than it is to be."
	case s.Ports < 0 || s.Ports > s.maxPorts():
		return "The guest has more slots than there are here."
	}
	return ""
}

// takeDevices makes the devices of the luggage this host's own, if they are those of the wish. Where they are plugged in is
// the other host's word.
func (r *record) takeDevices(l *luggage, want compute.Guest) (trouble string) {
	const maxDisk = 1 << 50
	const other = "The guest's devices on its host are others than it is to have. Try again once they are attached or detached."
	if len(l.Devices) != len(want.Disks)+len(want.NICs) {
		return other
	}
	taken := map[int]bool{}
	var devices []device
	for _, dev := range l.Devices {
		if dev.Slot < 0 || dev.Slot >= maxPorts || taken[dev.Slot] {
			return other
		}
		taken[dev.Slot] = true
		if dev.Kind == "nic" {
			n := slices.IndexFunc(want.NICs, func(n compute.NIC) bool { return n.PortID.String() == dev.Name && dev.matches(n) })
			if n < 0 || dev.MTU < 0 || dev.MTU > 65535 {
				return other
			}
			devices = append(devices, device{Kind: "nic", Name: dev.Name, Slot: dev.Slot, MAC: dev.MAC, Model: dev.Model, MTU: dev.MTU, Tap: want.NICs[n].Tap})
			continue
		}
		n := slices.IndexFunc(want.Disks, func(w compute.Disk) bool { return w.Name == dev.Name })
		if dev.Kind != "disk" || n < 0 {
			return other
		}
		w := want.Disks[n]
		own := device{Kind: "disk", Name: w.Name, Slot: dev.Slot, Format: "raw", Bytes: dev.Bytes, Serial: dev.Serial, Bus: dev.Bus, Label: w.Label}
		if w.Image != nil {
			own.Format, own.Image = "qcow2", imageFile{w.Image.ID, w.Image.Path, w.Image.Format}
		}
		if own.Format != dev.Format || own.Image.ID != dev.Image.ID || dev.Bytes <= 0 || dev.Bytes > maxDisk || dev.Bytes%512 != 0 || dev.Bus != w.Bus || dev.Serial != w.Serial {
			return other
		}
		devices = append(devices, own)
	}
	r.Devices = devices
	return ""
}
