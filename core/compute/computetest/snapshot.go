package computetest

import (
	"io"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// snapshots gives the driver as one that copies disks; the case is skipped if it does not.
func (s *suite) snapshots() compute.Snapshotter {
	s.Helper()
	d, ok := s.driver.(compute.Snapshotter)
	if !ok {
		s.Skip("this driver copies no disks")
	}
	return d
}

// copied repeats the wish until there is a copy.
func (s *suite) copied(want compute.Guest) (compute.Observation, compute.Copy) {
	s.Helper()
	deadline := time.Now().Add(s.Patience)
	for {
		began := time.Now()
		got, c, err := s.snapshots().Snapshot(s.Context(), want)
		if err != nil {
			s.Fatalf("Snapshot: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			s.Errorf("Snapshot took %v; what takes long goes on by itself", took)
		}
		if c.Trouble != "" || got.Trouble != "" {
			s.Fatalf("there is trouble: %q, %q", c.Trouble, got.Trouble)
		}
		if c.Done {
			return got, c
		}
		if time.Now().After(deadline) {
			s.Fatalf("no copy after %v: %+v of %+v", s.Patience, c, got)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *suite) reads(c compute.Copy) string {
	s.Helper()
	f, err := c.Open()
	if err != nil {
		s.Fatalf("open the copy: %v", err)
	}
	defer f.Close()
	body, err := io.ReadAll(f)
	if err != nil || int64(len(body)) != c.Bytes || c.Bytes == 0 {
		s.Fatalf("%d bytes of the copy's %d were read: %v", len(body), c.Bytes, err)
	}
	return string(body)
}

func (s *suite) copyOfRunning() {
	s.snapshots()
	want, before := s.on()
	want.Snapshot = &compute.Snapshot{Number: 1}
	after, c := s.copied(want)
	s.same("over a copy", before, after)
	first := s.reads(c)
	if _, again := s.copied(want); s.reads(again) != first {
		s.Error("the copy changed by itself")
	}
	want.Snapshot = nil
	s.same("without its copy", before, s.reachAs(want, compute.On))
	want.Snapshot = &compute.Snapshot{Number: 2}
	s.copied(want)
}

func (s *suite) copyOfStopped() {
	s.snapshots()
	want, _ := s.on()
	want.Power, want.GraceSeconds = compute.Off, 0
	want.Snapshot = &compute.Snapshot{Number: 1}
	if got, c := s.copied(want); got.Power != compute.Off || s.reads(c) == "" {
		s.Errorf("one that is to be off is %q", got.Power)
	}
	want.Snapshot = nil
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) copyOfSuspended() {
	s.snapshots()
	want, _ := s.on()
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	want.Snapshot = &compute.Snapshot{Number: 1}
	if got, _ := s.copied(want); got.Power != compute.Suspended {
		s.Errorf("one that is suspended is %q", got.Power)
	}
	want.Snapshot, want.Power = nil, compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) copyOutlives() {
	s.snapshots()
	want, before := s.on()
	want.Snapshot = &compute.Snapshot{Number: 1}
	if _, _, err := s.snapshots().Snapshot(s.Context(), want); err != nil {
		s.Fatal(err)
	}
	s.reopen()
	after, c := s.copied(want)
	s.same("over its agent's death", before, after)
	first := s.reads(c)
	s.reopen()
	if _, again := s.copied(want); s.reads(again) != first {
		s.Error("the next agent has another copy")
	}
}

func (s *suite) copyGivenUp() {
	s.snapshots()
	want, before := s.on()
	want.Snapshot = &compute.Snapshot{Number: 1}
	if _, _, err := s.snapshots().Snapshot(s.Context(), want); err != nil {
		s.Fatal(err)
	}
	want.Snapshot = nil
	s.same("once it was given up", before, s.reachAs(want, compute.On))
	want.Power, want.GraceSeconds, want.Snapshot = compute.Off, 0, &compute.Snapshot{Number: 2}
	for range 3 {
		if _, _, err := s.snapshots().Snapshot(s.Context(), want); err != nil {
			s.Fatal(err)
		}
	}
	want.Power, want.Snapshot = compute.On, nil
	s.reachAs(want, compute.On)
	want.Snapshot = &compute.Snapshot{Number: 3}
	s.copied(want)
	s.remove(want.ID)
}
