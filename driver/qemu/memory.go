package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// A suspended guest's memory lies in a file. It counts once the record says so,
// which is written after the file is whole and before the process is ended; and
// it no longer counts from the moment before the processors run again.

func (g *guest) toSuspended(ctx context.Context, want compute.Guest, now state) (progress, string, error) {
	r := g.rec
	switch {
	case now == gone && (r.Saved != nil || r.Ended != ""):
		return settled, "", nil
	case now == gone:
		return settled, "Only a running guest can be suspended.", nil
	case now == starting || r.Launch.Incoming && !r.Launch.Up:
		if r.Saved == nil { // it had been let go already
			return again, "", g.up()
		}
		return again, "", g.cut(ctx, "") // what it was loading is still there
	case r.Saved != nil:
		return again, "", g.cut(ctx, "")
	case !r.Launch.Up:
		return again, "", g.up()
	case !r.Saving:
		if err := g.takeUp(ctx); err != nil {
			return settled, "", err
		}
		if err := g.ask(ctx, "stop", nil, nil); err != nil {
			return settled, "", err
		}
		r.Saving = true
		return again, "", g.write("save announced")
	}
	return g.save(ctx, now)
}

// save writes the memory out, as far as that has not been done.
func (g *guest) save(ctx context.Context, now state) (progress, string, error) {
	var migration struct{ Status string }
	if err := g.ask(ctx, "query-migrate", nil, &migration); err != nil {
		return settled, "", err
	}
	if migration.Status == "completed" && now == paused {
		// Either that was the loading of memory saved before, or the state has changed just now.
		var err error
		if now, err = g.look(ctx); err != nil {
			return settled, "", err
		}
	}
	switch {
	case now == saved:
		return g.keepMemory()
	case now == finishing:
	case migration.Status == "", migration.Status == "none", migration.Status == "completed", migration.Status == "failed", migration.Status == "cancelled":
		if g.saveBegan {
			g.saveBegan = false
			return settled, "", fmt.Errorf("guest %s: saving its memory ended as %q", g.id, migration.Status)
		}
		if err := g.beginSave(ctx); err != nil {
			return settled, "", err
		}
	}
	// Small guests are saved at once, and need no second call.
	if time.Since(g.began) < answerTime {
		time.Sleep(5 * time.Millisecond)
		return again, "", nil
	}
	g.comeAgain(500 * time.Millisecond)
	return waiting, "", nil
}

func (g *guest) beginSave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	f, err := os.OpenFile(filepath.Join(g.dir, memoryFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	m := g.monitor
	if err := g.migrationSettings(ctx, false, compute.NoRound); err != nil {
		return err
	}
	if err := m.ExecuteWithFile(ctx, f, "getfd", object{"fdname": "memory"}, nil); err != nil {
		return err
	}
	if err := m.Execute(ctx, "migrate", object{"uri": "fd:memory"}, nil); err != nil {
		return err
	}
	g.saveBegan = true
	g.driver.step("save begun")
	return nil
}

// migrationSettings says how memory is to be written out: to a file, or to another host while the guest runs.
func (g *guest) migrationSettings(ctx context.Context, away bool, course compute.Course) error {
	capability := func(name string, on bool) object { return object{"capability": name, "state": on} }
	// A guest that changes its memory faster than it can be sent is slowed down, and it is not let go of before we say so.
	err := g.ask(ctx, "migrate-set-capabilities", object{"capabilities": []object{
		capability("events", true), capability("auto-converge", away), capability("pause-before-switchover", away)}}, nil)
	if err != nil {
		return err
	}
	downtime := downtimeMs
	if course == compute.OneRound {
		downtime = 0 // the processors are stopped when all has been sent once, and no other round is begun before
	}
	return g.ask(ctx, "migrate-set-parameters", object{"max-bandwidth": 1 << 40, "downtime-limit": downtime}, nil)
}

// downtimeMs is how long sending the rest of the memory may take when the guest is stopped for it, as far as QEMU
// can tell.
const downtimeMs = 200

// keepMemory makes sure that the file is on the disk, and then counts on it.
// That may take long, and goes on between calls.
func (g *guest) keepMemory() (progress, string, error) {
	if g.flushed == nil {
		g.flushed = make(chan error, 1)
		flushed := g.flushed
		g.driver.watchers.Go(func() {
			flushed <- syncFile(filepath.Join(g.dir, memoryFile))
			g.driver.notify(g.id)
		})
	}
	timer := time.NewTimer(answerTime)
	defer timer.Stop()
	select {
	case <-timer.C:
		return waiting, "", nil
	case err := <-g.flushed:
		g.flushed, g.saveBegan = nil, false
		if err != nil {
			return settled, "", err
		}
	}
	s := g.rec.Launch.Shape
	g.rec.Saved, g.rec.Saving = &s, false
	return again, "", g.write("memory saved")
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// keepOrDropMemory goes back to running, from wherever a suspension has got to.
func (g *guest) keepOrDropMemory(ctx context.Context) (progress, string, error) {
	if g.rec.Saved != nil {
		return again, "", g.cut(ctx, "") // all is on the disk: resume from there
	}
	if !g.rec.Saving {
		return again, "", g.ask(ctx, "cont", nil, nil)
	}
	if err := g.ask(ctx, "migrate_cancel", nil, nil); err != nil {
		return settled, "", err
	}
	g.saveBegan, g.flushed = false, nil
	return again, "", g.dropMemory("save given up")
}

// dropMemory forgets saved memory, if there is any. The file goes after the
// record: the other way round, a crash would leave a record of nothing.
func (g *guest) dropMemory(step string) error {
	g.rec.Saved, g.rec.Saving = nil, false
	if err := g.write(step); err != nil {
		return err
	}
	return remove(filepath.Join(g.dir, memoryFile))
}
