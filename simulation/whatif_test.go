package simulation

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

func question() Question {
	return Question{Seed: 3, Elsewhere: true, Hosts: 5, Racks: 5, Servers: 50, Host: Size{4, 8192, 200}, Flavor: Size{1, 512, 10}, Boot: 10 * time.Second}
}

func answer(t *testing.T, q Question) *Answer {
	t.Helper()
	a, err := Ask(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// One of five hosts dies or is emptied: the others have room for its servers.
func TestWhatIf(t *testing.T) {
	q := question()
	q.Drain, q.Fault, q.Fit = "host-0002", "rack:3", &Size{1, 1024, 10}
	a := answer(t, q)
	if a.Placed != 50 || a.NoRoom != "" || a.PerHost != [3]int64{10, 10, 10} {
		t.Errorf("placed: %+v", a)
	}
	if d := a.Drain; d.Servers != 10 || d.Ways[compute.GoesLive] != 10 || d.ToHosts != 4 || d.Stays() != 0 {
		t.Errorf("drain: %+v", d)
	}
	if c := a.Fault; c.Affected != 10 || c.Restarted != 10 || len(c.NoRoom) != 0 || c.Dead < 2*time.Minute || c.Last < c.Dead+q.Boot || c.Last > time.Hour {
		t.Errorf("fault: %+v", c)
	}
	if !reflect.DeepEqual(a, answer(t, q)) {
		t.Error("the same seed gives another answer")
	}
	alone := q
	alone.Drain, alone.Fit = "", nil
	if !reflect.DeepEqual(a.Fault, answer(t, alone).Fault) {
		t.Error("what a fault costs depends on what else is asked")
	}
}

// What Room says is what placement comes to.
func TestFitIsWhatPlacementComesTo(t *testing.T) {
	for seed := range uint64(20) {
		q := question()
		q.Seed, q.Servers, q.Pack = seed, int(seed*3), seed%2 == 0
		q.Flavor = Size{1 + int(seed%3), 300 + int(seed*97)%900, 5 + int(seed%7)}
		fit := q.Flavor
		q.Fit = &fit
		before := answer(t, q)
		q.Servers = 1000
		full := answer(t, q)
		var more int64
		for _, z := range before.Fit {
			more += z.More
		}
		if full.NoRoom == "" || before.Placed+int(more) != full.Placed {
			t.Errorf("seed %d: %d were placed, there is room for %d more, and placement comes to %d", seed, before.Placed, more, full.Placed)
		}
		for _, z := range full.Fit {
			if z.More != 0 || len(z.Why) != 1 || z.Why[0].Hosts != 1 {
				t.Errorf("seed %d, full: %+v", seed, z)
			}
		}
	}
}

func TestWhatIfThereIsNoRoom(t *testing.T) {
	q := question()
	q.Servers, q.Fault, q.Drain = 75, "host:host-0001", "rack:2" // of 80 that have room
	a := answer(t, q)
	if c := a.Fault; c.Affected != 15 || c.Restarted != 4 || len(c.NoRoom) != 1 || c.NoRoom[Sorted(c.NoRoom)[0]] != 11 || !strings.Contains(Sorted(c.NoRoom)[0], "has the memory") {
		t.Errorf("fault: %+v", c)
	}
	if d := a.Drain; d.Stays() != 11 || !strings.Contains(Sorted(d.Stay)[0], "MiB of memory") {
		t.Errorf("drain: %+v", d)
	}
	q.Racks, q.Servers, q.Fault, q.Drain = 2, 50, "rack:1", "" // three of five
	if c := answer(t, q).Fault; !c.Storm || c.Restarted != 0 || c.Dead != 0 {
		t.Errorf("most of the hosts at once: %+v", c)
	}
	for _, what := range []string{"rack:3", "rack:x", "host:nobody", "disk:1"} {
		q.Fault = what
		if _, err := Ask(t.Context(), q); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

// A cloud restarts nothing elsewhere until somebody says so.
func TestWhatIfByDefault(t *testing.T) {
	q := question()
	q.Elsewhere, q.Fault = false, "rack:1"
	if c := answer(t, q).Fault; c.Elsewhere || c.Affected != 10 || c.Restarted != 0 || c.Dead != 0 {
		t.Errorf("fault: %+v", c)
	}
}
