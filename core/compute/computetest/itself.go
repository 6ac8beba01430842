package computetest

import (
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *suite) shutsDown() {
	want, _ := s.on()
	s.ShutDown(s, s.driver, want.ID)
	isOff := func(o compute.Observation) bool { return o.Power == compute.Off }
	if got := s.await(want.ID, "off", isOff); got.Trouble != "" {
		s.Errorf("trouble %q", got.Trouble)
	}
	// The wish is older than what the guest did: it does not undo that.
	for range 2 {
		if got := s.reach(want); got.Power != compute.Off || got.Trouble != "" {
			s.Fatalf("it was wished on still: %q, %q", got.Power, got.Trouble)
		}
	}
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) shutDownReboot() {
	for _, soft := range []bool{false, true} {
		want, first := s.on()
		s.ShutDown(s, s.driver, want.ID)
		s.await(want.ID, "off", func(o compute.Observation) bool { return o.Power == compute.Off })
		s.reach(want)
		if soft {
			want.SoftBoots++
		} else {
			want.HardBoots++
		}
		s.restarted("the reboot", first, s.reachAs(want, compute.On))
	}
}

func (s *suite) rebootsItself() {
	want, first := s.on()
	s.Reboot(s, s.driver, want.ID)
	s.booted(want.ID)
	s.same("its own reboot", first, s.reachAs(want, compute.On))
}

func (s *suite) crashes() {
	want, first := s.on()
	s.Crash(s, s.driver, want.ID)
	isCrashed := func(o compute.Observation) bool { return o.Power == compute.Crashed }
	s.checkTrouble(s.await(want.ID, "the crash", isCrashed).Trouble)
	for range 2 {
		if got := s.reach(want); got.Power != compute.Crashed || got.Trouble == "" || !got.StartedAt.IsZero() {
			s.Fatalf("wished on still: %+v", got)
		}
	}
	want.HardBoots++
	second := s.reachAs(want, compute.On)
	s.restarted("the reboot", first, second)

	s.Crash(s, s.driver, want.ID)
	s.await(want.ID, "the crash", isCrashed)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.restarted("off and on", second, s.reachAs(want, compute.On))
}

func (s *suite) notifies() {
	notifier, ok := s.driver.(compute.Notifier)
	if !ok {
		s.Skip("not a Notifier")
	}
	want, _ := s.on()
	other, _ := s.on()
	var mu sync.Mutex
	told := map[resource.ID]int{}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case id, ok := <-notifier.Changed():
				if !ok {
					s.Error("closed while the driver is open")
					return
				}
				mu.Lock()
				told[id]++
				mu.Unlock()
			}
		}
	})
	count := func(id resource.ID) int {
		mu.Lock()
		defer mu.Unlock()
		return told[id]
	}
	tells := func(what string, id resource.ID, do func(testing.TB, compute.Driver, resource.ID), power compute.Power) {
		before := count(id)
		do(s, s.driver, id)
		s.await(id, what, func(o compute.Observation) bool { return o.Power == power })
		for deadline := time.Now().Add(s.Patience); count(id) == before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				s.Errorf("%s was not told", what)
				return
			}
		}
	}
	tells("a shutdown", want.ID, s.ShutDown, compute.Off)
	if s.Crash != nil {
		tells("a crash", other.ID, s.Crash, compute.Crashed)
	}
	close(stop)
	wg.Wait()
}
