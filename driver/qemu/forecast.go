package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qmp"
	"golang.org/x/sys/unix"
)

// What a guest would take along is told before anybody moves it. How fast it writes in its memory QEMU finds out by looking at
// some of its pages twice, a second apart: that works with and without KVM, the guest does not notice, and nothing has to be
// switched on in it, as the dirty bitmap and the dirty ring would have to be. What is written back as it was is not seen by
// that, and what is written many times counts once.

const (
	watchSeconds = 1       // QEMU takes whole seconds
	watchPages   = 1 << 13 // of a guest that are looked at, as far as QEMU lets us
)

// samples is how many pages are to be looked at of each GiB: QEMU takes from 128 to 4,096.
func samples(memoryMiB int) int { return min(max(watchPages*1024/max(memoryMiB, 1), 128), 4096) }

// Weigh implements compute.Weigher.
func (d *Driver) Weigh(ctx context.Context, id resource.ID, where string) (compute.Burden, error) {
	b, err := d.watch(ctx, id)
	if err == nil && where != "" && where != d.where() { // not before: what that takes of the processors the guest would lack
		var trouble error
		if b.Wire, trouble = d.tryWire(ctx, where); trouble != nil {
			d.log.WarnContext(ctx, "how fast another host is reached could not be tried", "where", where, "error", trouble)
		}
	}
	return b, err
}

// watch looks at a guest.
func (d *Driver) watch(ctx context.Context, id resource.ID) (b compute.Burden, err error) {
	g, err := d.known(id)
	if err != nil {
		return b, err
	}
	began := time.Now()
	now, wrote, err := g.beginWatch(ctx, &b)
	g.mu.Unlock()
	if err != nil || !b.Live {
		return b, err
	}
	for left := watchSeconds * time.Second; ; left = 50 * time.Millisecond {
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return b, ctx.Err()
		}
		if g, err = d.known(id); err != nil {
			return b, err
		}
		over, err := g.endWatch(ctx, &b, now, wrote, began)
		g.mu.Unlock()
		if over || err != nil {
			return b, err
		}
	}
}

// How long a wire is tried, and what of that says nothing: until the first has left the kernel's own memory.
const (
	tryFor  = 700 * time.Millisecond
	trySkip = 200 * time.Millisecond
	tryMost = 1 << 30 // bytes
)

// tryWire sends nothing to another host, as fast as it goes, by the way on which a guest would go. Many that ask for the same at once
// share one answer: two trials would only halve each other.
func (d *Driver) tryWire(ctx context.Context, where string) (bytesPerSecond int64, err error) {
	select {
	case d.trials.turn <- struct{}{}:
		defer func() { <-d.trials.turn }()
	case <-time.After(tryFor + peerTime): // many others are tried first
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if t, ok := d.trials.last[where]; ok && time.Since(t.at) < tryAgain {
		return t.speed, nil
	}
	conn, trouble, err := d.hails(ctx, where, peerTime, hail{Purpose: forTrial})
	if err != nil || trouble != "" {
		return 0, errors.Join(err, errors.New(trouble))
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(peerTime))
	began, block := time.Now(), make([]byte, 64<<10)
	sent, counted, from := 0, 0, began
	for now := began; now.Sub(began) < tryFor && sent < tryMost; now = time.Now() {
		if counted == 0 && now.Sub(began) >= trySkip {
			counted, from = sent, now
		}
		n, err := conn.Write(block)
		sent += n
		if err != nil {
			return 0, err
		}
	}
	if over := time.Since(from); over > 0 {
		bytesPerSecond = int64(float64(sent-counted) / over.Seconds())
	}
	if d.trials.last == nil || len(d.trials.last) > 1000 {
		d.trials.last = map[string]trial{}
	}
	d.trials.last[where] = trial{time.Now(), bytesPerSecond}
	return bytesPerSecond, nil
}

// trials are those of late, by where.
type trials struct {
	turn chan struct{}    // holds one throughout a trial
	last map[string]trial // of whoever has the turn
}

type trial struct {
	at    time.Time
	speed int64
}

const tryAgain = 10 * time.Second

// beTried takes what another host sends to find out how fast it can.
func (d *Driver) beTried(conn net.Conn) {
	conn.SetDeadline(time.Now().Add(peerTime))
	if tell(conn, welcome{}) == nil {
		io.Copy(io.Discard, io.LimitReader(conn, 2*tryMost)) // it ends with the other side, or with its time
	}
}

// beginWatch finds out what there is of the guest, and begins to watch it write.
func (g *guest) beginWatch(ctx context.Context, b *compute.Burden) (now state, wrote int64, err error) {
	for _, dev := range g.rec.Devices {
		if dev.Kind != "disk" || !dev.Made {
			continue
		}
		f, err := g.openDisk(dev.file(g.disks()), os.O_RDONLY)
		if err != nil {
			return now, 0, err
		}
		var info unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &info)
		f.Close()
		if err != nil {
			return now, 0, err
		}
		b.Disk += min(info.Blocks*512, dev.Bytes)
	}
	if now, err = g.look(ctx); err != nil {
		return now, 0, err
	}
	if now == gone || now == starting || g.rec.Launch == nil || g.rec.Launch.Ferry || !g.rec.Launch.Up {
		return now, 0, nil
	}
	b.Live, b.Memory, b.Limit = true, int64(g.rec.Launch.Shape.MemoryMiB)<<20, downtimeMs
	if b.Course, err = g.course(ctx); err != nil {
		return now, 0, err
	}
	if b.Used, err = touched(g.proc.pid, b.Memory); err != nil {
		return now, 0, fmt.Errorf("guest %s: %w", g.id, err)
	}
	if now != running {
		return now, 0, nil
	}
	if wrote, err = g.written(ctx); err != nil {
		return now, 0, err
	}
	err = g.ask(ctx, "calc-dirty-rate", object{"calc-time": watchSeconds, "sample-pages": samples(g.rec.Launch.Shape.MemoryMiB)}, nil)
	var refusal *qmp.Error
	if errors.As(err, &refusal) { // somebody else watches it, which is as good; or this QEMU cannot, which the end of it tells
		err = nil
	}
	return now, wrote, err
}

// endWatch takes in what was seen, once QEMU has seen enough.
func (g *guest) endWatch(ctx context.Context, b *compute.Burden, was state, wrote int64, began time.Time) (over bool, err error) {
	now, err := g.look(ctx)
	switch {
	case err != nil:
		return false, err
	case now != was: // whatever was seen is of something else
		return true, nil
	case was != running: // it stands still
		b.Seen, b.Seconds = true, watchSeconds
		return true, nil
	}
	var rate struct {
		Status string
		Rate   *int64 `json:"dirty-rate"`   // MiB in a second
		Time   int64  `json:"calc-time"`    // seconds
		Pages  int    `json:"sample-pages"` // of each GiB; since 6.1
	}
	err = g.ask(ctx, "query-dirty-rate", nil, &rate)
	var refusal *qmp.Error
	switch {
	case errors.As(err, &refusal) || err == nil && rate.Status == "unstarted":
		return true, nil // it is older than 5.2
	case err != nil:
		return false, err
	case rate.Status != "measured" || rate.Rate == nil:
		return time.Since(began) > 5*watchSeconds*time.Second, nil
	}
	after, err := g.written(ctx)
	if err != nil {
		return false, err
	}
	b.Seen, b.Seconds, b.Dirty = true, max(float64(rate.Time), watchSeconds), *rate.Rate<<20
	b.Pages = max(1, int(b.Memory>>20)*max(rate.Pages, 128)/1024)
	b.DiskWrites = int64(float64(max(0, after-wrote)) / time.Since(began).Seconds())
	return true, nil
}

// written is how much the guest has written to its disks since it runs.
func (g *guest) written(ctx context.Context) (bytes int64, err error) {
	var all []struct {
		Stats struct {
			Written int64 `json:"wr_bytes"`
		}
	}
	err = g.ask(ctx, "query-blockstats", nil, &all)
	for _, dev := range all {
		bytes += dev.Stats.Written
	}
	return bytes, err
}

// touched is how much of a guest's memory is there at all: the kernel gives a page when it is first touched. It is that of the one
// mapping which is as large as the memory.
func touched(pid int, memory int64) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return touchedIn(f, memory)
}

func touchedIn(smaps io.Reader, memory int64) (int64, error) {
	var size, best, is int64
	lines := bufio.NewScanner(smaps)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if !ok || name != "Size" && name != "Rss" && name != "Swap" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			continue // the name of a mapped file may look like anything
		}
		bytes := kib << 10
		switch {
		case name == "Size":
			size = bytes
		case size < memory || best != 0 && size > best:
		case name == "Rss":
			best, is = size, bytes
		default:
			is += bytes
		}
	}
	if best == 0 {
		return memory, lines.Err() // not to be told apart
	}
	return min(is, memory), lines.Err()
}

// A stopwatch tells for how long a guest's disks were sent, before its memory was.
type stopwatch struct{ began, inStep time.Time }

// disksInStep is when they have been sent; only the first time counts.
func (s *stopwatch) disksInStep() {
	if s.inStep.IsZero() {
		s.inStep = time.Now()
	}
}

// passage is what the trip of a running guest came to, whose memory is there.
func (t *trip) passage(m *migration) compute.Passage {
	return compute.Passage{Bytes: t.pipes.sent.Load(), Ms: m.Total + t.clock.inStep.Sub(t.clock.began).Milliseconds(),
		StoppedMs: t.pause.total(time.Duration(m.Downtime) * time.Millisecond).Milliseconds()}
}
