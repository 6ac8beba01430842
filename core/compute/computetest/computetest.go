// Package computetest is the contract of compute.Driver as tests: what the
// words in core/compute/driver.go mean, for whoever implements it. A driver's
// own tests are about how it does things; these are about what it does.
package computetest

import (
	"fmt"
	"testing"
	"time"

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
