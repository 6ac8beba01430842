package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/release"
)

// How a process is replaced. It copies the new binary into its data directory, writes down what it is about to do (a trial), starts
// a watcher, ends its work as it does at SIGTERM, and executes the new binary in its place: the process keeps its number, and
// whoever supervises it sees nothing. The watcher (gate.go), which runs the old binary, either makes the new one the one that is
// started from then on, or has the old one go on. The file that a supervisor starts is the old one until the trial was passed, so
// that whatever dies meanwhile comes back as the old one.

// releaseDir, in a data directory, has what is tried and what was there before.
const releaseDir = "release"

// A trial is one replacement.
type trial struct {
	From, To   introduction
	Candidate  string // what is tried
	Previous   string // what ran before
	Stable     string // what is started from outside
	PID        int
	Ticks      uint64 // when the process started, by which its number is known to be still its own
	Args, Env  []string
	WorkingDir string
	Began      time.Time
	Within     time.Duration // until then the gate is to be passed
	Before     standing      // how it stood before

	Outcome string `json:",omitempty"` // "kept" or "back"; while it goes on ""
	Why     string `json:",omitempty"`
}

func trialFile(dir string) string { return filepath.Join(dir, releaseDir, "trial.json") }

func loadTrial(dir string) (*trial, error) {
	text, err := os.ReadFile(trialFile(dir))
	if err != nil {
		return nil, err
	}
	t := new(trial)
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("read %s: %w", trialFile(dir), err)
	}
	return t, nil
}

func (t *trial) save(dir string) error {
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	return writePrivate(trialFile(dir), text)
}

// undecided is the trial that this process is tried in, whose end is not known yet; nil if there is none. A watcher may have been lost:
// then it is until another upgrade is decided, or the process is started again.
func undecided(dir string) (*trial, error) {
	t, err := loadTrial(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || t.Outcome == "kept" {
		return nil, err
	}
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	if tried, err := os.Stat(t.Candidate); err != nil || !os.SameFile(own, tried) {
		return nil, nil
	}
	return t, nil
}

// speaks is at which levels this controller works whatever becomes of it: while it is tried it may have to make way for what was before.
func speaks(dir string) (release.Span, error) {
	is := release.Own
	t, err := undecided(dir)
	if t != nil {
		is.Newest = min(is.Newest, t.From.Speaks.OrFirst().Newest)
	}
	return is, err
}

// An introduction is what a binary says of itself.
type introduction struct {
	Version string
	Speaks  release.Span
	Sockets bool // it goes on at the addresses that it is left; see sockets
	Adopts  bool // it has a control socket by which it can be replaced again
}

func introduce() introduction {
	return introduction{Version: version, Speaks: release.Own, Sockets: true, Adopts: true}
}

// meet asks a binary who it is. That it answers shows that it runs on this machine at all.
func meet(ctx context.Context, path string) (introduction, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var is introduction
	text, err := exec.CommandContext(ctx, path, "version", "--json").Output()
	if err == nil {
		err = json.Unmarshal(text, &is)
		return is, err
	}
	if text, err = exec.CommandContext(ctx, path, "version").Output(); err != nil {
		return is, fmt.Errorf("%s cannot be run: %w", path, err)
	}
	name, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "unkai ")
	if !ok {
		return is, fmt.Errorf("%s is not unkai", path)
	}
	return introduction{Version: name, Speaks: release.First}, nil
}

// A successor goes on in this process's place. As an error it ends the work that goes on, and main lets it begin.
type successor struct {
	path    string
	stable  string // what it is to take itself for
	sockets *sockets
}

func (s *successor) Error() string { return "another binary goes on in this process" }

// begin executes it; it returns only when that fails.
func (s *successor) begin() error {
	env := cleanEnv()
	if s.sockets != nil {
		passed, err := s.sockets.pass()
		if err != nil {
			return err
		}
		env = append(env, passed)
	}
	err := syscall.Exec(s.path, append([]string{s.stable}, os.Args[1:]...), env)
	return fmt.Errorf("execute %s: %w", s.path, err)
}

func cleanEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, socketsVariable+"=") {
			env = append(env, v)
		}
	}
	return env
}

// A seat is how the process that works on a data directory is replaced.
type seat struct {
	dir     string
	sockets *sockets
	// leave ends the process's work, with the successor as the reason.
	leave func(error)
	// mayBe reports why a release may not go on here.
	mayBe func(release.Span) error
	// standing is how the process stands now, by which its successor is judged.
	standing func(context.Context) (standing, error)
	// handOver has another lead, where that is possible; nil where it never is.
	handOver func(context.Context) error
}

// upgradeWithin is how long a successor has until all is well.
const upgradeWithin = 90 * time.Second

// routes are the seat's part of a control socket. Each concerns the process that is asked, and no other.
func (s *seat) routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /upgrade", func(w http.ResponseWriter, r *http.Request) {
		t, err := s.try(r.Context(), r.FormValue("to"), r.FormValue("within"), r.FormValue("check") != "")
		answerControl(w, t, err)
	})
	mux.HandleFunc("POST /succeed", func(w http.ResponseWriter, r *http.Request) {
		t, err := s.goBack(r.Context())
		answerControl(w, t, err)
	})
}

// stable is the file that this process is started from.
func (s *seat) stable() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if filepath.Dir(exe) != filepath.Join(s.dir, releaseDir) {
		return exe, nil
	}
	t, err := loadTrial(s.dir) // we are what it was about
	if err != nil {
		return "", err
	}
	return t.Stable, nil
}

// try begins a trial, or says what is against one.
func (s *seat) try(ctx context.Context, to, within string, check bool) (*trial, error) {
	t := &trial{From: introduce(), PID: os.Getpid(), Args: os.Args[1:], Env: cleanEnv(), Began: time.Now(), Within: upgradeWithin}
	var err error
	if within != "" {
		if t.Within, err = time.ParseDuration(within); err != nil {
			return nil, err
		}
	}
	if before, err := loadTrial(s.dir); err == nil && before.Outcome == "" && time.Since(before.Began) < 2*before.Within+time.Minute {
		return nil, fmt.Errorf("an upgrade to %s goes on already", before.To.Version)
	}
	if t.To, err = meet(ctx, to); err != nil {
		return nil, err
	}
	if err := s.mayBe(t.To.Speaks); err != nil {
		return nil, err
	}
	if t.Before, err = s.standing(ctx); err != nil {
		return nil, fmt.Errorf("it is not well as it is: %w", err)
	}
	if t.Stable, err = s.stable(); err != nil {
		return nil, err
	}
	if err := unix.Access(filepath.Dir(t.Stable), unix.W_OK); err != nil {
		return nil, fmt.Errorf("%s, from which this process is started, could not be replaced: %w", t.Stable, err)
	}
	if t.WorkingDir, err = os.Getwd(); err != nil {
		return nil, err
	}
	if t.Ticks, _, err = lifeOf(t.PID); err != nil {
		return nil, err
	}
	if check {
		t.Env = nil
		return t, nil
	}
	dir := filepath.Join(s.dir, releaseDir)
	t.Candidate, t.Previous = filepath.Join(dir, "candidate"), filepath.Join(dir, "previous")
	if err := errors.Join(os.MkdirAll(dir, 0o700), copyBinary(to, t.Candidate+".coming"), copyBinary("/proc/self/exe", t.Previous+".coming")); err != nil {
		return nil, err
	}
	// The one that is tried may be the previous one of before: both are copied before either is in its place.
	if err := errors.Join(os.Rename(t.Candidate+".coming", t.Candidate), os.Rename(t.Previous+".coming", t.Previous)); err != nil {
		return nil, err
	}
	if s.handOver != nil {
		if err := s.handOver(ctx); err != nil {
			return nil, fmt.Errorf("have another controller lead first: %w", err)
		}
	}
	if err := t.save(s.dir); err != nil {
		return nil, err
	}
	if err := startWatcher(t.Previous, s.dir); err != nil {
		return nil, err
	}
	slog.InfoContext(ctx, "another binary goes on in this process", "version", t.To.Version, "from", to)
	s.leaveTo(&successor{path: t.Candidate, stable: t.Stable, sockets: s.inheritable(t.To)})
	t.Env = nil
	return t, nil
}

func (s *seat) inheritable(to introduction) *sockets {
	if !to.Sockets {
		return nil
	}
	return s.sockets
}

// leaveTo ends the work a moment later: the answer is to go out first.
func (s *seat) leaveTo(next *successor) {
	time.AfterFunc(100*time.Millisecond, func() { s.leave(next) })
}

// goBack executes what ran before the trial.
func (s *seat) goBack(ctx context.Context) (*trial, error) {
	t, err := loadTrial(s.dir)
	if err != nil {
		return nil, err
	}
	if t.Outcome != "" || t.PID != os.Getpid() {
		return nil, errors.New("no upgrade goes on")
	}
	slog.WarnContext(ctx, "the upgrade is taken back", "version", t.From.Version)
	s.leaveTo(&successor{path: t.Previous, stable: t.Stable, sockets: s.inheritable(t.From)})
	t.Env = nil
	return t, nil
}

// copyBinary copies a program, and has it on disk.
func copyBinary(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close())
}

// startWatcher starts the watcher as nobody's child: it has to outlive whatever this process becomes.
func startWatcher(binary, dir string) error {
	c := exec.Command(binary, "upgrade", "watch", "--fork", "--data", dir)
	c.Stdout, c.Stderr, c.Env = os.Stdout, os.Stderr, cleanEnv()
	if err := c.Run(); err != nil {
		return fmt.Errorf("start the watcher: %w", err)
	}
	return nil
}

// detach starts this program again without --fork, in a session of its own, and does not wait for it.
func detach(args ...string) error {
	c := exec.Command("/proc/self/exe", args...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c.Start()
}
