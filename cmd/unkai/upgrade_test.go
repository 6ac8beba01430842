package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A teller is a process's control socket that says of the process what it is given.
type teller struct {
	dir string
	mu  sync.Mutex
	is  health // guarded by mu
}

func (s *teller) say(h health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is = h
}

// tells begins one on a new directory, in which a trial was kept; name is the controller's, "" if it is alone or an agent.
func tells(t *testing.T, name string, kept *trial) *teller {
	t.Helper()
	dir, err := os.MkdirTemp("", "unkai-told-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &teller{dir: dir}
	if err := os.Mkdir(filepath.Join(dir, releaseDir), 0o700); err != nil {
		t.Fatal(err)
	}
	kept.Began, kept.Outcome = time.Now(), "kept"
	if err := kept.save(dir); err != nil {
		t.Fatal(err)
	}
	if name != "" {
		if err := (&membership{Name: name, dir: dir}).save(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := openControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		answerControl(w, s.is, nil)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return s
}

// An upgrade has not ended while the cloud takes the machine for what may yet go back: whoever finalises next would be refused.
func TestAnUpgradeEndsWhenTheCloudKnowsOfIt(t *testing.T) {
	t.Parallel()
	narrow, wide := release.Span{Oldest: 2, Newest: 2}, release.Span{Oldest: 2, Newest: 3}
	controllers := func(version string, s release.Span) health {
		return health{Controllers: []controllerHealth{{Name: "p1", Version: "next", Speaks: wide}, {Name: "p2", Version: version, Speaks: s}}}
	}
	for name, c := range map[string]struct {
		member  string
		before  []health
		missing string
		after   health
	}{
		"a controller":                {"p2", []health{controllers("this", narrow), controllers("next", narrow)}, "not yet that it is next", controllers("next", wide)},
		"a controller that goes back": {"p2", []health{controllers("later", wide)}, "not yet that it is next", controllers("next", wide)},
		"a controller nobody knows":   {"p3", []health{controllers("next", wide)}, "no controller p3", health{Controllers: []controllerHealth{{Name: "p3", Version: "next", Speaks: wide}}}},
		"an agent":                    {"", []health{{Agent: &agentHealth{Told: true, Says: narrow}}, {Agent: &agentHealth{Says: wide}}}, "no session", health{Agent: &agentHealth{Told: true, Says: wide}}},
		"an agent that says nothing":  {"", nil, "", health{Agent: &agentHealth{Told: true}}},
		"a cloud of one controller":   {"", nil, "", health{Level: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kept := &trial{To: introduction{Version: "next", Speaks: wide, Sockets: true}, Within: time.Minute, Before: standing{Connected: true}}
			s := tells(t, c.member, kept)
			ended := make(chan error, 1)
			for n, h := range c.before {
				s.say(h)
				if n == 0 {
					go func() { ended <- awaitTrial(t.Context(), s.dir, kept.Began) }()
				}
				select {
				case err := <-ended:
					t.Fatalf("it ended with %v while the cloud was told %+v", err, h)
				case <-time.After(500 * time.Millisecond):
				}
			}
			if c.before != nil {
				late := *kept
				late.Within = 300 * time.Millisecond
				if err := awaitKnown(t.Context(), s.dir, &late); err == nil || !strings.Contains(err.Error(), c.missing) || !strings.Contains(err.Error(), "after 300ms") {
					t.Errorf("when its time is over it says %v", err)
				}
			}
			s.say(c.after)
			if c.before == nil {
				go func() { ended <- awaitTrial(t.Context(), s.dir, kept.Began) }()
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it does not end")
			}
		})
	}
}

// The first release's agents have no control socket.
func TestAnUpgradeToTheFirstReleaseEnds(t *testing.T) {
	t.Parallel()
	if missing := unknownYet(t.Context(), t.TempDir(), &trial{To: introduction{Version: "first", Speaks: release.First}, Within: time.Minute}); missing != "" {
		t.Errorf("it waits for %s", missing)
	}
}

// A host that may have to go back to an older release hinders finalising as one of that release does.
func TestWhoIsTriedIsOlder(t *testing.T) {
	t.Parallel()
	ctx := identity.Internal(t.Context())
	s, err := state.Open(ctx, state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	level := release.Own.Newest
	narrow := release.Span{Oldest: release.Own.Oldest, Newest: level - 1}
	id := resource.NewID(time.Now(), nil)
	arrive := func(is release.Span) {
		t.Helper()
		if err := host.Arrive(ctx, s, id, host.Hello{Name: "host-a", Version: "next", Speaks: is}); err != nil {
			t.Fatal(err)
		}
	}
	arrive(narrow)
	if err := mayFinalise(s.Latest(), level); fault.From(err) == nil || !strings.Contains(err.Error(), "host host-a (next)") {
		t.Errorf("with a host that is tried: %v", err)
	}
	arrive(release.Own)
	if err := mayFinalise(s.Latest(), level); err != nil {
		t.Errorf("with a host that stays: %v", err)
	}
}

// A fakeLink is how a host speaks with its controllers.
type fakeLink struct {
	dir   string
	mu    sync.Mutex
	said  release.Span // guarded by mu
	again int          // guarded by mu
}

func (l *fakeLink) Says() release.Span {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said
}

func (l *fakeLink) Again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.again++
	l.said, _ = speaks(l.dir)
}

func TestAnAgentSaysThatItStays(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := &fakeLink{dir: t.TempDir()}
	tried := &trial{Candidate: self, From: introduction{Speaks: release.Span{Oldest: 1, Newest: release.Own.Newest - 1}}}
	if err := os.Mkdir(filepath.Join(l.dir, releaseDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := tried.save(l.dir); err != nil {
		t.Fatal(err)
	}
	l.Again() // its first session
	if l.said == release.Own {
		t.Fatal("while it is tried it says that it stays")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		saySpeaks(ctx, l.dir, l)
	}()
	time.Sleep(1500 * time.Millisecond)
	l.mu.Lock()
	if l.again != 1 {
		t.Error("it begins another session though nothing is decided")
	}
	l.mu.Unlock()
	tried.Outcome = "kept"
	if err := tried.save(l.dir); err != nil {
		t.Fatal(err)
	}
	<-done
	if l.said != release.Own || l.again != 2 {
		t.Errorf("when it is decided it says %v, in session %d", l.said, l.again)
	}
}
