package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qcow2"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
)

// How a guest's root disk is copied. QEMU itself does it, within the guest's jail: a backup job copies what the disk has at the
// moment in which it begins into an empty image that lies over nothing. Of a guest that is off a process does that which is no
// machine, as when it leaves for another host. What comes of it is no more to be trusted than the guest, and is judged as
// any image that somebody uploads.

// A snapshot is the copy of a guest's root disk that was made, or is being made.
type snapshot struct {
	Number int
	Begun  bool // the job may be there
	Done   bool
	Bytes  int64
	// Why there will be none.
	Trouble string
}

const (
	copyFile = "copy.qcow2"
	copyJob  = "copy"
	copyNode = "copy"
	copySet  = 4

	noCopy = "The guest's disk could not be copied: the host's storage is full or fails."
)

// Snapshot implements compute.Snapshotter.
func (d *Driver) Snapshot(ctx context.Context, want compute.Guest) (compute.Observation, compute.Copy, error) {
	if s := want.Snapshot; d.copyOf(want.ID).Number != s.Number || !d.copyOf(want.ID).Done {
		o, c, err := d.copyOn(ctx, want)
		if err != nil || !c.Done {
			return o, c, err
		}
	}
	// It is as any other guest again, but that it has a copy.
	o, err := d.ensure(ctx, want, true)
	c := d.copyOf(want.ID)
	path := filepath.Join(d.guest(want.ID).dir, copyFile)
	return o, compute.Copy{Done: c.Done, Percent: 100, Trouble: c.Trouble, Bytes: c.Bytes,
		Open: func() (io.ReadCloser, error) { return os.Open(path) }}, err
}

// copyOf is what is known of a guest's copy.
func (d *Driver) copyOf(id resource.ID) snapshot {
	g, err := d.known(id)
	if err != nil {
		return snapshot{}
	}
	defer g.mu.Unlock()
	if g.rec.Copy == nil {
		return snapshot{}
	}
	return *g.rec.Copy
}

// copyOn takes a copy a step further.
func (d *Driver) copyOn(ctx context.Context, want compute.Guest) (compute.Observation, compute.Copy, error) {
	g, err := d.known(want.ID)
	if err != nil {
		return compute.Observation{Power: compute.Off}, compute.Copy{Trouble: "The guest is not on its host."}, nil
	}
	defer g.mu.Unlock()
	g.began, g.forked, g.answered = time.Now(), time.Time{}, time.Time{}
	if o, trouble, err := g.stillMine(ctx, want); trouble != "" || err != nil {
		return o, compute.Copy{Trouble: trouble}, err
	}
	if c := g.rec.Copy; c == nil || c.Number != want.Snapshot.Number {
		if err := g.endCopy(ctx); err != nil {
			return compute.Observation{}, compute.Copy{}, err
		}
		g.rec.Copy = &snapshot{Number: want.Snapshot.Number}
		if err := g.write("copy announced"); err != nil {
			return compute.Observation{}, compute.Copy{}, err
		}
	}
	percent := 0
	for time.Since(g.began) < patience && g.rec.Copy.Trouble == "" && !g.rec.Copy.Done {
		if err := ctx.Err(); err != nil {
			return compute.Observation{}, compute.Copy{}, fmt.Errorf("guest %s: %w", g.id, err)
		}
		p, n, trouble, err := g.copyStep(ctx, want)
		if err != nil {
			return compute.Observation{}, compute.Copy{}, err
		}
		percent = n
		if trouble != "" {
			if err := g.missCopy(ctx, trouble); err != nil {
				return compute.Observation{}, compute.Copy{}, err
			}
		}
		if p != again {
			break
		}
	}
	now, err := g.look(ctx)
	if g.rec.Launch != nil && g.rec.Launch.Ferry {
		now, err = gone, nil // it is no machine
	}
	if err != nil {
		return compute.Observation{}, compute.Copy{}, err
	}
	return g.observe(now), compute.Copy{Done: g.rec.Copy.Done, Percent: percent, Trouble: g.rec.Copy.Trouble}, nil
}

// missCopy gives the copy up: nothing of it is left but why.
func (g *guest) missCopy(ctx context.Context, why string) error {
	number := g.rec.Copy.Number
	if err := g.endCopy(ctx); err != nil {
		return err
	}
	g.rec.Copy = &snapshot{Number: number, Trouble: why}
	return g.write("copy given up")
}

// copyStep does the next thing. percent is how much has been copied.
func (g *guest) copyStep(ctx context.Context, want compute.Guest) (p progress, percent int, trouble string, err error) {
	c := g.rec.Copy
	if l := g.rec.Launch; l == nil || !l.Ferry {
		p, trouble, err := g.step(ctx, want)
		if p != settled || trouble != "" || err != nil {
			return p, 0, trouble, err
		}
		switch {
		case g.rec.Launch != nil && want.Power == compute.Off:
			return waiting, 0, "", nil
		case g.rec.Launch == nil && (want.Power == compute.Off || want.Power == compute.Suspended):
			p, trouble, err := g.ferry(ctx)
			return p, 0, trouble, err
		case g.rec.Launch == nil:
			return settled, 0, "The guest ended by itself.", nil
		}
	}
	now, err := g.settle(ctx)
	switch {
	case now == starting:
		return waiting, 0, "", g.bringUp(ctx)
	case now == gone || err != nil:
		g.refusal(g.driver.log)
		c.Begun = false
		return settled, 0, noCopy, err
	}
	if !c.Begun {
		return again, 0, "", g.beginCopy(ctx)
	}
	job, ok, err := g.copyJob(ctx)
	switch {
	case err != nil:
		return settled, 0, "", err
	case !ok: // it ended with its process, or did not begin
		c.Begun = false
		if err := g.dropCopyNodes(ctx); err != nil {
			return settled, 0, "", err
		}
		return again, 0, "", g.write("copy to begin again")
	case !job.over():
		if job.Len > 0 {
			percent = int(100 * job.Offset / job.Len)
		}
		g.comeAgain(time.Second)
		return waiting, percent, "", nil
	case job.Error != "":
		g.driver.log.WarnContext(ctx, "a guest's disk could not be copied", "guest", g.id, "error", job.Error)
		return settled, 0, noCopy, nil
	}
	return settled, 100, "", g.finishCopy(ctx)
}

// beginCopy gives QEMU an empty image, and has it copy the root disk into that.
func (g *guest) beginCopy(ctx context.Context) error {
	root := g.rec.Devices[0]
	path := filepath.Join(g.dir, copyFile)
	if err := remove(path); err != nil {
		return err
	}
	if err := qcow2.Write(path, root.Bytes, "", ""); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	g.rec.Copy.Begun = true
	if err := g.write("copy begun"); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := g.monitor.ExecuteWithFile(limited, f, "add-fd", object{"fdset-id": copySet}, nil); err != nil {
		return fmt.Errorf("guest %s: %w", g.id, err)
	}
	for _, node := range []object{
		{"driver": "file", "node-name": copyNode + "f", "filename": fdset(copySet), "discard": "unmap"},
		{"driver": "qcow2", "node-name": copyNode, "file": copyNode + "f", "discard": "unmap", "detect-zeroes": "unmap", "backing": nil},
	} {
		if err := g.ask(ctx, "blockdev-add", node, nil); err != nil {
			return err
		}
	}
	return g.ask(ctx, "blockdev-backup", object{"job-id": copyJob, "device": root.node(), "target": copyNode, "sync": "full",
		"auto-dismiss": false}, nil)
}

// copyJob is how far QEMU is; false if it knows nothing of it.
func (g *guest) copyJob(ctx context.Context) (job mirrorJob, ok bool, err error) {
	var all []mirrorJob
	if err := g.ask(ctx, "query-block-jobs", nil, &all); err != nil {
		return job, false, err
	}
	for _, job := range all {
		if job.Device == copyJob {
			return job, true, nil
		}
	}
	return job, false, nil
}

// finishCopy takes the copy out of QEMU's hands.
func (g *guest) finishCopy(ctx context.Context) error {
	if err := g.ask(ctx, "job-dismiss", object{"id": copyJob}, nil); err != nil {
		return err
	}
	if err := g.dropCopyNodes(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(g.dir, copyFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	g.rec.Copy.Done, g.rec.Copy.Begun, g.rec.Copy.Bytes = true, false, info.Size()
	return g.write("copy complete")
}

// dropCopyNodes has QEMU let go of the copy's file.
func (g *guest) dropCopyNodes(ctx context.Context) error {
	for _, step := range []struct {
		command string
		args    object
	}{{"blockdev-del", object{"node-name": copyNode}}, {"blockdev-del", object{"node-name": copyNode + "f"}}, {"remove-fd", object{"fdset-id": copySet}}} {
		err := g.ask(ctx, step.command, step.args, nil)
		var refusal *qmp.Error
		if err != nil && !(errors.As(err, &refusal) && (strings.Contains(refusal.Desc, "ind node") || strings.Contains(refusal.Desc, "not found"))) {
			return err
		}
	}
	return nil
}

// endCopy takes away everything of a copy; none is nothing.
func (g *guest) endCopy(ctx context.Context) error {
	c := g.rec.Copy
	if c == nil {
		return nil
	}
	if l := g.rec.Launch; l != nil && l.Ferry {
		if err := g.cut(ctx, ""); err != nil {
			return err
		}
	} else if now, err := g.look(ctx); c.Begun && now != gone && now != starting {
		if err != nil {
			return err
		}
		if err := g.cancelCopy(ctx); err != nil {
			return err
		}
	}
	if err := remove(filepath.Join(g.dir, copyFile)); err != nil {
		return err
	}
	g.rec.Copy = nil
	return g.write("copy dropped")
}

// cancelCopy ends the job, and waits for its end.
func (g *guest) cancelCopy(ctx context.Context) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		job, ok, err := g.copyJob(ctx)
		if err != nil {
			return err
		}
		if !ok {
			return g.dropCopyNodes(ctx)
		}
		command, args := "block-job-cancel", object{"device": copyJob, "force": true}
		if job.over() {
			command, args = "job-dismiss", object{"id": copyJob}
		}
		err = g.ask(ctx, command, args, nil)
		var refusal *qmp.Error
		if err != nil && !errors.As(err, &refusal) { // it has just ended
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("guest %s: the copy of its disk does not end", g.id)
		}
	}
}
