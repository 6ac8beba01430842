package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/api/native"
	"github.com/unkai-cloud/unkai/core/identity"
)

type supportCommand struct {
	dataOption
	File string `arg:"" help:"The bundle to make, a .tar.gz that is not there yet."`
}

// Help is what `unkai support --help` says beside the options.
func (supportCommand) Help() string {
	return `What somebody needs who is to find out what is wrong, and no secrets: status, audit, alerts, metrics, the newest operations and all
hosts as an admin sees them at /v1, goroutine and heap profiles, versions, and what the doctor says of this machine. Names that
people gave to things, their messages and addresses are in it: look into it before you give it away. Logs are not kept by unkai, and not in it.`
}

// Run makes a bundle of a running cloud.
func (s *supportCommand) Run(ctx context.Context) (err error) {
	client := controlClient(s.Data, 2*time.Minute)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://unkai/support", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no controller answers for %s, is it running? (%w)", s.Data, err)
	}
	defer res.Body.Close()
	var parts []supportPart
	if err := json.NewDecoder(res.Body).Decode(&parts); err != nil {
		return fmt.Errorf("read what the controller says: %w", err)
	}
	var doctor bytes.Buffer
	for _, f := range append(examine(), doctorCommand{}.wire()) {
		fmt.Fprintf(&doctor, "well %v, needed %v: %s: %s\n", f.well, f.need, f.what, f.say)
	}
	parts = append(parts, supportPart{"doctor.txt", doctor.Bytes()})
	f, err := os.OpenFile(s.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(writeBundle(f, parts), f.Close()); err != nil {
		return errors.Join(err, os.Remove(s.File))
	}
	fmt.Printf("%s holds no secrets, but names and addresses: look into it before you give it away\n", s.File)
	return nil
}

// A supportPart is one file of a bundle.
type supportPart struct {
	Name string
	Text []byte
}

func writeBundle(w io.Writer, parts []supportPart) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, p := range parts {
		if err := t.WriteHeader(&tar.Header{Name: "unkai-support/" + p.Name, Mode: 0o600, Size: int64(len(p.Text)), ModTime: time.Now()}); err != nil {
			return err
		}
		if _, err := t.Write(p.Text); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

// theCloud lets the cloud itself look at its own API.
type theCloud struct{}

func (theCloud) Verify(ctx context.Context, _ string) (*identity.Actor, error) {
	return identity.ActorOf(identity.Internal(ctx)), nil
}

// support is what a controller knows that goes into a bundle. What cannot be had says why, in its place.
func (c *cloud) support(ctx context.Context) []supportPart {
	var parts []supportPart
	add := func(name string, make func(*bytes.Buffer) error) {
		var b bytes.Buffer
		if err := make(&b); err != nil {
			fmt.Fprintf(&b, "\nthis could not be had: %v\n", err)
		}
		parts = append(parts, supportPart{name, b.Bytes()})
	}
	asJSON := func(b *bytes.Buffer, v any) error {
		e := json.NewEncoder(b)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	add("status.json", func(b *bytes.Buffer) error { return asJSON(b, c.health()) })
	add("audit.json", func(b *bytes.Buffer) error {
		found, err := c.audit(ctx)
		return errors.Join(err, asJSON(b, found))
	})
	add("versions.txt", func(b *bytes.Buffer) error {
		var kernel unix.Utsname
		err := unix.Uname(&kernel)
		fmt.Fprintf(b, "unkai %s\n%s %s/%s\nkernel %s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, unix.ByteSliceToString(kernel.Release[:]))
		if info, ok := debug.ReadBuildInfo(); ok {
			for _, m := range info.Deps {
				fmt.Fprintln(b, m.Path, m.Version)
			}
		}
		return err
	})
	add("metrics.txt", func(b *bytes.Buffer) error { return answerOf(ctx, b, c.metrics(), "/metrics") })
	v1 := native.New(native.Options{State: c.state, Auth: theCloud{}, Version: version})
	for _, kind := range []string{"operations", "hosts", "alerts"} {
		add(kind+".json", func(b *bytes.Buffer) error {
			return answerOf(ctx, b, v1, "/"+kind+"?limit=500&all_projects=true&sort=-created_at")
		})
	}
	for _, profile := range []string{"goroutine", "heap"} {
		debugs := map[string]int{"goroutine": 1, "heap": 0} // 2 would show arguments
		add(profile+map[int]string{0: ".pprof", 1: ".txt"}[debugs[profile]], func(b *bytes.Buffer) error {
			return pprof.Lookup(profile).WriteTo(b, debugs[profile])
		})
	}
	return parts
}

// answerOf asks a handler of this process.
func answerOf(ctx context.Context, b *bytes.Buffer, h http.Handler, path string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://unkai"+path, http.NoBody)
	if err != nil {
		return err
	}
	r.Header.Set("X-Auth-Token", "none")
	w := &answered{Buffer: b, header: http.Header{}, status: http.StatusOK}
	h.ServeHTTP(w, r)
	if w.status != http.StatusOK {
		return fmt.Errorf("it answers %d", w.status)
	}
	return nil
}

// answered keeps an answer.
type answered struct {
	*bytes.Buffer
	header http.Header
	status int
}

func (a *answered) Header() http.Header    { return a.header }
func (a *answered) WriteHeader(status int) { a.status = status }
