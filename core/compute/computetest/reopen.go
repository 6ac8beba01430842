package computetest

import (
	"slices"

	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *suite) reopen() {
	s.Helper()
	s.driver = s.Reopen(s, s.driver)
}

func (s *suite) outlives() {
	want, first := s.on()
	offWant := s.Guest(s)
	offWant.Power = compute.Off
	s.reachAs(offWant, compute.Off)
	s.reopen()
	s.same("looked at by another agent", first, s.observe(want.ID))
	s.same("wished of another agent", first, s.reachAs(want, compute.On))
	s.reachAs(offWant, compute.Off)
	present, err := s.driver.Present(s.Context())
	if err != nil || len(present) != 2 || !slices.Contains(present, want.ID) || !slices.Contains(present, offWant.ID) {
		s.Errorf("Present = %v, %v", present, err)
	}
	want.HardBoots++
	second := s.reachAs(want, compute.On)
	s.restarted("a reboot by another agent", first, second)
	s.booted(want.ID)
	s.reopen()
	s.same("the reboot, asked of a third", second, s.reachAs(want, compute.On))
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
}

func (s *suite) meanwhile() {
	down, _ := s.on()
	crashed, _ := s.on()
	dead := s.driver
	s.ShutDown(s, dead, down.ID)
	s.Crash(s, dead, crashed.ID)
	s.reopen()
	if got := s.reach(down); got.Power != compute.Off || got.Trouble != "" {
		s.Errorf("switched itself off without an agent: %q, %q", got.Power, got.Trouble)
	}
	if got := s.reach(crashed); got.Power != compute.Crashed || got.Trouble == "" {
		s.Errorf("crashed without an agent: %q, %q", got.Power, got.Trouble)
	}
}

func (s *suite) stopOverRestart() {
	want, _ := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 1
	if got, err := s.driver.Ensure(s.Context(), want); err != nil || !got.Busy {
		s.Fatalf("%+v, %v", got, err)
	}
	s.reopen()
	s.reachAs(want, compute.Off)
}

func (s *suite) suspendedOutlives() {
	want, _ := s.on()
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	s.reopen()
	if got := s.observe(want.ID); got.Power != compute.Suspended {
		s.Errorf("seen by another agent: %q", got.Power)
	}
	s.reachAs(want, compute.Suspended)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}
