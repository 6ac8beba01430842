package alert

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A rig is a state on a clock, a keeper, and one who is told.
type rig struct {
	*Keeper
	t      *testing.T
	engine *state.Memory
	clock  time.Time
	facts  Facts
	ctx    context.Context
	heard  []string
	fails  error
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, facts: Facts{Machines: make([]Machine, 1)}, engine: state.NewMemory(0), clock: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), ctx: identity.Internal(t.Context())}
	r.restart()
	return r
}

// restart is a new process on the same state.
func (r *rig) restart() {
	r.t.Helper()
	s, err := state.Open(r.t.Context(), r.engine, state.Options{Now: func() time.Time { return r.clock }})
	if err != nil {
		r.t.Fatal(err)
	}
	r.Keeper = &Keeper{State: s, Cloud: "here", Senders: map[string]Sender{"webhook": r}, Facts: func() Facts {
		f := r.facts
		f.Now = r.clock
		return f
	}}
}

func (r *rig) Send(_ context.Context, t *Target, n Notice) error {
	if r.fails != nil {
		return r.fails
	}
	r.heard = append(r.heard, strings.TrimSpace(fmt.Sprintf("%s: %s %s %s", t.Name, n.Event, n.Rule, n.Subject)))
	return nil
}

// machine is the only controller's.
func (r *rig) machine() *Machine { return &r.facts.Machines[0] }

// round passes some time, looks and tells, and gives what was heard.
func (r *rig) round(pass time.Duration) []string {
	r.t.Helper()
	r.clock = r.clock.Add(pass)
	r.heard = nil
	if err := errors.Join(r.Look(r.ctx), r.Tell(r.ctx)); err != nil {
		r.t.Fatal(err)
	}
	return r.heard
}

func (r *rig) want(pass time.Duration, want ...string) {
	r.t.Helper()
	if got := r.round(pass); !slices.Equal(got, want) {
		r.t.Errorf("heard %q, want %q", got, want)
	}
}

func hook(name string) Target {
	return Target{Meta: resource.Meta{Name: name}, Kind: "webhook", URL: "https://example.org/key", Secret: "0123456789abcdef"}
}

func (r *rig) add(t Target) {
	r.t.Helper()
	if err := (&Service{r.State}).Add(r.ctx, t); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) newHost(name string) resource.ID {
	r.t.Helper()
	id := resource.NewID(r.clock, nil)
	if err := host.Arrive(r.ctx, r.State, id, host.Hello{Name: name}); err != nil {
		r.t.Fatal(err)
	}
	return id
}

func TestAHostThatIsLostIsToldOnceAndSoIsItsReturn(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	id := r.newHost("node-1")
	r.want(time.Minute)
	if err := host.Lose(r.ctx, r.State, id); err != nil {
		t.Fatal(err)
	}
	r.want(time.Minute, "ops: raised host-lost node-1")
	r.want(time.Minute)
	r.restart()
	r.want(time.Minute)
	if open := Opened(r.State.Latest()); len(open) != 1 || open[0].Severity != Critical || !strings.Contains(open[0].Text, "node-1") {
		t.Errorf("there are %+v", open)
	}
	if err := host.Arrive(r.ctx, r.State, id, host.Hello{Name: "node-1"}); err != nil {
		t.Fatal(err)
	}
	r.want(time.Minute, "ops: resolved host-lost node-1")
	r.restart()
	before := r.State.Latest().Revision()
	r.want(time.Minute)
	if r.State.Latest().Revision() != before {
		t.Error("what is no news is written")
	}
	if err := host.Lose(r.ctx, r.State, id); err != nil { // again is another time
		t.Fatal(err)
	}
	r.want(time.Minute, "ops: raised host-lost node-1")
}

// A host falls mute for a moment before it is lost, which is told itself; one that stays mute and is heard is told.
func TestAHostThatStaysMuteIsTold(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	id := r.newHost("node-1")
	mute := func(is bool) {
		t.Helper()
		if err := r.State.Update(r.ctx, func(tx *state.Tx) error { return host.Mute(tx, id, is) }); err != nil {
			t.Fatal(err)
		}
	}
	mute(true)
	r.want(30 * time.Second)
	r.want(time.Minute, "ops: raised host-mute node-1")
	mute(false)
	r.want(time.Minute, "ops: resolved host-mute node-1")
	mute(true)
	if err := host.Lose(r.ctx, r.State, id); err != nil {
		t.Fatal(err)
	}
	r.want(2*time.Minute, "ops: raised host-lost node-1")
}

func TestAStorageThatHangsIsTold(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	id := resource.NewID(r.clock, nil)
	if err := host.Arrive(r.ctx, r.State, id, host.Hello{Name: "node-1", Capacity: host.Capacity{Storage: "nas"}}); err != nil {
		t.Fatal(err)
	}
	away := func(why string) {
		t.Helper()
		if err := r.State.Update(r.ctx, func(tx *state.Tx) error { return host.KeepFromStorage(tx, id, why) }); err != nil {
			t.Fatal(err)
		}
	}
	away("it does not answer")
	r.want(50 * time.Second) // a file server that is started anew
	away("")
	r.want(time.Minute)
	away("it does not answer")
	r.want(30 * time.Second)
	away("stale file handle")
	r.want(40*time.Second, "ops: raised storage-hangs node-1")
	if open := Opened(r.State.Latest()); len(open) != 1 || open[0].Severity != Critical || !strings.Contains(open[0].Text, "stale file handle") {
		t.Errorf("there are %+v", open)
	}
	r.want(time.Hour)
	away("")
	r.want(time.Minute, "ops: resolved storage-hangs node-1")
	away("it does not answer")
	if err := r.State.Update(r.ctx, func(tx *state.Tx) error {
		h, _ := host.Find(tx, id)
		h.Maintenance = true
		return host.Table().Put(tx, h)
	}); err != nil {
		t.Fatal(err)
	}
	r.want(time.Hour)
}

func TestAHostWhoseDiskFillsIsTold(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	id := r.newHost("node-1")
	fill := func(free int) {
		t.Helper()
		if err := r.State.Update(r.ctx, func(tx *state.Tx) error { return host.Fill(tx, id, host.Free{Own: free, Shared: 100}) }); err != nil {
			t.Fatal(err)
		}
	}
	says := func(severity Severity, text string) {
		t.Helper()
		if open := Opened(r.State.Latest()); len(open) != 1 || open[0].Severity != severity || !strings.Contains(open[0].Text, text) {
			t.Errorf("there are %+v", open)
		}
	}
	fill(11)
	r.want(time.Minute)
	fill(10)
	r.want(time.Minute, "ops: raised disk-filling host node-1")
	says(Warning, "A disk of host node-1, with its data directory or its guests' disks, has little room left, 15 % or less, since 2030-")
	for _, free := range []int{11, 9, 15, 4} {
		fill(free)
		r.want(time.Minute)
	}
	fill(3)
	r.want(time.Minute, "ops: resolved disk-filling host node-1", "ops: raised disk-full host node-1")
	says(Critical, "is nearly full")
	fill(5)
	r.want(time.Minute)
	fill(8)
	r.want(time.Minute, "ops: resolved disk-full host node-1", "ops: raised disk-filling host node-1")
	fill(16)
	r.want(time.Minute, "ops: resolved disk-filling host node-1")
	fill(1)
	r.want(time.Minute, "ops: raised disk-full host node-1")
	if err := host.Lose(r.ctx, r.State, id); err != nil { // nobody knows
		t.Fatal(err)
	}
	r.want(time.Minute, "ops: resolved disk-full host node-1", "ops: raised host-lost node-1")
}

// A storage is the same for all hosts that share it.
func TestAStorageThatFillsIsToldOnce(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	ids := map[string]resource.ID{}
	for _, name := range []string{"a", "b", "c"} {
		r.clock = r.clock.Add(time.Second)
		ids[name] = resource.NewID(r.clock, nil)
		if err := host.Arrive(r.ctx, r.State, ids[name], host.Hello{Name: name, Capacity: host.Capacity{Storage: "nas"}}); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(name string, free int) {
		t.Helper()
		if err := r.State.Update(r.ctx, func(tx *state.Tx) error { return host.Fill(tx, ids[name], host.Free{Own: 100, Shared: free}) }); err != nil {
			t.Fatal(err)
		}
	}
	fill("b", 9)
	r.want(time.Minute, "ops: raised disk-filling storage nas")
	fill("a", 9)
	r.want(time.Minute)
	if open := Opened(r.State.Latest()); len(open) != 1 || !strings.Contains(open[0].Text, "(a and 1 more say so)") {
		t.Errorf("there are %+v", open)
	}
	fill("b", 2)
	r.want(time.Minute, "ops: resolved disk-filling storage nas", "ops: raised disk-full storage nas")
	fill("a", 2)
	fill("c", 2)
	r.want(time.Minute)
	for name := range ids {
		fill(name, 50)
	}
	r.want(time.Minute, "ops: resolved disk-full storage nas")
}

func TestAHostWhoseClockIsOffIsTold(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	id := r.newHost("node-1")
	off := func(by time.Duration) {
		t.Helper()
		if err := r.State.Update(r.ctx, func(tx *state.Tx) error { return host.SetClock(tx, id, by) }); err != nil {
			t.Fatal(err)
		}
	}
	off(-5 * time.Second)
	r.want(30 * time.Second) // it was switched on, and is about to be set
	off(0)
	r.want(time.Minute)
	off(-5 * time.Second)
	r.want(time.Minute, "ops: raised clock-off host node-1")
	off(-30 * time.Second)
	r.want(30 * time.Second)
	off(-time.Hour)
	r.want(time.Minute)
	if open := Opened(r.State.Latest()); len(open) != 1 || open[0].Severity != Warning || !strings.Contains(open[0].Text, "The clock of host node-1 is off: 1 h or more behind at 2030-") {
		t.Errorf("there are %+v", open)
	}
	off(0)
	r.want(time.Minute, "ops: resolved clock-off host node-1")
	off(time.Hour)
	if err := r.State.Update(r.ctx, func(tx *state.Tx) error {
		h, _ := host.Find(tx, id)
		h.Maintenance = true
		return host.Table().Put(tx, h)
	}); err != nil {
		t.Fatal(err)
	}
	r.want(time.Minute)
}

func TestAHostThatOthersDoNotReachIsTold(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	ids := map[string]resource.ID{}
	says := func(name, address string, mtu int) {
		t.Helper()
		if ids[name].IsZero() {
			r.clock = r.clock.Add(time.Second)
			ids[name] = resource.NewID(r.clock, nil)
		}
		hello := host.Hello{Name: name, Address: netip.MustParseAddr(address), MTU: mtu}
		if err := host.Arrive(r.ctx, r.State, ids[name], hello); err != nil {
			t.Fatal(err)
		}
	}
	says("node-1", "192.0.2.1", 0)
	says("node-2", "192.0.2.2", 0)
	r.want(time.Minute)
	says("node-2", "192.0.2.1", 0)
	r.want(time.Minute, "ops: raised host-apart node-1", "ops: raised host-apart node-2")
	for _, a := range Opened(r.State.Latest()) {
		if !strings.Contains(a.Text, "Until then no new guest is placed there.") {
			t.Errorf("operators are told %q", a.Text)
		}
	}
	says("node-2", "192.0.2.2", 1300)
	r.want(time.Minute, "ops: resolved host-apart node-1", "ops: resolved host-apart node-2", "ops: raised host-wire node-2")
	if text := Opened(r.State.Latest())[0].Text; !strings.Contains(text, "Until then no new guest is placed there.") {
		t.Errorf("operators are told %q", text)
	}
	says("node-2", "192.0.2.2", 1500)
	r.want(time.Minute, "ops: resolved host-wire node-2")
}

func TestAHostWhoseCertificateEndsIsTold(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	id := resource.NewID(r.clock, nil)
	arrive := func(ends time.Time) {
		t.Helper()
		if err := host.Arrive(r.ctx, r.State, id, host.Hello{Name: "node-1", CertificateEnds: ends}); err != nil {
			t.Fatal(err)
		}
	}
	arrive(r.clock.Add(30 * 24 * time.Hour))
	r.want(time.Minute)
	r.want(10*24*time.Hour, "ops: raised certificate-ends host node-1")
	arrive(r.clock.Add(90 * 24 * time.Hour))
	r.want(time.Minute, "ops: resolved certificate-ends host node-1")
}

func TestATargetThatFailsIsToldLater(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	r.machine().Ahead = time.Hour
	r.fails = errors.New("nobody is there")
	r.want(time.Minute)
	told := Opened(r.State.Latest())[0].Told
	if len(told) != 1 || told[0].Failures != 1 || told[0].Trouble != "nobody is there" {
		t.Errorf("it is noted as %+v", told)
	}
	r.want(firstRetry + time.Second)
	if told = Opened(r.State.Latest())[0].Told; told[0].Failures != 2 {
		t.Errorf("it is noted as %+v", told)
	}
	r.restart()
	r.fails = nil
	r.want(firstRetry) // not yet
	r.want(firstRetry+time.Second, "ops: raised clock-ahead")
	for range 100 {
		r.fails = errors.New("again")
		r.machine().Ahead = 0
		r.round(2 * time.Hour)
	}
	r.fails = nil
	r.want(lastRetry+time.Second, "ops: resolved clock-ahead")

	// What was over before it could be told is told all the same, both of it; not after a day.
	r.fails = errors.New("again")
	r.machine().Ahead = time.Hour
	r.want(time.Minute)
	r.machine().Ahead = 0
	r.want(time.Minute)
	r.fails = nil
	r.want(lastRetry, "ops: raised clock-ahead")
	r.want(time.Minute, "ops: resolved clock-ahead")
	r.want(time.Minute)
	r.fails = errors.New("again")
	r.machine().Ahead = time.Hour
	r.want(time.Minute)
	r.machine().Ahead = 0
	r.want(time.Minute)
	r.want(newsFor)
	r.fails = nil
	r.want(lastRetry)
}

// That an alert is over is tried at once, however long its beginning could not be told.
func TestATargetThatFailedIsToldOfTheEnd(t *testing.T) {
	r := newRig(t)
	r.add(hook("ops"))
	r.machine().Ahead = time.Hour
	r.fails = errors.New("nobody is there")
	for range 20 {
		r.want(lastRetry)
	}
	r.fails = nil
	r.machine().Ahead = 0
	r.want(time.Second, "ops: raised clock-ahead")
	r.want(time.Second, "ops: resolved clock-ahead")
}

// What an alert says follows what it is about, a minute apart at least, and is no news to those who know of it.
func TestWhatAnAlertSaysFollowsHowItIs(t *testing.T) {
	const gib = 1 << 30
	r := newRig(t)
	r.add(hook("ops"))
	r.machine().Disk = Disk{9 * gib, 100 * gib}
	r.want(0, "ops: raised disk-filling")
	raised := *Opened(r.State.Latest())[0]
	says := func(pass time.Duration, free int64, want string, writes int64) {
		t.Helper()
		before := r.State.Latest().Revision()
		r.machine().Disk.Free = free
		r.want(pass)
		a := Opened(r.State.Latest())[0]
		if !strings.Contains(a.Text, want) {
			t.Errorf("it says %q, want %q in it", a.Text, want)
		}
		if got := r.State.Latest().Revision() - before; got != writes {
			t.Errorf("%d changes were written, want %d", got, writes)
		}
		if a.ID != raised.ID || !a.CreatedAt.Equal(raised.CreatedAt) || !slices.Equal(a.Told, []Told{{TargetID: a.Told[0].TargetID, Raised: true}}) {
			t.Errorf("it is another alert: %+v", a)
		}
	}
	says(15*time.Second, 8*gib, "has 9216 of", 0)
	says(45*time.Second, 7*gib, "has 7168 of", 1)
	says(15*time.Second, 6*gib, "has 7168 of", 0)
	r.restart()
	says(44*time.Second, 6*gib, "has 7168 of", 0)
	says(time.Second, 6*gib, "has 6144 of", 1)
	says(time.Hour, 6*gib, "has 6144 of", 0)
	r.machine().Disk.Free = 50 * gib
	r.want(time.Minute, "ops: resolved disk-filling")
	if a, _ := alerts.PeekOne(r.State.Latest(), raised.ID); !strings.Contains(a.Text, "has 6144 of") {
		t.Errorf("over, it says %q", a.Text)
	}
}

func TestWhoIsTold(t *testing.T) {
	r := newRig(t)
	r.machine().Ahead = time.Hour
	r.want(time.Minute) // nobody
	r.add(hook("first"))
	r.want(time.Minute, "first: raised clock-ahead")
	r.add(hook("second"))
	r.want(time.Minute, "second: raised clock-ahead")
	if err := (&Service{r.State}).Remove(r.ctx, "first"); err != nil {
		t.Fatal(err)
	}
	r.machine().Ahead = 0
	r.want(time.Minute, "second: resolved clock-ahead")
	r.add(hook("third"))
	r.want(time.Minute) // what is over is no news to it
	if err := r.Test(r.ctx, "third"); err != nil || !slices.Equal(r.heard, []string{"third: test test"}) {
		t.Errorf("a test: %v, %v", r.heard, err)
	}
	if err := r.Test(r.ctx, "nobody"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a test of nobody: %v", err)
	}
}

func TestWhatTargetsAreRefused(t *testing.T) {
	r := newRig(t)
	s := &Service{r.State}
	letter := Target{Meta: resource.Meta{Name: "m"}, Kind: "mail", Server: "smtp://mail.example.org:587", From: "a@example.org", To: []string{"b@example.org"}}
	for what, edit := range map[string]func(*Target){
		"a name with a slash":      func(t *Target) { t.Name = "a/b" },
		"no kind":                  func(t *Target) { t.Kind = "" },
		"another scheme":           func(t *Target) { t.Server = "http://mail" },
		"a password in the server": func(t *Target) { t.Server = "smtp://u:p@mail" },
		"nobody to mail to":        func(t *Target) { t.To = nil },
		"a header in an address":   func(t *Target) { t.To = []string{"a@b\r\nBcc: c@d"} },
		"no sender":                func(t *Target) { t.From = "" },
		"a password of nobody":     func(t *Target) { t.Password = "p" },
		"a short secret":           func(t *Target) { *t = hook("m"); t.Secret = "short" },
		"an address of a file":     func(t *Target) { *t = hook("m"); t.URL = "file:///etc/passwd" },
	} {
		bad := letter
		edit(&bad)
		if err := s.Add(r.ctx, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	r.add(letter)
	if err := s.Add(r.ctx, letter); !fault.Is(err, fault.Exists) {
		t.Errorf("the same name twice: %v", err)
	}
	someone := identity.As(t.Context(), &identity.Actor{UserID: resource.NewID(r.clock, nil), Roles: []string{"member"}})
	if err := s.Add(someone, hook("theirs")); err == nil {
		t.Error("anybody may add one")
	}
	if err := s.Remove(someone, "m"); err == nil {
		t.Error("anybody may remove one")
	}
}

func TestRules(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		facts []func(*Facts) // one after the other
		want  []string       // what is heard after each
	}{
		"a store that fills, and is emptied": {
			[]func(*Facts){
				func(f *Facts) { f.Store = state.Room{Used: 79, Quota: 100} },
				func(f *Facts) { f.Store.Used = 80 },
				func(f *Facts) { f.Store.Used = 75 },
				func(f *Facts) { f.Store.Used = 100 },
				func(f *Facts) { f.Store.Used = 97 },
				func(f *Facts) { f.Store.Used = 60 },
			},
			[]string{"", "raised store-filling", "", "resolved store-filling raised store-full", "", "resolved store-full"},
		},
		"a disk that fills, and is emptied": {
			[]func(*Facts){
				func(f *Facts) { f.Machines[0].Disk = Disk{11 * gib, 100 * gib} },
				func(f *Facts) { f.Machines[0].Disk.Free = 10 * gib },
				func(f *Facts) { f.Machines[0].Disk.Free = 14 * gib },
				func(f *Facts) { f.Machines[0].Disk.Free = 2 * gib },
				func(f *Facts) { f.Machines[0].Disk.Free = 50 * gib },
			},
			[]string{"", "raised disk-filling", "", "resolved disk-filling raised disk-full", "resolved disk-full"},
		},
		"a certificate near its end": {
			[]func(*Facts){
				func(f *Facts) { f.Certificates = []Certificate{{Name: "api", Ends: f.Now.Add(30 * 24 * time.Hour)}} },
				func(f *Facts) { f.Certificates[0].Ends = f.Now.Add(20 * 24 * time.Hour) },
				func(f *Facts) { f.Certificates[0].Ends = f.Now.Add(-time.Hour) },
				func(f *Facts) { f.Certificates[0].Ends = f.Now.Add(365 * 24 * time.Hour) },
			},
			[]string{"", "raised certificate-ends api", "resolved certificate-ends api raised certificate-ended api", "resolved certificate-ended api"},
		},
		"a controller that is away": {
			[]func(*Facts){
				func(f *Facts) { f.Silences = []Silence{{"c2", 50 * time.Second}} },
				func(f *Facts) { f.Silences[0].For = 70 * time.Second },
				func(f *Facts) { f.Silences[0].For = 10 * time.Second }, // another looks, who has not seen how long
				func(f *Facts) { f.Silences = nil },
			},
			[]string{"", "raised controller-silent c2", "", "resolved controller-silent c2"},
		},
		"a clock that was set back": {
			[]func(*Facts){
				func(f *Facts) { f.Machines[0].Ahead = 90 * time.Second },
				func(f *Facts) { f.Machines[0].Ahead = 3 * time.Minute },
				func(f *Facts) { f.Machines[0].Ahead = 90 * time.Second },
				func(f *Facts) { f.Machines[0].Ahead = 30 * time.Second },
			},
			[]string{"", "raised clock-ahead", "", "resolved clock-ahead"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.add(hook("t"))
			for step, change := range c.facts {
				r.facts.Now = r.clock
				change(&r.facts)
				got := strings.ReplaceAll(strings.Join(r.round(time.Second), " "), "t: ", "")
				if got != c.want[step] {
					t.Errorf("step %d: heard %q, want %q", step, got, c.want[step])
				}
			}
		})
	}
}

// What one controller's machine lacks is not over because another leads, or because nobody answers there.
func TestMachinesOfSeveralControllers(t *testing.T) {
	r := newRig(t)
	r.add(hook("t"))
	for n, name := range []string{"c1", "c2"} {
		is := host.Controller{Member: uint64(n + 1)}
		is.Name = name
		if err := host.Present(r.ctx, r.State, is, &x509.Certificate{SerialNumber: big.NewInt(int64(n))}); err != nil {
			t.Fatal(err)
		}
	}
	ends := func(in time.Duration) []Certificate {
		return []Certificate{{Name: "https://0.0.0.0:8700", Ends: r.clock.Add(in)}}
	}
	well := Machine{Controller: "c1", Disk: Disk{90, 100}, Certificates: ends(100 * 24 * time.Hour)}
	full := Machine{Controller: "c2", Disk: Disk{1, 100}, Certificates: ends(-time.Hour)}
	ahead := Machine{Controller: "c2", Disk: Disk{90, 100}, Certificates: ends(100 * 24 * time.Hour), Off: -10 * time.Second}
	for _, step := range []struct {
		machines []Machine
		want     []string
	}{
		{[]Machine{well, full}, []string{"t: raised certificate-ended c2 https://0.0.0.0:8700", "t: raised disk-full c2"}},
		{[]Machine{well}, nil}, // it does not answer
		{[]Machine{well, full}, nil},
		{[]Machine{well, ahead}, []string{"t: resolved certificate-ended c2 https://0.0.0.0:8700", "t: raised clock-off c2", "t: resolved disk-full c2"}},
		{[]Machine{well}, nil},
	} {
		r.facts.Machines = step.machines
		got := r.round(time.Second)
		slices.Sort(got)
		slices.Sort(step.want)
		if !slices.Equal(got, step.want) {
			t.Errorf("heard %q, want %q", got, step.want)
		}
	}
	if err := host.Dismiss(r.ctx, r.State, "c2"); err != nil {
		t.Fatal(err)
	}
	r.want(time.Second, "t: resolved clock-off c2")
}

// What is about a host's machine ends also while a controller does not answer whose name is the word by which it begins.
func TestAHostsMachineIsNoControllers(t *testing.T) {
	r := newRig(t)
	r.add(hook("t"))
	r.facts.Machines = []Machine{{Controller: "c1"}}
	is := host.Controller{Member: 1}
	is.Name = "host"
	if err := host.Present(r.ctx, r.State, is, &x509.Certificate{SerialNumber: big.NewInt(1)}); err != nil {
		t.Fatal(err)
	}
	id := r.newHost("node-1")
	for _, step := range []struct {
		free int
		want string
	}{{1, "t: raised disk-full host node-1"}, {50, "t: resolved disk-full host node-1"}} {
		if err := r.State.Update(r.ctx, func(tx *state.Tx) error { return host.Fill(tx, id, host.Free{Own: step.free, Shared: 100}) }); err != nil {
			t.Fatal(err)
		}
		r.want(time.Second, step.want)
	}
}

func TestLeadersThatChange(t *testing.T) {
	r := newRig(t)
	r.add(hook("t"))
	var heard []string
	for n := range 7 {
		if err := host.Led(r.ctx, r.State, fmt.Sprint("c", n%3+1)); err != nil {
			t.Fatal(err)
		}
		heard = append(heard, r.round(5*time.Minute)...)
	}
	if len(heard) != 1 || heard[0] != "t: raised leader-changes" {
		t.Errorf("heard %q", heard)
	}
	if heard = r.round(35 * time.Minute); len(heard) != 0 {
		t.Errorf("when it is a little better: %q", heard)
	}
	if heard = r.round(20 * time.Minute); len(heard) != 1 || heard[0] != "t: resolved leader-changes" {
		t.Errorf("when it is well: %q", heard)
	}
	r.clock = r.clock.Add(48 * time.Hour)
	if err := host.Led(r.ctx, r.State, "c1"); err != nil {
		t.Fatal(err)
	}
	if n, last := host.Leads(r.State.Latest(), time.Time{}); n != 1 || last != "c1" {
		t.Errorf("%d are kept, the last of %s", n, last)
	}
}

func TestOperationsThatFailOrNeverEnd(t *testing.T) {
	r := newRig(t)
	r.add(hook("t"))
	begin := func(verb string, outcome operation.Outcome) {
		err := r.State.Update(r.ctx, func(tx *state.Tx) error {
			o, err := operation.Begin(tx, verb, "server", &resource.Meta{ID: tx.NewID()}, identity.ActorOf(r.ctx), time.Minute)
			if err != nil || outcome == operation.Running {
				return err
			}
			return operation.End(tx, o, outcome, "")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range failingMany - 1 {
		begin("create", operation.Failed)
	}
	r.want(time.Second)
	begin("create", operation.Failed)
	r.want(time.Second, "t: raised operations-failing create server")
	begin("live-migration", operation.Cancelled)
	r.want(time.Second)
	for range 20 {
		begin("live-migration", operation.Succeeded)
	}
	begin("live-migration", operation.Failed)
	r.want(time.Second, "t: raised operations-failing live-migration server")
	for range 100 {
		begin("reboot", operation.Succeeded)
		begin("reboot", operation.Failed)
	}
	r.want(time.Second, "t: raised operations-failing reboot server")
	r.want(failingSpan, "t: resolved operations-failing create server", "t: resolved operations-failing live-migration server", "t: resolved operations-failing reboot server")
	begin("resize", operation.Running)
	r.want(2 * time.Minute)
	r.want(2*time.Minute, "t: raised operations-overdue")
}

func TestOperationsThatAreSlow(t *testing.T) {
	r := newRig(t)
	r.add(hook("t"))
	var begun []resource.ID
	for range failingMany {
		err := r.State.Update(r.ctx, func(tx *state.Tx) error {
			o, err := operation.Begin(tx, "create", "server", &resource.Meta{ID: tx.NewID()}, identity.ActorOf(r.ctx), time.Minute)
			begun = append(begun, o.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.want(40 * time.Second)
	for _, id := range begun {
		err := r.State.Update(r.ctx, func(tx *state.Tx) error {
			o, err := operation.Table().Get(tx, id)
			if err != nil {
				return err
			}
			return operation.End(tx, o, operation.Succeeded, "")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.want(time.Second, "t: raised operations-slow create server")
	r.want(failingSpan, "t: resolved operations-slow create server")
}

func TestOldAlertsAreForgotten(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.machine().Ahead = time.Hour
		r.round(time.Minute)
		r.machine().Ahead = 0
		r.round(time.Minute)
	}
	if n := alerts.Len(r.State.Latest()); n != 3 {
		t.Errorf("%d are kept", n)
	}
	r.round(keepResolved + time.Hour)
	if n := alerts.Len(r.State.Latest()); n != 0 {
		t.Errorf("%d are kept for ever", n)
	}
}
