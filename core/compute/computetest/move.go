package computetest

import (
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// MoverOptions say how TestMover handles one kind of driver. What is nil is a thing that this kind cannot be made
// to do, and its cases are skipped.
type MoverOptions struct {
	// As for TestDriver. The hooks are told of either host.
	Options
	// LeftoversOf lists what one of the two hosts holds of any guest, beside what Present says.
	LeftoversOf func(t testing.TB, d compute.Driver) []string
	// Disks lists the guests that have disks on the storage that both hosts reach; nil: they share none.
	Disks func(t testing.TB) []resource.ID
	// Dies ends all of a host's guests, as a power failure would.
	Dies func(t testing.TB, d compute.Driver)
}

// TestMover is the contract of compute.Mover. open makes the drivers of two hosts that reach each other.
func TestMover(t *testing.T, open func(t testing.TB) (from, to compute.Driver), o MoverOptions) {
	if o.Patience == 0 {
		o.Patience = 20 * time.Second
	}
	for _, c := range []struct {
		name string
		run  func(*journey)
		need []any
	}{
		{"a running guest goes live", (*journey).live, nil},
		{"a paused guest goes live and stays paused", (*journey).livePaused, nil},
		{"a guest that is off goes with its disks", (*journey).cold, []any{o.Impressed, o.Fresh}},
		{"a running guest is switched off for the way", (*journey).coldRunning, nil},
		{"neither host runs it before it is told to", (*journey).restsBetween, nil},
		{"given up before it was sent, it runs on", (*journey).givenUpEarly, nil},
		{"given up after it was sent, it runs on", (*journey).givenUpLate, nil},
		{"given up when it was off, it starts again", (*journey).givenUpCold, nil},
		{"both answers outlive their agents", (*journey).outlives, []any{o.Reopen}},
		{"what ends on the way does not arrive", (*journey).endsOnTheWay, []any{o.Crash}},
		{"nobody is sent to where nobody listens", (*journey).toNowhere, nil},
		{"the way there and back", (*journey).thereAndBack, nil},
		{"what was there before is taken away", (*journey).overOld, nil},
		{"a guest that arrives can be removed", (*journey).removedOnArrival, nil},
		{"a guest that leaves can be removed", (*journey).removedOnDeparture, nil},
		{"an impossible guest is not let in", (*journey).impossible, nil},
		{"disks outlive their host", (*journey).outliveHost, []any{o.Disks, o.Impressed, o.Fresh}},
		{"two hosts never run a guest with the same disks", (*journey).oneAtATime, []any{o.Disks, o.Impressed, o.Fresh}},
		{"disks go only when it is said so", (*journey).erased, []any{o.Disks}},
		{"what a life before left is not taken up", (*journey).secondLife, []any{o.Disks, o.Impressed, o.Fresh}},
		{"a rebuild that was not carried out is, elsewhere", (*journey).rebuiltElsewhere, []any{o.Disks, o.Impressed, o.Fresh}},
		{"from the shelf it begins anew", (*journey).offTheShelf, []any{o.Disks, o.Impressed, o.Fresh}},
		{"shared disks are copied by whoever has them", (*journey).copiedElsewhere, []any{o.Disks, o.Impressed, o.Fresh}},
		{"from its host's own disk it comes onto the storage, and goes on from there", (*journey).ontoStorage, []any{o.Disks, o.Impressed, o.Fresh}},
		{"who copies or sends it finds out that it is another's", (*journey).foundOut, []any{o.Disks, o.Impressed, o.Fresh}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, hook := range c.need {
				if isNil(hook) {
					t.Skip("this driver's guests cannot be made to do that")
				}
			}
			if o.Parallel {
				t.Parallel()
			}
			j := &journey{MoverOptions: o}
			from, to := open(t)
			j.from, j.to = &suite{T: t, Options: o.Options, driver: from}, &suite{T: t, Options: o.Options, driver: to}
			c.run(j)
		})
	}
}

// A journey is one guest's way from one host to another.
type journey struct {
	MoverOptions
	from, to *suite
	own      bool // the guest's disk is its host's own still, wherever it is to be on the next one
}

// begin has the target make ready, and gives the wishes for both sides.
func (j *journey) begin(want compute.Guest, move int, live bool) (leaving, arriving compute.Guest) {
	t := j.from
	t.Helper()
	leaving, arriving = t.as(want), want
	kept := want.Storage != "" && !j.own
	if j.own {
		leaving.Storage = ""
	}
	arriving.Epoch = move + 1
	arriving.Arrive = &compute.Arrive{Move: move, Live: live, Kept: kept}
	got := j.receive(arriving, func(t compute.Transit) bool { return t.Where != "" })
	if got.Done {
		t.Fatal("it has arrived before it was sent")
	}
	leaving.Leave = &compute.Leave{Move: move, Where: got.Where, Live: live, Kept: kept}
	if !live {
		leaving.Power = compute.Off
	}
	return leaving, arriving
}

// receive asks the target until it answers so.
func (j *journey) receive(arriving compute.Guest, until func(compute.Transit) bool) compute.Transit {
	j.to.Helper()
	for deadline := time.Now().Add(j.Patience); ; time.Sleep(10 * time.Millisecond) {
		got, err := j.to.driver.(compute.Mover).Receive(j.to.Context(), arriving)
		if err != nil {
			j.to.Fatalf("Receive: %v", err)
		}
		if got.Move != arriving.Arrive.Move {
			j.to.Fatalf("it answers move %d, asked for %d", got.Move, arriving.Arrive.Move)
		}
		if got.Trouble != "" || until(got) {
			j.to.checkTrouble(got.Trouble)
			return got
		}
		if time.Now().After(deadline) {
			j.to.Fatalf("the target never came so far: %+v", got)
		}
	}
}

// send asks the source until it is done, or in trouble.
func (j *journey) send(leaving compute.Guest) (compute.Observation, compute.Transit) {
	j.from.Helper()
	for deadline := time.Now().Add(j.Patience); ; time.Sleep(10 * time.Millisecond) {
		seen, got, err := j.from.driver.(compute.Mover).Send(j.from.Context(), leaving)
		if err != nil {
			j.from.Fatalf("Send: %v", err)
		}
		if got.Move != leaving.Leave.Move {
			j.from.Fatalf("it answers move %d, asked for %d", got.Move, leaving.Leave.Move)
		}
		if got.Done || got.Trouble != "" {
			j.from.checkTrouble(got.Trouble)
			return seen, got
		}
		if time.Now().After(deadline) {
			j.from.Fatalf("it is never sent: %+v, %+v", seen, got)
		}
	}
}

// travel takes a guest all the way; it rests on both hosts then.
func (j *journey) travel(want compute.Guest, move int, live bool) (leaving, arriving compute.Guest) {
	j.from.Helper()
	leaving, arriving = j.begin(want, move, live)
	if _, got := j.send(leaving); got.Trouble != "" {
		j.from.Fatalf("it was not sent: %s", got.Trouble)
	}
	if got := j.receive(arriving, func(t compute.Transit) bool { return t.Done }); got.Trouble != "" {
		j.to.Fatalf("it did not arrive: %s", got.Trouble)
	}
	j.to.place(want.ID, placement{move + 1, !j.own})
	return leaving, arriving
}

// arrive is travel with the end of it: the new host's guest, and nothing left where it was.
func (j *journey) arrive(want compute.Guest, move int, live bool, power compute.Power) compute.Observation {
	j.from.Helper()
	j.travel(want, move, live)
	got := j.to.reachAs(want, power)
	j.vacated(j.from, want.ID)
	return got
}

// vacated takes away what a host has of a guest, and makes sure that it is all.
func (j *journey) vacated(s *suite, id resource.ID) {
	s.Helper()
	s.remove(id)
	if j.LeftoversOf == nil {
		return
	}
	if left := j.LeftoversOf(s, s.driver); len(left) > 0 {
		s.Errorf("left over: %q", left)
	}
}

func (j *journey) live() {
	want, first := j.from.on()
	j.from.same("live, on the other host", first, j.arrive(want, 1, true, compute.On))
	j.to.booted(want.ID)
}

func (j *journey) livePaused() {
	want, _ := j.from.on()
	want.Power = compute.Paused
	first := j.from.reachAs(want, compute.Paused)
	j.from.same("paused, on the other host", first, j.arrive(want, 1, true, compute.Paused))
	j.from, j.to = j.to, j.from
	j.from.same("paused, back again", first, j.arrive(want, 2, true, compute.Paused))
	want.Power = compute.On
	j.to.same("unpaused there", first, j.to.reachAs(want, compute.On))
}

func (j *journey) cold() {
	want, _ := j.from.on()
	j.Impressed(j.from, j.from.driver, want.ID)
	want.Power = compute.Off
	j.from.reachAs(want, compute.Off)
	j.arrive(want, 1, false, compute.Off)
	want.Power = compute.On
	j.to.reachAs(want, compute.On)
	j.to.booted(want.ID)
	if j.Fresh(j.to, j.to.driver, want.ID) {
		j.to.Error("what it had written did not come with it")
	}
}

func (j *journey) coldRunning() {
	want, first := j.from.on()
	second := j.arrive(want, 1, false, compute.On)
	j.to.restarted("on the other host", first, second)
	j.to.booted(want.ID)
}

// runs tells whether a host runs a guest.
func (s *suite) runs(id resource.ID) bool { return s.observe(id).Power == compute.On }

func (j *journey) restsBetween() {
	for n, live := range []bool{true, false} {
		want, _ := j.from.on()
		leaving, arriving := j.travel(want, n+1, live)
		for range 3 {
			j.send(leaving)
			j.receive(arriving, func(t compute.Transit) bool { return t.Done })
			if j.from.runs(want.ID) || j.to.runs(want.ID) {
				j.from.Errorf("live: %v: it runs here: %v, there: %v", live, j.from.runs(want.ID), j.to.runs(want.ID))
			}
		}
		j.from.remove(want.ID)
		j.to.remove(want.ID)
	}
}

func (j *journey) givenUpEarly() {
	want, first := j.from.on()
	leaving, _ := j.begin(want, 1, true)
	if _, _, err := j.from.driver.(compute.Mover).Send(j.from.Context(), leaving); err != nil {
		j.from.Fatal(err)
	}
	j.from.same("given up", first, j.from.reachAs(want, compute.On))
	j.vacated(j.to, want.ID)
	j.from.booted(want.ID)
	j.from.same("sent after all", first, j.arrive(want, 2, true, compute.On))
}

func (j *journey) givenUpLate() {
	want, first := j.from.on()
	j.travel(want, 1, true)
	j.vacated(j.to, want.ID)
	j.from.same("given up", first, j.from.reachAs(want, compute.On))
	j.from.booted(want.ID)
	j.from.same("sent after all", first, j.arrive(want, 2, true, compute.On))
}

func (j *journey) givenUpCold() {
	want, first := j.from.on()
	j.travel(want, 1, false)
	j.vacated(j.to, want.ID)
	j.from.restarted("given up", first, j.from.reachAs(want, compute.On))
	j.from.booted(want.ID)
}

func (j *journey) outlives() {
	want, first := j.from.on()
	leaving, arriving := j.travel(want, 1, true)
	j.from.reopen()
	j.to.reopen()
	if _, got := j.send(leaving); !got.Done || j.from.runs(want.ID) {
		j.from.Errorf("another agent says %+v", got)
	}
	if got := j.receive(arriving, func(t compute.Transit) bool { return t.Done }); !got.Done || j.to.runs(want.ID) {
		j.to.Errorf("another agent says %+v", got)
	}
	j.to.same("run by another agent", first, j.to.reachAs(want, compute.On))
	j.from.remove(want.ID)
}

func (j *journey) endsOnTheWay() {
	want, _ := j.from.on()
	leaving, arriving := j.begin(want, 1, true)
	j.Crash(j.from, j.from.driver, want.ID)
	if _, got := j.send(leaving); got.Trouble == "" {
		j.from.Errorf("a guest that had ended was sent: %+v", got)
	}
	if got, err := j.to.driver.(compute.Mover).Receive(j.to.Context(), arriving); err != nil || got.Done {
		j.to.Errorf("it arrived: %+v, %v", got, err)
	}
	j.vacated(j.to, want.ID)
}

func (j *journey) toNowhere() {
	want, first := j.from.on()
	leaving, _ := j.begin(want, 1, true)
	j.vacated(j.to, want.ID)
	if _, got := j.send(leaving); got.Trouble == "" {
		j.from.Errorf("it was sent to where it is not awaited: %+v", got)
	}
	j.from.same("not sent", first, j.from.reachAs(want, compute.On))
}

func (j *journey) thereAndBack() {
	want, first := j.from.on()
	j.arrive(want, 1, true, compute.On)
	j.from, j.to = j.to, j.from
	j.from.same("back again", first, j.arrive(want, 2, true, compute.On))
	j.to.booted(want.ID)
}

func (j *journey) overOld() {
	want, first := j.from.on()
	j.travel(want, 1, true)
	j.to.reachAs(want, compute.On)
	j.from, j.to = j.to, j.from // which was never told to clear away what it has
	j.travel(want, 2, true)
	j.to.same("back over what was left", first, j.to.reachAs(want, compute.On))
	j.vacated(j.from, want.ID)
	present, err := j.to.driver.Present(j.to.Context())
	if err != nil || !slices.Equal(present, []resource.ID{want.ID}) {
		j.to.Errorf("present are %v, %v", present, err)
	}
}

func (j *journey) removedOnArrival() {
	want, first := j.from.on()
	j.begin(want, 1, true)
	if present, err := j.to.driver.Present(j.to.Context()); err != nil || !slices.Contains(present, want.ID) {
		j.to.Errorf("what arrives is not told: %v, %v", present, err)
	}
	j.vacated(j.to, want.ID)
	j.from.same("the guest", first, j.from.reachAs(want, compute.On))
}

func (j *journey) removedOnDeparture() {
	want, _ := j.from.on()
	leaving, _ := j.begin(want, 1, true)
	if _, _, err := j.from.driver.(compute.Mover).Send(j.from.Context(), leaving); err != nil {
		j.from.Fatal(err)
	}
	j.vacated(j.from, want.ID)
	j.vacated(j.to, want.ID)
}

func (j *journey) impossible() {
	want := j.to.Guest(j.to)
	want.VCPUs = 100_000
	want.Arrive = &compute.Arrive{Move: 1}
	got, err := j.to.driver.(compute.Mover).Receive(j.to.Context(), want)
	if err != nil || got.Trouble == "" {
		j.to.Errorf("it answers %+v, %v", got, err)
	}
	j.to.remove(want.ID)
}
