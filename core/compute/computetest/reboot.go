package computetest

import (
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *suite) hardBoot() {
	want, first := s.on()
	want.HardBoots++
	second := s.reachAs(want, compute.On)
	s.restarted("a hard boot", first, second)
	s.same("the same hard boot", second, s.reachAs(want, compute.On))
	want.HardBoots += 3 // late: they are done at once
	third := s.reachAs(want, compute.On)
	s.restarted("three hard boots", second, third)
	s.same("the same three", third, s.reachAs(want, compute.On))
}

func (s *suite) hardBootOff() {
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.HardBoots++
	want.SoftBoots++
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	first := s.reachAs(want, compute.On)
	s.same("started", first, s.reachAs(want, compute.On))
}

func (s *suite) softBoot() {
	want, _ := s.on()
	want.GraceSeconds = int(s.Patience/time.Second) + 10 // it is not to be cut off
	want.SoftBoots++
	first := s.reachAs(want, compute.On)
	s.same("the same soft boot", first, s.reachAs(want, compute.On))
}

func (s *suite) softBootDeaf() {
	want, first := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.GraceSeconds = 1
	want.SoftBoots++
	second := s.reachAs(want, compute.On)
	s.restarted("the reboot", first, second)
	s.same("the same reboot", second, s.reachAs(want, compute.On))
}

func (s *suite) keepsDisk() {
	want, _ := s.on()
	s.Impressed(s, s.driver, want.ID)
	want.HardBoots++
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	if s.Fresh(s, s.driver, want.ID) {
		s.Error("after a hard reboot its disk is as its image")
	}
}

func (s *suite) rebuild() {
	want, first := s.on()
	if !s.Fresh(s, s.driver, want.ID) {
		s.Fatal("a new guest's disk is not as its image")
	}
	s.Impressed(s, s.driver, want.ID)
	want.Rebuilds++
	second := s.reachAs(want, compute.On)
	s.restarted("the rebuild", first, second)
	s.booted(want.ID)
	if !s.Fresh(s, s.driver, want.ID) {
		s.Error("rebuilt, and its disk is as before")
	}
	s.Impressed(s, s.driver, want.ID)
	s.same("the same rebuild", second, s.reachAs(want, compute.On))
	want.HardBoots++
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	if s.Fresh(s, s.driver, want.ID) {
		s.Error("rebuilt a second time")
	}
}

func (s *suite) elsewhere() {
	want := s.Guest(s)
	impress := func(epoch int) {
		s.Helper()
		s.Impressed(s, s.driver, want.ID)
		want.Epoch = epoch
		want.HardBoots++
		s.reachAs(want, compute.On)
		s.booted(want.ID)
	}
	want.Epoch = 1
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	if impress(0); s.Fresh(s, s.driver, want.ID) { // it says nothing
		s.Fatal("a guest was made anew for nothing")
	}
	if impress(3); !s.Fresh(s, s.driver, want.ID) {
		s.Error("what is left of an earlier placement was taken up")
	}
	if impress(3); s.Fresh(s, s.driver, want.ID) {
		s.Error("the same placement was made anew again")
	}
}

func (s *suite) countersOfNew() {
	want := s.Guest(s)
	want.HardBoots, want.SoftBoots, want.Rebuilds = 3, 2, 1
	first := s.reachAs(want, compute.On)
	s.same("the wish repeated", first, s.reachAs(want, compute.On))
}
