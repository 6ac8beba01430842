package compute

import (
	"fmt"
	"math"
	"time"
)

// A Forecast is what it would take to move a server to another host, as far as that can be told before. A move of a running guest
// is a race: its memory is sent while it writes in it. What decides it is seen for a moment only, so that everything is told with
// what it may be instead.
type Forecast struct {
	From, To string // hosts, by their names
	Live     bool
	Kept     bool // its disks stay where they are: both hosts reach them

	Burden  Burden
	Unknown string // why the guest was not looked at; its burden is then its shape's
	Wire    Wire

	Seconds   Range // the whole move
	PauseMs   Range // for which nobody would be answered by a guest that goes live
	Outcome   Outcome
	Slowed    int   // by how many percent its processors would be held back at the last, as is expected
	HurriedMs Range // what the pause would be if somebody hurries it instead
	Doubts    []string
}

// A Range is what is expected, and between what it should lie. A Most of 0 stands for no bound at all.
type Range struct{ Least, Expected, Most float64 }

// An Outcome is how the race ends.
type Outcome string

const (
	Surely   Outcome = "yes"      // even if it is as bad as was seen
	Probably Outcome = "probably" // as expected; it may have to be slowed down, or hurried
	IfSlowed Outcome = "slowed"   // only because the guest is slowed down
	Hardly   Outcome = "unlikely" // unless it is much better than it looks
	Never    Outcome = "no"       // somebody has to hurry it
	Unseen   Outcome = "unknown"
)

// What there is to every move, beside what is sent: making ready at the target, two reports and a delivery; in seconds. And what the
// guest's pause has of it beside the rest of its memory, in milliseconds. Measured with emulated guests on a busy machine.
var (
	around  = Range{0.5, 2, 15}
	between = Range{100, 500, 2000}
)

// throttle is how QEMU and others slow a guest down, in percent: when, of what was sent in two periods of a second at least, more than
// half was written anew. Drivers without it only do worse.
const (
	throttleFirst, throttleStep, throttleMost = 20, 10, 99
	throttlePeriod                            = 1.0

	page = 4096
)

// A race is one course that sending the memory of a running guest can take.
type race struct {
	seconds float64
	rest    float64 // bytes that go while it is stopped; of one that is lost, what is never sent
	slowed  int
	won     bool
}

// send is the course that the driver takes.
func (b *Burden) send(dirty, bursts, speed float64) race {
	used := float64(b.Used)
	switch b.Course {
	case OneRound:
		return race{seconds: used / speed, rest: anew(used, dirty, dirty*b.Seconds, bursts, used/speed), won: true}
	case NoRound:
		return race{seconds: used / speed, rest: used, won: true}
	}
	return run(used, dirty, b.Seconds, bursts, speed, float64(b.Limit)/1000)
}

// anew is how much of what is used is written while some time passes. In less time than the moment that was seen, of which hot is all
// that was written, it may be more than the rate says: the same again, up to bursts times as fast.
func anew(used, rate, hot, bursts, took float64) float64 {
	return min(used, max(rate*took, min(hot, bursts*rate*took)))
}

// run sends so many bytes of memory at a speed, of which the guest writes some anew each second.
func run(used, dirty, moment, bursts, speed, limit float64) race {
	r := race{}
	hot := dirty * moment
	left, sent, dirtied, since, high := used, 0.0, 0.0, 0.0, 0
	for r.seconds < used/speed+600 {
		took := left / speed
		runs := dirty * float64(100-r.slowed) / 100
		again := anew(used, runs, hot, bursts, took)
		r.seconds += took
		if again <= max(speed*limit, page) {
			r.rest, r.won = again, true
			return r
		}
		sent, dirtied, since = sent+left, dirtied+again, since+took
		left = again
		if since < throttlePeriod {
			continue
		}
		if dirtied > sent/2 {
			if r.slowed == throttleMost {
				break
			}
			if high++; high == 2 {
				high = 0
				r.slowed = min(max(throttleFirst, r.slowed+throttleStep), throttleMost)
			}
		}
		sent, dirtied, since = 0, 0, 0
	}
	r.rest = left
	return r
}

// spread is between what the rate lies that was seen, by the pages that were looked at.
func (b *Burden) spread() (least, most float64) {
	dirty := float64(b.Dirty)
	if b.Pages <= 0 || b.Memory <= 0 || b.Seconds <= 0 {
		return dirty, dirty
	}
	part := min(1, max(dirty*b.Seconds/float64(b.Memory), 1/float64(b.Pages))) // of the pages
	off := 2 * math.Sqrt(part*(1-part)/float64(b.Pages)) * float64(b.Memory) / b.Seconds
	return max(0, dirty-off), dirty + off
}

// foretell fills in what follows from the burden and the wire.
func (f *Forecast) foretell() {
	b, w := &f.Burden, &f.Wire
	w.tried(b.Wire)
	if f.Kept {
		b.Disk, b.DiskWrites = 0, 0
	}
	slow, usual, fast := float64(max(1, w.Least)), float64(max(1, w.Expected)), float64(max(1, w.Most))
	f.Seconds = around
	if known := float64(w.AroundMs) / 1000; known > 0 {
		f.Seconds = Range{min(around.Least, known), known, max(around.Most, 2*known)}
	}
	disk := func(speed float64) float64 { return float64(b.Disk) / max(1, speed-float64(b.DiskWrites)) }
	f.Seconds.Least += float64(b.Disk) / fast
	f.Seconds.Expected += disk(usual)
	f.Seconds.Most += disk(slow)
	f.doubt()
	if !f.Live {
		f.Outcome = Surely
		return
	}
	used := float64(b.Used)
	least, most := b.spread()
	best, expected, worst := b.send(least, 1, fast), b.send(float64(b.Dirty), 1, usual), b.send(most, 5, slow)
	f.Seconds.Least += best.seconds
	f.Seconds.Expected += expected.seconds
	f.Seconds.Most += worst.seconds
	f.Slowed = expected.slowed
	f.HurriedMs = Range{0, // when somebody does it after the first round, and when before anything was sent
		1000 * min(used, float64(b.Dirty)*used/usual) / usual, 1000 * used / slow}
	stopped := func(r race, speed float64) float64 { return 1000 * r.rest / speed }
	f.PauseMs = Range{between.Least + stopped(best, fast), between.Expected + max(stopped(expected, usual), float64(min(w.StoppedMs, b.Limit))), between.Most + float64(b.Limit)}
	if b.Course != Rounds { // nothing bounds it
		f.PauseMs.Expected, f.PauseMs.Most = between.Expected+stopped(expected, usual), between.Most+stopped(worst, slow)
	}
	switch {
	case b.Course == NoRound:
		f.Outcome = Surely
	case !b.Seen:
		f.Outcome = Unseen
	case worst.won && worst.slowed == 0:
		f.Outcome = Surely
	case expected.won && expected.slowed == 0:
		f.Outcome = Probably
	case expected.won:
		f.Outcome = IfSlowed
	case best.won:
		f.Outcome = Hardly
	default:
		f.Outcome = Never
	}
	if float64(b.DiskWrites) >= usual {
		f.Outcome = Never
	}
	if !worst.won || f.Outcome == Unseen || float64(b.DiskWrites) >= slow {
		f.Seconds.Most, f.PauseMs.Most = 0, 0
	}
	if f.Outcome == Never || f.Outcome == Hardly {
		f.Seconds.Expected, f.PauseMs.Expected = 0, 0
	}
}

// doubt says in words what the forecast rests on.
func (f *Forecast) doubt() {
	b, w := &f.Burden, &f.Wire
	say := func(format string, args ...any) { f.Doubts = append(f.Doubts, fmt.Sprintf(format, args...)) }
	switch {
	case f.Unknown != "":
		say("%s Its memory and disks are taken to be full, and how fast it writes is not known.", f.Unknown)
	case f.Live && !b.Seen:
		say("How fast it writes could not be seen.")
	case f.Live && b.Pages > 0:
		say("It was looked at for %.1f s, and of its memory at %d pages. It may do something else later; what is written often counts once, and what is written as it was not at all.", b.Seconds, b.Pages)
	case f.Live && b.Seconds > 0:
		say("It was looked at for %.1f s, and may do something else later.", b.Seconds)
	}
	if f.Kept {
		say("Its disks are on storage that both hosts reach, and stay there.")
	}
	switch {
	case !f.Live:
	case b.Course == OneRound:
		say("It is emulated: its memory is sent once while it runs, and what it wrote meanwhile while it stands still.")
	case b.Course == NoRound:
		say("It is emulated, by a QEMU that cannot tell for certain what a running guest writes: it stands still while its memory is sent.")
	}
	switch w.Basis {
	case ByPair:
		say("The speed is that of %d moves between these two hosts, the newest at %s.", w.Moves, w.Newest.UTC().Format(time.RFC3339))
	case ByHost:
		say("No move between these two hosts tells the speed; it is that of %d from this host to others, the newest at %s.", w.Moves, w.Newest.UTC().Format(time.RFC3339))
	case ByTrial:
		say("The wire was tried just now. A move is slower if the hosts' processors are busy.")
	case ByWord:
		say("The speed is what the hosts' operator says of their network; no recent move tells it.")
	case Assumption:
		say("Nobody knows how fast the wire is: a gigabit a second is assumed. A first move, or unkai agent --wire, tells it.")
	}
	if b.Wire > 0 && w.Basis != ByTrial && b.Wire < w.Moved {
		say("The wire was tried just now, and is slower than it was then.")
	}
	if !f.Live && b.Live {
		say("It has to be switched off before; how long that takes is not in it.")
	}
}
