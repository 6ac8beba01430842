package compute

import (
	"testing"
)

// TestTheRace: what becomes of guests that write so much, on a wire of 100 MB/s.
func TestTheRace(t *testing.T) {
	const mb = 1e6
	for name, c := range map[string]struct {
		burden  Burden
		outcome Outcome
		seconds [2]float64 // expected, beside what every move takes
		pause   [2]float64 // ms, beside what every pause takes
		slowed  bool
	}{
		"one that is idle":                        {Burden{Used: 1000 * mb, Dirty: mb}, Surely, [2]float64{10, 10.2}, [2]float64{0, 101}, false},
		"one that stands still":                   {Burden{Used: 1000 * mb}, Surely, [2]float64{10, 10.01}, [2]float64{0, 1}, false},
		"one that writes half as fast":            {Burden{Used: 1000 * mb, Dirty: 45 * mb}, Probably, [2]float64{17, 19}, [2]float64{1, 200}, false},
		"one that writes as fast as it is sent":   {Burden{Used: 1000 * mb, Dirty: 100 * mb}, IfSlowed, [2]float64{20, 200}, [2]float64{1, 200}, true},
		"one that writes a thousand times faster": {Burden{Used: 100_000 * mb, Dirty: 100_000 * mb}, Never, [2]float64{}, [2]float64{}, true},
		"an emulated one that is idle":            {Burden{Used: 1000 * mb, Dirty: mb, Course: OneRound}, Surely, [2]float64{10, 10}, [2]float64{100, 100}, false},
		"an emulated one that writes much":        {Burden{Used: 1000 * mb, Dirty: 50 * mb, Course: OneRound}, Surely, [2]float64{10, 10}, [2]float64{5000, 5000}, false},
		"an emulated one that stands still":       {Burden{Used: 1000 * mb, Dirty: 50 * mb, Course: NoRound}, Surely, [2]float64{10, 10}, [2]float64{10000, 10000}, false},
		"one whose disks it writes faster":        {Burden{Used: 10 * mb, Disk: mb, DiskWrites: 200 * mb}, Never, [2]float64{}, [2]float64{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.burden.Live, c.burden.Seen, c.burden.Seconds, c.burden.Memory, c.burden.Limit = true, true, 1, c.burden.Used, 200
			f := Forecast{Live: true, Burden: c.burden, Wire: Wire{Basis: ByPair, Moves: 5, Least: 90 * mb, Expected: 100 * mb, Most: 110 * mb}}
			f.foretell()
			seconds, pause := f.Seconds.Expected-around.Expected, f.PauseMs.Expected-between.Expected
			if c.outcome == Never {
				seconds, pause = f.Seconds.Expected, f.PauseMs.Expected
			}
			if f.Outcome != c.outcome || f.Slowed > 0 != c.slowed || seconds < c.seconds[0]-0.001 || seconds > c.seconds[1] || pause < c.pause[0]-0.001 || pause > c.pause[1] {
				t.Errorf("it ends %q after %.2f s with a pause of %.1f ms, slowed by %d %%", f.Outcome, seconds, pause, f.Slowed)
			}
			if most := f.Seconds.Most; most != 0 && (f.Seconds.Least > f.Seconds.Expected || f.Seconds.Expected > most) || f.Outcome == Never && most != 0 {
				t.Errorf("it takes %+v", f.Seconds)
			}
			if p := f.PauseMs; p.Most != 0 && (p.Least > p.Expected || p.Expected > p.Most) {
				t.Errorf("it stands still for %+v", p)
			}
		})
	}
}

// What a few pages say is worth less than what many do.
func TestWhatFewPagesSay(t *testing.T) {
	few := Burden{Memory: 1 << 30, Dirty: 100 << 20, Seconds: 1, Pages: 128}
	many, all := few, few
	many.Pages, all.Pages = 4096, 0
	width := func(b Burden) float64 {
		least, most := b.spread()
		if least > float64(b.Dirty) || most < float64(b.Dirty) {
			t.Errorf("%d pages: %f to %f", b.Pages, least, most)
		}
		return most - least
	}
	if a, b, c := width(few), width(many), width(all); a < 5*b || c != 0 {
		t.Errorf("widths are %f, %f and %f", a, b, c)
	}
	none := Burden{Memory: 1 << 30, Seconds: 1, Pages: 128}
	if _, most := none.spread(); most < 1<<20 {
		t.Errorf("where 128 pages were as before it is sure that no more than %f bytes change", most)
	}
}

// FuzzForecast: whatever a host says of its guest, a forecast ends, and says nothing that cannot be.
func FuzzForecast(f *testing.F) {
	f.Add(int64(1<<30), int64(1<<20), int64(1<<20), int64(100), int64(1e8))
	f.Add(int64(-1), int64(-1), int64(-1), int64(-1), int64(-1))
	f.Add(int64(1<<62), int64(1<<62), int64(1<<62), int64(1<<62), int64(1))
	f.Fuzz(func(t *testing.T, used, dirty, disk, limit, speed int64) {
		b := Burden{Live: true, Seen: true, Seconds: 1, Memory: used, Used: used, Dirty: dirty, Disk: disk, Limit: limit}
		b.Course = []Course{Rounds, OneRound, NoRound, "any"}[uint64(used)%4]
		c := Forecast{Live: true, Burden: b.sane(), Wire: Wire{Least: speed / 2, Expected: speed, Most: speed}}
		c.foretell()
		for _, r := range []Range{c.Seconds, c.PauseMs, c.HurriedMs} {
			if r.Least < 0 || r.Expected < 0 || r.Most < 0 || r.Least != r.Least || r.Expected != r.Expected || r.Most != r.Most {
				t.Errorf("it says %+v", c)
			}
		}
	})
}
