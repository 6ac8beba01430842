package computetest

import (
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// gone checks that a removed guest has left nothing.
func (s *suite) gone(id resource.ID) {
	s.Helper()
	present, err := s.driver.Present(s.Context())
	if err != nil || slices.Contains(present, id) {
		s.Errorf("Present = %v, %v", present, err)
	}
	if _, err := s.driver.Observe(s.Context(), id); !fault.Is(err, fault.NotFound) {
		s.Errorf("Observe of a removed guest: %v", err)
	}
	if s.Leftovers == nil {
		return
	}
	for _, left := range s.Leftovers(s) {
		if strings.Contains(left, id.String()) {
			s.Errorf("left over: %s", left)
		}
	}
}

func (s *suite) remove(id resource.ID) {
	s.Helper()
	if err := s.driver.Remove(s.Context(), id); err != nil {
		s.Fatalf("Remove: %v", err)
	}
	s.gone(id)
}

func (s *suite) removes() {
	want, _ := s.on()
	other, first := s.on()
	if s.Leftovers != nil && !slices.ContainsFunc(s.Leftovers(s), func(left string) bool { return strings.Contains(left, want.ID.String()) }) {
		s.Error("a running guest has left nothing, so looking for it proves nothing")
	}
	s.remove(want.ID)
	s.remove(want.ID)
	s.same("the other guest", first, s.reachAs(other, compute.On))
	s.reachAs(want, compute.On) // the same ID can come again
	s.remove(want.ID)
	s.remove(other.ID)
	if s.Leftovers != nil {
		if left := s.Leftovers(s); len(left) > 0 {
			s.Errorf("without guests there is left: %q", left)
		}
	}
}

func (s *suite) removesAlways() {
	for _, power := range []compute.Power{compute.Off, compute.Paused, compute.Suspended} {
		want, _ := s.on()
		want.Power = power
		s.reachAs(want, power)
		s.remove(want.ID)
	}
	if s.GoDeaf != nil {
		want, _ := s.on()
		s.GoDeaf(s, s.driver, want.ID)
		want.Power, want.GraceSeconds = compute.Off, 100
		if _, err := s.driver.Ensure(s.Context(), want); err != nil {
			s.Fatal(err)
		}
		s.remove(want.ID)
	}
	if s.Crash != nil {
		want, _ := s.on()
		s.Crash(s, s.driver, want.ID)
		s.remove(want.ID)
	}
}

// halt has a guest halted, and gives what there is then.
func (s *suite) halt(id resource.ID) compute.Observation {
	s.Helper()
	for deadline := time.Now().Add(s.Patience); ; time.Sleep(10 * time.Millisecond) {
		busy, err := s.driver.Halt(s.Context(), id)
		if err != nil {
			s.Fatalf("Halt: %v", err)
		}
		if !busy {
			return s.observe(id)
		}
		if time.Now().After(deadline) {
			s.Fatal("the guest does not halt")
		}
	}
}

func (s *suite) halts() {
	if busy, err := s.driver.Halt(s.Context(), resource.NewID(time.Now(), nil)); busy || !fault.Is(err, fault.NotFound) {
		s.Errorf("of a guest that there is not: %v, %v", busy, err)
	}
	want, _ := s.on()
	if s.Impressed != nil {
		s.Impressed(s, s.driver, want.ID)
	}
	first := s.halt(want.ID)
	if first.Power != compute.Off || first.Trouble != "" {
		s.Errorf("observed %q, %q", first.Power, first.Trouble)
	}
	s.same("halted again", first, s.halt(want.ID))
	if present, err := s.driver.Present(s.Context()); err != nil || !slices.Contains(present, want.ID) {
		s.Errorf("present are %v, %v", present, err)
	}
	s.reachAs(want, compute.On) // somebody wants it after all
	s.booted(want.ID)
	if s.Fresh != nil && s.Fresh(s, s.driver, want.ID) {
		s.Error("its disk is as its image")
	}
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	if got := s.halt(want.ID); got.Power != compute.Suspended {
		s.Errorf("its saved memory is gone: observed %q", got.Power)
	}
	want.Power = compute.Paused
	s.reachAs(want, compute.Paused)
	if got := s.halt(want.ID); got.Power != compute.Off {
		s.Errorf("observed %q of one that was paused", got.Power)
	}
}
