package computetest

import (
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A suite is one case under way.
type suite struct {
	*testing.T
	Options
	driver compute.Driver
	placed map[resource.ID]placement // of guests that have changed hosts
}

// A placement is what of a wish the control plane decides and no owner.
type placement struct {
	epoch int
	kept  bool
}

// as is the wish as this host is told it.
func (s *suite) as(want compute.Guest) compute.Guest {
	if p, ok := s.placed[want.ID]; ok {
		want.Epoch, want.Kept = max(want.Epoch, p.epoch), p.kept && want.Storage != ""
	}
	return want
}

func (s *suite) place(id resource.ID, p placement) {
	if s.placed == nil {
		s.placed = map[resource.ID]placement{}
	}
	s.placed[id] = p
}

// reach repeats the wish as an agent does until it is carried out, and says
// what was observed last.
func (s *suite) reach(want compute.Guest) compute.Observation {
	s.Helper()
	deadline := time.Now().Add(s.Patience)
	for {
		began := time.Now()
		got, err := s.driver.Ensure(s.Context(), s.as(want))
		if err != nil {
			s.Fatalf("Ensure: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			s.Errorf("Ensure took %v; what takes long goes on by itself", took)
		}
		if !got.Busy {
			if got.Trouble != "" {
				s.checkTrouble(got.Trouble)
			}
			return got
		}
		if time.Now().After(deadline) {
			s.Fatalf("not settled after %v: %+v", s.Patience, got)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// reachAs is reach for a wish that is to come true without trouble.
func (s *suite) reachAs(want compute.Guest, power compute.Power) compute.Observation {
	s.Helper()
	got := s.reach(want)
	if got.Power != power || got.Trouble != "" {
		s.Fatalf("observed %q (%q), want %q", got.Power, got.Trouble, power)
	}
	if got.HardBoots != want.HardBoots || got.SoftBoots != want.SoftBoots || got.Rebuilds != want.Rebuilds {
		s.Fatalf("carried out %d, %d, %d of hard boots, soft boots, rebuilds; want %d, %d, %d",
			got.HardBoots, got.SoftBoots, got.Rebuilds, want.HardBoots, want.SoftBoots, want.Rebuilds)
	}
	if running := power == compute.On || power == compute.Paused; running == got.StartedAt.IsZero() {
		s.Fatalf("observed %q, and started at %v", got.Power, got.StartedAt)
	}
	return got
}

// on makes a new guest that runs and obeys.
func (s *suite) on() (compute.Guest, compute.Observation) {
	s.Helper()
	want := s.Guest(s)
	got := s.reachAs(want, compute.On)
	s.booted(want.ID)
	return want, got
}

func (s *suite) booted(id resource.ID) {
	s.Helper()
	if s.Booted != nil {
		s.Booted(s, s.driver, id)
	}
}

func (s *suite) observe(id resource.ID) compute.Observation {
	s.Helper()
	got, err := s.driver.Observe(s.Context(), id)
	if err != nil {
		s.Fatalf("Observe: %v", err)
	}
	return got
}

// await watches a guest that is changing by itself.
func (s *suite) await(id resource.ID, what string, is func(compute.Observation) bool) compute.Observation {
	s.Helper()
	deadline := time.Now().Add(s.Patience)
	for {
		got := s.observe(id)
		if is(got) {
			return got
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s never came; last seen: %+v", what, got)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// checkTrouble makes sure that words for an owner tell nothing of the host.
func (s *suite) checkTrouble(trouble string) {
	s.Helper()
	for _, secret := range []string{"/", "pid", "exit status", "0x", "errno"} {
		if strings.Contains(trouble, secret) {
			s.Errorf("trouble in words that are not for the owner: %q", trouble)
		}
	}
}

func (s *suite) same(what string, a, b compute.Observation) {
	s.Helper()
	if !a.StartedAt.Equal(b.StartedAt) {
		s.Errorf("%s: it was started again, at %v after %v", what, b.StartedAt, a.StartedAt)
	}
}

func (s *suite) restarted(what string, a, b compute.Observation) {
	s.Helper()
	if !b.StartedAt.After(a.StartedAt) {
		s.Errorf("%s: it was not started again: %v, before %v", what, b.StartedAt, a.StartedAt)
	}
}
