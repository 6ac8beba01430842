package computetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *suite) looks() {
	want := s.Guest(s)
	if _, err := s.driver.Observe(s.Context(), want.ID); !fault.Is(err, fault.NotFound) {
		s.Errorf("before it is made: %v", err)
	}
	want, first := s.on()
	for range 3 {
		got := s.observe(want.ID)
		s.same("looked at", first, got)
		if got.Power != compute.On || got.Busy || got.Trouble != "" {
			s.Errorf("observed %+v", got)
		}
	}
	if s.ShutDown != nil {
		s.ShutDown(s, s.driver, want.ID)
		for range 2 {
			s.await(want.ID, "off", func(o compute.Observation) bool { return o.Power == compute.Off })
		}
	}
}

func (s *suite) unknown() {
	id := s.Guest(s).ID
	if _, err := s.driver.Observe(s.Context(), id); !fault.Is(err, fault.NotFound) {
		s.Errorf("Observe: %v", err)
	}
	if err := s.driver.Remove(s.Context(), id); err != nil {
		s.Errorf("Remove: %v", err)
	}
	if present, err := s.driver.Present(s.Context()); err != nil || len(present) != 0 {
		s.Errorf("Present = %v, %v", present, err)
	}
	if consoler, ok := s.driver.(compute.Consoler); ok {
		if _, err := consoler.ConsoleLog(s.Context(), id, 100); !fault.Is(err, fault.NotFound) {
			s.Errorf("ConsoleLog: %v", err)
		}
		if _, err := consoler.Console(s.Context(), id, "serial"); !fault.Is(err, fault.NotFound) {
			s.Errorf("Console: %v", err)
		}
	}
}

func (s *suite) together() {
	const n = 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made []resource.ID
	for range n {
		want := s.Guest(s)
		made = append(made, want.ID)
		wg.Go(func() {
			for deadline := time.Now().Add(2 * s.Patience); ; time.Sleep(10 * time.Millisecond) {
				got, err := s.driver.Ensure(s.Context(), want)
				if err != nil || time.Now().After(deadline) {
					s.Errorf("%+v, %v", got, err)
					return
				}
				if got.Power == compute.On && !got.Busy {
					break
				}
			}
			if err := s.driver.Remove(s.Context(), want.ID); err != nil {
				s.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if present, err := s.driver.Present(s.Context()); err != nil || slices.Contains(present, want.ID) {
				s.Errorf("Present = %v, %v", present, err)
			}
		})
	}
	wg.Wait()
	for _, id := range made {
		s.gone(id)
	}
}

func (s *suite) givenUp() {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	want := s.Guest(s)
	if _, err := s.driver.Ensure(ctx, want); !errors.Is(err, context.Canceled) {
		s.Errorf("Ensure: %v", err)
	}
	for give := time.Millisecond; give < 100*time.Millisecond; give *= 3 {
		ctx, cancel := context.WithTimeout(s.Context(), give)
		s.driver.Ensure(ctx, want) // wherever it gets to: the next call goes on
		cancel()
	}
	s.reachAs(want, compute.On)
	ctx, cancel = context.WithCancel(s.Context())
	cancel()
	if err := s.driver.Remove(ctx, want.ID); !errors.Is(err, context.Canceled) {
		s.Errorf("Remove: %v", err)
	}
	s.remove(want.ID)
}

func (s *suite) capabilities() {
	got, err := s.driver.Capabilities(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	if got.Driver == "" || got.Version == "" || got.Arch == "" || got.VCPUs < 1 || got.MemoryMiB < 1 || got.DiskGiB < 1 || got.MaxVCPUs < 1 {
		s.Errorf("%+v", got)
	}
	_, first := s.on()
	if first.Isolating != got.Isolating {
		s.Errorf("the host isolates: %v, its guest: %v", got.Isolating, first.Isolating)
	}
}
