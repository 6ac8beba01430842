package computetest

import (
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/core/compute"
)

// wrongs are wishes that nobody can meet.
var wrongs = map[string]func(*compute.Guest){
	"no processor":         func(g *compute.Guest) { g.VCPUs = 0 },
	"too many processors":  func(g *compute.Guest) { g.VCPUs = 100_000 },
	"negative memory":      func(g *compute.Guest) { g.MemoryMiB = -5 },
	"no disk":              func(g *compute.Guest) { g.Disks = nil },
	"a disk of no size":    func(g *compute.Guest) { g.Disks = append(g.Disks, compute.Disk{Name: "empty"}) },
	"two disks of a name":  func(g *compute.Guest) { g.Disks = append(g.Disks, g.Disks[0]) },
	"a disk that escapes":  func(g *compute.Guest) { g.Disks = append(g.Disks, compute.Disk{Name: "../../x", SizeMiB: 1}) },
	"an unknown bus":       func(g *compute.Guest) { g.Disks[0].Bus = "floppy,readonly=off" },
	"an unknown machine":   func(g *compute.Guest) { g.Machine = "toaster" },
	"an unknown power":     func(g *compute.Guest) { g.Power = "half" },
	"a bad MAC address":    func(g *compute.Guest) { g.NICs = []compute.NIC{{PortID: g.ID, MAC: "x,script=y"}} },
	"an unknown NIC model": func(g *compute.Guest) { g.NICs = []compute.NIC{{PortID: g.ID, MAC: "52:54:00:00:00:01", Model: "x"}} },
}

func (s *suite) impossible() {
	for name, spoil := range wrongs {
		want := s.Guest(s)
		want.Disks = slices.Clone(want.Disks)
		spoil(&want)
		got, err := s.driver.Ensure(s.Context(), want)
		if err != nil {
			s.Errorf("%s: a host's fault: %v", name, err)
			continue
		}
		if got.Trouble == "" || got.Busy || got.Power != compute.Crashed {
			s.Errorf("%s: %+v", name, got)
		}
		s.checkTrouble(strings.ReplaceAll(got.Trouble, "../../x", ""))
		s.remove(want.ID)
	}
}

func (s *suite) impossibleChange() {
	want, first := s.on()
	for name, spoil := range wrongs {
		wrong := want
		wrong.Disks = slices.Clone(want.Disks)
		spoil(&wrong)
		got, err := s.driver.Ensure(s.Context(), wrong)
		if err != nil || got.Trouble == "" || got.Power != compute.On {
			s.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	s.same("after impossible wishes", first, s.reachAs(want, compute.On))
}
