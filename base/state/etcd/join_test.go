package etcd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/freeport"
)

// output is what a child process says: thrown away, but for whether it is ready.
type output struct {
	ready atomic.Bool
	said  strings.Builder
}

func (o *output) Write(b []byte) (int, error) {
	o.said.Write(b)
	if strings.Contains(o.said.String(), "ready\n") {
		o.ready.Store(true)
	}
	return len(b), nil
}

// TestJoinIsKilled kills a joining member, a process of its own, at every stage between being let in and its vote: it comes back
// by itself, whatever it had begun.
func TestJoinIsKilled(t *testing.T) {
	c := newCrowd(t)
	first := freeport.Address(t)
	one := c.start(1, c.member(1, first, nil))
	for n := range 6000 { // more than etcd lets a member be behind before it refuses requests
		c.put(fmt.Sprint("before ", n))
	}
	second := freeport.Address(t)
	if _, err := one.engine.AddMember(t.Context(), "https://"+second); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(c.dir, "joins")
	text, err := json.Marshal(struct { // what of Options can be written down
		Dir    string
		Member *Member
	}{dir, c.member(2, second, map[string]string{"c1": "https://" + first, "c2": "https://" + second})})
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	begin := func() (*exec.Cmd, *output) {
		said := new(output)
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), "UNKAI_STATE_JOIN="+string(text))
		cmd.Stdout, cmd.Stderr = said, said
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, said
	}
	kill := func(cmd *exec.Cmd) {
		cmd.Process.Kill()
		cmd.Wait() // it says that it was killed
	}
	exists := func(name string) func(*output) bool {
		return func(*output) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	}
	for _, stage := range []struct {
		name string
		is   func(*output) bool
	}{
		{"as its directory is made", exists("lock")},
		{"marked as unfinished", exists("unfinished")},
		{"as its file is made", exists("member/snap/db")},
		{"as its log begins", exists("member/wal/0000000000000000-0000000000000000.wal")},
		{"a while after that", func(*output) bool { time.Sleep(300 * time.Millisecond); return true }},
		{"as it is ready", func(o *output) bool { return o.ready.Load() }},
		{"a while after it was ready", func(o *output) bool { time.Sleep(300 * time.Millisecond); return o.ready.Load() }},
	} {
		began := time.Now()
		cmd, said := begin()
		for end := time.Now().Add(30 * time.Second); !stage.is(said); time.Sleep(200 * time.Microsecond) {
			if time.Now().After(end) {
				kill(cmd)
				t.Fatalf("it never is at the stage %q: %s", stage.name, said.said.String())
			}
		}
		kill(cmd)
		t.Logf("killed %s, after %v", stage.name, time.Since(began).Round(time.Millisecond))
		c.put("after it was killed " + stage.name) // it has no vote: nobody waits for it
	}
	cmd, said := begin()
	defer func() {
		kill(cmd)
		if t.Failed() {
			t.Log(said.said.String())
		}
	}()
	c.vote(one.engine, 2)
	c.put("with two")
	for _, m := range one.engine.Known() {
		if m.URL == "https://"+second {
			if err := one.engine.RemoveMember(t.Context(), m.ID); err != nil {
				t.Errorf("it cannot be taken out again: %v", err)
			}
		}
	}
	c.put("alone again")
}
