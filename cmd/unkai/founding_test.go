package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/freeport"
)

func blobsIn(t *testing.T, dir string) []string {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(dir, "images", "*.blob"))
	if err != nil {
		t.Fatal(err)
	}
	return blobs
}

// The state's disk is not mounted: nothing is founded and no image removed, however it is started, and all is there again with the disk.
func TestTheStateIsNotMounted(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := filepath.Join(t.TempDir(), "cloud")
	r := start(t, dir, "--listen", "127.0.0.1:0")
	secrets := read(t, dir, secretsFile)
	before := blobsIn(t, dir)
	r.stop(t)
	if len(before) == 0 {
		t.Fatal("there is no image")
	}
	state, elsewhere := filepath.Join(dir, "etcd"), filepath.Join(dir, "elsewhere")
	if err := os.Rename(state, elsewhere); err != nil {
		t.Fatal(err)
	}
	up := []string{"up", "--data", dir, "--sim", "2", "--listen", "127.0.0.1:0"}
	controller := []string{"controller", "--data", dir, "--listen", "127.0.0.1:0", "--address", "127.0.0.1", "--hosts", freeport.Address(t), "--peers", freeport.Address(t)}
	refused(t, "the state is missing", up...)
	refused(t, "at work in this data directory (2 images)", append(controller, "--etcd", "http://127.0.0.1:1")...)
	if err := os.Mkdir(state, 0o700); err != nil { // where it would be mounted
		t.Fatal(err)
	}
	refused(t, "secrets.json, 2 images", up...)
	refused(t, "the state is missing", controller...)
	refused(t, "a state of its own", append(controller, "--etcd", "http://127.0.0.1:1")...)
	refused(t, "the state is missing", append(controller, "--cluster")...)
	refused(t, "the state is missing", append(controller, "--join", "https://127.0.0.1:1", "--token", "x")...)
	if left := namesIn(t, state); len(left) > 0 {
		t.Errorf("in the state's place there is %v", left)
	}
	if err := errors.Join(os.Remove(state), os.Rename(elsewhere, state)); err != nil {
		t.Fatal(err)
	}
	start(t, dir, "--listen", "127.0.0.1:0").stop(t)
	if after := blobsIn(t, dir); !slices.Equal(before, after) || read(t, dir, secretsFile) != secrets {
		t.Errorf("of %v there is %v", before, after)
	}
}

// Who lost the state of several controllers' first does not begin another, either.
func TestTheFirstOfSeveralHasNoState(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	options := []string{"--address", "127.0.0.1", "--hosts", freeport.Address(t), "--peers", freeport.Address(t)}
	c := onEtcd(t, "one", dir, append(options, "--cluster")...)
	stopped(t, c)
	if founding(dir) {
		t.Error("it is still being founded")
	}
	if err := os.RemoveAll(filepath.Join(dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	refused(t, "the state is missing", append([]string{"controller", "--data", dir, "--listen", "127.0.0.1:0"}, options...)...)
}

// A founding that is killed at any stage goes on with the next start.
func TestAFoundingIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	whole := "all of it"
	for _, stage := range []string{foundingMark, secretsFile, "etcd/lock", "etcd/unfinished", "etcd/member/snap/db", "etcd/member/wal", "images", whole} {
		var dir string
		was := false
		for try := 0; try < 20 && !was; try++ { // a stage may be over between two looks
			dir = t.TempDir()
			c := unkai(t, "up", "--data", dir, "--sim", "2", "--listen", "127.0.0.1:0")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			over := false
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && !was && !over; time.Sleep(200 * time.Microsecond) {
				over = len(blobsIn(t, dir)) > 0
				if stage == whole {
					was = over
					continue
				}
				_, err := os.Stat(filepath.Join(dir, stage))
				was = err == nil
			}
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			c.Wait()
		}
		if !was {
			t.Fatalf("it never is at the stage %q", stage)
		}
		r := start(t, dir, "--listen", "127.0.0.1:0")
		r.session(t, "admin", secretsOf(t, dir).Admin)
		r.stop(t)
		if founding(dir) {
			t.Errorf("killed at %q: it is still being founded", stage)
		}
	}
}

// What a data directory may hold before a cloud begins in it.
func TestWhereACloudMayBegin(t *testing.T) {
	for name, c := range map[string]struct {
		files  []string
		refuse string
	}{
		"nothing":                     {},
		"what a start leaves":         {files: []string{"lock", "control.sock", "images/", "host/"}},
		"a founding cut short":        {files: []string{foundingMark, secretsFile, "etcd/lock", "images/x.blob"}},
		"the state":                   {files: []string{secretsFile, "images/x.blob", "etcd/member/wal/0.wal"}},
		"accounts alone":              {files: []string{secretsFile}, refuse: secretsFile},
		"a mount point and accounts":  {files: []string{secretsFile, "etcd/"}, refuse: secretsFile},
		"images alone":                {files: []string{"images/x.blob", "images/y.blob"}, refuse: "2 images"},
		"a host of another cloud":     {files: []string{"host/identity.json"}, refuse: "host/identity.json"},
		"one of several":              {files: []string{membershipFile, "peer/authority.pem"}, refuse: "member.json, peer/authority.pem"},
		"a restore that did not end":  {files: []string{restoreMark, secretsFile, "etcd/member/wal/0.wal"}, refuse: "restore"},
		"a log that was never begun":  {files: []string{secretsFile, "etcd/member/snap/db"}, refuse: secretsFile},
		"an image that was not ended": {files: []string{"images/x-1.new"}},
	} {
		dir := t.TempDir()
		for _, f := range c.files {
			path := filepath.Join(dir, f)
			err := os.MkdirAll(filepath.Dir(path), 0o700)
			if strings.HasSuffix(f, "/") {
				err = errors.Join(err, os.MkdirAll(path, 0o700))
			} else {
				err = errors.Join(err, os.WriteFile(path, nil, 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		err := beginFounding(dir)
		if (err == nil) != (c.refuse == "") || err != nil && !strings.Contains(err.Error(), c.refuse) {
			t.Errorf("%s: %v", name, err)
		}
		if _, marked := os.Stat(filepath.Join(dir, foundingMark)); err != nil && !errors.Is(marked, fs.ErrNotExist) {
			t.Errorf("%s: refused, and begun", name)
		}
		if err := endFounding(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
