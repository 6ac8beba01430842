package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
	"golang.org/x/sys/unix"
)

func (d device) mirrorJob() string  { return "move" + fmt.Sprint(d.Slot) }
func (d device) mirrorNode() string { return "m" + fmt.Sprint(d.Slot) }

// mirror has a disk written to the other host too, from now on, and what is in it already. What is in its image is there.
func (g *guest) mirror(ctx context.Context, dev device, want compute.Guest) (trouble string, err error) {
	h := hail{Guest: g.id, Move: g.rec.Way.Move, Purpose: forDisk}
	peer, trouble, err := g.driver.hails(ctx, want.Leave.Where, peerTime, h)
	if trouble != "" || err != nil {
		return g.turnedAway(ctx, trouble, err), nil
	}
	name := fmt.Sprintf("unkai-%s-%d", g.id, dev.Slot)
	if err := g.meet(name, peer); err != nil {
		peer.Close()
		return "", err
	}
	err = g.ask(ctx, "blockdev-add", object{"driver": "nbd", "node-name": dev.mirrorNode(), "export": dev.node(), "discard": "unmap",
		"server": object{"type": "unix", "path": name, "abstract": true}}, nil)
	if err != nil {
		g.driver.log.WarnContext(ctx, "a guest's disk cannot be sent", "guest", g.id, "error", err)
		return brokenWay, nil
	}
	sync := "full"
	if dev.Image.Path != "" {
		sync = "top"
	}
	return "", g.ask(ctx, "blockdev-mirror", object{"job-id": dev.mirrorJob(), "device": dev.node(), "target": dev.mirrorNode(), "sync": sync,
		"auto-dismiss":     false, // how it ends is asked
		"filter-node-name": dev.mirrorNode() + "t"}, nil)
}

// meet waits, in the hypervisor's own network, for it to come to a socket of this name, and connects it with another host. Nobody
// else is in there; where a hypervisor has no network of its own, whoever else comes is turned away.
func (g *guest) meet(name string, peer net.Conn) error {
	var l net.Listener
	err := inNetworkOf(g.proc.pid, g.driver.jail.identity, func() (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: "@" + name, Net: "unix"})
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for guest %s: %w", g.id, err)
	}
	pid, p := g.proc.pid, g.trip.pipes
	if !p.keep(l) {
		return errors.New("the way was given up")
	}
	p.group.Go(func() {
		defer p.drop(l)
		l.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second))
		for {
			conn, err := l.Accept()
			if err != nil {
				peer.Close()
				return
			}
			if peerOf(conn.(*net.UnixConn)) != pid {
				conn.Close()
				continue
			}
			l.Close()
			p.join(conn, peer)
			return
		}
	})
	return nil
}

// inNetworkOf runs f in the network namespace of a process, if it has one of its own.
func inNetworkOf(pid int, own bool, f func() error) (err error) {
	if !own {
		return f()
	}
	onSpareThread(func() {
		var ns *os.File
		if ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter the namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}

// peerOf is the process at the other end of a local connection.
func peerOf(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// A mirrorJob is how far one of QEMU's jobs is.
type mirrorJob struct {
	Device      string
	Len, Offset int64
	Ready       bool
	Status      string
	Error       string // of one that has ended, and not well
}

// over reports whether the job has ended.
func (j mirrorJob) over() bool { return j.Status == "concluded" }

func (g *guest) mirrors(ctx context.Context) (map[string]mirrorJob, error) {
	var all []mirrorJob
	if err := g.ask(ctx, "query-block-jobs", nil, &all); err != nil {
		return nil, err
	}
	jobs := map[string]mirrorJob{}
	for _, job := range all {
		if strings.HasPrefix(job.Device, "move") {
			jobs[job.Device] = job
		}
	}
	return jobs, nil
}

// endMirrors ends the mirrors, which are in step, with the last of what was written; ended: they have ended well. One that has
// not is trouble: what was written last may not be there.
func (g *guest) endMirrors(ctx context.Context) (ended bool, trouble string, err error) {
	t := g.trip
	if t.mirrorsEnded {
		return true, "", nil
	}
	jobs, err := g.mirrors(ctx)
	if err != nil {
		return false, "", err
	}
	for _, dev := range g.rec.Devices {
		if job, ok := jobs[dev.mirrorJob()]; dev.Kind == "disk" && (!ok || job.Error != "" || job.over() && !t.leavesOff) {
			return false, brokenWay, nil
		}
	}
	if !t.leavesOff {
		t.leavesOff = true
		for name := range jobs {
			if err := g.ask(ctx, "block-job-cancel", object{"device": name}, nil); err != nil {
				return false, "", err
			}
		}
		return false, "", nil
	}
	for _, job := range jobs {
		if !job.over() {
			return false, "", nil
		}
	}
	for name := range jobs {
		if err := g.ask(ctx, "job-dismiss", object{"id": name}, nil); err != nil {
			return false, "", err
		}
	}
	if err := g.dropMirrors(ctx); err != nil {
		return false, "", err
	}
	t.mirrorsEnded = true
	return true, "", nil
}

// dropMirrors takes the other ends of mirrors away that have ended.
func (g *guest) dropMirrors(ctx context.Context) error {
	for _, dev := range g.rec.Devices {
		if dev.Kind != "disk" {
			continue
		}
		err := g.ask(ctx, "blockdev-del", object{"node-name": dev.mirrorNode()}, nil)
		var refusal *qmp.Error
		if err != nil && !(errors.As(err, &refusal) && strings.Contains(refusal.Desc, "ind node")) {
			return err
		}
	}
	return nil
}
