// Package computetest is the contract of compute.Driver as tests: what the
// words in core/compute/driver.go mean, for whoever implements it. A driver's
// own tests are about how it does things; these are about what it does.
package computetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// Options say how the suite handles one kind of driver. What is nil is a thing
// that this kind cannot be made to do, and its cases are skipped.
type Options struct {
	// Guest gives a wish for another guest that the driver can meet: on, with a
	// root disk, and GraceSeconds of at least 1. Its operating system is to obey
	// a soft stop within that.
	Guest func(t testing.TB) compute.Guest
	// Reopen ends the driver as its agent's death would, and gives another one
	// for the same host.
	Reopen func(t testing.TB, d compute.Driver) compute.Driver
	// Booted waits until the guest's operating system obeys.
	Booted func(t testing.TB, d compute.Driver, id resource.ID)

	// What guests do by themselves:
	ShutDown  func(t testing.TB, d compute.Driver, id resource.ID) // switches itself off
	Reboot    func(t testing.TB, d compute.Driver, id resource.ID) // restarts itself
	GoDeaf    func(t testing.TB, d compute.Driver, id resource.ID) // obeys no soft stop any more
	Crash     func(t testing.TB, d compute.Driver, id resource.ID) // its virtual machine dies
	Impressed func(t testing.TB, d compute.Driver, id resource.ID) // writes to its root disk
	// Fresh tells whether its root disk is as its image is, of a guest that is on.
	Fresh func(t testing.TB, d compute.Driver, id resource.ID) bool

	// NIC and Disk give devices to attach to a running guest, which lets go of
	// them when asked.
	NIC  func(t testing.TB) compute.NIC
	Disk func(t testing.TB) compute.Disk

	// Leftovers lists what the host holds of any guest, beside what Present says.
	Leftovers func(t testing.TB) []string

	// Parallel runs cases together. The hooks tell their cases by t.Name().
	Parallel bool

	// Patience is how long a wish may take to come true; 0 is 20 s.
	Patience time.Duration
}

// TestDriver runs the contract against drivers that open makes, each on a host
// of its own, which open cleans up with the test.
func TestDriver(t *testing.T, open func(t testing.TB) compute.Driver, o Options) {
	if o.Patience == 0 {
		o.Patience = 20 * time.Second
	}
	for _, c := range []struct {
		name string
		run  func(*suite)
		need []any // hooks without which the case cannot run
	}{
		{"a wish comes true and stays", (*suite).comesTrue, nil},
		{"a guest wished off is made and not started", (*suite).madeOff, nil},
		{"stopping and starting", (*suite).offAndOn, nil},
		{"pausing", (*suite).pausing, nil},
		{"starting paused", (*suite).startPaused, nil},
		{"suspending and resuming", (*suite).suspending, nil},
		{"a suspended guest can be switched off", (*suite).suspendedOff, nil},
		{"a guest that is off cannot be suspended", (*suite).suspendOff, nil},
		{"a hard reboot happens once", (*suite).hardBoot, nil},
		{"a hard reboot of a stopped guest does not start it", (*suite).hardBootOff, nil},
		{"a soft reboot happens once", (*suite).softBoot, nil},
		{"a soft reboot of a deaf guest becomes a hard one", (*suite).softBootDeaf, []any{o.GoDeaf}},
		{"a deaf guest is cut off after its grace", (*suite).grace, []any{o.GoDeaf}},
		{"no grace cuts off at once", (*suite).noGrace, []any{o.GoDeaf}},
		{"a change of mind while stopping", (*suite).changeOfMind, []any{o.GoDeaf}},
		{"a rebuild makes the root disk anew, once", (*suite).rebuild, []any{o.Impressed, o.Fresh}},
		{"a reboot keeps the root disk", (*suite).keepsDisk, []any{o.Impressed, o.Fresh}},
		{"a guest that was elsewhere since is made anew", (*suite).elsewhere, []any{o.Impressed, o.Fresh}},
		{"a new guest has carried out all that is counted", (*suite).countersOfNew, nil},
		{"a guest may switch itself off", (*suite).shutsDown, []any{o.ShutDown}},
		{"a guest that switched itself off starts with a reboot", (*suite).shutDownReboot, []any{o.ShutDown}},
		{"a guest may reboot itself", (*suite).rebootsItself, []any{o.Reboot}},
		{"a crash is told and not undone unasked", (*suite).crashes, []any{o.Crash}},
		{"changes are told", (*suite).notifies, []any{o.ShutDown}},
		{"guests outlive their agent", (*suite).outlives, []any{o.Reopen}},
		{"what happens without an agent is found out", (*suite).meanwhile, []any{o.Reopen, o.ShutDown, o.Crash}},
		{"a half carried out stop is gone on with", (*suite).stopOverRestart, []any{o.Reopen, o.GoDeaf}},
		{"a suspended guest outlives its agent", (*suite).suspendedOutlives, []any{o.Reopen}},
		{"removing leaves nothing", (*suite).removes, nil},
		{"removing works in every state", (*suite).removesAlways, nil},
		{"halting ends a guest and keeps what it has", (*suite).halts, nil},
		{"looking changes nothing", (*suite).looks, nil},
		{"unknown guests", (*suite).unknown, nil},
		{"impossible wishes", (*suite).impossible, nil},
		{"an impossible change leaves the guest as it is", (*suite).impossibleChange, nil},
		{"guests do not wait for each other", (*suite).together, nil},
		{"a call that is given up", (*suite).givenUp, nil},
		{"attaching and detaching a network card", (*suite).hotNIC, []any{o.NIC}},
		{"attaching and detaching a disk", (*suite).hotDisk, []any{o.Disk}},
		{"attaching while off", (*suite).coldDisk, []any{o.Disk}},
		{"a copy of a running guest's root disk", (*suite).copyOfRunning, nil},
		{"a copy of the root disk of a guest that is off", (*suite).copyOfStopped, nil},
		{"a copy of a suspended guest's root disk", (*suite).copyOfSuspended, nil},
		{"a copy outlives its agent", (*suite).copyOutlives, []any{o.Reopen}},
		{"a copy that is given up", (*suite).copyGivenUp, nil},
		{"the console's log", (*suite).consoleLog, nil},
		{"consoles", (*suite).consoles, nil},
		{"what the host can do", (*suite).capabilities, nil},
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
			s := &suite{T: t, Options: o}
			s.driver = open(t)
			c.run(s)
		})
	}
}

func isNil(hook any) bool {
	switch f := hook.(type) {
	case func(testing.TB, compute.Driver, resource.ID):
		return f == nil
	case func(testing.TB, compute.Driver, resource.ID) bool:
		return f == nil
	case func(testing.TB, compute.Driver) compute.Driver:
		return f == nil
	case func(testing.TB) []resource.ID:
		return f == nil
	case func(testing.TB) compute.NIC:
		return f == nil
	case func(testing.TB) compute.Disk:
		return f == nil
	}
	panic(fmt.Sprintf("computetest: a hook of type %T", hook))
}

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

func (s *suite) comesTrue() {
	want, first := s.on()
	if first.StartMs <= 0 || first.OursMs < 0 || first.OursMs > first.StartMs {
		s.Errorf("the start took %v ms, %v of them ours", first.StartMs, first.OursMs)
	}
	if age := time.Since(first.StartedAt); age < 0 || age > s.Patience+time.Minute {
		s.Errorf("started %v ago", age)
	}
	s.same("the wish repeated", first, s.reachAs(want, compute.On))
	s.same("looked at", first, s.observe(want.ID))
	present, err := s.driver.Present(s.Context())
	if err != nil || !slices.Equal(present, []resource.ID{want.ID}) {
		s.Errorf("Present = %v, %v", present, err)
	}
}

func (s *suite) madeOff() {
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	present, err := s.driver.Present(s.Context())
	if err != nil || !slices.Contains(present, want.ID) {
		s.Errorf("Present = %v, %v", present, err)
	}
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) offAndOn() {
	want, first := s.on()
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.restarted("off and on", first, s.reachAs(want, compute.On))
}

func (s *suite) pausing() {
	want, first := s.on()
	want.Power = compute.Paused
	s.same("paused", first, s.reachAs(want, compute.Paused))
	s.same("still paused", first, s.reachAs(want, compute.Paused))
	want.Power = compute.On
	s.same("unpaused", first, s.reachAs(want, compute.On))
	want.Power = compute.Paused
	s.reachAs(want, compute.Paused)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
}

func (s *suite) startPaused() {
	want := s.Guest(s)
	want.Power = compute.Paused
	first := s.reachAs(want, compute.Paused)
	want.Power = compute.On
	s.same("unpaused", first, s.reachAs(want, compute.On))
}

func (s *suite) suspending() {
	want, first := s.on()
	for range 2 {
		want.Power = compute.Suspended
		s.reachAs(want, compute.Suspended)
		s.reachAs(want, compute.Suspended)
		want.Power = compute.On
		s.restarted("resumed", first, s.reachAs(want, compute.On))
	}
	// It obeys without having booted: its memory came back.
	want.Power = compute.Off
	want.GraceSeconds = int(s.Patience/time.Second) + 10
	s.reachAs(want, compute.Off)
}

func (s *suite) suspendedOff() {
	want, _ := s.on()
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) suspendOff() {
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Power = compute.Suspended
	if got := s.reach(want); got.Power != compute.Off || got.Trouble == "" {
		s.Errorf("observed %q, trouble %q", got.Power, got.Trouble)
	}
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) hardBoot() {
	want, first := s.on()
	want.HardBoots++
	second := s.reachAs(want, compute.On)
	s.restarted("a hard boot", first, second)
	s.same("the same hard boot", second, s.reachAs(want, compute.On))
	want.HardBoots += 3 // late: they are done at once
	third := s.reachAs(want, compute.On)
	s.restarted("three hard boots", second, third)
	s.same("the same three", third, s.reachAs(want, compute.On))
}

func (s *suite) hardBootOff() {
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.HardBoots++
	want.SoftBoots++
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	first := s.reachAs(want, compute.On)
	s.same("started", first, s.reachAs(want, compute.On))
}

func (s *suite) softBoot() {
	want, _ := s.on()
	want.GraceSeconds = int(s.Patience/time.Second) + 10 // it is not to be cut off
	want.SoftBoots++
	first := s.reachAs(want, compute.On)
	s.same("the same soft boot", first, s.reachAs(want, compute.On))
}

func (s *suite) softBootDeaf() {
	want, first := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.GraceSeconds = 1
	want.SoftBoots++
	second := s.reachAs(want, compute.On)
	s.restarted("the reboot", first, second)
	s.same("the same reboot", second, s.reachAs(want, compute.On))
}

func (s *suite) grace() {
	want, _ := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 1
	began := time.Now()
	got, err := s.driver.Ensure(s.Context(), want)
	if err != nil {
		s.Fatal(err)
	}
	if !got.Busy || got.Power != compute.On || got.Trouble != "" {
		s.Errorf("while it may stop by itself: %+v", got)
	}
	s.reachAs(want, compute.Off)
	if took := time.Since(began); took < time.Second {
		s.Errorf("cut off after %v of its one second", took)
	}
}

func (s *suite) noGrace() {
	want, _ := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 0
	s.reachAs(want, compute.Off)
}

func (s *suite) changeOfMind() {
	want, first := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 1
	if got, err := s.driver.Ensure(s.Context(), want); err != nil || !got.Busy {
		s.Fatalf("%+v, %v", got, err)
	}
	want.Power = compute.On
	s.same("wanted again", first, s.reachAs(want, compute.On))
	time.Sleep(1200 * time.Millisecond)
	s.same("past the grace", first, s.reachAs(want, compute.On))
}

func (s *suite) elsewhere() {
	want := s.Guest(s)
	impress := func(epoch int) {
		s.Helper()
		s.Impressed(s, s.driver, want.ID)
		want.Epoch = epoch
		want.HardBoots++
		s.reachAs(want, compute.On)
		s.booted(want.ID)
	}
	want.Epoch = 1
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	if impress(0); s.Fresh(s, s.driver, want.ID) { // it says nothing
		s.Fatal("a guest was made anew for nothing")
	}
	if impress(3); !s.Fresh(s, s.driver, want.ID) {
		s.Error("what is left of an earlier placement was taken up")
	}
	if impress(3); s.Fresh(s, s.driver, want.ID) {
		s.Error("the same placement was made anew again")
	}
}

func (s *suite) rebuild() {
	want, first := s.on()
	if !s.Fresh(s, s.driver, want.ID) {
		s.Fatal("a new guest's disk is not as its image")
	}
	s.Impressed(s, s.driver, want.ID)
	want.Rebuilds++
	second := s.reachAs(want, compute.On)
	s.restarted("the rebuild", first, second)
	s.booted(want.ID)
	if !s.Fresh(s, s.driver, want.ID) {
		s.Error("rebuilt, and its disk is as before")
	}
	s.Impressed(s, s.driver, want.ID)
	s.same("the same rebuild", second, s.reachAs(want, compute.On))
	want.HardBoots++
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	if s.Fresh(s, s.driver, want.ID) {
		s.Error("rebuilt a second time")
	}
}

func (s *suite) keepsDisk() {
	want, _ := s.on()
	s.Impressed(s, s.driver, want.ID)
	want.HardBoots++
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	if s.Fresh(s, s.driver, want.ID) {
		s.Error("after a hard reboot its disk is as its image")
	}
}

func (s *suite) countersOfNew() {
	want := s.Guest(s)
	want.HardBoots, want.SoftBoots, want.Rebuilds = 3, 2, 1
	first := s.reachAs(want, compute.On)
	s.same("the wish repeated", first, s.reachAs(want, compute.On))
}

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

func (s *suite) reopen() {
	s.Helper()
	s.driver = s.Reopen(s, s.driver)
}

func (s *suite) outlives() {
	want, first := s.on()
	offWant := s.Guest(s)
	offWant.Power = compute.Off
	s.reachAs(offWant, compute.Off)
	s.reopen()
	s.same("looked at by another agent", first, s.observe(want.ID))
	s.same("wished of another agent", first, s.reachAs(want, compute.On))
	s.reachAs(offWant, compute.Off)
	present, err := s.driver.Present(s.Context())
	if err != nil || len(present) != 2 || !slices.Contains(present, want.ID) || !slices.Contains(present, offWant.ID) {
		s.Errorf("Present = %v, %v", present, err)
	}
	want.HardBoots++
	second := s.reachAs(want, compute.On)
	s.restarted("a reboot by another agent", first, second)
	s.booted(want.ID)
	s.reopen()
	s.same("the reboot, asked of a third", second, s.reachAs(want, compute.On))
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
}

func (s *suite) meanwhile() {
	down, _ := s.on()
	crashed, _ := s.on()
	dead := s.driver
	s.ShutDown(s, dead, down.ID)
	s.Crash(s, dead, crashed.ID)
	s.reopen()
	if got := s.reach(down); got.Power != compute.Off || got.Trouble != "" {
		s.Errorf("switched itself off without an agent: %q, %q", got.Power, got.Trouble)
	}
	if got := s.reach(crashed); got.Power != compute.Crashed || got.Trouble == "" {
		s.Errorf("crashed without an agent: %q, %q", got.Power, got.Trouble)
	}
}

func (s *suite) stopOverRestart() {
	want, _ := s.on()
	s.GoDeaf(s, s.driver, want.ID)
	want.Power, want.GraceSeconds = compute.Off, 1
	if got, err := s.driver.Ensure(s.Context(), want); err != nil || !got.Busy {
		s.Fatalf("%+v, %v", got, err)
	}
	s.reopen()
	s.reachAs(want, compute.Off)
}

func (s *suite) suspendedOutlives() {
	want, _ := s.on()
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	s.reopen()
	if got := s.observe(want.ID); got.Power != compute.Suspended {
		s.Errorf("seen by another agent: %q", got.Power)
	}
	s.reachAs(want, compute.Suspended)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

// gone checks that a removed guest has left nothing.
func (s *suite) gone(id resource.ID) {
	s.Helper()
	present, err := s.driver.Present(s.Context())
	if err != nil || slices.Contains(present, id) {
		s.Errorf("Present = %v, %v", present, err)
	}
	if _, err := s.driver.Observe(s.Context(), id); !fault.Is(err, fault.NotFound) {
		s.Errorf("Observe of a removed guest: %v", err)
	}
	if s.Leftovers == nil {
		return
	}
	for _, left := range s.Leftovers(s) {
		if strings.Contains(left, id.String()) {
			s.Errorf("left over: %s", left)
		}
	}
}

func (s *suite) remove(id resource.ID) {
	s.Helper()
	if err := s.driver.Remove(s.Context(), id); err != nil {
		s.Fatalf("Remove: %v", err)
	}
	s.gone(id)
}

func (s *suite) removes() {
	want, _ := s.on()
	other, first := s.on()
	if s.Leftovers != nil && !slices.ContainsFunc(s.Leftovers(s), func(left string) bool { return strings.Contains(left, want.ID.String()) }) {
		s.Error("a running guest has left nothing, so looking for it proves nothing")
	}
	s.remove(want.ID)
	s.remove(want.ID)
	s.same("the other guest", first, s.reachAs(other, compute.On))
	s.reachAs(want, compute.On) // the same ID can come again
	s.remove(want.ID)
	s.remove(other.ID)
	if s.Leftovers != nil {
		if left := s.Leftovers(s); len(left) > 0 {
			s.Errorf("without guests there is left: %q", left)
		}
	}
}

func (s *suite) removesAlways() {
	for _, power := range []compute.Power{compute.Off, compute.Paused, compute.Suspended} {
		want, _ := s.on()
		want.Power = power
		s.reachAs(want, power)
		s.remove(want.ID)
	}
	if s.GoDeaf != nil {
		want, _ := s.on()
		s.GoDeaf(s, s.driver, want.ID)
		want.Power, want.GraceSeconds = compute.Off, 100
		if _, err := s.driver.Ensure(s.Context(), want); err != nil {
			s.Fatal(err)
		}
		s.remove(want.ID)
	}
	if s.Crash != nil {
		want, _ := s.on()
		s.Crash(s, s.driver, want.ID)
		s.remove(want.ID)
	}
}

// halt has a guest halted, and gives what there is then.
func (s *suite) halt(id resource.ID) compute.Observation {
	s.Helper()
	for deadline := time.Now().Add(s.Patience); ; time.Sleep(10 * time.Millisecond) {
		busy, err := s.driver.Halt(s.Context(), id)
		if err != nil {
			s.Fatalf("Halt: %v", err)
		}
		if !busy {
			return s.observe(id)
		}
		if time.Now().After(deadline) {
			s.Fatal("the guest does not halt")
		}
	}
}

func (s *suite) halts() {
	if busy, err := s.driver.Halt(s.Context(), resource.NewID(time.Now(), nil)); busy || !fault.Is(err, fault.NotFound) {
		s.Errorf("of a guest that there is not: %v, %v", busy, err)
	}
	want, _ := s.on()
	if s.Impressed != nil {
		s.Impressed(s, s.driver, want.ID)
	}
	first := s.halt(want.ID)
	if first.Power != compute.Off || first.Trouble != "" {
		s.Errorf("observed %q, %q", first.Power, first.Trouble)
	}
	s.same("halted again", first, s.halt(want.ID))
	if present, err := s.driver.Present(s.Context()); err != nil || !slices.Contains(present, want.ID) {
		s.Errorf("present are %v, %v", present, err)
	}
	s.reachAs(want, compute.On) // somebody wants it after all
	s.booted(want.ID)
	if s.Fresh != nil && s.Fresh(s, s.driver, want.ID) {
		s.Error("its disk is as its image")
	}
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	if got := s.halt(want.ID); got.Power != compute.Suspended {
		s.Errorf("its saved memory is gone: observed %q", got.Power)
	}
	want.Power = compute.Paused
	s.reachAs(want, compute.Paused)
	if got := s.halt(want.ID); got.Power != compute.Off {
		s.Errorf("observed %q of one that was paused", got.Power)
	}
}

func (s *suite) looks() {
	want := s.Guest(s)
	if _, err := s.driver.Observe(s.Context(), want.ID); !fault.Is(err, fault.NotFound) {
		s.Errorf("before it is made: %v", err)
	}
	want, first := s.on()
	for range 3 {
		got := s.observe(want.ID)
		s.same("looked at", first, got)
		if got.Power != compute.On || got.Busy || got.Trouble != "" {
			s.Errorf("observed %+v", got)
		}
	}
	if s.ShutDown != nil {
		s.ShutDown(s, s.driver, want.ID)
		for range 2 {
			s.await(want.ID, "off", func(o compute.Observation) bool { return o.Power == compute.Off })
		}
	}
}

func (s *suite) unknown() {
	id := s.Guest(s).ID
	if _, err := s.driver.Observe(s.Context(), id); !fault.Is(err, fault.NotFound) {
		s.Errorf("Observe: %v", err)
	}
	if err := s.driver.Remove(s.Context(), id); err != nil {
		s.Errorf("Remove: %v", err)
	}
	if present, err := s.driver.Present(s.Context()); err != nil || len(present) != 0 {
		s.Errorf("Present = %v, %v", present, err)
	}
	if consoler, ok := s.driver.(compute.Consoler); ok {
		if _, err := consoler.ConsoleLog(s.Context(), id, 100); !fault.Is(err, fault.NotFound) {
			s.Errorf("ConsoleLog: %v", err)
		}
		if _, err := consoler.Console(s.Context(), id, "serial"); !fault.Is(err, fault.NotFound) {
			s.Errorf("Console: %v", err)
		}
	}
}

// wrongs are wishes that nobody can meet.
var wrongs = map[string]func(*compute.Guest){
	"no processor":         func(g *compute.Guest) { g.VCPUs = 0 },
	"too many processors":  func(g *compute.Guest) { g.VCPUs = 100_000 },
	"negative memory":      func(g *compute.Guest) { g.MemoryMiB = -5 },
	"no disk":              func(g *compute.Guest) { g.Disks = nil },
	"a disk of no size":    func(g *compute.Guest) { g.Disks = append(g.Disks, compute.Disk{Name: "empty"}) },
	"two disks of a name":  func(g *compute.Guest) { g.Disks = append(g.Disks, g.Disks[0]) },
	"a disk that escapes":  func(g *compute.Guest) { g.Disks = append(g.Disks, compute.Disk{Name: "../../x", SizeMiB: 1}) },
	"an unknown bus":       func(g *compute.Guest) { g.Disks[0].Bus = "floppy,readonly=off" },
	"an unknown machine":   func(g *compute.Guest) { g.Machine = "toaster" },
	"an unknown power":     func(g *compute.Guest) { g.Power = "half" },
	"a bad MAC address":    func(g *compute.Guest) { g.NICs = []compute.NIC{{PortID: g.ID, MAC: "x,script=y"}} },
	"an unknown NIC model": func(g *compute.Guest) { g.NICs = []compute.NIC{{PortID: g.ID, MAC: "52:54:00:00:00:01", Model: "x"}} },
}

func (s *suite) impossible() {
	for name, spoil := range wrongs {
		want := s.Guest(s)
		want.Disks = slices.Clone(want.Disks)
		spoil(&want)
		got, err := s.driver.Ensure(s.Context(), want)
		if err != nil {
			s.Errorf("%s: a host's fault: %v", name, err)
			continue
		}
		if got.Trouble == "" || got.Busy || got.Power != compute.Crashed {
			s.Errorf("%s: %+v", name, got)
		}
		s.checkTrouble(strings.ReplaceAll(got.Trouble, "../../x", ""))
		s.remove(want.ID)
	}
}

func (s *suite) impossibleChange() {
	want, first := s.on()
	for name, spoil := range wrongs {
		wrong := want
		wrong.Disks = slices.Clone(want.Disks)
		spoil(&wrong)
		got, err := s.driver.Ensure(s.Context(), wrong)
		if err != nil || got.Trouble == "" || got.Power != compute.On {
			s.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	s.same("after impossible wishes", first, s.reachAs(want, compute.On))
}

func (s *suite) together() {
	const n = 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made []resource.ID
	for range n {
		want := s.Guest(s)
		made = append(made, want.ID)
		wg.Go(func() {
			for deadline := time.Now().Add(2 * s.Patience); ; time.Sleep(10 * time.Millisecond) {
				got, err := s.driver.Ensure(s.Context(), want)
				if err != nil || time.Now().After(deadline) {
					s.Errorf("%+v, %v", got, err)
					return
				}
				if got.Power == compute.On && !got.Busy {
					break
				}
			}
			if err := s.driver.Remove(s.Context(), want.ID); err != nil {
				s.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if present, err := s.driver.Present(s.Context()); err != nil || slices.Contains(present, want.ID) {
				s.Errorf("Present = %v, %v", present, err)
			}
		})
	}
	wg.Wait()
	for _, id := range made {
		s.gone(id)
	}
}

func (s *suite) givenUp() {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	want := s.Guest(s)
	if _, err := s.driver.Ensure(ctx, want); !errors.Is(err, context.Canceled) {
		s.Errorf("Ensure: %v", err)
	}
	for give := time.Millisecond; give < 100*time.Millisecond; give *= 3 {
		ctx, cancel := context.WithTimeout(s.Context(), give)
		s.driver.Ensure(ctx, want) // wherever it gets to: the next call goes on
		cancel()
	}
	s.reachAs(want, compute.On)
	ctx, cancel = context.WithCancel(s.Context())
	cancel()
	if err := s.driver.Remove(ctx, want.ID); !errors.Is(err, context.Canceled) {
		s.Errorf("Remove: %v", err)
	}
	s.remove(want.ID)
}

func (s *suite) hotNIC() {
	want, first := s.on()
	before := want.NICs
	want.NICs = append(slices.Clone(before), s.NIC(s), s.NIC(s))
	s.same("attached", first, s.reachAs(want, compute.On))
	s.same("still attached", first, s.reachAs(want, compute.On))
	changed := want
	changed.NICs = slices.Clone(want.NICs)
	changed.NICs[len(before)].MAC = "52:54:00:aa:bb:cc"
	s.same("another address", first, s.reachAs(changed, compute.On))
	want.NICs = before
	s.same("detached", first, s.reachAs(want, compute.On))
	s.remove(want.ID)
}

func (s *suite) hotDisk() {
	want, first := s.on()
	before := want.Disks
	extra := s.Disk(s)
	want.Disks = append(slices.Clone(before), extra)
	s.same("attached", first, s.reachAs(want, compute.On))
	s.same("still attached", first, s.reachAs(want, compute.On))
	want.Disks[len(before)].SizeMiB *= 2
	s.same("larger", first, s.reachAs(want, compute.On))
	want.HardBoots++
	first = s.reachAs(want, compute.On)
	s.booted(want.ID)
	want.Disks = before
	s.same("detached", first, s.reachAs(want, compute.On))
	want.Disks = append(slices.Clone(before), extra)
	s.same("attached again", first, s.reachAs(want, compute.On))
	want.Power = compute.Suspended
	s.reachAs(want, compute.Suspended)
	want.Power, want.Disks = compute.On, before
	s.reachAs(want, compute.On) // and detached on the way
}

func (s *suite) coldDisk() {
	want := s.Guest(s)
	before := want.Disks
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Disks = append(slices.Clone(before), s.Disk(s))
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	want.Disks = before
	s.reachAs(want, compute.Off)
	want.Power = compute.On
	s.reachAs(want, compute.On)
}

func (s *suite) consoleLog() {
	consoler, ok := s.driver.(compute.Consoler)
	if !ok {
		s.Skip("not a Consoler")
	}
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	if log, err := consoler.ConsoleLog(s.Context(), want.ID, 1000); err != nil || len(log) != 0 {
		s.Errorf("of a guest that never ran: %q, %v", log, err)
	}
	want.Power = compute.On
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	whole, err := consoler.ConsoleLog(s.Context(), want.ID, 100_000)
	if err != nil || len(whole) == 0 {
		s.Fatalf("of a guest that booted: %q, %v", whole, err)
	}
	part, err := consoler.ConsoleLog(s.Context(), want.ID, 3)
	if err != nil || len(part) > 3 || !bytes.HasSuffix(whole, part) {
		s.Errorf("the last 3 bytes of %q: %q, %v", whole, part, err)
	}
	want.HardBoots++
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	more, err := consoler.ConsoleLog(s.Context(), want.ID, 100_000)
	if err != nil || !bytes.HasPrefix(more, whole) || len(more) <= len(whole) {
		s.Errorf("after a power-cycle: %q, %v; before: %q", more, err, whole)
	}
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	if log, err := consoler.ConsoleLog(s.Context(), want.ID, 100_000); err != nil || !bytes.HasPrefix(log, more) {
		s.Errorf("off: %q, %v", log, err)
	}
}

func (s *suite) consoles() {
	consoler, ok := s.driver.(compute.Consoler)
	if !ok {
		s.Skip("not a Consoler")
	}
	want, _ := s.on()
	conn, err := consoler.Console(s.Context(), want.ID, "vnc")
	if err != nil {
		s.Fatalf("vnc: %v", err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(s.Patience))
	greeting := make([]byte, 12)
	if n, err := conn.Read(greeting); err != nil || !bytes.HasPrefix(greeting[:n], []byte("RFB 003.")) {
		s.Errorf("vnc: greeted with %q, %v", greeting[:n], err)
	}
	for range 2 { // a second one takes over from the first
		conn, err := consoler.Console(s.Context(), want.ID, "serial")
		if err != nil {
			s.Fatalf("serial: %v", err)
		}
		defer conn.Close()
	}
	if _, err := consoler.Console(s.Context(), want.ID, "telepathy"); !fault.Is(err, fault.Unsupported) {
		s.Errorf("of an unknown kind: %v", err)
	}
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	if _, err := consoler.Console(s.Context(), want.ID, "vnc"); !fault.Is(err, fault.Conflict) {
		s.Errorf("of a guest that is off: %v", err)
	}
	want, _ = s.on()
	open := map[string]net.Conn{}
	for _, kind := range []string{"vnc", "serial"} {
		if open[kind], err = consoler.Console(s.Context(), want.ID, kind); err != nil {
			s.Fatalf("%s: %v", kind, err)
		}
		defer open[kind].Close()
	}
	if err := s.driver.Remove(s.Context(), want.ID); err != nil {
		s.Fatal(err)
	}
	for kind, conn := range open {
		conn.SetReadDeadline(time.Now().Add(s.Patience))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			s.Errorf("%s: it is open still when its guest was taken away", kind)
		}
	}
}

func (s *suite) capabilities() {
	got, err := s.driver.Capabilities(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	if got.Driver == "" || got.Version == "" || got.Arch == "" || got.VCPUs < 1 || got.MemoryMiB < 1 || got.DiskGiB < 1 || got.MaxVCPUs < 1 {
		s.Errorf("%+v", got)
	}
	_, first := s.on()
	if first.Isolating != got.Isolating {
		s.Errorf("the host isolates: %v, its guest: %v", got.Isolating, first.Isolating)
	}
}
