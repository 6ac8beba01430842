package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// These tests kill agents: real processes, by SIGKILL, at every step that the
// driver names. An agent is this test program, started with a task.

const taskVariable = "UNKAI_QEMU_TEST_TASK"

func TestMain(m *testing.M) {
	for variable, do := range map[string]func(string) error{taskVariable: doTask, journeyVariable: doJourney} {
		path := os.Getenv(variable)
		if path == "" {
			continue
		}
		if err := do(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A task is a guest's life, up to the first step that no agent has died at yet.
type task struct {
	Options struct {
		Dir, Cgroup string
	}
	Guest   compute.Guest
	Image   compute.ImageRef
	Path    string // the image's, which is not for the wire; nor is the tap
	NIC     compute.NIC
	Tap     compute.Tap
	Phase   int             // the first one not yet lived through
	Died    map[string]bool // steps at which agents have died; nil for not at all
	Reached string          // the step at which this one did
	Steps   []string        // all that were passed
}

func (k *task) save(path string) error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// A phase is one wish of the owner, and what is to come of it.
type phase struct {
	name  string
	wish  func(*task, *compute.Guest)
	first func(*life) error // done before the wish; may come again
	power compute.Power
}

// A life is a guest with its present agent.
type life struct {
	*task
	driver *Driver
	ctx    context.Context
	want   compute.Guest
}

var phases = []phase{
	{"made", func(k *task, g *compute.Guest) {}, nil, compute.On},
	{"devices attached", func(k *task, g *compute.Guest) {
		g.Disks = append(g.Disks, compute.Disk{Name: "more", SizeMiB: 2, Label: "more"}, compute.Disk{Name: "copy", Image: &k.Image})
		g.NICs = []compute.NIC{k.NIC}
	}, nil, compute.On},
	{"disk grown", func(k *task, g *compute.Guest) { g.Disks[1].SizeMiB = 4 }, nil, compute.On},
	{"saved", func(k *task, g *compute.Guest) { g.Power = compute.Suspended }, (*life).prompt, compute.Suspended},
	{"resumed", func(k *task, g *compute.Guest) { g.Power = compute.On }, nil, compute.On},
	{"devices detached", func(k *task, g *compute.Guest) { g.Disks, g.NICs = g.Disks[:1], nil }, (*life).prompt, compute.On},
	{"soft reboot", func(k *task, g *compute.Guest) { g.SoftBoots++ }, (*life).prompt, compute.On},
	{"stopped", func(k *task, g *compute.Guest) { g.Power = compute.Off }, (*life).prompt, compute.Off},
	{"started", func(k *task, g *compute.Guest) { g.Power = compute.On }, nil, compute.On},
	{"copied", func(k *task, g *compute.Guest) { g.Snapshot = &compute.Snapshot{Number: 1} }, nil, compute.On},
	{"copied anew", func(k *task, g *compute.Guest) { g.Snapshot = &compute.Snapshot{Number: 2} }, nil, compute.On},
	{"without its copy", func(k *task, g *compute.Guest) { g.Snapshot = nil }, nil, compute.On},
	{"hard reboot", func(k *task, g *compute.Guest) { g.HardBoots++ }, nil, compute.On},
	{"rebuilt", func(k *task, g *compute.Guest) { g.Rebuilds++ }, nil, compute.On},
	{"switched off by itself", func(k *task, g *compute.Guest) {}, func(l *life) error {
		typed := false
		for {
			if o, err := l.driver.Observe(l.ctx, l.want.ID); err != nil || o.Power == compute.Off {
				return err
			}
			if !typed {
				if err := l.types("o"); err != nil {
					return err
				}
				typed = true
			}
			time.Sleep(time.Millisecond)
		}
	}, compute.Off},
	{"wished off too", func(k *task, g *compute.Guest) { g.Power = compute.Off }, nil, compute.Off},
	{"started paused", func(k *task, g *compute.Guest) { g.Power = compute.Paused }, nil, compute.Paused},
}

// types sends a character until the guest takes it.
func (l *life) types(command string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		conn, err := l.driver.Console(l.ctx, l.want.ID, "serial")
		if err == nil {
			conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err = conn.Write([]byte(command)); err == nil {
				_, err = conn.Read(make([]byte, 1))
			}
			conn.Close()
			if err == nil {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the guest does not take %q: %w", command, err)
		}
	}
}

// prompt waits until the guest's operating system obeys.
func (l *life) prompt() error {
	if o, err := l.driver.Observe(l.ctx, l.want.ID); err != nil || o.Power != compute.On {
		return err // the phase had begun already
	}
	return l.types(" ")
}

// reach is what an agent does with a wish.
func (l *life) reach(power compute.Power) error {
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		o, c, err := l.step()
		if err != nil {
			return err
		}
		if c.Trouble != "" {
			return errors.New(c.Trouble)
		}
		if !o.Busy && c.Done {
			if o.Power != power || o.Trouble != "" || o.HardBoots != l.want.HardBoots || o.SoftBoots != l.want.SoftBoots || o.Rebuilds != l.want.Rebuilds {
				return fmt.Errorf("came to %+v", o)
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("busy for ever: %+v", o)
		}
	}
}

// step is one step of an agent. There is nothing to wait for where no copy is wished for.
func (l *life) step() (compute.Observation, compute.Copy, error) {
	if l.want.Snapshot != nil {
		return l.driver.Snapshot(l.ctx, l.want)
	}
	o, err := l.driver.Ensure(l.ctx, l.want)
	return o, compute.Copy{Done: true}, err
}

func doTask(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var k task
	if err := json.Unmarshal(data, &k); err != nil {
		return err
	}
	l := &life{task: &k, ctx: context.Background(), want: k.Guest}
	k.NIC.Tap, k.Image.Path = k.Tap, k.Path
	l.want.Disks[0].Image = &k.Image
	l.driver, err = open(Options{Dir: k.Options.Dir, Cgroup: k.Options.Cgroup, Accel: accelTCG, AllowLooseJails: true, Log: slog.New(slog.DiscardHandler)}, func(name string) {
		k.Steps = append(k.Steps, name)
		if k.Died != nil && !k.Died[name] {
			k.Reached = name
			if k.save(path) == nil {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	})
	if err != nil {
		return err
	}
	for i, p := range phases {
		p.wish(&k, &l.want)
		if i < k.Phase {
			continue
		}
		if p.first != nil {
			if err := p.first(l); err != nil {
				return fmt.Errorf("before %s: %w", p.name, err)
			}
		}
		if err := l.reach(p.power); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		k.Phase = i + 1
	}
	if err := l.driver.Remove(l.ctx, l.want.ID); err != nil {
		return err
	}
	k.Phase++
	return errors.Join(k.save(path), l.driver.Close())
}

// newTask makes a host and a guest for agents to die over.
func newTask(t *testing.T) (*host, *task, string) {
	if os.Geteuid() != 0 {
		t.Skip("taps take root")
	}
	h := newHost(t)
	t.Cleanup(func() { // a failed test must not leave a guest
		d, err := New(h.options(t))
		if err != nil {
			t.Error(err)
			return
		}
		h.clear(t, d)
	})
	k := &task{Guest: h.guest(t), Image: h.image, Path: h.image.Path, Tap: h.tap(t)}
	k.Options.Dir, k.Options.Cgroup = filepath.Join(h.dir, "qemu"), h.cgroup
	k.NIC = compute.NIC{PortID: resource.NewID(time.Now(), nil), MAC: "52:54:00:00:00:77"}
	k.Died = map[string]bool{}
	path := filepath.Join(h.dir, "task.json")
	if err := k.save(path); err != nil {
		t.Fatal(err)
	}
	return h, k, path
}

// agent runs one agent, and tells the step at which it died: "" if it lived.
func (k *task) agent(t *testing.T, path string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), taskVariable+"="+path)
	out, err := cmd.CombinedOutput()
	if data, readErr := os.ReadFile(path); readErr != nil || json.Unmarshal(data, k) != nil {
		t.Fatalf("the task is lost: %v", readErr)
	}
	if err == nil {
		return ""
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL || k.Reached == "" {
		t.Fatalf("after agents died at %q, the next one says: %v\n%s", k.Steps, err, out)
	}
	reached := k.Reached
	k.Died[reached], k.Reached, k.Steps = true, "", nil
	if err := k.save(path); err != nil {
		t.Fatal(err)
	}
	return reached
}

// unreached are steps at which no agent dies in this life: they need a guest
// that does not obey, or a host that fails, and the contract has those cases.
var unreached = []string{"launch given up", "stop forgotten", "save given up", "memory running again", "copy given up"}

// TestAgentsDieAtEveryStep lets one guest live through everything, while each
// agent dies at the first step at which none has died before. Its owner must
// not notice; nor may anything be left in the end.
func TestAgentsDieAtEveryStep(t *testing.T) {
	t.Parallel()
	h, k, path := newTask(t)
	var died []string
	for {
		step := k.agent(t, path)
		if step == "" {
			break
		}
		died = append(died, step)
	}
	t.Logf("%d agents died, at: %s", len(died), strings.Join(died, ", "))
	if k.Phase != len(phases)+1 {
		t.Errorf("the guest lived to phase %d of %d", k.Phase, len(phases)+1)
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	for _, step := range steps(t, func(file string) bool { return !moveSources(file) && !sharedSources(file) }) {
		if !k.Died[step] && !slices.Contains(unreached, step) {
			t.Errorf("no agent died at %q", step)
		}
	}
}

// moveSources are the files whose steps only a guest goes through that goes to another host.
func moveSources(file string) bool {
	return slices.Contains([]string{"arrive.go", "depart.go", "emulated.go", "ferry.go", "luggage.go", "mirror.go", "peers.go"}, file)
}

// sharedSources are those of guests whose disks are on shared storage: see TestAgentsDieWhileTheyClaim.
func sharedSources(file string) bool {
	return slices.Contains([]string{"claim.go", "kept.go", "storage.go"}, file)
}

// steps are all that the source names in some files.
func steps(t *testing.T, in func(file string) bool) []string {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || !in(file) {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:write|step|dropMemory)\("([^"]+)"`).FindAllSubmatch(source, -1) {
			names = append(names, string(m[1]))
		}
	}
	if len(names) == 0 {
		t.Fatal("no steps found: this looks in the wrong place")
	}
	return names
}

// TestRemoveAfterAgentsDied removes the guest at each step of its first phases.
func TestRemoveAfterAgentsDied(t *testing.T) {
	t.Parallel()
	h, k, path := newTask(t)
	for removed := 0; ; removed++ {
		step := k.agent(t, path)
		if step == "" || k.Phase > 1 {
			t.Fatalf("the guest lived on to phase %d", k.Phase)
		}
		d, err := New(h.options(t))
		if err != nil {
			t.Fatalf("after a death at %q: %v", step, err)
		}
		if err := d.Remove(t.Context(), k.Guest.ID); err != nil {
			t.Errorf("after a death at %q: %v", step, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left := h.leftovers(t); len(left) > 0 {
			t.Errorf("after a death at %q and a removal there is left: %q", step, left)
		}
		if step == "start complete" {
			t.Logf("removed at %d steps", removed+1)
			return
		}
	}
}
