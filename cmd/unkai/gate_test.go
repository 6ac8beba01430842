package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/audit"
)

// executions is how often a process of TestWhoExecutesLives still executes its binary; a step of that, instead of tests.
const executions = "UNKAI_TEST_EXECUTIONS"

func executeAgain() {
	left, err := strconv.Atoi(os.Getenv(executions))
	if err != nil || left == 0 {
		os.Exit(0)
	}
	for range 20 { // threads, which all have to end first
		go func() {
			for {
				time.Sleep(time.Millisecond)
				syscall.Getpid()
			}
		}()
	}
	done := make(chan struct{})
	go func() { // hardly ever the first thread
		defer close(done)
		time.Sleep(2 * time.Millisecond)
		os.Setenv(executions, strconv.Itoa(left-1))
		syscall.Exec(os.Args[0], os.Args, os.Environ())
	}()
	<-done
	os.Exit(1)
}

// A process that executes another binary is never taken for one that has ended, whenever one looks; one that has ended is.
func TestWhoExecutesLives(t *testing.T) {
	t.Parallel()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), executions+"=60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ticks, _, err := lifeOf(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ended, between := time.Time{}, 0
	for deadline := time.Now().Add(time.Minute); ; {
		_, state, _ := lifeOf(c.Process.Pid)
		if lives(c.Process.Pid, ticks) {
			if !ended.IsZero() {
				t.Fatal("it was taken for one that has ended")
			}
			if state == 'Z' {
				between++
			}
		} else if ended.IsZero() {
			ended = time.Now()
		} else if time.Since(ended) > 200*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("its first thread was seen ended %d times", between)
	if lives(c.Process.Pid, ticks) {
		t.Error("it is gone, and lives")
	}
}

// tried is the data directory of a process that is tried, or goes on again, by TestTheGate; it does that instead of tests.
const tried = "UNKAI_TEST_TRIED"

// A bearing is how such a process behaves.
type bearing struct {
	Health                  health
	Found                   []audit.Finding
	Hangs, AuditHangs, Ends bool
	Stays                   bool // it does not make way
}

// beTried is the process: a control socket, and nothing behind it. What runs from the file called candidate is what is tried.
func beTried(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "the process that is tried:", err)
			os.Exit(1)
		}
	}
	exe, err := os.Executable()
	fail(err)
	is := "previous"
	if filepath.Base(exe) == "candidate" {
		is = "candidate"
	}
	text, err := os.ReadFile(filepath.Join(dir, is+".json"))
	fail(err)
	var b bearing
	fail(json.Unmarshal(text, &b))
	trial, err := loadTrial(dir)
	fail(err)
	l, err := openControl(dir)
	fail(err)
	hang := func(yes bool) {
		if yes {
			select {}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		hang(b.Hangs)
		if b.Ends {
			os.Exit(3)
		}
		answerControl(w, b.Health, nil)
	})
	mux.HandleFunc("GET /audit", func(w http.ResponseWriter, _ *http.Request) {
		hang(b.Hangs || b.AuditHangs)
		answerControl(w, b.Found, nil)
	})
	mux.HandleFunc("POST /succeed", func(w http.ResponseWriter, _ *http.Request) {
		hang(b.Hangs)
		answerControl(w, trial, nil)
		if !b.Stays {
			time.AfterFunc(100*time.Millisecond, func() { fail(syscall.Exec(trial.Previous, os.Args, os.Environ())) })
		}
	})
	fail(http.Serve(l, mux))
}

// What is worse after an upgrade than before is seen, said in words, and has the old binary go on, in the same process if that still can;
// what is as well as before is kept.
func TestTheGate(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	candidate := filepath.Join(t.TempDir(), "candidate")
	if err := copyBinary(self, candidate); err != nil {
		t.Fatal(err)
	}
	one, other := resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil)
	old := audit.Finding{Kind: "volume", ID: one, What: "it was so before"}
	controller := func(change func(*bearing)) bearing {
		b := bearing{Found: []audit.Finding{old}, Health: health{Revision: 7,
			Controllers: []controllerHealth{{Name: "c1", Leads: true}, {Name: "c2"}}, Hosts: []hostHealth{{Name: "a1", Up: true}, {Name: "a2", Up: true}, {Name: "a3"}}}}
		change(&b)
		return b
	}
	agent := func(change func(*bearing)) bearing {
		b := bearing{Health: health{Agent: &agentHealth{Told: true, Running: []resource.ID{one, other}}}}
		change(&b)
		return b
	}
	same := func(*bearing) {}
	ofController := standing{Revision: 7, HostsUp: []string{"a1", "a2"}, Findings: []string{fmt.Sprint(old)}}
	ofAgent := standing{Connected: true, Running: []resource.ID{one, other}}
	const within = 4 * time.Second
	cases := map[string]struct {
		before standing
		is     bearing
		why    string // "": it is kept
		anew   bool   // the old binary goes on in a process of its own
	}{
		"a controller that is as well":   {before: ofController, is: controller(same)},
		"a controller that is better":    {before: ofController, is: controller(func(b *bearing) { b.Found, b.Health.Revision, b.Health.Hosts[2].Up = nil, 9, true })},
		"a controller that hangs":        {ofController, controller(func(b *bearing) { b.Hangs = true }), "it does not answer within 10s", true},
		"a controller whose audit hangs": {ofController, controller(func(b *bearing) { b.AuditHangs = true }), "audit: it does not answer within 4s", false},
		"a controller that ends":         {ofController, controller(func(b *bearing) { b.Ends = true }), "the process ended", true},
		"a controller with another finding": {ofController, controller(func(b *bearing) {
			b.Found = append(b.Found, audit.Finding{Kind: "port", ID: other, What: "has no network"})
		}), "the audit found: port " + other.String() + ": has no network", false},
		"a controller that lost a host's session":         {ofController, controller(func(b *bearing) { b.Health.Hosts[1].Up = false }), "host a2 cannot be heard", false},
		"a controller that does not know a host":          {ofController, controller(func(b *bearing) { b.Health.Hosts = b.Health.Hosts[:1] }), "host a2 cannot be heard", false},
		"a controller that does not follow":               {ofController, controller(func(b *bearing) { b.Health.Revision = 6 }), "it is at revision 6, and was at 7", false},
		"a controller of a cloud that none leads":         {ofController, controller(func(b *bearing) { b.Health.Controllers[0].Leads = false }), "no controller leads", false},
		"a controller that is broken":                     {ofController, controller(func(b *bearing) { b.Health.Broken = "the disk is full" }), "it accepts no changes: the disk is full", false},
		"a controller that is ill, and does not make way": {ofController, controller(func(b *bearing) { b.Health.Revision, b.Stays = 6, true }), "it is at revision 6", true},
		"an agent that is as well":                        {before: ofAgent, is: agent(same)},
		"an agent whose guest was ended":                  {before: ofAgent, is: agent(func(b *bearing) { b.Health.Agent.Running = b.Health.Agent.Running[:1] })},
		"an agent that was cut off before":                {before: standing{Running: ofAgent.Running}, is: agent(func(b *bearing) { b.Health.Agent.Told = false })},
		"an agent with no session":                        {ofAgent, agent(func(b *bearing) { b.Health.Agent.Told = false }), "it has no session with a controller", false},
		"an agent that lacks a guest": {ofAgent, agent(func(b *bearing) {
			b.Health.Agent.Running, b.Health.Agent.Lacking = b.Health.Agent.Running[:1], []resource.ID{other}
		}), "guest " + other.String() + " does not run, and did before", false},
		"an agent that was cut off, and lacks a guest": {standing{Running: ofAgent.Running}, agent(func(b *bearing) {
			b.Health.Agent.Told, b.Health.Agent.Running = false, b.Health.Agent.Running[:1]
		}), "guest " + other.String() + " does not run, and did before", false},
	}
	var all sync.WaitGroup // at once, however few tests may be: they wait for most of their time
	for name, c := range cases {
		dir, err := os.MkdirTemp("", "unkai-gate-") // a socket's path is short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		well := agent(same)
		if c.before.Revision > 0 {
			well = controller(same)
		}
		if !c.before.Connected && c.before.Revision == 0 {
			well.Health.Agent.Told = false
		}
		for is, b := range map[string]bearing{"candidate": c.is, "previous": well} {
			text, err := json.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			var again bearing
			if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(b, again) {
				t.Fatalf("%s: %v, %+v becomes %+v", name, err, b, again)
			}
			if err := os.WriteFile(filepath.Join(dir, is+".json"), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		env := append(os.Environ(), tried+"="+dir)
		if err := os.Mkdir(filepath.Join(dir, releaseDir), 0o700); err != nil {
			t.Fatal(err)
		}
		begun := &trial{Candidate: candidate, Previous: self, Stable: filepath.Join(dir, "unkai"), Env: env, WorkingDir: dir, Began: time.Now(), Within: within,
			Before: c.before, From: introduction{Adopts: true}, To: introduction{Adopts: true}}
		if err := begun.save(dir); err != nil {
			t.Fatal(err)
		}
		p := exec.Command(candidate)
		p.Env, p.Stderr = env, os.Stderr
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { p.Wait(); close(ended) }() // whatever started it sees its end
		t.Cleanup(func() { p.Process.Kill(); <-ended })
		begun.PID = p.Process.Pid
		if begun.Ticks, _, err = lifeOf(begun.PID); err != nil {
			t.Fatal(err)
		}
		if err := begun.save(dir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if is, err := loadTrial(dir); err == nil && is.PID != begun.PID && lives(is.PID, is.Ticks) {
				unix.Kill(is.PID, unix.SIGKILL)
			}
		})
		all.Go(func() {
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				if _, err := os.Stat(filepath.Join(dir, controlSocket)); err == nil {
					break
				}
				if time.Now().After(end) {
					t.Errorf("%s: the process does not begin", name)
					return
				}
			}
			if err := watchTrial(t.Context(), dir); err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			got, err := loadTrial(dir)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			outcome, runs := "back", self
			if c.why == "" {
				outcome, runs = "kept", candidate
			}
			if got.Outcome != outcome || c.why == "" && got.Why != "" || !strings.HasPrefix(got.Why, c.why) || strings.Contains(got.Why, "\n") {
				t.Errorf("%s: %s: %q; want %s: %q", name, got.Outcome, got.Why, outcome, c.why)
			}
			got.Candidate = runs
			w := &watcher{dir, got}
			if it, alive := w.runs(runs); !it || !alive {
				t.Errorf("%s: process %d does not run %s", name, got.PID, runs)
			}
			if anew := got.PID != begun.PID; anew != c.anew {
				t.Errorf("%s: it goes on in a process of its own: %v", name, anew)
			}
			if _, err := os.Stat(got.Stable); (err == nil) != (outcome == "kept") {
				t.Errorf("%s: of the file that is started from outside: %v", name, err)
			}
		})
	}
	all.Wait()
}
