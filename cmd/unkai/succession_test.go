package main

import (
	"os"
	"testing"

	"github.com/unkai-cloud/unkai/base/release"
)

// A process that is tried works at no level at which what it may have to make way for does not.
func TestWhatIsTriedSpeaksAsWhatWasBefore(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := release.Span{Oldest: 1, Newest: release.Own.Newest - 1}
	narrow := release.Span{Oldest: release.Own.Oldest, Newest: before.Newest}
	for name, c := range map[string]struct {
		trial *trial
		want  release.Span
	}{
		"never upgraded":            {nil, release.Own},
		"tried":                     {&trial{Candidate: self, From: introduction{Speaks: before}}, narrow},
		"tried, in place of newer":  {&trial{Candidate: self, From: introduction{Speaks: release.Span{Oldest: 1, Newest: release.Own.Newest + 1}}}, release.Own},
		"kept":                      {&trial{Candidate: self, From: introduction{Speaks: before}, Outcome: "kept"}, release.Own},
		"what was tried has ended":  {&trial{Candidate: "/bin/true", From: introduction{Speaks: before}}, release.Own},
		"what was tried is no more": {&trial{Candidate: "/nowhere", From: introduction{Speaks: before}}, release.Own},
		"it did not make way":       {&trial{Candidate: self, From: introduction{Speaks: before}, Outcome: "back"}, narrow},
	} {
		dir := t.TempDir()
		if c.trial != nil {
			if err := os.MkdirAll(dir+"/"+releaseDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.trial.save(dir); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := speaks(dir); err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
}
