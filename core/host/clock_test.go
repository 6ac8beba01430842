package host

import (
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
)

func TestByWhichStepAClockIsOff(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	for name, c := range map[string]struct{ was, off, give, want time.Duration }{
		"right":                                  {0, 100 * ms, 10 * ms, 0},
		"nearly right":                           {0, -4900 * ms, 10 * ms, 0},
		"off":                                    {0, 6 * s, 10 * ms, 5 * s},
		"off the other way":                      {0, -6 * s, 10 * ms, -5 * s},
		"off by as much as the question took":    {0, 6 * s, 2 * s, 0},
		"off by far more than that":              {0, 60 * s, 2 * s, 30 * s},
		"off by a year":                          {0, -365 * 24 * time.Hour, 0, -24 * time.Hour},
		"off as before":                          {5 * s, 7 * s, 10 * ms, 5 * s},
		"a little better":                        {5 * s, 3 * s, 10 * ms, 5 * s},
		"much better":                            {5 * s, 1900 * ms, 10 * ms, 0},
		"perhaps much better":                    {-5 * s, -500 * ms, 2 * s, -5 * s},
		"worse":                                  {5 * s, 31 * s, 10 * ms, 30 * s},
		"not worse for sure":                     {5 * s, 31 * s, 2 * s, 5 * s},
		"better by a step":                       {30 * s, 11 * s, 10 * ms, 5 * s},
		"not yet better by a step":               {30 * s, 13 * s, 10 * ms, 30 * s},
		"set too far":                            {time.Hour, -7 * s, 10 * ms, -5 * s},
		"set right":                              {-24 * time.Hour, 5 * ms, 10 * ms, 0},
		"the other way, but not by enough":       {5 * s, -3 * s, 10 * ms, 0},
		"one answer in a long time says nothing": {5 * s, 0, 10 * s, 5 * s},
	} {
		if got := ClockStep(c.was, c.off, c.give); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// An answer takes its time to the host, which waits and asks, and the question takes its time, too: what cannot be told from a clock that is off is none.
func TestHowFarAClockIsOff(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	const s = time.Second
	for name, c := range map[string]struct {
		there, held, back time.Duration // how long each took
		is                time.Duration // how far off the clock is
		sure              bool          // by at least a second
	}{
		"right":                        {0, 4 * s, 0, 0, false},
		"right, and the answer late":   {3 * s, 4 * s, 0, 0, false},
		"right, and the question late": {0, 4 * s, 3 * s, 0, false},
		"ahead":                        {s / 10, 4 * s, s / 10, 10 * s, true},
		"behind":                       {s / 10, 4 * s, s / 10, -10 * s, true},
		"behind, and all is late":      {3 * s, 4 * s, 3 * s, -10 * s, true},
	} {
		received := at.Add(c.there + c.held + c.back)
		off, give, ok := Clock{Answered: at, Held: c.held, Asked: at.Add(c.there + c.held + c.is), Received: received}.Off()
		if !ok || (off-c.is).Abs() > give || (off.Abs()-give >= s) != c.sure {
			t.Errorf("%s: off by %v, give or take %v, %v", name, off, give, ok)
		}
	}
	if off, give, ok := (Clock{Answered: at, Held: 4 * s, Asked: at.Add(10 * s), Received: at.Add(4*s - s/100)}).Off(); !ok || (off-6*s).Abs() > s/10 || give > s/10 {
		t.Errorf("a host whose clock goes a little faster is off by %v, give or take %v, %v", off, give, ok)
	}
	for name, c := range map[string]Clock{
		"no question before":               {Asked: at, Received: at, Held: s},
		"a release that says nothing":      {Answered: at, Received: at.Add(s)},
		"held for longer than it was":      {Answered: at, Held: 3 * s, Asked: at.Add(s), Received: at.Add(2 * s)},
		"held for less than no time":       {Answered: at, Held: -s, Asked: at.Add(s), Received: at.Add(2 * s)},
		"answered later than it was asked": {Answered: at.Add(s), Asked: at, Received: at},
	} {
		if off, give, ok := c.Off(); ok {
			t.Errorf("%s: off by %v, give or take %v", name, off, give)
		}
	}
}

func TestAHostWhoseClockIsOff(t *testing.T) {
	h, c, id := rig(t, 0)
	arrive := func(version string) {
		t.Helper()
		if err := Arrive(t.Context(), h.State, id, Hello{Name: "h", Version: version}); err != nil {
			t.Fatal(err)
		}
	}
	arrive("v2")
	say := func(by time.Duration) error {
		c.now = c.now.Add(time.Minute)
		return h.State.Update(t.Context(), func(tx *state.Tx) error { return clocks().Observe(tx, id, id, ClockReport(id, by)[0].Seen) })
	}
	want := func(when string, by time.Duration, words string) {
		t.Helper()
		m, _ := Find(h.State.Latest(), id)
		if m.Clock.By != by || m.Clock.Since.IsZero() != (by == 0) {
			t.Errorf("%s it is %+v", when, m.Clock)
		}
		m.Clock.Since = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
		if got := m.Clock.Words(); got != words {
			t.Errorf("%s it is said to be %q, want %q", when, got, words)
		}
	}
	tell := func(by time.Duration) {
		t.Helper()
		if err := say(by); err != nil {
			t.Fatal(err)
		}
	}
	tell(5 * time.Second)
	want("off", 5*time.Second, "is off: 5 s or more ahead at 2030-01-02T03:04:05Z")
	before := h.State.Latest().Revision()
	tell(5 * time.Second)
	if h.State.Latest().Revision() != before {
		t.Error("what is known is written")
	}
	tell(-5 * time.Minute)
	want("off by more", -5*time.Minute, "is off: 5 min or more behind at 2030-01-02T03:04:05Z")
	arrive("v2")
	want("in another session", -5*time.Minute, "is off: 5 min or more behind at 2030-01-02T03:04:05Z")
	if err := say(7 * time.Second); err == nil {
		t.Error("what is no step is taken")
	}
	tell(0)
	want("right again", 0, "")
	tell(-24 * time.Hour)
	want("off by a day", -24*time.Hour, "is off: 24 h or more behind at 2030-01-02T03:04:05Z")
	arrive("v1")
	want("as another release", 0, "")
	tell(time.Hour)
	if err := Lose(t.Context(), h.State, id); err != nil {
		t.Fatal(err)
	}
	want("lost", 0, "")
	tell(time.Hour)
	want("lost, and late", 0, "")
}
