package computetest

import (
	"cmp"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// These are cases of two hosts whose guests' disks lie on storage that both reach.

// evacuate gives a guest to the other host by decision number epoch, with its disks.
func (j *journey) evacuate(want compute.Guest, epoch int, power compute.Power) compute.Observation {
	j.to.Helper()
	j.to.place(want.ID, placement{epoch, true})
	return j.to.reachAs(want, power)
}

// impressed makes a guest that has written to its disk.
func (j *journey) impressed() compute.Guest {
	j.from.Helper()
	want, _ := j.from.on()
	j.Impressed(j.from, j.from.driver, want.ID)
	return want
}

// holds waits until the guest is up on a host, with what it had written.
func (j *journey) holds(s *suite, want compute.Guest) {
	s.Helper()
	s.booted(want.ID)
	if j.Fresh(s, s.driver, want.ID) {
		s.Error("what it had written is lost")
	}
}

// back is what the host that was lost says when it is there again, with what was wanted of it then.
func (j *journey) back(want compute.Guest) {
	j.from.Helper()
	for range 3 {
		if got := j.from.reach(want); got.Power == compute.On || got.Trouble == "" {
			j.from.Errorf("the host that was lost says of a guest that it has no more: %+v", got)
		}
	}
}

func (j *journey) outliveHost() {
	want := j.impressed()
	j.Dies(j.from, j.from.driver)
	j.evacuate(want, 5, compute.On)
	j.holds(j.to, want)
	j.back(want)
	j.vacated(j.from, want.ID)
	want.HardBoots++
	j.to.reachAs(want, compute.On)
	j.holds(j.to, want)
	// and from there on, as any guest
	j.from, j.to = j.to, j.from
	j.arrive(want, 5, true, compute.On)
	want.HardBoots++
	j.to.reachAs(want, compute.On)
	j.holds(j.to, want)
}

func (j *journey) oneAtATime() {
	want := j.impressed()
	j.to.place(want.ID, placement{5, true})
	for range 20 { // whoever said that the other host is dead was wrong
		got, err := j.to.driver.Ensure(j.to.Context(), j.to.as(want))
		if err == nil && (got.Power == compute.On || got.Power == compute.Paused) || j.from.runs(want.ID) && err == nil && !got.Busy {
			j.to.Fatalf("it runs on the other host still, and here: %+v", got)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for deadline := time.Now().Add(j.Patience); j.from.runs(want.ID); time.Sleep(50 * time.Millisecond) {
		j.from.reach(want)
		if time.Now().After(deadline) {
			j.from.Fatal("it runs on though it was given to another host")
		}
	}
	j.back(want)
	j.to.reachAs(want, compute.On)
	j.holds(j.to, want)
}

// erase is the controllers' word that a guest's disks are nobody's.
func (j *journey) erase(s *suite, want compute.Guest, epoch int) {
	s.Helper()
	if err := s.driver.(compute.Eraser).Erase(s.Context(), compute.Erasure{GuestID: want.ID, Storage: want.Storage, Epoch: epoch}); err != nil {
		s.Fatalf("Erase: %v", err)
	}
}

func (j *journey) erased() {
	want, _ := j.from.on()
	j.arrive(want, 1, true, compute.On)
	there := func() bool { return slices.Contains(j.Disks(j.to), want.ID) }
	j.erase(j.from, want, 1) // of the placement before
	if !there() {
		j.to.Fatal("its disks were taken away")
	}
	if err := j.to.driver.(compute.Eraser).Erase(j.to.Context(), compute.Erasure{GuestID: want.ID, Storage: want.Storage, Epoch: 2}); err == nil {
		j.to.Error("the disks of a guest were erased that runs")
	}
	want.HardBoots++
	j.to.reachAs(want, compute.On)
	j.to.booted(want.ID)
	j.vacated(j.to, want.ID)
	if !there() {
		j.to.Fatal("a host took shared disks away with a guest, unasked")
	}
	j.erase(j.from, want, 2) // any host may
	j.erase(j.to, want, 2)
	if there() {
		j.to.Error("its disks are there still")
	}
	j.erase(j.to, compute.Guest{ID: resource.NewID(time.Now(), nil), Storage: want.Storage}, 1)
}

func (j *journey) secondLife() {
	want := j.impressed()
	j.Dies(j.from, j.from.driver)
	j.to.place(want.ID, placement{5, false}) // from its image, as if it had never been
	j.to.reachAs(want, compute.On)
	j.to.booted(want.ID)
	if !j.Fresh(j.to, j.to.driver, want.ID) {
		j.to.Error("what was lost has come back")
	}
	j.back(want)
	lost := want
	lost.ID = resource.NewID(time.Now(), nil)
	j.to.place(lost.ID, placement{2, true})
	if got := j.to.reach(lost); got.Trouble == "" || got.Power == compute.On {
		j.to.Errorf("a guest whose disks should be there, and are not: %+v", got)
	}
	j.to.remove(lost.ID)
	j.erase(j.to, lost, 2)
}

func (j *journey) rebuiltElsewhere() {
	want := j.impressed()
	j.Dies(j.from, j.from.driver)
	want.Rebuilds++
	j.evacuate(want, 2, compute.On)
	j.to.booted(want.ID)
	if !j.Fresh(j.to, j.to.driver, want.ID) {
		j.to.Error("the rebuild was forgotten")
	}
}

// offTheShelf: what a server had on its host is left to be erased when it is shelved, and it comes back over what is there still.
func (j *journey) offTheShelf() {
	want := j.impressed()
	there := func() bool { return slices.Contains(j.Disks(j.to), want.ID) }
	j.vacated(j.from, want.ID)
	want.Power = compute.Off // made ready, and not started yet
	j.to.place(want.ID, placement{5, false})
	j.to.reachAs(want, compute.Off)
	j.erase(j.from, want, 1) // late
	if !there() {
		j.to.Fatal("what was made for it was taken away with what it had before")
	}
	// That is given up, and it comes back to the first host; the second one has not heard of that.
	j.from.place(want.ID, placement{7, false})
	j.from.reachAs(want, compute.Off)
	for deadline := time.Now().Add(j.Patience); j.to.reach(want).Trouble == ""; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			j.to.Fatal("the other host does not notice")
		}
	}
	j.vacated(j.to, want.ID)
	j.erase(j.to, want, 5)
	want.Power = compute.On
	j.from.reachAs(want, compute.On)
	j.from.booted(want.ID)
	if !j.Fresh(j.from, j.from.driver, want.ID) {
		j.from.Error("what was erased has come back")
	}
	j.vacated(j.from, want.ID)
	j.erase(j.to, want, 7)
	if there() {
		j.to.Error("its disks are there still")
	}
}

// ontoStorage: what was copied onto the storage is there as if it had been made there.
func (j *journey) ontoStorage() {
	for n, power := range []compute.Power{compute.On, compute.Off} {
		want := j.from.Guest(j.from)
		own := want
		own.Storage = ""
		j.from.reachAs(own, compute.On)
		j.from.booted(want.ID)
		j.Impressed(j.from, j.from.driver, want.ID)
		own.Power, want.Power = power, power
		j.from.reachAs(own, power)
		live := power == compute.On
		j.own = true
		j.arrive(want, 10*n+1, live, power)
		j.own = false
		j.from, j.to = j.to, j.from
		j.arrive(want, 10*n+2, live, power)
		if live {
			want.HardBoots++
		}
		want.Power = compute.On
		j.to.reachAs(want, compute.On)
		j.holds(j.to, want)
		j.Dies(j.to, j.to.driver) // and as any guest there it outlives its host
		j.from, j.to = j.to, j.from
		j.evacuate(want, 10*n+5, compute.On)
		j.holds(j.to, want)
		j.from.remove(want.ID)
		j.from, j.to = j.to, j.from
		j.vacated(j.from, want.ID)
	}
}

// copiedElsewhere: a copy is made of disks that another host has made, and of a guest that has never run here.
func (j *journey) copiedElsewhere() {
	j.from.snapshots()
	want := j.impressed()
	want.Snapshot = &compute.Snapshot{Number: 1}
	if _, c := j.from.copied(want); j.from.reads(c) == "" {
		j.from.Error("there is nothing in the copy")
	}
	j.Dies(j.from, j.from.driver)
	want.Power = compute.Off
	j.to.place(want.ID, placement{5, true})
	without := want
	without.Snapshot = nil
	j.to.reachAs(without, compute.Off)
	if got, c := j.to.copied(j.to.as(want)); got.Power != compute.Off || j.to.reads(c) == "" {
		j.to.Errorf("one that is to be off is %q", got.Power)
	}
	without.Power = compute.On
	j.to.reachAs(without, compute.On)
	j.holds(j.to, want)
}

// foundOut: who copies a guest, or sends it, looks whose it is meanwhile.
func (j *journey) foundOut() {
	j.from.snapshots()
	for n, keepsAt := range []func(want compute.Guest) (trouble string, done bool){
		func(want compute.Guest) (string, bool) {
			want.Snapshot = &compute.Snapshot{Number: 1}
			got, c, err := j.from.snapshots().Snapshot(j.from.Context(), want)
			if err != nil {
				j.from.Fatal(err)
			}
			return cmp.Or(c.Trouble, got.Trouble), false // what was copied before may be there
		},
		func(want compute.Guest) (string, bool) {
			want.Leave = &compute.Leave{Move: 1, Where: "nowhere", Live: true}
			_, t, err := j.from.driver.(compute.Mover).Send(j.from.Context(), want)
			if err != nil {
				j.from.Fatal(err)
			}
			return t.Trouble, t.Done
		},
	} {
		want := j.impressed()
		keepsAt(want)
		j.to.place(want.ID, placement{5, true})
		for deadline := time.Now().Add(j.Patience); j.from.runs(want.ID); time.Sleep(50 * time.Millisecond) {
			j.to.driver.Ensure(j.to.Context(), j.to.as(want)) // which waits
			if _, done := keepsAt(want); done {
				j.from.Fatalf("case %d: it is sent, and no more its host's", n)
			}
			if time.Now().After(deadline) {
				j.from.Fatalf("case %d: it runs on though it was given to another host", n)
			}
		}
		if trouble, _ := keepsAt(want); trouble == "" {
			j.from.Errorf("case %d: its old host says nothing of it", n)
		}
		j.to.reachAs(want, compute.On)
		j.holds(j.to, want)
	}
}
