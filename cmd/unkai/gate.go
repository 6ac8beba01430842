package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/audit"
)

// A standing is what has to be at least as well after an upgrade as it was before.
type standing struct {
	Revision  int64         `json:",omitempty"`
	HostsUp   []string      `json:",omitempty"`
	Findings  []string      `json:",omitempty"` // of the audit
	Connected bool          `json:",omitempty"` // an agent, to a controller
	Running   []resource.ID `json:",omitempty"` // its guests
}

// settle is for how long a successor has to be well without a break.
const settle = 3 * time.Second

// A watcher judges a trial from outside, over the control socket: it needs nothing of the binary that is tried.
type watcher struct {
	dir string
	*trial
}

// watchTrial sees a trial to its end.
func watchTrial(ctx context.Context, dir string) error {
	t, err := loadTrial(dir)
	if err != nil {
		return err
	}
	w := &watcher{dir, t}
	why := w.await(ctx, w.Candidate, w.To)
	if why == nil {
		if why = w.keep(); why == nil {
			return w.end("kept", nil)
		}
	}
	slog.WarnContext(ctx, "the new binary did not pass the gate; the old one goes on", "err", why)
	if err := w.back(ctx); err != nil {
		why = errors.Join(why, err)
	}
	return w.end("back", why)
}

func (w *watcher) end(outcome string, why error) error {
	w.Outcome = outcome
	if why != nil {
		w.Why = why.Error()
	}
	return w.save(w.dir)
}

// await waits until a binary runs and has been well for a while; if it is not in time, or the process ends, it says why.
func (w *watcher) await(ctx context.Context, binary string, is introduction) error {
	var since time.Time
	for end := time.Now().Add(w.Within); ; {
		runs, alive := w.runs(binary)
		if !alive {
			return errors.New("the process ended")
		}
		err := errors.New("the process still runs the other binary")
		if runs {
			err = w.well(ctx, is)
		}
		switch now := time.Now(); {
		case err != nil:
			since = time.Time{}
			if now.After(end) {
				return err
			}
		case since.IsZero():
			since = now
		case now.Sub(since) > settle:
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// runs reports whether the process lives, and executes a file.
func (w *watcher) runs(binary string) (it, alive bool) {
	if !lives(w.PID, w.Ticks) {
		return false, false
	}
	a, err := os.Stat(fmt.Sprintf("/proc/%d/exe", w.PID))
	if err != nil {
		return false, true
	}
	b, err := os.Stat(binary)
	return err == nil && os.SameFile(a, b), true
}

// lives reports whether the process with this number still is the one that started then. While a process executes another binary its first
// thread has ended for a moment, which looks like the end of it; but then there is another thread, which takes its place.
func lives(pid int, since uint64) bool {
	for range 2 {
		ticks, state, err := lifeOf(pid)
		if err != nil || ticks != since || state != 'Z' {
			return err == nil && ticks == since
		}
		if threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)); err == nil && len(threads) > 1 {
			return true
		}
		// Either it has ended, or the other thread has taken its place just now.
	}
	return false
}

// lifeOf is when a process started, in clock ticks since the machine did, and its state.
func lifeOf(pid int) (ticks uint64, state byte, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The second field is the program's name in parentheses, and may hold anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields))
	}
	ticks, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return ticks, fields[0][0], err
}

// well reports what is worse than before the trial.
func (w *watcher) well(ctx context.Context, is introduction) error {
	if w.Before.Revision == 0 && !is.Adopts {
		return nil // an agent of a release that had no control socket: that it lives is all there is to see
	}
	var h health
	if err := w.ask(ctx, 10*time.Second, "/status", &h); err != nil {
		return err
	}
	if h.Broken != "" {
		return errors.New("it accepts no changes: " + h.Broken)
	}
	if h.Agent != nil {
		switch {
		case w.Before.Connected && !h.Agent.Told:
			return errors.New("it has no session with a controller")
		}
		for _, id := range w.Before.Running {
			// Whom its owner has ended meanwhile it does not lack; but that it has to have been told.
			if slices.Contains(h.Agent.Lacking, id) || !h.Agent.Told && !slices.Contains(h.Agent.Running, id) {
				return fmt.Errorf("guest %s does not run, and did before", id)
			}
		}
		return nil
	}
	if h.Revision < w.Before.Revision {
		return fmt.Errorf("it is at revision %d, and was at %d", h.Revision, w.Before.Revision)
	}
	if len(h.Controllers) > 0 && !slices.ContainsFunc(h.Controllers, func(k controllerHealth) bool { return k.Leads }) {
		return errors.New("no controller leads")
	}
	for _, name := range w.Before.HostsUp {
		if !slices.ContainsFunc(h.Hosts, func(m hostHealth) bool { return m.Name == name && m.Up }) {
			return fmt.Errorf("host %s cannot be heard", name)
		}
	}
	var found []audit.Finding
	if err := w.ask(ctx, w.Within, "/audit", &found); err != nil { // of a large cloud it takes long
		return fmt.Errorf("audit: %w", err)
	}
	for _, f := range found {
		if !slices.Contains(w.Before.Findings, fmt.Sprint(f)) {
			return fmt.Errorf("the audit found: %v", f)
		}
	}
	return nil
}

// ask asks the process that is tried; of one that hangs it says so in words.
func (w *watcher) ask(ctx context.Context, within time.Duration, path string, answer any) error {
	soon, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := ask(soon, w.dir, http.MethodGet, path, answer)
	if err != nil && soon.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("it does not answer within %v", within)
	}
	return err
}

// keep makes what was tried the file that is started from outside.
func (w *watcher) keep() error {
	coming := filepath.Join(filepath.Dir(w.Stable), "."+filepath.Base(w.Stable)+".coming")
	if err := copyBinary(w.Candidate, coming); err != nil {
		return fmt.Errorf("replace %s: %w", w.Stable, err)
	}
	if err := os.Rename(coming, w.Stable); err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", w.Stable, err), os.Remove(coming))
	}
	return nil
}

// back has the previous binary go on: in the same process if that can still do so, or else in one of its own.
func (w *watcher) back(ctx context.Context) error {
	if _, alive := w.runs(w.Candidate); alive {
		asked, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := ask(asked, w.dir, http.MethodPost, "/succeed", new(trial))
		cancel()
		if err == nil {
			if err = w.await(ctx, w.Previous, w.From); err == nil {
				return nil
			}
		}
		slog.WarnContext(ctx, "the new binary does not make way by itself; it is ended", "err", err)
		w.kill()
	}
	// Whoever supervises it starts the file that it always started, which is still the old one.
	for range 30 {
		if w.taken() {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	c := exec.Command(w.Previous, w.Args...)
	c.Args[0], c.Env, c.Dir, c.Stdout, c.Stderr = w.Stable, w.Env, w.WorkingDir, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start the old binary: %w", err)
	}
	w.PID = c.Process.Pid
	var err error
	if w.Ticks, _, err = lifeOf(w.PID); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }() // or a dead child would be taken for a living one
	if err := w.await(ctx, w.Previous, w.From); err != nil {
		return fmt.Errorf("the old binary: %w", err)
	}
	return nil
}

// kill ends the process, gently if it lets us.
func (w *watcher) kill() {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if _, alive := w.runs(w.Candidate); !alive {
			return
		}
		unix.Kill(w.PID, signal)
		for range 100 {
			if _, alive := w.runs(w.Candidate); !alive {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// taken reports whether a process works on the data directory.
func (w *watcher) taken() bool {
	f, err := os.Open(filepath.Join(w.dir, "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}
