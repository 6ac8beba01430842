package computetest

import (
	"slices"

	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *suite) hotNIC() {
	want, first := s.on()
	before := want.NICs
	want.NICs = append(slices.Clone(before), s.NIC(s), s.NIC(s))
	s.same("attached", first, s.reachAs(want, compute.On))
	s.same("still attached", first, s.reachAs(want, compute.On))
	changed := want
	changed.NICs = slices.Clone(want.NICs)
	changed.NICs[len(before)].MAC = "52:54:00:aa:bb:cc"
	s.same("another address", first, s.reachAs(changed, compute.On))
	want.NICs = before
	s.same("detached", first, s.reachAs(want, compute.On))
	s.remove(want.ID)
}

func (s *suite) hotDisk() {
	want, first := s.on()
	before := want.Disks
	extra := s.Disk(s)
	want.Disks = append(slices.Clone(before), extra)
	s.same("attached", first, s.reachAs(want, compute.On))
	s.same("still attached", first, s.reachAs(want, compute.On))
	want.Disks[len(before)].SizeMiB *= 2
	s.same("larger", first, s.reachAs(want, compute.On))
	want.HardBoots++
	first = s.reachAs(want, compute.On)
	s.booted(want.ID)
	want.Disks = before
	s.same("detached", first, s.reachAs(want, compute.On))
	want.Disks = append(slices.Clone(before), extra)
	s.same("attached again", first, s.reachAs(want, compute.On))
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	want.Power, want.Disks = compute.On, before
	s.reachAs(want, compute.On) // and detached on the way
}

func (s *suite) coldDisk() {
	want := s.Guest(s)
	before := want.Disks
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Disks = append(slices.Clone(before), s.Disk(s))
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Disks = before
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}
