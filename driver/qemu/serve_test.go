package qemu

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A guest may be ordered away between what its host answers and the bytes that come then.
func TestAGuestGoesWhileItArrives(t *testing.T) {
	closing, end := context.WithCancel(t.Context())
	defer end()
	id, from := resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil)
	d := &Driver{log: slog.New(slog.DiscardHandler), closing: closing, guests: map[resource.ID]*guest{}}
	g := d.guest(id)
	g.dir = t.TempDir()
	g.rec, g.proc = &record{Way: &way{Move: 1, Incoming: true, From: from, Begun: true}}, &process{}
	g.arriving = &arrival{pipes: newPipes()}
	d.await(id, from)
	if !d.Awaits(from) || d.Awaits(id) {
		t.Error("another host is awaited than the one that the guest comes from")
	}
	export, err := net.Listen("unix", filepath.Join(g.dir, exportSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer export.Close()
	here, there := net.Pipe()
	defer here.Close()
	served := make(chan struct{})
	go func() { defer close(served); d.Serve(from, there) }()
	if err := tell(here, hail{Guest: id, Move: 1, Purpose: forDisk}); err != nil {
		t.Fatal(err)
	}
	if _, err := export.Accept(); err != nil { // it has been let in, and the answer waits for whoever reads it
		t.Fatal(err)
	}
	g.mu.Lock()
	g.cutWay()
	g.rec = nil
	g.mu.Unlock()
	d.forget(g)
	var w welcome
	if err := hear(here, &w); err != nil || w.Trouble != "" {
		t.Fatalf("the answer is %+v, %v", w, err)
	}
	<-served
	if d.Awaits(from) {
		t.Error("the host is awaited still")
	}
}
