package etcd_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
)

// childVar names the directory that a child process of TestKill works in.
const childVar = "UNKAI_STATE_KILL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVar); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if text := os.Getenv(joinVar); text != "" {
		if err := joinUntilKilled(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// joinVar holds the etcd.Options with which a child process of TestJoinIsKilled is a member.
const joinVar = "UNKAI_STATE_JOIN"

func joinUntilKilled(text string) error {
	var o etcd.Options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	e, err := etcd.Open(context.Background(), o)
	if err != nil {
		return err
	}
	s, err := state.OpenFollower(context.Background(), e, state.Options{})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return etcd.Serve(context.Background(), e, s, func(ctx context.Context) { <-ctx.Done() })
}

// A half is one of two objects that every transaction of a writer changes together, and
// of a trail of objects: each transaction makes the next and deletes the one before.
type half struct {
	resource.Meta
	Writer, Side, Count int
}

const (
	left = iota
	right
	trail
)

var halves = state.NewTable("kill-half",
	state.Index("writer", func(h *half) state.Key { return state.KeyOf(h.Writer, h.Side) }),
)

const killWriters = 16

// writeUntilKilled is the child: it says on its standard output where the state stood
// when it opened, and then each transaction that was acknowledged.
func writeUntilKilled(dir string) error {
	ctx := context.Background()
	e, err := etcd.Open(ctx, etcd.Options{Dir: dir})
	if err != nil {
		return err
	}
	s, err := state.Open(ctx, e, state.Options{})
	if err != nil {
		return err
	}
	fmt.Printf("open 0 0 %d\n", s.Latest().Revision())
	failed := make(chan error)
	for w := range killWriters {
		go func() {
			for {
				var count int
				var revision int64
				err := s.Update(ctx, func(tx *state.Tx) (err error) {
					revision = tx.Revision()
					count, err = step(tx, w)
					return err
				})
				if err != nil {
					failed <- err
					return
				}
				// One write: a line is never cut in two.
				if _, err := fmt.Printf("done %d %d %d\n", w, count, revision); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

// step is one transaction of a writer.
func step(tx *state.Tx, w int) (int, error) {
	count := 1
	for side := left; side <= trail; side++ {
		old, ok := halves.Lookup(tx, "writer", state.KeyOf(w, side))
		if ok {
			count = old.Count + 1
		}
		next := &half{Meta: resource.Meta{ID: tx.NewID()}, Writer: w, Side: side, Count: count}
		if ok && side == trail {
			if err := halves.Delete(tx, old.ID); err != nil {
				return 0, err
			}
		} else if ok {
			next.Meta = old.Meta
		}
		if err := halves.Put(tx, next); err != nil {
			return 0, err
		}
	}
	return count, nil
}

// TestKill kills a writing process again and again: what it acknowledged is there, and
// no transaction is there by half.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[int]int{} // by writer: the count
	var newest int64
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for round := range 8 {
		// From before the first start has ended until long after.
		wait := time.Duration(random.Int64N(int64(80+round*120))) * time.Millisecond
		revision := writeAndKill(t, dir, wait, newest, acknowledged)
		newest = max(newest, revision)
		verify(t, dir, newest, acknowledged)
	}
	if newest == 0 {
		t.Error("no transaction was ever acknowledged: the test proved nothing")
	}
	t.Logf("revision %d was acknowledged", newest)
}

// writeAndKill lets a child write, kills it, and notes what it said.
func writeAndKill(t *testing.T, dir string, wait time.Duration, newest int64, acknowledged map[int]int) int64 {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVar+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		time.Sleep(wait)
		if err := child.Process.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var word string
		var w, count int
		var revision int64
		if _, err := fmt.Sscanf(lines.Text(), "%s %d %d %d", &word, &w, &count, &revision); err != nil {
			t.Errorf("the child said %q: %v", lines.Text(), err)
			continue
		}
		if word == "open" {
			if revision < newest {
				t.Errorf("the child opened at revision %d, but %d had been acknowledged", revision, newest)
			}
			continue
		}
		if count <= acknowledged[w] {
			t.Errorf("writer %d counted %d after %d was acknowledged", w, count, acknowledged[w])
		}
		acknowledged[w] = count
		newest = max(newest, revision)
	}
	if err := lines.Err(); err != nil && err != io.ErrClosedPipe {
		t.Errorf("read from the child: %v", err)
	}
	wg.Wait()
	if err := child.Wait(); err == nil || child.ProcessState.ExitCode() != -1 {
		t.Errorf("the child was not killed but ended by itself: %v", err)
	}
	return newest
}

func verify(t *testing.T, dir string, newest int64, acknowledged map[int]int) {
	t.Helper()
	s := openState(t, dir)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	tx := s.Latest()
	if tx.Revision() < newest {
		t.Errorf("revision %d was acknowledged, and %d is the newest", newest, tx.Revision())
	}
	total := 0
	for w := range killWriters {
		var counts []int
		for h := range halves.Each(tx, "writer", state.KeyOf(w)) {
			counts = append(counts, h.Count)
		}
		total += len(counts)
		if acknowledged[w] == 0 && len(counts) == 0 {
			continue
		}
		if len(counts) != 3 || counts[0] != counts[1] || counts[1] != counts[2] {
			t.Errorf("writer %d has %v: a transaction is there by half", w, counts)
			continue
		}
		if counts[0] < acknowledged[w] || counts[0] > acknowledged[w]+1 {
			t.Errorf("writer %d has %d, and %d was acknowledged", w, counts[0], acknowledged[w])
		}
		acknowledged[w] = counts[0]
	}
	if n := halves.Len(tx); n != total {
		t.Errorf("%d objects are there, %d of them in the index", n, total)
	}
}
