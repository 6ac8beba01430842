package qemu

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// What hangs is told as it last was, and is asked once.
func TestGauge(t *testing.T) {
	t.Parallel()
	g := &gauge{patience: time.Minute}
	if n, err := g.read(t.Context(), func() (int, error) { return 7, nil }); n != 7 || err != nil {
		t.Fatalf("it is %d, %v", n, err)
	}
	broken := errors.New("broken")
	if n, err := g.read(t.Context(), func() (int, error) { return 0, broken }); n != 7 || err != broken {
		t.Fatalf("broken it is %d, %v", n, err)
	}
	var asked atomic.Int32
	release := make(chan struct{})
	g.patience = time.Millisecond
	for range 3 {
		if n, err := g.read(t.Context(), func() (int, error) { asked.Add(1); <-release; return 9, nil }); n != 7 || err != errHangs {
			t.Fatalf("while it hangs it is %d, %v", n, err)
		}
	}
	close(release)
	eventually(t, "the new reading", func() bool {
		n, err := g.read(t.Context(), func() (int, error) { return 9, nil })
		return n == 9 && err == nil
	})
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times while it hung", n)
	}
}

// A storage is asked in a way that keeps nobody waiting, by one question at a time, however often somebody wants to know.
func TestAStorageThatHangsIsAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := openStorage(dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	release := make(chan struct{})
	hangs := func() error { asked.Add(1); <-release; return nil }
	d := &Driver{pulse: gauge{patience: time.Minute}}
	look := func(answers func() error) string {
		t.Helper()
		began := time.Now()
		why, err := d.pulse.away(t.Context(), answers)
		if err != nil || time.Since(began) > 10*time.Second {
			t.Errorf("it says %v after %v", err, time.Since(began))
		}
		return why
	}
	if why, err := d.Away(t.Context()); why != "" || err != nil {
		t.Errorf("a host that shares none is away: %s, %v", why, err)
	}
	if why := look(s.answers); why != "" {
		t.Errorf("one that answers is away: %s", why)
	}
	d.pulse.patience = time.Millisecond
	for range 50 {
		if why := look(hangs); why != errHangs.Error() {
			t.Fatalf("one that hangs is %q", why)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times while it hung", n)
	}
	close(release)
	d.pulse.patience = time.Minute
	eventually(t, "its answer", func() bool { return look(s.answers) == "" })
	if err := os.Rename(dir, dir+".gone"); err != nil { // what is mounted there is no more
		t.Fatal(err)
	}
	if why := look(s.answers); why == "" {
		t.Error("one that is not there answers")
	}
	if err := os.Rename(dir+".gone", dir); err != nil {
		t.Fatal(err)
	}
	if why := look(s.answers); why != "" {
		t.Errorf("one that is back is away: %s", why)
	}
}

// How full a storage is that is shared is measured like that, and where there is none nothing is.
func TestHowFullASharedStorageIs(t *testing.T) {
	t.Parallel()
	d := &Driver{level: gauge{patience: time.Minute}}
	if free, err := d.Shared(t.Context(), func(string) (int, error) { return 0, errors.New("measured") }); free != 100 || err != nil {
		t.Errorf("without a storage %d %% are free, %v", free, err)
	}
	var err error
	dir := t.TempDir()
	if d.storage, err = openStorage(dir, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if free, err := d.Shared(t.Context(), func(at string) (int, error) {
		if at != dir {
			t.Errorf("%s is measured", at)
		}
		return 42, nil
	}); free != 42 || err != nil {
		t.Errorf("%d %% are free, %v", free, err)
	}
	d.level.patience = time.Millisecond
	release := make(chan struct{})
	defer close(release)
	if _, err := d.Shared(t.Context(), func(string) (int, error) { <-release; return 0, nil }); !errors.Is(err, errHangs) {
		t.Errorf("while it hangs: %v", err)
	}
}
