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
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// These tests kill the agents of two hosts while a guest goes from one to the other, at every step that either driver names. An
// agent is this test program; it also does what a controller does of a move.

const journeyVariable = "UNKAI_QEMU_TEST_JOURNEY"

// A journey is a guest's way there, live, and back, off; up to the first step that no agent has died at yet.
type journey struct {
	Dirs, Cgroups, Images [2]string // of the hosts
	Guest                 compute.Guest
	Image                 compute.ImageRef

	Move    int // the number of the move under way, or of the next
	Begun   bool
	Given   bool // the server is the new host's
	Phase   int
	Started time.Time // the guest's process, as it is to stay while it goes live
	Missed  int       // moves that were given up

	Died    map[string]bool
	Reached string
}

func (k *journey) save(path string) error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func doJourney(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var k journey
	if err := json.Unmarshal(data, &k); err != nil {
		return err
	}
	w := &wire{}
	t := &plainTB{}
	var drivers [2]*Driver
	for n := range drivers {
		drivers[n], err = open(Options{Dir: k.Dirs[n], Cgroup: k.Cgroups[n], Accel: accelTCG, AllowLooseJails: true, Log: slog.New(slog.DiscardHandler)}, func(name string) {
			step := fmt.Sprintf("%d %s", n, name)
			if k.Phase == 0 || k.Died[step] {
				return
			}
			k.Reached = step
			if k.save(path) == nil {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		})
		if err != nil {
			return err
		}
		w.join(t, &host{dir: filepath.Dir(k.Dirs[n])}, drivers[n])
	}
	want := func(n int) compute.Guest {
		g := k.Guest
		image := k.Image
		image.Path = k.Images[n]
		g.Disks = slices.Clone(g.Disks)
		g.Disks[0].Image = &image
		return g
	}
	ctx := context.Background()
	if k.Phase == 0 {
		o, err := reachIn(drivers[0], want(0), compute.On)
		if err != nil {
			return err
		}
		k.Started, k.Phase, k.Move = o.StartedAt, 1, 1
	}
	for k.Phase < 3 {
		from, to, live := k.Phase-1, 2-k.Phase, k.Phase == 1
		over, err := k.step(ctx, drivers[from], drivers[to], want(from), want(to), live)
		if err != nil {
			return fmt.Errorf("phase %d, move %d: %w", k.Phase, k.Move, err)
		}
		if over {
			k.Phase++
		}
		if err := k.save(path); err != nil {
			return err
		}
	}
	var failures []error
	for _, d := range drivers {
		failures = append(failures, d.Remove(ctx, k.Guest.ID), d.Close())
	}
	return errors.Join(failures...)
}

// step takes the journey as far as a controller would at one go; over: the guest is where it was to go, and nowhere else.
func (k *journey) step(ctx context.Context, from, to *Driver, leaving, arriving compute.Guest, live bool) (over bool, err error) {
	if k.Given {
		o, err := reachIn(to, arriving, compute.On)
		if err != nil {
			return false, fmt.Errorf("on the new host: %w", err)
		}
		if live && !o.StartedAt.Equal(k.Started) {
			return false, fmt.Errorf("it was started again at %v after %v", o.StartedAt, k.Started)
		}
		if err := from.Remove(ctx, leaving.ID); err != nil {
			return false, err
		}
		k.Given, k.Started = false, o.StartedAt
		k.Move++
		return true, nil
	}
	home := leaving
	arriving.Arrive = &compute.Arrive{Move: k.Move, Live: live}
	leaving.Leave = &compute.Leave{Move: k.Move, Live: live}
	if !live {
		leaving.Power = compute.Off
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		there, err := to.Receive(ctx, arriving)
		if err != nil {
			return false, fmt.Errorf("receive: %w", err)
		}
		// Where was told once; the port of a new process is another, which a real host's is not.
		leaving.Leave.Where = there.Where
		seen, here, err := from.Send(ctx, leaving)
		if err != nil {
			return false, fmt.Errorf("send: %w", err)
		}
		if o, err := to.Observe(ctx, arriving.ID); err == nil && o.Power == compute.On {
			return false, fmt.Errorf("it runs on the new host before it may; on the old one it is %v", seen.Power)
		}
		switch {
		case there.Trouble != "" || here.Trouble != "":
			k.Missed++
			k.Move++
			if err := to.Remove(ctx, arriving.ID); err != nil {
				return false, err
			}
			o, err := reachIn(from, home, compute.On)
			if err != nil {
				return false, fmt.Errorf("given up (%s %s): %w", there.Trouble, here.Trouble, err)
			}
			if live && !o.StartedAt.Equal(k.Started) {
				return false, fmt.Errorf("given up (%s %s) it was started again", there.Trouble, here.Trouble)
			}
			return false, nil
		case there.Done && here.Done:
			if seen.Power == compute.On {
				return false, errors.New("it was sent, and runs")
			}
			k.Given = true
			return false, nil
		}
	}
	return false, errors.New("it takes for ever")
}

func reachIn(d *Driver, want compute.Guest, power compute.Power) (compute.Observation, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		o, err := d.Ensure(context.Background(), want)
		switch {
		case err != nil:
			return o, err
		case !o.Busy && (o.Power != power || o.Trouble != ""), time.Now().After(deadline):
			return o, fmt.Errorf("came to %+v", o)
		case !o.Busy:
			return o, nil
		}
	}
}

// plainTB is as much of a test as a wire needs, in a program that is none.
type plainTB struct{ testing.TB }

func (plainTB) Helper()                  {}
func (plainTB) Cleanup(func())           {}
func (plainTB) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }
func (plainTB) Context() context.Context { return context.Background() }

// TestAgentsDieOnTheWay: whatever step they die at, the guest is on one host in the end, has run on one at a time, and when it went
// live, it has not been started again.
func TestAgentsDieOnTheWay(t *testing.T) {
	t.Parallel()
	a, b := newHost(t), newHost(t)
	for _, h := range []*host{a, b} {
		t.Cleanup(func() { // a failed test must not leave a guest
			d, err := New(h.options(t))
			if err != nil {
				t.Error(err)
				return
			}
			h.clear(t, d)
		})
	}
	k := &journey{Guest: a.guest(t), Image: a.image, Died: map[string]bool{}}
	for n, h := range []*host{a, b} {
		k.Dirs[n], k.Cgroups[n], k.Images[n] = filepath.Join(h.dir, "qemu"), h.cgroup, h.image.Path
	}
	k.Guest.GraceSeconds, k.Guest.MemoryMiB = 0, 256 // so that sending it takes a moment, for which it goes on
	path := filepath.Join(a.dir, "journey.json")
	if err := k.save(path); err != nil {
		t.Fatal(err)
	}
	var died []string
	for {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), journeyVariable+"="+path)
		out, err := cmd.CombinedOutput()
		if data, readErr := os.ReadFile(path); readErr != nil || json.Unmarshal(data, k) != nil {
			t.Fatalf("the journey is lost: %v", readErr)
		}
		if err == nil {
			break
		}
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL || k.Reached == "" {
			t.Fatalf("after agents died at %q, the next one says: %v\n%s", died, err, out)
		}
		died = append(died, k.Reached)
		k.Died[k.Reached], k.Reached = true, ""
		if err := k.save(path); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d agents died, %d moves were given up for it; at: %s", len(died), k.Missed, strings.Join(died, ", "))
	for _, h := range []*host{a, b} {
		if left := h.leftovers(t); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	}
	for _, step := range steps(t, moveSources) {
		if !k.Died["0 "+step] && !k.Died["1 "+step] {
			t.Errorf("no agent died at %q", step)
		}
	}
}
