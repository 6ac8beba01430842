package compute_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A keeper is what keeps a cloud's guests alive, with a switch for its machines.
type keeper struct {
	*cloudtest.Cloud
	t     *testing.T
	work  *reconcile.Reconciler
	hosts *host.Service
	off   []string // machines that were switched off
	fails error    // of the switch
}

func newKeeper(t *testing.T, hosts int) *keeper {
	t.Helper()
	k := &keeper{Cloud: cloudtest.New(t, hosts), t: t}
	k.hosts = &host.Service{State: k.State}
	fence := &host.Fence{State: k.State, Now: k.now, Awaited: compute.Awaited, Missed: compute.Missed, Fencers: map[string]host.Fencer{"exec": k}}
	k.work = reconcile.New(k.State, k.Clock, append(k.Compute.Reconcilers(), fence.Task())...)
	return k
}

func (k *keeper) now() time.Time { return k.Clock }

// Off is the switch.
func (k *keeper) Off(_ context.Context, h *host.Host) error {
	if k.fails == nil {
		k.off = append(k.off, h.Name)
	}
	return k.fails
}

// pass lets time go by.
func (k *keeper) pass(d time.Duration) {
	k.t.Helper()
	for until := k.Clock.Add(d); ; k.Clock = k.Clock.Add(time.Second) {
		for range 1000 {
			k.Must(k.work.Pump(k.Clock))
			if !k.work.Do(k.Admin, k.now) {
				break
			}
		}
		k.Settle()
		if !k.Clock.Before(until) {
			break
		}
	}
	if found := audit.State(k.State.Latest()); len(found) > 0 {
		k.t.Errorf("the auditor found %v", found)
	}
}

// kept makes running servers that are to be started elsewhere.
func (k *keeper) kept(n int) []resource.ID {
	k.t.Helper()
	ids := k.Launch(compute.Launch{Max: n, Hints: map[string]string{"unkai_restart_elsewhere": "true"}})
	k.Settle()
	return ids
}

func (k *keeper) hostOf(h *cloudtest.Host) *host.Host {
	found, _ := host.Find(k.State.Latest(), h.ID)
	return found
}

func (k *keeper) fenced(driver string) {
	for _, h := range k.Hosts {
		if _, err := k.hosts.SetFencing(k.Admin, h.ID, host.Fencing{Driver: driver, Program: "switch"}); err != nil {
			k.t.Fatal(err)
		}
	}
}

// watched gives a host a watchdog.
func (k *keeper) watched(on *cloudtest.Host) {
	k.Must(k.State.Update(k.Admin, func(tx *state.Tx) error {
		h, _ := host.Find(tx, on.ID)
		h.Watchdog = true
		return host.Table().Put(tx, h)
	}))
}

func TestAServerOfADeadHostIsMadeAnewElsewhere(t *testing.T) {
	k := newKeeper(t, 2)
	k.fenced("exec")
	id := k.kept(1)[0]
	plain := k.Launch(compute.Launch{Host: "", Apart: []resource.ID{other(k.Cloud, id).ID}})[0]
	k.Settle()
	from := k.HostOf(id)
	if !from.Guests[id].Leased || from.Guests[id].Epoch != 1 {
		t.Fatalf("its host was told %+v", from.Guests[id])
	}
	k.Lose(from)
	k.pass(10 * time.Second)
	if len(k.off) != 0 || k.Server(id).HostID != from.ID {
		t.Fatal("nobody waited whether the host comes back")
	}
	k.pass(20 * time.Second)
	if len(k.off) != 1 || k.hostOf(from).Fenced.How != "exec" {
		t.Fatalf("switched off are %v, and it is known as %+v", k.off, k.hostOf(from).Fenced)
	}
	srv := k.Server(id)
	if srv.HostID == from.ID || srv.Seen.Power != compute.On || srv.Task != "" || srv.Epoch != 2 {
		t.Fatalf("it came to be %+v", srv)
	}
	if op := lastOperation(k.Cloud, id); op.Verb != "evacuate" || op.Outcome != operation.Succeeded || op.Why == nil {
		t.Errorf("the operation is %+v", op)
	}
	if p := k.Server(plain); p.HostID == from.ID && p.Task != "" {
		t.Errorf("a server whose owner did not ask for it: %+v", p)
	}
	k.Return(from)
	k.pass(time.Second)
	if _, has := from.Guests[id]; has || k.hostOf(from).Fenced != (host.Fenced{}) {
		t.Error("the host that came back still has it, or still counts as dead")
	}
}

func TestALeaseThatIsOverCountsWhereAWatchdogEnforcesIt(t *testing.T) {
	k := newKeeper(t, 3)
	id := k.kept(1)[0]
	from := k.HostOf(id)
	k.Lose(from)
	k.pass(5 * time.Minute)
	if k.hostOf(from).Dead() {
		t.Fatal("nobody said that a lease counts")
	}
	_, err := k.hosts.SetKeeping(k.Admin, func(keep *host.Keeping) { keep.Leases = true })
	k.Must(err)
	k.pass(5 * time.Minute)
	if k.hostOf(from).Dead() {
		t.Fatal("it has no watchdog")
	}
	k.watched(from)
	k.pass(10 * time.Second)
	if h := k.hostOf(from); h.Fenced.How != host.ByLease {
		t.Fatalf("it is known as %+v", h.Fenced)
	}
	if k.Server(id).HostID == from.ID {
		t.Error("it is still there")
	}
}

func TestALeaseSaysNothingOfWhatIsNotRunUnderIt(t *testing.T) {
	k := newKeeper(t, 2)
	kept := k.kept(1)[0]
	from := k.HostOf(kept)
	made, err := k.Compute.Create(operatorOf(k.Cloud), k.Plain(compute.Launch{Host: from.Name}))
	k.Must(err)
	plain := made.Servers[0]
	k.Settle()
	_, err = k.hosts.SetKeeping(k.Admin, func(keep *host.Keeping) { keep.Leases = true })
	k.Must(err)
	k.watched(from)
	k.Lose(from)
	k.pass(5 * time.Minute)
	if k.hostOf(from).Fenced.How != host.ByLease || k.Server(kept).HostID == from.ID {
		t.Fatalf("the host is known as %+v, and the server %+v", k.hostOf(from).Fenced, k.Server(kept))
	}
	before := k.State.Latest().Revision()
	err = k.Compute.Evacuate(k.Admin, plain, "", "")
	if f := fault.From(err); f == nil || f.Kind != fault.Conflict || f.Code != "host-not-dead" || !strings.Contains(f.Message, "unkai host fenced "+from.Name+" --sure") {
		t.Fatalf("it may run there still, and the answer is %v", err)
	}
	if k.State.Latest().Revision() != before {
		t.Error("what was refused changed something")
	}
	h, err := k.hosts.Vouch(k.Admin, from.ID)
	k.Must(err)
	if h.Fenced.How != host.ByWord {
		t.Fatalf("an operator has said that it is off, and it is known as %+v", h.Fenced)
	}
	k.Must(k.Compute.Evacuate(k.Admin, plain, "", ""))
	k.pass(time.Second)
	if s := k.Server(plain); s.HostID == from.ID || s.Seen.Power != compute.On {
		t.Errorf("it is %+v", s)
	}
}

func TestASwitchIsAskedOfWhatTheLeaseSaysNothingOf(t *testing.T) {
	k := newKeeper(t, 2)
	k.fenced("exec")
	k.fails = errors.New("the switch does not answer")
	kept := k.kept(1)[0]
	from := k.HostOf(kept)
	from.Silent = true // it does not learn what is asked next
	_, err := k.Compute.SetKeep(k.Ctx, kept, func(keep *compute.Keep) { keep.Elsewhere = false })
	k.Must(err)
	_, err = k.Compute.SetKeep(k.Ctx, kept, func(keep *compute.Keep) { keep.Elsewhere = true })
	k.Must(err)
	_, err = k.hosts.SetKeeping(k.Admin, func(keep *host.Keeping) { keep.Leases = true })
	k.Must(err)
	k.watched(from)
	k.Lose(from)
	k.pass(5 * time.Minute)
	if h := k.hostOf(from); h.Fenced.How != host.ByLease || h.Fencing.Trouble == "" {
		t.Fatalf("it is known as %+v, and the switch %+v", h.Fenced, h.Fencing)
	}
	if err := k.Compute.Evacuate(k.Admin, kept, "", ""); !fault.Is(err, fault.Conflict) {
		t.Fatalf("its host did not know that it runs it under its lease, and evacuating it answers %v", err)
	}
	k.fails = nil
	k.pass(10 * time.Minute)
	if h := k.hostOf(from); h.Fenced.How != "exec" || h.Fencing.Trouble != "" || len(k.off) != 1 {
		t.Fatalf("it is known as %+v, and switched off were %v", h.Fenced, k.off)
	}
	k.Must(k.Compute.Evacuate(k.Admin, kept, "", ""))
}

func TestALeaseIsWaitedForInFull(t *testing.T) {
	k := newKeeper(t, 2)
	id := k.kept(1)[0]
	from := k.HostOf(id)
	_, err := k.hosts.SetKeeping(k.Admin, func(keep *host.Keeping) { keep.Leases = true })
	k.Must(err)
	k.watched(from)
	k.Lose(from)
	k.pass(host.LeaseTime + host.LeaseMargin - 3*time.Second)
	if k.hostOf(from).Dead() {
		t.Fatal("too early")
	}
	k.Return(from) // and its agent has the lease anew
	k.watched(from)
	k.pass(time.Second)
	k.Lose(from)
	k.pass(host.LeaseTime)
	if k.hostOf(from).Dead() {
		t.Fatal("it was back in between")
	}
	k.pass(host.LeaseMargin + 15*time.Second)
	if !k.hostOf(from).Dead() || k.Server(id).HostID == from.ID {
		t.Error("too late")
	}
}

func TestAnOperatorsWordCounts(t *testing.T) {
	k := newKeeper(t, 2)
	id := k.kept(1)[0]
	from := k.HostOf(id)
	if _, err := k.hosts.Vouch(k.Admin, from.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("of a host that can be heard it answers %v", err)
	}
	k.Lose(from)
	if _, err := k.hosts.Vouch(k.Ctx, from.ID); !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Forbidden) {
		t.Errorf("to a tenant it answers %v", err)
	}
	_, err := k.hosts.Vouch(k.Admin, from.ID)
	k.Must(err)
	k.pass(time.Second)
	if srv := k.Server(id); srv.HostID == from.ID || srv.Seen.Power != compute.On {
		t.Errorf("it is %+v", srv)
	}
}

func TestASwitchThatFailsIsTriedAgain(t *testing.T) {
	k := newKeeper(t, 2)
	k.fenced("exec")
	id := k.kept(1)[0]
	from := k.HostOf(id)
	k.fails = errors.New("no route to the switch")
	k.Lose(from)
	k.pass(time.Minute)
	if h := k.hostOf(from); h.Dead() || h.Fencing.Failures < 2 || !strings.Contains(h.Fencing.Trouble, "no route") || k.Server(id).HostID != from.ID {
		t.Fatalf("it is %+v", h)
	}
	k.fails = nil
	k.pass(2 * time.Minute)
	if h := k.hostOf(from); !h.Dead() || h.Fencing.Trouble != "" || k.Server(id).HostID == from.ID {
		t.Errorf("it is %+v", h)
	}
}

func TestNothingIsDoneInAStorm(t *testing.T) {
	k := newKeeper(t, 4)
	k.fenced("exec")
	k.kept(8)
	for _, h := range k.Hosts[:2] {
		k.Lose(h)
	}
	k.pass(10 * time.Minute)
	if len(k.off) != 0 {
		t.Fatalf("switched off are %v", k.off)
	}
	k.Return(k.Hosts[0])
	k.pass(time.Minute)
	if len(k.off) != 1 || k.off[0] != k.Hosts[1].Name {
		t.Errorf("switched off are %v", k.off)
	}
}

func TestWithoutRoomAServerWaitsAndSaysWhy(t *testing.T) {
	k := newKeeper(t, 2)
	k.fenced("exec")
	ids := k.kept(4)
	var on []resource.ID
	for _, id := range ids {
		if k.HostOf(id) == k.Hosts[0] {
			on = append(on, id)
		}
	}
	if len(on) == 0 {
		t.Fatal("none is there")
	}
	k.Must(k.hosts.SetDisabled(k.Admin, k.Hosts[1].ID, true, "full"))
	k.Lose(k.Hosts[0])
	k.pass(time.Minute)
	for _, id := range on {
		if s := k.Server(id); s.Stranded == nil || !strings.Contains(s.Stranded.Why, "No valid host") {
			t.Fatalf("it is %+v", s)
		}
	}
	if n := len(compute.StrandedServers(k.State.Latest())); n != len(on) {
		t.Errorf("%d wait", n)
	}
	k.Must(k.hosts.SetDisabled(k.Admin, k.Hosts[1].ID, false, ""))
	k.pass(15 * time.Second)
	for _, id := range on {
		if s := k.Server(id); s.Stranded != nil || s.HostID != k.Hosts[1].ID || s.Seen.Power != compute.On {
			t.Errorf("it is %+v", s)
		}
	}
}

func TestThoseThatMatterMostGoFirst(t *testing.T) {
	k := newKeeper(t, 1)
	ids := k.kept(3)
	for n, id := range ids {
		_, err := k.Compute.SetKeep(k.Ctx, id, func(keep *compute.Keep) { keep.Priority = n })
		k.Must(err)
	}
	k.Settle()
	_, err := k.hosts.SetKeeping(k.Admin, func(keep *host.Keeping) { keep.AtOnce = 1 })
	k.Must(err)
	spare := k.AddHost("spare", cloudtest.Capacity)
	k.Settle()
	spare.Lazy = true
	k.Lose(k.Hosts[0])
	_, err = k.hosts.Vouch(k.Admin, k.Hosts[0].ID)
	k.Must(err)
	k.pass(30 * time.Second)
	for n, id := range ids {
		if got, want := k.Server(id).HostID == spare.ID, n == 2; got != want {
			t.Errorf("the one of priority %d left: %v", n, got)
		}
	}
}

// TestOneThatIsSlowHoldsUpNobody: a dead host's servers are no waves, each of which waits for its last. As one is there the next goes, the
// more important first, and never more at once than the operator allows.
func TestOneThatIsSlowHoldsUpNobody(t *testing.T) {
	const guests, atOnce = 120, 5
	k := newKeeper(t, 2)
	k.Must(k.Compute.SetQuota(k.Admin, k.User.ProjectID, resource.ID{}, map[string]int{compute.QuotaServers: compute.Unlimited,
		compute.QuotaCores: compute.Unlimited, compute.QuotaMemory: compute.Unlimited}, true))
	ids := k.kept(guests)
	for n, id := range ids {
		_, err := k.Compute.SetKeep(k.Ctx, id, func(keep *compute.Keep) { keep.Priority = n % 4 })
		k.Must(err)
	}
	k.Settle()
	_, err := k.hosts.SetKeeping(k.Admin, func(keep *host.Keeping) { keep.AtOnce = atOnce })
	k.Must(err)
	spare := k.AddHost("spare", cloudtest.Capacity)
	spare.Slow = map[resource.ID]bool{ids[3]: true} // one of the first
	k.Settle()
	for _, h := range k.Hosts[:2] { // their servers wait in one queue
		k.Lose(h)
		_, err = k.hosts.Vouch(k.Admin, h.ID)
		k.Must(err)
	}
	began := k.Clock
	for there := 0; there < guests-1; {
		k.pass(0)
		on, least, most := 0, 3, 0 // how many are under way, and of what priority; the most important that waits
		there = 0
		for n, id := range ids {
			switch s := k.Server(id); {
			case s.HostID != spare.ID:
				most = max(most, n%4)
			case s.Task == compute.Evacuating:
				on++
				if !spare.Slow[id] {
					least = min(least, n%4)
				}
			default:
				there++
			}
		}
		if on > atOnce || least < most {
			t.Fatalf("%d are under way, of priority %d, while one of %d waits", on, least, most)
		}
		k.Clock = k.Clock.Add(time.Second)
		if k.Clock.Sub(began) > time.Minute { // a wave each time that a step comes again would take four
			t.Fatalf("after %v %d of %d are there", k.Clock.Sub(began), there, guests)
		}
	}
	if s := k.Server(ids[3]); s.Task != compute.Evacuating {
		t.Errorf("the slow one is %+v", s)
	}
}

func TestOneWhoseHostMayNotKnowWaitsForAWord(t *testing.T) {
	k := newKeeper(t, 2)
	k.fenced("exec")
	id := k.Launch(compute.Launch{})[0]
	k.Settle()
	from := k.HostOf(id)
	from.Silent = true // before the wish gets there
	_, err := k.Compute.SetKeep(k.Ctx, id, func(keep *compute.Keep) { keep.Elsewhere = true })
	k.Must(err)
	k.Lose(from)
	k.pass(time.Minute)
	if s := k.Server(id); s.HostID != from.ID || s.Stranded == nil || !strings.Contains(s.Stranded.Why, "may not have learned") {
		t.Fatalf("it is %+v", s)
	}
	k.Must(k.Compute.Evacuate(k.Admin, id, "", ""))
	k.pass(time.Second)
	if s := k.Server(id); s.Stranded != nil || s.Seen.Power != compute.On {
		t.Errorf("it is %+v", s)
	}
}

func TestKeepIsChecked(t *testing.T) {
	k := newKeeper(t, 1)
	id := k.kept(1)[0]
	for name, change := range map[string]func(*compute.Keep){
		"a priority below none": func(k *compute.Keep) { k.Priority = -1 },
		"a priority above most": func(k *compute.Keep) { k.Priority = 101 },
		"an unknown word":       func(k *compute.Keep) { k.OnCrash = "explode" },
	} {
		if _, err := k.Compute.SetKeep(k.Ctx, id, change); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := k.Compute.SetKeep(k.OtherCtx, id, func(k *compute.Keep) {}); !fault.Is(err, fault.NotFound) {
		t.Errorf("to another project it answers %v", err)
	}
}

func TestACrashedGuestComesBackAFewTimes(t *testing.T) {
	k := newKeeper(t, 1)
	id := k.Launch(compute.Launch{})[0]
	k.Settle()
	h := k.HostOf(id)
	crash := func() {
		seen := h.Seen[id]
		seen.Power, seen.Trouble = compute.Crashed, "It died."
		k.Tell(h, id, seen)
	}
	for n := range 5 {
		crash()
		if s := k.Server(id); s.Stage() != compute.Running || s.Crash.Count != n+1 || s.Crash.Restart.IsZero() {
			t.Fatalf("after crash %d it is %+v", n+1, s)
		}
		op := lastOperation(k.Cloud, id)
		if op.Verb != "crash" || op.Outcome != operation.Failed || !strings.Contains(op.Message, "started again in") {
			t.Fatalf("told is %+v", op)
		}
		k.pass(2 * time.Minute)
		if s := k.Server(id); s.Seen.Power != compute.On || s.Task != "" || s.HardBoots != n+1 {
			t.Fatalf("after crash %d it came to be %+v", n+1, s)
		}
	}
	crash()
	k.pass(2 * time.Minute)
	if s := k.Server(id); s.Stage() != compute.Stopped || s.Power != compute.Off || !s.Crash.Restart.IsZero() {
		t.Errorf("after too many it is %+v", s)
	}
	k.Must(k.Compute.Do(k.Ctx, id, compute.Starting))
	k.pass(2 * time.Hour)
	crash()
	if s := k.Server(id); s.Crash.Count != 1 || s.Power != compute.On {
		t.Errorf("hours later it is %+v", s)
	}
}

func TestACrashedGuestStaysSoIfItsOwnerSaysSo(t *testing.T) {
	k := newKeeper(t, 1)
	id := k.Launch(compute.Launch{})[0]
	k.Settle()
	_, err := k.Compute.SetKeep(k.Ctx, id, func(keep *compute.Keep) { keep.OnCrash = compute.StayOnCrash })
	k.Must(err)
	k.Settle()
	h := k.HostOf(id)
	k.Tell(h, id, compute.Observation{Power: compute.Crashed, Trouble: "It died."})
	k.pass(2 * time.Minute)
	if s := k.Server(id); s.Stage() != compute.Stopped || s.Power != compute.Off {
		t.Errorf("it is %+v", s)
	}
}

func TestACrashedGuestCanBeStoppedWhileItWaits(t *testing.T) {
	k := newKeeper(t, 1)
	id := k.Launch(compute.Launch{})[0]
	k.Settle()
	k.Tell(k.HostOf(id), id, compute.Observation{Power: compute.Crashed, Trouble: "It died."})
	k.Must(k.Compute.Do(k.Ctx, id, compute.Stopping))
	k.pass(2 * time.Minute)
	if s := k.Server(id); s.Stage() != compute.Stopped || s.Task != "" || s.Seen.Power != compute.Off {
		t.Errorf("it is %+v", s)
	}
}
