package computetest

import (
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *suite) comesTrue() {
	want, first := s.on()
	if first.StartMs <= 0 || first.OursMs < 0 || first.OursMs > first.StartMs {
		s.Errorf("the start took %v ms, %v of them ours", first.StartMs, first.OursMs)
	}
	if age := time.Since(first.StartedAt); age < 0 || age > s.Patience+time.Minute {
		s.Errorf("started %v ago", age)
	}
	s.same("the wish repeated", first, s.reachAs(want, compute.On))
	s.same("looked at", first, s.observe(want.ID))
	present, err := s.driver.Present(s.Context())
	if err != nil || !slices.Equal(present, []resource.ID{want.ID}) {
		s.Errorf("Present = %v, %v", present, err)
	}
}

func (s *suite) madeOff() {
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	present, err := s.driver.Present(s.Context())
	if err != nil || !slices.Contains(present, want.ID) {
		s.Errorf("Present = %v, %v", present, err)
	}
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) offAndOn() {
	want, first := s.on()
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.restarted("off and on", first, s.reachAs(want, compute.On))
}

func (s *suite) pausing() {
	want, first := s.on()
	want.Power = compute.Paused
	s.same("paused", first, s.reachAs(want, compute.Paused))
	s.same("still paused", first, s.reachAs(want, compute.Paused))
	want.Power = compute.On
	s.same("unpaused", first, s.reachAs(want, compute.On))
	want.Power = compute.Paused
	s.reachAs(want, compute.Paused)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
}

func (s *suite) startPaused() {
	want := s.Guest(s)
	want.Power = compute.Paused
	first := s.reachAs(want, compute.Paused)
	want.Power = compute.On
	s.same("unpaused", first, s.reachAs(want, compute.On))
}

func (s *suite) suspending() {
	want, first := s.on()
	for range 2 {
		want.Power = compute.Suspended
		s.reachAs(want, compute.Suspended)
		s.reachAs(want, compute.Suspended)
		want.Power = compute.On
		s.restarted("resumed", first, s.reachAs(want, compute.On))
	}
	// It obeys without having booted: its memory came back.
	want.Power = compute.Off
	want.GraceSeconds = int(s.Patience/time.Second) + 10
	s.reachAs(want, compute.Off)
}

func (s *suite) suspendedOff() {
	want, _ := s.on()
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) suspendOff() {
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Power = compute.Suspended
	if got := s.reach(want); got.Power != compute.Off || got.Trouble == "" {
		s.Errorf("observed %q, trouble %q", got.Power, got.Trouble)
	}
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) grace() {
	want, _ := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 1
	began := time.Now()
	got, err := s.driver.Ensure(s.Context(), want)
	if err != nil {
		s.Fatal(err)
	}
	if !got.Busy || got.Power != compute.On || got.Trouble != "" {
		s.Errorf("while it may stop by itself: %+v", got)
	}
	s.reachAs(want, compute.Off)
	if took := time.Since(began); took < time.Second {
		s.Errorf("cut off after %v of its one second", took)
	}
}

func (s *suite) noGrace() {
	want, _ := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 0
	s.reachAs(want, compute.Off)
}

func (s *suite) changeOfMind() {
	want, first := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 1
	if got, err := s.driver.Ensure(s.Context(), want); err != nil || !got.Busy {
		s.Fatalf("%+v, %v", got, err)
	}
	want.Power = compute.On
	s.same("wanted again", first, s.reachAs(want, compute.On))
	time.Sleep(1200 * time.Millisecond)
	s.same("past the grace", first, s.reachAs(want, compute.On))
}
