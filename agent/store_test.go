package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

func openStore(t testing.TB, dir string) *FileStore {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStoreKeepsWhatItWasTold(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	since := time.Unix(1e9, 0).UTC()
	for _, c := range []Change{
		{Items: []host.Item{item("guest", guestID, "one"), item("net", netID, "net")}, Mark: host.Mark{Revision: 5}},
		{Items: []host.Item{item("guest", guestID, "two"), item("net", netID, "")}},
		{Held: map[host.Key]*Held{{Kind: "guest", ID: otherID}: {Since: since, Body: json.RawMessage(`"x"`)}, {Kind: "guest", ID: netID}: {Since: since}}},
		{Held: map[host.Key]*Held{{Kind: "guest", ID: netID}: nil}, Mark: host.Mark{Era: 3, Revision: 6}},
	} {
		if err := s.Save(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	kept, err := openStore(t, dir).Load()
	if err != nil {
		t.Fatal(err)
	}
	held := kept.Held[host.Key{Kind: "guest", ID: otherID}]
	if len(kept.Items) != 1 || kept.Items[0].ID != guestID || string(kept.Items[0].Body) != `"two"` || kept.Mark != (host.Mark{Era: 3, Revision: 6}) ||
		len(kept.Held) != 1 || !held.Since.Equal(since) || string(held.Body) != `"x"` {
		t.Errorf("kept is %+v", kept)
	}
	info, err := os.Stat(filepath.Join(dir, storeFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v, %v", info.Mode(), err)
	}
}

func TestStoreTakesOverTheFilesOfAnEarlierRelease(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"guest_" + guestID.String() + ".json": `"old"`, "net_" + netID.String() + ".json.new": `"ha`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, dir)
	for range 2 {
		kept, err := s.Load()
		if err != nil || len(kept.Items) != 1 || string(kept.Items[0].Body) != `"old"` {
			t.Fatalf("kept is %+v, %v", kept, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.json*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestStoreOverAKill ends a process by force in the middle of its writing: what it was told was kept is,
// and of each delivery all or nothing.
func TestStoreOverAKill(t *testing.T) {
	const each = 20
	if dir := os.Getenv("STORE_DIR"); dir != "" {
		s := openStore(t, dir)
		ids := make([]resource.ID, each)
		for n := range ids {
			ids[n] = resource.MustID(fmt.Sprintf("01900000-0000-7000-8000-%012d", n))
		}
		for round := 1; ; round++ {
			var c Change
			for _, id := range ids {
				c.Items = append(c.Items, host.Item{Key: host.Key{Kind: "guest", ID: id}, Body: fmt.Appendf(nil, "%d", round)})
			}
			if err := s.Save(c); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("kept %d\n", round)
		}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestStoreOverAKill$")
	cmd.Env = append(os.Environ(), "STORE_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := 0
	for last < 20 {
		if _, err := fmt.Fscanf(out, "kept %d\n", &last); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // killed, as it was told
	kept, err := openStore(t, dir).Load()
	if err != nil || len(kept.Items) != each {
		t.Fatalf("%d things are kept, %v", len(kept.Items), err)
	}
	var round int
	if err := json.Unmarshal(kept.Items[0].Body, &round); err != nil || round < last {
		t.Errorf("round %d was kept, and %d is there, %v", last, round, err)
	}
	for _, i := range kept.Items {
		if !bytes.Equal(i.Body, kept.Items[0].Body) {
			t.Errorf("rounds %s and %s are there together", i.Body, kept.Items[0].Body)
		}
	}
}

// What a full delivery of a large host, and one guest's change, cost on disk.
func BenchmarkStore(b *testing.B) {
	body := append(append([]byte{'"'}, bytes.Repeat([]byte{'x'}, 4096)...), '"')
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("%d wishes", n), func(b *testing.B) {
			s := openStore(b, b.TempDir())
			var c Change
			for range n {
				c.Items = append(c.Items, host.Item{Key: host.Key{Kind: "guest", ID: resource.NewID(time.Now(), nil)}, Body: body})
			}
			for b.Loop() {
				if err := s.Save(c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
